"""Preview: the newest picture of a run (image, truth, prediction), small in a dock and large in a window of its own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from qtpy.QtCore import QPoint, QRect, QSize, Qt, QTimer, Signal
from qtpy.QtGui import QImage, QKeyEvent, QMouseEvent, QPainter, QPaintEvent, QPixmap, QResizeEvent
from qtpy.QtWidgets import QLabel, QSizePolicy, QVBoxLayout, QWidget

from napari_strata.widgets import _background

GAP = 4
"""Pixels between the panels."""
REST = 80
"""Milliseconds of rest after a change of size."""
_NAME = re.compile(r"epoch_(\d+)\.png")
_STEPS = {
    Qt.Key.Key_Left: -1,
    Qt.Key.Key_Up: -1,
    Qt.Key.Key_Right: 1,
    Qt.Key.Key_Down: 1,
    Qt.Key.Key_Home: -(10**9),
    Qt.Key.Key_End: 10**9,
}

Array = np.ndarray[Any, Any]


def pictures(folder: Path) -> dict[int, Path]:
    """Epoch and file of each picture in a run's `previews`, in the order of the epochs; empty when there is none."""
    try:
        found = {int(m[1]): path for path in folder.iterdir() if (m := _NAME.fullmatch(path.name))}
    except OSError:
        return {}
    return dict(sorted(found.items()))


def panels(picture: QImage) -> list[QImage]:
    """Image, truth and prediction cut out of a picture of the engine; of any other picture, the whole of it.

    The engine draws three panels of one size in a row on white paper, and words above and below them.
    """
    grey = picture.convertToFormat(QImage.Format.Format_Grayscale8)
    memory: Any = grey.constBits()
    if memory is None:
        return [picture]
    if hasattr(memory, "setsize"):  # PyQt's pointers do not know how far they reach
        memory.setsize(grey.sizeInBytes())
    ink = np.frombuffer(memory, np.uint8).reshape(grey.height(), grey.bytesPerLine())[:, : grey.width()] < 250
    rows = max(_stretches(np.any(ink, axis=1)), key=_length, default=(0, 0))
    columns = _stretches(np.any(ink[slice(*rows)], axis=0))
    if len(columns) != 3 or len({_length(c) for c in columns}) != 1:
        return [picture]
    return [picture.copy(QRect(left, rows[0], right - left, _length(rows))) for left, right in columns]


def fitted(parts: list[QImage], width: int, ratio: float) -> QImage:
    """Panels side by side, `width` device-independent pixels wide at most; none is enlarged above its own size."""
    room = max(8, int((width - GAP * (len(parts) - 1)) * ratio) // len(parts))
    room = min(room, *(part.width() for part in parts)) if len(parts) > 1 else min(room, parts[0].width())
    scaled = [part.scaledToWidth(room, Qt.TransformationMode.SmoothTransformation) for part in parts]
    step = room + round(GAP * ratio)
    strip = QImage(QSize(step * (len(parts) - 1) + room, scaled[0].height()), QImage.Format.Format_ARGB32_Premultiplied)
    strip.fill(Qt.GlobalColor.transparent)
    painter = QPainter(strip)
    for number, part in enumerate(scaled):
        painter.drawImage(QPoint(number * step, 0), part)
    painter.end()
    strip.setDevicePixelRatio(ratio)
    return strip


class Preview(QWidget):
    """The newest picture in a run's `previews`; a click opens it large."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.epoch: int | None = None
        self.caption, self.strip = QLabel(), _Strip()
        self.caption.setWordWrap(True)
        rows = QVBoxLayout(self)
        rows.setContentsMargins(0, 0, 0, 0)
        rows.setSpacing(3)
        rows.addWidget(self.caption)
        rows.addWidget(self.strip)
        self._folder: Path | None = None
        self._files: dict[int, Path] = {}
        self._parts: list[QImage] = []
        self._wanted, self._drawn = 0, (0, 0.0)
        self._large: _Large | None = None
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(REST)
        self._timer.timeout.connect(self._draw)
        self.strip.pressed.connect(self.enlarge)
        self._show_none()

    def set_folder(self, folder: Path | None) -> None:
        """Show the pictures of this folder; None shows nothing."""
        self._folder = folder
        if self._large is not None:
            self._large.close()
        self._show_none()
        self.refresh()

    def refresh(self) -> None:
        """Look for a newer picture."""
        self._wanted += 1
        folder, number = self._folder, self._wanted
        if folder is None:
            return

        def look() -> tuple[dict[int, Path], list[QImage]]:
            files = pictures(folder)
            image = QImage(str(files[max(files)])) if files else QImage()
            return files, [] if image.isNull() else panels(image)

        _background.run(look, lambda found: self._found(number, *found), lambda _error: None, owner=self)

    def enlarge(self) -> None:
        """Open the picture in a window of its own."""
        if self.epoch is None:
            return
        if self._large is None:
            self._large = _Large(self)
        self._large.show_epoch(self._files, self.epoch)
        self._large.show()
        self._large.raise_()
        self._large.activateWindow()

    def resizeEvent(self, event: QResizeEvent | None) -> None:  # noqa: N802
        super().resizeEvent(event)
        self._timer.start()

    def _show_none(self) -> None:
        self.epoch, self._files, self._parts, self._drawn = None, {}, [], (0, 0.0)
        self.strip.hide()
        self.caption.setText("A picture of image, truth and prediction appears here after the first epoch.")

    def _found(self, number: int, files: dict[int, Path], parts: list[QImage]) -> None:
        if number != self._wanted or not parts:
            return
        self._files, self._parts = files, parts
        self.epoch = max(files)
        what = "image, truth and prediction" if len(parts) == 3 else "how it segments"
        self.caption.setText(f"After epoch {self.epoch}: {what}")
        self.strip.setToolTip(f"Click to see epoch {self.epoch} large, and the epochs before it.")
        if self._large is not None and self._large.isVisible():
            self._large.take(files)
        self._drawn = (0, 0.0)
        self._draw()

    def _draw(self) -> None:
        size = (self.width(), self.devicePixelRatioF())
        if not self._parts or size == self._drawn:
            return
        self._drawn = size
        parts = self._parts

        def show(strip: QImage) -> None:
            if parts is self._parts and size == self._drawn:
                self.strip.setPixmap(QPixmap.fromImage(strip))
                self.strip.show()

        _background.run(lambda: fitted(parts, *size), show, lambda _error: None, owner=self)


class _Strip(QLabel):
    """A picture that can be pressed, by mouse or keyboard, and never keeps a dock from getting narrower."""

    pressed = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.setMinimumWidth(1)
        self.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        self.setCursor(Qt.CursorShape.PointingHandCursor)
        self.setFocusPolicy(Qt.FocusPolicy.TabFocus)
        self.setAccessibleName("Newest preview of the training")

    def mouseReleaseEvent(self, event: QMouseEvent | None) -> None:  # noqa: N802
        if event is not None and event.button() == Qt.MouseButton.LeftButton:
            self.pressed.emit()

    def keyPressEvent(self, event: QKeyEvent | None) -> None:  # noqa: N802
        if event is not None and event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter, Qt.Key.Key_Space):
            self.pressed.emit()
        else:
            super().keyPressEvent(event)


class _Large(QWidget):
    """A window with the whole picture: arrow keys step through the epochs, Esc closes it."""

    def __init__(self, parent: QWidget) -> None:
        super().__init__(parent, Qt.WindowType.Window)
        self.epoch = 0
        self.pixmap = QPixmap()
        self._files: dict[int, Path] = {}
        screen = self.screen()
        room = QSize(1240, 620) if screen is None else screen.availableGeometry().size() * 0.8
        self.resize(QSize(1240, 620).boundedTo(room))

    def take(self, files: dict[int, Path]) -> None:
        """Newer pictures: follow them when the newest is in sight."""
        newest = self.epoch == max(self._files)
        self.show_epoch(files, max(files) if newest else self.epoch)

    def show_epoch(self, files: dict[int, Path], epoch: int) -> None:
        """Show one of `files`."""
        self._files, self.epoch = files, epoch
        self.setWindowTitle(f"Epoch {epoch} of {max(files)} so far (arrow keys: other epochs, Esc: close)")
        path = files[epoch]
        _background.run(lambda: QImage(str(path)), lambda i: self._loaded(epoch, i), lambda _error: None, owner=self)

    def paintEvent(self, event: QPaintEvent | None) -> None:  # noqa: N802
        painter = QPainter(self)
        if self.pixmap.isNull():
            painter.drawText(self.rect(), Qt.AlignmentFlag.AlignCenter, f"Epoch {self.epoch} ...")
            return
        painter.setRenderHint(QPainter.RenderHint.SmoothPixmapTransform)
        size = self.pixmap.size().scaled(self.size(), Qt.AspectRatioMode.KeepAspectRatio)
        place = QRect(QPoint(0, 0), size)
        place.moveCenter(self.rect().center())
        painter.drawPixmap(place, self.pixmap)

    def keyPressEvent(self, event: QKeyEvent | None) -> None:  # noqa: N802
        if event is None:
            return
        if event.key() == Qt.Key.Key_Escape:
            self.close()
        elif event.key() in _STEPS:
            epochs = list(self._files)
            number = epochs.index(self.epoch) + _STEPS[Qt.Key(event.key())]
            self.show_epoch(self._files, epochs[max(0, min(number, len(epochs) - 1))])
        else:
            super().keyPressEvent(event)

    def _loaded(self, epoch: int, image: QImage) -> None:
        if epoch == self.epoch:
            self.pixmap = QPixmap.fromImage(image)
            self.update()


def _stretches(flags: Any) -> list[tuple[int, int]]:
    """Start and stop of each stretch of true flags."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], flags, [False])).astype(np.int8)))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def _length(stretch: tuple[int, int]) -> int:
    return stretch[1] - stretch[0]
