"""Features are exact: the same in a tile as in the whole image, and no further than their reach."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter, median_filter

from napari_strata.core.geometry import octave_reach
from napari_strata.core.tiling import plan_tiles
from napari_strata.models.pixels.features import (
    compute_features,
    count_features,
    features_at,
)
from napari_strata.models.pixels.selection import median


def image(*shape: int, seed: int = 0) -> torch.Tensor:
    values = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return torch.from_numpy(values)


@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize("shape", [(1, 1), (2, 7), (30, 41)])
def test_a_median_is_that_of_scipy(size: int, shape: tuple[int, int]) -> None:
    planes = image(2, *shape)
    ours = median(planes, size).numpy()
    for plane, found in zip(planes.numpy(), ours, strict=True):
        wanted = median_filter(plane, size=size, mode="nearest")
        np.testing.assert_array_equal(found, wanted)


def test_smoothed_values_are_those_of_scipy() -> None:
    plane = image(1, 40, 50)
    smooth = compute_features(plane, 1)[3].numpy()
    wanted = gaussian_filter(plane[0].numpy(), 1.0, mode="nearest", radius=3)
    np.testing.assert_allclose(smooth, wanted, atol=1e-6)


def test_gradient_and_curvature_of_a_parabola_are_known() -> None:
    """Of x squared, the slope is 2 x, the larger eigenvalue 2 and the other 0."""
    x = torch.arange(-20.0, 21.0)
    parabola = (x * x).expand(1, 41, 41).contiguous()
    _, slope, larger, smaller = compute_features(parabola, 1)[3:7, 20, 12:29].numpy()
    np.testing.assert_allclose(slope, np.abs(2 * x[12:29].numpy()), atol=1e-3)
    np.testing.assert_allclose(larger, 2, atol=1e-3)
    np.testing.assert_allclose(smaller, 0, atol=1e-3)


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    levels=st.integers(1, 4),
    channels=st.integers(1, 2),
    tile=st.integers(8, 40),
)
def test_a_tile_has_the_bits_of_the_whole(
    height: int, width: int, levels: int, channels: int, tile: int
) -> None:
    whole_image = image(channels, height, width, seed=height * width)
    whole = compute_features(whole_image, levels)
    assert whole.shape == (count_features(channels, levels), height, width)
    tiles = plan_tiles(
        (height, width),
        tile=tile,
        halo=octave_reach(levels),
        stride=2 ** (levels - 1),
    )
    for part in tiles:
        found = compute_features(whole_image[:, *part.read].contiguous(), levels)
        assert torch.equal(found[:, *part.crop], whole[:, *part.write])


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_features_see_as_far_as_they_say_and_no_further(levels: int) -> None:
    reach = octave_reach(levels)
    plane = image(1, 1, 4 * reach + 5)
    before = compute_features(plane, levels)
    changed = plane.clone()
    middle = changed.shape[2] // 2
    changed[0, 0, middle] += 1000
    moved = (compute_features(changed, levels) != before).any(0)[0].nonzero()
    assert (moved - middle).abs().max() <= reach
    # Within a stride of the reach, so that no halo is wasted.
    assert (moved - middle).abs().max() > reach - 2**levels


def test_features_of_fewer_levels_come_first() -> None:
    plane = image(2, 33, 40)
    fewer, more = compute_features(plane, 2), compute_features(plane, 3)
    assert torch.equal(fewer, more[: len(fewer)])


def test_features_at_places_are_those_of_the_image() -> None:
    plane = image(1, 600, 90)
    places = np.array([0, 89, 90 * 300 + 4, 90 * 599 + 89])
    found = features_at(plane, places, 3, device=torch.device("cpu"))
    wanted = compute_features(plane, 3).flatten(1)[:, places].T
    np.testing.assert_array_equal(found, wanted.numpy())
