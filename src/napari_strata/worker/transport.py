"""Transport of messages: requests are read from stdin, events are written to stdout.

Output that a library prints does not reach the client.
"""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TypeAlias

from napari_strata.worker.protocol import AnyEvent, encode_event

CHECK_INTERVAL_S = 0.2
"""Seconds between two checks of the inbox.

If two checks in succession find unread lines, the main thread is interrupted.
"""

LONGEST_LINE = 2**26
"""Bytes of the longest request. A longer line is refused and not kept in memory."""


class Notice(Enum):
    """Item of the inbox that is not a line."""

    CLIENT_GONE = 1
    TERMINATE = 2
    LINE_TOO_LONG = 3


Item: TypeAlias = bytes | Notice


def take_over_pipes() -> tuple[int, int]:
    """Return private copies of stdin and stdout.

    From then on, stdout is redirected to stderr, also for C code and child processes,
    and nothing else can read stdin.
    """
    requests, events = os.dup(0), os.dup(1)
    sys.stdout.flush()
    os.dup2(2, 1)
    _open_as(os.devnull, os.O_RDONLY, 0)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    return requests, events


def redirect_output(path: Path | str) -> None:
    """Redirect stdout and stderr to a file, to which they append."""
    sys.stdout.flush()
    sys.stderr.flush()
    _open_as(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 1, 2)


def _open_as(path: Path | str, flags: int, *descriptors: int) -> None:
    """Open a file under the given file descriptors."""
    opened = os.open(path, flags, 0o666)
    for descriptor in descriptors:
        os.dup2(opened, descriptor)
    os.close(opened)


class Outbox:
    """Writer of events, one line each, without buffering.

    When the client has closed the pipe, the inbox gets a notice, and further events are
    dropped.
    """

    def __init__(self, descriptor: int, inbox: Inbox) -> None:
        # The file stays open as long as the process runs.
        self._file = open(descriptor, "w", encoding="utf-8", newline="\n")  # noqa: SIM115
        self._inbox = inbox
        self._is_open = True

    def send(self, event: AnyEvent, job: str | None = None) -> None:
        """Send an event of a job."""
        if not self._is_open:
            return
        try:
            self._file.write(encode_event(event, job) + "\n")
            self._file.flush()
        except OSError:
            self.close()
            self._inbox.put(Notice.CLIENT_GONE)

    def close(self) -> None:
        """Drop all further events."""
        if self._is_open:
            self._is_open = False
            # Closing the file would write the rest of a failed write and fail again.
            _open_as(os.devnull, os.O_WRONLY, self._file.fileno())


class Inbox:
    """Queue of lines that a thread reads and the main thread handles.

    If the main thread does not read the queue for a while, it gets SIGINT, and the
    signal handler reads it. In this way a request is handled in the middle of a long
    step.
    """

    def __init__(self) -> None:
        # The only queue that a signal handler may use.
        self._items: SimpleQueue[Item] = SimpleQueue()

    def start(self, descriptor: int) -> None:
        """Start to read lines from a file descriptor."""
        threading.Thread(
            target=self._read, args=(descriptor,), name="requests", daemon=True
        ).start()
        threading.Thread(target=self._watch, name="requests-watch", daemon=True).start()

    def put(self, item: Item) -> None:
        """Add an item."""
        self._items.put(item)

    def wait(self, seconds: float | None) -> Item:
        """Return the next item; raise `queue.Empty` after `seconds` without one."""
        return self._items.get(timeout=seconds)

    def drain(self) -> Iterator[Item]:
        """Remove and yield all items in the queue."""
        while True:
            try:
                yield self._items.get_nowait()
            except Empty:
                return

    def _read(self, descriptor: int) -> None:
        # Not a file object: a thread that waits in it holds a lock, and the interpreter
        # then aborts when it exits.
        line = bytearray()
        try:
            while chunk := os.read(descriptor, 2**16):
                *ends, rest = chunk.split(b"\n")
                for end in ends:
                    self._put_line(line + end)
                    line = bytearray()
                if len(line) <= LONGEST_LINE:
                    line += rest
        except OSError:
            pass
        self.put(Notice.CLIENT_GONE)

    def _put_line(self, line: bytearray) -> None:
        if len(line) > LONGEST_LINE:
            self.put(Notice.LINE_TOO_LONG)
        elif line.strip():
            self.put(bytes(line))

    def _watch(self) -> None:
        while True:
            time.sleep(CHECK_INTERVAL_S)
            if not self._items.empty():
                time.sleep(CHECK_INTERVAL_S)
                if not self._items.empty():
                    _interrupt_main_thread()


def _interrupt_main_thread() -> None:
    """Send SIGINT to the main thread, even while it waits for a lock.

    On Windows the signal is handled after the main thread has got the lock.
    """
    if sys.platform == "win32":
        _thread.interrupt_main()
    else:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
