"""Page of a run, or of an evaluation."""

from __future__ import annotations

import math
from datetime import datetime
from pathlib import Path
from typing import Any

from napari_strata.core.metrics import describe_scores
from napari_strata.core.text import format_count, format_percent
from napari_strata.report import figures, html, sections
from napari_strata.report.command import repeat_training
from napari_strata.report.record import Record, read_record

ENDINGS = {
    "early stopping": ", until it stopped improving",
    "stopped": ", and then stopped by hand",
}
"""Clause for the reason why a training ended."""


def render(folder: Path) -> str:
    """Render the page. Raises `RunError` for a folder of another kind."""
    record = read_record(folder)
    scores = sections.score_table(record)
    context: dict[str, Any] = {
        "name": record.path.resolve().name,
        "record": record,
        "summary": _summarize(record, scores),
        "tiles": _tiles(record),
        "missing": _missing(record),
        "charts": sections.draw_charts(record),
        "scores": scores,
        "confusion": sections.confusion_table(record),
        "calibration": sections.calibration(record),
        "trained_on": sections.trained_on(record),
        "cases": sections.cases(record),
        "swatches": [(row.name, row.color) for row in scores.rows] if scores else [],
        "data": sections.data(record),
        "facts": _facts(record),
        "repeat": repeat_training(record),
        "recipe_text": record.recipe_text,
    }
    return html.render("run.html", **context)


def _summarize(record: Record, scores: sections.ScoreTable | None) -> list[str]:
    """Describe the run in a few plain sentences."""
    sentences = []
    best = record.history.best
    if record.is_run:
        sentences.append(_summarize_training(record))
    if best is not None and best.agreement:
        sentences.append(f"It {best.agreement}.")
    elif scores is not None and scores.pixels:
        images = "held back from training" if record.is_run else "evaluated"
        sentences.append(
            f"Of {scores.pixels:,} labelled pixels {images}, "
            f"{format_percent(scores.pixel_accuracy)} are classified rightly; the mean "
            "intersection over union of the classes (mean IoU) is "
            f"{scores.mean_iou_text.removeprefix('mean IoU ')}."
        )
    elif best is not None and best.score:
        sentences.append(
            "Its best mean IoU on images held back from training was "
            f"{best.score.removeprefix('mean IoU ')}, in epoch {best.epoch}."
        )
    if scores is not None:
        iou = {row.name: row.iou for row in scores.rows}
        sentences += sections.describe_extremes(iou)
    calibration = sections.calibration(record)
    if calibration is not None and calibration.after is not None:
        error = format_percent(calibration.after)
        sentences.append(f"Its probabilities are off by {error} on average.")
    return sentences


def _summarize_training(record: Record) -> str:
    history = record.history
    text = f"{sections.describe_network(record)} was "
    if history.epochs:
        text += f"trained for {format_count(len(history.epochs), 'epoch')}"
    else:
        text += "begun"
    if count := len(record.data.get("training", [])):
        text += f" on {sections.count_regions(record, 'labelled', count)}"
    if history.ended is not None:
        text += ENDINGS.get(history.ended.reason, "")
    return f"{text}."


def _missing(record: Record) -> list[str]:
    """List what the page cannot show, and why."""
    if not record.is_run:
        return []
    sentences = []
    history = record.history
    if history.ended is None:
        sentences.append(
            "This run has no end yet: it is still training, or was cut off. Resume it "
            "to continue."
        )
    elif history.ended.reason == "stopped":
        sentences.append(
            "This training was stopped before its end; resume it to continue from "
            "there."
        )
    if not history.epochs:
        sentences.append("No epoch is complete, so there are no curves and no scores.")
    best, scored_epoch = history.best, record.scores.get("epoch")
    if not record.data.get("validation"):
        if best is None or not best.agreement:
            sentences.append(
                "Nothing was held back for validation, so nothing is known of images "
                "that it was not trained on."
            )
    elif not record.scores:
        sentences.append(
            "The best model has not been measured on the validation images: that comes "
            "at the end of a training. There is no confusion matrix, no calibration "
            "and no best and worst cases."
        )
    elif best is not None and scored_epoch not in (None, best.epoch):
        sentences.append(
            f"The scores are those of epoch {scored_epoch}; since then epoch "
            f"{best.epoch} was better. Resume the training to its end to measure that "
            "one."
        )
    return sentences


def _tiles(record: Record) -> list[tuple[str, str, str]]:
    """Return value, name and meaning of the figures at the top."""
    scores, best = record.scores, record.history.best
    text, accuracy = "", scores.get("pixel_accuracy")
    if scores:
        text = describe_scores(scores)
    elif best is not None:
        text, accuracy = best.score, best.pixel_accuracy
    if best is not None and best.stroke_pixels:
        pixels = f"of {best.stroke_pixels:,} held-out stroke pixels, as painted"
        return [(figures.share(accuracy), "agreement", pixels)]
    value, _, classes = text.removeprefix("mean IoU ").partition(" ")
    tiles = [
        (
            value if value.strip("-") else figures.NONE,
            "mean IoU",
            f"overlap of prediction and truth, mean {classes or 'of the classes'}",
        ),
        (
            figures.number(scores.get("mean_dice")),
            "mean Dice",
            "also called F1, mean of the classes",
        ),
        (figures.share(accuracy), "pixel accuracy", "pixels classified rightly"),
    ]
    calibration = sections.calibration(record)
    if calibration is not None:
        tiles.append(
            (
                figures.share(calibration.after),
                "calibration error",
                "how far probabilities are off, on average",
            )
        )
    return [tile for tile in tiles if tile[0] != figures.NONE]


def _facts(record: Record) -> list[tuple[str, str]]:
    """Return names and values for the table "How it was made"."""
    spec, history, header = record.data.get("spec", {}), record.history, record.header
    started, epochs = history.started, history.epochs
    notes = spec.get("notes", [])
    grey_prefix = "grey values: "
    grey_notes = [note for note in notes if note.startswith(grey_prefix)]
    other_notes = [note for note in notes if not note.startswith(grey_prefix)]
    versions = header.table("versions").items()
    facts = {
        "Network": sections.describe_network(record) if record.is_run else "",
        "Parameters": f"{started.parameters:,}" if started else "",
        "Recipe": str(record.recipe.get("name", "")),
        "Pixel size": _format_pixel_size(spec),
        "Grey values": "; ".join(note.removeprefix(grey_prefix) for note in grey_notes),
        "Depth": "; ".join(other_notes),
        "Device": f"{started.device}, {started.precision}" if started else "",
        "Time": "",
        "Best model made": _format_date(header.facts.get("created", "")),
        "Data fingerprint": str(record.data.get("fingerprint", "")),
        "Versions": ", ".join(f"{name} {version}" for name, version in versions),
        "Folder": str(record.path.resolve()),
    }
    seconds = sum(end.seconds for end in epochs if math.isfinite(end.seconds))
    if seconds:
        facts["Time"] = f"{figures.duration(seconds)} for {len(epochs)} epochs"
    return [(name, value) for name, value in facts.items() if value]


def _format_pixel_size(spec: dict[str, Any]) -> str:
    """Format the size along each axis; empty when it is unknown."""
    sizes = spec.get("pixel_size") or {}
    unit = spec.get("pixel_unit", "pixel")
    if unit == "pixel" and set(sizes.values()) <= {1.0}:
        return ""
    return ", ".join(f"{axis} {size:g} {unit}" for axis, size in sizes.items())


def _format_date(text: str) -> str:
    try:
        return datetime.fromisoformat(text).strftime("%Y-%m-%d %H:%M UTC")
    except ValueError:
        return ""
