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
    values: np.ndarray, guide: np.ndarray, radius: int, variance: float
) -> np.ndarray:
    """The filter as the paper writes it, in float64."""

    def mean(array: np.ndarray) -> np.ndarray:
        return uniform_filter(array, 2 * radius + 1, mode="nearest")

    slope = (mean(guide * values) - mean(guide) * mean(values)) / (
        mean(guide * guide) - mean(guide) ** 2 + variance
    )
    offset = mean(values) - slope * mean(guide)
    return mean(slope) * guide + mean(offset)


@pytest.mark.parametrize("radius", [1, 2, 4, 7])
def test_it_is_the_filter_of_the_paper(radius: int) -> None:
    values, guide = noisy(33, 47), step(33, 47)
    found = guided_filter(values, guide, radius=radius, variance=0.01)[0]
    wanted = reference(values[0].double().numpy(), guide.double().numpy(), radius, 0.01)
    np.testing.assert_allclose(found.numpy(), wanted, atol=2e-5)


def test_it_removes_noise_and_keeps_the_step() -> None:
    filtered = guided_filter(noisy(), step(), radius=4, variance=0.01)[0]
    assert filtered[:, 5:15].std() < 0.06
    across = filtered.mean(0)
    assert across[20] - across[19] > 0.3


def test_a_tile_has_the_bits_of_the_whole() -> None:
    values, guide = (
        noisy(60, 30),
        torch.from_numpy(
            np.random.default_rng(1).normal(size=(60, 30)).astype(np.float32)
        ),
    )
    whole = guided_filter(values, guide, radius=3, variance=0.1)
    part = guided_filter(values[:, 11:43], guide[11:43], radius=3, variance=0.1)
    assert torch.equal(part[:, 6:-6], whole[:, 17:37])


def test_noise_is_found_beside_edges() -> None:
    rng = np.random.default_rng(0)
    guide = (step(200, 200).numpy() * 5 + rng.normal(0, 0.3, (200, 200))).astype(
        np.float32
    )
    assert estimate_noise(guide) == pytest.approx(0.3, rel=0.05)
    assert estimate_noise(guide[:2]) == 0
