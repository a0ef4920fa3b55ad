"""The page of a run, or of an evaluation."""

from __future__ import annotations

import math
from datetime import datetime
from pathlib import Path

from napari_strata.report import figures, html, sections
from napari_strata.report.charts import percent
from napari_strata.report.command import Repeat
from napari_strata.report.record import Record, read_record


def render(folder: Path) -> str:
    """The page of a run or an evaluation."""
    record = read_record(folder)
    scores = sections.score_table(record)
    charts = sections.charts(record)
    context = {
        "name": record.path.resolve().name,
        "record": record,
        "summary": summarize(record, scores),
        "tiles": _tiles(record),
        "missing": missing(record),
        "charts": charts,
        "scores": scores,
        "confusion": sections.confusion_table(record),
        "calibration": sections.calibration(record),
        "cases": sections.cases(record),
        "swatches": [(row.name, row.color) for row in scores.rows] if scores else [],
        "data": sections.data(record),
        "facts": _facts(record),
        "repeat": Repeat.of(record),
        "recipe_text": record.recipe_text,
    }
    return html.render("run.html", **context)


def summarize(record: Record, scores: sections.ScoreTable | None) -> list[str]:
    """The run in a few plain sentences."""
    out = []
    epochs, best, ended = (
        record.history.epochs,
        record.history.best,
        record.history.ended,
    )
    if record.is_run:
        network = sections.network_words(record)
        trained = (
            f"trained for {len(epochs)} epoch{'' if len(epochs) == 1 else 's'}"
            if epochs
            else "begun"
        )
        parts = len(record.data.get("training", []))
        on = f" on {sections.count_parts(record, 'labelled', parts)}" if parts else ""
        out.append(
            f"{network} was {trained}{on}{_ending(ended.reason if ended else '')}."
        )
    if scores is not None and scores.pixels:
        what = "held back from training" if record.is_run else "of the test images"
        out.append(
            f"Of {scores.pixels:,} labelled pixels {what}, {percent(scores.pixel_accuracy)} are classified rightly; "
            f"the mean intersection over union of the classes (mean IoU) is {scores.mean_iou:.3f}."
        )
    elif best is not None and not math.isnan(best.mean_iou):
        out.append(
            f"Its best mean IoU on images held back from training was {best.mean_iou:.3f}, in epoch {best.epoch}."
        )
    out += sections.extremes(
        {row.name: row.iou for row in scores.rows} if scores else {}
    )
    found = sections.calibration(record)
    if found is not None and found.after is not None:
        out.append(f"Its probabilities are off by {percent(found.after)} on average.")
    return out


def missing(record: Record) -> list[str]:
    """What the page cannot show, and why."""
    if not record.is_run:
        return []
    out = []
    ended, epochs = record.history.ended, record.history.epochs
    validates = bool(record.data.get("validation"))
    if ended is None:
        out.append(
            "This run has no end yet: it is still training, or was cut off. Resume it to go on."
        )
    elif ended.reason == "stopped":
        out.append(
            "This training was stopped before its end; resume it to go on where it stopped."
        )
    if not epochs:
        out.append("No epoch is complete, so there are no curves and no scores.")
    if not validates:
        out.append(
            "Nothing was held back for validation, so nothing is known of images that it was not trained on."
        )
    elif not record.scores:
        out.append(
            "The best model has not been measured on the validation images: that comes at the end of a training. "
            "There is no confusion matrix, no calibration and no best and worst cases."
        )
    elif (best := record.history.best) is not None and record.scores.get(
        "epoch"
    ) not in (
        None,
        best.epoch,
    ):
        out.append(
            f"The scores are those of epoch {record.scores['epoch']}; since then epoch {best.epoch} was better. Resume "
            "the training to its end to measure that one."
        )
    return out


def _ending(reason: str) -> str:
    return {
        "early stopping": ", until it stopped improving",
        "stopped": ", and then stopped by hand",
    }.get(reason, "")


def _tiles(record: Record) -> list[tuple[str, str, str]]:
    """Value, name and meaning of the figures at the top."""
    scores, best = record.scores, record.history.best
    iou = scores.get("mean_iou") if scores else best.mean_iou if best else None
    accuracy = (
        scores.get("pixel_accuracy")
        if scores
        else best.pixel_accuracy
        if best
        else None
    )
    found = sections.calibration(record)
    tiles = [
        (
            figures.number(iou),
            "mean IoU",
            "overlap of prediction and truth, mean of the classes",
        ),
        (
            figures.number(scores.get("mean_dice")),
            "mean Dice",
            "also called F1, mean of the classes",
        ),
        (figures.share(accuracy), "pixel accuracy", "pixels classified rightly"),
    ]
    if found is not None:
        tiles.append(
            (
                figures.share(found.after),
                "calibration error",
                "how far probabilities are off, on average",
            )
        )
    return [tile for tile in tiles if tile[0] != figures.NONE]


def _facts(record: Record) -> list[tuple[str, str]]:
    """How it was made: names and values."""
    spec, started, header = (
        record.data.get("spec", {}),
        record.history.started,
        record.header,
    )
    seconds = sum(e.seconds for e in record.history.epochs if math.isfinite(e.seconds))
    sizes = spec.get("pixel_size") or {}
    unit = spec.get("pixel_unit", "pixel")
    known = unit != "pixel" or set(sizes.values()) - {1.0}
    versions = header.table("versions")
    notes, grey = spec.get("notes", []), "grey values: "
    rows = {
        "Network": sections.network_words(record) if record.is_run else "",
        "Parameters": f"{started.parameters:,}" if started else "",
        "Recipe": str(record.recipe.get("name", "")),
        "Pixel size": ", ".join(f"{a} {v:g} {unit}" for a, v in sizes.items())
        if known
        else "",
        "Grey values": "; ".join(
            note.removeprefix(grey) for note in notes if note.startswith(grey)
        ),
        "Depth": "; ".join(note for note in notes if not note.startswith(grey)),
        "Device": f"{started.device}, {started.precision}" if started else "",
        "Time": f"{figures.duration(seconds)} for {len(record.history.epochs)} epochs"
        if seconds
        else "",
        "Best model made": _date(header.facts.get("created", "")),
        "Data fingerprint": str(record.data.get("fingerprint", "")),
        "Versions": ", ".join(f"{name} {number}" for name, number in versions.items()),
        "Folder": str(record.path.resolve()),
    }
    return [(name, value) for name, value in rows.items() if value]


def _date(text: str) -> str:
    try:
        return datetime.fromisoformat(text).strftime("%Y-%m-%d %H:%M UTC")
    except ValueError:
        return ""
