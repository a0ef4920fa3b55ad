"""The live mask in a real viewer: strokes, corrections, pages, and no outdated answer."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from napari.settings import get_plugin_settings

from napari_strata.widgets.layers.live import PREDICTED
from napari_strata.widgets.train.dock import TrainDock

PATIENCE = 120_000


def two_phases() -> np.ndarray[Any, Any]:
    """Dark on the left and bright on the right, 4 planes; the edge moves with Z."""
    rng = np.random.default_rng(0)
    stack = rng.normal(60, 8, (4, 80, 120))
    for z in range(4):
        stack[z, :, 40 + 10 * z :] += 100
    return stack.clip(0, 255).astype(np.uint8)


def noisy_phases() -> np.ndarray[Any, Any]:
    """The same in strong noise, where a single pixel tells little."""
    rng = np.random.default_rng(0)
    stack = rng.normal(100, 60, (4, 80, 120))
    stack[:, :, 60:] += 10
    return stack.clip(0, 255).astype(np.uint8)


@pytest.fixture
def dock(
    make_napari_viewer: Any, tmp_path: Path, qtbot: Any, request: pytest.FixtureRequest
) -> Iterator[TrainDock]:
    """A Train dock beside a stack and an empty labels layer."""
    work = get_plugin_settings("napari-strata").work
    before, work.runs = work.runs, str(tmp_path / "runs")
    viewer = make_napari_viewer(show=True)
    stack = getattr(request, "param", two_phases)()
    image = viewer.add_image(stack, name="phases", axis_labels=("z", "y", "x"))
    viewer.add_labels(
        np.zeros((4, 80, 120), np.uint8), name="strokes", axis_labels=("z", "y", "x")
    )
    viewer.layers.selection = {image}
    viewer.dims.set_current_step(0, 1)
    _, found = viewer.window.add_plugin_dock_widget("napari-strata", "Train")
    found.then_box.value = False
    yield weakref.proxy(found)
    processes = [found.session.client._process]
    if found.session._live_client is not None:
        processes.append(found.session._live_client._process)
    viewer.close()
    del found, viewer, image, _
    qtbot.waitUntil(
        lambda: all(each is None or each.status is not None for each in processes),
        timeout=PATIENCE,
    )
    work.runs = before


def paint(dock: TrainDock, z: int, row: int, column: int, value: int) -> None:
    """Paint a short stroke, as the brush does: one step of the history."""
    layer = dock.viewer.layers["strokes"]
    with layer.block_history():
        for x in range(column, column + 15):
            layer.paint((z, row, x), value)


def mask_of(dock: TrainDock) -> Any:
    layer = dock.live_mask.layer
    return None if layer is None else np.asarray(layer.data)


def wait_for_mask(dock: TrainDock, qtbot: Any, strokes: int, plane: int) -> Any:
    """Wait for the mask of so many strokes; return a plane of it."""
    word = f"trees, {strokes} strokes"
    qtbot.waitUntil(lambda: word in dock.live_mask.text, timeout=PATIENCE)
    return mask_of(dock)[plane].copy()


def test_strokes_are_answered_with_a_mask_and_corrections_change_it(
    dock: TrainDock, qtbot: Any
) -> None:
    paint(dock, 1, 20, 5, 1)
    qtbot.wait(300)
    assert dock.live_mask.layer is None, "one class is not enough"
    paint(dock, 1, 20, 90, 2)
    plane = wait_for_mask(dock, qtbot, 2, 1)
    expected = np.where(np.arange(120) < 50, 1, 2)
    assert (plane == expected).mean() > 0.95
    layer = dock.live_mask.layer
    assert layer.metadata[PREDICTED]
    assert layer.opacity < 0.6
    assert list(dock.viewer.layers).index(layer) == 1, "below the strokes"
    selected = dock.viewer.layers.selection.active
    assert selected is not layer
    assert "s." in dock.live_text.text()
    assert not mask_of(dock)[3].any(), "another page has not been looked at"

    dock.viewer.dims.set_current_step(0, 3)
    qtbot.waitUntil(lambda: mask_of(dock)[3].all(), timeout=PATIENCE)
    expected = np.where(np.arange(120) < 70, 1, 2)
    assert (mask_of(dock)[3] == expected).mean() > 0.95

    # A stroke that is drawn on another page counts; undone, it does not.
    paint(dock, 3, 60, 5, 1)
    wait_for_mask(dock, qtbot, 3, 3)
    dock.viewer.layers["strokes"].undo()
    wait_for_mask(dock, qtbot, 2, 3)


def test_the_mask_can_be_hidden_and_switched_off(dock: TrainDock, qtbot: Any) -> None:
    paint(dock, 1, 20, 5, 1)
    paint(dock, 1, 20, 90, 2)
    wait_for_mask(dock, qtbot, 2, 1)
    layer = dock.live_mask.layer
    (press,) = (act for key, act in dock.viewer.keymap.items() if str(key) == "H")
    press(dock.viewer)
    assert not layer.visible
    press(dock.viewer)
    assert layer.visible
    dock.live_box.value = False
    assert layer not in dock.viewer.layers
    assert not dock.live_mask.text
    paint(dock, 1, 40, 5, 1)
    qtbot.wait(300)
    assert dock.live_mask.layer is None
    dock.live_box.value = True
    wait_for_mask(dock, qtbot, 3, 1)


@pytest.mark.parametrize("dock", [noisy_phases], indirect=True)
def test_the_levels_are_chosen_when_nobody_paints(dock: TrainDock, qtbot: Any) -> None:
    for row in (10, 25, 40, 55):
        paint(dock, 1, row, 10, 1)
        paint(dock, 1, row, 90, 2)
    plane = wait_for_mask(dock, qtbot, 8, 1)
    assert "look further" not in dock.live_mask.text
    expected = np.where(np.arange(120) < 60, 1, 2)
    accuracy = (plane == expected).mean()
    qtbot.waitUntil(lambda: "look further" in dock.live_mask.text, timeout=PATIENCE)
    assert (mask_of(dock)[1] == expected).mean() > accuracy
    # What was chosen is kept.
    paint(dock, 1, 70, 10, 1)
    wait_for_mask(dock, qtbot, 9, 1)
    assert "look further" in dock.live_mask.text


def test_labels_of_every_pixel_start_no_worker(dock: TrainDock, qtbot: Any) -> None:
    layer = dock.viewer.layers["strokes"]
    layer.data = np.where(two_phases() < 110, 1, 2).astype(np.uint8)
    qtbot.waitUntil(lambda: bool(dock.start_button.enabled), timeout=PATIENCE)
    qtbot.wait(300)
    assert dock.session._live_client is None


def press(dock: TrainDock, letter: str) -> None:
    """Press a key of the viewer."""
    (act,) = (act for key, act in dock.viewer.keymap.items() if str(key) == letter)
    act(dock.viewer)


def test_a_window_counts_when_next_is_pressed(dock: TrainDock, qtbot: Any) -> None:
    viewer, row = dock.viewer, dock.next_window
    assert row.isHidden(), "there is no mask yet"
    paint(dock, 1, 20, 5, 1)
    paint(dock, 1, 20, 90, 2)
    wait_for_mask(dock, qtbot, 2, 1)
    viewer.dims.set_current_step(0, 3)
    qtbot.waitUntil(lambda: mask_of(dock)[3].all(), timeout=PATIENCE)
    assert not row.isHidden()
    labels = viewer.layers["strokes"]
    strokes, zoom = labels.data.copy(), viewer.scene.camera.zoom

    row.next_button.native.click()
    qtbot.waitUntil(lambda: "Window 1." in row.text.text(), timeout=PATIENCE)
    corners = row.frame.data[0]
    plane, top, left = np.ceil(corners.min(axis=0)).astype(int)
    assert plane in (1, 3), "the planes looked at"
    assert viewer.dims.current_step[0] == plane
    assert np.allclose(corners.min(axis=0), (plane, top - 0.65, left - 0.65))
    assert np.allclose(corners.max(axis=0), (plane, top + 10.65, left + 10.65))
    assert np.allclose(viewer.scene.camera.center[-2:], (top + 5, left + 5))
    assert viewer.scene.camera.zoom > 2 * zoom
    assert viewer.layers.selection.active is labels
    assert labels.mode == "paint"
    # The mask is a start to look at. Nothing of it is in the labels yet.
    np.testing.assert_array_equal(labels.data, strokes)
    start = np.asarray(row.start.data)
    assert start.shape == (1, 11, 11)
    np.testing.assert_allclose(row.start.translate, (plane, top, left))
    window = np.s_[plane, top : top + 11, left : left + 11]
    np.testing.assert_array_equal(start[0], mask_of(dock)[window])
    assert list(viewer.layers).index(row.start) < list(viewer.layers).index(labels)

    corrected = 3 - start[0, 0, 0]
    labels.data_setitem(
        (np.array([plane]), np.array([top]), np.array([left])), corrected
    )
    press(dock, "N")
    expected = start[0].copy()
    expected[0, 0] = corrected
    np.testing.assert_array_equal(labels.data[window], expected)
    qtbot.waitUntil(lambda: "Window 2." in row.text.text(), timeout=PATIENCE)
    before = row.frame.data[0].copy()
    plane, top, left = np.ceil(before.min(axis=0)).astype(int)
    second = np.s_[plane, top : top + 11, left : left + 11]
    assert not labels.data[second].any()
    corner = (np.array([plane]), np.array([top]), np.array([left]))
    labels.data_setitem(corner, 1)
    press(dock, "K")
    qtbot.waitUntil(lambda: bool(row.skip_button.enabled), timeout=PATIENCE)
    assert "Window 2." in row.text.text()
    assert not np.array_equal(row.frame.data[0], before), "another window"
    assert np.argwhere(labels.data[second]).tolist() == [[0, 0]], "what was painted"

    # The first window is one step of the history.
    labels.undo()
    labels.undo()
    assert np.argwhere(labels.data[window]).tolist() == [[0, 0]]

    viewer.layers.remove("strokes")
    qtbot.waitUntil(lambda: row.frame is None, timeout=PATIENCE)
    assert row.start is None
    assert [layer.name for layer in viewer.layers] == ["phases"]
