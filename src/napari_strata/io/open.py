"""Reading of images and labels, and description of files for `napari-strata info`."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from napari_strata.core.classes import ClassMap, whole_numbers
from napari_strata.core.errors import LabelError
from napari_strata.core.image import ArrayLike, Image, LabelImage
from napari_strata.io.formats import Reader, find_reader
from napari_strata.io.layout import AxesError
from napari_strata.io.lazy import LAZY_BYTES, CastArray, LazyArray, WholeNumbers
from napari_strata.io.paths import PathLike
from napari_strata.io.record import as_labels
from napari_strata.io.units import PIXEL


def read_image(
    path: PathLike, *, axes: str | None = None, series: int | None = None
) -> Image:
    """Read an image.

    Parameters
    ----------
    path
        TIFF, PNG, JPEG, HDF5, NRRD, NIfTI or MRC file, OME-Zarr folder, folder of
        single slices, or pattern such as ``"scan/*.tif"``. ``"a.h5:/raw"`` is a dataset
        in a file, ``"a.raw:64x64x32:uint8"`` a raw volume and its layout (sizes along
        X, Y and Z; see `napari_strata.io.raw`).
    axes
        One letter of TCZYX for each dimension. They override those of the file and are
        needed if the file has none.
    series
        Index of the image; needed if the file has several. Equal plain series, such as
        pages that were appended one by one, are one image.

    Returns
    -------
    Image
        The image in the file's dtype. Up to 64 MB of pixels are read at once; larger
        images are memory-mapped or read on demand. `notes` has the conclusions about
        missing metadata.

    Raises
    ------
    ImageError
        When the file is missing, truncated or empty, its format or its axes are
        unknown, or it has several images and `series` is None.
    """
    return find_reader(path).load(path, axes=axes, **_series(series))[0]


def read_images(
    path: PathLike, *, axes: str | None = None, lazy_above: int = LAZY_BYTES
) -> list[Image]:
    """Read every series of a file; see `read_image`.

    Parameters
    ----------
    path, axes
        As in `read_image`.
    lazy_above
        Images with more bytes of pixels are read on demand; with 0 no pixels are read.

    Raises
    ------
    ImageError
        As `read_image`.
    """
    reader = find_reader(path)
    return [
        reader.load(path, series=index, axes=axes, lazy_above=lazy_above)[0]
        for index in range(reader.count(path))
    ]


def read_pyramid(
    path: PathLike, *, axes: str | None = None, series: int | None = None
) -> list[Image]:
    """Read every resolution of a series, the full resolution first.

    If the file has no pyramid, the result is one image.
    """
    reader = find_reader(path)
    if hasattr(reader, "pyramid"):
        levels: list[Image] = reader.pyramid(path, axes=axes, **_series(series))
        return levels
    return [read_image(path, axes=axes, series=series)]


def read_labels(
    path: PathLike, *, axes: str | None = None, series: int | None = None
) -> LabelImage:
    """Read labels, with their class map if the file has one.

    All files of `read_image` can be read, except JPEG. Integers are unchanged, bool
    becomes uint8 0 and 1, floats that are whole numbers become integers, and PNG files
    with a palette give their indices. A mask of colours has its colours along C (axes
    YXC); `ClassMap.from_rgb` translates them.

    Raises
    ------
    LabelError
        For other floats, which are never rounded to integers, and for JPEG.
    ImageError
        As `read_image`.
    """
    reader = find_reader(path)
    image, classes = reader.load(path, axes=axes, labels=True, **_series(series))
    data = image.data
    if image.dtype.kind == "b":
        data = _cast(data, np.uint8)
    elif image.dtype.kind not in "ui":
        try:
            whole_numbers(image.read(next(image.planes())))
            if isinstance(data, LazyArray):
                data = WholeNumbers(data, str(path))
            else:
                data = whole_numbers(np.asarray(data))
        except LabelError as error:
            raise LabelError(f"{path}: {error}") from None
    return as_labels(replace(image, data=data), classes)


def read_classes(path: PathLike) -> ClassMap | None:
    """Read the class map of a label file that this project wrote, or return None.

    Pixels are read only from PNG and JPEG.
    """
    reader = find_reader(path)
    return reader.load(path, series=0, lazy_above=0, labels=True)[1]


def label_groups(path: PathLike) -> list[str]:
    """Return the paths of label images that belong to the image in a file."""
    groups: list[str] = getattr(find_reader(path), "label_groups", lambda _: [])(path)
    return groups


def describe(path: PathLike, *, series: int | None = None) -> list[str]:
    """Describe a file in lines of text, for `napari-strata info`.

    The lines have name, shape, axes, dtype, pixel size, channels, storage and classes
    of each series, or of the one that is chosen. If the axes of a series are unknown, a
    line says so. Pixels are not read.

    Raises
    ------
    ImageError
        When the file is missing or damaged, or its format is unknown.
    """
    reader = find_reader(path)
    count = reader.count(path)
    lines = [f"{path}: {count} series" if count > 1 else f"{path}"]
    chosen = range(count) if series is None else [series]
    for index in chosen:
        if count > 1:
            lines.append(f"series {index}")
        lines += [f"  {line}" for line in _series_lines(reader, path, index)]
    return lines


def _series(index: int | None) -> dict[str, Any]:
    """Return the keyword of a format, which may not know None."""
    return {} if index is None else {"series": index}


def _series_lines(reader: Reader, path: PathLike, index: int) -> list[str]:
    storage = f"stored as   {reader.storage(path, series=index)}"
    try:
        image, classes = reader.load(path, series=index, lazy_above=0)
    except AxesError as error:
        return [storage, f"axes        unknown: {error}"]
    sizes = [
        f"{a} {s:g} {u}"
        for a, s, u in zip(image.axes, image.scale, image.units, strict=True)
        if (s, u) != (1, PIXEL)
    ]
    lines = [
        f"name        {image.name}",
        f"shape       {' x '.join(map(str, image.shape))}",
        f"axes        {image.axes}",
        f"dtype       {image.dtype}",
        f"pixel size  {', '.join(sizes) or 'unknown'}",
    ]
    if image.channel_names:
        lines.append(f"channels    {', '.join(image.channel_names)}")
    lines += [storage, f"read        {_access(image)}"]
    return (
        lines + [f"note        {note}" for note in image.notes] + _class_lines(classes)
    )


def _class_lines(classes: ClassMap | None) -> list[str]:
    if classes is None:
        return []
    lines = [
        f"class       {row['value']}: {row['name']} {row['color']}"
        for row in classes.table()
    ]
    return lines + [f"unlabelled  {value}" for value in classes.unlabelled]


def _access(image: Image) -> str:
    """Describe how the pixels of an image are read."""
    mapped = isinstance(image.data, np.memmap)
    if image.dtype.itemsize * math.prod(image.shape) <= LAZY_BYTES or not (
        mapped or isinstance(image.data, LazyArray)
    ):
        return "whole, into memory"
    return "memory-mapped" if mapped else "lazily, piece by piece"


def _cast(data: ArrayLike, dtype: Any) -> ArrayLike:
    """Convert an array to another dtype, lazily if the array is lazy."""
    return (
        CastArray(data, dtype)
        if isinstance(data, LazyArray)
        else np.asarray(data).astype(dtype)
    )
