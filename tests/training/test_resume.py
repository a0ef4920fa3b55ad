"""Stopping, resuming and extending give the same weights as an uninterrupted run, bit for bit."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from napari_strata.core.errors import RecipeError, RunError
from napari_strata.core.events import (
    BatchEnd,
    EpochEnd,
    Message,
    TrainingEnd,
    TrainingStarted,
    to_json,
)
from napari_strata.core.image import AnnotatedImage
from napari_strata.core.runs import RunFolder
from napari_strata.models.model import Model
from napari_strata.training.learner import Learner
from napari_strata.training.loop import iter_train, train

Scene = Callable[..., AnnotatedImage]

RANDOM = {
    "network.dropout": 0.3,
    "augmentation.noise": 0.3,
    "augmentation.rotation": 20.0,
}
"""Settings with random numbers."""


def assert_same_run(one: Path, other: Path) -> None:
    """Check that weights (model, raw and averaged), optimiser, history and table are equal."""
    first, second = (
        RunFolder.open(path).load_checkpoint("last.pt") for path in (one, other)
    )
    for name, value in Model.load(one).weights.items():
        assert torch.equal(value, Model.load(other).weights[name]), name
    for part in ("network", "averaged", "optimizer", "schedule", "scaler"):
        assert_equal(first["learner"][part], second["learner"][part])
    history = [
        [to_json(replace(end, seconds=0.0)) for end in Model.load(path).history]
        for path in (one, other)
    ]
    assert history[0] == history[1]
    rows = [
        [row | {"seconds": 0} for row in state["progress"]["rows"]]
        for state in (first, second)
    ]
    assert json.dumps(rows[0]) == json.dumps(rows[1])


def assert_equal(one: Any, other: Any) -> None:
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal(one[key], other[key])
    else:
        assert one == other


def stop_after(events: Any, *, batches: int) -> None:
    """Stop after some batches, as a user does."""
    seen = 0
    for event in events:
        seen += isinstance(event, BatchEnd)
        if seen == batches:
            break
    events.close()


def epochs_of(path: Path) -> list[int]:
    return [
        event.epoch
        for event in RunFolder.open(path).events()
        if isinstance(event, EpochEnd)
    ]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {
            "training.optimizer": "sgd",
            "training.schedule": "plateau",
            "training.plateau.patience": 0,
        },
        {
            "training.optimizer": "adam",
            "training.schedule": "cosine",
            "training.averaging": None,
        },
        {"training.precision": "bf16"},
    ],
    ids=["adamw one-cycle", "sgd plateau", "adam cosine", "bf16"],
)
def test_ten_epochs_equal_five_and_five_after_a_kill(
    tmp_path: Path, scene: Scene, small: dict[str, Any], settings: dict[str, Any]
) -> None:
    small |= RANDOM | settings | {"training.epochs": 10}
    train("default", scene(), out=tmp_path / "whole", overrides=small, device="cpu")
    stop_after(
        iter_train(
            "default", scene(), out=tmp_path / "run", overrides=small, device="cpu"
        ),
        batches=11,
    )
    assert epochs_of(tmp_path / "run") == [1, 2, 3, 4, 5]
    events = list(
        iter_train("default", scene(), out=tmp_path / "run", device="cpu", resume=True)
    )
    (started,) = [e for e in events if isinstance(e, TrainingStarted)]
    assert (started.first_epoch, started.epochs) == (6, 10)
    assert epochs_of(tmp_path / "run") == list(range(1, 11))
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_a_stop_in_the_first_epoch_leaves_a_model_and_resume_starts_again(
    tmp_path: Path, scene: Scene, small: dict[str, Any]
) -> None:
    train("default", scene(), out=tmp_path / "whole", overrides=small, device="cpu")
    stop_after(
        iter_train(
            "default", scene(), out=tmp_path / "run", overrides=small, device="cpu"
        ),
        batches=1,
    )
    model = Model.load(tmp_path / "run")
    assert model.history == ()
    assert all(
        torch.isfinite(value.double()).all()
        for value in model.build().state_dict().values()
    )
    last = RunFolder.open(tmp_path / "run").events()[-1]
    assert isinstance(last, TrainingEnd)
    assert (last.reason, last.epoch) == ("stopped", 0)
    assert last.model == str(tmp_path / "run" / "model.safetensors")
    events = list(
        iter_train("default", scene(), out=tmp_path / "run", device="cpu", resume=True)
    )
    assert any("starts again" in e.text for e in events if isinstance(e, Message))
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_a_stop_before_the_first_step_leaves_no_model(
    tmp_path: Path, scene: Scene, small: dict[str, Any]
) -> None:
    events = iter_train(
        "default", scene(), out=tmp_path / "run", overrides=small, device="cpu"
    )
    next(events)
    events.close()
    assert not (tmp_path / "run" / "model.safetensors").exists()
    end = RunFolder.open(tmp_path / "run").events()[-1]
    assert isinstance(end, TrainingEnd)
    assert (end.reason, end.model) == ("stopped", "")


def test_a_later_stop_keeps_the_best_of_the_complete_epochs(
    tmp_path: Path, scene: Scene, small: dict[str, Any]
) -> None:
    stop_after(
        iter_train(
            "default", scene(), out=tmp_path / "run", overrides=small, device="cpu"
        ),
        batches=7,
    )
    model = Model.load(tmp_path / "run")
    ends = [
        e for e in RunFolder.open(tmp_path / "run").events() if isinstance(e, EpochEnd)
    ]
    assert len(ends) == 3
    best = [end for end in ends if end.best_iou][-1]
    assert model.history == tuple(ends[: best.epoch])


def test_ctrl_c_in_a_step_leaves_a_model_and_is_raised(
    tmp_path: Path, scene: Scene, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Learner.step

    def interrupt(
        self: Learner, batch: Any, *, epoch: int, number: int
    ) -> dict[str, float]:
        if number == 2:
            raise KeyboardInterrupt
        return step(self, batch, epoch=epoch, number=number)

    monkeypatch.setattr(Learner, "step", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train("default", scene(), out=tmp_path / "run", overrides=small, device="cpu")
    assert Model.load(tmp_path / "run").build() is not None


def test_an_event_lost_after_its_checkpoint_is_recorded_on_resuming(
    tmp_path: Path, scene: Scene, small: dict[str, Any]
) -> None:
    stop_after(
        iter_train(
            "default", scene(), out=tmp_path / "run", overrides=small, device="cpu"
        ),
        batches=5,
    )
    file = tmp_path / "run" / "events.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines()
    kept = [
        line for line in lines if not ('"EpochEnd"' in line and '"epoch": 2' in line)
    ]
    assert len(kept) == len(lines) - 1
    file.write_text("\n".join(kept) + "\n", encoding="utf-8")
    list(
        iter_train("default", scene(), out=tmp_path / "run", device="cpu", resume=True)
    )
    assert epochs_of(tmp_path / "run") == [1, 2, 3, 4]


def test_extending_trains_more_and_restarts_the_schedule(
    tmp_path: Path, scene: Scene, small: dict[str, Any]
) -> None:
    first = list(
        iter_train(
            "default", scene(), out=tmp_path / "run", overrides=small, device="cpu"
        )
    )
    more = list(
        iter_train("default", scene(), out=tmp_path / "run", device="cpu", extend=4)
    )
    rates = [
        [e.learning_rate for e in events if isinstance(e, BatchEnd)]
        for events in (first, more)
    ]
    assert rates[0] == rates[1]
    assert epochs_of(tmp_path / "run") == list(range(1, 9))
    model = Model.load(tmp_path / "run")
    assert [end.epoch for end in model.history] == list(range(1, 9))
    assert model.best is not None
    assert model.best.mean_iou == max(end.mean_iou for end in model.history)
    run = RunFolder.open(tmp_path / "run")
    assert run.recipe.training.epochs == 8
    assert len(run.load_checkpoint("last.pt")["progress"]["rows"]) == 8
    assert (run.path / "metrics.csv").read_text(encoding="utf-8").count("\n") == 9


def test_an_extension_that_is_stopped_at_once_is_not_lost(
    tmp_path: Path, scene: Scene, small: dict[str, Any]
) -> None:
    for name in ("whole", "run"):
        train("default", scene(), out=tmp_path / name, overrides=small, device="cpu")
    train("default", scene(), out=tmp_path / "whole", device="cpu", extend=3)
    stop_after(
        iter_train("default", scene(), out=tmp_path / "run", device="cpu", extend=3),
        batches=1,
    )
    train("default", scene(), out=tmp_path / "run", device="cpu", resume=True)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_extending_an_unfinished_run_adds_to_its_plan(
    tmp_path: Path, scene: Scene, small: dict[str, Any]
) -> None:
    stop_after(
        iter_train(
            "default", scene(), out=tmp_path / "run", overrides=small, device="cpu"
        ),
        batches=5,
    )
    model = train("default", scene(), out=tmp_path / "run", device="cpu", extend=2)
    assert len(model.history) == 6


def test_extending_restarts_the_patience(
    tmp_path: Path, scene: Scene, small: dict[str, Any]
) -> None:
    small |= {
        "training.learning_rate": 1e-12,
        "training.averaging": None,
        "training.epochs": 20,
    }
    small |= {
        "training.early_stopping.patience": 2,
        "training.early_stopping.monitor": "iou",
    }
    first = train(
        "default", scene(), out=tmp_path / "run", overrides=small, device="cpu"
    )
    stopped = len(first.history)
    assert stopped < 20
    again = train("default", scene(), out=tmp_path / "run", device="cpu", resume=True)
    assert len(again.history) == stopped
    more = train("default", scene(), out=tmp_path / "run", device="cpu", extend=10)
    assert len(more.history) >= stopped + 2


def test_resuming_a_complete_run_sends_a_message_and_changes_no_weight(
    tmp_path: Path, scene: Scene, small: dict[str, Any]
) -> None:
    before = train(
        "default", scene(), out=tmp_path / "run", overrides=small, device="cpu"
    )
    events = list(
        iter_train("default", scene(), out=tmp_path / "run", device="cpu", resume=True)
    )
    assert any(
        "complete after 4 epochs" in e.text for e in events if isinstance(e, Message)
    )
    assert not any(isinstance(e, BatchEnd) for e in events)
    assert Model.load(tmp_path / "run").digest == before.digest


def test_the_number_of_epochs_may_change_on_resuming(
    tmp_path: Path, scene: Scene, small: dict[str, Any]
) -> None:
    train("default", scene(), out=tmp_path / "run", overrides=small, device="cpu")
    events = list(
        iter_train(
            "default",
            scene(),
            out=tmp_path / "run",
            overrides={"training.epochs": 6},
            device="cpu",
            resume=True,
        )
    )
    assert [e.epoch for e in events if isinstance(e, EpochEnd)] == [5, 6]
    rates = [e.learning_rate for e in events if isinstance(e, BatchEnd)]
    assert rates == sorted(rates, reverse=True)
    assert 0.005 > rates[0] > rates[-1] > 0


def test_pairs_can_be_added_and_the_validation_is_unchanged(
    tmp_path: Path, scene: Scene, small: dict[str, Any]
) -> None:
    stop_after(
        iter_train(
            "default", scene(0), out=tmp_path / "run", overrides=small, device="cpu"
        ),
        batches=5,
    )
    before = RunFolder.open(tmp_path / "run").read_json("data.json")
    events = list(
        iter_train(
            "default",
            [scene(1), scene(0)],
            out=tmp_path / "run",
            device="cpu",
            resume=True,
        )
    )
    texts = [e.text for e in events if isinstance(e, Message)]
    assert "images that are new to this run, added to training: scene 1" in texts
    assert any(
        text.startswith("the training data changed: fingerprint") for text in texts
    )
    after = RunFolder.open(tmp_path / "run").read_json("data.json")
    assert after["validation"] == before["validation"]
    assert after["training"][:3] == before["training"]
    assert [part["name"] for part in after["training"][3:]] == [
        f"scene 1 Z={z}" for z in range(4)
    ]
    assert after["spec"] == before["spec"]
    model = Model.load(tmp_path / "run")
    assert len(model.history) == 4
    assert after["fingerprint"] != before["fingerprint"]
    again = list(
        iter_train(
            "default",
            [scene(0), scene(1)],
            out=tmp_path / "run",
            device="cpu",
            resume=True,
        )
    )
    assert not any("new to this run" in e.text for e in again if isinstance(e, Message))


def test_missing_images_are_named(
    tmp_path: Path, scene: Scene, small: dict[str, Any]
) -> None:
    small |= {"training.epochs": 2}
    train(
        "default",
        [scene(0), scene(1)],
        out=tmp_path / "run",
        validation=scene(2),
        overrides=small,
        device="cpu",
    )
    events = list(
        iter_train(
            "default",
            scene(1),
            out=tmp_path / "run",
            validation=scene(2),
            device="cpu",
            extend=1,
        )
    )
    texts = [e.text for e in events if isinstance(e, Message) and e.level == "warning"]
    assert any("missing and are left out: scene 0" in text for text in texts)


def test_labels_painted_after_a_stop_are_used(
    tmp_path: Path, scene: Scene, small: dict[str, Any]
) -> None:
    pair = scene()
    small |= {"training.epochs": 1}
    train("default", pair, out=tmp_path / "run", overrides=small, device="cpu")
    painted = np.asarray(pair.labels.data).copy()
    painted[:, :8, :8] = 1
    changed = AnnotatedImage(pair.image, pair.image.labels_like(painted))
    events = list(
        iter_train("default", changed, out=tmp_path / "run", device="cpu", extend=1)
    )
    assert any(
        "the training data changed" in e.text for e in events if isinstance(e, Message)
    )


def test_data_that_do_not_fit_the_run_are_refused(
    tmp_path: Path, scene: Scene, small: dict[str, Any]
) -> None:
    small |= {"training.epochs": 1}
    train(
        "default",
        scene(0),
        out=tmp_path / "run",
        validation=scene(1),
        overrides=small,
        device="cpu",
    )
    before = sorted(
        (p.name, p.stat().st_mtime_ns) for p in (tmp_path / "run").iterdir()
    )

    def resume(pairs: Any, **options: Any) -> None:
        list(
            iter_train(
                "default",
                pairs,
                out=tmp_path / "run",
                device="cpu",
                resume=True,
                **options,
            )
        )

    with pytest.raises(
        RecipeError, match=r"network\.widths, training\.loss cannot change"
    ):
        resume(
            scene(0),
            validation=scene(1),
            overrides={"network.widths": (4, 9), "training.loss": {"ce": 1}},
        )
    with pytest.raises(RunError, match="none of the given images"):
        resume(scene(7))
    with pytest.raises(RunError, match="validation images of this run are missing"):
        resume(scene(0))
    with pytest.raises(RunError, match="scene 8 did not validate before"):
        resume(scene(0), validation=scene(8))
    with pytest.raises(RunError, match="found no run here"):
        list(
            iter_train(
                "default",
                scene(0),
                out=tmp_path / "elsewhere",
                device="cpu",
                resume=True,
            )
        )
    assert (
        sorted((p.name, p.stat().st_mtime_ns) for p in (tmp_path / "run").iterdir())
        == before
    )


def test_another_recipe_is_named_and_not_used(
    tmp_path: Path, scene: Scene, small: dict[str, Any]
) -> None:
    small |= {"training.epochs": 1}
    train("unet-ct", scene(), out=tmp_path / "run", overrides=small, device="cpu")

    def warnings(recipe: Any) -> list[str]:
        events = iter_train(
            recipe, scene(), out=tmp_path / "run", device="cpu", resume=True
        )
        return [
            e.text for e in events if isinstance(e, Message) and e.level == "warning"
        ]

    assert any(
        "its own recipe, 'unet-ct'; 'unet-classic' is not used" in text
        for text in warnings("unet-classic")
    )
    assert not any(
        "recipe" in text
        for text in itertools.chain(warnings("unet-ct"), warnings("default"))
    )


def test_an_epoch_whose_event_was_lost_is_sent_after_resuming(
    tmp_path: Path, scene: Scene, small: dict[str, Any]
) -> None:
    small["training.epochs"] = 2
    train("default", scene(), out=tmp_path, overrides=small, device="cpu")
    run = RunFolder(tmp_path)
    lines = run.events_path.read_text().splitlines(keepends=True)
    kept_lines = [line for line in lines if '"epoch": 2' not in line]
    run.events_path.write_text("".join(kept_lines))
    assert [end.epoch for end in run.history().epochs] == [1]
    events = iter_train(
        "default", scene(), out=tmp_path, overrides=small, device="cpu", extend=1
    )
    sent = [event.epoch for event in events if isinstance(event, EpochEnd)]
    assert sent == [2, 3]
    assert [end.epoch for end in run.history().of_type(EpochEnd)] == [1, 2, 3]
