"""Architectures and encoders of segmentation-models-pytorch 0.6.

See https://smp.readthedocs.io.
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
"""Arguments of smp for the decoder widths of each architecture, in order.

Each has its name and the length of its list; 0 means a single number, not a list.
"""

DROPOUT = {
    "fpn": "decoder_dropout",
    "pspnet": "psp_dropout",
    "deeplabv3": "decoder_aspp_dropout",
    "deeplabv3plus": "decoder_aspp_dropout",
}
"""Argument of smp for dropout, for each architecture that has one."""

ATTENTION = ("unet", "unetplusplus")
"""Architectures with scSE (Roy et al. 2018, https://arxiv.org/abs/1803.02579)."""

UNNORMALISED = ("unet", "unetplusplus", "manet", "linknet", "pspnet")
"""Architectures that can be built without normalisation."""

SMALLEST = {"pan": 128}
"""Smallest image side in pixels; PAN halves its 1/16 features three times more."""

ENCODERS = ("resnet34", "resnet50", "efficientnet-b0", "mobilenet_v2")
"""Encoders that messages recommend for all architectures but dpt."""

VISION_TRANSFORMERS = ("tu-vit_tiny_patch16_224", "tu-vit_base_patch16_224")
"""Encoders that messages recommend for dpt."""

ANY_SIZE_OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"dynamic_img_size": True},
    {"strict_img_size": False},
)
"""Options that let timm's transformers accept any image size; the first that works."""


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
        # Any error of smp or timm means that the two cannot be combined.
        except Exception as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            failure = failure or lines[0][:120]
    encoders = VISION_TRANSFORMERS if section.architecture == "dpt" else ENCODERS
    raise RecipeError(
        f"network.architecture={section.architecture} does not work with"
        f" network.encoder={section.encoder} ({failure}); take another encoder, such as"
        f" {', '.join(encoders)}, or another architecture: unet and fpn work with most"
        " encoders, dpt with vision transformers."
    )


def _variants(section: Smp) -> Iterator[dict[str, Any]]:
    """Iterate over the additional options to try."""
    if section.encoder.startswith("tu-"):
        yield from ANY_SIZE_OPTIONS
    else:
        yield ANY_SIZE_OPTIONS[0]


def _assemble(spec: ModelSpec, section: Smp, options: dict[str, Any]) -> AnySize:
    with warnings.catch_warnings():
        # smp warns of deprecated encoder names, for example.
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
    """Run the network once as a check; freeze parameters that the logits do not use.

    smp keeps some of these: the last stages of PSPNet's encoder and EfficientNet's
    classifier. If they were not frozen, training on several devices would wait for
    their gradients forever.
    """
    training = network.training
    logits = network.eval()(
        torch.zeros(1, channels, network.smallest, network.smallest)
    )
    network.train(training)
    if logits.shape != (1, classes, network.smallest, network.smallest):
        raise ValueError(f"logits have the shape {tuple(logits.shape)}")
    used = _parameter_ids(logits)
    for parameter in network.parameters():
        parameter.requires_grad_(id(parameter) in used)


def _parameter_ids(tensor: Tensor) -> set[int]:
    """Return the ids of the parameters that `tensor` was computed from."""
    parameter_ids, visited, pending = set(), set(), [tensor.grad_fn]
    while pending:
        node = pending.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        if hasattr(node, "variable"):
            parameter_ids.add(id(node.variable))
        pending.extend(parent for parent, _ in node.next_functions)
    return parameter_ids


def check_encoder(name: str) -> None:
    """Raise `RecipeError` if neither smp nor timm has this encoder."""
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
    hint = f"examples are {', '.join(ENCODERS)}, vgg11 and mit_b0."
    if close:
        hint = f"did you mean {close[0]!r}?"
    raise RecipeError(
        f"network.encoder={name!r} is not an encoder of segmentation-models-pytorch; "
        f"{hint} "
        "See https://smp.readthedocs.io/en/latest/encoders.html for all."
    )


def _widths(section: Smp) -> dict[str, Any]:
    """Return smp's arguments for the decoder widths."""
    widths, arguments = section.decoder_widths, WIDTHS[section.architecture]
    if widths is None:
        return {}
    needed = sum(max(1, count) for _, count in arguments)
    if len(widths) != needed:
        need = (
            f"{section.architecture} takes {needed}, deepest first"
            if needed
            else "linknet takes the encoder's"
        )
        raise RecipeError(
            f"network.decoder_widths has {len(widths)} numbers; {need}. Empty means "
            "the default widths."
        )
    if section.architecture == "fpn" and widths[1] % 32:
        raise RecipeError(
            f"network.decoder_widths ends in {widths[1]}; fpn normalises groups of 32 "
            "there: give a multiple of 32."
        )
    numbers = iter(widths)
    return {
        name: [next(numbers) for _ in range(count)] if count else next(numbers)
        for name, count in arguments
    }


def _norm(section: Smp) -> dict[str, Any]:
    """Return smp's arguments for the normalisation."""
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
    """Return smp's arguments for attention."""
    if section.attention is None:
        return {}
    if section.architecture not in ATTENTION:
        raise _unsupported(section, f"attention={section.attention}", ATTENTION)
    if section.decoder_widths and min(section.decoder_widths) < 16:
        raise RecipeError(
            "network.attention=scse reduces the channels to a sixteenth, but "
            "network.decoder_widths goes down to "
            f"{min(section.decoder_widths)}; give at least 16 a level."
        )
    return {"decoder_attention_type": section.attention}


def _dropout(section: Smp) -> dict[str, Any]:
    """Return smp's arguments for dropout."""
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
        f"network.architecture={section.architecture}; it is possible with "
        f"{', '.join(architectures)}."
    )
