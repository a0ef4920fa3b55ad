"""Oblivious trees: what they learn, and that each way to sum them gives the same bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from napari_strata.models.pixels import kernels
from napari_strata.models.pixels.trees import (
    BinnedPixels,
    ObliviousTrees,
    iter_boosted_trees,
    iter_extra_trees,
    stack_trees,
)


def points(n: int = 3000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Three classes that two of four features tell apart, and only together."""
    features = np.random.default_rng(seed).normal(size=(n, 4)).astype(np.float32)
    labels = (features[:, 1] > 0.3).astype(int) + (
        (features[:, 2] > -0.2) & (features[:, 1] > 0.3)
    )
    return features, labels


def grow(
    features: np.ndarray, labels: np.ndarray, *, trees: int = 30, depth: int = 6, seed=0
) -> ObliviousTrees:
    pixels = BinnedPixels.of(features, labels, int(labels.max()) + 1)
    return stack_trees(
        list(
            iter_extra_trees(pixels, trees=trees, depth=depth, candidates=16, seed=seed)
        )
    )


def boost(
    features: np.ndarray, labels: np.ndarray, *, trees: int = 60
) -> ObliviousTrees:
    pixels = BinnedPixels.of(features, labels, int(labels.max()) + 1)
    return stack_trees(
        list(
            iter_boosted_trees(
                pixels, trees=trees, depth=4, candidates=16, learning_rate=0.2, seed=0
            )
        )
    )


def predict(trees: ObliviousTrees, features: np.ndarray) -> np.ndarray:
    return trees.gathered_sums(torch.from_numpy(features.T.copy())).numpy()


def test_trees_learn_classes_that_need_two_features() -> None:
    trees = grow(*points())
    features, labels = points(seed=1)
    probabilities = predict(trees, features)
    np.testing.assert_allclose(probabilities.sum(0), 1, atol=1e-5)
    assert (probabilities.argmax(0) == labels).mean() > 0.97
    # As good as scikit-learn's extremely randomised trees, which are not oblivious.
    from sklearn.ensemble import ExtraTreesClassifier

    oracle = ExtraTreesClassifier(30, max_depth=6, random_state=0).fit(*points())
    assert (probabilities.argmax(0) == labels).mean() > oracle.score(
        features, labels
    ) - 0.02


def test_boosted_trees_are_as_good_as_those_of_scikit_learn() -> None:
    """On noisy labels, where more than the largest logit counts."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.metrics import log_loss

    def noisy(seed: int) -> tuple[np.ndarray, np.ndarray]:
        features, labels = points(6000, seed=seed)
        moved = np.random.default_rng(seed).random(len(labels)) < 0.2
        return features, np.where(moved, (labels + 1) % 3, labels)

    features, labels = noisy(1)
    logits = predict(boost(*noisy(0)), features)
    probabilities = np.exp(logits) / np.exp(logits).sum(0)
    oracle = HistGradientBoostingClassifier(max_iter=60, random_state=0).fit(*noisy(0))
    wanted = log_loss(labels, oracle.predict_proba(features))
    assert log_loss(labels, probabilities.T) < wanted + 0.02
    fewer = predict(boost(*noisy(0), trees=5), features)
    probabilities = np.exp(fewer) / np.exp(fewer).sum(0)
    assert log_loss(labels, probabilities.T) > wanted + 0.03


@pytest.mark.parametrize("count", [1, 511, 20_000])
def test_numba_and_torch_give_the_same_bits(count: int) -> None:
    pytest.importorskip("numba")
    trees = grow(*points())
    values = torch.from_numpy(points(count, seed=2)[0].T.copy())
    for threads in (1, 3):
        compiled = kernels.sum_leaves(
            values.numpy(),
            trees.feature,
            trees.threshold,
            trees.leaves,
            threads=threads,
        )
        np.testing.assert_array_equal(compiled, trees.gathered_sums(values).numpy())


def test_without_numba_torch_takes_over(monkeypatch: pytest.MonkeyPatch) -> None:
    trees = grow(*points())
    values = torch.from_numpy(points(400)[0].T.copy())
    monkeypatch.setattr(kernels, "available", lambda: False)
    monkeypatch.setattr(kernels, "sum_leaves", None)
    assert torch.equal(trees.sums(values), trees.gathered_sums(values))


def test_the_seed_alone_decides_the_trees() -> None:
    first, second, other = (grow(*points(), seed=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.feature, second.feature)
    np.testing.assert_array_equal(first.threshold, second.threshold)
    np.testing.assert_array_equal(first.leaves, second.leaves)
    assert not np.array_equal(first.threshold, other.threshold)


def test_training_leaves_are_those_of_a_prediction() -> None:
    """Bins of training pixels and thresholds of a prediction agree at every pixel."""
    features, labels = points()
    features = features.round(1)  # many pixels on a threshold
    pixels = BinnedPixels.of(features, labels, 3)
    for tree in iter_extra_trees(pixels, trees=5, depth=6, candidates=16, seed=0):
        results = features[:, tree.feature] > tree.threshold
        number = (results * 2 ** np.arange(5, -1, -1)).sum(axis=1)
        np.testing.assert_array_equal(number, tree.leaf_of_pixel)


def test_an_empty_leaf_has_the_probabilities_around_it() -> None:
    features, labels = points(60)
    probabilities = predict(grow(features, labels, depth=10), points(2000, seed=1)[0])
    assert (probabilities > 0).all()
    assert (probabilities.argmax(0) == points(2000, seed=1)[1]).mean() > 0.8


def test_features_of_one_value_ask_nothing() -> None:
    features = np.zeros((50, 3), np.float32)
    labels = np.arange(50) % 2
    probabilities = predict(grow(features, labels), np.ones((4, 3), np.float32))
    np.testing.assert_allclose(probabilities, 0.5, atol=0.02)
