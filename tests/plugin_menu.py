"""Open the docks through napari's menus, in an environment that holds the wheel.

``python tests/plugin_menu.py FOLDER``; run by ``tox run -e menu``. Nothing of the checkout
is imported. A picture of the window is written to `FOLDER`. Without a display, Xvfb gives
one.
"""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import napari
from qtpy import API_NAME
from qtpy.QtGui import QAction
from qtpy.QtWidgets import QApplication, QMenu

DOCKS = ("Train", "Predict", "Evaluate", "Measure")
SMALL_NETWORK = {
    "network.kind": "unet",
    "network.widths": [4, 8],
    "patches.size": 32,
    "patches.per_epoch": 16,
    "training.batch_size": 4,
    "training.epochs": 2,
}
TIMEOUT = 180.0
"""Seconds."""


def wait_until(condition: Callable[[], bool], description: str) -> None:
    """Process the window's events until `condition` holds."""
    end = time.monotonic() + TIMEOUT
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(description)
        QApplication.processEvents()
        time.sleep(0.01)


def find_action(menu: QMenu, *path: str) -> QAction:
    """Open `menu` as a click does and return the action at the end of `path`."""
    menu.aboutToShow.emit()
    title, *rest = path
    for action in menu.actions():
        if action.text().replace("&", "") == title:
            return find_action(action.menu(), *rest) if rest else action
    titles = [action.text() for action in menu.actions()]
    raise LookupError(f"{menu.title()!r} has no {title!r}, only {titles}")


def main(folder: Path) -> None:
    """Open the sample and each dock by their menus, train, and save a picture."""
    versions = [
        f"{name} {importlib.metadata.version(name)}"
        for name in ("napari", "npe2", "napari-strata", API_NAME)
    ]
    print(*versions, sep=", ")
    viewer = napari.Viewer()
    window = viewer.window
    bar = window._qt_window.menuBar()
    menus = {action.text().replace("&", ""): action.menu() for action in bar.actions()}

    sample = find_action(
        menus["File"], "Open Sample", "Strata", "Sandstone (CT, 4 classes)"
    )
    sample.trigger()
    wait_until(lambda: len(viewer.layers) == 2, "the sample did not open")
    viewer.layers.selection = {viewer.layers[0]}

    for name in DOCKS:
        find_action(menus["Plugins"], "Strata", f"{name} (Strata)").trigger()
    wait_until(lambda: len(window.dock_widgets) == len(DOCKS), "not every dock opened")
    docks = {name.partition(" ")[0]: dock for name, dock in window.dock_widgets.items()}
    assert set(docks) == set(DOCKS), docks
    for name in DOCKS:
        action = find_action(menus["Layers"], "Segment", f"{name} (Strata)")
        assert action.isEnabled(), action.text()

    train = docks["Train"]
    train.then_box.value = False
    train.recipe_box.set_recipe("default", SMALL_NETWORK)
    wait_until(lambda: train.start_button.enabled, "Train is not enabled")
    train.start_button.native.click()
    wait_until(lambda: train.handle is not None, "the training did not start")
    wait_until(lambda: train.handle is None, "the training did not end")
    assert len(train.panel.curves.epochs) == 2, train.notice.text()

    folder.mkdir(parents=True, exist_ok=True)
    window._qt_window.grab().save(str(folder / "docks.png"))
    assert "torch" not in sys.modules
    viewer.close()
    print("1 passed, 0 failed")


if __name__ == "__main__":
    if sys.platform.startswith("linux") and "DISPLAY" not in os.environ:
        from pyvirtualdisplay.display import Display

        # In a process of its own: Qt must end before its display does.
        with Display(size=(1600, 1100)):
            done = subprocess.run([sys.executable, *sys.argv], check=False)
        sys.exit(done.returncode)
    main(Path(sys.argv[1]))
