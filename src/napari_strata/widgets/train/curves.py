"""Curves: the loss and the IoU of each class, drawn while a training runs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from qtpy.QtCore import QEvent, QPointF, QRectF, QSize, Qt, QTimer
from qtpy.QtGui import (
    QColor,
    QFont,
    QFontMetricsF,
    QMouseEvent,
    QPainter,
    QPaintEvent,
    QPen,
    QPixmap,
    QResizeEvent,
)
from qtpy.QtWidgets import QSizePolicy, QToolTip, QWidget

from napari_strata.core.events import BatchEnd, EpochEnd, Event, TrainingStarted
from napari_strata.widgets.parts.plot import (
    GAP,
    Chart,
    Entry,
    Line,
    bottom,
    draw,
    draw_entry,
    faded,
    flow,
    y_labels,
)
from napari_strata.widgets.train.history import History, figure, loss_range, score

REST = 100
"""Milliseconds between two paintings at least."""
MOST_ROWS = 6
"""Rows of the legend."""
SMALLEST = (280, 220)
MARGIN = 6.0

NONE = "No training yet."
FIRST = "The first epoch is under way; curves appear after it."
NO_SCORES = "There are no scores: no validation image has labels."


class Curves(QWidget):
    """Two charts, one over the other, with the same epochs.

    Fed with the events of one training.
    """

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setAccessibleName("Curves of the training")
        self.setMouseTracking(True)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Expanding)
        self.setMinimumWidth(SMALLEST[0])
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(REST)
        self._timer.timeout.connect(self._renew)
        self._due = False
        self._picture: QPixmap | None = None
        self._made: tuple[Chart, Chart] | None = None
        self._hovered: EpochEnd | None = None
        self.clear()

    # ------------------------------------------------------------------ what is shown

    def clear(self) -> None:
        """Forget everything."""
        self._history = History()
        self._hovered = None
        self._change()
        self._fit()

    def start(self, event: TrainingStarted, colors: Sequence[str]) -> None:
        """A training begins, or goes on: epochs before its first one stay.

        `colors` has one ``#rrggbb`` a class.
        """
        self._history.start(event, colors)
        self._change()
        self._fit()

    def add_batch(self, event: BatchEnd) -> None:
        """One more step of the training loss."""
        self._history.add_batch(event)
        self._change()

    def add_epoch(self, event: EpochEnd) -> None:
        """An epoch and its scores; one of the same number is replaced."""
        before = len(self._history.names)
        self._history.add_epoch(event)
        self._change()
        if len(self._history.names) != before:
            self._fit()

    def load(self, events: Iterable[Event], colors: Sequence[str]) -> None:
        """Show what a run went through."""
        self.clear()
        for event in events:
            if isinstance(event, TrainingStarted):
                self.start(event, colors)
            elif isinstance(event, BatchEnd):
                self.add_batch(event)
            elif isinstance(event, EpochEnd):
                self.add_epoch(event)

    @property
    def epochs(self) -> list[EpochEnd]:
        """The epochs shown, in order."""
        return self._history.epochs

    def _change(self) -> None:
        self._due = True
        if not self._timer.isActive():
            self._renew()

    def _renew(self) -> None:
        if not self._due:
            return
        self._due = False
        self._timer.start()
        self._picture = self._made = None
        self.update()

    # ------------------------------------------------------------------ charts

    def _charts(self) -> tuple[Chart, Chart]:
        """Loss and IoU, made anew after a change only."""
        if self._made is None:
            self._made = self._loss_chart(), self._iou_chart()
        return self._made

    def _loss_chart(self) -> Chart:
        history, ink = self._history, self._ink()
        ends, best = history.epochs, history.best
        xs = [float(end.epoch) for end in ends]
        lines = [
            Line(
                [x for x, _ in history.batches],
                [y for _, y in history.batches],
                faded(ink, 0.35),
                1.0,
            ),
            Line(xs, [end.train_loss for end in ends], faded(ink, 0.6), 1.3),
            Line(xs, [end.validation_loss for end in ends], ink, 1.5, dots=True),
        ]
        low, high = loss_range(
            [y for line in lines for y in line.ys],
            [y for line in lines for y in line.ys[-2:]],
        )
        note = "" if ends or history.batches else FIRST if history.started else NONE
        return Chart(
            lines,
            history.planned,
            low,
            high,
            best=best.epoch if best else None,
            note=note,
        )

    def _iou_chart(self) -> Chart:
        history = self._history
        ends, best, table = history.epochs, history.best, history.iou()
        xs = [float(end.epoch) for end in ends]
        lines = [
            Line(xs, ys, QColor(color))
            for ys, color in zip(table, history.colors, strict=False)
        ]
        lines.append(Line(xs, [end.mean_iou for end in ends], self._ink(), 2.4))
        unscored = bool(ends) and not np.isfinite(table).any()
        note = NO_SCORES if unscored else FIRST if history.batches and not ends else ""
        return Chart(
            lines,
            history.planned,
            0.0,
            1.0,
            best=best.epoch if best else None,
            note=note,
        )

    # ------------------------------------------------------------------ places

    def sizeHint(self) -> QSize:  # noqa: N802 (Qt's name)
        return QSize(max(SMALLEST[0], 320), self.minimumHeight() + 80)

    def _ink(self) -> QColor:
        return self.palette().color(self.foregroundRole())

    def _small(self) -> QFont:
        font = QFont(self.font())
        if font.pixelSize() > 0:
            font.setPixelSize(max(9, round(font.pixelSize() * 0.92)))
        else:
            font.setPointSizeF(font.pointSizeF() * 0.92)
        return font

    def _metrics(self) -> QFontMetricsF:
        return QFontMetricsF(self._small())

    def _fit(self) -> None:
        """Ask for the height that the legend needs at this width."""
        row = self._metrics().height()
        rows = bottom(self._legend())
        self.setMinimumHeight(
            max(SMALLEST[1], math.ceil(rows + 9.5 * row + 2 * MARGIN + 24))
        )

    def _places(self) -> tuple[QRectF, QRectF, float]:
        """The rooms of the two charts' lines, and the y of the legend."""
        metrics = self._metrics()
        row = metrics.height()
        legend = bottom(self._legend())
        below = self.height() - MARGIN - legend
        free = below - row - 8 - 2 * (row + 7) - 10 - MARGIN
        first, second = 0.44 * free, 0.56 * free
        charts = zip(self._charts(), (first, second), strict=True)
        labels = [
            word for chart, high in charts for _, word in y_labels(chart, high, metrics)
        ]
        left = (
            MARGIN
            + GAP
            + max(metrics.horizontalAdvance(word) for word in [*labels, "0.00"])
        )
        wide = self.width() - left - MARGIN - 4
        upper = QRectF(left, MARGIN + row + 7, wide, first)
        return upper, QRectF(left, upper.bottom() + 10 + row + 7, wide, second), below

    def _legend(self) -> list[Entry]:
        """The mean and the classes with their newest IoU, set in rows from y = 0."""
        history, newest = self._history, self._history.newest
        if not history.names:
            return []
        iou = newest.class_iou if newest else ()
        entries = [("mean", self._ink(), score(newest.mean_iou, 2) if newest else "")]
        for i, (name, color) in enumerate(
            zip(history.names, history.colors, strict=False)
        ):
            entries.append(
                (name, QColor(color), score(iou[i], 2) if i < len(iou) else "")
            )
        return flow(entries, self._small(), self.width() - 2 * MARGIN, rows=MOST_ROWS)

    # ------------------------------------------------------------------ painting

    def paintEvent(self, _event: QPaintEvent | None) -> None:  # noqa: N802
        ratio = self.devicePixelRatioF()
        size = self.size() * ratio
        if self._picture is None or self._picture.size() != size:
            self._picture = QPixmap(size)
            self._picture.setDevicePixelRatio(ratio)
            self._picture.fill(Qt.GlobalColor.transparent)
            with QPainter(self._picture) as painter:
                self._draw(painter)
        with QPainter(self) as painter:
            painter.drawPixmap(QPointF(0, 0), self._picture)
            if self._hovered is not None:
                self._draw_hover(painter, self._hovered)

    def _draw(self, painter: QPainter) -> None:
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setFont(self._small())
        upper, lower, legend = self._places()
        loss, iou = self._charts()
        draw(painter, upper, loss, ink=self._ink(), numbers=False)
        draw(painter, lower, iou, ink=self._ink(), numbers=True)
        row = self._metrics().height()
        self._draw_title(painter, upper, "Loss")
        self._draw_losses(painter, upper)
        self._draw_title(painter, lower, "IoU")
        ink, best = self._ink(), self._history.best
        painter.setPen(faded(ink, 0.75))
        left, right = int(Qt.AlignmentFlag.AlignLeft), int(Qt.AlignmentFlag.AlignRight)
        painter.drawText(
            QRectF(MARGIN, lower.bottom() + 3, lower.left(), row), left, "epoch"
        )
        if best is not None:
            text = f"best mean {score(best.mean_iou, 2)} in epoch {best.epoch}"
            painter.drawText(
                QRectF(0, lower.top() - row - 7, lower.right(), row), right, text
            )
        for entry in self._legend():
            draw_entry(painter, entry, QPointF(MARGIN, legend), ink=ink)

    def _draw_title(self, painter: QPainter, place: QRectF, text: str) -> None:
        row, font = self._metrics().height(), painter.font()
        bold = QFont(font)
        bold.setBold(True)
        painter.setFont(bold)
        painter.setPen(self._ink())
        painter.drawText(
            QRectF(MARGIN, place.top() - row - 7, 80, row),
            int(Qt.AlignmentFlag.AlignLeft),
            text,
        )
        painter.setFont(font)

    def _draw_losses(self, painter: QPainter, place: QRectF) -> None:
        """The key of the upper chart, with the newest values, from the right."""
        metrics, newest, ink = self._metrics(), self._history.newest, self._ink()
        row, x = metrics.height(), place.right()
        values = (
            (newest.validation_loss, newest.train_loss)
            if newest
            else (math.nan, math.nan)
        )
        keys = (
            ("validation", values[0], ink, 1.5),
            ("training", values[1], faded(ink, 0.6), 1.3),
        )
        for name, value, color, width in keys:
            text = f"{name} {figure(value)}" if math.isfinite(value) else name
            wide = metrics.horizontalAdvance(text)
            where = QRectF(x - wide, place.top() - row - 7, wide + 1, row)
            painter.setPen(faded(ink, 0.75))
            painter.drawText(where, int(Qt.AlignmentFlag.AlignLeft), text)
            middle, start = where.center().y(), where.left() - 18
            painter.setPen(QPen(color, width))
            painter.drawLine(QPointF(start, middle), QPointF(start + 14, middle))
            if name == "validation":
                painter.setBrush(color)
                painter.drawEllipse(QPointF(start + 7, middle), 1.8, 1.8)
                painter.setBrush(Qt.BrushStyle.NoBrush)
            x = start - 10

    def _draw_hover(self, painter: QPainter, end: EpochEnd) -> None:
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        upper, lower, _ = self._places()
        for area, chart in zip((upper, lower), self._charts(), strict=True):
            painter.setPen(QPen(faded(self._ink(), 0.6), 1))
            x = round(chart.at(area, end.epoch, 0).x()) - 0.5
            painter.drawLine(QPointF(x, area.top()), QPointF(x, area.bottom()))

    # ---- the mouse, the size, the theme

    def mouseMoveEvent(self, event: QMouseEvent | None) -> None:  # noqa: N802
        if event is None:
            return
        epoch = self.epoch_at(event.position())
        if epoch != self._hovered:
            self._hovered = epoch
            self.update()
        if epoch is not None:
            QToolTip.showText(
                event.globalPosition().toPoint(), self._history.describe(epoch), self
            )
        else:
            QToolTip.hideText()

    def epoch_at(self, point: QPointF) -> EpochEnd | None:
        """The epoch under a point of the widget."""
        upper, lower, _ = self._places()
        if not QRectF(
            upper.left() - 6,
            upper.top(),
            upper.width() + 12,
            lower.bottom() - upper.top(),
        ).contains(point):
            return None
        scale = upper.width() / self._history.planned
        x = (point.x() - upper.left()) / scale
        nearest = self._history.nearest(x)
        return (
            nearest
            if nearest is not None and abs(nearest.epoch - x) <= max(0.5, 6 / scale)
            else None
        )

    def leaveEvent(self, event: QEvent | None) -> None:  # noqa: N802
        super().leaveEvent(event)
        self._hovered = None
        self.update()

    def resizeEvent(self, event: QResizeEvent | None) -> None:  # noqa: N802
        super().resizeEvent(event)
        self._fit()

    def changeEvent(self, event: QEvent | None) -> None:  # noqa: N802
        super().changeEvent(event)
        kinds = (
            QEvent.Type.PaletteChange,
            QEvent.Type.StyleChange,
            QEvent.Type.FontChange,
        )
        if event is not None and event.type() in kinds and hasattr(self, "_history"):
            self._renew()
            self._fit()
