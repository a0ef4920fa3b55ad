"""Windows: small squares that are painted up to their edges.

Strokes keep away from the edges of classes, and most errors of a mask are there. A few
windows, where the mask is least certain, tell more than many strokes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.ndimage import maximum_filter, minimum_filter
from skimage.measure import label

from napari_strata.core.classes import IGNORE
from napari_strata.core.tiling import Box
from napari_strata.data.strokes import LARGEST

Array = np.ndarray[Any, Any]

SIDE = 11
"""Side of a window, in pixels."""

SPACING = 4
"""Pixels that are left free between a window and what is painted."""


@dataclass(frozen=True)
class Window:
    """Square of a plane.

    Parameters
    ----------
    plane
        number of the plane.
    box
        rows and columns.
    margin
        mean difference between the probabilities of the two likeliest classes.
    """

    plane: int
    box: Box
    margin: float


def choose_window(
    margins: Sequence[Array], painted: Sequence[Array], *, side: int = SIDE
) -> Window | None:
    """Choose the window in which the two likeliest classes are closest.

    Among equal ones it is the first: of the first plane, the first row and column.

    Parameters
    ----------
    margins
        for each plane, the difference between the probabilities of the two likeliest
        classes, (H, W), from 0 to 1.
    painted
        for each plane, True where a window may not be, (H, W). A window keeps `SPACING`
        pixels away from there.

    Returns
    -------
    A window within a plane; None if there is no free place.
    """
    best: Window | None = None
    for plane, (margin, taken) in enumerate(zip(margins, painted, strict=True)):
        if min(margin.shape) < side:
            continue
        means = _box_sums(margin, side) / side**2
        if taken.any():
            near = np.pad(taken, SPACING)
            means[_box_sums(near, side + 2 * SPACING) > 0] = np.inf
        row, column = np.unravel_index(means.argmin(), means.shape)
        least = float(means[row, column])
        if np.isfinite(least) and (best is None or least < best.margin):
            top, left = int(row), int(column)
            box = (slice(top, top + side), slice(left, left + side))
            best = Window(plane, box, least)
    return best


def count_windows(labels: Array) -> int:
    """Count the windows of a plane that are painted up to their edges.

    A window is a labelled area of at most `strokes.LARGEST` pixels with a square of
    `SIDE` pixels in it that is labelled everywhere, with two classes at least. So an
    edge between classes is painted, from which strokes keep away.

    Parameters
    ----------
    labels
        class indices uint8 (H, W), or `IGNORE`.
    """
    labelled = labels != IGNORE
    if min(labels.shape) < SIDE:
        return 0
    is_full = _box_sums(labelled, SIDE) == SIDE**2
    if not is_full.any():
        return 0
    radius = SIDE // 2
    core = tuple(slice(radius, length - radius) for length in labels.shape)
    highest, lowest = maximum_filter(labels, SIDE), minimum_filter(labels, SIDE)
    is_window = is_full & (highest != lowest)[core]
    areas = label(labelled, connectivity=2)
    sizes = np.bincount(areas.ravel())
    numbers = np.unique(areas[core][is_window])
    return int((sizes[numbers] <= LARGEST).sum())


def _box_sums(values: Array, side: int) -> Array:
    """Sums of all squares within a plane, by their first row and column.

    They are exact for margins in float16, so that equal squares have equal sums.
    """
    total = np.zeros(np.array(values.shape) + 1)
    np.cumsum(values, axis=0, dtype=np.float64, out=total[1:, 1:])
    np.cumsum(total, axis=1, out=total)
    rows = total[side:] - total[:-side]
    sums: Array = rows[:, side:] - rows[:, :-side]
    return sums
