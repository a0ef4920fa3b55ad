"""Server that receives requests and runs jobs one after another.

Jobs run in the main thread. The server reads the inbox between two events of a job. If
a step takes long, the inbox interrupts it (see `Inbox`), so that a stop takes effect in
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
from contextlib import contextmanager, suppress
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
    Layer,
    LiveJob,
    Ready,
    Refused,
    Request,
    RequestError,
    Stop,
    TrainJob,
    decode_request,
)
from napari_strata.worker.transport import (
    LONGEST_LINE,
    Inbox,
    Item,
    Notice,
    Outbox,
    redirect_output,
)

IDLE_BEFORE_IMPORTS_S = 1.0
"""Seconds without a request before late imports, because a new dock sends one first."""


class Interrupted(KeyboardInterrupt):
    """Raised in a step of a job to stop it; the engine reacts as to Ctrl-C."""


@dataclass
class ActiveJob:
    """Waiting or running job."""

    request: Job
    keep: bool
    """Finish the job even if the client ends."""
    stop: bool = False
    labels: Layer | None = None
    """Labels that have changed, and that the job has not read yet."""

    def take_labels(self) -> Layer | None:
        """Return the labels that have changed since the last call, if any."""
        labels, self.labels = self.labels, None
        return labels


class Server:
    """Worker process. `serve` returns when the client has ended, or on SIGTERM."""

    def __init__(self, inbox: Inbox, outbox: Outbox) -> None:
        self._inbox, self._outbox = inbox, outbox
        self._waiting: deque[ActiveJob] = deque()
        # A second job runs between two events of the first: a preview or an InfoJob.
        self._running: list[ActiveJob] = []
        self._client_gone = False
        self._terminated = False
        self._in_step = False
        self._late_imports: list[Callable[[], None]] = [
            _import_optimizers,
            _import_networks,
        ]

    def serve(self, started: float) -> None:
        """Handle requests until the client has ended.

        Parameters
        ----------
        started
            Time of `perf_counter` at which the process started, in seconds.
        """
        signal.signal(signal.SIGINT, self._on_interrupt)
        signal.signal(signal.SIGTERM, self._on_terminate)
        if hasattr(signal, "SIGHUP"):
            # A terminal was closed. If the client has ended too, stdin ends.
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
        self._outbox.send(_ready(perf_counter() - started))
        while (job := self._next_job()) is not None:
            self._run(job)

    def _next_job(self) -> ActiveJob | None:
        """Wait for the next job; None at the end. Late imports run while it waits."""
        while True:
            self._read_inbox()
            if self._waiting:
                return self._waiting.popleft()
            if self._client_gone or self._terminated:
                return None
            try:
                timeout = IDLE_BEFORE_IMPORTS_S if self._late_imports else None
                self._handle_item(self._inbox.wait(timeout))
            except Empty:
                self._late_imports.pop(0)()

    def _run(self, job: ActiveJob) -> None:
        is_live = isinstance(job.request, LiveJob)
        is_short = is_live or isinstance(job.request, InfoJob)
        if is_live:
            # A worker for live masks trains no network, and its user waits.
            self._late_imports.clear()
        if not is_short:
            # Not within the job: an interrupted import can make a module unusable.
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
            jobs.release_memory()

    def _send_events(self, job: ActiveJob, note: _RunningNote) -> JobEnded:
        """Send the events of a job until it ends or is to stop."""
        events = _run_on_all_ranks(job)
        while True:
            try:
                event = self._step(events)
            except StopIteration as end:
                return JobEnded(reason="finished", result=end.value)
            self._send(job, event)
            self._run_jobs_between_events()
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

    def _run_jobs_between_events(self) -> None:
        """Read the inbox, and run jobs that do not wait for the running job."""
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
        # A stop of a training also ends the preview that runs between its events.
        if any(job.stop for job in self._running):
            self._in_step = False
            raise Interrupted

    def _on_terminate(self, _signal: int, _frame: FrameType | None) -> None:
        """Stop the running job, then end (SIGTERM)."""
        self._inbox.put(Notice.TERMINATE)
        if not self._running:
            # If Python drops the exception during a clean-up, the inbox has the notice.
            raise SystemExit(0)
        self._on_interrupt()

    def _read_inbox(self) -> None:
        for item in self._inbox.drain():
            self._handle_item(item)

    def _handle_item(self, item: Item) -> None:
        if item is Notice.TERMINATE:
            self._terminated = True
            self._stop([*self._running, *self._waiting])
        elif item is Notice.CLIENT_GONE:
            self._continue_without_client()
        elif item is Notice.LINE_TOO_LONG:
            limit = f"{LONGEST_LINE / 2**20:.0f} MB"
            self._outbox.send(Refused(text=f"found a line of more than {limit}."))
        elif isinstance(item, bytes):
            self._handle_line(item)

    def _handle_line(self, line: bytes) -> None:
        """Handle the request in a line. An invalid line has no other effect."""
        try:
            self._handle(decode_request(line))
        except RequestError as error:
            if error.job and error.job not in self._active():
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
        elif isinstance(request, LabelsChanged):
            self._find(request.job).labels = request.value
        else:
            self._add(request)

    def _active(self) -> dict[str, ActiveJob]:
        return {job.request.job: job for job in (*self._running, *self._waiting)}

    def _find(self, name: str) -> ActiveJob:
        job = self._active().get(name)
        if job is None:
            raise RequestError(
                f"no job {name!r} is running or waiting; "
                "it has ended, or never existed."
            )
        return job

    def _add(self, request: Job) -> None:
        active = self._active()
        if request.job in active:
            raise RequestError(
                f"a job {request.job!r} is already running or waiting; "
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
            # This goes to the log of the run.
            print(f"job {job.request.job}: {text}", file=sys.stderr)


def _run_on_all_ranks(job: ActiveJob) -> jobs.Events:
    """Run a job; run a training in the other processes of this worker too."""
    request = job.request
    if not isinstance(request, TrainJob):
        return (yield from jobs.run(request))
    with ddp.all_processes(request):
        return (yield from jobs.run_train(request, job.take_labels))


class _RunningNote:
    """Note in the run folder of a training that continues without a client.

    ``running.json`` contains the process id while the training runs; ``log.txt``
    receives the printed output.
    """

    def __init__(self, request: Job) -> None:
        self._request = request
        self._path: Path | None = None

    def write(self) -> None:
        """Write the note once, when the run folder exists."""
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
        with suppress(StrataError, OSError):  # the training continues without it
            files.write_text(self._path, json.dumps(facts) + "\n")
            redirect_output(run.log_path)

    def remove(self) -> None:
        """Remove the note, if there is one."""
        if self._path:
            with suppress(OSError):
                self._path.unlink()


def is_from_interruption(error: BaseException | None) -> bool:
    """Check whether an error followed an interruption, such as a failed write."""
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
    """Keep the random numbers of a training unchanged by a preview."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices=list(devices), enabled=enabled):
        yield


def _import_optimizers() -> None:
    """Build an optimiser; the first in a process imports the compiler (seconds)."""
    with suppress(Exception):  # a job that needs it will report the error
        torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)


def _import_networks() -> None:
    with suppress(Exception):
        import_module("segmentation_models_pytorch")
