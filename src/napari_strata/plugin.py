"""Reader, writers and sample data that napari.yaml names, as plain layer tuples.

This module imports neither Qt nor napari nor torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from napari_strata.core import axes as _axes
from napari_strata.core.classes import MAX_INFERRED, ClassMap
from napari_strata.core.errors import ImageError, RunError
from napari_strata.core.image import AnnotatedImage, ArrayLike, Image, LabelImage
from napari_strata.io import label_groups, read_images, read_labels, read_pyramid
from napari_strata.io import write_image as _write_image
from napari_strata.io import write_labels as _write_labels
from napari_strata.io._matching import LABEL_NAMES
from napari_strata.io.corrections import stored_values
from napari_strata.io.paths import stem
from napari_strata.io.samples import cells, sandstone

Layer = tuple[Any, dict[str, Any], str]
AnyImage = TypeVar("AnyImage", bound=Image)
GENERIC_FOLDERS = ("images", "image", "slices", "raw", "tif", "tiff")
"""Folder names that do not describe their content."""

METADATA = "napari_strata"
"""Key of a layer's metadata.

It holds the class map of Labels, or the file of an Image, as plain data.
"""

SUFFIXES = (".tif", ".tiff", ".png", ".zarr")
RGB = ("red", "green", "blue", "alpha")
"""Channel names that mark a colour picture in files of this program."""


def get_reader(
    path: str | list[str],
) -> Callable[[str | list[str]], list[Layer]] | None:
    """Return the reader of one file or folder, or None for what we cannot read.

    Only headers are looked at: the pixels are read by `read`, once.
    """
    if isinstance(path, list):
        return None
    try:
        read_images(path, lazy_above=0)
    except Exception:  # napari asks every plugin; another one may read the file
        return None
    return read


def read(path: str | list[str]) -> list[Layer]:
    """Read the layers of a file.

    Labels become a Labels layer, with class names and colours if the file has them:
    label files of this program, label groups of OME-Zarr, and files and folders that
    are called labels, masks or annotations and hold few integer values. Every other
    series becomes an Image layer.
    """
    first_path = path[0] if isinstance(path, list) else path
    images = read_images(first_path, lazy_above=0)
    if len(images) == 1 and _are_labels(images[0], Path(first_path)):
        labels = read_labels(first_path)
        return [labels_layer(_named(labels, Path(first_path)))]
    layers = []
    for series in range(len(images)):
        levels = read_pyramid(first_path, series=series)
        full = _named(levels[0], Path(first_path))
        layers.append(image_layer(full, levels=levels, series=series))
    layers += [labels_layer(read_labels(group)) for group in label_groups(first_path)]
    return layers


def _are_labels(image: Image, path: Path) -> bool:
    """Return True if the file says that it has labels, or its name and values do."""
    if isinstance(image, LabelImage):
        return True
    folder = path if path.is_dir() else path.parent
    is_named = folder.name.lower() in LABEL_NAMES
    if not is_named or image.channels > 1 or image.dtype.kind not in "uib":
        return False
    values: set[int] = set()
    for sample in image.samples(planes=3):
        values.update(np.unique(sample).tolist())
    return len(values) <= MAX_INFERRED


def image_layer(
    image: Image, *, levels: Sequence[Image] = (), series: int = 0
) -> Layer:
    """Build the layer tuple of an image.

    Three channels are shown as RGB, other channels as layers of their own, and several
    levels as a pyramid. The metadata name the file, the series, the file's axes and the
    channel (None for all of them).
    """
    is_pyramid = len(levels) > 1
    image, levels = stored_values(image), [stored_values(level) for level in levels]
    origin = None
    if image.source:
        path = str(Path(image.source).expanduser().absolute())
        origin = {"path": path, "series": series, "axes": image.axes}
    if _is_named_rgb(image) and isinstance(image.data, np.ndarray) and not is_pyramid:
        image = _channels_last(image)
    data: ArrayLike | list[ArrayLike] = image.data
    attributes = _layer_geometry(image, image.label_axes) | {"name": image.name}
    if is_pyramid:
        data = [level.data for level in levels]
        attributes["multiscale"] = True
    if _is_rgb(image):
        attributes["rgb"] = True
    elif "C" in image.axes:
        attributes["channel_axis"] = image.axes.index("C")
        names = image.channel_names
        if not names:
            names = tuple(f"channel {i + 1}" for i in range(image.channels))
        attributes["name"] = [f"{image.name} {name}" for name in names]
    if origin is not None:
        if "channel_axis" in attributes:
            attributes["metadata"] = [
                {METADATA: origin | {"channel": i}} for i in range(image.channels)
            ]
        else:
            attributes["metadata"] = {METADATA: origin | {"channel": None}}
    return data, attributes, "image"


def labels_layer(labels: LabelImage) -> Layer:
    """Build the layer tuple of labels, with class names, colours and class map."""
    attributes = _layer_geometry(labels, labels.axes) | {"name": labels.name}
    classes = labels.classes
    if classes is not None:
        names = dict(zip(classes.values, classes.names, strict=True))
        names = {0: "unlabelled"} | names
        colors: dict[int | None, str] = {None: "transparent"}
        for value in (0, *classes.unlabelled):
            colors[value] = "transparent"
        for value, color in zip(classes.values, classes.colors, strict=True):
            colors[value] = color
        attributes["metadata"] = {METADATA: classes.model_dump(mode="json")}
        attributes["features"] = {
            "index": list(names),
            "class": list(names.values()),
        }
        attributes["colormap"] = colors
    return labels.data, attributes, "labels"


def write_labels(path: str, data: Any, attributes: Mapping[str, Any]) -> list[str]:
    """Write one Labels layer with its scale, units, axes and class map."""
    target, overwrite = _target(path)
    labels = labels_of_layer(data, attributes)
    return [str(_write_labels(target, labels, overwrite=overwrite))]


def write_image(path: str, data: Any, attributes: Mapping[str, Any]) -> list[str]:
    """Write one Image layer with its scale, units, axes and name.

    Of a pyramid, only the first level is written.
    """
    target, overwrite = _target(path)
    image = image_of_layer(data, attributes)
    _check_dtype(image, target)
    return [str(_write_image(target, image, overwrite=overwrite))]


def write_tiff_folder(path: str, layers: Sequence[Layer]) -> list[str]:
    """Write each layer as an OME-TIFF into a folder.

    Raises
    ------
    RunError
        If one of the files exists already.
    """
    return _write_folder(path, layers, ".ome.tif")


def write_zarr_folder(path: str, layers: Sequence[Layer]) -> list[str]:
    """Write each layer as an OME-Zarr into a folder; errors as `write_tiff_folder`."""
    return _write_folder(path, layers, ".ome.zarr")


def sample_sandstone() -> list[Layer]:
    """Generate a sandstone and its exact labels."""
    return _sample_layers(sandstone(), "sandstone")


def sample_cells() -> list[Layer]:
    """Generate cells and their exact labels."""
    return _sample_layers(cells(), "cells")


def _named(image: AnyImage, path: Path) -> AnyImage:
    """Name slices in a folder such as ``sandstone/images`` after the parent folder."""
    if path.is_dir() and image.name.lower() in GENERIC_FOLDERS:
        return replace(image, name=path.parent.name)
    return image


def _sample_layers(pair: AnnotatedImage, name: str) -> list[Layer]:
    labels = replace(pair.labels, name=f"{name} labels")
    return [image_layer(replace(pair.image, name=name)), labels_layer(labels)]


def _is_rgb(image: Image) -> bool:
    if not image.axes.endswith("C"):
        return False
    has_rgb_dtype = str(image.dtype) in ("uint8", "uint16")
    return (image.channels == 3 and has_rgb_dtype) or _is_named_rgb(image)


def _is_named_rgb(image: Image) -> bool:
    # Most uint16 channels called red, green and blue are fluorescence, which is too
    # dark as a colour picture.
    if image.channels not in (3, 4) or str(image.dtype) == "uint16":
        return False
    return image.channel_names == RGB[: image.channels]


def _channels_last(image: Image) -> Image:
    """Move the channels, which this program writes first, to the end."""
    axes = _axes.without(image.axes, "C") + "C"
    order = [image.axes.index(axis) for axis in axes]
    data = _axes.to_canonical(np.asarray(image.data), image.axes)
    return replace(
        image,
        data=_axes.from_canonical(data, axes),
        axes=axes,
        scale=tuple(image.scale[i] for i in order),
        units=tuple(image.units[i] for i in order),
    )


def _layer_geometry(image: Image, axes: str) -> dict[str, Any]:
    """Return scale, units and axis labels of some axes as layer attributes."""
    indices = [image.axes.index(axis) for axis in axes]
    return {
        "scale": [image.scale[i] for i in indices],
        "units": [_viewer_unit(image.units[i]) for i in indices],
        "axis_labels": [axis.lower() for axis in axes],
    }


def _viewer_unit(unit: str) -> str:
    """Return a unit that napari can show; "pixel" for one that pint does not know."""
    try:
        import pint
    except ImportError:  # without napari
        return unit
    registry: Any = pint
    try:
        registry.get_application_registry().Unit(unit)
    except Exception:  # pint raises errors of many kinds, as for "reference frame"
        return "pixel"
    return unit


def _write_folder(path: str, layers: Sequence[Layer], suffix: str) -> list[str]:
    folder = Path(path).expanduser()
    if folder.suffix.lower() in SUFFIXES:
        folder = folder.with_name(stem(folder))
    # Whatever can be refused is refused before the first file is written.
    if folder.exists() and not folder.is_dir():
        raise RunError(
            f"{folder}: is a file; several layers go into a folder: choose the name of "
            "a folder."
        )
    images: list[Image] = []
    for data, attributes, kind in layers:
        if kind == "labels":
            images.append(labels_of_layer(data, attributes))
        else:
            images.append(image_of_layer(data, attributes))
    names = _file_names([image.name for image in images])
    targets = [folder / f"{name}{suffix}" for name in names]
    existing = [target.name for target in targets if target.exists()]
    if existing:
        raise RunError(
            f"{folder}: holds {', '.join(existing)} already, and nothing is replaced; "
            "choose another folder."
        )
    for image, target in zip(images, targets, strict=True):
        _check_dtype(image, target)
    for image, target in zip(images, targets, strict=True):
        if isinstance(image, LabelImage):
            _write_labels(target, image)
        else:
            _write_image(target, image)
    return [str(target) for target in targets]


def _check_dtype(image: Image, target: Path) -> None:
    """Raise `ImageError` if the format of the file does not have the image's dtype."""
    if isinstance(image, LabelImage) or target.suffix.lower() == ".zarr":
        return
    if str(image.dtype) in ("int64", "uint64"):
        raise ImageError(
            f"{image.name}: found pixels of dtype {image.dtype}, which TIFF programs "
            "cannot read; save it as .zarr, or convert the layer to uint16, int32 or "
            "float32 first."
        )


def _target(path: str) -> tuple[Path, bool]:
    """Return the file to write, and True if it may be replaced.

    napari asks the user before it gives a writer the name of a file that exists. It
    does not ask for a folder (a zarr store), nor for the suffix that is added here.
    """
    target = Path(path).expanduser()
    if re.fullmatch(r"\.[A-Za-z]{3,4}", target.suffix):  # not the .5 of "sample 0.5"
        return target, not target.is_dir()
    return target.with_name(f"{target.name}.ome.tif"), False


def _file_names(names: Sequence[str]) -> list[str]:
    """Return unique names that every file system takes."""
    unique: list[str] = []
    lower_names: set[str] = set()
    for name in names:
        base = re.sub(r'[\x00-\x1f<>:"/\\|?*]+', "-", name).strip(" .-") or "layer"
        candidate, number = base, 1
        while candidate.lower() in lower_names:
            number += 1
            candidate = f"{base} {number}"
        unique.append(candidate)
        lower_names.add(candidate.lower())
    return unique


def image_of_layer(data: Any, attributes: Mapping[str, Any]) -> Image:
    """Build an `Image` from the data and attributes of an Image layer.

    Parameters
    ----------
    data
        Array of the layer, or its levels when ``attributes["multiscale"]`` is true.
    attributes
        Layer attributes by napari's names: axis_labels, scale, units, name, rgb and
        multiscale are used.

    Returns
    -------
    Image
        The full resolution. Axes are those that the layer names, else the usual ones
        (see `default_axes`).
    """
    array = data[0] if attributes.get("multiscale") else data
    is_rgb = bool(attributes.get("rgb"))
    channel_names = RGB[: array.shape[-1]] if is_rgb else ()
    ndim = array.ndim - is_rgb
    axes = named_axes(attributes, ndim) or default_axes(ndim)
    if is_rgb:
        axes += "C"
    geometry = _geometry(attributes, is_rgb)
    return Image(array, axes, channel_names=channel_names, **geometry)


def labels_of_layer(
    data: Any, attributes: Mapping[str, Any], *, like: Image | None = None
) -> LabelImage:
    """Build a `LabelImage` from the data and attributes of a Labels layer.

    Parameters
    ----------
    data, attributes
        As for `image_of_layer`.
    like
        Image whose axes the labels take when the layer does not name its own.

    Returns
    -------
    LabelImage
        The full resolution, with the class map in the metadata of the layer.
    """
    array = data[0] if attributes.get("multiscale") else data
    axes = named_axes(attributes, array.ndim)
    if "C" in axes:
        axes = ""
    if not axes and like is not None and len(like.label_axes) == array.ndim:
        axes = like.label_axes
    return LabelImage(
        array,
        axes or default_axes(array.ndim),
        classes=stored_classes(attributes),
        **_geometry(attributes, False),
    )


def named_axes(attributes: Mapping[str, Any], ndim: int) -> str:
    """Return the axes that the axis labels of a layer name, such as "ZYX", else ""."""
    letters = "".join(map(str, attributes.get("axis_labels") or ())).upper()
    is_unique = len(letters) == len(set(letters)) == ndim
    if is_unique and {"Y", "X"} <= set(letters) <= set(_axes.CANONICAL):
        return letters
    return ""


def default_axes(ndim: int) -> str:
    """Return the usual axes of a layer that names none: the last ones of TZYX.

    napari shows channels as layers of their own, so a fourth dimension is time.
    """
    if ndim <= 4:
        return "TZYX"[-ndim:]
    return _axes.default((1,) * ndim)


def stored_classes(attributes: Mapping[str, Any]) -> ClassMap | None:
    """Return the class map in a layer's metadata; None if there is none."""
    stored = (attributes.get("metadata") or {}).get(METADATA) or {}
    # An image that was converted to labels keeps its own metadata, without a class map.
    return ClassMap.model_validate(stored) if "values" in stored else None


def _geometry(attributes: Mapping[str, Any], is_rgb: bool) -> dict[str, Any]:
    """Return scale, units and name of a layer as arguments of `Image`."""
    # The sign of a step is a direction.
    scale = tuple(abs(float(step)) for step in attributes.get("scale", ()))
    units = tuple(str(unit) for unit in attributes.get("units") or ())
    if is_rgb and scale:
        scale = (*scale, 1.0)
    if is_rgb and units:
        units = (*units, "pixel")
    name = str(attributes.get("name") or "layer")
    return {"scale": scale, "units": units, "name": name}
