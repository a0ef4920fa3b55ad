"""The page of a cross-validation: scores of its classes and folds, and how far the folds lie apart."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from napari_strata.core.classes import default_colors
from napari_strata.core.recipe import Recipe
from napari_strata.core.recipes import dump_recipe
from napari_strata.core.runs import CrossvalFolder, ModelHeader, RunHistory
from napari_strata.report import figures, html, sections
from napari_strata.report.charts import Line, draw_lines, draw_strip, nice_ticks
from napari_strata.report.command import Repeat
from napari_strata.report.record import Record, read_record
from napari_strata.studies.crossval_results import OPTIMISM, CrossvalResult, FoldScore

COLUMNS = {"iou": "IoU", "dice": "Dice", "precision": "Precision", "recall": "Recall"}


@dataclass(frozen=True)
class Row:
    """A class, or all of them: mean and spread of each score over the folds, and the IoU of each fold as a strip."""

    name: str
    color: str
    scores: tuple[str, ...]
    strip: Markup
    note: str = ""


@dataclass(frozen=True)
class FoldRow:
    """A fold: what it held back, its scores, and which epoch was kept."""

    run: str
    held_out: str
    mean_iou: float
    class_iou: tuple[float, ...]
    best_epoch: str
    seconds: float


def render(folder: Path) -> str:
    """The page as text.

    Raises
    ------
    RunError
        when ``crossval.json`` is damaged. Of a fold that is, the page shows less.
    """
    study = CrossvalFolder(folder)
    raw = study.read()
    result = CrossvalResult.parse(raw, folder)
    recipe = Recipe.parse(raw.get("recipe"), source=str(study.file))
    names = [str(name) for name in raw["folds"]]
    runs = {
        name: read_record(folder / name) for name in names if study.fold(name).exists
    }
    pooled = _pooled(folder, result, recipe)
    scored = [runs[fold.run] for fold in result.folds if fold.run in runs]
    span = _span(result)
    has_models = all(study.fold(name).has_model for name in names)
    place = str(folder.resolve())
    context = {
        "name": folder.resolve().name,
        "kind": "a cross-validation"
        if len(names) > 1
        else "a training scored on one part held back",
        "summary": _summary(result, sections.network_words(pooled)),
        "tiles": _tiles(result),
        "missing": _missing(result, names, runs),
        "warnings": list(
            dict.fromkeys(
                str(text) for texts in raw.get("warnings") or [] for text in texts
            )
        ),
        "columns": list(COLUMNS.values()),
        "rows": _rows(result, span),
        "span": f"{span[0]:g} to {span[1]:g}",
        "names": result.classes.names,
        "folds": [_fold_row(fold, runs) for fold in result.folds],
        "report": shlex.join(
            ["napari-strata", "report", f"{place}/{scored[0].path.name}"]
        )
        if scored
        else "",
        "charts": _charts(list(runs.values())),
        "confusion": sections.confusion_table(pooled)
        if result.pooled.counts.any()
        else [],
        "cases": sections.worst_cases(scored),
        "swatches": [
            (name, sections.safe_color(color)) for name, color in pooled.classes.items()
        ],
        "note": OPTIMISM,
        "predict": shlex.join(
            ["napari-strata", "predict", place, "IMAGE", "--out", "LABELS.tif"]
        )
        if has_models and len(names) > 1
        else "",
        "repeat": Repeat.crossval(next(iter(runs.values())), raw, recipe)
        if runs
        else None,
        "facts": _facts(folder, result, raw, runs, recipe),
        "recipe_text": dump_recipe(recipe),
    }
    return html.render("crossval.html", **context)


def _pooled(folder: Path, result: CrossvalResult, recipe: Recipe) -> Record:
    """All held-out pixels of all folds, each once, as if of one evaluation."""
    facts = {"classes": result.classes.table()}
    stored = recipe.model_dump(mode="json")
    return Record(
        path=folder,
        is_run=False,
        overlays=folder,
        scores=result.pooled.as_dict(),
        recipe_text="",
        recipe=stored,
        data=facts,
        history=RunHistory(),
        rows=[],
        header=ModelHeader(),
    )


def _summary(result: CrossvalResult, network: str) -> list[str]:
    done = len(result.folds)
    if not done:
        return [f"{network} is to be trained once for each fold; none is done yet."]
    times = (
        "once, on all but the part"
        if done == 1
        else f"{done} times, each time on all but the fold"
    )
    out = [f"{network} was trained {times} that it is scored on."]
    if not math.isnan(result.mean_iou):
        spread = (
            f", with a standard deviation of {result.mean_iou_std:.3f}"
            if done > 1
            else ""
        )
        out.append(
            f"The mean intersection over union of the classes (mean IoU) is {result.mean_iou:.3f}"
            f"{' on average' if done > 1 else ''}{spread}."
        )
    return [
        *out,
        *sections.extremes(
            dict(zip(result.classes.names, result.spread("iou")[0], strict=True))
        ),
    ]


def _tiles(result: CrossvalResult) -> list[tuple[str, str, str]]:
    what = (
        "mean and standard deviation over the folds"
        if len(result.folds) > 1
        else "of one fold"
    )
    tiles = [
        (figures.mean_std(*result.spread("mean_iou")), "mean IoU", what),
        (figures.mean_std(*result.spread("mean_dice")), "mean Dice", what),
        (figures.share_std(*result.spread("pixel_accuracy")), "pixel accuracy", what),
    ]
    if len(result.folds) > 1:
        pooled = figures.number(result.pooled.mean_iou)
        tiles.append(
            (pooled, "mean IoU, pooled", "of all held-out pixels counted together")
        )
    return [tile for tile in tiles if tile[0] != figures.NONE]


def _missing(
    result: CrossvalResult, names: Sequence[str], runs: Mapping[str, Record]
) -> list[str]:
    done, out = len(result.folds), []
    if done < len(names):
        out.append(
            f"{done} of {len(names)} folds are done. Give the same command again to go on."
        )
    if gone := [fold.run for fold in result.folds if fold.run not in runs]:
        out.append(
            f"The folders {', '.join(gone)} are not here: no curves, pictures or model of these folds."
        )
    return out


def _rows(result: CrossvalResult, span: tuple[float, float]) -> list[Row]:
    spreads, folds = [result.spread(key) for key in COLUMNS], result.folds

    def strip(values: Sequence[float], name: str) -> Markup:
        named = zip((fold.run for fold in folds), values, strict=True)
        return draw_strip(list(named), span=span, label=f"IoU of {name} in each fold")

    out = []
    for k, (name, color) in enumerate(
        zip(result.classes.names, result.classes.colors, strict=True)
    ):
        scores = tuple(figures.mean_std(mean[k], std[k]) for mean, std in spreads)
        values = [float(fold.confusion.iou[k]) for fold in folds]
        known = int(np.isfinite(values).sum())
        note = f"in {known} of {len(folds)} folds" if known < len(folds) else ""
        out.append(
            Row(name, sections.safe_color(color), scores, strip(values, name), note)
        )
    overall = tuple(
        figures.mean_std(*result.spread(key)) for key in ("mean_iou", "mean_dice")
    )
    values = [fold.confusion.mean_iou for fold in folds]
    return [
        *out,
        Row(
            "mean of the classes", "", (*overall, "", ""), strip(values, "all classes")
        ),
    ]


def _fold_row(fold: FoldScore, runs: Mapping[str, Record]) -> FoldRow:
    # Early stopping may have ended it before the epochs that were asked for.
    trained = len(runs[fold.run].history.epochs) if fold.run in runs else fold.epochs
    kept = f"{fold.best_epoch} of {trained}"
    ious = tuple(map(float, fold.confusion.iou))
    return FoldRow(
        fold.run, fold.held_out, fold.confusion.mean_iou, ious, kept, fold.seconds
    )


def _span(result: CrossvalResult) -> tuple[float, float]:
    """Round numbers that enclose every IoU."""
    found = [
        float(value)
        for fold in result.folds
        for value in fold.confusion.iou
        if math.isfinite(value)
    ]
    if not found:
        return 0.0, 1.0
    ticks = nice_ticks(min(found), max(found))
    return max(0.0, ticks[0]), min(1.0, ticks[-1])


def _charts(runs: Sequence[Record]) -> list[sections.Chart]:
    """A line a fold."""
    colors = default_colors(len(runs))
    out = []
    keys = {
        "Mean IoU on the fold held back": "mean_iou",
        "Loss on the fold held back": "validation_loss",
    }
    for title, key in keys.items():
        lines = [
            Line(
                run.path.name,
                [(end.epoch, float(getattr(end, key))) for end in run.history.epochs],
                sections.visible(color),
            )
            for run, color in zip(runs, colors, strict=True)
        ]
        shown = tuple(line for line in lines if not line.is_empty)
        if shown:
            out.append(
                sections.Chart(
                    title, draw_lines(shown, label=f"{title} over the epochs"), shown
                )
            )
    return out


def _facts(
    folder: Path,
    result: CrossvalResult,
    raw: Mapping[str, Any],
    runs: Mapping[str, Record],
    recipe: Recipe,
) -> list[tuple[str, str]]:
    started = next(
        (run.history.started for run in runs.values() if run.history.started), None
    )
    rows = {
        "Recipe": recipe.name,
        "Parameters": f"{started.parameters:,}" if started else "",
        "Device": f"{started.device}, {started.precision}" if started else "",
        "Specimens": f"told apart by {group}" if (group := raw.get("group")) else "",
        "Time": f"{figures.duration(result.seconds)} of training"
        if result.seconds
        else "",
        "Data fingerprints": ", ".join(map(str, raw.get("fingerprints") or [])),
        "Folder": str(folder.resolve()),
    }
    return [(name, value) for name, value in rows.items() if value]
