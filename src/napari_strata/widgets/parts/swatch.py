"""Icons with the colour of a class."""

from __future__ import annotations

from qtpy.QtCore import Qt
from qtpy.QtGui import QColor, QIcon, QPainter, QPalette, QPixmap
from qtpy.QtWidgets import QAbstractItemView


def swatch(view: QAbstractItemView, color: str | None) -> QIcon:
    """Create a square icon of a colour for `view`; without a colour only an outline."""
    ratio, side = view.devicePixelRatioF(), view.iconSize().width()
    picture = QPixmap(round(side * ratio), round(side * ratio))
    picture.setDevicePixelRatio(ratio)
    picture.fill(Qt.GlobalColor.transparent)
    painter = QPainter(picture)
    painter.setPen(view.palette().color(QPalette.ColorRole.Mid))
    if color is not None:
        painter.setBrush(QColor(color))
    painter.drawRect(1, 1, side - 3, side - 3)
    painter.end()
    icon = QIcon()
    for mode in (QIcon.Mode.Normal, QIcon.Mode.Selected):
        icon.addPixmap(picture, mode)
    return icon
