"""The Predict dock by clicks in a real viewer, with a real worker and tiny models."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import ref

import numpy as np
import psutil
import pytest
from napari.layers import Image as ImageLayer
from napari.layers import Labels as LabelsLayer
from napari.viewer import Viewer
from qtpy.QtWidgets import QApplication, QFileDialog, QMessageBox

from napari_strata.io import read_labels, write_image
from napari_strata.plugin import image_layer, read
from napari_strata.widgets.layers.group import Channels
from napari_strata.widgets.parts.script import as_command
from napari_strata.widgets.predict.area import PLANE, RECTANGLE, VIEW, WHOLE
from napari_strata.widgets.predict.dock import PredictDock
from napari_strata.widgets.session import ViewerSession
from napari_strata.widgets.work.client import JobHandle
from napari_strata.worker.protocol import Job, PredictJob
from widgets.models import make_run, rock

PATIENCE = 120_000


@pytest.fixture
def begin(
    make_napari_viewer: Callable[..., Viewer], runs: Path, qtbot: Any
) -> Iterator[Callable[..., PredictDock]]:
    """Open a viewer with a stack and the dock. A fixture of the dock itself would keep a reference, which counts as a leak."""
    made: list[Any] = []

    def start(
        shape: tuple[int, ...] = (4, 96, 96), *, show: bool = False
    ) -> PredictDock:
        viewer = make_napari_viewer(show=show)
        if shape:
            data, given, _ = image_layer(rock(shape, seed=1)[0])
            viewer.add_image(data, **given)
        dock = PredictDock(viewer)
        viewer.window.add_dock_widget(dock, name="Predict", area="right")
        made.append(ref(dock.session))
        return dock

    yield start
    for one in made:
        if (session := one()) is not None:
            session.close()


def _announce(dock: PredictDock, runs: Path, qtbot: Any) -> Path:
    """Announce the model of a training."""
    run = next(runs.glob("*rock-*"))
    dock.session.announce(run)
    qtbot.waitUntil(lambda: "Recipe" in dock.model.text.text(), timeout=PATIENCE)
    return run


def _choose(dock: PredictDock, kind: str) -> None:
    dock.area.combo.native.setCurrentIndex([WHOLE, PLANE, VIEW, RECTANGLE].index(kind))


def _predict(dock: PredictDock, qtbot: Any) -> str:
    """Click Predict, wait for the end, and return the message."""
    assert dock.predict_button.enabled, dock.predict_button.tooltip
    dock.predict_button.native.click()
    qtbot.waitUntil(lambda: dock.prediction is None, timeout=PATIENCE)
    return dock.notice.text()


def _start(dock: PredictDock, qtbot: Any) -> None:
    """Click Predict, and wait until some planes are finished."""
    dock.predict_button.native.click()
    assert dock.prediction is not None
    seen: list[int] = []
    dock.bar._timer.setInterval(
        50
    )  # the whole prediction may take less than two looks of the bar
    dock.prediction.progress.connect(lambda done, _total: seen.append(done))
    qtbot.waitUntil(lambda: any(seen), timeout=PATIENCE)
    qtbot.waitUntil(lambda: "left" in dock.bar.text.text(), timeout=PATIENCE)


def _labels(dock: PredictDock) -> list[LabelsLayer]:
    return [layer for layer in dock.viewer.layers if isinstance(layer, LabelsLayer)]


def test_the_button_explains_what_is_missing(
    begin: Callable[..., PredictDock], runs: Path, qtbot: Any
) -> None:
    dock = begin(())
    assert not dock.predict_button.enabled
    assert "No image is open" in dock.predict_button.tooltip
    assert dock.stop_button.tooltip == "Nothing is running."
    assert dock.save_button.tooltip == "There is nothing to save yet: press Predict."
    dock.viewer.add_image(np.zeros((4, 40, 40), np.uint16), name="sand")
    qtbot.waitUntil(lambda: "Choose a model" in dock.predict_button.tooltip)
    _announce(dock, runs, qtbot)
    _choose(dock, RECTANGLE)
    assert not dock.predict_button.enabled
    assert "There is no rectangle" in dock.predict_button.tooltip
    _choose(dock, WHOLE)
    assert dock.predict_button.enabled


def test_one_click_from_a_trained_model_to_labels_and_another_to_a_file(
    begin: Callable[..., PredictDock],
    runs: Path,
    qtbot: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dock = begin()
    _announce(dock, runs, qtbot)
    words = dock.model.text.text()
    assert "grain" in words
    assert "#4477aa" in words
    assert "Recipe tiny, 3 epochs, mean IoU 0." in words
    assert (
        dock.model.fit.text()
        == "The image fits this model. Grey values are taken as they are, as in training."
    )
    said = _predict(dock, qtbot)
    assert said.startswith("rock segmented: 4 planes")
    [labels] = _labels(dock)
    assert set(np.unique(labels.data)) == {1, 2}
    assert dock.save_button.enabled
    monkeypatch.setattr(QFileDialog, "exec", lambda _self: True)
    monkeypatch.setattr(
        QFileDialog,
        "selectedFiles",
        lambda _self: [str(tmp_path / "out" / "mine.ome.tif")],
    )
    dock.save_button.native.click()
    qtbot.waitUntil(
        lambda: dock.notice.text().startswith("Saved to "), timeout=PATIENCE
    )
    stored = read_labels(tmp_path / "out" / "mine.ome.tif")
    np.testing.assert_array_equal(np.asarray(stored.data), labels.data)
    assert stored.scale == pytest.approx((2.1, 2.1, 2.1))
    assert stored.classes is not None
    assert stored.classes.names == ("grain", "pore")
    monkeypatch.setattr(QFileDialog, "selectedFiles", lambda _self: [str(tmp_path)])
    dock.save_button.native.click()
    qtbot.waitUntil(
        lambda: dock.notice.text().startswith("✗ The labels could not be saved"),
        timeout=PATIENCE,
    )
    assert dock.save_button.enabled


def test_the_dialog_adds_the_suffix_and_checks_existing_files(
    begin: Callable[..., PredictDock],
    runs: Path,
    qtbot: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dock = begin()
    seen: list[str] = []

    def look(dialog: QFileDialog) -> bool:
        seen.append(dialog.defaultSuffix())
        dialog.selectNameFilter(dialog.nameFilters()[1])
        dialog.filterSelected.emit(dialog.nameFilters()[1])
        seen.append(dialog.defaultSuffix())
        assert dialog.acceptMode() is QFileDialog.AcceptMode.AcceptSave
        assert not dialog.testOption(QFileDialog.Option.DontConfirmOverwrite)
        return False

    monkeypatch.setattr(QFileDialog, "exec", look)
    assert dock._ask_path("rock-segmented") is None
    assert seen == ["ome.tif", "ome.zarr"]


def test_an_image_that_does_not_fit_is_reported_and_the_last_request_counts(
    begin: Callable[..., PredictDock], runs: Path, qtbot: Any
) -> None:
    dock = begin()
    _announce(dock, runs, qtbot)
    image, _ = rock(channels=2)
    layer = dock.viewer.add_image(
        image.data, name="two", axis_labels=("c", "z", "y", "x")
    )
    dock.viewer.layers.selection.active = layer
    qtbot.waitUntil(
        lambda: "Found 2 channels" in dock.predict_button.tooltip, timeout=PATIENCE
    )
    assert not dock.predict_button.enabled
    assert dock.model.fit.text().startswith("The image does not fit this model.")
    # The answer to the question about the first image must not stand for the second.
    dock.viewer.layers.selection.active = dock.viewer.layers["rock"]
    qtbot.waitUntil(lambda: dock.images.layer is dock.viewer.layers["rock"])
    dock.viewer.layers.selection.active = layer
    qtbot.waitUntil(lambda: dock.images.layer is layer)
    qtbot.wait(2000)
    assert not dock.predict_button.enabled


def test_differences_are_reported_before_and_after(
    begin: Callable[..., PredictDock], runs: Path, qtbot: Any
) -> None:
    dock = begin()
    dock.viewer.layers["rock"].scale = (6.3, 6.3, 6.3)
    dock.images.choose(dock.viewer.layers["rock"])
    _announce(dock, runs, qtbot)
    lines = dock.model.fit.text().splitlines()
    assert lines[0] == "It can be predicted, but the image differs:"
    assert lines[1].startswith(
        "Found pixel size 6.3 micrometer; the model was trained at 2.1"
    )
    said = _predict(dock, qtbot)
    assert "rock segmented: 4 planes" in said
    assert "found pixel size 6.3" in said
    assert dock.notice.level == "warning"


def test_foreign_grey_values_are_said_beside_the_button(
    begin: Callable[..., PredictDock], runs: Path, qtbot: Any
) -> None:
    dock = begin()
    _announce(dock, runs, qtbot)
    assert not dock.doubt.isVisibleTo(dock)
    layer = dock.viewer.layers["rock"]
    brighter = dock.viewer.add_image(
        np.asarray(layer.data) + np.uint16(6000), name="brighter", scale=layer.scale
    )
    dock.viewer.layers.selection.active = brighter
    qtbot.waitUntil(lambda: dock.doubt.isVisibleTo(dock), timeout=PATIENCE)
    assert "of the grey values" in dock.doubt.text()
    assert "Was the scan calibrated in the same way?" in dock.doubt.text()
    assert dock.model.fit.text() == "Grey values are taken as they are, as in training."
    assert dock.predict_button.enabled
    said = _predict(dock, qtbot)
    assert "brighter segmented: 4 planes" in said
    assert "of the grey values" in said
    assert dock.notice.level == "warning"


def test_only_the_current_plane(
    begin: Callable[..., PredictDock], runs: Path, qtbot: Any
) -> None:
    dock = begin()
    _announce(dock, runs, qtbot)
    dock.viewer.dims.set_current_step(0, 2)
    _choose(dock, PLANE)
    assert "segmented: 1 plane" in _predict(dock, qtbot)
    [labels] = _labels(dock)
    assert [bool(plane.any()) for plane in np.asarray(labels.data)] == [
        False,
        False,
        True,
        False,
    ]


def test_stop_and_a_killed_worker_leave_a_dock_that_works(
    begin: Callable[..., PredictDock], runs: Path, qtbot: Any
) -> None:
    dock = begin((1000, 256, 256))  # for some seconds
    _announce(dock, runs, qtbot)
    _start(dock, qtbot)
    assert not dock.predict_button.enabled
    assert "A prediction is running" in dock.predict_button.tooltip
    dock.stop_button.native.click()
    qtbot.waitUntil(lambda: dock.prediction is None, timeout=120_000)
    assert "planes are done" in dock.notice.text()
    [labels] = _labels(dock)
    _start(dock, qtbot)
    assert dock.session.client.ready is not None
    os.kill(dock.session.client.ready.pid, signal.SIGKILL)
    qtbot.waitUntil(lambda: dock.prediction is None, timeout=PATIENCE)
    assert dock.notice.level == "error"
    assert labels in dock.viewer.layers
    _choose(dock, PLANE)
    assert "segmented: 1 plane" in _predict(dock, qtbot)


def test_a_newly_trained_model_is_chosen_unless_the_user_has_chosen_another(
    begin: Callable[..., PredictDock],
    runs: Path,
    qtbot: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    dock = begin()
    run = _announce(dock, runs, qtbot)
    assert dock.model.path == run
    other = make_run(tmp_path / "elsewhere")
    monkeypatch.setattr(
        QFileDialog,
        "getOpenFileName",
        lambda *_: (str(other / "model.safetensors"), ""),
    )
    dock.model.open_button.native.click()
    assert dock.model.path == other
    dock.session.announce(run)  # the training goes on and has a better epoch
    assert dock.model.path == other
    newer = make_run(tmp_path / "newer")
    dock.session.announce(newer)
    assert dock.model.path == newer
    qtbot.waitUntil(lambda: dock.model.runs.list.count() == 1, timeout=PATIENCE)
    dock.model.runs.list.setCurrentRow(0)
    assert dock.model.path == run


def test_a_deleted_run_is_no_longer_chosen(
    begin: Callable[..., PredictDock], runs: Path, qtbot: Any
) -> None:
    dock = begin()
    run = _announce(dock, runs, qtbot)
    button = dock.model.delete_button
    qtbot.waitUntil(button.isEnabled, timeout=PATIENCE)
    button.click()
    qtbot.waitUntil(
        lambda: bool(dock.model.runs.findChildren(QMessageBox)), timeout=PATIENCE
    )
    (box,) = dock.model.runs.findChildren(QMessageBox)
    assert run.name in box.text()
    (delete,) = (b for b in box.buttons() if b.text().replace("&", "") == "Delete")
    delete.click()
    qtbot.waitUntil(lambda: dock.model.path is None, timeout=PATIENCE)
    assert not run.exists()
    assert not dock.predict_button.enabled
    qtbot.waitUntil(lambda: not button.isEnabled(), timeout=PATIENCE)


def test_a_layer_with_one_channel_can_be_predicted_with_all_channels_of_its_file(
    begin: Callable[..., PredictDock], runs: Path, qtbot: Any, tmp_path: Path
) -> None:
    dock = begin(())
    image, truth = rock(channels=2, seed=1)
    path = write_image(tmp_path / "two.ome.tif", replace(image, name="two"))
    [(data, given, _)] = read(str(path))
    first, _second = dock.viewer.add_image(data, **given)
    dock.viewer.layers.selection.active = first
    dock.session.announce(make_run(tmp_path / "both", channels=2))
    qtbot.waitUntil(
        lambda: "Found 1 channel" in dock.predict_button.tooltip, timeout=PATIENCE
    )
    assert dock.channels.visible or not dock.isVisible()
    dock.channels.native.click()
    qtbot.waitUntil(
        lambda: dock.model.fit.text().startswith("The image fits"), timeout=PATIENCE
    )
    assert "4 planes" in _predict(dock, qtbot)
    [labels] = _labels(dock)
    assert (np.asarray(labels.data) == truth.data).mean() > 0.9
    np.testing.assert_allclose(labels.scale, first.scale)


def test_a_file_that_is_not_a_model_is_reported(
    begin: Callable[..., PredictDock],
    runs: Path,
    qtbot: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    dock = begin()
    wrong = tmp_path / "other.safetensors"
    wrong.write_bytes(b"PK not a model at all")
    monkeypatch.setattr(QFileDialog, "getOpenFileName", lambda *_: (str(wrong), ""))
    dock.model.open_button.native.click()
    qtbot.waitUntil(lambda: not dock.predict_button.enabled, timeout=PATIENCE)
    qtbot.waitUntil(
        lambda: "found a pickle" in dock.predict_button.tooltip, timeout=PATIENCE
    )


def test_the_train_dock_can_predict_the_whole_stack(
    begin: Callable[..., PredictDock], runs: Path, qtbot: Any
) -> None:
    dock = begin()
    _choose(dock, PLANE)
    layer = dock.viewer.layers["rock"]
    assert isinstance(layer, ImageLayer)
    dock.predict_with((next(runs.glob("*rock-*")),), layer)
    assert dock.prediction is not None
    qtbot.waitUntil(lambda: dock.prediction is None, timeout=PATIENCE)
    assert "4 planes" in dock.notice.text()


def test_the_mean_of_two_models_predicts(
    begin: Callable[..., PredictDock],
    runs: Path,
    qtbot: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dock = begin()
    layer = dock.viewer.layers["rock"]
    assert isinstance(layer, ImageLayer)
    first, second = next(runs.glob("*rock-*")), make_run(tmp_path)
    submit = ViewerSession.submit
    requests: list[Job] = []

    def record(session: ViewerSession, job: Job) -> JobHandle:
        requests.append(job)
        return submit(session, job)

    monkeypatch.setattr(ViewerSession, "submit", record)
    dock.predict_with((first, second), layer)
    qtbot.waitUntil(lambda: dock.prediction is None, timeout=PATIENCE)
    assert "4 planes" in dock.notice.text()
    (request,) = [job for job in requests if isinstance(job, PredictJob)]
    assert request.model == (str(first), str(second))
    assert dock.model.name.text() == f"{first.name} and {second.name}"
    qtbot.waitUntil(lambda: "2 models" in dock.model.text.text(), timeout=PATIENCE)
    clipboard = QApplication.clipboard()
    assert clipboard is not None
    clipboard.setText("")
    dock._copy(as_command, "The command")
    qtbot.waitUntil(lambda: f"--with {second}" in clipboard.text(), timeout=PATIENCE)
    # The labels of one model are others, and get a layer of their own.
    count = len(dock.viewer.layers)
    dock.predict_with((first,), layer)
    qtbot.waitUntil(lambda: dock.prediction is None, timeout=PATIENCE)
    qtbot.waitUntil(lambda: "3 epochs" in dock.model.text.text(), timeout=PATIENCE)
    assert len(dock.viewer.layers) == count + 1


def test_the_copied_code_does_the_same(
    begin: Callable[..., PredictDock], runs: Path, qtbot: Any, tmp_path: Path
) -> None:
    dock = begin(())
    image, _ = rock(seed=1)
    path = write_image(tmp_path / "stack.ome.tif", replace(image, name="stack"))
    for data, given, _ in read(str(path)):
        dock.viewer.add_image(data, **given)
    run = _announce(dock, runs, qtbot)
    buttons = {
        button.text: button
        for button in dock._magic_widgets
        if getattr(button, "text", "").startswith("Copy")
    }
    clipboard = QApplication.clipboard()
    assert clipboard is not None
    clipboard.setText("")
    buttons["Copy as command"].native.click()
    qtbot.waitUntil(lambda: bool(clipboard.text()), timeout=PATIENCE)
    words = clipboard.text()
    assert words.startswith(f"napari-strata predict {run} {path} --out ")
    _choose(dock, PLANE)
    clipboard.setText("")
    buttons["Copy as Python"].native.click()
    qtbot.waitUntil(
        lambda: "for the whole image" in dock.notice.text(), timeout=PATIENCE
    )
    _choose(dock, WHOLE)
    _predict(dock, qtbot)
    script = tmp_path / "script.py"
    script.write_text(clipboard.text(), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    written = next(run.glob("*-labels.tif"))
    np.testing.assert_array_equal(
        np.asarray(read_labels(written).data), _labels(dock)[0].data
    )


def test_a_cross_validation_and_the_mean_over_flips_and_turns(
    begin: Callable[..., PredictDock],
    runs: Path,
    qtbot: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = runs / "folds"
    for name in ("fold_1", "fold_2"):
        make_run(folder).rename(folder / name)
    facts = {"format": "napari-strata crossval 1", "folds": ["fold_1", "fold_2"]}
    (folder / "crossval.json").write_text(json.dumps(facts))
    dock = begin((2, 48, 48))
    _announce(dock, runs, qtbot)
    assert "8 times as long" in dock.averaging.turns.tooltip
    _predict(dock, qtbot)
    qtbot.waitUntil(
        lambda: len(dock.model.runs.runs()) == 2, timeout=PATIENCE
    )  # the run, and the folds as one
    monkeypatch.setattr(
        QFileDialog, "getOpenFileName", lambda *_: (str(folder / "crossval.json"), "")
    )
    dock.model.open_button.native.click()
    assert dock.model.path == dock.model.runs.selected() == folder
    qtbot.waitUntil(
        lambda: "2 models (cross-validation), mean IoU" in dock.model.text.text(),
        timeout=PATIENCE,
    )
    dock.averaging.turns.native.click()
    assert "segmented [1]: 2 planes" in _predict(dock, qtbot)
    assert (
        len(_labels(dock)) == 2
    )  # of other models, and averaged: not into the layer that was there
    _predict(dock, qtbot)
    assert len(_labels(dock)) == 2
    dock.averaging.turns.native.click()
    _predict(dock, qtbot)
    assert len(_labels(dock)) == 3
    clipboard = QApplication.clipboard()
    assert clipboard is not None
    buttons = {
        button.text: button
        for button in dock._magic_widgets
        if getattr(button, "text", "").startswith("Copy")
    }
    for on in (False, True):
        assert bool(dock.averaging.turns.value) == on
        clipboard.setText("")
        buttons["Copy as command"].native.click()
        qtbot.waitUntil(lambda: bool(clipboard.text()), timeout=PATIENCE)
        assert clipboard.text().startswith(f"napari-strata predict {folder} ")
        assert ("--tta" in clipboard.text()) == on
        dock.averaging.turns.native.click()


def test_the_mean_over_three_directions(
    begin: Callable[..., PredictDock], runs: Path, qtbot: Any, tmp_path: Path
) -> None:
    dock = begin((12, 48, 48))
    run = _announce(dock, runs, qtbot)
    box = dock.averaging.directions
    assert box.enabled
    _predict(dock, qtbot)
    box.native.click()
    assert "segmented [1]: 12 planes" in _predict(dock, qtbot)
    one, three = _labels(dock)  # not into the layer that was there
    assert (np.asarray(one.data) != np.asarray(three.data)).any()
    clipboard = QApplication.clipboard()
    assert clipboard is not None
    buttons = {
        button.text: button
        for button in dock._magic_widgets
        if getattr(button, "text", "").startswith("Copy")
    }
    for name in ("Copy as command", "Copy as Python"):
        clipboard.setText("")
        buttons[name].native.click()
        qtbot.waitUntil(lambda: bool(clipboard.text()), timeout=PATIENCE)
        assert ("--ortho" if "command" in name else "ortho=True") in clipboard.text()
    script = tmp_path / "script.py"
    script.write_text(clipboard.text(), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    written = next(run.glob("*-labels.tif"))
    np.testing.assert_array_equal(np.asarray(read_labels(written).data), three.data)
    _choose(dock, PLANE)
    assert not box.enabled
    assert box.tooltip.startswith("One plane has no XZ and YZ planes")
    assert "segmented: 1 plane" in _predict(
        dock, qtbot
    )  # as one direction has it, so it goes into that layer
    assert len(_labels(dock)) == 2


def test_closing_the_window_in_the_middle_ends_everything(
    begin: Callable[..., PredictDock], runs: Path, qtbot: Any
) -> None:
    dock = begin((200, 256, 256), show=True)
    _announce(dock, runs, qtbot)
    session = dock.session
    _start(dock, qtbot)
    assert session.client.ready is not None
    worker = psutil.Process(session.client.ready.pid)
    dock.viewer.close()
    qtbot.waitUntil(lambda: not list(runs.glob(".session-*")), timeout=PATIENCE)
    qtbot.waitUntil(
        lambda: not worker.is_running() or worker.status() == "zombie", timeout=120_000
    )
    qtbot.wait(300)  # what is still under way must not touch what is gone


def test_layers_as_channels_of_a_model(
    begin: Callable[..., PredictDock], runs: Path, qtbot: Any
) -> None:
    image, truth = rock((2, 64, 64), channels=2, seed=3)
    dock = begin(())
    layers = [
        dock.viewer.add_image(
            image.data[number],
            name=f"stack channel {number + 1}",
            scale=image.scale[1:],
            units=image.units[1:],
            axis_labels=("z", "y", "x"),
        )
        for number in (1, 0)
    ]
    dock.viewer.layers.selection = {layers[0]}
    dock.model.choose(make_run(runs, channels=2))
    qtbot.waitUntil(lambda: "Recipe" in dock.model.text.text(), timeout=PATIENCE)
    assert not dock.predict_button.enabled
    assert "Found 1 channel" in dock.predict_button.tooltip
    assert "channel 1 is stack channel 1" in dock.which.text()
    dock.use_button.native.click()
    qtbot.waitUntil(lambda: "fits" in dock.model.fit.text(), timeout=PATIENCE)
    assert dock.use_button.native.isHidden()
    assert _predict(dock, qtbot).startswith("stack segmented: 2 planes")
    (labels,) = _labels(dock)
    assert (np.asarray(labels.data) == truth.data).mean() > 0.9
    assert labels.scale == pytest.approx(layers[0].scale)
    # In another order they are put into that of the model.
    dock.images.choose(Channels(tuple(layers)))
    assert dock.images.channels == Channels((layers[1], layers[0]))
