"""Writing an evaluation: scores for programs, a table, and pictures for people."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from napari_strata.core import files
from napari_strata.core.errors import RunError
from napari_strata.core.metrics import ConfusionMatrix, none_if_nan
from napari_strata.core.runs import EvaluationFolder
from napari_strata.evaluation.pictures import Example, draw_confusion, draw_example


def check_free(out: Path, *, overwrite: bool) -> None:
    """Check that an evaluation can be written.

    Raises
    ------
    RunError
        If `out` is a file, or a folder that is not empty and may not be overwritten.
    """
    if out.exists() and not out.is_dir():
        raise RunError(
            f"{out}: found a file where a folder is to be made; choose another name."
        )
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise RunError(
            f"{out}: this folder holds something already; choose another one."
        )


def write_report(
    confusion: ConfusionMatrix,
    per_image: Iterable[tuple[str, ConfusionMatrix]],
    out: Path,
    *,
    examples: Sequence[Example] | Mapping[str, Example] = (),
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Write scores, a table and pictures; see `EvaluationFolder`.

    Each file is written whole or not at all and replaces one of its name; other files
    in the folder stay. The scores come last: if they exist, so does the rest.

    Parameters
    ----------
    per_image
        Name and confusion matrix of each image, the rows of the table.
    examples
        Pictures to draw, numbered in their order; or by the name of their file, without
        ``.png``.
    facts
        Further content for ``metrics.json``: plain data without NaN.

    Raises
    ------
    RunError
        If the folder cannot be written or the disk is full.
    """
    folder = EvaluationFolder(out)
    named = examples if isinstance(examples, Mapping) else name_files(examples)
    try:
        out.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(folder.overlays, ignore_errors=True)
    except OSError as error:
        raise files.explain(error, out) from error
    _write_csv(folder.table_path, per_image)
    with files.atomic(folder.confusion_path) as temporary:
        draw_confusion(confusion).save(temporary)
    for name, example in named.items():
        with files.atomic(folder.overlays / f"{name}.png") as temporary:
            draw_example(example).save(temporary)
    scores = confusion.as_dict() | dict(facts or {})
    files.write_text(folder.scores_path, json.dumps(scores, indent=2) + "\n")


def name_files(examples: Iterable[Example], prefix: str = "") -> dict[str, Example]:
    """Name picture files: ``01_sand_Z=3``, or with a prefix ``worst_01_sand_Z=3``."""
    named = {}
    for number, example in enumerate(examples, 1):
        # Only characters that every file system takes.
        safe_name = re.sub(r"[^\w.=-]+", "_", example.name)[:80]
        named[f"{prefix}{number:02d}_{safe_name}"] = example
    return named


def _write_csv(path: Path, per_image: Iterable[tuple[str, ConfusionMatrix]]) -> None:
    rows = [_row(name, confusion) for name, confusion in per_image]
    with (
        files.atomic(path) as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as file,
    ):
        if rows:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


def _row(name: str, confusion: ConfusionMatrix) -> dict[str, str]:
    """Return the scores of one image; empty if there is nothing to score."""
    scores = {
        "pixel_accuracy": confusion.pixel_accuracy,
        "mean_iou": confusion.mean_iou,
        "mean_iou_in_truth": confusion.mean_iou_in_truth,
        "mean_dice": confusion.mean_dice,
    }
    for column, values in (("iou", confusion.iou), ("dice", confusion.dice)):
        for label, value in zip(confusion.classes.names, values, strict=True):
            scores[f"{column} {label}"] = value
    row = {"image": name, "labelled_pixels": str(confusion.counts.sum())}
    for key, value in scores.items():
        row[key] = "" if none_if_nan(value) is None else f"{value:.6f}"
    return row
