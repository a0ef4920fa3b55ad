"""Summary of a training before it starts, as the worker plans it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import monotonic

from qtpy.QtCore import QTimer, Signal
from qtpy.QtWidgets import QLabel, QVBoxLayout, QWidget

from napari_strata.core.errors import StrataError
from napari_strata.core.events import Message
from napari_strata.core.text import format_count
from napari_strata.widgets.session import ViewerSession
from napari_strata.widgets.train.prepare import TrainRequest
from napari_strata.widgets.work import threads
from napari_strata.widgets.work.client import JobHandle, Outcome
from napari_strata.worker.protocol import PlanJob, PlanResult

DELAY_MS = 1200
"""Milliseconds without a change before a plan is requested."""
BUSY_MS = 200
"""Milliseconds before it is looked again whether the live mask is finished."""


class PlanSummary(QWidget):
    """Label with validation data, device and memory of a training.

    It waits while `is_busy` returns True: the answer to a stroke comes first, and both
    compute on the same processor.
    """

    planned = Signal(object)
    """`PlanResult` of the training that is set up, or None."""

    def __init__(
        self, session: ViewerSession, is_busy: Callable[[], bool] = lambda: False
    ) -> None:
        super().__init__()
        self._session = session
        self._is_busy = is_busy
        self.text = QLabel()
        self.text.setWordWrap(True)
        rows = QVBoxLayout(self)
        rows.setContentsMargins(0, 0, 0, 0)
        rows.addWidget(self.text)
        self._request: TrainRequest | None = None
        self._folder: Callable[[], Path] | None = None
        self._number = 0
        self._seconds = 0.0
        self._start = 0.0
        self._warnings: list[str] = []
        self._handle: JobHandle | None = None
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.timeout.connect(self._prepare)

    def request_plan(
        self, request: TrainRequest | None, *, why: str, folder: Callable[[], Path]
    ) -> None:
        """Plan a training after a delay without further changes.

        Parameters
        ----------
        request
            The training, or None if it cannot be planned.
        why
            Text to show if `request` is None.
        folder
            Function that returns the run folder.
        """
        self.pause()
        self.planned.emit(None)
        self._request, self._folder = request, folder
        if request is None:
            self.text.setText(why)
            return
        self.text.setText("Calculating validation and memory ...")
        # Large labels take long to write, so do not write them after every stroke.
        self._timer.start(max(DELAY_MS, round(4000 * self._seconds)))

    def pause(self) -> None:
        """Request nothing, and ignore the result of the running request."""
        self._timer.stop()
        self._number += 1
        if self._handle is not None and self._handle.outcome is None:
            self._handle.stop()
        self._handle = None

    def _prepare(self) -> None:
        request, folder, number = self._request, self._folder, self._number
        if request is None or folder is None:
            return
        if self._is_busy():
            self._timer.start(BUSY_MS)
            return
        self._start = monotonic()
        name = self._session.client.new_id()
        try:
            run = folder()
        except StrataError as error:
            self._fail(str(error), number)
            return
        threads.run(
            lambda: request.plan_job(name, run),
            lambda plan_job: self._send(plan_job, number),
            lambda error: self._fail(str(error), number),
            owner=self,
        )

    def _send(self, plan_job: PlanJob, number: int) -> None:
        self._seconds = monotonic() - self._start
        if number != self._number:
            return
        self._warnings = []
        self._handle = self._session.submit(plan_job)
        self._handle.replied.connect(self._on_event)
        self._handle.ended.connect(lambda outcome: self._on_end(outcome, number))

    def _on_event(self, event: object) -> None:
        if isinstance(event, Message) and event.level == "warning":
            self._warnings.append(event.text)

    def _on_end(self, outcome: Outcome, number: int) -> None:
        if number != self._number:
            return
        self._handle = None
        if isinstance(outcome.result, PlanResult):
            self.planned.emit(outcome.result)
            self.text.setText(
                "\n".join(
                    [
                        *describe(outcome.result),
                        *(f"⚠ {text}" for text in self._warnings),
                    ]
                )
            )
        elif outcome.status != "stopped":
            self._fail(outcome.text, number)

    def _fail(self, text: str, number: int) -> None:
        if number == self._number:
            self.text.setText(f"⚠ {text}")


def describe(plan: PlanResult) -> list[str]:
    """Format a plan as lines of text."""
    free = plan.free_memory
    needed = f"about {_bytes(plan.memory)} of memory" + (
        f", {_bytes(free)} free" if free else ""
    )
    lines = [f"Validation: {plan.split}", f"{plan.device}, {needed}"]
    if (depth := plan.spec["depth"]) is not None:
        side, planes = plan.spec["patch"], depth["patch"]
        lines.append(
            f"Patches of {format_count(planes, 'plane')} of {side} x {side} pixels"
        )
    if free and plan.memory > 0.9 * free:
        lines.append(
            "⚠ This is more than the free memory: use smaller patches or a smaller"
            " batch size."
        )
    return lines


def _bytes(count: float) -> str:
    """Format a number of bytes as ``300 MB`` or ``1.3 GB``."""
    return f"{max(count, 1e6) / 1e6:.0f} MB" if count < 1e9 else f"{count / 1e9:.1f} GB"
