"""Axes of arrays: parse, check, transpose to the canonical order and back.

Axes are one upper-case letter per array dimension: T time, C channel, Z plane, Y row,
X column. S (the samples of an interleaved RGB file) is accepted and becomes C. The only
transposes of the project are here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from napari_strata.core.errors import ImageError

CANONICAL = "TCZYX"
"""Order of axes in the engine."""


def parse(axes: str, shape: Sequence[int]) -> str:
    """Check `axes` against an array's `shape`; return them in upper case, with S as C.

    Raises
    ------
    ImageError
        When a letter is unknown or is duplicated, when Y or X is missing, or when the
        count differs from `len(shape)`.
    """
    letters = axes.strip().upper().replace("S", "C")
    description = f"found axes {axes!r} for shape {tuple(shape)}"
    if unknown := sorted(set(letters) - set(CANONICAL)):
        raise ImageError(
            f"{description}: {', '.join(unknown)} is not one of T, C, Z, Y, X; name"
            " each dimension with one."
        )
    if len(set(letters)) != len(letters):
        raise ImageError(
            f"{description}: a letter is duplicated; name each dimension once (RGB"
            " samples count as C)."
        )
    if len(letters) != len(shape):
        raise ImageError(
            f"{description}: {len(shape)} dimensions need {len(shape)} letters, for"
            f" example {default(shape)!r}."
        )
    if not {"Y", "X"} <= set(letters):
        raise ImageError(f"{description}: Y and X are both needed.")
    return letters


def default(shape: Sequence[int]) -> str:
    """Return the most usual axes for a shape, for messages; never a guess at axes."""
    return {2: "YX", 3: "ZYX", 4: "CZYX"}.get(len(shape), "TCZYX"[-len(shape) :])


def canonical(axes: str) -> str:
    """Return the letters of `axes` in the order T, C, Z, Y, X."""
    return "".join(axis for axis in CANONICAL if axis in axes)


def to_canonical(array: np.ndarray[Any, Any], axes: str) -> np.ndarray[Any, Any]:
    """Return a view of `array` (with these axes) in the order T, C, Z, Y, X."""
    return array.transpose([axes.index(axis) for axis in canonical(axes)])


def from_canonical(array: np.ndarray[Any, Any], axes: str) -> np.ndarray[Any, Any]:
    """Return a view of `array` (in canonical order) in the order of `axes`."""
    ordered = canonical(axes)
    return array.transpose([ordered.index(axis) for axis in axes])


def without(axes: str, letter: str) -> str:
    """Return `axes` without one letter."""
    return axes.replace(letter, "")


_TURNS = {
    1: (False, False, False),
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}
"""For each orientation tag of TIFF and EXIF: swap Y and X, then mirror Y, mirror X."""


def is_transposed(orientation: int) -> bool:
    """Return True if an orientation swaps Y and X."""
    return _TURNS[orientation][0]


def turned_shape(shape: Sequence[int], axes: str, orientation: int) -> tuple[int, ...]:
    """Return the shape of an array that is turned upright; see `turned`."""
    lengths = list(shape)
    y, x = axes.index("Y"), axes.index("X")
    if is_transposed(orientation):
        lengths[y], lengths[x] = lengths[x], lengths[y]
    return tuple(lengths)


def turned(
    array: np.ndarray[Any, Any], axes: str, orientation: int
) -> np.ndarray[Any, Any]:
    """Return a view of `array` that is upright.

    Parameters
    ----------
    orientation
        Orientation of the stored array, 1 to 8, as in the tags of TIFF and EXIF.
    """
    transposed, mirror_y, mirror_x = _TURNS[orientation]
    y, x = axes.index("Y"), axes.index("X")
    if transposed:
        array = array.swapaxes(y, x)
    steps = [slice(None)] * array.ndim
    for axis, mirror in ((y, mirror_y), (x, mirror_x)):
        if mirror:
            steps[axis] = slice(None, None, -1)
    return array[tuple(steps)]


def stored_box(
    rows: slice, columns: slice, lengths: tuple[int, int], orientation: int
) -> tuple[slice, slice]:
    """Return the rows and columns of a stored array that are a box of the turned one.

    Parameters
    ----------
    rows, columns
        Box in the array that is upright.
    lengths
        Stored rows and columns.
    """
    transposed, mirror_y, mirror_x = _TURNS[orientation]
    height, width = lengths[::-1] if transposed else lengths
    box = []
    for part, length, mirror in (
        (rows, height, mirror_y),
        (columns, width, mirror_x),
    ):
        start, stop = part.start, part.stop
        if mirror:
            start, stop = length - stop, length - start
        box.append(slice(start, stop))
    return (box[1], box[0]) if transposed else (box[0], box[1])
