"""A worker's process and its pipes, without Qt.

Started, read and written in threads, so that nobody waits for it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import SimpleQueue

import psutil

KEPT = 30
"""Lines of stderr that are kept to explain a death."""
LEAVE = 2.0
"""Seconds for a process to end by itself, and as many again after it was told to.

Nobody waits for it.
"""

CRASHES = (4, 6, 7, 8, 11)
"""Signals that a program gets for a mistake in its machine code."""
ACCESS_VIOLATION = 0xC0000005
"""Exit status of a segmentation fault on Windows."""


def default_command() -> list[str]:
    """A worker of this Python, on this computer, that leaves the processor to the
    viewer when both want it.
    """
    return [sys.executable, "-m", "napari_strata.worker", "--nice", "10"]


class Process:
    """Process of a worker, with its pipes.

    `said` is called with each line of its output, and `ended` once at its end; both in
    a thread.

    Signals reach the children too: a command may be a shell script around the worker.
    """

    def __init__(
        self,
        command: Sequence[str],
        said: Callable[[bytes], None],
        ended: Callable[[], None],
    ) -> None:
        self.command = tuple(command)
        self.status: int | None = None
        self.problem = ""  # why it could not be started
        self._said, self._ended = said, ended
        self._lines: deque[str] = deque(maxlen=KEPT)
        self._orders: SimpleQueue[bytes | None] = SimpleQueue()
        self._child: subprocess.Popen[bytes] | None = None
        self._wish: signal.Signals | None = None  # asked for before there was a child
        self._lock = threading.Lock()
        self._over = threading.Event()

    def start(self) -> None:
        """Start the process without waiting.

        The constructor does not start it, because `said` and `ended` may need this
        object.
        """
        threading.Thread(target=self._live, name="strata-worker", daemon=True).start()

    def write(self, line: str) -> None:
        """Send a line; never waits."""
        self._orders.put(line.encode() + b"\n")

    def close(self, *, insist: bool = True) -> None:
        """Close the input, so that the process stops its work and exits. Never waits.

        A job that is to be kept goes on.

        With `insist` it is told to end, then forced, when it does not exit by itself;
        by a thread, for there may be no event loop any more.
        """
        self._orders.put(None)
        if insist:
            threading.Thread(
                target=self._insist, name="strata-worker-end", daemon=True
            ).start()

    def forget(self) -> None:
        """Call nobody any more: whoever listened may be gone before the process is."""
        self._said, self._ended = _ignore, _nothing

    def terminate(self) -> None:
        """Tell it to end."""
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        """End it."""
        self._send(signal.SIGKILL if sys.platform != "win32" else signal.SIGTERM)

    @property
    def pid(self) -> int | None:
        """Its number, once it is there."""
        return self._child.pid if self._child is not None else None

    def last_lines(self) -> list[str]:
        """Last lines on stderr, and on stdout if they were no reply."""
        return list(self._lines)

    def note(self, line: bytes) -> None:
        """Keep a line for the report of a death."""
        if text := line.decode("utf-8", "replace").rstrip():
            self._lines.append(text)

    def _send(self, number: signal.Signals) -> None:
        with self._lock:
            if self._child is None:
                self._wish = number
            elif not self._over.is_set():
                _signal(self._child, number)

    def _insist(self) -> None:
        if not self._over.wait(LEAVE):
            self.terminate()
        if not self._over.wait(LEAVE):
            self.kill()

    def _live(self) -> None:
        """Start the child and read it to its end."""
        try:
            pipe = subprocess.PIPE
            # A session of its own: Ctrl-C in napari's terminal is not for it, a kept
            # training outlives the terminal. The flag is Windows' name for it.
            child = subprocess.Popen(
                self.command,
                stdin=pipe,
                stdout=pipe,
                stderr=pipe,
                start_new_session=sys.platform != "win32",
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
            )
        except OSError as error:
            self.problem = f"{error.strerror or error}"
            self._over.set()
            self._ended()
            return
        with self._lock:
            self._child = child
            if self._wish is not None:
                _signal(child, self._wish)
        errors = threading.Thread(
            target=self._read_errors,
            args=(child,),
            name="strata-worker-errors",
            daemon=True,
        )
        orders = threading.Thread(
            target=self._write_orders,
            args=(child,),
            name="strata-worker-orders",
            daemon=True,
        )
        errors.start()
        orders.start()
        assert child.stdout is not None
        with child.stdout as lines:
            for line in lines:
                self._said(line)
        # A kept training closes its output, and goes on: nobody waits for it here.
        errors.join(timeout=2)
        self._orders.put(None)
        with suppress(subprocess.TimeoutExpired):
            self.status = child.wait(timeout=2)
        self._ended()
        self.status = child.wait()
        with self._lock:
            self._over.set()

    def _read_errors(self, child: subprocess.Popen[bytes]) -> None:
        assert child.stderr is not None
        with child.stderr as lines:
            for line in lines:
                self.note(line)

    def _write_orders(self, child: subprocess.Popen[bytes]) -> None:
        assert child.stdin is not None
        with suppress(OSError), child.stdin as pipe:
            while (line := self._orders.get()) is not None:
                pipe.write(line)
                pipe.flush()


def _signal(child: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Send a signal to a process and its children: it leads a group of its own."""
    if sys.platform == "win32":
        end_process_tree(child.pid)
        return
    with suppress(OSError):
        os.killpg(child.pid, number)


def end_process_tree(pid: int) -> None:
    """End a process and its children, which Windows does not count as one group."""
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        for each in [*process.children(recursive=True), process]:
            with suppress(psutil.Error):
                each.kill()


def _ignore(_line: bytes) -> None:
    return


def _nothing() -> None:
    return


def explain(
    command: Sequence[str],
    status: int | None,
    lines: Sequence[str],
    *,
    problem: str = "",
) -> str:
    """Explain why a worker has ended, with its last lines and a remedy."""
    command_text = " ".join(command)
    if problem:
        return (
            f"The worker could not be started: {problem} ({command_text}). Mend the"
            " worker command in Preferences > Strata, or leave it empty."
        )
    last = f"\nIts last words: {' | '.join(lines[-3:])}" if lines else ""
    # A shell gives 128 + the signal that ended what it ran.
    number = -status if status is not None and status < 0 else (status or 0) - 128
    if number == 9:
        return (
            "The worker was killed, most often because the computer ran out of memory:"
            f" take smaller patches or fewer patches per step.{last}"
        )
    if is_out_of_memory("\n".join(lines)):
        return (
            "The worker ran out of memory: take smaller patches or fewer patches per"
            f" step.{last}"
        )
    if number in CRASHES or status == ACCESS_VIOLATION:
        word = "segmentation fault" if number == 11 else f"status {status}"
        return (
            f"The worker crashed ({word}). Press Check this computer and send us "
            f"what it says.{last}"
        )
    if number == 15:
        return f"The worker was told to end by another program.{last}"
    how = "stopped talking" if status is None else f"ended by itself (status {status})"
    return (
        f"The worker {how}: {command_text}. Press Check this computer to see what is "
        f"wrong, or correct the worker command in Preferences > Strata.{last}"
    )


def is_out_of_memory(text: str) -> bool:
    """Return True if a text complains of too little memory."""
    return any(
        word in text.lower()
        for word in ("out of memory", "outofmemory", "memoryerror", "bad_alloc")
    )
