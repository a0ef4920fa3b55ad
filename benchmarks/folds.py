"""Gain of cross-validation, an ensemble of its folds, and test-time augmentation.

`seeds.py` runs it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import napari_strata as ns
from napari_strata.cli.console import show
from napari_strata.core.classes import ClassMap
from napari_strata.core.image import AnnotatedImage
from napari_strata.studies.crossval_results import CrossvalResult


def cross_validate(
    recipe: str,
    pairs: Sequence[AnnotatedImage],
    *,
    out: Path,
    classes: ClassMap,
    overrides: dict[str, Any],
) -> CrossvalResult:
    """Five folds to their end; those that are done are left alone."""
    show(
        ns.iter_crossval(
            recipe, [*pairs], out=out, folds=5, classes=classes, overrides=overrides
        )
    )
    return CrossvalResult.load(out)


def scores_of_folds(result: CrossvalResult) -> dict[str, Any]:
    """Return the mean over folds of each figure, and the spread of the mean IoU."""

    def mean(score: str) -> Any:
        return np.asarray(result.spread(score)[0]).tolist()

    columns = {name: mean(name) for name in ("iou", "precision", "recall")}
    return {
        "mean_iou": mean("mean_iou"),
        "mean_iou_std": float(result.mean_iou_std),
        "mean_dice": mean("mean_dice"),
        "pixel_accuracy": mean("pixel_accuracy"),
        "per_class": {
            name: {column: values[i] for column, values in columns.items()}
            for i, name in enumerate(result.classes.names)
        },
        "train_seconds": result.seconds,
    }


def scores_of_ensemble(
    out: Path, test: Sequence[AnnotatedImage], *, tta: bool
) -> dict[str, Any]:
    """The folds' networks together on images that none of them saw."""
    begun = time.perf_counter()
    confusion = ns.evaluate(out, [*test], tta=tta).confusion
    return {"test_seconds": time.perf_counter() - begun} | confusion.as_dict()


def write(path: Path, facts: dict[str, Any]) -> None:
    path.write_text(json.dumps(facts, indent=2) + "\n")
