"""Histograms of tiles, their mixtures, and octave bands."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import minimize

from napari_strata.core.drift import (
    ASK_SHARE,
    BINS,
    NOTICE_SHARE,
    SIDE,
    Bins,
    Drift,
    DriftReference,
    PlaneDrift,
    detail_changes,
    fit_mixture,
    measure_appearance,
    unexplained_shares,
)
from napari_strata.core.normalization import Scale


def random_histograms(count: int, bins: int = 12, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).dirichlet(np.full(bins, 0.7), count)
    return values / values.sum(1, keepdims=True)


def likeliest_weights(histogram: np.ndarray, tiles: np.ndarray) -> np.ndarray:
    """Weights of the largest likelihood, by a general solver."""
    count = len(tiles)
    solution = minimize(
        lambda w: -np.sum(histogram * np.log(np.maximum(w @ tiles, 1e-12))),
        np.full(count, 1 / count),
        bounds=[(0, 1)] * count,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
        method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 500},
    )
    return solution.x


def test_mixture_weights_are_those_of_a_direct_solver() -> None:
    tiles = random_histograms(4)
    targets = random_histograms(3, seed=1)
    weights = fit_mixture(targets, tiles)
    assert weights.sum(1) == pytest.approx(1)
    for target, found in zip(targets, weights, strict=True):
        assert found == pytest.approx(likeliest_weights(target, tiles), abs=0.01)


def test_a_mixture_is_explained_and_its_weights_are_found() -> None:
    tiles = random_histograms(3)
    weights = np.array([0.6, 0.1, 0.3])
    assert fit_mixture(weights[None] @ tiles, tiles)[0] == pytest.approx(
        weights, abs=0.01
    )
    assert unexplained_shares(weights[None] @ tiles, tiles)[0] < 1e-3


def test_values_that_no_tile_has_are_unexplained() -> None:
    tiles = np.zeros((2, 10))
    tiles[0, :3] = tiles[1, 3:6] = 1 / 3
    target = np.zeros((1, 10))
    target[0, :3], target[0, 8] = 0.8 / 3, 0.2
    assert unexplained_shares(target, tiles)[0] == pytest.approx(0.2)


def test_tiles_that_are_not_allowed_explain_nothing() -> None:
    tiles = random_histograms(5)
    allowed = ~np.eye(5, dtype=bool)
    weights = fit_mixture(tiles, tiles, allowed)
    assert np.diag(weights) == pytest.approx(0)
    assert (unexplained_shares(tiles, tiles, allowed) > 0.01).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int32, np.float32])
def test_every_dtype_fills_the_same_bins(dtype: type) -> None:
    values = np.random.default_rng(0).normal(60, 12, 40_000).clip(1, 120)
    counts = Bins(60, 12).count(values.round().astype(dtype))
    assert counts.sum() == pytest.approx(40_000)
    exact = Bins(60, 12).count(values)
    assert np.abs(counts - exact).sum() / 40_000 < 0.1


def test_integers_coarser_than_the_bins_leave_no_bin_empty() -> None:
    values = np.random.default_rng(0).normal(100, 2, 50_000).round().astype(np.uint8)
    counts = Bins(100, 2).count(values)  # four bins for each grey value
    assert (counts[16:48] > 0).all()


def test_values_beyond_the_bins_count_in_the_last_ones() -> None:
    for values in (
        np.array([0, 0, 255], np.uint8),
        np.array([-1e30, -5, 1e30, np.nan, np.inf]),
    ):
        counts = Bins(100, 1).count(values)
        assert (counts[0], counts[-1]) == (2, 1)
        assert counts.sum() == 3


def plane(seed: int = 0, side: int = 256) -> np.ndarray:
    from skimage.filters import gaussian

    rng = np.random.default_rng(seed)
    field = gaussian(rng.normal(size=(side, side)), 3)
    grey = np.where(field > 0, 160, 90) + rng.normal(0, 8, field.shape)
    return grey.clip(0, 255).astype(np.uint8)


SCALE = Scale(center=(125.0,), spread=(36.0,), low=(0.0,), high=(255.0,))


def energies(values: np.ndarray) -> np.ndarray:
    appearance = measure_appearance([values[None]], SCALE, (0.0,), (1.0,))
    assert appearance is not None
    return appearance.energies


def test_blur_is_smoother_noise_is_rougher_and_contrast_changes_nothing() -> None:
    from skimage.filters import gaussian

    values = plane()
    reference = energies(values)
    blurred = energies(gaussian(values, 1, preserve_range=True))
    noise = np.random.default_rng(1).normal(0, 20, values.shape)
    assert detail_changes(blurred, reference)[0] < -0.5
    assert detail_changes(energies(values + noise), reference)[0] > 0.5
    assert abs(detail_changes(energies(values * 0.5 + 20), reference)[0]) < 0.02
    assert abs(detail_changes(energies(plane(1)), reference)[0]) < 0.2


def test_pixels_that_are_not_finite_and_hot_ones_change_little() -> None:
    values = plane().astype(np.float32)
    reference = energies(values)
    values[10:30] = np.nan
    values[50, 50] = 1e9
    assert abs(detail_changes(energies(values), reference)[0]) < 0.1
    values[:] = np.inf
    assert measure_appearance([values[None]], SCALE, (0.0,), (1.0,)) is None


def reference(**changes: object) -> DriftReference:
    facts = {
        "center": (0.0,),
        "spread": (1.0,),
        "histograms": random_histograms(6, BINS)[None].astype(np.float16),
        "energies": np.array([[0.3, 0.2, np.nan, np.nan]]),
        "share": math.nan,
        "detail": 0.05,
        "tile_share": 0.02,
        "tile_detail": 0.5,
    }
    return DriftReference(**{**facts, **changes})  # type: ignore[arg-type]


def test_its_text_keeps_every_bit() -> None:
    before = reference()
    after = DriftReference.from_text(before.to_text())
    assert after is not None
    assert after.histograms.tobytes() == before.histograms.tobytes()
    assert after.histograms.dtype == np.float16
    assert after.energies.tobytes() == before.energies.tobytes()
    assert (after.center, after.spread) == (before.center, before.spread)
    assert math.isnan(after.share)
    assert (after.detail, after.tile_share) == (0.05, 0.02)
    assert DriftReference.from_text("null") is None


def test_limits_follow_the_training_images_and_the_size_of_the_plane() -> None:
    large = 1000 * SIDE**2
    assert reference().limits(large) == (NOTICE_SHARE, 0.25, ASK_SHARE)
    share, detail, ask = reference(share=0.04, detail=0.2).limits(large)
    assert (share, detail, ask) == pytest.approx((0.12, 0.6, 0.24))
    share, detail, ask = reference().limits(SIDE**2)
    assert (share, detail, ask) == pytest.approx((0.06, 1.5, 0.12))
    assert reference().limits(100) == reference().limits(SIDE**2)


def plane_drift(unexplained: float, detail: float = 0.0, z: int = 0) -> PlaneDrift:
    return PlaneDrift({"Z": z}, unexplained, detail, 0.01, 0.25, 0.05)


def test_the_most_unusual_plane_decides_and_is_named() -> None:
    usual = plane_drift(0.002)
    assert Drift("rock", (usual,)).level == ""
    assert "looks like" in Drift("rock", (usual,)).describe()
    noticed = Drift("rock", (usual, plane_drift(0.02, z=4)))
    assert noticed.level == "notice"
    assert noticed.sentences == (
        "rock: 2 % of the grey values of Z=4 do not occur in the training images.",
    )
    asked = Drift("rock", (plane_drift(0.12),))
    assert asked.level == "ask"
    assert asked.sentences == (
        "rock: 12 % of the grey values do not occur in the training images. Was the "
        "scan calibrated in the same way?",
    )


def test_detail_is_said_in_words() -> None:
    (smoother,) = Drift("rock", (plane_drift(0, -0.65),)).sentences
    assert "smoother than in the training images (detail -0.65)" in smoother
    (rougher,) = Drift("rock", (plane_drift(0, 1.2),)).sentences
    assert "rougher" in rougher
    assert Drift("rock", (plane_drift(0, 1.2),)).level == "notice"
