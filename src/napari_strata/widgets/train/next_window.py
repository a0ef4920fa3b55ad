"""Where to paint next: the window where the live mask is least certain."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from magicgui.widgets import PushButton
from napari.layers import Labels as LabelsLayer
from napari.layers import Shapes
from qtpy.QtWidgets import QHBoxLayout, QLabel, QSizePolicy, QVBoxLayout, QWidget

from napari_strata.widgets.layers.convert import array_of
from napari_strata.widgets.layers.live import add_quietly
from napari_strata.widgets.parts.dock import draw
from napari_strata.widgets.parts.keys import bind_method
from napari_strata.widgets.session import ViewerSession
from napari_strata.widgets.train.live_mask import LiveMask
from napari_strata.widgets.train.prepare import LayerData
from napari_strata.widgets.train.window_state import (
    NEXT_KEY,
    SKIP_KEY,
    Prefill,
    WindowState,
    resolve,
)
from napari_strata.worker.protocol import NextWindowResult, PlaneBox

MARGIN = 0.6
"""Share of the view that is left around a window."""
LINE = 0.3
"""Width of the frame, in pixels of the image."""
BRUSH = 3
"""Diameter of the brush in a window, at most."""
OPACITY = 0.4
"""Opacity of the labels in a window, at most: the image must be seen through them."""


class NextWindow(QWidget):
    """Buttons *Next window* and *Skip*, and the window that is to be painted."""

    def __init__(self, session: ViewerSession, live_mask: LiveMask) -> None:
        super().__init__()
        self._session = session
        self._live_mask = live_mask
        self._state = WindowState()
        self._window: NextWindowResult | None = None
        self._prefill: Prefill | None = None
        self._skipped: list[PlaneBox] = []
        self._labels_layer: LabelsLayer | None = None
        self._brush_size, self._opacity = 0, 0.0
        self.frame: Shapes | None = None
        """Layer that marks the window; None before the first."""
        self.next_button = PushButton(text="Next window")
        self.skip_button = PushButton(text="Skip")
        self.text = QLabel()
        self.text.setWordWrap(True)
        self.text.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Minimum)
        row = QHBoxLayout()
        row.addWidget(self.next_button.native, 1)
        row.addWidget(self.skip_button.native)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(4)
        column.addLayout(row)
        column.addWidget(self.text)
        self.next_button.changed.connect(lambda _: self.next())
        self.skip_button.changed.connect(lambda _: self.skip())
        live_mask.changed.connect(self._mask_changed)
        live_mask.data_changed.connect(self._start_over)
        live_mask.window_found.connect(self._found)
        live_mask.window_failed.connect(self._failed)
        self._show()

    def next(self) -> None:
        """Show the next window; the one before is painted."""
        if resolve(self._state).next.enabled and self._state.has_mask:
            self._search(skip=False)

    def skip(self) -> None:
        """Take back what was filled in and not changed, and show another window."""
        view = resolve(self._state)
        layer, window = self._labels_layer, self._window
        if not view.skip.enabled or not self._state.has_mask or window is None:
            return
        if layer is not None and self._prefill is not None:
            indices = self._prefill.untouched(array_of(layer))
            layer.data_setitem(indices, 0)
        self._skipped.append(
            PlaneBox(index=window.index, rows=window.rows, columns=window.columns)
        )
        self._search(skip=True)

    def _search(self, *, skip: bool) -> None:
        self._prefill = None
        self._state = self._state.searching(skip=skip)
        self._show()
        self._live_mask.ask_window(tuple(self._skipped))

    def _found(self, window: NextWindowResult) -> None:
        """Show a window and fill it in."""
        data = self._live_mask.data
        if data is None:
            return
        self._state = self._state.found(window.changed)
        self._window = window
        layer = data.labels_layer
        plane = tuple(window.index.get(a, 0) for a in data.image.label_axes[:-2])
        self._turn_to(layer, plane, window)
        self._fill(data, plane, window)
        if layer is not self._labels_layer:
            self._labels_layer = layer
            self._brush_size, self._opacity = layer.brush_size, layer.opacity
            layer.brush_size = min(layer.brush_size, BRUSH)
            layer.opacity = min(layer.opacity, OPACITY)
        self._session.viewer.layers.selection.active = layer
        layer.mode = "paint"
        self._show()

    def _turn_to(
        self, layer: LabelsLayer, plane: tuple[int, ...], window: NextWindowResult
    ) -> None:
        """Turn the viewer to a plane, and show the window enlarged in its frame."""
        viewer = self._session.viewer
        viewer.dims.ndisplay = 2
        viewer.dims.order = tuple(range(viewer.dims.ndim))
        corner = (window.rows[0], window.columns[0])
        world = layer.data_to_world((*plane, *corner))
        first = viewer.dims.ndim - layer.ndim
        for number in range(len(plane)):
            viewer.dims.set_point(first + number, world[number])
        frame = self._draw_frame(layer, plane, window)
        viewer.fit_to_view(layers=[frame], margin=MARGIN)

    def _draw_frame(
        self, layer: LabelsLayer, plane: tuple[int, ...], window: NextWindowResult
    ) -> Shapes:
        """Draw the frame around the window, in a layer that is not selected."""
        # Around the pixels, whose centres have whole numbers.
        outside = 0.5 + LINE / 2
        top, bottom = window.rows[0] - outside, window.rows[1] - 1 + outside
        left, right = window.columns[0] - outside, window.columns[1] - 1 + outside
        corners = [(top, left), (top, right), (bottom, right), (bottom, left)]
        rectangle = np.array([(*plane, *corner) for corner in corners])
        self._remove_frame()
        self.frame = Shapes(
            [rectangle],
            shape_type="rectangle",
            edge_width=LINE,
            edge_color="yellow",
            face_color="transparent",
            name="window to paint",
            scale=layer.scale,
            translate=layer.translate,
            rotate=layer.rotate,
            shear=layer.shear,
            affine=layer.affine,
            units=layer.units,
            axis_labels=layer.axis_labels,
        )
        self.frame.editable = False
        add_quietly(self._session.viewer, self.frame)
        return self.frame

    def _fill(
        self, data: LayerData, plane: tuple[int, ...], window: NextWindowResult
    ) -> None:
        """Write the mask into the window where it is unlabelled; can be undone."""
        classes, layer = data.labels.classes, data.labels_layer
        assert classes is not None
        labels = array_of(layer)
        box = (*plane, slice(*window.rows), slice(*window.columns))
        self._prefill = Prefill.of(
            plane,
            (window.rows[0], window.columns[0]),
            np.array(window.labels, labels.dtype),
            np.asarray(labels[box]),
            classes.unlabelled,
        )
        layer.data_setitem(self._prefill.indices, self._prefill.values)

    def _failed(self, problem: str) -> None:
        if self._state.is_skipping:
            self._remove_frame()
        self._state = self._state.failed(problem)
        self._show()

    def _mask_changed(self) -> None:
        has_mask = self._live_mask.layer is not None
        if has_mask and not self._state.has_mask:
            bind_method(self._session.viewer, NEXT_KEY, self.next)
            bind_method(self._session.viewer, SKIP_KEY, self.skip)
        if not has_mask:
            self._start_over()
        self._state = replace(self._state, has_mask=has_mask)
        self._show()

    def _start_over(self) -> None:
        """Forget the windows when other labels are chosen, or the mask is off."""
        layer = self._labels_layer
        if layer is not None and not self._session.is_closed:
            if layer.brush_size == BRUSH:
                layer.brush_size = self._brush_size
            if layer.opacity == OPACITY:
                layer.opacity = self._opacity
        self._remove_frame()
        self._labels_layer = self._window = self._prefill = None
        self._skipped = []
        self._state = WindowState(has_mask=self._live_mask.layer is not None)
        self._show()

    def _remove_frame(self) -> None:
        frame, self.frame = self.frame, None
        viewer_layers: Any = self._session.viewer.layers
        if frame is not None and not self._session.is_closed and frame in viewer_layers:
            viewer_layers.remove(frame)

    def _show(self) -> None:
        view = resolve(self._state)
        draw(self.next_button, view.next)
        draw(self.skip_button, view.skip)
        self.text.setText(view.text)
        self.text.setVisible(bool(view.text))
        self.setVisible(view.next.visible)
        self.updateGeometry()  # the text may have more lines than before
