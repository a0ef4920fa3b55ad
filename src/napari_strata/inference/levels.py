"""Choice of the octave levels of a pixel classifier, by strokes that are held out."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from napari_strata.core.network_sections import LEVELS, Pixels
from napari_strata.data.strokes import draw_folds
from napari_strata.models.pixels.classifier import iter_trees
from napari_strata.models.pixels.features import count_features
from napari_strata.models.pixels.trees import stack_trees

Array = np.ndarray[Any, Any]

FOLDS = 3
"""Times that a part of the strokes is held back to choose levels and to measure."""

TOLERANCE = 1.25
"""Fewer levels are chosen if their cross-entropy is at most this times the lowest.

Measured on sandstone slices that nothing else was chosen on: 3 levels in place of 2
cost .013 of mean IoU where their cross-entropy was lower by chance.
"""

CHOICE_TREES, CHOICE_PIXELS = 20, 5_000
"""A smaller fit, on so many pixels, is enough to choose the levels."""


def choose_levels(
    features: Array,
    labels: Array,
    strokes: Array,
    *,
    classes: int,
    channels: int,
    section: Pixels,
    seed: int,
) -> tuple[int, str]:
    """Choose the number of octave levels, and say in words why.

    A cross-validation over strokes with few trees decides: the fewest levels that are
    not much worse than the best. A small gain is not worth more levels: strokes lie
    away from edges, so the score does not show that coarse features blur edges.

    Parameters
    ----------
    features
        of all levels, float32 (n, F).
    labels, strokes
        class index and number of the stroke of each pixel (n,).
    """
    small = section.model_copy(update={"trees": min(section.trees, CHOICE_TREES)})
    losses = {}
    for levels in LEVELS:
        held_out_labels, probabilities = predict_held_out(
            features[:, : count_features(channels, levels)],
            labels,
            strokes,
            classes=classes,
            section=small,
            seed=seed,
        )
        if not len(held_out_labels):
            return LEVELS[0], (
                f"features of {LEVELS[0]} octave levels: too few strokes to choose by"
            )
        losses[levels] = cross_entropy(probabilities, held_out_labels)
    limit = TOLERANCE * min(losses.values())
    best = next(levels for levels in LEVELS if losses[levels] <= limit)
    tried = ", ".join(f"{levels}: {loss:.3f}" for levels, loss in losses.items())
    return best, (
        f"features of {best} octave levels, by the cross-entropy of held-out labels"
        f" ({tried})"
    )


def predict_held_out(
    features: Array,
    labels: Array,
    strokes: Array,
    *,
    classes: int,
    section: Pixels,
    seed: int,
) -> tuple[Array, Array]:
    """Hold out each stroke once, and predict it by trees of the others.

    Returns
    -------
    Labels (m,) and probabilities (m, K) of all pixels that were held out.
    """
    fold = draw_folds(strokes, labels, folds=FOLDS, seed=seed)
    held_out_labels, probabilities = [], [np.empty((0, classes))]
    for number in range(FOLDS):
        held_out = np.flatnonzero(fold == number)
        if not len(held_out):
            continue
        others = np.flatnonzero(fold != number)
        grown = iter_trees(
            features[others], labels[others], classes, section=section, seed=seed
        )
        trees = stack_trees(list(grown))
        values = torch.from_numpy(np.ascontiguousarray(features[held_out].T))
        held_out_labels.append(labels[held_out])
        probabilities.append(tree_probabilities(trees.sums(values).numpy().T, section))
    return (
        np.concatenate([*held_out_labels, np.empty(0, np.int64)]),
        np.concatenate(probabilities),
    )


def tree_probabilities(sums: Array, section: Pixels) -> Array:
    """Probabilities (n, K) of the sums of some trees."""
    if section.method == "boosting":
        sums = np.exp(sums - sums.max(axis=1, keepdims=True))
    probabilities: Array = sums / sums.sum(axis=1, keepdims=True)
    return probabilities


def cross_entropy(probabilities: Array, labels: Array) -> float:
    """Mean cross-entropy of probabilities (n, K) and class indices (n,)."""
    likely = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(likely, 1e-7)).mean())
