"""Checks of the installation: libraries, GPU, display, worker and disk.

The docks run ``python -m napari_strata.doctor --json`` in a process of its own.
Importing this package does not import torch: the checks that need it import it by name.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from napari_strata.core.command import split_command
from napari_strata.doctor import compute, installed, processes
from napari_strata.doctor.check import Check, as_text, from_json, last_line
from napari_strata.doctor.check import as_json as _as_json

__all__ = ["Check", "as_text", "diagnose", "from_json", "report"]


def diagnose(
    command: Sequence[str] | None = None, folder: str | Path | None = None
) -> Iterator[Check]:
    """Run all checks, the quick ones first; one that fails is a problem, not an error.

    Parameters
    ----------
    command
        Command that starts the worker; this Python's by default.
    folder
        Folder of the runs; ``~/napari-strata`` by default.
    """
    runs = Path(folder).expanduser() if folder else Path.home() / "napari-strata"
    checks: dict[str, Callable[[], Check]] = {
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
    for name, check in checks.items():
        try:
            yield check()
        except Exception as error:  # the other checks are still of use
            reason = f"{type(error).__name__}: {last_line(str(error))}"
            yield Check(
                name,
                "problem",
                f"this check failed: {reason}",
                "Copy all of this into a bug report.",
            )


def report(
    worker: str | None = None,
    folder: str | Path | None = None,
    *,
    as_json: bool = False,
) -> bool:
    """Print each check at once; return True if one is a problem.

    Parameters
    ----------
    worker
        Command that starts the worker, as typed in a shell.
    """
    has_problem = False
    for check in diagnose(split_command(worker) if worker else None, folder):
        print(_as_json(check) if as_json else as_text([check]), flush=True)
        has_problem = has_problem or check.status == "problem"
    return has_problem
