"""Table of a few rows that is as high as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qtpy.QtCore import QEvent, QSize, Qt, Signal
from qtpy.QtGui import QKeyEvent, QKeySequence
from qtpy.QtWidgets import (
    QAbstractItemView,
    QHeaderView,
    QSizePolicy,
    QTableWidget,
    QTableWidgetItem,
    QWidget,
)

from napari_strata.widgets.parts.swatch import swatch

MAX_ROWS = 10
"""Largest height, in rows."""


@dataclass(frozen=True)
class Heading:
    """Heading of a column, and what it means."""

    text: str
    tip: str = ""


@dataclass(frozen=True)
class TableRow:
    """Row of a table: the name of a class with its colour, and texts.

    `tips` belong to `texts`; those that are missing are empty.
    """

    name: str
    color: str
    texts: tuple[str, ...]
    tips: tuple[str, ...] = ()


class Table(QTableWidget):
    """Table whose first column is the class. Ctrl+C emits `copied`."""

    copied = Signal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setTextElideMode(Qt.TextElideMode.ElideRight)
        self.setShowGrid(False)
        self._header, self._lines = self.horizontalHeader(), self.verticalHeader()
        assert self._header is not None
        assert self._lines is not None
        self._header.setHighlightSections(False)
        self._header.setMinimumSectionSize(1)
        self._lines.hide()

    def show_rows(self, headings: Sequence[Heading], rows: Sequence[TableRow]) -> None:
        """Show rows in place of those before; the first heading is the class's."""
        self.clear()
        self.setColumnCount(len(headings))
        self.setRowCount(len(rows))
        for column, heading in enumerate(headings):
            item = QTableWidgetItem(heading.text)
            item.setToolTip(heading.tip)
            item.setTextAlignment(_alignment(column))
            self.setHorizontalHeaderItem(column, item)
        for number, row in enumerate(rows):
            name = QTableWidgetItem(row.name)
            name.setToolTip(row.name)
            name.setIcon(swatch(self, row.color))
            self.setItem(number, 0, name)
            for column, text in enumerate(row.texts, start=1):
                cell = QTableWidgetItem(text)
                cell.setTextAlignment(_alignment(column))
                if column <= len(row.tips):
                    cell.setToolTip(row.tips[column - 1])
                self.setItem(number, column, cell)
        self._measure()

    def text(self) -> str:
        """Return the table as tab-separated text."""
        lines = []
        headings = range(self.columnCount())
        lines.append([self.horizontalHeaderItem(column) for column in headings])
        for row in range(self.rowCount()):
            lines.append([self.item(row, column) for column in headings])
        texts = []
        for cells in lines:
            words = ["" if cell is None else cell.text() for cell in cells]
            texts.append("\t".join(words))
        return "\n".join(texts) + "\n"

    def keyPressEvent(self, event: QKeyEvent | None) -> None:  # noqa: N802 (Qt's name)
        """Emit `copied` on Ctrl+C."""
        if event is not None and event.matches(QKeySequence.StandardKey.Copy):
            self.copied.emit()
            event.accept()
            return
        super().keyPressEvent(event)

    def changeEvent(self, event: QEvent | None) -> None:  # noqa: N802
        super().changeEvent(event)
        kinds = (QEvent.Type.FontChange, QEvent.Type.StyleChange)
        if event is not None and event.type() in kinds and hasattr(self, "_lines"):
            self._measure()

    def sizeHint(self) -> QSize:  # noqa: N802
        rows = min(max(self.rowCount(), 1), MAX_ROWS)
        assert self._header is not None
        assert self._lines is not None
        height = self._header.sizeHint().height() + 2 * self.frameWidth()
        return QSize(280, height + rows * self._lines.defaultSectionSize())

    def minimumSizeHint(self) -> QSize:  # noqa: N802
        return QSize(200, self.sizeHint().height())

    def _measure(self) -> None:
        """Give numbers the width that they need, and names the rest."""
        assert self._header is not None
        assert self._lines is not None
        height = self.fontMetrics().height()
        for column in range(self.columnCount()):
            mode = QHeaderView.ResizeMode.Fixed
            if column == 0:
                mode = QHeaderView.ResizeMode.Stretch
            self._header.setSectionResizeMode(column, mode)
            texts = []
            for row in range(-1, self.rowCount()):
                item = (
                    self.horizontalHeaderItem(column)
                    if row < 0
                    else self.item(row, column)
                )
                texts.append("" if item is None else item.text())
            widest = max(map(self.fontMetrics().horizontalAdvance, texts), default=0)
            self._header.resizeSection(column, widest + height)
        self._lines.setDefaultSectionSize(round(1.6 * height))
        self.setIconSize(QSize(height, height))
        self.updateGeometry()


def _alignment(column: int) -> Qt.AlignmentFlag:
    side = Qt.AlignmentFlag.AlignLeft if column == 0 else Qt.AlignmentFlag.AlignRight
    return side | Qt.AlignmentFlag.AlignVCenter
