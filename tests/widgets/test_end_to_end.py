"""All steps by clicks: open the sample, train, predict, save, reopen; and failures on the way."""

from __future__ import annotations

import json
import os
import random
import signal
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from napari._qt.widgets.qt_progress_bar import QtLabeledProgressBar
from napari.settings import get_plugin_settings
from qtpy.QtCore import Qt

from napari_strata.core.events import LabelsUpdated
from napari_strata.core.image import Image, LabelImage
from napari_strata.core.runs import RunFolder
from napari_strata.io import read_labels, write_image, write_labels
from napari_strata.widgets.layers.live import PREDICTED
from napari_strata.widgets.train.data_box import FILES
from napari_strata.widgets.train.dock import TrainDock

TINY = {
    "network.kind": "unet",
    "network.widths": [4, 8],
    "patches.size": 32,
    "patches.per_epoch": 16,
    "training.batch_size": 4,
    "training.epochs": 2,
    "training.averaging": None,
    "training.recalibration": 8,
}
LONG = {**TINY, "training.epochs": 100_000}
PATIENCE = 120_000


@pytest.fixture
def dock(make_napari_viewer: Any, qtbot: Any, tmp_path: Path) -> Iterator[TrainDock]:
    """A filled Train dock with the sandstone sample."""
    work = get_plugin_settings("napari-strata").work
    before, work.runs = work.runs, str(tmp_path / "runs")
    viewer = make_napari_viewer(show=True)
    viewer.open_sample("napari-strata", "sandstone")
    image, labels = viewer.layers
    labels.data[[0, 2, 3, 5, 7]] = 0  # three painted slices
    labels.refresh()
    viewer.layers.selection = {image}
    _, found = viewer.window.add_plugin_dock_widget("napari-strata", "Train")
    found.then_box.value = False
    found.recipe_box.set_recipe("default", TINY)
    _wait_enabled(found.start_button, qtbot)
    yield weakref.proxy(
        found
    )  # pytest keeps what is given to a test until napari has looked for leaks
    process = found.session.client._process
    viewer.close()
    del found, viewer, image, labels, _
    qtbot.waitUntil(
        lambda: process is None or process.status is not None, timeout=PATIENCE
    )
    work.runs = before


def _wait_enabled(button: Any, qtbot: Any) -> None:
    qtbot.waitUntil(lambda: bool(button.enabled), timeout=PATIENCE)


def _click(button: Any) -> None:
    assert button.enabled, button.tooltip
    button.native.click()


def _train(dock: TrainDock, qtbot: Any) -> None:
    _click(dock.start_button)
    qtbot.waitUntil(lambda: dock.handle is not None, timeout=PATIENCE)
    qtbot.waitUntil(lambda: dock.handle is None, timeout=PATIENCE)


def _begin(dock: TrainDock, qtbot: Any, *, epochs: int = 1) -> None:
    """Start an endless training, and wait for its first epochs."""
    dock.recipe_box.set_recipe("default", LONG)
    _click(dock.start_button)
    qtbot.waitUntil(lambda: len(dock.panel.curves.epochs) >= epochs, timeout=PATIENCE)


def _segmented(dock: TrainDock) -> list[Any]:
    return [
        one
        for one in dock.viewer.layers
        if one.metadata.get(PREDICTED) and "preview" not in one.name
    ]


def test_from_the_sample_to_a_saved_prediction(
    dock: TrainDock, qtbot: Any, tmp_path: Path
) -> None:
    viewer = dock.viewer
    image = viewer.layers[0]
    qtbot.waitUntil(
        lambda: "Validation" in dock.plan_summary.text.text(), timeout=PATIENCE
    )
    assert "B of memory" in dock.plan_summary.text.text()
    dock.then_box.value = True
    _train(dock, qtbot)
    assert dock.notice.level == "info", dock.notice.text()
    assert "Training finished" in dock.notice.text()
    assert len(dock.panel.curves.epochs) == 2
    qtbot.waitUntil(lambda: bool(_segmented(dock)), timeout=PATIENCE)
    predict = next(
        widget
        for name, widget in viewer.window.dock_widgets.items()
        if "Predict" in name
    )
    qtbot.waitUntil(lambda: predict.prediction is None, timeout=PATIENCE)
    (layer,) = _segmented(dock)
    assert layer.data.shape == image.data.shape
    assert set(np.unique(layer.data)) <= {1, 2, 3, 4}
    assert tuple(layer.scale) == tuple(image.scale)
    saved = layer.save(str(tmp_path / "out.ome.tif"), plugin="napari-strata")
    (again,) = viewer.open(saved, plugin="napari-strata")
    np.testing.assert_array_equal(np.asarray(again.data), np.asarray(layer.data))
    assert tuple(again.scale) == tuple(image.scale)
    assert again.axis_labels == image.axis_labels
    assert list(again.features["class"])[1:] == [
        "pore",
        "clay",
        "quartz",
        "heavy mineral",
    ]


def test_stop_keeps_the_model_and_resume_continues(dock: TrainDock, qtbot: Any) -> None:
    _begin(dock, qtbot, epochs=2)
    run = dock.run
    _click(dock.stop_button)
    qtbot.waitUntil(lambda: dock.handle is None, timeout=120_000)
    assert "Stopped" in dock.notice.text()
    assert run is not None
    assert (run / "model.safetensors").is_file()
    assert dock.session.latest_model == run
    done = len(dock.panel.curves.epochs)
    _click(dock.runs.resume_button)
    qtbot.waitUntil(lambda: len(dock.panel.curves.epochs) > done, timeout=PATIENCE)
    assert dock.run == run
    assert [event.epoch for event in dock.panel.curves.epochs][: done + 1] == list(
        range(1, done + 2)
    )
    dock.stop()
    qtbot.waitUntil(lambda: dock.handle is None, timeout=120_000)


def test_strokes_painted_during_a_training_are_used(
    dock: TrainDock, qtbot: Any
) -> None:
    labels = dock.viewer.layers[1]
    _begin(dock, qtbot)
    folder = RunFolder(dock.run)
    (held,) = folder.data()["validation"]
    # Planes beside the one that is held back are left out.
    plane = next(z for z in (0, 7) if abs(z - held["index"]["Z"]) > 1)
    dock.viewer.dims.set_current_step(0, plane)

    def says(words: str) -> bool:
        return words in dock.panel.labels_text.text()

    labels.paint((plane, 40, 40), 2)
    qtbot.waitUntil(lambda: says("strokes painted until now"), timeout=PATIENCE)
    (updated,) = [e for e in folder.events() if isinstance(e, LabelsUpdated)]
    assert says(f"{updated.pixels:,} labelled pixels")
    assert folder.data()["training"][-1]["index"] == {"Z": plane}
    used = read_labels(folder.data()["pairs"][0]["labels"])
    np.testing.assert_array_equal(np.asarray(used.data), np.asarray(labels.data))

    labels.paint((plane, 80, 80), 9)
    qtbot.waitUntil(
        lambda: "no class of this run" in dock.notice.text(), timeout=120_000
    )
    assert dock.handle is not None
    labels.undo()
    dock.stop()
    qtbot.waitUntil(lambda: dock.handle is None, timeout=120_000)

    labels.paint((plane, 80, 40), 3)
    _click(dock.runs.resume_button)
    qtbot.waitUntil(lambda: says("changed since the run stopped"), timeout=PATIENCE)
    used = read_labels(folder.data()["pairs"][0]["labels"])
    np.testing.assert_array_equal(np.asarray(used.data), np.asarray(labels.data))
    dock.stop()
    qtbot.waitUntil(lambda: dock.handle is None, timeout=120_000)


@pytest.mark.parametrize("seed", [1, 2])
def test_cancel_at_random_moments(dock: TrainDock, qtbot: Any, seed: int) -> None:
    rng = random.Random(seed)
    dock.recipe_box.set_recipe("default", LONG)
    for _ in range(3):
        _click(dock.start_button)
        qtbot.waitUntil(lambda: dock.handle is not None, timeout=PATIENCE)
        qtbot.wait(rng.randrange(0, 2500))
        dock.stop()
        qtbot.waitUntil(lambda: dock.handle is None, timeout=120_000)
        assert dock.notice.level == "info", dock.notice.text()
        qtbot.waitUntil(lambda: bool(dock.start_button.enabled), timeout=PATIENCE)


def test_layers_renamed_reordered_and_deleted_during_a_training(
    dock: TrainDock, qtbot: Any
) -> None:
    viewer = dock.viewer
    image, labels = viewer.layers
    _begin(dock, qtbot)
    image.name = "renamed"
    viewer.layers.move(0, 2)
    done = len(dock.panel.curves.epochs)
    qtbot.waitUntil(lambda: len(dock.panel.curves.epochs) > done, timeout=PATIENCE)
    viewer.layers.remove(labels)
    viewer.layers.remove(image)
    done = len(dock.panel.curves.epochs)
    qtbot.waitUntil(lambda: len(dock.panel.curves.epochs) > done + 1, timeout=PATIENCE)
    assert dock.handle is not None
    dock.stop()
    qtbot.waitUntil(lambda: dock.handle is None, timeout=120_000)
    assert "Stopped" in dock.notice.text()
    assert not dock.start_button.enabled
    assert "No image" in dock.start_button.tooltip


def test_a_worker_killed_in_training_loses_nothing(dock: TrainDock, qtbot: Any) -> None:
    labels = dock.viewer.layers[1]
    before = labels.data.copy()
    _begin(dock, qtbot, epochs=2)
    os.kill(dock.session.client._process.pid, signal.SIGKILL)
    qtbot.waitUntil(lambda: dock.handle is None, timeout=120_000)
    assert dock.notice.level == "error"
    assert "killed" in dock.notice.text()
    np.testing.assert_array_equal(labels.data, before)
    done = len(dock.panel.curves.epochs)
    _click(dock.runs.resume_button)
    qtbot.waitUntil(lambda: len(dock.panel.curves.epochs) > done, timeout=PATIENCE)
    dock.stop()
    qtbot.waitUntil(lambda: dock.handle is None, timeout=120_000)


def test_the_preview_shows_the_visible_plane(dock: TrainDock, qtbot: Any) -> None:
    viewer = dock.viewer
    viewer.dims.set_current_step(0, 5)
    active = viewer.layers.selection.active
    _begin(dock, qtbot)

    def preview() -> Any:
        return next(
            (one for one in viewer.layers if one.name.endswith("preview")), None
        )

    qtbot.waitUntil(
        lambda: preview() is not None and bool(np.asarray(preview().data[5]).any()),
        timeout=PATIENCE,
    )
    assert not np.asarray(preview().data[1]).any()
    assert viewer.layers.selection.active is active
    viewer.dims.set_current_step(0, 1)
    qtbot.waitUntil(lambda: bool(np.asarray(preview().data[1]).any()), timeout=PATIENCE)
    dock.stop()
    qtbot.waitUntil(lambda: dock.handle is None, timeout=120_000)


def test_two_viewers_train_side_by_side(
    dock: TrainDock, make_napari_viewer: Callable[..., Any], qtbot: Any
) -> None:
    other = make_napari_viewer(show=True)
    other.open_sample("napari-strata", "cells")
    _, second = other.window.add_plugin_dock_widget("napari-strata", "Train")
    second.then_box.value = False
    other.layers.selection = {other.layers[0]}
    second.recipe_box.set_recipe("default", TINY)
    qtbot.waitUntil(lambda: bool(second.start_button.enabled), timeout=PATIENCE)
    assert second.session is not dock.session
    _click(second.start_button)
    _click(dock.start_button)
    qtbot.waitUntil(
        lambda: second.run is not None and dock.run is not None, timeout=PATIENCE
    )
    qtbot.waitUntil(
        lambda: second.handle is None and dock.handle is None, timeout=PATIENCE
    )
    assert "Training finished" in dock.notice.text()
    assert "Training finished" in second.notice.text()
    assert dock.run != second.run
    process = second.session.client._process
    other.close()
    qtbot.waitUntil(lambda: process.status is not None, timeout=PATIENCE)


def test_painted_labels_are_offered_after_a_crash(
    dock: TrainDock, qtbot: Any, tmp_path: Path
) -> None:
    labels = dock.viewer.layers[1]
    labels.paint((2, 50, 50), 2)
    painted = labels.data.copy()
    with qtbot.waitSignal(dock.autosave.saved, timeout=PATIENCE):
        dock.autosave.save()
    (note,) = (tmp_path / "runs").glob("*/layers/autosave.json")
    # The napari that wrote it is gone:
    note.write_text(note.read_text().replace('"pid": ', '"pid": 9'))
    from napari_strata.widgets.train.recovery import Recovery

    again = Recovery(dock.session, dock)
    qtbot.addWidget(again)
    qtbot.waitUntil(lambda: bool(again.buttons()), timeout=PATIENCE)
    count = len(dock.viewer.layers)
    next(button for button in again.buttons() if button.text() == "Open").click()
    qtbot.waitUntil(lambda: len(dock.viewer.layers) > count, timeout=PATIENCE)
    np.testing.assert_array_equal(np.asarray(dock.viewer.layers[-1].data), painted)
    again.stop()


def test_copied_code_does_the_same(dock: TrainDock, qtbot: Any) -> None:
    from qtpy.QtWidgets import QApplication

    clipboard = QApplication.clipboard()
    clipboard.setText("")
    dock.epochs.value = 7
    dock._copy(
        __import__("napari_strata.widgets.parts.script", fromlist=["x"]).as_command,
        "The command",
    )
    qtbot.waitUntil(lambda: bool(clipboard.text()), timeout=PATIENCE)
    words = clipboard.text()
    assert words.startswith("napari-strata train ")
    assert "training.epochs=7" in words
    assert "is on the clipboard" in dock.notice.text()


def test_a_kept_training_is_offered_and_can_be_stopped(
    make_napari_viewer: Callable[..., Any], qtbot: Any, tmp_path: Path
) -> None:
    work = get_plugin_settings("napari-strata").work
    before, work.runs = work.runs, str(tmp_path / "runs")
    viewer = make_napari_viewer(show=True)
    viewer.open_sample("napari-strata", "sandstone")
    viewer.layers.selection = {viewer.layers[0]}
    _, dock = viewer.window.add_plugin_dock_widget("napari-strata", "Train")
    dock.recipe_box.set_recipe("default", LONG)
    _wait_enabled(dock.start_button, qtbot)
    dock.keep_box.value = True
    _click(dock.start_button)
    _wait_epochs(dock.panel.curves, 1, qtbot)
    run = dock.run
    viewer.close()
    del dock
    qtbot.waitUntil((run / "running.json").is_file, timeout=PATIENCE)

    second = make_napari_viewer(show=True)
    _, found = second.window.add_plugin_dock_widget("napari-strata", "Train")
    _wait_buttons(found.recovery, qtbot)
    assert "continues without napari" in found.recovery.text()
    next(
        button
        for button in found.recovery.buttons()
        if button.text() == "Show progress"
    ).click()
    _wait_epochs(found.panel.curves, 2, qtbot)
    next(
        button for button in found.recovery.buttons() if button.text() == "Stop"
    ).click()
    qtbot.waitUntil(lambda: not (run / "running.json").exists(), timeout=PATIENCE)
    _wait_text(found.notice, "has ended", qtbot)
    assert (run / "model.safetensors").is_file()
    second.close()
    del found
    work.runs = before


def test_keys_choose_a_class_train_and_stop(dock: TrainDock, qtbot: Any) -> None:
    window = dock.viewer.window._qt_window
    labels = dock.data_box.labels.layer
    labels.selected_label = 3
    qtbot.keyClick(window, Qt.Key.Key_W)
    assert labels.selected_label == 4
    qtbot.keyClick(window, Qt.Key.Key_W)
    assert labels.selected_label == 1
    qtbot.keyClick(window, Qt.Key.Key_Q)
    assert labels.selected_label == 4

    dock.recipe_box.set_recipe("default", LONG)
    _wait_enabled(dock.start_button, qtbot)
    qtbot.keyClick(window, Qt.Key.Key_T, Qt.KeyboardModifier.ShiftModifier)
    _wait_epochs(dock.panel.curves, 1, qtbot)
    # napari shows the progress, too.
    (bar,) = window.findChildren(QtLabeledProgressBar)
    assert bar.description_label.text().startswith("Training")
    qtbot.keyClick(window, Qt.Key.Key_T, Qt.KeyboardModifier.ShiftModifier)
    qtbot.waitUntil(lambda: dock.handle is None, timeout=PATIENCE)
    assert "Stopped" in dock.notice.text()
    qtbot.waitUntil(
        lambda: not window.findChildren(QtLabeledProgressBar), timeout=PATIENCE
    )


def _wait_epochs(curves: Any, count: int, qtbot: Any) -> None:
    qtbot.waitUntil(lambda: len(curves.epochs) >= count, timeout=PATIENCE)


def _wait_buttons(offers: Any, qtbot: Any) -> None:
    qtbot.waitUntil(lambda: bool(offers.buttons()), timeout=PATIENCE)


def _wait_text(label: Any, text: str, qtbot: Any) -> None:
    qtbot.waitUntil(lambda: text in label.text(), timeout=PATIENCE)


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No pretrained weights for a worker, which has no network either."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))


def test_warnings_stay_in_sight_after_the_end(
    empty_cache: None, dock: TrainDock, qtbot: Any
) -> None:
    options = {key: TINY[key] for key in TINY if not key.startswith("network.")}
    encoder = {"network.kind": "smp", "network.encoder": "resnet18"}
    dock.recipe_box.set_recipe("default", {**options, **encoder})
    _train(dock, qtbot)
    text = dock.notice.text()
    assert text.startswith("Training finished"), text
    assert "\n⚠ encoder resnet18: starts from random weights (ImageNet" in text


def test_training_on_files(dock: TrainDock, qtbot: Any, tmp_path: Path) -> None:
    image, labels = (layer.data for layer in dock.viewer.layers)
    write_image(tmp_path / "images.tif", Image(image, "ZYX"))
    write_labels(tmp_path / "labels.tif", LabelImage(labels, "ZYX"))
    box = dock.data_box
    box.source.value = FILES
    assert dock.start_button.tooltip == "Choose the images."
    box.folders.images.line_edit.value = str(tmp_path / "nowhere")
    assert "does not exist" in dock.start_button.tooltip
    box.folders.images.line_edit.value = str(tmp_path / "images.tif")
    assert dock.start_button.tooltip == "Choose the labels of these images."
    box.folders.labels.line_edit.value = str(tmp_path / "labels.tif")
    box.folders.zero.value = True
    _train(dock, qtbot)
    assert "Training finished" in dock.notice.text()
    assert dock.run is not None
    assert "images" in dock.run.name
    record = json.loads((dock.run / "data.json").read_text())
    assert record["unlabelled"] == [0]
    assert record["pairs"][0]["images"] == str(tmp_path / "images.tif")
