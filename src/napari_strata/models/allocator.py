"""Keep freed memory in the process while networks compute on a CPU.

glibc gives large blocks back to the system as soon as they are free and asks for new
ones at the next layer, whose pages the system must clear first: some 100,000 page
faults a batch (measured; docs/performance.md). Inside `kept_pages` it keeps them. Linux
with glibc only; elsewhere, and with NAPARI_STRATA_KEEP_PAGES=0, nothing changes.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

SWITCH = "NAPARI_STRATA_KEEP_PAGES"

# The numbers of <malloc.h>.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_NEVER = 2**31 - 1

# The values that glibc's own adjustment ends at in a program with large blocks. The
# adjustment is off once anything was set.
_AFTERWARDS = {
    _MMAP_MAX: 65536,
    _MMAP_THRESHOLD: 32 * 2**20,
    _TRIM_THRESHOLD: 64 * 2**20,
}

_lock = threading.Lock()
_inside = 0


@contextmanager
def kept_pages(device: str = "cpu") -> Iterator[bool]:
    """Keep free memory in this process inside the block; blocks may be nested.

    Afterwards it goes back to the system.

    Parameters
    ----------
    device
        kind of the device that computes; on a GPU ("cuda", "mps") the memory is not
        glibc's and nothing is done.

    Yields
    ------
    true when memory is kept.
    """
    library = None
    if device == "cpu" and os.environ.get(SWITCH, "1") != "0":
        library = _glibc()
    if library is None:
        yield False
        return
    _enter(library)
    try:
        yield True
    finally:
        _leave(library)


def _enter(library: Any) -> None:
    global _inside
    with _lock:
        _inside += 1
        if _inside == 1:
            library.mallopt(_MMAP_MAX, 0)
            library.mallopt(_TRIM_THRESHOLD, _NEVER)


def _leave(library: Any) -> None:
    global _inside
    with _lock:
        _inside -= 1
        if _inside == 0:
            for option, value in _AFTERWARDS.items():
                library.mallopt(option, value)
            library.malloc_trim(0)


@cache
def _glibc() -> Any:
    """The C library if it is glibc, else None."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version, library.mallopt, library.malloc_trim  # noqa: B018 - musl lacks them
    except (OSError, AttributeError):
        return None
    return library
