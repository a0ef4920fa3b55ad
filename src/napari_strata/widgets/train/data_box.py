"""Choice of the training data: layers with a class table, or files and folders."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from magicgui.types import FileDialogMode
from magicgui.widgets import (
    CheckBox,
    ComboBox,
    Container,
    FileEdit,
    LineEdit,
    PushButton,
)
from napari.components import ViewerModel
from napari.layers import Labels as LabelsLayer
from qtpy.QtCore import QTimer, Signal
from qtpy.QtWidgets import (
    QFileDialog,
    QHBoxLayout,
    QLabel,
    QStackedWidget,
    QVBoxLayout,
    QWidget,
)

from napari_strata.core.errors import StrataError
from napari_strata.core.image import Image, LabelImage
from napari_strata.widgets.layers import convert
from napari_strata.widgets.layers.choice import ImageChoice, LabelsChoice
from napari_strata.widgets.train.class_table import ClassTable
from napari_strata.widgets.train.other_images import OtherImages, find_labelled
from napari_strata.widgets.train.prepare import FolderData, LayerData

LAYERS, FILES = "layers in the viewer", "files and folders"


class DataBox(QWidget):
    """Choice of the training data.

    `data` returns the current data, `problem` the reason why they cannot be used.
    """

    changed = Signal()
    painted = Signal()

    def __init__(self, viewer: ViewerModel) -> None:
        super().__init__()
        self._viewer = viewer
        self.source = ComboBox(
            choices=[LAYERS, FILES],
            value=LAYERS,
            tooltip="Where images and labels come from.",
        )
        self.images = ImageChoice(viewer)
        self.labels = LabelsChoice(viewer, self.images)
        self.others = OtherImages(viewer)
        self.table = ClassTable()
        self.folders = _Folders()
        layers = QWidget()
        rows = QVBoxLayout(layers)
        rows.setContentsMargins(0, 0, 0, 0)
        rows.setSpacing(4)
        for widget in (self.images, self.labels, self.others, self.table):
            rows.addWidget(widget)
        self._stack = QStackedWidget()
        self._stack.addWidget(layers)
        self._stack.addWidget(self.folders)
        top = QHBoxLayout()
        top.addWidget(QLabel("Train on"))
        top.addWidget(self.source.native, 1)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(4)
        column.addLayout(top)
        column.addWidget(self._stack)
        self.source.changed.connect(self._switch)
        self.images.changed.connect(self._layers_changed)
        self.labels.changed.connect(self._layers_changed)
        self.others.changed.connect(self.changed)
        self.table.changed.connect(self.changed)
        self.table.picked.connect(self._select_layer)
        self.labels.created.connect(self.table.name_classes)
        self.folders.changed.connect(self.changed)
        self._timer = QTimer(self)  # one update for the many events of a click
        self._timer.setSingleShot(True)
        self._timer.timeout.connect(self._update_table)
        self._update_table()

    @property
    def uses_layers(self) -> bool:
        return bool(self.source.value == LAYERS)

    def data(self) -> LayerData | FolderData | None:
        """Return the chosen training data; None while there is a `problem`."""
        if self.problem():
            return None
        if not self.uses_layers:
            return self.folders.data()
        assert self.images.layer is not None
        assert self.images.image is not None
        assert self.labels.layer is not None
        image, layer = self.images.image, self.labels.layer
        others = tuple(
            LayerData(
                other.layer,
                other.image,
                other.labels_layer,
                self._labels(other.labels_layer, other.image),
            )
            for other in self.others.chosen()
        )
        labels = self._labels(layer, image)
        return LayerData(self.images.layer, image, layer, labels, others)

    def _labels(self, layer: LabelsLayer, image: Image) -> LabelImage:
        """Return the labels of a layer with the classes of the table."""
        return replace(convert.labels_of(layer, image), classes=self.table.classes())

    def problem(self) -> str:
        """Explain why these data cannot be used; empty if they can."""
        if not self.uses_layers:
            return self.folders.problem()
        if problem := self.images.problem or self.labels.problem:
            return problem
        if self.labels.layer is None or self.images.image is None:
            return "Choose an image and its labels."
        if problem := self.table.problem():
            return problem
        try:
            convert.labels_of(self.labels.layer, self.images.image)
        except StrataError as error:
            return str(error)
        return ""

    @property
    def has_labels(self) -> bool:
        """True while a labels layer is chosen."""
        return self.uses_layers and self.labels.layer is not None

    def texts(self) -> tuple[str, str]:
        """Return the texts below the choices of image and labels."""
        return self.images.text.text(), self.labels.text.text()

    def colors(self) -> tuple[str, ...]:
        """Colours of the classes in use."""
        classes = self.table.classes() if self.uses_layers else None
        return classes.colors if classes is not None else ()

    def leave(self) -> None:
        """Disconnect from the viewer."""
        self.images.disconnect_viewer()
        self.labels.disconnect_viewer()
        self.table.set_labels(None)

    def _switch(self, _value: object = None) -> None:
        self._stack.setCurrentIndex(0 if self.uses_layers else 1)
        self.changed.emit()

    def _select_layer(self, layer: LabelsLayer) -> None:
        self._viewer.layers.selection.active = layer

    def _layers_changed(self) -> None:
        self._timer.start(0)

    def _update_table(self) -> None:
        chosen = self.images.channels
        found = find_labelled(
            convert.image_layers(self._viewer.layers),
            [self.images.layer] if chosen is None else chosen.layers,
            self.images.image,
            self.labels.partner,
        )
        self.others.offer(found, self.images.layer)
        self.table.set_labels(self.labels.layer)
        self.table.setVisible(self.labels.layer is not None)
        self.changed.emit()


class _Folders(QWidget):
    """Paths of images and labels."""

    changed = Signal()

    def __init__(self) -> None:
        super().__init__()
        text = (
            "A TIFF stack, a folder of images, a folder with images/ and labels/, or a"
            " CSV of pairs."
        )
        labels_text = "Their labels; empty for a folder that contains both."
        self.images, self.images_folder = _path_edit("Images", text)
        self.labels, self.labels_folder = _path_edit("Labels", labels_text)
        self.axes = LineEdit(
            label="Axes", tooltip="Such as ZYX; empty if the files contain them."
        )
        self.zero = CheckBox(
            text="0 means unlabelled",
            tooltip="If not checked, 0 is the class background.",
        )
        self.form = Container(widgets=[self.images, self.labels, self.axes, self.zero])
        rows = QVBoxLayout(self)
        rows.setContentsMargins(0, 0, 0, 0)
        rows.addWidget(self.form.native)
        rows.addStretch(1)
        self.form.changed.connect(lambda _: self.changed.emit())

    def problem(self) -> str:
        images, labels = _path(self.images), _path(self.labels)
        if not images:
            return "Choose the images."
        for path in filter(None, (images, labels)):
            if not Path(path).expanduser().exists() and "*" not in path:
                return f"{path}: this file or folder does not exist."
        if (
            not labels
            and Path(images).expanduser().is_file()
            and Path(images).suffix.lower() != ".csv"
        ):
            return "Choose the labels of these images."
        return ""

    def data(self) -> FolderData:
        unlabelled = (0,) if self.zero.value else ()
        return FolderData(
            _path(self.images),
            _path(self.labels),
            self.axes.value.strip().upper(),
            unlabelled,
        )


def _path_edit(label: str, tooltip: str) -> tuple[FileEdit, PushButton]:
    """Create a field for the path of a file or a folder, with two buttons."""
    edit = FileEdit(mode=FileDialogMode.EXISTING_FILE, label=label, tooltip=tooltip)
    edit.choose_btn.text = "File..."
    folder = PushButton(text="Folder...")

    def choose() -> None:
        start = _path(edit) or str(Path.home())
        if folder := QFileDialog.getExistingDirectory(
            edit.native, f"Choose the folder of {label.lower()}", start
        ):
            edit.line_edit.value = folder

    folder.clicked.connect(choose)
    edit.native.layout().addWidget(folder.native)
    return edit, folder


def _path(edit: FileEdit) -> str:
    """Return the text of the field; magicgui turns an empty text into "."."""
    return str(edit.line_edit.value).strip()
