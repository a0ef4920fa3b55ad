"""Reading of TIFF: ImageJ hyperstacks, OME, tifffile's shaped files, plain pages.

All files are read through tifffile's series, because access by page index can fail for
files that tifffile wrote. An image larger than `LAZY_BYTES` is memory-mapped if its
pixels are contiguous and not compressed. Otherwise its strips or tiles are read on
demand.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tifffile import TiffFile, TiffPageSeries

from napari_strata.core.errors import LabelError
from napari_strata.core.image import ArrayLike, Image
from napari_strata.io.corrections import upright, with_nodata
from napari_strata.io.layout import Layout, resolve
from napari_strata.io.lazy import (
    LAZY_BYTES,
    FileArray,
    JoinedArray,
    LazyArray,
    Opener,
    PickedArray,
    at_position,
    reading,
)
from napari_strata.io.mapped import MappedOpener
from napari_strata.io.metadata import Calibration, calibrated, of_series
from napari_strata.io.paths import PathLike, existing, stem
from napari_strata.io.record import Loaded
from napari_strata.io.tiff_file import (
    Planes,
    check,
    data_offset,
    images,
    missing_files,
    open_tiff,
    opened,
    pick,
    present_planes,
)
from napari_strata.io.tiff_segments import SegmentedSeries
from napari_strata.io.tiff_write import write as write

_COMPRESSIONS = {"NONE": "not compressed", "ADOBE_DEFLATE": "zlib"}
"""Words for tifffile's names of compressions."""

_LOSSY = ("WEBP", "JPEG2000", "APERIO_JP2000_RGB", "APERIO_JP2000_YCBC", "JPEGXL")
"""Compressions that may lose information; JPEG always does."""

_JPEG = (6, 7, 34892)
"""Values of the tag Compression for JPEG."""

_ALPHA = (1, 2)
"""Values of the tag ExtraSamples for associated and unassociated alpha.

Other extra samples, such as infrared, are channels.
"""


def count(path: PathLike) -> int:
    """Count the images of a TIFF file; see `tiff_file.images`."""
    with opened(existing(path)) as tif:
        return len(images(tif))


def load(
    path: PathLike,
    *,
    series: int | None = None,
    axes: str | None = None,
    lazy_above: int = LAZY_BYTES,
    labels: bool = False,
) -> Loaded:
    """Read a series of a TIFF file.

    Parameters
    ----------
    path
        The file.
    series
        Index of the image; needed if the file has several. The full resolution of a
        pyramid is read; see `pyramid`.
    axes
        Axes from the user, one letter for each dimension. They override those of the
        file.
    lazy_above
        Images with more bytes of pixels are read on demand.
    labels
        Keep the values of pixels without data. Palette indices are always kept.

    Returns
    -------
    tuple[Image, ClassMap | None]
        The image in the file's dtype with native byte order, and the class map if this
        project wrote the file.

    Raises
    ------
    ImageError
        When the file is missing, truncated or not TIFF, or its axes are unknown.
    """
    file_path = existing(path)
    with opened(file_path) as tif:
        choice = _Choice(series, axes, lazy_above, labels=labels)
        return _load(tif, file_path, choice)


def pyramid(
    path: PathLike,
    *,
    series: int | None = None,
    axes: str | None = None,
    lazy_above: int = LAZY_BYTES,
) -> list[Image]:
    """Read every resolution of a series, the full resolution first.

    Each level has its own pixel size.
    """
    file_path = existing(path)
    with opened(file_path) as tif:
        first, *others = pick(tif, file_path, series, axes).series
        levels = range(1 if others else len(tif.series[first].levels))
        return [
            _load(tif, file_path, _Choice(series, axes, lazy_above, level))[0]
            for level in levels
        ]


def storage(path: PathLike, *, series: int | None = None) -> str:
    """Describe the storage, for example ``TIFF, OME, zlib, tiles 256 x 256``."""
    file_path = existing(path)
    with opened(file_path) as tif:
        picked = tif.series[pick(tif, file_path, series).series[0]]
        page = picked.keyframe
        tiles = (
            f"tiles {page.tilelength} x {page.tilewidth}" if page.is_tiled else "strips"
        )
        names = {"imagej": "ImageJ", "ome": "OME", "shaped": "tifffile"}
        kind = names.get(picked.kind, "plain pages") + (
            ", BigTIFF" if tif.is_bigtiff else ""
        )
        name = tag_name(page.compression)
        compression = _COMPRESSIONS.get(name, name)
        levels = f", {len(picked.levels)} resolutions" if len(picked.levels) > 1 else ""
        return (
            f"TIFF, {kind},"
            f" {compression.lower() if compression.isupper() else compression},"
            f" {tiles}{levels}"
        )


@dataclass(frozen=True)
class _Choice:
    series: int | None
    axes: str | None
    lazy_above: int
    level: int = 0
    labels: bool = False


@dataclass(frozen=True)
class TiffOpener:
    """Picklable function that opens a level of series as an array.

    Several series are joined along a new first axis.
    """

    path: str
    series: tuple[int, ...]
    level: int
    planes: Planes | None = None

    def __call__(self) -> tuple[ArrayLike, Callable[[], None]]:
        tif = open_tiff(Path(self.path))
        try:
            parts = [
                SegmentedSeries(tif.series[number].levels[self.level])
                for number in self.series
            ]
        except BaseException:
            tif.close()
            raise

        def close() -> None:
            for part in parts:
                part.close()
            tif.close()

        array: LazyArray = parts[0] if len(parts) == 1 else JoinedArray(parts)
        if self.planes is not None:
            array = PickedArray(array, *self.planes)
        return array, close


def _load(tif: TiffFile, path: Path, choice: _Choice) -> Loaded:
    picked = pick(tif, path, choice.series, choice.axes)
    numbers = picked.series
    for number in numbers:
        check(tif, tif.series[number].levels[choice.level], path)
    base = tif.series[numbers[0]]
    series = base.levels[choice.level]
    if choice.labels and int(series.keyframe.compression) in _JPEG:
        raise LabelError(
            f"{path}: its pixels are compressed as JPEG, which changes label values;"
            " save the labels as PNG, or as TIFF without JPEG."
        )
    calibration = of_series(tif, base, numbers[0])
    stored, notes = _without_alpha(series)
    record = calibration.record if choice.level == 0 and not choice.axes else None
    if record and record.fits(stored) and len(numbers) == 1:
        data = _data(tif, path, choice, stored=stored, shape=record.shape)
        return record.image(data, source=str(path)), record.classes
    planes = present_planes(tif, series, path)
    if planes is not None:
        axis, indices = planes
        files = ", ".join(missing_files(tif, path))
        notes = (
            f"found {len(indices)} of {stored[axis]} planes along {series.axes[axis]}:"
            f" the others are in {files}, which is not in this folder",
            *notes,
        )
        stored = (*stored[:axis], len(indices), *stored[axis + 1 :])
    letters, full = series.axes, _full(tif, numbers[0], choice, stored)
    if len(numbers) > 1:
        letters, full = f"I{letters}", [("I", len(numbers)), *full]
        stored = (len(numbers), *stored)
        notes = (f"{len(numbers)} equal series are read as one stack", *notes)
    positions = [series.axes[dimension] for dimension, _ in picked.position]
    layout = resolve(
        "".join(letter for letter in letters if letter not in positions),
        picked.without_positions(stored),
        full=[(a, n) for a, n in full if a not in positions],
        axes=choice.axes,
        source=str(path),
    )
    if positions:
        data = _data(tif, path, choice, stored=stored, shape=stored)
        data = at_position(data, picked.position, layout.shape)
    else:
        data = _data(tif, path, choice, stored=stored, shape=layout.shape)
    name = stem(path)
    choices = images(tif, choice.axes)
    if len(choices) > 1:
        name = f"{name} {picked.name or choices.index(picked)}"
    image = calibrated(
        data,
        Layout(layout.axes, layout.shape, layout.notes + notes),
        calibration,
        name=name,
        source=path,
    )
    shrink = {
        a: b / s for a, b, s in zip(base.axes, base.shape, series.shape, strict=True)
    }
    image = upright(_coarser(image, shrink), calibration.orientation)
    if choice.labels:
        image = replace(image, notes=(*image.notes, *_label_notes(series, calibration)))
    else:
        image = with_nodata(image, calibration.nodata)
    return image, calibration.record.classes if calibration.record else None


def _coarser(image: Image, factors: dict[str, float]) -> Image:
    """Multiply the pixel sizes of an image by factors along Z, Y and X."""
    scale = tuple(
        s * factors.get(a, 1.0) if a in "ZYX" else s
        for a, s in zip(image.axes, image.scale, strict=True)
    )
    return replace(image, scale=scale)


def _data(
    tif: TiffFile,
    path: Path,
    choice: _Choice,
    *,
    stored: tuple[int, ...],
    shape: tuple[int, ...],
) -> ArrayLike:
    numbers = pick(tif, path, choice.series, choice.axes).series
    all_series = [tif.series[number].levels[choice.level] for number in numbers]
    series, *others = all_series
    planes = present_planes(tif, series, path)
    crop = tuple(slice(n) for n in stored)
    if series.nbytes * len(numbers) <= choice.lazy_above:
        with reading(path):
            arrays = [series.asarray() for series in all_series]
            array = np.stack(arrays) if others else arrays[0]
            if planes is not None:
                array = array.take(planes[1], axis=planes[0])
        return array[crop].reshape(shape)
    opener: Opener = TiffOpener(str(path), numbers, choice.level, planes)
    offset = data_offset(series)
    is_raw = series.keyframe.is_final and series.transform is None
    if offset is not None and not others and is_raw:
        order = "=" if _native(series) else series.keyframe.parent.byteorder
        dtype = series.dtype.newbyteorder(order)
        if order == "=" and series.keyframe.is_memmappable:
            with reading(path):
                mapped = np.memmap(path, dtype, "r", offset, series.shape)
            return mapped[crop].reshape(shape)
        opener = MappedOpener(str(path), dtype.str, offset, series.shape)
    return FileArray(opener, stored, shape=shape, dtype=series.dtype)


def tag_name(value: Any) -> str:
    """Return tifffile's name for the value of a tag; the number if it has none."""
    return str(getattr(value, "name", value))


def _native(series: TiffPageSeries) -> bool:
    """Return True if the pixels have native byte order, which torch requires."""
    native = "<" if sys.byteorder == "little" else ">"
    return bool(
        series.dtype.itemsize == 1 or series.keyframe.parent.byteorder == native
    )


def _without_alpha(series: TiffPageSeries) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Return the shape without an alpha channel, and notes on the values."""
    page, shape = series.keyframe, tuple(series.shape)
    notes: tuple[str, ...] = ()
    photometric = tag_name(page.photometric)
    if photometric in ("PALETTE", "MINISWHITE"):
        feature = (
            "a colour table that is not applied"
            if photometric == "PALETTE"
            else "0 as white"
        )
        notes = (f"the file has {feature}; values are kept as they are stored",)
    if (
        "S" not in series.axes
        or len(page.extrasamples) != 1
        or page.extrasamples[0] not in _ALPHA
    ):
        return shape, notes
    samples = series.axes.index("S")
    return (*shape[:samples], shape[samples] - 1, *shape[samples + 1 :]), (
        *notes,
        "the alpha (transparency) channel is left out",
    )


def _label_notes(series: TiffPageSeries, calibration: Calibration) -> list[str]:
    """Return notes on what the values of labels may mean."""
    notes = []
    compression = tag_name(series.keyframe.compression)
    if compression in _LOSSY:
        notes.append(
            f"the labels are compressed by {compression}, which may change values; save"
            " them with zlib"
        )
    if calibration.nodata is not None:
        notes.append(
            f"the file says that labels of the value {calibration.nodata:g} are no data"
            f" (GDAL_NODATA); if so, name it: --unlabelled {calibration.nodata:g}"
        )
    return notes


def _full(
    tif: TiffFile, number: int, choice: _Choice, stored: tuple[int, ...]
) -> list[tuple[str, int]]:
    """Return letter and length of all dimensions, including those of length 1."""
    series = tif.series[number].levels[choice.level]
    lengths = dict(zip(series.axes, stored, strict=True))
    all_axes, all_lengths = _unsqueezed(tif, number, choice)
    dimensions = []
    for axis, length in zip(all_axes, all_lengths, strict=True):
        length = lengths.get(axis, length)
        if axis != "S" or length > 1:
            dimensions.append((axis, length))
    return dimensions


def _unsqueezed(
    tif: TiffFile, number: int, choice: _Choice
) -> tuple[str, tuple[int, ...]]:
    """Return axes and shape of a series, including dimensions of length 1.

    tifffile 2026.5.2 removed `TiffPageSeries.get_axes` and made the series callable.
    """
    series = tif.series[number].levels[choice.level]
    if hasattr(series, "get_axes"):
        return series.get_axes(False), series.get_shape(False)
    series = tif.series(squeeze=False)[number].levels[choice.level]
    return series.axes, series.shape
