"""Pauses of the window: what waits, and that nothing is lost by waiting."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from napari.layers import Labels as LabelsLayer
from qtpy.QtCore import QObject
from qtpy.QtWidgets import QFileDialog

from napari_strata.core.image import Image
from napari_strata.widgets.layers.live import LiveLabels
from napari_strata.widgets.train.data_box import FILES, DataBox
from napari_strata.worker.protocol import TargetOpened


@pytest.fixture
def target(tmp_path: Any) -> TargetOpened:
    array = np.lib.format.open_memmap(
        tmp_path / "a.npy", mode="w+", dtype=np.uint8, shape=(3, 20, 30)
    )
    array[1] = 1
    array.flush()
    classes = [
        {"name": "background", "value": 0, "color": "#000000"},
        {"name": "pore", "value": 1, "color": "#ff0000"},
    ]
    return TargetOpened(
        path=str(tmp_path / "a.npy"),
        axes="ZYX",
        shape=(3, 20, 30),
        dtype="uint8",
        classes=tuple(classes),
    )


def test_a_layer_is_made_then_added_then_drawn(
    make_napari_viewer: Any, qtbot: Any, target: TargetOpened
) -> None:
    viewer = make_napari_viewer()
    image = Image(np.zeros((3, 20, 30), np.uint8), axes="ZYX")
    under = viewer.add_image(image.data)
    owner = QObject()
    live = LiveLabels(viewer, owner)
    layer = live.open(target, image, under, name="segmented")
    assert layer not in viewer.layers, "it is added by the next turn of the loop"
    qtbot.waitUntil(lambda: layer in viewer.layers)
    assert viewer.layers.selection.active is under
    window = viewer.window._qt_window
    qtbot.waitUntil(window.updatesEnabled)
    assert not any(
        layer._overlays[name].visible for name in ("polygon", "brush_stroke")
    )
    live.finish()
    qtbot.waitUntil(lambda: layer.editable)
    assert all(layer._overlays[name].visible for name in ("polygon", "brush_stroke"))
    assert np.array_equal(layer.data[1], np.ones((20, 30)))


def test_a_layer_can_be_added_at_once_and_is_added_once(
    make_napari_viewer: Any, qtbot: Any, target: TargetOpened
) -> None:
    viewer = make_napari_viewer()
    owner = QObject()
    live = LiveLabels(viewer, owner)
    layer = live.open(
        target,
        Image(np.zeros((3, 20, 30), np.uint8), axes="ZYX"),
        None,
        name="segmented",
    )
    live.place()
    assert list(viewer.layers) == [layer]
    assert not viewer.window._qt_window.updatesEnabled(), "drawn by the next turn"
    qtbot.wait(60)
    assert [type(each) for each in viewer.layers] == [LabelsLayer]


def test_the_window_is_drawn_again_though_the_prediction_is_gone(
    make_napari_viewer: Any, qtbot: Any, target: TargetOpened
) -> None:
    viewer = make_napari_viewer()
    owner = QObject()
    live = LiveLabels(viewer, owner)
    live.open(
        target,
        Image(np.zeros((3, 20, 30), np.uint8), axes="ZYX"),
        None,
        name="segmented",
    )
    live.place()
    with qtbot.waitSignal(live.destroyed):
        owner.deleteLater()
    qtbot.waitUntil(viewer.window._qt_window.updatesEnabled)


def test_nothing_is_added_to_a_viewer_that_goes(
    make_napari_viewer: Any, qtbot: Any, target: TargetOpened
) -> None:
    viewer = make_napari_viewer()
    owner = QObject()
    live = LiveLabels(viewer, owner)
    live.open(
        target,
        Image(np.zeros((3, 20, 30), np.uint8), axes="ZYX"),
        None,
        name="segmented",
    )
    live.leave()
    qtbot.wait(60)
    assert not viewer.layers


def test_a_folder_is_chosen_by_a_button(
    make_napari_viewer: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    viewer = make_napari_viewer()
    box = DataBox(viewer)
    box.source.value = FILES
    monkeypatch.setattr(QFileDialog, "getExistingDirectory", lambda *_: str(tmp_path))
    box.folders.images_folder.native.click()
    assert box.folders.data().images == str(tmp_path)
    monkeypatch.setattr(QFileDialog, "getExistingDirectory", lambda *_: "")
    box.folders.images_folder.native.click()
    assert box.folders.data().images == str(tmp_path), (
        "a cancelled choice changes nothing"
    )
    box.leave()
    box.deleteLater()
