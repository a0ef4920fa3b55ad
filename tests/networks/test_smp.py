from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from torch import nn

from napari_strata.core.errors import RecipeError
from napari_strata.core.network_sections import AtrousUNet, Smp
from napari_strata.networks import build_network
from napari_strata.networks.blocks import AnySize, BatchNorm, GroupNorm
from napari_strata.networks.smp import (
    ENCODERS,
    VISION_TRANSFORMERS,
    WIDTHS,
    check_encoder,
)
from networks.network_checks import NetworkChecks, build, make_spec, noise

NARROW = (32, 24, 16, 16, 16)


class TestUnet(NetworkChecks):
    section = Smp(encoder="resnet18", decoder_widths=NARROW)


class TestUnetScse(NetworkChecks):
    section = Smp(
        encoder="mobilenet_v2", decoder_widths=NARROW, attention="scse", norm="instance"
    )


class TestUnetPlusPlus(NetworkChecks):
    section = Smp(
        architecture="unetplusplus",
        encoder="resnet18",
        decoder_widths=NARROW,
        norm="group",
    )


class TestManet(NetworkChecks):
    section = Smp(architecture="manet", encoder="tu-resnet10t", decoder_widths=NARROW)


class TestLinknet(NetworkChecks):
    section = Smp(architecture="linknet", encoder="resnet18", norm="none")


class TestFpn(NetworkChecks):
    section = Smp(
        architecture="fpn",
        encoder="efficientnet-b0",
        decoder_widths=(16, 32),
        dropout=0.2,
    )


class TestPspnet(NetworkChecks):
    section = Smp(
        architecture="pspnet", encoder="resnet18", decoder_widths=(32,), dropout=0.1
    )


class TestPan(NetworkChecks):
    section = Smp(architecture="pan", encoder="resnet18")


@pytest.mark.slow
class TestPanInstanceNorm(NetworkChecks):
    section = Smp(architecture="pan", encoder="mobilenet_v2", norm="instance")


class TestDeepLab(NetworkChecks):
    section = Smp(
        architecture="deeplabv3", encoder="mobilenet_v2", decoder_widths=(32,)
    )


class TestDeepLabPlus(NetworkChecks):
    section = Smp(
        architecture="deeplabv3plus",
        encoder="resnet18",
        decoder_widths=(32,),
        dropout=0.5,
    )


class TestUpernet(NetworkChecks):
    section = Smp(
        architecture="upernet",
        encoder="resnet18",
        decoder_widths=(16,),
        norm="instance",
    )


class TestSegformer(NetworkChecks):
    section = Smp(architecture="segformer", encoder="mit_b0", decoder_widths=(32,))


class TestDpt(NetworkChecks):
    section = Smp(
        architecture="dpt",
        encoder="tu-vit_tiny_patch16_224",
        decoder_widths=(32, 24, 16, 16, 16),
        dropout=0.1,
    )


@pytest.mark.slow
class TestSwin(NetworkChecks):
    section = Smp(
        architecture="unet",
        encoder="tu-swin_tiny_patch4_window7_224",
        decoder_widths=NARROW,
    )


@pytest.mark.slow
class TestVgg(NetworkChecks):
    section = Smp(encoder="vgg11", decoder_widths=NARROW)


@pytest.mark.slow
class TestSelectiveKernels(NetworkChecks):
    section = Smp(encoder="timm-skresnet18", decoder_widths=NARROW)


@pytest.mark.slow
class TestDefault(NetworkChecks):
    section = Smp()


def section(**options: Any) -> Smp:
    return Smp.model_validate({"encoder": "mobilenet_v2", **options})


def error(**options: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        build_network(make_spec(section(**options)))
    assert "\n" not in str(caught.value)
    return str(caught.value)


ARCHITECTURES = get_args(Smp.model_fields["architecture"].annotation)


def test_every_architecture_has_its_widths() -> None:
    assert set(WIDTHS) == set(ARCHITECTURES)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_recommended_encoders_work_with_every_architecture(architecture: str) -> None:
    for encoder in VISION_TRANSFORMERS if architecture == "dpt" else ENCODERS:
        network = build(section(architecture=architecture, encoder=encoder)).eval()
        assert network(noise(1, 2, 32, 32)).shape == (1, 3, 32, 32)


def test_decoder_widths_reach_the_network() -> None:
    decoder = build(section(decoder_widths=(48, 40, 32, 24, 16))).network.decoder
    assert [b.conv2[0].out_channels for b in decoder.blocks] == [48, 40, 32, 24, 16]
    decoder = build(
        section(architecture="fpn", decoder_widths=(40, 64))
    ).network.decoder
    assert (decoder.p5.out_channels, decoder.out_channels) == (40, 64)
    head = build(
        section(architecture="pspnet", decoder_widths=(40,))
    ).network.segmentation_head
    assert head[0].in_channels == 40


@pytest.mark.parametrize(
    ("architecture", "widths", "needed"),
    [
        ("unet", (8, 8), "takes 5"),
        ("fpn", (8,), "takes 2"),
        ("pan", (8, 8), "takes 1"),
        ("linknet", (8,), "encoder's"),
    ],
)
def test_wrong_number_of_decoder_widths(
    architecture: str, widths: tuple[int, ...], needed: str
) -> None:
    message = error(architecture=architecture, decoder_widths=widths)
    assert f"has {len(widths)} numbers" in message
    assert needed in message


@pytest.mark.parametrize("norm", ["none", "batch", "instance", "group"])
def test_norm_changes_the_decoder_only(norm: str) -> None:
    network = build(section(norm=norm)).network
    inside = {
        type(m)
        for m in network.decoder.modules()
        if isinstance(m, nn.BatchNorm2d | nn.GroupNorm)
    }
    assert inside == {"none": set(), "batch": {BatchNorm}}.get(norm, {GroupNorm})
    affine = [
        m.affine for m in network.decoder.modules() if isinstance(m, nn.GroupNorm)
    ]
    assert all(affine)
    assert any(isinstance(m, BatchNorm) for m in network.encoder.modules())
    assert not any(isinstance(m, nn.GroupNorm) for m in network.encoder.modules())


def test_dropout_reaches_the_network() -> None:
    for architecture, share in (
        ("fpn", 0.0),
        ("pspnet", 0.3),
        ("deeplabv3", 0.0),
        ("deeplabv3plus", 0.3),
    ):
        network = build(section(architecture=architecture, dropout=share)).network
        found = [
            m.p
            for m in network.decoder.modules()
            if isinstance(m, nn.Dropout | nn.Dropout2d)
        ]
        assert set(found) == {share}, architecture
    network = build(
        section(architecture="dpt", encoder="tu-vit_tiny_patch16_224", dropout=0.3)
    ).network
    assert [
        m.p for m in network.segmentation_head.modules() if isinstance(m, nn.Dropout)
    ] == [0.3]


def test_attention_reaches_the_network() -> None:
    network = build(section(attention="scse")).network
    assert (
        sum(type(m).__name__ == "SCSEModule" for m in network.decoder.modules()) == 10
    )


def test_unsupported_options_name_the_architectures_that_support_them() -> None:
    assert "network.attention=scse" in error(architecture="fpn", attention="scse")
    assert "unet, unetplusplus" in error(architecture="fpn", attention="scse")
    assert "network.dropout=0.2" in error(architecture="unet", dropout=0.2)
    assert "fpn, pspnet, deeplabv3, deeplabv3plus, dpt" in error(
        architecture="unet", dropout=0.2
    )
    assert "unet, unetplusplus, manet, linknet, pspnet" in error(
        architecture="deeplabv3plus", norm="none"
    )
    assert "always has group normalisation" in error(
        architecture="fpn", norm="instance"
    )
    assert "a multiple of 32" in error(architecture="fpn", decoder_widths=(32, 24))
    assert "at least 16" in error(attention="scse", decoder_widths=(32, 16, 16, 8, 8))


@pytest.mark.parametrize(
    ("architecture", "encoder", "working"),
    [
        ("unetplusplus", "mit_b0", "resnet34"),
        ("linknet", "mit_b0", "resnet34"),
        ("deeplabv3plus", "densenet121", "resnet34"),
        ("pan", "densenet121", "efficientnet-b0"),
        ("dpt", "resnet18", "tu-vit_tiny_patch16_224"),
        ("unet", "tu-vit_tiny_patch16_224", "dpt with vision transformers"),
        ("dpt", "tu-vit_small_patch14_dinov2", "tu-vit_tiny_patch16_224"),
    ],
)
def test_impossible_combinations_name_possible_ones(
    architecture: str, encoder: str, working: str
) -> None:
    message = error(architecture=architecture, encoder=encoder)
    assert (
        f"network.architecture={architecture} does not work with "
        f"network.encoder={encoder}" in message
    )
    assert working in message


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("resnet35", "did you mean 'resnet"),
        ("ResNet34", "did you mean 'resnet34'"),
        ("efficientnet_b0", "did you mean 'tu-efficientnet_b0'"),
        ("timm-resnest14d", "did you mean 'tu-resnest14d'"),
        ("tu-resnet18x", "did you mean 'tu-resnet18"),
        ("###", "examples are resnet34, resnet50"),
    ],
)
def test_unknown_encoders_name_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(RecipeError, match="is not an encoder") as caught:
        check_encoder(name)
    assert hint in str(caught.value)
    assert len(str(caught.value)) < 300


def test_parameters_that_the_logits_do_not_use_are_frozen() -> None:
    network = build(Smp(architecture="pspnet", encoder="resnet18")).network
    frozen = {
        n.split(".")[1] for n, p in network.named_parameters() if not p.requires_grad
    }
    assert frozen == {"layer3", "layer4"}  # PSPNet stops at 1/8
    assert all(p.requires_grad for p in build(section()).parameters())


def test_a_network_built_for_prediction_can_be_trained() -> None:
    with torch.inference_mode():
        network = build(section())
    assert all(p.requires_grad and not p.is_inference() for p in network.parameters())
    network(noise(1, 2, 32, 32)).mean().backward()


def test_building_is_repeatable_and_random() -> None:
    first, same, other = build(section()), build(section()), build(section(), seed=1)
    for (name, a), b, c in zip(
        first.named_parameters(), same.parameters(), other.parameters(), strict=True
    ):
        assert torch.equal(a, b), name
        if a.ndim == 4:
            assert not torch.equal(a, c), name


WHOLE = [
    (section(encoder="resnet18", decoder_widths=NARROW), False),
    (section(architecture="unetplusplus", decoder_widths=NARROW), False),
    (section(encoder="resnet18", architecture="linknet"), False),
    (
        section(encoder="resnet18", architecture="segformer", decoder_widths=(32,)),
        False,
    ),
    (section(encoder="mobileone_s0", decoder_widths=NARROW), False),
    (section(encoder="mobilenet_v2"), False),
    (AtrousUNet(encoder="resnet18", decoder_widths=NARROW), False),
    (section(encoder="resnet18", architecture="manet"), True),
    (section(encoder="resnet18", architecture="fpn"), True),
    (section(encoder="resnet18", architecture="pspnet"), True),
    (section(encoder="resnet18", architecture="pan"), True),
    (section(encoder="resnet18", architecture="deeplabv3"), True),
    (section(encoder="resnet18", architecture="deeplabv3plus"), True),
    (section(encoder="resnet18", architecture="upernet", decoder_widths=(16,)), True),
    (section(encoder="mit_b0", architecture="segformer"), True),
    (
        section(
            encoder="tu-vit_tiny_patch16_224", architecture="dpt", decoder_widths=NARROW
        ),
        True,
    ),
    (section(encoder="resnet18", attention="scse", decoder_widths=NARROW), True),
    (section(encoder="resnet18", norm="group", decoder_widths=NARROW), True),
    (section(encoder="efficientnet-b0"), True),
    (section(encoder="timm-efficientnet-b0"), True),
    (section(encoder="timm-skresnet18", decoder_widths=NARROW), True),
    (section(encoder="mobileone_s4", decoder_widths=NARROW), True),
]


@pytest.mark.parametrize(
    ("network", "whole"),
    WHOLE,
    ids=lambda v: (
        f"{getattr(v, 'architecture', 'atrous')}-{v.encoder}"
        if isinstance(v, Smp | AtrousUNet)
        else None
    ),
)
def test_whole_tile_is_true_where_distant_pixels_matter(
    network: Smp | AtrousUNet, whole: bool
) -> None:
    built = build(network, channels=1).double().eval()
    assert isinstance(built, AnySize)
    height = (
        built.smallest // 2
        if getattr(network, "architecture", "") != "pan"
        else built.smallest
    )
    image = noise(1, 1, height, 256 if whole else 896).double()
    far = image.clone()
    far[..., :8] += 20
    with torch.no_grad():
        differs = not torch.equal(
            built.network(image)[..., -64:], built.network(far)[..., -64:]
        )
    assert differs == whole
    assert network.geometry().whole_tile == whole
