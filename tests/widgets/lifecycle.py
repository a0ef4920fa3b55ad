"""Open docks in a real viewer, use them and close the window; the exit status is the result.

Usage: ``python lifecycle.py RUNS {viewer,window} DOCK...``

Run by test_lifecycle.py in a process of its own, because what goes wrong when napari
ends (a crash of Qt, an object that keeps the viewer alive) shows only at its end. The
status is 0 only if every dock did its work, if Python ended without a crash, and, after
``viewer.close()``, if nothing of the viewer is alive. (After a click on the window's
close button napari itself keeps the viewer.)
"""

from __future__ import annotations

import faulthandler
import gc
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any

import napari
import numpy as np
from napari.settings import get_plugin_settings
from qtpy.QtCore import QEvent
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QApplication

from napari_strata.widgets.layers.live import PREDICTED

PATIENCE = 300
"""Seconds to wait for a step, long enough for a busy computer."""
TINY = {
    "network.kind": "unet",
    "network.widths": [4, 8],
    "patches.size": 32,
    "patches.per_epoch": 8,
    "training.batch_size": 4,
    "training.epochs": 1,
    "training.averaging": None,
    "training.recalibration": 8,
}


def wait(ready: Callable[[], Any], what: str) -> None:
    """Run the event loop until something is ready."""
    end = monotonic() + PATIENCE
    while not ready():
        if monotonic() > end:
            raise TimeoutError(f"waited {PATIENCE} s for {what}")
        QTest.qWait(20)


def click(button: Any) -> None:
    """Click a button of a dock, once it is enabled."""
    wait(lambda: button.enabled, f"the button {button.text}: {button.tooltip}")
    button.native.click()


def train(dock: Any) -> None:
    """Train two classes of the sandstone, very briefly."""
    dock.then_box.value = False
    dock.recipe_box.set_recipe("default", TINY)
    click(dock.start_button)
    wait(lambda: dock.handle is not None, "the start of the training")
    wait(lambda: dock.handle is None, "the end of the training")
    assert "Training finished" in dock.notice.text(), dock.notice.text()


def predict(dock: Any) -> None:
    """Segment the sandstone with the model of the only run."""
    (model,) = dock.session.settings.runs.glob("*/model.safetensors")
    dock.model.choose(model.parent)
    click(dock.predict_button)
    wait(lambda: dock.prediction is None, "the end of the prediction")
    # The model knows other grey values: the guard warns, and labels are added.
    assert "segmented: 8 planes" in dock.notice.text(), dock.notice.text()


def evaluate(dock: Any) -> None:
    """Compare the two labels layers."""
    click(dock.compare_button)
    wait(lambda: dock.written is not None, "the scores")
    click(dock.errors_button)
    wait(lambda: dock.export_button.enabled, "the layer of errors")


USES = {"Train": train, "Predict": predict, "Evaluate": evaluate}


def use_docks(runs: Path, end: str, names: list[str]) -> dict[str, weakref.ref[Any]]:
    """Open, use and close a viewer; return weak references to objects that must be deleted."""
    get_plugin_settings("napari-strata").work.runs = str(runs)
    viewer = napari.Viewer()
    viewer.open_sample("napari-strata", "sandstone")
    image, labels = viewer.layers
    labels.data[[0, 2, 3, 5, 7]] = 0
    labels.refresh()
    if "Predict" not in names and "Evaluate" in names:
        viewer.add_labels(
            np.roll(labels.data, 1, axis=1),
            name="shifted",
            scale=labels.scale,
            units=labels.units,
            axis_labels=labels.axis_labels,
            metadata={PREDICTED: True},
        )
    viewer.layers.selection = {image}
    window = viewer.window._qt_window
    references = {
        "viewer": weakref.ref(viewer),
        "canvas": weakref.ref(viewer.window._qt_viewer),
        "main window": weakref.ref(window),
    }
    docks = {}
    for name in names:
        _, dock = viewer.window.add_plugin_dock_widget("napari-strata", name)
        docks[name] = dock
        references[name] = weakref.ref(dock)
        references["session"] = weakref.ref(dock.session)
    for name, dock in docks.items():
        USES[name](dock)
        print(f"{name} is done", flush=True)
    if end == "window":
        window.close()
    else:
        viewer.close()
    return references


def alive(references: dict[str, weakref.ref[Any]]) -> list[str]:
    """Return the names of objects that still exist after garbage collection."""
    QApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete)
    gc.collect()
    return [name for name, reference in references.items() if reference() is not None]


def main(runs: str, end: str, *names: str) -> None:
    """Run all steps, and fail if objects are left."""
    faulthandler.enable()
    references = use_docks(Path(runs), end, list(names))
    print("closed", flush=True)
    if end == "viewer":
        wait(lambda: not alive(references), f"the end of {list(references)}")
        print("nothing is left", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
