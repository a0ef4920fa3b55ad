"""Client of the worker in the viewer.

It sends requests, and emits the events of each job as signals in the main thread.
"""

from __future__ import annotations

import itertools
import os
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from time import perf_counter
from typing import Literal

from qtpy.compat import isalive
from qtpy.QtCore import QObject, QTimer, Signal

from napari_strata.widgets.work import threads
from napari_strata.widgets.work.process import (
    Process,
    default_command,
    explain,
    is_out_of_memory,
)
from napari_strata.worker.protocol import (
    PROTOCOL,
    AnyEvent,
    Job,
    JobEnded,
    JobFailed,
    JobResult,
    JobStarted,
    Keep,
    LabelsChanged,
    Layer,
    PredictJob,
    Ready,
    Refused,
    Request,
    Stop,
    TrainJob,
    decode_event,
    encode_request,
)

__all__ = ["JobHandle", "Outcome", "WorkerClient", "default_command"]

TERMINATE_AFTER_MS = 600
"""Milliseconds after a stop request after which the worker gets SIGTERM."""
KILL_AFTER_MS = 850
"""Milliseconds after a stop request after which the worker is killed."""
HANDLING_TIME_S = 0.004
"""Seconds to handle lines of the worker before the event loop continues."""
BACKLOG = 50
"""Number of unhandled lines above which all but the newest step are skipped."""
STARTUP_TIMEOUT_S = 120
"""Seconds for the worker to start, which takes long on a slow file system."""


@dataclass(frozen=True)
class Outcome:
    """End of a job, with a message for the user and the result of the worker."""

    status: Literal["finished", "stopped", "failed", "died"]
    text: str = ""
    result: JobResult | None = None


class JobHandle(QObject):
    """A job of the worker.

    The Qt object is deleted after `ended`; `outcome` can still be read.
    """

    replied = Signal(object)
    """Every event of the job. (`event` would hide a method of QObject.)"""
    ended = Signal(object)
    """The `Outcome` of the job, once."""

    def __init__(self, client: WorkerClient, request: Job) -> None:
        # Not a child of the client: with the last reference to the client, Python would
        # delete it, and with it this object, in the middle of its own deletion.
        super().__init__()
        self.request = request
        self.outcome: Outcome | None = None
        self.stopping = False
        self.started = False
        self.kept = request.keep
        self.changed_labels: LabelsChanged | None = None
        self._client = client

    def stop(self) -> None:
        """Stop the job; `ended` is emitted within a second.

        The worker gets a stop request, then SIGTERM, then it is killed.
        """
        if self.outcome is None and not self.stopping:
            self.stopping = True
            self._client._stop(self)

    def keep(self, on: bool) -> None:
        """Set whether the job continues when napari closes."""
        if self.outcome is None:
            self.kept = on
            self._client._send_message(Keep(keep=self.request.job, on=on))

    def send_labels(self, labels: Layer) -> None:
        """Send new labels to the running training."""
        if self.outcome is None:
            change = LabelsChanged(job=self.request.job, value=labels)
            self.changed_labels = change
            self._client._send_message(change)

    def _end(self, outcome: Outcome) -> None:
        if self.outcome is None:
            self.outcome = outcome
            self.ended.emit(outcome)
            self.deleteLater()


class WorkerClient(QObject):
    """Client of one worker process, which starts on first use and after a crash.

    Call `close` at the end. Requests are sent when the worker is ready. Until then, no
    job has begun, and jobs can be stopped or sent to a new process.
    """

    state = Signal(str)
    """ "off", "starting", "ready" or "busy"."""

    def __init__(self, command: Sequence[str], parent: QObject | None = None) -> None:
        super().__init__(parent)
        self.command = tuple(command)
        self.current_state = "off"
        self.ready: Ready | None = None
        self._process: Process | None = None
        self._handles: dict[str, JobHandle] = {}
        # Lines of the processes; None means that the process has ended.
        self._inbox: deque[tuple[Process, bytes | None]] = deque()
        # True if a new process must start when this one has no job.
        self._must_replace = False
        # True if the process got SIGTERM; it gets no more requests.
        self._is_terminating = False
        self._closed = False
        self._numbers = itertools.count(1)
        self._doorbell = threads.Doorbell(self._drain)
        self._drain_timer = QTimer(self)
        self._drain_timer.setSingleShot(True)
        self._drain_timer.setInterval(1)
        self._drain_timer.timeout.connect(self._drain)
        self._startup_timer = QTimer(self)
        self._startup_timer.setSingleShot(True)
        self._startup_timer.setInterval(STARTUP_TIMEOUT_S * 1000)
        self._startup_timer.timeout.connect(self._on_startup_timeout)

    def new_id(self) -> str:
        """Return a new job id, unique among the viewers of a computer."""
        return f"{os.getpid()}-{next(self._numbers)}"

    def warm(self) -> None:
        """Start the process, unless it runs or the client is closed."""
        if self._process is not None or self._closed:
            return
        self._set_state("starting")
        inbox, doorbell = self._inbox, self._doorbell

        # Called in threads of the process, so it must not refer to this object: Qt
        # crashes when its last reference is released in a thread.
        def receive(line: bytes | None) -> None:
            inbox.append((process, line))
            doorbell.ring()

        process = Process(self.command, receive, lambda: receive(None))
        self._process = process
        process.start()
        self._startup_timer.start()

    def submit(self, request: Job) -> JobHandle:
        """Send a request; the handle emits the events of the job."""
        handle = JobHandle(self, request)
        self._handles[request.job] = handle
        if self._closed:
            self._finish_later(handle, "napari was closed.")
            return handle
        self.warm()
        if self._is_ready:
            self._set_state("busy")
            self._send_job(handle)
        return handle

    def close(self) -> None:
        """End the process without waiting for it. Kept jobs continue in it."""
        if self._closed:
            return
        self._closed = True
        handles = list(self._handles.values())
        kept_handles = [
            handle for handle in handles if handle.kept and not handle.stopping
        ]
        if self._process is not None:
            if not self._is_ready:
                for handle in kept_handles:
                    self._send_job(handle)
            self._process.detach()
            self._process.close(force=not kept_handles)
        self._reset()
        for handle in handles:
            text = (
                "It continues without napari."
                if handle in kept_handles
                else "napari was closed."
            )
            self._finish(handle, Outcome("stopped", text))

    @property
    def _is_ready(self) -> bool:
        return (
            self._process is not None
            and self.ready is not None
            and not self._is_terminating
        )

    def _send_message(self, message: Request) -> None:
        if self._process is not None and self._is_ready:
            self._process.write(encode_request(message))

    def _send_job(self, handle: JobHandle) -> None:
        """Send the request of a job, and labels that have changed since then."""
        assert self._process is not None
        request = handle.request.model_copy(update={"keep": handle.kept})
        self._process.write(encode_request(request))
        if handle.changed_labels is not None:
            self._process.write(encode_request(handle.changed_labels))

    def _stop(self, handle: JobHandle) -> None:
        if not self._is_ready:  # the request has not been sent
            self._finish_later(handle, "Stopped before it began.")
            return
        self._send_message(Stop(stop=handle.request.job))
        _call_later(TERMINATE_AFTER_MS, WorkerClient._terminate_for, handle)
        _call_later(KILL_AFTER_MS, WorkerClient._kill_for, handle)

    def _finish_later(self, handle: JobHandle, text: str) -> None:
        """Finish a job when the caller had time to connect its signals."""
        outcome = Outcome("stopped", text)
        _call_later(0, lambda client, job: client._finish(job, outcome), handle)

    def _terminate_for(self, handle: JobHandle) -> None:
        """Terminate the process if a job has not stopped.

        If another job is running, the process is not terminated, because that job would
        be lost too. The worker then drops the stopped job after its current step.
        """
        if handle.outcome is not None or self._process is None:
            return
        if handle is not self._current_job():
            self._finish(handle, Outcome("stopped"))
            return
        self._is_terminating = True
        self._process.terminate()

    def _kill_for(self, handle: JobHandle) -> None:
        """Kill the process if a job has still not stopped."""
        if handle.outcome is None and self._process is not None:
            self._replace()

    def _current_job(self) -> JobHandle | None:
        """Return the job that the process runs, as far as its events tell."""
        running = (
            handle
            for handle in self._handles.values()
            if handle.started and not handle.request.runs_between_events
        )
        return next(running, next(iter(self._handles.values()), None))

    def _replace(self) -> None:
        """Start a new process at once; it gets the jobs that were not stopped."""
        if self._process is not None:
            self._process.detach()
            self._process.kill()
        self._reset()
        for handle in list(self._handles.values()):
            handle.started = False
            if handle.stopping:
                self._finish(handle, INTERRUPTED)
        self.warm()

    def _reset(self) -> None:
        self._process = self.ready = None
        self._is_terminating = self._must_replace = False
        self._startup_timer.stop()
        self._set_state("off")

    def _drain(self) -> None:
        """Handle lines of the worker for a limited time; continue later if needed."""
        if self._drain_timer.isActive():
            return
        end = perf_counter() + HANDLING_TIME_S
        while self._inbox:
            process, line = self._inbox.popleft()
            if process is self._process:
                if line is None:
                    self._on_exit(process)
                else:
                    self._handle_line(process, line)
            if perf_counter() > end and self._inbox:
                self._drain_timer.start()
                return

    def _handle_line(self, process: Process, line: bytes) -> None:
        if len(self._inbox) > BACKLOG and STEP_EVENT in line:
            next_process, next_line = self._inbox[0]
            if next_process is process and STEP_EVENT in (next_line or b""):
                return  # a newer step of the same job, because only one job has steps
        try:
            job, event = decode_event(line)
        except ValueError:  # the greeting of a login shell
            process.note(line)
            return
        if isinstance(event, Ready):
            self._on_ready(event)
        elif isinstance(event, Refused):
            process.note(event.text.encode())
        elif job is not None and (handle := self._handles.get(job)) is not None:
            self._handle_event(handle, event)

    def _on_ready(self, ready: Ready) -> None:
        self._startup_timer.stop()
        if ready.protocol != PROTOCOL:
            versions = (
                f"{ready.versions.get('napari-strata', 'another version')} on"
                f" {ready.host}"
            )
            text = (
                "The worker has another version of napari-strata"
                f" ({versions}): install the same version there and here, or correct"
                " the worker command in Preferences > Strata"
                f" ({' '.join(self.command)})."
            )
            self._give_up(Outcome("failed", text))
            return
        self.ready = ready
        self._set_state("busy" if self._handles else "ready")
        for handle in [
            active for active in self._handles.values() if not active.stopping
        ]:
            self._send_job(handle)

    def _handle_event(self, handle: JobHandle, event: AnyEvent) -> None:
        if isinstance(event, JobEnded):
            if event.reason == "finished":
                self._finish(handle, Outcome("finished", result=event.result))
            elif handle.stopping or not self._is_terminating:
                # Otherwise it was stopped together with another job, and is repeated.
                self._finish(handle, Outcome("stopped", result=event.result))
        elif isinstance(event, JobFailed):
            # After an unexpected error, such as one of the GPU, the process may not
            # work any more.
            is_fault = event.kind != "StrataError"
            self._must_replace = self._must_replace or is_fault
            remedy = (
                " Use smaller patches or a smaller batch size."
                if is_fault and is_out_of_memory(event.text)
                else ""
            )
            self._finish(handle, Outcome("failed", event.text + remedy))
        else:
            handle.started = handle.started or isinstance(event, JobStarted)
            handle.replied.emit(event)

    def _on_exit(self, process: Process) -> None:
        """Handle the end of the process."""
        if self._is_terminating:
            self._replace()
            return
        text = explain(
            self.command, process.status, process.last_lines(), problem=process.problem
        )
        self._reset()
        self._finish_all(Outcome("died", text))

    def _on_startup_timeout(self) -> None:
        lines = self._process.last_lines() if self._process is not None else []
        last = f" Its last output: {' | '.join(lines[-3:])}" if lines else ""
        text = (
            f"The worker did not start within {STARTUP_TIMEOUT_S} s"
            f" ({' '.join(self.command)}). Try the command in a terminal, or correct"
            f" it in Preferences > Strata.{last}"
        )
        self._give_up(Outcome("died", text))

    def _give_up(self, outcome: Outcome) -> None:
        """End the process and all jobs, because a new process would not help."""
        if self._process is not None:
            self._process.detach()
            self._process.kill()
        self._reset()
        self._finish_all(outcome)

    def _finish_all(self, outcome: Outcome) -> None:
        for handle in list(self._handles.values()):
            saved = next(
                (
                    text
                    for kind, text in SAVED_RESULTS.items()
                    if isinstance(handle.request, kind) and handle.started
                ),
                "",
            )
            complete = Outcome(outcome.status, f"{outcome.text}\n{saved}".strip())
            self._finish(handle, INTERRUPTED if handle.stopping else complete)

    def _finish(self, handle: JobHandle, outcome: Outcome) -> None:
        self._handles.pop(handle.request.job, None)
        stopped = self._is_terminating and handle.stopping
        if stopped or (self._must_replace and not self._handles):
            self._replace()
        elif self.ready is not None and not self._handles:
            self._set_state("ready")
        handle._end(outcome)

    def _set_state(self, state: str) -> None:
        if state != self.current_state:
            self.current_state = state
            with suppress(RuntimeError):  # while napari closes, Qt deletes objects
                self.state.emit(state)


def _call_later(
    milliseconds: int,
    act: Callable[[WorkerClient, JobHandle], object],
    handle: JobHandle,
) -> None:
    """Call `act` with a job and its client after a delay, if the job still exists.

    The timer neither belongs to the client nor keeps it alive. A timer that did both
    was deleted twice, by Qt after its call and by the client that this call released.
    """
    reference = weakref.ref(handle)

    def call() -> None:
        job = reference()
        if job is not None and isalive(job):  # type: ignore[no-untyped-call]
            act(job._client, job)

    QTimer.singleShot(milliseconds, call)


STEP_EVENT = b'"event": "BatchEnd"'
INTERRUPTED = Outcome("stopped", "Stopped; the current step was interrupted.")
SAVED_RESULTS: dict[type, str] = {
    TrainJob: (
        "Everything up to the last complete epoch is on disk: press Resume to continue"
        " from there."
    ),
    PredictJob: "The finished planes are kept.",
}
