"""The newest weights are on disk for previews within an epoch, and change nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import napari_strata as ns
from napari_strata.core.events import BatchEnd
from napari_strata.core.image import AnnotatedImage
from napari_strata.core.runs import RunFolder
from napari_strata.models.model import Model
from napari_strata.training.loop import iter_task
from napari_strata.training.plan import TrainingTask

Scene = Callable[..., AnnotatedImage]


def test_snapshots_predict_and_leave_the_training_as_it_is(
    tmp_path: Path, scene: Scene, small: dict[str, Any]
) -> None:
    small |= {"network.dropout": 0.3, "training.batch_size": 2, "training.epochs": 2}
    pair = scene()
    for name, seconds in (("without", 0.0), ("with", 0.001)):
        folder = RunFolder(tmp_path / name)
        snapshots = []
        for event in iter_task(
            TrainingTask(
                "default",
                pair,
                folder.path,
                overrides=small,
                device="cpu",
                snapshot_s=seconds,
            )
        ):
            if isinstance(event, BatchEnd) and folder.snapshot_path.exists():
                snapshots.append(Model.load(folder.snapshot_path))
        assert bool(snapshots) == bool(seconds)
        assert not folder.snapshot_path.exists()
    first = snapshots[0]
    assert not first.history  # in the first epoch, before there is a model
    assert ns.predict(first, pair.image, device="cpu").shape == pair.labels.shape
    plain, other = (Model.load(tmp_path / name) for name in ("without", "with"))
    for key, value in plain.weights.items():
        assert torch.equal(value, other.weights[key]), key
