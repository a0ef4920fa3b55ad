"""Where training patches are cut: only where labels exist, and as often from a rare class as from a common one.

Positions of labelled pixels are found once, a random choice of them kept in bounded memory; every draw afterwards costs
a few random numbers. numpy only, and the same numbers from the same seed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

PER_CLASS = 20_000
"""Labelled pixels of one class that are remembered of one part, at most."""

IN_ALL = 8_000_000
"""Labelled pixels that are remembered altogether, about; 8 bytes each."""

PIECE = 2**22
"""Pixels looked at in one go: positions in a plane take eight times its memory."""


@dataclass(frozen=True)
class Place:
    """Where a patch is cut: the `box` of `part` (its number), counted from the part's own corner.

    `pixel` is the labelled pixel, (row, column) or (plane, row, column), the patch was drawn for; it lies inside.
    `index` is its class.
    """

    part: int
    box: tuple[slice, ...]
    pixel: tuple[int, ...]
    index: int


class Sampler:
    """Draws places of patches.

    Parameters
    ----------
    labels
        class indices of each part: arrays uint8 that follow each other in the order of memory. Read once, here.
    shapes, counts
        sizes, (Y, X) or (Z, Y, X), and labelled pixels of each class, of each part; `counts` is int64 (parts, K), not
        all 0.
    size
        of the patches in pixels, along the same axes.
    seed
        of the choice of positions to remember; draws have their own generator.
    """

    def __init__(
        self,
        labels: Sequence[Iterable[Array]],
        *,
        shapes: Sequence[tuple[int, ...]],
        counts: Array,
        size: tuple[int, ...],
        seed: int,
    ) -> None:
        self.shapes = shapes
        self.counts = counts
        self.size = size
        limit = min(PER_CLASS, max(64, IN_ALL // counts.size))
        self.kept = [
            remember(
                strips,
                counts[number],
                limit=limit,
                rng=np.random.default_rng([seed, 2, number]),
            )
            for number, strips in enumerate(labels)
        ]
        self.shares = counts / np.maximum(counts.sum(axis=0), 1)

    def draw(
        self, count: int, rng: np.random.Generator, *, balance: float
    ) -> list[Place]:
        """`count` places, each with at least one labelled pixel. Patches stay inside their part where it is larger.

        `balance` is the share of patches drawn near a pixel of a class, the class chosen evenly among those present and
        the pixel evenly among all of that class; it lies in the middle half of its patch. The other patches are drawn
        around labelled pixels chosen evenly among all of them, anywhere in the patch.
        """
        totals = self.counts.sum(axis=0)
        even = rng.choice(np.flatnonzero(totals), count)
        natural = rng.choice(len(totals), count, p=totals / totals.sum())
        balanced = rng.random(count) < balance
        classes = np.where(balanced, even, natural)
        return [
            self._place(int(k), bool(near), rng)
            for k, near in zip(classes, balanced, strict=True)
        ]

    def _place(self, index: int, near: bool, rng: np.random.Generator) -> Place:
        number = int(rng.choice(len(self.kept), p=self.shares[:, index]))
        shape, kept = self.shapes[number], self.kept[number][index]
        pixel = tuple(
            int(at)
            for at in np.unravel_index(int(kept[rng.integers(len(kept))]), shape)
        )
        margins = [side // 4 if near else 0 for side in self.size]
        before = rng.integers(
            margins,
            [side - margin for side, margin in zip(self.size, margins, strict=True)],
        )
        box = (
            _clamped(at - int(b), *sides)
            for at, b, *sides in zip(pixel, before, self.size, shape, strict=True)
        )
        return Place(number, tuple(box), pixel, index)


def remember(
    strips: Iterable[Array], counts: Array, *, limit: int, rng: np.random.Generator
) -> list[Array]:
    """At most `limit` labelled pixels of each class, chosen evenly, as flat int64 positions over all strips.

    `counts` are the labelled pixels of each class. The choice is made among their ordinal numbers beforehand, so one
    pass is enough and no choice depends on how the labels were cut into strips.
    """
    wanted = [
        np.sort(rng.choice(int(n), min(limit, int(n)), replace=False)) for n in counts
    ]
    found: list[list[Array]] = [[] for _ in wanted]
    seen = [0] * len(wanted)
    offset = 0
    for strip in strips:
        for flat in np.split(strip.ravel(), range(PIECE, strip.size, PIECE)):
            for k, ordinals in enumerate(wanted):
                here = np.flatnonzero(flat == k)
                first, last = np.searchsorted(ordinals, (seen[k], seen[k] + len(here)))
                found[k].append(here[ordinals[first:last] - seen[k]] + offset)
                seen[k] += len(here)
            offset += flat.size
    return [np.concatenate(chunks) for chunks in found]


def _clamped(start: int, size: int, length: int) -> slice:
    """`size` pixels from `start`, moved to lie inside `length`; all of it where it is shorter."""
    begin = min(max(start, 0), max(length - size, 0))
    return slice(begin, min(begin + size, length))
