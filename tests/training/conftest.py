"""Small images with exact labels, and a recipe for trainings of a few seconds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from napari_strata.core.image import AnnotatedImage, Image

SMALL: dict[str, Any] = {
    "network.kind": "unet",
    "network.widths": (4, 8),
    "patches.size": 32,
    "patches.per_epoch": 16,
    "training.epochs": 4,
    "training.batch_size": 8,
    "training.learning_rate": 0.01,
    "training.precision": "fp32",
}


@pytest.fixture
def small() -> dict[str, Any]:
    """Overrides that make any recipe small."""
    return dict(SMALL)


@pytest.fixture
def scene() -> Callable[..., AnnotatedImage]:
    """Bright discs (1) on dark ground (0) with noise; `planes` of `size` pixels, the same for the same `seed`."""

    def build(
        seed: int = 0, *, planes: int = 4, size: int = 48, name: str = ""
    ) -> AnnotatedImage:
        rng = np.random.default_rng(seed)
        rows, columns = np.ogrid[:size, :size]
        truth = np.zeros((planes, size, size), np.uint8)
        for plane in truth:
            for _ in range(4):
                y, x = rng.integers(6, size - 6, 2)
                plane[
                    (rows - y) ** 2 + (columns - x) ** 2 < rng.integers(5, 10) ** 2
                ] = 1
        grey = 100 + 80 * truth + rng.normal(0, 15, truth.shape)
        image = Image(
            grey.clip(0, 255).astype(np.uint8), "ZYX", name=name or f"scene {seed}"
        )
        return AnnotatedImage(image, image.labels_like(truth))

    return build


@pytest.fixture
def strokes(scene: Callable[..., AnnotatedImage]) -> Callable[..., AnnotatedImage]:
    """A scene of which a few strokes of 1 (ground) and 2 (discs) are painted; 0 elsewhere."""

    def build(seed: int = 0, *, per_plane: int = 8) -> AnnotatedImage:
        pair = scene(seed, planes=3, size=96)
        truth = pair.labels.read()[0]
        painted = np.zeros_like(truth)
        rng = np.random.default_rng(seed)
        for z in range(2):
            for k in (0, 1):
                places = np.argwhere(truth[z] == k)
                for y, x in places[rng.choice(len(places), per_plane)]:
                    part = (z, slice(y, y + 2), slice(x, x + 7))
                    painted[part] = np.where(truth[part] == k, k + 1, painted[part])
        return AnnotatedImage(pair.image, pair.image.labels_like(painted))

    return build
