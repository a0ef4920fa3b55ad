"""Objects of a class, found and measured in a dialog."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from napari.components import ViewerModel
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QWidget

from napari_strata.core.classes import ClassMap
from napari_strata.core.image import Image, LabelImage
from napari_strata.widgets.measure.objects import (
    ObjectOptions,
    ObjectsDialog,
    features_of,
    within,
    words,
)

DATA = np.ones((2, 20, 20), np.uint8)
DATA[:, 2:5, 2:5] = 2
DATA[0, 10:16, 10:16] = 2
IMAGE = Image(
    np.full((2, 20, 20), 7, np.uint16), "ZYX", scale=(2, 1, 1), units=("um",) * 3
)
LABELS = IMAGE.labels_like(
    DATA, classes=ClassMap(names=("grain", "pore"), values=(1, 2)), name="rock"
)


def test_the_words_of_the_command() -> None:
    options = ObjectOptions("pore", smallest=2.5, fill_holes=True, split=4)
    assert words(Path("a.tif"), None, options, out=Path("o/x.tif")) == [
        *("objects", "a.tif", "--out", "o/x.tif", "--table", "o/objects.csv"),
        *("--overwrite", "--of", "pore", "--smallest", "2.5", "--split", "4"),
        "--fill-holes",
    ]
    options = ObjectOptions(by_plane=True)
    arguments = words(Path("a.tif"), Path("i.tif"), options, out=Path("x.tif"))
    assert arguments[-3:] == ["--image", "i.tif", "--by-plane"]


def test_the_table_becomes_features() -> None:
    columns = {"id": [2.0, 1.0, 2.0], "area": [20.0, 10.0, 25.0]}
    assert features_of(columns) == {"index": [1, 2], "area": [10.0, 20.0]}
    assert features_of({"id": []}) == {"index": []}


def test_only_objects_inside_a_mask_are_found() -> None:
    mask = np.zeros((20, 20), np.uint8)
    mask[:8] = 1
    flat = within(LABELS, LabelImage(mask, "YX"), "pore")
    expected = np.where(mask == 1, DATA, 1)
    np.testing.assert_array_equal(flat.data[...], expected)
    np.testing.assert_array_equal(flat.read({"Z": 1})[0], expected[1])
    deep = np.zeros((2, 20, 20), np.uint8)
    deep[0] = 1
    cut = within(LABELS, LabelImage(deep, "ZYX"), "2")
    np.testing.assert_array_equal(cut.read()[0], np.where(deep == 1, DATA, 1))
    grain = within(LABELS, LabelImage(deep, "ZYX"), "grain")
    assert (grain.read({"Z": 1}) == 2).all()


def test_the_dialog_adds_a_layer_and_saves_a_table(qtbot: Any, tmp_path: Path) -> None:
    viewer = ViewerModel()
    parent = QWidget()
    qtbot.addWidget(parent)
    dialog = ObjectsDialog(parent, viewer, LABELS, IMAGE, folder=tmp_path / "o").panel
    assert dialog.options() == ObjectOptions("pore")
    assert not dialog.save_button.isEnabled()
    qtbot.mouseClick(dialog.find_button, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: len(viewer.layers) == 1, timeout=60_000)
    (layer,) = viewer.layers
    assert layer.name == "pore of rock"
    assert set(np.unique(layer.data)) == {0, 1, 2}
    assert list(layer.features["volume (pixels)"]) == [18, 36]
    assert layer.scale == pytest.approx(IMAGE.scale)
    assert "2 objects" in dialog.text.text()
    table = dialog.table
    table.selectRow(1)
    assert layer.selected_label == 2
    layer.selected_label = 1
    assert table.currentIndex().row() == 0
    assert table.currentIndex().data() == "1"
    distribution = dialog.distribution
    assert distribution.column.currentText() == "equivalent diameter (um)"
    assert sum(distribution.figure.counts) == 2
    distribution.column.setCurrentText("volume (pixels)")
    assert distribution.summary.text() == (
        "2 objects: median 27, mean 27, 18 to 36. 2 at the border of the image may be"
        " cut."
    )
    dialog.save_to(tmp_path / "pores.csv")
    qtbot.waitUntil(lambda: "Written" in dialog.text.text(), timeout=60_000)
    with open(tmp_path / "pores.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 2
    dialog.of.setEditText("clay")
    qtbot.mouseClick(dialog.find_button, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: "✗" in dialog.text.text(), timeout=60_000)
    assert "clay" in dialog.text.text()
