"""Several worker processes, which torchrun has started to train on several GPUs.

The main process serves the viewer and does all jobs. The others wait for its trainings.
Each starts a process of its own for each training: a failed one may hang in a
collective, from which nothing but its end frees the others.
"""

from __future__ import annotations

import multiprocessing
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count

from napari_strata.core.errors import StrataError
from napari_strata.training.ddp import is_distributed, named_store, process_group
from napari_strata.worker import jobs
from napari_strata.worker.protocol import TrainJob, decode_request, encode_request

PAUSE = 0.05
"""Seconds between two looks into the store."""

GRACE = 10.0
"""Seconds that a process has to end after the main one has left a training."""

END = "end"
"""Message after which the other processes end."""

_numbers = count(1)


@contextmanager
def all_processes(job: TrainJob) -> Iterator[None]:
    """Let the other processes, if any, do the same job as the block."""
    if not is_distributed():
        yield
        return
    number = next(_numbers)
    store = named_store("worker")
    store.set(f"job {number}", encode_request(job))
    try:
        with process_group(f"job {number}"):
            yield
    finally:
        with suppress(RuntimeError):
            store.set(f"ended {number}", END)


def end_followers() -> None:
    """End the other processes, if any."""
    if is_distributed():
        with suppress(RuntimeError):
            named_store("worker").set(f"job {next(_numbers)}", END)


def follow() -> None:
    """Take part in the trainings of the main process until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process says when to stop
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(0))
    spawn = multiprocessing.get_context("spawn")
    for number in count(1):
        message = _wait_for(f"job {number}")
        if message == END:
            return
        training = spawn.Process(target=_take_part, args=(number, message))
        training.start()
        try:
            _wait_for(f"ended {number}")
            training.join(GRACE)
        finally:
            training.kill()


def _take_part(number: int, message: str) -> None:
    job = decode_request(message)
    assert isinstance(job, TrainJob)
    try:
        with process_group(f"job {number}"):
            for _ in jobs.run(job):
                pass
    except StrataError as error:
        print(f"error: {error}", file=sys.stderr)
    except SystemExit:
        pass  # the main process reports why
    except Exception:
        traceback.print_exc()


def _wait_for(key: str) -> str:
    store = named_store("worker")
    try:
        while not store.check([key]):
            time.sleep(PAUSE)
        return str(store.get(key).decode())
    except RuntimeError:  # torchrun has ended
        return END
