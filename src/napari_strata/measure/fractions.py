"""Fractions of the classes: counts, and an interval from a model's own errors.

The estimate is a difference estimator, as in prediction-powered inference (Angelopoulos
et al. 2023, https://doi.org/10.1126/science.adi6000): the counted share plus the mean
of true share minus predicted share over the validation planes of the model.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from napari_strata.core.classes import IGNORE
from napari_strata.core.image import Array
from napari_strata.core.residuals import RegionBlocks, Residuals
from napari_strata.core.text import format_count

LEAST_PLANES = 2
LEAST_PIECES = 30
LEAST_PIXELS = 2000
LEAST_LABELLED = 0.9
"""What validation must have for an interval: planes; connected pieces and pixels of the
class; labelled share of the region."""

BLOCK_FACTOR = 3.0
"""Factor of the variance of blocks, because neighbouring blocks are alike."""

NO_MODEL = (
    "no model was given: name the model that predicted these labels (model=, --model)"
)
NO_RESIDUALS = (
    "the model has no errors of validation blocks: it was trained by an earlier"
    " version, stopped before its end, or had nothing to validate on; train it again,"
    " or resume it to its end"
)


@dataclass(frozen=True)
class Fraction:
    """Share of a class in the labelled pixels of a region.

    Parameters
    ----------
    count
        Counted share, 0 to 1.
    estimate
        Share that is corrected by the mean error of the model; `count` without an
        interval.
    low, high
        95 % interval; None where there is none.
    interval
        ``model`` if the interval comes from the model's errors, or ``none``.
    why
        What the interval rests on, or why there is none.
    pixels
        Pixels that were counted.
    """

    count: float
    estimate: float
    low: float | None
    high: float | None
    interval: Literal["model", "none"]
    why: str
    pixels: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        values = asdict(self)
        del values["pixels"]
        return values


class ClassCounter:
    """Pixels of each class, plane by plane.

    Parameters
    ----------
    classes
        Number of classes.
    along
        Axis of the profile: T or Z (a count for each plane), Y or X (for each row or
        column); empty for none.
    length
        Size along it.
    """

    def __init__(self, classes: int, along: str = "", length: int = 0) -> None:
        self.totals = np.zeros(classes, np.int64)
        self.profile = np.zeros((length, classes), np.int64)
        self._along = along

    def add(self, codes: Array, index: int = 0) -> None:
        """Add a plane (Y, X) of class indices, `IGNORE` where nothing counts.

        Parameters
        ----------
        index
            Position of the plane along T or Z.
        """
        counts = np.bincount(codes.ravel(), minlength=IGNORE + 1)[: len(self.totals)]
        self.totals += counts
        if self._along in ("T", "Z"):
            self.profile[index] += counts
        elif self._along:
            across = 1 if self._along == "Y" else 0
            for number in range(len(self.totals)):
                self.profile[:, number] += (codes == number).sum(axis=across)


@dataclass(frozen=True)
class Spread:
    """Errors of a model for one class: what the interval is made of.

    Parameters
    ----------
    mean
        Mean over validation planes of true share minus predicted share.
    within
        Pooled variance of the errors of blocks in one plane (s2).
    between
        Variance between planes beyond that of their blocks (tau2).
    planes, blocks
        Number of planes, and of blocks as if all were of one size (S and M).
    block_pixels
        Pixels of such a block.
    """

    mean: float
    within: float
    between: float
    planes: int
    blocks: float
    block_pixels: float

    @classmethod
    def of(cls, counts: RegionBlocks, index: int) -> Spread:
        """Compute it for one class.

        Blocks weigh as many as their pixels: those on the edge of a specimen are
        small. With blocks of one size, all is as in the textbook.
        """
        pixels = counts.pixels
        difference = counts.true[..., index] - counts.predicted[..., index]
        by_plane = difference.sum(axis=1) / pixels.sum(axis=1)
        block_pixels = (pixels**2).sum() / pixels.sum()
        blocks = pixels.sum() / block_pixels
        planes = len(pixels)
        shares = difference / np.maximum(pixels, 1)
        squares = pixels / block_pixels * (shares - by_plane[:, None]) ** 2
        within = squares.sum() / (blocks - planes)
        between = by_plane.var(ddof=1) - within / (blocks / planes)
        return cls(
            float(by_plane.mean()),
            float(within),
            max(0.0, float(between)),
            planes,
            float(blocks),
            float(block_pixels),
        )

    def half_width(self, blocks: float, *, planes: int = 1) -> float:
        """Half width of the 95 % interval.

        Parameters
        ----------
        blocks
            Blocks of the target (m).
        planes
            Planes of the target that are far apart (S_t).
        """
        from scipy import stats

        variance = self.between * (1 / planes + 1 / self.planes)
        variance += BLOCK_FACTOR * self.within * (1 / blocks + 1 / self.blocks)
        quantile = float(stats.t.ppf(0.975, self.blocks - self.planes))
        return quantile * math.sqrt(variance)


@dataclass(frozen=True, eq=False)
class Estimator:
    """Fractions with intervals, from the errors of a model.

    Parameters
    ----------
    counts
        Blocks of validation planes that lie apart.
    classes
        Names of the model's classes.
    merged
        Mean number of validation planes that were near each other and count as one.
    side
        Side of a block in pixels.
    refusal
        Why no class has an interval; empty if some may.
    """

    counts: RegionBlocks | None = None
    classes: tuple[str, ...] = ()
    merged: float = 1.0
    side: float = 1.0
    refusal: str = ""

    @classmethod
    def of(cls, residuals: Residuals | None, kind: str) -> Estimator:
        """Take the blocks of a region of interest.

        Parameters
        ----------
        kind
            Kind of the region: ``all``, ``specimen`` or ``mask``.
        """
        if residuals is None:
            return cls(refusal=NO_RESIDUALS)
        if kind not in residuals.regions:
            measured = " and ".join(residuals.regions)
            return cls(
                refusal=f"the region ({kind}) differs from that of the validation "
                f"({measured}), and errors elsewhere may differ; measure that one"
            )
        counts = residuals.independent(kind)
        has_pixels = counts.pixels.sum(axis=1) > 0
        if not has_pixels.all():
            counts = counts.merge([[int(i)] for i in np.flatnonzero(has_pixels)])
        planes = len(counts.pixels)
        if planes < LEAST_PLANES:
            near = ""
            if len(residuals.planes) > 1:
                near = f" ({len(residuals.planes)} planes next to each other are one)"
            return cls(
                refusal=f"the model was validated on one plane{near}, which does not "
                "show how its error changes between planes; validate on two or more "
                "that lie apart"
            )
        labelled = counts.pixels.sum() / counts.area.sum()
        if labelled < LEAST_LABELLED:
            return cls(
                refusal=f"only {100 * labelled:.0f} % of the validation planes is "
                f"labelled, and {100 * LEAST_LABELLED:.0f} % are needed: painted "
                "strokes do not show the errors at edges; label whole planes"
            )
        return cls(
            counts, residuals.classes, len(residuals.planes) / planes, residuals.side
        )

    def refuse(self, reason: str) -> Estimator:
        """Return it without intervals, unless there are none already."""
        return self if self.refusal else replace(self, refusal=reason)

    def estimate(
        self, name: str, pixels: int, total: int, *, planes: int, depth: float
    ) -> Fraction:
        """Return the fraction of a class.

        Parameters
        ----------
        pixels, total
            Pixels of the class, and all labelled pixels, in the region.
        planes
            Planes that were counted, T included.
        depth
            Their thickness together, in pixels of X.
        """
        count = pixels / total
        why = self._refuse(name)
        if why or self.counts is None:
            return Fraction(count, count, None, None, "none", why, pixels)
        spread = Spread.of(self.counts, self.classes.index(name))
        # Neighbouring planes show the same grains: a layer of them as thick as a block
        # is one plane.
        layers = min(max(depth / self.side, 1.0), planes)
        per_plane = spread.block_pixels / self.merged
        blocks = max(total / planes * layers / per_plane, 1.0)
        half = spread.half_width(blocks)
        estimate = min(max(count + spread.mean, 0.0), 1.0)
        return Fraction(
            count,
            estimate,
            max(estimate - half, 0.0),
            min(estimate + half, 1.0),
            "model",
            f"from the model's errors in {format_count(spread.planes, 'plane')} and "
            f"{spread.blocks:.0f} blocks of its validation",
            pixels,
        )

    def _refuse(self, name: str) -> str:
        """Say why a class has no interval; empty if it has one."""
        if self.refusal or self.counts is None:
            return self.refusal
        if name not in self.classes:
            return f"the model has no class {name!r}"
        index = self.classes.index(name)
        pieces = int(self.counts.pieces[:, index].sum())
        true_pixels = int(self.counts.true[..., index].sum())
        if pieces < LEAST_PIECES or true_pixels < LEAST_PIXELS:
            return (
                f"validation has {format_count(pieces, 'piece')} and "
                f"{format_count(true_pixels, 'pixel')} of this class; needed are "
                f"{LEAST_PIECES} and {LEAST_PIXELS}: label more of it for validation"
            )
        return ""
