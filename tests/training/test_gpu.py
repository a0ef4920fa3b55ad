"""Training on a GPU in each number format, resuming, and NCCL. Run with ``-m gpu``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from napari_strata.core.events import EpochEnd
from napari_strata.core.image import AnnotatedImage
from napari_strata.core.runs import RunFolder
from napari_strata.training.ddp import ProcessGroup
from napari_strata.training.loop import iter_train, train

Scene = Callable[..., AnnotatedImage]

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_learns_in_every_number_format_and_resumes_on_the_cpu(
    tmp_path: Path, scene: Scene, small: dict[str, Any], precision: str
) -> None:
    small |= {
        "training.epochs": 8,
        "patches.per_epoch": 48,
        "training.precision": precision,
    }
    model = train(
        "default", scene(), out=tmp_path / "run", overrides=small, device="cuda"
    )
    assert model.best is not None
    assert model.best.mean_iou > 0.9
    events = iter_train(
        "default",
        scene(),
        out=tmp_path / "run",
        overrides={"training.precision": "fp32"},
        device="cpu",
        extend=1,
    )
    (end,) = [event for event in events if isinstance(event, EpochEnd)]
    assert end.epoch == 9
    assert end.mean_iou > 0.85


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_resumed_training_ends_at_the_very_weights(
    tmp_path: Path, scene: Scene, small: dict[str, Any], precision: str
) -> None:
    small |= {"training.precision": precision}
    train("unet-ct", scene(), out=tmp_path / "whole", overrides=small, device="cuda")
    events = iter_train(
        "unet-ct", scene(), out=tmp_path / "half", overrides=small, device="cuda"
    )
    for event in events:
        if isinstance(event, EpochEnd) and event.epoch == 2:
            break
    events.close()
    train("unet-ct", scene(), out=tmp_path / "half", device="cuda", resume=True)
    whole, half = (
        RunFolder.open(tmp_path / name).load_checkpoint("last.pt")["learner"]
        for name in ("whole", "half")
    )
    assert whole["scaler"] == half["scaler"]
    for name, value in whole["network"].items():
        assert torch.equal(value, half["network"][name]), name


def test_nccl_starts_with_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29517",
    }.items():
        monkeypatch.setenv(name, value)
    group = ProcessGroup.join("test")
    try:
        values = torch.arange(4.0, device="cuda")
        torch.distributed.all_reduce(values)
        assert values.tolist() == [0, 1, 2, 3]
    finally:
        group.close()
