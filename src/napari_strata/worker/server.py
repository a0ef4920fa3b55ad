"""Server: takes requests and runs jobs one after another.

Jobs run in the main thread. The server reads the inbox between two events of a job. If
a step takes long, the inbox interrupts it (see `Inbox`), so that a stop is answered in
the middle of a plane or of a validation.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from queue import Empty
from time import perf_counter
from types import FrameType

import torch

from napari_strata.core import files
from napari_strata.core.errors import StrataError
from napari_strata.core.runs import RunFolder
from napari_strata.models.device import available_devices, describe_device
from napari_strata.models.model import current_versions
from napari_strata.worker import ddp, jobs
from napari_strata.worker.protocol import (
    PROTOCOL,
    AnyEvent,
    InfoJob,
    Job,
    JobEnded,
    JobFailed,
    JobQueued,
    JobStarted,
    Keep,
    LabelsChanged,
    Ready,
    Refused,
    Request,
    RequestError,
    Stop,
    TrainJob,
    ViewChanged,
    decode_request,
)
from napari_strata.worker.transport import (
    Inbox,
    Item,
    Notice,
    Outbox,
    redirect_output,
)

IDLE = 1.0
"""Seconds without a request before late imports are done: a new dock asks first."""


class Interrupted(KeyboardInterrupt):
    """Ends a step of a job that is to stop; the engine leaves as it does on Ctrl-C."""


@dataclass
class ActiveJob:
    """A job that waits or runs."""

    request: Job
    keep: bool
    """Finish the job also if the client ends."""
    stop: bool = False


class Server:
    """Worker process. `serve` returns when the client has ended, or on SIGTERM."""

    def __init__(self, inbox: Inbox, outbox: Outbox) -> None:
        self._inbox, self._outbox = inbox, outbox
        self._waiting: deque[ActiveJob] = deque()
        # A second job is a preview or a question, between two events of the first.
        self._running: list[ActiveJob] = []
        self._client_gone = False
        self._terminated = False
        self._in_step = False
        self._late_imports: list[Callable[[], None]] = [
            _import_optimizers,
            _import_networks,
        ]

    def serve(self, started: float) -> None:
        """Work until the client has ended.

        Parameters
        ----------
        started
            when the process began, by `perf_counter`.
        """
        signal.signal(signal.SIGINT, self._on_interrupt)
        signal.signal(signal.SIGTERM, self._on_terminate)
        if hasattr(signal, "SIGHUP"):
            # A terminal was closed. Stdin tells if the client has ended with it.
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
        self._outbox.send(_ready(perf_counter() - started))
        while (job := self._next_job()) is not None:
            self._run(job)

    def _next_job(self) -> ActiveJob | None:
        """Wait for the next job; None at the end. Late imports use the time."""
        while True:
            self._read_inbox()
            if self._waiting:
                return self._waiting.popleft()
            if self._client_gone or self._terminated:
                return None
            try:
                self._take(self._inbox.wait(IDLE if self._late_imports else None))
            except Empty:
                self._late_imports.pop(0)()

    def _run(self, job: ActiveJob) -> None:
        is_short = isinstance(job.request, InfoJob)
        if not is_short:
            # Not within the job: a module whose import is interrupted may fail later.
            while self._late_imports:
                self._late_imports.pop(0)()
        self._running.append(job)
        note = _RunningNote(job.request)
        try:
            self._send(job, JobStarted(kind=job.request.kind))
            with _separate_random_numbers(len(self._running) > 1):
                end = self._send_events(job, note)
            self._send(job, end)
        except Interrupted:
            self._send(job, JobEnded(reason="stopped"))
        except StrataError as error:
            self._fail(job, str(error), "StrataError")
        except (Exception, SystemExit) as error:
            if is_from_interruption(error):
                self._send(job, JobEnded(reason="stopped"))
            else:
                traceback.print_exc()
                kind = type(error).__name__
                self._fail(job, f"unexpected {kind}: {error}", kind)
        finally:
            note.remove()
            self._running.pop()
        if not is_short:
            jobs.give_back_memory()

    def _send_events(self, job: ActiveJob, note: _RunningNote) -> JobEnded:
        """Send the events of a job until it ends or is to stop."""
        events = _run_on_all_ranks(job.request)
        while True:
            try:
                event = self._step(events)
            except StopIteration as end:
                return JobEnded(reason="finished", result=end.value)
            self._send(job, event)
            self._look_after_event()
            # A preview ends with the job that it interrupted.
            if any(running.stop for running in self._running):
                events.close()
                return JobEnded(reason="stopped")
            if self._client_gone:
                note.write()

    def _step(self, events: jobs.Events) -> AnyEvent:
        self._in_step = True
        try:
            return next(events)
        finally:
            self._in_step = False

    def _look_after_event(self) -> None:
        """Read the inbox, and run the jobs that need not wait for the running job."""
        self._read_inbox()
        if len(self._running) > 1:
            return
        while True:
            job = next(
                (j for j in self._waiting if j.request.runs_between_events), None
            )
            if job is None:
                return
            self._waiting.remove(job)
            self._run(job)

    def _on_interrupt(self, _signal: int = 0, _frame: FrameType | None = None) -> None:
        """Read the inbox in the middle of a step.

        SIGINT comes from the inbox; Ctrl-C in a terminal is not meant for the worker.
        """
        if not self._in_step:
            return
        self._read_inbox()
        # A stop of a training does not wait for the preview that interrupted it.
        if any(job.stop for job in self._running):
            self._in_step = False
            raise Interrupted

    def _on_terminate(self, _signal: int, _frame: FrameType | None) -> None:
        """Stop the running job, then end (SIGTERM)."""
        self._inbox.put(Notice.TERMINATE)
        if not self._running:
            # The exception is lost while Python cleans up; then the inbox remembers.
            raise SystemExit(0)
        self._on_interrupt()

    def _read_inbox(self) -> None:
        for item in self._inbox.drain():
            self._take(item)

    def _take(self, item: Item) -> None:
        if item is Notice.TERMINATE:
            self._terminated = True
            self._stop([*self._running, *self._waiting])
        elif item is Notice.CLIENT_GONE:
            self._continue_without_client()
        elif isinstance(item, bytes):
            self._take_line(item)

    def _take_line(self, line: bytes) -> None:
        """Do what a line requests. A line that cannot be used costs only itself."""
        try:
            self._handle(decode_request(line))
        except RequestError as error:
            if error.job:
                failed = JobFailed(text=str(error), kind="StrataError")
                self._outbox.send(failed, error.job)
            else:
                self._outbox.send(Refused(text=str(error)))
        except Exception as error:
            text = f"unexpected {type(error).__name__}: {error}"
            self._outbox.send(Refused(text=text))

    def _continue_without_client(self) -> None:
        if self._client_gone:
            return
        self._client_gone = True
        active = [*self._running, *self._waiting]
        self._stop([job for job in active if not job.keep])
        if any(job.keep for job in active):
            self._outbox.close()
            redirect_output(os.devnull)

    def _handle(self, request: Request) -> None:
        if isinstance(request, Stop):
            self._stop([self._find(request.stop)])
        elif isinstance(request, Keep):
            self._find(request.keep).keep = request.on
        elif isinstance(request, LabelsChanged | ViewChanged):
            self._find(request.job)
        else:
            self._add(request)

    def _active(self) -> dict[str, ActiveJob]:
        return {job.request.job: job for job in (*self._running, *self._waiting)}

    def _find(self, name: str) -> ActiveJob:
        job = self._active().get(name)
        if job is None:
            raise RequestError(
                f"there is no job {name!r}, running or waiting; "
                "it has ended, or never was."
            )
        return job

    def _add(self, request: Job) -> None:
        active = self._active()
        if request.job in active:
            raise RequestError(
                f"there is a job {request.job!r} already, running or waiting; "
                "needed is another id."
            )
        job = ActiveJob(request, request.keep)
        if active:
            self._send(job, JobQueued())
        self._waiting.append(job)

    def _stop(self, stopped: list[ActiveJob]) -> None:
        """Mark jobs to be stopped; a waiting job ends at once."""
        for job in stopped:
            job.stop = True
            if job in self._waiting:
                self._waiting.remove(job)
                self._send(job, JobEnded(reason="stopped"))

    def _send(self, job: ActiveJob, event: AnyEvent) -> None:
        self._outbox.send(event, job.request.job)

    def _fail(self, job: ActiveJob, text: str, kind: str) -> None:
        self._send(job, JobFailed(text=text, kind=kind))
        if self._client_gone:
            # Into the log of the run.
            print(f"job {job.request.job}: {text}", file=sys.stderr)


def _run_on_all_ranks(request: Job) -> jobs.Events:
    """Run a job, and a training also in the other processes of this worker."""
    with ddp.all_processes(request) if isinstance(request, TrainJob) else nullcontext():
        return (yield from jobs.run(request))


class _RunningNote:
    """Note in the run folder of a training that goes on without a client.

    ``running.json`` names the process as long as the training runs; ``log.txt`` gets
    what is printed.
    """

    def __init__(self, request: Job) -> None:
        self._request = request
        self._path: Path | None = None

    def write(self) -> None:
        """Write the note, once, as soon as there is a run folder."""
        if self._path or not isinstance(self._request, TrainJob):
            return
        run = RunFolder(self._request.out)
        if not run.exists:
            return
        self._path = run.running_path
        facts = {
            "job": self._request.job,
            "pid": os.getpid(),
            "host": socket.gethostname(),
        }
        with suppress(StrataError, OSError):  # the training matters more
            files.write_text(self._path, json.dumps(facts) + "\n")
            redirect_output(run.log_path)

    def remove(self) -> None:
        """Remove the note, if there is one."""
        if self._path:
            with suppress(OSError):
                self._path.unlink()


def is_from_interruption(error: BaseException | None) -> bool:
    """Check if an error followed an interruption, as torch raises on a broken write."""
    while error is not None and not isinstance(error, Interrupted):
        error = error.__context__
    return error is not None


def _ready(seconds: float) -> Ready:
    devices = {
        name: describe_device(torch.device(name)) for name in available_devices()
    }
    return Ready(
        protocol=PROTOCOL,
        pid=os.getpid(),
        host=socket.gethostname(),
        versions=current_versions(),
        devices=devices,
        seconds=round(seconds, 2),
    )


@contextmanager
def _separate_random_numbers(enabled: bool) -> Iterator[None]:
    """Let a training go on with its own random numbers after a preview."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices=list(devices), enabled=enabled):
        yield


def _import_optimizers() -> None:
    """Build an optimiser: the first one of a process imports the compiler (seconds)."""
    with suppress(Exception):  # a job that needs it will report the error
        torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)


def _import_networks() -> None:
    with suppress(Exception):
        import_module("segmentation_models_pytorch")
