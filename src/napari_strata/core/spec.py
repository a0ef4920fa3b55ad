"""ModelSpec: the facts a model is made of, and how a recipe and the data resolve to them, without side effects.

What prediction needs is decided here once, in training, and stored in the model: prediction cannot ask again.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, prod
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from napari_strata.core import normalization as norm
from napari_strata.core.classes import ClassMap, check_integers
from napari_strata.core.errors import ImageError, LabelError
from napari_strata.core.image import AnnotatedImage, Image, as_pairs, require_volume
from napari_strata.core.network_sections import Network, NetworkSection
from napari_strata.core.recipe import Recipe

TILE = 1536
"""Side of prediction tiles where the network allows any. The same on every machine, so that labels are: large enough
that a plane of 2048 x 2048 goes through an encoder in one piece, for which a ResNet34's U-Net holds 1.65 GB of float32
at a time (counted)."""

TILE_VOXELS = 2**20
"""Voxels of a prediction tile of a volume.

A read holds up to 200 x 200 x 200 voxels, for which the recipe unet3d has 2.46 GB of
float32 at a time (counted).
"""

UNLIKE = 1.2
"""Voxels whose shapes differ by no more than this factor pass as alike."""

SAMPLES = 16_000_000
"""About how many pixels of all training images together the scale is measured on at most."""


class Depth(BaseModel):
    """The third dimension of a 3D model, in planes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    patch: int
    tile: int
    halo: int
    strides: tuple[int, ...]
    """For each halving of Y and X, by what Z is divided there: 1 or 2."""

    @property
    def stride(self) -> int:
        """By what Z is divided in all."""
        return prod(self.strides)


class ModelSpec(BaseModel):
    """What a trained network is and expects. Stored in the model file as JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    network: Network
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
    depth: Depth | None = None
    """What there is to know of Z, for a 3D model; `axes` is then "ZYX"."""
    notes: tuple[str, ...] = ()
    """What was decided from the data, in words."""

    @property
    def patch_shape(self) -> tuple[int, ...]:
        """Size of a training patch along (Z,) Y, X."""
        return (*([self.depth.patch] if self.depth else []), self.patch, self.patch)

    @property
    def stride_shape(self) -> tuple[int, ...]:
        """By what the network shrinks its input along (Z,) Y, X."""
        return (*([self.depth.stride] if self.depth else []), self.stride, self.stride)

    @property
    def tile_shape(self) -> tuple[int, ...]:
        """Size of a prediction tile along (Z,) Y, X."""
        return (*([self.depth.tile] if self.depth else []), self.tile, self.tile)

    @property
    def halo_shape(self) -> tuple[int, ...]:
        """What is cropped from each side of a tile along (Z,) Y, X."""
        return (*([self.depth.halo] if self.depth else []), self.halo, self.halo)


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
        when the images do not go together, there is nothing to learn, or a 3D network is given a single plane.
    """
    pairs = as_pairs(pairs)
    if not pairs:
        raise ImageError(
            "found no pair of image and labels to train on; give at least one."
        )
    channels = _common_channels(pairs)
    classes = (
        classes.with_unlabelled(unlabelled)
        if classes
        else find_classes(pairs, unlabelled)
    )
    normalization, note = _resolve_normalization(recipe, pairs, channels)
    notes: tuple[str, ...] = ()
    if recipe.network.axes == "ZYX":
        sizes, notes = _sizes_3d(recipe, pairs)
    else:
        sizes = _sizes(recipe)
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
        resize=recipe.patches.resize,
        neighbours=recipe.patches.neighbours,
        notes=(note, *notes),
        **sizes,
    )


def _sizes(recipe: Recipe) -> dict[str, Any]:
    """The fields of a 2D model that say how large its patches and tiles are."""
    network = recipe.network
    shape = network.geometry()
    side = _multiple(recipe.patches.resize or recipe.patches.size, shape.stride)
    return {
        "patch": _multiple(recipe.patches.size, shape.stride),
        "stride": shape.stride,
        "tile": side if shape.whole_tile or recipe.patches.resize else max(TILE, side),
        "halo": _multiple(min(shape.reach, network.widest_halo), shape.stride),
        "blend": shape.whole_tile,
    }


def _sizes_3d(
    recipe: Recipe, pairs: Sequence[AnnotatedImage]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The same of a 3D model, and what was decided, in words. Raises `ImageError` for an image of a single plane."""
    for pair in pairs:
        require_volume(pair.image)
    network = recipe.network
    ratio, words = _anisotropy(network, [pair.image for pair in pairs])
    strides = network.depth_strides(ratio)
    shape = network.geometry(strides)
    stretch = max(ratio, 1.0)  # a patch never holds more planes than rows
    side = _multiple(recipe.patches.size, shape.stride)
    thickest = max(pair.image.size("Z") for pair in pairs)
    planes = _multiple(
        recipe.patches.depth or min(max(1, round(side / stretch)), thickest),
        shape.depth_stride,
    )
    rows = _multiple(round((TILE_VOXELS * stretch) ** (1 / 3)), shape.stride)
    halo = _multiple(min(shape.reach, network.widest_halo), shape.stride)
    depth = Depth(
        patch=planes,
        tile=planes
        if shape.whole_tile
        else _multiple(max(1, round(rows / stretch)), shape.depth_stride),
        # As many of the deepest voxels as along Y and X, where the network looks that far.
        halo=min(
            _multiple(shape.depth_reach, shape.depth_stride),
            halo // shape.stride * shape.depth_stride,
        ),
        strides=strides,
    )
    sizes = {
        "axes": "ZYX",
        "patch": side,
        "stride": shape.stride,
        "tile": side if shape.whole_tile else rows,
        "halo": halo,
        "blend": shape.whole_tile,
        "depth": depth,
    }
    halved = f"Z is halved at {strides.count(2)} of {len(strides)} levels"
    note = (
        f"{words[0]}, so {halved} and patches hold {planes} planes of {side} x {side}"
    )
    return sizes, (note, *words[1:])


def _anisotropy(
    network: NetworkSection, images: Sequence[Image]
) -> tuple[float, list[str]]:
    """How many times longer voxels are along Z than along Y and X; first what that is, then warnings, in words."""
    stated = network.stated_anisotropy()
    if stated is not None:
        return stated, [f"voxels are {_times(stated)}, as the recipe says"]
    found = [
        (image.name, ratio) for image in images if (ratio := _ratio(image)) is not None
    ]
    if not found:
        return 1.0, [
            "voxels are taken as cubes (the images do not say how long they are along "
            "Z: network.anisotropy)"
        ]
    ratios = sorted(ratio for _, ratio in found)
    ratio = ratios[len(ratios) // 2]
    words = [f"voxels are {_times(ratio)}"]
    if ratio > UNLIKE and any(image.pixel_size["Z"] == 1.0 for image in images):
        words.append(
            "a length of exactly 1 along Z is what ImageJ writes when nobody has said: "
            "if so, set network.anisotropy "
            "(1 for cubes)"
        )
    if ratios[-1] > UNLIKE * ratios[0]:
        shown = ", ".join(f"{name}: {value:.3g}" for name, value in found[:6])
        words.append(
            "voxels are of different shapes (length along Z over that along Y and X: "
            f"{shown}): what is learnt of the "
            "one may not hold for the other; train on images of one shape, or resample "
            "them first"
        )
    return ratio, words


def _ratio(image: Image) -> float | None:
    """Length of a voxel along Z over the mean of Y and X; None where one of them is not known."""
    size, unit = image.pixel_size, dict(zip(image.axes, image.units, strict=True))
    cubes = unit["Z"] == "pixel" and set(size.values()) == {
        1.0
    }  # what stands where nothing is known
    positive = all(0 < length < inf for length in size.values())
    if cubes or not positive or len({unit[a] for a in "ZYX"}) > 1:
        return None
    return size["Z"] / ((size["Y"] + size["X"]) / 2)


def _times(ratio: float) -> str:
    if max(ratio, 1 / ratio) < 1.05:
        return "as long along Z as along Y and X"
    return f"{max(ratio, 1 / ratio):.2g} times {'longer' if ratio > 1 else 'shorter'} along Z"


def find_classes(
    pairs: Sequence[AnnotatedImage], unlabelled: Sequence[int] = ()
) -> ClassMap:
    """The class map the label files carry, or one class per value found in them; `unlabelled` values are no classes."""
    carried = {p.labels.classes for p in pairs if p.labels.classes is not None}
    if len(carried) > 1:
        shown = "; ".join(
            str(list(zip(c.names, c.values, strict=True))) for c in carried
        )
        raise LabelError(
            f"the label files carry different classes: {shown}; give one class map for "
            "all."
        )
    if carried:
        return carried.pop().with_unlabelled(unlabelled)
    values: set[int] = set()
    for pair in pairs:
        for plane in pair.labels.planes():
            labels = pair.labels.read(plane)
            if labels.shape[0] > 1:
                raise LabelError(
                    f"{pair.name}: found colour-coded labels; name the colours (--rgb, "
                    "ClassMap.from_rgb())."
                )
            values.update(np.unique(check_integers(labels)).tolist())
    return ClassMap.from_values(values, unlabelled=unlabelled)


def _common_channels(pairs: Sequence[AnnotatedImage]) -> int:
    counts = [p.image.channels for p in pairs]
    if len(set(counts)) > 1:
        shown = ", ".join(
            f"{pair.name}: {count}"
            for pair, count in list(zip(pairs, counts, strict=True))[:6]
        )
        raise ImageError(
            f"images have different channel counts ({shown}); train on images of one "
            "kind."
        )
    return counts[0]


def _resolve_normalization(
    recipe: Recipe, pairs: Sequence[AnnotatedImage], channels: int
) -> tuple[norm.ResolvedNormalization, str]:
    section = recipe.normalization
    samples = [
        _thin(s, SAMPLES // (8 * len(pairs))) for p in pairs for s in p.image.samples()
    ]
    kind: norm.Kind
    if section.grey_values == "auto":
        kind, note = _judge(samples, channels)
    else:
        kind, note = (
            section.grey_values,
            f"grey values: {section.grey_values}, as the recipe says",
        )
    if kind in ("dtype", "imagenet"):
        scale = norm.fixed(kind, pairs[0].image.dtype, channels)
    else:
        scale = norm.measure(np.concatenate(samples, axis=1), section.percentiles)
    return norm.ResolvedNormalization(
        kind=kind, percentiles=section.percentiles, scale=scale
    ), note


def _thin(samples: Any, count: int) -> Any:
    """About `count` of the pixels (channels x pixels), evenly spread; a copy, so that the rest can be given back."""
    step = (
        samples.shape[1] // max(count, 1000) | 1
    )  # odd, so that it does not follow the columns
    return samples[:, ::step].copy()


def _judge(samples: Sequence[Any], channels: int) -> tuple[norm.Kind, str]:
    shift = norm.shift(samples) if channels == 1 else float("nan")
    if shift <= norm.AGREEMENT:
        return "physical", (
            f"grey values: physical (training planes agree within {shift:.0%} of their "
            "range), so one scale serves all "
            "images and intensity is not augmented; set "
            "normalization.grey_values=relative where exposure varies"
        )
    alone = "one plane only" if len(samples) == 1 else "no contrast"
    why = (
        "several channels"
        if channels > 1
        else alone
        if np.isnan(shift)
        else f"planes differ by {shift:.0%}"
    )
    return "relative", (
        f"grey values: relative ({why}), so each image is scaled by its own "
        "percentiles; set "
        "normalization.grey_values=physical for calibrated data such as CT"
    )


def _multiple(length: int, stride: int) -> int:
    return -(-length // stride) * stride
