"""Reading of TIFF: ImageJ hyperstacks, OME, tifffile's shaped files, plain pages.

All files are read through tifffile's series, because access by page index can fail for
files that tifffile wrote. An image larger than `LAZY_BYTES` is memory-mapped if its
pixels are contiguous and not compressed. Otherwise its strips or tiles are read on
demand.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tifffile import TiffFile, TiffPageSeries

from napari_strata.core.image import ArrayLike, Image
from napari_strata.io.layout import Layout, resolve
from napari_strata.io.lazy import LAZY_BYTES, FileArray, Opener, reading
from napari_strata.io.metadata import Calibration, of_series
from napari_strata.io.paths import PathLike, existing, stem
from napari_strata.io.record import Loaded
from napari_strata.io.tiff_file import check, data_offset, opened, pick
from napari_strata.io.tiff_segments import SegmentedSeries
from napari_strata.io.tiff_write import write as write
from napari_strata.io.units import PIXEL

_ALPHA = (1, 2)
"""Values of the tag ExtraSamples for associated and unassociated alpha.

Other extra samples, such as infrared, are channels.
"""


def count(path: PathLike) -> int:
    """Count the image series of a TIFF file."""
    with opened(existing(path)) as tif:
        return len(tif.series)


def load(
    path: PathLike,
    *,
    series: int = 0,
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
        Index of the series. The full resolution of a pyramid is read; see `pyramid`.
    axes
        Axes from the user, one letter for each dimension. They override those of the
        file.
    lazy_above
        Images with more bytes of pixels are read on demand.
    labels
        Not used: values and palette indices are always kept.

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
        return _load(tif, file_path, _Choice(series, axes, lazy_above))


def pyramid(
    path: PathLike,
    *,
    series: int = 0,
    axes: str | None = None,
    lazy_above: int = LAZY_BYTES,
) -> list[Image]:
    """Read every resolution of a series, the full resolution first.

    Each level has its own pixel size.
    """
    file_path = existing(path)
    with opened(file_path) as tif:
        levels = range(len(pick(tif, file_path, series).levels))
        return [
            _load(tif, file_path, _Choice(series, axes, lazy_above, level))[0]
            for level in levels
        ]


def storage(path: PathLike, *, series: int = 0) -> str:
    """Describe the storage, for example ``TIFF, OME, zlib, tiles 256 x 256``."""
    file_path = existing(path)
    with opened(file_path) as tif:
        picked = pick(tif, file_path, series)
        page = picked.keyframe
        tiles = (
            f"tiles {page.tilelength} x {page.tilewidth}" if page.is_tiled else "strips"
        )
        names = {"imagej": "ImageJ", "ome": "OME", "shaped": "tifffile"}
        kind = names.get(picked.kind, "plain pages") + (
            ", BigTIFF" if tif.is_bigtiff else ""
        )
        compression = {"NONE": "not compressed", "ADOBE_DEFLATE": "zlib"}.get(
            page.compression.name, page.compression.name
        )
        levels = f", {len(picked.levels)} resolutions" if len(picked.levels) > 1 else ""
        return (
            f"TIFF, {kind},"
            f" {compression.lower() if compression.isupper() else compression},"
            f" {tiles}{levels}"
        )


@dataclass(frozen=True)
class _Choice:
    series: int
    axes: str | None
    lazy_above: int
    level: int = 0


@dataclass(frozen=True)
class TiffOpener:
    """Picklable function that opens a level of a series as an array."""

    path: str
    series: int
    level: int

    def __call__(self) -> tuple[ArrayLike, Callable[[], None]]:
        tif = TiffFile(self.path)
        try:
            array = SegmentedSeries(tif.series[self.series].levels[self.level])
        except BaseException:
            tif.close()
            raise

        def close() -> None:
            array.close()
            tif.close()

        return array, close


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


def _load(tif: TiffFile, path: Path, choice: _Choice) -> Loaded:
    base = pick(tif, path, choice.series)
    series = base.levels[choice.level]
    check(tif, series, path)
    calibration = of_series(tif, base, choice.series)
    stored, notes = _without_alpha(series)
    record = calibration.record if choice.level == 0 and not choice.axes else None
    if record and record.fits(stored):
        data = _data(series, path, choice, stored=stored, shape=record.shape)
        return record.image(data, source=str(path)), record.classes
    layout = resolve(
        series.axes,
        stored,
        full=_full(tif, base, choice, stored),
        axes=choice.axes,
        source=str(path),
    )
    data = _data(series, path, choice, stored=stored, shape=layout.shape)
    name = (
        stem(path)
        if len(tif.series) == 1
        else f"{stem(path)} {series.name or choice.series}"
    )
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
    return _coarser(image, shrink), (
        calibration.record.classes if calibration.record else None
    )


def calibrated(
    data: ArrayLike,
    layout: Layout,
    calibration: Calibration,
    *,
    name: str,
    source: Path,
) -> Image:
    """Build an image with the pixel sizes and channel names of its file."""
    letters = layout.axes.replace("S", "C")
    sizes = [calibration.pixel.get(axis, (1.0, PIXEL)) for axis in letters]
    channels = layout.shape[letters.index("C")] if "C" in letters else 0
    return Image(
        data,
        letters,
        scale=tuple(size for size, _ in sizes),
        units=tuple(unit for _, unit in sizes),
        name=name,
        channel_names=(
            calibration.channel_names
            if len(calibration.channel_names) == channels
            else ()
        ),
        source=str(source),
        notes=layout.notes,
    )


def _coarser(image: Image, factors: dict[str, float]) -> Image:
    """Multiply the pixel sizes of an image by factors along Z, Y and X."""
    scale = tuple(
        s * factors.get(a, 1.0) if a in "ZYX" else s
        for a, s in zip(image.axes, image.scale, strict=True)
    )
    return Image(
        image.data,
        image.axes,
        scale,
        image.units,
        image.name,
        image.channel_names,
        image.source,
        image.notes,
    )


def _data(
    series: TiffPageSeries,
    path: Path,
    choice: _Choice,
    *,
    stored: tuple[int, ...],
    shape: tuple[int, ...],
) -> ArrayLike:
    crop = tuple(slice(n) for n in stored)
    if series.nbytes <= choice.lazy_above:
        with reading(path):
            array: ArrayLike = series.asarray()[crop].reshape(shape)
        return array
    opener: Opener = TiffOpener(str(path), choice.series, choice.level)
    offset = data_offset(series)
    if offset is not None and series.keyframe.is_final and series.transform is None:
        order = "=" if _native(series) else series.keyframe.parent.byteorder
        dtype = series.dtype.newbyteorder(order)
        if order == "=" and series.keyframe.is_memmappable:
            with reading(path):
                mapped = np.memmap(path, dtype, "r", offset, series.shape)
            return mapped[crop].reshape(shape)
        opener = MappedOpener(str(path), dtype.str, offset, series.shape)
    return FileArray(opener, stored, shape=shape, dtype=series.dtype)


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
    if page.photometric.name in ("PALETTE", "MINISWHITE"):
        feature = (
            "a colour table that is not applied"
            if page.photometric.name == "PALETTE"
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


def _full(
    tif: TiffFile, base: TiffPageSeries, choice: _Choice, stored: tuple[int, ...]
) -> list[tuple[str, int]]:
    """Return letter and length of all dimensions, including those of length 1."""
    series = base.levels[choice.level]
    lengths = dict(zip(series.axes, stored, strict=True))
    all_axes, all_lengths = _unsqueezed(tif, base, choice)
    dimensions = []
    for axis, length in zip(all_axes, all_lengths, strict=True):
        length = lengths.get(axis, length)
        if axis != "S" or length > 1:
            dimensions.append((axis, length))
    return dimensions


def _unsqueezed(
    tif: TiffFile, base: TiffPageSeries, choice: _Choice
) -> tuple[str, tuple[int, ...]]:
    """Return axes and shape of a series, including dimensions of length 1.

    tifffile 2026.5.2 removed `TiffPageSeries.get_axes` and made the series callable.
    """
    series = base.levels[choice.level]
    if hasattr(series, "get_axes"):
        return series.get_axes(False), series.get_shape(False)
    series = tif.series(squeeze=False)[choice.series].levels[choice.level]
    return series.axes, series.shape
