"""The viewer's side of the worker: orders go out, and each job's events come back as signals in the main thread."""

from __future__ import annotations

import itertools
import os
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Literal

from qtpy.QtCore import QObject, Qt, QTimer, Signal

from napari_strata.widgets._process import Process, default_command, explain
from napari_strata.worker.orders import Changed, Job, Keep, PredictJob, Stop, TrainJob
from napari_strata.worker.replies import (
    PROTOCOL,
    JobEnded,
    JobFailed,
    Outgoing,
    Ready,
    Refused,
    decode,
)

__all__ = ["JobHandle", "Outcome", "WorkerClient", "default_command"]

ASK, TERMINATE, KILL = 0, 600, 850
"""Milliseconds after a Stop at which the worker is asked, told and forced to end."""
TURN = 0.004
"""Seconds that one turn of the event loop gives to what the worker said."""
FLOOD = 50
"""Steps waiting to be shown beyond which only the newest of a row is."""
STARTUP = 120
"""Seconds within which a worker must say that it is ready; a server's file system may be slow."""


@dataclass(frozen=True)
class Outcome:
    """How a job ended. `text` is for people; `result` is what the worker gave."""

    status: Literal["finished", "stopped", "failed", "died"]
    text: str = ""
    result: dict[str, Any] = field(default_factory=dict)


class JobHandle(QObject):
    """One order given to the worker."""

    replied = Signal(object)
    """Every event and reply of the job."""
    ended = Signal(object)
    """Its `Outcome`, once."""

    def __init__(self, client: WorkerClient, order: Job) -> None:
        super().__init__(client)
        self.order = order
        self.outcome: Outcome | None = None
        self.stopping = False
        self._client = client

    def stop(self) -> None:
        """Stop it: asked, then told, then forced; `ended` comes within a second."""
        if self.outcome is None and not self.stopping:
            self.stopping = True
            self._client._stop(self)

    def keep(self, on: bool) -> None:
        """Let it go on when napari closes, or not."""
        if self.outcome is None:
            self._client._tell(Keep(keep=self.order.job, on=on))
            self._client._keep(self.order.job, on)

    def tell(self, changed: Literal["labels", "view"], value: dict[str, Any]) -> None:
        """News for the job while it runs."""
        if self.outcome is None:
            self._client._tell(Changed(changed=changed, job=self.order.job, value=value))

    def _end(self, outcome: Outcome) -> None:
        if self.outcome is None:
            self.outcome = outcome
            self.ended.emit(outcome)
            self.deleteLater()


class WorkerClient(QObject):
    """One worker process, started when it is first needed and again after it died."""

    state = Signal(str)
    """ "off", "starting", "ready" or "busy"."""
    _woken = Signal()

    def __init__(self, command: Sequence[str], parent: QObject | None = None) -> None:
        super().__init__(parent)
        self.command = tuple(command)
        self.current_state = "off"
        self.ready: Ready | None = None
        self._process: Process | None = None
        self._handles: dict[str, JobHandle] = {}
        self._kept: set[str] = set()
        self._inbox: deque[tuple[Process, bytes | None]] = deque()  # None: the process is over
        self._awake = False
        self._poisoned = False
        self._closed = False
        self._numbers = itertools.count(1)
        self._woken.connect(self._drain, Qt.ConnectionType.QueuedConnection)  # type: ignore[call-arg]
        self._patience = QTimer(self)
        self._patience.setSingleShot(True)
        self._patience.setInterval(STARTUP * 1000)
        self._patience.timeout.connect(self._give_up)

    def new_id(self) -> str:
        """A name for a job that no other has, also among viewers that share a worker's machine."""
        return f"{os.getpid()}-{next(self._numbers)}"

    def warm(self) -> None:
        """Start the process if there is none."""
        if self._process is not None or self._closed:
            return
        self.ready, self._poisoned = None, False
        self._set_state("starting")
        self._process = process = Process(
            self.command, lambda line: self._hear(process, line), lambda: self._hear(process, None)
        )
        self._patience.start()

    def submit(self, order: Job) -> JobHandle:
        """Give an order; its events come as signals of the handle."""
        handle = JobHandle(self, order)
        self._handles[order.job] = handle
        if order.keep:
            self._kept.add(order.job)
        if self._poisoned and self._process is not None and len(self._handles) == 1:
            self._abandon()
        self.warm()
        if self._process is not None:
            self._process.write(order.model_dump_json())
        self._set_state("busy" if self.ready else "starting")
        return handle

    def close(self) -> None:
        """End the process, without waiting for it; a kept job goes on in it."""
        if self._closed:
            return
        self._closed = True
        self._patience.stop()
        process, self._process = self._process, None
        if process is None:
            return
        kept = any(name in self._kept for name in self._handles)
        process.close()
        if not kept:  # there may be no event loop any more
            for seconds, act in ((2.0, process.terminate), (4.0, process.kill)):
                timer = threading.Timer(seconds, act)
                timer.daemon = True
                timer.start()
        for handle in list(self._handles.values()):
            text = "it goes on without napari" if handle.order.job in self._kept else "napari was closed"
            self._finish(handle, Outcome("stopped", text))
        self._set_state("off")

    # ------------------------------------------------------------------ for the handles

    def _tell(self, message: Stop | Keep | Changed) -> None:
        if self._process is not None:
            self._process.write(message.model_dump_json())

    def _keep(self, job: str, on: bool) -> None:
        (self._kept.add if on else self._kept.discard)(job)

    def _stop(self, handle: JobHandle) -> None:
        self._tell(Stop(stop=handle.order.job))
        if self.ready is None:  # it does not listen yet, and has done nothing
            QTimer.singleShot(ASK, lambda: self._force(handle, last=True))
            return
        QTimer.singleShot(TERMINATE, lambda: self._force(handle, last=False))
        QTimer.singleShot(KILL, lambda: self._force(handle, last=True))

    def _force(self, handle: JobHandle, *, last: bool) -> None:
        """It has not answered in time: end the process. Other jobs that wait are given to the next one."""
        with suppress(RuntimeError):  # the handle is gone: it has answered
            if handle.outcome is not None or self._process is None:
                return
            if not last:
                self._process.terminate()
                return
            waiting = [one for one in self._handles.values() if one is not handle and not one.stopping]
            stopped = [one for one in self._handles.values() if one.stopping]
            self._abandon()
            for one in stopped:
                self._finish(one, Outcome("stopped", "Stopped; the step under way was broken off."))
            for one in waiting:
                self._resubmit(one)
            self.warm()

    def _resubmit(self, handle: JobHandle) -> None:
        self.warm()
        if self._process is not None:
            self._process.write(handle.order.model_dump_json())

    def _abandon(self) -> None:
        """Leave the process to its end; nothing that it still says is heard."""
        process, self._process = self._process, None
        self._patience.stop()
        self.ready = None
        if process is not None:
            process.kill()
        self._set_state("off")

    # ------------------------------------------------------------------ what the worker says

    def _hear(self, process: Process, line: bytes | None) -> None:
        """Called in the threads of the process."""
        self._inbox.append((process, line))
        if not self._awake:
            self._awake = True
            with suppress(RuntimeError):  # the client is gone
                self._woken.emit()

    def _drain(self) -> None:
        """Deliver what was said, a little in each turn of the event loop."""
        self._awake = False
        until = perf_counter() + TURN
        while self._inbox:
            process, line = self._inbox.popleft()
            if process is self._process:
                self._over(process) if line is None else self._take(process, line)
            if perf_counter() > until and self._inbox:
                self._awake = True
                QTimer.singleShot(1, self._drain)
                return

    def _take(self, process: Process, line: bytes) -> None:
        if len(self._inbox) > FLOOD and b'"event": "BatchEnd"' in line and b'"BatchEnd"' in (self._inbox[0][1] or b""):
            return  # a newer step follows at once
        try:
            job, event = decode(line)
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
            versions = f"{ready.versions.get('napari-strata', 'another version')} on {ready.host}"
            text = f"The worker speaks another language ({versions}): install the same napari-strata there and here."
            self._all_failed(Outcome("failed", text))
            self._abandon()
            return
        self.ready = ready
        self._set_state("busy" if self._handles else "ready")

    def _deliver(self, handle: JobHandle, event: Outgoing) -> None:
        if isinstance(event, JobEnded):
            status: Literal["finished", "stopped"] = "finished" if event.reason == "finished" else "stopped"
            self._finish(handle, Outcome(status, result=event.result))
        elif isinstance(event, JobFailed):
            # After an error that is nobody's mistake, such as one of the GPU, a process may be good for nothing.
            self._poisoned = self._poisoned or event.kind != "StrataError"
            self._finish(handle, Outcome("failed", event.text))
        else:
            handle.replied.emit(event)

    def _over(self, process: Process) -> None:
        """The process has ended although nobody told it to."""
        text = explain(self.command, process.status, process.last_lines(), problem=process.problem)
        self._process, self.ready = None, None
        self._patience.stop()
        self._set_state("off")
        self._all_failed(Outcome("died", text))

    def _give_up(self) -> None:
        lines = self._process.last_lines() if self._process is not None else []
        last = f" Its last words: {' | '.join(lines[-3:])}" if lines else ""
        text = (
            f"The worker did not get ready within {STARTUP} s ({' '.join(self.command)}). Try the command in a "
            f"terminal, or mend it in Preferences > Strata.{last}"
        )
        self._abandon()
        self._all_failed(Outcome("died", text))

    def _all_failed(self, outcome: Outcome) -> None:
        for handle in list(self._handles.values()):
            order = handle.order
            kept = KEPT_RUN if isinstance(order, TrainJob) else KEPT_PLANES if isinstance(order, PredictJob) else ""
            whole = Outcome(outcome.status, f"{outcome.text}\n{kept}".strip())
            stopped = Outcome("stopped", "Stopped; the step under way was broken off.")
            self._finish(handle, stopped if handle.stopping else whole)

    def _finish(self, handle: JobHandle, outcome: Outcome) -> None:
        self._handles.pop(handle.order.job, None)
        self._kept.discard(handle.order.job)
        if self.ready is not None and not self._handles:
            self._set_state("ready")
        handle._end(outcome)

    def _set_state(self, state: str) -> None:
        if state != self.current_state:
            self.current_state = state
            with suppress(RuntimeError):
                self.state.emit(state)


KEPT_RUN = "Everything up to the last complete epoch is on disk: press Resume to go on from there."
KEPT_PLANES = "The planes that were done are kept."
