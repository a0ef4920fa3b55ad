"""The Measure dock in a real viewer with a real worker; numbers are counted by numpy."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QApplication

from napari_strata.core.classes import ClassMap
from napari_strata.plugin import METADATA
from napari_strata.report.measure_tables import CONNECTED, SURFACE
from napari_strata.widgets.layers.live import PREDICTED
from napari_strata.widgets.measure.dock import MeasureDock
from napari_strata.widgets.measure.state import SPECIMEN, WHOLE
from napari_strata.widgets.settings import Settings

LONG = 180_000
CLASSES = ClassMap(
    names=("pore", "grain"), values=(1, 2), colors=("#4477aa", "#ddcc77")
)


def core() -> np.ndarray[Any, Any]:
    """A round specimen of grain with a pore along Z, in air that is labelled pore."""
    y, x = np.indices((40, 40)) - 20
    radius = np.hypot(y, x)
    plane = np.where((radius > 16) | (radius < 4), 1, 2)
    return np.repeat(plane[None], 6, axis=0).astype(np.uint8)


@pytest.fixture
def make(
    make_napari_viewer: Any,
    qtbot: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Iterator[Callable[..., MeasureDock]]:
    real = Settings.load()
    monkeypatch.setattr(Settings, "load", lambda: replace(real, runs=tmp_path / "runs"))
    sessions = []

    def build(data: Any = None) -> MeasureDock:
        viewer = make_napari_viewer()
        data = core() if data is None else data
        known = {
            "axis_labels": "zyx"[-data.ndim :],
            "scale": (2.0, 0.5, 0.5)[-data.ndim :],
            "units": "um",
        }
        viewer.add_image(data.astype(np.uint16) * 100, name="rock", **known)
        viewer.add_labels(
            data,
            name="rock segmented",
            metadata={PREDICTED: True, METADATA: CLASSES.model_dump(mode="json")},
            **known,
        )
        dock = MeasureDock(viewer)
        viewer.window.add_dock_widget(dock, name="Measure", area="right")
        sessions.append(dock.session)
        return dock

    yield build
    # A window that was never shown does not tell its session that it closes.
    while sessions:
        sessions.pop().close()


def measure(qtbot: Any, dock: MeasureDock) -> dict[str, Any]:
    before = dock.measures
    assert dock.measure_button.enabled, dock.measure_button.tooltip
    qtbot.mouseClick(dock.measure_button.native, Qt.MouseButton.LeftButton)
    assert not dock.measure_button.enabled
    qtbot.waitUntil(
        lambda: (
            not dock._activity
            and (dock.measures is not before or dock.notice.level == "error")
        ),
        timeout=LONG,
    )
    assert dock.notice.level != "error", dock.notice.text()
    assert dock.measures is not None
    return dock.measures


def share(data: Any, inside: Any) -> float:
    return float((data[inside] == 1).mean())


def test_from_the_labels_to_the_report(make: Any, qtbot: Any, tmp_path: Path) -> None:
    dock = make()
    viewer = dock.viewer
    assert dock.labels.layer.name == "rock segmented"
    assert dock.image.layer.name == "rock"
    assert dock.export_button.tooltip == "Measure first."
    data = core()

    # The whole image.
    measures = measure(qtbot, dock)
    assert measures["region"] == "all"
    assert measures["fractions"]["pore"]["count"] == pytest.approx((data == 1).mean())
    table = dock.fractions.table
    assert table.item(0, 1).text() == f"{100 * (data == 1).mean():.2f} %"
    assert "choose the model" in dock.fractions.why.text()

    # The slider and the profile follow each other.
    assert [curve.name for curve in dock.fractions.figure.curves] == ["pore", "grain"]
    table.selectRow(1)
    assert [curve.name for curve in dock.fractions.figure.curves] == ["grain"]
    table.clearSelection()
    assert len(dock.fractions.figure.curves) == 2
    dock.fractions.position_chosen.emit(8.0)
    assert viewer.dims.current_step[0] == 4
    viewer.dims.set_current_step(0, 1)
    assert dock.fractions.figure._mark.value() == pytest.approx(2)

    # The specimen becomes a layer, which can be edited.
    dock.region.choose(SPECIMEN)
    assert "Press Measure first" in dock.objects.find_button.toolTip()
    measures = measure(qtbot, dock)
    assert measures["region"] == "specimen"
    specimen = viewer.layers["specimen of rock segmented"]
    assert dock.region.region == SPECIMEN
    assert dock.objects.find_button.isEnabled()
    inside = specimen.data > 0
    mask = dock._object_mask(dock.labels.labels(None))
    np.testing.assert_array_equal(mask.data, specimen.data)
    found = measures["fractions"]["pore"]["count"]
    assert found == pytest.approx(share(data, inside))
    assert found < 0.1
    assert tuple(specimen.scale) == (2.0, 0.5, 0.5)
    for z in range(6):
        box = (slice(z, z + 1), slice(0, 20), slice(0, 40))
        specimen.data_setitem(tuple(np.mgrid[box].reshape(3, -1)), 0)
    assert dock.region.region is specimen
    measures = measure(qtbot, dock)
    inside[:, :20] = False
    assert measures["voxels"] == inside.sum()
    assert measures["fractions"]["pore"]["count"] == pytest.approx(share(data, inside))

    # Drawn shapes count in every plane.
    square = np.array([[2, 5, 5], [2, 5, 10], [2, 10, 10], [2, 10, 5]]) * [2, 0.5, 0.5]
    shapes = viewer.add_shapes([square], name="area")
    dock.region.choose(shapes)
    measures = measure(qtbot, dock)
    assert measures["region"].startswith("area")
    assert measures["voxels"] % 6 == 0
    assert 6 * 25 <= measures["voxels"] <= 6 * 36
    viewer.layers.remove(shapes)
    assert dock.region.region == WHOLE

    # Shape.
    measure(qtbot, dock)
    dock.shape.topic.setCurrentText(CONNECTED)
    texts = [dock.shape.table.item(0, column).text() for column in range(1, 6)]
    assert texts[:2] == ["2", "100.0"]
    dock.shape.topic.setCurrentText(SURFACE)
    assert float(dock.shape.table.item(0, 3).text()) == 0  # along Z nothing changes

    dock.show_maps()
    fractions = dock.viewer.layers["pore in cubes of 2 µm"]
    assert fractions.scale == pytest.approx((2, 2, 2))
    expected = (data[0, :4, :4] == 1).mean()
    assert fractions.data[0, 0, 0] == pytest.approx(expected)
    assert tuple(fractions.translate) == (0, 0.75, 0.75)

    # The report.
    dock.export_to(tmp_path / "report")
    qtbot.waitUntil(lambda: "Written to" in dock.notice.text(), timeout=LONG)
    kept = json.loads((tmp_path / "report" / "measures.json").read_text())
    assert kept["fractions"] == dock.measures["fractions"]
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert "Connected pieces" in page
    assert "rock" not in kept  # it was not asked for

    # The copied texts give the same.
    for button, words in (
        ("Copy as command", None),
        ("Copy as Python", [sys.executable]),
    ):
        folder = tmp_path / button.replace(" ", "-")
        folder.mkdir()
        QApplication.clipboard().clear()
        copy = next(w for w in dock._magic_widgets if getattr(w, "text", "") == button)
        qtbot.mouseClick(copy.native, Qt.MouseButton.LeftButton)
        qtbot.waitUntil(lambda: QApplication.clipboard().text() != "", timeout=LONG)
        text = QApplication.clipboard().text()
        if words is None:
            program = [sys.executable, "-m", *shlex.split(text)]
            program[2] = "napari_strata"
        else:
            (folder / "script.py").write_text(text)
            program = [*words, "script.py"]
        subprocess.run(program, cwd=folder, check=True, env=os.environ)
        copied = json.loads((folder / "measures" / "measures.json").read_text())
        assert copied["fractions"] == dock.measures["fractions"]


def test_objects_of_a_region_are_linked_to_their_layer(make: Any, qtbot: Any) -> None:
    dock = make()
    region = dock.viewer.add_labels(
        (np.hypot(*(np.indices((40, 40)) - 20)) < 12).astype(np.uint8), name="inner"
    )
    dock.region.choose(region)
    dock.objects.of.setCurrentText("pore")
    qtbot.mouseClick(dock.objects.find_button, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: dock.objects.objects is not None, timeout=LONG)
    layer = dock.viewer.layers["pore of rock segmented"]
    assert layer.data.max() == 1  # not the air outside
    assert list(layer.features["volume (pixels)"]) == [
        6 * int((np.hypot(*(np.indices((40, 40)) - 20)) < 4).sum())
    ]
    dock.objects.table.selectRow(0)
    assert layer.selected_label == 1
    assert list(layer.features["mean"]) == [100]


def test_stop_and_errors_are_said(make: Any, qtbot: Any) -> None:
    dock = make()
    dock.viewer.add_labels(np.ones((3, 40, 40), np.uint8), name="other")
    dock.region.choose(dock.viewer.layers["other"])
    assert "choose another region" in dock.measure_button.tooltip
    empty = dock.viewer.add_labels(np.zeros((40, 40), np.uint8), name="empty")
    dock.region.choose(empty)
    qtbot.mouseClick(dock.measure_button.native, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: dock.notice.level == "error", timeout=LONG)
    assert "no labelled pixel" in dock.notice.text()
