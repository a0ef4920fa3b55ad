"""Limits on what a file may claim, checked before memory is allocated."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

from napari_strata.core.errors import ImageError

SETTING = "NAPARI_STRATA_LARGEST_EXPANSION"
"""Environment variable with the largest ratio of pixels to stored bytes."""

EXPANSION = 20_000
"""Largest ratio without the setting. Constant labels reach 1,000 by zlib and about
8,000 by zstd."""

FREE_BYTES = 64 * 2**20
"""Images with no more bytes of pixels are not checked."""


def check_expansion(path: Path, pixels: int, stored: int, *, limit: int = 0) -> None:
    """Refuse a file that claims far more bytes of pixels than it stores.

    Parameters
    ----------
    pixels, stored
        Bytes of the pixels, and bytes of the file that they are decoded from.
    limit
        Largest ratio that the format can reach; 0 for that of the setting.

    Raises
    ------
    ImageError
        The message names the setting.
    """
    limit = int(os.environ.get(SETTING, limit or EXPANSION))
    if pixels > max(FREE_BYTES, limit * stored):
        raise ImageError(
            f"{path}: claims {_size(pixels)} of pixels in {_size(stored)}, more than"
            f" {limit:,} times as much; the file is damaged, or needs a higher limit"
            f" (the environment variable {SETTING})."
        )


def check_memory(path: Path, needed: int, what: str) -> None:
    """Refuse what does not fit into the free memory. Raises `ImageError`."""
    if needed <= FREE_BYTES:
        return
    free = psutil.virtual_memory().available
    if needed > free:
        raise ImageError(
            f"{path}: {what} takes {_size(needed)}, and {_size(free)} of memory are"
            " free; the file is damaged, or needs a machine with more memory."
        )


def _size(count: int) -> str:
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count} bytes"
