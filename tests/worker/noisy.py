"""A worker among libraries that print on stdout all the time: from Python, from C and from a child process.

With the word "quietly" the noise is Python's alone. A job for the path BUG meets a bug of ours.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import subprocess
import sys
import threading
import time
from typing import Any

from napari_strata.worker import transport

QUIETLY = "quietly" in sys.argv
sys.argv = sys.argv[:1]  # the worker knows no such word


def make_noise() -> None:
    library = ctypes.CDLL(None)
    while True:
        print("noise of print")
        if not QUIETLY:
            os.write(1, b"noise of write\n")
            library.puts(b"noise of C")
            library.fflush(None)
            subprocess.run(["echo", "noise of a child"], check=True)
        time.sleep(0.05)


def take_over_pipes(original: Any = transport.take_over_pipes) -> tuple[int, int]:
    """Call the original and start to print."""
    taken: tuple[int, int] = original()
    threading.Thread(target=make_noise, daemon=True).start()
    from napari_strata.worker import jobs

    jobs.read_images = _read_nothing
    return taken


def _read_nothing(path: object, **_: Any) -> Any:
    return [path] * (1 // 0)


transport.take_over_pipes = take_over_pipes
runpy.run_module("napari_strata.worker", run_name="__main__")
