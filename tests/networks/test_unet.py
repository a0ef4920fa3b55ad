from __future__ import annotations

import pytest
import torch
from torch import nn

from napari_strata.core.network_sections import UNet
from napari_strata.networks.blocks import AnySize
from napari_strata.networks.unet import ClassicUNet, upsampling
from networks.network_checks import NetworkChecks, build, noise

SMALL = (6, 10, 16)


class TestDefault(NetworkChecks):
    section = UNet()


class TestTransposeKernel3(NetworkChecks):
    section = UNet(
        widths=(8, 16, 24, 32, 40), norm="none", transpose_kernel=3, head_width=8
    )


class TestInstanceNorm(NetworkChecks):
    section = UNet(widths=SMALL, norm="instance", upsampling="nearest")


class TestGroupNorm(NetworkChecks):
    section = UNet(widths=SMALL, norm="group", upsampling="bilinear")


class TestDropout(NetworkChecks):
    section = UNet(widths=SMALL, dropout=0.5, head_width=4)


class TestTwoLevels(NetworkChecks):
    section = UNet(widths=(1, 3), transpose_kernel=3)


def test_number_of_parameters() -> None:
    section = UNet(
        widths=(32, 64, 128, 256, 512), norm="none", transpose_kernel=3, head_width=32
    )
    network = ClassicUNet(section, inputs=3, outputs=3)
    assert sum(p.numel() for p in network.parameters()) == 8_639_811


@pytest.mark.parametrize("norm", ["none", "batch", "instance", "group"])
def test_bias_only_where_the_norm_does_not_remove_it(norm: str) -> None:
    network = ClassicUNet(
        UNet.model_validate({"widths": (16, 32), "norm": norm}), inputs=1, outputs=2
    )
    convolutions = [m for m in network.down.modules() if isinstance(m, nn.Conv2d)]
    assert {m.bias is not None for m in convolutions} == {norm in ("none", "group")}
    norms = [
        m
        for m in network.down.modules()
        if isinstance(m, nn.BatchNorm2d | nn.GroupNorm)
    ]
    assert len(norms) == (0 if norm == "none" else len(convolutions))
    assert [m.num_groups for m in norms if isinstance(m, nn.GroupNorm)] == {
        "instance": [16, 16, 32, 32],
        "group": [1, 1, 2, 2],
    }.get(norm, [])


def test_signal_keeps_its_magnitude_through_the_network() -> None:
    # What He's initialisation is for: without norms, the logits are neither lost nor exploded.
    spread = build(UNet(norm="none")).eval()(noise(1, 2, 64, 64)).std()
    assert 0.05 < spread < 20


def test_dropout_drops_in_training_only() -> None:
    network = build(UNet(widths=SMALL, norm="none", dropout=0.5))
    image = noise(1, 2, 32, 32)
    with torch.no_grad():
        assert not torch.equal(network.train()(image), network(image))
        assert torch.equal(network.eval()(image), network(image))


@pytest.mark.parametrize(
    ("how", "kernel"),
    [("transpose", 2), ("transpose", 3), ("nearest", 2), ("bilinear", 2)],
    ids=str,
)
def test_upsampling_does_not_shift_the_image(how: str, kernel: int) -> None:
    up = upsampling(1, 1, how=how, kernel=kernel)  # type: ignore[arg-type]
    weights = next(
        m for m in up.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)
    )
    with torch.no_grad():
        weights.weight.fill_(1.0)
        weights.bias.zero_()  # type: ignore[union-attr]
        image = torch.zeros(1, 1, 8, 8)
        image[..., 3, 4] = 1
        grown = up(image)[0, 0]
    assert grown.shape == (16, 16)
    mass = grown / grown.sum()
    centre = (mass.sum(1) @ torch.arange(16.0), mass.sum(0) @ torch.arange(16.0))
    # Pixel 3 covers rows 6 and 7: centre 6.5. A kernel of 3 covers three rows, which is half a pixel off at most.
    assert centre == (pytest.approx(6.5, abs=0.51), pytest.approx(8.5, abs=0.51))


@pytest.mark.parametrize("depth", [2, 3, 4])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"transpose_kernel": 3},
        {"upsampling": "nearest"},
        {"upsampling": "bilinear"},
        {"head_width": 2},
    ],
    ids=str,
)
def test_reach_is_the_radius_of_the_receptive_field(
    depth: int, options: dict[str, object]
) -> None:
    section = UNet.model_validate({"widths": (2,) * depth, "norm": "none", **options})
    shape = section.geometry()
    assert measured_reach(section, shape.stride) == shape.reach


def measured_reach(section: UNet, stride: int) -> int:
    """Return the largest distance at which an input pixel changes an output pixel, over all positions in a stride."""
    network = build(section).double().eval()
    assert isinstance(network, AnySize)
    network.network.pool = nn.AvgPool2d(
        2
    )  # a maximum lets one pixel of four through; all of them may be it
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.abs_().add_(0.01)  # no ReLU closes, nothing cancels
    middle = (256 // stride) * stride
    distances = []
    for column in range(middle, middle + stride):
        image = torch.rand(
            1, 2, 2 * stride, 2 * middle, dtype=torch.float64, requires_grad=True
        )
        network(image)[0, :, stride, column].sum().backward()
        assert image.grad is not None
        seen = image.grad.abs().sum(dim=(0, 1, 2)).nonzero().flatten()
        distances += [column - int(seen.min()), int(seen.max()) - column]
    return max(distances)


def test_unet_with_batch_norm_depends_on_pixels_within_its_reach_only() -> None:
    section = UNet(widths=(4, 8, 8))
    network, reach = build(section).double().eval(), section.geometry().reach
    image = noise(1, 2, 12, 160).double()
    far = image.clone()
    far[..., : 100 - reach] += 10
    with torch.no_grad():
        assert torch.equal(network(far)[..., 100:], network(image)[..., 100:])
        assert not torch.equal(network(far)[..., :100], network(image)[..., :100])


def test_unet_with_instance_norm_depends_on_the_whole_tile() -> None:
    section = UNet(widths=(4, 8), norm="instance")
    network = build(section).double().eval()
    image = noise(1, 2, 8, 200).double()
    far = image.clone()
    far[..., :8] += 10
    with torch.no_grad():
        assert not torch.equal(network(far)[..., 190:], network(image)[..., 190:])
    assert section.geometry().whole_tile
