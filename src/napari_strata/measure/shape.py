"""All measures of shape of a sample, from one pass over its planes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from napari_strata.core.classes import IGNORE
from napari_strata.core.image import Array
from napari_strata.measure.chords import ChordCounter, Chords
from napari_strata.measure.connected import Connection, ConnectionCounter
from napari_strata.measure.correlation import Correlation, CorrelationCounter
from napari_strata.measure.local_fraction import LocalFractionCounter, LocalFractions
from napari_strata.measure.rock import Rock, estimate_rock
from napari_strata.measure.sample import Sample
from napari_strata.measure.surface import Surface, SurfaceCounter

SINGLE_PLANE = (
    "A single plane does not show which pieces are connected above or below it; give a"
    " volume with an axis Z."
)


@dataclass(frozen=True)
class Shape:
    """Measures of shape; each mapping has the names of the classes as keys.

    Parameters
    ----------
    connected
        Empty for a single plane (see `why_not_connected`).
    rock
        Error of the fractions because the specimen is small.
    """

    connected: Mapping[str, Connection]
    why_not_connected: str
    surface: Mapping[str, Surface]
    chords: Mapping[str, Mapping[str, Chords]]
    correlation: Mapping[str, Correlation]
    local: LocalFractions
    rock: Mapping[str, Rock]
    unit: str

    def to_dict(self, *, rock: bool = False) -> dict[str, Any]:
        """Return plain values, for JSON.

        Parameters
        ----------
        rock
            Include the error because the specimen is small, which is asked for only.
        """
        connected: dict[str, Any] = {k: v.to_dict() for k, v in self.connected.items()}
        if self.why_not_connected:
            connected = {"why": self.why_not_connected}
        chords = {}
        for name, by_axis in self.chords.items():
            chords[name] = {axis: value.to_dict() for axis, value in by_axis.items()}
        facts = {
            "unit": self.unit,
            "connected": connected,
            "surface": {k: v.to_dict() for k, v in self.surface.items()},
            "chords": chords,
            "correlation": {k: v.to_dict() for k, v in self.correlation.items()},
            "local": self.local.to_dict(),
        }
        if rock:
            facts["rock"] = {k: v.to_dict() for k, v in self.rock.items()}
        return facts


class ShapeCounter:
    """Measures of shape, from planes that are added in order along Z.

    Parameters
    ----------
    side
        Side of the cubes for local fractions; see `LocalFractionCounter`.
    """

    def __init__(self, sample: Sample, *, side: float | None = None) -> None:
        self._sample = sample
        self._connections = ConnectionCounter(sample) if sample.is_volume else None
        self._surfaces = SurfaceCounter(sample)
        self._chords = ChordCounter(sample)
        self._correlations = CorrelationCounter(sample)
        self._local = LocalFractionCounter(sample, side)
        self._pixels = 0

    def add(self, codes: Array) -> None:
        """Add the next plane: class indices, `IGNORE` outside the region."""
        self._pixels += int(np.count_nonzero(codes != IGNORE))
        if self._connections is not None:
            self._connections.add(codes)
        self._surfaces.add(codes)
        self._chords.add(codes)
        self._correlations.add(codes)
        self._local.add(codes)

    def result(self) -> Shape:
        """Return the measures, after the last plane."""
        sample = self._sample
        correlations = self._correlations.result()
        spacing = sample.spacing if sample.is_volume else sample.spacing[1:]
        pixel = math.prod(spacing)
        rock = {}
        for name, correlation in correlations.items():
            rock[name] = estimate_rock(correlation, pixels=self._pixels, pixel=pixel)
        connected: Mapping[str, Connection] = {}
        if self._connections is not None:
            connected = self._connections.result()
        return Shape(
            connected=connected,
            why_not_connected="" if sample.is_volume else SINGLE_PLANE,
            surface=self._surfaces.result(),
            chords=self._chords.result(),
            correlation=correlations,
            local=self._local.result(),
            rock=rock,
            unit=sample.unit,
        )


def measure_shape(sample: Sample, *, side: float | None = None) -> Shape:
    """Measure the shape of each class; see `Shape`."""
    counter = ShapeCounter(sample, side=side)
    for plane in sample.planes():
        counter.add(plane)
    return counter.result()
