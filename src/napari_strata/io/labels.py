"""Writing labels and probabilities so that they read back as they were.

Pixels, dtype, axes, scale, units, classes.

- ``.tif``, ``.tiff``: OME-TIFF, zlib, tiles, streamed (`tiff_write`); float16
probabilities in tifffile's shaped form.
- ``.zarr``: OME-Zarr 0.5, sharded, streamed (`zarr`).
- ``.png``: one plane of uint8 or uint16 labels (`raster`).

Files are in canonical axis order (T, C, Z, Y, X), which the formats ask for: an image
whose axes are in another order reads back in this one. Labels of dtype uint8, uint16 or
uint32 keep it; any other integer dtype becomes the smallest of these (int32 with
negative values) that holds the values found and those of the class map; bool becomes
uint8.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from napari_strata.core.classes import check_integers, smallest_dtype
from napari_strata.core.errors import LabelError, RunError
from napari_strata.core.image import Image, LabelImage
from napari_strata.io.blocks import extremes, planes, read_block
from napari_strata.io.formats import find_writer
from napari_strata.io.paths import PathLike, replacing
from napari_strata.io.record import Record

_KEPT = (np.uint8, np.uint16, np.uint32)


def write_labels(
    path: PathLike, labels: LabelImage, *, overwrite: bool = False
) -> Path:
    """Write labels, with their axes, scale, units and class map, in the format of
    the suffix.

    Parameters
    ----------
    path
        ``.tif``/``.tiff`` (always OME inside), ``.zarr``, or ``.png`` for a single
        plane. The folder is made.
    labels
        integers of any array kind, read plane by plane; no channel axis longer than 1.
    overwrite
        replace a file that exists.

    Returns
    -------
    Path
        `path`; a file appears there only when it is whole.

    Raises
    ------
    LabelError
        for labels that are not integers, values that no 32-bit dtype holds, or a
        channel axis.
    RunError
        when `path` exists, has an unknown suffix, or cannot be written (disk full).
    """
    if labels.channels > 1:
        raise LabelError(
            f"{labels.name}: found {labels.channels} channels ({labels.axes}); a label"
            " file has one value a pixel: encode colours with ClassMap.from_rgb first."
        )
    return _write(path, labels, dtype=label_dtype(labels), overwrite=overwrite)


def write_image(path: PathLike, image: Image, *, overwrite: bool = False) -> Path:
    """Write an image in its own dtype, with axes, scale, units and channel names.

    Else as `write_labels`.
    """
    return _write(path, image, dtype=image.dtype, overwrite=overwrite)


def write_probabilities(
    path: PathLike, image: Image, *, overwrite: bool = False, dtype: str = "float16"
) -> Path:
    """Write class probabilities.

    An image with the classes along C and their names as channel names.

    Parameters
    ----------
    path
        ``.tif``/``.tiff`` or ``.zarr``.
    image
        floats, read plane by plane.
    overwrite
        replace a file that exists.
    dtype
        "float16" or "float32".

    Raises
    ------
    RunError
        when `path` exists, has an unknown suffix, cannot be written, or `dtype` is
        another.
    """
    if dtype not in ("float16", "float32"):
        raise RunError(
            f"found dtype {dtype!r} for probabilities; float16 and float32 are"
            " possible."
        )
    if Path(path).suffix.lower() == ".png":
        raise RunError(f"{path}: PNG holds no probabilities; use .tif or .zarr.")
    return _write(path, image, dtype=np.dtype(dtype), overwrite=overwrite)


def label_dtype(labels: LabelImage) -> np.dtype[Any]:
    """The dtype that labels are written in.

    Only dtypes that are not kept cost a pass over the pixels.

    Raises
    ------
    LabelError
        for labels that are not integers, or that no 32-bit dtype holds.
    """
    dtype = labels.dtype
    if dtype.kind == "b":
        return np.dtype(np.uint8)
    if dtype.kind not in "ui":
        first = read_block(labels, next(planes(labels)), slice(0, 256), slice(0, 256))
        check_integers(first)
    if dtype in _KEPT or dtype.newbyteorder("=") in _KEPT:
        return dtype.newbyteorder("=")
    low, high = extremes(labels)
    values = (
        (*labels.classes.values, *labels.classes.unlabelled) if labels.classes else ()
    )
    return (
        smallest_dtype(min(low, *values), max(high, *values))
        if values
        else smallest_dtype(low, high)
    )


def _write(
    path: PathLike, image: Image, *, dtype: np.dtype[Any], overwrite: bool
) -> Path:
    target = Path(path).expanduser()
    write = find_writer(target)
    with replacing(target, overwrite=overwrite) as temporary:
        # zarrs 0.2.0 writes native byte order only; readers do not notice
        write(temporary, image, Record.of(image), dtype=dtype.newbyteorder("="))
    return target
