"""Where to paint next: the window where the live mask is least certain."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from magicgui.widgets import PushButton
from napari.layers import Labels as LabelsLayer
from napari.layers import Shapes
from napari.utils.transforms import Affine
from qtpy.QtWidgets import QHBoxLayout, QLabel, QSizePolicy, QVBoxLayout, QWidget

from napari_strata.widgets.layers.convert import array_of
from napari_strata.widgets.layers.live import PREDICTED, add_quietly
from napari_strata.widgets.parts.dock import draw
from napari_strata.widgets.session import ViewerSession
from napari_strata.widgets.train.live_mask import LiveMask
from napari_strata.widgets.train.prepare import LayerData
from napari_strata.widgets.train.window_state import (
    WindowState,
    find_unlabelled,
    resolve,
)
from napari_strata.worker.protocol import NextWindowResult, PlaneBox

Array = np.ndarray[Any, Any]

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
        self._skipped: list[PlaneBox] = []
        self._labels_layer: LabelsLayer | None = None
        self._brush_size, self._opacity = 0, 0.0
        self.frame: Shapes | None = None
        """Layer that marks the window; None while there is none."""
        self.start: LabelsLayer | None = None
        """Layer with the mask in the window, of which nothing counts yet."""
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
        """Show the next window; all of the one before is painted."""
        if resolve(self._state).next.enabled and self._state.has_mask:
            self._confirm()
            self._search(skip=False)

    def skip(self) -> None:
        """Show another window; of this one, only what was painted counts."""
        view, window = resolve(self._state), self._window
        if not view.skip.enabled or not self._state.has_mask or window is None:
            return
        self._skipped.append(
            PlaneBox(index=window.index, rows=window.rows, columns=window.columns)
        )
        self._search(skip=True)

    def _search(self, *, skip: bool) -> None:
        self._close_window()
        self._state = self._state.searching(skip=skip)
        self._show()
        self._live_mask.ask_window(tuple(self._skipped))

    def _found(self, window: NextWindowResult) -> None:
        """Show a window, with the mask as a start."""
        data = self._live_mask.data
        if data is None:
            return
        self._state = self._state.found(window.changed)
        self._window = window
        layer = data.labels_layer
        plane = _plane_of(data, window)
        self._turn_to(layer, plane, window)
        self._show_start(data, window)
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

    def _show_start(self, data: LayerData, window: NextWindowResult) -> None:
        """Show the mask where the window is not painted, in a layer of its own.

        What is in the Labels layer counts at once, and nobody has confirmed this.
        """
        layer = data.labels_layer
        _, inside = self._unpainted(data, window)
        values = np.zeros(np.shape(window.labels), array_of(layer).dtype)
        values[inside] = np.array(window.labels)[inside]
        leading = layer.ndim - values.ndim
        corner = (*_plane_of(data, window), window.rows[0], window.columns[0])
        to_world = Affine(
            scale=layer.scale,
            translate=layer.translate,
            rotate=layer.rotate,
            shear=layer.shear,
        )
        self.start = LabelsLayer(
            values.reshape((1,) * leading + values.shape),
            name="start of the window",
            colormap=layer.colormap,
            opacity=min(layer.opacity, OPACITY),
            metadata={PREDICTED: True},
            scale=layer.scale,
            translate=to_world(corner),
            rotate=layer.rotate,
            shear=layer.shear,
            affine=layer.affine,
            units=layer.units,
            axis_labels=layer.axis_labels,
        )
        self.start.editable = False
        add_quietly(self._session.viewer, self.start, below=layer)

    def _confirm(self) -> None:
        """Write the start into the labels where nothing was painted; can be undone."""
        data, window = self._live_mask.data, self._window
        if data is None or window is None:
            return
        indices, inside = self._unpainted(data, window)
        values = np.array(window.labels, array_of(data.labels_layer).dtype)
        data.labels_layer.data_setitem(indices, values[inside])

    def _unpainted(
        self, data: LayerData, window: NextWindowResult
    ) -> tuple[tuple[Array, ...], tuple[Array, Array]]:
        """Pixels of a window that are not painted, in the labels and in the window."""
        classes, plane = data.labels.classes, _plane_of(data, window)
        assert classes is not None
        box = (*plane, slice(*window.rows), slice(*window.columns))
        return find_unlabelled(
            plane,
            (window.rows[0], window.columns[0]),
            np.asarray(array_of(data.labels_layer)[box]),
            classes.unlabelled,
        )

    def _failed(self, problem: str) -> None:
        self._state = self._state.failed(problem)
        self._show()

    def _mask_changed(self) -> None:
        has_mask = self._live_mask.layer is not None
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
        self._close_window()
        self._labels_layer = None
        self._skipped = []
        self._state = WindowState(has_mask=self._live_mask.layer is not None)
        self._show()

    def _close_window(self) -> None:
        """Remove the frame and the start of the window."""
        self._window = None
        viewer_layers: Any = self._session.viewer.layers
        for layer in (self.frame, self.start):
            is_there = layer is not None and not self._session.is_closed
            if is_there and layer in viewer_layers:
                viewer_layers.remove(layer)
        self.frame = self.start = None

    def _show(self) -> None:
        view = resolve(self._state)
        draw(self.next_button, view.next)
        draw(self.skip_button, view.skip)
        self.text.setText(view.text)
        self.text.setVisible(bool(view.text))
        self.setVisible(view.next.visible)
        self.updateGeometry()  # the text may have more lines than before


def _plane_of(data: LayerData, window: NextWindowResult) -> tuple[int, ...]:
    """Index of the plane of a window in the labels."""
    return tuple(window.index.get(axis, 0) for axis in data.image.label_axes[:-2])
