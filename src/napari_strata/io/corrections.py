"""Corrections that a file asks for: orientation, and NaN for pixels without data."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from napari_strata.core import axes as _axes
from napari_strata.core.image import Array, ArrayLike, Image
from napari_strata.io.lazy import LazyArray


class NodataArray(LazyArray):
    """Array with NaN for the pixels that have no data.

    Integers become floats that hold all their values. A pixel of integers has no data
    if all its channels have the value `nodata`, as in black borders of colour images.

    Parameters
    ----------
    base
        Array of the stored values.
    nodata
        Value of pixels without data.
    channels
        Dimension of the channels, or None.
    """

    def __init__(self, base: ArrayLike, nodata: float, channels: int | None) -> None:
        stored = np.dtype(base.dtype)
        dtype = stored
        if stored.kind != "f":
            small = stored.itemsize <= 2
            # `core.normalization.fixed` needs the dtype of the file.
            dtype = np.dtype(
                np.float32 if small else np.float64, metadata={"stored": str(stored)}
            )
        super().__init__(base.shape, dtype)
        self.base = base
        self.nodata = nodata
        self.channels = channels if stored.kind != "f" else None

    def _fetch(self, region: tuple[slice, ...]) -> Array:
        if self.channels is None:
            values = np.asarray(self.base[region])
            return np.where(
                values == self._stored_nodata, self.dtype.type(np.nan), values
            )
        whole = list(region)
        whole[self.channels] = slice(None)
        values = np.asarray(self.base[tuple(whole)])
        empty = (values == self._stored_nodata).all(axis=self.channels, keepdims=True)
        picked = [slice(None)] * self.ndim
        picked[self.channels] = region[self.channels]
        values = values[tuple(picked)]
        return np.where(empty, self.dtype.type(np.nan), values)

    @property
    def _stored_nodata(self) -> Any:
        """`nodata` in the dtype of the file."""
        stored = np.dtype(self.base.dtype)
        return stored.type(self.nodata) if stored.kind == "f" else self.nodata


class TurnedArray(LazyArray):
    """Array that is turned and mirrored by the orientation tag of TIFF and EXIF."""

    def __init__(self, base: ArrayLike, axes: str, orientation: int) -> None:
        super().__init__(_axes.turned_shape(base.shape, axes, orientation), base.dtype)
        self.base = base
        self.axes = axes
        self.orientation = orientation

    def _fetch(self, region: tuple[slice, ...]) -> Array:
        stored = list(region)
        steps: list[slice] = [slice(None)] * self.ndim
        y, x = self.axes.index("Y"), self.axes.index("X")
        lengths = (self.base.shape[y], self.base.shape[x])
        bounds = _axes.stored_box(region[y], region[x], lengths, self.orientation)
        stored[y], stored[x] = bounds
        for axis in (y, x):
            steps[axis] = slice(None, None, region[axis].step)
        array = np.asarray(self.base[tuple(stored)])
        return _axes.turned(array, self.axes, self.orientation)[tuple(steps)]


def with_nodata(image: Image, nodata: float | None) -> Image:
    """Return an image with NaN where the stored value is `nodata`."""
    if nodata is None or np.isnan(nodata) or image.dtype.kind == "b":
        return image
    if image.dtype.kind in "ui":
        limits = np.iinfo(image.dtype)
        if not (limits.min <= nodata <= limits.max) or nodata != int(nodata):
            return image
    channels = image.axes.index("C") if "C" in image.axes else None
    data: ArrayLike = NodataArray(image.data, nodata, channels)
    if type(image.data) is np.ndarray and image.dtype.kind == "f":
        data = np.asarray(data)
    note = f"pixels of the value {nodata:g} have no data, says the file (GDAL_NODATA)"
    return replace(image, data=data, notes=(*image.notes, note))


def stored_values(image: Image) -> Image:
    """Return an image of integers as the file has it, with its dtype and no NaN."""
    data = image.data
    if isinstance(data, NodataArray) and data.base.dtype != data.dtype:
        return replace(image, data=data.base)
    return image


def upright(image: Image, orientation: Any) -> Image:
    """Return an image turned by the orientation tag of its file."""
    if orientation not in range(2, 9):
        return image
    orientation = int(orientation)
    data: ArrayLike = TurnedArray(image.data, image.axes, orientation)
    if type(image.data) is np.ndarray:
        data = np.ascontiguousarray(_axes.turned(image.data, image.axes, orientation))
    sizes = list(zip(image.scale, image.units, strict=True))
    y, x = image.axes.index("Y"), image.axes.index("X")
    if _axes.is_transposed(orientation):
        sizes[y], sizes[x] = sizes[x], sizes[y]
    note = f"turned upright, as the file asks for (orientation {orientation})"
    return replace(
        image,
        data=data,
        scale=tuple(size for size, _ in sizes),
        units=tuple(unit for _, unit in sizes),
        notes=(*image.notes, note),
    )
