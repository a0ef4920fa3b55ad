"""The doctor: what is installed, what computes, what shows pictures, and why something of it is not used.

``python -m napari_strata.doctor --json`` is what the docks run in a process of its own. Importing this package loads
no torch: the checks that ask it load it by name.
"""

from __future__ import annotations

import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from napari_strata.doctor import compute, installed, processes
from napari_strata.doctor.check import Check, as_text, from_json, last_line
from napari_strata.doctor.check import as_json as _as_json

__all__ = ["Check", "as_text", "diagnose", "from_json", "report"]


def diagnose(
    command: Sequence[str] | None = None, folder: str | Path | None = None
) -> Iterator[Check]:
    """Look at one thing after another, the quick ones first. A check that breaks is a problem, never a traceback.

    Parameters
    ----------
    command
        what starts the worker; this Python's by default.
    folder
        where runs are kept; ``~/napari-strata`` by default.
    """
    runs = Path(folder).expanduser() if folder else Path.home() / "napari-strata"
    looks: dict[str, Callable[[], Check]] = {
        "Strata": installed.strata,
        "Libraries": installed.libraries,
        "Viewer": installed.viewer,
        "Computer": installed.computer,
        "Settings": installed.variables,
        "Folder for runs": partial(installed.folder, "Folder for runs", runs),
        "Temporary files": partial(
            installed.folder, "Temporary files", Path(tempfile.gettempdir())
        ),
        "GPU": compute.gpu,
        "CPU": compute.cpu,
        "Pretrained weights": compute.weights,
        "OpenGL": processes.opengl,
        "Worker": partial(
            processes.worker, command or (sys.executable, "-m", "napari_strata.worker")
        ),
    }
    for name, look in looks.items():
        try:
            yield look()
        except Exception as error:  # whatever is broken on this machine, the other checks are still worth having
            words = (
                f"this check failed: {type(error).__name__}: {last_line(str(error))}"
            )
            yield Check(name, "problem", words, "Copy all of this into a bug report.")


def report(
    worker: str | None = None,
    folder: str | Path | None = None,
    *,
    as_json: bool = False,
) -> bool:
    """Print the checks as they are made; whether one is a problem. `worker` is a command as one types it."""
    found = False
    for check in diagnose(shlex.split(worker) if worker else None, folder):
        print(_as_json(check) if as_json else as_text([check]), flush=True)
        found = found or check.status == "problem"
    return found
