"""A worker that gets SIGKILL in a phase of a job, once: ``dying.py PHASE MARKER``.

The marker is a file; if it exists, nobody is killed.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

phase, marker = sys.argv[1], Path(sys.argv[2])
sys.argv = sys.argv[:1]  # the worker knows no such words

PHASES = {
    "plan": ("napari_strata.training.loop", "plan_new", 1),
    "start": ("napari_strata.core.runs", "RunFolder.create", 1),
    "training": ("napari_strata.training.learner", "Learner.step", 6),
    "validation": ("napari_strata.training.loop", "validate", 2),
    "model": ("napari_strata.models.model", "serialize", 1),
    "measurement": ("napari_strata.training.calibration", "write_report", 1),
    "picture": ("napari_strata.training.checkpoint", "draw_example", 2),
    "checkpoint": ("torch", "save", 2),
    "predicting": ("napari_strata.inference.task", "find_invalid", 1),
    "plane": ("napari_strata.inference.ledger", "_write_all", 4),
    "writing": ("napari_strata.io.tiff_write", "_ome", 1),
}
"""Function that is called in each phase, and at which call the process ends."""


def kill_in(module: Any, name: str, at: int) -> None:
    """Replace a function by one that ends the process at its n-th call."""
    owner, _, function = name.rpartition(".")
    holder = getattr(module, owner) if owner else module
    original: Callable[..., Any] = getattr(holder, function)
    calls = 0

    def call(*arguments: Any, **keywords: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at:
            if phase == "checkpoint":  # half of it is written
                arguments[1].write(b"half a checkpoint")
                arguments[1].flush()
            marker.write_text("killed")
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **keywords)

    setattr(holder, function, call)


if not marker.exists():
    path, name, at = PHASES[phase]
    kill_in(import_module(path), name, at)
runpy.run_module("napari_strata.worker", run_name="__main__")
