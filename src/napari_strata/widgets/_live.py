"""A Labels layer over an array that a worker fills: there at once, refreshed when a shown plane is done."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from napari.components import ViewerModel
from napari.layers import Image as ImageLayer
from napari.layers import Labels as LabelsLayer
from qtpy.QtCore import QObject, QTimer

from napari_strata.classes import ClassMap
from napari_strata.image import Image
from napari_strata.plugin import labels_layer
from napari_strata.widgets import _background
from napari_strata.worker.replies import TargetOpened

REFRESH = 250
"""Milliseconds between two refreshes at least."""
IN_MEMORY = 2**30
"""Bytes up to which finished labels are taken into memory."""


class LiveLabels(QObject):
    """Shows labels while they are made. `open` must be called in the main thread, as all of it."""

    def __init__(self, viewer: ViewerModel, parent: QObject) -> None:
        super().__init__(parent)
        self.layer: LabelsLayer | None = None
        self._viewer = viewer
        self._due = False
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(REFRESH)
        self._timer.timeout.connect(self._refresh)

    def open(self, target: TargetOpened, image: Image, under: ImageLayer | None, *, name: str) -> LabelsLayer:
        """A layer on the array that the worker has just made, placed where `under`, the image layer, lies."""
        data = np.lib.format.open_memmap(target.path, mode="r")
        classes = class_map(target.classes)
        if self.layer is not None and self.layer in self._viewer.layers and self.layer.data.shape == data.shape:
            self.layer.data = data
            return self.layer
        labels = image.labels_like(data, classes=classes, name=name)
        given, attributes, _ = labels_layer(labels)
        if under is not None and under.ndim == len(labels.axes):
            attributes |= {"affine": under.affine, "translate": under.translate}
            attributes |= {"rotate": under.rotate, "shear": under.shear}
        self.layer = LabelsLayer(given, **attributes)
        self.layer.editable = False  # until it is whole: the array belongs to the worker
        self._viewer.add_layer(self.layer)
        return self.layer

    def region_done(self, region: Mapping[str, Any]) -> None:
        """A region of the array is written; refresh if it is in sight."""
        if self._in_sight(region) and not self._timer.isActive():
            self._timer.start()

    def refresh(self) -> None:
        """Show what is in the array now."""
        self._refresh()

    def finish(self) -> None:
        """The worker is done with the array: take it into memory, or leave it on disk where changes stay private."""
        self._timer.stop()
        layer = self.layer
        if layer is None or layer not in self._viewer.layers or not isinstance(layer.data, np.memmap):
            return
        path, small = Path(layer.data.filename), prod(layer.data.shape) * layer.data.itemsize <= IN_MEMORY
        _background.run(lambda: _own(path, small), lambda data: self._swap(layer, data), self._keep, owner=self)

    def _swap(self, layer: LabelsLayer, data: Any) -> None:
        if layer in self._viewer.layers:
            layer.data = data
            layer.editable = True

    def _keep(self, _error: Exception) -> None:
        # The file is gone or does not fit: what is shown stays, read-only.
        self._refresh()

    def _refresh(self) -> None:
        if self.layer is not None and self.layer in self._viewer.layers:
            self.layer.refresh(extent=False)

    def _in_sight(self, region: Mapping[str, Any]) -> bool:
        if self.layer is None or self.layer not in self._viewer.layers or not self.layer.visible:
            return False
        if self._viewer.dims.ndisplay == 3:
            return True
        letters = "".join(self.layer.axis_labels).upper()
        shown = self._viewer.dims.current_step[-self.layer.ndim :]
        places = dict(zip(letters, shown, strict=True))
        return all(a in "YX" or not isinstance(index, int) or places.get(a) == index for a, index in region.items())


def class_map(rows: Any) -> ClassMap:
    """The class map that a worker's table of classes spells."""
    return ClassMap(
        names=tuple(row["name"] for row in rows),
        values=tuple(row["value"] for row in rows),
        colors=tuple(row["color"] for row in rows),
    )


def current_plane(viewer: ViewerModel, layer: ImageLayer, image: Image) -> dict[str, int]:
    """The T and Z that are in sight, as indices of the image."""
    shown = layer.world_to_data(viewer.dims.point)
    found = {}
    for letter, place in zip(image.label_axes, np.round(np.asarray(shown)[-len(image.label_axes) :]), strict=True):
        if letter in "TZ":
            found[letter] = int(np.clip(place, 0, image.size(letter) - 1))
    return found


def _own(path: Path, small: bool) -> Any:
    mapped = np.lib.format.open_memmap(path, mode="c")
    return np.array(mapped) if small else mapped

