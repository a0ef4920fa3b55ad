"""Pipes: the two ends of a worker, kept clean. Nothing but replies reaches the viewer, whatever a library prints."""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Final

from napari_strata.worker.replies import Outgoing, encode

GRACE = 0.2
"""Seconds, once or twice, that the main thread has to look at a line by itself before it is interrupted to do so."""

END: Final = None
"""In the inbox: the viewer is gone."""
TERMINATE: Final = True
"""In the inbox: the process shall end."""

Item = bytes | bool | None


def take_over() -> tuple[int, int]:
    """Private copies of stdin and stdout. Whatever else writes to stdout, also in C or in a child process, now writes
    to stderr, and nothing else can read stdin."""
    orders, replies = os.dup(0), os.dup(1)
    sys.stdout.flush()
    os.dup2(2, 1)
    _point(os.devnull, os.O_RDONLY, 0)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    return orders, replies


def redirect(path: Path | str) -> None:
    """Append what is printed to a file from now on: the reader of stderr is gone."""
    sys.stdout.flush()
    sys.stderr.flush()
    _point(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 1, 2)


def _point(path: Path | str, flags: int, *descriptors: int) -> None:
    opened = os.open(path, flags, 0o666)
    for descriptor in descriptors:
        os.dup2(opened, descriptor)
    os.close(opened)


class Outbox:
    """Replies, a line each, written at once. When nobody reads them any more, `inbox` is told and they are dropped."""

    def __init__(self, descriptor: int, inbox: Inbox) -> None:
        self._file = open(descriptor, "w", encoding="utf-8", newline="\n")  # noqa: SIM115 (open as long as the process)
        self._inbox = inbox
        self.open = True

    def tell(self, event: Outgoing, job: str | None = None) -> None:
        """Send an event."""
        if not self.open:
            return
        try:
            self._file.write(encode(event, job) + "\n")
            self._file.flush()
        except OSError:
            self.close()
            self._inbox.put(END)

    def close(self) -> None:
        """Drop all further replies."""
        if self.open:
            self.open = False
            # Closing would write what a failed write has left over, and fail again.
            _point(os.devnull, os.O_WRONLY, self._file.fileno())


class Inbox:
    """Lines as they come, kept by a thread until the main thread looks.

    When it does not look for a while it is sent SIGINT, whose handler may look: so an order reaches a job also in the
    middle of a long step.
    """

    def __init__(self) -> None:
        self._items: SimpleQueue[Item] = (
            SimpleQueue()
        )  # the one queue that a signal handler may use

    def start(self, descriptor: int) -> None:
        """Read lines from `descriptor` from now on."""
        threading.Thread(
            target=self._read, args=(descriptor,), name="orders", daemon=True
        ).start()
        threading.Thread(target=self._watch, name="orders-watch", daemon=True).start()

    def put(self, item: Item) -> None:
        self._items.put(item)

    def wait(self, seconds: float | None) -> Item:
        """The next item, as soon as there is one. Raises `queue.Empty` when there is none for so many seconds."""
        return self._items.get(timeout=seconds)

    def drain(self) -> Iterator[Item]:
        """What is there now."""
        while True:
            try:
                yield self._items.get_nowait()
            except Empty:
                return

    def _read(self, descriptor: int) -> None:
        # os.read, not a file object: a thread that waits in one holds a lock, which aborts the interpreter at its exit.
        rest = b""
        try:
            while chunk := os.read(descriptor, 2**16):
                *lines, rest = (rest + chunk).split(b"\n")
                for line in filter(bytes.strip, lines):
                    self.put(line)
        except OSError:
            pass
        self.put(END)

    def _watch(self) -> None:
        while True:
            time.sleep(GRACE)
            if not self._items.empty():
                time.sleep(GRACE)
                if not self._items.empty():
                    _interrupt_main()


def _interrupt_main() -> None:
    """SIGINT to the main thread, which also wakes it from waiting for a lock; on Windows it is handled after that."""
    if sys.platform == "win32":
        _thread.interrupt_main()
    else:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
