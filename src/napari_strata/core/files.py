"""Files that are written completely or not at all, and names of some files.

A file is written under a temporary name in the same folder, and then renamed.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic, sleep

import psutil

from napari_strata.core.errors import RunError
from napari_strata.core.text import format_count

REPLACE_PATIENCE_S = 2.0
"""Seconds to wait for readers of a file that is to be replaced, on Windows."""

LAYERS = "layers"
"""Folder of a run for the layers to train on.

A viewer writes it before the run starts.
"""
PAIRS_FILE = "pairs.csv"
"""Table of several images and their labels, in that folder."""


LONGEST_NAME = 255
"""Bytes of a file name that every file system takes."""


def beside(path: Path, *, before: str = "", after: str = "") -> Path:
    """Return a path in the same folder whose name is longer by some words.

    A name that would be too long is shortened; its suffix stays.
    """
    name = f"{before}{path.name}{after}"
    if len(os.fsencode(name)) > LONGEST_NAME:
        digest = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]
        name = f"{before}{digest}{path.suffix}{after}"
    return path.with_name(name)


def partial_folder(out: Path) -> Path:
    """Return the folder of the unfinished planes of an output."""
    return beside(out, after=".partial")


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path, which becomes `path` if the block ends without an error.

    Raises
    ------
    RunError
        When the disk is full or the folder cannot be written; `path` is then unchanged.
    """
    target = Path(path)
    # The suffixes stay last: writers choose the format by them.
    temporary = beside(target, before=f".{os.getpid()}-{threading.get_ident()}.tmp.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        replace(temporary, target)
    except OSError as error:
        raise explain(error, target) from error
    finally:
        with suppress(OSError):  # an error of the block is the one to report
            temporary.unlink(missing_ok=True)


def replace(source: Path, target: Path) -> None:
    """Rename a file or folder, replacing what has the new name.

    Windows refuses while another program reads the target, such as a virus scanner or
    a dock that looks at a run. Such readers are soon done, so try again for a while.
    """
    end = monotonic() + REPLACE_PATIENCE_S
    while True:
        try:
            os.replace(source, target)
            return
        except PermissionError:
            if os.name != "nt" or monotonic() > end:
                raise
        sleep(0.05)


def explain(error: OSError, path: str | Path) -> RunError:
    """Describe an `OSError` met when writing `path`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RunError(
            f"{path}: the disk is full; free some space or choose another folder."
        )
    if error.errno == errno.ENOMEM:
        return RunError(
            f"{path}: cannot be written because memory ran out; close other programs,"
            " or use a smaller image or smaller tiles."
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return RunError(
            f"{path}: this folder cannot be written to; choose another one."
        )
    return RunError(f"{path}: cannot be written ({error.strerror or error}).")


def link(source: Path, target: Path) -> None:
    """Give a file a second name; copy it where the file system has no hard links.

    Both names keep their content when the other one is replaced.
    """
    with atomic(target) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)


def measure_size(folder: Path) -> int:
    """Return the bytes of all files in a folder; one with several names counts once."""
    sizes: dict[tuple[int, int], int] = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):  # deleted by another process
                stat = os.lstat(os.path.join(parent, name))
                sizes[stat.st_dev, stat.st_ino] = stat.st_size
    return sum(sizes.values())


def remove_leftovers(folder: Path) -> str:
    """Remove what killed processes left unfinished in a run; say what was removed.

    Temporary names contain the number of the process. Layers are those of a viewer,
    which may run on another computer.
    """
    folders = [folder, *(entry for entry in folder.iterdir() if entry.is_dir())]
    paths = [
        path
        for parent in folders
        if parent.name != LAYERS
        for path in parent.iterdir()
        if is_leftover(path)
    ]
    size = sum(path.stat().st_size for path in paths)
    for path in paths:
        remove(path)
    if not paths:
        return ""
    count = format_count(len(paths), "unfinished file")
    return f"removed {count} of a killed process ({size / 1e6:.1f} MB)"


def is_leftover(path: Path, kind: str = "tmp") -> bool:
    """Return True if a process that has ended left this file or folder unfinished."""
    match = re.match(rf"\.(\d+)(-\d+)?\.{kind}\.", path.name)
    return match is not None and not psutil.pid_exists(int(match[1]))


def remove(path: Path) -> None:
    """Delete a file or folder, if it exists and can be deleted."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
        return
    with suppress(OSError):
        path.unlink()


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
