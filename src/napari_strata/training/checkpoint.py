"""A training and its run folder: start, resume, save after each epoch, end."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from napari_strata.core import files
from napari_strata.core.drift import DriftReference
from napari_strata.core.events import (
    EpochEnd,
    Event,
    LabelsUpdated,
    Message,
    TrainingEnd,
    TrainingStarted,
)
from napari_strata.core.runs import RunFolder
from napari_strata.data.loader import PatchSource
from napari_strata.evaluation.pictures import Example, draw_example
from napari_strata.models.device import describe_device
from napari_strata.models.model import Model
from napari_strata.training.ddp import ProcessGroup
from napari_strata.training.drift import measure_reference
from napari_strata.training.learner import Learner, Progress
from napari_strata.training.plan import Plan, TrainingTask
from napari_strata.training.transfer import initialise

CHECKPOINT = "last.pt"
BEST_IOU, BEST_LOSS = "best_iou.safetensors", "best_loss.safetensors"


@dataclass
class TrainingRun:
    """A running training and its folder. Its plan changes with its labels.

    Only the main process writes files.
    """

    folder: RunFolder
    plan: Plan
    learner: Learner
    progress: Progress
    snapshot_s: float = 0.0
    unrecorded: Sequence[EpochEnd] = ()
    """Complete epochs of a resumed run whose event was not sent before it stopped."""
    _snapshot_time: float | None = None
    """Time from which the seconds to the next snapshot count."""

    @property
    def _writes(self) -> bool:
        return self.learner.group.is_main

    @cached_property
    def drift(self) -> DriftReference | None:
        """Appearance of the training images; measured again with new labels."""
        seed = self.plan.recipe.training.seed
        return measure_reference(self.plan.training, self.plan.spec, seed=seed)

    def record(self, event: Event) -> Event:
        """Append an event to ``events.jsonl`` and return it."""
        if self._writes:
            self.folder.append_event(event)
        return event

    def change_labels(self, plan: Plan) -> LabelsUpdated:
        """Continue with the labels of `plan`; the choice of the best epoch restarts."""
        self.plan = plan
        self.__dict__.pop("drift", None)  # the next model measures it anew
        self.progress.restart(is_blind=plan.is_blind)
        if self._writes:
            self.folder.write_json("data.json", plan.record())
        return plan.labels_updated(self.progress.epoch + 1)

    def opening(
        self, messages: Sequence[Message], batches: int
    ) -> Generator[Event, None, None]:
        """Iterate over the events before the first step."""
        yield from self.plan.messages
        yield from messages
        if self._writes:
            _ = self.drift  # now, so that a stop need not wait for it
        yield self.started(batches)
        yield from self.unrecorded
        if self.plan.is_changed:
            yield self.plan.labels_updated(self.progress.epoch + 1)

    def started(self, batches: int) -> TrainingStarted:
        """Build the first event of a training with `batches` steps per epoch."""
        plan = self.plan
        learner = self.learner
        training = dict.fromkeys(region.pair.name for region in plan.training)
        validation = dict.fromkeys(region.pair.name for region in plan.validation)
        return TrainingStarted(
            run=str(self.folder.path),
            device=learner.group.describe(describe_device(learner.device)),
            precision=learner.precision.name,
            parameters=sum(p.numel() for p in learner.network.parameters()),
            first_epoch=self.progress.epoch + 1,
            epochs=plan.recipe.training.epochs,
            batches=batches,
            training_images=tuple(training),
            validation_images=tuple(validation),
            validation_text=plan.text,
            class_names=plan.spec.classes.names,
        )

    def ended(self, reason: str, seconds: float) -> TrainingEnd:
        """Build the last event of a training."""
        self.folder.snapshot_path.unlink(missing_ok=True)
        best = self.progress.best
        model_path = self.folder.model_path
        return TrainingEnd(
            reason=reason,
            epoch=self.progress.epoch,
            best_epoch=best.epoch if best else 0,
            mean_iou=best.reported_iou if best else math.nan,
            agreement=best.agreement if best else "",
            score=best.score if best else "",
            model=str(model_path) if model_path.exists() else "",
            seconds=seconds,
        )

    def save_epoch(self, end: EpochEnd, terms: Mapping[str, float]) -> None:
        """Save the results of an epoch: best models, table and checkpoint.

        The checkpoint comes last: an epoch that it lacks is trained again.
        """
        self.progress.add(end, terms, names=self.plan.spec.classes.names)
        if not self._writes:
            return
        self._snapshot_time = time.monotonic()
        is_unscored = not any(e.best_iou for e in self.progress.compared)
        # The model first: if the process is killed, this file matters most.
        paths = [self.folder.model_path] if end.best_iou or is_unscored else []
        if end.best_iou:
            paths.append(self.folder.path / BEST_IOU)
        if end.best_loss:
            paths.append(self.folder.path / BEST_LOSS)
        if paths:
            self._model(end.weights).save(paths[0])
        for path in paths[1:]:
            files.link(paths[0], path)
        files.write_text(self.folder.path / "metrics.csv", self.progress.csv())
        self.save_checkpoint()

    def save_preview(self, end: EpochEnd, example: Example | None) -> None:
        """Draw the first validation region with its prediction."""
        if example is not None and self._writes:
            path = self.folder.previews / f"epoch_{end.epoch:04d}.png"
            with files.atomic(path) as temporary:
                draw_example(example).save(temporary)

    def save_checkpoint(self) -> None:
        """Save everything that is needed to resume, in one file."""
        self.folder.save_checkpoint(CHECKPOINT, self.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """Return everything that is needed to resume: tensors and plain types."""
        return {
            "learner": self.learner.state_dict(),
            "progress": self.progress.state_dict(),
        }

    def save_snapshot(self, source: PatchSource) -> None:
        """Save the newest weights for a preview, if it is time.

        All snapshots together take a twentieth of the time at most.
        """
        if not self.snapshot_s or self.learner.group.size > 1:
            return
        if self._snapshot_time is None:
            self._snapshot_time = time.monotonic()
        if time.monotonic() < self._snapshot_time + self.snapshot_s:
            return
        drift = self.drift
        start = time.monotonic()
        model = Model(
            self.plan.spec,
            self.plan.recipe,
            self.learner.snapshot(source),
            tuple(self.progress.history),
            drift=drift,
        )
        model.save(self.folder.snapshot_path)
        end = time.monotonic()
        self._snapshot_time = end + max(0.0, 20 * (end - start) - self.snapshot_s)

    def save_first_weights(self) -> None:
        """Save the weights of a run that is stopped during its first epoch."""
        if not self._writes or self.folder.model_path.exists():
            return
        if self.learner.schedule.step > 0:
            kind = next(iter(self.learner.networks))
            self._model(kind).save(self.folder.model_path)

    def complete_history(self) -> None:
        """Add the epochs after the best one to the history of the model."""
        model = Model.load(self.folder.model_path)
        if len(model.history) < len(self.progress.history):
            complete = replace(model, history=tuple(self.progress.history))
            complete.save(self.folder.model_path)

    def link_equal_models(self) -> None:
        """Store the weights of the best epoch once, with what was measured since."""
        ends = self.progress.compared
        best = max((end.epoch for end in ends if end.best_iou), default=None)
        lowest_loss = max((end.epoch for end in ends if end.best_loss), default=None)
        if best is None:
            return
        files.link(self.folder.model_path, self.folder.path / BEST_IOU)
        if lowest_loss == best:
            files.link(self.folder.model_path, self.folder.path / BEST_LOSS)

    def _model(self, kind: str) -> Model:
        return Model(
            self.plan.spec,
            self.plan.recipe,
            self.learner.weights(kind),
            tuple(self.progress.history),
            self.plan.fingerprint,
            drift=self.drift,
        )


def open_run(
    task: TrainingTask, plan: Plan, learner: Learner, group: ProcessGroup
) -> tuple[TrainingRun, list[Message]]:
    """Start or resume a run on the main process and copy its state to the others."""
    if not group.is_main:
        state = group.broadcast(None)
        learner.load_state_dict(state["learner"])
        progress = Progress.from_state(state["progress"])
        plan = plan.with_epochs(state["epochs"])
        return TrainingRun(RunFolder(task.out), plan, learner, progress), []
    if task.resume:
        run, messages = resume_run(task, plan, learner)
    else:
        run, messages = start_run(task, plan, learner)
    run.snapshot_s = task.snapshot_s
    if group.size > 1:
        epochs = run.plan.recipe.training.epochs
        group.broadcast(run.state_dict() | {"epochs": epochs})
    return run, messages


def start_run(
    task: TrainingTask, plan: Plan, learner: Learner
) -> tuple[TrainingRun, list[Message]]:
    """Start a run. Its folder is created last, after all steps that can fail."""
    messages = initialise(learner.network, plan.recipe, plan.spec)
    learner.restart_average()
    folder = RunFolder.create(task.out, plan.recipe, plan.record())
    return TrainingRun(folder, plan, learner, Progress()), messages


def resume_run(
    task: TrainingTask, plan: Plan, learner: Learner
) -> tuple[TrainingRun, list[Message]]:
    """Resume a run after its last complete epoch, and plan the epochs to add."""
    folder = RunFolder.open(task.out)
    messages = []
    if (folder.path / CHECKPOINT).is_file():
        state = folder.load_checkpoint(CHECKPOINT)
        learner.load_state_dict(state["learner"])
        progress = Progress.from_state(state["progress"])
    else:
        progress = Progress()
        text = (
            "the run was stopped before its first epoch was complete, and starts again"
        )
        messages.append(Message(text))
        messages += initialise(learner.network, plan.recipe, plan.spec)
        learner.restart_average()
    if plan.is_changed:
        progress.restart(is_blind=plan.is_blind)
    before = folder.recipe.training.epochs
    epochs = _plan_epochs(task, plan, learner, progress, before=before)
    if progress.epoch >= epochs:
        text = (
            f"the run is complete after {progress.epoch} epochs; train more with "
            "--extend N"
        )
        messages.append(Message(text))
    run = TrainingRun(folder, plan.with_epochs(epochs), learner, progress)
    run.unrecorded = _unrecorded_epochs(folder, progress)
    if progress.history:
        # Before the recipe: if the process is killed in between, the recipe must not
        # have more epochs than the schedule.
        run.save_checkpoint()
    folder.save_recipe(run.plan.recipe)
    folder.write_json("data.json", run.plan.record())
    return run, messages


def _plan_epochs(
    task: TrainingTask, plan: Plan, learner: Learner, progress: Progress, *, before: int
) -> int:
    """Return the epochs of the whole run; adapt schedule and early stopping."""
    section = plan.recipe.training
    if progress.history:
        learner.schedule.stretch(section.epochs - before)
    if not task.extend:
        return section.epochs
    is_over = progress.epoch >= section.epochs
    if is_over or progress.is_stuck(section.early_stopping):
        epochs = progress.epoch + task.extend
    else:
        epochs = section.epochs + task.extend
    learner.schedule.restart(epochs - progress.epoch)
    progress.since = progress.epoch
    return epochs


def _unrecorded_epochs(folder: RunFolder, progress: Progress) -> list[EpochEnd]:
    """Return the epochs whose event is missing: the process was stopped before it."""
    recorded = {end.epoch for end in folder.history().of_type(EpochEnd)}
    return [end for end in progress.history if end.epoch not in recorded]
