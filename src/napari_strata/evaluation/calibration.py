"""Calibration: agreement of confidence and accuracy, and the temperature for it.

numpy and scipy only. Logits are float (N, K), one row for each pixel; labels are class
indices (N,).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp, softmax

from napari_strata.core.metrics import none_if_nan
from napari_strata.core.text import describe_calibration

Array = np.ndarray[Any, Any]

BINS = 15
"""Count of the bins of confidence, as in Guo et al. 2017."""

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.1, 10.0
"""Range of temperatures; at its ends, the pixels were too few or too easy."""

MIN_PIXELS = 200
"""Smallest count of labelled pixels for which a temperature is fitted."""

NOT_INDEPENDENT = (
    "the calibration error is measured on the pixels that the temperature was fitted"
    " to, and is too small: there is too little validation data for two halves"
)


@dataclass(frozen=True)
class Bin:
    """Pixels whose confidence lies in (low, high].

    Parameters
    ----------
    confidence, accuracy
        Mean confidence, and share of pixels that are right; None without pixels.
    count
        Count of the pixels.
    """

    low: float
    high: float
    confidence: float | None
    accuracy: float | None
    count: int


@dataclass(frozen=True)
class Reliability:
    """Accuracy of a network at each confidence, from 0 to 1.

    Parameters
    ----------
    class_ece
        Calibration error of each class, 0..1: mean over pixels of the distance between
        the mean probability of the class and its share among the labels, in bins of
        that probability.
    """

    bins: tuple[Bin, ...]
    class_ece: tuple[float, ...] = ()

    @property
    def pixels(self) -> int:
        """Count of the pixels."""
        return sum(each.count for each in self.bins)

    @property
    def ece(self) -> float:
        """Expected calibration error, 0..1; NaN without pixels.

        Mean over pixels of the distance between accuracy and confidence of their bin:
        the sum over bins of ``count / pixels * |accuracy - confidence|``, in 15 equal
        bins of confidence (Guo, Pleiss, Sun and Weinberger 2017, equation 3,
        https://arxiv.org/abs/1706.04599; after Naeini, Cooper and Hauskrecht 2015).
        """
        if not self.pixels:
            return math.nan
        gaps = []
        for each in self.bins:
            gap = abs((each.accuracy or 0.0) - (each.confidence or 0.0))
            gaps.append(each.count * gap)
        return math.fsum(gaps) / self.pixels

    @property
    def classwise_ece(self) -> float:
        """Class-wise expected calibration error, 0..1; NaN without pixels.

        Mean of `class_ece` over the classes (Kull, Perello-Nieto, Kaengsepp, Silva
        Filho, Song and Flach 2019, "Beyond temperature scaling",
        https://arxiv.org/abs/1910.12656). Unlike `ece`, it also judges the
        probabilities of the classes that are not chosen.
        """
        if not self.pixels:
            return math.nan
        return math.fsum(self.class_ece) / len(self.class_ece)

    def as_dict(self, names: Sequence[str]) -> dict[str, Any]:
        """Return plain data, NaN as None.

        Parameters
        ----------
        names
            Names of the classes.
        """
        return {
            "ece": none_if_nan(self.ece),
            "classwise_ece": none_if_nan(self.classwise_ece),
            "class_ece": {
                name: none_if_nan(value)
                for name, value in zip(names, self.class_ece, strict=True)
            },
            "pixels": self.pixels,
            "bins": [asdict(each) for each in self.bins],
        }

    def describe(self) -> str:
        """Describe the errors in words; see `text.describe_calibration`."""
        return describe_calibration(self.ece, self.classwise_ece)


class ReliabilityTally:
    """Sums for a `Reliability` over pixels that come plane by plane.

    Parameters
    ----------
    classes
        Count of the classes.
    bins
        Count of the bins.
    """

    def __init__(self, classes: int, bins: int = BINS) -> None:
        self._bins = bins
        # Count, sum of probabilities and count of right ones: for the class that is
        # chosen, then for each class.
        self._sums = np.zeros((classes + 1, 3, bins))

    def add(self, probabilities: Array, labels: Array) -> None:
        """Count pixels.

        Parameters
        ----------
        probabilities
            (N, K).
        labels
            Class indices (N,).
        """
        if not len(labels):
            return
        chosen = probabilities.argmax(axis=1)
        self._add(0, probabilities.max(axis=1), chosen == labels)
        for k in range(probabilities.shape[1]):
            self._add(k + 1, probabilities[:, k], labels == k)

    def _add(self, row: int, probabilities: Array, right: Array) -> None:
        values = probabilities.astype(np.float64)
        indices = np.clip(np.ceil(values * self._bins).astype(int) - 1, 0, None)
        indices = indices.clip(max=self._bins - 1)
        for i, weights in enumerate((None, values, right)):
            self._sums[row, i] += np.bincount(indices, weights, self._bins)

    def result(self) -> Reliability:
        """Return the reliability of all pixels so far."""
        bins = []
        for i, (count, confidence, right) in enumerate(self._sums[0].T.tolist()):
            bins.append(
                Bin(
                    low=i / self._bins,
                    high=(i + 1) / self._bins,
                    confidence=confidence / count if count else None,
                    accuracy=right / count if count else None,
                    count=int(count),
                )
            )
        confidence_sums, right_sums = self._sums[1:, 1], self._sums[1:, 2]
        pixels = self._sums[0, 0].sum()
        gaps = np.abs(confidence_sums - right_sums).sum(axis=1)
        class_ece = gaps / pixels if pixels else np.full(len(gaps), math.nan)
        return Reliability(tuple(bins), tuple(class_ece.tolist()))


@dataclass(frozen=True)
class Fit:
    """A temperature, and the reliability without and with it.

    Parameters
    ----------
    fitted_pixels
        Count of the pixels that the temperature was fitted to.
    independent
        True if the reliability is measured on other pixels than these.
    note
        Reason why the temperature is 1 or at its limit; else empty.
    """

    temperature: float
    before: Reliability
    after: Reliability
    fitted_pixels: int = 0
    independent: bool = False
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return plain data, NaN as None."""
        return {
            "temperature": self.temperature,
            "ece_before": none_if_nan(self.before.ece),
            "ece_after": none_if_nan(self.after.ece),
            "classwise_ece_before": none_if_nan(self.before.classwise_ece),
            "classwise_ece_after": none_if_nan(self.after.classwise_ece),
            "pixels": self.before.pixels,
            "fitted_pixels": self.fitted_pixels,
            "independent": self.independent,
            "note": self.note,
            "bins": {
                "before": [asdict(each) for each in self.before.bins],
                "after": [asdict(each) for each in self.after.bins],
            },
        }


def calibrate(logits: Array, labels: Array, checks: Array | None = None) -> Fit:
    """Fit a temperature to some pixels, and measure its effect on others.

    Rows that are not finite are left out. With fewer than `MIN_PIXELS` pixels, or
    pixels of one class only, the temperature is 1.

    Parameters
    ----------
    checks
        True for the pixels to measure on, (N,); the others fit. Where either are too
        few, or without `checks`, all pixels do both: one number cannot overfit
        thousands of them, but their error is smaller than that of other pixels.
    """
    finite = np.isfinite(logits).all(axis=1)
    scores, truth = logits[finite].astype(np.float64), labels[finite]
    fits = measures = np.ones(len(truth), bool)
    if checks is not None and _has_halves(truth, checks[finite]):
        measures = checks[finite]
        fits = ~measures
    independent = not fits.all()
    before = reliability(scores[measures], truth[measures])
    note = ""
    if len(truth) < MIN_PIXELS:
        note = (
            f"no temperature fitted: found {len(truth)} labelled validation pixels, "
            f"needed are {MIN_PIXELS}"
        )
    elif len(np.unique(truth)) < 2:
        note = "no temperature fitted: all labelled validation pixels are of one class"
    if note:
        return Fit(1.0, before, before, note=note)
    temperature = fit_temperature(scores[fits], truth[fits])
    if temperature in (MIN_TEMPERATURE, MAX_TEMPERATURE):
        note = (
            f"the temperature is at its limit, {temperature:g}: these pixels are too "
            "few or too easy to determine it"
        )
    after = reliability(scores[measures] / temperature, truth[measures])
    return Fit(temperature, before, after, int(fits.sum()), independent, note)


def _has_halves(labels: Array, checks: Array) -> bool:
    """Return True if both halves are large enough, and that to fit has two classes."""
    smallest = min(int(checks.sum()), int((~checks).sum()))
    return smallest >= MIN_PIXELS and len(np.unique(labels[~checks])) > 1


def fit_temperature(logits: Array, labels: Array) -> float:
    """Return the temperature at which the labels are most likely.

    Temperature scaling (Guo, Pleiss, Sun and Weinberger 2017,
    https://arxiv.org/abs/1706.04599): the mean negative log likelihood of
    ``softmax(logits / T)``, which has one minimum, is minimised over log T in float64.
    """
    scores = np.asarray(logits, np.float64)

    def loss(temperature: float) -> float:
        return negative_log_likelihood(scores, labels, temperature)

    fitted = minimize_scalar(
        lambda log_temperature: loss(math.exp(log_temperature)),
        bounds=(math.log(MIN_TEMPERATURE), math.log(MAX_TEMPERATURE)),
        method="bounded",
        options={"xatol": 1e-6},
    )
    # The routine comes near the ends of the range and never tries them.
    candidates = (math.exp(float(fitted.x)), MIN_TEMPERATURE, MAX_TEMPERATURE)
    return min(candidates, key=loss)


def negative_log_likelihood(
    logits: Array, labels: Array, temperature: float = 1.0
) -> float:
    """Return the mean over pixels of ``-log softmax(logits / temperature)[label]``."""
    scaled = np.asarray(logits, np.float64) / temperature
    likelihood = scaled[np.arange(len(labels)), labels] - logsumexp(scaled, axis=1)
    return float(np.mean(-likelihood))


def reliability(logits: Array, labels: Array, bins: int = BINS) -> Reliability:
    """Measure accuracy against confidence (the highest probability) in equal bins."""
    tally = ReliabilityTally(logits.shape[1], bins)
    tally.add(softmax(np.asarray(logits, np.float64), axis=1), labels)
    return tally.result()


def sample_evenly(
    count: int, limit: int, *, seed: int = 0
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return at most `limit` of the numbers 0..count-1, in order.

    One is drawn at random from each of `limit` equal ranges: even over all of them, and
    without the stripes that every n-th pixel of a picture would give.
    """
    if count <= limit:
        return np.arange(count, dtype=np.int64)
    edges = np.arange(limit + 1, dtype=np.int64) * count // limit
    lengths = np.diff(edges)
    offsets: np.ndarray[Any, np.dtype[np.int64]] = np.random.default_rng(seed).integers(
        lengths
    )
    return edges[:-1] + offsets
