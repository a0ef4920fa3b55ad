"""Curves: the loss and the IoU of each class, drawn while a training runs."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence

import numpy as np
from qtpy.QtCore import QEvent, QPointF, QRectF, QSize, Qt, QTimer
from qtpy.QtGui import QColor, QFont, QFontInfo, QMouseEvent, QResizeEvent, QShowEvent
from qtpy.QtWidgets import QGridLayout, QLabel, QSizePolicy, QToolTip, QWidget

from napari_strata.core.events import BatchEnd, EpochEnd, Event, TrainingStarted
from napari_strata.widgets.parts.colors import faded
from napari_strata.widgets.parts.plot import Chart, Line, Plot
from napari_strata.widgets.train.history import (
    History,
    format_loss,
    format_score,
    loss_range,
)

REST = 100
"""Minimum of milliseconds between two paint events."""
MIN_WIDTH, MIN_HEIGHT = 280, 220
"""Pixels."""
MAX_NAME_WIDTH = 160
"""Pixels of a class's name in the legend; a longer one is elided."""
MAX_LEGEND_CHARACTERS = 240
"""Length of the legend above which the classes that are left are counted."""

NONE = "No training yet."
FIRST = "The first epoch is running; curves appear when it ends."
NO_SCORES = "There are no scores: no validation image has labels."

DIGIT_SPACE = "\u2007"
"""A space as wide as a digit."""
NO_VALUE = f"{DIGIT_SPACE}\u2008{DIGIT_SPACE}-"
"""A dash as wide as ``0.00``."""


class Curves(QWidget):
    """Two plots, one over the other, with the same epochs.

    Fed with the events of one training. `loss` and `iou` are the plots, `legend` is the
    label with the newest IoU of each class.
    """

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setAccessibleName("Curves of the training")
        self.setMouseTracking(True)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Expanding)
        self.setMinimumWidth(MIN_WIDTH)
        self.loss, self.iou = Plot(numbers=False), Plot()
        left, right = Qt.AlignmentFlag.AlignLeft, Qt.AlignmentFlag.AlignRight
        loss_title, self._score_title = _label(left, "<b>Loss</b>"), _label(left)
        self._losses, self._best, self.legend = (
            _label(right),
            _label(right),
            _label(left),
        )
        rows = QGridLayout(self)
        rows.setContentsMargins(4, 4, 4, 4)
        rows.setSpacing(2)
        rows.addWidget(loss_title, 0, 0)
        rows.addWidget(self._losses, 0, 1)
        rows.addWidget(self.loss, 1, 0, 1, 2)
        rows.addWidget(self._score_title, 2, 0)
        rows.addWidget(self._best, 2, 1)
        rows.addWidget(self.iou, 3, 0, 1, 2)
        rows.addWidget(self.legend, 4, 0, 1, 2)
        rows.setRowStretch(1, 4)
        rows.setRowStretch(3, 5)
        rows.setColumnStretch(1, 1)
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(REST)
        self._timer.timeout.connect(self._renew)
        self._due = self._epochs_due = self._theme_due = False
        self._hovered: EpochEnd | None = None
        self.clear()

    # ------------------------------------------------------------------ what is shown

    def clear(self) -> None:
        """Forget everything."""
        self._history = History()
        self._hover(None)
        self._change(epochs=True)

    def start(self, event: TrainingStarted, colors: Sequence[str]) -> None:
        """A training begins, or goes on: epochs before its first one stay.

        `colors` has one ``#rrggbb`` a class.
        """
        self._history.start(event, colors)
        self._change(epochs=True)

    def add_batch(self, event: BatchEnd) -> None:
        """One more step of the training loss."""
        self._history.add_batch(event)
        self._change(epochs=False)

    def add_epoch(self, event: EpochEnd) -> None:
        """An epoch and its scores; one of the same number is replaced."""
        self._history.add_epoch(event)
        self._change(epochs=True)

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

    def _change(self, *, epochs: bool) -> None:
        self._due = True
        self._epochs_due |= epochs
        if not self._timer.isActive():
            self._renew()

    def _renew(self) -> None:
        """Draw what has changed, if it can be seen."""
        if not self._due or not self.isVisible():
            return
        self._due = False
        self._timer.start()
        if self._theme_due:
            self._follow_theme()
        self.loss.set_chart(self._loss_chart())
        if self._epochs_due:  # a batch changes the loss only
            self._epochs_due = False
            self.iou.set_chart(self._iou_chart())
            self._show_values()

    # ------------------------------------------------------------------ charts

    def _loss_chart(self) -> Chart:
        history, ink = self._history, self._ink()
        ends, best = history.epochs, history.best
        xs = [float(end.epoch) for end in ends]
        lines = [
            Line(
                [x for x, _ in history.batches],
                [y for _, y in history.batches],
                faded(ink, 0.35),
            ),
            Line(xs, [end.train_loss for end in ends], faded(ink, 0.6)),
            Line(xs, [end.validation_loss for end in ends], ink, dots=True),
        ]
        low, high = loss_range(
            [y for line in lines for y in line.ys],
            [y for line in lines for y in line.ys[-2:]],
        )
        empty = not (history.started or ends or history.batches)
        return Chart(
            lines,
            history.planned,
            low,
            high,
            best=best.epoch if best else None,
            note=NONE if empty else "",
        )

    def _iou_chart(self) -> Chart:
        history = self._history
        ends, best, table = history.epochs, history.best, history.iou()
        xs = [float(end.epoch) for end in ends]
        lines = [
            Line(xs, ys, QColor(color))
            for ys, color in zip(table, history.colors, strict=False)
        ]
        overall = [history.overall(end) for end in ends]
        lines.append(Line(xs, overall, self._ink(), 2.4))
        unscored = bool(ends) and not np.isfinite([*table.ravel(), *overall]).any()
        note = NO_SCORES if unscored else FIRST if history.started and not ends else ""
        return Chart(
            lines,
            history.planned,
            0.0,
            1.0,
            best=best.epoch if best else None,
            note=note,
        )

    def _show_values(self) -> None:
        """Write the newest values beside the plots."""
        history, ink = self._history, self._ink()
        newest, best = history.newest, history.best
        train = newest.train_loss if newest else math.nan
        validation = newest.validation_loss if newest else math.nan
        small = f'<span style="font-size: {self._small():.1f}pt">'
        self._losses.setText(
            f"{small}{_mark('━', faded(ink, 0.6))}&nbsp;training&nbsp;{_loss(train)}"
            f" {_mark('●', ink)}&nbsp;validation&nbsp;{_loss(validation)}"
        )
        title = "Agreement with strokes" if history.validates_strokes else "IoU"
        self._score_title.setText(f"<b>{title}</b>")
        self._best.setText("")
        if best is not None:
            name = "best" if history.validates_strokes else "best mean"
            score = format_score(history.overall(best), 2)
            self._best.setText(f"{small}{name} {score} in epoch {best.epoch}")
        self.legend.setText(small + self._legend_text())
        self._fit()

    def _legend_text(self) -> str:
        """The mean and the classes with their newest IoU, as HTML.

        Each value is as wide as the one before, so that nothing jumps.
        """
        history, newest = self._history, self._history.newest
        if not history.names:
            return ""
        metrics = self.legend.fontMetrics()
        iou = newest.reported_class_iou if newest else ()
        name = "agreement" if history.validates_strokes else "mean"
        score = _score(history.overall(newest))
        entries = [f"<b>{_mark('━', self._ink())}&nbsp;{name}&nbsp;{score}</b>"]
        length = 0
        for i, (name, color) in enumerate(
            zip(history.names, history.colors, strict=False)
        ):
            short = metrics.elidedText(
                name, Qt.TextElideMode.ElideMiddle, MAX_NAME_WIDTH
            )
            length += len(short) + 8
            if length > MAX_LEGEND_CHARACTERS:
                entries.append(f"and&nbsp;{len(history.names) - i}&nbsp;more")
                break
            # An entry is not broken; the second sign joins what is beside it.
            words = html.escape(short).replace(" ", "\u00a0").replace("…", "…\u2060")
            value = _score(iou[i] if i < len(iou) else math.nan)
            entries.append(f"{_mark('■', QColor(color))}&nbsp;{words}&nbsp;{value}")
        return "&nbsp; ".join(entries)

    def _small(self) -> float:
        """Points of the font beside the plots."""
        return 0.92 * QFontInfo(self.legend.font()).pointSizeF()

    def _ink(self) -> QColor:
        return self.palette().color(self.foregroundRole())

    # ---- the mouse, the size, the theme

    def sizeHint(self) -> QSize:  # noqa: N802 (Qt's name)
        return QSize(MIN_WIDTH + 40, self.minimumHeight() + 80)

    def _fit(self) -> None:
        """Ask for the height that the legend needs at this width."""
        needed = self.layout().minimumHeightForWidth(self.width())
        self.setMinimumHeight(max(MIN_HEIGHT, needed))

    def resizeEvent(self, event: QResizeEvent | None) -> None:  # noqa: N802
        super().resizeEvent(event)
        self._fit()

    def mouseMoveEvent(self, event: QMouseEvent | None) -> None:  # noqa: N802
        if event is None:
            return
        epoch = self.epoch_at(event.position())
        self._hover(epoch)
        if epoch is not None:
            QToolTip.showText(
                event.globalPosition().toPoint(), self._history.describe(epoch), self
            )
        else:
            QToolTip.hideText()

    def epoch_at(self, point: QPointF) -> EpochEnd | None:
        """The epoch under a point of the widget."""
        upper, lower = self._area(self.loss), self._area(self.iou)
        if not upper.united(lower).adjusted(-6, 0, 6, 0).contains(point):
            return None
        left = point.x() - self.loss.x()
        x, reach = self.loss.x_at(left), self.loss.x_at(left + 6)
        nearest = self._history.nearest(x)
        return (
            nearest
            if nearest is not None and abs(nearest.epoch - x) <= max(0.5, reach - x)
            else None
        )

    def _area(self, plot: Plot) -> QRectF:
        return plot.area().translated(QPointF(plot.pos()))

    def _hover(self, epoch: EpochEnd | None) -> None:
        if epoch != self._hovered:
            self._hovered = epoch
            for plot in (self.loss, self.iou):
                plot.point_at(epoch.epoch if epoch else None)

    def leaveEvent(self, event: QEvent | None) -> None:  # noqa: N802
        super().leaveEvent(event)
        self._hover(None)

    def showEvent(self, event: QShowEvent | None) -> None:  # noqa: N802
        super().showEvent(event)
        self._theme_due = self._due = True
        self._renew()

    def changeEvent(self, event: QEvent | None) -> None:  # noqa: N802
        super().changeEvent(event)
        kinds = (
            QEvent.Type.PaletteChange,
            QEvent.Type.StyleChange,
            QEvent.Type.FontChange,
        )
        if event is not None and event.type() in kinds and hasattr(self, "_history"):
            # When the timer ends, the style has set colour and font.
            self._theme_due = self._due = True
            self._timer.start()

    def _follow_theme(self) -> None:
        """Draw all in the colour and the font of the theme."""
        self._theme_due, self._epochs_due = False, True
        font = QFont(self.legend.font())
        font.setPointSizeF(self._small())
        for plot in (self.loss, self.iou):
            plot.set_theme(self._ink(), font)


def _label(alignment: Qt.AlignmentFlag, text: str = "") -> QLabel:
    label = QLabel(text)
    label.setWordWrap(True)
    label.setAlignment(alignment | Qt.AlignmentFlag.AlignVCenter)
    # Events of the mouse go to the widget that holds the label.
    label.setAttribute(Qt.WidgetAttribute.WA_TransparentForMouseEvents)
    return label


def _mark(sign: str, color: QColor) -> str:
    """A coloured sign as HTML."""
    red, green, blue, share = color.getRgbF()
    paint = f"rgba({red:.0%}, {green:.0%}, {blue:.0%}, {share:.2f})"
    return f'<span style="color: {paint}">{sign}</span>'


def _loss(value: float) -> str:
    """A loss as wide as most others."""
    return format_loss(value).ljust(6, DIGIT_SPACE)


def _score(value: float) -> str:
    """A score as wide as any other."""
    return format_score(value, 2) if math.isfinite(value) else NO_VALUE
