"""Writing of labels and probabilities without loss.

Pixels, dtype, axes, scale, units and classes are kept.

- ``.tif``, ``.tiff``: OME-TIFF with tiles and zlib, streamed (`tiff_write`); float16
  probabilities in tifffile's shaped format.
- ``.zarr``: OME-Zarr 0.5 with shards, streamed (`zarr`).
- ``.h5``: HDF5 with the axes and the names that ilastik uses (`hdf5`); float16
  probabilities become float32.
- ``.png``: one plane of uint8 or uint16 labels (`raster`).

The axes are written in canonical order (T, C, Z, Y, X), which the formats require.
Labels keep the dtypes uint8, uint16 and uint32. Any other integer dtype becomes the
smallest of these (or int32, for negative values) that can represent the values in the
image and in the class map; bool becomes uint8.
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

_WRITTEN_DTYPES = (np.uint8, np.uint16, np.uint32)


def write_labels(
    path: PathLike, labels: LabelImage, *, overwrite: bool = False
) -> Path:
    """Write labels with their axes, scale, units and class map.

    Parameters
    ----------
    path
        File; the suffix is ``.tif``, ``.tiff`` (both OME-TIFF), ``.zarr`` or ``.h5``,
        or ``.png`` for a single plane. Missing folders are created.
    labels
        Integers, which are read plane by plane. At most one channel.
    overwrite
        Replace an existing file.

    Returns
    -------
    Path
        `path`. The file exists only when it is complete.

    Raises
    ------
    LabelError
        When labels are not integers, do not fit into 32 bits, or have channels.
    RunError
        When `path` exists, has an unknown suffix, or cannot be written to.
    """
    if labels.channels > 1:
        raise LabelError(
            f"{labels.name}: found {labels.channels} channels ({labels.axes}); a label"
            " file has one value per pixel: encode colours with ClassMap.from_rgb"
            " first."
        )
    return _write(path, labels, dtype=label_dtype(labels), overwrite=overwrite)


def write_image(path: PathLike, image: Image, *, overwrite: bool = False) -> Path:
    """Write an image in its own dtype, with axes, scale, units and channel names.

    Parameters and errors are those of `write_labels`.
    """
    return _write(path, image, dtype=image.dtype, overwrite=overwrite)


def write_probabilities(
    path: PathLike, image: Image, *, overwrite: bool = False, dtype: str = "float16"
) -> Path:
    """Write class probabilities.

    Parameters
    ----------
    path
        File with the suffix ``.tif``, ``.tiff``, ``.zarr`` or ``.h5``.
    image
        Floats with the classes along C and their names as channel names. It is read
        plane by plane.
    overwrite
        Replace an existing file.
    dtype
        "float16" or "float32".

    Raises
    ------
    RunError
        When `path` exists, has an unknown suffix or cannot be written to, or when
        `dtype` is not one of these.
    """
    if dtype not in ("float16", "float32"):
        raise RunError(
            f"found dtype {dtype!r} for probabilities; float16 and float32 are"
            " possible."
        )
    if Path(path).suffix.lower() == ".png":
        raise RunError(f"{path}: PNG cannot store probabilities; use .tif or .zarr.")
    return _write(path, image, dtype=np.dtype(dtype), overwrite=overwrite)


def label_dtype(labels: LabelImage) -> np.dtype[Any]:
    """Return the dtype in which labels are written.

    If it differs from the dtype of the labels, all pixels are read.

    Raises
    ------
    LabelError
        When labels are not integers or do not fit into 32 bits.
    """
    dtype = labels.dtype
    if dtype.kind == "b":
        return np.dtype(np.uint8)
    if dtype.kind not in "ui":
        first = read_block(labels, next(planes(labels)), slice(0, 256), slice(0, 256))
        check_integers(first)
    if dtype in _WRITTEN_DTYPES or dtype.newbyteorder("=") in _WRITTEN_DTYPES:
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
        # zarrs 0.2.0 writes native byte order only, which readers do not notice.
        write(temporary, image, Record.of(image), dtype=dtype.newbyteorder("="))
    return target
