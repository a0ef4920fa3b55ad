"""Widget for pictures, which are scaled in a thread; panels of a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Pillow
from qtpy.QtCore import QRectF, QSize, Qt, QTimer, Signal
from qtpy.QtGui import QImage, QMouseEvent, QPainter, QPaintEvent, QResizeEvent
from qtpy.QtWidgets import QSizePolicy, QWidget

from napari_strata.widgets.parts.colors import faded
from napari_strata.widgets.work import threads

Array = np.ndarray[Any, Any]

SOURCE_GAP_PX = 16
"""Pixels between the panels of a picture from `draw_example`."""
GAP_PX = 4
"""Pixels between the panels in the widget."""
SCALE_DELAY_MS = 60
"""Milliseconds after a change of size before the pictures are scaled again."""
FLAT_RATIO = 2.4
"""Ratio of width to height above which panels are placed below each other."""
MAX_HEIGHT_RATIO = 1.5
"""Largest ratio of height to width of the widget."""


def read_pixels(path: Path) -> Array:
    """Read the pixels of a picture, uint8 (H, W, 3).

    Raises `OSError` if it cannot be read.
    """
    with Pillow.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def to_image(pixels: Array) -> QImage:
    """Convert pixels, uint8 (H, W, 3), to a QImage, in any thread."""
    height, width = pixels.shape[:2]
    return QImage(
        np.ascontiguousarray(pixels).tobytes(),
        width,
        height,
        3 * width,
        QImage.Format.Format_RGB888,
    ).copy()


def find_panels(pixels: Array) -> tuple[Array, ...]:
    """Return the three panels of a picture from `draw_example`; empty for others.

    The panels are the highest band of rows that are not blank. Text is above and below
    it.
    """
    is_drawn = np.any(pixels < 255, axis=2)
    top, bottom = _longest(np.any(is_drawn, axis=1))
    columns = np.flatnonzero(np.any(is_drawn[top:bottom], axis=0))
    if not columns.size:
        return ()
    left, right = int(columns[0]), int(columns[-1]) + 1
    width = (right - left - 2 * SOURCE_GAP_PX) // 3
    if width < 8 or bottom - top < 8:
        return ()
    return tuple(
        pixels[top:bottom, x : x + width]
        for x in (left, left + width + SOURCE_GAP_PX, right - width)
    )


def _longest(flags: Array) -> tuple[int, int]:
    """Return start and end of the longest sequence of True."""
    edges = np.flatnonzero(
        np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8))
    )
    if not edges.size:
        return 0, 0
    starts, ends = edges[::2], edges[1::2]
    best = int(np.argmax(ends - starts))
    return int(starts[best]), int(ends[best])


class Picture(QWidget):
    """Widget with one or several pictures of the same size, with captions.

    Pictures are side by side; flat pictures are below each other. With `fill` the
    widget fills the available space; otherwise its height depends on its width.
    """

    clicked = Signal()

    def __init__(self, *, fill: bool = False) -> None:
        super().__init__()
        self._fill = fill
        self._images: tuple[QImage, ...] = ()
        self._scaled: tuple[QImage, ...] = ()
        self._captions: tuple[str, ...] = ()
        self._number = 0
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(SCALE_DELAY_MS)
        self._timer.timeout.connect(self._scale)
        vertical = QSizePolicy.Policy.Expanding if fill else QSizePolicy.Policy.Fixed
        self.setSizePolicy(QSizePolicy.Policy.Expanding, vertical)

    def set_images(self, images: Sequence[QImage], captions: Sequence[str]) -> None:
        """Show images; the old ones are shown until these are scaled."""
        self._images, self._captions = tuple(images), tuple(captions)
        if not self._images:
            self._scaled = ()
        self.updateGeometry()
        self._fit()
        self._scale()
        self.update()

    def sizeHint(self) -> QSize:  # noqa: N802 (Qt's name)
        return QSize(300, self._height(300) if not self._fill else 200)

    def panel_areas(self) -> list[QRectF]:
        """Return the rectangles of the pictures in the widget."""
        if not self._images:
            return []
        first, count, head = self._images[0], len(self._images), self._head()
        columns = 1 if first.width() > FLAT_RATIO * first.height() else count
        rows = -(-count // columns)
        free_width = (self.width() - (columns - 1) * GAP_PX) / columns
        free_height = (self.height() - (rows - 1) * GAP_PX) / rows - head
        factor = max(
            min(free_width / first.width(), free_height / first.height()), 1e-3
        )
        size = (first.width() * factor, first.height() * factor)
        left = (self.width() - columns * size[0] - (columns - 1) * GAP_PX) / 2
        return [
            QRectF(
                left + (i % columns) * (size[0] + GAP_PX),
                head + (i // columns) * (size[1] + head + GAP_PX),
                *size,
            )
            for i in range(count)
        ]

    def _head(self) -> int:
        return self.fontMetrics().height() + 2 if self._captions else 0

    def _height(self, width: int) -> int:
        if not self._images:
            return 0
        first, count, head = self._images[0], len(self._images), self._head()
        columns = 1 if first.width() > FLAT_RATIO * first.height() else count
        rows = -(-count // columns)
        panel = (
            (width - (columns - 1) * GAP_PX) / columns * first.height() / first.width()
        )
        return round(
            min(rows * (panel + head) + (rows - 1) * GAP_PX, MAX_HEIGHT_RATIO * width)
        )

    def _fit(self) -> None:
        if not self._fill:
            self.setFixedHeight(max(1, self._height(self.width())))

    def _scale(self) -> None:
        if not self._images:
            return
        self._number += 1
        number, images, ratio = self._number, self._images, self.devicePixelRatioF()
        size = (self.panel_areas()[0].size() * ratio).toSize().expandedTo(QSize(1, 1))

        def work() -> tuple[QImage, ...]:
            modes = (
                Qt.AspectRatioMode.IgnoreAspectRatio,
                Qt.TransformationMode.SmoothTransformation,
            )
            return tuple(image.scaled(size, *modes) for image in images)

        threads.run(
            work,
            lambda scaled: self._set_scaled(number, scaled),
            lambda _error: None,
            owner=self,
        )

    def _set_scaled(self, number: int, scaled: tuple[QImage, ...]) -> None:
        if number == self._number:
            self._scaled = scaled
            self.update()

    def paintEvent(self, _event: QPaintEvent | None) -> None:  # noqa: N802
        with QPainter(self) as painter:
            painter.setPen(faded(self.palette().color(self.foregroundRole()), 0.75))
            for area, scaled in zip(self.panel_areas(), self._scaled, strict=False):
                painter.drawImage(area, scaled)
            for area, caption in zip(self.panel_areas(), self._captions, strict=False):
                caption_area = QRectF(
                    area.left(),
                    area.top() - self._head(),
                    area.width(),
                    self._head(),
                )
                painter.drawText(
                    caption_area,
                    int(Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignTop),
                    caption,
                )

    def resizeEvent(self, event: QResizeEvent | None) -> None:  # noqa: N802
        super().resizeEvent(event)
        self._fit()
        self._timer.start()

    def mouseReleaseEvent(self, event: QMouseEvent | None) -> None:  # noqa: N802
        if (
            event is not None
            and event.button() == Qt.MouseButton.LeftButton
            and self.rect().contains(event.pos())
        ):
            self.clicked.emit()
