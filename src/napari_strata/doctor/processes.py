"""What must start: a window with OpenGL, and the worker. Both are tried in processes of their own, with a limit."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress

from napari_strata.doctor.check import Check, find_version, last_line, listed
from napari_strata.doctor.installed import BINDINGS
from napari_strata.worker.replies import PROTOCOL, Ready, decode

PATIENCE = 60.0
"""Seconds that a worker or a window may take to start."""

WINDOW = """
import sys
from vispy import app
from vispy.gloo import gl
app.use_app(sys.argv[1])
canvas = app.Canvas(show=False)
canvas.set_current()
print(*(gl.glGetParameter(name) for name in (gl.GL_VENDOR, gl.GL_RENDERER, gl.GL_VERSION)), sep=" | ")
"""
SOFTWARE = ("llvmpipe", "softpipe", "swrast", "software")


def opengl() -> Check:
    """Who draws: a hidden window as napari's, in a process of its own."""
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
        cure = "Nothing, if this is a server: the command line works. For napari, log in to a desktop."
        return Check("OpenGL", "note", "no display, so napari cannot open here", cure)
    words = [sys.executable, "-c", WINDOW, binding.lower()]
    cure = "Update the graphics driver. On Debian or Ubuntu: sudo apt install libgl1 libegl1 libxcb-cursor0"
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
    except subprocess.TimeoutExpired:
        return Check("OpenGL", "problem", f"no window within {PATIENCE:g} s", cure)
    if done.returncode:
        return Check(
            "OpenGL",
            "problem",
            f"no window can be made: {last_line(done.stderr)}",
            cure,
        )
    text = last_line(done.stdout)
    if any(word in text.lower() for word in SOFTWARE):
        return Check(
            "OpenGL",
            "note",
            f"{text}: pictures are drawn by the CPU",
            "Install the graphics card's driver.",
        )
    return Check("OpenGL", "ok", text)


def worker(command: Sequence[str]) -> Check:
    """Start a worker, wait for its first word, and let it go."""
    start, shown = time.perf_counter(), shlex.join(command)
    cure = "Try the command in a terminal; it is set in napari's Preferences, Plugins, Strata (empty: this Python)."
    with tempfile.TemporaryFile("w+") as complaints:
        try:
            pipe = subprocess.PIPE
            process = subprocess.Popen(
                list(command), stdin=pipe, stdout=pipe, stderr=complaints, text=True
            )
        except OSError as error:
            return Check(
                "Worker",
                "problem",
                f"{shown}: cannot be started ({error.strerror or error})",
                cure,
            )
        timer = threading.Timer(PATIENCE, process.kill)
        timer.start()
        try:
            ready = next(filter(None, map(_as_ready, process.stdout or ())), None)
            seconds = time.perf_counter() - start
        finally:
            timer.cancel()
            _end(process)
        complaints.seek(0)
        said = last_line(complaints.read())
    if ready is None:
        what = (
            f"said nothing for {PATIENCE:g} s"
            if seconds >= PATIENCE
            else f"ended with status {process.returncode}"
        )
        return Check(
            "Worker",
            "problem",
            f"{shown}: {what}{f', after: {said}' if said else ''}",
            cure,
        )
    if ready.protocol != PROTOCOL:
        cure = "Install the same version of napari-strata there and here."
        return Check(
            "Worker", "problem", f"{shown}: is another version of napari-strata", cure
        )
    devices = ", ".join(ready.devices.values())
    return Check(
        "Worker",
        "ok",
        f"{shown}: ready in {seconds:.1f} s on {ready.host}, {devices}, {listed(ready.versions)}",
    )


def _as_ready(line: str) -> Ready | None:
    try:
        _, reply = decode(line)
    except ValueError:  # the greeting of a login shell
        return None
    return reply if isinstance(reply, Ready) else None


def _end(process: subprocess.Popen[str]) -> None:
    """A worker ends when its stdin ends; one that does not is killed."""
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
