"""Sections of a page as plain values for its template."""

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
from napari_strata.core.metrics import describe_scores, none_if_nan
from napari_strata.core.network_sections import network_kinds
from napari_strata.core.text import format_count
from napari_strata.evaluation.calibration import NOT_INDEPENDENT
from napari_strata.report.charts import Line, draw_lines, draw_reliability
from napari_strata.report.record import Record

PICTURE_BYTES = 1_400_000
"""Approximate size of all pictures of a page together; as text half as much again."""

SIDES = (640, 480, 360, 280, 220, 160, 110)
"""Longest sides that are tried for a picture, in pixels."""

MAX_PICTURES = 6
"""Largest count of pictures of an evaluation."""

FIRST, SECOND = "var(--first)", "var(--second)"

LOSS_TITLES = {
    "ce": "Cross-entropy",
    "bce": "Binary cross-entropy (BCE)",
    "dice": "Dice loss",
    "focal": "Focal loss",
    "tversky": "Tversky loss",
    "lovasz": "Lov\N{LATIN SMALL LETTER A WITH ACUTE}sz loss",
}
"""Names of the losses in reports, by their name in the recipe."""


@dataclass(frozen=True)
class Chart:
    """A drawing, its title, and its lines for the legend."""

    title: str
    drawing: Markup
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class ClassRow:
    """Scores of one class; None if there is nothing to score."""

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
    """Scores of each class and of all; `caption` names the images.

    `mean_iou_text` says over which classes the mean is taken.

    Strokes have a recall only; see `EpochEnd.reported_iou`.
    """

    rows: tuple[ClassRow, ...]
    mean_iou: float
    mean_iou_text: str
    pixel_accuracy: float
    pixels: int
    caption: str
    is_strokes: bool = False


@dataclass(frozen=True)
class Cell:
    """A cell of the confusion matrix.

    Parameters
    ----------
    share
        Share of the pixels of its row, 0..1.
    right
        True on the diagonal.
    """

    share: float
    pixels: int
    right: bool

    @property
    def fill(self) -> float:
        """Opacity, 0..1; the square root makes small shares visible."""
        return round(0.85 * math.sqrt(self.share), 3)


@dataclass(frozen=True)
class Calibrated:
    """A reliability diagram and calibration errors; None where they are not known.

    Parameters
    ----------
    before, after
        Expected calibration error without and with the temperature; of an evaluation,
        `after` only.
    classwise
        Class-wise calibration error, with the temperature.
    class_errors
        Name and calibration error of each class.
    temperature
        None for an evaluation.
    note
        Remark on what was measured.
    """

    drawing: Markup | None
    before: float | None
    after: float | None
    classwise: float | None
    class_errors: tuple[tuple[str, float | None], ...]
    temperature: float | None
    pixels: int
    note: str


@dataclass(frozen=True)
class Case:
    """Pictures of one region as data URIs.

    Parameters
    ----------
    pictures
        Image, truth and prediction; or one picture that shows all three.
    """

    kind: str
    name: str
    mean_iou: float | None
    pictures: tuple[str, ...]


def draw_charts(record: Record) -> list[Chart]:
    """Draw curves over the epochs: losses, IoU, pixel accuracy, learning rate."""
    history = record.history
    epochs = history.epochs
    if not epochs:
        return []
    best = None
    if history.best is not None and history.best.best_iou:
        best = history.best.epoch

    def curve(name: str, key: str, color: str, *, dashed: bool = False) -> Line:
        points = [(end.epoch, float(getattr(end, key))) for end in epochs]
        return Line(name, points, color, dashed)

    accuracy = "Pixel accuracy on the validation images"
    if epochs[-1].stroke_pixels:
        accuracy = "Pixels of held-out strokes that are classified as painted"
    groups = {
        "Loss": [
            curve("training", "train_loss", FIRST),
            curve("validation", "validation_loss", SECOND),
        ],
        **_loss_terms(record.rows),
        "IoU on the validation images": [
            *_class_lines(record),
            curve("mean of the classes", "reported_iou", "var(--ink)", dashed=True),
        ],
        accuracy: [curve("pixel accuracy", "pixel_accuracy", SECOND)],
        "Learning rate": [curve("learning rate", "learning_rate", FIRST)],
    }
    charts = [draw_chart(title, lines, mark=best) for title, lines in groups.items()]
    return [chart for chart in charts if chart is not None]


def draw_chart(
    title: str, lines: Sequence[Line], *, mark: int | None = None
) -> Chart | None:
    """Draw lines over epochs; None if they hold no value."""
    filled = tuple(line for line in lines if not line.is_empty)
    if not filled:
        return None
    drawing = draw_lines(filled, label=f"{title} over the epochs", mark=mark)
    return Chart(title, drawing, filled)


def _class_lines(record: Record) -> list[Line]:
    lines = []
    for i, (name, color) in enumerate(record.classes.items()):
        points = [
            (end.epoch, end.reported_class_iou[i])
            for end in record.history.epochs
            if i < len(end.class_iou)
        ]
        lines.append(Line(name, points, visible(color)))
    return lines


def _loss_terms(rows: Sequence[dict[str, str]]) -> dict[str, list[Line]]:
    """Lines of each term of the loss, from columns ``train_*`` and ``validation_*``."""
    columns = [column for column in rows[0] if column] if rows else []
    terms = []
    for prefix in ("validation_", "train_"):
        for column in columns:
            if column.startswith(prefix):
                terms.append(column.removeprefix(prefix))
    charts = {}
    for term in dict.fromkeys(terms):
        if term == "loss":
            continue
        charts[f"{LOSS_TITLES.get(term, term)} alone"] = [
            _column_line("training", rows, f"train_{term}", FIRST),
            _column_line("validation", rows, f"validation_{term}", SECOND),
        ]
    return charts


def _column_line(
    name: str, rows: Sequence[dict[str, str]], column: str, color: str
) -> Line:
    points = [(_float(row.get("epoch")), _float(row.get(column))) for row in rows]
    return Line(name, points, color)


def score_table(record: Record) -> ScoreTable | None:
    """Return scores of the best model on the validation images.

    For a run without an evaluation, the IoU of its best epoch.
    """
    if not record.scores.get("per_class"):
        return _epoch_table(record)
    scores, classes = record.scores, record.classes
    counts = np.array(scores["confusion"], np.int64)
    is_strokes = validated_strokes(record)
    rows = []
    for i, (name, row) in enumerate(scores["per_class"].items()):
        pixels = int(counts[i].sum())
        if is_strokes:
            color, recall = safe_color(classes.get(name, "")), row.get("recall")
            rows.append(ClassRow(name, color, None, recall=recall, pixels=pixels))
            continue
        rows.append(
            ClassRow(
                name,
                safe_color(classes.get(name, "")),
                iou=row.get("iou"),
                dice=row.get("dice"),
                precision=row.get("precision"),
                recall=row.get("recall"),
                f1=row.get("f1"),
                accuracy=_class_accuracy(counts, i),
                pixels=pixels,
            )
        )
    caption = "on the images evaluated"
    if regions := scores.get("parts"):
        caption = (
            f"of the best model (epoch {scores.get('epoch')}) on "
            f"{count_regions(record, 'validation', regions)}"
        )
    return ScoreTable(
        tuple(rows),
        mean_iou=math.nan if is_strokes else _nan_if_none(scores.get("mean_iou")),
        mean_iou_text=describe_scores(scores),
        pixel_accuracy=_nan_if_none(scores.get("pixel_accuracy")),
        pixels=int(counts.sum()),
        caption=caption,
        is_strokes=is_strokes,
    )


def validated_strokes(record: Record) -> bool:
    """Return True if the best epoch was validated on strokes."""
    best = record.history.best
    return best is not None and best.stroke_pixels > 0


def _epoch_table(record: Record) -> ScoreTable | None:
    best = record.history.best
    if best is None or math.isnan(best.reported_iou):
        return None
    rows = []
    for (name, color), iou in zip(record.classes.items(), best.class_iou, strict=False):
        rows.append(ClassRow(name, safe_color(color), none_if_nan(iou)))
    return ScoreTable(
        tuple(rows),
        best.mean_iou,
        best.score,
        best.pixel_accuracy,
        pixels=0,
        caption=f"as epoch {best.epoch}, the best, was validated in training",
    )


def _class_accuracy(counts: np.ndarray[Any, Any], k: int) -> float | None:
    """Share of all pixels that are rightly inside or outside class `k`."""
    total = int(counts.sum())
    wrong = int(counts[k].sum() + counts[:, k].sum() - 2 * counts[k, k])
    return (total - wrong) / total if total else None


def confusion_table(record: Record) -> list[tuple[str, str, list[Cell | None]]]:
    """Return name, colour and cells of each row; cells are None without truth."""
    names = list(record.scores.get("per_class", {}))
    rows = []
    for i, counts in enumerate(record.scores.get("confusion") or []):
        total = sum(counts)
        cells: list[Cell | None] = [None] * len(counts)
        if total:
            cells = [Cell(n / total, n, i == j) for j, n in enumerate(counts)]
        color = safe_color(record.classes.get(names[i], ""))
        rows.append((names[i], color, cells))
    return rows


def calibration(record: Record) -> Calibrated | None:
    """Return the calibration before and after the temperature; None if not measured."""
    facts = record.scores.get("calibration")
    if not isinstance(facts, dict) or not facts.get("pixels"):
        return None
    label = "Share of right pixels at each confidence"
    if "ece" in facts:  # of an evaluation
        return Calibrated(
            draw_reliability({"after": facts["bins"]}, label=label),
            before=None,
            after=facts["ece"],
            classwise=facts["classwise_ece"],
            class_errors=tuple(facts["class_ece"].items()),
            temperature=None,
            pixels=facts["pixels"],
            note="",
        )
    notes = [facts["note"]]
    if facts.get("independent"):
        notes.append(
            "The temperature was fitted to one half of the validation data, and the"
            " errors are measured on the other"
        )
    elif not facts["note"]:
        notes.append(NOT_INDEPENDENT)
    return Calibrated(
        draw_reliability(facts["bins"], label=label),
        before=facts["ece_before"],
        after=facts["ece_after"],
        classwise=facts.get("classwise_ece_after"),  # not in older files
        class_errors=(),
        temperature=facts["temperature"],
        pixels=facts["pixels"],
        note=". ".join(note[:1].upper() + note[1:] for note in notes if note),
    )


def trained_on(record: Record) -> list[str]:
    """Return what is known of whether the planes of an evaluation were trained on."""
    facts = record.scores.get("trained_on")
    text = facts.get("text") if isinstance(facts, dict) else None
    return [str(text)] if text else []


def cases(record: Record) -> list[Case]:
    """Return pictures small enough for a page.

    For a run, its best and worst regions; for an evaluation, some of its planes.
    """
    listed = record.scores.get("pictures")
    if listed is None:
        paths = []
        if not record.is_run:
            paths = sorted(record.overlays.glob("*.png"))[:MAX_PICTURES]
        listed = [{"file": path.name, "name": path.stem} for path in paths]
    return _load_cases(record, listed, PICTURE_BYTES)


def worst_cases(records: Sequence[Record]) -> list[Case]:
    """Return the worst region of each run that has pictures, the worst of all first."""
    size = PICTURE_BYTES // max(1, len(records))
    worst = []
    for record in records:
        listed = sorted(record.scores.get("pictures") or [], key=_picture_rank)
        for case in _load_cases(record, listed[:1], size):
            worst.append(replace(case, kind=f"in {record.path.name}"))
    return sorted(worst, key=lambda case: _unknown_last(case.mean_iou))


def _picture_rank(picture: Mapping[str, Any]) -> float:
    return _unknown_last(picture.get("mean_iou"))


def _load_cases(
    record: Record, listed: Sequence[dict[str, Any]], size: int
) -> list[Case]:
    """Load those of the listed pictures that exist, in `size` bytes together."""
    existing = []
    for picture in listed:
        name = picture.get("file")
        if name and (record.overlays / str(name)).is_file():
            existing.append(picture)
    loaded = []
    for picture in existing:
        file = str(picture["file"])
        boxes = picture.get("panels") or []
        uris = _encode_panels(record.overlays / file, boxes, size // len(existing))
        if not uris:
            continue
        # Files of a run are named best_01_... and worst_01_....
        kind = file.split("_")[0] if "panels" in picture else ""
        name = str(picture.get("name", file))
        mean_iou = None if validated_strokes(record) else picture.get("mean_iou")
        loaded.append(Case(kind, name, mean_iou, uris))
    return loaded


def _encode_panels(
    path: Path, boxes: Sequence[Sequence[int]], size: int
) -> tuple[str, ...]:
    """Encode panels of a picture as data URIs, of at most `size` bytes if possible.

    Parameters
    ----------
    boxes
        Left, top, right and bottom of each panel; empty for the whole picture.
    """
    try:
        with Pillow.open(path) as opened:
            picture = opened.convert("RGB")
    except (OSError, ValueError):
        return ()
    panels = [picture]
    scale = 3  # the whole picture holds three panels side by side
    if boxes:
        panels = [
            picture.crop((int(a), int(b), int(c), int(d))) for a, b, c, d in boxes
        ]
        scale = 1
    encoded: list[bytes] = []
    for side in SIDES:
        encoded = [_encode_png(panel, side * scale) for panel in panels]
        if sum(map(len, encoded)) <= size:
            break
    prefix = "data:image/png;base64,"
    return tuple(prefix + base64.b64encode(png).decode() for png in encoded)


def _encode_png(picture: Pillow.Image, side: int) -> bytes:
    small = picture.copy()
    small.thumbnail((side, side), Pillow.Resampling.BOX)
    buffer = io.BytesIO()
    small.quantize(128, dither=Pillow.Dither.NONE).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def data(record: Record) -> dict[str, Any] | None:
    """Return the sources, and the names of the regions on each side of the split."""
    facts = record.data
    if not facts:
        return None
    return {
        "pairs": facts.get("pairs", []),
        "split": str(facts.get("split", "")),
        "training": [str(region["name"]) for region in facts.get("training", [])],
        "validation": [str(region["name"]) for region in facts.get("validation", [])],
    }


def count_regions(record: Record, kind: str, count: int) -> str:
    """Format a count: ``3 labelled planes``, or ``1 labelled block`` in 3D."""
    noun = "block" if (record.data.get("spec") or {}).get("depth") else "plane"
    return format_count(count, f"{kind} {noun}")


def describe_extremes(iou: Mapping[str, float | None]) -> list[str]:
    """Return a sentence on the best and the worst class; empty for fewer than two."""
    scored = {}
    for name, value in iou.items():
        if value is not None and not math.isnan(value):
            scored[name] = value
    if len(scored) < 2:
        return []
    best = max(scored, key=lambda name: scored[name])
    worst = min(scored, key=lambda name: scored[name])
    return [
        f"It recognises {best} best (IoU {scored[best]:.3f}) and {worst} least (IoU "
        f"{scored[worst]:.3f})."
    ]


def describe_network(record: Record) -> str:
    """Describe the network: ``A U-Net of widths 16, 32, 64``."""
    spec = record.data.get("spec") or {}
    network = spec.get("network") or record.recipe.get("network") or {}
    section = network_kinds().get(network.get("kind", ""))
    if section is None:
        return "A network"
    try:
        text = section.model_validate(network).describe()
    except (ValidationError, StrataError):
        return "A network"
    return text[0].upper() + text[1:]


def safe_color(color: str) -> str:
    """Return a colour that may stand in CSS; grey for anything but ``#rrggbb``."""
    return color if re.fullmatch(r"#[0-9a-fA-F]{6}", color) else "#888888"


def visible(color: str) -> str:
    """Move a class colour towards the ink, so that it is seen on white and black."""
    return f"color-mix(in oklab, {safe_color(color)} 78%, var(--ink))"


def _unknown_last(value: float | None) -> float:
    """Sort key that puts missing values behind all others."""
    return math.inf if value is None or math.isnan(value) else value


def _nan_if_none(value: float | None) -> float:
    return math.nan if value is None else value


def _float(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan
