"""What is installed, and where it runs: versions, computer, settings, disks."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from napari_strata.doctor.check import Check, find_version, listed

ENGINE = (
    "torch",
    "torchvision",
    "segmentation-models-pytorch",
    "timm",
    "numpy",
    "zarr",
    "tifffile",
    "imagecodecs",
)
VIEWER = ("napari", "npe2", "magicgui", "superqt", "qtpy", "vispy")
BINDINGS = ("PyQt6", "PySide6", "PyQt5")
VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "DISPLAY",
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "LIBGL_ALWAYS_SOFTWARE",
    "OMP_NUM_THREADS",
    "QT_API",
    "QT_QPA_PLATFORM",
    "WAYLAND_DISPLAY",
)
SCARCE = 10e9
"""Bytes; less free disk than this is worth a note, a tenth of it is a problem."""


def strata() -> Check:
    """Our version and the Python it runs in."""
    return Check(
        "Strata",
        "ok",
        f"napari-strata {version('napari-strata')}, Python {platform.python_version()}, {sys.executable}",
    )


def libraries() -> Check:
    """Versions of what the engine needs."""
    found = {name: find_version(name) for name in ENGINE}
    text = listed(found)
    if missing := [name for name, number in found.items() if not number]:
        return Check(
            "Libraries",
            "problem",
            text,
            f"Install what is missing: pip install {' '.join(missing)}",
        )
    return Check("Libraries", "ok", text)


def viewer() -> Check:
    """Versions of napari and the Qt binding, where there are any."""
    found = {name: find_version(name) for name in VIEWER}
    bindings = {name: number for name in BINDINGS if (number := find_version(name))}
    cure = 'pip install "napari-strata[all]"'
    if not found["napari"]:
        return Check(
            "Viewer",
            "note",
            "napari is not installed; training and prediction work without it",
            cure,
        )
    if missing := [name for name, number in found.items() if not number]:
        return Check(
            "Viewer", "problem", listed(found), f"{' and '.join(missing)}: {cure}"
        )
    if not bindings:
        return Check(
            "Viewer",
            "problem",
            f"{listed(found)}; no Qt binding",
            f"Install PyQt6: {cure}",
        )
    return Check("Viewer", "ok", listed(found | bindings))


def computer() -> Check:
    """System, cores and memory."""
    cores = (
        len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count()
    )
    memory = ""
    if hasattr(os, "sysconf"):  # Windows has none
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        memory = f", {size / 1e9:.0f} GB memory"
        with suppress(OSError, ValueError):  # a container that may use less
            limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
            memory += f" (limited to {limit / 1e9:.0f} GB)" if limit < size else ""
    return Check(
        "Computer",
        "ok",
        f"{platform.platform()}, {platform.machine()}, {cores} cores{memory}",
    )


def variables() -> Check:
    """Environment variables that change what the others find."""
    found = [f"{name}={os.environ[name]!r}" for name in VARIABLES if name in os.environ]
    return Check(
        "Settings", "ok", ", ".join(found) or "no environment variables that matter"
    )


def folder(name: str, path: Path) -> Check:
    """Whether files can be written, and how much room there is. A folder that is not there yet is not made."""
    there = next(place for place in (path, *path.absolute().parents) if place.exists())
    free = shutil.disk_usage(there).free
    text = f"{path}, {free / 1e9:.1f} GB free"
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        found = f"{path}: cannot be written to ({error.strerror or error})"
        return Check(
            name,
            "problem",
            found,
            "Choose another folder, or ask for the right to write there.",
        )
    if free < SCARCE:
        cure = "Delete old runs, or choose a folder on another disk."
        return Check(name, "problem" if free < SCARCE / 10 else "note", text, cure)
    return Check(name, "ok", text)
