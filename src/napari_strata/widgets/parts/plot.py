"""Plot of lines over epochs, drawn with pyqtgraph.

Importing pyqtgraph takes about half a second beside an open viewer, so only modules
that draw plots import this one. It takes the Qt binding that is loaded already.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pyqtgraph as pg
from qtpy.QtCore import QPointF, QRectF, QSize, Qt
from qtpy.QtGui import QColor, QFont, QFontMetricsF, QPen
from qtpy.QtWidgets import QLabel, QVBoxLayout

from napari_strata.widgets.parts.colors import faded

MAX_POINTS = 400
"""Points of a line that are drawn; a line with more is thinned."""
MAX_DOTS = 50
"""Points of a line up to which each one gets a dot, if dots are asked for."""
GRID_ALPHA = 40
"""Opacity of the grid, of 255."""
OVERHANG = 15.0
"""Pixels by which the number of a tick may leave the axis."""

Values: TypeAlias = Sequence[float] | np.ndarray[Any, Any]


@dataclass(frozen=True)
class Line:
    """Points in rising order of x; NaN in `ys` leaves a gap.

    Qt draws a line of width 1 several times as fast as a wider one.
    """

    xs: Values
    ys: Values
    color: QColor
    width: float = 1.0
    dots: bool = False


@dataclass(frozen=True)
class Chart:
    """Lines and their ranges: x from 0 to `last`, y from `low` to `high`.

    `best` is the x of a dotted mark, None without one. `note` stands in the middle.
    """

    lines: Sequence[Line]
    last: float
    low: float
    high: float
    best: float | None = None
    note: str = ""


class _ValueAxis(pg.AxisItem):  # type: ignore[misc]  # pyqtgraph is untyped
    """Axis with horizontal grid lines whose outermost numbers are not left out."""

    def __init__(self) -> None:
        super().__init__("left")
        self.setGrid(255)
        self.setStyle(maxTickLevel=0, tickAlpha=GRID_ALPHA)
        self.setTickDensity(2.5)

    def boundingRect(self) -> QRectF:  # noqa: N802 (Qt's name)
        return QRectF(super().boundingRect()).adjusted(0, -OVERHANG, 0, OVERHANG)


class _EpochAxis(pg.AxisItem):  # type: ignore[misc]
    """Axis with whole numbers; 0, where no epoch is, has the axis's name."""

    def __init__(self, *, numbers: bool) -> None:
        super().__init__("bottom", showValues=numbers)
        self.setStyle(maxTickLevel=0, tickLength=3, tickAlpha=128)
        self.setTickDensity(1.7)

    def tickSpacing(  # noqa: N802 (pyqtgraph's name)
        self, low: float, high: float, size: float
    ) -> list[tuple[float, float]]:
        levels = super().tickSpacing(low, high, size)
        return [(max(spacing, 1.0), offset) for spacing, offset in levels]

    def tickStrings(  # noqa: N802
        self, values: Sequence[float], scale: float, spacing: float
    ) -> list[str]:
        strings = super().tickStrings(values, scale, spacing)
        return [
            text if value else "epoch"
            for value, text in zip(values, strings, strict=True)
        ]


class Plot(pg.PlotWidget):  # type: ignore[misc]
    """Plot that shows a chart. Neither the mouse nor the keyboard changes it.

    `numbers` writes the epochs below it. `note` is the label in its middle.
    """

    def __init__(self, *, numbers: bool = True) -> None:
        axes = {"left": _ValueAxis(), "bottom": _EpochAxis(numbers=numbers)}
        super().__init__(background=None, axisItems=axes, enableMenu=False)
        # Events of the mouse go to the widget that holds the plot.
        self.setAttribute(Qt.WidgetAttribute.WA_TransparentForMouseEvents)
        self.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        self.setCacheMode(self.CacheModeFlag.CacheNone)  # the theme may change
        # Drawn once a change: in a window with an OpenGL canvas, each painting of a
        # part draws the whole window again, and a scene asks for several.
        self.setViewportUpdateMode(self.ViewportUpdateMode.NoViewportUpdate)
        self.setMinimumHeight(80)
        # Room for the half of a number beyond the ends of an axis.
        self.getPlotItem().layout.setContentsMargins(0, 6, 16, 0 if numbers else 6)
        self.hideButtons()
        self.disableAutoRange()
        self._lines: list[pg.PlotCurveItem] = []
        self._dots = pg.ScatterPlotItem(pen=None, antialias=True)
        self._dots.setZValue(1)
        self._best, self._pointer = pg.InfiniteLine(), pg.InfiniteLine()
        for item in (self._dots, self._best, self._pointer):
            self.addItem(item, ignoreBounds=True)
        self._pointer.hide()
        self.note = QLabel()
        self.note.setWordWrap(True)
        self.note.setAlignment(Qt.AlignmentFlag.AlignCenter)
        QVBoxLayout(self.viewport()).addWidget(self.note)

    def sizeHint(self) -> QSize:  # noqa: N802
        return QSize(280, 120)

    def set_theme(self, ink: QColor, font: QFont) -> None:
        """Draw axes, marks and numbers in a colour and a font."""
        metrics = QFontMetricsF(font)
        for name in ("left", "bottom"):
            axis = self.getAxis(name)
            axis.setPen(faded(ink, 0.5))
            axis.setTickPen(ink)
            axis.setTextPen(faded(ink, 0.75))
            axis.setTickFont(font)
        # The same for each plot, so that the epochs of two plots lie over each other.
        width = round(metrics.horizontalAdvance("0.000") + 8)
        self.getAxis("left").setWidth(width)
        self.viewport().layout().setContentsMargins(width + 8, 0, 20, 0)
        bottom = self.getAxis("bottom")
        if bottom.style["showValues"]:
            bottom.setHeight(round(metrics.height() + 6))
            # "epoch" stands below the left end of the axis, and beyond it.
            overhang = round(0.5 * metrics.horizontalAdvance("epoch") + 4)
            bottom.setStyle(hideOverlappingLabels=overhang)
        dotted = QPen(faded(ink, 0.55), 1, Qt.PenStyle.DotLine)
        dotted.setCosmetic(True)
        self._best.setPen(dotted)
        self._pointer.setPen(faded(ink, 0.6))
        self.note.setFont(font)
        self.viewport().update()

    def set_chart(self, chart: Chart) -> None:
        """Show a chart in place of the one before."""
        self.setXRange(0, chart.last, padding=0.01)
        self.setYRange(chart.low, chart.high, padding=0.02)
        while len(self._lines) < len(chart.lines):
            item = pg.PlotCurveItem(connect="finite", antialias=True)
            # Segment by segment: Qt needs longer for one long path.
            item.setSegmentedLineMode("on")
            self.addItem(item, ignoreBounds=True)
            self._lines.append(item)
        while len(self._lines) > len(chart.lines):
            self.removeItem(self._lines.pop())
        dots = []
        for item, line in zip(self._lines, chart.lines, strict=True):
            stride = -(-len(line.xs) // MAX_POINTS) or 1
            xs = np.asarray(line.xs, float)[::stride]
            ys = np.asarray(line.ys, float)[::stride]
            pen = QPen(line.color, line.width)
            pen.setCosmetic(True)
            if line.color.alpha() == 255:  # closes the joints between segments
                pen.setCapStyle(Qt.PenCapStyle.SquareCap)
            item.setData(xs, ys, pen=pen)
            for number in _dotted(ys, everywhere=line.dots):
                dots.append(
                    {
                        "pos": (xs[number], ys[number]),
                        "size": 2 * line.width + 1.8,
                        "brush": line.color,
                    }
                )
        self._dots.setData(spots=dots)
        self._best.setVisible(chart.best is not None)
        self._best.setValue(chart.best or 0.0)
        if chart.note != self.note.text():
            self.note.setText(chart.note)
            self.getAxis("left").setStyle(tickAlpha=0 if chart.note else GRID_ALPHA)
        self.viewport().update()

    def point_at(self, x: float | None) -> None:
        """Draw a line at x, or none."""
        self._pointer.setVisible(x is not None)
        self._pointer.setValue(x or 0.0)
        self.viewport().update()

    def area(self) -> QRectF:
        """Return where the lines are drawn, in pixels of the plot."""
        return QRectF(self.getViewBox().sceneBoundingRect())

    def x_at(self, left: float) -> float:
        """Return the x that is drawn so many pixels from the plot's left edge."""
        return float(self.getViewBox().mapSceneToView(QPointF(left, 0.0)).x())


def _dotted(ys: np.ndarray[Any, Any], *, everywhere: bool) -> np.ndarray[Any, Any]:
    """Indices of points that get a dot: those alone, or all of a short line."""
    finite = np.isfinite(ys)
    if not (everywhere and finite.sum() <= MAX_DOTS):
        before = np.concatenate(([False], finite[:-1]))
        after = np.concatenate((finite[1:], [False]))
        finite &= ~before & ~after
    return np.flatnonzero(finite)
