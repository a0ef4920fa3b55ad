"""Calibration: whether a network is right as often as its probabilities say, and the temperature that mends it.

numpy and scipy only. Logits are float (N, K), one row a pixel; labels are class indices (N,).
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
"""Bins of confidence, as in Guo et al. 2017."""

COOLEST, HOTTEST = 0.1, 10.0
"""Temperatures outside of these say that the pixels were too easy or too odd to tell, and are not believed."""

FEWEST = 200
"""Labelled pixels below which no temperature is fitted."""


@dataclass(frozen=True)
class Bin:
    """Pixels whose confidence lies in (low, high]: their mean confidence, the share that is right, and how many.

    `confidence` and `accuracy` are None where there is no pixel.
    """

    low: float
    high: float
    confidence: float | None
    accuracy: float | None
    count: int


@dataclass(frozen=True)
class Reliability:
    """How often a network is right at each confidence, from 0 to 1."""

    bins: tuple[Bin, ...]

    @property
    def pixels(self) -> int:
        return sum(one.count for one in self.bins)

    @property
    def ece(self) -> float:
        """Expected calibration error, 0..1: the mean over pixels of how far accuracy and confidence of their bin lie
        apart (Naeini, Cooper and Hauskrecht 2015); NaN without a pixel."""
        if not self.pixels:
            return math.nan
        gaps = (
            one.count * abs((one.accuracy or 0.0) - (one.confidence or 0.0))
            for one in self.bins
        )
        return math.fsum(gaps) / self.pixels


@dataclass(frozen=True)
class Fit:
    """A temperature, and the reliability without and with it.

    `note` says why the temperature is 1 or at its limit; empty where there is nothing to say.
    """

    temperature: float
    before: Reliability
    after: Reliability
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain data, NaN as None: temperature, ece_before, ece_after, pixels, note, and the bins before and after."""
        return {
            "temperature": self.temperature,
            "ece_before": none_if_nan(self.before.ece),
            "ece_after": none_if_nan(self.after.ece),
            "pixels": self.before.pixels,
            "note": self.note,
            "bins": {
                "before": [asdict(b) for b in self.before.bins],
                "after": [asdict(b) for b in self.after.bins],
            },
        }


def calibrate(logits: Array, labels: Array) -> Fit:
    """Fit a temperature and measure what it mends, on the same pixels: one number cannot overfit thousands of them.

    Rows that are not finite are left out. Where there are fewer than `FEWEST` pixels, or pixels of one class only, the
    temperature is 1, and the note says so.
    """
    finite = np.isfinite(logits).all(axis=1)
    scores, truth = logits[finite].astype(np.float64), labels[finite]
    before = reliability(scores, truth)
    note = _why_not(truth)
    if note:
        return Fit(1.0, before, before, note)
    temperature = fit_temperature(scores, truth)
    if temperature in (COOLEST, HOTTEST):
        note = f"the temperature is at its limit, {temperature:g}: these pixels are too few or too easy to tell it"
    return Fit(temperature, before, reliability(scores / temperature, truth), note)


def fit_temperature(logits: Array, labels: Array) -> float:
    """The T between `COOLEST` and `HOTTEST` at which ``softmax(logits / T)`` makes the labels most likely.

    Temperature scaling (Guo, Pleiss, Sun and Weinberger 2017, https://arxiv.org/abs/1706.04599): the mean negative log
    likelihood, which has one minimum, is minimised over log T in float64.
    """
    scores = np.asarray(logits, np.float64)
    ends = (COOLEST, HOTTEST)
    found = minimize_scalar(
        lambda x: negative_log_likelihood(scores, labels, math.exp(x)),
        bounds=tuple(map(math.log, ends)),
        method="bounded",
        options={"xatol": 1e-6},
    )
    # The routine comes near the ends and never tries them.
    return min(
        (math.exp(float(found.x)), *ends),
        key=lambda t: negative_log_likelihood(scores, labels, t),
    )


def negative_log_likelihood(
    logits: Array, labels: Array, temperature: float = 1.0
) -> float:
    """Mean over pixels of ``-log softmax(logits / temperature)`` at their label."""
    scaled = np.asarray(logits, np.float64) / temperature
    return float(
        np.mean(logsumexp(scaled, axis=1) - scaled[np.arange(len(labels)), labels])
    )


def reliability(logits: Array, labels: Array, bins: int = BINS) -> Reliability:
    """Confidence (the highest probability) against accuracy in `bins` equal bins."""
    scores = np.asarray(logits, np.float64)
    if not len(scores):
        return Reliability(
            tuple(_bin(i, bins, np.empty(0), np.empty(0, bool)) for i in range(bins))
        )
    confidence = np.exp(scores.max(axis=1) - logsumexp(scores, axis=1))
    right = scores.argmax(axis=1) == labels
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    return Reliability(
        tuple(
            _bin(i, bins, confidence[place == i], right[place == i])
            for i in range(bins)
        )
    )


def spread(
    count: int, most: int, *, seed: int = 0
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """At most `most` of the numbers 0..count-1, rising: one at random from each of `most` equal stretches.

    Even over all of them, and without the stripes that every n-th pixel of a picture would give.
    """
    if count <= most:
        return np.arange(count, dtype=np.int64)
    edges = np.arange(most + 1, dtype=np.int64) * count // most
    lengths = np.diff(edges)
    chosen: np.ndarray[Any, np.dtype[np.int64]] = (
        np.random.default_rng(seed).integers(lengths) + edges[:-1]
    )
    return chosen


def _bin(number: int, bins: int, confidence: Array, right: Array) -> Bin:
    filled = len(confidence) > 0
    return Bin(
        low=number / bins,
        high=(number + 1) / bins,
        confidence=float(confidence.mean()) if filled else None,
        accuracy=float(right.mean()) if filled else None,
        count=len(confidence),
    )


def _why_not(labels: Array) -> str:
    if len(labels) < FEWEST:
        return f"no temperature fitted: found {len(labels)} labelled validation pixels, needed are {FEWEST}"
    if len(np.unique(labels)) < 2:
        return "no temperature fitted: all labelled validation pixels are of one class"
    return ""
