"""The report of an evaluation: numbers for programs, a table for spreadsheets, pictures for people."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from napari_strata import files
from napari_strata.errors import RunError
from napari_strata.metrics import ConfusionMatrix, none_if_nan
from napari_strata.pictures import Example, draw_confusion, draw_example

FILES = ("metrics.json", "metrics.csv", "confusion.png", "overlays")


def check_free(out: Path, *, overwrite: bool) -> None:
    """Raise `RunError` when `out` is a file, or holds anything and nothing may be replaced."""
    if out.exists() and not out.is_dir():
        raise RunError(f"{out}: found a file where a folder is to be made; choose another name.")
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise RunError(f"{out}: this folder holds something already; choose another one.")


def write_report(
    confusion: ConfusionMatrix,
    per_image: Iterable[tuple[str, ConfusionMatrix]],
    out: Path,
    *,
    examples: Sequence[Example] = (),
) -> None:
    """Write ``metrics.json``, ``metrics.csv`` (one row an image), ``confusion.png`` and ``overlays/*.png`` into `out`.

    Each file is written whole or not at all and replaces one of its name; other files in the folder stay.

    Raises
    ------
    RunError
        when the folder cannot be written or the disk is full.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(out / "overlays", ignore_errors=True)
    except OSError as error:
        raise files.explain(error, out) from error
    files.write_text(out / "metrics.json", json.dumps(confusion.as_dict(), indent=2) + "\n")
    _write_csv(out / "metrics.csv", per_image)
    with files.atomic(out / "confusion.png") as temporary:
        draw_confusion(confusion).save(temporary)
    for number, example in enumerate(examples, 1):
        with files.atomic(out / "overlays" / f"{number:02d}_{_safe(example.name)}.png") as temporary:
            draw_example(example).save(temporary)


def _write_csv(path: Path, per_image: Iterable[tuple[str, ConfusionMatrix]]) -> None:
    with files.atomic(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer: csv.DictWriter[str] | None = None
        for name, confusion in per_image:
            row = _row(name, confusion)
            if writer is None:
                writer = csv.DictWriter(file, list(row))
                writer.writeheader()
            writer.writerow(row)


def _row(name: str, confusion: ConfusionMatrix) -> dict[str, str]:
    """Scores of one image; empty where there is nothing to score."""
    scores = {"pixel_accuracy": confusion.pixel_accuracy, "mean_iou": confusion.mean_iou}
    scores |= {"mean_dice": confusion.mean_dice}
    for column, values in (("iou", confusion.iou), ("dice", confusion.dice)):
        scores |= {f"{column} {label}": v for label, v in zip(confusion.classes.names, values, strict=True)}
    shown = {key: "" if none_if_nan(value) is None else f"{value:.6f}" for key, value in scores.items()}
    return {"image": name, "labelled_pixels": str(confusion.counts.sum()), **shown}


def _safe(name: str) -> str:
    """`name` as part of a file name anywhere."""
    return re.sub(r"[^\w.=-]+", "_", name)[:80]
