"""The report of an evaluation: numbers for programs, a table for spreadsheets, pictures for people."""

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
    """Raise `RunError` when `out` is a file, or holds anything and nothing may be replaced."""
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
    """Write ``metrics.csv`` (one row an image), ``confusion.png``, ``overlays/*.png`` and ``metrics.json`` into `out`.

    Each file is written whole or not at all and replaces one of its name; other files in the folder stay.
    ``metrics.json`` comes last: when it is there, so is the rest.

    Parameters
    ----------
    examples
        pictures to draw, numbered in their order; or by the name of their file, without ``.png``.
    facts
        what ``metrics.json`` holds beside the scores: plain data without NaN.

    Raises
    ------
    RunError
        when the folder cannot be written or the disk is full.
    """
    drawn = examples if isinstance(examples, Mapping) else name_files(examples)
    folder = EvaluationFolder(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(folder.overlays, ignore_errors=True)
    except OSError as error:
        raise files.explain(error, out) from error
    _write_csv(folder.table_path, per_image)
    with files.atomic(folder.confusion_path) as temporary:
        draw_confusion(confusion).save(temporary)
    for name, example in drawn.items():
        with files.atomic(folder.overlays / f"{name}.png") as temporary:
            draw_example(example).save(temporary)
    files.write_text(
        folder.scores_path,
        json.dumps(confusion.as_dict() | dict(facts or {}), indent=2) + "\n",
    )


def name_files(examples: Iterable[Example], prefix: str = "") -> dict[str, Example]:
    """Examples by the names of their picture files: ``01_sand_Z=3`` or, with a prefix, ``worst_01_sand_Z=3``."""
    return {
        f"{prefix}{number:02d}_{_safe(one.name)}": one
        for number, one in enumerate(examples, 1)
    }


def _write_csv(path: Path, per_image: Iterable[tuple[str, ConfusionMatrix]]) -> None:
    with (
        files.atomic(path) as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as file,
    ):
        writer: csv.DictWriter[str] | None = None
        for name, confusion in per_image:
            row = _row(name, confusion)
            if writer is None:
                writer = csv.DictWriter(file, list(row))
                writer.writeheader()
            writer.writerow(row)


def _row(name: str, confusion: ConfusionMatrix) -> dict[str, str]:
    """Scores of one image; empty where there is nothing to score."""
    scores = {
        "pixel_accuracy": confusion.pixel_accuracy,
        "mean_iou": confusion.mean_iou,
    }
    scores |= {"mean_dice": confusion.mean_dice}
    for column, values in (("iou", confusion.iou), ("dice", confusion.dice)):
        scores |= {
            f"{column} {label}": v
            for label, v in zip(confusion.classes.names, values, strict=True)
        }
    shown = {
        key: "" if none_if_nan(value) is None else f"{value:.6f}"
        for key, value in scores.items()
    }
    return {"image": name, "labelled_pixels": str(confusion.counts.sum()), **shown}


def _safe(name: str) -> str:
    """`name` as part of a file name anywhere."""
    return re.sub(r"[^\w.=-]+", "_", name)[:80]
