"""A Labels layer over an array that a worker fills.

There at once, refreshed when a shown plane is done.
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

REFRESH = 250
"""Milliseconds between two refreshes at least."""
APART = 15
"""Milliseconds between making a layer and adding it, in which the window answers."""
IN_MEMORY = 2**30
"""Bytes up to which finished labels are taken into memory."""

PREDICTED = "napari_strata_predicted"
"""Key of a layer's metadata that says.

A network made this, it is not what somebody painted.
"""


class LiveLabels(QObject):
    """Shows labels while they are made.

    `open` must be called in the main thread, as all of it.

    Set `layer` before `open` to have a layer that is there filled again.
    """

    settled = Signal()  # after `finish`: the layer is the user's

    def __init__(self, viewer: ViewerModel, parent: QObject) -> None:
        super().__init__(parent)
        self.layer: LabelsLayer | None = None
        self._viewer = viewer
        self._due = False
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(REFRESH)
        self._timer.timeout.connect(self._refresh)
        self._waiting: tuple[LabelsLayer, Layer | None] | None = None
        self._adding = QTimer(self)
        self._adding.setSingleShot(True)
        self._adding.setInterval(APART)
        self._adding.timeout.connect(self.place)

    def open(
        self,
        target: TargetOpened,
        image: Image,
        under: ImageLayer | None,
        *,
        name: str,
        below: Layer | None = None,
    ) -> LabelsLayer:
        """A layer on the array that the worker has just made, placed where `under`, the
        image layer, lies.

        It goes on top of the list, or `below` a layer, as the next thing that the
        window does: to make a layer, to add it and to draw it are 30 to 50 ms each
        without a graphics card. `place` does not wait.
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
        self.layer.editable = (
            False  # until it is whole: the array belongs to the worker
        )
        _show_tools(self.layer, False)
        self._waiting = self.layer, below
        self._adding.start()
        return self.layer

    def place(self) -> None:
        """Add the layer that was made last, if that is still to be done."""
        if self._waiting is not None:
            layer, below = self._waiting
            self.leave()
            viewer = self._viewer
            _draw(viewer, False)
            # Not a timer of this object: it may be gone before, and the window must
            # never stay undrawn. The timer does not keep a closed viewer alive.
            reference = weakref.ref(viewer)
            QTimer.singleShot(APART, lambda: _draw(reference(), True))
            add_quietly(viewer, layer, below=below)

    def leave(self) -> None:
        """Add nothing more."""
        self._adding.stop()
        self._waiting = None

    def region_done(self, region: Mapping[str, Any]) -> None:
        """A region of the array is written; refresh if it is in sight."""
        self.place()
        if self._in_sight(region) and not self._timer.isActive():
            self._timer.start()

    def refresh(self) -> None:
        """Show what is in the array now."""
        self._refresh()

    def finish(self) -> None:
        """The worker is done with the array.

        Take it into memory, or leave it on disk where changes stay private.
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
        path, small = (
            Path(str(layer.data.filename)),
            prod(layer.data.shape) * layer.data.itemsize <= IN_MEMORY,
        )
        threads.run(
            lambda: _own(path, small),
            lambda data: self._swap(layer, data),
            self._keep,
            owner=self,
        )

    def _swap(self, layer: LabelsLayer, data: Any) -> None:
        if layer in self._viewer.layers:
            layer.data = data
            layer.editable = True
            _show_tools(layer, True)
        self.settled.emit()

    def _keep(self, _error: Exception) -> None:
        # The file is gone or does not fit: what is shown stays, read-only.
        self._refresh()
        self.settled.emit()

    def _refresh(self) -> None:
        if self.layer is not None and self.layer in self._viewer.layers:
            self.layer.refresh(extent=False, highlight=False, thumbnail=False)

    def _in_sight(self, region: Mapping[str, Any]) -> bool:
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
        places = dict(zip(letters, map(int, point), strict=True))
        return all(
            a in "YX" or not isinstance(index, int) or places.get(a) == index
            for a, index in region.items()
        )


def add_quietly(
    viewer: ViewerModel, layer: Layer, *, below: Layer | None = None
) -> None:
    """Add a layer and leave the selection as it is.

    Somebody may be painting on what is selected.
    """
    selection = viewer.layers.selection
    selected, active = set(selection), selection.active
    # Without a word: napari would build the controls of the new layer, only to put the
    # old ones back.
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


def _draw(viewer: ViewerModel | None, drawn: bool) -> None:
    """Let the window draw itself, or not."""
    with suppress(RuntimeError):  # the window may be gone
        if (
            window := getattr(getattr(viewer, "window", None), "_qt_window", None)
        ) is not None:
            window.setUpdatesEnabled(drawn)


def _show_tools(layer: LabelsLayer, shown: bool) -> None:
    # The visuals of brush and polygon are half of what adding a layer costs; they can
    # wait until it can be painted.
    overlays = getattr(layer, "_overlays", {})
    for name in ("polygon", "brush_stroke"):
        if name in overlays:
            overlays[name].visible = shown


def class_map(rows: Any) -> ClassMap:
    """The class map that a worker's table of classes spells."""
    return ClassMap(
        names=tuple(row["name"] for row in rows),
        values=tuple(row["value"] for row in rows),
        colors=tuple(row["color"] for row in rows),
    )


def current_plane(
    viewer: ViewerModel, layer: ImageLayer, image: Image
) -> dict[str, int]:
    """The T and Z that are in sight, as indices of the image."""
    point = np.round(np.asarray(layer.world_to_data(viewer.dims.point)))
    indices = {}
    for axis, position in zip(image.axes[: layer.ndim], point, strict=True):
        if axis in "TZ":
            indices[axis] = int(np.clip(position, 0, image.size(axis) - 1))
    return indices


def _own(path: Path, small: bool) -> Any:
    mapped = np.lib.format.open_memmap(path, mode="c")
    return np.array(mapped) if small else mapped
