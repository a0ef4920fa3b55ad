"""Progress page of the Train dock: bar, text, curves and pictures of a training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qtpy.QtCore import QTimer, Signal
from qtpy.QtWidgets import QLabel, QVBoxLayout, QWidget

from napari_strata.core.events import (
    STROKES_ARE_EASY,
    BatchEnd,
    EpochEnd,
    Event,
    LabelsUpdated,
    Message,
    TrainingEnd,
    TrainingStarted,
    TreesCompared,
)
from napari_strata.core.text import format_count, format_duration
from napari_strata.widgets.parts.dock import Progress
from napari_strata.widgets.parts.preview import Preview
from napari_strata.widgets.train.curves import Curves
from napari_strata.widgets.work.client import JobHandle, Outcome
from napari_strata.worker.protocol import JobQueued

STEP_INTERVAL_MS = 1500
"""Milliseconds between two updates with the steps of a training."""


class TrainingPanel(QWidget):
    """Progress of a training. `bar` is placed in the foot of the dock."""

    epoch_ended = Signal(object)  # EpochEnd
    warned = Signal(str)
    ended = Signal(object)  # Outcome

    def __init__(self) -> None:
        super().__init__()
        self.bar = Progress("Training")
        self.headline = QLabel(
            "No training yet. Set it up on the other page, then press Train."
        )
        self.headline.setWordWrap(True)
        self.labels_text = QLabel()
        self.labels_text.setWordWrap(True)
        self.curves = Curves()
        self.preview = Preview()
        rows = QVBoxLayout(self)
        rows.setContentsMargins(0, 0, 0, 0)
        rows.addWidget(self.headline)
        rows.addWidget(self.labels_text)
        rows.addWidget(self.curves)
        rows.addWidget(self.preview)
        rows.addStretch(1)
        self.labels_text.hide()
        self.curves.hide()
        self.preview.hide()
        self.run: Path | None = None
        self.comparison: TreesCompared | None = None
        self.best: EpochEnd | None = None
        self._started: TrainingStarted | None = None
        self._colors: Sequence[str] = ()
        self._epoch_seconds: list[float] = []
        self._batch_seconds: list[float] = []
        self._steps: list[BatchEnd] = []
        self._step_timer = QTimer(self)
        self._step_timer.setSingleShot(True)
        self._step_timer.setInterval(STEP_INTERVAL_MS)
        self._step_timer.timeout.connect(self._show_steps)

    def follow(
        self,
        handle: JobHandle,
        run: Path,
        colors: Sequence[str],
        *,
        past: Sequence[Event] = (),
    ) -> None:
        """Show a training that has just been requested.

        `past` has the earlier events of its run.
        """
        self.prepare(run, colors, past=past)
        handle.replied.connect(self.handle_event)
        handle.ended.connect(self._on_end)
        self.bar.show_step(0, 0, "Starting ...")

    def prepare(
        self, run: Path, colors: Sequence[str], *, past: Sequence[Event] = ()
    ) -> None:
        """Show a run with its past events."""
        self.run, self._colors, self.best, self._started = run, colors, None, None
        self._epoch_seconds, self._batch_seconds, self._steps = [], [], []
        self.comparison = None
        self.headline.setText(f"Run {run.name}")
        self.headline.setToolTip(str(run))
        self.labels_text.hide()
        self.curves.clear()
        self.preview.set_folder(run / "previews")
        for event in past:
            self.handle_event(event)
        self.curves.show()
        self.preview.show()

    def handle_event(self, event: object) -> None:
        """Show one event; events without news for people are ignored."""
        match event:
            case JobQueued():
                self._show_queued(event)
            case Message():
                self._show_message(event)
            case LabelsUpdated():
                self.labels_text.setText(event.text)
                self.labels_text.show()
            case TreesCompared():
                self.comparison = event
            case TrainingStarted():
                self._show_start(event)
            case BatchEnd():
                self._add_step(event)
            case EpochEnd():
                self._add_epoch(event)
            case TrainingEnd():
                self.preview.refresh()

    def _show_queued(self, event: JobQueued) -> None:
        self.bar.show_step(0, 0, "Waiting for an earlier job ...")

    def _show_message(self, event: Message) -> None:
        if event.level == "warning":
            self.warned.emit(event.text)
        elif self._started is None:
            self.bar.show_step(0, 0, event.text)

    def _show_start(self, event: TrainingStarted) -> None:
        self._started = event
        self.curves.start(event, self._colors)
        self.headline.setText(
            f"{format_count(len(event.training_images), 'image')},"
            f" {_parameters(event.parameters)}, on"
            f" {event.device}\nValidation: {event.validation_text}"
        )
        self.bar.show_step(0, 0, "Computing the first step ...")

    def _add_step(self, event: BatchEnd) -> None:
        self._steps.append(event)
        if not self._step_timer.isActive():
            self._show_steps()

    def _show_steps(self) -> None:
        """Update bar and curves together.

        In a window with an OpenGL canvas, each change redraws the whole window.
        """
        steps, self._steps = self._steps, []
        for step in steps:
            self.curves.add_batch(step)
            self._batch_seconds = [*self._batch_seconds[-49:], step.seconds]
        if not steps or self._started is None:
            return
        self._step_timer.start()
        last, total = steps[-1], self._started.epochs
        done, step_text = (
            (last.epoch - 1) * last.batches + last.batch,
            f"step {last.batch} of {last.batches}",
        )
        text = (
            f"Epoch {last.epoch} of {total}, {step_text}{self._time_left(last, total)}"
        )
        self.bar.show_step(done, total * last.batches, text)

    def _add_epoch(self, event: EpochEnd) -> None:
        self._show_steps()
        self.curves.add_epoch(event)
        self._epoch_seconds.append(event.seconds)
        if event.best_iou or self.best is None:
            self.best = event
        self.preview.refresh()
        self.epoch_ended.emit(event)

    def score(self) -> str:
        """Describe the best epoch so far; empty without scores."""
        if self.best is None:
            return ""
        best = self.best
        if best.agreement:
            return f"{best.agreement} ({STROKES_ARE_EASY})"
        if not best.score:
            return ""
        text = f"best {best.score} in epoch {best.epoch}"
        if best.pixels:
            text += f", on {best.pixels:,} validation pixels"
        return text

    def _time_left(self, event: BatchEnd, epochs: int) -> str:
        """Describe time per epoch and time left; empty in the first steps."""
        if len(self._batch_seconds) < 3 and not self._epoch_seconds:
            return ""
        step = sum(self._batch_seconds) / len(self._batch_seconds)
        # A complete epoch includes the validation; its time is unknown before that.
        epoch = self._epoch_seconds[-1] if self._epoch_seconds else step * event.batches
        remaining = epoch * (epochs - event.epoch)
        remaining += step * (event.batches - event.batch)
        return (
            f"\n{format_duration(epoch)} per epoch, about"
            f" {format_duration(max(remaining, 1))} left"
        )

    def _on_end(self, outcome: Outcome) -> None:
        self._step_timer.stop()
        self._show_steps()
        self.bar.hide()
        self.ended.emit(outcome)


def _parameters(count: int) -> str:
    """Format a number of parameters, such as ``24.4 million parameters``."""
    if count < 100_000:
        return f"{count:,} parameters"
    return f"{count / 1e6:.1f} million parameters"
