"""Session: a training and the run folder it lives in; how it begins, goes on, is kept after each epoch, and ends."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from napari_strata.core import files
from napari_strata.core.events import (
    EpochEnd,
    Event,
    Message,
    TrainingEnd,
    TrainingStarted,
)
from napari_strata.core.runs import RunFolder
from napari_strata.evaluation.pictures import Example, draw_example
from napari_strata.models.device import describe_device
from napari_strata.models.model import Model
from napari_strata.training.ddp import ProcessGroup
from napari_strata.training.learner import Learner, Progress
from napari_strata.training.plan import Job, Plan
from napari_strata.training.transfer import initialise

CHECKPOINT = "last.pt"


@dataclass(frozen=True)
class Session:
    """What a training consists of: the folder, the plan, what a step changes, and what the epochs gave."""

    run: RunFolder
    plan: Plan
    learner: Learner
    progress: Progress

    def tell(self, event: Event) -> Event:
        """Record an event in the run, and hand it back to be yielded."""
        self.run.append_event(event)
        return event

    def started(self, batches: int) -> TrainingStarted:
        """The event that opens a training of `batches` steps an epoch."""
        plan, learner = self.plan, self.learner
        return TrainingStarted(
            run=str(self.run.path),
            device=learner.group.describe(describe_device(learner.device)),
            precision=learner.precision.name,
            parameters=sum(p.numel() for p in learner.network.parameters()),
            first_epoch=self.progress.epoch + 1,
            epochs=plan.recipe.training.epochs,
            batches=batches,
            training_images=tuple(
                dict.fromkeys(part.pair.name for part in plan.training)
            ),
            validation_images=tuple(
                dict.fromkeys(part.pair.name for part in plan.validation)
            ),
            validation_text=plan.text,
            class_names=plan.spec.classes.names,
        )

    def keep(self, end: EpochEnd, terms: Mapping[str, float]) -> None:
        """Put a complete epoch on disk: the models that it improved, the checkpoint, the table."""
        self.progress.add(end, terms, names=self.plan.spec.classes.names)
        model = self._model(end.weights)
        unscored = not any(e.best_iou for e in self.progress.history)
        # The model first: where the disk holds one file only, it is this one.
        wanted = {
            "model": end.best_iou or unscored,
            "best_iou": end.best_iou,
            "best_loss": end.best_loss,
        }
        for name in (name for name, yes in wanted.items() if yes):
            model.save(self.run.path / f"{name}.safetensors")
        self.save_checkpoint()
        files.write_text(self.run.table_path, self.progress.csv())

    def draw(self, end: EpochEnd, example: Example | None) -> None:
        """A picture of the first validation part as it is predicted now."""
        if example is not None:
            with files.atomic(self.run.preview_path(end.epoch)) as temporary:
                draw_example(example).save(temporary)

    def save_checkpoint(self) -> None:
        """Everything needed to go on, in one file."""
        self.run.save_checkpoint(CHECKPOINT, self.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on: tensors and plain types."""
        return {
            "learner": self.learner.state_dict(),
            "progress": self.progress.state_dict(),
        }

    def leave(self) -> None:
        """Stopped within the first epoch: keep the weights as they are, if a step was made."""
        if not self.run.model_path.exists() and self.learner.schedule.step > 0:
            self._model(next(iter(self.learner.networks))).save(self.run.model_path)

    def complete(self) -> None:
        """Give the model, which was saved when it was the best, the history of the epochs after it."""
        model = Model.load(self.run.model_path)
        if len(model.history) < len(self.progress.history):
            replace(model, history=tuple(self.progress.history)).save(
                self.run.model_path
            )

    def ended(self, reason: str, seconds: float) -> TrainingEnd:
        """The event that closes a training."""
        best = self.progress.best
        return TrainingEnd(
            reason=reason,
            epoch=self.progress.epoch,
            best_epoch=best.epoch if best else 0,
            mean_iou=best.mean_iou if best else math.nan,
            model=str(self.run.model_path) if self.run.model_path.exists() else "",
            seconds=seconds,
        )

    def _model(self, kind: str) -> Model:
        plan = self.plan
        weights = self.learner.weights(kind)
        return Model(
            plan.spec,
            plan.recipe,
            weights,
            tuple(self.progress.history),
            plan.fingerprint,
        )


class Follower(Session):
    """The session of another rank than the first: the same progress, and nothing on disk."""

    def tell(self, event: Event) -> Event:
        return event

    def keep(self, end: EpochEnd, terms: Mapping[str, float]) -> None:
        self.progress.add(end, terms, names=self.plan.spec.classes.names)

    def draw(self, end: EpochEnd, example: Example | None) -> None:
        pass

    def leave(self) -> None:
        pass

    def complete(self) -> None:
        pass


def open_session(
    job: Job, plan: Plan, learner: Learner, group: ProcessGroup
) -> tuple[Session, list[Message]]:
    """Begin or resume a run, on the main process of `group`, and put the others where it is."""
    if group.is_main:
        session, messages = (resume if job.resume else begin)(job, plan, learner)
        if group.size > 1:
            epochs = session.plan.recipe.training.epochs
            group.broadcast(session.state_dict() | {"epochs": epochs})
        return session, messages
    state = group.broadcast(None)
    learner.load_state_dict(state["learner"])
    progress = Progress.from_state(state["progress"])
    return Follower(
        RunFolder(job.out), plan.with_epochs(state["epochs"]), learner, progress
    ), []


def begin(job: Job, plan: Plan, learner: Learner) -> tuple[Session, list[Message]]:
    """A new run. Its folder is made after everything that can be refused has been."""
    messages = initialise(learner.network, plan.recipe, plan.spec)
    learner.restart_average()
    run = RunFolder.create(job.out, plan.recipe)
    run.write_json("data.json", plan.record())
    return Session(run, plan, learner, Progress()), messages


def resume(job: Job, plan: Plan, learner: Learner) -> tuple[Session, list[Message]]:
    """A run as it was at the end of its last complete epoch, with the epochs that the job adds."""
    run = RunFolder.open(job.out)
    messages = []
    if (run.path / CHECKPOINT).is_file():
        state = run.load_checkpoint(CHECKPOINT)
        learner.load_state_dict(state["learner"])
        progress = Progress.from_state(state["progress"])
        _mend_events(run, progress)
    else:
        progress = Progress()
        messages += [
            Message(
                "the run was stopped before its first epoch was complete, and begins anew"
            )
        ]
        messages += initialise(learner.network, plan.recipe, plan.spec)
        learner.restart_average()
    epochs = _plan_epochs(
        job, plan, learner, progress, before=run.recipe.training.epochs
    )
    if progress.epoch >= epochs:
        messages.append(
            Message(
                f"the run is complete after {progress.epoch} epochs; train more with --extend N"
            )
        )
    session = Session(run, plan.with_epochs(epochs), learner, progress)
    if progress.history:
        # Before the recipe: a kill between the two must not leave more epochs than the schedule knows of.
        session.save_checkpoint()
    run.save_recipe(session.plan.recipe)
    run.write_json("data.json", session.plan.record())
    return session, messages


def _plan_epochs(
    job: Job, plan: Plan, learner: Learner, progress: Progress, *, before: int
) -> int:
    """How many epochs the run is to have in all; the schedule and early stopping are told."""
    section = plan.recipe.training
    if progress.history:
        learner.schedule.stretch(section.epochs - before)
    if not job.extend:
        return section.epochs
    over = progress.epoch >= section.epochs or progress.is_stuck(section.early_stopping)
    epochs = (progress.epoch if over else section.epochs) + job.extend
    learner.schedule.restart(epochs - progress.epoch)
    progress.since = progress.epoch
    return epochs


def _mend_events(run: RunFolder, progress: Progress) -> None:
    """Record the epoch whose event is missing because a kill came between the checkpoint and it."""
    recorded = {event.epoch for event in run.events() if isinstance(event, EpochEnd)}
    for end in progress.history:
        if end.epoch not in recorded:
            run.append_event(end)
