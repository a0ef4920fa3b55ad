"""Parts: which planes of an image, or which files, one of several processes predicts, and how they keep apart.

A process claims the planes that it writes: a lock on one byte each of a file beside them. The system lets go of such a
lock when the process ends, however that comes about, so nothing is left behind by a kill.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import struct
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from time import monotonic, sleep
from typing import TypeVar

from napari_strata.core.errors import RunError

if sys.platform != "win32":  # which has no locks of this kind
    import fcntl

Thing = TypeVar("Thing")


@dataclass(frozen=True)
class Part:
    """One of `of` parts of the work, numbered from 1.

    Raises
    ------
    RunError
        when there is no such part.
    """

    number: int
    of: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.of:
            raise RunError(
                f"found part {self}; needed is i/n with i from 1 to n, as 2/3."
            )

    @classmethod
    def parse(cls, text: str) -> Part:
        """The part called ``2/3``. Raises `RunError` when `text` is not of that form."""
        found = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", text)
        if found is None:
            raise RunError(
                f"found part {text!r}; needed is i/n with i from 1 to n, as 2/3."
            )
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def share(self, things: Sequence[Thing]) -> Sequence[Thing]:
        """Its run of neighbouring things; runs differ by no more than one in length and all together are `things`."""
        begin, end = (
            (self.number - 1) * len(things) // self.of,
            self.number * len(things) // self.of,
        )
        return things[begin:end]

    def deal(self, things: Sequence[Thing]) -> Sequence[Thing]:
        """Every n-th thing, as cards are dealt."""
        return things[self.number - 1 :: self.of]


def as_part(part: Part | str | None) -> Part | None:
    """A part from whatever `iter_predict` takes."""
    return Part.parse(part) if isinstance(part, str) else part


def claim(file: FileIO, planes: range, *, wait: float = 0.0) -> bool:
    """Claim planes for as long as `file` is open; false when another process holds one of them.

    Parameters
    ----------
    file
        the same file for all processes, open for writing; its content does not matter.
    wait
        seconds to wait for planes that another process holds.

    Where the file system knows no locks, every claim is granted.
    """
    last = monotonic() + wait
    while not _locked(file, planes):
        if monotonic() >= last:
            return False
        sleep(0.05)
    return True


def _locked(file: FileIO, planes: range) -> bool:
    if not len(planes):
        return True
    try:
        if (
            sys.platform == "linux"
        ):  # of the open file, not of the process, which may hold it open twice
            lock = struct.pack(
                "hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, planes.start, len(planes), 0
            )
            fcntl.fcntl(file, fcntl.F_OFD_SETLK, lock)
        elif sys.platform != "win32":
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, len(planes), planes.start)
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EAGAIN)
    return True


@contextmanager
def sole(lock: Path) -> Iterator[str]:
    """Nothing ("") for one process at a time, and for the others who that is: ``node7, process 123``.

    A file says so, which every file system can make once only. What a killed process of this machine left is taken
    over; of another machine nobody can know whether it still runs.
    """
    mine = f"{socket.gethostname()}, process {os.getpid()}"
    if holder := _take(lock, mine):
        yield holder
        return
    try:
        yield ""
    finally:
        with suppress(OSError):
            if lock.read_text(encoding="utf-8") == mine:
                lock.unlink()


def _take(lock: Path, mine: str) -> str:
    """Who holds the lock, or "" when it is ours now."""
    for _ in range(2):
        try:
            with open(lock, "x", encoding="utf-8") as file:
                file.write(mine)
        except FileExistsError:
            with suppress(FileNotFoundError):
                holder = lock.read_text(encoding="utf-8")
                if not _gone(holder):
                    return holder or "another process"
                lock.unlink()
        else:
            return ""
    return "another process"


def _gone(holder: str) -> bool:
    """Whether `holder` was a process of this machine that has ended."""
    host, _, number = holder.partition(", process ")
    if host != socket.gethostname() or not number.isdigit() or sys.platform == "win32":
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
