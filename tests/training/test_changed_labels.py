"""A training uses labels that were painted while it runs, or while it was stopped."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import napari_strata as ns
from napari_strata.core.classes import ClassMap
from napari_strata.core.errors import LabelError
from napari_strata.core.events import (
    BatchEnd,
    EpochEnd,
    Event,
    LabelsUpdated,
    Message,
    TrainingStarted,
    to_json,
)
from napari_strata.core.image import AnnotatedImage, Image, LabelImage
from napari_strata.core.runs import RunFolder
from napari_strata.training.loop import iter_task, iter_train
from napari_strata.training.plan import ChangedLabels, Plan, TrainingTask, plan_new

CLASSES = ClassMap(names=("dark", "bright"), values=(1, 2), unlabelled=(0,))
SIZE = 48


def pair_of(painted: np.ndarray[Any, Any]) -> AnnotatedImage:
    """A stack, the left half dark and the right half bright, with these labels."""
    rng = np.random.default_rng(0)
    grey = np.full(painted.shape, 60.0)
    grey[..., SIZE // 2 :] = 180
    grey += rng.normal(0, 10, grey.shape)
    image = Image(grey.astype(np.uint8), "ZYX", name="halves")
    return AnnotatedImage(image, image.labels_like(painted, classes=CLASSES))


def strokes(planes: int = 6) -> np.ndarray[Any, Any]:
    """Strokes of the dark half alone, on planes 0 to 2."""
    painted = np.zeros((planes, SIZE, SIZE), np.uint8)
    painted[:3, 4:40:6, 2:20] = 1
    return painted


def with_bright(painted: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The same, and strokes of the bright half on plane 5, which had none."""
    more = painted.copy()
    more[5, 4:40:6, 28:46] = 2
    return more


def repaint(pair: AnnotatedImage, painted: np.ndarray[Any, Any]) -> LabelImage:
    return replace(pair.labels, data=painted)


class Painter:
    """Gives each of some labels to a training once, after as many steps as said."""

    def __init__(self, *changes: tuple[int, np.ndarray[Any, Any]]) -> None:
        self._changes = list(changes)
        self._calls = 0

    def __call__(self, pairs: Sequence[AnnotatedImage]) -> ChangedLabels | None:
        self._calls += 1
        if not self._changes or self._calls <= self._changes[0][0]:
            return None
        _, painted = self._changes.pop(0)
        return ChangedLabels(pairs[0].labels, repaint(pairs[0], painted))


def train(
    run: Path, painter: Painter, settings: dict[str, Any], recipe: str = "default"
) -> list[Event]:
    job = TrainingTask(
        recipe,
        pair_of(strokes()),
        run,
        overrides=settings,
        device="cpu",
        take_labels=painter,
    )
    return list(iter_task(job))


def plan_of(painted: np.ndarray[Any, Any], settings: dict[str, Any]) -> Plan:
    job = TrainingTask("default", pair_of(painted), Path("run"), overrides=settings)
    return plan_new(job)


def changed(plan: Plan, painted: np.ndarray[Any, Any]) -> Plan:
    before = plan.pairs[0].labels
    return plan.with_labels(ChangedLabels(before, repaint(plan.pairs[0], painted)))


def of(kind: type, events: Sequence[Event]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


def bright_share(run: Path) -> float:
    """Share of the bright half that the model of a run predicts as bright."""
    labels = ns.predict(run, pair_of(strokes()).image, device="cpu").read()[0]
    return float((labels[..., SIZE // 2 :] == 2).mean())


def test_a_class_that_is_painted_during_the_training_is_predicted(
    tmp_path: Path, small: dict[str, Any]
) -> None:
    small |= {"training.epochs": 8, "training.averaging": None}
    run = tmp_path / "run"
    more = with_bright(strokes())
    events = train(run, Painter((3, more)), small)
    (updated,) = of(LabelsUpdated, events)
    place = events.index(updated)
    assert len(of(BatchEnd, events[:place])) == 3
    (started,) = of(TrainingStarted, events)
    assert len(of(BatchEnd, events)) == 8 * started.batches
    assert updated.pixels + updated.held_back == int((more > 0).sum())
    assert f"{updated.pixels:,} labelled pixels" in updated.text
    folder = RunFolder(run)
    assert list(map(to_json, folder.events())) == list(map(to_json, events))
    assert folder.data()["training"][-1]["name"] == "halves Z=5"
    assert folder.data()["fingerprint"] == ns.Model.load(run).fingerprint
    assert bright_share(run) > 0.9


def test_the_best_model_has_seen_the_new_labels(
    tmp_path: Path, small: dict[str, Any]
) -> None:
    small |= {"training.epochs": 4}
    events = train(tmp_path / "run", Painter((5, with_bright(strokes()))), small)
    place = events.index(of(LabelsUpdated, events)[0])
    first = of(EpochEnd, events[place:])[0]
    assert first.best_iou
    assert first.best_loss


def test_what_is_held_back_stays_so(small: dict[str, Any]) -> None:
    plan = plan_of(strokes(), small)
    (held,) = plan.validation
    z = int(held.index["Z"])
    more = strokes()
    more[z, 41:47, 2:20] = 1
    more[3:, 10, 2:20] = 2
    after = changed(plan, more)
    (held_after,) = after.validation
    assert held_after.name == held.name
    assert held_after.counts[0] == held.counts[0] + 6 * 18
    names = [region.name for region in after.training]
    expected = [f"halves Z={i}" for i in range(6) if i != z and i != z + 1]
    beside = z + 1 >= 3  # a plane that had labels before stays where it was
    assert names == (expected if beside else sorted([*expected, f"halves Z={z + 1}"]))
    assert after.left_out == ((f"halves Z={z + 1}",) if beside else ())
    assert after.labels_updated(1).held_back == int((more[z] > 0).sum())


def test_a_plane_beside_a_held_back_one_is_left_out_and_named(
    small: dict[str, Any],
) -> None:
    painted = strokes(8)
    painted[:3] = 0
    painted[[0, 3, 6], 4:40:6, 2:20] = 1
    plan = plan_of(painted, small)
    z = int(plan.validation[0].index["Z"])
    more = painted.copy()
    more[z + 1, 10, 2:20] = 1
    after = changed(plan, more)
    assert after.left_out == (f"halves Z={z + 1}",)
    assert f"halves Z={z + 1}" in after.labels_updated(1).text
    assert len(after.training) == len(plan.training)


def test_a_strip_that_is_held_back_is_so_on_new_planes_too(
    small: dict[str, Any],
) -> None:
    painted = np.zeros((4, SIZE, SIZE), np.uint8)
    painted[0, :, 2:20], painted[0, :, 28:46] = 1, 2
    plan = plan_of(painted, small)
    (held,) = plan.validation
    more = painted.copy()
    more[2] = painted[0]
    after = changed(plan, more)
    assert after.validation[0].box == held.box
    new = [region for region in after.training if region.index["Z"] == 2]
    assert [region.box for region in new] == [region.box for region in plan.training]


def test_labels_that_cannot_be_used_are_refused_and_the_training_goes_on(
    tmp_path: Path, small: dict[str, Any]
) -> None:
    small |= {"training.epochs": 2}
    wrong = strokes()
    wrong[1, 40, 2:20] = 7
    painter = Painter((1, wrong), (2, with_bright(strokes())))
    events = train(tmp_path / "run", painter, small)
    (warning,) = [e.text for e in of(Message, events) if "new strokes" in e.text]
    assert "label value 7" in warning
    assert len(of(LabelsUpdated, events)) == 1
    assert len(of(EpochEnd, events)) == 2
    plan = plan_of(strokes(), small)
    with pytest.raises(LabelError, match="no labelled pixel left"):
        changed(plan, np.zeros_like(strokes()))


def test_a_resumed_run_uses_the_labels_of_now_and_says_so(
    tmp_path: Path, small: dict[str, Any]
) -> None:
    small |= {"training.epochs": 8, "training.averaging": None}
    options: dict[str, Any] = {"out": tmp_path / "run", "device": "cpu"}
    with closing(
        iter_train("default", pair_of(strokes()), overrides=small, **options)
    ) as events:
        for event in events:
            if isinstance(event, EpochEnd) and event.epoch == 2:
                break
    more = with_bright(strokes())
    resumed = list(iter_train("default", pair_of(more), resume=True, **options))
    (updated,) = of(LabelsUpdated, resumed)
    assert updated.pixels + updated.held_back == int((more > 0).sum())
    assert updated.text.startswith("The labels have changed since the run stopped.")
    assert of(EpochEnd, resumed)[0].best_iou
    assert bright_share(tmp_path / "run") > 0.9
    again = list(iter_train("default", pair_of(more), extend=1, **options))
    assert not of(LabelsUpdated, again)


def test_a_pixel_classifier_is_fitted_on_strokes_painted_meanwhile(
    tmp_path: Path,
) -> None:
    settings = {"network.trees": 20, "network.depth": 6}
    run = tmp_path / "run"
    more = with_bright(strokes())
    events = train(run, Painter((0, more)), settings, "instant")
    (updated,) = of(LabelsUpdated, events)
    assert updated.pixels == int((more > 0).sum())
    assert len(of(EpochEnd, events)) == 1
    assert bright_share(run) > 0.9
    assert RunFolder(run).data()["fingerprint"] == ns.Model.load(run).fingerprint


@pytest.mark.parametrize("held_bytes", [2**31, 0])
def test_batches_after_a_change_are_those_of_the_new_labels(
    small: dict[str, Any], monkeypatch: pytest.MonkeyPatch, held_bytes: int
) -> None:
    from napari_strata.data import loader

    monkeypatch.setattr(loader, "HELD_BYTES", held_bytes)
    plan = plan_of(strokes(), small)
    source = loader.PatchSource(plan.training, plan.spec, plan.recipe)
    after = changed(plan, with_bright(strokes()))
    batches = len(source)
    source.update(after.training)
    fresh = loader.PatchSource(after.training, plan.spec, plan.recipe)
    assert len(source) == batches
    expected = list(fresh.epoch(3))
    assert any((batch.labels == 1).any() for batch in expected)
    for first in (0, 1):
        for one, other in zip(
            source.epoch(3, first=first), expected[first:], strict=True
        ):
            assert one.labels.equal(other.labels)
            assert one.images.equal(other.images)


def test_a_training_that_starts_from_a_model_keeps_what_it_held_back(
    tmp_path: Path, small: dict[str, Any]
) -> None:
    run = tmp_path / "run"
    train(run, Painter(), small | {"training.epochs": 1, "training.seed": 1})
    before = RunFolder(run).data()
    more = with_bright(strokes())
    for seed in range(4):  # each of which would hold another slice back
        settings = small | {"training.start": str(run), "training.seed": seed}
        plan = plan_of(more, settings)
        record = plan.record()
        assert record["validation"] == before["validation"]
        assert plan.text == f"{before['split']}, as in {run}"
    names = [row["name"] for row in record["training"]]
    assert names[-1] == "halves Z=5"
