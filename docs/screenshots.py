"""Make the README's pictures: a real napari window after clicks on real buttons.

    python docs/screenshots.py [--out docs/images] [--size 1440 900] [--themes dark]

It paints strokes for the live mask, trains the demo's network (minutes on two cores),
segments a larger stack that the network has never seen, and compares the labels with
that stack's truth. With several themes, each picture is made in all of them. Without a
display it starts itself again under Xvfb. Your napari settings and runs are neither
read nor changed. Machine, times and paths in the pictures are those of the computer
that runs this.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

DOCK = 410
"""Pixels that the docks are wide."""
STACK = (48, 512, 512)
"""Large enough for two cores to be busy with it for some seconds."""


def main() -> None:
    """Read the command line, prepare display and run folder, make the pictures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = Path(__file__).resolve().parent / "images"
    parser.add_argument(
        "--out",
        type=Path,
        default=default,
        help="folder for the pictures (default docs/images)",
    )
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        default=(1440, 900),
        metavar=("WIDTH", "HEIGHT"),
        help="size of the window (default 1440 900)",
    )
    parser.add_argument(
        "--themes",
        nargs="+",
        default=["dark"],
        help="napari's themes; the pictures of others than the first have their name",
    )
    options = parser.parse_args()
    out = options.out.resolve()
    if sys.platform == "linux" and not (
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    ):
        start_under_xvfb(options.size)
    out.mkdir(parents=True, exist_ok=True)
    os.environ["NAPARI_CONFIG"] = (
        ""  # before napari is imported: the user's settings stay out of it
    )
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as runs:
        make_pictures(out, Path(runs) / "napari-strata", options.size, options.themes)


def start_under_xvfb(size: Sequence[int]) -> None:
    """Become the same command under Xvfb; says what is missing when there is none."""
    starter = shutil.which("xvfb-run")
    if starter is None:
        sys.exit(
            "There is no display and no xvfb-run: install Xvfb (Debian: apt-get "
            "install xvfb) or use a desktop."
        )
    screen = "-screen 0 {}x{}x24".format(*size)
    os.execv(
        starter,
        [
            starter,
            "-a",
            "-s",
            screen,
            sys.executable,
            str(Path(__file__).resolve()),
            *sys.argv[1:],
        ],
    )


def make_pictures(
    out: Path, runs: Path, size: Sequence[int], themes: Sequence[str]
) -> None:
    """Go through the first clicks and the demo; runs go into the folder `runs`."""
    import napari
    from napari.settings import get_plugin_settings

    from napari_strata.widgets.demo import open_demo

    get_plugin_settings("napari-strata").work.runs = str(runs)
    viewer = napari.Viewer()
    picture = partial(save, viewer, out, themes)
    paint(viewer, size)
    picture("paint")
    viewer.close()
    wait(1)

    viewer = open_demo()
    picture = partial(save, viewer, out, themes)
    docks = {
        name.split(" ")[0]: dock for name, dock in viewer.window.dock_widgets.items()
    }
    lay_out(viewer, docks["Train"], size)
    wait(
        90, lambda: "Validation" in docks["Train"].plan_summary.text.text(), "the plan"
    )
    picture("setup")
    dialog = check_computer(docks["Train"], size[1])
    picture("doctor", dialog)
    dialog.close_button.click()
    train(viewer, docks["Train"])
    picture("train")
    wait(900, lambda: docks["Train"].handle is None, "the end of the training")
    truth = predict(viewer, docks["Predict"])
    picture("predict")
    wait(300, lambda: docks["Predict"].prediction is None, "the end of the prediction")
    evaluate(viewer, docks["Evaluate"], truth)
    picture("evaluate")
    viewer.close()
    wait(1)


def paint(viewer: Any, size: Sequence[int]) -> None:
    """Paint a stroke of each class on an image, and wait for the live mask."""
    import numpy as np
    from scipy import ndimage

    from napari_strata.io.samples import sandstone
    from napari_strata.plugin import image_layer

    pair = sandstone((3, 384, 384), seed=1)
    data, attributes, _ = image_layer(pair.image)
    image = viewer.add_image(data, **attributes | {"name": "sandstone"})
    viewer.layers.selection.active = image
    _, dock = viewer.window.add_plugin_dock_widget("napari-strata", "Train")
    lay_out(viewer, dock, size)
    chosen = dock.data_box.labels
    chosen.names.setText(", ".join(pair.labels.classes.names))
    press(dock, "New labels")
    wait(30, lambda: chosen.layer is not None, "the new labels")
    labels = chosen.layer
    labels.brush_size = 5
    plane = viewer.dims.current_step[0]
    truth = np.asarray(pair.labels.data[plane])
    for value in pair.labels.classes.values:
        # The largest piece of each class gets a stroke, along its middle.
        pieces, _ = ndimage.label(ndimage.binary_erosion(truth == value, iterations=4))
        sizes = np.bincount(pieces.ravel())[1:]
        rows, columns = np.nonzero(pieces == 1 + int(sizes.argmax()))
        middle = rows[len(rows) // 2]
        across = columns[rows == middle][:40]
        labels.selected_label = value
        for column in across:
            labels.paint((plane, middle, column), value, refresh=False)
        labels.refresh()
        wait(1)
    wait(180, lambda: "strokes" in dock.live_mask.text, "the live mask")
    wait(4)  # the full resolution follows the coarse mask


def lay_out(viewer: Any, dock: Any, size: Sequence[int]) -> None:
    """Set the size of the window and its docks, and fit the image into it."""
    from qtpy.QtCore import Qt
    from qtpy.QtWidgets import QDockWidget

    window = viewer.window._qt_window
    viewer.window.resize(*size)
    frame = next(
        one for one in window.findChildren(QDockWidget) if one.isAncestorOf(dock)
    )
    wait(0.5)
    window.resizeDocks([frame], [DOCK], Qt.Orientation.Horizontal)
    wait(0.5)
    viewer.reset_view()


def check_computer(dock: Any, height: int) -> Any:
    """The dialog with every check made, as tall as they are, up to a height."""
    from qtpy.QtWidgets import QScrollArea

    from napari_strata.widgets.doctor import DoctorDialog

    press(dock, "Check this computer")
    dialog = dock.findChild(DoctorDialog)
    wait(
        90,
        lambda: dialog.summary.text() != "Checking ...",
        "the checks of the computer",
    )
    dialog.resize(760, 300)
    wait(0.3)
    dialog.resize(
        760,
        min(300 + dialog.findChild(QScrollArea).verticalScrollBar().maximum(), height),
    )
    return dialog


def train(viewer: Any, dock: Any) -> None:
    """A training near its end, with a visible plane that is not labelled."""
    viewer.dims.set_current_step(0, 3)
    press(dock, "Train")
    wait(900, lambda: (dock.panel.preview.epoch or 0) >= 24, "24 epochs")
    wait(1.5)  # preview of the visible plane


def predict(viewer: Any, dock: Any) -> Any:
    """Predict more than half of a new stack; return the stack's exact labels."""
    from napari_strata.io.samples import sandstone
    from napari_strata.plugin import image_layer

    wait(
        300,
        lambda: dock.prediction is None,
        "the prediction that the training ends with",
    )
    pair = sandstone(STACK, seed=2)
    viewer.layers.select_all()
    viewer.layers.remove_selected()
    data, attributes, _ = image_layer(pair.image)
    image = viewer.layers.selection.active = viewer.add_image(
        data, **attributes | {"name": "new sandstone"}
    )
    viewer.dims.set_current_step(0, STACK[0] // 3)
    viewer.reset_view()
    dock.come_forward()
    wait(
        60,
        lambda: dock.images.layer is image and not dock.model.fit.isHidden(),
        "whether the image fits the model",
    )
    press(dock, "Predict")
    wait(60, lambda: len(viewer.layers) > 1, "the labels layer")
    labels = viewer.layers[-1]
    wait(
        300,
        lambda: sum(bool(plane[0].any()) for plane in labels.data) > STACK[0] // 2,
        "most of the planes",
    )
    return pair.labels


def evaluate(viewer: Any, dock: Any, truth: Any) -> None:
    """Show the scores of the prediction, and its errors as a layer on the image."""
    from napari_strata.plugin import labels_layer

    data, attributes, _ = labels_layer(truth)
    viewer.add_labels(data, **attributes | {"name": "truth"})
    dock.come_forward()
    wait(60, lambda: bool(dock.compare_button.enabled), "prediction and truth")
    press(dock, "Compare")
    wait(
        120,
        lambda: dock.written is not None and bool(dock.errors_button.enabled),
        "the scores",
    )
    wait(
        60, lambda: bool(dock.scores.cases.describe()), "the worst and the best planes"
    )
    press(dock, "Show errors as a layer")
    wait(60, lambda: len(viewer.layers) == 4, "the errors")
    for layer in viewer.layers[1:-1]:
        layer.visible = False
    viewer.layers.selection.active = viewer.layers[0]


def press(dock: Any, text: str) -> None:
    """Click the button with this text."""
    from qtpy.QtWidgets import QPushButton

    button = next(one for one in dock.findChildren(QPushButton) if one.text() == text)
    if not button.isEnabled():
        sys.exit(f"The button {text} cannot be pressed: {button.toolTip()}")
    button.click()


def wait(
    seconds: float, until: Callable[[], bool] | None = None, what: str = ""
) -> None:
    """Run the event loop for some time, or until a condition holds; else give up."""
    from qtpy.QtCore import QEventLoop, QTimer

    loop, check = QEventLoop(), QTimer()
    check.setInterval(50)
    check.timeout.connect(
        lambda: loop.quit() if until is not None and until() else None
    )
    check.start()
    QTimer.singleShot(int(1000 * seconds), loop.quit)
    loop.exec()
    check.stop()
    if until is not None and not until():
        sys.exit(f"Gave up after {seconds:.0f} s of waiting for {what}.")


def save(
    viewer: Any,
    folder: Path,
    themes: Sequence[str],
    name: str,
    widget: Any = None,
) -> None:
    """Save the window, or another widget, as it is seen in each theme."""
    for theme in themes:
        viewer.theme = theme
        wait(0.4)  # what was clicked last is drawn
        suffix = "" if theme == themes[0] else f"-{theme}"
        grab(widget or viewer.window._qt_window, folder / f"{name}{suffix}.png")
    viewer.theme = themes[0]


def grab(widget: Any, path: Path) -> None:
    """Save a widget in 256 colours: a third of the size."""
    from PIL import Image
    from qtpy.QtCore import QBuffer

    buffer = QBuffer()
    buffer.open(QBuffer.OpenModeFlag.WriteOnly)
    widget.grab().save(buffer, "PNG")
    picture = Image.open(BytesIO(bytes(buffer.data().data()))).convert("RGB")
    # Maximum coverage keeps the small squares of the classes' colours, which a median
    # cut makes grey.
    few = picture.quantize(
        256, method=Image.Quantize.MAXCOVERAGE, kmeans=2, dither=Image.Dither.NONE
    )
    few.save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB", flush=True)


if __name__ == "__main__":
    main()
