"""Training on a GPU in each number format, and resuming on the CPU. Run with ``-m gpu``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from napari_strata.core.events import EpochEnd
from napari_strata.core.image import AnnotatedImage
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
