"""Results of a cross-validation, as a value, as CSV and as text."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from napari_strata.core.classes import ClassMap
from napari_strata.core.errors import RunError
from napari_strata.core.events import describe_agreement
from napari_strata.core.metrics import ConfusionMatrix, none_if_nan
from napari_strata.core.runs import CrossvalFolder

Vector = np.ndarray[Any, np.dtype[np.float64]]

SCORES = ("mean_iou", "mean_iou_in_truth", "mean_dice", "pixel_accuracy")
"""Scores of all classes together."""

CLASS_SCORES = ("iou", "dice", "precision", "recall", "f1")
"""Scores of each class."""

OPTIMISM = (
    "The best epoch of each fold was chosen on the part that it is scored on, "
    "so these scores are a little too good."
)


@dataclass(frozen=True, eq=False)
class FoldScore:
    """Score of a fold on its validation data.

    Parameters
    ----------
    run
        Name of its run folder, such as ``fold_1``.
    held_out
        Description of the validation data.
    confusion
        Confusion matrix of the best model over all labelled pixels of these data.
    epochs
        Number of epochs in the recipe.
    best_epoch
        Epoch of the best model.
    seconds
        Time of the training.
    stroke_pixels
        Number of pixels that it is scored on, where only strokes are labelled; else 0.
    """

    run: str
    held_out: str
    confusion: ConfusionMatrix
    epochs: int
    best_epoch: int
    seconds: float
    stroke_pixels: int = 0

    @property
    def agreement(self) -> str:
        """Agreement with held-out strokes in words; empty where areas are labelled."""
        return describe_agreement(self.confusion.pixel_accuracy, self.stroke_pixels)

    def as_dict(self) -> dict[str, Any]:
        """Return plain data; see `ConfusionMatrix.as_dict`."""
        facts = {
            "run": self.run,
            "held_out": self.held_out,
            "epochs": self.epochs,
            "best_epoch": self.best_epoch,
            "stroke_pixels": self.stroke_pixels,
        }
        return facts | {"seconds": round(self.seconds, 3)} | self.confusion.as_dict()

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], classes: ClassMap) -> FoldScore:
        """Rebuild the value from the result of `as_dict`."""
        confusion = ConfusionMatrix(classes, np.array(raw["confusion"]))
        return cls(
            raw["run"],
            raw["held_out"],
            confusion,
            raw["epochs"],
            raw["best_epoch"],
            float(raw["seconds"]),
            # Older files have none.
            raw.get("stroke_pixels", 0),
        )


@dataclass(frozen=True, eq=False)
class CrossvalResult:
    """Scores of the finished folds of a cross-validation.

    Means and standard deviations are over folds. The deviation is that of a sample
    (n - 1), NaN for one fold. A fold without a class is left out of the mean of that
    class. `pooled` counts every validation pixel once. The best epoch of each fold was
    chosen on the data that the fold is scored on. Therefore all scores are slightly
    better than on images that had no influence on this choice.

    Parameters
    ----------
    out
        The folder. It can be given wherever a model is needed, and then means the
        ensemble of the folds' models.
    planned
        Number of folds when the cross-validation is complete.
    """

    out: Path
    classes: ClassMap
    folds: tuple[FoldScore, ...]
    planned: int

    @classmethod
    def load(cls, out: str | Path) -> CrossvalResult:
        """Read ``crossval.json``. Raises `RunError` when it is missing or damaged."""
        return cls.parse(CrossvalFolder(out).read(), Path(out))

    @classmethod
    def parse(cls, raw: Mapping[str, Any], out: Path) -> CrossvalResult:
        """Parse the content of ``crossval.json``; raises like `load`."""
        try:
            classes = ClassMap.model_validate(raw["class_map"])
            folds = tuple(FoldScore.from_dict(row, classes) for row in raw["scores"])
            return cls(out, classes, folds, len(raw["folds"]))
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(
                f"{CrossvalFolder(out).file}: cannot be read ({error}); run the"
                " cross-validation again."
            ) from None

    @property
    def pooled(self) -> ConfusionMatrix:
        """Confusion matrix over the validation pixels of all folds."""
        return sum(
            (fold.confusion for fold in self.folds), ConfusionMatrix(self.classes)
        )

    @property
    def agreement(self) -> str:
        """Agreement of all folds with held-out strokes; empty where areas are labelled.

        Strokes keep away from edges. An IoU of theirs compares recipes, but says little
        of the IoU on whole images.
        """
        pixels = sum(fold.stroke_pixels for fold in self.folds)
        return describe_agreement(self.pooled.pixel_accuracy, pixels)

    @property
    def mean_iou(self) -> float:
        """Mean over folds of the mean IoU over the classes in their truth.

        NaN without folds.
        """
        return float(self.spread("mean_iou_in_truth")[0])

    @property
    def mean_iou_std(self) -> float:
        return float(self.spread("mean_iou_in_truth")[1])

    @property
    def seconds(self) -> float:
        """Training time of all folds together, in seconds."""
        return math.fsum(fold.seconds for fold in self.folds)

    def spread(self, score: str) -> tuple[Any, Any]:
        """Return mean and standard deviation of a score over folds.

        Parameters
        ----------
        score
            One of `SCORES`, for two floats, or one of `CLASS_SCORES`, for two float64
            arrays (K,).
        """
        rows = np.array(
            [getattr(fold.confusion, score) for fold in self.folds], np.float64
        )
        if not len(rows):
            rows = np.full(
                (1, len(self.classes)) if score in CLASS_SCORES else (1,), np.nan
            )
        count = (~np.isnan(rows)).sum(axis=0)
        all_nan = np.full(rows.shape[1:], np.nan)
        mean = np.divide(
            np.nansum(rows, axis=0), count, out=all_nan.copy(), where=count > 0
        )
        squares = np.nansum((rows - mean) ** 2, axis=0)
        return mean, np.sqrt(
            np.divide(squares, count - 1, out=all_nan.copy(), where=count > 1)
        )

    def as_dict(self) -> dict[str, Any]:
        """Return plain data, with None instead of NaN.

        They are the scores of each fold, their mean and standard deviation over folds,
        and the pooled counts.
        """
        sides = {"mean": 0, "std": 1}
        out: dict[str, Any] = {"scores": [fold.as_dict() for fold in self.folds]}
        for name, side in sides.items():
            row: dict[str, Any] = {
                score: none_if_nan(self.spread(score)[side]) for score in SCORES
            }
            row["per_class"] = {
                label: {
                    score: none_if_nan(self.spread(score)[side][k])
                    for score in CLASS_SCORES
                }
                for k, label in enumerate(self.classes.names)
            }
            out[name] = row
        return out | {"pooled": self.pooled.as_dict(), "note": OPTIMISM}

    def csv(self) -> str:
        """Format the scores as CSV.

        It has one row for each fold, and rows for the mean, the standard deviation and
        the pooled validation pixels.
        """
        spreads = [
            {score: self.spread(score)[side] for score in (*SCORES, *CLASS_SCORES)}
            for side in (0, 1)
        ]
        rows = [
            _score_row(fold.run, fold.confusion, self.classes) | _training_row(fold)
            for fold in self.folds
        ]
        rows += [
            _score_row(name, spread, self.classes)
            for name, spread in zip(("mean", "std"), spreads, strict=True)
        ]
        return as_csv(
            [
                *rows,
                _score_row("pooled", self.pooled, self.classes)
                | {"seconds": f"{self.seconds:.1f}"},
            ]
        )

    def table(self) -> str:
        """Format the scores as text: one line for each class, then one for all."""
        if self.agreement:
            return self._stroke_table()
        score_names = ("iou", "dice", "precision", "recall")
        rows = [["class", *("IoU", "Dice", "precision", "recall")]]
        spreads = [self.spread(score) for score in score_names]
        for k, name in enumerate(self.classes.names):
            rows.append(
                [
                    name,
                    *(mean_std(mean[k], deviation[k]) for mean, deviation in spreads),
                ]
            )
        rows.append(
            [
                "all",
                *(
                    mean_std(*self.spread(score))
                    for score in ("mean_iou_in_truth", "mean_dice")
                ),
            ]
        )
        accuracy = mean_std(*self.spread("pixel_accuracy"))
        pooled = self.pooled.describe_mean_iou()
        last = (
            f"{self._progress()}; pixel accuracy {accuracy}; mean IoU over all held-out"
            f" pixels together {pooled.removeprefix('mean IoU ')}"
        )
        return "\n".join([columns(rows), last, OPTIMISM])

    def _stroke_table(self) -> str:
        """Format the agreement with strokes: one line for each class, then for all."""
        rows = [["class", "agreement"]]
        for name, mean, deviation in zip(
            self.classes.names, *self.spread("recall"), strict=True
        ):
            rows.append([name, mean_std(mean, deviation)])
        rows.append(["all", mean_std(*self.spread("pixel_accuracy"))])
        last = f"{self._progress()}; together it {self.agreement}"
        return "\n".join([columns(rows), last, OPTIMISM])

    def _progress(self) -> str:
        if len(self.folds) < self.planned:
            return f"{len(self.folds)} of {self.planned} folds"
        return "mean over folds"


def as_csv(rows: Iterable[Mapping[str, Any]]) -> str:
    """Format rows as CSV with a header. Missing columns of a row are empty."""
    rows = list(rows)
    text = io.StringIO()
    writer = csv.DictWriter(
        text,
        list(dict.fromkeys(key for row in rows for key in row)),
        lineterminator="\n",
    )
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Format rows in columns, the first aligned left, the others aligned right."""
    count = max(map(len, rows))
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(count)]
    return "\n".join(
        "  ".join(
            cell.ljust(widths[i]) if i == 0 else cell.rjust(widths[i])
            for i, cell in enumerate(row)
        ).rstrip()
        for row in rows
    )


def mean_std(mean: float, deviation: float) -> str:
    """Format ``0.742 +- 0.031``, or a dash if the mean is NaN."""
    if math.isnan(mean):
        return "-"
    return f"{mean:.3f}" if math.isnan(deviation) else f"{mean:.3f} +- {deviation:.3f}"


def number(value: float) -> str:
    """Format a number for CSV; NaN is empty."""
    return "" if math.isnan(value) else f"{value:.6f}"


def _score_row(name: str, scores: Any, classes: ClassMap) -> dict[str, str]:
    """Return a row of the CSV from a confusion matrix or a mapping of scores."""
    get = (
        scores.__getitem__
        if isinstance(scores, dict)
        else lambda key: getattr(scores, key)
    )
    row = {"fold": name} | {score: number(float(get(score))) for score in SCORES}
    for score in CLASS_SCORES:
        row |= {
            f"{score} {label}": number(float(v))
            for label, v in zip(classes.names, get(score), strict=True)
        }
    return row


def _training_row(fold: FoldScore) -> dict[str, Any]:
    """Return the columns of the CSV about the training of a fold."""
    facts = {
        "epochs": fold.epochs,
        "best_epoch": fold.best_epoch,
        "seconds": f"{fold.seconds:.1f}",
    }
    return facts | {"held_out": fold.held_out}
