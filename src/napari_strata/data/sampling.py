"""Choose where training patches are cut.

Patches lie only where labels exist, and a rare class is drawn as often as a common one.
Positions of labelled pixels are found once, and a random choice of them is kept in
bounded memory; each draw then costs a few random numbers. The same seed gives the same
patches.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

POSITIONS_PER_CLASS = 20_000
"""Labelled pixels of one class that are kept of one region, at most."""

POSITIONS_IN_ALL = 8_000_000
"""Labelled pixels that are kept in all, about; 8 bytes each."""

PIXELS_AT_ONCE = 2**22
"""Pixels searched at a time: positions in a plane take eight times its memory."""


@dataclass(frozen=True)
class PatchLocation:
    """Location of a patch.

    Parameters
    ----------
    region
        Number of the region.
    box
        The patch, counted from the region's corner.
    pixel
        The labelled pixel that the patch was drawn for, (row, column) or (plane, row,
        column); it lies in the box.
    class_index
        Class of that pixel.
    """

    region: int
    box: tuple[slice, ...]
    pixel: tuple[int, ...]
    class_index: int


class Sampler:
    """Draws locations of patches.

    Parameters
    ----------
    labels
        Class indices of each region: uint8 arrays that follow each other in the order
        of memory. Read once, here.
    shapes, counts
        Size of each region, (Y, X) or (Z, Y, X), and its labelled pixels of each class;
        `counts` is int64 (regions, K), not all 0.
    size
        Size of the patches in pixels, along the same axes.
    seed
        Seed of the choice of positions to keep; draws have their own generator.
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
        limit = min(POSITIONS_PER_CLASS, max(64, POSITIONS_IN_ALL // counts.size))
        self.positions = []
        for number, strips in enumerate(labels):
            rng = np.random.default_rng([seed, 2, number])
            self.positions.append(
                sample_positions(strips, counts[number], limit=limit, rng=rng)
            )
        self.shares = counts / np.maximum(counts.sum(axis=0), 1)

    def draw(
        self, count: int, rng: np.random.Generator, *, balance: float
    ) -> list[PatchLocation]:
        """Draw `count` patches, each with at least one labelled pixel.

        Patches stay inside their region where it is larger.

        Parameters
        ----------
        balance
            Share of patches drawn near a pixel of a class: the class is chosen evenly
            among those present and the pixel evenly among all of that class, and it
            lies in the middle half of its patch. The other patches are drawn around
            labelled pixels chosen evenly among all of them, anywhere in the patch.
        """
        totals = self.counts.sum(axis=0)
        even = rng.choice(np.flatnonzero(totals), count)
        natural = rng.choice(len(totals), count, p=totals / totals.sum())
        balanced = rng.random(count) < balance
        classes = np.where(balanced, even, natural)
        return [
            self._locate(int(class_index), bool(central), rng)
            for class_index, central in zip(classes, balanced, strict=True)
        ]

    def _locate(
        self, class_index: int, central: bool, rng: np.random.Generator
    ) -> PatchLocation:
        """Place a patch around a random pixel of a class, `central` in its patch."""
        number = int(rng.choice(len(self.positions), p=self.shares[:, class_index]))
        shape = self.shapes[number]
        positions = self.positions[number][class_index]
        position = int(positions[rng.integers(len(positions))])
        pixel = tuple(int(i) for i in np.unravel_index(position, shape))
        margins = [side // 4 if central else 0 for side in self.size]
        ends = [side - margin for side, margin in zip(self.size, margins, strict=True)]
        offsets = rng.integers(margins, ends)
        box = []
        for i, length in enumerate(shape):
            box.append(_clamp(pixel[i] - int(offsets[i]), self.size[i], length))
        return PatchLocation(number, tuple(box), pixel, class_index)


def sample_positions(
    strips: Iterable[Array], counts: Array, *, limit: int, rng: np.random.Generator
) -> list[Array]:
    """Choose at most `limit` labelled pixels of each class evenly.

    Their ordinal numbers are chosen beforehand, so one pass is enough and the choice
    does not depend on how the labels were cut into strips.

    Parameters
    ----------
    counts
        Labelled pixels of each class.

    Returns
    -------
    list of array
        Flat int64 positions over all strips, for each class.
    """
    ordinals = []
    for count in counts.tolist():
        size = min(limit, count)
        ordinals.append(np.sort(rng.choice(count, size, replace=False)))
    chunks: list[list[Array]] = [[] for _ in ordinals]
    pixels_before = [0] * len(ordinals)
    offset = 0
    for strip in strips:
        cuts = range(PIXELS_AT_ONCE, strip.size, PIXELS_AT_ONCE)
        for labels in np.split(strip.ravel(), cuts):
            for k, chosen in enumerate(ordinals):
                positions = np.flatnonzero(labels == k)
                before = pixels_before[k]
                after = before + len(positions)
                first, last = np.searchsorted(chosen, (before, after))
                chunks[k].append(positions[chosen[first:last] - before] + offset)
                pixels_before[k] = after
            offset += labels.size
    return [np.concatenate(of_class) for of_class in chunks]


def _clamp(start: int, size: int, length: int) -> slice:
    """Return `size` pixels from `start`, moved into `length`.

    All where it is shorter.
    """
    first = min(max(start, 0), max(length - size, 0))
    return slice(first, min(first + size, length))
