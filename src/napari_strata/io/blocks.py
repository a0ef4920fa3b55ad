"""Iteration over an image block by block, to write it without reading all of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from napari_strata.core import axes as _axes
from napari_strata.core.image import Array, Image, Region

BAND_BYTES = 64 * 2**20
"""Largest number of bytes of pixels in memory while an image is written."""


def stacked(image: Image) -> str:
    """Return the axes other than Y and X, in canonical order."""
    return _axes.canonical(image.axes)[:-2]


def canonical_shape(image: Image) -> tuple[int, ...]:
    """Return the shape in the order T, C, Z, Y, X, for the axes of the image."""
    return tuple(image.size(a) for a in _axes.canonical(image.axes))


def planes(image: Image) -> Iterator[tuple[int, ...]]:
    """Iterate over the indices of all YX planes along the other axes.

    The axes are in canonical order; the last index varies fastest.
    """
    yield from np.ndindex(*canonical_shape(image)[:-2])


def read_block(
    image: Image, plane: tuple[int, ...], rows: slice, columns: slice
) -> Array:
    """Read rows and columns of a plane as a 2D array of the image's dtype."""
    region: dict[str, int | slice] = dict(zip(stacked(image), plane, strict=True))
    if "C" in region:  # `Image.read` keeps C as a dimension
        region["C"] = slice(
            plane[stacked(image).index("C")], plane[stacked(image).index("C")] + 1
        )
    band: Region = region | {"Y": rows, "X": columns}
    array = image.read(band)
    return array.reshape(array.shape[-2:])


def bands(image: Image, *, multiple: int, itemsize: int) -> Iterator[Array]:
    """Iterate over the planes in canonical order, in 2D bands of full width.

    Parameters
    ----------
    multiple
        The height of a band is a multiple of this number of pixels, except at the end
        of a plane.
    itemsize
        Bytes per pixel. A band has at most about `BAND_BYTES`.
    """
    height, width = image.size("Y"), image.size("X")
    rows = max(1, BAND_BYTES // (width * itemsize * multiple)) * multiple
    for plane in planes(image):
        for top in range(0, height, rows):
            yield read_block(
                image, plane, slice(top, min(top + rows, height)), slice(0, width)
            )


def extremes(image: Image) -> tuple[int, int]:
    """Return the smallest and the largest value of an integer image."""
    limits: list[tuple[Any, Any]] = [
        (band.min(), band.max())
        for band in bands(image, multiple=1, itemsize=image.dtype.itemsize)
    ]
    return int(min(low for low, _ in limits)), int(max(high for _, high in limits))
