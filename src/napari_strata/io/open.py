"""Reading of images and labels; description of files for `napari-strata info`."""

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

    TIFF, PNG, JPEG, OME-Zarr, or a folder or pattern of single slices.

    Parameters
    ----------
    path
        file, folder, or pattern such as ``"scan/*.tif"``.
    axes
        one letter of T, C, Z, Y, X per dimension, when the file does not say or says it
        wrongly.
    series
        which image of a file that holds several.

    Returns
    -------
    Image
        in the file's dtype; read at once up to 64 MB of pixels, memory-mapped or read
        on demand above. `notes` say what had to be concluded.

    Raises
    ------
    ImageError
        when the file is missing, of no known format, truncated, empty, or its axes
        cannot be known.
    """
    return find_reader(path).load(path, series=series, axes=axes)[0]


def read_images(
    path: PathLike, *, axes: str | None = None, lazy_above: int = LAZY_BYTES
) -> list[Image]:
    """Read every series of a file, as `read_image` reads one.

    Parameters
    ----------
    path, axes
        As for `read_image`.
    lazy_above
        Images with more bytes of pixels stay in the file until they are asked for; 0
        reads no pixels.

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
    """Every resolution of a series, the full one first.

    One image where the file has no pyramid.
    """
    reader = find_reader(path)
    if hasattr(reader, "pyramid"):
        levels: list[Image] = reader.pyramid(path, series=series, axes=axes)
        return levels
    return [read_image(path, axes=axes, series=series)]


def read_labels(path: PathLike, *, axes: str | None = None) -> LabelImage:
    """Read labels from anything `read_image` reads.

    The class map comes along when the file holds one.

    Integers stay as they are, bool becomes uint8 0 and 1, palette PNGs give their
    indices. A colour-coded mask comes back with its colours along C (axes YXC):
    `ClassMap.from_rgb` gives them a meaning.

    Raises
    ------
    LabelError
        for floats (they are never cut to integers) and JPEG.
    ImageError
        as `read_image`.
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
    """Read the class map inside a label file of ours; None for every other file.

    Pixels are not read (of a PNG or JPEG, they are).
    """
    return find_reader(path).load(path, lazy_above=0, labels=True)[1]


def describe(path: PathLike) -> list[str]:
    """Lines for `napari-strata info`.

    Name, shape, axes, dtype, pixel size, channels, storage and classes of each series.

    A series whose axes cannot be known is described by that message; pixels are not
    read.

    Raises
    ------
    ImageError
        when the file is missing, of no known format, or damaged.
    """
    reader = find_reader(path)
    number = reader.count(path)
    lines = [f"{path}: {number} series" if number > 1 else f"{path}"]
    for index in range(number):
        if number > 1:
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
    lines += [storage, f"read        {_way(image)}"]
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


def _way(image: Image) -> str:
    mapped = isinstance(image.data, np.memmap)
    if image.dtype.itemsize * math.prod(image.shape) <= LAZY_BYTES or not (
        mapped or isinstance(image.data, LazyArray)
    ):
        return "whole, into memory"
    return "memory-mapped" if mapped else "lazily, piece by piece"


def _cast(data: ArrayLike, dtype: Any) -> ArrayLike:
    return (
        CastArray(data, dtype)
        if isinstance(data, LazyArray)
        else np.asarray(data).astype(dtype)
    )
