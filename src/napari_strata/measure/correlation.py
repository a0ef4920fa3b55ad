"""Two-point correlation: how often two points at a distance lie in the same class.

Inside a plane all displacements are measured, with the fast Fourier transform, in
strips of rows; along Z, lines of pixels. Both count only pairs inside the region, so
that a mask of any shape does no harm.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from napari_strata.core.classes import IGNORE
from napari_strata.core.image import Array
from napari_strata.measure.sample import Sample

MAX_DISTANCE = 256
"""Largest displacement in pixels, unless half the image is less."""

MAX_PLANES = 32
"""Planes for displacements inside a plane; of more, as many are taken evenly."""

STRIP, LEAST_STRIP = 1024, 64
"""Rows of a plane that are transformed together, at most and at least."""

SPECTRA_BYTES = 2**28
"""Memory for the spectra of all classes."""

MAX_LINE_PIXELS = 2**26
"""Pixels of lines along Z; of more lines, as many are taken evenly. They take 64 MB."""


@dataclass(frozen=True, eq=False)
class Correlation:
    """Two-point correlation S2 of one class inside the region.

    Parameters
    ----------
    share
        Share of the class in the pixels used.
    by_axis
        For each axis, the probability that two points at each of `distances` along it
        are both of the class; NaN where no such pair is in the region.
    distances
        For each axis, its distances in `unit`, from 0.
    radii, mean
        Distances, and the probability over all measured directions: those in a plane,
        and along Z.
    unit
        Unit of the distances.
    """

    share: float
    distances: dict[str, Array]
    by_axis: dict[str, Array]
    radii: Array
    mean: Array
    unit: str

    @property
    def covariance(self) -> Array:
        """S2 less the square of the share: 0 where points are independent."""
        covariance: Array = self.mean - self.share**2
        return covariance

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON; None instead of NaN."""
        by_axis = {}
        for axis, values in self.by_axis.items():
            by_axis[axis] = {
                "distance": _listed(self.distances[axis]),
                "s2": _listed(values),
            }
        mean = {"distance": _listed(self.radii), "s2": _listed(self.mean)}
        return {"share": self.share, "by_axis": by_axis, "mean": mean}


class CorrelationCounter:
    """Two-point correlation of each class, from planes added in order along Z.

    Parameters
    ----------
    longest
        Largest distance in pixels along X; None: the least of half the image and
        `MAX_DISTANCE`.
    """

    def __init__(self, sample: Sample, longest: int | None = None) -> None:
        from scipy.fft import next_fast_len

        depth, height, width = sample.shape
        self._sample = sample
        side = min(height, width)
        self._reach = max(min(longest or MAX_DISTANCE, side // 2), 1)
        count = len(sample.classes)
        # Spectra of at most `SPECTRA_BYTES`, if the image is not too wide for that.
        row_bytes = 8 * (width + self._reach) * (count + 1)
        rows = SPECTRA_BYTES // row_bytes - 2 * self._reach
        self._strip = min(max(rows, LEAST_STRIP), STRIP, height)
        self._padded = (
            next_fast_len(self._strip + 2 * self._reach, real=True),
            next_fast_len(width + self._reach, real=True),
        )
        chosen = np.linspace(0, depth - 1, min(depth, MAX_PLANES))
        self._chosen = {round(z) for z in chosen}
        self._planes_used = 0
        # One more for the region itself.
        half = self._padded[1] // 2 + 1
        self._spectra = np.zeros((count + 1, self._padded[0], half), complex)
        self._pixels = np.zeros(count, np.int64)
        self._lines = _choose_lines(sample)
        self._columns: list[Array] = []
        self._z = 0

    def add(self, codes: Array) -> None:
        """Add the next plane."""
        count = len(self._pixels)
        self._pixels += np.bincount(codes.ravel(), minlength=IGNORE + 1)[:count]
        if self._z in self._chosen:
            self._add_plane(codes)
        if self._sample.is_volume:
            step_y, step_x = self._lines
            self._columns.append(codes[::step_y, ::step_x].copy())
        self._z += 1

    def result(self) -> dict[str, Correlation]:
        """Return the correlation of each class, after the last plane."""
        in_plane = self._transform_back()
        along_z = self._correlate_columns() if self._sample.is_volume else None
        total = int(self._pixels.sum()) or 1
        step_z, step_y, step_x = self._sample.spacing
        reach = self._reach
        offsets_y = np.arange(reach + 1) * step_y
        offsets_x = np.arange(-reach, reach + 1) * step_x
        distance = np.hypot(offsets_y[:, None], offsets_x)
        bins = np.rint(distance / step_x).astype(int)
        # Beyond that distance, not all directions are measured.
        limit = int(reach * min(step_y, step_x) / step_x)
        names = self._sample.classes
        correlations = {}
        for index, name in enumerate(names):
            pairs, all_pairs = in_plane[index], in_plane[-1]
            by_axis = {
                "y": _divide(pairs[:, reach], all_pairs[:, reach]),
                "x": _divide(pairs[0, reach:], all_pairs[0, reach:]),
            }
            distances = {"y": offsets_y, "x": offsets_x[reach:]}
            where, weights = [bins.ravel()], [pairs.ravel()]
            all_weights, radii = [all_pairs.ravel()], [distance.ravel()]
            if along_z is not None:
                z = np.arange(along_z.shape[1]) * step_z
                by_axis["z"] = _divide(along_z[index], along_z[-1])
                distances["z"] = z
                where.append(np.rint(z / step_x).astype(int))
                weights.append(along_z[index])
                all_weights.append(along_z[-1])
                radii.append(z)
            place = np.concatenate(where)
            below = place <= limit
            place = place[below]
            counted = np.concatenate(all_weights)[below]
            found = np.concatenate(weights)[below]
            totals = np.bincount(place, counted)
            moments = np.bincount(place, counted * np.concatenate(radii)[below])
            correlations[name] = Correlation(
                share=int(self._pixels[index]) / total,
                distances=distances,
                by_axis=by_axis,
                radii=_divide(moments, totals),
                mean=_divide(np.bincount(place, found), totals),
                unit=self._sample.unit,
            )
        return correlations

    def _add_plane(self, codes: Array) -> None:
        """Add the pairs of pixels in a plane.

        Displacements go downwards, and to both sides.
        """
        from scipy.fft import rfft2

        height = codes.shape[0]
        for top in range(0, height, self._strip):
            strip = codes[top : top + self._strip]
            # The partners lie in the strip, and up to `reach` rows below it.
            partners = codes[top : top + self._strip + self._reach]
            for index in range(len(self._spectra)):
                if index < len(self._pixels):
                    first, second = strip == index, partners == index
                else:
                    first, second = strip != IGNORE, partners != IGNORE
                # Single precision is exact enough for counts, and twice as fast.
                one = rfft2(first.astype(np.float32), self._padded)
                other = one
                if len(partners) > len(strip):
                    other = rfft2(second.astype(np.float32), self._padded)
                self._spectra[index] += one.conj() * other

    def _transform_back(self) -> Array:
        """Pairs by class, displacement along Y from 0, and along X from -reach."""
        from scipy.fft import irfft2

        reach = self._reach
        parts = []
        for spectrum in self._spectra:
            pairs = np.rint(irfft2(spectrum, self._padded))
            rows = pairs[: reach + 1]
            parts.append(np.concatenate([rows[:, -reach:], rows[:, : reach + 1]], 1))
        return np.stack(parts)

    def _correlate_columns(self) -> Array:
        """Pairs by class and displacement along Z."""
        from scipy.fft import irfft, next_fast_len, rfft

        lines = np.stack(self._columns)
        self._columns = []
        depth = len(lines)
        step_z, _, step_x = self._sample.spacing
        longest = max(min(depth // 2, round(self._reach * step_x / step_z)), 1)
        lines = lines.reshape(depth, -1).T
        length = next_fast_len(depth + longest, real=True)
        pairs = np.zeros((len(self._spectra), longest + 1))
        batch = max(2**22 // length, 1)
        for start in range(0, len(lines), batch):
            part = lines[start : start + batch]
            for index in range(len(pairs)):
                is_class = part != IGNORE
                if index < len(self._pixels):
                    is_class = part == index
                power = np.abs(rfft(is_class.astype(float), length, axis=1)) ** 2
                pairs[index] += irfft(power.sum(axis=0), length)[: longest + 1]
        return np.rint(pairs)


def correlate(sample: Sample, longest: int | None = None) -> dict[str, Correlation]:
    """Measure the two-point correlation of each class; see `CorrelationCounter`."""
    counter = CorrelationCounter(sample, longest)
    for plane in sample.planes():
        counter.add(plane)
    return counter.result()


def _choose_lines(sample: Sample) -> tuple[int, int]:
    """Steps along Y and X of the lines along Z."""
    depth, height, width = sample.shape
    excess = depth * height * width / MAX_LINE_PIXELS
    step = max(math.ceil(math.sqrt(excess)), 1)
    return min(step, height), min(step, width)


def _divide(part: Array, whole: Array) -> Array:
    result: Array = np.full(whole.shape, np.nan)
    np.divide(part, whole, out=result, where=whole > 0)
    return result


def _listed(values: Array) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values]
