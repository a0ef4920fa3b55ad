"""Sections: what each part of a page shows, as plain values for its template."""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image as Pillow
from pydantic import ValidationError

from napari_strata.core.errors import StrataError
from napari_strata.core.metrics import none_if_nan
from napari_strata.core.network_sections import network_kinds
from napari_strata.report.charts import Line, draw_lines, draw_reliability
from napari_strata.report.record import Record

PICTURES = 1_400_000
"""Bytes that all pictures of a page take together, about; half as much again as text."""

SIDES = (640, 480, 360, 280, 220, 160, 110)
"""Longest sides that a picture is tried with."""

MOST = 6
"""Pictures of an evaluation that are shown."""

FIRST, SECOND = "var(--first)", "var(--second)"


@dataclass(frozen=True)
class Chart:
    """A drawing, its title, and its lines for the legend."""

    title: str
    drawing: Markup
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class ClassRow:
    """Scores of one class; None where there is nothing to score."""

    name: str
    color: str
    iou: float | None
    dice: float | None = None
    precision: float | None = None
    recall: float | None = None
    f1: float | None = None
    accuracy: float | None = None
    pixels: int | None = None


@dataclass(frozen=True)
class ScoreTable:
    """Scores of all classes and over them; `caption` says of what."""

    rows: tuple[ClassRow, ...]
    mean_iou: float
    pixel_accuracy: float
    pixels: int
    caption: str


@dataclass(frozen=True)
class Cell:
    """A square of the confusion matrix: its share of the row and how it is filled, 0..1."""

    share: float
    pixels: int
    right: bool

    @property
    def fill(self) -> float:
        """The square root shows small shares, which are what one looks for off the diagonal."""
        return round(0.85 * math.sqrt(self.share), 3)


@dataclass(frozen=True)
class Calibrated:
    """The reliability diagram and what it says; None where no pixel told."""

    drawing: Markup | None
    before: float | None
    after: float | None
    temperature: float
    pixels: int
    note: str


@dataclass(frozen=True)
class Case:
    """Pictures of one part as data URIs: image, truth and prediction, or one that shows all three."""

    kind: str
    name: str
    mean_iou: float | None
    pictures: tuple[str, ...]


def charts(record: Record) -> list[Chart]:
    """Curves over the epochs: the loss, each of its terms, IoU of the classes, the learning rate."""
    epochs = record.history.epochs
    if not epochs:
        return []
    best = (
        record.history.best.epoch
        if record.history.best and record.history.best.best_iou
        else None
    )

    def curve(name: str, key: str, color: str, *, dashed: bool = False) -> Line:
        return Line(
            name, [(e.epoch, float(getattr(e, key))) for e in epochs], color, dashed
        )

    groups = {
        "Loss": [
            curve("training", "train_loss", FIRST),
            curve("validation", "validation_loss", SECOND),
        ],
        **_terms(record.rows),
        "IoU on the validation images": [
            *_class_lines(record),
            curve("mean of the classes", "mean_iou", "var(--ink)", dashed=True),
        ],
        "Pixel accuracy on the validation images": [
            curve("pixel accuracy", "pixel_accuracy", SECOND)
        ],
        "Learning rate": [curve("learning rate", "learning_rate", FIRST)],
    }
    out = []
    for title, lines in groups.items():
        shown = tuple(line for line in lines if not line.is_empty)
        if shown:
            out.append(
                Chart(
                    title,
                    draw_lines(shown, label=f"{title} over the epochs", mark=best),
                    shown,
                )
            )
    return out


def _class_lines(record: Record) -> list[Line]:
    epochs, classes = record.history.epochs, record.classes
    return [
        Line(
            name,
            [(e.epoch, e.class_iou[i]) for e in epochs if i < len(e.class_iou)],
            visible(color),
        )
        for i, (name, color) in enumerate(classes.items())
    ]


def _terms(rows: Sequence[dict[str, str]]) -> dict[str, list[Line]]:
    """Charts of the single losses, such as BCE and Dice, from the columns ``train_*`` and ``validation_*``."""
    columns = [key for row in rows[:1] for key in row if key]
    terms = [
        key.removeprefix("validation_")
        for key in columns
        if key.startswith("validation_")
    ]
    terms += [key.removeprefix("train_") for key in columns if key.startswith("train_")]
    out = {}
    for term in dict.fromkeys(terms):
        if term == "loss":
            continue
        sides = (
            ("training", f"train_{term}", FIRST),
            ("validation", f"validation_{term}", SECOND),
        )
        lines = [
            Line(name, [(_float(r.get("epoch")), _float(r.get(key))) for r in rows], c)
            for name, key, c in sides
        ]
        out[f"{TERMS.get(term, term)} alone"] = lines
    return out


TERMS = {
    "ce": "Cross-entropy",
    "bce": "Binary cross-entropy (BCE)",
    "dice": "Dice loss",
    "focal": "Focal loss",
    "tversky": "Tversky loss",
    "lovasz": "Lov\N{LATIN SMALL LETTER A WITH ACUTE}sz loss",
}


def score_table(record: Record) -> ScoreTable | None:
    """Scores of the best model on the validation images; of a run that has none, the IoU that its best epoch had."""
    scores, classes = record.scores, record.classes
    per_class = scores.get("per_class")
    if not per_class:
        best = record.history.best
        if best is None or math.isnan(best.mean_iou):
            return None
        named = zip(classes.items(), best.class_iou, strict=False)
        rows = tuple(
            ClassRow(name, safe_color(color), none_if_nan(iou))
            for (name, color), iou in named
        )
        caption = f"as epoch {best.epoch}, the best, was validated in training"
        return ScoreTable(rows, best.mean_iou, best.pixel_accuracy, 0, caption)
    counts = np.array(scores["confusion"], np.int64)
    total = int(counts.sum())
    rows = tuple(
        ClassRow(
            name,
            safe_color(classes.get(name, "")),
            **{
                key: row.get(key)
                for key in ("iou", "dice", "precision", "recall", "f1")
            },
            accuracy=_accuracy(counts, i),
            pixels=int(counts[i].sum()),
        )
        for i, (name, row) in enumerate(per_class.items())
    )
    parts, epoch = scores.get("parts"), scores.get("epoch")
    of = (
        f"of the best model (epoch {epoch}) on {count_parts(record, 'validation', parts)}"
        if parts
        else ""
    )
    accuracy, iou = (scores.get(key) for key in ("pixel_accuracy", "mean_iou"))
    return ScoreTable(
        rows, _or_nan(iou), _or_nan(accuracy), total, of or "on the images evaluated"
    )


def _accuracy(counts: np.ndarray[Any, Any], number: int) -> float | None:
    """The share of all pixels for which "is it this class?" is answered rightly."""
    total = int(counts.sum())
    wrong = int(
        counts[number].sum() + counts[:, number].sum() - 2 * counts[number, number]
    )
    return (total - wrong) / total if total else None


def confusion_table(record: Record) -> list[tuple[str, str, list[Cell | None]]]:
    """Name, colour and squares of each row (truth); None in rows of classes that the truth has not."""
    counts, names = (
        record.scores.get("confusion"),
        list(record.scores.get("per_class", {})),
    )
    out = []
    for i, row in enumerate(counts or []):
        total = sum(row)
        cells = [
            Cell(n / total, n, i == j) if total else None for j, n in enumerate(row)
        ]
        out.append((names[i], safe_color(record.classes.get(names[i], "")), cells))
    return out


def calibration(record: Record) -> Calibrated | None:
    """What the temperature did; None where nothing was measured."""
    found = record.scores.get("calibration")
    if not isinstance(found, dict) or not found.get("pixels"):
        return None
    drawing = draw_reliability(
        found["bins"], label="Share of right pixels at each confidence"
    )
    keys = ("ece_before", "ece_after", "temperature", "pixels", "note")
    return Calibrated(drawing, *(found[key] for key in keys))


def cases(record: Record) -> list[Case]:
    """Pictures: of a run the best and the worst parts, of an evaluation some of its planes; small enough for a page."""
    listed = record.scores.get("pictures")
    if listed is None:
        found = (
            sorted(record.overlays.glob("*.png"))[:MOST] if not record.is_run else []
        )
        listed = [{"file": file.name, "name": file.stem} for file in found]
    return _drawn(record, listed, PICTURES)


def worst_cases(records: Sequence[Record]) -> list[Case]:
    """Of each run the pictured part that came out worst, the worst of all first."""
    room, found = PICTURES // max(1, len(records)), []
    for record in records:
        listed = sorted(
            record.scores.get("pictures") or [],
            key=lambda one: _last(one.get("mean_iou")),
        )
        found += [
            replace(case, kind=f"in {record.path.name}")
            for case in _drawn(record, listed[:1], room)
        ]
    return sorted(found, key=lambda case: _last(case.mean_iou))


def _drawn(record: Record, listed: Sequence[dict[str, Any]], room: int) -> list[Case]:
    """Those of the pictures listed that are there, in `room` bytes together."""
    known = [
        one
        for one in listed
        if one.get("file") and (record.overlays / str(one["file"])).is_file()
    ]
    out = []
    for one in known:
        pictures = _shrunk(
            record.overlays / str(one["file"]),
            one.get("panels") or [],
            room // len(known),
        )
        kind = str(one["file"]).split("_")[0] if "panels" in one else ""
        out.append(
            Case(kind, str(one.get("name", one["file"])), one.get("mean_iou"), pictures)
        )
    return [case for case in out if case.pictures]


def _shrunk(file: Path, boxes: Sequence[Sequence[int]], room: int) -> tuple[str, ...]:
    """The panels of a picture, or all of it, as data URIs of at most `room` bytes together, if that can be."""
    try:
        with Pillow.open(file) as opened:
            picture = opened.convert("RGB")
    except (OSError, ValueError):
        return ()
    panels = [
        picture.crop((int(a), int(b), int(c), int(d))) for a, b, c, d in boxes
    ] or [picture]
    longer = 1 if boxes else 3
    encoded: list[bytes] = []
    for side in SIDES:
        encoded = [_png(panel, side * longer) for panel in panels]
        if sum(map(len, encoded)) <= room:
            break
    return tuple(
        "data:image/png;base64," + base64.b64encode(one).decode() for one in encoded
    )


def _png(picture: Pillow.Image, side: int) -> bytes:
    small = picture.copy()
    small.thumbnail((side, side), Pillow.Resampling.BOX)
    buffer = io.BytesIO()
    small.quantize(128, dither=Pillow.Dither.NONE).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def data(record: Record) -> dict[str, Any] | None:
    """Sources and split by their names."""
    found = record.data
    if not found:
        return None
    names = {
        side: [str(part["name"]) for part in found.get(side, [])]
        for side in ("training", "validation")
    }
    return {
        "pairs": found.get("pairs", []),
        "split": str(found.get("split", "")),
        **names,
    }


def count_parts(record: Record, kind: str, count: int) -> str:
    """``3 labelled planes``, or of a 3D network ``1 labelled block``: a volume or a part of one."""
    noun = "block" if (record.data.get("spec") or {}).get("depth") else "plane"
    return f"{count} {kind} {noun}{'' if count == 1 else 's'}"


def extremes(iou: Mapping[str, float | None]) -> list[str]:
    """A sentence on the class that is told best and the one that is told least; none of fewer than two."""
    known = {
        name: value
        for name, value in iou.items()
        if value is not None and not math.isnan(value)
    }
    if len(known) < 2:
        return []
    best, worst = (
        max(known, key=lambda name: known[name]),
        min(known, key=lambda name: known[name]),
    )
    return [
        f"It tells {best} best (IoU {known[best]:.3f}) and {worst} least (IoU {known[worst]:.3f})."
    ]


def network_words(record: Record) -> str:
    """The network in words: ``A U-Net of widths 16, 32, 64``."""
    network = (
        (record.data.get("spec") or {}).get("network")
        or record.recipe.get("network")
        or {}
    )
    section = network_kinds().get(network.get("kind", ""))
    if section is None:
        return "A network"
    try:
        text = section.model_validate(network).describe()
    except (ValidationError, StrataError):
        return "A network"
    return text[0].upper() + text[1:]


def safe_color(color: str) -> str:
    """A colour that may stand in a style; grey for anything but ``#rrggbb``."""
    return color if re.fullmatch(r"#[0-9a-fA-F]{6}", color) else "#888888"


def visible(color: str) -> str:
    """A class colour moved towards the ink, so that yellow is seen on white and dark blue on black."""
    return f"color-mix(in oklab, {safe_color(color)} 78%, var(--ink))"


def _last(value: float | None) -> float:
    """A key that sorts what is not known behind the rest."""
    return math.inf if value is None or math.isnan(value) else value


def _or_nan(value: float | None) -> float:
    """None as NaN."""
    return math.nan if value is None else value


def _float(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan
