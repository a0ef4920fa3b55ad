"""Locks between processes that would write to the same folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import SoftFileLock, Timeout

from napari_strata.core import files
from napari_strata.core.errors import RunError
from napari_strata.core.events import Message

LOCK = ".lock"
"""Name of the file that marks the folder that a process writes to."""


@contextmanager
def exclusive(path: Path) -> Iterator[str]:
    """Give an empty text to one process at a time, and to others who that is.

    The text is as ``process 123 on node7``. A file marks the lock, which works also
    where the file system has no locks. The mark of a killed process of this machine is
    taken over; whether a process of another machine still runs cannot be known.
    """
    lock = SoftFileLock(path, thread_local=False)
    try:
        # The mark of a killed process is removed first and taken at the next try.
        lock.acquire(timeout=0.2)
    except Timeout:
        yield _read_holder(path)
        return
    try:
        yield ""
    finally:
        lock.release()


@contextmanager
def one_writer(folder: Path) -> Iterator[list[Message]]:
    """Keep other processes from writing to a folder while the block runs.

    The folder is made, and removed in the end if nothing was written. Files that a
    killed process left unfinished are removed; a message that is yielded says so.

    Raises
    ------
    RunError
        When another process writes to the folder, or it cannot be made.
    """
    path = folder / LOCK
    new_folders = [
        parent for parent in (folder, *folder.parents) if not parent.exists()
    ]
    with ExitStack() as resources:
        resources.callback(_remove_empty, new_folders)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            holder = resources.enter_context(exclusive(path))
        except OSError as error:
            raise files.explain(error, folder) from error
        if holder:
            raise RunError(
                f"{folder}: {holder} is writing to this folder; wait until it has"
                " ended, or choose another folder. If that process was killed, remove"
                f" {path}."
            )
        text = files.remove_leftovers(folder)
        yield [Message(text)] if text else []


def find_writer(folder: Path) -> str:
    """Name the process that writes to a folder; empty if none does.

    A killed process of this machine does not count.
    """
    path = folder / LOCK
    if not path.exists():
        return ""
    try:
        with exclusive(path) as holder:
            return holder
    except OSError:
        return _read_holder(path)


def _remove_empty(folders: Sequence[Path]) -> None:
    for folder in folders:
        with suppress(OSError):  # not empty
            folder.rmdir()


def _read_holder(path: Path) -> str:
    """Machine and process that a lock file names."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        return "another process"
    lines = text.splitlines()
    if len(lines) >= 2 and lines[0].isdigit():
        return f"process {lines[0]} on {lines[1]}"
    return lines[0] if lines else "another process"
