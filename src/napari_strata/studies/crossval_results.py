"""Results of a cross-validation: a value, a table for programs, a table for people."""

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
from napari_strata.core.metrics import ConfusionMatrix, none_if_nan
from napari_strata.core.runs import CrossvalFolder

Vector = np.ndarray[Any, np.dtype[np.float64]]

SCORES = ("mean_iou", "mean_dice", "pixel_accuracy")
"""Scores of all classes together."""

CLASS_SCORES = ("iou", "dice", "precision", "recall", "f1")
"""Scores of each class."""

OPTIMISM = (
    "The best epoch of each fold was chosen on the part that it is scored on, "
    "so these scores are a little too good."
)


@dataclass(frozen=True, eq=False)
class FoldScore:
    """One fold, scored on what it held back.

    Parameters
    ----------
    run
        name of its run folder, as ``fold_1``.
    held_out
        what validated, in words.
    confusion
        of its best model on that, over all labelled pixels.
    epochs, best_epoch
        how many were asked for, and the one whose weights were kept.
    seconds
        of training.
    """

    run: str
    held_out: str
    confusion: ConfusionMatrix
    epochs: int
    best_epoch: int
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Plain data; see `ConfusionMatrix.as_dict`."""
        facts = {
            "run": self.run,
            "held_out": self.held_out,
            "epochs": self.epochs,
            "best_epoch": self.best_epoch,
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
        )


@dataclass(frozen=True, eq=False)
class CrossvalResult:
    """Scores of a cross-validation, those folds that are done.

    Means and standard deviations (of a sample, with n - 1; NaN for one fold) are over
    folds; a fold without a class is left out of that class's mean. `pooled` counts
    every held-out pixel once. The best epoch of each fold was chosen on the part that
    the fold is scored on, so all of these are a little better than on images that had
    no part in it.

    Parameters
    ----------
    out
        the folder. It stands for the ensemble of the folds' models wherever a model is
        asked for.
    planned
        how many folds there are to be.
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
        """From what ``crossval.json`` of `out` holds; raises as `load`."""
        try:
            classes = ClassMap.model_validate(raw["class_map"])
            folds = tuple(FoldScore.from_dict(row, classes) for row in raw["scores"])
            return cls(out, classes, folds, len(raw["folds"]))
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(
                f"{CrossvalFolder(out).file}: cannot be read ({error}); cross-validate"
                " anew."
            ) from None

    @property
    def pooled(self) -> ConfusionMatrix:
        """Counts over the held-out pixels of all folds."""
        return sum(
            (fold.confusion for fold in self.folds), ConfusionMatrix(self.classes)
        )

    @property
    def mean_iou(self) -> float:
        """Mean over folds of their mean IoU; NaN without a fold."""
        return float(self.spread("mean_iou")[0])

    @property
    def mean_iou_std(self) -> float:
        return float(self.spread("mean_iou")[1])

    @property
    def seconds(self) -> float:
        """Training time of all folds together."""
        return math.fsum(fold.seconds for fold in self.folds)

    def spread(self, score: str) -> tuple[Any, Any]:
        """Mean and standard deviation over folds of one of `SCORES` (floats) or
        `CLASS_SCORES` (float64 (K,)).
        """
        rows = np.array(
            [getattr(fold.confusion, score) for fold in self.folds], np.float64
        )
        if not len(rows):
            rows = np.full(
                (1, len(self.classes)) if score in CLASS_SCORES else (1,), np.nan
            )
        count = (~np.isnan(rows)).sum(axis=0)
        nothing = np.full(rows.shape[1:], np.nan)
        mean = np.divide(
            np.nansum(rows, axis=0), count, out=nothing.copy(), where=count > 0
        )
        squares = np.nansum((rows - mean) ** 2, axis=0)
        return mean, np.sqrt(
            np.divide(squares, count - 1, out=nothing.copy(), where=count > 1)
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain data, NaN as None.

        Scores of each fold, mean and std over folds, pooled counts.
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
        """A row a fold, then their mean and standard deviation, then all held-out
        pixels pooled.
        """
        sides = [
            {score: self.spread(score)[side] for score in (*SCORES, *CLASS_SCORES)}
            for side in (0, 1)
        ]
        rows = [
            _flat(fold.run, fold.confusion, self.classes) | _facts(fold)
            for fold in self.folds
        ]
        rows += [
            _flat(name, side, self.classes)
            for name, side in zip(("mean", "std"), sides, strict=True)
        ]
        return as_csv(
            [
                *rows,
                _flat("pooled", self.pooled, self.classes)
                | {"seconds": f"{self.seconds:.1f}"},
            ]
        )

    def table(self) -> str:
        """Format the scores as text: one line for each class, then one for all."""
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
                *(mean_std(*self.spread(score)) for score in ("mean_iou", "mean_dice")),
            ]
        )
        done = (
            f"{len(self.folds)} of {self.planned} folds"
            if len(self.folds) < self.planned
            else "mean over folds"
        )
        last = (
            f"{done}; pixel accuracy {mean_std(*self.spread('pixel_accuracy'))}; mean"
            f" IoU over all held-out pixels together {self.pooled.mean_iou:.3f}"
        )
        return "\n".join([columns(rows), last, OPTIMISM])


def as_csv(rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows as CSV with a header; a column that a row has not is empty."""
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
    """Text in columns, the first flush left and the others flush right."""
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
    """``0.742 +- 0.031``; a dash for what is not known."""
    if math.isnan(mean):
        return "-"
    return f"{mean:.3f}" if math.isnan(deviation) else f"{mean:.3f} +- {deviation:.3f}"


def number(value: float) -> str:
    """For CSV: empty where there is no number."""
    return "" if math.isnan(value) else f"{value:.6f}"


def _flat(name: str, scores: Any, classes: ClassMap) -> dict[str, str]:
    """One row of the CSV from a confusion matrix, or from a mapping of scores."""
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


def _facts(fold: FoldScore) -> dict[str, Any]:
    facts = {
        "epochs": fold.epochs,
        "best_epoch": fold.best_epoch,
        "seconds": f"{fold.seconds:.1f}",
    }
    return facts | {"held_out": fold.held_out}
