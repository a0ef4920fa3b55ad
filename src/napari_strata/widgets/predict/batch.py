"""A running batch: files that the worker predicts one after another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from qtpy.QtCore import QObject, Signal

from napari_strata.core.events import FileEnd, Message, PredictionStarted, RegionEnd
from napari_strata.core.text import format_count
from napari_strata.widgets.predict.batch_state import (
    RUNNING,
    BatchFile,
    BatchRequest,
    describe_end,
    describe_failures,
    finish,
    running,
    short_name,
    start,
    update,
)
from napari_strata.widgets.predict.model_choice import one_or_all
from napari_strata.widgets.session import ViewerSession
from napari_strata.widgets.work.client import Outcome
from napari_strata.worker.protocol import PredictJob

FILE_STEPS = 1000
"""Steps of the progress bar for each file."""


def batch_job(
    job: str,
    request: BatchRequest,
    models: tuple[Path, ...],
    *,
    device: str,
    probabilities: bool,
    tta: bool,
    ortho: bool,
) -> PredictJob:
    """Return the request of a batch for the worker."""
    return PredictJob(
        job=job,
        model=one_or_all(models),
        inputs=request.inputs,
        out=str(request.folder),
        stack=request.stack,
        overwrite=request.overwrite,
        strict=request.strict,
        axes=request.axes or None,
        device=device,
        probabilities=probabilities,
        tta=tta,
        ortho=ortho,
    )


class Batch(QObject):
    """Prediction of several files.

    `ended` is emitted exactly once. The text of the outcome describes the result for
    the user. What is on disk stays when the batch is stopped.
    """

    progress = Signal(int, int)
    changed = Signal()
    """Emitted when the state of one of `files` has changed."""
    message = Signal(str, str)
    """Text and level."""
    ended = Signal(object)
    """Outcome."""

    def __init__(
        self,
        session: ViewerSession,
        request: BatchRequest,
        files: Sequence[BatchFile],
        job: PredictJob,
    ) -> None:
        super().__init__(session)
        self.files = start(files)
        self.status_text = "Loading the model ..."
        self._request = request
        self._handle = session.submit(job)
        self._handle.replied.connect(self._on_event)
        self._handle.ended.connect(self._on_end)
        count = len(files)
        session.register_task(f"segmenting {count} files", self._handle)

    def stop(self) -> None:
        """Stop within a second; finished files are kept."""
        self.status_text = "Stopping ..."
        self._handle.stop()

    def _on_event(self, event: object) -> None:
        match event:
            case Message() if event.level == "warning":
                self.message.emit(event.text, event.level)
            case PredictionStarted():
                self._show_plane(event.done, event.regions)
            case RegionEnd():
                self._show_plane(event.done, event.regions)
            case FileEnd():
                self.files = update(self.files, event)
                self.changed.emit()

    def _show_plane(self, done: int, planes: int) -> None:
        number = running(self.files)
        if number is None:
            return
        file, count = self.files[number], len(self.files)
        if file.status != RUNNING:
            files = list(self.files)
            files[number] = replace(file, status=RUNNING)
            self.files = tuple(files)
            self.changed.emit()
        self.status_text = (
            f"File {number + 1} of {count}: {short_name(file.source)}, {done} of"
            f" {format_count(planes, 'plane')}"
        )
        steps = FILE_STEPS * number + FILE_STEPS * done // max(planes, 1)
        self.progress.emit(steps, FILE_STEPS * count)

    def _on_end(self, outcome: Outcome) -> None:
        has_failed = outcome.status in ("failed", "died")
        self.files = finish(self.files, failed=outcome.text if has_failed else "")
        self.changed.emit()
        text = describe_end(self.files)
        if self._request.report.is_file():
            text += f" The report is {self._request.report}."
        if reasons := describe_failures(self.files):
            text += f"\n{reasons}"
        self.ended.emit(replace(outcome, text=text))
