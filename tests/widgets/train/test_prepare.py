from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from napari.layers import Image as ImageLayer
from napari.layers import Labels as LabelsLayer

from napari_strata.core.classes import ClassMap
from napari_strata.core.errors import RunError
from napari_strata.core.image import Image
from napari_strata.io import read_labels
from napari_strata.widgets.train.prepare import (
    FolderData,
    LayerData,
    TrainRequest,
    resume_job,
)

CLASSES = ClassMap(names=("pore", "grain"), values=(1, 2), unlabelled=(0,))


def _data() -> LayerData:
    layer = ImageLayer(
        np.arange(2 * 20 * 20, dtype=np.uint16).reshape(2, 20, 20), name="sand"
    )
    image = Image(layer.data, "ZYX", name="sand")
    painted = LabelsLayer((layer.data % 3).astype(np.uint8))
    return LayerData(
        layer, image, painted, image.labels_like(painted.data, classes=CLASSES)
    )


def test_a_training_and_its_plan_have_the_same_settings(tmp_path: Path) -> None:
    wanted = TrainRequest(_data(), "unet-ct", {"training.epochs": 3}, "cpu", keep=True)
    train, plan = (
        wanted.train_job("1", tmp_path / "run"),
        wanted.plan_job("2", tmp_path / "run"),
    )
    shared = set(type(plan).model_fields) - {"job", "kind", "keep"}
    assert train.model_dump(include=shared) == plan.model_dump(include=shared)
    assert (train.keep, train.out, train.recipe) == (
        True,
        str(tmp_path / "run"),
        "unet-ct",
    )
    assert train.labels is not None
    labels = read_labels(train.labels[0].path)
    assert labels.classes == CLASSES
    assert Path(train.images[0].path).parent == tmp_path / "run" / "layers"


def test_folders_are_passed_on_unchanged(tmp_path: Path) -> None:
    wanted = TrainRequest(FolderData("images", "masks", "YX", (0,)), "default")
    request = wanted.train_job("1", tmp_path)
    assert (request.images[0].path, request.axes, request.unlabelled) == (
        "images",
        "YX",
        (0,),
    )
    assert request.labels is not None
    assert request.labels[0].path == "masks"
    assert not list(tmp_path.iterdir())
    assert (
        TrainRequest(FolderData("dataset"), "default").train_job("1", tmp_path).labels
        is None
    )


def _record(run: Path, **change: object) -> None:
    run.mkdir()
    pair = {"name": "a", "images": "a.tif", "labels": "al.tif", "axes": "ZYX"}
    held = {"name": "b", "images": "b.tif", "labels": "bl.tif", "axes": "ZYX"}
    record = {
        "pairs": [pair, held | change],
        "training": [{"pair": 0}],
        "validation": [{"pair": 0}, {"pair": 1}],
    }
    (run / "data.json").write_text(json.dumps(record))


def test_a_run_resumes_with_its_own_data(tmp_path: Path) -> None:
    _record(tmp_path / "run")
    request = resume_job(tmp_path / "run", device="cpu")
    assert [layer.path for layer in request.images] == ["a.tif"]
    assert request.resume
    assert request.validation is not None
    assert request.validation.images[0].path == "b.tif"


def test_a_run_without_files_or_record_cannot_be_resumed(tmp_path: Path) -> None:
    _record(tmp_path / "run", images=None)
    with pytest.raises(RunError, match="not in files"):
        resume_job(tmp_path / "run", device="cpu")
    with pytest.raises(RunError, match="no run that can be resumed"):
        resume_job(tmp_path, device="cpu")
