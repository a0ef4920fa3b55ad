"""Strokes: what counts as one, and that none is on both sides of a fold."""

from __future__ import annotations

import numpy as np

from helpers import easy_pair
from napari_strata.core.classes import IGNORE, ClassMap
from napari_strata.core.image import AnnotatedImage
from napari_strata.data.regions import labelled_regions
from napari_strata.data.split import STROKES_TEXT, split_pairs
from napari_strata.data.strokes import (
    GRID,
    are_strokes,
    draw_folds,
    number_strokes,
)


def plane() -> np.ndarray:
    """Three strokes, two of class 0 and one of class 1 that touches one of them."""
    labels = np.full((60, 60), IGNORE, np.uint8)
    labels[5:8, 5:30] = 0
    labels[8:11, 5:30] = 1
    labels[40:43, 5:30] = 0
    return labels


def test_a_stroke_is_a_connected_area_of_one_class() -> None:
    numbers = number_strokes(plane())
    assert set(np.unique(numbers)) == {0, 1, 2, 3}
    assert (numbers == 0).sum() == (plane() == IGNORE).sum()
    for number in (1, 2, 3):
        assert len(np.unique(plane()[numbers == number])) == 1


def test_an_area_is_cut_along_a_grid() -> None:
    labels = np.zeros((2 * GRID, 3 * GRID), np.uint8)
    numbers = number_strokes(labels)
    assert set(np.unique(numbers)) == set(range(1, 7))
    assert (numbers == numbers[0, 0]).sum() == GRID**2
    labels[0, 0] = IGNORE
    numbers = number_strokes(labels)
    assert set(np.unique(numbers)) == set(range(7))
    assert (numbers == 0).sum() == 1


def test_folds_hold_whole_strokes_back_and_share_classes() -> None:
    rng = np.random.default_rng(0)
    labels_of = np.repeat([0, 1, 2], [9, 6, 1])
    sizes = rng.integers(20, 60, len(labels_of))
    strokes = np.repeat(np.arange(len(labels_of)), sizes)
    labels = np.repeat(labels_of, sizes)
    fold = draw_folds(strokes, labels, folds=3, seed=0)
    for number in np.unique(strokes):
        assert len(np.unique(fold[strokes == number])) == 1
    for k in (0, 1):
        counts = np.bincount(fold[labels == k], minlength=3)
        assert counts.min() > 0.5 * counts.max()
    # The only stroke of a class always trains.
    assert (fold[labels == 2] == -1).all()
    np.testing.assert_array_equal(fold, draw_folds(strokes, labels, folds=3, seed=0))


def painted(share: float) -> AnnotatedImage:
    pair = easy_pair((3, 64, 64))
    truth = pair.labels.read()[0].astype(np.uint8)
    values = np.where(truth > 0, 2, 1).astype(np.uint8)
    values[:, :, int(64 * share) :] = 0
    return AnnotatedImage(pair.image, pair.image.labels_like(values))


def test_strokes_train_where_a_fit_asks_for_it() -> None:
    classes = ClassMap(names=("a", "b"), values=(1, 2), unlabelled=(0,))
    for share, expected in ((0.1, True), (0.9, False)):
        pair = painted(share)
        assert are_strokes(labelled_regions(pair, classes)) == expected
        split = split_pairs(
            pair, fraction=0.2, seed=0, classes=classes, strokes_train=True
        )
        assert (split.text == STROKES_TEXT) == expected
        assert bool(split.validation) != expected
    assert split_pairs(painted(0.1), fraction=0.2, seed=0, classes=classes).validation
