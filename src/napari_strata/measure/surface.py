"""Specific surface of each class, from the faces between pixels of two classes."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from napari_strata.core.classes import IGNORE
from napari_strata.core.image import Array
from napari_strata.measure.sample import AXES, Sample


@dataclass(frozen=True)
class Surface:
    """Surface of one class inside the region, in the inverse of the pixel unit.

    A line along an axis crosses a surface `n` times a unit of length; an isotropic
    surface then has the area 2 n in a unit of volume (Saltykov 1958). The mean over
    the three axes is 2/3 of the faces of pixels; faces of pixels that are not cubes
    count by their area. For a surface with a preferred direction the three values
    differ, and their mean is biased. Of a single plane, it is the length of the
    boundary in a unit of area, pi/2 n.

    Parameters
    ----------
    specific
        Surface area in a unit of the region's volume: the mean of `by_axis`.
    of_class
        Surface area in a unit of the class's volume.
    by_axis
        The same from the faces across each axis.
    contact
        Area shared with each other class, in a unit of the region's volume.
    """

    specific: float
    of_class: float
    by_axis: dict[str, float]
    contact: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


class SurfaceCounter:
    """Surface of each class, from planes that are added in order along Z."""

    def __init__(self, sample: Sample) -> None:
        self._sample = sample
        self._before: Array | None = None
        count = len(sample.classes)
        self._faces = {axis: np.zeros((count, count)) for axis in sample.axes}
        self._pairs = dict.fromkeys(sample.axes, 0)
        self._pixels = np.zeros(count, np.int64)

    def add(self, codes: Array) -> None:
        """Add the next plane."""
        count = len(self._pixels)
        self._pixels += np.bincount(codes.ravel(), minlength=IGNORE + 1)[:count]
        self._add_pairs("y", codes[:-1], codes[1:])
        self._add_pairs("x", codes[:, :-1], codes[:, 1:])
        if self._before is not None:
            self._add_pairs("z", self._before, codes)
        self._before = codes

    def result(self) -> dict[str, Surface]:
        """Return the surface of each class, after the last plane."""
        factor = 2.0 if self._sample.is_volume else math.pi / 2
        densities = {}
        for axis, faces in self._faces.items():
            step = self._sample.spacing[AXES.index(axis)]
            length = self._pairs[axis] * step
            densities[axis] = factor * (faces + faces.T) / (length or 1.0)
        mean = np.mean(list(densities.values()), axis=0)
        total = int(self._pixels.sum()) or 1
        names = self._sample.classes
        surfaces = {}
        for index, name in enumerate(names):
            share = self._pixels[index] / total
            specific = float(mean[index].sum())
            contact = {}
            for other, row_name in enumerate(names):
                if other != index:
                    contact[row_name] = float(mean[index, other])
            surfaces[name] = Surface(
                specific=specific,
                of_class=specific / share if share else 0.0,
                by_axis={a: float(d[index].sum()) for a, d in densities.items()},
                contact=contact,
            )
        return surfaces

    def _add_pairs(self, axis: str, first: Array, second: Array) -> None:
        inside = (first != IGNORE) & (second != IGNORE)
        self._pairs[axis] += int(np.count_nonzero(inside))
        differ = inside & (first != second)
        count = len(self._pixels)
        codes = first[differ].astype(np.intp) * count + second[differ]
        faces = np.bincount(codes, minlength=count * count)
        self._faces[axis] += faces.reshape(count, count)


def measure_surfaces(sample: Sample) -> dict[str, Surface]:
    """Measure the specific surface of each class; see `Surface`."""
    counter = SurfaceCounter(sample)
    for plane in sample.planes():
        counter.add(plane)
    return counter.result()
