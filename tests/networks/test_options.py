"""Networks, encoders and options that other programs use: each is built, checked and trained for one step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from napari_strata.core.network_sections import AtrousUNet, Smp, UNet
from napari_strata.core.recipe import Training
from napari_strata.networks.atrous import AtrousBlock
from napari_strata.networks.build import encoder_of
from napari_strata.training.losses import build_loss
from napari_strata.training.optim import build_optimizer
from networks.network_checks import CLASSES, build, noise

Section = UNet | AtrousUNet | Smp

NARROW = (32, 24, 16, 16, 16)
LIGHT: dict[str, Any] = {"encoder": "resnet18", "decoder_widths": NARROW}

OPTIONS: dict[str, tuple[Section, str, int]] = {
    # Section, a layer type in the encoder or ("...") in the whole network, and how many of these are expected.
    "atrous on the skips": (AtrousUNet(**LIGHT), "...AtrousBlock", 4),
    "atrous in the decoder": (
        AtrousUNet(**LIGHT, atrous_at="decoder"),
        "...AtrousBlock",
        4,
    ),
    "atrous resnet101": (
        AtrousUNet(encoder="resnet101", decoder_widths=NARROW),
        "Conv2d",
        104,
    ),
    "scse": (Smp(**LIGHT, attention="scse"), "...SCSEModule", 10),
    # The classic U-Net, and TernausNet with VGG11.
    "classic": (
        UNet(widths=(8, 16), norm="none", transpose_kernel=3, head_width=8),
        "Conv2d",
        4,
    ),
    "vgg11": (Smp(encoder="vgg11", decoder_widths=NARROW), "Conv2d", 8),
    "resnet34": (Smp(encoder="resnet34", decoder_widths=NARROW), "Conv2d", 36),
    # DeepLab with three encoders.
    "deeplab resnet50": (
        Smp(architecture="deeplabv3plus", encoder="resnet50"),
        "Conv2d",
        53,
    ),
    "deeplab resnet101": (
        Smp(architecture="deeplabv3plus", encoder="resnet101"),
        "Conv2d",
        104,
    ),
    "deeplab efficientnet-b0": (
        Smp(architecture="deeplabv3plus", encoder="efficientnet-b0"),
        "Conv2d",
        81,
    ),
    # More levels.
    "deeper": (UNet(widths=(4, 6, 8, 10, 12, 14), norm="none"), "Conv2d", 12),
    # Vision transformers.
    "segformer mit_b0": (
        Smp(architecture="segformer", encoder="mit_b0", decoder_widths=(32,)),
        "Attention",
        8,
    ),
    "unet mit_b0": (Smp(encoder="mit_b0", decoder_widths=NARROW), "Attention", 8),
    "fpn mit_b0": (
        Smp(architecture="fpn", encoder="mit_b0", decoder_widths=(16, 32)),
        "Attention",
        8,
    ),
    "dpt vit": (
        Smp(
            architecture="dpt", encoder="tu-vit_tiny_patch16_224", decoder_widths=NARROW
        ),
        "Attention",
        12,
    ),
}


def is_a(module: nn.Module, layer: str) -> bool:
    return layer in {kind.__name__ for kind in type(module).__mro__}


def take_a_step(network: nn.Module) -> list[str]:
    """Return the names of the kernels that a step of Adam on BCE and Dice changes."""
    training = Training(
        optimizer="adam",
        learning_rate=1e-3,
        weight_decay=0,
        loss={"bce": 0.5, "dice": 0.5},
    )
    optimizer = build_optimizer(training, network.parameters(), "cpu")
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    labels = torch.arange(2 * 33 * 47).view(2, 33, 47) % CLASSES
    logits = network.train()(noise(2, 2, 33, 47))
    assert logits.shape == (2, CLASSES, 33, 47)
    loss = build_loss(training, classes=CLASSES)(logits, labels)
    assert loss.isfinite()
    loss.backward()
    optimizer.step()
    moved = [
        name
        for name, p in network.named_parameters()
        if p.requires_grad and not torch.equal(p, before[name])
    ]
    assert all(p.isfinite().all() for p in network.parameters())
    return moved


@pytest.mark.parametrize("option", OPTIONS)
def test_the_option_is_built_and_takes_a_step(option: str) -> None:
    section, layer, count = OPTIONS[option]
    network = build(section)
    part = network if layer.startswith("...") else encoder_of(network)
    assert sum(is_a(m, layer.removeprefix("...")) for m in part.modules()) == count
    kernels = {
        name
        for name, p in network.named_parameters()
        if p.requires_grad and p.ndim == 4
    }
    # Squeezing, and attention to a single place, have a gradient of exactly zero now and then.
    assert len(kernels - set(take_a_step(network))) <= len(kernels) // 10


@pytest.mark.slow
def test_the_vision_transformer_of_common_size_takes_a_step() -> None:
    network = build(Smp(architecture="dpt", encoder="tu-vit_base_patch16_224"))
    assert sum(p.numel() for p in network.parameters()) > 120e6
    assert any(
        name.startswith("network.encoder.model.blocks.11.")
        for name in take_a_step(network)
    )


@pytest.mark.parametrize("where", ["skip", "decoder"])
@pytest.mark.parametrize(
    ("kernels", "rates"), [((1, 3, 3, 3), (1, 6, 12, 18)), ((3, 5, 7), (2, 3, 1))]
)
def test_atrous_kernels_rates_and_position_reach_the_network(
    where: str, kernels: tuple[int, ...], rates: tuple[int, ...]
) -> None:
    options = LIGHT | {"atrous_at": where, "kernels": kernels, "dilations": rates}
    network: Any = build(AtrousUNet.model_validate(options)).network
    blocks = {"skip": network.on_skips, "decoder": network.on_levels}
    for place, members in blocks.items():
        found = [m for m in members if isinstance(m, AtrousBlock)]
        assert len(found) == (4 if place == where else 0)
        for block in found:
            assert tuple(
                (b.kernel_size[0], b.dilation[0]) for b in block.branches
            ) == tuple(zip(kernels, rates, strict=True))


@pytest.mark.parametrize("side", [16, 33, 224, 250])
def test_vision_transformers_take_images_of_any_size(side: int) -> None:
    network = build(
        Smp(
            architecture="dpt", encoder="tu-vit_tiny_patch16_224", decoder_widths=NARROW
        )
    ).eval()
    with torch.no_grad():
        assert network(noise(1, 2, side, side + 5)).shape == (
            1,
            CLASSES,
            side,
            side + 5,
        )
