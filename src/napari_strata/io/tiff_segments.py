"""Reading of regions of a TIFF series, which decodes only the necessary segments.

tifffile's zarr stores do the same, but each version of tifffile needs certain versions
of zarr. This module uses what tifffile documents for single segments:
`TiffPage.dataoffsets`, `databytecounts` and `decode`.
"""

from __future__ import annotations

import itertools
import math
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from tifffile import TiffPageSeries

from napari_strata.core.image import Array
from napari_strata.io.lazy import LazyArray

_THREADED_SEGMENTS = 4
"""Pages with at least this number of segments are decoded in several threads."""


class SegmentedSeries(LazyArray):
    """Array of the pages of an open TIFF series.

    Parameters
    ----------
    series
        Series of an open `TiffFile`; the file stays open until `close`.

    Raises
    ------
    ValueError
        When the last dimensions of the series are not those of its pages.
    """

    def __init__(self, series: TiffPageSeries) -> None:
        super().__init__(series.shape, series.dtype)
        self._series = series
        self._lock = threading.Lock()
        self._reopened: list[Any] = []
        keyframe = series.keyframe
        self._grid = _SegmentGrid(keyframe)
        long_axes = [i for i, n in enumerate(self.shape) if n > 1]
        self._page_dims = [d for d, n in enumerate(keyframe.shaped) if n > 1]
        leading = len(long_axes) - len(self._page_dims)
        self._page_axes = long_axes[max(leading, 0) :]
        page_lengths = [keyframe.shaped[d] for d in self._page_dims]
        if [self.shape[i] for i in self._page_axes] != page_lengths:
            raise ValueError(
                f"a series of shape {self.shape} with pages of shape {keyframe.shape}"
            )
        self._leading_axes = long_axes[:leading]

    def close(self) -> None:
        """Close the other files of the series that were opened for reading."""
        for handle in self._reopened:
            handle.close()

    def _fetch(self, region: tuple[slice, ...]) -> Array:
        box = [slice(0, 1)] * 5
        for dimension, axis in zip(self._page_dims, self._page_axes, strict=True):
            box[dimension] = region[axis]
        leading_shape = [self.shape[i] for i in self._leading_axes]
        leading = [
            range(region[i].start, region[i].stop, region[i].step)
            for i in self._leading_axes
        ]
        numbers = []
        for index in itertools.product(*leading):
            numbers.append(_flat_index(index, leading_shape))
        lengths = [len(range(s.start, s.stop, s.step or 1)) for s in box]
        result = np.empty((len(numbers), *lengths), self.dtype)
        steps = tuple(slice(None, None, s.step) for s in box)
        for k, number in enumerate(numbers):
            result[k] = self._read_page(number, box)[steps]
        if self._series.transform is not None:
            return np.asarray(self._series.transform(result))
        return result

    def _read_page(self, number: int, box: list[slice]) -> Array:
        """Read the box of one page, without the steps of its slices."""
        lengths = [s.stop - s.start for s in box]
        with self._lock:
            page = self._series[number]
            if page is None:
                return np.full(lengths, self._series.keyframe.nodata, self.dtype)
            keyframe = page.keyframe
            decode = keyframe.decode
            indices = list(self._grid.indices(box))
            encoded = [self._read_segment(page, index) for index in indices]
        options: dict[str, Any] = {}
        if page.jpegtables is not None:
            options["jpegtables"] = page.jpegtables
        if keyframe.jpegheader is not None:
            options["jpegheader"] = keyframe.jpegheader
        result = np.full(lengths, keyframe.nodata, self.dtype)

        def paste(index: int, data: bytes | None) -> None:
            segment, position, _ = decode(data, index, **options)
            if segment is not None:
                _paste(result, box, segment, position)

        if len(indices) < _THREADED_SEGMENTS:
            for index, data in zip(indices, encoded, strict=True):
                paste(index, data)
        else:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                list(pool.map(paste, indices, encoded))
        return result

    def _read_segment(self, page: Any, index: int) -> bytes | None:
        """Read the bytes of one strip or tile; None where the file has none."""
        if index >= len(page.dataoffsets):
            return None
        offset, length = page.dataoffsets[index], page.databytecounts[index]
        if not offset or not length:
            return None
        handle = page.parent.filehandle
        if handle.closed:  # another file of an OME set
            handle.open()
            self._reopened.append(handle)
        handle.seek(offset)
        return bytes(handle.read(length))


class _SegmentGrid:
    """Positions of the strips or tiles of a page.

    The dimensions are those of `TiffPage.shaped`: separate samples, depth, length,
    width, and contiguous samples.
    """

    def __init__(self, page: Any) -> None:
        if page.is_tiled:
            self.sides = (1, page.tiledepth, page.tilelength, page.tilewidth)
        else:
            self.sides = (1, 1, page.rowsperstrip, page.imagewidth)
        lengths = zip(page.shaped, self.sides, strict=False)
        self.counts = [math.ceil(length / side) for length, side in lengths]

    def indices(self, box: list[slice]) -> Iterator[int]:
        """Iterate over the numbers of the segments that a box touches."""
        touched = [
            range(part.start // side, (part.stop - 1) // side + 1)
            for part, side in zip(box, self.sides, strict=False)
        ]
        for index in itertools.product(*touched):
            yield _flat_index(index, self.counts)


def _flat_index(index: tuple[int, ...], shape: list[int]) -> int:
    flat = 0
    for position, length in zip(index, shape, strict=True):
        flat = flat * length + position
    return flat


def _paste(
    result: Array, box: list[slice], segment: Array, position: tuple[int, ...]
) -> None:
    """Copy the part of a segment inside a box to the array of the box."""
    source, target = [], []
    for part, start, length in zip(box[1:], position[1:], segment.shape, strict=True):
        first = max(part.start, start)
        last = min(part.stop, start + length)
        source.append(slice(first - start, last - start))
        target.append(slice(first - part.start, last - part.start))
    sample = position[0] - box[0].start
    result[(sample, *target)] = segment[tuple(source)]
