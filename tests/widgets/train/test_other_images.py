"""Several images that are trained together."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from napari.components import ViewerModel
from napari.layers import Image as ImageLayer
from napari.layers import Labels as LabelsLayer
from qtpy.QtCore import Qt

from napari_strata.io import read_labels
from napari_strata.widgets.parts.script import as_command, as_python
from napari_strata.widgets.train.data_box import DataBox
from napari_strata.widgets.train.other_images import find_labelled
from napari_strata.widgets.train.prepare import LayerData, TrainRequest


def layers(viewer: ViewerModel, name: str, side: int = 16) -> LabelsLayer:
    """Add an image and its labels."""
    data = np.random.default_rng(side).integers(0, 99, (side, side)).astype(np.uint8)
    viewer.add_image(data, name=name)
    painted = np.ones((side, side), np.uint8)
    painted[: side // 2] = 2
    return viewer.add_labels(painted, name=f"{name} labels")


def test_images_with_labels_and_as_many_channels_are_found() -> None:
    labels = LabelsLayer(np.ones((8, 8), np.uint8))
    grey = ImageLayer(np.zeros((8, 8), np.uint8))
    other = ImageLayer(np.zeros((8, 8), np.uint8))
    colour = ImageLayer(np.zeros((8, 8, 3), np.uint8), rgb=True)
    large = ImageLayer(np.zeros((9, 9), np.uint8))
    partner: Callable[[Any], Any] = lambda _layer: labels  # noqa: E731
    like = find_labelled([grey], [], None, partner)
    assert like == []
    from napari_strata.widgets.layers.convert import image_of

    found = find_labelled([grey, other, colour, large], [grey], image_of(grey), partner)
    assert [each.layer for each in found] == [other]
    assert not find_labelled([other], [grey], image_of(grey), lambda _layer: None)


def test_ticked_images_are_trained_together(qtbot: Any, tmp_path: Path) -> None:
    viewer = ViewerModel()
    first, second = layers(viewer, "a"), layers(viewer, "b", 20)
    layers(viewer, "c", 24)
    box = DataBox(viewer)
    qtbot.addWidget(box)

    def settle() -> Any:
        qtbot.waitUntil(lambda: isinstance(box.data(), LayerData), timeout=20_000)
        qtbot.wait(30)
        return box.data()

    viewer.layers.selection = {first}
    data = settle()
    assert (data.layer.name, data.labels_layer) == ("a", first)
    assert data.others == ()
    texts = [box.others.list.item(row).text() for row in range(2)]
    assert texts == ["b, with b labels", "c, with c labels"]
    box.others.list.item(0).setCheckState(Qt.CheckState.Checked)
    data = settle()
    assert [other.layer.name for other in data.others] == ["b"]

    # Whoever paints on the second image sees its labels, and trains on the same two.
    viewer.layers.selection = {second}
    qtbot.waitUntil(lambda: box.images.layer.name == "b", timeout=20_000)
    data = settle()
    assert (data.layer.name, data.labels_layer) == ("b", second)
    assert [other.layer.name for other in data.others] == ["a"]

    run = tmp_path / "run"
    job = TrainRequest(data, "default").train_job("1", run)
    assert len(job.images) == 2
    for labels, expected in zip(job.labels, (second, first), strict=True):
        written = read_labels(labels.path)
        np.testing.assert_array_equal(np.asarray(written.data), expected.data)
        assert written.classes == data.labels.classes
    table = run / "layers" / "pairs.csv"
    assert as_command(job).startswith(f"napari-strata train {table} --out {run}")
    with open(table, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == [labels.path for labels in job.labels]
    assert as_python(job).count("ns.read_labels(") == 2
    assert json.loads(job.model_dump_json())["images"]
    box.leave()
