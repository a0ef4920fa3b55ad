"""The interval of a fraction: arithmetic by hand, simulated errors, and refusals."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from napari_strata.core.residuals import (
    BLOCKS,
    RegionBlocks,
    Residuals,
    ValidationPlane,
)
from napari_strata.measure.fractions import NO_RESIDUALS, Estimator, Spread

NAMES = ("pore", "quartz")


def blocks(differences: Any, *, pixels: Any = 1000, share: float = 0.3) -> RegionBlocks:
    """Blocks (S, B) of a class with these true shares minus predicted shares."""
    differences = np.asarray(differences, float)
    size = np.broadcast_to(np.asarray(pixels), differences.shape).astype(np.int64)
    true = np.rint(size * share).astype(np.int64)
    predicted = true - np.rint(size * differences).astype(np.int64)
    return RegionBlocks(
        area=size.sum(axis=1),
        pieces=np.full((len(size), 2), 20),
        pixels=size,
        true=np.stack([true, size - true], axis=-1),
        predicted=np.stack([predicted, size - predicted], axis=-1),
        probabilities=np.stack([predicted, size - predicted], axis=-1).astype(float),
    )


def residuals(differences: Any, **options: Any) -> Residuals:
    counts = blocks(differences, **options)
    planes = [
        ValidationPlane(f"plane {i}", i, 0.0, 30.0) for i in range(len(counts.pixels))
    ]
    return Residuals(NAMES, tuple(planes), {"all": counts})


def test_interval_by_hand() -> None:
    # Planes have the means .03 and .01: their mean is .02, their variance 2e-4.
    # s2 = 4 * .01 ** 2 / (4 - 2) = 2e-4; tau2 = 2e-4 - 2e-4 / 2 = 1e-4.
    spread = Spread.of(blocks([[0.02, 0.04], [0.0, 0.02]]), 0)
    assert spread.mean == pytest.approx(0.02)
    assert spread.within == pytest.approx(2e-4)
    assert spread.between == pytest.approx(1e-4)
    assert (spread.planes, spread.blocks, spread.block_pixels) == (2, 4, 1000)
    # t(.975, 2) = 4.302653; 1e-4 * (1 + 1/2) + 3 * 2e-4 * (1/4 + 1/4) = 4.5e-4
    assert spread.half_width(4) == pytest.approx(4.302653 * math.sqrt(4.5e-4), rel=1e-6)
    # 1e-4 * (1/2 + 1/2) + 3 * 2e-4 * (1/8 + 1/4)
    assert spread.half_width(8, planes=2) == pytest.approx(
        4.302653 * math.sqrt(3.25e-4), rel=1e-6
    )


def test_the_estimate_adds_the_mean_error_of_validation() -> None:
    values = np.zeros((2, BLOCKS))
    values[0] += 0.02
    values[1] += 0.04
    estimator = Estimator.of(residuals(values), "all")
    fraction = estimator.estimate("pore", 2500, 25_000, planes=1, depth=1)
    assert fraction.interval == "model"
    assert fraction.count == 0.1
    assert fraction.estimate == pytest.approx(0.13)
    assert fraction.low is not None
    assert fraction.high is not None
    # The planes differ by .02, their blocks not at all: tau2 = 2e-4.
    half = 2.010635 * math.sqrt(2e-4 * 1.5)
    assert fraction.high - fraction.estimate == pytest.approx(half, rel=1e-4)
    assert fraction.estimate - fraction.low == pytest.approx(half, rel=1e-4)
    assert "2 planes and 50 blocks" in fraction.why
    other = estimator.estimate("quartz", 22_500, 25_000, planes=1, depth=1)
    assert other.estimate == pytest.approx(0.87)


def test_an_interval_ends_at_0_and_1() -> None:
    values = np.random.default_rng(0).normal(0, 0.1, (3, BLOCKS))
    estimator = Estimator.of(residuals(values), "all")
    fraction = estimator.estimate("pore", 0, 25_000, planes=1, depth=1)
    assert fraction.low == 0
    fraction = estimator.estimate("quartz", 25_000, 25_000, planes=1, depth=1)
    assert fraction.high == 1


def test_small_blocks_at_the_edge_count_less() -> None:
    differences = np.zeros((2, 5))
    differences[:, 4] = 0.5
    pixels = np.array([1000, 1000, 1000, 1000, 2])
    with_edge = Spread.of(blocks(differences, pixels=pixels), 0)
    assert with_edge.blocks == pytest.approx(8, rel=0.01)
    assert with_edge.mean < 0.001
    assert with_edge.within < 0.001


def test_a_larger_target_has_a_smaller_interval_and_neighbouring_planes_are_one() -> (
    None
):
    values = np.random.default_rng(0).normal(0, 0.02, (3, BLOCKS))
    values -= values.mean(axis=1, keepdims=True)
    estimator = Estimator.of(residuals(values), "all")

    def half(pixels: int, planes: int, depth: float) -> float:
        one = estimator.estimate(
            "pore", pixels // 2, pixels, planes=planes, depth=depth
        )
        assert one.high is not None
        return one.high - one.estimate

    assert half(100_000, 1, 1) < half(25_000, 1, 1)
    # 30 planes of one pixel are as thick as one block.
    assert half(30 * 25_000, 30, 30) == pytest.approx(half(25_000, 1, 1))
    assert half(60 * 25_000, 60, 60) < half(25_000, 1, 1)
    # Slices that lie far apart.
    assert half(60 * 25_000, 60, 6000) < half(60 * 25_000, 60, 60)


def test_neighbouring_validation_planes_are_one() -> None:
    found = residuals(np.zeros((4, BLOCKS)))
    planes = tuple(
        ValidationPlane("", image, position, 30.0)
        for image, position in ((0, 0), (1, 5), (0, 29), (0, 30))
    )
    merged = replace(found, planes=planes).independent("all")
    assert merged.pixels[:, 0].tolist() == [2000, 1000, 1000]
    assert merged.pieces[:, 0].tolist() == [20, 20, 20]


def test_text_keeps_everything() -> None:
    found = residuals(np.random.default_rng(0).normal(0, 0.02, (3, BLOCKS)))
    again = Residuals.from_text(found.to_text())
    assert again is not None
    assert (again.classes, again.planes) == (found.classes, found.planes)
    for name, values in vars(found.regions["all"]).items():
        np.testing.assert_array_equal(getattr(again.regions["all"], name), values)
    assert Residuals.from_text("null") is None


def refusal(found: Residuals | None, kind: str = "all", name: str = "pore") -> str:
    estimator = Estimator.of(found, kind)
    fraction = estimator.estimate(name, 10, 100, planes=1, depth=1)
    assert (fraction.interval, fraction.low, fraction.high) == ("none", None, None)
    assert fraction.estimate == fraction.count == 0.1
    return fraction.why


def test_refusals() -> None:
    zeros = np.zeros((2, BLOCKS))
    assert refusal(None) == NO_RESIDUALS
    assert "validated on one plane," in refusal(residuals(zeros[:1]))
    near = replace(residuals(zeros), planes=2 * (ValidationPlane("", 0, 0, 30.0),))
    assert "2 planes next to each other are one" in refusal(near)
    assert "region (mask) differs" in refusal(residuals(zeros), "mask")
    assert "region (specimen) differs" in refusal(residuals(zeros), "specimen")
    assert "no class 'clay'" in refusal(residuals(zeros), name="clay")
    few = residuals(zeros)
    few.regions["all"].pieces[:] = 14
    assert "28 pieces and 15000 pixels" in refusal(few)
    small = residuals(zeros, pixels=100, share=0.3)
    assert "40 pieces and 1500 pixels" in refusal(small)
    strokes = residuals(zeros)
    strokes.regions["all"].area[:] *= 2
    assert "only 50 % of the validation planes is labelled" in refusal(strokes)
    assert Estimator.of(None, "all").refuse("drift").refusal == NO_RESIDUALS
    assert Estimator.of(residuals(zeros), "all").refuse("drift").refusal == "drift"


def fields(rng: np.random.Generator, planes: int, *, between: float) -> Any:
    """Errors of blocks that resemble their neighbours, and of whole planes."""
    noise = rng.normal(0, 0.02, (planes, 6, 6))
    smooth = sum(noise[:, y : y + 5, x : x + 5] for y in (0, 1) for x in (0, 1))
    values = 0.01 + smooth / 2 + rng.normal(0, between, (planes, 1, 1))
    return values.reshape(planes, BLOCKS)


@pytest.mark.parametrize("between", [0.0, 0.003])
def test_intervals_contain_the_truth_of_simulated_errors(between: float) -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        values = fields(rng, 5, between=between)
        estimator = Estimator.of(residuals(values[:4], pixels=10_000), "all")
        target = 0.3 - values[4].mean()
        one = estimator.estimate(
            "pore", round(target * 250_000), 250_000, planes=1, depth=1
        )
        assert one.low is not None
        assert one.high is not None
        hits += one.low <= 0.3 <= one.high
    assert 186 <= hits <= 200
