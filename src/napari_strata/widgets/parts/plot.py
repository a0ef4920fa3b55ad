"""One small chart, drawn with QPainter.

Axes with sensible numbers, lines with gaps, a mark for the best epoch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from qtpy.QtCore import QLineF, QPointF, QRectF, Qt
from qtpy.QtGui import QColor, QFont, QFontMetricsF, QPainter, QPen

STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)
GAP = 5.0
"""Pixels between an axis and its numbers."""

Values: TypeAlias = Sequence[float] | np.ndarray[Any, Any]


@dataclass(frozen=True)
class Line:
    """Points in rising order of x; NaN in `ys` leaves a gap."""

    xs: Values
    ys: Values
    color: QColor
    width: float = 1.3
    dots: bool = False


@dataclass(frozen=True)
class Chart:
    """Ranges of a chart: x from 0 to `last`, y from `low` to `high`; lines are clipped.

    `best` is the x of the mark, None without one. `note` stands in the middle.
    """

    lines: Sequence[Line]
    last: float
    low: float
    high: float
    best: float | None = None
    note: str = ""

    def at(self, place: QRectF, x: float, y: float) -> QPointF:
        """The point of `place`, the room of the lines, where a value lies."""
        across = x / self.last * place.width()
        up = (y - self.low) / (self.high - self.low) * place.height()
        return QPointF(place.left() + across, place.bottom() - up)


def ticks(low: float, high: float, most: int) -> list[float]:
    """At most `most` + 1 round numbers from `low` to `high`, in equal steps."""
    if not (math.isfinite(high - low) and high > low):
        return [low]
    rough = (high - low) / max(most, 1)
    size = 10.0 ** math.floor(math.log10(rough))
    step = size * next(
        factor for factor in STEPS if factor * size >= rough * (1 - 1e-9)
    )
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def whole_ticks(last: float, most: int) -> list[int]:
    """At most `most` whole numbers from 1 to `last`, in equal steps of 1, 2, 5, 10, 20,
    ...
    """
    step, size = 1, 1
    while last / step > max(most, 1):
        step, size = next(
            (factor * size, size) for factor in (1, 2, 5, 10) if factor * size > step
        )
        size = size * 10 if step == 10 * size else size
    return list(range(step, int(last) + 1, step))


def number(value: float, step: float) -> str:
    """A tick's number, with as many decimals as the step asks for."""
    if value and (abs(value) >= 1e5 or step < 1e-4):
        return f"{value:.2g}"
    decimals = next(
        (d for d in range(5) if abs(round(step, d) - step) < 1e-9 + step * 1e-6), 5
    )
    return f"{value:.{decimals}f}"


def y_labels(
    chart: Chart, height: float, metrics: QFontMetricsF
) -> list[tuple[float, str]]:
    """Values and their words for the y axis of a chart of that height in pixels."""
    values = ticks(chart.low, chart.high, int(height / (1.3 * metrics.height())))
    step = values[1] - values[0] if len(values) > 1 else 1.0
    return [(value, number(value, step)) for value in values]


def draw(
    painter: QPainter, place: QRectF, chart: Chart, *, ink: QColor, numbers: bool
) -> None:
    """Draw a chart whose lines fill `place`.

    Numbers of the y axis stand left of it, those of x below.
    """
    _draw_axes(painter, place, chart, ink=ink, numbers=numbers)
    painter.save()
    painter.setClipRect(place.adjusted(-1, -2, 3, 2))
    if chart.best is not None:
        painter.setPen(QPen(faded(ink, 0.55), 1, Qt.PenStyle.DotLine))
        painter.drawLine(
            chart.at(place, chart.best, chart.low),
            chart.at(place, chart.best, chart.high),
        )
    for line in chart.lines:
        _draw_line(painter, place, chart, line)
    painter.restore()
    if chart.note:
        painter.setPen(faded(ink, 0.8))
        flags = Qt.AlignmentFlag.AlignCenter | Qt.TextFlag.TextWordWrap
        painter.drawText(place.adjusted(8, 0, -8, 0), int(flags), chart.note)


class Entry(NamedTuple):
    """One word of a legend, and where it stands."""

    place: QRectF
    text: str
    color: QColor | None
    bold: bool


def flow(
    words: Sequence[tuple[str, QColor, str]], font: QFont, width: float, *, rows: int
) -> list[Entry]:
    """Names, colours and values as entries in rows of that width, from (0, 0).

    The first one is bold.

    What does not fit into so many rows is counted. Places do not depend on the values,
    so that nothing jumps.
    """
    thick = QFont(font)
    thick.setBold(True)
    metrics, wider = QFontMetricsF(font), QFontMetricsF(thick)
    row, edge = metrics.height() + 2, 0.5 * metrics.height() + 5
    more = metrics.horizontalAdvance("and 99 more")
    entries: list[Entry] = []
    x = y = 0.0
    for number, (name, color, value) in enumerate(words):
        used = metrics if number else wider
        label = used.elidedText(name, Qt.TextElideMode.ElideMiddle, width * 0.6)
        wide = edge + used.horizontalAdvance(f"{label} 0.00")
        last = y >= (rows - 1) * row
        if entries and x + wide > width and not last:
            x, y = 0.0, y + row
            last = y >= (rows - 1) * row
        if (
            entries
            and last
            and x + wide + (more if number < len(words) - 1 else 0.0) > width
        ):
            entries.append(
                Entry(
                    QRectF(x, y, width - x, row),
                    f"and {len(words) - number} more",
                    None,
                    False,
                )
            )
            break
        entries.append(
            Entry(
                QRectF(x, y, wide, row), f"{label} {value}".strip(), color, number == 0
            )
        )
        x += wide + 1.2 * metrics.averageCharWidth()
    return entries


def bottom(entries: Sequence[Entry]) -> float:
    """Height of a legend."""
    return entries[-1].place.bottom() if entries else 0.0


def draw_entry(
    painter: QPainter, entry: Entry, corner: QPointF, *, ink: QColor
) -> None:
    """Draw a word of a legend that begins at `corner`."""
    area = entry.place.translated(corner)
    side, middle = round(area.height() * 0.5), round(area.center().y())
    if entry.color is not None and entry.bold:  # as its line
        painter.fillRect(QRectF(area.left(), middle - 1.0, side, 2.4), entry.color)
    elif entry.color is not None:
        painter.fillRect(
            QRectF(area.left(), round(middle - side / 2), side, side), entry.color
        )
    plain, font = painter.font(), QFont(painter.font())
    font.setBold(entry.bold)
    painter.setFont(font)
    painter.setPen(ink)
    room = area.adjusted(side + 4 if entry.color is not None else 0, 0, 20, 0)
    painter.drawText(
        room,
        int(Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter),
        entry.text,
    )
    painter.setFont(plain)


def faded(color: QColor, share: float) -> QColor:
    """Return a colour with its opacity multiplied."""
    out = QColor(color)
    out.setAlphaF(share)
    return out


def _draw_axes(
    painter: QPainter, place: QRectF, chart: Chart, *, ink: QColor, numbers: bool
) -> None:
    metrics = QFontMetricsF(painter.font())
    high, grid, text = metrics.height(), QPen(faded(ink, 0.16), 1), faded(ink, 0.75)
    for value, word in y_labels(chart, place.height(), metrics):
        y = round(chart.at(place, 0, value).y()) + 0.5
        if not chart.note:
            painter.setPen(grid)
            painter.drawLine(QPointF(place.left(), y), QPointF(place.right(), y))
        painter.setPen(text)
        room = QRectF(0, y - high / 2, place.left() - GAP, high)
        painter.drawText(
            room, int(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter), word
        )
    painter.setPen(QPen(faded(ink, 0.5), 1))
    base = round(place.bottom()) + 0.5
    painter.drawLine(QPointF(place.left(), base), QPointF(place.right(), base))
    wide = (
        metrics.horizontalAdvance(f"{int(chart.last)}")
        + 2.2 * metrics.averageCharWidth()
    )
    for epoch in whole_ticks(chart.last, int(place.width() / wide)):
        x = round(chart.at(place, epoch, 0).x()) - 0.5
        painter.setPen(QPen(faded(ink, 0.5), 1))
        painter.drawLine(QPointF(x, base), QPointF(x, base + 3))
        if numbers:
            painter.setPen(text)
            painter.drawText(
                QRectF(x - 40, base + 3, 80, high),
                int(Qt.AlignmentFlag.AlignCenter),
                f"{epoch}",
            )


def _draw_line(painter: QPainter, place: QRectF, chart: Chart, line: Line) -> None:
    # Of points that lie closer than a pixel only some.
    stride = max(1, math.ceil(len(line.xs) / max(place.width(), 1)))
    across, up = place.width() / chart.last, place.height() / (chart.high - chart.low)
    values = np.asarray(line.ys, float)[::stride]
    xs = place.left() + np.asarray(line.xs, float)[::stride] * across
    ys = place.bottom() - (values - chart.low) * up
    there = np.isfinite(values)
    joined = there[:-1] & there[1:]
    ends = (xs[:-1][joined], ys[:-1][joined], xs[1:][joined], ys[1:][joined])
    pen = QPen(line.color, line.width)
    # Square ends close the joints, but where they lie over each other a translucent
    # colour would show it.
    pen.setCapStyle(
        Qt.PenCapStyle.SquareCap
        if line.color.alpha() == 255
        else Qt.PenCapStyle.FlatCap
    )
    painter.setPen(pen)
    # Segment by segment: Qt needs 30 times as long for a long polyline, which it fills
    # as one shape.
    lines = list(map(QLineF, *(values.tolist() for values in ends)))
    painter.drawLines(lines)  # type: ignore[call-overload]  # the stubs of PyQt know arrays only
    alone = (
        there & ~np.append(joined, False) & ~np.append(False, joined)
        if there.size
        else there
    )
    dotted = there if line.dots and there.sum() * 7 < place.width() else alone
    painter.setPen(Qt.PenStyle.NoPen)
    painter.setBrush(line.color)
    for x, y in zip(xs[dotted].tolist(), ys[dotted].tolist(), strict=True):
        painter.drawEllipse(QPointF(x, y), line.width + 0.9, line.width + 0.9)
    painter.setBrush(Qt.BrushStyle.NoBrush)
