from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    f1_score,
    jaccard_score,
    precision_score,
    recall_score,
)

from napari_strata.core.classes import IGNORE, ClassMap
from napari_strata.core.metrics import ConfusionMatrix, describe_scores

K = 4
CLASSES = ClassMap(names=("a", "b", "c", "d"), values=(1, 2, 3, 7))
LABELS = hnp.arrays(np.uint8, (5, 7), elements=st.integers(0, K - 1))
SPARSE = hnp.arrays(np.uint8, (5, 7), elements=st.sampled_from([0, 1, 2, 3, IGNORE]))


def _matrix(*pairs: tuple[np.ndarray, np.ndarray]) -> ConfusionMatrix:
    matrix = ConfusionMatrix(CLASSES)
    for truth, prediction in pairs:
        matrix.update(truth, prediction)
    return matrix


@given(SPARSE, LABELS)
def test_counts_equal_counting_one_by_one(
    truth: np.ndarray, prediction: np.ndarray
) -> None:
    expected = np.zeros((K, K), int)
    for t, p in zip(truth.ravel(), prediction.ravel(), strict=True):
        if t != IGNORE:
            expected[t, p] += 1
    np.testing.assert_array_equal(_matrix((truth, prediction)).counts, expected)


@given(LABELS, LABELS)
def test_scores_equal_scikit_learn(truth: np.ndarray, prediction: np.ndarray) -> None:
    t, p, labels = truth.ravel(), prediction.ravel(), np.arange(K)
    matrix = _matrix((truth, prediction))
    np.testing.assert_array_equal(matrix.counts, confusion_matrix(t, p, labels=labels))
    assert math.isclose(matrix.pixel_accuracy, accuracy_score(t, p))
    for ours, theirs in (
        (matrix.f1, f1_score),
        (matrix.dice, f1_score),
        (matrix.precision, precision_score),
        (matrix.recall, recall_score),
    ):
        expected = theirs(t, p, labels=labels, average=None, zero_division=np.nan)
        np.testing.assert_allclose(ours, expected)
    present = (matrix.support + matrix.predicted) > 0
    iou = jaccard_score(t, p, labels=labels, average=None, zero_division=0)
    np.testing.assert_allclose(matrix.iou, np.where(present, iou, np.nan))
    assert math.isclose(matrix.mean_iou, iou[present].mean())
    np.testing.assert_array_equal(matrix.support, np.bincount(t, minlength=K))
    np.testing.assert_array_equal(matrix.predicted, np.bincount(p, minlength=K))


@settings(max_examples=30, deadline=None)
@given(SPARSE, LABELS)
def test_scores_equal_torchmetrics_with_unlabelled_pixels(
    truth: np.ndarray, prediction: np.ndarray
) -> None:
    torch = pytest.importorskip("torch")
    functional = pytest.importorskip("torchmetrics.functional.classification")
    matrix = _matrix((truth, prediction))
    both = (
        torch.from_numpy(prediction.astype(np.int64)),
        torch.from_numpy(truth.astype(np.int64)),
    )
    options = {"num_classes": K, "ignore_index": IGNORE}
    np.testing.assert_array_equal(
        matrix.counts, functional.multiclass_confusion_matrix(*both, **options).numpy()
    )
    # Where a ratio has nothing below, torchmetrics has 0 and ours is NaN.
    for name, ours in (
        ("jaccard_index", matrix.iou),
        ("f1_score", matrix.dice),
        ("precision", matrix.precision),
        ("recall", matrix.recall),
    ):
        theirs = getattr(functional, f"multiclass_{name}")(
            *both, average="none", **options
        ).numpy()
        np.testing.assert_allclose(np.nan_to_num(ours), theirs, rtol=1e-6, err_msg=name)
    if matrix.counts.any():
        accuracy = functional.multiclass_accuracy(*both, average="micro", **options)
        assert math.isclose(matrix.pixel_accuracy, float(accuracy), rel_tol=1e-6)
        macro = functional.multiclass_jaccard_index(*both, average="macro", **options)
        assert math.isclose(matrix.mean_iou, float(macro), rel_tol=1e-6)


def test_every_score_by_hand_beside_pixels_that_are_not_labelled() -> None:
    truth = np.array(
        [[0, 0, 0, 1], [1, 2, 2, 2], [IGNORE, IGNORE, IGNORE, IGNORE]], np.uint8
    )
    prediction = np.array([[0, 0, 1, 1], [0, 2, 2, 2], [0, 1, 2, 3]], np.uint8)
    matrix = _matrix((truth, prediction))
    assert matrix.counts.tolist() == [
        [2, 1, 0, 0],
        [1, 1, 0, 0],
        [0, 0, 3, 0],
        [0, 0, 0, 0],
    ]
    nan = math.nan
    np.testing.assert_allclose(matrix.iou, [2 / 4, 1 / 3, 1, nan])
    np.testing.assert_allclose(matrix.dice, [4 / 6, 2 / 4, 1, nan])
    np.testing.assert_allclose(matrix.precision, [2 / 3, 1 / 2, 1, nan])
    np.testing.assert_allclose(matrix.recall, [2 / 3, 1 / 2, 1, nan])
    assert matrix.pixel_accuracy == pytest.approx(6 / 8)
    assert matrix.mean_iou == pytest.approx((1 / 2 + 1 / 3 + 1) / 3)


@given(SPARSE, LABELS, LABELS)
def test_unlabelled_pixels_change_nothing(
    truth: np.ndarray, one: np.ndarray, other: np.ndarray
) -> None:
    mixed = np.where(truth == IGNORE, other, one)
    np.testing.assert_array_equal(
        _matrix((truth, one)).counts, _matrix((truth, mixed)).counts
    )


def test_the_matrix_is_global_not_a_mean_of_parts() -> None:
    good = (np.zeros((10, 10), np.uint8), np.zeros((10, 10), np.uint8))
    bad = (np.array([[0, 1]], np.uint8), np.array([[1, 1]], np.uint8))
    whole = _matrix(good, bad)
    np.testing.assert_allclose(whole.iou[:2], [100 / 101, 1 / 2])
    np.testing.assert_array_equal((_matrix(good) + _matrix(bad)).counts, whole.counts)
    assert whole.mean_iou == pytest.approx((100 / 101 + 1 / 2) / 2)
    assert whole.mean_dice == pytest.approx((200 / 201 + 2 / 3) / 2)


def test_a_class_that_neither_occurs_nor_is_predicted_is_left_out() -> None:
    matrix = _matrix((np.array([0, 0, 1], np.uint8), np.array([0, 1, 1], np.uint8)))
    assert np.isnan(matrix.iou[2:]).all()
    assert matrix.mean_iou == pytest.approx(0.5)
    missed = _matrix((np.array([0, 2], np.uint8), np.array([0, 0], np.uint8)))
    assert missed.iou[2] == 0
    assert np.isnan(missed.precision[2])


def test_nothing_counted_is_nan_and_none_in_json() -> None:
    matrix = _matrix((np.full((2, 2), IGNORE, np.uint8), np.zeros((2, 2), np.uint8)))
    assert math.isnan(matrix.mean_iou)
    assert math.isnan(matrix.pixel_accuracy)
    plain = matrix.as_dict()
    assert plain["mean_iou"] is None
    assert plain["per_class"]["d"]["f1"] is None
    json.dumps(plain, allow_nan=False)


def test_as_dict_names_classes_and_values() -> None:
    plain = _matrix(
        (np.array([0, 3, 3], np.uint8), np.array([0, 3, 0], np.uint8))
    ).as_dict()
    assert plain["per_class"]["d"] == {
        "value": 7,
        "iou": 0.5,
        "dice": pytest.approx(2 / 3),
        "precision": 1.0,
        "recall": 0.5,
        "f1": pytest.approx(2 / 3),
        "support": 2,
    }
    assert plain["confusion"][3] == [1, 0, 0, 1]
    assert plain["pixel_accuracy"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(("truth", "prediction"), [(0, 4), (4, 0), (3, IGNORE)])
def test_indices_out_of_range_are_not_counted_as_something_else(
    truth: int, prediction: int
) -> None:
    with pytest.raises(ValueError, match="0 to 3"):
        _matrix((np.array([truth], np.uint8), np.array([prediction], np.uint8)))


def test_counts_do_not_overflow() -> None:
    matrix = ConfusionMatrix(CLASSES, np.full((K, K), 2**40))
    assert (matrix + matrix).counts.dtype == np.int64
    assert matrix.pixel_accuracy == 0.25


def test_one_stray_pixel_of_an_absent_class_changes_one_mean_only() -> None:
    """Classes a, b and c are in the truth, d is not."""
    truth = np.repeat([0, 1, 2], 100).astype(np.uint8)
    prediction = truth.copy()
    prediction[:50] = 1
    clean = _matrix((truth, prediction))
    assert (
        clean.mean_iou
        == clean.mean_iou_in_truth
        == pytest.approx((0.5 + 2 / 3 + 1) / 3)
    )
    assert clean.describe_mean_iou() == (
        "mean IoU 0.722 over the 3 of 4 classes in the truth"
    )
    prediction[0] = 3
    stray = _matrix((truth, prediction))
    assert stray.classes_in_truth == 3
    assert stray.mean_iou_in_truth == pytest.approx(clean.mean_iou, abs=0.002)
    assert stray.mean_iou == pytest.approx(0.75 * stray.mean_iou_in_truth)
    assert stray.describe_mean_iou() == (
        "mean IoU 0.724 over the 3 of 4 classes in the truth (0.543 with those only "
        "predicted)"
    )
    plain = stray.as_dict()
    assert plain["mean_iou_in_truth"] == stray.mean_iou_in_truth
    # Files of earlier versions have no such key.
    del plain["mean_iou_in_truth"]
    assert describe_scores(plain) == stray.describe_mean_iou()


def test_with_all_classes_in_the_truth_the_text_is_short() -> None:
    truth = np.arange(4, dtype=np.uint8)
    assert _matrix((truth, truth)).describe_mean_iou() == "mean IoU 1.000"
    assert ConfusionMatrix(CLASSES).describe_mean_iou() == "mean IoU -"


@given(SPARSE, LABELS)
def test_both_means_agree_where_no_absent_class_is_predicted(
    truth: np.ndarray, prediction: np.ndarray
) -> None:
    matrix = _matrix((truth, prediction))
    in_truth, predicted = matrix.support > 0, matrix.predicted > 0
    if (predicted & ~in_truth).any():
        assert matrix.mean_iou <= matrix.mean_iou_in_truth
    else:
        np.testing.assert_equal(matrix.mean_iou, matrix.mean_iou_in_truth)
