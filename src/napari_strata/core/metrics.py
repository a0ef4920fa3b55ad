"""Confusion matrix: counts of truth against prediction, and scores computed from it.

There is one global matrix, never a mean of batch means: averaging the IoU of batches
gave .72 where the true one was .62.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

import numpy as np

from napari_strata.core.classes import IGNORE, ClassMap
from napari_strata.core.text import describe_mean_iou

Array = np.ndarray[Any, Any]
Vector = np.ndarray[Any, np.dtype[np.float64]]


class ConfusionMatrix:
    """Counts of class indices: rows are the truth, columns the prediction.

    Unlabelled pixels are not counted. A score whose denominator is empty (a class that
    neither occurs nor is predicted) is NaN and left out of means.
    """

    def __init__(self, classes: ClassMap, counts: Array | None = None) -> None:
        size = len(classes)
        self.classes = classes
        if counts is None:
            counts = np.zeros((size, size), np.int64)
        self.counts: Array = np.asarray(counts, np.int64)

    def update(self, truth: Array, prediction: Array) -> None:
        """Count class indices of equal shape, except where `truth` is `IGNORE`.

        Raises
        ------
        ValueError
            When an index that counts is not one of the classes.
        """
        labelled = truth != IGNORE
        size = len(self.classes)
        rows = truth[labelled].astype(np.int64)
        columns = prediction[labelled].astype(np.int64)
        for indices in (rows, columns):
            if indices.size and (indices.min() < 0 or indices.max() >= size):
                raise ValueError(f"class indices must be 0 to {size - 1}")
        flat = rows * size + columns
        self.counts += np.bincount(flat, minlength=size * size).reshape(size, size)

    def __add__(self, other: ConfusionMatrix) -> ConfusionMatrix:
        return ConfusionMatrix(self.classes, self.counts + other.counts)

    @property
    def true_positives(self) -> Vector:
        return np.diagonal(self.counts).astype(np.float64)

    @property
    def support(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Labelled pixels of each class."""
        total: np.ndarray[Any, np.dtype[np.int64]] = self.counts.sum(axis=1)
        return total

    @property
    def predicted(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Pixels predicted as each class."""
        total: np.ndarray[Any, np.dtype[np.int64]] = self.counts.sum(axis=0)
        return total

    @property
    def iou(self) -> Vector:
        return _ratio(
            self.true_positives, self.support + self.predicted - self.true_positives
        )

    @property
    def dice(self) -> Vector:
        return _ratio(2 * self.true_positives, self.support + self.predicted)

    @property
    def precision(self) -> Vector:
        return _ratio(self.true_positives, self.predicted)

    @property
    def recall(self) -> Vector:
        return _ratio(self.true_positives, self.support)

    @property
    def f1(self) -> Vector:
        """Harmonic mean of precision and recall; per class it equals Dice."""
        return self.dice

    @property
    def pixel_accuracy(self) -> float:
        return float(_ratio(self.true_positives.sum(), self.counts.sum()))

    @property
    def mean_iou(self) -> float:
        """Mean over the classes that occur or are predicted; NaN for no class.

        A class that is only predicted has an IoU of 0, so that one stray pixel of it
        lowers this mean.
        """
        return _mean(self.iou)

    @property
    def mean_iou_in_truth(self) -> float:
        """Mean over the classes that occur in the truth; NaN for no class.

        The best epoch of a training has the highest one: these classes are the same in
        all epochs.
        """
        return _mean(self.iou[self.support > 0])

    @property
    def mean_dice(self) -> float:
        """Mean over the classes that occur or are predicted; NaN for no class."""
        return _mean(self.dice)

    @property
    def classes_in_truth(self) -> int:
        """Count of the classes that occur in the truth."""
        return int((self.support > 0).sum())

    def describe_mean_iou(self) -> str:
        """Describe the mean IoU in words; see `text.describe_mean_iou`."""
        return describe_scores(self.as_dict())

    def as_dict(self) -> dict[str, Any]:
        """Return the scores as plain data, NaN as None."""
        per_class = {}
        for i, name in enumerate(self.classes.names):
            per_class[name] = {
                "value": self.classes.values[i],
                "iou": none_if_nan(self.iou[i]),
                "dice": none_if_nan(self.dice[i]),
                "precision": none_if_nan(self.precision[i]),
                "recall": none_if_nan(self.recall[i]),
                "f1": none_if_nan(self.f1[i]),
                "support": int(self.support[i]),
            }
        return {
            "mean_iou": none_if_nan(self.mean_iou),
            "mean_iou_in_truth": none_if_nan(self.mean_iou_in_truth),
            "mean_dice": none_if_nan(self.mean_dice),
            "pixel_accuracy": none_if_nan(self.pixel_accuracy),
            "per_class": per_class,
            "confusion": self.counts.tolist(),
        }


def describe_scores(scores: Mapping[str, Any]) -> str:
    """Describe the mean IoU of scores, as `ConfusionMatrix.as_dict` returns them."""
    rows = list(scores["per_class"].values())
    in_truth = [row["iou"] for row in rows if row["support"]]
    return describe_mean_iou(
        scores.get("mean_iou"),
        fmean(in_truth) if in_truth else None,
        in_truth=len(in_truth),
        scored=sum(row["iou"] is not None for row in rows),
        classes=len(rows),
    )


def none_if_nan(value: float) -> float | None:
    """Return None for NaN, which JSON has not."""
    return None if np.isnan(value) else float(value)


def _ratio(top: Any, bottom: Any) -> Vector:
    top, bottom = np.asarray(top, np.float64), np.asarray(bottom, np.float64)
    out: Vector = np.full(np.broadcast(top, bottom).shape, np.nan)
    np.divide(top, bottom, out=out, where=bottom > 0)
    return out


def _mean(values: Vector) -> float:
    if np.isnan(values).all():  # also without values
        return float("nan")
    return float(np.nanmean(values))
