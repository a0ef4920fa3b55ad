"""Training from start to end: results, events and files."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers import tiled
from napari_strata.core.classes import ClassMap
from napari_strata.core.errors import LabelError, RecipeError, RunError, TrainingError
from napari_strata.core.events import (
    BatchEnd,
    EpochEnd,
    Event,
    Message,
    TrainingEnd,
    TrainingStarted,
    to_json,
)
from napari_strata.core.image import AnnotatedImage, Image
from napari_strata.core.metrics import ConfusionMatrix
from napari_strata.core.recipes import load_recipe
from napari_strata.core.runs import RunFolder
from napari_strata.data.regions import labelled_regions
from napari_strata.models.device import Precision
from napari_strata.models.model import Model
from napari_strata.models.network_predictor import NetworkPredictor
from napari_strata.models.tiled import TiledPredictor
from napari_strata.training import loop
from napari_strata.training.learner import Learner
from napari_strata.training.loop import iter_train, train
from napari_strata.training.losses import build_loss
from napari_strata.training.validation import Validation, load_truths, validate

Scene = Callable[..., AnnotatedImage]
CPU = torch.device("cpu")


def of_kind(events: list[Event], kind: Any) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


def same_weights(one: Model, other: Model) -> bool:
    return one.weights.keys() == other.weights.keys() and all(
        torch.equal(value, other.weights[name]) for name, value in one.weights.items()
    )


def timeless(history: tuple[EpochEnd, ...]) -> list[str]:
    return [to_json(replace(end, seconds=0.0, epochs=0)) for end in history]


def test_learns_an_easy_image_and_the_model_has_the_reported_scores(
    tmp_path: Path, scene: Scene, small: dict[str, Any]
) -> None:
    small |= {"training.epochs": 8, "patches.per_epoch": 48}
    test = scene(9)
    model = train(
        "default",
        scene(0),
        out=tmp_path / "run",
        validation=test,
        overrides=small,
        device="cpu",
    )
    best = model.best
    assert best is not None
    assert best.mean_iou > 0.9
    assert len(model.history) == 8
    predictor = tiled(
        model.build(), model.spec, device=CPU, precision=Precision("fp32")
    )
    truths = load_truths(labelled_regions(test, model.spec.classes), model.spec)
    scores = validate(
        predictor,
        truths,
        build_loss(model.recipe.training, classes=2, class_counts=(1, 1)),
    )
    assert (
        scores.confusion.mean_iou
        == best.mean_iou
        == max(end.mean_iou for end in model.history)
    )
    assert scores.confusion.pixel_accuracy == best.pixel_accuracy
    assert scores.loss == pytest.approx(best.validation_loss)
    assert scores.confusion.support.sum() == 4 * 48 * 48


def test_events_are_complete_and_the_run_records_them(
    tmp_path: Path, scene: Scene, small: dict[str, Any]
) -> None:
    events = list(
        iter_train(
            "default", scene(), out=tmp_path / "run", overrides=small, device="cpu"
        )
    )
    (started,) = of_kind(events, TrainingStarted)
    assert (
        started.first_epoch,
        started.epochs,
        started.batches,
        started.precision,
    ) == (1, 4, 2, "fp32")
    assert started.class_names == ("class 0", "class 1")
    assert started.parameters == sum(
        w.numel()
        for n, w in Model.load(tmp_path / "run").weights.items()
        if "running" not in n and "num_" not in n
    )
    batches = of_kind(events, BatchEnd)
    assert [(b.epoch, b.batch, b.batches) for b in batches] == [
        (e, b, 2) for e in (1, 2, 3, 4) for b in (1, 2)
    ]
    assert batches[0].learning_rate == pytest.approx(0.01 / 25)
    ends = of_kind(events, EpochEnd)
    for end in ends:
        both = [b for b in batches if b.epoch == end.epoch]
        assert end.train_loss == pytest.approx(sum(b.loss for b in both) / 2)
        assert end.learning_rate == both[1].learning_rate
        assert end.seconds > sum(b.seconds for b in both)
    assert isinstance(events[-1], TrainingEnd)
    assert events[-1].reason == "finished"
    assert events[-1].mean_iou == max(end.mean_iou for end in ends)
    assert events[-1].model == str(tmp_path / "run" / "model.safetensors")
    run = RunFolder.open(tmp_path / "run")
    assert run.events() == events
    rows = list(
        csv.DictReader(
            (run.path / "metrics.csv").read_text(encoding="utf-8").splitlines()
        )
    )
    assert [float(row["mean_iou"]) for row in rows] == [end.mean_iou for end in ends]
    assert [float(row["iou class 1"]) for row in rows] == [
        end.class_iou[1] for end in ends
    ]
    for row in rows:
        assert float(row["train_ce"]) + float(row["train_dice"]) == pytest.approx(
            float(row["train_loss"])
        )
        assert float(row["validation_ce"]) + float(
            row["validation_dice"]
        ) == pytest.approx(float(row["validation_loss"]))
        assert float(row["validation_bce"]) == pytest.approx(
            float(row["validation_ce"]), rel=1e-5
        )
    record = run.read_json("data.json")
    assert record["fingerprint"] == Model.load(run.path).fingerprint
    assert len(record["training"]) == 3
    assert [part["name"] for part in record["validation"]] == [
        "scene 0 Z=" + started.validation_text[-1]
    ]


def test_best_flags_mark_the_epochs_that_improved(
    tmp_path: Path, scene: Scene, small: dict[str, Any]
) -> None:
    events = list(
        iter_train(
            "default", scene(), out=tmp_path / "run", overrides=small, device="cpu"
        )
    )
    highest, lowest = -math.inf, math.inf
    for end in of_kind(events, EpochEnd):
        assert end.best_iou == (end.mean_iou > highest)
        assert end.best_loss == (end.validation_loss < lowest)
        highest, lowest = max(highest, end.mean_iou), min(lowest, end.validation_loss)
    assert (
        Model.load(tmp_path / "run" / "best_loss.safetensors")
        .history[-1]
        .validation_loss
        == lowest
    )


def with_labels(pair: AnnotatedImage, labels: np.ndarray[Any, Any]) -> AnnotatedImage:
    return AnnotatedImage(pair.image, pair.image.labels_like(labels))


def test_values_of_unlabelled_pixels_change_no_loss_and_no_weight(
    tmp_path: Path, scene: Scene, small: dict[str, Any]
) -> None:
    classes = ClassMap(names=("ground", "disc"), values=(0, 1), unlabelled=(7, 9))
    pair = scene()
    hidden = np.random.default_rng(1).random(pair.labels.shape) < 0.7
    found = []
    for number, value in enumerate((7, 9)):
        labels = np.where(hidden, value, np.asarray(pair.labels.data)).astype(np.uint8)
        events = list(
            iter_train(
                "default",
                with_labels(pair, labels),
                out=tmp_path / str(number),
                classes=classes,
                overrides=small,
                device="cpu",
            )
        )
        losses = [b.loss for b in of_kind(events, BatchEnd)] + [
            e.validation_loss for e in of_kind(events, EpochEnd)
        ]
        found.append((losses, Model.load(tmp_path / str(number))))
    assert found[0][0] == found[1][0]
    assert same_weights(found[0][1], found[1][1])


def test_pixels_that_are_not_finite_are_named_and_unlabelled(
    tmp_path: Path, scene: Scene, small: dict[str, Any]
) -> None:
    pair = scene()
    grey = np.asarray(pair.image.data).astype(np.float32)
    grey[:, 5:9, 6:8] = np.nan
    image = Image(grey, "ZYX", name="holes")
    painted = np.asarray(pair.labels.data).copy()
    erased = painted.copy()
    erased[:, 5:9, 6:8] = 9
    models = []
    for number, labels in enumerate((painted, erased)):
        annotated = AnnotatedImage(image, image.labels_like(labels))
        out = tmp_path / str(number)
        events = list(
            iter_train(
                "default",
                annotated,
                out=out,
                unlabelled=(9,),
                overrides=small,
                device="cpu",
            )
        )
        warnings = [m.text for m in of_kind(events, Message) if m.level == "warning"]
        assert any(
            "holes: found 32 pixels that are not finite" in text for text in warnings
        )
        models.append(Model.load(out))
    assert same_weights(*models)


@pytest.mark.parametrize("loss", ["ce", "bce", "dice", "focal", "tversky", "lovasz"])
@pytest.mark.parametrize(("optimizer", "rate"), [("adam", 0.01), ("sgd", 0.1)])
def test_training_lowers_every_loss(
    tmp_path: Path,
    scene: Scene,
    small: dict[str, Any],
    loss: str,
    optimizer: str,
    rate: float,
) -> None:
    small |= {
        "training.loss": {loss: 1.0},
        "training.optimizer": optimizer,
        "training.learning_rate": rate,
    }
    small |= {"training.class_weights": "balanced", "training.epochs": 6}
    events = list(
        iter_train(
            "default", scene(), out=tmp_path / "run", overrides=small, device="cpu"
        )
    )
    ends = of_kind(events, EpochEnd)
    assert ends[-1].train_loss < 0.9 * ends[0].train_loss


@pytest.mark.parametrize("schedule", ["constant", "plateau", "cosine", "one_cycle"])
def test_every_schedule_trains_at_its_rates(
    tmp_path: Path, scene: Scene, small: dict[str, Any], schedule: str
) -> None:
    small |= {"training.schedule": schedule}
    events = list(
        iter_train(
            "default", scene(), out=tmp_path / "run", overrides=small, device="cpu"
        )
    )
    rates = [b.learning_rate for b in of_kind(events, BatchEnd)]
    expected = {"constant": rates[0] == rates[-1], "plateau": rates[0] == 0.01}
    assert expected.get(schedule, rates[-1] < rates[0])


def test_random_numbers_of_caller_and_training_are_independent(
    tmp_path: Path, scene: Scene, small: dict[str, Any]
) -> None:
    small |= {"network.dropout": 0.3, "augmentation.noise": 0.2, "training.epochs": 2}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = train(
        "default", scene(), out=tmp_path / "first", overrides=small, device="cpu"
    )
    assert torch.equal(torch.rand(3), expected)
    for _ in iter_train(
        "default", scene(), out=tmp_path / "second", overrides=small, device="cpu"
    ):
        torch.manual_seed(1)
        torch.rand(17)
    assert same_weights(first, Model.load(tmp_path / "second"))
    other = train(
        "default",
        scene(),
        out=tmp_path / "other",
        overrides=small | {"training.seed": 1},
        device="cpu",
    )
    assert not same_weights(first, other)


def test_without_validation_data_the_latest_weights_are_kept(
    tmp_path: Path, scene: Scene, small: dict[str, Any]
) -> None:
    small |= {"training.validation": 0.0, "training.early_stopping.patience": 1}
    events = list(
        iter_train(
            "default", scene(), out=tmp_path / "run", overrides=small, device="cpu"
        )
    )
    ends = of_kind(events, EpochEnd)
    assert len(ends) == 4
    assert all(
        math.isnan(end.mean_iou) and math.isnan(end.validation_loss) for end in ends
    )
    assert not any(end.best_iou or end.best_loss for end in ends)
    assert any(
        "early stopping needs validation" in m.text for m in of_kind(events, Message)
    )
    model = Model.load(tmp_path / "run")
    averaged = RunFolder.open(tmp_path / "run").load_checkpoint("last.pt")["learner"][
        "averaged"
    ]["weights"]
    assert all(
        torch.equal(value, averaged[name]) for name, value in model.weights.items()
    )
    assert ends[-1].weights == "averaged"
    assert not (tmp_path / "run" / "best_iou.safetensors").exists()


class Script:
    """Replacement of `validate` that returns given mean IoUs and records the weights."""

    def __init__(self, *scores: float) -> None:
        self.scores = list(scores)
        self.seen: list[dict[str, torch.Tensor]] = []

    def __call__(self, predictor: TiledPredictor, truths: Any, loss: Any) -> Validation:
        assert isinstance(predictor.predictor, NetworkPredictor)
        state = predictor.predictor.network.state_dict()
        self.seen.append({name: value.clone() for name, value in state.items()})
        # Of class 0 some pixels are taken as class 1, which never occurs: the mean IoU
        # over the classes in the truth is the share of hits.
        hits = round(1000 * self.scores.pop(0))
        confusion = ConfusionMatrix(
            predictor.spec.classes, np.array([[hits, 1000 - hits], [0, 0]])
        )
        return Validation(1 - hits / 1000, {}, confusion)


def test_early_stopping_ends_the_training_and_the_best_is_the_model(
    tmp_path: Path, scene: Scene, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Script(0.5, 0.8, 0.6, 0.7, 0.9)
    monkeypatch.setattr(loop, "validate", script)
    small |= {
        "training.epochs": 9,
        "training.averaging": None,
        "training.early_stopping.monitor": "iou",
    }
    small |= {"training.early_stopping.patience": 2}
    events = list(
        iter_train(
            "default", scene(), out=tmp_path / "run", overrides=small, device="cpu"
        )
    )
    assert [end.epoch for end in of_kind(events, EpochEnd)] == [1, 2, 3, 4]
    end = events[-1]
    assert isinstance(end, TrainingEnd)
    assert (end.reason, end.epoch, end.best_epoch) == ("early stopping", 4, 2)
    model = Model.load(tmp_path / "run")
    assert len(model.history) == 4
    for name, value in model.weights.items():
        assert torch.equal(value, script.seen[1][name])
    assert any(
        not torch.equal(value, script.seen[3][name])
        for name, value in model.weights.items()
    )


def test_the_better_of_raw_and_averaged_weights_is_kept(
    tmp_path: Path, scene: Scene, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Script(0.6, 0.5, 0.6, 0.7, 0.7, 0.7)  # averaged, raw, averaged, raw ...
    monkeypatch.setattr(loop, "validate", script)
    small |= {"training.epochs": 3}
    events = list(
        iter_train(
            "default", scene(), out=tmp_path / "run", overrides=small, device="cpu"
        )
    )
    assert [end.weights for end in of_kind(events, EpochEnd)] == [
        "averaged",
        "raw",
        "averaged",
    ]
    assert [end.best_iou for end in of_kind(events, EpochEnd)] == [True, True, False]
    model = Model.load(tmp_path / "run")
    assert all(
        torch.equal(value, script.seen[3][name])
        for name, value in model.weights.items()
    )
    assert (
        RunFolder.open(tmp_path / "run").load_checkpoint("last.pt")["learner"][
            "averaged"
        ]["updates"]
        == 6
    )
    assert any(
        not torch.equal(value, script.seen[1][name])
        for name, value in script.seen[0].items()
    )


def test_plateau_follows_the_validation_loss(
    tmp_path: Path, scene: Scene, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "validate", Script(0.5, 0.5, 0.5, 0.5))
    small |= {
        "training.schedule": "plateau",
        "training.plateau.patience": 0,
        "training.averaging": None,
    }
    events = list(
        iter_train(
            "default", scene(), out=tmp_path / "run", overrides=small, device="cpu"
        )
    )
    assert [e.learning_rate for e in of_kind(events, EpochEnd)] == [
        0.01,
        0.01,
        0.005,
        0.0025,
    ]


def test_plateau_follows_the_training_loss_without_validation_data(
    tmp_path: Path, scene: Scene, small: dict[str, Any]
) -> None:
    small |= {
        "training.schedule": "plateau",
        "training.plateau.patience": 0,
        "training.validation": 0.0,
    }
    small |= {"patches.per_epoch": 64}
    ends = of_kind(
        list(
            iter_train(
                "default", scene(), out=tmp_path / "run", overrides=small, device="cpu"
            )
        ),
        EpochEnd,
    )
    losses = [end.train_loss for end in ends]
    assert losses == sorted(losses, reverse=True)
    assert {end.learning_rate for end in ends} == {0.01}


def poisoned(epoch: int, batch: int) -> Callable[..., dict[str, float]]:
    """`Learner.step` with a NaN in one batch."""
    step = Learner.step

    def poison(
        self: Learner, data: Any, *, epoch: int, number: int
    ) -> dict[str, float]:
        if (epoch, number) == when:
            data = data._replace(images=data.images * float("nan"))
        return step(self, data, epoch=epoch, number=number)

    when = (epoch, batch)
    return poison


def test_a_loss_that_is_nan_stops_with_its_batch(
    tmp_path: Path, scene: Scene, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(Learner, "step", poisoned(3, 2))
        with pytest.raises(
            TrainingError,
            match=r"the loss .* epoch 3, batch 2 .*learning_rate.*last checkpoint is kept",
        ):
            list(
                iter_train(
                    "default",
                    scene(),
                    out=tmp_path / "run",
                    overrides=small,
                    device="cpu",
                )
            )
    state = RunFolder.open(tmp_path / "run").load_checkpoint("last.pt")
    assert len(state["progress"]["history"]) == 2
    assert all(
        torch.isfinite(value.double()).all()
        for value in state["learner"]["network"].values()
    )
    resumed = train("default", scene(), out=tmp_path / "run", device="cpu", resume=True)
    assert len(resumed.history) == 4


def test_a_gradient_that_is_nan_stops_before_the_step(
    tmp_path: Path, scene: Scene, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        torch.nn.utils,
        "clip_grad_norm_",
        lambda parameters, most: torch.tensor(math.inf),
    )
    with pytest.raises(
        TrainingError, match="a gradient is not a finite number in epoch 1, batch 1"
    ) as caught:
        list(
            iter_train(
                "default", scene(), out=tmp_path / "run", overrides=small, device="cpu"
            )
        )
    assert str(caught.value).endswith(
        "to a third."
    )  # no checkpoint is there yet, and fp32 is on already
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_gradients_are_clipped_to_the_recipes_length(
    tmp_path: Path, scene: Scene, small: dict[str, Any]
) -> None:
    small |= {
        "training.optimizer": "sgd",
        "training.momentum": 0.0,
        "training.weight_decay": 0.0,
    }
    small |= {
        "training.schedule": "constant",
        "training.learning_rate": 1.0,
        "training.averaging": None,
    }
    small |= {"training.epochs": 1, "patches.per_epoch": 8, "training.clip_norm": 1e-3}
    clipped = train(
        "default", scene(), out=tmp_path / "run", overrides=small, device="cpu"
    )
    start = train(
        "default",
        scene(),
        out=tmp_path / "start",
        overrides=small | {"training.learning_rate": 1e-30},
        device="cpu",
    )
    names = [n for n in clipped.weights if "running" not in n and "num_" not in n]
    moved = (
        sum(float(((clipped.weights[n] - start.weights[n]) ** 2).sum()) for n in names)
        ** 0.5
    )
    assert moved == pytest.approx(1e-3, rel=1e-2)


def test_out_of_memory_is_reported(
    tmp_path: Path, scene: Scene, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Learner, "step", fail)
    with pytest.raises(
        TrainingError, match=r"8 patches of 32 x 32 pixels .* training\.batch_size=4"
    ):
        list(
            iter_train(
                "default", scene(), out=tmp_path / "run", overrides=small, device="cpu"
            )
        )


def test_out_of_memory_beside_a_step_is_not_blamed_on_the_batch(
    tmp_path: Path, scene: Scene, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    for owner, name in ((loop, "validate"), (loop, "Learner")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, fail)
            with pytest.raises(TrainingError, match="batch size is not the cause"):
                train(
                    "default",
                    scene(),
                    out=tmp_path / name,
                    overrides=small,
                    device="cpu",
                )


def test_convolutions_are_deterministic_while_it_trains(
    tmp_path: Path, scene: Scene, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    cudnn = torch.backends.cudnn
    monkeypatch.setattr(cudnn, "benchmark", True)
    seen = []
    for event in iter_train(
        "default", scene(), out=tmp_path / "run", overrides=small, device="cpu"
    ):
        if isinstance(event, BatchEnd):
            seen.append((cudnn.deterministic, cudnn.benchmark))
    assert set(seen) == {(True, False)}
    assert (cudnn.deterministic, cudnn.benchmark) == (False, True)


def test_another_runtime_error_keeps_its_traceback(
    tmp_path: Path, scene: Scene, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(Learner, "step", fail)
    with pytest.raises(RuntimeError, match="shapes differ"):
        list(
            iter_train(
                "default", scene(), out=tmp_path / "run", overrides=small, device="cpu"
            )
        )


def test_a_class_that_validation_lacks_is_named(
    tmp_path: Path, scene: Scene, small: dict[str, Any]
) -> None:
    classes = ClassMap(names=("ground", "disc", "clay"), values=(0, 1, 2))
    small |= {"training.epochs": 1}
    events = list(
        iter_train(
            "default",
            scene(),
            out=tmp_path / "run",
            classes=classes,
            overrides=small,
            device="cpu",
        )
    )
    warnings = [m.text for m in of_kind(events, Message) if m.level == "warning"]
    assert any("'clay'" in text for text in warnings)
    (end,) = of_kind(events, EpochEnd)
    assert math.isfinite(end.mean_iou)


def test_unsuitable_input_is_refused_before_anything_is_written(
    tmp_path: Path, scene: Scene, small: dict[str, Any]
) -> None:
    def attempt(**options: Any) -> None:
        given: dict[str, Any] = {
            "overrides": small,
            "device": "cpu",
            "out": tmp_path / "run",
        } | options
        list(iter_train("default", given.pop("pairs", scene()), **given))

    blank = with_labels(scene(), np.zeros(scene().labels.shape, np.uint8))
    with pytest.raises(LabelError, match="one class only, 'class 0'"):
        attempt(pairs=blank)
    with pytest.raises(RecipeError, match="3 numbers for 2 classes"):
        attempt(overrides=small | {"training.class_weights": (1, 2, 3)})
    with pytest.raises(RecipeError, match=r"training\.epoch"):
        attempt(overrides={"training.epoch": 3})
    with pytest.raises(TrainingError, match="no device 'tpu'"):
        attempt(device="tpu")
    pair = scene()
    with pytest.raises(LabelError, match="twice"):
        attempt(pairs=pair, validation=pair)
    assert not (tmp_path / "run").exists()


def test_an_existing_run_folder_is_refused_and_unchanged(
    tmp_path: Path, scene: Scene, small: dict[str, Any]
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(RunError, match="exists already"):
        list(
            iter_train(
                "default", scene(), out=tmp_path / "run", overrides=small, device="cpu"
            )
        )
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["notes.txt"]


def test_recipe_may_be_a_value_and_is_kept_with_the_run(
    tmp_path: Path, scene: Scene, small: dict[str, Any]
) -> None:
    recipe = load_recipe("unet-ct").with_overrides(small | {"training.epochs": 1})
    model = train(recipe, scene(), out=tmp_path / "run", device="cpu")
    assert model.recipe == recipe == RunFolder.open(tmp_path / "run").recipe
    record = json.loads((tmp_path / "run" / "data.json").read_text(encoding="utf-8"))
    assert record["spec"]["network"]["widths"] == [4, 8]


def test_memory_pages_are_kept_during_training_and_released_after_a_stop(
    scene: Scene, small: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = [0]

    @contextmanager
    def watched(device: str) -> Iterator[bool]:
        assert device == "cpu"
        inside[0] += 1
        try:
            yield True
        finally:
            inside[0] -= 1

    monkeypatch.setattr(loop, "kept_pages", watched)
    events = iter_train(
        "default", scene(0), out=tmp_path / "run", overrides=small, device="cpu"
    )
    assert any(isinstance(event, BatchEnd) and inside == [1] for event in events)
    events.close()
    assert inside == [0]
