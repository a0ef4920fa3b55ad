"""Pictures in a widget, scaled in the background; panels cut out of a picture."""

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

GAP = 16
"""Pixels between the panels of a picture, as `draw_example` leaves them."""
SPACE = 4
"""Pixels between the panels in the widget."""
REST = 60
"""Milliseconds of rest after a change of size before the pictures are scaled anew."""
FLAT = 2.4
"""Panels that are so many times wider than high stand under each other."""
TALLEST = 1.5
"""A picture takes at most so much of its width in height."""


def read_pixels(path: Path) -> Array:
    """The pixels of a picture, uint8 (H, W, 3).

    Raises `OSError` when it cannot be read.
    """
    with Pillow.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def to_image(pixels: Array) -> QImage:
    """Pixels uint8 (H, W, 3) as a picture of Qt; may be called in any thread."""
    height, width = pixels.shape[:2]
    return QImage(
        np.ascontiguousarray(pixels).tobytes(),
        width,
        height,
        3 * width,
        QImage.Format.Format_RGB888,
    ).copy()


def find_panels(pixels: Array) -> tuple[Array, ...]:
    """The three panels of a picture that `draw_example` drew.

    None when it looks otherwise.

    They are the highest band of rows that are not blank; text stands above and below
    it.
    """
    inked = np.any(pixels < 255, axis=2)
    top, bottom = _longest(np.any(inked, axis=1))
    columns = np.flatnonzero(np.any(inked[top:bottom], axis=0))
    if not columns.size:
        return ()
    left, right = int(columns[0]), int(columns[-1]) + 1
    width = (right - left - 2 * GAP) // 3
    if width < 8 or bottom - top < 8:
        return ()
    return tuple(
        pixels[top:bottom, x : x + width]
        for x in (left, left + width + GAP, right - width)
    )


def _longest(flags: Array) -> tuple[int, int]:
    """Start and end of the longest run of True."""
    edges = np.flatnonzero(
        np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8))
    )
    if not edges.size:
        return 0, 0
    starts, ends = edges[::2], edges[1::2]
    best = int(np.argmax(ends - starts))
    return int(starts[best]), int(ends[best])


class Picture(QWidget):
    """One picture or several of one size, side by side (flat ones under each other),
    each with a caption over it.

    With `fill` it takes the room it is given; else its height follows from its width.
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
        self._timer.setInterval(REST)
        self._timer.timeout.connect(self._scale)
        upright = QSizePolicy.Policy.Expanding if fill else QSizePolicy.Policy.Fixed
        self.setSizePolicy(QSizePolicy.Policy.Expanding, upright)

    def set_images(self, images: Sequence[QImage], captions: Sequence[str]) -> None:
        """Show images; the old ones stay until these are scaled in the background."""
        self._images, self._captions = tuple(images), tuple(captions)
        if not self._images:
            self._scaled = ()
        self.updateGeometry()
        self._fit()
        self._scale()
        self.update()

    def sizeHint(self) -> QSize:  # noqa: N802 (Qt's name)
        return QSize(300, self._height(300) if not self._fill else 200)

    def places(self) -> list[QRectF]:
        """Rectangles of the pictures in the widget."""
        if not self._images:
            return []
        first, count, head = self._images[0], len(self._images), self._head()
        columns = 1 if first.width() > FLAT * first.height() else count
        rows = -(-count // columns)
        wide = (self.width() - (columns - 1) * SPACE) / columns
        room = (self.height() - (rows - 1) * SPACE) / rows - head
        factor = max(min(wide / first.width(), room / first.height()), 1e-3)
        size = (first.width() * factor, first.height() * factor)
        across = (self.width() - columns * size[0] - (columns - 1) * SPACE) / 2
        return [
            QRectF(
                across + (i % columns) * (size[0] + SPACE),
                head + (i // columns) * (size[1] + head + SPACE),
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
        columns = 1 if first.width() > FLAT * first.height() else count
        rows = -(-count // columns)
        panel = (
            (width - (columns - 1) * SPACE) / columns * first.height() / first.width()
        )
        return round(min(rows * (panel + head) + (rows - 1) * SPACE, TALLEST * width))

    def _fit(self) -> None:
        if not self._fill:
            self.setFixedHeight(max(1, self._height(self.width())))

    def _scale(self) -> None:
        if not self._images:
            return
        self._number += 1
        number, images, ratio = self._number, self._images, self.devicePixelRatioF()
        size = (self.places()[0].size() * ratio).toSize().expandedTo(QSize(1, 1))

        def work() -> tuple[QImage, ...]:
            modes = (
                Qt.AspectRatioMode.IgnoreAspectRatio,
                Qt.TransformationMode.SmoothTransformation,
            )
            return tuple(image.scaled(size, *modes) for image in images)

        threads.run(
            work,
            lambda scaled: self._take(number, scaled),
            lambda _error: None,
            owner=self,
        )

    def _take(self, number: int, scaled: tuple[QImage, ...]) -> None:
        if number == self._number:
            self._scaled = scaled
            self.update()

    def paintEvent(self, _event: QPaintEvent | None) -> None:  # noqa: N802
        with QPainter(self) as painter:
            painter.setPen(faded(self.palette().color(self.foregroundRole()), 0.75))
            for area, scaled in zip(self.places(), self._scaled, strict=False):
                painter.drawImage(area, scaled)
            for area, caption in zip(self.places(), self._captions, strict=False):
                room = QRectF(
                    area.left(),
                    area.top() - self._head(),
                    area.width(),
                    self._head(),
                )
                painter.drawText(
                    room,
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
