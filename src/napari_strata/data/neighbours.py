"""Slices above and below as channels: what lets a 2D network see a little of the third dimension (2.5D).

An image is dressed once, where a training, a prediction or an evaluation takes it up; everything behind sees an image
with more channels and knows nothing of slices. The channels of slice z - k come first, those of z + k last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import numpy as np

from napari_strata.core import axes as _axes
from napari_strata.core.errors import ImageError
from napari_strata.core.image import AnnotatedImage, Image
from napari_strata.io.lazy import LazyArray

Array = np.ndarray[Any, Any]


@runtime_checkable
class Cut(Protocol):
    """An image that is a part of another one."""

    def dressed(self, neighbours: int, /) -> Image:
        """The same part of the other one with its neighbours."""


def with_neighbours(image: Image, count: int) -> Image:
    """`image` with ``2 * count + 1`` times its channels: `count` slices on each side, and the slice between them.

    At the ends the stack is mirrored about its first or last slice. Nothing is read before it is asked for. With a
    count of 0 it is the image itself.

    Raises
    ------
    ImageError
        when the image has no second slice.
    """
    if not count:
        return image
    if isinstance(
        image, Cut
    ):  # whose neighbours are those of the image that it is a part of
        return image.dressed(count)
    if image.size("Z") < 2:
        raise ImageError(
            f"{image.name}: found a single slice ({image.axes}), and patches.neighbours={count} asks for those above "
            "and below it; give a stack with an axis Z (check --axes), or a model without neighbours."
        )
    letters = _axes.canonical(_axes.without(image.axes, "C") + "C")
    known = dict(
        zip(image.axes, zip(image.scale, image.units, strict=True), strict=True)
    ) | {"C": (1.0, "pixel")}
    names = image.channel_names or (("grey values",) if image.channels == 1 else ())
    return replace(
        image,
        data=_Neighbours(image, count, letters),
        axes=letters,
        scale=tuple(known[a][0] for a in letters),
        units=tuple(known[a][1] for a in letters),
        channel_names=tuple(f"{name} z{offset:+d}" if offset else name
                            for offset in range(-count, count + 1) for name in names),
    )  # fmt: skip


def pairs_with_neighbours(
    pairs: Sequence[AnnotatedImage], count: int
) -> list[AnnotatedImage]:
    """The same of the images of pairs; their labels stay. Raises `ImageError` as `with_neighbours` does."""
    return [
        replace(pair, image=with_neighbours(pair.image, count)) if count else pair
        for pair in pairs
    ]


def own_channels(array: Array, count: int) -> Array:
    """Of channels (C * (2 * count + 1), ...) those of the slice itself, (C, ...). A view."""
    width = len(array) // (2 * count + 1)
    return array[count * width : (count + 1) * width]


class _Neighbours(LazyArray):
    """Reads the planes of another image as channels; see `with_neighbours`."""

    def __init__(self, image: Image, count: int, letters: str) -> None:
        sizes = {a: image.size(a) for a in letters} | {
            "C": image.channels * (2 * count + 1)
        }
        super().__init__([sizes[a] for a in letters], image.dtype)
        self.image, self.count, self.letters = image, count, letters

    def _fetch(self, region: tuple[slice, ...]) -> Array:
        asked = {
            a: list(range(*s.indices(n)))
            for a, s, n in zip(self.letters, region, self.shape, strict=True)
        }
        where = dict(zip(self.letters, region, strict=True))
        shape = [len(asked[a]) for a in self.letters]
        found = np.empty(shape, self.dtype)
        channels, slices = self.image.channels, self.image.size("Z")
        for i, t in enumerate(asked.get("T", [0])):
            block = found[i] if "T" in self.letters else found
            planes: dict[int, Array] = {}
            for j, z in enumerate(asked["Z"]):
                for n, c in enumerate(asked["C"]):
                    offset, own = divmod(c, channels)
                    other = _mirrored(z + offset - self.count, slices)
                    if other not in planes:
                        planes[other] = self.image.read(
                            {"T": t, "Z": other, "Y": where["Y"], "X": where["X"]}
                        )
                    block[n, j] = planes[other][own]
        return found


def _mirrored(index: int, length: int) -> int:
    """`index` folded back into 0..length-1 at the first and the last, neither of them twice."""
    period = 2 * (length - 1)
    index = abs(index) % period
    return period - index if index >= length else index
