"""Facts of a model, and how a recipe and the data determine them.

What prediction needs is decided here once, in training, and stored in the model,
because prediction cannot ask again. Nothing here has side effects.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, prod
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from napari_strata.core import normalization as norm
from napari_strata.core.classes import ClassMap, check_integers
from napari_strata.core.errors import ImageError, LabelError
from napari_strata.core.image import AnnotatedImage, Image, as_pairs, require_volume
from napari_strata.core.network_sections import Network, NetworkSection
from napari_strata.core.recipe import Recipe
from napari_strata.core.set_notes import set_notes

TILE = 1536
"""Side of prediction tiles where the network allows any.

It is the same on every machine, so that labels are. A plane of 2048 x 2048 goes through
an encoder in one piece, for which a ResNet34's U-Net holds 1.65 GB of float32 at a time
(counted).
"""

TILE_VOXELS = 2**20
"""Voxels of a prediction tile of a volume.

A read holds up to 200 x 200 x 200 voxels, for which the recipe unet3d has 2.46 GB of
float32 at a time (counted).
"""

ALIKE = 1.2
"""Voxels whose shapes differ by no more than this factor are alike."""

SAMPLES = 16_000_000
"""Pixels of all training images together that the scale is measured on, at most."""


class Depth(BaseModel):
    """Sizes of a 3D model along Z, in planes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    patch: int
    tile: int
    halo: int
    strides: tuple[int, ...]
    """Stride along Z, 1 or 2, for each halving of Y and X."""

    @property
    def stride(self) -> int:
        """Product of the strides."""
        return prod(self.strides)


class ModelSpec(BaseModel):
    """Facts about a trained network and its input, stored in the model file as JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    network: Network
    in_channels: int = Field(ge=1)
    channel_names: tuple[str, ...] = ()
    classes: ClassMap
    axes: str = "YX"
    """``YX``, or ``ZYX`` for a 3D model."""
    dtype: str
    pixel_size: dict[str, float] = {}
    pixel_unit: str = "pixel"
    normalization: norm.ResolvedNormalization
    patch: int = Field(ge=1)
    resize: int | None = Field(None, ge=1)
    neighbours: int = Field(0, ge=0)
    """Slices on each side that are channels too; `in_channels` includes them."""
    stride: int = Field(ge=1)
    tile: int = Field(ge=1)
    halo: int = Field(ge=0)
    blend: bool
    depth: Depth | None = None
    """Sizes along Z of a 3D model."""
    notes: tuple[str, ...] = ()
    """Sentences about what was decided from the data."""

    @property
    def patch_shape(self) -> tuple[int, ...]:
        """Size of a training patch along (Z,) Y, X."""
        return self._shape("patch")

    @property
    def stride_shape(self) -> tuple[int, ...]:
        """Factors by which the network shrinks its input along (Z,) Y, X."""
        return self._shape("stride")

    @property
    def tile_shape(self) -> tuple[int, ...]:
        """Size of a prediction tile along (Z,) Y, X."""
        return self._shape("tile")

    @property
    def halo_shape(self) -> tuple[int, ...]:
        """Pixels cropped from each side of a tile along (Z,) Y, X."""
        return self._shape("halo")

    def _shape(self, name: str) -> tuple[int, ...]:
        plane = (getattr(self, name), getattr(self, name))
        if self.depth is None:
            return plane
        return (getattr(self.depth, name), *plane)


def resolve(
    recipe: Recipe,
    pairs: AnnotatedImage | Sequence[AnnotatedImage],
    *,
    classes: ClassMap | None = None,
    unlabelled: Sequence[int] = (),
) -> ModelSpec:
    """Decide everything that a model of `recipe` trained on `pairs` needs to know.

    Parameters
    ----------
    pairs
        Images and labels. Where the recipe asks for neighbours, the images already have
        them; see `data.neighbours`.
    classes
        Meaning of label values. When left out, the labels' own class map, or one class
        per value found.
    unlabelled
        Values that mean "not labelled", whatever `classes` says of them.

    Raises
    ------
    ImageError, LabelError
        When the images do not go together, there is nothing to learn, or a 3D network
        is given a single plane.
    """
    pairs = as_pairs(pairs)
    if not pairs:
        raise ImageError(
            "found no pair of image and labels to train on; give at least one."
        )
    channels = _common_channels(pairs)
    classes = resolve_classes(pairs, classes, unlabelled)
    normalization, note = _resolve_normalization(recipe, pairs, channels)
    notes = [note, *set_notes(pairs)]
    if recipe.network.axes == "ZYX":
        sizes, depth_notes = _sizes_3d(recipe, pairs)
        notes += depth_notes
    else:
        sizes = _sizes(recipe)
    first = pairs[0].image
    return ModelSpec(
        network=recipe.network,
        in_channels=channels,
        channel_names=first.channel_names,
        classes=classes,
        axes=recipe.network.axes,
        dtype=str(norm.stored_dtype(first.dtype)),
        pixel_size=first.pixel_size,
        pixel_unit=first.pixel_unit,
        normalization=normalization,
        resize=recipe.patches.resize,
        neighbours=recipe.patches.neighbours,
        notes=tuple(notes),
        **sizes,
    )


def with_network(spec: ModelSpec, recipe: Recipe, network: NetworkSection) -> ModelSpec:
    """Return the spec of a 2D model whose network was resolved further in training."""
    sizes = _sizes(recipe.model_copy(update={"network": network}))
    return spec.model_copy(update={"network": network, **sizes})


def resolve_classes(
    pairs: Sequence[AnnotatedImage],
    classes: ClassMap | None,
    unlabelled: Sequence[int] = (),
) -> ClassMap:
    """Return `classes`, or those of the labels, without the `unlabelled` values."""
    if classes is None:
        return find_classes(pairs, unlabelled)
    return classes.with_unlabelled(unlabelled)


def find_classes(
    pairs: Sequence[AnnotatedImage], unlabelled: Sequence[int] = ()
) -> ClassMap:
    """Return the class map that the label files carry, or one class per value found.

    Values in `unlabelled` are no classes.

    Raises
    ------
    LabelError
        When the files carry different class maps, or labels are colours or not
        integers, or nothing is labelled.
    """
    carried = {p.labels.classes for p in pairs if p.labels.classes is not None}
    if len(carried) > 1:
        tables = []
        for class_map in carried:
            tables.append(
                str(list(zip(class_map.names, class_map.values, strict=True)))
            )
        raise LabelError(
            f"the label files carry different classes: {'; '.join(tables)}; give one "
            "class map for all."
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


def _sizes(recipe: Recipe) -> dict[str, Any]:
    """Fields of a 2D model for the sizes of its patches and tiles."""
    network, patches = recipe.network, recipe.patches
    geometry = network.geometry()
    side = _round_up(patches.resize or patches.size, geometry.stride)
    tile = max(TILE, side)
    if geometry.whole_tile or patches.resize:
        tile = side
    return {
        "patch": _round_up(patches.size, geometry.stride),
        "stride": geometry.stride,
        "tile": tile,
        "halo": _round_up(min(geometry.reach, network.widest_halo), geometry.stride),
        "blend": geometry.whole_tile,
    }


def _sizes_3d(
    recipe: Recipe, pairs: Sequence[AnnotatedImage]
) -> tuple[dict[str, Any], list[str]]:
    """Fields of a 3D model for its sizes, and sentences about what was decided.

    Raises
    ------
    ImageError
        For an image of a single plane.
    """
    for pair in pairs:
        require_volume(pair.image)
    network = recipe.network
    ratio, note, warnings = _anisotropy(network, [pair.image for pair in pairs])
    strides = network.depth_strides(ratio)
    geometry = network.geometry(strides)
    stretch = max(ratio, 1.0)  # a patch never holds more planes than rows
    side = _round_up(recipe.patches.size, geometry.stride)
    planes = recipe.patches.depth
    if planes is None:
        thickest = max(pair.image.size("Z") for pair in pairs)
        planes = min(max(1, round(side / stretch)), thickest)
    planes = _round_up(planes, geometry.depth_stride)
    if geometry.whole_tile:
        tile_rows, tile_planes = side, planes
    else:
        tile_rows = round((TILE_VOXELS * stretch) ** (1 / 3))
        tile_rows = _round_up(tile_rows, geometry.stride)
        tile_planes = max(1, round(tile_rows / stretch))
        tile_planes = _round_up(tile_planes, geometry.depth_stride)
    halo = _round_up(min(geometry.reach, network.widest_halo), geometry.stride)
    # As many of the deepest voxels as along Y and X, if the network looks that far.
    depth_halo = min(
        _round_up(geometry.depth_reach, geometry.depth_stride),
        halo // geometry.stride * geometry.depth_stride,
    )
    sizes = {
        "patch": side,
        "stride": geometry.stride,
        "tile": tile_rows,
        "halo": halo,
        "blend": geometry.whole_tile,
        "depth": Depth(
            patch=planes, tile=tile_planes, halo=depth_halo, strides=strides
        ),
    }
    note = (
        f"{note}, so Z is halved at {strides.count(2)} of {len(strides)} levels and "
        f"patches hold {planes} planes of {side} x {side}"
    )
    return sizes, [note, *warnings]


def _anisotropy(
    network: NetworkSection, images: Sequence[Image]
) -> tuple[float, str, list[str]]:
    """Length of voxels along Z, in lengths along Y and X.

    Returns the ratio, a note about it, and warnings.
    """
    stated = network.stated_anisotropy()
    if stated is not None:
        return stated, f"voxels are {_describe_ratio(stated)}, as the recipe says", []
    ratios = {}
    for number, image in enumerate(images):
        ratio = _voxel_ratio(image)
        if ratio is not None:
            ratios[number] = ratio
    if not ratios:
        note = (
            "voxels are taken as cubes (the images do not say how long they are along "
            "Z: network.anisotropy)"
        )
        return 1.0, note, []
    ordered = sorted(ratios.values())
    median = ordered[len(ordered) // 2]
    warnings = []
    if median > ALIKE and any(image.pixel_size["Z"] == 1.0 for image in images):
        warnings.append(
            "a length of exactly 1 along Z is what ImageJ writes when nobody has said: "
            "if so, set network.anisotropy (1 for cubes)"
        )
    if ordered[-1] > ALIKE * ordered[0]:
        examples = []
        for number, ratio in list(ratios.items())[:6]:
            examples.append(f"{images[number].name}: {ratio:.3g}")
        warnings.append(
            "voxels are of different shapes (length along Z over that along Y and X: "
            f"{', '.join(examples)}): what is learnt of the one may not hold for the "
            "other; train on images of one shape, or resample them first"
        )
    return median, f"voxels are {_describe_ratio(median)}", warnings


def _voxel_ratio(image: Image) -> float | None:
    """Length of a voxel along Z over the mean of Y and X; None where one is unknown."""
    size = image.pixel_size
    units = dict(zip(image.axes, image.units, strict=True))
    lengths = set(size.values())
    unknown = units["Z"] == "pixel" and lengths == {1.0}
    positive = all(0 < length < inf for length in lengths)
    if unknown or not positive or len({units[axis] for axis in "ZYX"}) > 1:
        return None
    return size["Z"] / ((size["Y"] + size["X"]) / 2)


def _describe_ratio(ratio: float) -> str:
    factor = max(ratio, 1 / ratio)
    if factor < 1.05:
        return "as long along Z as along Y and X"
    return f"{factor:.2g} times {'longer' if ratio > 1 else 'shorter'} along Z"


def _common_channels(pairs: Sequence[AnnotatedImage]) -> int:
    counts = [pair.image.channels for pair in pairs]
    if len(set(counts)) > 1:
        examples = [f"{pair.name}: {pair.image.channels}" for pair in pairs[:6]]
        raise ImageError(
            f"images have different channel counts ({', '.join(examples)}); train on "
            "images of one kind."
        )
    return counts[0]


def _resolve_normalization(
    recipe: Recipe, pairs: Sequence[AnnotatedImage], channels: int
) -> tuple[norm.ResolvedNormalization, str]:
    section = recipe.normalization
    per_sample = SAMPLES // (8 * len(pairs))
    samples = []
    for pair in pairs:
        for sample in pair.image.samples():
            samples.append(_thin(sample, per_sample))
    kind: norm.Kind
    if section.grey_values == "auto":
        kind, note = _judge_grey_values(samples, channels)
    else:
        kind = section.grey_values
        note = f"grey values: {kind}, as the recipe says"
    if kind in ("dtype", "imagenet"):
        scale = norm.fixed(kind, pairs[0].image.dtype, channels)
    else:
        scale = norm.measure(np.concatenate(samples, axis=1), section.percentiles)
    resolved = norm.ResolvedNormalization(
        kind=kind, percentiles=section.percentiles, scale=scale
    )
    return resolved, note


def _thin(samples: Any, count: int) -> Any:
    """Copy about `count` of the pixels (channels x pixels), evenly spread.

    A copy, so that the memory of the others can be freed.
    """
    # Odd, so that the step does not follow the columns.
    step = samples.shape[1] // max(count, 1000) | 1
    return samples[:, ::step].copy()


def _judge_grey_values(samples: Sequence[Any], channels: int) -> tuple[norm.Kind, str]:
    shift = norm.shift(samples) if channels == 1 else float("nan")
    if shift <= norm.AGREEMENT:
        return (
            "physical",
            (
                f"grey values: physical (training planes agree within {shift:.0%} of"
                " their range), so one scale serves all images and intensity is not"
                " augmented; set normalization.grey_values=relative where exposure"
                " varies"
            ),
        )
    if channels > 1:
        reason = "several channels"
    elif not np.isnan(shift):
        reason = f"planes differ by {shift:.0%}"
    elif len(samples) == 1:
        reason = "one plane only"
    else:
        reason = "no contrast"
    return (
        "relative",
        (
            f"grey values: relative ({reason}), so each image is scaled by its own"
            " percentiles; set normalization.grey_values=physical for calibrated data"
            " such as CT"
        ),
    )


def _round_up(length: int, stride: int) -> int:
    """Round up to a multiple of `stride`."""
    return -(-length // stride) * stride
