"""Commands that repeat a training or a cross-validation."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from napari_strata.core.command import join_command
from napari_strata.core.errors import StrataError
from napari_strata.core.recipe import Recipe, differences
from napari_strata.core.runs import RunFolder
from napari_strata.report.record import Record


@dataclass(frozen=True)
class Repeat:
    """Instructions to repeat a training.

    Parameters
    ----------
    command
        Line for a shell; empty if the images came from no file.
    table
        ``pairs.csv`` that the command names, if there are several images.
    note
        Remark on what the command cannot express.
    """

    command: str
    table: str = ""
    note: str = ""


FROM_MEMORY = Repeat(
    "",
    note="Its images came from memory and not from files: do it again from Python, "
    "with recipe.yaml.",
)


def repeat_training(record: Record) -> Repeat | None:
    """Return how to repeat a training; None when its data are unknown."""
    if not record.data.get("pairs"):
        return None
    if not _has_files(record):
        return FROM_MEMORY
    training, validation = _split_pairs(record)
    val_arguments, note = _val_arguments(_file_rows(validation))
    arguments = [
        *_common_arguments(record),
        *val_arguments,
        "--out",
        f"{record.path.resolve()}-again",
    ]
    return _build_repeat("train", _file_rows(training), arguments, note)


def repeat_crossval(
    fold: Record, study: Mapping[str, Any], recipe: Recipe
) -> Repeat | None:
    """Return how to repeat a cross-validation.

    Parameters
    ----------
    fold
        One of its folds.
    study
        The content of ``crossval.json``.

    Returns
    -------
    Repeat or None
        None if the data are unknown, or there is one split, which no command makes.
    """
    if not fold.data.get("pairs"):
        return None
    if not _has_files(fold):
        return FROM_MEMORY
    count, group = len(study["folds"]), study.get("group")
    if count < 2:
        return None
    splits = [str(text) for text in study.get("splits") or []]
    if "group" not in study and any("specimens" in text for text in splits):
        return Repeat(
            "",
            note="An older version wrote this: it does not record how the specimens "
            "were identified (--group).",
        )
    arguments, note = _common_arguments(fold), ""
    # The fold's recipe differs if more epochs were added since, or it stopped early.
    if not _is_same_recipe(fold, recipe):
        arguments[arguments.index("--recipe") + 1] = "recipe.yaml"
        note = "Save the recipe below as recipe.yaml before."
    arguments += ["--folds", str(count)]
    if group:
        arguments += ["--group", str(group)]
    arguments += ["--out", f"{fold.path.resolve().parent}-again"]
    return _build_repeat("crossval", _file_rows(fold.data["pairs"]), arguments, note)


def _has_files(record: Record) -> bool:
    pairs = record.data["pairs"]
    return all(pair.get("images") and pair.get("labels") for pair in pairs)


def _is_same_recipe(record: Record, recipe: Recipe) -> bool:
    try:
        return not differences(Recipe.parse(record.recipe), recipe)
    except StrataError:
        return False


def _build_repeat(
    command: str, rows: Sequence[tuple[str, str]], arguments: Sequence[str], note: str
) -> Repeat:
    """Build the command line for pairs of image and label files."""
    table = ""
    data: Sequence[str] = rows[0]
    if len(rows) > 1:
        table = _as_csv([("image", "label"), *rows])
        data = ["pairs.csv"]
    line = join_command(["napari-strata", command, *data, *arguments])
    return Repeat(line, table, note)


def _as_csv(rows: Sequence[tuple[str, str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _file_rows(pairs: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(str(pair["images"]), str(pair["labels"])) for pair in pairs]


def _common_arguments(record: Record) -> list[str]:
    """Arguments for the recipe and the meaning of label values."""
    recipe = RunFolder(record.path.resolve()).recipe_path
    return ["--recipe", str(recipe), *_class_arguments(record.data)]


def _split_pairs(record: Record) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Separate the pairs to train on from those given for validation (``--val``)."""
    data, pairs = record.data, list(record.data["pairs"])
    training = {region["pair"] for region in data.get("training", [])}
    validation = {region["pair"] for region in data.get("validation", [])}
    was_given = " given: " in str(data.get("split", ""))
    if not was_given or training & validation:
        return pairs, []
    return (
        [pair for i, pair in enumerate(pairs) if i not in validation],
        [pair for i, pair in enumerate(pairs) if i in validation],
    )


def _val_arguments(rows: Sequence[tuple[str, str]]) -> tuple[list[str], str]:
    """Arguments of ``--val``, which takes two files or two folders, and a note."""
    if not rows:
        return [], ""
    if len(rows) == 1:
        return ["--val", *rows[0]], ""
    image_folders = {str(Path(image).parent) for image, _ in rows}
    label_folders = {str(Path(label).parent) for _, label in rows}
    if len(image_folders) > 1 or len(label_folders) > 1:
        return (
            [],
            "It was validated on images from several folders: bring them into two, and "
            "give these with --val.",
        )
    names = ", ".join(Path(image).name for image, _ in rows)
    note = f"--val names folders: the validation images were {names}."
    return ["--val", *image_folders, *label_folders], note


def _class_arguments(data: dict[str, Any]) -> list[str]:
    """Arguments for the meaning of label values, which the files may not state."""
    classes = (data.get("spec") or {}).get("classes") or {}
    arguments = []
    for value in data.get("unlabelled", []):
        arguments += ["--unlabelled", str(value)]
    if classes.get("rgb"):
        for color, name in zip(classes["rgb"], classes["names"], strict=True):
            red, green, blue = color
            arguments += ["--rgb", f"{red:02x}{green:02x}{blue:02x}={name}"]
        return arguments
    if classes.get("rest"):
        arguments.append("--foreground")
    values, names = classes.get("values", []), classes.get("names", [])
    for value, name in zip(values, names, strict=True):
        if name not in (f"class {value}", "background", "foreground"):
            arguments += ["--class", f"{value}={name}"]
    return arguments
