"""Files in the Predict dock: decisions without a viewer, and a journey with one."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from napari.layers import Image as ImageLayer
from napari.layers import Labels as LabelsLayer
from napari.viewer import Viewer
from qtpy.QtCore import Qt
from qtpy.QtTest import QTest

from napari_strata.core.errors import ImageError, RunError
from napari_strata.core.events import FileEnd
from napari_strata.core.image import LabelImage
from napari_strata.io import read_labels, write_image, write_labels
from napari_strata.widgets.predict.batch_state import (
    BatchFile,
    BatchRequest,
    default_folder,
    describe_end,
    describe_plan,
    finish,
    plan_files,
    running,
    start,
    update,
)
from napari_strata.widgets.predict.dock import FILES, LAYER, PredictDock
from napari_strata.widgets.predict.state import PredictState, resolve
from widgets.models import rock

PATIENCE = 120_000


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """A folder of three stacks; the second is damaged."""
    for number in (1, 2, 10):
        image, _ = rock((2, 64, 64), seed=number)
        write_image(tmp_path / "scans" / f"s{number}.ome.tif", image)
    damaged = tmp_path / "scans" / "s2.ome.tif"
    damaged.write_bytes(damaged.read_bytes()[:3000])
    return tmp_path / "scans"


def test_the_labels_go_beside_the_folder_of_the_images(scans: Path) -> None:
    labels = scans.with_name("scans_labels")
    assert default_folder([str(scans)]) == labels
    assert default_folder([str(scans / "s1.ome.tif")]) == labels
    assert default_folder([f"{scans}/*.tif"]) == labels
    store = scans / "a.zarr"
    store.mkdir()
    (store / "zarr.json").write_text("{}")
    assert default_folder([str(store)]) == labels
    request = BatchRequest((str(scans),))
    assert request.report == labels / "report.csv"
    assert BatchRequest((str(scans),), out="/elsewhere").folder == Path("/elsewhere")


def test_the_images_of_a_request(scans: Path, tmp_path: Path) -> None:
    request = BatchRequest((str(scans),), str(tmp_path / "out"))
    files = plan_files(request)
    assert [Path(file.source).name for file in files] == [
        "s1.ome.tif",
        "s2.ome.tif",
        "s10.ome.tif",
    ]
    assert files[0].output == str(tmp_path / "out" / "s1_labels.tif")
    assert describe_plan(files) == "3 images."
    tifffile.imwrite(tmp_path / "s1_labels.tif", np.zeros((4, 4), np.uint8))
    request = BatchRequest((f"{scans}/s1.*",), str(tmp_path))
    [file] = plan_files(request)
    assert (file.status, file.has_labels) == ("exists already", True)
    assert "1 with labels already, which will be skipped" in describe_plan([file])
    [file] = plan_files(BatchRequest((f"{scans}/s1.*",), str(tmp_path), overwrite=True))
    assert (file.status, file.has_labels) == ("waiting", False)
    [file] = plan_files(BatchRequest((str(scans),), str(tmp_path), stack=True))
    assert file.output == str(tmp_path / "scans_labels.tif")
    with pytest.raises(ImageError, match="found no image"):
        plan_files(BatchRequest((str(tmp_path / "x*.tif"),)))
    with pytest.raises(RunError, match="names one file"):
        plan_files(BatchRequest((str(scans),), str(tmp_path / "labels.tif")))


def test_the_states_of_the_images() -> None:
    files = start([BatchFile(name, f"{name}_labels.tif") for name in "abcd"])
    assert running(files) == 0
    files = update(files, FileEnd("a", "a_labels.tif", "done", "", 1))
    files = update(files, FileEnd("b", "b_labels.tif", "failed", "is damaged", 1))
    assert running(files) == 2
    assert (files[1].status, files[1].text) == ("failed", "is damaged")
    stopped = finish(files)
    assert describe_end(stopped) == "4 images: 1 done, 1 failed, 2 not predicted."
    died = finish(files, failed="The worker died.")
    assert [file.status for file in died[2:]] == ["failed", "not predicted"]
    assert died[2].text == "The worker died."
    skipped = update(files, FileEnd("c", "c_labels.tif", "skipped", "exists", 0))
    assert skipped[2].has_labels
    assert not skipped[1].has_labels


def test_the_button_says_how_many_files() -> None:
    assert resolve(PredictState()).predict_text == "Predict"
    assert resolve(PredictState(files=1)).predict_text == "Predict 1 file"
    view = resolve(PredictState(files=12, is_running=True))
    assert view.predict_text == "Predict 12 files"
    assert not view.predict.enabled
    assert view.stop.enabled
    assert not view.save.visible


def test_a_doubt_is_shown_beside_the_button_and_blocks_nothing() -> None:
    doubt = "12 % of the grey values do not occur in the training images."
    view = resolve(PredictState(doubt=doubt, is_running=True))
    assert view.doubt == doubt
    assert view.stop.enabled
    assert resolve(PredictState(doubt=doubt)).predict.enabled
    assert resolve(PredictState(doubt=doubt, files=3)).doubt == ""


def test_files_by_clicks(
    make_napari_viewer: Callable[..., Viewer],
    runs: Path,
    scans: Path,
    qtbot: Any,
) -> None:
    viewer = make_napari_viewer(show=True)
    dock = PredictDock(viewer)
    viewer.window.add_dock_widget(dock, name="Predict", area="right")
    dock.model.choose(next(runs.glob("*rock-*")))
    assert not dock.files.isVisibleTo(dock)
    dock.source.value = FILES
    assert dock.files.isVisibleTo(dock)
    assert not dock.images.isVisibleTo(dock)
    assert "Add files or folders" in dock.predict_button.tooltip
    dock.files.pattern.native.setText(str(scans))
    QTest.keyClick(dock.files.pattern.native, Qt.Key.Key_Return)
    qtbot.waitUntil(lambda: bool(dock.files.files), timeout=PATIENCE)
    assert dock.predict_button.text == "Predict 3 files"
    QTest.mouseClick(dock.predict_button.native, Qt.MouseButton.LeftButton)
    assert dock.batch is not None
    assert not dock.predict_button.enabled
    qtbot.waitUntil(lambda: dock.batch is None, timeout=PATIENCE)

    out = scans.with_name("scans_labels")
    text = dock.notice.text()
    assert "3 images: 2 done, 1 failed." in text
    assert "s2.ome.tif: " in text
    assert str(out / "report.csv") in text
    assert dock.notice.level == "warning"
    with open(out / "report.csv", newline="") as file:
        rows = {Path(row["source"]).name: row for row in csv.DictReader(file)}
    assert rows["s2.ome.tif"]["status"] == "failed"
    failed = dock.files.table.topLevelItem(1)
    assert failed.text(1) == "failed"
    assert " ".join(failed.toolTip(1).split()) == rows["s2.ome.tif"]["message"]
    dock.files.table.setCurrentItem(failed)
    assert dock.files.text.text() == failed.toolTip(1)
    assert not dock.files.open_button.enabled

    last = dock.files.table.topLevelItem(2)
    dock.files.table.setCurrentItem(last)
    dock.files.table.itemDoubleClicked.emit(last, 1)
    qtbot.waitUntil(lambda: len(viewer.layers) == 2, timeout=PATIENCE)
    image, labels = viewer.layers
    assert isinstance(image, ImageLayer)
    assert isinstance(labels, LabelsLayer)
    assert labels.name == "s10_labels"
    np.testing.assert_array_equal(
        np.asarray(labels.data), read_labels(out / "s10_labels.tif").data
    )
    assert image.scale == pytest.approx(labels.scale)

    # Once more: what is finished is skipped, and the damaged file is repaired.
    write_image(scans / "s2.ome.tif", rock((2, 64, 64))[0], overwrite=True)
    dock.files.look()
    qtbot.waitUntil(lambda: bool(dock.files.files), timeout=PATIENCE)
    assert "2 with labels already" in dock.files.text.text()
    QTest.mouseClick(dock.predict_button.native, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: dock.batch is None, timeout=PATIENCE)
    assert "2 skipped, 1 done" in dock.notice.text()
    assert dock.notice.level == "info"
    dock.source.value = LAYER
    assert dock.images.isVisibleTo(dock)
    dock.session.close()


def test_results_open_with_the_axes_that_were_typed(
    make_napari_viewer: Callable[..., Viewer], tmp_path: Path, qtbot: Any
) -> None:
    viewer = make_napari_viewer()
    dock = PredictDock(viewer)
    viewer.window.add_dock_widget(dock, name="Predict", area="right")
    pixels = np.zeros((3, 20, 30), np.uint8)
    tifffile.imwrite(tmp_path / "scan.tif", pixels, photometric="minisblack")
    labels = write_labels(tmp_path / "scan_labels.tif", LabelImage(pixels, "TYX"))
    dock.files.axes.value = "TYX"
    dock.files.opened.emit(BatchFile(str(tmp_path / "scan.tif"), str(labels), "done"))
    qtbot.waitUntil(lambda: len(viewer.layers) == 2, timeout=PATIENCE)
    assert [layer.axis_labels for layer in viewer.layers] == [("t", "y", "x")] * 2
    dock.session.close()
