"""Figure: curves with bands, or a histogram, drawn with pyqtgraph.

Importing pyqtgraph takes about half a second beside an open viewer, so only modules
that draw figures import this one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import pyqtgraph as pg
from qtpy.QtCore import QEvent, QPointF, Qt, Signal
from qtpy.QtGui import QColor, QMouseEvent, QPen, QShowEvent
from qtpy.QtWidgets import QLabel, QVBoxLayout, QWidget

from napari_strata.widgets.parts.colors import faded

BINS = 24
"""Bars of a histogram, at most."""
BAND_SHARE = 0.18
"""Opacity of a band."""
HEIGHT_PX = 170


@dataclass(frozen=True)
class Curve:
    """Curve in rising order of x, with a band from `low` to `high` if they are given.

    A value that is not finite leaves a gap.
    """

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    color: str
    low: Sequence[float] = ()
    high: Sequence[float] = ()


class Figure(QWidget):
    """Figure whose mark is at one x; `clicked` sends the x that was clicked."""

    clicked = Signal(float)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._plot = pg.PlotWidget(background=None, enableMenu=False)
        self._plot.setAttribute(Qt.WidgetAttribute.WA_TransparentForMouseEvents)
        self._plot.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        self._plot.hideButtons()
        self._plot.setFixedHeight(HEIGHT_PX)
        self._plot.showGrid(y=True, alpha=0.15)
        for name in ("left", "bottom"):
            self._plot.getAxis(name).enableAutoSIPrefix(False)
        self.legend = QLabel()
        self.legend.setWordWrap(True)
        self.legend.hide()
        self._mark = pg.InfiniteLine()
        self._plot.addItem(self._mark, ignoreBounds=True)
        self._mark.hide()
        self._items: list[Any] = []
        rows = QVBoxLayout(self)
        rows.setContentsMargins(0, 0, 0, 0)
        rows.setSpacing(2)
        rows.addWidget(self._plot)
        rows.addWidget(self.legend)
        self._bars: tuple[Any, Any] | None = None
        self.curves: tuple[Curve, ...] = ()
        self.counts: tuple[int, ...] = ()
        """Heights of the bars of a histogram."""

    def show_curves(
        self,
        curves: Sequence[Curve],
        *,
        x_title: str,
        y_title: str = "",
        legend: bool = False,
    ) -> None:
        """Show curves in place of what was shown."""
        self._clear(x_title, y_title)
        self.curves = tuple(curves)
        names = []
        for curve in curves:
            mark = f'<span style="color: {curve.color}">■</span>'
            names.append(f"{mark}&nbsp;{escape(curve.name).replace(' ', '&nbsp;')}")
        self.legend.setText("&nbsp; ".join(names))
        self.legend.setVisible(legend)
        for curve in curves:
            color = QColor(curve.color)
            xs = np.asarray(curve.xs, float)
            if len(curve.low):
                edges = []
                for values in (curve.low, curve.high):
                    line = np.asarray(values, float)
                    edges.append(pg.PlotCurveItem(xs, line, pen=None))
                band = pg.FillBetweenItem(*edges, brush=faded(color, BAND_SHARE))
                self._add(band)
            pen = QPen(color, 1.6)
            pen.setCosmetic(True)
            ys = np.asarray(curve.ys, float)
            line_item = pg.PlotCurveItem(
                xs, ys, pen=pen, connect="finite", antialias=True
            )
            self._add(line_item)
        self._fit()

    def show_histogram(self, values: Sequence[float], *, x_title: str) -> None:
        """Show how often values occur; those that are not finite are left out."""
        self._clear(x_title, "number")
        known = np.asarray(values, float)
        known = known[np.isfinite(known)]
        if len(known):
            counts, edges = np.histogram(known, _bin_edges(known))
            self.counts = tuple(map(int, counts))
            self._bars = (counts, edges)
            self._draw_bars()
        self._fit()

    def mark(self, x: float | None) -> None:
        """Draw a vertical line at x, or none."""
        self._mark.setVisible(x is not None)
        if x is not None:
            self._mark.setValue(x)

    def mousePressEvent(self, event: QMouseEvent | None) -> None:  # noqa: N802 (Qt's name)
        super().mousePressEvent(event)
        if event is not None and event.button() == Qt.MouseButton.LeftButton:
            box = self._plot.getViewBox()
            point = box.mapSceneToView(QPointF(event.position()))
            low, high = box.viewRange()[0]
            self.clicked.emit(min(max(float(point.x()), low), high))

    def showEvent(self, event: QShowEvent | None) -> None:  # noqa: N802
        super().showEvent(event)
        self._follow_theme()

    def changeEvent(self, event: QEvent | None) -> None:  # noqa: N802
        super().changeEvent(event)
        kinds = (QEvent.Type.PaletteChange, QEvent.Type.StyleChange)
        if event is not None and event.type() in kinds and hasattr(self, "_items"):
            self._follow_theme()

    def _clear(self, x_title: str, y_title: str) -> None:
        for item in self._items:
            self._plot.removeItem(item)
        self._items = []
        self._bars, self.curves, self.counts = None, (), ()
        self._plot.setLabel("bottom", x_title)
        self._plot.setLabel("left", y_title)
        self._follow_theme()

    def _add(self, item: Any) -> None:
        self._plot.addItem(item)
        self._items.append(item)

    def _draw_bars(self) -> None:
        assert self._bars is not None
        counts, edges = self._bars
        bars = pg.BarGraphItem(
            x0=edges[:-1],
            x1=edges[1:],
            height=counts,
            brush=faded(self._ink(), 0.45),
            pen=None,
        )
        self._add(bars)

    def _fit(self) -> None:
        self._plot.enableAutoRange()
        if self.counts:
            self._plot.setYRange(0, max(self.counts), padding=0.02)

    def _ink(self) -> QColor:
        return self.palette().color(self.foregroundRole())

    def _follow_theme(self) -> None:
        ink = self._ink()
        for name in ("left", "bottom"):
            axis = self._plot.getAxis(name)
            axis.setPen(faded(ink, 0.5))
            axis.setTextPen(faded(ink, 0.75))
            axis.setTickFont(self.font())
            axis.label.setFont(self.font())
        pen = QPen(faded(ink, 0.6), 1)
        pen.setCosmetic(True)
        self._mark.setPen(pen)
        for item in self._items:
            if isinstance(item, pg.BarGraphItem):
                item.setOpts(brush=faded(ink, 0.45))


def _bin_edges(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Edges of bars of equal width; whole numbers get whole bars."""
    low, high = float(values.min()), float(values.max())
    bins = min(max(math.ceil(math.sqrt(len(values))), 5), BINS)
    if (values == np.rint(values)).all():
        width = max(math.ceil((high - low + 1) / bins), 1)
        edges: np.ndarray[Any, Any] = np.arange(low, high + width + 1, width) - 0.5
        return edges
    if low == high:
        return np.array([low - 0.5, low + 0.5])
    return np.linspace(low, high, bins + 1)
