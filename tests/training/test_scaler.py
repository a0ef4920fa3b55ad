"""The loss scaler of fp16, tested in float32, where scaling by powers of two changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from napari_strata.core.errors import TrainingError
from napari_strata.core.events import BatchEnd, EpochEnd
from napari_strata.core.image import AnnotatedImage
from napari_strata.core.runs import RunFolder
from napari_strata.models.device import Precision
from napari_strata.training import loop
from napari_strata.training.loop import iter_train, train
from napari_strata.training.losses import Loss

Scene = Callable[..., AnnotatedImage]


@dataclass(frozen=True)
class Scaled(Precision):
    """float32 with a scaler."""

    start: float = 2.0**10

    def scaler(self, device: torch.device) -> torch.amp.GradScaler:
        return torch.amp.GradScaler("cpu", init_scale=self.start, growth_interval=3)


def use(monkeypatch: pytest.MonkeyPatch, precision: Precision) -> None:
    monkeypatch.setattr(loop, "choose_precision", lambda name, device: precision)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_scaling_changes_no_weight(
    tmp_path: Path,
    scene: Scene,
    small: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    optimizer: str,
) -> None:
    small |= {"training.optimizer": optimizer, "training.epochs": 2}
    plain = train(
        "default", scene(), out=tmp_path / "plain", overrides=small, device="cpu"
    )
    use(monkeypatch, Scaled("scaled"))
    scaled = train(
        "default", scene(), out=tmp_path / "scaled", overrides=small, device="cpu"
    )
    for name, value in plain.weights.items():
        torch.testing.assert_close(value, scaled.weights[name], rtol=1e-5, atol=1e-6)


def test_infinite_gradients_are_skipped_and_the_scale_survives_a_stop(
    tmp_path: Path, scene: Scene, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    small |= {"patches.per_epoch": 64, "training.loss": {"ce": 100.0}}
    use(monkeypatch, Scaled("scaled", start=3e38))
    for event in iter_train(
        "default", scene(), out=tmp_path / "run", overrides=small, device="cpu"
    ):
        if isinstance(event, EpochEnd) and event.epoch == 2:
            break
    train("default", scene(), out=tmp_path / "whole", overrides=small, device="cpu")
    use(monkeypatch, Scaled("scaled", start=1.0))
    train("default", scene(), out=tmp_path / "run", device="cpu", resume=True)
    resumed, whole = (
        RunFolder.open(tmp_path / n).load_checkpoint("last.pt")["learner"]
        for n in ("run", "whole")
    )
    assert resumed["scaler"] == whole["scaler"]
    assert 1 < whole["scaler"]["scale"] < 3e38
    for name, value in whole["network"].items():
        assert torch.isfinite(value.double()).all()
        assert torch.equal(value, resumed["network"][name])
    steps = next(iter(whole["optimizer"]["state"].values()))["step"]
    assert 0 < steps < 32


def test_gradients_that_are_never_finite_end_the_training(
    tmp_path: Path, scene: Scene, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss is finite, so that nothing else shows that no step is made."""

    class NanGradient(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, value: Tensor) -> Tensor:
            return value.clone()

        @staticmethod
        def backward(context: Any, gradient: Tensor) -> Tensor:
            return gradient * torch.nan

    total = Loss.total
    monkeypatch.setattr(Loss, "total", lambda *args: NanGradient.apply(total(*args)))
    use(monkeypatch, Scaled("fp16", torch.float16))
    small |= {"patches.per_epoch": 320}
    events = []
    with pytest.raises(
        TrainingError,
        match=r"a gradient, as in the 19 steps before, is not a finite number in epoch "
        r"1, batch 20 .* training\.precision to bf16 or fp32",
    ):
        events.extend(
            iter_train(
                "default", scene(), out=tmp_path / "run", overrides=small, device="cpu"
            )
        )
    assert sum(isinstance(event, BatchEnd) for event in events) == 19
