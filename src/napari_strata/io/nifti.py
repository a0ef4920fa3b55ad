"""Reading of NIfTI. Files that are not compressed are memory-mapped."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from math import isfinite
from typing import Any

from napari_strata.core.errors import ImageError
from napari_strata.core.image import ArrayLike
from napari_strata.io.layout import resolve
from napari_strata.io.lazy import LAZY_BYTES
from napari_strata.io.libraries import library
from napari_strata.io.mapped import ScaledArray, compressed_pixels, plain_pixels
from napari_strata.io.metadata import Calibration, calibrated
from napari_strata.io.paths import PathLike, content_of, existing, stem
from napari_strata.io.record import Loaded
from napari_strata.io.units import PIXEL, size_of, unit_name
from napari_strata.io.vendors import Size

_AXES = "XYZTC"
"""Axes in the order of the file, the fastest first."""

_TIMES = ("sec", "msec", "usec")
_GZIP = b"\x1f\x8b"


def load(
    path: PathLike,
    *,
    series: int | None = None,
    axes: str | None = None,
    lazy_above: int = LAZY_BYTES,
    labels: bool = False,
) -> Loaded:
    """Read a NIfTI file.

    Parameters
    ----------
    path
        The file (``.nii`` or ``.nii.gz``).
    series
        0, because the format has a single image.
    axes
        Axes from the user, the slowest first: ZYX for a volume.
    lazy_above
        Images with more bytes of pixels are memory-mapped; compressed ones are read
        whole, when they are first needed.
    labels
        Not used.

    Raises
    ------
    ImageError
        When the file is missing or truncated, or is not NIfTI.
    """
    file = existing(path)
    volume = _opened(file)
    shape = tuple(map(int, volume.shape[::-1]))
    if len(shape) > len(_AXES):
        raise ImageError(
            f"{file}: found {len(shape)} dimensions {shape}; up to 5 can be read."
        )
    proxy = volume.dataobj
    stored = volume.get_data_dtype()
    data: ArrayLike
    if _is_compressed(file):
        data = compressed_pixels(
            file, stored, shape, skip=int(proxy.offset), lazy_above=lazy_above
        )
    else:
        data = plain_pixels(
            file, stored, shape, offset=int(proxy.offset), lazy_above=lazy_above
        )
    notes: tuple[str, ...] = ()
    slope, intercept = float(proxy.slope), float(proxy.inter)
    if not (isfinite(slope) and isfinite(intercept)):
        raise ImageError(
            f"{file}: found grey values times {slope} plus {intercept}, which are no"
            " numbers; copy the file again."
        )
    if (slope, intercept) != (1, 0):
        data = ScaledArray(data, slope, intercept)
        if data.nbytes <= lazy_above:
            data = data[...]
        notes = (f"values are the stored ones times {slope:g} plus {intercept:g}",)
    sizes, more = _sizes(volume.header)
    layout = resolve(_AXES[: len(shape)][::-1], shape, axes=axes, source=str(file))
    calibration = Calibration(sizes, notes=notes + more)
    image = calibrated(data, layout, calibration, name=stem(file), source=path)
    return image, None


def storage(path: PathLike, *, series: int | None = None) -> str:
    """Describe the storage, such as ``NIfTI, gzip``."""
    file = existing(path)
    return f"NIfTI, {'gzip' if _is_compressed(file) else 'not compressed'}"


def _opened(path: Any) -> Any:
    nibabel = library("nibabel", path)
    try:
        with _quiet(nibabel.imageglobals.logger):
            volume = nibabel.load(path)
    except Exception as error:  # errors of nibabel, zlib and the operating system
        content = content_of(path)
        text = content if content and "gzip" not in content else str(error)
        raise ImageError(
            f"{path}: is not a NIfTI file that can be read"
            f" ({' '.join(text.split())[:160]}); copy it again."
        ) from None
    if not isinstance(volume, nibabel.Nifti1Pair):  # NIfTI-2 is a subclass
        raise ImageError(f"{path}: found {type(volume).__name__}, not NIfTI.")
    return volume


@contextmanager
def _quiet(logger: logging.Logger) -> Iterator[None]:
    """Keep nibabel from printing what it corrects in a header."""
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)


def _is_compressed(path: Any) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == _GZIP


def _sizes(header: Any) -> tuple[dict[str, Size], tuple[str, ...]]:
    """Return the pixel sizes, and a note if their unit is a convention only."""
    space, time = header.get_xyzt_units()
    notes: tuple[str, ...] = ()
    if space == "unknown":
        space = "mm"
        notes = ("the file names no unit of length; millimetres are usual for NIfTI",)
    units = dict.fromkeys("XYZ", unit_name(space))
    units["T"] = unit_name(time) if time in _TIMES else PIXEL
    sizes: dict[str, Size] = {}
    for axis, value in zip("XYZT", header.get_zooms(), strict=False):
        if step := size_of(value):
            # Sizes are stored as float32.
            sizes[axis] = (float(f"{step:.7g}"), units[axis])
    return sizes, notes
