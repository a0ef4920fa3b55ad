"""Arrays that are read from a file region by region.

The file is opened on first use, so that the arrays can be pickled.
"""

from __future__ import annotations

import re
import threading
import weakref
from collections.abc import Callable, Sequence
from math import prod
from typing import Any, Protocol

import numpy as np

from napari_strata.core.classes import whole_numbers
from napari_strata.core.errors import ImageError, LabelError, StrataError
from napari_strata.core.image import Array, ArrayLike

LAZY_BYTES = 64 * 2**20
"""Images with more bytes of pixels than this are read lazily."""


class Opener(Protocol):
    """Picklable callable that opens a file.

    It returns the array and a function that closes the file.
    """

    @property
    def path(self) -> str: ...
    def __call__(self) -> tuple[ArrayLike, Callable[[], None]]: ...


class LazyArray:
    """Base class of arrays that are indexed by integers, slices and ``...``.

    Slices have positive steps. Subclasses implement `_fetch`.
    """

    def __init__(self, shape: Sequence[int], dtype: Any) -> None:
        self.shape = tuple(int(n) for n in shape)
        self.dtype = np.dtype(dtype)
        self.ndim = len(self.shape)
        self.size = prod(self.shape)
        self.nbytes = self.size * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        whole = self[...]
        return whole if dtype is None else whole.astype(dtype, copy=False)

    def __getitem__(self, key: Any, /) -> Array:
        parts = full_key(key, self.ndim)
        region = tuple(
            _slice(part, n) for part, n in zip(parts, self.shape, strict=True)
        )
        lengths = tuple(len(range(s.start, s.stop, s.step)) for s in region)
        pixels = self._fetch(region) if all(lengths) else np.empty(lengths, self.dtype)
        array = np.asarray(pixels, self.dtype).reshape(lengths)
        return array[
            tuple(
                0 if isinstance(part, (int, np.integer)) else slice(None)
                for part in parts
            )
        ]

    def _fetch(self, region: tuple[slice, ...]) -> ArrayLike:
        """Return the pixels of a region in C order; axes of length 1 may be missing.

        The slices are within the shape and not empty.
        """
        raise NotImplementedError


class FileArray(LazyArray):
    """Array in one file.

    Parameters
    ----------
    opener
        Function that opens the stored array; called once per process.
    stored
        Shape of the stored array, or less, to leave out an alpha channel.
    shape
        `stored` with additional axes of length 1.
    dtype
        dtype of the pixels that are returned.
    """

    def __init__(
        self, opener: Opener, stored: Sequence[int], *, shape: Sequence[int], dtype: Any
    ) -> None:
        super().__init__(shape, dtype)
        self.opener = opener
        self.stored = tuple(stored)
        self._stored_axes = _matching_axes(self.shape, self.stored)
        self._lock = threading.Lock()
        self._open: ArrayLike | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return _file_array, (self.opener, self.stored, self.shape, self.dtype)

    def _fetch(self, region: tuple[slice, ...]) -> ArrayLike:
        with reading(self.opener.path):
            with self._lock:
                if self._open is None:
                    self._open, close = self.opener()
                    weakref.finalize(self, close)
            return np.asarray(self._open[tuple(region[i] for i in self._stored_axes)])


class JoinedArray(LazyArray):
    """Arrays of one shape along a new first axis."""

    def __init__(self, arrays: Sequence[LazyArray]) -> None:
        super().__init__((len(arrays), *arrays[0].shape), arrays[0].dtype)
        self.arrays = arrays

    def _fetch(self, region: tuple[slice, ...]) -> ArrayLike:
        picked, *rest = region
        return np.stack([array[tuple(rest)] for array in self.arrays[picked]])


class PickedArray(LazyArray):
    """Lazy array of some indices along one axis of another."""

    def __init__(self, base: LazyArray, axis: int, indices: Sequence[int]) -> None:
        shape = list(base.shape)
        shape[axis] = len(indices)
        super().__init__(shape, base.dtype)
        self.base, self.axis, self.indices = base, axis, indices

    def _fetch(self, region: tuple[slice, ...]) -> ArrayLike:
        parts = []
        for index in self.indices[region[self.axis]]:
            part = list(region)
            part[self.axis] = slice(index, index + 1)
            parts.append(self.base[tuple(part)])
        return np.concatenate(parts, axis=self.axis)


class PositionArray(LazyArray):
    """Lazy array at one index along some axes of another.

    Parameters
    ----------
    position
        Dimension of `base` and index, for each of these axes.
    shape
        Shape of the rest, with additional axes of length 1.
    """

    def __init__(
        self,
        base: ArrayLike,
        position: Sequence[tuple[int, int]],
        shape: Sequence[int],
    ) -> None:
        super().__init__(shape, base.dtype)
        self.base, self.position = base, dict(position)
        rest = [n for i, n in enumerate(base.shape) if i not in self.position]
        self._axes = _matching_axes(self.shape, tuple(rest))

    def _fetch(self, region: tuple[slice, ...]) -> ArrayLike:
        parts = iter(region[i] for i in self._axes)
        index: list[int | slice] = []
        for i in range(len(self.base.shape)):
            index.append(self.position[i] if i in self.position else next(parts))
        return np.asarray(self.base[tuple(index)])


def at_position(
    data: ArrayLike, position: Sequence[tuple[int, int]], shape: Sequence[int]
) -> ArrayLike:
    """Return an array at one index along some axes; see `PositionArray`."""
    array = PositionArray(data, position, shape)
    return array if isinstance(data, LazyArray | np.memmap) else array[...]


class CastArray(LazyArray):
    """Lazy array that is converted to another dtype."""

    def __init__(self, base: LazyArray, dtype: Any) -> None:
        super().__init__(base.shape, dtype)
        self.base = base

    def _fetch(self, region: tuple[slice, ...]) -> ArrayLike:
        return self.base[region].astype(self.dtype)


class WholeNumbers(LazyArray):
    """Lazy array of floats that are whole numbers, as int32.

    Each part is checked when it is read.
    """

    def __init__(self, base: LazyArray, path: str) -> None:
        super().__init__(base.shape, np.int32)
        self.base = base
        self.path = path

    def _fetch(self, region: tuple[slice, ...]) -> ArrayLike:
        try:
            return whole_numbers(self.base[region]).astype(self.dtype)
        except LabelError as error:
            raise LabelError(f"{self.path}: {error}") from None


class reading:  # noqa: N801 - a context manager, used like a function
    """Context manager that turns errors of a decoder into an `ImageError`."""

    def __init__(self, path: Any) -> None:
        self.path = path

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: Any
    ) -> None:
        if isinstance(error, StrataError) or not isinstance(error, Exception):
            return
        if isinstance(error, MemoryError):
            raise ImageError(
                f"{self.path}: claims more pixels than fit into memory; the file is"
                " damaged, or needs a machine with more memory."
            ) from error
        text = " ".join(str(error).split())[:160] or type(error).__name__
        reason = "the file is truncated or damaged: copy it again."
        if _NO_DECODER.search(text):
            reason = (
                "its compression is not supported here: save it again with another,"
                " such as zlib."
            )
        raise ImageError(
            f"{self.path}: the pixels cannot be read ({text}); {reason}"
        ) from error


_NO_DECODER = re.compile(r"COMPRESSION|imagecodecs|not implemented|not supported")
"""Words of tifffile and imagecodecs for a codec that they do not have."""


def full_key(key: Any, ndim: int) -> tuple[Any, ...]:
    """Return an index as one integer or slice per dimension, without ``...``."""
    parts = key if isinstance(key, tuple) else (key,)
    if any(part is Ellipsis for part in parts):
        position = next(i for i, part in enumerate(parts) if part is Ellipsis)
        parts = (
            *parts[:position],
            *[slice(None)] * (ndim - len(parts) + 1),
            *parts[position + 1 :],
        )
    if len(parts) > ndim:
        raise IndexError(f"too many indices: {len(parts)} for {ndim} dimensions")
    return (*parts, *[slice(None)] * (ndim - len(parts)))


def _slice(part: Any, length: int) -> slice:
    if isinstance(part, (int, np.integer)):
        index = int(part) + (length if part < 0 else 0)
        if not 0 <= index < length:
            raise IndexError(f"index {part} is out of bounds for length {length}")
        return slice(index, index + 1, 1)
    if not isinstance(part, slice):
        raise IndexError(
            f"found index {part!r}; images in files are indexed by integers and slices"
        )
    start, stop, step = part.indices(length)
    if step < 0:
        raise IndexError(
            "images in files are not read backwards; index the result instead"
        )
    return slice(start, max(start, stop), step)


def _matching_axes(shape: tuple[int, ...], stored: tuple[int, ...]) -> tuple[int, ...]:
    """Return the dimensions of `shape` that `stored` has; the others have length 1."""
    dimensions: list[int] = []
    for i, n in enumerate(shape):
        if len(dimensions) < len(stored) and n == stored[len(dimensions)]:
            dimensions.append(i)
        elif n != 1:
            raise ValueError(
                f"shape {shape} is not {stored} with axes of length 1 added"
            )
    if len(dimensions) != len(stored):
        raise ValueError(f"shape {shape} is not {stored} with axes of length 1 added")
    return tuple(dimensions)


def _file_array(
    opener: Opener, stored: tuple[int, ...], shape: tuple[int, ...], dtype: Any
) -> FileArray:
    return FileArray(opener, stored, shape=shape, dtype=dtype)
