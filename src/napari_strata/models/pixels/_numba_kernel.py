"""Loops that numba compiles; imported only where it is installed."""

from __future__ import annotations

from typing import Any

import numba  # type: ignore[import-not-found, import-untyped, unused-ignore]
import numpy as np

BLOCK = 512


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator, unused-ignore]
def sum_leaves_range(
    features: Any,
    feature: Any,
    threshold: Any,
    leaves: Any,
    out: Any,
    start: int,
    stop: int,
) -> None:
    """Sum the leaves of all trees for the pixels from `start` to `stop`."""
    trees, depth = feature.shape
    classes = leaves.shape[2]
    number = np.empty(BLOCK, np.int32)
    total = np.empty((BLOCK, classes), np.float32)
    for first in range(start, stop, BLOCK):
        count = min(BLOCK, stop - first)
        total[:] = 0
        for tree in range(trees):
            number[:] = 0
            for level in range(depth):
                row = features[feature[tree, level], first : first + count]
                limit = threshold[tree, level]
                for i in range(count):
                    number[i] = (number[i] << 1) | (row[i] > limit)
            for i in range(count):
                for k in range(classes):
                    total[i, k] += leaves[tree, number[i], k]
        for k in range(classes):
            for i in range(count):
                out[k, first + i] = total[i, k]
