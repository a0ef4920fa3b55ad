"""Picture of a confusion matrix, in the colours of napari's theme."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from qtpy.QtCore import QEvent, QPoint, QRect, QSize, Qt, Signal
from qtpy.QtGui import (
    QColor,
    QHelpEvent,
    QMouseEvent,
    QPainter,
    QPaintEvent,
    QPalette,
    QPen,
)
from qtpy.QtWidgets import QSizePolicy, QToolTip, QWidget

RIGHT_COLOR, WRONG_COLOR = QColor("#3f8fd2"), QColor("#e0622a")
"""Colours on and off the diagonal, which colour-blind users can distinguish."""
Array = np.ndarray[Any, Any]
Cell = tuple[int, int]


class ConfusionPicture(QWidget):
    """Picture of a confusion matrix, with rows of the truth.

    The colour of each square shows its fraction of the row.
    """

    clicked = Signal(int, int)
    """Emitted with row and column of a square that was clicked."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._counts: Array = np.zeros((0, 0), np.int64)
        self._names: tuple[str, ...] = ()
        self._colors: tuple[str, ...] = ()
        self._hovered: Cell | None = None
        self.setMouseTracking(True)
        policy = QSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Preferred)
        policy.setHeightForWidth(True)
        self.setSizePolicy(policy)

    def show_counts(
        self, counts: Array, names: Sequence[str], colors: Sequence[str]
    ) -> None:
        """Show a confusion matrix (K, K) of pixels, with K names and colours."""
        self._counts, self._names, self._colors = (
            np.asarray(counts, np.int64),
            tuple(names),
            tuple(colors),
        )
        self._hovered = None
        self.setAccessibleDescription(
            "\n".join(self.sentence(i, j) for i, j in np.ndindex(*self._counts.shape))
        )
        self.updateGeometry()
        self.update()

    def sentence(self, row: int, column: int) -> str:
        """Describe a square: ``412 pixels of clay were predicted as quartz: 3.1 %``."""
        pixels, total = int(self._counts[row, column]), int(self._counts[row].sum())
        true, predicted = self._names[row], self._names[column]
        if not total:
            return f"The truth has no pixel of {true}."
        verb = "was" if pixels == 1 else "were"
        count = f"{pixels:,} pixel{'' if pixels == 1 else 's'} of {true}"
        result = (
            f"correctly predicted as {predicted}"
            if row == column
            else f"predicted as {predicted}"
        )
        return f"{count} {verb} {result}: {_percent(pixels / total)} of {true}"

    def cell_at(self, point: QPoint) -> Cell | None:
        """Return row and column of the square at a point, or None."""
        field, side = self._field()
        if not field.contains(point) or not self._names or min(side) < 1:
            return None
        column, row = (
            (point.x() - field.x()) // side[0],
            (point.y() - field.y()) // side[1],
        )
        return (row, column) if max(row, column) < len(self._names) else None

    def cell_rect(self, row: int, column: int) -> QRect:
        """Return the rectangle of a square."""
        field, (width, height) = self._field()
        return QRect(
            field.x() + column * width, field.y() + row * height, width - 2, height - 2
        )

    def sizeHint(self) -> QSize:  # noqa: N802 (Qt's name)
        return QSize(290, self.heightForWidth(290))

    def minimumSizeHint(self) -> QSize:  # noqa: N802
        return QSize(200, self.heightForWidth(max(200, self.width())))

    def hasHeightForWidth(self) -> bool:  # noqa: N802
        return True

    def heightForWidth(self, width: int) -> int:  # noqa: N802
        """Return the height of the names and the squares."""
        return self._top(width) + len(self._names) * self._side(width)[1] + 2

    def paintEvent(self, _event: QPaintEvent | None) -> None:  # noqa: N802
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        for row in range(len(self._names)):
            self._paint_row_name(painter, row)
            self._paint_column_name(painter, row)
            for column in range(len(self._names)):
                self._paint_cell(painter, row, column)
        self._paint_titles(painter)
        painter.end()

    def mouseMoveEvent(self, event: QMouseEvent | None) -> None:  # noqa: N802
        assert event is not None
        self._hover(self.cell_at(event.position().toPoint()))

    def leaveEvent(self, event: QEvent | None) -> None:  # noqa: N802
        super().leaveEvent(event)
        self._hover(None)

    def mouseReleaseEvent(self, event: QMouseEvent | None) -> None:  # noqa: N802
        assert event is not None
        cell = self.cell_at(event.position().toPoint())
        if cell is not None and event.button() == Qt.MouseButton.LeftButton:
            self.clicked.emit(*cell)

    def event(self, event: QEvent | None) -> bool:
        """Show a tooltip for each square."""
        if isinstance(event, QHelpEvent) and event.type() == QEvent.Type.ToolTip:
            cell = self.cell_at(event.pos())
            text = self._tooltip(*cell) if cell is not None else ""
            QToolTip.showText(event.globalPos(), text, self)
            return True
        return super().event(event)

    def _tooltip(self, row: int, column: int) -> str:
        hint = (
            "\nClick to show the plane with most of them"
            if self._counts[row, column]
            else ""
        )
        return self.sentence(row, column) + hint

    def _hover(self, cell: Cell | None) -> None:
        if cell != self._hovered:
            self._hovered = cell
            filled = cell is not None and bool(self._counts[cell])
            self.setCursor(
                Qt.CursorShape.PointingHandCursor
                if filled
                else Qt.CursorShape.ArrowCursor
            )
            self.update()

    # ------------------------------------------------------------------ measures

    def _field(self) -> tuple[QRect, tuple[int, int]]:
        """Return the rectangle of all squares, and the size of a square."""
        width, height = self._side(self.width())
        count = len(self._names)
        return QRect(
            self._left(self.width()),
            self._top(self.width()),
            count * width,
            count * height,
        ), (width, height)

    def _left(self, width: int) -> int:
        """Return the width of the names of rows, their colours, and the title."""
        line = self.fontMetrics().height()
        return line + min(
            self._widest_name() + round(1.2 * line) + 6, round(0.38 * width)
        )

    def _top(self, width: int) -> int:
        line = self.fontMetrics().height()
        if not self._has_vertical_names(width):
            return round(2.5 * line)
        return round(1.2 * line) + min(self._widest_name(), 7 * line) + 6

    def _side(self, width: int) -> tuple[int, int]:
        count = max(1, len(self._names))
        across = max(4, (width - self._left(width)) // count)
        tallest = round(2.6 * self.fontMetrics().height())
        return across, min(across, tallest)

    def _has_vertical_names(self, width: int) -> bool:
        return self._widest_name() > self._side(width)[0] - 6

    def _widest_name(self) -> int:
        return max(
            (self.fontMetrics().horizontalAdvance(name) for name in self._names),
            default=0,
        )

    # ------------------------------------------------------------------ painting

    def _paint_cell(self, painter: QPainter, row: int, column: int) -> None:
        cell, total = self.cell_rect(row, column), int(self._counts[row].sum())
        share = self._counts[row, column] / total if total else 0.0
        empty = _mix(self._background(), self._foreground(), 0.07)
        # The square root makes small fractions visible, which matter off the diagonal.
        fill = _mix(empty, RIGHT_COLOR if row == column else WRONG_COLOR, share**0.5)
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(fill)
        painter.drawRoundedRect(cell, 3, 3)
        if self._hovered == (row, column):
            painter.setPen(QPen(self._foreground(), 1.5))
            painter.setBrush(Qt.BrushStyle.NoBrush)
            painter.drawRoundedRect(cell, 3, 3)
        text = self._cell_text(share, bool(total), cell.width())
        ink = (
            _readable(fill)
            if share
            else _mix(self._background(), self._foreground(), 0.5)
        )
        painter.setPen(ink)
        if (
            self.fontMetrics().horizontalAdvance(text) <= cell.width()
            and cell.height() >= self.fontMetrics().height()
        ):
            painter.drawText(cell, Qt.AlignmentFlag.AlignCenter, text)

    def _cell_text(self, share: float, labelled: bool, width: int) -> str:
        if not labelled:
            return "\N{EN DASH}"
        # The longest text of each format decides, so that all squares have one format.
        whole = "<1" if 0 < share < 0.01 else f"{100 * share:.0f}"
        tenths = (
            "100" if share == 1 else _percent(share).removesuffix("\N{NO-BREAK SPACE}%")
        )
        for widest, text in (
            ("<0.1\N{NO-BREAK SPACE}%", _percent(share)),
            ("<0.1", tenths),
            ("100", whole),
        ):
            if self.fontMetrics().horizontalAdvance(widest) <= width - 4:
                return text
        return ""

    def _paint_row_name(self, painter: QPainter, row: int) -> None:
        metrics, cell = self.fontMetrics(), self.cell_rect(row, 0)
        line = metrics.height()
        left, room = line, cell.x() - line - round(1.2 * line) - 6
        painter.setPen(
            self._foreground()
            if self._hovered is None or self._hovered[0] == row
            else self._faint()
        )
        text_area = QRect(left, cell.y(), room, cell.height())
        name = metrics.elidedText(self._names[row], Qt.TextElideMode.ElideRight, room)
        painter.drawText(
            text_area, Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter, name
        )
        side = round(0.75 * line)
        painter.setPen(self._faint())
        painter.setBrush(QColor(self._colors[row]))
        painter.drawRect(cell.x() - 6 - side, cell.center().y() - side // 2, side, side)

    def _paint_column_name(self, painter: QPainter, column: int) -> None:
        metrics, cell = self.fontMetrics(), self.cell_rect(0, column)
        line = metrics.height()
        painter.setPen(
            self._foreground()
            if self._hovered is None or self._hovered[1] == column
            else self._faint()
        )
        top = round(1.2 * line)
        room = cell.y() - top - 4
        if not self._has_vertical_names(self.width()):
            text_area = QRect(cell.x(), top, cell.width(), room)
            painter.drawText(
                text_area, Qt.AlignmentFlag.AlignCenter, self._names[column]
            )
            return
        name = metrics.elidedText(
            self._names[column], Qt.TextElideMode.ElideRight, room
        )
        painter.save()
        painter.translate(cell.center().x() - line // 2, cell.y() - 4)
        painter.rotate(-90)
        painter.drawText(
            QRect(0, 0, room, line),
            Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter,
            name,
        )
        painter.restore()

    def _paint_titles(self, painter: QPainter) -> None:
        field, _ = self._field()
        line = self.fontMetrics().height()
        painter.setPen(self._faint())
        painter.drawText(
            QRect(field.x(), 0, field.width(), line),
            Qt.AlignmentFlag.AlignCenter,
            "predicted as, % of row",
        )
        painter.save()
        painter.translate(0, field.bottom())
        painter.rotate(-90)
        painter.drawText(
            QRect(0, 0, field.height(), line), Qt.AlignmentFlag.AlignCenter, "truth"
        )
        painter.restore()

    def _background(self) -> QColor:
        return QColor(self.palette().color(QPalette.ColorRole.Window))

    def _foreground(self) -> QColor:
        return QColor(self.palette().color(QPalette.ColorRole.WindowText))

    def _faint(self) -> QColor:
        return _mix(self._background(), self._foreground(), 0.65)


def _mix(first: QColor, second: QColor, fraction: float) -> QColor:
    channels = zip(first.getRgb()[:3], second.getRgb()[:3], strict=True)
    return QColor(*(round(a + (b - a) * fraction) for a, b in channels))


def _readable(fill: QColor) -> QColor:
    """Return black or white, which is easier to read on a colour."""
    brightness = 0.299 * fill.red() + 0.587 * fill.green() + 0.114 * fill.blue()
    return QColor("black") if brightness > 140 else QColor("white")


def _percent(share: float) -> str:
    if share == 0:
        return "0"
    return (
        "<0.1\N{NO-BREAK SPACE}%"
        if share < 0.001
        else (
            "100\N{NO-BREAK SPACE}%"
            if share == 1
            else f"{100 * share:.1f}\N{NO-BREAK SPACE}%"
        )
    )
