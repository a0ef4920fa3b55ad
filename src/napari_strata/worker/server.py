"""Server: takes orders, runs jobs one after another, and listens while they run.

Everything happens in the main thread. Between two events of a job the inbox is looked at; when a step takes long, the
inbox interrupts it to be looked at (see `Inbox`), so that Stop is answered in the middle of a plane or a validation.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import traceback
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from queue import Empty
from time import perf_counter
from types import FrameType
from typing import Any

import torch

from napari_strata.core import files
from napari_strata.core.errors import StrataError
from napari_strata.core.runs import RunFolder
from napari_strata.models.device import available_devices, describe_device
from napari_strata.models.model import current_versions
from napari_strata.worker import ddp, jobs
from napari_strata.worker.orders import (
    Changed,
    InfoJob,
    Job,
    Keep,
    Order,
    OrderError,
    Stop,
    TrainJob,
    is_aside,
    parse_order,
)
from napari_strata.worker.pipes import END, TERMINATE, Inbox, Item, Outbox, redirect
from napari_strata.worker.replies import (
    PROTOCOL,
    JobEnded,
    JobFailed,
    JobQueued,
    JobStarted,
    Outgoing,
    Ready,
    Refused,
)

QUIET = 1.0
"""Seconds without an order after which the process gets ready for trainings: a dock that opens asks things first."""

"""In the folder of a run that goes on without a viewer: which process it is, for the next viewer to find."""


class Interrupted(KeyboardInterrupt):
    """Raised inside a step of a job that is to stop; the engine leaves as it does on Ctrl-C."""


@dataclass
class Running:
    """A job, waiting or under way."""

    order: Job
    keep: bool
    """Whether it goes on when the viewer is gone."""
    stop: bool = False
    latest: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The latest news of each sort ("labels", "view"), for a training that listens to them."""


class Server:
    """A worker process. `serve` returns when the viewer is gone or the process is told to end."""

    def __init__(self, inbox: Inbox, outbox: Outbox) -> None:
        self._inbox, self._outbox = inbox, outbox
        self._waiting: deque[Running] = deque()
        self._running: list[
            Running
        ] = []  # a job that is done aside may stand above another
        self._alone = False  # the viewer is gone
        self._terminated = False
        self._in_step = False
        self._imports = [_import_optimizers, _import_networks]

    def serve(self, started: float) -> None:
        """Work until there is nobody to work for. `started` is when the process began, by `perf_counter`."""
        signal.signal(signal.SIGINT, self._on_nudge)
        signal.signal(signal.SIGTERM, self._on_terminate)
        if hasattr(
            signal, "SIGHUP"
        ):  # a terminal was closed: whether the viewer went with it, its pipe tells
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
        self._outbox.tell(_ready(perf_counter() - started))
        while (job := self._next()) is not None:
            self._run(job)

    def _next(self) -> Running | None:
        """The next job, or None at the end. What jobs import late is imported while nothing is asked for."""
        while True:
            for item in self._inbox.drain():
                self._take(item)
            if self._waiting:
                return self._waiting.popleft()
            if self._alone or self._terminated:
                return None
            try:
                self._take(self._inbox.wait(QUIET if self._imports else None))
            except Empty:
                self._imports.pop(0)()

    def _run(self, job: Running) -> None:
        quick = isinstance(job.order, InfoJob)
        while (
            self._imports and not quick
        ):  # not within the job: one that is interrupted may not be possible again
            self._imports.pop(0)()
        self._running.append(job)
        note = _Note(job.order)
        try:
            self._tell(job, JobStarted(job.order.kind))
            with _own_random_numbers(len(self._running) > 1):
                end = self._drain(job, note)
            self._tell(job, end)
        except Interrupted:
            self._tell(job, JobEnded("stopped"))
        except StrataError as error:
            self._fail(job, str(error), "StrataError")
        except (Exception, SystemExit) as error:
            if comes_of_interruption(error):
                self._tell(job, JobEnded("stopped"))
            else:
                traceback.print_exc()
                self._fail(
                    job,
                    f"unexpected {type(error).__name__}: {error}",
                    type(error).__name__,
                )
        finally:
            note.remove()
            self._running.pop()
        if not quick:
            jobs.give_back_memory()

    def _drain(self, job: Running, note: _Note) -> JobEnded:
        """Tell the events of a job until it ends or is to stop."""
        work = _work(job.order)
        while True:
            try:
                event = self._step(work)
            except StopIteration as end:
                return JobEnded("finished", end.value)
            self._tell(job, event)
            self._look()
            if any(
                one.stop for one in self._running
            ):  # what is done aside ends with the job below it
                work.close()
                return JobEnded("stopped")
            if self._alone:
                note.write()

    def _step(self, work: jobs.Events) -> Outgoing:
        self._in_step = True
        try:
            return next(work)
        finally:
            self._in_step = False

    def _look(self) -> None:
        """Take what is in the inbox, and answer at once what need not wait for the job under way."""
        for item in self._inbox.drain():
            self._take(item)
        if len(self._running) > 1:  # one aside at a time
            return
        while (
            aside := next((job for job in self._waiting if is_aside(job.order)), None)
        ) is not None:
            self._waiting.remove(aside)
            self._run(aside)

    def _on_nudge(self, _signal: int = 0, _frame: FrameType | None = None) -> None:
        """SIGINT: something has been in the inbox for a while (or someone pressed Ctrl-C, which is not for us)."""
        if not self._in_step:
            return
        for item in self._inbox.drain():
            self._take(item)
        if any(
            job.stop for job in self._running
        ):  # who stops a training does not wait for what is done aside of it
            self._in_step = False
            raise Interrupted

    def _on_terminate(self, _signal: int, _frame: FrameType | None) -> None:
        """SIGTERM: stop what is running, then end."""
        self._inbox.put(TERMINATE)
        if not self._running:
            raise SystemExit(
                0
            )  # it is lost where Python is just tidying up; then the inbox remembers
        self._on_nudge()

    def _take(self, item: Item) -> None:
        if isinstance(item, bytes):
            try:
                self._obey(parse_order(item))
            except OrderError as error:
                self._outbox.tell(
                    JobFailed(str(error), "StrataError")
                    if error.job
                    else Refused(str(error)),
                    error.job,
                )
        elif item is TERMINATE:
            self._terminated = True
            self._stop([*self._running, *self._waiting])
        elif item is END and not self._alone:
            self._alone = True
            everything = [*self._running, *self._waiting]
            self._stop([job for job in everything if not job.keep])
            if any(job.keep for job in everything):
                self._outbox.close()
                redirect(os.devnull)

    def _obey(self, order: Order) -> None:
        known = {job.order.job: job for job in (*self._running, *self._waiting)}
        name = (
            order.stop
            if isinstance(order, Stop)
            else order.keep
            if isinstance(order, Keep)
            else order.job
        )
        if isinstance(order, Stop | Keep | Changed):
            if name not in known:
                raise OrderError(
                    f"there is no job {name!r}, running or waiting; it has ended, or never was."
                )
            if isinstance(order, Stop):
                self._stop([known[name]])
            elif isinstance(order, Keep):
                known[name].keep = order.on
            else:
                known[name].latest[order.changed] = order.value
        elif name in known:
            raise OrderError(
                f"there is a job {name!r} already, running or waiting; needed is another id."
            )
        else:
            job = Running(order, order.keep)
            if known:
                self._tell(job, JobQueued())
            self._waiting.append(job)

    def _stop(self, unwanted: list[Running]) -> None:
        """Mark jobs to be stopped; those that wait are over at once."""
        for job in unwanted:
            job.stop = True
            if job in self._waiting:
                self._waiting.remove(job)
                self._tell(job, JobEnded("stopped"))

    def _tell(self, job: Running, event: Outgoing) -> None:
        self._outbox.tell(event, job.order.job)

    def _fail(self, job: Running, text: str, kind: str) -> None:
        self._tell(job, JobFailed(text, kind))
        if self._alone:  # into the log of the run
            print(f"job {job.order.job}: {text}", file=sys.stderr)


def _work(order: Job) -> jobs.Events:
    """A job, and the same one in the other processes of this worker, if there are any and it is theirs too."""
    with ddp.all_processes(order) if isinstance(order, TrainJob) else nullcontext():
        return (yield from jobs.run(order))


class _Note:
    """Where a training that goes on without a viewer says so: ``running.json`` in its run, as long as it runs, and
    ``log.txt`` for what is printed."""

    def __init__(self, order: Job) -> None:
        self._order = order
        self._path: Path | None = None

    def write(self) -> None:
        """Write the note, once, as soon as there is a run folder."""
        if (
            self._path
            or not isinstance(self._order, TrainJob)
            or not RunFolder(self._order.out).exists
        ):
            return
        run = RunFolder(self._order.out)
        self._path = run.running_path
        facts = {
            "job": self._order.job,
            "pid": os.getpid(),
            "host": socket.gethostname(),
        }
        with suppress(StrataError, OSError):  # the training matters more
            files.write_text(self._path, json.dumps(facts) + "\n")
            redirect(run.log_path)

    def remove(self) -> None:
        if self._path:
            with suppress(OSError):
                self._path.unlink()


def comes_of_interruption(error: BaseException | None) -> bool:
    """Whether it was raised on the way out, as torch does when writing a file is broken off."""
    while error is not None and not isinstance(error, Interrupted):
        error = error.__context__
    return error is not None


def _ready(seconds: float) -> Ready:
    devices = {
        name: describe_device(torch.device(name)) for name in available_devices()
    }
    return Ready(
        PROTOCOL,
        os.getpid(),
        socket.gethostname(),
        current_versions(),
        devices,
        round(seconds, 2),
    )


@contextmanager
def _own_random_numbers(aside: bool) -> Iterator[None]:
    """A training goes on with the same random numbers, whatever is done aside of it."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices=list(devices), enabled=aside):
        yield


def _import_optimizers() -> None:
    """The first optimiser of a process takes seconds to make: it imports the compiler."""
    with suppress(Exception):  # a job that needs it will tell
        torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)


def _import_networks() -> None:
    with suppress(Exception):
        import_module("segmentation_models_pytorch")
