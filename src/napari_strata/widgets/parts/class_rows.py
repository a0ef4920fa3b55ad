"""Rows of the class table, and the choice of the meaning of 0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qtpy.QtCore import QEvent, QSize, Qt, Signal
from qtpy.QtWidgets import (
    QAbstractItemDelegate,
    QAbstractItemView,
    QButtonGroup,
    QHBoxLayout,
    QHeaderView,
    QLabel,
    QRadioButton,
    QSizePolicy,
    QTableWidget,
    QTableWidgetItem,
    QVBoxLayout,
    QWidget,
)
from superqt import QFlowLayout

from napari_strata.widgets.layers.label_classes import ZERO_RULE
from napari_strata.widgets.parts.swatch import swatch

COLOR, VALUE, NAME, PIXELS, USE = range(5)
TITLES = ("", "Value", "Name", "Pixels", "Use")
TIPS = (
    "Colour in the viewer, in curves and in pictures; click to change it",
    "The number in the labels; click the row to paint with it",
    "Double-click to rename",
    "Pixels with this value",
    "If not checked, the pixels are not used for training",
)
MIN_ROWS, MAX_ROWS = 4, 6
"""Smallest and largest height of the table, in rows."""
_ALWAYS = Qt.ItemFlag.ItemIsEnabled | Qt.ItemFlag.ItemIsSelectable


@dataclass(frozen=True)
class Row:
    """Content of a row.

    Parameters
    ----------
    color
        ``#rrggbb``, or None if the layer shows no colour.
    pixels
        None until they are counted.
    used
        Whether the class is used for training.
    fixed
        Whether `used` cannot be changed.
    """

    value: int
    name: str
    color: str | None
    pixels: int | None
    used: bool = True
    fixed: bool = False


class ClassRows(QTableWidget):
    """Table with a row for each class."""

    # Label values are sent as objects, because an int of Qt has 32 bits.
    picked = Signal(object)
    """Emitted with the label value of a chosen row."""
    renamed = Signal(object, str)
    used = Signal(object, bool)
    color_asked = Signal(object)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(0, len(TITLES), parent)
        self._shown: list[Row | None] = []  # None: the user has edited the row
        self._values: list[int] = []
        self.setHorizontalHeaderLabels(TITLES)
        self.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setShowGrid(False)
        for column, tip in enumerate(TIPS):
            self.horizontalHeaderItem(column).setToolTip(tip)
        self.horizontalHeaderItem(NAME).setTextAlignment(
            Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter
        )
        header = self.horizontalHeader()
        header.setHighlightSections(False)
        for column in range(len(TITLES)):
            fit = (
                QHeaderView.ResizeMode.Stretch
                if column == NAME
                else QHeaderView.ResizeMode.ResizeToContents
            )
            header.setSectionResizeMode(column, fit)
        header.setMinimumSectionSize(1)
        self.verticalHeader().hide()
        self.cellClicked.connect(self._on_click)
        self.currentCellChanged.connect(self._on_current)
        self.itemChanged.connect(self._on_item)
        self._measure()

    @property
    def current(self) -> int | None:
        """Label value of the chosen row, or None."""
        row = self.currentRow()
        return self._values[row] if 0 <= row < len(self._values) else None

    @property
    def editing(self) -> bool:
        """True while the user edits a name."""
        return bool(self.state() == QAbstractItemView.State.EditingState)

    def finish(self) -> None:
        """Close an open editor and keep its text."""
        if self.editing and (editor := self.focusWidget()) is not None:
            self.commitData(editor)
            self.closeEditor(editor, QAbstractItemDelegate.EndEditHint.NoHint)

    def fill(self, rows: Sequence[Row]) -> None:
        """Show rows; only rows that have changed are updated."""
        if list(rows) == self._shown:
            return
        before = self._shown
        self._shown, self._values = list(rows), [row.value for row in rows]
        self.blockSignals(True)
        self.setRowCount(len(rows))
        for index, row in enumerate(rows):
            if index >= len(before) or before[index] != row:
                self._fill_row(index, row)
        self.blockSignals(False)
        if len(before) != len(rows):
            self.updateGeometry()

    def mark(self, selected: int | None) -> None:
        """Mark the value with which the layer paints."""
        row = self._values.index(selected) if selected in self._values else -1
        if row == self.currentRow():
            return
        self.blockSignals(True)
        self.setCurrentCell(row, NAME)
        if row < 0:
            self.clearSelection()
        self.blockSignals(False)

    def sizeHint(self) -> QSize:  # noqa: N802
        """Return the size for all rows, within `MIN_ROWS` and `MAX_ROWS`."""
        rows = min(max(self.rowCount(), MIN_ROWS), MAX_ROWS)
        edge = 2 * self.frameWidth()
        height = (
            self.horizontalHeader().sizeHint().height()
            + rows * self.verticalHeader().defaultSectionSize()
            + edge
        )
        return QSize(260, height)

    def minimumSizeHint(self) -> QSize:  # noqa: N802
        """Return a size with the height of `sizeHint`."""
        return QSize(200, self.sizeHint().height())

    def changeEvent(self, event: QEvent | None) -> None:  # noqa: N802
        """Adapt the size to the font of the theme."""
        super().changeEvent(event)
        if event is not None and event.type() in (
            QEvent.Type.FontChange,
            QEvent.Type.StyleChange,
        ):
            self._measure()

    def _on_click(self, row: int, column: int) -> None:
        self.picked.emit(self._values[row])
        if column == COLOR:
            self.color_asked.emit(self._values[row])

    def _on_current(self, row: int, _column: int, before: int, _before: int) -> None:
        if row != before and 0 <= row < len(self._values):
            self.picked.emit(self._values[row])

    def _on_item(self, item: QTableWidgetItem) -> None:
        value = self._values[item.row()]
        self._shown[item.row()] = None
        if item.column() == NAME:
            self.renamed.emit(value, item.text().strip())
        elif item.column() == USE:
            self.used.emit(value, item.checkState() == Qt.CheckState.Checked)

    def _measure(self) -> None:
        self.verticalHeader().setDefaultSectionSize(
            round(self.fontMetrics().height() * 1.6)
        )
        side = self.fontMetrics().height()
        self.setIconSize(QSize(side, side))
        self.updateGeometry()

    def _fill_row(self, index: int, row: Row) -> None:
        pixels = "…" if row.pixels is None else f"{row.pixels:,}"
        for column, text in enumerate(("", str(row.value), row.name, pixels, "")):
            item = self.item(index, column)
            if item is None:
                item = QTableWidgetItem()
                self.setItem(index, column, item)
            item.setText(text)
            item.setToolTip(row.name if column == NAME else TIPS[column])
            item.setFlags(
                _ALWAYS
                | (
                    Qt.ItemFlag.ItemIsEditable
                    if column == NAME
                    else Qt.ItemFlag.NoItemFlags
                )
            )
            if column in (VALUE, PIXELS):
                item.setTextAlignment(
                    Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter
                )
        self.item(index, COLOR).setIcon(swatch(self, row.color))
        use = self.item(index, USE)
        use.setCheckState(
            Qt.CheckState.Checked if row.used else Qt.CheckState.Unchecked
        )
        use.setFlags(
            _ALWAYS if row.fixed else _ALWAYS | Qt.ItemFlag.ItemIsUserCheckable
        )


class ZeroChoice(QWidget):
    """Two buttons for the meaning of 0, with a line of text."""

    chosen = Signal(bool)
    """Emitted when the user chooses background (True) or unlabelled (False)."""

    def __init__(
        self, parent: QWidget | None = None, *, title: str = "0 means:"
    ) -> None:
        super().__init__(parent)
        self.unlabelled, self.background = (
            QRadioButton("unlabelled"),
            QRadioButton("background"),
        )
        self.note = QLabel()
        self.note.setWordWrap(True)
        self._group = QButtonGroup(self)
        heading, line, buttons, column = (
            QLabel(title),
            QHBoxLayout(),
            QFlowLayout(),
            QVBoxLayout(self),
        )
        for layout in (line, buttons, column):
            layout.setContentsMargins(0, 0, 0, 0)
        buttons.setHorizontalSpacing(self.fontMetrics().height())
        buttons.setVerticalSpacing(2)
        for button in (self.unlabelled, self.background):
            self._group.addButton(button)
            buttons.addWidget(button)
        for widget in (heading, self.unlabelled, self.background, self.note):
            widget.setToolTip(ZERO_RULE)
        line.addWidget(heading, 0, Qt.AlignmentFlag.AlignTop)
        line.addLayout(buttons, 1)
        column.addLayout(line)
        column.addWidget(self.note)
        self.background.toggled.connect(self.chosen)

    def show_choice(self, background: bool, text: str) -> None:
        """Show the meaning of 0 in the buttons and in a text."""
        self.blockSignals(True)
        (self.background if background else self.unlabelled).setChecked(True)
        self.blockSignals(False)
        self.note.setText(text)
        self.note.setVisible(bool(text))
