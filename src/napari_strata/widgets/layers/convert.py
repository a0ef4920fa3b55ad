"""Conversion of napari's layers to images and labels, and to files for the worker.

`image_of` and `labels_of` copy nothing and are called in the main thread.
`source_of_image` and `source_of_labels` read and write files and are called in threads.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from napari.components import ViewerModel
from napari.layers import Image as ImageLayer
from napari.layers import Labels as LabelsLayer

from napari_strata.core import axes as _axes
from napari_strata.core.errors import ImageError, StrataError
from napari_strata.core.image import Image, LabelImage
from napari_strata.io import read_image, write_image, write_labels
from napari_strata.io.corrections import stored_values
from napari_strata.io.formats import find_reader
from napari_strata.plugin import (
    METADATA,
    default_axes,
    image_of_layer,
    labels_of_layer,
    named_axes,
)
from napari_strata.worker.protocol import Layer

_COPY_LOCK = threading.Lock()
MAX_COPY_BYTES = 4 * 2**30
"""Larger images are not copied if their file has less metadata than the layer."""


def known_axes(layer: ImageLayer | LabelsLayer) -> str:
    """Return the axes of a layer, such as "ZYX" (C is last for RGB), or ""."""
    axes = named_axes(_attributes(layer), layer.ndim)
    if not axes and layer.ndim == 2:
        axes = "YX"
    if axes and _is_rgb(layer):
        axes += "C"
    return axes


def proposed_axes(layer: ImageLayer | LabelsLayer) -> str:
    """Return `known_axes`, or the default axes, which the user can change."""
    axes = known_axes(layer)
    if axes:
        return axes
    return default_axes(layer.ndim) + ("C" if _is_rgb(layer) else "")


def set_axes(layer: ImageLayer | LabelsLayer, letters: str) -> None:
    """Set the axes of a layer in napari.

    Raises `ImageError` if they do not fit.
    """
    checked = _axes.parse(letters, array_of(layer).shape)
    if _is_rgb(layer):
        checked = checked.removesuffix("C")
    layer.axis_labels = tuple(axis.lower() for axis in checked)


def array_of(layer: ImageLayer | LabelsLayer) -> Any:
    """Return the data of a layer at full resolution."""
    return layer.data[0] if layer.multiscale else layer.data


def image_of(layer: ImageLayer) -> Image:
    """Build the image of a layer, with the axes that the dock shows; copies nothing.

    Raises
    ------
    ImageError
        When the axes do not fit the array.
    """
    return image_of_layer(layer.data, _attributes(layer))


def labels_of(layer: LabelsLayer, image: Image | None = None) -> LabelImage:
    """Build the labels of a layer; without axes, it gets those of `image`."""
    return labels_of_layer(layer.data, _attributes(layer), like=image)


def mismatch(image: Image, labels: LabelsLayer) -> str:
    """Describe the difference in size of labels and image; empty if they agree."""
    shape = tuple(array_of(labels).shape)
    if shape == image.label_shape:
        return ""
    return (
        f"{' x '.join(map(str, shape))}, and the image is"
        f" {' x '.join(map(str, image.label_shape))}"
    )


def describe(image: Image) -> str:
    """Describe an image without its name: ``8 x 1024 x 996 (ZYX), uint16, 2.1 µm``."""
    text = image.describe().removeprefix(f"{image.name}, ")
    return (
        text.replace("micrometer", "µm")
        .replace("nanometer", "nm")
        .replace("millimeter", "mm")
    )


def source_of_image(layer: ImageLayer, image: Image, folder: Path) -> Layer:
    """Return a file of the image for the worker: its own file, or a copy.

    Raises
    ------
    StrataError
        When the copy cannot be written.
    """
    own_file = _own_file(layer, image)
    if own_file is not None:
        return own_file
    path = folder / f"{slug(image.name)}.tif"
    with _COPY_LOCK:  # two docks may write the same copy
        if not _has_copy(path, image):
            write_image(path, image, overwrite=True)
    return Layer(path=str(path), name=image.name)


def source_of_labels(labels: LabelImage, path: Path) -> Layer:
    """Write labels to `path` for the worker, with class map, scale and axes.

    Raises `StrataError` if they cannot be written.
    """
    write_labels(path, labels, overwrite=True)
    return Layer(path=str(path))


def image_below(viewer: ViewerModel, labels: LabelImage) -> Image | None:
    """Find the image of labels in the viewer by its size, and then by its name."""
    candidates = []
    for layer in viewer.layers:
        try:
            image = image_of(layer) if isinstance(layer, ImageLayer) else None
        except ImageError:
            continue
        if image is not None and all(image.size(a) == labels.size(a) for a in "TZYX"):
            candidates.append(image)
    return next(
        (image for image in candidates if labels.name.startswith(image.name)),
        candidates[0] if candidates else None,
    )


def slug(name: str) -> str:
    """Convert a name to a part of a file name."""
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-").lower()[:40] or "image"


def image_layers(layers: Sequence[Any]) -> list[ImageLayer]:
    """Return the Image layers among layers."""
    return [layer for layer in layers if isinstance(layer, ImageLayer)]


def labels_layers(layers: Sequence[Any]) -> list[LabelsLayer]:
    """Return the Labels layers among layers."""
    return [layer for layer in layers if isinstance(layer, LabelsLayer)]


def _is_rgb(layer: ImageLayer | LabelsLayer) -> bool:
    return bool(getattr(layer, "rgb", False))


def _attributes(layer: ImageLayer | LabelsLayer) -> dict[str, Any]:
    """Collect the attributes of a layer that describe its axes and its name."""
    return {
        "axis_labels": layer.axis_labels,
        "scale": layer.scale,
        "units": layer.units,
        "name": layer.name,
        "metadata": layer.metadata,
        "multiscale": layer.multiscale,
        "rgb": _is_rgb(layer),
    }


def _own_file(layer: ImageLayer, image: Image) -> Layer | None:
    """Return the file of a layer if it still has the same content.

    Shape, dtype, and the middle plane are compared. If the layer has more metadata than
    the file (axes, scale), a copy is needed, which any command can read. Only for a
    layer that is too large to copy, the metadata are added to the path.
    """
    stored = layer.metadata.get(METADATA) or {}
    path = stored.get("path") or layer.source.path
    if not path or stored.get("channel") is not None:
        return None
    series = int(stored.get("series") or 0)
    geometry = {"axes": image.axes, "scale": image.scale, "units": image.units}
    try:
        file = stored_values(read_image(path, series=series))
        if (file.shape, file.dtype) != (image.shape, image.dtype):
            return None
        middle = {axis: image.size(axis) // 2 for axis in "TZ" if axis in image.axes}
        if not np.array_equal(
            file.with_axes(image.axes).read(middle), image.read(middle)
        ):
            return None
    except (StrataError, OSError, ValueError):
        return None
    is_only = find_reader(path).count(path) == 1
    if is_only and all(getattr(file, key) == value for key, value in geometry.items()):
        return Layer(path=str(path))
    large = image.dtype.itemsize * prod(image.shape) > MAX_COPY_BYTES
    return (
        Layer(path=str(path), series=series, name=image.name, **geometry)
        if large
        else None
    )


def _has_copy(path: Path, image: Image) -> bool:
    """Return True if the file at `path` is a copy of this image."""
    if not path.is_file():
        return False
    try:
        file = read_image(path, axes=image.axes)
        is_same = (file.shape, file.dtype, file.scale) == (
            image.shape,
            image.dtype,
            image.scale,
        )
        return is_same and all(
            np.array_equal(file.read(plane), image.read(plane))
            for plane in image.planes()
        )
    except StrataError:
        return False
