"""Delays of the viewer's event loop while a network trains and predicts.

A real window, the real docks, a stack of 8 x 1024 x 996 pixels, and a 10 ms timer: the
time between two of its ticks is written down in each phase. Compare with
napari-unet-assistant, measured by the same timer: p99 10 ms, worst 216 to 312 ms.

    python benchmarks/responsiveness.py [--out result.json] [--minutes 2]

Without a display, run it under ``xvfb-run -s "-screen 0 1280x720x24"``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from importlib.metadata import version
from pathlib import Path
from time import perf_counter

os.environ["NAPARI_CONFIG"] = ""  # the user's own settings are neither read nor changed

import napari
import numpy as np
from napari.settings import get_plugin_settings
from qtpy.QtCore import QEventLoop, Qt, QTimer
from qtpy.QtWidgets import QApplication

from napari_strata.io.samples import sandstone
from napari_strata.plugin import image_layer, labels_layer

SHAPE = (8, 1024, 996)


class Pulse:
    """A 10 ms timer that writes down when it ticks."""

    def __init__(self) -> None:
        self.phase = ""
        self.gaps: dict[str, list[float]] = {}
        self._last = perf_counter()
        self._timer = QTimer()
        self._timer.setTimerType(Qt.TimerType.PreciseTimer)
        self._timer.setInterval(10)
        self._timer.timeout.connect(self._tick)
        self._timer.start()

    def enter(self, phase: str) -> None:
        """Begin a phase: ticks from here on count for it."""
        self.phase = phase
        self._last = perf_counter()

    def _tick(self) -> None:
        time_now = perf_counter()
        if self.phase:
            self.gaps.setdefault(self.phase, []).append(1000 * (time_now - self._last))
        self._last = time_now

    def table(self) -> dict[str, dict[str, float]]:
        """Milliseconds between two ticks, by phase."""
        phases = {}
        for phase, gaps in self.gaps.items():
            values = np.asarray(gaps)
            p50, p99 = np.percentile(values, (50, 99))
            phases[phase] = {
                "ticks": len(values),
                "median_ms": round(float(p50), 1),
                "p99_ms": round(float(p99), 1),
                "worst_ms": round(float(values.max()), 1),
                "over_50_ms": int((values > 50).sum()),
                "over_100_ms": int((values > 100).sum()),
            }
        return phases


def wait(seconds: float, until: object = lambda: False) -> None:
    """Run the event loop as napari does, for so long or until something is true."""
    loop, check = QEventLoop(), QTimer()
    check.setInterval(100)
    check.timeout.connect(lambda: loop.quit() if until() else None)  # type: ignore[operator]
    check.start()
    QTimer.singleShot(int(1000 * seconds), loop.quit)
    loop.exec()
    check.stop()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    parser.add_argument(
        "--minutes", type=float, default=2.0, help="of training (default 2)"
    )
    parser.add_argument("--recipe", default="unet-ct")
    options = parser.parse_args()
    folder = tempfile.mkdtemp()
    get_plugin_settings("napari-strata").work.runs = folder
    pair = sandstone(SHAPE)
    viewer = napari.Viewer()
    viewer.window.resize(1280, 720)
    data, arguments, _ = image_layer(pair.image)
    layer = viewer.add_image(data, **arguments)
    sparse = np.zeros(SHAPE, np.uint8)
    sparse[[0, 3, 6]] = np.asarray(pair.labels.data)[[0, 3, 6]]
    labels_data, attributes, _ = labels_layer(
        pair.image.labels_like(sparse, classes=pair.labels.classes)
    )
    viewer.add_labels(labels_data, **attributes | {"name": "painted"})
    viewer.layers.selection = {layer}
    pulse = Pulse()
    _, dock = viewer.window.add_plugin_dock_widget(
        "napari-strata", "Train", tabify=True
    )
    dock.recipe_box.set_recipe(options.recipe, {"patches.per_epoch": 32})
    wait(
        15,
        lambda: (
            bool(dock.plan_summary.text.text())
            and dock.session.client.current_state == "ready"
        ),
    )
    pulse.enter("opening a dock")
    viewer.window.add_plugin_dock_widget("napari-strata", "Predict", tabify=True)
    wait(2)
    dock.come_forward()
    wait(3)
    pulse.enter("idle")
    wait(5)
    pulse.enter("training")
    dock.start_button.native.click()
    wait(60 * options.minutes)
    epochs = (
        len(dock.panel.curves.epochs) if hasattr(dock.panel.curves, "epochs") else None
    )
    pulse.enter("stopping")
    start = perf_counter()
    dock.stop_button.native.click()
    wait(10, lambda: dock.handle is None)
    stopped = perf_counter() - start
    wait(2)
    pulse.enter("predicting")
    dock.predict_button.native.click()
    wait(3)
    predict = next(
        w for name, w in viewer.window.dock_widgets.items() if "Predict" in name
    )
    wait(300, lambda: predict.prediction is None)
    wait(2)
    pulse.enter("")
    facts = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "napari": version("napari"),
        "napari-strata": version("napari-strata"),
        "stack": " x ".join(map(str, SHAPE)),
        "recipe": options.recipe,
        "epochs": epochs,
        "stop_answered_s": round(stopped, 2),
        "phases": pulse.table(),
    }
    for phase, row in facts["phases"].items():  # type: ignore[union-attr]
        print(
            f"{phase:12}" + "".join(f"{key} {value:<9}" for key, value in row.items())
        )
    print(json.dumps({key: value for key, value in facts.items() if key != "phases"}))
    if options.out:
        options.out.write_text(json.dumps(facts, indent=2) + "\n")
    viewer.close()
    application = QApplication.instance()
    if application is not None:
        application.processEvents()


if __name__ == "__main__":
    main()
