"""All measures of shape of a sample, from one pass over its planes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

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

T = TypeVar("T")
Row = dict[str, Any]

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
            "connected": connected,
            "surface": {k: v.to_dict() for k, v in self.surface.items()},
            "chords": chords,
            "correlation": {k: v.to_dict() for k, v in self.correlation.items()},
            "local": self.local.to_dict(),
        }
        if rock:
            facts["rock"] = {k: v.to_dict() for k, v in self.rock.items()}
        return facts

    def tables(self, region: str, *, rock: bool = False) -> dict[str, list[Row]]:
        """Return the rows of each CSV file, by its name."""
        tables = {
            "connected.csv": self._connected_rows(),
            "surface.csv": self._surface_rows(),
            "chords.csv": self._chord_rows(),
            "correlation.csv": self._correlation_rows(),
            "cubes.csv": self._cube_rows(),
        }
        if rock:
            tables["rock.csv"] = [
                {"class": name} | value.to_dict() for name, value in self.rock.items()
            ]
        filled = {}
        for file, rows in tables.items():
            if rows:
                filled[file] = [{"region": region} | row for row in rows]
        return filled

    def _connected_rows(self) -> list[Row]:
        rows = []
        for name, connection in self.connected.items():
            row = {"class": name} | connection.to_dict()
            through, why = row.pop("through"), row.pop("why")
            for axis in ("z", "y", "x"):
                row[f"through {axis}"] = through[axis]
            row["why"] = "; ".join(why.values())
            rows.append(row)
        return rows

    def _surface_rows(self) -> list[Row]:
        rows = []
        for name, surface in self.surface.items():
            row: Row = {"class": name}
            row[f"specific (1/{self.unit})"] = surface.specific
            row[f"of class (1/{self.unit})"] = surface.of_class
            for axis, value in surface.by_axis.items():
                row[f"{axis} (1/{self.unit})"] = value
            for other in self.surface:
                row[f"contact {other} (1/{self.unit})"] = surface.contact.get(other)
            rows.append(row)
        return rows

    def _chord_rows(self) -> list[Row]:
        rows = []
        for name, by_axis in self.chords.items():
            for axis, chords in by_axis.items():
                for length, count in zip(chords.lengths, chords.counts, strict=True):
                    if count:
                        rows.append(
                            {
                                "class": name,
                                "axis": axis,
                                f"length ({self.unit})": float(length),
                                "count": int(count),
                            }
                        )
        return rows

    def _correlation_rows(self) -> list[Row]:
        rows = []
        for name, correlation in self.correlation.items():
            lines = {
                axis: (correlation.distances[axis], values)
                for axis, values in correlation.by_axis.items()
            }
            lines["mean"] = (correlation.radii, correlation.mean)
            for axis, (distances, values) in lines.items():
                for distance, value in zip(distances, values, strict=True):
                    rows.append(
                        {
                            "class": name,
                            "axis": axis,
                            f"distance ({self.unit})": float(distance),
                            "s2": None if math.isnan(value) else float(value),
                        }
                    )
        return rows

    def _cube_rows(self) -> list[Row]:
        rows = []
        for name, points in self.local.curves.items():
            rows += [{"class": name} | point.to_dict() for point in points]
        return rows


class ShapeCounter:
    """Measures of shape, from planes that are added in order along Z.

    Parameters
    ----------
    side
        Side of the cubes for local fractions; see `LocalFractionCounter`.
    names
        Names of the classes to report; all when left out.
    """

    def __init__(
        self,
        sample: Sample,
        *,
        side: float | None = None,
        names: Sequence[str] | None = None,
    ) -> None:
        self._sample = sample
        self._names = tuple(sample.classes if names is None else names)
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
        lengths = sample.shape[-len(spacing) :]
        sides = [n * step for n, step in zip(lengths, spacing, strict=True)]
        rock = {}
        for name in self._names:
            rock[name] = estimate_rock(
                correlations[name], pixels=self._pixels, pixel=pixel, sides=sides
            )
        connected: Mapping[str, Connection] = {}
        if self._connections is not None:
            connected = self._select(self._connections.result())
        local = self._local.result()
        return Shape(
            connected=connected,
            why_not_connected="" if sample.is_volume else SINGLE_PLANE,
            surface=self._select(self._surfaces.result()),
            chords=self._select(self._chords.result()),
            correlation=self._select(correlations),
            local=replace(
                local,
                fractions=self._select(local.fractions),
                curves=self._select(local.curves),
            ),
            rock=rock,
            unit=sample.unit,
        )

    def _select(self, by_class: Mapping[str, T]) -> dict[str, T]:
        return {name: by_class[name] for name in self._names}


def measure_shape(sample: Sample, *, side: float | None = None) -> Shape:
    """Measure the shape of each class; see `Shape`."""
    counter = ShapeCounter(sample, side=side)
    for plane in sample.planes():
        counter.add(plane)
    return counter.result()
