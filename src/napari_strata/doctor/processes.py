"""Checks of OpenGL and the worker, each in a process of its own with a time-out."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress

from napari_strata.core.command import join_command
from napari_strata.doctor.check import Check, find_version, format_versions, last_line
from napari_strata.doctor.installed import BINDINGS
from napari_strata.worker.protocol import PROTOCOL, Ready, decode_event

TIMEOUT = 60.0
"""Seconds in which a worker or a window must start."""

WINDOW = """
import sys
from vispy import app
from vispy.gloo import gl
app.use_app(sys.argv[1])
canvas = app.Canvas(show=False)
canvas.set_current()
names = gl.GL_VENDOR, gl.GL_RENDERER, gl.GL_VERSION
print(*(gl.glGetParameter(name) for name in names), sep=" | ")
"""
SOFTWARE = ("llvmpipe", "softpipe", "swrast", "software")


def opengl() -> Check:
    """Open a hidden window as napari does, and report who draws it."""
    binding = next((name for name in BINDINGS if find_version(name)), None)
    if binding is None or not find_version("vispy"):
        return Check(
            "OpenGL",
            "note",
            "not looked at: napari is not installed",
            'pip install "napari-strata[all]"',
        )
    if sys.platform.startswith("linux") and not (
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    ):
        cure = (
            "Nothing, if this is a server: the command line works. For napari, log in "
            "to a desktop."
        )
        return Check("OpenGL", "note", "no display, so napari cannot open here", cure)
    command = [sys.executable, "-c", WINDOW, binding.lower()]
    cure = (
        "Update the graphics driver. On Debian or Ubuntu: sudo apt install libgl1 "
        "libegl1 libxcb-cursor0"
    )
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        return Check("OpenGL", "problem", f"no window within {TIMEOUT:g} s", cure)
    if done.returncode:
        return Check(
            "OpenGL",
            "problem",
            f"no window can be made: {last_line(done.stderr)}",
            cure,
        )
    text = last_line(done.stdout)
    if any(name in text.lower() for name in SOFTWARE):
        return Check(
            "OpenGL",
            "note",
            f"{text}: pictures are drawn by the CPU",
            "Install the graphics card's driver.",
        )
    return Check("OpenGL", "ok", text)


def worker(command: Sequence[str]) -> Check:
    """Start a worker, wait for its first message, and stop it."""
    start, line = time.perf_counter(), join_command(command)
    cure = (
        "Try the command in a terminal; it is set in napari's Preferences, Plugins, "
        "Strata (empty: this Python)."
    )
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as stderr:
        try:
            process = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        except OSError as error:
            return Check(
                "Worker",
                "problem",
                f"{line}: cannot be started ({error.strerror or error})",
                cure,
            )
        timer = threading.Timer(TIMEOUT, process.kill)
        timer.start()
        try:
            ready = _wait_until_ready(process)
            seconds = time.perf_counter() - start
        finally:
            timer.cancel()
            _stop(process)
        stderr.seek(0)
        error_line = last_line(stderr.read())
    if ready is None:
        text = f"{line}: ended with status {process.returncode}"
        if seconds >= TIMEOUT:
            text = f"{line}: said nothing for {TIMEOUT:g} s"
        if error_line:
            text += f", after: {error_line}"
        return Check("Worker", "problem", text, cure)
    if ready.protocol != PROTOCOL:
        return Check(
            "Worker",
            "problem",
            f"{line}: is another version of napari-strata",
            "Install the same version of napari-strata there and here.",
        )
    devices = ", ".join(ready.devices.values())
    return Check(
        "Worker",
        "ok",
        f"{line}: ready in {seconds:.1f} s on {ready.host}, {devices}, "
        f"{format_versions(ready.versions)}",
    )


def _wait_until_ready(process: subprocess.Popen[str]) -> Ready | None:
    """Return the first message of a worker; None if it ends without one."""
    for line in process.stdout or ():
        ready = _as_ready(line)
        if ready is not None:
            return ready
    return None


def _as_ready(line: str) -> Ready | None:
    try:
        _, event = decode_event(line)
    except ValueError:  # such as the greeting of a login shell
        return None
    return event if isinstance(event, Ready) else None


def _stop(process: subprocess.Popen[str]) -> None:
    """Close the stdin of a worker, which ends it; kill it if it does not end."""
    with suppress(OSError):
        assert process.stdin is not None
        process.stdin.close()
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()
