"""The sum of trees by numba, where it is installed (with napari[all]).

The compiled code is kept beside this file or in the user's cache, so that only the
first use after an installation waits for the compiler.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

BLOCK = 512
"""Pixels whose leaves are looked up together; their numbers stay in the cache."""


@cache
def available() -> bool:
    """True if numba is installed."""
    return find_spec("numba") is not None


def sum_leaves(
    features: Array, feature: Array, threshold: Array, leaves: Array, *, threads: int
) -> Array:
    """Sum the leaves of all trees; see `ObliviousTrees.sums`.

    Parameters
    ----------
    features
        Features, float32 (F, n), contiguous.
    threads
        Number of threads that share the pixels.

    Returns
    -------
    float32 (K, n).
    """
    kernel = _kernel()
    n = features.shape[1]
    out = np.empty((leaves.shape[2], n), np.float32)
    threads = max(1, min(threads, n // (8 * BLOCK)))
    # At multiples of a block, so that no two threads write to one line of the cache.
    cuts = [n * i // threads // BLOCK * BLOCK for i in range(threads)] + [n]
    if threads == 1:
        kernel(features, feature, threshold, leaves, out, 0, n)
        return out
    with ThreadPoolExecutor(threads, "trees") as pool:
        jobs = [
            pool.submit(kernel, features, feature, threshold, leaves, out, start, stop)
            for start, stop in pairwise(cuts)
        ]
        for job in jobs:
            job.result()
    return out


@cache
def _kernel() -> Callable[..., None]:
    from napari_strata.models.pixels._numba_kernel import sum_leaves_range

    kernel: Callable[..., None] = sum_leaves_range
    return kernel
