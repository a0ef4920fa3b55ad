"""First half of a journey: paint, look, correct, train and paint on; then wait to be killed.

Usage: ``python journey.py RUNS``, with ``tests`` on the path. Run by test_journey.py in
a process of its own, which is killed when the file ``RUNS/painted.npy`` with all labels
has appeared.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import napari
import numpy as np
from napari.settings import get_plugin_settings
from qtpy.QtCore import QPoint, Qt
from qtpy.QtOpenGLWidgets import QOpenGLWidget
from qtpy.QtTest import QTest

from napari_strata.core.events import LabelsUpdated
from napari_strata.core.runs import RunFolder
from widgets.lifecycle import click, wait

NETWORK = {
    "network.kind": "unet",
    "network.widths": [4, 8],
    "patches.size": 32,
    "patches.per_epoch": 16,
    "training.batch_size": 4,
    "training.averaging": None,
    "training.recalibration": 8,
}
PAINTED = "painted.npy"
DARK, BRIGHT = 1, 2


def two_phases() -> np.ndarray[Any, Any]:
    """Dark on the left and bright on the right, 4 planes; the edge moves with Z."""
    rng = np.random.default_rng(0)
    stack = rng.normal(60, 8, (4, 80, 120))
    for z in range(4):
        stack[z, :, 40 + 10 * z :] += 100
    return stack.clip(0, 255).astype(np.uint8)


def drag(viewer: Any, start: tuple[int, int], end: tuple[int, int]) -> None:
    """Draw with the left mouse button from one pixel of the plane to another."""
    (canvas,) = viewer.window._qt_window.findChildren(QOpenGLWidget)
    camera = viewer.scene.camera

    def place(pixel: tuple[int, int]) -> QPoint:
        down, across = (np.array(pixel) - camera.center[-2:]) * camera.zoom
        return QPoint(
            round(canvas.width() / 2 + across), round(canvas.height() / 2 + down)
        )

    QTest.qWait(100)  # the canvas follows the camera
    button = Qt.MouseButton.LeftButton
    QTest.mouseMove(canvas, place(start))
    QTest.mousePress(canvas, button, pos=place(start))
    for share in (0.25, 0.5, 0.75, 1):
        pixel = np.array(start) + share * (np.array(end) - start)
        QTest.mouseMove(canvas, place((pixel[0], pixel[1])))
        QTest.qWait(20)
    QTest.mouseRelease(canvas, button, pos=place(end))


def stroke(dock: Any, plane: int, row: int, value: int) -> None:
    """Paint a stroke of a class on a plane, as a user does."""
    viewer, labels = dock.viewer, dock.data_box.labels.layer
    viewer.dims.set_current_step(0, plane)
    viewer.layers.selection.active = labels
    labels.mode, labels.selected_label, labels.brush_size = "paint", value, 3
    before = labels.data.copy()
    first = 5 if value == DARK else 85
    drag(viewer, (row, first), (row, first + 25))
    changed = np.argwhere(labels.data != before)
    assert len(changed) > 20, f"the brush painted {len(changed)} pixels"
    assert set(changed[:, 0]) == {plane}
    assert set(labels.data[labels.data != before]) == {value}


def paint(dock: Any) -> None:
    """Paint until the live mask is right, and one window."""
    click(dock.data_box.labels.new_button)
    wait(lambda: dock.data_box.labels.layer is not None, "the new labels")
    labels = dock.data_box.labels.layer
    stroke(dock, 1, 10, DARK)
    stroke(dock, 1, 10, BRIGHT)
    wait(lambda: "trees, 2 strokes" in dock.live_mask.text, "the live mask")
    expected = np.where(np.arange(120) < 50, DARK, BRIGHT)
    mask = np.asarray(dock.live_mask.layer.data)
    assert (mask[1] == expected).mean() > 0.95
    assert dock.live_mask.layer.visible

    # A correction changes the mask: here somebody calls the middle of the dark bright.
    stroke(dock, 1, 40, BRIGHT)
    stroke(dock, 1, 70, DARK)
    wait(lambda: "trees, 4 strokes" in dock.live_mask.text, "the corrected mask")

    count = (labels.data > 0).sum()
    click(dock.next_window.next_button)
    wait(lambda: "Window 1." in dock.next_window.text.text(), "a window")
    assert (labels.data > 0).sum() == count, "nothing is confirmed"
    QTest.keyClick(dock.viewer.window._qt_window, Qt.Key.Key_N)
    wait(lambda: "Window 2." in dock.next_window.text.text(), "another window")
    assert (labels.data > 0).sum() == count + 121
    dock.viewer.reset_view()
    for plane in (0, 3):
        for row in (20, 60):
            stroke(dock, plane, row, DARK)
            stroke(dock, plane, row, BRIGHT)


def train(dock: Any) -> None:
    """Train without an end, and paint on: the training uses it."""
    labels = dock.data_box.labels.layer
    dock.then_box.value = False
    dock.recipe_box.set_recipe("default", NETWORK | {"training.epochs": 100_000})
    click(dock.start_button)
    wait(lambda: dock.panel.curves.epochs, "the first epoch")
    folder = RunFolder(dock.run)
    train_planes = {row["index"]["Z"] for row in folder.data()["training"]}
    stroke(dock, min(train_planes), 40, DARK)

    def updates() -> list[LabelsUpdated]:
        return [each for each in folder.events() if isinstance(each, LabelsUpdated)]

    def uses_all() -> bool:
        used = [update.pixels + update.held_back for update in updates()]
        return bool(used) and used[-1] == (labels.data > 0).sum()

    wait(uses_all, "the training to use the stroke")
    wait(lambda: "until now" in dock.panel.labels_text.text(), "the dock to say so")
    epoch = len(dock.panel.curves.epochs)
    wait(lambda: len(dock.panel.curves.epochs) > epoch, "an epoch with the stroke")


def main(runs: Path) -> None:
    """Do all that, and wait."""
    get_plugin_settings("napari-strata").work.runs = str(runs)
    viewer = napari.Viewer()
    viewer.window._qt_window.resize(1200, 700)
    image = viewer.add_image(two_phases(), name="phases", axis_labels=("z", "y", "x"))
    viewer.layers.selection = {image}
    _, dock = viewer.window.add_plugin_dock_widget("napari-strata", "Train")
    QTest.qWaitForWindowExposed(viewer.window._qt_window)
    paint(dock)
    train(dock)
    saved: list[Path] = []
    dock.autosave.saved.connect(saved.append)
    dock.autosave.save()
    wait(lambda: saved, "the labels to be saved")
    np.save(runs / "painting.npy", dock.data_box.labels.layer.data)
    (runs / "painting.npy").rename(runs / PAINTED)
    wait(lambda: False, "the end")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
