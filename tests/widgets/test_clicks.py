"""From a folder of slices to scores, with the clicks of the mouse counted."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from napari.settings import get_plugin_settings
from qtpy.QtCore import Qt, QTimer
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QApplication, QDialogButtonBox, QFileDialog, QWidget

from napari_strata.core.classes import ClassMap
from napari_strata.core.image import LabelImage
from napari_strata.io import write_labels
from widgets.journey import NETWORK, drag

NAMES = ("pore", "clay", "quartz", "mineral")
GREY = (30, 90, 150, 220)
SHAPE = (4, 80, 120)
PATIENCE = 120_000
"""Milliseconds for a step, long enough for a busy computer."""
GOAL = 9
"""Clicks in all; strokes are not clicks."""


class Mouse:
    """Clicks on widgets that can be seen, and counts them."""

    def __init__(self) -> None:
        self.clicks = 0

    def click(self, widget: QWidget) -> None:
        """Click the middle of a widget that is visible and enabled, or soon is."""
        for _ in range(100):
            if widget.isVisible() and widget.isEnabled():
                break
            QTest.qWait(50)
        assert widget.isVisible(), widget
        assert widget.isEnabled(), widget.toolTip()
        QTest.mouseClick(widget, Qt.MouseButton.LeftButton)
        self.clicks += 1

    def choose(self, viewer: Any, dock: str) -> None:
        """Open a dock by the menu Layers > Segment: click the menu, then the entry."""
        menus = viewer.window._qt_window.menuBar().actions()
        (layers,) = [each.menu() for each in menus if "Layers" in each.text()]
        layers.aboutToShow.emit()
        segment = action_of(layers, "Segment").menu()
        segment.aboutToShow.emit()
        entry = action_of(segment, f"{dock} (Strata)")
        assert entry.isEnabled()
        entry.trigger()
        self.clicks += 2


def action_of(menu: Any, text: str) -> Any:
    """Return the entry of a menu with this text."""
    (action,) = [each for each in menu.actions() if each.text() == text]
    return action


def truth() -> np.ndarray[Any, Any]:
    """Four phases side by side, whose edges move with Z."""
    labels = np.zeros(SHAPE, np.uint8)
    for z in range(SHAPE[0]):
        for number in range(4):
            labels[z, :, number * 30 + 2 * z :] = number + 1
        labels[z, :, : 2 * z] = 1
    return labels


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a TIFF file for each slice."""
    rng = np.random.default_rng(0)
    grey = np.array((0, *GREY))[truth()] + rng.normal(0, 6, SHAPE)
    path = tmp_path / "scan"
    path.mkdir()
    for z, plane in enumerate(grey.clip(0, 255).astype(np.uint8)):
        tifffile.imwrite(path / f"slice_{z:03}.tif", plane)
    return path


@pytest.fixture
def viewer(make_napari_viewer: Any, tmp_path: Path, qtbot: Any) -> Iterator[Any]:
    """A viewer whose runs go to a folder of their own."""
    work = get_plugin_settings("napari-strata").work
    before, work.runs = work.runs, str(tmp_path / "runs")
    viewer = make_napari_viewer(show=True)
    yield weakref.proxy(viewer)
    viewer.close()
    work.runs = before


def dock_of(viewer: Any, name: str) -> Any:
    """Return the open dock with this name."""
    docks = viewer.window.dock_widgets
    return next(weakref.proxy(each) for title, each in docks.items() if name in title)


def stroke(dock: Any, plane: int, row: int, value: int) -> None:
    """Paint a stroke of the selected class on a plane."""
    viewer, labels = dock.viewer, dock.data_box.labels.layer
    assert labels.selected_label == value
    viewer.dims.set_current_step(0, plane)
    labels.brush_size = 3
    start = 30 * (value - 1) + 9
    drag(viewer, (row, start), (row, start + 15))


def press_key(viewer: Any, key: Qt.Key) -> None:
    QTest.keyClick(viewer.window._qt_window, key)


def accept_dialog(mouse: Mouse) -> None:
    """Click the Save button of the dialog that is open, which proposes a name."""
    dialog = QApplication.activeModalWidget()
    assert isinstance(dialog, QFileDialog)
    box = dialog.findChild(QDialogButtonBox)
    mouse.click(box.button(QDialogButtonBox.StandardButton.Save))


@pytest.mark.slow
def test_from_a_folder_to_scores_in_nine_clicks(
    viewer: Any, folder: Path, qtbot: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    def wait(ready: Callable[[], Any]) -> None:
        qtbot.waitUntil(lambda: bool(ready()), timeout=PATIENCE)

    mouse = Mouse()
    viewer.open(str(folder), plugin="napari-strata")  # dropped on the window
    mouse.choose(viewer, "Train")
    wait(lambda: any("Train" in name for name in viewer.window.dock_widgets))
    train = dock_of(viewer, "Train")
    wait(lambda: train.data_box.labels.new_button.enabled)

    # The only text that is typed.
    train.data_box.labels.names.setFocus()
    QTest.keyClicks(train.data_box.labels.names, ", ".join(NAMES))
    mouse.click(train.data_box.labels.new_button.native)
    wait(lambda: train.data_box.labels.layer is not None)
    for plane, row in ((1, 10), (1, 60), (2, 40)):
        for value in (1, 2, 3, 4):
            stroke(train, plane, row, value)
            press_key(viewer, Qt.Key.Key_W)
    wait(lambda: "12 strokes" in train.live_mask.text)

    few_epochs = {"training.epochs": 40, "training.learning_rate": 0.01}
    train.recipe_box.set_recipe("default", NETWORK | few_epochs)
    wait(lambda: train.start_button.enabled)
    mouse.click(train.start_button.native)
    wait(lambda: train.panel.curves.epochs)
    # A correction while it trains, of which the training learns.
    for value in (1, 2, 3, 4):
        stroke(train, 3, 20, value)
        press_key(viewer, Qt.Key.Key_W)
    wait(lambda: train.handle is None)
    predict = dock_of(viewer, "Predict")
    wait(lambda: predict.prediction is None and predict.save_button.enabled)

    monkeypatch.chdir(tmp_path)
    QTimer.singleShot(500, lambda: accept_dialog(mouse))
    mouse.click(predict.save_button.native)
    wait(lambda: predict.notice.text().startswith("Saved to"))
    (saved,) = tmp_path.glob("scan*.ome.tif")

    # Another day: the saved labels and the dense truth are dropped on the window.
    viewer.layers.clear()
    viewer.open(str(saved), plugin="napari-strata")
    classes = ClassMap(names=NAMES, values=(1, 2, 3, 4))
    dense = write_labels(
        tmp_path / "truth.ome.tif", LabelImage(truth(), "ZYX", classes=classes)
    )
    viewer.open(str(dense), plugin="napari-strata")
    mouse.choose(viewer, "Evaluate")
    wait(lambda: any("Evaluate" in name for name in viewer.window.dock_widgets))
    evaluate = dock_of(viewer, "Evaluate")
    wait(lambda: evaluate.compare_button.enabled)
    mouse.click(evaluate.compare_button.native)
    wait(lambda: evaluate.written is not None)

    assert mouse.clicks <= GOAL
    predicted = np.asarray(viewer.layers[0].data)
    assert (predicted == truth()).mean() > 0.5
