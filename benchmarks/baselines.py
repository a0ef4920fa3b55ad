"""Baselines for a network: the majority class, and boosted trees.

The trees see scikit-image's multiscale features.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from skimage.feature import multiscale_basic_features
from sklearn.ensemble import HistGradientBoostingClassifier

import napari_strata as ns
from napari_strata.core.classes import IGNORE, ClassMap
from napari_strata.core.image import AnnotatedImage
from napari_strata.data.regions import label_counts, labelled_regions

PIXELS = 400_000
"""Labelled pixels that the trees see, drawn as they occur.

With classes drawn evenly they do worse on sandstone 0300 (.898 against .929, both with
60,000).
"""


def majority(
    training: list[AnnotatedImage], test: list[AnnotatedImage], classes: ClassMap
) -> ns.ConfusionMatrix:
    """The class that most training pixels have, everywhere."""
    index = int(
        label_counts(labelled_regions(training, classes), classes).sum(axis=0).argmax()
    )
    confusion = ns.ConfusionMatrix(classes)
    for part in labelled_regions(test, classes):
        labels = part.read_class_indices(classes)
        confusion.update(labels, np.full_like(labels, index))
    return confusion


def boosted_trees(
    training: list[AnnotatedImage], test: list[AnnotatedImage], classes: ClassMap
) -> ns.ConfusionMatrix:
    """Train gradient boosting on multiscale features; return its scores on `test`."""
    rng = np.random.default_rng(0)
    rows, answers = [], []
    parts = labelled_regions(training, classes)
    for part in parts:
        features, labels = (
            _features(part.read_image()),
            part.read_class_indices(classes).ravel(),
        )
        drawn = rng.permutation(np.flatnonzero(labels != IGNORE))[
            : PIXELS // len(parts)
        ]
        rows.append(features[drawn])
        answers.append(labels[drawn])
    trees = HistGradientBoostingClassifier(random_state=0).fit(
        np.concatenate(rows), np.concatenate(answers)
    )
    confusion = ns.ConfusionMatrix(classes)
    for part in labelled_regions(test, classes):
        labels = part.read_class_indices(classes).ravel()
        labelled = labels != IGNORE
        confusion.update(
            labels[labelled], trees.predict(_features(part.read_image())[labelled])
        )
    return confusion


def _features(image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Features (pixels, F) of an image (C, H, W)."""
    scores = multiscale_basic_features(
        np.moveaxis(image, 0, -1), sigma_min=0.5, sigma_max=16, channel_axis=-1
    )
    return scores.reshape(-1, scores.shape[-1])
