"""Choices of the Measure dock: labels, image, model and region."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from napari.components import ViewerModel
from napari.layers import Image as ImageLayer
from napari.layers import Labels as LabelsLayer
from napari.layers import Shapes
from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import (
    QComboBox,
    QFileDialog,
    QHBoxLayout,
    QLabel,
    QSizePolicy,
    QVBoxLayout,
    QWidget,
)

from napari_strata.core.errors import ImageError
from napari_strata.core.image import Image, LabelImage
from napari_strata.widgets.layers import convert
from napari_strata.widgets.layers.choice import LayerChoice, OpenLabelsChoice
from napari_strata.widgets.layers.live import MODEL, PREDICTED
from napari_strata.widgets.measure.state import SPECIMEN, WHOLE
from napari_strata.widgets.session import ViewerSession

REGION = "napari_strata_region"
"""Key in the metadata of layers that are a region."""

NO_MODEL, OPEN_MODEL = "none", "Open a model file ..."


class MeasuredChoice(OpenLabelsChoice):
    """Choice of the labels to measure: the selected or newest ones."""

    def __init__(self, viewer: ViewerModel) -> None:
        self.problem = ""
        super().__init__(viewer, "Labels")
        self._follow()

    def _candidates(self) -> list[Any]:
        layers = super()._candidates()
        return [layer for layer in layers if not layer.metadata.get(REGION)]

    def _proposed(self) -> Any:
        candidates, selected = self._candidates(), self._selected()
        if len(selected) == 1:
            return selected[0]
        if self._layer is not None:
            return self._layer
        predicted = [each for each in candidates if each.metadata.get(PREDICTED)]
        return (predicted or candidates or [None])[-1]

    def _missing_reason(self) -> str:
        return "No labels are open: predict an image, or open a label file."


class GreyChoice(LayerChoice):
    """Choice of the image that the labels were predicted from, or none."""

    def __init__(self, viewer: ViewerModel, labels: MeasuredChoice) -> None:
        self._labels = labels
        self._is_manual = False
        super().__init__(viewer, "Image")
        self.text.hide()
        labels.changed.connect(self._labels_changed)
        self._follow()

    @property
    def layer(self) -> ImageLayer | None:
        layer: ImageLayer | None = self._layer
        return layer

    def image(self) -> Image | None:
        """Return the chosen image."""
        return None if self._layer is None else convert.image_of(self._layer)

    def _candidates(self) -> list[Any]:
        layer = self._labels.layer
        if layer is None or self._labels.problem:
            return []
        try:
            labels = self._labels.labels(None)
        except ImageError:
            return []
        fitting = []
        for candidate in convert.image_layers(self._viewer.layers):
            try:
                image = convert.image_of(candidate)
            except ImageError:
                continue
            if all(image.size(axis) == labels.size(axis) for axis in "TZYX"):
                fitting.append(candidate)
        return fitting

    def _labels_changed(self) -> None:
        self._is_manual = False
        with self.combo.changed.blocked():
            self.combo.reset_choices()
        self._follow()

    def _on_pick(self, layer: Any) -> None:
        self._is_manual = True
        super()._on_pick(layer)

    def _follow(self) -> None:
        candidates = self._candidates()
        if self._is_manual and (self._layer is None or self._layer in candidates):
            return
        labels = self._labels.layer
        name = labels.name if labels is not None else ""
        named = [each for each in candidates if name.startswith(each.name)]
        chosen = (named or candidates or [None])[0]
        if chosen is not self._layer:
            self.choose(chosen)


class ModelPicker(QWidget):
    """Choice of the model that predicted the labels, or none."""

    changed = Signal()

    def __init__(self, session: ViewerSession, labels: MeasuredChoice) -> None:
        super().__init__()
        self._session, self._labels = session, labels
        self._layer: LabelsLayer | None = None
        self.models: tuple[str, ...] = ()
        """The model, or several whose mean predicted the labels."""
        self.combo = QComboBox()
        self.combo.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        self.combo.setToolTip(
            "The model that predicted the labels. The interval comes from its errors."
        )
        self.text = QLabel()
        self.text.setWordWrap(True)
        self._open: list[tuple[str, ...]] = []
        row = QHBoxLayout()
        row.addWidget(QLabel("Model"))
        row.addWidget(self.combo, 1)
        rows = QVBoxLayout(self)
        rows.setContentsMargins(0, 0, 0, 0)
        rows.setSpacing(2)
        rows.addLayout(row)
        rows.addWidget(self.text)
        self.combo.activated.connect(self._picked)
        labels.changed.connect(self._labels_changed)
        self._labels_changed()

    @property
    def name(self) -> str:
        """Name of the model; empty without one."""
        return " and ".join(Path(model).name for model in self.models)

    def choose(self, *models: str) -> None:
        """Choose a model, or none."""
        self.models = models
        self._fill()
        self.changed.emit()

    def _labels_changed(self) -> None:
        layer = self._labels.layer
        if layer is self._layer:
            return
        self._layer = layer
        stored = layer.metadata.get(MODEL) if layer is not None else None
        if isinstance(stored, str):
            stored = (stored,)
        self.choose(*(stored or ()))

    def _fill(self) -> None:
        """Offer no model, the chosen one, those used before, the newest, and a file."""
        if self.models and self.models not in self._open:
            self._open.append(self.models)
        latest = self._session.latest_model
        choices = [(), *self._open]
        if latest is not None and (str(latest),) not in choices:
            choices.append((str(latest),))
        self.combo.clear()
        for models in choices:
            names = " and ".join(Path(model).name for model in models)
            self.combo.addItem(names or NO_MODEL, models)
            tip = "\n".join(models)
            self.combo.setItemData(
                self.combo.count() - 1, tip, Qt.ItemDataRole.ToolTipRole
            )
        self.combo.addItem(OPEN_MODEL)
        self.combo.setCurrentIndex(choices.index(self.models))

    def _picked(self, index: int) -> None:
        if index < self.combo.count() - 1:
            self.choose(*self.combo.itemData(index))
            return
        folder = str(self._session.settings.runs)
        path, _ = QFileDialog.getOpenFileName(
            self, "Open a model", folder, "Models (*.safetensors)"
        )
        self.choose(*((path,) if path else self.models))


class RegionPicker(QWidget):
    """Choice of the region: the whole image, the specimen, or a layer."""

    changed = Signal()

    def __init__(self, viewer: ViewerModel, labels: MeasuredChoice) -> None:
        super().__init__()
        self._viewer, self._labels = viewer, labels
        self.region: str | LabelsLayer | Shapes = WHOLE
        """`WHOLE`, `SPECIMEN` or a layer."""
        self.combo = QComboBox()
        self.combo.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        self.combo.setToolTip("Where to measure. Every figure names its region.")
        self.text = QLabel()
        self.text.setWordWrap(True)
        row = QHBoxLayout()
        row.addWidget(QLabel("Region"))
        row.addWidget(self.combo, 1)
        rows = QVBoxLayout(self)
        rows.setContentsMargins(0, 0, 0, 0)
        rows.setSpacing(2)
        rows.addLayout(row)
        rows.addWidget(self.text)
        self.combo.activated.connect(self._picked)
        labels.changed.connect(self._list_changed)
        for name in ("inserted", "removed", "reordered", "renamed"):
            getattr(viewer.layers.events, name).connect(self._list_changed)
        self._list_changed()

    @property
    def name(self) -> str:
        """`WHOLE`, `SPECIMEN` or the name of the layer."""
        return self.region if isinstance(self.region, str) else self.region.name

    @property
    def problem(self) -> str:
        """Reason why the region cannot be used; empty if it can."""
        labels = self._labels.layer
        if labels is None or isinstance(self.region, str):
            return ""
        if isinstance(self.region, Shapes):
            return "" if len(self.region.data) else "Draw a shape in this layer first."
        shape = convert.array_of(self.region).shape
        other = convert.array_of(labels).shape
        if shape == other or shape == other[-2:]:
            return ""
        return (
            f"{self.region.name} is {' x '.join(map(str, shape))}, and the labels are"
            f" {' x '.join(map(str, other))}: choose another region."
        )

    def choose(self, region: str | LabelsLayer | Shapes) -> None:
        """Choose a region."""
        self.region = region
        self._list_changed()
        self.changed.emit()

    def mask_of(self, labels: LabelImage) -> LabelImage | None:
        """Return the mask of a layer as labels of 0 and other values; else None."""
        if isinstance(self.region, str):
            return None
        if isinstance(self.region, Shapes):
            layer = self._labels.layer
            assert layer is not None
            data = shapes_mask(self.region, layer, labels)
            return LabelImage(data, "YX", name=self.region.name)
        array = convert.array_of(self.region)
        if array.ndim == 2:
            return LabelImage(array, "YX", name=self.region.name)
        return LabelImage(array, labels.axes, name=self.region.name)

    def disconnect_viewer(self) -> None:
        """Disconnect from the viewer."""
        for name in ("inserted", "removed", "reordered", "renamed"):
            getattr(self._viewer.layers.events, name).disconnect(self._list_changed)

    def _layers(self) -> list[Any]:
        return [
            layer
            for layer in self._viewer.layers
            if isinstance(layer, (LabelsLayer, Shapes))
            and layer is not self._labels.layer
        ]

    def _list_changed(self, _event: object = None) -> None:
        layers = self._layers()
        lost = not isinstance(self.region, str) and self.region not in layers
        if lost:
            self.region = WHOLE
        self.combo.clear()
        for region in (WHOLE, SPECIMEN):
            self.combo.addItem(region, region)
        for layer in layers:
            self.combo.addItem(layer.name, layer)
        names = [WHOLE, SPECIMEN, *layers]
        self.combo.setCurrentIndex(names.index(self.region))
        if lost:
            self.changed.emit()

    def _picked(self, index: int) -> None:
        self.choose(self.combo.itemData(index))


def shapes_mask(shapes: Shapes, layer: LabelsLayer, labels: LabelImage) -> Any:
    """Return the mask (Y, X) of shapes in the pixels of a labels layer.

    A shape counts in every plane, wherever it was drawn.
    """
    at = [labels.axes.index("Y"), labels.axes.index("X")]
    outlines = []
    for outline in shapes.data:
        points = []
        for point in outline:
            world = np.zeros(max(layer.ndim, shapes.ndim))
            place = np.asarray(shapes.data_to_world(point))
            world[-shapes.ndim :] = place
            pixel = np.asarray(layer.world_to_data(world[-layer.ndim :]))
            points.append(pixel[at])
        outlines.append(np.asarray(points))
    flat = Shapes(outlines, shape_type=list(shapes.shape_type))
    size = (labels.size("Y"), labels.size("X"))
    return (flat.to_labels(size) > 0).astype(np.uint8)
