"""Every architecture and encoder of segmentation-models-pytorch 0.6
(https://smp.readthedocs.io).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any

import segmentation_models_pytorch as smp
import timm
import torch
from torch import Tensor

from napari_strata.core.errors import RecipeError
from napari_strata.core.network_sections import Smp
from napari_strata.core.spec import ModelSpec
from napari_strata.networks.blocks import AnySize, replace_batch_norms

WIDTHS: dict[str, tuple[tuple[str, int], ...]] = {
    "unet": (("decoder_channels", 5),),
    "unetplusplus": (("decoder_channels", 5),),
    "manet": (("decoder_channels", 5),),
    "linknet": (),
    "fpn": (("decoder_pyramid_channels", 0), ("decoder_segmentation_channels", 0)),
    "pspnet": (("psp_out_channels", 0),),
    "pan": (("decoder_channels", 0),),
    "deeplabv3": (("decoder_channels", 0),),
    "deeplabv3plus": (("decoder_channels", 0),),
    "upernet": (("decoder_channels", 0),),
    "segformer": (("decoder_segmentation_channels", 0),),
    "dpt": (("decoder_intermediate_channels", 4), ("decoder_fusion_channels", 0)),
}
"""Arguments that the decoder widths of an architecture fill, in order.

Each has its name and its count of numbers; 0 for a single number that is no list.
"""

DROPOUT = {
    "fpn": "decoder_dropout",
    "pspnet": "psp_dropout",
    "deeplabv3": "decoder_aspp_dropout",
    "deeplabv3plus": "decoder_aspp_dropout",
}
"""Argument for dropout, where an architecture has one."""

ATTENTION = ("unet", "unetplusplus")
UNNORMALISED = ("unet", "unetplusplus", "manet", "linknet", "pspnet")
"""Architectures with scSE (Roy et al. 2018, https://arxiv.org/abs/1803.02579), and
architectures that can do without normalisation."""

SMALLEST = {"pan": 128}
"""Smallest image; PAN halves its 1/16 features three times more."""

ENCODERS = ("resnet34", "resnet50", "efficientnet-b0", "mobilenet_v2")
VISION_TRANSFORMERS = ("tu-vit_tiny_patch16_224", "tu-vit_base_patch16_224")
"""Encoders that messages recommend, for all architectures but dpt, and for dpt."""

VARIANTS: tuple[dict[str, Any], ...] = (
    {},
    {"dynamic_img_size": True},
    {"strict_img_size": False},
)
"""Options that let transformers of timm take any image size; the first that works."""


def build_smp(spec: ModelSpec, section: Smp) -> AnySize:
    """Build the architecture and encoder of `section`; see `build_network`."""
    check_encoder(section.encoder)
    options = (
        _widths(section) | _norm(section) | _attention(section) | _dropout(section)
    )
    options |= {
        "in_channels": spec.in_channels,
        "classes": len(spec.classes),
        "encoder_weights": None,
    }
    failure = ""
    for variant in _variants(section):
        try:
            return _assemble(spec, section, options | variant)
        # whatever smp or timm raises, it means that these two do not go together
        except Exception as error:
            failure = (
                failure
                or (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
            )
    encoder_list = ", ".join(
        VISION_TRANSFORMERS if section.architecture == "dpt" else ENCODERS
    )
    raise RecipeError(
        f"network.architecture={section.architecture} does not work with"
        f" network.encoder={section.encoder} ({failure}); take another encoder, such as"
        f" {encoder_list}, or another architecture: unet and fpn go with most encoders,"
        " dpt with vision transformers."
    )


def _variants(section: Smp) -> Iterator[dict[str, Any]]:
    yield from VARIANTS if section.encoder.startswith("tu-") else VARIANTS[:1]


def _assemble(spec: ModelSpec, section: Smp, options: dict[str, Any]) -> AnySize:
    with warnings.catch_warnings():
        # smp's hints to its own callers, such as deprecated encoder names.
        warnings.simplefilter("ignore")
        network = smp.create_model(section.architecture, section.encoder, **options)
        replace_batch_norms(network)
        if section.norm in ("instance", "group"):
            # smp has no group norm, and its instance norm has no scale and shift.
            replace_batch_norms(network.decoder, section.norm)
        if section.architecture == "dpt":
            network.segmentation_head.head[3].p = section.dropout
        wrapped = AnySize(
            network, spec.stride, smallest=SMALLEST.get(section.architecture)
        )
        _freeze_unreached(wrapped, spec.in_channels, len(spec.classes))
    return wrapped


def _freeze_unreached(network: AnySize, channels: int, classes: int) -> None:
    """Run the network once as a check, and freeze parameters that the logits do not
    use.

    smp keeps some: the last stages of PSPNet's encoder, EfficientNet's classifier.
    Unfrozen they stop training on several devices, which waits for each gradient.
    """
    training = network.training
    logits = network.eval()(
        torch.zeros(1, channels, network.smallest, network.smallest)
    )
    network.train(training)
    if logits.shape != (1, classes, network.smallest, network.smallest):
        raise ValueError(f"logits have the shape {tuple(logits.shape)}")
    reached = _leaves(logits)
    for parameter in network.parameters():
        parameter.requires_grad_(id(parameter) in reached)


def _leaves(tensor: Tensor) -> set[int]:
    """Return the ids of the parameters that `tensor` was computed from."""
    leaves, seen, waiting = set(), set(), [tensor.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.add(id(node.variable))
        waiting.extend(parent for parent, _ in node.next_functions)
    return leaves


def check_encoder(name: str) -> None:
    """Raise `RecipeError` with the nearest name when smp and timm have no such
    encoder.
    """
    if name.startswith("tu-"):
        is_known = timm.is_model(name[3:].split(".")[0])
    else:
        is_known = name in smp.encoders.get_encoder_names()
    if is_known:
        return
    encoder_names = smp.encoders.get_encoder_names()
    if name.startswith("tu-"):
        encoder_names = [f"tu-{model}" for model in timm.list_models()]
    bare = name.removeprefix("timm-")
    close = get_close_matches(name, encoder_names, n=1, cutoff=0.5)
    if timm.is_model(bare):
        close = [f"tu-{bare}"]
    hint = f"some are {', '.join(ENCODERS)}, vgg11 and mit_b0."
    if close:
        hint = f"did you mean {close[0]!r}?"
    raise RecipeError(
        f"network.encoder={name!r} is not an encoder of segmentation-models-pytorch; "
        f"{hint} "
        "See https://smp.readthedocs.io/en/latest/encoders.html for all."
    )


def _widths(section: Smp) -> dict[str, Any]:
    widths, slots = section.decoder_widths, WIDTHS[section.architecture]
    if widths is None:
        return {}
    needed = sum(max(1, count) for _, count in slots)
    if len(widths) != needed:
        need = (
            f"{section.architecture} takes {needed}, deepest first"
            if needed
            else "linknet takes the encoder's"
        )
        raise RecipeError(
            f"network.decoder_widths has {len(widths)} numbers; {need}. Empty means "
            "the usual ones."
        )
    if section.architecture == "fpn" and widths[1] % 32:
        raise RecipeError(
            f"network.decoder_widths ends in {widths[1]}; fpn normalises groups of 32 "
            "there: give a multiple of 32."
        )
    numbers = iter(widths)
    return {
        name: [next(numbers) for _ in range(count)] if count else next(numbers)
        for name, count in slots
    }


def _norm(section: Smp) -> dict[str, Any]:
    if section.architecture == "fpn" and section.norm in ("none", "instance"):
        raise RecipeError(
            f"network.norm={section.norm}: fpn always has group normalisation; leave "
            "norm at batch, or take unet."
        )
    if section.norm != "none":
        return {}
    if section.architecture not in UNNORMALISED:
        raise _unsupported(section, "norm=none", UNNORMALISED)
    return {"decoder_use_norm": False}


def _attention(section: Smp) -> dict[str, Any]:
    if section.attention is None:
        return {}
    if section.architecture not in ATTENTION:
        raise _unsupported(section, f"attention={section.attention}", ATTENTION)
    if section.decoder_widths and min(section.decoder_widths) < 16:
        raise RecipeError(
            "network.attention=scse squeezes to a sixteenth of the channels, but "
            "network.decoder_widths goes down to "
            f"{min(section.decoder_widths)}; give at least 16 a level."
        )
    return {"decoder_attention_type": section.attention}


def _dropout(section: Smp) -> dict[str, Any]:
    if section.architecture in DROPOUT:
        return {DROPOUT[section.architecture]: section.dropout}
    if section.dropout and section.architecture != "dpt":
        raise _unsupported(section, f"dropout={section.dropout:g}", (*DROPOUT, "dpt"))
    return {}


def _unsupported(
    section: Smp, option: str, architectures: tuple[str, ...]
) -> RecipeError:
    return RecipeError(
        f"network.{option} is not possible with "
        f"network.architecture={section.architecture}; it is with "
        f"{', '.join(architectures)}."
    )
