"""Command: the line that trains a run, or cross-validates, again."""

from __future__ import annotations

import csv
import io
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from napari_strata.core.errors import StrataError
from napari_strata.core.recipe import Recipe, differences
from napari_strata.report.record import Record


@dataclass(frozen=True)
class Repeat:
    """How to do it again.

    Parameters
    ----------
    command
        for a shell; empty where the images came from no file.
    table
        ``pairs.csv`` that the command names, where there are several images; else empty.
    note
        what the command cannot say.
    """

    command: str
    table: str = ""
    note: str = ""

    @classmethod
    def of(cls, record: Record) -> Repeat | None:
        """Of a training, from ``data.json``; None where there is none."""
        if (unknown := _from_memory(record)) is not None:
            return unknown if record.data.get("pairs") else None
        learn, check = _sides(record)
        rows, (held, note) = _files(learn), _held(_files(check))
        return _command(
            "train",
            rows,
            [*_said(record), *held, "--out", f"{record.path.resolve()}-again"],
            note,
        )

    @classmethod
    def crossval(
        cls, fold: Record, study: Mapping[str, Any], recipe: Recipe
    ) -> Repeat | None:
        """Of a cross-validation with `recipe`: from the record of one of its folds and from ``crossval.json``.

        None of one that has not begun, and of one split, which no command makes.
        """
        if (unknown := _from_memory(fold)) is not None:
            return unknown if fold.data.get("pairs") else None
        count, group = len(study["folds"]), study.get("group")
        if count < 2:
            return None
        if "group" not in study and any(
            "specimens" in str(text) for text in study.get("splits") or []
        ):
            return cls(
                "",
                note="An older version wrote this: it does not say what told the specimens apart (--group).",
            )
        words, note = _said(fold), ""
        if not _is_recipe(
            fold, recipe
        ):  # more epochs were asked for since, or it stopped early
            words[words.index("--recipe") + 1] = "recipe.yaml"
            note = "Save the recipe below as recipe.yaml before."
        words += ["--folds", str(count), *(["--group", str(group)] if group else [])]
        words += ["--out", f"{fold.path.resolve().parent}-again"]
        return _command("crossval", _files(fold.data["pairs"]), words, note)


def _from_memory(record: Record) -> Repeat | None:
    """What is said where no command can read the images; None where one can."""
    pairs = record.data.get("pairs") or [{}]
    if all(pair.get("images") and pair.get("labels") for pair in pairs):
        return None
    return Repeat(
        "",
        note="Its images came from memory and not from files: do it again from Python, with recipe.yaml.",
    )


def _is_recipe(record: Record, recipe: Recipe) -> bool:
    try:
        return not differences(Recipe.parse(record.recipe), recipe)
    except StrataError:
        return False


def _command(
    name: str, rows: Sequence[tuple[str, str]], words: Sequence[str], note: str
) -> Repeat:
    table = _table(rows) if len(rows) > 1 else ""
    return Repeat(
        shlex.join(
            ["napari-strata", name, *(["pairs.csv"] if table else rows[0]), *words]
        ),
        table,
        note,
    )


def _files(pairs: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(str(pair["images"]), str(pair["labels"])) for pair in pairs]


def _said(record: Record) -> list[str]:
    """The recipe and what the label values mean."""
    return [
        "--recipe",
        str(record.path.resolve() / "recipe.yaml"),
        *_class_words(record.data),
    ]


def _sides(record: Record) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Pairs to train on, and those that the user gave to validate on."""
    data = record.data
    pairs = list(data["pairs"])
    learn, check = (
        {part["pair"] for part in data.get(side, [])}
        for side in ("training", "validation")
    )
    if " given: " not in str(data.get("split", "")) or learn & check:
        return pairs, []
    return [p for i, p in enumerate(pairs) if i not in check], [
        p for i, p in enumerate(pairs) if i in check
    ]


def _table(rows: Sequence[tuple[str, str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("image", "label"), *rows])
    return text.getvalue()


def _held(rows: Sequence[tuple[str, str]]) -> tuple[list[str], str]:
    """The words of --val, and what they cannot say: the option takes two files, or two folders."""
    if not rows:
        return [], ""
    if len(rows) == 1:
        return ["--val", *rows[0]], ""
    folders = [
        {str(Path(one).parent) for one in side} for side in zip(*rows, strict=True)
    ]
    if any(len(side) > 1 for side in folders):
        return (
            [],
            "It was validated on images from several folders: bring them into two, and give these with --val.",
        )
    note = f"--val names folders: the validation images were {', '.join(Path(image).name for image, _ in rows)}."
    return ["--val", *(side.pop() for side in folders)], note


def _class_words(data: dict[str, Any]) -> list[str]:
    """What the label values were said to mean, where the files may not say it."""
    classes = (data.get("spec") or {}).get("classes") or {}
    words = [
        word
        for value in data.get("unlabelled", [])
        for word in ("--unlabelled", str(value))
    ]
    if classes.get("rgb"):
        colors = ["{:02x}{:02x}{:02x}".format(*color) for color in classes["rgb"]]
        named = zip(colors, classes["names"], strict=True)
        return words + [
            word for color, name in named for word in ("--rgb", f"{color}={name}")
        ]
    words += ["--foreground"] if classes.get("rest") else []
    plain = ("background", "foreground")
    named = zip(classes.get("values", []), classes.get("names", []), strict=True)
    return words + [
        word
        for value, name in named
        if name not in (f"class {value}", *plain)
        for word in ("--class", f"{value}={name}")
    ]
