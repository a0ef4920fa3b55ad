"""Choice of an area: the whole image, the current plane, the view, or a rectangle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, floor, prod
from typing import Any, get_args

import numpy as np
from magicgui.widgets import ComboBox
from napari.components import ViewerModel
from napari.layers import Image as ImageLayer
from napari.layers import Shapes
from qtpy.QtCore import QTimer, Signal
from qtpy.QtWidgets import QHBoxLayout, QLabel, QSizePolicy, QVBoxLayout, QWidget

from napari_strata.core.errors import StrataError
from napari_strata.core.image import Image
from napari_strata.core.text import format_count
from napari_strata.widgets.layers.choice import ImageChoice
from napari_strata.widgets.layers.live import current_plane
from napari_strata.worker.protocol import Axis, Range

WHOLE, PLANE, VIEW, RECTANGLE = "whole", "plane", "view", "rectangle"
DELAY_MS = 80
"""Milliseconds without a change of the view before the area is updated."""

Region = dict[Axis, Range]


class AreaError(StrataError):
    """The chosen area cannot be determined."""


@dataclass(frozen=True)
class Area:
    """Area of an image.

    `region` is that of a PredictJob, None for the whole image; `text` describes it.
    """

    region: Region | None
    text: str


def area_of(kind: str, viewer: ViewerModel, layer: ImageLayer, image: Image) -> Area:
    """Determine the area of a kind from the state of the viewer.

    Raises
    ------
    AreaError
        When there is no such area; the message says what to do.
    """
    if kind == PLANE and (plane := current_plane(viewer, layer, image)):
        return Area(as_region(plane), f"1 of {format_count(_planes(image), 'plane')}")
    if kind == VIEW:
        return _in_view(viewer, layer, image)
    if kind == RECTANGLE:
        return _rectangle(viewer, layer, image)
    return Area(None, format_count(_planes(image), "plane"))


def as_region(ranges: Mapping[str, Any]) -> Region:
    """Convert ranges by axis to the region of a request."""
    return {axis: ranges[axis] for axis in get_args(Axis) if axis in ranges}


def describe_position(position: dict[str, int]) -> str:
    """Describe a position as ``T 0, Z 3``, with the indices of napari's sliders."""
    return ", ".join(f"{axis} {index}" for axis, index in position.items())


def _in_view(viewer: ViewerModel, layer: ImageLayer, image: Image) -> Area:
    letters = image.axes[: layer.ndim]
    if viewer.dims.ndisplay == 3:
        raise AreaError(
            "The view is in 3D. Switch it to 2D (the button below the layer list), or"
            " choose another area."
        )
    displayed = {letters[axis - viewer.dims.ndim] for axis in viewer.dims.displayed}
    if displayed != {"Y", "X"}:
        raise AreaError(
            f"The view shows {' and '.join(sorted(displayed))}, but planes are Y and X:"
            " change the order of the axes."
        )
    corners = np.asarray(layer.corner_pixels, float) + np.array([[0], [1]])
    if layer.multiscale:  # the corners are in pixels of the visible level
        corners = corners * layer.downsample_factors[layer.data_level]
    bounds: dict[str, Any] = {}
    for axis_name in "YX":
        first, stop = corners[:, letters.index(axis_name)]
        bounds[axis_name] = (
            max(0, floor(first)),
            min(image.size(axis_name), ceil(stop)),
        )
    if any(stop - first < 2 for first, stop in bounds.values()):
        raise AreaError(
            f"{image.name} is not in view: move the view onto it, or choose another"
            " area."
        )
    plane = current_plane(viewer, layer, image)
    planes = f", {describe_position(plane)}" if plane else ""
    return Area(as_region(plane | bounds), _describe_box(bounds) + planes)


def _rectangle(viewer: ViewerModel, layer: ImageLayer, image: Image) -> Area:
    shapes = chosen_shapes(viewer)
    vertices = np.asarray(_vertices(shapes), float)
    world = np.tile(np.asarray(viewer.dims.point, float), (len(vertices), 1))
    world[:, -shapes.ndim :] = [shapes.data_to_world(vertex) for vertex in vertices]
    positions = np.array([layer.world_to_data(point) for point in world])
    letters = image.axes[: layer.ndim]
    bounds: dict[str, Any] = {}
    for axis in "YX":
        coordinates = positions[:, letters.index(axis)]
        # A pixel extends half a pixel to both sides of its index.
        first = floor(coordinates.min() + 0.5)
        stop = ceil(coordinates.max() + 0.5)
        bounds[axis] = (max(0, first), min(image.size(axis), stop))
    if any(stop <= first for first, stop in bounds.values()):
        raise AreaError(f"The rectangle is outside {image.name}: draw it on the image.")
    planes = (
        f", through all {format_count(_planes(image), 'plane')}"
        if _planes(image) > 1
        else ""
    )
    return Area(as_region(bounds), _describe_box(bounds) + planes)


def chosen_shapes(viewer: ViewerModel) -> Shapes:
    """Return the selected or only Shapes layer. Raises `AreaError` without one."""
    shapes_layers = [layer for layer in viewer.layers if isinstance(layer, Shapes)]
    selected = [layer for layer in shapes_layers if layer in viewer.layers.selection]
    candidates = selected or shapes_layers
    if not candidates:
        raise AreaError(
            "There is no rectangle: add a Shapes layer (above the layer list) and draw"
            " one on the image."
        )
    if len(candidates) > 1:
        raise AreaError(
            f"There are {len(candidates)} Shapes layers: select the one with the"
            " rectangle."
        )
    return candidates[0]


def _vertices(shapes: Shapes) -> Any:
    chosen = sorted(shapes.selected_data) or list(range(len(shapes.data)))
    if not chosen:
        raise AreaError(f"{shapes.name} is empty: draw a rectangle on the image.")
    if len(chosen) > 1:
        raise AreaError(f"{shapes.name} has {len(chosen)} shapes: select one of them.")
    return shapes.data[chosen[0]]


def _planes(image: Image) -> int:
    return prod(image.size(axis) for axis in "TZ")


def _describe_box(bounds: dict[Any, tuple[int, int]]) -> str:
    (top, bottom), (left, right) = bounds["Y"], bounds["X"]
    return (
        f"{bottom - top} x {right - left} pixels (Y {top} to {bottom - 1}, X {left} to"
        f" {right - 1})"
    )


class AreaChoice(QWidget):
    """Combo box with the four areas, and a description of the chosen one."""

    changed = Signal()

    def __init__(self, viewer: ViewerModel, images: ImageChoice) -> None:
        super().__init__()
        self._viewer, self._images = viewer, images
        self._shapes: Shapes | None = None
        self._last_state: object = None
        self.problem = ""
        names = {WHOLE: "Whole stack", PLANE: "Current plane", VIEW: "Visible area"}
        choices = [(text, kind) for kind, text in names.items()] + [
            ("Rectangle (Shapes layer)", RECTANGLE)
        ]
        self.combo = ComboBox(
            choices=choices, value=WHOLE, tooltip="Which part of the image to predict."
        )
        self.text = QLabel()
        self.text.setWordWrap(True)
        rows, row = QVBoxLayout(self), QHBoxLayout()
        rows.setContentsMargins(0, 0, 0, 0)
        rows.setSpacing(2)
        row.addWidget(QLabel("Area"))
        row.addWidget(self.combo.native, 1)
        self.combo.native.setSizePolicy(
            QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed
        )
        rows.addLayout(row)
        rows.addWidget(self.text)
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(DELAY_MS)
        self._timer.timeout.connect(self.update_text)
        self.combo.changed.connect(self.update_text)
        images.changed.connect(self.update_text)
        for event in self._events():
            event.connect(self._update_later)
        self.update_text()

    def disconnect_viewer(self) -> None:
        """Disconnect from the viewer."""
        for event in self._events():
            event.disconnect(self._update_later)
        self._follow_shapes(None)
        self._timer.stop()

    def area(self) -> Area:
        """Return the chosen area. Raises `AreaError` if there is none."""
        layer, image = self._images.layer, self._images.image
        if layer is None or image is None or layer not in self._viewer.layers:
            raise AreaError(self._images.problem or "Choose an image first.")
        return area_of(str(self.combo.value), self._viewer, layer, image)

    def update_text(self, _value: object = None) -> None:
        """Describe the chosen area."""
        self._timer.stop()
        self._update_choices()
        self.problem, area = "", None
        try:
            self._follow_shapes(
                chosen_shapes(self._viewer) if self.combo.value == RECTANGLE else None
            )
            if self._images.image is not None:
                area = self.area()
            text = area.text if area is not None else ""
        except AreaError as error:
            self.problem = text = str(error)
        if (self.combo.value, self.problem, area) == self._last_state:
            return
        self._last_state = (self.combo.value, self.problem, area)
        self.text.setText(text)
        self.text.setVisible(bool(text))
        self.changed.emit()

    def _update_choices(self) -> None:
        layer, image = self._images.layer, self._images.image
        box, plane = self.combo.native, {}
        if layer is not None and image is not None and layer in self._viewer.layers:
            plane = current_plane(self._viewer, layer, image)
        is_stack = image is None or _planes(image) > 1
        box.setItemText(0, "Whole stack" if is_stack else "Whole image")
        box.setItemText(
            1,
            f"Current plane ({describe_position(plane)})" if plane else "Current plane",
        )

    def _update_later(self, _event: object = None) -> None:
        self._timer.start()

    def _events(self) -> list[Any]:
        dims, camera, layers = (
            self._viewer.dims.events,
            self._viewer.scene.camera.events,
            self._viewer.layers,
        )
        moved = [dims.point, dims.ndisplay, dims.order, camera.center, camera.zoom]
        return [
            *moved,
            layers.selection.events.changed,
            layers.events.inserted,
            layers.events.removed,
        ]

    def _follow_shapes(self, shapes: Shapes | None) -> None:
        """Connect to the events of a Shapes layer instead of the previous one."""
        if shapes is self._shapes:
            return
        if self._shapes is not None:
            for name in ("data", "highlight"):
                getattr(self._shapes.events, name).disconnect(self._update_later)
        self._shapes = shapes
        if shapes is not None:
            for name in ("data", "highlight"):
                getattr(shapes.events, name).connect(self._update_later)
