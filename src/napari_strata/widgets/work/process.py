"""Process of a worker and its pipes, without Qt.

It is started, read and written to in threads, so that the viewer never waits.
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

STDERR_LINES = 30
"""Number of lines of stderr that are kept to explain a crash."""
EXIT_TIMEOUT_S = 2.0
"""Seconds for a process to exit by itself, and again after SIGTERM."""

CRASHES = (4, 6, 7, 8, 11)
"""Signals of crashed programs, such as SIGSEGV."""
ACCESS_VIOLATION = 0xC0000005
"""Exit status of a segmentation fault on Windows."""


def default_command() -> list[str]:
    """Return the command of a worker with this Python and a low priority."""
    return [sys.executable, "-m", "napari_strata.worker", "--nice", "10"]


class Process:
    """Process of a worker, with its pipes.

    `on_line` is called with each line of the output, and `on_exit` once at the end of
    the process; both are called in a thread.

    Signals are also sent to children, because the command may be a shell script.
    """

    def __init__(
        self,
        command: Sequence[str],
        on_line: Callable[[bytes], None],
        on_exit: Callable[[], None],
    ) -> None:
        self.command = tuple(command)
        self.status: int | None = None
        self.problem = ""  # the reason if it could not be started
        self._on_line, self._on_exit = on_line, on_exit
        self._lines: deque[str] = deque(maxlen=STDERR_LINES)
        self._requests: SimpleQueue[bytes | None] = SimpleQueue()
        self._child: subprocess.Popen[bytes] | None = None
        self._pending_signal: signal.Signals | None = (
            None  # sent before the child exists
        )
        self._lock = threading.Lock()
        self._exited = threading.Event()

    def start(self) -> None:
        """Start the process without waiting.

        The constructor does not start it, because the callbacks may need this object.
        """
        threading.Thread(target=self._run, name="strata-worker", daemon=True).start()

    def write(self, line: str) -> None:
        """Send a line without waiting."""
        self._requests.put(line.encode() + b"\n")

    def close(self, *, force: bool = True) -> None:
        """Close the input without waiting, so that the process exits.

        A kept job continues. With `force`, a process that does not exit gets SIGTERM,
        and is then killed. This is done in a thread, because the event loop may end.
        """
        self._requests.put(None)
        if force:
            threading.Thread(
                target=self._enforce_exit, name="strata-worker-end", daemon=True
            ).start()

    def detach(self) -> None:
        """Remove the callbacks, whose objects may be deleted before the end."""
        self._on_line, self._on_exit = _ignore, _nothing

    def terminate(self) -> None:
        """Send SIGTERM to the process."""
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the process."""
        self._send(signal.SIGKILL if sys.platform != "win32" else signal.SIGTERM)

    @property
    def pid(self) -> int | None:
        """Process id, or None before the start."""
        return self._child.pid if self._child is not None else None

    def last_lines(self) -> list[str]:
        """Return the last lines of stderr, and lines of stdout that are not events."""
        return list(self._lines)

    def note(self, line: bytes) -> None:
        """Keep a line to explain a crash."""
        if text := line.decode("utf-8", "replace").rstrip():
            self._lines.append(text)

    def _send(self, number: signal.Signals) -> None:
        with self._lock:
            if self._child is None:
                self._pending_signal = number
            elif not self._exited.is_set():
                _signal(self._child, number)

    def _enforce_exit(self) -> None:
        if not self._exited.wait(EXIT_TIMEOUT_S):
            self.terminate()
        if not self._exited.wait(EXIT_TIMEOUT_S):
            self.kill()

    def _run(self) -> None:
        """Start the process and read its output to the end."""
        try:
            pipe = subprocess.PIPE
            # A new session: Ctrl-C in napari's terminal does not reach it, and a kept
            # training continues when the terminal is closed. Windows has a flag for it.
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
            self._exited.set()
            self._on_exit()
            return
        with self._lock:
            self._child = child
            if self._pending_signal is not None:
                _signal(child, self._pending_signal)
        errors = threading.Thread(
            target=self._read_errors,
            args=(child,),
            name="strata-worker-errors",
            daemon=True,
        )
        requests = threading.Thread(
            target=self._write_requests,
            args=(child,),
            name="strata-worker-requests",
            daemon=True,
        )
        errors.start()
        requests.start()
        assert child.stdout is not None
        with child.stdout as lines:
            for line in lines:
                self._on_line(line)
        # A kept training closes its output and continues, so the waits are short.
        errors.join(timeout=2)
        self._requests.put(None)
        with suppress(subprocess.TimeoutExpired):
            self.status = child.wait(timeout=2)
        self._on_exit()
        self.status = child.wait()
        with self._lock:
            self._exited.set()

    def _read_errors(self, child: subprocess.Popen[bytes]) -> None:
        assert child.stderr is not None
        with child.stderr as lines:
            for line in lines:
                self.note(line)

    def _write_requests(self, child: subprocess.Popen[bytes]) -> None:
        assert child.stdin is not None
        with suppress(OSError), child.stdin as pipe:
            while (line := self._requests.get()) is not None:
                pipe.write(line)
                pipe.flush()


def _signal(child: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Send a signal to a process and its children, which are a process group."""
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
            f"The worker could not be started: {problem} ({command_text}). Correct"
            " the worker command in Preferences > Strata, or leave it empty."
        )
    last = f"\nIts last output: {' | '.join(lines[-3:])}" if lines else ""
    # A shell returns 128 + the signal that ended its command.
    number = -status if status is not None and status < 0 else (status or 0) - 128
    if number == 9:
        return (
            "The worker was killed, most often because the computer ran out of memory:"
            f" use smaller patches or a smaller batch size.{last}"
        )
    if is_out_of_memory("\n".join(lines)):
        return (
            "The worker ran out of memory: use smaller patches or a smaller batch"
            f" size.{last}"
        )
    if number in CRASHES or status == ACCESS_VIOLATION:
        cause = "segmentation fault" if number == 11 else f"status {status}"
        return (
            f"The worker crashed ({cause}). Press Check this computer and send us "
            f"the report.{last}"
        )
    if number == 15:
        return f"The worker was terminated by another program.{last}"
    end = "closed its output" if status is None else f"ended with status {status}"
    return (
        f"The worker {end}: {command_text}. Press Check this computer to find the "
        f"problem, or correct the worker command in Preferences > Strata.{last}"
    )


def is_out_of_memory(text: str) -> bool:
    """Return True if a text reports too little memory."""
    return any(
        word in text.lower()
        for word in (
            *("out of memory", "outofmemory", "memoryerror", "bad_alloc"),
            *("allocate memory", "memory ran out"),
        )
    )
