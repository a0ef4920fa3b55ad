"""Shards: shares of a prediction for several processes, and the locks between them.

A process claims the planes that it writes by a lock on a file that is named for them.
The system frees the lock when the process ends, however that comes about, so a killed
process leaves no claim behind.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import TypeVar

from filelock import BaseFileLock, FileLock, Timeout

from napari_strata.core.errors import RunError

Item = TypeVar("Item")

CLAIMS = ".claims.lock"
"""Lock that a process holds while it reads the claims of others and adds its own."""

ANCHOR = ".claims"
"""File that shows that a folder is still the same."""


@dataclass(frozen=True)
class Shard:
    """One of `count` shares of the work, numbered from 1.

    Raises
    ------
    RunError
        when there is no such shard.
    """

    number: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise RunError(
                f"part {self} is not possible; it must be i/n with i from 1 to n, "
                "for example 2/3."
            )

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Parse ``2/3``. Raises `RunError` when `text` is not of that form."""
        match = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", text)
        if match is None:
            raise RunError(
                f"part {text!r} is not possible; it must be i/n with i from 1 to n, "
                "for example 2/3."
            )
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """The neighbouring items of this shard.

        Shards differ by no more than one in length, and all together are `items`.
        """
        begin = (self.number - 1) * len(items) // self.count
        end = self.number * len(items) // self.count
        return items[begin:end]

    def deal(self, items: Sequence[Item]) -> Sequence[Item]:
        """Every n-th item."""
        return items[self.number - 1 :: self.count]


def as_shard(shard: Shard | str | None) -> Shard | None:
    """Convert what `iter_predict` takes."""
    return Shard.parse(shard) if isinstance(shard, str) else shard


def claim_planes(
    folder: Path, planes: range, *, wait: float = 0.0
) -> BaseFileLock | None:
    """Claim planes until the lock is released or this process ends.

    Parameters
    ----------
    folder
        Folder that all processes fill. It must exist.
    planes
        Planes to claim, one or more.
    wait
        Seconds to wait for planes that another process holds.

    Returns
    -------
    the lock, or None when another process holds one of the planes.
    """
    deadline = monotonic() + wait
    while True:
        lock = _try_claim(folder, planes)
        if lock is not None or monotonic() >= deadline:
            return lock
        sleep(0.05)


def _try_claim(folder: Path, planes: range) -> BaseFileLock | None:
    # Opening fails when the folder is gone. The open file shows afterwards whether it
    # is still the same folder: a lock makes a folder that another process has deleted
    # after it has put the file together.
    path = folder / ANCHOR
    with open(path, "ab") as anchor:
        lock = _lock_planes(folder, planes)
        if path.exists() and os.path.samestat(os.fstat(anchor.fileno()), path.stat()):
            return lock
    if lock is not None:
        lock.release()
    with suppress(OSError):
        for path in folder.glob(".*.lock"):
            path.unlink()
        folder.rmdir()
    raise FileNotFoundError(folder)


def _lock_planes(folder: Path, planes: range) -> BaseFileLock | None:
    own = folder / f".planes-{planes.start}-{planes.stop}.lock"
    # Under a common lock, so that of two processes that claim at the same time the
    # second one sees the first.
    with FileLock(folder / CLAIMS):
        for path in folder.glob(".planes-*.lock"):
            if path != own and _overlaps(path, planes) and _is_locked(path):
                return None
        return _try_lock(own)


def _overlaps(path: Path, planes: range) -> bool:
    """True when the file name ``.planes-3-7.lock`` names one of the planes."""
    _, start, stop = path.stem.split("-")
    return int(start) < planes.stop and planes.start < int(stop)


def _is_locked(path: Path) -> bool:
    lock = _try_lock(path)
    if lock is None:
        return True
    lock.release()
    return False


def _try_lock(path: Path) -> BaseFileLock | None:
    # Threads of a Dask worker may release what another one acquired.
    lock = FileLock(path, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return None
    return lock
