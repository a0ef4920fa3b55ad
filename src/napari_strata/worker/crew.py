"""Crew: a worker that torchrun has started as several processes, to train on several GPUs.

The first one talks with the viewer and does everything but training alone; the others wait for its trainings, and take
part in them.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from itertools import count
from typing import Any

from napari_strata.core.errors import StrataError, TrainingError
from napari_strata.training.membership import is_several, meeting, when_stuck, within
from napari_strata.worker import jobs
from napari_strata.worker.orders import TrainJob, parse_order

PAUSE = 0.05
"""Seconds between two looks for a training to take part in."""

OVER = "over"
NEXT = "NAPARI_STRATA_NEXT_CALL"
"""Tells a process that has begun anew which training is the next."""


def follow() -> None:
    """Take part in the trainings of the first process until it ends, or what started them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first one says when to stop
    signal.signal(signal.SIGTERM, lambda _number, _frame: os._exit(0))
    for number in count(int(os.environ.get(NEXT, "1"))):
        os.environ[NEXT] = str(number + 1)
        when_stuck[:] = [_begin_anew]
        while (order := _read(f"call/{number}")) is None:
            time.sleep(PAUSE)
        if order == OVER:
            return
        _take_part(number, order)
        jobs.give_back_memory()


@contextmanager
def called(job: TrainJob) -> Iterator[None]:
    """Inside the block the other processes do the same job. Nothing where there is none, or this is one of them."""
    if not is_several() or int(os.environ["RANK"]) > 0:
        yield
        return
    number = next(_calls)
    _store().set(f"call/{number}", job.model_dump_json())
    with meeting(f"job {number}"):
        yield


def dismiss() -> None:
    """Send the other processes home."""
    if is_several():
        with suppress(RuntimeError):
            _store().set(f"call/{next(_calls)}", OVER)


_calls = count(1)


@cache
def _store() -> Any:
    return within("crew")


def _take_part(number: int, order: str) -> None:
    """Whatever ends it, the first process tells, if it is there."""
    try:
        with meeting(f"job {number}"):
            for _ in jobs.run(_job(order)):
                pass
    except TrainingError as error:
        print(f"error: {error}", file=sys.stderr)
    except (StrataError, SystemExit):
        pass
    except Exception:
        traceback.print_exc()


def _job(order: str) -> TrainJob:
    job = parse_order(order)
    assert isinstance(job, TrainJob)
    return job


def _read(key: str) -> str | None:
    """What stands in the store; `OVER` when that is gone."""
    try:
        return _store().get(key).decode() if _store().check([key]) else None
    except RuntimeError:
        return OVER


def _begin_anew() -> None:
    """In the place of a process that hangs in a collective, or would leave others hanging: a new one, without its
    connections. None, where what started them is gone."""
    if _read(OVER) == OVER:
        os._exit(1)
    sys.stdout.flush()
    sys.stderr.flush()
    os.closerange(3, 65536)
    os.execv(
        sys.executable, [sys.executable, "-m", "napari_strata.worker", *sys.argv[1:]]
    )
