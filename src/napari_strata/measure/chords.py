"""Lengths of chords: the pieces of straight lines that lie in one class."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from napari_strata.core.classes import IGNORE
from napari_strata.core.image import Array
from napari_strata.measure.sample import AXES, Sample


@dataclass(frozen=True, eq=False)
class Chords:
    """Chords of one class along one axis, less those cut by the region's border.

    Long chords are cut more often, so that in a small region the mean is too small;
    `cut` tells how many there were.

    Parameters
    ----------
    step
        Pixel size along the axis.
    counts
        Number of chords of 0, 1, 2, ... pixels.
    cut
        Number of chords left out.
    """

    step: float
    counts: Array
    cut: int

    @property
    def count(self) -> int:
        return int(self.counts.sum())

    @property
    def lengths(self) -> Array:
        """Lengths that belong to `counts`, in the unit of the pixel size."""
        lengths: Array = np.arange(len(self.counts)) * self.step
        return lengths

    @property
    def mean(self) -> float:
        """Mean length; NaN without a chord."""
        if not self.count:
            return math.nan
        return float(self.counts @ self.lengths / self.count)

    @property
    def std(self) -> float:
        """Standard deviation of the lengths; NaN without a chord."""
        if not self.count:
            return math.nan
        squares = float(self.counts @ (self.lengths - self.mean) ** 2)
        return math.sqrt(squares / self.count)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON; None instead of NaN."""
        known = self.count > 0
        return {
            "count": self.count,
            "cut": self.cut,
            "mean": self.mean if known else None,
            "std": self.std if known else None,
            "step": self.step,
            "counts": self.counts.tolist(),
        }


class ChordCounter:
    """Chords of each class along each axis, from planes added in order along Z."""

    def __init__(self, sample: Sample) -> None:
        self._sample = sample
        count = len(sample.classes)
        self._counts = {}
        self._cut = {}
        for axis in sample.axes:
            longest = sample.shape[AXES.index(axis)]
            self._counts[axis] = np.zeros((count, longest + 1), np.int64)
            self._cut[axis] = np.zeros(count, np.int64)
        height, width = sample.shape[1:]
        # Of the chord along Z that each pixel is in.
        self._before: Array = np.full((height, width), IGNORE, np.uint8)
        self._length: Array = np.zeros((height, width), np.int32)
        self._is_cut: Array = np.zeros((height, width), bool)

    def add(self, codes: Array) -> None:
        """Add the next plane."""
        self._add_lines("x", codes)
        self._add_lines("y", codes.T)
        if self._sample.is_volume:
            self._add_depth(codes)

    def result(self) -> dict[str, dict[str, Chords]]:
        """Return the chords of each class by axis, after the last plane."""
        if self._sample.is_volume:
            outside = np.full(self._before.shape, IGNORE, np.uint8)
            self._add_depth(outside)
        chords: dict[str, dict[str, Chords]] = {}
        for index, name in enumerate(self._sample.classes):
            chords[name] = {}
            for axis in self._sample.axes:
                counts = self._counts[axis][index]
                longest = int(np.flatnonzero(counts)[-1]) if counts.any() else 0
                chords[name][axis] = Chords(
                    step=self._sample.spacing[AXES.index(axis)],
                    counts=counts[: longest + 1],
                    cut=int(self._cut[axis][index]),
                )
        return chords

    def _add_lines(self, axis: str, lines: Array) -> None:
        """Add the chords along the rows of `lines`."""
        padded = np.pad(lines, ((0, 0), (1, 1)), constant_values=IGNORE).ravel()
        starts = np.flatnonzero(padded[1:] != padded[:-1]) + 1
        codes = padded[starts]
        lengths = np.diff(starts, append=len(padded))
        # The line begins and ends with a pixel outside, so that each chord has a
        # neighbour on both sides.
        before = padded[starts - 1]
        after = np.append(codes, np.uint8(IGNORE))[1:]
        cut = (before == IGNORE) | (after == IGNORE)
        self._count(axis, codes, lengths, cut)

    def _add_depth(self, codes: Array) -> None:
        ended = codes != self._before
        cut = self._is_cut[ended] | (codes[ended] == IGNORE)
        self._count("z", self._before[ended], self._length[ended], cut)
        self._length[ended] = 0
        self._length += 1
        self._is_cut[ended] = self._before[ended] == IGNORE
        self._before = codes

    def _count(self, axis: str, codes: Array, lengths: Array, cut: Array) -> None:
        inside = codes != IGNORE
        counts = self._counts[axis]
        whole = inside & ~cut
        width = counts.shape[1]
        flat = codes[whole].astype(np.intp) * width + lengths[whole]
        counts += np.bincount(flat, minlength=counts.size).reshape(counts.shape)
        cut_codes = codes[inside & cut]
        self._cut[axis] += np.bincount(cut_codes, minlength=len(counts))


def measure_chords(sample: Sample) -> dict[str, dict[str, Chords]]:
    """Measure the chords of each class along each axis; see `Chords`."""
    counter = ChordCounter(sample)
    for plane in sample.planes():
        counter.add(plane)
    return counter.result()
