from __future__ import annotations

import pytest
import torch
from torch import nn

from napari_strata.core.network_sections import AtrousUNet
from napari_strata.networks.atrous import AtrousBlock, AtrousResUNet
from networks.network_checks import NetworkChecks, build, noise

NARROW = (24, 20, 16, 12, 8)


class TestSkip(NetworkChecks):
    section = AtrousUNet(encoder="resnet18", decoder_widths=NARROW)


class TestDecoder(NetworkChecks):
    section = AtrousUNet(
        encoder="resnet18",
        decoder_widths=NARROW,
        atrous_at="decoder",
        kernels=(3, 5),
        dilations=(2, 4),
    )


@pytest.mark.parametrize("where", ["skip", "decoder"])
def test_number_of_parameters(where: str) -> None:
    section = AtrousUNet.model_validate({"encoder": "resnet50", "atrous_at": where})
    with torch.device("meta"):
        network = AtrousResUNet(section, inputs=3, outputs=2)
    count = sum(p.numel() for p in network.parameters())
    assert count == 171_281_474
    assert count == pytest.approx(171.3e6, abs=0.1e6)


@pytest.mark.parametrize(
    "encoder", ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]
)
def test_blocks_take_the_widths_of_the_encoder(encoder: str) -> None:
    section = AtrousUNet.model_validate({"encoder": encoder})
    with torch.device("meta"):
        network = AtrousResUNet(section, inputs=1, outputs=2)
        channels = [block_channels(b) for b in network.on_skips]
        logits = network(torch.empty(1, 1, 64, 96))
    basic = encoder in ("resnet18", "resnet34")
    assert (
        channels == [256, 128, 64, 64, None]
        if basic
        else channels == [1024, 512, 256, 64, None]
    )
    assert [block_channels(b) for b in network.on_levels] == [None] * 5
    assert logits.shape == (1, 2, 64, 96)


def test_blocks_in_the_decoder_skip_the_fourth_level() -> None:
    with torch.device("meta"):
        network = AtrousResUNet(AtrousUNet(atrous_at="decoder"), inputs=3, outputs=2)
    assert [block_channels(b) for b in network.on_levels] == [1024, 512, 256, None, 64]
    assert [block_channels(b) for b in network.on_skips] == [None] * 5


def block_channels(block: nn.Module) -> int | None:
    return block.fuse[-2].num_features if isinstance(block, AtrousBlock) else None


def test_block_is_as_described() -> None:
    block = AtrousBlock(8, kernels=(1, 3, 3, 3), dilations=(1, 6, 12, 18))
    assert [
        (b.kernel_size, b.dilation, b.padding, b.in_channels, b.out_channels)
        for b in block.branches
    ] == [
        ((1, 1), (1, 1), (0, 0), 8, 4),
        ((3, 3), (6, 6), (6, 6), 8, 4),
        ((3, 3), (12, 12), (12, 12), 8, 4),
        ((3, 3), (18, 18), (18, 18), 8, 4),
    ]
    assert block.fuse[0].num_features == 3 * 8
    assert (block.fuse[1].kernel_size, block.fuse[1].out_channels) == ((1, 1), 8)
    image = torch.zeros(1, 8, 61, 61, dtype=torch.float64)
    image[0, 0, 30, 30] = 1
    block = block.double().eval()
    seen = (block(image) - block(torch.zeros_like(image))).abs().sum(dim=(0, 1)) > 0
    rows = seen.any(dim=1).nonzero().flatten() - 30
    assert rows.tolist() == [-18, -12, -6, -1, 0, 1, 6, 12, 18]


def test_raw_image_is_the_last_skip() -> None:
    network = build(
        AtrousUNet(encoder="resnet18", decoder_widths=NARROW), channels=5
    ).network
    assert network.levels[-1].merge[0][0].in_channels == NARROW[-1] + 5
    inputs = []
    network.levels[-1].register_forward_pre_hook(
        lambda _, given: inputs.append(given[1])
    )
    image = noise(1, 5, 64, 64)
    with torch.no_grad():
        network.eval()(image)
    assert torch.equal(inputs[0], image)
