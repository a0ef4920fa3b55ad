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
        When a letter is unknown or stands twice, when Y or X is missing, or when the
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
            f"{description}: a letter stands twice; name each dimension once (RGB"
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
