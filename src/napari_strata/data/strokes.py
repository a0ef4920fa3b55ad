"""Strokes: labels painted on few pixels, and which of them are held back together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from skimage.measure import label

from napari_strata.core.classes import IGNORE
from napari_strata.data.regions import LabelledRegion

Array = np.ndarray[Any, Any]

SPARSE = 0.2
"""Labels of a smaller share of the pixels of their planes are strokes."""

LARGEST = 64 * 64
"""Pixels of a stroke at most; what is larger is an area, and is cut along a grid."""

GRID = 128
"""Side of the cells of that grid, in pixels."""


def are_strokes(regions: Sequence[LabelledRegion]) -> bool:
    """Return True if few pixels of the labelled planes are labelled."""
    pixels = sum(int(np.prod(region.shape)) for region in regions)
    labelled = sum(
        int(region.counts.sum()) for region in regions if region.counts is not None
    )
    return labelled < SPARSE * pixels


def number_strokes(labels: Array) -> Array:
    """Number the strokes of a plane.

    A stroke is a connected area of one class. Where it is too large to be one, each
    cell of a grid counts by itself.

    Parameters
    ----------
    labels
        class indices uint8 (H, W), or `IGNORE`.

    Returns
    -------
    int64 (H, W): 0 where nothing is labelled, then 1, 2, ...
    """
    shifted = np.where(labels == IGNORE, 0, labels.astype(np.int64) + 1)
    numbers: Array = label(shifted, background=0, connectivity=2).astype(np.int64)
    is_large = np.bincount(numbers.ravel()) > LARGEST
    is_large[0] = False
    if not is_large.any():
        return numbers
    rows, columns = (np.arange(length) // GRID for length in labels.shape)
    cells = rows[:, None] * (columns[-1] + 1) + columns + 1
    numbers = numbers * (cells.max() + 1) + np.where(is_large[numbers], cells, 0)
    _, numbered = np.unique(numbers, return_inverse=True)
    # 0 is the smallest number, where there is any unlabelled pixel.
    first = 0 if (labels == IGNORE).any() else 1
    return numbered.reshape(labels.shape) + first


def draw_folds(strokes: Array, labels: Array, *, folds: int, seed: int) -> Array:
    """Draw the fold of each labelled pixel; strokes stay whole.

    Each fold gets about as many pixels of each class. The only stroke of a class is
    never held back, because nothing would be left to learn it from.

    Parameters
    ----------
    strokes, labels
        number of the stroke and class index of each pixel, (n,).

    Returns
    -------
    int64 (n,): 0 to ``folds - 1``, or -1 for pixels that are never held back.
    """
    rng = np.random.default_rng([seed, 6])
    numbers, first, of_pixel, sizes = np.unique(
        strokes, return_index=True, return_inverse=True, return_counts=True
    )
    fold = np.full(len(numbers), -1)
    for index in np.unique(labels):
        of_class = np.flatnonzero(labels[first] == index)
        if len(of_class) < 2:
            continue
        shuffled = rng.permutation(of_class)
        filled = np.zeros(folds, np.int64)
        for number in shuffled[np.argsort(-sizes[shuffled], kind="stable")]:
            fold[number] = filled.argmin()
            filled[fold[number]] += sizes[number]
    return fold[of_pixel]
