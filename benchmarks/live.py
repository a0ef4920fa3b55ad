"""Time from a stroke to its live mask, in a real viewer.

Strokes are painted one after another on a generated sandstone. The time is that until
the mask layer changes first (half resolution) and last (final labels). Then pages are
turned. A 10 ms timer shows how long the viewer's event loop pauses meanwhile.

    python benchmarks/live.py [--shape 8 1024 996] [--strokes 30] [--training]

With ``--training``, a network trains at the same time. Without a display, run it under
``xvfb-run -s "-screen 0 1280x720x24"``.
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
from typing import Any

os.environ["NAPARI_CONFIG"] = ""  # the user's own settings are neither read nor changed

import napari
import numpy as np
import psutil
from napari.settings import get_plugin_settings
from responsiveness import Pulse, wait
from scipy.ndimage import binary_erosion

from napari_strata.io.samples import sandstone
from napari_strata.plugin import image_layer

QUIET = 1.5
"""Seconds without a change after which a mask counts as complete."""
LENGTH, WIDTH = 60, 7
"""Size of a stroke, in pixels."""
PATIENCE = 120.0


class MaskClock:
    """Writes down when the mask layer changes."""

    def __init__(self, dock: Any) -> None:
        self.times: list[float] = []
        self._dock = dock
        self._layer: Any = None

    def follow(self) -> None:
        """Listen to the mask layer, if there is one now."""
        layer = self._dock.live_mask.layer
        if layer is not None and layer is not self._layer:
            self._layer = layer
            layer.events.set_data.connect(self._tick)
            self._tick()

    def _tick(self, _event: object = None) -> None:
        self.times.append(perf_counter())

    def measure(self, act: Any) -> tuple[float, float]:
        """Do something; return seconds until the mask changes first and last."""
        self.times.clear()
        start = perf_counter()
        act()

        def is_complete() -> bool:
            self.follow()
            return bool(self.times) and perf_counter() - self.times[-1] > QUIET

        wait(PATIENCE, is_complete)
        if not self.times:
            return float("nan"), float("nan")
        return self.times[0] - start, self.times[-1] - start


def draw_stroke(
    truth: np.ndarray[Any, Any], value: int, rng: np.random.Generator
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return the pixels of a stroke of a class, 1.5 px off its edges."""
    inside = binary_erosion(truth == value, iterations=2)
    row, column = rng.choice(np.argwhere(inside))
    angle = rng.uniform(0, np.pi)
    rows, columns = np.indices(truth.shape, sparse=True)
    along = (rows - row) * np.sin(angle) + (columns - column) * np.cos(angle)
    across = (rows - row) * np.cos(angle) - (columns - column) * np.sin(angle)
    is_near = (abs(along) < LENGTH / 2) & (abs(across) < WIDTH / 2)
    return np.nonzero(is_near & inside)


def summarize(seconds: list[float]) -> dict[str, float]:
    return {
        "median_s": round(float(np.median(seconds)), 2),
        "worst_s": round(float(np.max(seconds)), 2),
    }


def memory(process: psutil.Process) -> int:
    """Resident memory of a process and its children, in MB."""
    processes = [process, *process.children(recursive=True)]
    return round(sum(each.memory_info().rss for each in processes) / 1e6)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", type=int, nargs=3, default=(8, 1024, 996))
    parser.add_argument("--strokes", type=int, default=30)
    parser.add_argument(
        "--training", action="store_true", help="while a network trains"
    )
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    shape = tuple(options.shape)
    get_plugin_settings("napari-strata").work.runs = tempfile.mkdtemp()
    pair = sandstone(shape)
    truth = np.asarray(pair.labels.data)
    viewer = napari.Viewer()
    viewer.window.resize(1280, 720)
    data, arguments, _ = image_layer(pair.image)
    image = viewer.add_image(data, **arguments)
    labels = viewer.add_labels(
        np.zeros(shape, np.uint8),
        name="strokes",
        scale=image.scale,
        units=image.units,
        axis_labels=image.axis_labels,
    )
    viewer.layers.selection = {image}
    viewer.dims.set_current_step(0, 0)
    _, dock = viewer.window.add_plugin_dock_widget("napari-strata", "Train")
    dock.then_box.value = False
    dock.preview_box.value = False
    wait(15, lambda: dock.session.client.current_state == "ready")
    rng = np.random.default_rng(0)
    values = [int(value) for value in np.unique(truth) if value]
    plane = 0

    def paint(value: int) -> None:
        pixels = draw_stroke(truth[plane], value, rng)
        labels.data_setitem((np.full_like(pixels[0], plane), *pixels), value)

    for value in values[:-1]:
        paint(value)
    clock, pulse = MaskClock(dock), Pulse()
    first = clock.measure(lambda: paint(values[-1]))
    if options.training:
        dock.recipe_box.set_recipe("unet-ct")
        wait(60, lambda: bool(dock.start_button.enabled))
        dock.start_button.native.click()
        wait(120, lambda: len(dock.panel.curves.epochs) > 0)
    pulse.enter("strokes")
    coarse, full = [], []
    for number in range(options.strokes):
        value = values[number % len(values)]
        seconds = clock.measure(lambda value=value: paint(value))
        coarse.append(seconds[0])
        full.append(seconds[1])
    pulse.enter("pages")
    pages = []
    for plane in range(1, shape[0]):
        turn = lambda plane=plane: viewer.dims.set_current_step(0, plane)  # noqa: E731
        pages.append(clock.measure(turn)[1])
    pulse.enter("")
    facts = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "napari": version("napari"),
        "napari-strata": version("napari-strata"),
        "stack": " x ".join(map(str, shape)),
        "training": options.training,
        "first_mask_s": round(first[1], 2),
        "stroke_to_coarse": summarize(coarse),
        "stroke_to_full": summarize(full),
        "page_turn": summarize(pages),
        "memory_mb": memory(psutil.Process()),
        "text": dock.live_mask.text,
        "pauses": pulse.table(),
    }
    print(json.dumps(facts, indent=2))
    if options.out:
        options.out.write_text(json.dumps(facts, indent=2) + "\n")
    if options.training:
        dock.stop()
        wait(20, lambda: dock.handle is None)
    viewer.close()


if __name__ == "__main__":
    main()
