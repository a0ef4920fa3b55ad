"""The classifier and its predictor: blocks, tiles, tensors, and labels that depend on neither."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from napari_strata.core.classes import ClassMap
from napari_strata.core.errors import ModelError
from napari_strata.core.network_sections import Pixels
from napari_strata.core.normalization import ResolvedNormalization, Scale
from napari_strata.core.spec import ModelSpec
from napari_strata.models.pixels.classifier import STEPS, PixelClassifier, guide_of
from napari_strata.models.pixels.features import compute_features
from napari_strata.models.pixels.predictor import PixelPredictor
from napari_strata.models.tiled import TiledPredictor

SCALE = Scale(center=(0.0,), spread=(1.0,), low=(-9.0,), high=(9.0,))
SECTION = Pixels(levels=2, trees=10, depth=6, filter_radius=3)


def scene(height: int, width: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A plane of discs with noise (1, H, W), and its classes (H, W)."""
    rng = np.random.default_rng(seed)
    rows, columns = np.ogrid[:height, :width]
    truth = np.zeros((height, width), np.uint8)
    for _ in range(height * width // 500):
        y, x = rng.integers(height), rng.integers(width)
        truth[(rows - y) ** 2 + (columns - x) ** 2 < 60] = 1
    grey = 2.0 * truth + rng.normal(0, 0.5, truth.shape)
    return grey.astype(np.float32)[None], truth


def fitted(section: Pixels = SECTION) -> PixelClassifier:
    image, truth = scene(80, 80)
    features = compute_features(torch.from_numpy(image), section.resolved_levels)
    return PixelClassifier.fit(
        features.flatten(1).T.numpy(),
        truth.ravel(),
        classes=2,
        section=section,
        levels=section.resolved_levels,
        noise=0.5,
    )


def make_spec(**changes) -> ModelSpec:
    geometry = SECTION.geometry()
    facts = {
        "network": SECTION,
        "in_channels": 1,
        "classes": ClassMap(names=("a", "b"), values=(1, 2)),
        "dtype": "float32",
        "normalization": ResolvedNormalization(kind="physical", scale=SCALE),
        "patch": 32,
        "stride": geometry.stride,
        "tile": 1536,
        "halo": -(-geometry.reach // geometry.stride) * geometry.stride,
        "blend": False,
    }
    return ModelSpec.model_validate(facts | changes)


def predictor(classifier: PixelClassifier, **changes) -> PixelPredictor:
    return PixelPredictor(classifier, make_spec(**changes), device=torch.device("cpu"))


def test_it_segments_what_it_was_not_fitted_on() -> None:
    image, truth = scene(120, 90, seed=1)
    probabilities = fitted().predict(torch.from_numpy(image))
    assert (probabilities.argmax(0).numpy() == truth).mean() > 0.97


def test_tiles_and_blocks_have_the_bits_of_the_whole() -> None:
    """Also where the plane is larger than a block, and with any tile."""
    classifier = fitted()
    image, _ = scene(700, 431, seed=2)
    whole = classifier.predict(torch.from_numpy(image))
    wanted = whole.clamp(0.5 / STEPS).log().numpy()
    for tile in (40, 64, 1536):
        tiles = TiledPredictor(predictor(classifier, tile=tile))
        np.testing.assert_array_equal(tiles.predict_logits(image, SCALE), wanted)


def test_the_number_of_threads_of_torch_stays() -> None:
    before = torch.get_num_threads()
    predictor(fitted()).logits(np.zeros((2, 1, 30, 30), np.float32))
    assert torch.get_num_threads() == before


def test_probabilities_are_whole_steps() -> None:
    image, _ = scene(50, 50, seed=3)
    steps = fitted().predict(torch.from_numpy(image)).double().numpy() * STEPS
    np.testing.assert_array_equal(steps, steps.round())


def test_boosted_trees_give_probabilities() -> None:
    """Within the steps of the table that exponentials are looked up in."""
    section = SECTION.model_copy(update={"method": "boosting", "filter_radius": 0})
    classifier = fitted(section)
    image = torch.from_numpy(scene(60, 60, seed=5)[0])
    probabilities = classifier.predict(image)
    features = compute_features(image, 2).flatten(1)
    logits = classifier.trees.sums(features).reshape(probabilities.shape)
    torch.testing.assert_close(probabilities, logits.softmax(0), atol=0.003, rtol=0)
    assert (probabilities.argmax(0).numpy() == scene(60, 60, seed=5)[1]).mean() > 0.95


@pytest.mark.parametrize("method", ["extra_trees", "boosting"])
def test_a_classifier_is_kept_in_tensors(method: str) -> None:
    section = SECTION.model_copy(update={"method": method})
    classifier = fitted(section)
    weights = {name: value.clone() for name, value in classifier.weights().items()}
    copy = PixelClassifier.from_weights(weights, section)
    image = torch.from_numpy(scene(50, 50, seed=3)[0])
    assert torch.equal(copy.predict(image), classifier.predict(image))
    del weights["leaves"]
    with pytest.raises(ModelError, match="'leaves' is missing"):
        PixelClassifier.from_weights(weights, SECTION)


def test_the_filter_is_a_choice() -> None:
    classifier = fitted()
    image = torch.from_numpy(scene(60, 60, seed=4)[0])
    plain = replace(classifier, filter_radius=0).predict(image)
    assert plain.argmax(0).ne(classifier.predict(image).argmax(0)).any()
    features = compute_features(image, 2).flatten(1)
    sums = classifier.trees.sums(features).reshape(plain.shape)
    torch.testing.assert_close(plain, sums, atol=1 / STEPS, rtol=0)


def test_neighbouring_slices_do_not_guide_the_filter() -> None:
    image = torch.arange(12.0).reshape(6, 1, 2)
    assert torch.equal(guide_of(image), image.mean(0))
    assert torch.equal(guide_of(image, 1), image[2:4].mean(0))


def test_memory_grows_with_channels_and_stays_with_the_plane() -> None:
    """A CPU holds features of a few blocks, whatever the size of the plane."""
    classifier = fitted()
    small = predictor(classifier).memory((2000, 2000))
    large = predictor(classifier).memory((4000, 4000))
    assert large - small == 4 * 3 * (4000**2 - 2000**2)
    assert predictor(classifier, in_channels=3).memory((2000, 2000)) > 1.5 * small
