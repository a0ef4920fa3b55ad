"""Every copied command and script runs, and gives what the dock shows, for every kind of data."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import tifffile
from napari.viewer import Viewer
from qtpy.QtWidgets import QApplication, QPushButton
from safetensors.numpy import load_file

from napari_strata.core.image import Image
from napari_strata.io import read_labels, write_image
from napari_strata.plugin import read
from napari_strata.widgets import session as sessions
from napari_strata.widgets.evaluate.dock import EvaluateDock
from napari_strata.widgets.layers import convert
from napari_strata.widgets.layers.live import PREDICTED
from napari_strata.widgets.parts.dock import Dock
from napari_strata.widgets.predict.dock import PredictDock
from napari_strata.widgets.settings import Settings
from napari_strata.widgets.train.dock import TrainDock
from widgets.lifecycle import TINY

PATIENCE = 120_000
SIDE = 96


def grey(*planes: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """Dark on the left and bright on the right."""
    data = np.random.default_rng(seed).normal(60, 8, (*planes, SIDE, SIDE))
    data[..., SIDE // 2 :] += 100
    return data.astype(np.uint16)


def tiff(folder: Path) -> Path:
    image = Image(grey(), "YX", scale=(0.5, 0.5), units=("micrometer",) * 2)
    return write_image(folder / "a scan.ome.tif", image)


def pages(folder: Path) -> Path:
    tifffile.imwrite(folder / "pages.tif", grey(3), photometric="minisblack")
    return folder / "pages.tif"


def slices(folder: Path) -> Path:
    scan = folder / "rock slices"
    scan.mkdir()
    for number, plane in enumerate(grey(3)):
        tifffile.imwrite(scan / f"slice{number}.tif", plane)
    return scan


def zarr(folder: Path) -> Path:
    image = Image(grey(3), "ZYX", scale=(2, 0.5, 0.5), units=("micrometer",) * 3)
    return write_image(folder / "scan.ome.zarr", image)


def colours(folder: Path) -> Path:
    data = np.stack([grey(seed=seed) for seed in range(3)], axis=-1).astype(np.uint8)
    PIL.Image.fromarray(data).save(folder / "photo.png")
    return folder / "photo.png"


def positions(folder: Path) -> Path:
    path = folder / "positions.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as file:
        for seed in range(2):
            file.write(grey(3, seed=seed), metadata={"axes": "ZYX"})
    return path


def movie(folder: Path) -> Path:
    return write_image(folder / "movie.ome.tif", Image(grey(3), "TYX"))


def volume(folder: Path) -> Path:
    data = grey(8).astype(np.float32)
    image = Image(data, "ZYX", scale=(2, 1, 1), units=("micrometer",) * 3)
    return write_image(folder / "volume.ome.tif", image)


def channels(folder: Path) -> Path:
    image = Image(grey(2), "CYX", channel_names=("DAPI", "GFP"))
    return write_image(folder / "cells.ome.tif", image)


FILES: dict[str, Callable[[Path], Path]] = {
    "TIFF": tiff,
    "multi-page": pages,
    "folder": slices,
    "OME-Zarr": zarr,
    "RGB": colours,
    "position": positions,
    "time series": movie,
    "volume": volume,
    "channel": channels,
}
KINDS = (*FILES, "array", "strokes")
FEW = ("folder", "strokes")


def open_layers(viewer: Viewer, kind: str, folder: Path) -> None:
    """Replace the layers by an image, its labels, and a prediction of them."""
    viewer.layers.clear()
    folder.mkdir()
    if kind in FILES:
        for data, attributes, _ in read(str(FILES[kind](folder))):
            viewer.add_image(data, **attributes)
        image = viewer.layers[-1]
    else:
        image = viewer.add_image(grey(3), name="phases", scale=(3, 1, 1))
    bright = np.arange(SIDE) >= SIDE // 2
    shape = np.asarray(image.data).shape[: image.ndim]
    truth = np.broadcast_to(np.where(bright, 2, 1), shape).astype(np.uint8)
    prediction = np.roll(truth, 3, axis=-1)
    if kind == "strokes":
        painted = np.zeros_like(truth)
        painted[:, ::12, 5:40] = 1
        painted[:, ::12, 55:90] = 2
        truth = painted
    geometry = {
        "scale": image.scale,
        "units": image.units,
        "axis_labels": image.axis_labels,
    }
    viewer.add_labels(truth, name=f"{image.name} truth", **geometry)
    viewer.add_labels(prediction, name="guess", metadata={PREDICTED: True}, **geometry)
    viewer.layers.selection = {image}


def save_image(image: Image, file: Path) -> str:
    """Save what a layer shows, for `open_image` in run_texts.py."""
    np.savez(
        file,
        data=np.asarray(image.data),
        axes=image.axes,
        scale=image.scale,
        units=image.units,
        channel_names=image.channel_names,
    )
    return str(file)


@pytest.fixture
def run_text(tmp_path: Path) -> Iterator[Callable[..., dict[str, Any]]]:
    """Run a text in another process, which has torch."""
    script = Path(__file__).with_name("run_texts.py")
    process = subprocess.Popen(
        [sys.executable, str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None

    def ask(**request: Any) -> dict[str, Any]:
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        for line in process.stdout:
            if line.startswith('{"answer"'):
                answer: dict[str, Any] = json.loads(line)["answer"]
                assert answer["status"] == 0, f"{request}\n{answer['printed']}"
                return answer
        raise AssertionError("the process has ended")

    yield ask
    process.stdin.close()
    process.wait(60)
    process.stdout.close()


def copy(dock: Dock, form: str, qtbot: Any) -> str:
    """Press a button and return the copied text."""
    if isinstance(dock, TrainDock):  # it counts pixels again after every change
        qtbot.waitUntil(lambda: dock.request() is not None, timeout=PATIENCE)
    clipboard = QApplication.clipboard()
    clipboard.setText("")
    (button,) = [
        button
        for button in dock.findChildren(QPushButton)
        if button.text() == f"Copy as {form}"
    ]
    button.click()
    qtbot.waitUntil(
        lambda: bool(clipboard.text()) or dock.notice.level in ("warning", "error"),
        timeout=PATIENCE,
    )
    assert clipboard.text(), dock.notice.text()
    return str(clipboard.text())


def check_train(dock: TrainDock, run_text: Any, folder: Path, qtbot: Any) -> Path:
    """Train by both texts and on the layers; return the run."""
    request = dock.request()
    assert request is not None, dock.data_box.problem()
    data: Any = request.data
    labels = folder / "truth.npy"
    np.save(labels, data.labels.data)
    run_text(
        work="train",
        image=save_image(data.image, folder / "image.npz"),
        labels=str(labels),
        classes=data.labels.classes.model_dump(mode="json"),
        overrides=request.overrides,
        out=str(folder / "expected"),
    )
    expected = load_file(folder / "expected" / "model.safetensors")
    copied = {"command": copy(dock, "command", qtbot)}
    words = shlex.split(copied["command"])
    run = Path(words[words.index("--out") + 1])
    count = len(list(run.parent.iterdir()))
    copied["Python"] = copy(dock, "Python", qtbot)
    assert len(list(run.parent.iterdir())) == count, "a folder for each press"
    for form, text in copied.items():
        run_text(work=form.lower(), text=text)
        weights = load_file(run / "model.safetensors")
        assert weights.keys() == expected.keys()
        for key in expected:
            np.testing.assert_array_equal(weights[key], expected[key], err_msg=key)
        trained = folder / f"run {form}"
        run.rename(trained)  # the other text has the same folder
        run.mkdir()
        shutil.copytree(trained / "layers", run / "layers")
    return folder / "run command"


def check_predict(
    dock: PredictDock, run: Path, run_text: Any, folder: Path, qtbot: Any
) -> None:
    """Predict by both texts and from the layer."""
    dock.model.choose(run)
    assert dock.image is not None
    expected = folder / "expected.npy"
    run_text(
        work="predict",
        image=save_image(dock.image, folder / "image.npz"),
        model=str(run),
        out=str(expected),
    )
    names = {path.name for path in run.iterdir()}
    for form in ("command", "Python"):
        text = copy(dock, form, qtbot)
        assert {path.name for path in run.iterdir()} - names <= {"layers"}
        run_text(work=form.lower(), text=text)
        (out,) = run.glob("*-labels.tif")
        labels = read_labels(out)
        np.testing.assert_array_equal(np.asarray(labels.data), np.load(expected))
        assert labels.axes == dock.image.label_axes
        out.unlink()


def check_evaluate(dock: EvaluateDock, run_text: Any, folder: Path, qtbot: Any) -> None:
    """Score by both texts."""
    run_text(work="command", text=copy(dock, "command", qtbot))
    scores = Path(folder.parent / "scores")
    by_command = json.loads((scores / "metrics.json").read_text())
    shutil.rmtree(scores)
    by_python = run_text(work="python", text=copy(dock, "Python", qtbot))["scores"]
    assert by_python["mean_iou"] == pytest.approx(by_command["mean_iou"])
    assert by_python["per_class"].keys() == by_command["per_class"].keys()
    compared = dock.comparison()
    assert compared.prediction.data is not None
    truth = np.asarray(compared.truth.data)
    right = np.asarray(compared.prediction.data) == truth
    known = truth > 0
    assert by_python["pixel_accuracy"] == pytest.approx(right[known].mean())


@pytest.mark.parametrize(
    "kinds",
    [
        FEW,
        pytest.param(
            tuple(kind for kind in KINDS if kind not in FEW), marks=pytest.mark.slow
        ),
    ],
    ids=["few", "others"],
)
def test_every_copied_text_runs_and_gives_the_same(
    kinds: tuple[str, ...],
    make_napari_viewer: Callable[..., Viewer],
    run_text: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    qtbot: Any,
) -> None:
    silent = (sys.executable, "-c", "import sys; sys.stdin.read()")
    settings = Settings("cpu", tmp_path / "runs", silent)
    monkeypatch.setattr(sessions.Settings, "load", classmethod(lambda _cls: settings))
    viewer = make_napari_viewer()
    train, predict, evaluate = (
        dock(viewer) for dock in (TrainDock, PredictDock, EvaluateDock)
    )
    for dock in (train, predict, evaluate):
        viewer.window.add_dock_widget(dock, name=dock.name)
    train.recipe_box.set_recipe("default", TINY)
    for kind in kinds:
        folder = tmp_path / kind
        open_layers(viewer, kind, folder)
        qtbot.waitUntil(lambda: train.request() is not None, timeout=PATIENCE)
        assert convert.image_of(train.data_box.images.layer).name
        run = check_train(train, run_text, folder, qtbot)
        check_predict(predict, run, run_text, folder, qtbot)
        check_evaluate(evaluate, run_text, folder, qtbot)
    train.session.close()
