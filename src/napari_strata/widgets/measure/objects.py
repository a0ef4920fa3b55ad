"""Objects of one class of a labels layer: numbered, measured, in a linked table."""

from __future__ import annotations

import csv
import math
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
from napari.components import ViewerModel
from napari.layers import Labels as LabelsLayer
from qtpy.QtCore import (
    QAbstractTableModel,
    QModelIndex,
    QSortFilterProxyModel,
    Qt,
    Signal,
)
from qtpy.QtWidgets import (
    QAbstractItemView,
    QCheckBox,
    QComboBox,
    QDialog,
    QDoubleSpinBox,
    QFileDialog,
    QFormLayout,
    QHBoxLayout,
    QLabel,
    QPushButton,
    QTableView,
    QVBoxLayout,
    QWidget,
)

from napari_strata.core.errors import RunError
from napari_strata.core.image import Image, LabelImage
from napari_strata.core.text import format_count
from napari_strata.io import read_labels, write_image, write_labels
from napari_strata.plugin import labels_layer
from napari_strata.report.measure_tables import short_unit
from napari_strata.widgets.layers.convert import slug
from napari_strata.widgets.layers.live import ERRORS, PREDICTED, add_quietly
from napari_strata.widgets.work import threads

MAX_SIZE = 1e12
TABLE = "objects.csv"
_NO_PARENT = QModelIndex()


@dataclass(frozen=True)
class ObjectOptions:
    """Options of the command ``objects``.

    Parameters
    ----------
    of
        Name of the class, or its label value; empty for the second of two classes.
    smallest
        Least volume or area of an object, in the unit of the pixel size.
    fill_holes
        Close holes inside objects.
    split
        Least distance of the centres of touching objects that are cut; 0: none is.
    by_plane
        Treat every plane by itself.
    """

    of: str = ""
    smallest: float = 0
    fill_holes: bool = False
    split: float = 0
    by_plane: bool = False


@dataclass(frozen=True)
class Objects:
    """Numbered objects, and their table: a file, and the columns by name."""

    labels: LabelImage
    table: Path
    columns: dict[str, list[float]]


def words(
    labels: Path, image: Path | None, options: ObjectOptions, *, out: Path
) -> list[str]:
    """Return the command line that finds and measures objects."""
    arguments = ["objects", str(labels), "--out", str(out)]
    arguments += ["--table", str(out.with_name(TABLE)), "--overwrite"]
    if image is not None:
        arguments += ["--image", str(image)]
    if options.of:
        arguments += ["--of", options.of]
    for name in ("smallest", "split"):
        if value := getattr(options, name):
            arguments += [f"--{name}", f"{value:g}"]
    for name in ("fill_holes", "by_plane"):
        if getattr(options, name):
            arguments.append(f"--{name.replace('_', '-')}")
    return arguments


def measure(
    labels: LabelImage,
    image: Image | None,
    options: ObjectOptions,
    folder: Path,
    started: Callable[[subprocess.Popen[str]], object] = lambda _process: None,
) -> Objects:
    """Find the objects and measure them, by the command ``napari-strata objects``.

    It is a process of its own, because it needs torch. It takes long, so call this in a
    thread.

    Parameters
    ----------
    started
        Called with the process, so that it can be ended.

    Raises
    ------
    RunError
        With the message of the command.
    """
    folder.mkdir(parents=True, exist_ok=True)
    labels_path = write_labels(folder / "labels.ome.tif", labels, overwrite=True)
    image_path = None
    if image is not None:
        image_path = write_image(folder / "image.ome.tif", image, overwrite=True)
    out = folder / "objects.ome.tif"
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "napari_strata"),
            *words(labels_path, image_path, options, out=out),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    started(process)
    _, errors = process.communicate()
    for copy in filter(None, (labels_path, image_path)):
        copy.unlink(missing_ok=True)
    if process.returncode:
        lines = errors.strip().splitlines() or ["The command failed."]
        raise RunError(lines[-1].removeprefix("error: "))
    with open(out.with_name(TABLE), newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    columns = {
        name: [float(row[name] or "nan") for row in rows]
        for name in (rows[0] if rows else {"id": ""})
    }
    return Objects(read_labels(out), out.with_name(TABLE), columns)


def within(labels: LabelImage, mask: LabelImage, of: str) -> LabelImage:
    """Return the labels with another class than `of` outside a mask."""
    other = 0
    classes = labels.classes
    if classes is not None:
        names = [str(value) for value in classes.values]
        is_chosen = [of in pair for pair in zip(classes.names, names, strict=True)]
        values = zip(classes.values, is_chosen, strict=True)
        others = [value for value, chosen in values if not chosen]
        other = [*classes.unlabelled, *others, 0][0]
    elif of.isdigit() and int(of) == 0:
        other = 1
    data = _Masked(labels, mask, other)
    return replace(labels, data=data)


class _Masked:
    """Labels that have one value outside a mask, read part by part."""

    def __init__(self, labels: LabelImage, mask: LabelImage, value: int) -> None:
        self._labels, self._mask, self._value = labels, mask, value
        self.shape, self.dtype = labels.shape, labels.dtype

    def __getitem__(self, key: Any, /) -> Any:
        part = np.array(self._labels.data[key])
        keys = key if isinstance(key, tuple) else (key,)
        by_axis = dict(zip(self._labels.axes, keys, strict=False))
        mask_key = tuple(by_axis.get(a, slice(None)) for a in self._mask.axes)
        inside = np.asarray(self._mask.data[mask_key]) != 0
        # Axes that the mask does not have are kept by slices, of length 1 or more.
        lengths = [
            slice(None) if axis in self._mask.axes else None
            for axis in self._labels.axes
            if not isinstance(by_axis.get(axis), int)
        ]
        part[np.broadcast_to(~inside[tuple(lengths)], part.shape)] = self._value
        return part


def short_name(column: str) -> str:
    """Return the name of a column with the sign of its unit."""
    return column.replace("micrometer", "µm").replace("nanometer", "nm")


def features_of(columns: Mapping[str, Sequence[float]]) -> dict[str, list[Any]]:
    """Return the columns of a table as features of a Labels layer.

    Objects that have several rows, one for each plane, have the features of the first.
    """
    ids = [int(number) for number in columns["id"]]
    first = sorted({number: ids.index(number) for number in ids}.items())
    features: dict[str, list[Any]] = {"index": [number for number, _ in first]}
    for name, values in columns.items():
        if name != "id":
            features[name] = [values[row] for _, row in first]
    return features


SIZE_COLUMNS = ("equivalent diameter", "area", "volume")
"""Starts of the names of the columns whose distribution is shown first."""


class Distribution(QWidget):
    """Histogram of a column of a table of objects, which the user chooses."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        # Imported when it is needed, because it takes half a second.
        from napari_strata.widgets.parts.figure import Figure

        self._columns: Mapping[str, Sequence[float]] = {}
        self.column = QComboBox()
        self.column.setToolTip("The measurement whose distribution is shown.")
        self.figure = Figure()
        self.summary = QLabel()
        self.summary.setWordWrap(True)
        rows = QVBoxLayout(self)
        rows.setContentsMargins(0, 0, 0, 0)
        for widget in (self.column, self.figure, self.summary):
            rows.addWidget(widget)
        self.column.currentIndexChanged.connect(lambda _: self._show())

    def show_columns(self, columns: Mapping[str, Sequence[float]]) -> None:
        """Show a column of a table; the one chosen before, if there is one."""
        chosen = self.column.currentData()
        names = [
            name
            for name in columns
            if name not in ("id", "t", "z") and not name.startswith(("box ", "touches"))
        ]
        if chosen not in names:
            sizes = [name for name in names if name.startswith(SIZE_COLUMNS)]
            chosen = sizes[-1] if sizes else ""
        self._columns = columns
        self.column.blockSignals(True)
        self.column.clear()
        for name in names:
            self.column.addItem(short_name(name), name)
        self.column.setCurrentIndex(max(self.column.findData(chosen), 0))
        self.column.blockSignals(False)
        self._show()

    def _show(self) -> None:
        name = self.column.currentData() or ""
        values = [v for v in self._columns.get(name, ()) if math.isfinite(v)]
        self.figure.show_histogram(values, x_title=short_name(name))
        if not values:
            self.summary.setText("")
            return
        at_border = sum(value > 0 for value in self._columns["touches border"])
        text = (
            f"{format_count(len(values), 'object')}: median {median(values):.4g}, mean"
            f" {fmean(values):.4g}, {min(values):.4g} to {max(values):.4g}."
        )
        if at_border:
            text += f" {at_border} at the border of the image may be cut."
        self.summary.setText(text)


class ObjectTable(QTableView):
    """Table of the objects of a layer, linked to it in both directions.

    A row that is chosen selects the object in the layer, and `chosen` is emitted; an
    object that is selected in the layer chooses its row.
    """

    chosen = Signal(int)
    """Emitted with the row in the table of objects, not the one on the screen."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._model = _ColumnsModel(self)
        self._sorted = QSortFilterProxyModel(self)
        self._sorted.setSourceModel(self._model)
        self._sorted.setSortRole(Qt.ItemDataRole.UserRole)
        self.setModel(self._sorted)
        self.setSortingEnabled(True)
        self.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        self.setShowGrid(False)
        self.setMinimumHeight(150)
        lines = self.verticalHeader()
        assert lines is not None
        lines.hide()
        lines.setDefaultSectionSize(round(1.6 * self.fontMetrics().height()))
        self._layer: LabelsLayer | None = None
        selection = self.selectionModel()
        assert selection is not None
        selection.currentRowChanged.connect(self._row_chosen)

    def show_objects(
        self, columns: Mapping[str, Sequence[float]], layer: LabelsLayer
    ) -> None:
        """Show the table of the objects in a layer."""
        self.leave()
        self._layer = layer
        self._model.set_columns(columns)
        self.sortByColumn(0, Qt.SortOrder.AscendingOrder)
        self.resizeColumnsToContents()
        layer.events.selected_label.connect(self._label_selected)

    def leave(self) -> None:
        """Disconnect from the layer."""
        if self._layer is not None:
            self._layer.events.selected_label.disconnect(self._label_selected)
            self._layer = None

    def _row_chosen(self, current: QModelIndex, _previous: QModelIndex) -> None:
        if self._layer is None or not current.isValid():
            return
        row = self._sorted.mapToSource(current).row()
        number = self._model.id_of(row)
        if self._layer.selected_label != number:
            self._layer.selected_label = number
        self.chosen.emit(row)

    def _label_selected(self, _event: object = None) -> None:
        if self._layer is None:
            return
        row = self._model.row_of(int(self._layer.selected_label))
        if row is None:
            return
        index = self._sorted.mapFromSource(self._model.index(row, 0))
        if index.row() != self.currentIndex().row():
            self.selectRow(index.row())
            self.scrollTo(index)


class _ColumnsModel(QAbstractTableModel):
    """Columns of numbers; the value itself is sorted."""

    def __init__(self, parent: QWidget) -> None:
        super().__init__(parent)
        self._names: list[str] = []
        self._columns: list[Sequence[float]] = []
        self._rows: dict[int, int] = {}

    def set_columns(self, columns: Mapping[str, Sequence[float]]) -> None:
        self.beginResetModel()
        self._names = [name for name in columns if not name.startswith("box ")]
        self._columns = [columns[name] for name in self._names]
        self._rows = {}
        for row, number in enumerate(columns["id"]):
            self._rows.setdefault(int(number), row)
        self.endResetModel()

    def id_of(self, row: int) -> int:
        return int(self._columns[self._names.index("id")][row])

    def row_of(self, number: int) -> int | None:
        return self._rows.get(number)

    def rowCount(self, parent: QModelIndex = _NO_PARENT) -> int:  # noqa: N802
        return len(self._columns[0]) if self._columns and not parent.isValid() else 0

    def columnCount(self, parent: QModelIndex = _NO_PARENT) -> int:  # noqa: N802
        return 0 if parent.isValid() else len(self._columns)

    def data(self, index: QModelIndex, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        value = self._columns[index.column()][index.row()]
        if role == Qt.ItemDataRole.UserRole:
            return float(value)
        if role == Qt.ItemDataRole.TextAlignmentRole:
            return Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter
        if role == Qt.ItemDataRole.DisplayRole:
            return f"{value:.6g}" if math.isfinite(value) else ""
        return None

    def headerData(  # noqa: N802
        self,
        section: int,
        orientation: Qt.Orientation,
        role: int = Qt.ItemDataRole.DisplayRole,
    ) -> Any:
        is_name = role in (Qt.ItemDataRole.DisplayRole, Qt.ItemDataRole.ToolTipRole)
        if is_name and orientation == Qt.Orientation.Horizontal:
            return short_name(self._names[section])
        return None


class ObjectsPanel(QWidget):
    """Choice of a class and options; the objects become a layer, with their table.

    Parameters
    ----------
    folder
        Returns the folder for temporary files.
    """

    def __init__(
        self,
        viewer: ViewerModel,
        folder: Callable[[], Path],
        parent: QWidget | None = None,
    ) -> None:
        super().__init__(parent)
        self._folder = folder
        self._viewer = viewer
        self._labels: LabelImage | None = None
        self._image: Image | None = None
        self._mask_of: Callable[[LabelImage], LabelImage | None] = lambda _labels: None
        self.objects: Objects | None = None
        self._is_busy = False
        self._process: subprocess.Popen[str] | None = None
        self.of = QComboBox()
        self.of.setEditable(True)
        self.of.setToolTip("Name of the class, or its label value.")
        self.smallest = _number("Smaller objects are dropped.")
        self.split = _number(
            "Touching objects are cut if their centres are this far apart; 0: never."
        )
        self.fill_holes = QCheckBox("Fill holes inside objects")
        self.by_plane = QCheckBox("Treat every plane by itself")
        self.text = QLabel()
        self.text.setWordWrap(True)
        self.find_button = QPushButton("Find objects")
        self.save_button = QPushButton("Save table ...")
        self.save_button.setEnabled(False)
        self.distribution = Distribution()
        self.distribution.hide()
        self.table = ObjectTable()
        self.table.hide()
        form = QFormLayout()
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        form.addRow("Class", self.of)
        form.addRow("At least", self.smallest)
        form.addRow("Cut at distance", self.split)
        self.buttons = QHBoxLayout()
        for button in (self.find_button, self.save_button):
            self.buttons.addWidget(button)
        rows = QVBoxLayout(self)
        rows.setContentsMargins(0, 0, 0, 0)
        rows.addLayout(form)
        rows.addWidget(self.fill_holes)
        rows.addWidget(self.by_plane)
        rows.addLayout(self.buttons)
        for widget in (self.text, self.distribution, self.table):
            rows.addWidget(widget)
        self.find_button.clicked.connect(self.find_objects)
        self.save_button.clicked.connect(self._choose_file)
        self.table.chosen.connect(self._show_object)

    def set_source(
        self,
        labels: LabelImage | None,
        image: Image | None,
        mask_of: Callable[[LabelImage], LabelImage | None] = lambda _labels: None,
        why_not: str = "",
    ) -> None:
        """Set the labels with the objects, and the image for grey values, if any.

        Parameters
        ----------
        mask_of
            Returns the mask of the region with the objects, or None.
        why_not
            Reason why objects cannot be found there; empty if they can.
        """
        self._mask_of = mask_of
        before = self._labels.classes if self._labels is not None else None
        self._labels, self._image = labels, image
        if self._is_busy:
            return
        self.find_button.setEnabled(labels is not None and not why_not)
        self.find_button.setToolTip(why_not)
        if labels is None:
            self.text.setText("Choose the labels first.")
            return
        if labels.classes != before or not self.of.count():
            self.of.clear()
            self.of.addItems(labels.classes.names if labels.classes else ())
            self.of.setCurrentIndex(1 if self.of.count() > 1 else 0)
        unit = short_unit(labels.pixel_unit)
        power = "³" if labels.size("Z") > 1 else "²"
        self.smallest.setSuffix(f" {unit}{power}")
        self.split.setSuffix(f" {unit}")
        self.by_plane.setEnabled(labels.size("Z") > 1)
        if why_not:
            self.text.setText(why_not)
        elif self.objects is None:
            grey = "no image of this size is open" if image is None else image.name
            self.text.setText(f"Grey values: {grey}.")

    def options(self) -> ObjectOptions:
        """Return what is chosen."""
        return ObjectOptions(
            self.of.currentText().strip(),
            self.smallest.value(),
            self.fill_holes.isChecked(),
            self.split.value(),
            self.by_plane.isChecked(),
        )

    def find_objects(self) -> None:
        """Find and measure the objects in a thread, and add them as a layer."""
        labels, image, options = self._labels, self._image, self.options()
        if labels is None:
            return
        number = 1
        while (folder := self._folder() / str(number)).exists():
            number += 1  # a layer may still read the files of the last time
        mask = self._mask_of(labels)
        source = labels if mask is None else within(labels, mask, options.of)
        self._is_busy = True
        self.find_button.setEnabled(False)
        self.text.setText("Finding and measuring objects ...")

        def done(objects: Objects) -> None:
            self.objects = objects
            self._is_busy = False
            self.find_button.setEnabled(True)
            self.save_button.setEnabled(True)
            layer = self._add(objects, options, labels.name)
            count = len(set(objects.columns["id"]))
            self.text.setText(
                f"{format_count(count, 'object')} in the layer {layer.name};"
                " their sizes and shapes are the features of the layer."
            )
            self.distribution.show_columns(objects.columns)
            self.table.show_objects(objects.columns, layer)
            for widget in (self.distribution, self.table):
                widget.setVisible(bool(count))

        def keep(process: subprocess.Popen[str]) -> None:
            self._process = process

        def failed(error: Exception) -> None:
            self._is_busy = False
            self.find_button.setEnabled(True)
            self.text.setText(f"✗ {error}")

        threads.run(
            lambda: measure(source, image, options, folder, keep),
            done,
            failed,
            owner=self,
        )

    def stop(self) -> None:
        """End the command and leave the layer, when the viewer closes."""
        self.table.leave()
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def save_to(self, path: Path) -> None:
        """Write the table of the objects; the file dialog has asked for the path."""
        assert self.objects is not None
        try:
            shutil.copyfile(self.objects.table, path)
        except OSError as error:
            self.text.setText(f"✗ {error}")
        else:
            self.text.setText(f"Written to {path}.")

    def _add(self, objects: Objects, options: ObjectOptions, name: str) -> LabelsLayer:
        data, attributes, _ = labels_layer(objects.labels)
        of = options.of or "objects"
        attributes |= {
            "name": f"{of} of {name}",
            "features": features_of(objects.columns),
            "metadata": {PREDICTED: True, ERRORS: True},  # nothing to train on or score
        }
        layer = LabelsLayer(data, **attributes)
        add_quietly(self._viewer, layer)
        return layer

    def _show_object(self, row: int) -> None:
        """Move the slider to the plane of an object, and the camera to its middle."""
        if self.objects is None:
            return
        columns, labels = self.objects.columns, self.objects.labels
        dims, center = self._viewer.dims, list(self._viewer.scene.camera.center)
        for number, axis in enumerate(labels.axes, start=dims.ndim - len(labels.axes)):
            letter = axis.lower()
            value = None
            if letter in columns:
                value = columns[letter][row] * labels.scale[number - dims.ndim]
            names = [n for n in columns if n.startswith(f"centroid {letter} ")]
            if names:
                value = columns[names[0]][row]
            if value is None:
                continue
            if number in dims.displayed:
                place = len(center) - dims.ndisplay + dims.displayed.index(number)
                center[place] = value
            else:
                dims.set_point(number, value)
        self._viewer.scene.camera.center = tuple(center)

    def _choose_file(self) -> None:
        assert self._labels is not None
        name = f"{slug(self._labels.name)}-objects.csv"
        dialog = QFileDialog(self, "Save the table", str(Path.cwd() / name))
        dialog.setAcceptMode(QFileDialog.AcceptMode.AcceptSave)
        dialog.setNameFilter("Tables (*.csv)")
        # The dialog adds it, so that it can check whether the file exists.
        dialog.setDefaultSuffix("csv")
        dialog.selectFile(name)
        paths = dialog.selectedFiles() if dialog.exec() else []
        dialog.deleteLater()
        if paths:
            self.save_to(Path(paths[0]))


class ObjectsDialog(QDialog):
    """Dialog with the objects of one labels layer.

    Parameters
    ----------
    labels
        Labels with the objects, as they are when *Find objects* is pressed.
    image
        Image for grey values, if there is one.
    folder
        Folder for temporary files.
    """

    def __init__(
        self,
        parent: QWidget,
        viewer: ViewerModel,
        labels: LabelImage,
        image: Image | None,
        *,
        folder: Path,
    ) -> None:
        super().__init__(parent)
        self.setWindowTitle(f"Objects of {labels.name}")
        self.panel = ObjectsPanel(viewer, lambda: folder, self)
        self.panel.set_source(labels, image)
        self.close_button = QPushButton("Close")
        self.panel.buttons.addWidget(self.close_button)
        self.close_button.clicked.connect(self.close)
        QVBoxLayout(self).addWidget(self.panel)

    def stop(self) -> None:
        """End the command, when the viewer closes."""
        self.panel.stop()


def _number(tooltip: str) -> QDoubleSpinBox:
    box = QDoubleSpinBox()
    box.setRange(0, MAX_SIZE)
    box.setDecimals(4)
    box.setToolTip(tooltip)
    return box
