"""Labels layers of arrays that a worker fills.

The layer exists from the start and is refreshed when visible planes are finished.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from napari.components import ViewerModel
from napari.layers import Image as ImageLayer
from napari.layers import Labels as LabelsLayer
from napari.layers import Layer
from qtpy.QtCore import QObject, QTimer, Signal

from napari_strata.core.classes import ClassMap
from napari_strata.core.image import Image
from napari_strata.plugin import labels_layer
from napari_strata.widgets.work import threads
from napari_strata.worker.protocol import TargetOpened

REFRESH_INTERVAL_MS = 250
"""Minimum of milliseconds between two refreshes."""
ADD_DELAY_MS = 15
"""Milliseconds between creating and adding a layer, so that the window reacts."""
MAX_MEMORY_BYTES = 2**30
"""Finished labels with at most this number of bytes are read into memory."""

PREDICTED = "napari_strata_predicted"
"""Key in the metadata of layers that were predicted, not painted."""
MODEL = "napari_strata_model"
"""Key in the metadata of predicted layers for the path of their model."""
ERRORS = "napari_strata_errors"
"""Key in the metadata of layers that are neither labels to train on nor a prediction,
such as errors and numbered objects."""


class LiveLabels(QObject):
    """Labels layer that shows labels while they are predicted.

    All methods are called in the main thread. Set `layer` before `open` to use an
    existing layer.
    """

    settled = Signal()
    """Emitted after `finish`, when the user may edit the layer."""

    def __init__(self, viewer: ViewerModel, parent: QObject) -> None:
        super().__init__(parent)
        self.layer: LabelsLayer | None = None
        self._viewer = viewer
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(REFRESH_INTERVAL_MS)
        self._timer.timeout.connect(self._refresh)
        self._new_layer: tuple[LabelsLayer, Layer | None] | None = None
        self._add_timer = QTimer(self)
        self._add_timer.setSingleShot(True)
        self._add_timer.setInterval(ADD_DELAY_MS)
        self._add_timer.timeout.connect(self.place)

    def open(
        self,
        target: TargetOpened,
        image: Image,
        under: ImageLayer | None,
        *,
        name: str,
        below: Layer | None = None,
    ) -> LabelsLayer:
        """Create a layer for the array of the worker, at the position of the image.

        The layer is added a little later, because creating, adding and drawing a layer
        take 30 to 50 ms each without a graphics card. `place` adds it at once.

        Parameters
        ----------
        under
            Layer of the image.
        below
            Layer below which the new layer is inserted; on top by default.
        """
        data = np.lib.format.open_memmap(target.path, mode="r")
        classes = class_map(target.classes)
        if (
            self.layer is not None
            and self.layer in self._viewer.layers
            and self.layer.data.shape == data.shape
        ):
            self.layer.data = data
            self.layer.editable = False
            return self.layer
        labels = image.labels_like(data, classes=classes, name=name)
        array, attributes, _ = labels_layer(labels)
        if under is not None and under.ndim == len(labels.axes):
            attributes |= {"affine": under.affine, "translate": under.translate}
            attributes |= {"rotate": under.rotate, "shear": under.shear}
        attributes["metadata"] = attributes.get("metadata", {}) | {PREDICTED: True}
        self.layer = LabelsLayer(array, **attributes)
        self.layer.editable = False  # until the worker has finished the array
        _show_tools(self.layer, False)
        self._new_layer = self.layer, below
        self._add_timer.start()
        return self.layer

    def place(self) -> None:
        """Add the new layer now, if it is not added yet."""
        if self._new_layer is not None:
            layer, below = self._new_layer
            self.leave()
            viewer = self._viewer
            _set_updates(viewer, False)
            # Not a timer of this object, which may be deleted before: the window must
            # be updated again in any case. The timer does not keep a closed viewer.
            reference = weakref.ref(viewer)
            QTimer.singleShot(ADD_DELAY_MS, lambda: _set_updates(reference(), True))
            add_quietly(viewer, layer, below=below)

    def leave(self) -> None:
        """Do not add the new layer."""
        self._add_timer.stop()
        self._new_layer = None

    def region_done(self, region: Mapping[str, Any]) -> None:
        """Refresh the layer if a finished region is visible."""
        self.place()
        if self._is_visible(region) and not self._timer.isActive():
            self._timer.start()

    def refresh(self) -> None:
        """Show the current content of the array."""
        self._refresh()

    def finish(self) -> None:
        """Make the layer editable after the worker has finished the array.

        Small arrays are read into memory. Changes of large ones are not written to the
        file.
        """
        self._timer.stop()
        layer = self.layer
        if (
            layer is None
            or layer not in self._viewer.layers
            or not isinstance(layer.data, np.memmap)
        ):
            self.settled.emit()
            return
        path = Path(str(layer.data.filename))
        small = prod(layer.data.shape) * layer.data.itemsize <= MAX_MEMORY_BYTES
        threads.run(
            lambda: _read_result(path, small),
            lambda data: self._replace_data(layer, data),
            self._keep_mapped,
            owner=self,
        )

    def _replace_data(self, layer: LabelsLayer, data: Any) -> None:
        if layer in self._viewer.layers:
            layer.data = data
            layer.editable = True
            _show_tools(layer, True)
        self.settled.emit()

    def _keep_mapped(self, _error: Exception) -> None:
        # The file is missing or too large: the layer stays read-only.
        self._refresh()
        self.settled.emit()

    def _refresh(self) -> None:
        if self.layer is not None and self.layer in self._viewer.layers:
            self.layer.refresh(extent=False, highlight=False, thumbnail=False)

    def _is_visible(self, region: Mapping[str, Any]) -> bool:
        if (
            self.layer is None
            or self.layer not in self._viewer.layers
            or not self.layer.visible
        ):
            return False
        if self._viewer.dims.ndisplay == 3:
            return True
        letters = "".join(self.layer.axis_labels).upper()
        point = np.round(np.asarray(self.layer.world_to_data(self._viewer.dims.point)))
        position = dict(zip(letters, map(int, point), strict=True))
        return all(
            axis in "YX" or not isinstance(index, int) or position.get(axis) == index
            for axis, index in region.items()
        )


def add_quietly(
    viewer: ViewerModel, layer: Layer, *, below: Layer | None = None
) -> None:
    """Add a layer without changing the selection, on which the user may paint."""
    selection = viewer.layers.selection
    selected, active = set(selection), selection.active
    # Without events: otherwise napari would build the controls of the new layer and
    # remove them again.
    with selection.events.blocker_all():
        index = (
            viewer.layers.index(below)
            if below is not None and below in viewer.layers
            else len(viewer.layers)
        )
        viewer.layers.insert(index, layer)
        viewer.layers.selection = selected
        if active is not None:
            viewer.layers.selection.active = active


def _set_updates(viewer: ViewerModel | None, enabled: bool) -> None:
    """Switch updates of the window on or off."""
    with suppress(RuntimeError):  # the window may be deleted
        if (
            window := getattr(getattr(viewer, "window", None), "_qt_window", None)
        ) is not None:
            window.setUpdatesEnabled(enabled)


def _show_tools(layer: LabelsLayer, shown: bool) -> None:
    # The visuals of brush and polygon take half of the time to add a layer. They are
    # needed only when the layer can be painted.
    overlays = getattr(layer, "_overlays", {})
    for name in ("polygon", "brush_stroke"):
        if name in overlays:
            overlays[name].visible = shown


def class_map(rows: Any) -> ClassMap:
    """Build the class map from the table of classes in an event."""
    return ClassMap(
        names=tuple(row["name"] for row in rows),
        values=tuple(row["value"] for row in rows),
        colors=tuple(row["color"] for row in rows),
    )


def current_plane(
    viewer: ViewerModel, layer: ImageLayer, image: Image
) -> dict[str, int]:
    """Return the visible T and Z as indices of the image."""
    point = np.round(np.asarray(layer.world_to_data(viewer.dims.point)))
    indices = {}
    for axis, position in zip(image.axes[: layer.ndim], point, strict=True):
        if axis in "TZ":
            indices[axis] = int(np.clip(position, 0, image.size(axis) - 1))
    return indices


def _read_result(path: Path, small: bool) -> Any:
    """Read a small array, or map a large one without writing changes to the file."""
    mapped = np.lib.format.open_memmap(path, mode="c")
    return np.array(mapped) if small else mapped
