"""Medians of square windows, by networks of minimum and maximum.

Minimum and maximum select a value and round nothing, so medians are the same on every
device. All pixels go through the network together.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import pad

Exchange = tuple[int, int, bool, bool]
"""Two places, and whether the smaller and the larger value are needed later."""


def median(image: Tensor, size: int) -> Tensor:
    """Median of the `size` x `size` pixels around each pixel of an image (C, H, W).

    The border is continued by its nearest pixel. `size` is odd.
    """
    radius = size // 2
    height, width = image.shape[-2:]
    padded = pad(image[None], (radius,) * 4, mode="replicate")[0]
    # The columns of neighbouring windows are the same, and are sorted once.
    columns = _select(
        [padded[:, i : i + height] for i in range(size)], tuple(range(size))
    )
    candidates = []
    for rank, row in enumerate(columns):
        wanted = _candidates(rank, size)
        shifted = [row[..., j : j + width] for j in range(size)]
        candidates += _select(shifted, wanted)
    return _select(candidates, (len(candidates) // 2,))[0]


def _candidates(rank: int, size: int) -> tuple[int, ...]:
    """Ranks along a row that may hold the median, once columns and rows are sorted.

    The value of ranks (i, j) is at least as large as (i + 1) (j + 1) values, its own
    included, and as small as (size - i) (size - j). As many are left out above the
    median as below it.
    """
    middle = (size * size + 1) // 2
    return tuple(
        j
        for j in range(size)
        if (rank + 1) * (j + 1) <= middle and (size - rank) * (size - j) <= middle
    )


def _select(values: Sequence[Tensor], ranks: tuple[int, ...]) -> list[Tensor]:
    """Values of the given ranks among `values`, element by element."""
    work = list(values)
    for i, j, smaller, larger in _network(len(work), ranks):
        low = torch.minimum(work[i], work[j]) if smaller else None
        high = torch.maximum(work[i], work[j]) if larger else None
        work[i] = work[i] if low is None else low
        work[j] = work[j] if high is None else high
    return [work[rank] for rank in ranks]


@cache
def _network(count: int, ranks: tuple[int, ...]) -> list[Exchange]:
    """Exchanges of a sorting network that the given ranks depend on.

    Batcher's merge exchange sort (Knuth, The Art of Computer Programming 3, 5.2.2,
    algorithm M), from which exchanges that do not matter are left out.
    """
    pairs = []
    top = 1 << max((count - 1).bit_length() - 1, 0)
    p = top
    while p > 0:
        q, r, d = top, 0, p
        while True:
            pairs += [(i, i + d) for i in range(count - d) if i & p == r]
            if q == p:
                break
            d, q, r = q - p, q // 2, p
        p //= 2
    needed = set(ranks)
    kept: list[Exchange] = []
    for i, j in reversed(pairs):
        if i in needed or j in needed:
            kept.append((i, j, i in needed, j in needed))
            needed |= {i, j}
    return kept[::-1]
