"""The guided filter smooths where the guide is smooth and keeps edges that it has."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import uniform_filter

from napari_strata.models.pixels.guided_filter import estimate_noise, guided_filter


def step(height: int = 40, width: int = 40) -> torch.Tensor:
    guide = torch.zeros(height, width)
    guide[:, width // 2 :] = 1
    return guide


def noisy(height: int = 40, width: int = 40) -> torch.Tensor:
    rng = np.random.default_rng(0)
    values = 0.3 + 0.4 * step(height, width).numpy()
    return torch.from_numpy(
        (values + rng.normal(0, 0.2, values.shape)).astype(np.float32)
    )[None]


def reference(
    values: np.ndarray, guide: np.ndarray, weights: np.ndarray, radius: int, eps: float
) -> np.ndarray:
    """The filter in float64, by a line that is fitted in each window."""
    height, width = guide.shape
    slope, offset, trust = (np.zeros_like(guide) for _ in range(3))
    padded = [np.pad(a, radius, mode="edge") for a in (values, guide, weights)]
    for y in range(height):
        for x in range(width):
            window = (slice(y, y + 2 * radius + 1), slice(x, x + 2 * radius + 1))
            v, g, w = (a[window] for a in padded)
            mean_g, mean_v = (np.average(a, weights=w) for a in (g, v))
            spread = np.average((g - mean_g) ** 2, weights=w) + eps
            slope[y, x] = np.average((g - mean_g) * (v - mean_v), weights=w) / spread
            offset[y, x] = mean_v - slope[y, x] * mean_g
            trust[y, x] = w.mean()

    def mean(array: np.ndarray) -> np.ndarray:
        return uniform_filter(array, 2 * radius + 1, mode="nearest")

    lines = mean(trust * slope) * guide + mean(trust * offset)
    return lines / mean(trust)


@pytest.mark.parametrize("radius", [1, 2, 4])
@pytest.mark.parametrize("is_weighted", [False, True])
def test_it_is_a_line_in_each_window(radius: int, is_weighted: bool) -> None:
    values, guide = noisy(23, 31), step(23, 31)
    weights = torch.ones_like(guide)
    if is_weighted:
        drawn = np.random.default_rng(3).uniform(0.01, 1, guide.shape)
        weights = torch.from_numpy(drawn.astype(np.float32))
    found = guided_filter(values, guide, weights, radius=radius, variance=0.01)[0]
    arrays = (array.double().numpy() for array in (values[0], guide, weights))
    wanted = reference(*arrays, radius, 0.01)
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-4)


def test_a_pixel_that_is_not_trusted_takes_after_the_others() -> None:
    """Halfway up an edge, a third class is not believed."""
    guide = step()
    guide[:, 19] = 0.5
    classes = torch.stack([1 - guide, guide, torch.zeros_like(guide)])
    classes[:, :, 19] = torch.tensor([0.1, 0.1, 0.8])[:, None]
    weights = torch.ones_like(guide)
    believed = guided_filter(classes, guide, weights, radius=4, variance=0.001)
    assert (believed[2, :, 19] > 0.05).all()
    weights[:, 19] = 1e-4
    filtered = guided_filter(classes, guide, weights, radius=4, variance=0.001)
    np.testing.assert_allclose(filtered[:2, 5:-5, 19], 0.5, atol=0.02)
    assert (filtered[2] < 0.01).all()


def test_it_removes_noise_and_keeps_the_step() -> None:
    guide = step()
    weights = torch.ones_like(guide)
    filtered = guided_filter(noisy(), guide, weights, radius=4, variance=0.01)[0]
    assert filtered[:, 5:15].std() < 0.06
    across = filtered.mean(0)
    assert across[20] - across[19] > 0.3


def test_a_tile_has_the_bits_of_the_whole() -> None:
    drawn = np.random.default_rng(1).uniform(0.1, 1, (2, 60, 30)).astype(np.float32)
    values, (guide, weights) = noisy(60, 30), torch.from_numpy(drawn)
    options = {"radius": 3, "variance": 0.1}
    whole = guided_filter(values, guide, weights, **options)
    tile = slice(11, 43)
    part = guided_filter(values[:, tile], guide[tile], weights[tile], **options)
    assert torch.equal(part[:, 6:-6], whole[:, 17:37])


def test_noise_is_found_beside_edges() -> None:
    rng = np.random.default_rng(0)
    grey = step(200, 200).numpy() * 5 + rng.normal(0, 0.3, (200, 200))
    assert estimate_noise(grey.astype(np.float32)) == pytest.approx(0.3, rel=0.05)
    assert estimate_noise(grey[:2].astype(np.float32)) == 0
