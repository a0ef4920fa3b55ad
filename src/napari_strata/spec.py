"""ModelSpec: the facts a model is made of, and how a recipe and the data resolve to them, without side effects.

What prediction needs is decided here once, in training, and stored in the model: prediction cannot ask again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from napari_strata import normalization as norm
from napari_strata.classes import ClassMap, check_integers
from napari_strata.errors import ImageError, LabelError
from napari_strata.image import AnnotatedImage, as_pairs
from napari_strata.recipe import AtrousUNet, Network, Recipe, Smp, UNet

TILE = 1536
"""Side of prediction tiles where the network allows any. The same on every machine, so that labels are: large enough
that a plane of 2048 x 2048 goes through an encoder in one piece, for which a ResNet34's U-Net holds 1.65 GB of float32
at a time (counted)."""

HALO, ENCODER_HALO = 64, 160
"""Widest halos in use, for the classic U-Net and for encoders that shrink the picture 32 times. Measured on trained
networks (docs/performance.md): with 32 pixels the former's labels differ from those of the whole picture in .0005 %,
with 64 in none; the latter's in up to .7 % with 32, and .02 to .04 % with 160."""


SAMPLES = 16_000_000
"""About how many pixels of all training images together the scale is measured on at most."""


class Geometry(BaseModel):
    """How a network looks at a picture: sizes it needs, how far it sees, whether it sees the whole tile."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stride: int
    reach: int
    whole_tile: bool


class ModelSpec(BaseModel):
    """What a trained network is and expects. Stored in the model file as JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    network: Network = Field(discriminator="kind")
    in_channels: int
    channel_names: tuple[str, ...] = ()
    classes: ClassMap
    axes: str = "YX"
    dtype: str
    pixel_size: dict[str, float] = {}
    pixel_unit: str = "pixel"
    normalization: norm.ResolvedNormalization
    patch: int
    resize: int | None = None
    neighbours: int = 0
    """Slices on each side that are channels too; they are counted in `in_channels`."""
    stride: int
    tile: int
    halo: int
    blend: bool
    notes: tuple[str, ...] = ()
    """What was decided from the data, in words."""


def resolve(
    recipe: Recipe,
    pairs: AnnotatedImage | Sequence[AnnotatedImage],
    *,
    classes: ClassMap | None = None,
    unlabelled: Sequence[int] = (),
) -> ModelSpec:
    """Decide everything a model of `recipe` trained on `pairs` needs to know.

    Parameters
    ----------
    pairs
        their images dressed with neighbours already, where the recipe asks for those; see `data.neighbours`.
    classes
        what label values mean; when left out, the labels' own class map, or one class per value found.
    unlabelled
        values that mean "not labelled", whatever `classes` says of them.

    Raises
    ------
    ImageError, LabelError
        when the images do not go together or there is nothing to learn.
    """
    pairs = as_pairs(pairs)
    if not pairs:
        raise ImageError("found no pair of image and labels to train on; give at least one.")
    channels = _common_channels(pairs)
    classes = classes.with_unlabelled(unlabelled) if classes else find_classes(pairs, unlabelled)
    normalization, note = _resolve_normalization(recipe, pairs, channels)
    shape = geometry(recipe.network)
    side = _multiple(recipe.patches.resize or recipe.patches.size, shape.stride)
    first = pairs[0].image
    return ModelSpec(
        network=recipe.network,
        in_channels=channels,
        channel_names=first.channel_names,
        classes=classes,
        dtype=str(first.dtype),
        pixel_size=first.pixel_size,
        pixel_unit=first.pixel_unit,
        normalization=normalization,
        patch=_multiple(recipe.patches.size, shape.stride),
        resize=recipe.patches.resize,
        neighbours=recipe.patches.neighbours,
        stride=shape.stride,
        tile=side if shape.whole_tile or recipe.patches.resize else max(TILE, side),
        halo=_multiple(min(shape.reach, HALO if recipe.network.kind == "unet" else ENCODER_HALO), shape.stride),
        blend=shape.whole_tile,
        notes=(note,),
    )


def find_classes(pairs: Sequence[AnnotatedImage], unlabelled: Sequence[int] = ()) -> ClassMap:
    """The class map the label files carry, or one class per value found in them; `unlabelled` values are no classes."""
    carried = {p.labels.classes for p in pairs if p.labels.classes is not None}
    if len(carried) > 1:
        shown = "; ".join(str(list(zip(c.names, c.values, strict=True))) for c in carried)
        raise LabelError(f"the label files carry different classes: {shown}; give one class map for all.")
    if carried:
        return carried.pop().with_unlabelled(unlabelled)
    values: set[int] = set()
    for pair in pairs:
        for plane in pair.labels.planes():
            labels = pair.labels.read(plane)
            if labels.shape[0] > 1:
                raise LabelError(
                    f"{pair.name}: found colour-coded labels; name the colours (--rgb, ClassMap.from_rgb())."
                )
            values.update(np.unique(check_integers(labels)).tolist())
    return ClassMap.from_values(values, unlabelled=unlabelled)


def geometry(network: UNet | AtrousUNet | Smp) -> Geometry:
    """Stride, reach (radius of the receptive field, in pixels) and whether a pixel depends on its whole tile."""
    if isinstance(network, UNet):
        depth = len(network.widths)
        convolutions = 2 * (2**depth - 1) + 2 * (2 ** (depth - 1) - 1) + (network.head_width is not None)
        # Measured on float64 gradients: pooling reaches a pixel of each level, so does a kernel of 3 or an
        # interpolation's convolution on the way up, and bilinear interpolation itself does once more.
        ways = 3 if network.upsampling == "bilinear" else 2
        ways -= network.upsampling == "transpose" and network.transpose_kernel == 2
        resampling = ways * (2 ** (depth - 1) - 1)
        return Geometry(
            stride=2 ** (depth - 1), reach=convolutions + resampling, whole_tile=network.norm in ("instance", "group")
        )
    if isinstance(network, AtrousUNet):
        return Geometry(stride=32, reach=512, whole_tile=False)
    # Measured by moving a far pixel: global pooling, manet's attention and fpn's group norm see everything.
    pooled = network.architecture in ("deeplabv3", "deeplabv3plus", "pspnet", "pan", "upernet", "dpt", "manet", "fpn")
    global_view = pooled or network.attention == "scse" or network.norm in ("instance", "group")
    # So do encoders that squeeze and excite or attend; timm's (tu-) may, and are taken to.
    squeeze = network.encoder.startswith(
        ("efficientnet", "timm-efficientnet", "timm-sk", "se", "mit_", "tu-", "mobileone_s4")
    )
    return Geometry(stride=32, reach=256, whole_tile=global_view or squeeze)


def _common_channels(pairs: Sequence[AnnotatedImage]) -> int:
    counts = [p.image.channels for p in pairs]
    if len(set(counts)) > 1:
        shown = ", ".join(f"{pair.name}: {count}" for pair, count in list(zip(pairs, counts, strict=True))[:6])
        raise ImageError(f"images have different channel counts ({shown}); train on images of one kind.")
    return counts[0]


def _resolve_normalization(
    recipe: Recipe, pairs: Sequence[AnnotatedImage], channels: int
) -> tuple[norm.ResolvedNormalization, str]:
    section = recipe.normalization
    samples = [_thin(s, SAMPLES // (8 * len(pairs))) for p in pairs for s in p.image.samples()]
    kind: norm.Kind
    if section.grey_values == "auto":
        kind, note = _judge(samples, channels)
    else:
        kind, note = section.grey_values, f"grey values: {section.grey_values}, as the recipe says"
    if kind in ("dtype", "imagenet"):
        scale = norm.fixed(kind, pairs[0].image.dtype, channels)
    else:
        scale = norm.measure(np.concatenate(samples, axis=1), section.percentiles)
    return norm.ResolvedNormalization(kind=kind, percentiles=section.percentiles, scale=scale), note


def _thin(samples: Any, count: int) -> Any:
    """About `count` of the pixels (channels x pixels), evenly spread; a copy, so that the rest can be given back."""
    step = samples.shape[1] // max(count, 1000) | 1  # odd, so that it does not follow the columns
    return samples[:, ::step].copy()


def _judge(samples: Sequence[Any], channels: int) -> tuple[norm.Kind, str]:
    shift = norm.shift(samples) if channels == 1 else float("nan")
    if shift <= norm.AGREEMENT:
        return "physical", (
            f"grey values: physical (training planes agree within {shift:.0%} of their range), so one scale serves all "
            "images and intensity is not augmented; set normalization.grey_values=relative where exposure varies"
        )
    alone = "one plane only" if len(samples) == 1 else "no contrast"
    why = "several channels" if channels > 1 else alone if np.isnan(shift) else f"planes differ by {shift:.0%}"
    return "relative", (
        f"grey values: relative ({why}), so each image is scaled by its own percentiles; set "
        "normalization.grey_values=physical for calibrated data such as CT"
    )


def _multiple(length: int, stride: int) -> int:
    return -(-length // stride) * stride
