"""From the specimen to the rock: the error of a fraction because the specimen is small.

The integral range (Lantuejoul 1991, doi:10.1111/j.1365-2818.1991.tb03175.x) is the
integral of the covariance over all displacements, divided by the variance of a point.
It is the volume of one independent piece: a specimen of the volume V, which is long in
every direction, is worth V / integral range independent points. Of a thin one the share
of each displacement that lies within it counts too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from napari_strata.core.image import Array
from napari_strata.measure.correlation import Correlation

INDEPENDENT = 0.01
"""Correlation at which points are taken for independent: noise is left beyond it."""

DIRECTIONS = 500
"""Directions over which displacements are averaged."""

LEAST_PIECES = 30
"""Independent pieces that an interval needs."""


@dataclass(frozen=True)
class Rock:
    """Interval of a fraction for the rock that a specimen was taken from.

    It is the error because the specimen is small. Errors of the labels come on top.

    Parameters
    ----------
    share
        Fraction in the specimen.
    integral_range
        Volume, or area in a plane, of one independent piece, in the unit of the pixel
        size; None if the correlation does not end within the image.
    pieces
        Independent pieces in the specimen: the effective size of the sample.
    half_width
        Of the 95 % interval; None if there is none (see `why`).
    """

    share: float
    integral_range: float | None
    pieces: float | None
    half_width: float | None
    why: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def estimate_rock(
    correlation: Correlation,
    *,
    pixels: int,
    pixel: float,
    sides: Sequence[float] = (),
) -> Rock:
    """Estimate the interval of a class's fraction in the rock.

    Parameters
    ----------
    correlation
        Two-point correlation of the class.
    pixels
        Pixels of the region.
    pixel
        Volume of a pixel, or its area in a single plane.
    sides
        Lengths of the image along its axes; empty if it is long in every direction.
    """
    share = correlation.share
    dimensions = 3 if "z" in correlation.by_axis else 2
    if not 0 < share < 1:
        return Rock(share, None, None, None, "the specimen has one class only")
    end = _find_end(correlation)
    if end is None:
        why = (
            "too few grains: the two-point correlation does not end within"
            f" {correlation.radii[-1]:.3g} {correlation.unit}, the longest distance"
            " measured; measure a larger specimen"
        )
        return Rock(share, None, None, None, why)
    range_ = _integrate(correlation, end, dimensions, pixel)
    pieces = pixels * pixel / _integrate(correlation, end, dimensions, pixel, sides)
    if pieces < LEAST_PIECES:
        why = (
            f"too few grains: the specimen holds {pieces:.0f} independent pieces and"
            f" {LEAST_PIECES} are needed; measure a larger specimen"
        )
        return Rock(share, range_, pieces, None, why)
    half_width = 1.96 * math.sqrt(share * (1 - share) / pieces)
    return Rock(share, range_, pieces, half_width, "")


def _find_end(correlation: Correlation) -> int | None:
    """Index of the first distance at which points are independent."""
    limit = INDEPENDENT * correlation.share * (1 - correlation.share)
    # Not finite where the region has no two points at that distance.
    values = np.append(correlation.covariance, np.nan)
    end = int(np.flatnonzero((values <= limit) | np.isnan(values))[0])
    return end if values[end] <= limit else None


def _integrate(
    correlation: Correlation,
    end: int,
    dimensions: int,
    pixel: float,
    sides: Sequence[float] = (),
) -> float:
    """Integral of the normalised covariance over a ball, or disc, up to `end`.

    With `sides`, each displacement counts by the share of the image that it leaves
    inside.
    """
    radii = correlation.radii[:end]
    variance = correlation.share * (1 - correlation.share)
    values = correlation.covariance[:end] / variance
    # Displacements from the pixel itself, in shells between the middles of two radii.
    inner = (radii[1:] + radii[:-1]) / 2
    edges: Array = np.concatenate([inner, [correlation.radii[end]]])
    factor = math.pi if dimensions == 2 else 4 * math.pi / 3
    volumes = factor * edges**dimensions
    shells = np.diff(volumes, prepend=0)
    if sides:
        values = values * _shares_inside(radii, sides)
    return max(float(shells @ values), pixel)


def _shares_inside(radii: Array, sides: Sequence[float]) -> Array:
    """Share of an image that a displacement leaves inside, over all directions."""
    number = np.arange(DIRECTIONS) + 0.5
    angle = math.pi * (1 + math.sqrt(5)) * number
    if len(sides) == 2:
        angle = 2 * math.pi * number / DIRECTIONS
        directions = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    else:
        # Points of a spiral, which lie evenly on a sphere.
        height = 1 - 2 * number / DIRECTIONS
        width = np.sqrt(1 - height**2)
        parts = [height, width * np.cos(angle), width * np.sin(angle)]
        directions = np.stack(parts, axis=1)
    moved = radii[:, None, None] * np.abs(directions) / np.asarray(sides)
    shares: Array = (1 - moved).clip(0).prod(axis=-1).mean(axis=-1)
    return shares
