"""Reading of images and labels, and description of files for `napari-strata info`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from napari_strata.core.classes import ClassMap, check_integers
from napari_strata.core.errors import LabelError
from napari_strata.core.image import ArrayLike, Image, LabelImage
from napari_strata.io.formats import Reader, find_reader
from napari_strata.io.layout import AxesError
from napari_strata.io.lazy import LAZY_BYTES, CastArray, LazyArray
from napari_strata.io.paths import PathLike
from napari_strata.io.units import PIXEL


def read_image(path: PathLike, *, axes: str | None = None, series: int = 0) -> Image:
    """Read an image.

    Parameters
    ----------
    path
        TIFF, PNG or JPEG file, OME-Zarr folder, folder of single slices, or pattern
        such as ``"scan/*.tif"``.
    axes
        One letter of TCZYX for each dimension. They override those of the file and are
        needed if the file has none.
    series
        Index of the image in a file with several.

    Returns
    -------
    Image
        The image in the file's dtype. Up to 64 MB of pixels are read at once; larger
        images are memory-mapped or read on demand. `notes` has the conclusions about
        missing metadata.

    Raises
    ------
    ImageError
        When the file is missing, truncated or empty, its format is unknown, or its axes
        are unknown.
    """
    return find_reader(path).load(path, series=series, axes=axes)[0]


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
    path: PathLike, *, axes: str | None = None, series: int = 0
) -> list[Image]:
    """Read every resolution of a series, the full resolution first.

    If the file has no pyramid, the result is one image.
    """
    reader = find_reader(path)
    if hasattr(reader, "pyramid"):
        levels: list[Image] = reader.pyramid(path, series=series, axes=axes)
        return levels
    return [read_image(path, axes=axes, series=series)]


def read_labels(path: PathLike, *, axes: str | None = None) -> LabelImage:
    """Read labels, with their class map if the file has one.

    All files of `read_image` can be read, except JPEG. Integers are unchanged, bool
    becomes uint8 0 and 1, and PNG files with a palette give their indices. A mask of
    colours has its colours along C (axes YXC); `ClassMap.from_rgb` translates them.

    Raises
    ------
    LabelError
        For floats, which are never rounded to integers, and for JPEG.
    ImageError
        As `read_image`.
    """
    image, classes = find_reader(path).load(path, axes=axes, labels=True)
    if image.dtype.kind not in "uib":
        plane = next(image.planes())
        try:
            check_integers(image.read(plane))
        except LabelError as error:
            raise LabelError(f"{path}: {error}") from None
    data = _cast(image.data, np.uint8) if image.dtype.kind == "b" else image.data
    return LabelImage(
        data,
        image.axes,
        scale=image.scale,
        units=image.units,
        name=image.name,
        channel_names=image.channel_names,
        source=image.source,
        notes=image.notes,
        classes=classes,
    )


def read_classes(path: PathLike) -> ClassMap | None:
    """Read the class map of a label file that this project wrote, or return None.

    Pixels are read only from PNG and JPEG.
    """
    return find_reader(path).load(path, lazy_above=0, labels=True)[1]


def describe(path: PathLike) -> list[str]:
    """Describe a file in lines of text, for `napari-strata info`.

    The lines have name, shape, axes, dtype, pixel size, channels, storage and classes
    of each series. If the axes of a series are unknown, a line says so. Pixels are not
    read.

    Raises
    ------
    ImageError
        When the file is missing or damaged, or its format is unknown.
    """
    reader = find_reader(path)
    count = reader.count(path)
    lines = [f"{path}: {count} series" if count > 1 else f"{path}"]
    for index in range(count):
        if count > 1:
            lines.append(f"series {index}")
        lines += [f"  {line}" for line in _series_lines(reader, path, index)]
    return lines


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
