"""Scheduler: the Dask cluster that predictions run on, on this machine or on many; `workers` has the work."""

from __future__ import annotations

import logging
import re
import signal
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing import resource_tracker
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch

from napari_strata.core.errors import RunError

if TYPE_CHECKING:
    from distributed import Client

PATIENCE = 10.0
"""Seconds in which a scheduler must answer and a first worker must be there."""


class Cluster:
    """Workers of a Dask scheduler, for one prediction after another; a context manager.

    Parameters
    ----------
    address
        "local:N" for N worker processes on this machine, one a GPU if there are some; "tcp://host:port" for a scheduler
        that runs already.

    Raises
    ------
    RunError
        when the extra ``distributed`` is missing, the address is none, or no scheduler or no worker answers.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.local = _local(address)
        self._stack = ExitStack()
        try:
            self.client = self._connect()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the scheduler, and end it if it is our own."""
        self._stack.close()

    def workers(self) -> dict[str, dict[str, Any]]:
        """What the scheduler knows of each worker, by address."""
        # Not client.scheduler_info: its answer may be one that came between, of a call without workers.
        found: dict[str, dict[str, Any]] = self.client.sync(
            self.client.scheduler.identity, n_workers=-1
        )["workers"]
        return found

    def resources(self) -> dict[str, int] | None:
        """What a task asks of a worker: one of its GPUs, where workers say that they have some."""
        declared = any(
            worker.get("resources", {}).get("GPU") for worker in self.workers().values()
        )
        return {"GPU": 1} if declared else None

    def _connect(self) -> Client:
        try:
            from distributed import Client, LocalCluster
            from distributed.utils import silence_logging_cmgr
        except ImportError:
            raise RunError(
                'found no Dask for --scheduler; needed is the extra: pip install "napari-strata[distributed]".'
            ) from None
        self._stack.enter_context(
            silence_logging_cmgr(logging.CRITICAL)
        )  # what matters of it is said in events
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # what matters of versions is asked by `workers`
            if self.local:
                with _deaf():
                    cluster = LocalCluster(**_own(self.local))
                self._stack.callback(cluster.close)
                return self._stack.enter_context(Client(cluster, set_as_default=False))
            try:
                client = self._stack.enter_context(
                    Client(self.address, timeout=PATIENCE, set_as_default=False)
                )
            except (OSError, TimeoutError, ValueError):
                raise RunError(
                    f"{self.address}: no scheduler answered in {PATIENCE:.0f} s; start one with: dask scheduler, and "
                    f"workers with: dask worker {self.address} --nthreads 1"
                ) from None
        try:
            client.wait_for_workers(1, timeout=PATIENCE)
        except TimeoutError:
            raise RunError(
                f"{self.address}: the scheduler has no workers; start some, where the GPUs are, with: dask worker "
                f"{self.address} --nthreads 1"
            ) from None
        return client


def _own(workers: int) -> dict[str, Any]:
    """How workers on this machine are started: with as many threads each as one process would have, for the same
    labels to the bit, and none of them keeping a core busy while it waits."""
    threads = str(torch.get_num_threads())
    return {
        "n_workers": workers,
        "threads_per_worker": 1,
        "processes": True,
        "memory_limit": 0,
        "dashboard_address": None,
        "scheduler_kwargs": {
            "dashboard_address": "127.0.0.1:0"
        },  # any free port: there may be other clusters
        "silence_logs": logging.CRITICAL,  # for the workers' own processes
        "env": {
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "OMP_WAIT_POLICY": "PASSIVE",
        },
    }


@contextmanager
def _deaf() -> Iterator[None]:
    """Whatever is started hears no Ctrl-C, then or later: it is for this process, which ends the workers."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # which would let signals through again when the first process starts it
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _local(address: str) -> int:
    """N of ``local:N``, 0 of a scheduler elsewhere; raises `RunError` for anything else."""
    if found := re.fullmatch(r"local:([1-9]\d*)", address):
        return int(found[1])
    if re.fullmatch(r"(tcp|tls|ws|wss|ucx)://[^/\s]+:\d+/?", address):
        return 0
    raise RunError(
        f"found scheduler {address!r}; needed is local:N for N workers on this machine, or tcp://host:port of a "
        "running dask scheduler."
    )
