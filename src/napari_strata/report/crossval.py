"""Page of a cross-validation: scores of its classes and folds, and their spread."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from napari_strata.core.classes import default_colors
from napari_strata.core.command import join_command
from napari_strata.core.recipe import Recipe
from napari_strata.core.recipes import dump_recipe
from napari_strata.core.runs import CrossvalFolder, ModelHeader, RunHistory
from napari_strata.report import figures, html, sections
from napari_strata.report.charts import Line, draw_strip, nice_ticks
from napari_strata.report.command import Repeat, repeat_crossval
from napari_strata.report.record import Record, read_record
from napari_strata.studies.crossval_results import OPTIMISM, CrossvalResult, FoldScore

COLUMNS = {"iou": "IoU", "dice": "Dice", "precision": "Precision", "recall": "Recall"}
"""Scores of the table of classes."""
STROKE_COLUMNS = {"recall": "Agreement"}
"""The same where only strokes are labelled, which keep away from edges."""


@dataclass(frozen=True)
class Row:
    """A class, or all of them.

    Parameters
    ----------
    scores
        Mean and standard deviation of each score over the folds.
    strip
        IoU of each fold as a dot on a line.
    """

    name: str
    color: str
    scores: tuple[str, ...]
    strip: Markup
    note: str = ""


@dataclass(frozen=True)
class FoldRow:
    """A fold: the data it held back, its scores, and its best epoch."""

    run: str
    held_out: str
    score: float
    class_scores: tuple[float, ...]
    best_epoch: str
    seconds: float


def render(folder: Path) -> str:
    """Render the page; a damaged fold shows less.

    Raises
    ------
    RunError
        If ``crossval.json`` is damaged.
    """
    study = CrossvalFolder(folder)
    raw = study.read()
    result = CrossvalResult.parse(raw, folder)
    recipe = Recipe.parse(raw.get("recipe"), source=str(study.file))
    names = [str(name) for name in raw["folds"]]
    runs = {}
    for name in names:
        if study.fold(name).exists:
            runs[name] = read_record(study.fold(name).path)
    pooled = _pooled_record(folder, result, recipe)
    scored = [runs[fold.run] for fold in result.folds if fold.run in runs]
    span = _score_span(result)
    kind = "a training scored on one part held back"
    if len(names) > 1:
        kind = "a cross-validation"
    context: dict[str, Any] = {
        "name": folder.resolve().name,
        "kind": kind,
        "summary": _summarize(result, sections.describe_network(pooled)),
        "tiles": _tiles(result),
        "missing": _missing(result, names, runs),
        "warnings": _warnings(raw),
        "columns": list(_columns(result).values()),
        "rows": _class_rows(result, span),
        "span": f"{span[0]:g} to {span[1]:g}",
        "is_strokes": bool(result.agreement),
        "names": result.classes.names,
        "folds": [_fold_row(fold, runs) for fold in result.folds],
        "report": _report_command(folder, scored),
        "charts": _draw_charts(list(runs.values())),
        "confusion": [],
        "cases": sections.worst_cases(scored),
        "swatches": [
            (name, sections.safe_color(color)) for name, color in pooled.classes.items()
        ],
        "note": OPTIMISM,
        "predict": _predict_command(study, names),
        "repeat": _repeat(runs, raw, recipe),
        "facts": _facts(folder, result, raw, runs, recipe),
        "recipe_text": dump_recipe(recipe),
    }
    if result.pooled.counts.any():
        context["confusion"] = sections.confusion_table(pooled)
    return html.render("crossval.html", **context)


def _pooled_record(folder: Path, result: CrossvalResult, recipe: Recipe) -> Record:
    """Return all held-out pixels of all folds as if from one evaluation."""
    return Record(
        path=folder,
        is_run=False,
        overlays=folder,
        scores=result.pooled.as_dict(),
        recipe_text="",
        recipe=recipe.model_dump(mode="json"),
        data={"classes": result.classes.table()},
        history=RunHistory(),
        rows=[],
        header=ModelHeader(),
    )


def _warnings(raw: Mapping[str, Any]) -> list[str]:
    """Return the warnings of all folds, each once."""
    texts = [str(text) for fold in raw.get("warnings") or [] for text in fold]
    return list(dict.fromkeys(texts))


def _report_command(folder: Path, scored: Sequence[Record]) -> str:
    """Return the command that writes the page of a fold."""
    if not scored:
        return ""
    fold = folder.resolve() / scored[0].path.name
    return join_command(["napari-strata", "report", str(fold)])


def _predict_command(study: CrossvalFolder, names: Sequence[str]) -> str:
    """Return the command that predicts with all folds together, if they have models."""
    has_models = all(study.fold(name).has_model for name in names)
    if not has_models or len(names) < 2:
        return ""
    folder = str(study.path.resolve())
    return join_command(
        ["napari-strata", "predict", folder, "IMAGE", "--out", "LABELS.tif"]
    )


def _repeat(
    runs: Mapping[str, Record], raw: Mapping[str, Any], recipe: Recipe
) -> Repeat | None:
    if not runs:
        return None
    first = next(iter(runs.values()))
    return repeat_crossval(first, raw, recipe)


def _summarize(result: CrossvalResult, network: str) -> list[str]:
    count = len(result.folds)
    if not count:
        return [f"{network} is to be trained once for each fold; none is done yet."]
    if count == 1:
        times = "once, on all but the part"
    else:
        times = f"{count} times, each time on all but the fold"
    sentences = [f"{network} was trained {times} that it is scored on."]
    if result.agreement:
        return [*sentences, f"Together it {result.agreement}."]
    if not math.isnan(result.mean_iou):
        text = (
            "The mean intersection over union of the classes (mean IoU) is "
            f"{result.mean_iou:.3f}"
        )
        if count > 1:
            text += (
                f" on average, with a standard deviation of {result.mean_iou_std:.3f}"
            )
        sentences.append(f"{text}.")
    class_iou, _ = result.spread("iou")
    named_iou = dict(zip(result.classes.names, class_iou, strict=True))
    return [*sentences, *sections.describe_extremes(named_iou)]


def _tiles(result: CrossvalResult) -> list[tuple[str, str, str]]:
    """Return value, name and meaning of the figures at the top."""
    meaning = "of one fold"
    if len(result.folds) > 1:
        meaning = "mean and standard deviation over the folds"
    accuracy = figures.share_std(*result.spread("pixel_accuracy"))
    if result.agreement:
        return [(accuracy, "agreement", "of held-out stroke pixels, as painted")]
    tiles = [
        (figures.mean_std(*result.spread("mean_iou_in_truth")), "mean IoU", meaning),
        (figures.mean_std(*result.spread("mean_dice")), "mean Dice", meaning),
        (accuracy, "pixel accuracy", meaning),
    ]
    if len(result.folds) > 1:
        pooled = figures.number(result.pooled.mean_iou_in_truth)
        tiles.append(
            (pooled, "mean IoU, pooled", "of all held-out pixels counted together")
        )
    return [tile for tile in tiles if tile[0] != figures.NONE]


def _missing(
    result: CrossvalResult, names: Sequence[str], runs: Mapping[str, Record]
) -> list[str]:
    """List what the page cannot show, and why."""
    sentences = []
    count = len(result.folds)
    if count < len(names):
        sentences.append(
            f"{count} of {len(names)} folds are done. Give the same command again to "
            "continue."
        )
    if missing := [fold.run for fold in result.folds if fold.run not in runs]:
        sentences.append(
            f"The folders {', '.join(missing)} are not here: no curves, pictures or "
            "model of these folds."
        )
    return sentences


def _class_rows(result: CrossvalResult, span: tuple[float, float]) -> list[Row]:
    folds = result.folds
    columns = _columns(result)
    first, title = next(iter(columns.items()))
    spreads = [result.spread(score) for score in columns]

    def draw(values: Sequence[float], name: str) -> Markup:
        points = [(fold.run, value) for fold, value in zip(folds, values, strict=True)]
        return draw_strip(points, span=span, label=f"{title} of {name} in each fold")

    rows = []
    for k, name in enumerate(result.classes.names):
        scores = tuple(figures.mean_std(mean[k], std[k]) for mean, std in spreads)
        values = [float(getattr(fold.confusion, first)[k]) for fold in folds]
        count = int(np.isfinite(values).sum())
        note = ""
        if count < len(folds):
            note = f"in {count} of {len(folds)} folds"
        color = sections.safe_color(result.classes.colors[k])
        rows.append(Row(name, color, scores, draw(values, name), note))
    if result.agreement:
        accuracy = [fold.confusion.pixel_accuracy for fold in folds]
        score = figures.mean_std(*result.spread("pixel_accuracy"))
        return [*rows, Row("all strokes", "", (score,), draw(accuracy, "all strokes"))]
    overall = (
        figures.mean_std(*result.spread("mean_iou_in_truth")),
        figures.mean_std(*result.spread("mean_dice")),
        "",
        "",
    )
    values = [fold.confusion.mean_iou_in_truth for fold in folds]
    strip = draw(values, "all classes")
    return [*rows, Row("mean of the classes", "", overall, strip)]


def _columns(result: CrossvalResult) -> dict[str, str]:
    return STROKE_COLUMNS if result.agreement else COLUMNS


def _fold_row(fold: FoldScore, runs: Mapping[str, Record]) -> FoldRow:
    accuracy = fold.confusion.pixel_accuracy
    column = "recall" if fold.stroke_pixels else "iou"
    epochs = fold.epochs
    if fold.run in runs:  # early stopping may have ended it before
        epochs = len(runs[fold.run].history.epochs)
    return FoldRow(
        run=fold.run,
        held_out=fold.held_out,
        score=accuracy if fold.stroke_pixels else fold.confusion.mean_iou_in_truth,
        class_scores=tuple(map(float, getattr(fold.confusion, column))),
        best_epoch=f"{fold.best_epoch} of {epochs}",
        seconds=fold.seconds,
    )


def _score_span(result: CrossvalResult) -> tuple[float, float]:
    """Return round numbers that enclose the scores of each class in each fold."""
    column = next(iter(_columns(result)))
    values: list[float] = []
    for fold in result.folds:
        values += map(float, getattr(fold.confusion, column))
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return 0.0, 1.0
    ticks = nice_ticks(min(finite), max(finite))
    return max(0.0, ticks[0]), min(1.0, ticks[-1])


def _draw_charts(runs: Sequence[Record]) -> list[sections.Chart]:
    """Draw one line for each fold."""
    keys = {
        "Mean IoU on the fold held back": "reported_iou",
        "Loss on the fold held back": "validation_loss",
    }
    charts = []
    for title, key in keys.items():
        lines = []
        for run, color in zip(runs, default_colors(len(runs)), strict=True):
            points = [
                (end.epoch, float(getattr(end, key))) for end in run.history.epochs
            ]
            lines.append(Line(run.path.name, points, sections.visible(color)))
        chart = sections.draw_chart(title, lines)
        if chart is not None:
            charts.append(chart)
    return charts


def _facts(
    folder: Path,
    result: CrossvalResult,
    raw: Mapping[str, Any],
    runs: Mapping[str, Record],
    recipe: Recipe,
) -> list[tuple[str, str]]:
    """Return names and values for the table "How it was made"."""
    facts = {
        "Recipe": recipe.name,
        "Parameters": "",
        "Device": "",
        "Specimens": "",
        "Time": "",
        "Data fingerprints": ", ".join(map(str, raw.get("fingerprints") or [])),
        "Folder": str(folder.resolve()),
    }
    for run in runs.values():
        if started := run.history.started:
            facts["Parameters"] = f"{started.parameters:,}"
            facts["Device"] = f"{started.device}, {started.precision}"
            break
    if group := raw.get("group"):
        facts["Specimens"] = f"identified by {group}"
    if result.seconds:
        facts["Time"] = f"{figures.duration(result.seconds)} of training"
    return [(name, value) for name, value in facts.items() if value]
