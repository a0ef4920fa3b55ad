"""Client of the real worker process, for tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import numpy as np

from helpers import TINY
from napari_strata.core.image import AnnotatedImage, Image
from napari_strata.worker.protocol import (
    AnyEvent,
    JobEnded,
    JobFailed,
    Ready,
    decode_event,
)

COMMAND = [sys.executable, "-m", "napari_strata.worker"]
TIMEOUT_S = 300.0
"""Seconds to wait for an event, long enough for a busy machine."""


class Worker:
    """A worker process, and the lines that it has sent so far."""

    def __init__(self, *, command: list[str] = COMMAND, **environment: str) -> None:
        pipe = subprocess.PIPE
        env = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            **environment,
        }
        self.process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=pipe, env=env
        )
        self.lines: list[str] = []
        self.errors: list[str] = []
        self._received: Queue[str | None] = Queue()
        self._threads = [
            threading.Thread(target=self._read_events, daemon=True),
            threading.Thread(target=self._read_errors, daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def ready(self) -> Ready:
        _, first = self.next()
        assert isinstance(first, Ready), first
        return first

    def send(self, request: dict[str, Any] | str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(
            (
                (request if isinstance(request, str) else json.dumps(request)) + "\n"
            ).encode()
        )
        self.process.stdin.flush()

    def next(self, timeout: float = TIMEOUT_S) -> tuple[str | None, AnyEvent]:
        """Wait for the next event. Raises `EOFError` when the worker has ended."""
        try:
            line = self._received.get(timeout=timeout)
        except Empty:
            raise TimeoutError(
                f"no event for {timeout} s; stderr: {''.join(self.errors[-20:])}"
            ) from None
        if line is None:
            raise EOFError("".join(self.errors[-20:]))
        return decode_event(line)

    def receive_until(
        self, stop: Callable[[str | None, AnyEvent], bool], timeout: float = TIMEOUT_S
    ) -> list[AnyEvent]:
        """Wait for the event that `stop` accepts; return all events up to it."""
        events, end = [], time.monotonic() + timeout
        while True:
            job, event = self.next(max(end - time.monotonic(), 0.01))
            events.append(event)
            if stop(job, event):
                return events

    def receive_result(self, job: str) -> list[AnyEvent]:
        """Wait for the end of a job and return the events up to it."""
        return self.receive_until(
            lambda of, event: of == job and isinstance(event, JobEnded | JobFailed)
        )

    def run_job(self, request: dict[str, Any]) -> list[AnyEvent]:
        """Send a job and wait for its end."""
        self.send(request)
        return self.receive_result(request["job"])

    def close_stdin(self) -> None:
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()

    def end(self, timeout: float = TIMEOUT_S) -> int:
        """Wait for the process to exit by itself and return its status."""
        status = self.process.wait(timeout)
        for thread in self._threads:
            thread.join(60)
        return status

    def close(self) -> None:
        self.close_stdin()
        self.process.kill()
        self.end()
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()

    def _read_events(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.decode())
            self._received.put(line.decode())
        self._received.put(None)

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        self.errors += map(bytes.decode, iter(self.process.stderr.readline, b""))


@contextmanager
def worker(**keywords: Any) -> Iterator[Worker]:
    client = Worker(**keywords)
    try:
        yield client
    finally:
        client.close()


def layer(path: Path, image: Image) -> dict[str, Any]:
    """Save the array at `path` and return the layer as in a request."""
    np.save(path, np.asarray(image.data))
    return {"path": str(path), "axes": image.axes, "name": image.name}


def train_request(
    folder: Path, pair: AnnotatedImage, job: str = "t", **changes: Any
) -> dict[str, Any]:
    """Return a request to train a tiny network for two epochs, in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    return {
        "job": job,
        "kind": "train",
        "recipe": TINY,
        "images": layer(folder / "image.npy", pair.image),
        "labels": {"path": layer(folder / "labels.npy", pair.labels)["path"]},
        "out": str(folder / "run"),
        "device": "cpu",
    } | changes
