"""The viewer's side of the worker.

Orders go out, and each job's events come back as signals in the main thread.
"""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from time import perf_counter
from typing import Literal

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
    Change,
    Job,
    JobEnded,
    JobFailed,
    JobResult,
    JobStarted,
    Keep,
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

TERMINATE, KILL = 600, 850
"""Milliseconds after a Stop at which the worker is told, and forced, to end."""
TURN = 0.004
"""Seconds that one turn of the event loop gives to what the worker said."""
FLOOD = 50
"""Steps waiting to be shown beyond which only the newest of a row is."""
STARTUP = 120
"""Seconds within which a worker must say that it is ready.

A server's file system may be slow.
"""


@dataclass(frozen=True)
class Outcome:
    """End of a job. `text` is for people; `result` is the worker's result."""

    status: Literal["finished", "stopped", "failed", "died"]
    text: str = ""
    result: JobResult | None = None


class JobHandle(QObject):
    """A job that was given to the worker.

    The handle is deleted after `ended`; its `outcome` can still be read.
    """

    replied = Signal(object)
    """Every event and reply of the job. (`event` would hide a method of QObject.)"""
    ended = Signal(object)
    """Its `Outcome`, once."""

    def __init__(self, client: WorkerClient, order: Job) -> None:
        super().__init__(client)
        self.order = order
        self.outcome: Outcome | None = None
        self.stopping = False
        self.started = False
        self.kept = order.keep
        self.changes: dict[str, Change] = {}
        self._client = client

    def stop(self) -> None:
        """Stop it: asked, then told, then forced; `ended` comes within a second."""
        if self.outcome is None and not self.stopping:
            self.stopping = True
            self._client._stop(self)

    def keep(self, on: bool) -> None:
        """Let it go on when napari closes, or not."""
        if self.outcome is None:
            self.kept = on
            self._client._tell(Keep(keep=self.order.job, on=on))

    def send_change(self, change: Change) -> None:
        """Send new labels or a new view to the job while it runs."""
        if self.outcome is None:
            self.changes[change.changed] = change
            self._client._tell(change)

    def _end(self, outcome: Outcome) -> None:
        if self.outcome is None:
            self.outcome = outcome
            self.ended.emit(outcome)
            self.deleteLater()


class WorkerClient(QObject):
    """One worker process, started when it is first needed and again after it died.

    Call `close` in the end.

    Orders are sent when the worker says that it is ready, so that one which dies or is
    stopped before has done nothing.
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
        self._inbox: deque[tuple[Process, bytes | None]] = (
            deque()
        )  # None: the process is over
        self._poisoned = (
            False  # a new process is wanted as soon as this one has nothing to do
        )
        self._condemned = (
            False  # the process was told to end, and is given nothing any more
        )
        self._closed = False
        self._numbers = itertools.count(1)
        self._doorbell = threads.Doorbell(self._drain)
        self._drain_timer = QTimer(self)
        self._drain_timer.setSingleShot(True)
        self._drain_timer.setInterval(1)
        self._drain_timer.timeout.connect(self._drain)
        self._patience = QTimer(self)
        self._patience.setSingleShot(True)
        self._patience.setInterval(STARTUP * 1000)
        self._patience.timeout.connect(self._give_up)

    def new_id(self) -> str:
        """A name for a job that no other has, also among viewers that share a
        worker's machine.
        """
        return f"{os.getpid()}-{next(self._numbers)}"

    def warm(self) -> None:
        """Start the process if there is none."""
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
        self._patience.start()

    def submit(self, order: Job) -> JobHandle:
        """Give an order; its events come as signals of the handle."""
        handle = JobHandle(self, order)
        self._handles[order.job] = handle
        if self._closed:
            self._after(
                0,
                lambda: self._finish(handle, Outcome("stopped", "napari was closed.")),
            )
            return handle
        self.warm()
        if self._listens:
            self._set_state("busy")
            self._send(handle)
        return handle

    def close(self) -> None:
        """End the process, without waiting for it; a kept job goes on in it."""
        if self._closed:
            return
        self._closed = True
        handles = list(self._handles.values())
        kept_handles = [
            handle for handle in handles if handle.kept and not handle.stopping
        ]
        if self._process is not None:
            if not self._listens:
                for handle in kept_handles:
                    self._send(handle)
            self._process.forget()
            self._process.close(insist=not kept_handles)
        self._let_go()
        for handle in handles:
            text = (
                "It goes on without napari."
                if handle in kept_handles
                else "napari was closed."
            )
            self._finish(handle, Outcome("stopped", text))

    @property
    def _listens(self) -> bool:
        return (
            self._process is not None and self.ready is not None and not self._condemned
        )

    def _tell(self, message: Request) -> None:
        if self._process is not None and self._listens:
            self._process.write(encode_request(message))

    def _send(self, handle: JobHandle) -> None:
        """The order as it stands, and the news that came since it was given."""
        assert self._process is not None
        for message in (
            handle.order.model_copy(update={"keep": handle.kept}),
            *handle.changes.values(),
        ):
            self._process.write(encode_request(message))

    def _stop(self, handle: JobHandle) -> None:
        if not self._listens:  # it has not been given to the process that is to do it
            self._after(
                0,
                lambda: self._finish(
                    handle, Outcome("stopped", "Stopped before it began.")
                ),
            )
            return
        self._tell(Stop(stop=handle.order.job))
        self._after(TERMINATE, lambda: self._press(handle))
        self._after(KILL, lambda: self._force(handle))

    def _press(self, handle: JobHandle) -> None:
        """It has not answered: tell the process to end.

        Not for a job behind or beside another, which would be lost with it: the worker
        drops that as soon as it looks.
        """
        if handle.outcome is not None or self._process is None:
            return
        if handle is not self._foremost():
            self._finish(handle, Outcome("stopped"))
            return
        self._condemned = True
        self._process.terminate()

    def _force(self, handle: JobHandle) -> None:
        """It has not answered to that either."""
        if handle.outcome is None and self._process is not None:
            self._replace()

    def _foremost(self) -> JobHandle | None:
        """The job that the process is at, as far as it has said."""
        at_work = (
            handle
            for handle in self._handles.values()
            if handle.started and not handle.order.runs_between_events
        )
        return next(at_work, next(iter(self._handles.values()), None))

    def _replace(self) -> None:
        """A new process, at once; jobs that were not stopped are given to it."""
        if self._process is not None:
            self._process.forget()
            self._process.kill()
        self._let_go()
        for handle in list(self._handles.values()):
            handle.started = False
            if handle.stopping:
                self._finish(handle, BROKEN_OFF)
        self.warm()

    def _let_go(self) -> None:
        self._process = self.ready = None
        self._condemned = self._poisoned = False
        self._patience.stop()
        self._set_state("off")

    def _after(self, milliseconds: int, act: Callable[[], object]) -> None:
        """Call `act` later, unless the client is gone by then."""
        timer = QTimer(self)
        timer.setSingleShot(True)
        timer.timeout.connect(act)
        timer.timeout.connect(timer.deleteLater)
        timer.start(milliseconds)

    def _drain(self) -> None:
        """Deliver what was said, a little in each turn of the event loop."""
        if self._drain_timer.isActive():
            return
        until = perf_counter() + TURN
        while self._inbox:
            process, line = self._inbox.popleft()
            if process is self._process:
                self._over(process) if line is None else self._take(process, line)
            if perf_counter() > until and self._inbox:
                self._drain_timer.start()
                return

    def _take(self, process: Process, line: bytes) -> None:
        if len(self._inbox) > FLOOD and STEP in line:
            follower, newer = self._inbox[0]
            if follower is process and STEP in (newer or b""):
                return  # a newer step of the same job: only one job at a time has steps
        try:
            job, event = decode_event(line)
        except ValueError:  # the greeting of a login shell
            process.note(line)
            return
        if isinstance(event, Ready):
            self._welcome(event)
        elif isinstance(event, Refused):
            process.note(event.text.encode())
        elif job is not None and (handle := self._handles.get(job)) is not None:
            self._deliver(handle, event)

    def _welcome(self, ready: Ready) -> None:
        self._patience.stop()
        if ready.protocol != PROTOCOL:
            versions = (
                f"{ready.versions.get('napari-strata', 'another version')} on"
                f" {ready.host}"
            )
            text = (
                "The worker is of a napari-strata that does not fit this one"
                f" ({versions}): install the same version there and here, or mend the"
                f" worker command in Preferences > Strata ({' '.join(self.command)})."
            )
            self._abandon(Outcome("failed", text))
            return
        self.ready = ready
        self._set_state("busy" if self._handles else "ready")
        for handle in [
            active for active in self._handles.values() if not active.stopping
        ]:
            self._send(handle)

    def _deliver(self, handle: JobHandle, event: AnyEvent) -> None:
        if isinstance(event, JobEnded):
            if event.reason == "finished":
                self._finish(handle, Outcome("finished", result=event.result))
            elif (
                handle.stopping or not self._condemned
            ):  # else it was stopped with another, and is done anew
                self._finish(handle, Outcome("stopped", result=event.result))
        elif isinstance(event, JobFailed):
            # After an error that is nobody's mistake, such as one of the GPU, a process
            # may be good for nothing.
            is_fault = event.kind != "StrataError"
            self._poisoned = self._poisoned or is_fault
            cure = (
                " Take smaller patches or fewer patches per step."
                if is_fault and is_out_of_memory(event.text)
                else ""
            )
            self._finish(handle, Outcome("failed", event.text + cure))
        else:
            handle.started = handle.started or isinstance(event, JobStarted)
            handle.replied.emit(event)

    def _over(self, process: Process) -> None:
        """The process has ended by itself, or because it was told to."""
        if self._condemned:
            self._replace()
            return
        text = explain(
            self.command, process.status, process.last_lines(), problem=process.problem
        )
        self._let_go()
        self._all_over(Outcome("died", text))

    def _give_up(self) -> None:
        lines = self._process.last_lines() if self._process is not None else []
        last = f" Its last words: {' | '.join(lines[-3:])}" if lines else ""
        text = (
            f"The worker did not get ready within {STARTUP} s"
            f" ({' '.join(self.command)}). Try the command in a terminal, or mend it in"
            f" Preferences > Strata.{last}"
        )
        self._abandon(Outcome("died", text))

    def _abandon(self, outcome: Outcome) -> None:
        """A process that is of no use, and nor would another be."""
        if self._process is not None:
            self._process.forget()
            self._process.kill()
        self._let_go()
        self._all_over(outcome)

    def _all_over(self, outcome: Outcome) -> None:
        for handle in list(self._handles.values()):
            reason = next(
                (
                    text
                    for kind, text in KEPT.items()
                    if isinstance(handle.order, kind) and handle.started
                ),
                "",
            )
            whole = Outcome(outcome.status, f"{outcome.text}\n{reason}".strip())
            self._finish(handle, BROKEN_OFF if handle.stopping else whole)

    def _finish(self, handle: JobHandle, outcome: Outcome) -> None:
        self._handles.pop(handle.order.job, None)
        stopped = self._condemned and handle.stopping
        if stopped or (self._poisoned and not self._handles):
            self._replace()
        elif self.ready is not None and not self._handles:
            self._set_state("ready")
        handle._end(outcome)

    def _set_state(self, state: str) -> None:
        if state != self.current_state:
            self.current_state = state
            with suppress(
                RuntimeError
            ):  # at the end of napari the client may be half gone
                self.state.emit(state)


STEP = b'"event": "BatchEnd"'
BROKEN_OFF = Outcome("stopped", "Stopped; the step under way was broken off.")
KEPT: dict[type, str] = {
    TrainJob: (
        "Everything up to the last complete epoch is on disk: press Resume to go on"
        " from there."
    ),
    PredictJob: "The planes that were done are kept.",
}
