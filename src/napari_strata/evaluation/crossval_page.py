"""The page of a cross-validation: scores of its classes and folds, and how far the folds lie apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from napari_strata.classes import ClassMap, default_colors
from napari_strata.errors import RunError
from napari_strata.evaluation import figures, html, sections
from napari_strata.evaluation.charts import Line, draw_lines, draw_strip, nice_ticks
from napari_strata.evaluation.command import Repeat
from napari_strata.evaluation.record import ModelHeader, Record, read_record, sound_scores
from napari_strata.files import CROSSVAL, read_study

COLUMNS = {"iou": "IoU", "dice": "Dice", "precision": "Precision", "recall": "Recall"}


@dataclass(frozen=True)
class Row:
    """A class, or all of them: mean and spread of each score over the folds, and the IoU of each fold as a strip."""

    name: str
    color: str
    scores: tuple[str, ...]
    strip: Markup


def render(folder: Path) -> str:
    """The page as text.

    Raises
    ------
    RunError
        when ``crossval.json`` is damaged.
    """
    raw = read_study(folder / CROSSVAL)
    try:
        return html.render("crossval.html", **_context(folder, raw))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(f"{folder / CROSSVAL}: cannot be read ({error}); cross-validate anew.") from None


def _context(folder: Path, raw: dict[str, Any]) -> dict[str, Any]:
    classes = ClassMap.model_validate(raw["class_map"])
    runs = [read_record(folder / name) for name in raw["folds"] if (folder / name / "recipe.yaml").is_file()]
    pooled = _pooled(folder, raw, classes)
    span = _span(raw)
    done, planned = len(raw["scores"]), len(raw["folds"])
    return {
        "name": folder.resolve().name,
        "summary": _summary(raw, runs),
        "tiles": _tiles(raw),
        "missing": [f"{done} of {planned} folds are done. The command that began it goes on."] * (done < planned),
        "warnings": list(dict.fromkeys(text for texts in raw.get("warnings", []) for text in texts)),
        "columns": list(COLUMNS.values()),
        "rows": _rows(raw, classes, span),
        "span": f"{span[0]:g} to {span[1]:g}",
        "names": classes.names,
        "folds": raw["scores"],
        "charts": _charts(runs),
        "confusion": sections.confusion_table(pooled),
        "pixels": sum(map(sum, raw["pooled"]["confusion"])),
        "cases": sections.worst_cases(runs),
        "swatches": [(name, sections.safe_color(color)) for name, color in pooled.classes.items()],
        "note": raw["note"],
        "repeat": Repeat.crossval(runs[0], planned, raw.get("group")) if runs else None,
        "facts": _facts(folder, raw, runs),
        "recipe_text": runs[0].recipe_text if runs else "",
    }


def _pooled(folder: Path, raw: dict[str, Any], classes: ClassMap) -> Record:
    """All held-out pixels of all folds, each once, as if of one evaluation."""
    scores = sound_scores(raw["pooled"])
    return Record(folder, False, "", raw["recipe"], {"classes": classes.table()}, (), (), ModelHeader(), scores)


def _summary(raw: dict[str, Any], runs: Sequence[Record]) -> list[str]:
    done = len(raw["scores"])
    network = sections.network_words(runs[0]) if runs else "A network"
    counted = f"{done} time{'' if done == 1 else 's'}"
    out = [f"{network} was trained {counted}, each time on all but the fold that it is scored on."]
    mean, std = raw["mean"], raw["std"]
    if mean["mean_iou"] is not None:
        out.append(
            f"The mean intersection over union of the classes (mean IoU) of the folds is "
            f"{figures.number(mean['mean_iou'])} on the mean{_deviation(std['mean_iou'])}."
        )
    ranked = [(row["iou"], name) for name, row in mean["per_class"].items() if row["iou"] is not None]
    if len(ranked) > 1:
        (best, first), (worst, last) = max(ranked), min(ranked)
        out.append(f"It tells {first} best (IoU {best:.3f}) and {last} least (IoU {worst:.3f}).")
    return out


def _deviation(std: float | None) -> str:
    return "" if std is None else f", with a standard deviation of {figures.number(std)}"


def _tiles(raw: dict[str, Any]) -> list[tuple[str, str, str]]:
    mean, std = raw["mean"], raw["std"]
    tiles = [
        (figures.mean_std(mean[key], std[key]), name, "mean and standard deviation over the folds")
        for key, name in (("mean_iou", "mean IoU"), ("mean_dice", "mean Dice"), ("pixel_accuracy", "pixel accuracy"))
    ]
    pooled = raw["pooled"]["mean_iou"]
    tiles.append((figures.number(pooled), "mean IoU, pooled", "of all held-out pixels counted together"))
    return [tile for tile in tiles if tile[0] != figures.NONE]


def _rows(raw: dict[str, Any], classes: ClassMap, span: tuple[float, float]) -> list[Row]:
    mean, std = raw["mean"], raw["std"]

    def strip(values: list[float | None], name: str) -> Markup:
        named = zip((fold["run"] for fold in raw["scores"]), map(sections.or_nan, values), strict=True)
        return draw_strip(list(named), span=span, label=f"IoU of {name} in each fold")

    out = []
    for name, color in zip(classes.names, classes.colors, strict=True):
        scores = tuple(figures.mean_std(mean["per_class"][name][key], std["per_class"][name][key]) for key in COLUMNS)
        values = [fold["per_class"][name]["iou"] for fold in raw["scores"]]
        out.append(Row(name, sections.safe_color(color), scores, strip(values, name)))
    overall = tuple(figures.mean_std(mean[key], std[key]) for key in ("mean_iou", "mean_dice"))
    values = [fold["mean_iou"] for fold in raw["scores"]]
    return [*out, Row("mean of the classes", "", (*overall, "", ""), strip(values, "all classes"))]


def _span(raw: dict[str, Any]) -> tuple[float, float]:
    """Round numbers that enclose every IoU."""
    found = [row["iou"] for fold in raw["scores"] for row in fold["per_class"].values() if row["iou"] is not None]
    if not found:
        return 0.0, 1.0
    ticks = nice_ticks(min(found), max(found))
    return max(0.0, ticks[0]), min(1.0, ticks[-1])


def _charts(runs: Sequence[Record]) -> list[sections.Chart]:
    """A line a fold."""
    colors = default_colors(len(runs))
    out = []
    for title, key in (
        ("Mean IoU on the fold held back", "mean_iou"),
        ("Loss on the fold held back", "validation_loss"),
    ):
        lines = [
            Line(run.path.name, [(end.epoch, float(getattr(end, key))) for end in run.epochs], sections.visible(color))
            for run, color in zip(runs, colors, strict=True)
        ]
        shown = tuple(line for line in lines if not line.is_empty)
        if shown:
            out.append(sections.Chart(title, draw_lines(shown, label=f"{title} over the epochs"), shown))
    return out


def _facts(folder: Path, raw: dict[str, Any], runs: Sequence[Record]) -> list[tuple[str, str]]:
    seconds = math.fsum(fold["seconds"] for fold in raw["scores"])
    started = next((run.started for run in runs if run.started), None)
    rows = {
        "Recipe": str(raw["recipe"].get("name", "")),
        "Network": sections.network_words(runs[0]) if runs else "",
        "Parameters": f"{started.parameters:,}" if started else "",
        "Device": f"{started.device}, {started.precision}" if started else "",
        "Specimens": f"told apart by {group}" if (group := raw.get("group")) else "",
        "Time": f"{figures.duration(seconds)} for {len(raw['scores'])} trainings" if seconds else "",
        "Data fingerprints": ", ".join(map(str, raw["fingerprints"])),
        "Folder": str(folder.resolve()),
    }
    return [(name, value) for name, value in rows.items() if value]
