"""Slices above and below as channels, for networks that see 2.5D.

Neighbours are added once, where a training, a prediction or an evaluation starts; all
later code sees an image with more channels. The channels of slice z - k come first,
those of z + k last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import numpy as np

from napari_strata.core import axes as _axes
from napari_strata.core.errors import ImageError
from napari_strata.core.image import AnnotatedImage, Image
from napari_strata.core.normalization import Scale
from napari_strata.io.lazy import LazyArray

Array = np.ndarray[Any, Any]


@runtime_checkable
class PartialImage(Protocol):
    """Image that is a part of another one."""

    def with_neighbours(self, count: int, /) -> Image:
        """Return the same part of the other image, with its neighbours."""


def with_neighbours(image: Image, count: int) -> Image:
    """Return `image` with ``2 * count + 1`` times its channels.

    They are `count` slices on each side, and the slice between them. At the ends the
    stack is mirrored about its first or last slice. Nothing is read before it is asked
    for. With a count of 0 the image itself is returned.

    Raises
    ------
    ImageError
        When the image has no second slice.
    """
    if not count:
        return image
    if isinstance(image, PartialImage):
        # Its neighbours are those of the image that it is a part of.
        return image.with_neighbours(count)
    if image.size("Z") < 2:
        raise ImageError(
            f"{image.name}: found a single slice ({image.axes}), and "
            f"patches.neighbours={count} asks for those above and below it; give a "
            "stack with an axis Z (check --axes), or a model without neighbours."
        )
    axes = _axes.canonical(_axes.without(image.axes, "C") + "C")
    scale = dict(zip(image.axes, image.scale, strict=True)) | {"C": 1.0}
    units = dict(zip(image.axes, image.units, strict=True)) | {"C": "pixel"}
    names = image.channel_names
    if not names and image.channels == 1:
        names = ("grey values",)
    channel_names = []
    for offset in range(-count, count + 1):
        suffix = f" z{offset:+d}" if offset else ""
        channel_names += [name + suffix for name in names]
    return replace(
        image,
        data=_Neighbours(image, count, axes),
        axes=axes,
        scale=tuple(scale[axis] for axis in axes),
        units=tuple(units[axis] for axis in axes),
        channel_names=tuple(channel_names),
    )


def pairs_with_neighbours(
    pairs: Sequence[AnnotatedImage], count: int
) -> list[AnnotatedImage]:
    """Return pairs whose images have neighbours; labels stay as they are.

    Raises
    ------
    ImageError
        As `with_neighbours` does.
    """
    if not count:
        return list(pairs)
    return [replace(pair, image=with_neighbours(pair.image, count)) for pair in pairs]


def own_channels(array: Array, count: int) -> Array:
    """Return the channels of the slice itself, (C, ...), of (C * (2 * count + 1), ...).

    The result is a view.
    """
    width = len(array) // (2 * count + 1)
    return array[count * width : (count + 1) * width]


def own_scale(scale: Scale, count: int) -> Scale:
    """Return the scale of the channels of the slice itself."""
    values = {}
    for name in Scale.model_fields:
        of_channels = getattr(scale, name)
        width = len(of_channels) // (2 * count + 1)
        values[name] = of_channels[count * width : (count + 1) * width]
    return Scale(**values)


class _Neighbours(LazyArray):
    """Array that reads the planes of another image as channels."""

    def __init__(self, image: Image, count: int, axes: str) -> None:
        sizes = {axis: image.size(axis) for axis in axes}
        sizes["C"] = image.channels * (2 * count + 1)
        super().__init__([sizes[axis] for axis in axes], image.dtype)
        self.image, self.count, self.axes = image, count, axes

    def _fetch(self, region: tuple[slice, ...]) -> Array:
        slices = dict(zip(self.axes, region, strict=True))
        indices = {}
        for axis, part, length in zip(self.axes, region, self.shape, strict=True):
            indices[axis] = range(*part.indices(length))
        result = np.empty([len(indices[axis]) for axis in self.axes], self.dtype)
        channels, depth = self.image.channels, self.image.size("Z")
        for i, t in enumerate(indices.get("T", range(1))):
            volume = result[i] if "T" in self.axes else result
            planes: dict[int, Array] = {}
            for j, z in enumerate(indices["Z"]):
                for n, c in enumerate(indices["C"]):
                    offset, own_channel = divmod(c, channels)
                    neighbour = _mirror(z + offset - self.count, depth)
                    if neighbour not in planes:
                        planes[neighbour] = self.image.read(
                            {"T": t, "Z": neighbour, "Y": slices["Y"], "X": slices["X"]}
                        )
                    volume[n, j] = planes[neighbour][own_channel]
        return result


def _mirror(index: int, length: int) -> int:
    """Fold `index` back into 0..length-1 at both ends, without repeating the last."""
    period = 2 * (length - 1)
    index = abs(index) % period
    return period - index if index >= length else index
