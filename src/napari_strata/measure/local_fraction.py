"""Fractions of each class in cubes: a map, and how their spread falls with size."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from napari_strata.core.image import Array
from napari_strata.measure.sample import Sample

PER_SIDE = 16
"""Cubes along the shortest side of a plane, unless a size is given."""

PER_DEPTH = 4
"""Cubes along Z, at least, unless a size is given."""

MIN_SIDE = 4
"""Least side of a cube in pixels."""

LEAST_INSIDE = 0.5
"""Least share of a cube inside the region; cubes with less have no fraction."""

LEAST_CUBES = 8
"""Cubes that a point of the curve needs."""

SIZES = 12
"""Sizes of cubes in the curve, at most."""


@dataclass(frozen=True, eq=False)
class LocalFractions:
    """Fractions of the classes in cubes (squares, of a single plane).

    Parameters
    ----------
    fractions
        For each class, the fraction in each cube (Z, Y, X); NaN in cubes of which less
        than half lies in the region.
    side
        Side of a cube along Z, Y and X, in `unit`.
    pixels
        The same in pixels.
    curves
        For each class, points (side, number of cubes, mean, standard deviation) of
        growing cubes.
    """

    fractions: dict[str, Array]
    side: tuple[float, float, float]
    pixels: tuple[int, int, int]
    unit: str
    curves: dict[str, list[CurvePoint]]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON: the size of the cubes and the curves."""
        curves = {}
        for name, points in self.curves.items():
            curves[name] = [point.to_dict() for point in points]
        return {"side": list(self.side), "unit": self.unit, "curves": curves}


@dataclass(frozen=True)
class CurvePoint:
    """Mean and standard deviation of a class's fraction in cubes of one size."""

    side: float
    cubes: int
    mean: float
    std: float

    def to_dict(self) -> dict[str, float]:
        """Return plain values, for JSON."""
        return dict(vars(self))


class LocalFractionCounter:
    """Fractions in cubes, from planes that are added in order along Z.

    Parameters
    ----------
    side
        Side of a cube in the unit of the pixel size; None: 1/16 of a plane's shorter
        side, or a quarter of the depth of a thin volume.
    """

    def __init__(self, sample: Sample, side: float | None = None) -> None:
        self._sample = sample
        height, width = sample.shape[1:]
        spacing = sample.spacing
        if side is None:
            side = min(height * spacing[1], width * spacing[2]) / PER_SIDE
            if sample.is_volume:
                side = min(side, sample.shape[0] * spacing[0] / PER_DEPTH)
            side = max(side, MIN_SIDE * max(spacing[1:]))
        lengths = []
        for length, step in zip(sample.shape, spacing, strict=True):
            lengths.append(min(max(round(side / step), 1), length))
        self._pixels = (lengths[0], lengths[1], lengths[2])
        cubes = [
            math.ceil(length / part)
            for length, part in zip(sample.shape, lengths, strict=True)
        ]
        self._counts = np.zeros((len(sample.classes), *cubes), np.int64)
        self._z = 0

    def add(self, codes: Array) -> None:
        """Add the next plane."""
        z = self._z // self._pixels[0]
        _, height, width = self._pixels
        rows = np.arange(0, codes.shape[0], height)
        columns = np.arange(0, codes.shape[1], width)
        for index, counts in enumerate(self._counts):
            lines = np.add.reduceat((codes == index).astype(np.int32), rows, axis=0)
            counts[z] += np.add.reduceat(lines, columns, axis=1)
        self._z += 1

    def result(self) -> LocalFractions:
        """Return the fractions, after the last plane."""
        names = self._sample.classes
        inside = self._counts.sum(axis=0)
        size = math.prod(self._pixels)
        fractions = {}
        for name, counts in zip(names, self._counts, strict=True):
            fractions[name] = _divide(counts, inside, LEAST_INSIDE * size)
        side = []
        for pixels, step in zip(self._pixels, self._sample.spacing, strict=True):
            side.append(pixels * step)
        return LocalFractions(
            fractions,
            (side[0], side[1], side[2]),
            self._pixels,
            self._sample.unit,
            self._curves(side[2]),
        )

    def _curves(self, side: float) -> dict[str, list[CurvePoint]]:
        full = [n // p for n, p in zip(self._sample.shape, self._pixels, strict=True)]
        longest = max(full[1], 1)
        factors = np.geomspace(1, longest, SIZES).round().astype(int)
        curves: dict[str, list[CurvePoint]] = {n: [] for n in self._sample.classes}
        for factor in np.unique(factors):
            depth = int(factor) if self._sample.is_volume else 1
            steps = (depth, int(factor), int(factor))
            if any(length < step for length, step in zip(full, steps, strict=True)):
                continue
            merged = np.stack([_merge(c, full, steps) for c in self._counts])
            inside = merged.sum(axis=0)
            size = math.prod(self._pixels) * math.prod(steps)
            for name, counts in zip(self._sample.classes, merged, strict=True):
                values = _divide(counts, inside, LEAST_INSIDE * size)
                values = values[np.isfinite(values)]
                if len(values) >= LEAST_CUBES:
                    point = CurvePoint(
                        side=float(side * factor),
                        cubes=len(values),
                        mean=float(values.mean()),
                        std=float(values.std(ddof=1)),
                    )
                    curves[name].append(point)
        return curves


def measure_local_fractions(
    sample: Sample, side: float | None = None
) -> LocalFractions:
    """Measure the fractions in cubes; see `LocalFractionCounter`."""
    counter = LocalFractionCounter(sample, side)
    for plane in sample.planes():
        counter.add(plane)
    return counter.result()


def _merge(counts: Array, full: list[int], steps: tuple[int, int, int]) -> Array:
    """Sum over groups of whole cubes; those that do not fill a group are left out."""
    for axis, (length, step) in enumerate(zip(full, steps, strict=True)):
        used = length // step * step
        counts = np.take(counts, range(used), axis=axis)
        shape = [*counts.shape[:axis], used // step, step, *counts.shape[axis + 1 :]]
        counts = counts.reshape(shape).sum(axis=axis + 1)
    return counts


def _divide(part: Array, whole: Array, least: float) -> Array:
    result: Array = np.full(whole.shape, np.nan, np.float32)
    np.divide(part, whole, out=result, where=whole >= max(least, 1))
    return result
