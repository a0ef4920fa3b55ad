"""The class table with layers of a real viewer: display, storage, painting."""

from __future__ import annotations

import gc
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from napari import Viewer
from napari.layers import Labels
from napari.utils.colormaps import CyclicLabelColormap, DirectLabelColormap
from pytestqt.qtbot import QtBot
from qtpy.QtCore import QEvent, QPoint, Qt
from qtpy.QtGui import QColor
from qtpy.QtWidgets import QApplication, QColorDialog, QLineEdit

from napari_strata import plugin
from napari_strata.core.classes import ClassMap, default_colors
from napari_strata.core.image import LabelImage
from napari_strata.io import read_classes, write_labels
from napari_strata.plugin import METADATA
from napari_strata.widgets.layers import counts
from napari_strata.widgets.parts.class_rows import COLOR, NAME, PIXELS, USE, VALUE
from napari_strata.widgets.train.class_table import ClassTable

SHAPE = (4, 60, 50)


@pytest.fixture
def viewer(make_napari_viewer: Callable[..., Viewer]) -> Viewer:
    return make_napari_viewer()


@pytest.fixture
def table(viewer: Viewer, qtbot: QtBot) -> ClassTable:
    made = ClassTable()
    viewer.window.add_dock_widget(made, name="Train", area="right")
    return made


def settle(qtbot: QtBot, table: ClassTable) -> None:
    qtbot.wait(30)
    qtbot.waitUntil(lambda: not table._counter.busy, timeout=120_000)


def show(qtbot: QtBot, table: ClassTable, layer: Labels | None) -> None:
    table.set_labels(layer)
    settle(qtbot, table)


def texts(table: ClassTable, column: int) -> list[str]:
    return [
        table._rows.item(row, column).text() for row in range(table._rows.rowCount())
    ]


def click(qtbot: QtBot, table: ClassTable, row: int, column: int) -> None:
    place = table._rows.visualItemRect(table._rows.item(row, column))
    at = (
        place.center()
        if column != USE
        else QPoint(place.left() + 8, place.center().y())
    )
    qtbot.mouseClick(table._rows.viewport(), Qt.MouseButton.LeftButton, pos=at)


def edit(table: ClassTable, row: int) -> QLineEdit:
    QApplication.sendPostedEvents(
        None, QEvent.Type.DeferredDelete
    )  # the editor before this one
    table._rows.editItem(table._rows.item(row, NAME))
    editor = table._rows.findChild(QLineEdit)
    assert editor is not None
    return editor


def rename(qtbot: QtBot, table: ClassTable, row: int, name: str) -> None:
    editor = edit(table, row)
    editor.setText(name)
    qtbot.keyClick(editor, Qt.Key.Key_Return)
    qtbot.waitUntil(
        lambda: not table._rows.editing and not table._show_timer.isActive()
    )


def swatch(table: ClassTable, row: int) -> str:
    item = table._rows.item(row, COLOR)
    picture = item.icon().pixmap(table._rows.iconSize()).toImage()
    return picture.pixelColor(picture.width() // 2, picture.height() // 2).name(
        QColor.NameFormat.HexArgb
    )


def in_viewer(layer: Labels, value: int) -> str:
    rgba = np.round(255 * np.asarray(layer.colormap.map(value))).astype(int)
    return "#ff{:02x}{:02x}{:02x}".format(*rgba[:3])


def stored(layer: Labels) -> ClassMap:
    return ClassMap.model_validate(layer.metadata[METADATA])


def labelled(
    viewer: Viewer, *values: int, shape: tuple[int, ...] = SHAPE, **more: Any
) -> Labels:
    data = np.zeros(shape, np.uint8)
    for row, value in enumerate(values):
        data[..., 2 * row : 2 * row + 2, :10] = value
    return viewer.add_labels(data, **more)


def test_sample_is_shown_with_its_names_and_colours(
    viewer: Viewer, table: ClassTable, qtbot: QtBot
) -> None:
    viewer.open_sample("napari-strata", "sandstone")
    layer = viewer.layers[-1]
    metadata, colormap = dict(layer.metadata), layer.colormap
    show(qtbot, table, layer)
    assert texts(table, NAME) == ["pore", "clay", "quartz", "heavy mineral"]
    assert texts(table, VALUE) == ["1", "2", "3", "4"]
    assert texts(table, PIXELS) == [
        f"{int((layer.data == value).sum()):,}" for value in (1, 2, 3, 4)
    ]
    assert [swatch(table, row) for row in range(4)] == [
        in_viewer(layer, value) for value in (1, 2, 3, 4)
    ]
    assert table.problem() == ""
    found = table.classes()
    assert found is not None
    assert (found.names, found.colors) == (stored(layer).names, stored(layer).colors)
    assert found.unlabelled == (0,)
    assert layer.metadata == metadata, "looking at a layer has changed it"
    assert layer.colormap is colormap


def test_painting_adds_rows_and_counts(
    viewer: Viewer, table: ClassTable, qtbot: QtBot
) -> None:
    layer = viewer.add_labels(np.zeros(SHAPE, np.uint8))
    show(qtbot, table, layer)
    assert table.problem() == "No pixels are labelled yet: add a class, then paint."
    assert table.classes() is None
    qtbot.mouseClick(table._add, Qt.MouseButton.LeftButton)
    assert (layer.selected_label, layer.mode) == (1, "paint")
    assert "choose a class, then paint" in table.problem()
    layer.paint((1, 30, 30), 1)
    layer.paint((1, 10, 10), 7)
    qtbot.wait(15)  # long before it is counted: the row is there at once
    assert texts(table, VALUE) == ["1", "7"]
    settle(qtbot, table)
    assert table.counts() == {
        value: int((layer.data == value).sum()) for value in (0, 1, 7)
    }
    assert table.problem() == ""
    assert table._zero.note.text().startswith("0 is unlabelled: 9")
    assert [swatch(table, row) for row in range(2)] == [
        in_viewer(layer, 1),
        in_viewer(layer, 7),
    ]
    layer.undo()
    settle(qtbot, table)
    assert 7 not in table.counts()
    assert (
        table.problem()
        == "Only one class is labelled: paint some pixels of at least two, or choose that 0 means background."
    )


def test_clicking_a_row_selects_its_label_and_back(
    viewer: Viewer, table: ClassTable, qtbot: QtBot
) -> None:
    layer = labelled(viewer, 3, 5, 8)
    show(qtbot, table, layer)
    with qtbot.waitSignal(table.picked) as said:
        click(qtbot, table, 1, PIXELS)
    assert said.args == [layer]
    assert layer.selected_label == 5
    layer.selected_label = 8
    assert table._rows.current == 8
    layer.selected_label = 4
    assert table._rows.current is None
    qtbot.keyClick(table._rows, Qt.Key.Key_Down)
    assert layer.selected_label in (3, 5, 8)


def test_names_are_kept_with_the_layer(
    viewer: Viewer, table: ClassTable, qtbot: QtBot, tmp_path: Path
) -> None:
    first, second = labelled(viewer, 1, 2), labelled(viewer, 1, 2, 3)
    colormap = first.colormap
    show(qtbot, table, first)
    with qtbot.waitSignal(table.changed):
        rename(qtbot, table, 1, "clay")
    assert stored(first).names == ("class 1", "clay")
    assert first.colormap is colormap, "a new name is no reason for new colours"
    assert list(first.features["class"]) == ["unlabelled", "class 1", "clay"]
    show(qtbot, table, second)
    assert texts(table, NAME) == ["class 1", "class 2", "class 3"]
    show(qtbot, table, first)
    assert texts(table, NAME) == ["class 1", "clay"]
    data, given, _ = first.as_layer_data_tuple()
    [path] = plugin.write_labels(str(tmp_path / "a.tif"), data, given)
    classes = read_classes(path)
    assert classes is not None
    assert classes.names == ("class 1", "clay")
    [again] = viewer.open(path, plugin="napari-strata")
    show(qtbot, table, again)
    assert texts(table, NAME) == ["class 1", "clay"]
    assert [swatch(table, row) for row in range(2)] == [
        in_viewer(first, 1),
        in_viewer(first, 2),
    ]


@pytest.mark.parametrize("name", ["class 1", "", "   "])
def test_an_invalid_name_is_reset(
    viewer: Viewer, table: ClassTable, qtbot: QtBot, name: str
) -> None:
    show(qtbot, table, labelled(viewer, 1, 2))
    rename(qtbot, table, 1, name)
    assert texts(table, NAME) == ["class 1", "class 2"]
    assert ("another class" in table._status.text()) == bool(name.strip())


def test_a_row_does_not_move_while_its_name_is_edited(
    viewer: Viewer, table: ClassTable, qtbot: QtBot
) -> None:
    layer = labelled(viewer, 2, 3)
    show(qtbot, table, layer)
    editor = edit(table, 0)
    editor.setText("quartz")
    layer.paint((1, 50, 30), 1)  # its row comes before the one that is edited
    settle(qtbot, table)
    assert editor.text() == "quartz"
    assert texts(table, VALUE) == ["2", "3"]
    qtbot.keyClick(editor, Qt.Key.Key_Return)
    qtbot.waitUntil(lambda: texts(table, VALUE) == ["1", "2", "3"])
    assert texts(table, NAME) == ["class 1", "quartz", "class 3"]


def test_an_edited_name_is_kept_when_the_layer_changes(
    viewer: Viewer, table: ClassTable, qtbot: QtBot
) -> None:
    first, second = labelled(viewer, 1, 2), labelled(viewer, 1, 2)
    show(qtbot, table, first)
    editor = edit(table, 0)
    editor.setText("pore")
    show(qtbot, table, second)
    assert texts(table, NAME) == ["class 1", "class 2"]
    assert stored(first).names == ("pore", "class 2")
    assert METADATA not in second.metadata


def test_colours_are_stored_in_the_layer(
    viewer: Viewer, table: ClassTable, qtbot: QtBot
) -> None:
    layer = labelled(viewer, 1, 2)
    assert isinstance(layer.colormap, CyclicLabelColormap)
    other = in_viewer(layer, 2)
    show(qtbot, table, layer)
    click(qtbot, table, 0, COLOR)
    dialog = table.findChild(QColorDialog)
    assert dialog is not None
    dialog.setCurrentColor(QColor("#12ab34"))
    dialog.accept()
    QApplication.processEvents()
    assert [in_viewer(layer, 1), in_viewer(layer, 2)] == ["#ff12ab34", other]
    assert [swatch(table, 0), swatch(table, 1)] == ["#ff12ab34", other]
    assert "#ff" + stored(layer).colors[0][1:] == "#ff12ab34"
    layer.selected_label = (
        9  # as napari's own spin box does: it must not paint invisibly
    )
    assert layer.colormap.map(9)[3] == 1
    layer.paint((1, 50, 30), 9)
    layer.data_setitem((np.array([0]), np.array([50]), np.array([2])), 11)
    qtbot.wait(20)
    assert [layer.colormap.map(value)[3] for value in (9, 11)] == [1, 1]
    settle(qtbot, table)
    shown = [swatch(table, row) for row in range(4)]
    assert shown == [in_viewer(layer, value) for value in (1, 2, 9, 11)]
    assert len(set(shown)) == 4
    assert np.allclose(layer.colormap.map(0), 0)


def test_shuffled_colours_are_followed(
    viewer: Viewer, table: ClassTable, qtbot: QtBot
) -> None:
    layer = labelled(viewer, 1, 2)
    show(qtbot, table, layer)
    rename(qtbot, table, 0, "pore")
    layer.new_colormap(seed=3)
    settle(qtbot, table)
    assert [swatch(table, row) for row in range(2)] == [
        in_viewer(layer, 1),
        in_viewer(layer, 2),
    ]
    assert ["#ff" + color[1:] for color in stored(layer).colors] == [
        in_viewer(layer, 1),
        in_viewer(layer, 2),
    ]
    layer.show_selected_label = True
    layer.selected_label = 1
    settle(qtbot, table)
    assert "#ff" + stored(layer).colors[1][1:] == swatch(table, 1)


def test_unused_values_are_unlabelled(
    viewer: Viewer, table: ClassTable, qtbot: QtBot
) -> None:
    layer = labelled(viewer, 1, 2, 3)
    show(qtbot, table, layer)
    rename(qtbot, table, 1, "artefact")
    click(qtbot, table, 1, USE)
    found = table.classes()
    assert found is not None
    assert (found.values, found.unlabelled) == ((1, 3), (0, 2))
    assert stored(layer) == found
    found.encode(layer.data)  # every value has a meaning
    show(qtbot, table, None)
    show(qtbot, table, layer)
    assert texts(table, NAME)[1] == "artefact"
    assert table._rows.item(1, USE).checkState() == Qt.CheckState.Unchecked
    click(qtbot, table, 0, USE)
    assert "check Use" in table.problem()
    click(qtbot, table, 2, USE)
    assert table.classes() is None
    assert METADATA not in layer.metadata
    for row in range(3):
        click(qtbot, table, row, USE)
    assert stored(layer).names == ("class 1", "artefact", "class 3")


def test_changing_the_meaning_of_0_changes_no_pixel(
    viewer: Viewer, table: ClassTable, qtbot: QtBot
) -> None:
    layer = labelled(viewer, 1, 2)
    before = layer.data.copy()
    show(qtbot, table, layer)
    rename(qtbot, table, 0, "pore")
    click(qtbot, table, 1, USE)
    qtbot.mouseClick(table._zero.background, Qt.MouseButton.LeftButton)
    assert texts(table, VALUE) == ["0", "1", "2"]
    rename(qtbot, table, 0, "air")
    found = table.classes()
    assert found is not None
    assert (found.names, found.values, found.unlabelled) == (
        ("air", "pore"),
        (0, 1),
        (2,),
    )
    assert table._zero.note.text() == "0 is background: 99 % of the pixels"
    qtbot.mouseClick(table._zero.unlabelled, Qt.MouseButton.LeftButton)
    found = table.classes()
    assert found is not None
    assert (found.names, found.unlabelled) == (("pore",), (0, 2))
    qtbot.mouseClick(table._zero.background, Qt.MouseButton.LeftButton)
    assert texts(table, NAME) == ["air", "pore", "class 2"]
    assert table._rows.item(2, USE).checkState() == Qt.CheckState.Unchecked
    show(qtbot, table, None)
    show(qtbot, table, layer)
    assert table._zero.background.isChecked()
    assert texts(table, NAME) == ["air", "pore", "class 2"]
    click(qtbot, table, 0, USE)  # not to use the background is to call it unlabelled
    assert table._zero.unlabelled.isChecked()
    np.testing.assert_array_equal(layer.data, before)


def _scribbles() -> np.ndarray[Any, Any]:
    data = np.zeros(SHAPE, np.uint8)
    data[1, 5, :9], data[1, 9, :9] = 1, 2
    return data


def _phases() -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 4, SHAPE).astype(np.uint8)


def _nuclei() -> np.ndarray[Any, Any]:
    data = np.zeros(SHAPE, np.uint8)
    data[1:3, 5:20, 5:20] = 255
    return data


@pytest.mark.parametrize(
    ("data", "from_file", "background"),
    [
        (_phases(), True, True),
        (_nuclei(), True, True),
        (_scribbles(), True, False),
        (_phases(), False, False),
        (_scribbles(), False, False),
        (_scribbles()[1], True, True),
        (np.zeros(SHAPE, np.uint8), True, False),
    ],
    ids=[
        "phases",
        "nuclei",
        "scribbles",
        "phases by hand",
        "scribbles by hand",
        "one slice",
        "empty",
    ],
)
def test_the_default_meaning_of_0(
    viewer: Viewer,
    table: ClassTable,
    qtbot: QtBot,
    tmp_path: Path,
    data: np.ndarray[Any, Any],
    from_file: bool,
    background: bool,
) -> None:
    if from_file:
        tifffile.imwrite(tmp_path / "labels.tif", data, photometric="minisblack")
        [layer] = viewer.open(
            tmp_path / "labels.tif", plugin="napari", layer_type="labels"
        )
    else:
        layer = viewer.add_labels(data)
    show(qtbot, table, layer)
    assert table._zero.background.isChecked() == background
    assert table._zero.note.text().startswith(
        "0 is background" if background else "0 is unlabelled"
    )
    layer.paint((0, 30, 30)[-layer.ndim :], 3)  # one stroke must not turn it over
    settle(qtbot, table)
    show(qtbot, table, None)
    show(qtbot, table, layer)
    assert table._zero.background.isChecked() == background


def test_written_files_determine_the_meaning_of_0(
    viewer: Viewer, table: ClassTable, qtbot: QtBot, tmp_path: Path
) -> None:
    classes = ClassMap(
        names=("rock", "ore"),
        values=(0, 6),
        colors=("#102030", "#aabbcc"),
        unlabelled=(9,),
    )
    data = np.random.default_rng(1).choice([0, 6, 9], SHAPE).astype(np.uint8)
    write_labels(tmp_path / "a.tif", LabelImage(data, "ZYX", classes=classes))
    [layer] = viewer.open(tmp_path / "a.tif", plugin="napari-strata")
    show(qtbot, table, layer)
    assert texts(table, NAME) == ["rock", "ore", "class 9"]
    assert table.classes() == classes
    assert [swatch(table, 0), swatch(table, 1)] == ["#ff102030", "#ffaabbcc"]
    assert layer.colormap.map(9)[3] == 0
    click(qtbot, table, 2, USE)
    assert layer.colormap.map(9)[3] == 1, "a class that is used must be seen"
    assert stored(layer).values == (0, 6, 9)


def test_object_ids_become_one_class(
    viewer: Viewer, table: ClassTable, qtbot: QtBot
) -> None:
    ids = np.arange(100 * 50).reshape(50, 100) // 50
    layer = viewer.add_labels(ids)
    show(qtbot, table, layer)
    assert (
        table._many.text()
        == "99 label values: these look like object ids, not classes."
    )
    assert "object ids" in table.problem()
    assert table.classes() is None
    assert not table._add.isEnabled()
    qtbot.mouseClick(
        table._objects,
        Qt.MouseButton.LeftButton,
        pos=QPoint(8, table._objects.height() // 2),
    )
    found = table.classes()
    assert found is not None
    assert (found.names, found.values, found.rest) == (
        ("background", "objects"),
        (0, 1),
        "objects",
    )
    assert texts(table, PIXELS) == ["50", "4,950"]
    assert table.problem() == ""
    np.testing.assert_array_equal(found.encode(ids), (ids > 0).astype(np.uint8))
    table._set_color(1, "#ff0000")
    assert {in_viewer(layer, value) for value in (1, 2, 99)} == {"#ffff0000"}
    qtbot.mouseClick(table._zero.unlabelled, Qt.MouseButton.LeftButton)
    found = table.classes()
    assert found is not None
    assert (found.names, found.unlabelled) == (("objects",), (0,))
    qtbot.mouseClick(
        table._objects,
        Qt.MouseButton.LeftButton,
        pos=QPoint(8, table._objects.height() // 2),
    )
    assert table.classes() is None


def test_only_classes_without_pixels_can_be_removed(
    viewer: Viewer, table: ClassTable, qtbot: QtBot
) -> None:
    layer = labelled(viewer, 1, 2)
    show(qtbot, table, layer)
    click(qtbot, table, 0, VALUE)
    assert not table._remove.isEnabled()
    assert "erase them first" in table._remove.toolTip()
    qtbot.mouseClick(table._add, Qt.MouseButton.LeftButton)
    assert texts(table, NAME) == ["class 1", "class 2", "class 3"]
    assert stored(layer).values == (1, 2, 3)
    settle(qtbot, table)
    assert table._rows.current == 3
    assert table._remove.isEnabled()
    qtbot.mouseClick(table._remove, Qt.MouseButton.LeftButton)
    assert texts(table, NAME) == ["class 1", "class 2"]
    assert stored(layer).values == (1, 2)


def test_values_outside_the_dtype_are_reported(
    viewer: Viewer, table: ClassTable, qtbot: QtBot
) -> None:
    classes = ClassMap(names=("a", "b"), values=(1, 300))
    layer = labelled(viewer, 1, metadata={METADATA: classes.model_dump(mode="json")})
    show(qtbot, table, layer)
    click(qtbot, table, 1, VALUE)
    assert "300 does not fit into this layer (uint8)" in table._status.text()


def test_a_class_map_follows_what_is_painted(
    viewer: Viewer, table: ClassTable, qtbot: QtBot
) -> None:
    layer = viewer.add_labels(np.zeros(SHAPE, np.int64))
    show(qtbot, table, layer)
    qtbot.mouseClick(table._add, Qt.MouseButton.LeftButton)
    layer.paint((1, 30, 30), 1)
    layer.paint((1, 10, 10), 2**40)
    settle(qtbot, table)
    assert stored(layer).values == (1, 2**40)
    stored(layer).encode(layer.data)  # what is saved now has no value without a meaning
    click(qtbot, table, 1, NAME)
    assert layer.selected_label == 2**40


def test_many_named_classes_are_not_objects(
    viewer: Viewer, table: ClassTable, qtbot: QtBot
) -> None:
    values = tuple(range(1, 101))
    classes = ClassMap(names=tuple(f"organ {value}" for value in values), values=values)
    metadata = {METADATA: classes.model_dump(mode="json")}
    layer = labelled(viewer, *values, shape=(1, 210, 20), metadata=metadata)
    show(qtbot, table, layer)
    assert texts(table, NAME) == list(classes.names)
    assert table._objects.isHidden()
    assert stored(layer) == classes


def test_large_labels_are_counted_on_demand(
    viewer: Viewer, table: ClassTable, qtbot: QtBot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counts, "LARGE_BYTES", 1000)
    show(qtbot, table, labelled(viewer, 1, 2))
    assert table.counts() == {}
    assert "press Count" in table.problem()
    table._status.linkActivated.emit("count")
    settle(qtbot, table)
    assert texts(table, PIXELS) == ["80", "80"]
    assert table._status.isHidden()


def test_features_of_other_plugins_are_unchanged(
    viewer: Viewer, table: ClassTable, qtbot: QtBot
) -> None:
    layer = labelled(
        viewer, 1, 2, features={"index": [1, 2], "area": [10, 20]}, metadata={"mine": 1}
    )
    show(qtbot, table, layer)
    rename(qtbot, table, 0, "pore")
    assert list(layer.features.columns) == ["index", "area"]
    assert layer.metadata["mine"] == 1


def test_an_image_that_was_converted_to_labels(
    viewer: Viewer, table: ClassTable, qtbot: QtBot
) -> None:
    layer = labelled(
        viewer,
        1,
        2,
        metadata={
            METADATA: {"path": "/a.tif", "series": 0, "axes": "ZYX", "channel": None}
        },
    )
    show(qtbot, table, layer)
    assert texts(table, NAME) == ["class 1", "class 2"]
    layer.new_colormap()
    rename(qtbot, table, 0, "pore")
    assert stored(layer).names == ("pore", "class 2")


def test_a_deleted_layer_is_released(
    viewer: Viewer, table: ClassTable, qtbot: QtBot
) -> None:
    layer = labelled(viewer, 1, 2)
    slots = {
        name: len(emitter.callbacks) for name, emitter in layer.events.emitters.items()
    }
    show(qtbot, table, layer)
    rename(qtbot, table, 0, "pore")
    other = labelled(viewer, 4)
    show(qtbot, table, other)
    assert {
        name: len(emitter.callbacks) for name, emitter in layer.events.emitters.items()
    } == slots
    show(qtbot, table, layer)
    viewer.layers.remove(layer)
    table.set_labels(None)
    assert table._rows.rowCount() == 0
    assert table.classes() is None
    assert "choose a labels layer" in table.problem()
    assert not table._add.isEnabled()
    gone = weakref.ref(layer)
    del layer
    viewer.layers.clear()
    del other

    def is_released() -> bool:
        gc.collect()
        return gone() is None

    # With PySide6, napari's controls keep the layer until Qt deletes them.
    qtbot.waitUntil(is_released)


def test_a_closed_table_gets_no_events(viewer: Viewer, qtbot: QtBot) -> None:
    layer = labelled(viewer, 1, 2)
    slots = {
        name: len(emitter.callbacks) for name, emitter in layer.events.emitters.items()
    }
    closed = ClassTable()
    closed.set_labels(layer)  # a count goes on while it is closed
    closed.deleteLater()
    QApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete)
    assert {
        name: len(emitter.callbacks) for name, emitter in layer.events.emitters.items()
    } == slots
    QApplication.processEvents()
    layer.paint((1, 30, 30), 5)
    layer.selected_label = 7
    layer.new_colormap()
    qtbot.wait(50)


def test_painting_does_not_block_the_main_thread(
    viewer: Viewer, table: ClassTable, qtbot: QtBot
) -> None:
    layer = viewer.add_labels(np.zeros((20, 400, 400), np.uint8))
    layer.brush_size = 20

    def strokes() -> float:
        best = []
        for row in range(20, 380, 9):
            start = (
                time.thread_time()
            )  # of this thread alone, however busy the machine is
            layer.paint((3, row, 100), 1 + row % 2)
            best.append(time.thread_time() - start)
        return float(np.median(best))

    alone = strokes()
    show(qtbot, table, layer)
    layer.data[:] = 0
    assert strokes() < 1.5 * alone + 0.002


def test_it_shows_four_to_six_rows(
    viewer: Viewer, table: ClassTable, qtbot: QtBot
) -> None:
    heights = []
    for count in (0, 4, 5, 6, 30):
        show(qtbot, table, labelled(viewer, *range(1, count + 1), shape=(2, 80, 20)))
        heights.append(table._rows.sizeHint().height())
    assert heights[0] == heights[1] < heights[2] < heights[3] == heights[4]
    assert table.minimumSizeHint().width() <= 280


def test_colours_of_64_rows_are_set_quickly(
    viewer: Viewer, table: ClassTable, qtbot: QtBot
) -> None:
    colors: dict[int | None, Any] = {
        None: "transparent",
        0: "transparent",
        1: "#ff0000",
    }
    layer = labelled(viewer, *range(1, 65), shape=(1, 130, 20))
    layer.colormap = DirectLabelColormap(color_dict=colors)
    show(qtbot, table, layer)
    shown = [swatch(table, row) for row in range(64)]
    assert shown == [in_viewer(layer, value) for value in range(1, 65)]
    assert len(set(shown)) == 64
    assert shown[0] == "#ffff0000"


def test_new_labels_have_the_named_classes_in_colours_that_differ(
    viewer: Viewer, table: ClassTable, qtbot: QtBot
) -> None:
    layer = viewer.add_labels(np.zeros(SHAPE, np.uint8))
    table.name_classes(layer, ("pore", "clay", "quartz"))
    settle(qtbot, table)
    assert texts(table, NAME) == ["pore", "clay", "quartz"]
    assert layer.selected_label == 1
    classes = table.classes()
    assert classes is not None
    assert classes.colors == default_colors(3)
    assert classes.unlabelled == (0,)
    shown = [QColor.fromRgbF(*layer.get_color(value)[:3]).name() for value in (1, 2, 3)]
    assert shown == list(classes.colors)
