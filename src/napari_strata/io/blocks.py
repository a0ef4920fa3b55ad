"""Walking over an image block by block, so that writing it never needs it whole."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from napari_strata.core import axes as _axes
from napari_strata.core.image import Array, Image, Region

BAND_BYTES = 64 * 2**20
"""No more pixels than this are held at once when an image is written."""


def stacked(image: Image) -> str:
    """The axes above Y and X, in canonical order."""
    return _axes.canonical(image.axes)[:-2]


def canonical_shape(image: Image) -> tuple[int, ...]:
    """Shape in the order T, C, Z, Y, X, of the axes the image has."""
    return tuple(image.size(a) for a in _axes.canonical(image.axes))


def planes(image: Image) -> Iterator[tuple[int, ...]]:
    """Index of every YX plane along the axes above it, in canonical order, the last
    fastest.
    """
    yield from np.ndindex(*canonical_shape(image)[:-2])


def read_block(
    image: Image, plane: tuple[int, ...], rows: slice, columns: slice
) -> Array:
    """Rows and columns of one plane, as a 2D array in the image's dtype."""
    region: dict[str, int | slice] = dict(zip(stacked(image), plane, strict=True))
    if "C" in region:  # `Image.read` keeps C as a dimension
        region["C"] = slice(
            plane[stacked(image).index("C")], plane[stacked(image).index("C")] + 1
        )
    band: Region = region | {"Y": rows, "X": columns}
    array = image.read(band)
    return array.reshape(array.shape[-2:])


def bands(image: Image, *, multiple: int, itemsize: int) -> Iterator[Array]:
    """Whole planes in canonical order, each as 2D bands of full width whose height
    is a multiple of `multiple`.

    A plane that is small enough is one band.
    """
    height, width = image.size("Y"), image.size("X")
    rows = max(1, BAND_BYTES // (width * itemsize * multiple)) * multiple
    for plane in planes(image):
        for top in range(0, height, rows):
            yield read_block(
                image, plane, slice(top, min(top + rows, height)), slice(0, width)
            )


def extremes(image: Image) -> tuple[int, int]:
    """Smallest and largest value of an integer image, read band by band."""
    extremes: list[tuple[Any, Any]] = [
        (band.min(), band.max())
        for band in bands(image, multiple=1, itemsize=image.dtype.itemsize)
    ]
    return int(min(low for low, _ in extremes)), int(max(high for _, high in extremes))
