from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from napari_strata.core import normalization as norm
from napari_strata.core.normalization import (
    ResolvedNormalization,
    Scale,
    fixed,
    measure,
    shift,
)


def _grey(
    size: int = 20_000, *, center: float = 100, spread: float = 10, seed: int = 0
) -> np.ndarray:
    return np.random.default_rng(seed).normal(center, spread, (1, size))


def test_measured_scale_makes_mean_0_and_deviation_1() -> None:
    samples = np.concatenate([_grey(), _grey(center=-3, spread=0.1)])
    values = measure(samples, (0, 100)).apply(samples)
    assert values.dtype == np.float32
    np.testing.assert_allclose(values.mean(axis=1), 0, atol=1e-3)
    np.testing.assert_allclose(values.std(axis=1), 1, atol=1e-3)


@pytest.mark.parametrize("hot", [1e6, -1e6, np.nan, np.inf, -np.inf])
def test_one_hot_pixel_never_moves_the_scale_nor_floods_the_network(hot: float) -> None:
    samples = _grey()
    spoilt = samples.copy()
    spoilt[0, 7] = hot
    clean, scale = measure(samples), measure(spoilt)
    np.testing.assert_allclose(scale.center, clean.center, atol=0.01)
    np.testing.assert_allclose(scale.spread, clean.spread, atol=0.01)
    values = scale.apply(spoilt)
    assert np.abs(values).max() < 10
    if not np.isfinite(hot):
        assert values[0, 7] == 0


@pytest.mark.parametrize("value", [0.0, 1e-12, 7.0, 1e9])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_constant_image_becomes_0(value: float, dtype: type) -> None:
    samples = np.full((1, 1000), value, dtype)
    scale = measure(samples)
    assert scale.spread == (1.0,)
    np.testing.assert_array_equal(scale.apply(samples), 0)
    samples[0, 3] = 1e12  # and one hot pixel in it changes that for nobody
    np.testing.assert_array_equal(measure(samples).apply(samples), 0)


def test_rounding_is_not_contrast() -> None:
    samples = np.full((1, 1000), 1e6) + np.random.default_rng(0).normal(
        0, 1e-3, (1, 1000)
    )
    assert measure(samples).spread == (1.0,)


def test_few_bright_spots_on_an_even_ground_are_signal() -> None:
    samples = np.zeros((1, 100_000))
    samples[0, :300] = np.linspace(50, 200, 300)
    values = measure(samples).apply(samples)
    assert len(np.unique(values[0, :300])) > 290
    assert values[0, 299] > values[0, 150] > values[0, 500]


def test_two_pixels_are_enough() -> None:
    assert measure(np.array([[0.0, 1.0]])).apply(np.array([[0.0, 1.0]])).tolist() == [
        [-1, 1]
    ]


def test_no_finite_value_at_all() -> None:
    scale = measure(np.full((1, 10), np.nan))
    np.testing.assert_array_equal(scale.apply(np.array([[np.nan, np.inf, 3.0]])), 0)


@given(
    hnp.arrays(
        np.float64, (1, 50), elements=st.floats(allow_nan=True, allow_infinity=True)
    )
)
def test_apply_is_always_finite(samples: np.ndarray) -> None:
    samples = np.where(np.abs(samples) < 1e30, samples, np.copysign(np.inf, samples))
    assert np.isfinite(measure(samples).apply(samples)).all()


@given(
    st.sampled_from(["uint8", "uint16", "int16"]),
    st.integers(1, 4),
    st.sampled_from(["dtype", "imagenet"]),
)
def test_fixed_scales(dtype: str, channels: int, kind: norm.Kind) -> None:
    full = np.iinfo(dtype).max
    array = np.array([[[0, full]]] * channels, dtype)
    values = fixed(kind, dtype, channels).apply(array)
    mean = (
        norm.IMAGENET_MEAN
        if channels == 3
        else [np.mean(norm.IMAGENET_MEAN)] * channels
    )
    spread = (
        norm.IMAGENET_SPREAD
        if channels == 3
        else [np.mean(norm.IMAGENET_SPREAD)] * channels
    )
    for i in range(channels):
        low, high = (
            (0, 1)
            if kind == "dtype"
            else (-mean[i] / spread[i], (1 - mean[i]) / spread[i])
        )
        np.testing.assert_allclose(values[i, 0], [low, high], rtol=1e-5)


def test_fixed_takes_floats_as_they_are_but_for_hot_pixels() -> None:
    scale = fixed("dtype", np.float32, 1)
    np.testing.assert_array_equal(
        scale.apply(np.array([[0.25, 1.5, 1e6]])), [[0.25, 1.5, 2.0]]
    )


def test_apply_leaves_its_input_and_takes_any_number_of_dimensions() -> None:
    array = np.array([1.0, np.nan, 3.0], np.float32).reshape(1, 1, 1, 3)
    before = array.copy()
    scale = Scale(center=(1,), spread=(2,), low=(-9,), high=(9,))
    np.testing.assert_array_equal(scale.apply(array), [[[[0, 0, 1]]]])
    np.testing.assert_array_equal(array, before)
    assert scale.apply(np.array([[1e300, -1e300]])).tolist() == [[0, 0]]


def test_scale_for() -> None:
    trained = measure(_grey())
    other = _grey(center=1000)
    physical = ResolvedNormalization(kind="physical", scale=trained)
    assert physical.scale_for(other, np.uint16) == trained
    relative = ResolvedNormalization(
        kind="relative", scale=trained, percentiles=(1, 99)
    )
    assert relative.scale_for(other, np.uint16) == measure(other, (1, 99))
    by_dtype = ResolvedNormalization(kind="dtype", scale=fixed("dtype", np.uint8, 3))
    assert by_dtype.scale_for(other, np.uint8) == by_dtype.scale
    assert by_dtype.scale_for(other, np.uint16) == fixed("dtype", np.uint16, 3)


def test_shift() -> None:
    same = [_grey(seed=i) for i in range(4)]
    assert shift(same) < 0.05
    brighter = [*same, _grey(center=120)]
    assert shift(brighter) == pytest.approx(20 / (2 * 1.645 * 10), rel=0.1)
    assert np.isnan(shift(same[:1]))
    assert np.isnan(shift([np.zeros((1, 9))] * 2))


def test_shift_does_not_see_nan_and_infinities() -> None:
    spoilt = [_grey(seed=i) for i in range(3)]
    spoilt[0][0, :50] = np.inf
    spoilt[1][0, :50] = np.nan
    assert shift([*spoilt, np.full((1, 5), np.nan)]) < 0.05
    assert np.isnan(shift([spoilt[0], np.full((1, 5), np.nan)]))


def test_json_round_trip() -> None:
    resolved = ResolvedNormalization(kind="physical", scale=measure(_grey()))
    assert (
        ResolvedNormalization.model_validate_json(resolved.model_dump_json())
        == resolved
    )
