"""Strokes are fitted and a part of a plane is segmented, from features that are kept."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np
import pytest
import torch

from napari_strata.core.classes import IGNORE
from napari_strata.core.network_sections import Pixels
from napari_strata.models.pixels import live
from napari_strata.models.pixels.features import compute_features
from napari_strata.models.pixels.live import FeatureCache, fit_strokes, segment

SECTION = Pixels(trees=15, depth=6, levels=2)


def scene(key: Hashable, height: int = 90, width: int = 110) -> np.ndarray:
    """A plane (1, H, W) whose right half is brighter."""
    rng = np.random.default_rng(int(str(key)))
    grey = rng.normal(0, 0.3, (height, width))
    grey[:, width // 2 :] += 2
    return grey.astype(np.float32)[None]


def stroke(*, column: int, index: int) -> np.ndarray:
    painted = np.full((90, 110), IGNORE, np.uint8)
    painted[20:60, column : column + 3] = index
    return painted


def both() -> np.ndarray:
    return np.minimum(stroke(column=10, index=0), stroke(column=90, index=1))


class Reader:
    """Gives planes and counts how often each is read."""

    def __init__(self) -> None:
        self.keys: list[Hashable] = []

    def __call__(self, key: Hashable) -> np.ndarray:
        self.keys.append(key)
        return scene(key)


@pytest.fixture
def reader() -> Reader:
    return Reader()


@pytest.fixture
def cache(reader: Reader) -> FeatureCache:
    return FeatureCache(reader, levels=2, planes=3)


def test_planes_are_kept_until_others_were_looked_at(
    cache: FeatureCache, reader: Reader
) -> None:
    for key in (0, 1, 2, 0, 1, 3, 0):
        cache.plane(key)
    assert reader.keys == [0, 1, 2, 3]  # 2 made room for 3
    cache.plane(2)
    assert reader.keys[-1] == 2
    features = cache.plane(0).features
    assert features.dtype == torch.float16
    wanted = compute_features(torch.from_numpy(scene(0)), 2)
    assert torch.equal(features, wanted.half())
    cache.forget(0)
    cache.plane(0)
    assert reader.keys[-1] == 0


def test_features_under_strokes_outlive_their_plane(
    cache: FeatureCache, reader: Reader
) -> None:
    strokes = {0: stroke(column=10, index=0)}
    cache.labelled(strokes)
    for key in (1, 2, 3):
        cache.plane(key)
    strokes[1] = stroke(column=90, index=1)
    features, labels = cache.labelled(strokes)
    assert reader.keys == [0, 1, 2, 3]
    assert features.shape == (2 * 120, 19)
    assert labels.tolist() == [0] * 120 + [1] * 120
    # A class that is painted over keeps the features of its pixels.
    strokes[0] = stroke(column=10, index=1)
    again, labels = cache.labelled(strokes)
    np.testing.assert_array_equal(again, features)
    assert labels.tolist() == [1] * 240
    assert cache.labelled({})[0].size == 0


def test_a_stroke_becomes_a_mask(cache: FeatureCache) -> None:
    classifier = fit_strokes(cache, {0: both()}, classes=2, section=SECTION)
    box = (slice(0, 90), slice(0, 110))
    mask, margin = segment(classifier, cache.plane(5), box)
    truth = np.arange(110) >= 55
    assert (mask == truth).mean() > 0.97
    assert mask.dtype == np.uint8
    assert margin[:, 51:59].mean() < margin[:, 5:40].mean()


@pytest.mark.parametrize("step", [1, 2, 3])
@pytest.mark.parametrize("box", [(0, 90, 0, 110), (7, 50, 30, 93), (40, 41, 3, 4)])
def test_a_part_is_a_part_of_the_whole(
    cache: FeatureCache, step: int, box: tuple[int, int, int, int]
) -> None:
    classifier = fit_strokes(cache, {0: both()}, classes=2, section=SECTION)
    top, bottom, left, right = box
    plane = cache.plane(0)
    part, margin = segment(
        classifier, plane, (slice(top, bottom), slice(left, right)), step=step
    )
    rows, columns = slice(top, bottom, step), slice(left, right, step)
    assert part.shape == margin.shape == np.empty((90, 110))[rows, columns].shape
    if step == 1:
        whole, _ = segment(classifier, plane, (slice(0, 90), slice(0, 110)))
        np.testing.assert_array_equal(part, whole[rows, columns])
    elif part.size > 100:
        truth = np.broadcast_to(np.arange(110) >= 55, (90, 110))[rows, columns]
        assert (part == truth).mean() > 0.95


def test_everything_can_be_compiled_ahead() -> None:
    live.warm_up()
