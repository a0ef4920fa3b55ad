"""Dialog that numbers and measures the objects of one class of a labels layer."""

from __future__ import annotations

import csv
import math
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from napari.components import ViewerModel
from napari.layers import Labels as LabelsLayer
from qtpy.QtWidgets import (
    QCheckBox,
    QComboBox,
    QDialog,
    QDoubleSpinBox,
    QFileDialog,
    QFormLayout,
    QHBoxLayout,
    QLabel,
    QPushButton,
    QVBoxLayout,
    QWidget,
)

from napari_strata.core.errors import RunError
from napari_strata.core.image import Image, LabelImage
from napari_strata.core.text import format_count
from napari_strata.io import read_labels, write_image, write_labels
from napari_strata.plugin import labels_layer
from napari_strata.widgets.layers.convert import slug
from napari_strata.widgets.layers.live import ERRORS, PREDICTED, add_quietly
from napari_strata.widgets.work import threads

MAX_SIZE = 1e12
TABLE = "objects.csv"


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
        self.column.currentTextChanged.connect(self._show)

    def show_columns(self, columns: Mapping[str, Sequence[float]]) -> None:
        """Show a column of a table; the one chosen before, if there is one."""
        chosen = self.column.currentText()
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
        self.column.addItems(names)
        self.column.setCurrentText(chosen)
        self.column.blockSignals(False)
        self._show(self.column.currentText())

    def _show(self, name: str) -> None:
        values = [v for v in self._columns.get(name, ()) if math.isfinite(v)]
        self.figure.show_histogram(values, x_title=name)
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


class ObjectsDialog(QDialog):
    """Dialog to choose a class and options; the objects become a layer.

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
        self._folder = folder
        self.setWindowTitle(f"Objects of {labels.name}")
        self._viewer, self._labels, self._image = viewer, labels, image
        self.objects: Objects | None = None
        self._process: subprocess.Popen[str] | None = None
        unit = labels.pixel_unit
        self.of = QComboBox()
        self.of.setEditable(True)
        self.of.addItems(labels.classes.names if labels.classes else ())
        self.of.setCurrentIndex(1 if self.of.count() > 1 else 0)
        self.of.setToolTip("Name of the class, or its label value.")
        power = "³" if labels.size("Z") > 1 else "²"
        self.smallest = _number(f" {unit}{power}", "Smaller objects are dropped.")
        self.split = _number(
            f" {unit}",
            "Touching objects are cut if their centres are this far apart; 0: never.",
        )
        self.fill_holes = QCheckBox("Fill holes inside objects")
        self.by_plane = QCheckBox("Treat every plane by itself")
        self.by_plane.setEnabled(labels.size("Z") > 1)
        grey = "no image of this size is open" if image is None else image.name
        self.text = QLabel(f"Grey values: {grey}.")
        self.text.setWordWrap(True)
        self.find_button = QPushButton("Find objects")
        self.save_button = QPushButton("Save table ...")
        self.save_button.setEnabled(False)
        self.close_button = QPushButton("Close")
        form = QFormLayout()
        self.distribution = Distribution()
        self.distribution.hide()
        form.addRow("Class", self.of)
        form.addRow("At least", self.smallest)
        form.addRow("Cut at distance", self.split)
        buttons = QHBoxLayout()
        for button in (self.find_button, self.save_button, self.close_button):
            buttons.addWidget(button)
        rows = QVBoxLayout(self)
        rows.addLayout(form)
        for widget in (self.fill_holes, self.by_plane, self.text, self.distribution):
            rows.addWidget(widget)
        rows.addLayout(buttons)
        self.find_button.clicked.connect(self.find_objects)
        self.save_button.clicked.connect(self._choose_file)
        self.close_button.clicked.connect(self.close)

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
        number = 1
        while (folder := self._folder / str(number)).exists():
            number += 1  # a layer may still read the files of the last time
        self.find_button.setEnabled(False)
        self.text.setText("Finding and measuring objects ...")

        def done(objects: Objects) -> None:
            self.objects = objects
            self.find_button.setEnabled(True)
            self.save_button.setEnabled(True)
            layer = self._add(objects, options)
            count = len(set(objects.columns["id"]))
            self.text.setText(
                f"{format_count(count, 'object')} in the layer {layer.name};"
                " their sizes and shapes are the features of the layer."
            )
            self.distribution.show_columns(objects.columns)
            self.distribution.setVisible(bool(count))

        def keep(process: subprocess.Popen[str]) -> None:
            self._process = process

        def failed(error: Exception) -> None:
            self.find_button.setEnabled(True)
            self.text.setText(f"✗ {error}")

        threads.run(
            lambda: measure(labels, image, options, folder, keep),
            done,
            failed,
            owner=self,
        )

    def stop(self) -> None:
        """End the command, when the viewer closes."""
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

    def _add(self, objects: Objects, options: ObjectOptions) -> LabelsLayer:
        data, attributes, _ = labels_layer(objects.labels)
        of = options.of or "objects"
        attributes |= {
            "name": f"{of} of {self._labels.name}",
            "features": features_of(objects.columns),
            "metadata": {PREDICTED: True, ERRORS: True},  # nothing to train on or score
        }
        layer = LabelsLayer(data, **attributes)
        add_quietly(self._viewer, layer)
        return layer

    def _choose_file(self) -> None:
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


def _number(suffix: str, tooltip: str) -> QDoubleSpinBox:
    box = QDoubleSpinBox()
    box.setRange(0, MAX_SIZE)
    box.setDecimals(6)
    box.setSuffix(suffix)
    box.setToolTip(tooltip)
    return box
