"""Calibration: agreement of confidence and accuracy, and the temperature for it.

numpy and scipy only. Logits are float (N, K), one row for each pixel; labels are class
indices (N,).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

from napari_strata.core.metrics import none_if_nan

Array = np.ndarray[Any, Any]

BINS = 15
"""Count of the bins of confidence, as in Guo et al. 2017."""

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.1, 10.0
"""Range of temperatures; at its ends, the pixels were too few or too easy."""

MIN_PIXELS = 200
"""Smallest count of labelled pixels for which a temperature is fitted."""


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
    """Accuracy of a network at each confidence, from 0 to 1."""

    bins: tuple[Bin, ...]

    @property
    def pixels(self) -> int:
        """Count of the pixels."""
        return sum(each.count for each in self.bins)

    @property
    def ece(self) -> float:
        """Expected calibration error, 0..1; NaN without pixels.

        Mean over pixels of the distance between accuracy and confidence of their bin
        (Naeini, Cooper and Hauskrecht 2015).
        """
        if not self.pixels:
            return math.nan
        gaps = []
        for each in self.bins:
            gap = abs((each.accuracy or 0.0) - (each.confidence or 0.0))
            gaps.append(each.count * gap)
        return math.fsum(gaps) / self.pixels


@dataclass(frozen=True)
class Fit:
    """A temperature, and the reliability without and with it.

    Parameters
    ----------
    note
        Reason why the temperature is 1 or at its limit; else empty.
    """

    temperature: float
    before: Reliability
    after: Reliability
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return plain data, NaN as None."""
        return {
            "temperature": self.temperature,
            "ece_before": none_if_nan(self.before.ece),
            "ece_after": none_if_nan(self.after.ece),
            "pixels": self.before.pixels,
            "note": self.note,
            "bins": {
                "before": [asdict(each) for each in self.before.bins],
                "after": [asdict(each) for each in self.after.bins],
            },
        }


def calibrate(logits: Array, labels: Array) -> Fit:
    """Fit a temperature and measure its effect.

    Both use the same pixels: one number cannot overfit thousands of them. Rows that are
    not finite are left out. With fewer than `MIN_PIXELS` pixels, or pixels of one class
    only, the temperature is 1.
    """
    finite = np.isfinite(logits).all(axis=1)
    scores, truth = logits[finite].astype(np.float64), labels[finite]
    before = reliability(scores, truth)
    note = ""
    if len(truth) < MIN_PIXELS:
        note = (
            f"no temperature fitted: found {len(truth)} labelled validation pixels, "
            f"needed are {MIN_PIXELS}"
        )
    elif len(np.unique(truth)) < 2:
        note = "no temperature fitted: all labelled validation pixels are of one class"
    if note:
        return Fit(1.0, before, before, note)
    temperature = fit_temperature(scores, truth)
    if temperature in (MIN_TEMPERATURE, MAX_TEMPERATURE):
        note = (
            f"the temperature is at its limit, {temperature:g}: these pixels are too "
            "few or too easy to determine it"
        )
    return Fit(temperature, before, reliability(scores / temperature, truth), note)


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
    scores = np.asarray(logits, np.float64)
    if len(scores):
        confidence = np.exp(scores.max(axis=1) - logsumexp(scores, axis=1))
        right = scores.argmax(axis=1) == labels
    else:
        confidence, right = np.empty(0), np.empty(0, bool)
    indices = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    result = []
    for i in range(bins):
        inside = indices == i
        count = int(inside.sum())
        result.append(
            Bin(
                low=i / bins,
                high=(i + 1) / bins,
                confidence=float(confidence[inside].mean()) if count else None,
                accuracy=float(right[inside].mean()) if count else None,
                count=count,
            )
        )
    return Reliability(tuple(result))


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
