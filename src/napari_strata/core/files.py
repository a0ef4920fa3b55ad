"""Files written whole or not at all: to a temporary name in the same folder, then renamed; and names of some."""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from napari_strata.core.errors import RunError

CROSSVAL = "crossval.json"
"""The file that makes a folder a cross-validation; it names the run folders of the folds."""

TRIALS = "trials.json"
"""The file that makes a folder a search."""

FORMATS = {CROSSVAL: "napari-strata crossval 1", TRIALS: "napari-strata tune 1"}
"""What each of them says of itself under "format"."""

LAYERS = "layers"
"""Folder of a run in which a viewer keeps the layers to train on, from before the run begins."""


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Temporary path beside `path` to write to; it becomes `path` when the block ends without an error.

    Raises
    ------
    RunError
        when the disk is full or the folder cannot be written; `path` is then what it was before.
    """
    target = Path(path)
    # The suffixes stay last: writers choose the format by them.
    temporary = target.with_name(
        f".{os.getpid()}-{threading.get_ident()}.tmp.{target.name}"
    )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, target)
    except OSError as error:
        raise explain(error, target) from error
    finally:
        with suppress(OSError):  # the error under way, if any, is the one to tell
            temporary.unlink(missing_ok=True)


def explain(error: OSError, path: str | Path) -> RunError:
    """An `OSError` met when writing `path`, in words."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RunError(
            f"{path}: the disk is full; free some space or choose another folder."
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return RunError(
            f"{path}: this folder cannot be written to; choose another one."
        )
    return RunError(f"{path}: cannot be written ({error.strerror or error}).")


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_study(file: Path) -> dict[str, Any]:
    """`CROSSVAL` or `TRIALS` of a folder. Raises `RunError` when it is missing, damaged or of another kind."""
    form = FORMATS[file.name]
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(
            f"{file.parent}: found no {file.name} here; check the path."
        ) from None
    except (OSError, ValueError) as error:
        raise RunError(
            f"{file}: cannot be read ({error}); move the folder away and begin anew."
        ) from None
    if not isinstance(raw, dict) or raw.get("format") != form:
        raise RunError(
            f"{file}: found something else than {form!r}; choose another folder."
        )
    return raw
