"""Pixels that lie in a file one after another, plain or compressed as a whole.

Plain pixels are memory-mapped. Compressed ones are read whole, on first use.
"""

from __future__ import annotations

import bz2
import gzip
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from napari_strata.core.errors import ImageError
from napari_strata.core.image import Array, ArrayLike
from napari_strata.io.budget import check_expansion, check_memory
from napari_strata.io.lazy import FileArray, LazyArray, Opener

_DEFLATE = 1100
"""Largest ratio of pixels to bytes that gzip reaches."""

_DECOMPRESSORS: dict[str, Any] = {"gzip": gzip.open, "bzip2": bz2.open}


@dataclass(frozen=True)
class MappedOpener:
    """Picklable function that memory-maps contiguous pixels.

    It is for pixels whose byte order or alignment torch does not accept.
    """

    path: str
    dtype: str
    offset: int
    shape: tuple[int, ...]

    def __call__(self) -> tuple[ArrayLike, Callable[[], None]]:
        mapped = np.memmap(self.path, self.dtype, "r", self.offset, self.shape)
        return mapped, lambda: None


@dataclass(frozen=True)
class CompressedOpener:
    """Picklable function that reads pixels which are compressed as one stream.

    Parameters
    ----------
    compression
        "gzip" or "bzip2".
    start
        Byte of the file at which the stream starts.
    skip
        Decompressed bytes before the pixels.
    """

    path: str
    compression: str
    start: int
    skip: int
    dtype: str
    shape: tuple[int, ...]

    def __call__(self) -> tuple[ArrayLike, Callable[[], None]]:
        needed = np.dtype(self.dtype).itemsize * prod(self.shape)
        check_memory(Path(self.path), needed, "its image")
        with open(self.path, "rb") as file:
            file.seek(self.start)
            with _DECOMPRESSORS[self.compression](file) as stream:
                stream.read(self.skip)
                content = stream.read(needed)
        if len(content) < needed:
            raise ImageError(
                f"{self.path}: claims {needed} bytes of pixels and holds"
                f" {len(content)}; the file is truncated or damaged: copy it again."
            )
        array = np.frombuffer(content, self.dtype).reshape(self.shape)
        return array, lambda: None


class ScaledArray(LazyArray):
    """Lazy array of stored values that are multiplied by a slope, plus an intercept."""

    def __init__(self, base: ArrayLike, slope: float, intercept: float) -> None:
        small = np.dtype(base.dtype).itemsize <= 2
        super().__init__(base.shape, np.float32 if small else np.float64)
        self.base, self.slope, self.intercept = base, slope, intercept

    def _fetch(self, region: tuple[slice, ...]) -> ArrayLike:
        stored = np.asarray(self.base[region]).astype(np.float64)
        return stored * self.slope + self.intercept


def plain_pixels(
    path: Path, dtype: Any, shape: Sequence[int], *, offset: int, lazy_above: int
) -> ArrayLike:
    """Map the pixels of a file, or read them if they have few bytes.

    Parameters
    ----------
    dtype
        dtype in the file; the result has the native byte order.
    offset
        Byte of the file at which the pixels start.

    Raises
    ------
    ImageError
        When the file has fewer bytes, or the dtype is not one of grey values.
    """
    stored, native = _dtypes(path, dtype)
    needed = stored.itemsize * prod(shape)
    size = path.stat().st_size
    if offset < 0 or offset + needed > size:
        raise ImageError(
            f"{path}: claims {needed} bytes of pixels from byte {offset}, and the file"
            f" has {size} bytes; it is truncated or damaged: copy it again."
        )
    opener = MappedOpener(str(path), stored.str, offset, tuple(shape))
    if needed > lazy_above and stored == native and offset % stored.itemsize == 0:
        return opener()[0]
    return _read(opener, shape, native, lazy_above)


def compressed_pixels(
    path: Path,
    dtype: Any,
    shape: Sequence[int],
    *,
    compression: str = "gzip",
    start: int = 0,
    skip: int = 0,
    lazy_above: int,
) -> ArrayLike:
    """Read pixels that are compressed as one stream; see `CompressedOpener`.

    Raises
    ------
    ImageError
        As `plain_pixels`.
    """
    stored, native = _dtypes(path, dtype)
    check_expansion(
        path,
        stored.itemsize * prod(shape),
        path.stat().st_size,
        limit=_DEFLATE if compression == "gzip" else 0,
    )
    opener = CompressedOpener(
        str(path), compression, start, skip, stored.str, tuple(shape)
    )
    return _read(opener, shape, native, lazy_above)


def _read(
    opener: Opener, shape: Sequence[int], dtype: np.dtype[Any], lazy_above: int
) -> ArrayLike:
    array = FileArray(opener, shape, shape=shape, dtype=dtype)
    if array.nbytes > lazy_above:
        return array
    pixels: Array = np.array(array)
    return pixels


def _dtypes(path: Path, dtype: Any) -> tuple[np.dtype[Any], np.dtype[Any]]:
    """Return a dtype as it is stored and in the native byte order."""
    stored = np.dtype(dtype)
    if stored.kind not in "uifb":
        raise ImageError(
            f"{path}: found pixels of dtype {stored}; integers, floats and bool can be"
            " read: save one number for each pixel, or the channels as a dimension."
        )
    return stored, stored.newbyteorder("=")
