"""Rows of the list of recent runs: a thumbnail, and beside it a name in bold and two paler lines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qtpy.QtCore import QModelIndex, QPersistentModelIndex, QRect, QSize, Qt
from qtpy.QtGui import QImage, QPainter, QPalette, QPixmap
from qtpy.QtWidgets import QApplication, QListWidget, QSizePolicy, QStyle, QStyledItemDelegate, QStyleOptionViewItem

from napari_strata.widgets._preview import panels

SIDE = 56
"""Pixels of a thumbnail's side."""
ROWS = 3
"""Rows in sight at once."""
LINES = Qt.ItemDataRole.UserRole + 1
"""Role of the three lines of text; the thumbnail is the decoration."""
_PALE = 0.65


def thumbnail(path: Path, side: int) -> QImage:
    """A square of `side` pixels from the middle of a preview: left half the image, right half the prediction."""
    parts = [_square(part, side) for part in panels(QImage(str(path))) if not part.isNull()]
    if len(parts) < 3:
        return parts[0] if parts else QImage()
    square, prediction = parts[0], parts[2]
    painter = QPainter(square)
    half = QRect(side // 2, 0, side - side // 2, side)
    painter.drawImage(half, prediction, half)
    painter.end()
    return square


def _square(image: QImage, side: int) -> QImage:
    edge = min(image.width(), image.height())
    middle = image.copy((image.width() - edge) // 2, (image.height() - edge) // 2, edge, edge)
    scaled = middle.scaled(side, side, Qt.AspectRatioMode.IgnoreAspectRatio, Qt.TransformationMode.SmoothTransformation)
    return scaled.convertToFormat(QImage.Format.Format_RGB32)


class RowList(QListWidget):
    """As high as its rows, up to `ROWS` of them."""

    def __init__(self) -> None:
        super().__init__()
        self.setItemDelegate(_Delegate(self))
        self.setVerticalScrollMode(QListWidget.ScrollMode.ScrollPerPixel)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setAccessibleName("Recent models")

    def sizeHint(self) -> QSize:  # noqa: N802
        rows = max(1, min(ROWS, self.count()))
        return QSize(200, rows * max(self.sizeHintForRow(0), SIDE) + 2 * self.frameWidth())

    def minimumSizeHint(self) -> QSize:  # noqa: N802
        return self.sizeHint()


class _Delegate(QStyledItemDelegate):
    """A thumbnail, and beside it the name, the classes, and the date with the score."""

    def sizeHint(  # noqa: N802
        self, option: QStyleOptionViewItem, index: QModelIndex | QPersistentModelIndex
    ) -> QSize:
        return QSize(100, max(SIDE, 3 * option.fontMetrics.lineSpacing()) + 10)

    def paint(
        self, painter: QPainter | None, option: QStyleOptionViewItem, index: QModelIndex | QPersistentModelIndex
    ) -> None:
        lines = index.data(LINES)
        if painter is None or lines is None:
            return
        option.text = ""
        style = option.widget.style() if option.widget is not None else QApplication.style()
        assert style is not None
        style.drawPrimitive(QStyle.PrimitiveElement.PE_PanelItemViewItem, option, painter, option.widget)
        inner = option.rect.adjusted(5, 5, -5, -5)
        picture = index.data(Qt.ItemDataRole.DecorationRole)
        painter.save()
        if isinstance(picture, QPixmap):
            painter.drawPixmap(QRect(inner.left(), inner.top() + (inner.height() - SIDE) // 2, SIDE, SIDE), picture)
        self._write(painter, option, inner.adjusted(SIDE + 8, 0, 0, 0), lines=lines)
        painter.restore()

    def _write(self, painter: QPainter, option: QStyleOptionViewItem, room: QRect, *, lines: Sequence[str]) -> None:
        selected = bool(option.state & QStyle.StateFlag.State_Selected)
        role = QPalette.ColorRole.HighlightedText if selected else QPalette.ColorRole.Text
        painter.setPen(option.palette.color(role))
        font = option.font
        step = room.height() // len(lines)
        for number, text in enumerate(lines):
            font.setBold(number == 0)
            painter.setFont(font)
            painter.setOpacity(1.0 if number == 0 else _PALE if not selected else 0.85)
            line = painter.fontMetrics().elidedText(text, Qt.TextElideMode.ElideRight, room.width())
            place = QRect(room.left(), room.top() + number * step, room.width(), step)
            painter.drawText(place, Qt.AlignmentFlag.AlignVCenter | Qt.AlignmentFlag.AlignLeft, line)
