"""Several worker processes, started by torchrun to train on several GPUs.

The main process serves the viewer and runs all jobs. The others wait for its trainings.
Each starts a new process for each training: a failed training may hang in a collective
operation, and then only the end of the process helps.
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

POLL_INTERVAL_S = 0.05
"""Seconds between two reads of the store."""

EXIT_TIMEOUT_S = 10.0
"""Seconds for a process to exit after the main process has ended a training."""

END_MESSAGE = "end"
"""Message to the other processes to end."""

_job_numbers = count(1)


@contextmanager
def all_processes(job: TrainJob) -> Iterator[None]:
    """Run the job in the other processes, if any, while the block runs it here."""
    if not is_distributed():
        yield
        return
    number = next(_job_numbers)
    store = named_store("worker")
    store.set(f"job {number}", encode_request(job))
    try:
        with process_group(f"job {number}"):
            yield
    finally:
        with suppress(RuntimeError):
            store.set(f"ended {number}", END_MESSAGE)


def end_followers() -> None:
    """Tell the other processes, if any, to end."""
    if is_distributed():
        with suppress(RuntimeError):
            named_store("worker").set(f"job {next(_job_numbers)}", END_MESSAGE)


def follow() -> None:
    """Take part in the trainings of the main process until it ends."""
    # The main process decides when to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(0))
    spawn = multiprocessing.get_context("spawn")
    for number in count(1):
        message = _wait_for(f"job {number}")
        if message == END_MESSAGE:
            return
        training = spawn.Process(target=_run_training, args=(number, message))
        training.start()
        try:
            _wait_for(f"ended {number}")
            training.join(EXIT_TIMEOUT_S)
        finally:
            training.kill()


def _run_training(number: int, message: str) -> None:
    job = decode_request(message)
    assert isinstance(job, TrainJob)
    try:
        with process_group(f"job {number}"):
            for _ in jobs.run(job):
                pass
    except StrataError as error:
        print(f"error: {error}", file=sys.stderr)
    except SystemExit:
        pass  # the main process reports the reason
    except Exception:
        traceback.print_exc()


def _wait_for(key: str) -> str:
    store = named_store("worker")
    try:
        while not store.check([key]):
            time.sleep(POLL_INTERVAL_S)
        return str(store.get(key).decode())
    except RuntimeError:  # torchrun has ended
        return END_MESSAGE
