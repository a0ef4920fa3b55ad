"""Folded batch normalisation gives the same logits from fewer layers, or leaves the network unchanged."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from napari_strata.core.network_sections import AtrousUNet, Smp, UNet, UNet3d
from napari_strata.networks.blocks import BatchNorm, convolution
from napari_strata.networks.build import build_network
from napari_strata.networks.folding import fold_batch_norms
from networks.network_checks import make_spec


def norms(network: nn.Module) -> list[nn.Module]:
    return [
        module
        for module in network.modules()
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d)
    ]


def trained(network: nn.Module) -> nn.Module:
    """Set statistics and factors that differ from those of a new layer."""
    for norm in norms(network):
        assert isinstance(norm, nn.BatchNorm2d | nn.BatchNorm3d)
        for tensor in (norm.running_mean, norm.bias.data):
            assert tensor is not None
            nn.init.normal_(tensor, std=0.3)
        for tensor in (norm.running_var, norm.weight.data):
            assert tensor is not None
            nn.init.uniform_(tensor, 0.5, 1.5)
    return network.eval()


@pytest.mark.parametrize(
    ("section", "left"),  # what is left stands before its convolution, or is not used
    [
        (UNet(widths=(8, 16, 32)), 0),
        (UNet(widths=(8, 16), norm="group"), 0),
        (Smp(encoder="resnet18", encoder_weights="none"), 0),
        (
            Smp(
                architecture="deeplabv3plus", encoder="resnet18", encoder_weights="none"
            ),
            0,
        ),
        (Smp(encoder="efficientnet-b0", encoder_weights="none"), 1),
        (
            AtrousUNet(
                encoder="resnet18",
                encoder_weights="none",
                decoder_widths=(32, 16, 16, 8, 8),
            ),
            4,
        ),
        (UNet3d(widths=(4, 6, 8)), 0),
        (UNet3d(widths=(4, 6, 8), anisotropy=3), 0),
    ],
    ids=[
        "unet",
        "group",
        "resnet",
        "deeplab",
        "efficientnet",
        "atrous",
        "3D",
        "long voxels",
    ],
)
def test_logits_are_the_same(
    section: UNet | Smp | AtrousUNet | UNet3d, left: int
) -> None:
    spec = make_spec(section, channels=2, classes=3)
    torch.manual_seed(0)
    network = trained(build_network(spec))
    before = len(norms(network))
    folded = fold_batch_norms(
        network, channels=2, side=tuple(2 * n for n in spec.stride_shape)
    )
    assert len(norms(network)) == before, "the network itself is left as it is"
    assert len(norms(folded)) == left
    images = torch.randn(
        2, 2, *spec.stride_shape[:-2], 3 * spec.stride + 5, 2 * spec.stride + 1
    )
    with torch.inference_mode():
        wanted, found = network(images), folded(images)
    torch.testing.assert_close(
        found, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max())
    )


class Shared(nn.Module):
    """A convolution whose output is also used without its normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = BatchNorm(4)

    def forward(self, images: Tensor) -> Tensor:
        plain = self.first(images)
        return torch.relu(self.norm(plain)) + plain


class Twice(nn.Module):
    """A pair of layers that is applied twice."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), BatchNorm(4))
        self.start = convolution(1, 4, norm="batch")

    def forward(self, images: Tensor) -> Tensor:
        return self.block(self.block(self.start(images)))


def test_an_output_that_is_used_twice_prevents_folding() -> None:
    network = trained(Shared())
    assert fold_batch_norms(network, channels=1) is network


def test_layers_used_twice_are_not_folded() -> None:
    network = trained(Twice())
    folded = fold_batch_norms(network, channels=1)
    assert len(norms(folded)) == 1
    images = torch.randn(1, 1, 20, 20)
    torch.testing.assert_close(folded(images), network(images), rtol=1e-4, atol=1e-5)
