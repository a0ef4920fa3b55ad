"""A journey from the first stroke to a saved prediction, with a crash in the middle."""

from __future__ import annotations

import os
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import numpy as np
import pytest
from napari.settings import get_plugin_settings

from napari_strata.core.events import LabelsUpdated, TreesCompared
from napari_strata.core.runs import RunFolder
from widgets.journey import NETWORK, PAINTED, two_phases

PROGRAM = Path(__file__).with_name("journey.py")
PATIENCE = 300_000
"""Milliseconds for a step, long enough for a busy computer."""


@pytest.fixture
def crashed(tmp_path: Path) -> Path:
    """Runs of a napari that was killed in the middle of a training."""
    runs = tmp_path / "runs"
    runs.mkdir()
    path = os.pathsep.join([str(PROGRAM.parents[1]), *sys.path])
    with open(tmp_path / "log.txt", "w", encoding="utf-8") as log:
        program = subprocess.Popen(
            [sys.executable, str(PROGRAM), str(runs)],
            env=os.environ | {"PYTHONPATH": path},
            stdout=log,
            stderr=log,
        )
    end = monotonic() + 2 * PATIENCE / 1000
    while program.poll() is None and not (runs / PAINTED).exists():
        if monotonic() > end:
            break
        sleep(0.1)
    program.kill()  # SIGKILL: it can save nothing more
    program.wait()
    assert (runs / PAINTED).exists(), (tmp_path / "log.txt").read_text()
    return runs


@pytest.fixture
def dock(make_napari_viewer: Any, qtbot: Any, crashed: Path) -> Iterator[Any]:
    """The Train dock of the next napari, with the same image."""
    work = get_plugin_settings("napari-strata").work
    before, work.runs = work.runs, str(crashed)
    viewer = make_napari_viewer(show=True)
    image = viewer.add_image(two_phases(), name="phases", axis_labels=("z", "y", "x"))
    viewer.layers.selection = {image}
    _, dock = viewer.window.add_plugin_dock_widget("napari-strata", "Train")
    yield weakref.proxy(dock)
    processes = [dock.session.client._process]
    if dock.session._live_client is not None:
        processes.append(dock.session._live_client._process)
    viewer.close()
    del dock, viewer, image, _
    qtbot.waitUntil(
        lambda: all(each is None or each.status is not None for each in processes),
        timeout=PATIENCE,
    )
    work.runs = before


@pytest.mark.slow
def test_nothing_is_lost_between_the_first_stroke_and_the_saved_prediction(
    dock: Any, crashed: Path, qtbot: Any, tmp_path: Path
) -> None:
    viewer = dock.viewer
    (run,) = (path.parent for path in crashed.glob("*/model.safetensors"))
    folder = RunFolder(run)
    assert [each for each in folder.events() if isinstance(each, LabelsUpdated)]

    # The labels are offered, and are those that were painted.
    qtbot.waitUntil(lambda: bool(dock.recovery.buttons()), timeout=PATIENCE)
    next(each for each in dock.recovery.buttons() if each.text() == "Open").click()
    qtbot.waitUntil(lambda: len(viewer.layers) == 2, timeout=PATIENCE)
    labels = viewer.layers[1]
    painted = np.load(crashed / PAINTED)
    np.testing.assert_array_equal(np.asarray(labels.data), painted)

    # Training goes on from the model of the run that was cut off.
    viewer.layers.selection = {viewer.layers[0]}
    dock.recipe_box.set_recipe("default", NETWORK | {"training.epochs": 2})
    qtbot.waitUntil(lambda: dock.start_button.text == "Train on", timeout=PATIENCE)
    qtbot.waitUntil(lambda: bool(dock.start_button.enabled), timeout=PATIENCE)
    assert run.name in dock.start_button.tooltip
    dock.start_button.native.click()
    qtbot.waitUntil(lambda: dock.handle is not None, timeout=PATIENCE)
    qtbot.waitUntil(lambda: dock.handle is None, timeout=PATIENCE)
    assert "Training finished" in dock.notice.text()
    second = RunFolder(dock.run)
    assert second.recipe.training.start == str(run)
    assert second.data()["validation"] == folder.data()["validation"]

    # Network and trees are compared, and the dock says which one predicts.
    (compared,) = [e for e in second.events() if isinstance(e, TreesCompared)]
    assert compared.text in dock.notice.text()
    assert dock.panel.comparison == compared
    (predict,) = (
        widget
        for name, widget in viewer.window.dock_widgets.items()
        if "Predict" in name
    )
    qtbot.waitUntil(lambda: predict.prediction is None, timeout=PATIENCE)
    assert predict.notice.level == "info", predict.notice.text()
    assert predict.model.paths == compared.better_runs(second.path)

    layer = viewer.layers["phases segmented"]
    assert layer.data.shape == (4, 80, 120)
    assert set(np.unique(layer.data)) <= {1, 2}
    saved = layer.save(str(tmp_path / "out.ome.tif"), plugin="napari-strata")
    (again,) = viewer.open(saved, plugin="napari-strata")
    np.testing.assert_array_equal(np.asarray(again.data), np.asarray(layer.data))
    # What was painted is still there.
    np.testing.assert_array_equal(np.asarray(labels.data), painted)
