"""A client of the real process, for tests."""

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
PATIENCE = 300.0
"""Seconds for anything: a limit for tests that fail, since the machine may be busy."""


class Worker:
    """A worker process, and what it has said so far."""

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
        self._said: Queue[str | None] = Queue()
        self._threads = [
            threading.Thread(target=self._listen, daemon=True),
            threading.Thread(target=self._overhear, daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def ready(self) -> Ready:
        _, first = self.next()
        assert isinstance(first, Ready), first
        return first

    def say(self, request: dict[str, Any] | str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(
            (
                (request if isinstance(request, str) else json.dumps(request)) + "\n"
            ).encode()
        )
        self.process.stdin.flush()

    def next(self, timeout: float = PATIENCE) -> tuple[str | None, AnyEvent]:
        """The next reply. Raises `EOFError` when there is none any more."""
        try:
            line = self._said.get(timeout=timeout)
        except Empty:
            raise TimeoutError(
                f"nothing said for {timeout} s; stderr: {''.join(self.errors[-20:])}"
            ) from None
        if line is None:
            raise EOFError("".join(self.errors[-20:]))
        return decode_event(line)

    def until(
        self, stop: Callable[[str | None, AnyEvent], bool], timeout: float = PATIENCE
    ) -> list[AnyEvent]:
        """Replies up to the one that is waited for, that one last."""
        found, end = [], time.monotonic() + timeout
        while True:
            job, event = self.next(max(end - time.monotonic(), 0.01))
            found.append(event)
            if stop(job, event):
                return found

    def result(self, job: str) -> list[AnyEvent]:
        """Replies up to the end of a job."""
        return self.until(
            lambda of, event: of == job and isinstance(event, JobEnded | JobFailed)
        )

    def do(self, request: dict[str, Any]) -> list[AnyEvent]:
        """Give a job and wait for its end."""
        self.say(request)
        return self.result(request["job"])

    def hang_up(self) -> None:
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()

    def end(self, timeout: float = PATIENCE) -> int:
        """Wait for the process to exit by itself; its status."""
        status = self.process.wait(timeout)
        for thread in self._threads:
            thread.join(60)
        return status

    def close(self) -> None:
        self.hang_up()
        self.process.kill()
        self.end()
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.decode())
            self._said.put(line.decode())
        self._said.put(None)

    def _overhear(self) -> None:
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
    """What the viewer says of a layer, its array saved at `path`."""
    np.save(path, np.asarray(image.data))
    return {"path": str(path), "axes": image.axes, "name": image.name}


def train_request(
    folder: Path, pair: AnnotatedImage, job: str = "t", **changes: Any
) -> dict[str, Any]:
    """A job that trains a tiny network for two epochs, in `folder`."""
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
