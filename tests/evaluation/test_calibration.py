"""Calibration against logits whose probabilities are known."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from napari_strata.evaluation.calibration import (
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
    ReliabilityTally,
    calibrate,
    fit_temperature,
    negative_log_likelihood,
    reliability,
    sample_evenly,
)

Array = np.ndarray[Any, Any]


def softmax(logits: Array) -> Array:
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(e / e.sum(axis=1, keepdims=True))


def calibrated_logits(
    count: int, classes: int = 3, *, seed: int = 0
) -> tuple[Array, Array]:
    """Logits, and labels drawn with just their probabilities."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (count, classes))
    return logits, (softmax(logits).cumsum(axis=1) < rng.random((count, 1))).sum(axis=1)


@pytest.mark.parametrize("true", [0.5, 1.0, 1.7, 4.0])
def test_the_temperature_that_made_logits_overconfident_is_found(true: float) -> None:
    logits, labels = calibrated_logits(60_000)
    assert fit_temperature(logits * true, labels) == pytest.approx(true, rel=0.03)
    fit = calibrate(logits * true, labels)
    assert fit.temperature == fit_temperature(logits * true, labels)
    assert fit.after.ece < 0.01
    assert fit.before.ece > 0.05 or true == 1
    assert fit.note == ""


@given(st.integers(0, 50), st.floats(0.2, 6), st.integers(2, 5))
def test_no_temperature_near_it_is_likelier_and_no_label_changes(
    seed: int, factor: float, classes: int
) -> None:
    logits, labels = calibrated_logits(400, classes, seed=seed)
    logits = factor * logits
    temperature = fit_temperature(logits, labels)
    assert MIN_TEMPERATURE <= temperature <= MAX_TEMPERATURE
    best = negative_log_likelihood(logits, labels, temperature)
    others = [
        t
        for t in (1.0, temperature * 0.97, temperature * 1.03)
        if MIN_TEMPERATURE <= t <= MAX_TEMPERATURE
    ]
    assert all(
        best <= negative_log_likelihood(logits, labels, t) + 1e-12 for t in others
    )
    assert np.array_equal((logits / temperature).argmax(axis=1), logits.argmax(axis=1))


def test_the_likelihood_is_that_of_the_softmax() -> None:
    logits, labels = calibrated_logits(50)
    probabilities = softmax(logits / 1.3)[np.arange(50), labels]
    assert negative_log_likelihood(logits, labels, 1.3) == pytest.approx(
        -np.log(probabilities).mean()
    )


def test_the_calibration_error_by_hand() -> None:
    # Confidence .75 (one of two right), .95 (both right), and .5, which belongs to the
    # bin that ends there.
    probabilities = np.array(
        [[0.75, 0.25], [0.25, 0.75], [0.95, 0.05], [0.05, 0.95], [0.5, 0.5]]
    )
    result = reliability(np.log(probabilities), np.array([0, 0, 0, 1, 0]), bins=10)
    assert [b.count for b in result.bins] == [0, 0, 0, 0, 1, 0, 0, 2, 0, 2]
    assert result.bins[7].accuracy == 0.5
    assert result.bins[7].confidence == pytest.approx(0.75)
    assert result.bins[0].accuracy is None
    assert result.ece == pytest.approx((1 * 0.5 + 2 * 0.25 + 2 * 0.05) / 5)


def test_bins_hold_every_pixel_and_their_means_lie_in_them() -> None:
    logits, labels = calibrated_logits(5000)
    result = reliability(logits, labels)
    assert len(result.bins) == 15
    assert result.pixels == 5000
    for each in result.bins:
        assert (
            each.confidence is None or each.low < each.confidence <= each.high + 1e-12
        )
    share = sum((b.accuracy or 0) * b.count for b in result.bins) / 5000
    assert share == pytest.approx((logits.argmax(axis=1) == labels).mean())


def test_the_class_wise_error_by_hand() -> None:
    # Class 0: in the bin of .2 one of two pixels is class 0, in that of .9 both are.
    probabilities = np.array([[0.2, 0.8], [0.2, 0.8], [0.9, 0.1], [0.9, 0.1]])
    labels = np.array([0, 1, 0, 0])
    tally = ReliabilityTally(2, bins=10)
    for rows in (slice(1), slice(1, 4)):  # plane by plane
        tally.add(probabilities[rows], labels[rows])
    result = tally.result()
    first = (2 * abs(0.5 - 0.2) + 2 * abs(1 - 0.9)) / 4
    second = (2 * abs(0.5 - 0.8) + 2 * abs(0 - 0.1)) / 4
    assert result.class_ece == pytest.approx((first, second))
    assert result.classwise_ece == pytest.approx((first + second) / 2)
    assert result.ece == pytest.approx((2 * abs(0.5 - 0.8) + 2 * abs(1 - 0.9)) / 4)
    facts = result.as_dict(["pore", "grain"])
    assert facts["class_ece"]["grain"] == pytest.approx(second)
    assert (facts["pixels"], sum(row["count"] for row in facts["bins"])) == (4, 4)


def test_class_wise_error_finds_what_the_highest_probability_hides() -> None:
    """The chosen class is calibrated; the two others are exchanged."""
    rng = np.random.default_rng(0)
    probabilities = np.tile([0.6, 0.3, 0.1], (100_000, 1))
    labels = rng.choice(3, 100_000, p=[0.6, 0.1, 0.3])
    tally = ReliabilityTally(3)
    tally.add(probabilities, labels)
    assert tally.result().ece < 0.01
    assert tally.result().classwise_ece == pytest.approx(0.4 / 3, abs=0.01)


def test_the_error_is_measured_on_pixels_that_did_not_fit() -> None:
    """One half of the pixels needs another temperature than the other."""
    logits, labels = calibrated_logits(40_000)
    checks = np.arange(40_000) >= 20_000
    logits[checks] *= 3
    fit = calibrate(logits, labels, checks)
    assert fit.temperature == fit_temperature(logits[~checks], labels[~checks])
    assert fit.temperature == pytest.approx(1, rel=0.03)
    assert (fit.independent, fit.fitted_pixels, fit.after.pixels) == (
        True,
        20_000,
        20_000,
    )
    expected = reliability(logits[checks] / fit.temperature, labels[checks]).ece
    assert fit.after.ece == expected
    assert expected > 0.1
    assert calibrate(logits[~checks], labels[~checks]).after.ece < 0.01


@pytest.mark.parametrize("kind", ["few to fit", "few to measure", "one class"])
def test_too_small_halves_are_no_independent_measure(kind: str) -> None:
    logits, labels = calibrated_logits(1000)
    checks = np.arange(1000) >= {"few to measure": 850}.get(kind, 150)
    if kind == "one class":
        checks = labels > 0
    fit = calibrate(logits, labels, checks)
    assert not fit.independent
    assert fit == calibrate(logits, labels)
    assert (fit.fitted_pixels, fit.after.pixels) == (1000, 1000)


def test_what_cannot_tell_a_temperature_is_said() -> None:
    logits, labels = calibrated_logits(199)
    few = calibrate(logits, labels)
    assert (few.temperature, few.after) == (1.0, few.before)
    assert "found 199 labelled validation pixels, needed are 200" in few.note
    each = calibrate(np.tile([[2.0, 1.0]], (500, 1)), np.zeros(500, int))
    assert each.temperature == 1.0
    assert "of one class" in each.note
    empty = calibrate(np.empty((0, 2)), np.empty(0, int))
    assert math.isnan(empty.before.ece)
    assert (
        json.loads(json.dumps(empty.as_dict(), allow_nan=False))["ece_before"] is None
    )


def test_a_network_without_a_mistake_meets_the_limit() -> None:
    labels = np.arange(600) % 2
    fit = calibrate(np.eye(2)[labels], labels)
    assert fit.temperature == MIN_TEMPERATURE
    assert "at its limit, 0.1" in fit.note
    wrong = calibrate(np.eye(2)[1 - labels] * 5, labels)
    assert wrong.temperature == MAX_TEMPERATURE


def test_logits_that_are_not_finite_are_left_out() -> None:
    logits, labels = calibrated_logits(1000)
    spoilt = logits.copy()
    spoilt[::10] = np.nan
    spoilt[1::10, 0] = np.inf
    expected = np.arange(1000) % 10 > 1
    assert calibrate(spoilt, labels) == calibrate(logits[expected], labels[expected])


@given(st.integers(0, 5000), st.integers(1, 700), st.integers(0, 9))
def test_pixels_are_spread_evenly(count: int, most: int, seed: int) -> None:
    chosen = sample_evenly(count, most, seed=seed)
    assert len(chosen) == min(count, most)
    assert np.all(np.diff(chosen) >= 1)
    assert not len(chosen) or (chosen[0] >= 0 and chosen[-1] < count)
    assert np.array_equal(chosen, sample_evenly(count, most, seed=seed))
    if count > most:
        ideal = (np.arange(most) + 0.5) * count / most
        assert np.abs(chosen - ideal).max() <= count / most + 1
