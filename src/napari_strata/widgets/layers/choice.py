"""Choices of an image layer and of its labels, updated with the layer list."""

from __future__ import annotations

import re
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from magicgui.widgets import ComboBox, LineEdit, PushButton
from napari.components import ViewerModel
from napari.layers import Image as ImageLayer
from napari.layers import Labels as LabelsLayer
from qtpy.QtCore import QTimer, Signal
from qtpy.QtWidgets import (
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QSizePolicy,
    QVBoxLayout,
    QWidget,
)

from napari_strata.core.errors import ImageError
from napari_strata.core.image import Image, LabelImage
from napari_strata.widgets.layers import convert
from napari_strata.widgets.layers.group import Channels, why_no_channels
from napari_strata.widgets.layers.live import ERRORS, PREDICTED

LIST_EVENTS = ("inserted", "removed", "reordered", "renamed")


class LayerChoice(QWidget):
    """Base class of combo boxes of layers, with a line of text."""

    changed = Signal()

    def __init__(
        self, viewer: ViewerModel, label: str, parent: QWidget | None = None
    ) -> None:
        super().__init__(parent)
        self._viewer = viewer
        self._layer: Any = None
        # Selected layers at the time when the user chose one in the box.
        self._manual_selection: set[Any] | None = None
        self.combo = ComboBox(
            choices=self._choices,
            nullable=True,
            tooltip=f"The {label.lower()} layer to work with.",
        )
        self.text = QLabel()
        self.text.setWordWrap(True)
        self._title = QLabel(label)
        self._rows = QVBoxLayout(self)
        self._rows.setContentsMargins(0, 0, 0, 0)
        self._rows.setSpacing(2)
        self._row = QHBoxLayout()
        self._row.addWidget(self._title)
        self._row.addWidget(self.combo.native, 1)
        self.combo.native.setSizePolicy(
            QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed
        )
        self._rows.addLayout(self._row)
        self._rows.addWidget(self.text)
        self.combo.changed.connect(self._on_pick)
        for name in LIST_EVENTS:
            getattr(viewer.layers.events, name).connect(self._list_changed)
        viewer.layers.selection.events.changed.connect(self._follow_later)
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.timeout.connect(self._follow)

    def disconnect_viewer(self) -> None:
        """Disconnect from the viewer."""
        for name in LIST_EVENTS:
            getattr(self._viewer.layers.events, name).disconnect(self._list_changed)
        self._viewer.layers.selection.events.changed.disconnect(self._follow_later)
        self._timer.stop()

    def choose(self, layer: Any) -> None:
        """Choose a layer or none, as in the box."""
        if layer is not self._layer:
            self._layer = layer
            self._layer_changed()
        self._show()
        self.changed.emit()

    def _choices(self, _widget: Any = None) -> list[tuple[str, Any]]:
        return [(layer.name, layer) for layer in self._candidates()]

    def _candidates(self) -> list[Any]:
        raise NotImplementedError

    def members(self) -> tuple[Any, ...]:
        """Return the layers that are chosen."""
        return () if self._layer is None else (self._layer,)

    def _selected(self) -> list[Any]:
        """Return the selected layers of this type, in the order of the list."""
        return [
            layer
            for layer in self._candidates()
            if layer in self._viewer.layers.selection
        ]

    def _list_changed(self, _event: object = None) -> None:
        if any(layer not in self._viewer.layers for layer in self.members()):
            self._layer = None
            self._layer_changed()
        with self.combo.changed.blocked():
            self.combo.reset_choices()
        self._follow_later()

    def _follow_later(self, _event: object = None) -> None:
        # After all events: a move is a removal and an insertion.
        self._timer.start(0)

    def _follow(self) -> None:
        raise NotImplementedError

    def _on_pick(self, layer: Any) -> None:
        if layer is not self._layer:
            self._manual_selection = set(self._viewer.layers.selection)
            self.choose(layer)

    def _layer_changed(self) -> None:
        """Called after another layer was chosen, before it is shown."""

    def _show(self) -> None:
        with self.combo.changed.blocked():
            self.combo.value = self._layer


class ImageChoice(LayerChoice):
    """Choice of an image layer, with a field for its axes.

    It is the layer that is selected in the layer list, or the only one. Among several,
    the user chooses. Several that are selected can be the channels of one image.
    """

    def __init__(self, viewer: ViewerModel, parent: QWidget | None = None) -> None:
        self._offer: Channels | None = None
        self.axes = LineEdit(
            tooltip=(
                "One letter per dimension: T time, Z depth, C channel, Y row, X column."
            )
        )
        super().__init__(viewer, "Image", parent)
        self._row.addWidget(QLabel("Axes"))
        self.axes.native.setMaximumWidth(
            self.axes.native.fontMetrics().horizontalAdvance("MMMMMM")
        )
        self._row.addWidget(self.axes.native)
        self.axes.native.editingFinished.connect(self._axes_edited)
        self.image: Image | None = None
        self.problem = ""
        self._follow()

    @property
    def layer(self) -> ImageLayer | None:
        """The chosen layer; of channels, the first one."""
        return next(iter(self.members()), None)

    @property
    def channels(self) -> Channels | None:
        """The chosen layers, if they are channels of one image."""
        return self._layer if isinstance(self._layer, Channels) else None

    def members(self) -> tuple[Any, ...]:
        if isinstance(self._layer, Channels):
            return self._layer.layers
        return super().members()

    def _candidates(self) -> list[Any]:
        return convert.image_layers(self._viewer.layers)

    def _choices(self, _widget: Any = None) -> list[tuple[str, Any]]:
        groups = dict.fromkeys((self.channels, self._offer))
        return super()._choices() + [
            (str(group), group) for group in groups if group is not None
        ]

    def _update_offer(self, selected: list[Any]) -> None:
        """Offer the selected layers as channels of one image, if they can be."""
        self._offer = None
        if len(selected) > 1 and not why_no_channels(selected):
            self._offer = Channels(tuple(selected))

    def _follow(self) -> None:
        selected, candidates = self._selected(), self._candidates()
        self._update_offer(selected)
        if self.channels is not None and set(selected) <= set(self.members()):
            self.choose(self._layer)
        elif len(selected) == 1:
            self.choose(selected[0])
        elif len(candidates) == 1:
            self.choose(candidates[0])
        elif len(selected) > 1 and self._manual_selection != set(
            self._viewer.layers.selection
        ):
            self.choose(None)
        else:
            self.choose(self._layer)

    def _layer_changed(self) -> None:
        layer = self.layer
        self.axes.value = "" if layer is None else convert.proposed_axes(layer)

    def _axes_edited(self) -> None:
        layer = self.layer
        if layer is None or self.axes.value.upper() == convert.known_axes(layer):
            return
        try:
            for member in self.members():
                convert.set_axes(member, self.axes.value)
        except ImageError as error:
            self.image, self.problem = None, str(error)
            self.text.setText(self.problem)
            self.changed.emit()
            return
        self.axes.value = convert.known_axes(layer)
        self.choose(self._layer)

    def choose(self, layer: Any) -> None:
        """Choose a layer, `Channels` or none, as in the box."""
        if layer == self._layer:
            layer = self._layer  # channels are equal, not the same object
        super().choose(layer)

    def _show(self) -> None:
        with self.combo.changed.blocked():
            self.combo.reset_choices()  # the choices contain the chosen channels
        super()._show()
        self.image, self.problem = None, ""
        layer, channels = self.layer, self.channels
        self.axes.enabled = layer is not None
        if layer is None:
            self.problem = self._missing_reason()
            self.text.setText(self.problem)
            return
        try:
            self.image = (
                convert.image_of(layer) if channels is None else channels.image()
            )
        except ImageError as error:
            self.problem = str(error)
            self.text.setText(self.problem)
            return
        text = convert.describe(self.image)
        if not convert.known_axes(layer):
            text += "; axes assumed, change them if they are wrong"
        if channels is not None:
            text += f"\nChannels: {', '.join(channels.names)}"
        self.text.setText(text)

    def _missing_reason(self) -> str:
        if not self._candidates():
            return (
                "No image is open: drop a file on the window, or File > Open Sample >"
                " Strata."
            )
        if (count := len(self._selected())) > 1:
            others = ", or all as channels of one image" if self._offer else ""
            return f"{count} images are selected: choose one here{others}."
        return "No image is selected: click one in the layer list, or choose it here."


class LabelsChoice(LayerChoice):
    """Choice of a labels layer, with a button to create one.

    It is the layer that is selected in the layer list, or one that fits the image.
    Without a layer, a field asks for the names of the classes of a new one.
    """

    created = Signal(object, object)
    """Emitted with the new Labels layer and the names of its classes, a tuple."""

    def __init__(
        self, viewer: ViewerModel, images: ImageChoice, *, title: str = "Labels"
    ) -> None:
        self._images = images
        # The last labels of each image layer.
        self._last: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
        super().__init__(viewer, title, images.parentWidget())
        self.new_button = PushButton(
            text="New labels",
            tooltip="An empty Labels layer on this image, ready to paint.",
        )
        self.new_button.changed.connect(self.make_new)
        self._row.addWidget(self.new_button.native)
        self.names = QLineEdit()
        self.names.setPlaceholderText("such as pore, clay, quartz")
        self.names.setToolTip(
            "Names of the classes to paint, separated by commas. They can be changed"
            " and added to later."
        )
        self.names.returnPressed.connect(self.make_new)
        self._names_row = QWidget()
        names_layout = QHBoxLayout(self._names_row)
        names_layout.setContentsMargins(0, 0, 0, 0)
        names_layout.addWidget(QLabel("Classes"))
        names_layout.addWidget(self.names, 1)
        self._rows.insertWidget(1, self._names_row)
        self.problem = ""
        images.changed.connect(self._image_changed)
        self._follow()

    @property
    def layer(self) -> LabelsLayer | None:
        layer: LabelsLayer | None = self._layer
        return layer

    def make_new(self) -> None:
        """Add an empty Labels layer for the image, select it, activate the brush.

        Its classes are those of the field, or two that have no names yet.
        """
        image = self._images.image
        if image is None:
            return
        blank = image.labels_like(np.zeros(image.label_shape, np.uint8))
        layer = LabelsLayer(
            blank.data,
            name=f"{image.name} labels",
            scale=blank.scale,
            units=blank.units,
            axis_labels=tuple(axis.lower() for axis in blank.axes),
            translate=_translation(self._images.layer, image),
        )
        self._viewer.add_layer(layer)
        layer.brush_size = max(4, round(min(image.size("Y"), image.size("X")) / 60))
        layer.selected_label = 1
        layer.mode = "paint"
        self._viewer.layers.selection.active = layer
        self.choose(layer)
        self.created.emit(layer, class_names(self.names.text()))

    def _candidates(self) -> list[Any]:
        return convert.labels_layers(self._viewer.layers)

    def _image_changed(self) -> None:
        self._follow()

    def _selected(self) -> list[Any]:
        # A selected prediction is not chosen, because it is selected to look at it. To
        # train on it, the user chooses it in the box.
        return [
            layer for layer in super()._selected() if not layer.metadata.get(PREDICTED)
        ]

    def _fitting(self) -> list[Any]:
        """Return the labels layers with the size of the image."""
        image = self._images.image
        painted = [
            layer
            for layer in self._candidates()
            if not layer.metadata.get(PREDICTED) or layer is self._layer
        ]
        return [
            layer
            for layer in painted
            if image is not None and not convert.mismatch(image, layer)
        ]

    def _follow(self) -> None:
        selected, fitting = self._selected(), self._fitting()
        last = (
            self._last.get(self._images.layer)
            if self._images.layer is not None
            else None
        )
        owner = self.owner(selected[0]) if len(selected) == 1 else None
        if owner is not None and owner not in self._images.members():
            self._images.choose(owner)  # which calls this method again
        elif len(selected) == 1:
            self.choose(selected[0])
        elif last in fitting:
            self.choose(last)
        elif self._layer in fitting and self.owner(self._layer) in (
            None,
            *self._images.members(),
        ):
            self.choose(self._layer)
        else:
            named = [
                layer
                for layer in fitting
                if self._images.image and layer.name.startswith(self._images.image.name)
            ]
            if len(fitting) == 1:
                self.choose(fitting[0])
            else:
                self.choose(named[0] if len(named) == 1 else None)

    def owner(self, labels: LabelsLayer) -> ImageLayer | None:
        """Return the image layer after which labels are named, if there is one."""
        for layer in convert.image_layers(self._viewer.layers):
            if labels.name == f"{layer.name} labels":
                return layer
        return None

    def partner(self, layer: ImageLayer) -> LabelsLayer | None:
        """Return the labels layer of an image layer, if there is one."""
        last: LabelsLayer | None = self._last.get(layer)
        if last is not None and last in self._viewer.layers:
            return last
        named = (each for each in self._candidates() if self.owner(each) is layer)
        return next(named, None)

    def _show(self) -> None:
        super()._show()
        image = self._images.image
        if self._images.layer is not None and self._layer in self._fitting():
            self._last[self._images.layer] = self._layer
        self.new_button.enabled = image is not None
        self._names_row.setVisible(image is not None and self._layer is None)
        self.problem = ""
        if self._layer is None:
            several = (
                f"{len(self._fitting())} label layers fit: choose one."
                if self._fitting()
                else ""
            )
            self.problem = several or (
                "No labels yet: name the classes, press New labels, and paint."
                if image is not None
                else ""
            )
        elif image is not None and (why := convert.mismatch(image, self._layer)):
            self.problem = (
                f"{self._layer.name} does not fit: it is {why} pixels. Choose other"
                " labels, or press New labels."
            )
        self.text.setText(self.problem)
        self.text.setVisible(bool(self.problem))


class OpenLabelsChoice(LayerChoice):
    """Choice of labels that follows the layer list until the user has chosen."""

    _manual_choice: Any = None

    def _candidates(self) -> list[Any]:
        return [
            layer
            for layer in convert.labels_layers(self._viewer.layers)
            if not layer.metadata.get(ERRORS)
        ]

    def _on_pick(self, layer: Any) -> None:
        self._manual_choice = layer
        super()._on_pick(layer)

    def _follow(self) -> None:
        is_open = (
            self._manual_choice is not None
            and self._manual_choice in self._viewer.layers
        )
        self.choose(self._manual_choice if is_open else self._proposed())

    def _layer_changed(self) -> None:
        # The problem of a removed layer is shown at once, before another is proposed.
        self.problem = "" if self._layer is not None else self._missing_reason()

    def _proposed(self) -> Any:
        raise NotImplementedError

    def _missing_reason(self) -> str:
        raise NotImplementedError

    def _show(self) -> None:
        super()._show()
        self.problem = "" if self._layer is not None else self._missing_reason()
        try:
            self.text.setText(self.problem or convert.describe(self.labels(None)))
        except ImageError as error:
            self.problem = str(error)
            self.text.setText(self.problem)

    @property
    def layer(self) -> LabelsLayer | None:
        layer: LabelsLayer | None = self._layer
        return layer

    def labels(self, like: LabelImage | None) -> LabelImage:
        """Return the chosen labels; without axes, they get those of `like`.

        Raises `ImageError` if the axes do not fit.
        """
        return convert.labels_of(self._layer, like)


def class_names(text: str) -> tuple[str, ...]:
    """Split a list of class names, such as ``pore, clay``; each name is kept once.

    Without a name there are the two that every segmentation needs.
    """
    names = [part.strip() for part in re.split("[,;\n]", text)]
    return tuple(dict.fromkeys(filter(None, names))) or ("class 1", "class 2")


def _translation(layer: ImageLayer | None, image: Image) -> Any:
    """Return the position of an image layer, for labels that are drawn over it."""
    if layer is None or len(image.label_axes) != layer.ndim:
        return None
    return layer.translate
