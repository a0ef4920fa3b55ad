"""Checks of versions, computer, settings and disks."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import psutil

from napari_strata.doctor.check import Check, find_version, format_versions

ENGINE = (
    "torch",
    "torchvision",
    "segmentation-models-pytorch",
    "timm",
    "numpy",
    "zarr",
    "zarrs",
    "tifffile",
    "imagecodecs",
)
VIEWER = ("napari", "npe2", "magicgui", "superqt", "qtpy", "vispy")
BINDINGS = ("PyQt6", "PySide6", "PyQt5")
LEAKING_PYSIDE = "6.12.0"
"""Each call of this version loses a reference to None, and Python before 3.12 aborts
when there is none left; measured with 3.11.7.
"""
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
"""Bytes of free disk below which there is a note; below a tenth, a problem."""


def strata() -> Check:
    """Report the version of napari-strata and of Python."""
    return Check(
        "Strata",
        "ok",
        f"napari-strata {version('napari-strata')}, Python "
        f"{platform.python_version()}, {sys.executable}",
    )


def libraries() -> Check:
    """Check the libraries of the engine."""
    versions = {name: find_version(name) for name in ENGINE}
    text = format_versions(versions)
    missing = [name for name, version in versions.items() if not version]
    if missing:
        cure = f"Install what is missing: pip install {' '.join(missing)}"
        return Check("Libraries", "problem", text, cure)
    return Check("Libraries", "ok", text)


def viewer() -> Check:
    """Check napari and the Qt binding, if they are installed."""
    versions = {name: find_version(name) for name in VIEWER}
    text = format_versions(versions)
    cure = 'pip install "napari-strata[all]"'
    if not versions["napari"]:
        return Check(
            "Viewer",
            "note",
            "napari is not installed; training and prediction work without it",
            cure,
        )
    missing = [name for name, version in versions.items() if not version]
    if missing:
        return Check("Viewer", "problem", text, f"{' and '.join(missing)}: {cure}")
    bindings = {}
    for name in BINDINGS:
        if version := find_version(name):
            bindings[name] = version
    if not bindings:
        return Check(
            "Viewer", "problem", f"{text}; no Qt binding", f"Install PyQt6: {cure}"
        )
    text = format_versions(versions | bindings)
    if bindings.get("PySide6") == LEAKING_PYSIDE and sys.version_info < (3, 12):
        cure = f'pip install "PySide6!={LEAKING_PYSIDE}", or use Python 3.12 or newer'
        return Check("Viewer", "problem", f"{text}; napari will crash", cure)
    return Check("Viewer", "ok", text)


def computer() -> Check:
    """Report system, cores and memory."""
    cores = os.cpu_count()
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    size = psutil.virtual_memory().total
    memory = f", {size / 1e9:.0f} GB memory"
    with suppress(OSError, ValueError):  # a container that may use less
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        if limit < size:
            memory += f" (limited to {limit / 1e9:.0f} GB)"
    return Check(
        "Computer",
        "ok",
        f"{platform.platform()}, {platform.machine()}, {cores} cores{memory}",
    )


def variables() -> Check:
    """Report environment variables that change the other checks."""
    settings = []
    for name in VARIABLES:
        if name in os.environ:
            settings.append(f"{name}={os.environ[name]!r}")
    text = ", ".join(settings) or "no environment variables that matter"
    return Check("Settings", "ok", text)


def folder(name: str, path: Path) -> Check:
    """Check that files can be written, and the free space; the folder is not made."""
    existing = path.absolute()
    while not existing.exists():
        existing = existing.parent
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        return Check(
            name,
            "problem",
            f"{path}: cannot be written to ({error.strerror or error})",
            "Choose another folder, or ask for the right to write there.",
        )
    free = shutil.disk_usage(existing).free
    text = f"{path}, {free / 1e9:.1f} GB free"
    if free < SCARCE:
        cure = "Delete old runs, or choose a folder on another disk."
        return Check(name, "problem" if free < SCARCE / 10 else "note", text, cure)
    return Check(name, "ok", text)
