"""What napari.yaml names: reader, writer and sample data, as plain layer tuples. No Qt, no napari, no torch."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from napari_strata.core import axes as _axes
from napari_strata.core.classes import ClassMap
from napari_strata.core.errors import ImageError, RunError, StrataError
from napari_strata.core.image import AnnotatedImage, ArrayLike, Image, LabelImage
from napari_strata.io import read_classes, read_images, read_labels, read_pyramid
from napari_strata.io import write_image as _write_image
from napari_strata.io import write_labels as _write_labels
from napari_strata.io.paths import stem
from napari_strata.io.samples import cells, sandstone

Layer = tuple[Any, dict[str, Any], str]
GENERIC = ("images", "image", "slices", "raw", "tif", "tiff")
"""Names of folders that say nothing of what is in them."""
METADATA = "napari_strata"
"""Key of a layer's metadata: its class map (Labels), or the file it was read from (Image), as plain data."""
SUFFIXES = (".tif", ".tiff", ".png", ".zarr")
RGB = ("red", "green", "blue", "alpha")
"""Channel names that mark a colour picture in files of ours."""


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
    except StrataError:
        return None
    return read


def read(path: str | list[str]) -> list[Layer]:
    """Read the layers of a file.

    A label file of ours becomes a Labels layer with class names and colours; every
    series of another file becomes an Image layer.
    """
    first_path = path[0] if isinstance(path, list) else path
    if read_classes(first_path) is not None:
        return [labels_layer(read_labels(first_path))]
    layers = []
    for series in range(len(read_images(first_path, lazy_above=0))):
        levels = read_pyramid(first_path, series=series)
        full = _named(levels[0], Path(first_path))
        layers.append(image_layer(full, levels=levels, series=series))
    return layers


def image_layer(
    image: Image, *, levels: Sequence[Image] = (), series: int = 0
) -> Layer:
    """An image as a layer tuple: RGB as rgb, other channels along ``channel_axis``, pyramids as multiscale.

    The metadata of an image from a file say where it came from: path, series, the file's axes, and which channel of it
    the layer is (None for all of it).
    """
    multiscale = len(levels) > 1
    came_from = (
        {"path": _absolute(image.source), "series": series, "axes": image.axes}
        if image.source
        else {}
    )
    if _is_named_rgb(image) and isinstance(image.data, np.ndarray) and not multiscale:
        image = _channels_last(image)
    data: ArrayLike | list[ArrayLike] = (
        [level.data for level in levels] if multiscale else image.data
    )
    given: dict[str, Any] = _placed(image, letters=image.label_axes) | {
        "name": image.name
    }
    if multiscale:
        given["multiscale"] = True
    split = "C" in image.axes
    if _is_rgb(image):
        given["rgb"] = True
        split = False
    elif split:
        names = image.channel_names or tuple(
            f"channel {i + 1}" for i in range(image.channels)
        )
        given |= {
            "channel_axis": image.axes.index("C"),
            "name": [f"{image.name} {name}" for name in names],
        }
    if came_from:
        each = [
            {METADATA: came_from | {"channel": i if split else None}}
            for i in range(image.channels)
        ]
        given["metadata"] = each if split else each[0]
    return data, given, "image"


def labels_layer(labels: LabelImage) -> Layer:
    """Labels as a layer tuple, with colours, a feature table of class names, and the class map in the metadata."""
    given = _placed(labels, letters=labels.axes) | {"name": labels.name}
    if (classes := labels.classes) is not None:
        given["metadata"] = {METADATA: classes.model_dump(mode="json")}
        named = {0: "unlabelled"} | dict(
            zip(classes.values, classes.names, strict=True)
        )
        given["features"] = {"index": list(named), "class": list(named.values())}
        transparent = dict.fromkeys((0, *classes.unlabelled), "transparent")
        given["colormap"] = (
            transparent
            | dict(zip(classes.values, classes.colors, strict=True))
            | {None: "transparent"}
        )
    return labels.data, given, "labels"


def write_labels(path: str, data: Any, attributes: Mapping[str, Any]) -> list[str]:
    """napari's writer for one Labels layer: keeps scale, units, axes and class map."""
    target, asked = _target(path)
    return [
        str(_write_labels(target, labels_of_layer(data, attributes), overwrite=asked))
    ]


def write_image(path: str, data: Any, attributes: Mapping[str, Any]) -> list[str]:
    """napari's writer for one Image layer: keeps pixels, scale, units, axes and name; of a pyramid its first level."""
    target, asked = _target(path)
    return [
        str(
            _write_image(
                target,
                _writable(image_of_layer(data, attributes), target),
                overwrite=asked,
            )
        )
    ]


def write_tiff_folder(path: str, layers: Sequence[Layer]) -> list[str]:
    """napari's writer for several layers: a folder with an OME-TIFF each. Raises `RunError` when one exists already."""
    return _write_folder(path, layers, ".ome.tif")


def write_zarr_folder(path: str, layers: Sequence[Layer]) -> list[str]:
    """napari's writer for several layers: a folder with an OME-Zarr each. Raises `RunError` when one exists already."""
    return _write_folder(path, layers, ".ome.zarr")


def sample_sandstone() -> list[Layer]:
    """A generated sandstone and its exact labels."""
    return _sample(sandstone(), "sandstone")


def sample_cells() -> list[Layer]:
    """Generated cells and their exact labels."""
    return _sample(cells(), "cells")


def _named(image: Image, path: Path) -> Image:
    """Slices in a folder such as ``sandstone/images`` are the sandstone."""
    return (
        replace(image, name=path.parent.name)
        if path.is_dir() and image.name.lower() in GENERIC
        else image
    )


def _sample(pair: AnnotatedImage, name: str) -> list[Layer]:
    labels, given, kind = labels_layer(pair.labels)
    return [
        image_layer(replace(pair.image, name=name)),
        (labels, given | {"name": f"{name} labels"}, kind),
    ]


def _is_rgb(image: Image) -> bool:
    plain = image.channels == 3 and str(image.dtype) in ("uint8", "uint16")
    return image.axes.endswith("C") and (plain or _is_named_rgb(image))


def _is_named_rgb(image: Image) -> bool:
    # Of uint16 channels called red, green and blue most are fluorescence, which is too dark as a colour picture.
    named = image.channels in (3, 4) and image.channel_names == RGB[: image.channels]
    return named and str(image.dtype) != "uint16"


def _channels_last(image: Image) -> Image:
    """A picture that was written with its colours first (as files of ours are), as it was before."""
    axes = _axes.without(image.axes, "C") + "C"
    order = [image.axes.index(letter) for letter in axes]
    return replace(
        image,
        data=_axes.from_canonical(
            _axes.to_canonical(np.asarray(image.data), image.axes), axes
        ),
        axes=axes,
        scale=tuple(image.scale[i] for i in order),
        units=tuple(image.units[i] for i in order),
    )


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())


def _placed(image: Image, *, letters: str) -> dict[str, Any]:
    """Scale, units and axis labels for the dimensions `letters`."""
    keep = [image.axes.index(a) for a in letters]
    return {
        "scale": [image.scale[i] for i in keep],
        "units": [image.units[i] for i in keep],
        "axis_labels": [a.lower() for a in letters],
    }


def _write_folder(path: str, layers: Sequence[Layer], suffix: str) -> list[str]:
    folder = Path(path).expanduser()
    if folder.suffix.lower() in SUFFIXES:
        folder = folder.with_name(stem(folder))
    # Everything that can be refused is refused before the first file is there.
    images = [
        (labels_of_layer if kind == "labels" else image_of_layer)(data, given)
        for data, given, kind in layers
    ]
    targets = [
        folder / f"{name}{suffix}"
        for name in _file_names([image.name for image in images])
    ]
    if folder.exists() and not folder.is_dir():
        raise RunError(
            f"{folder}: is a file; several layers go into a folder: choose the name of a folder."
        )
    if taken := [target.name for target in targets if target.exists()]:
        raise RunError(
            f"{folder}: holds {', '.join(taken)} already, and nothing is replaced; choose another folder."
        )
    images = [_writable(image, folder / suffix) for image in images]
    for image, target in zip(images, targets, strict=True):
        if isinstance(image, LabelImage):
            _write_labels(target, image)
        else:
            _write_image(target, image)
    return [str(target) for target in targets]


def _writable(image: Image, target: Path) -> Image:
    """`image`, when its dtype is one that the format has. Raises `ImageError` when not, saying what has."""
    if (
        not isinstance(image, LabelImage)
        and target.suffix.lower() != ".zarr"
        and str(image.dtype) in ("int64", "uint64")
    ):
        raise ImageError(
            f"{image.name}: found pixels of dtype {image.dtype}, which TIFF programs cannot read; save it as .zarr, or "
            "convert the layer to uint16, int32 or float32 first."
        )
    return image


def _target(path: str) -> tuple[Path, bool]:
    """The file to write, and whether it may be replaced.

    napari asks before it gives a writer the name of a file that exists. It cannot have asked for a folder (a zarr
    store), nor for the suffix that is added here where the user typed none.
    """
    given = Path(path).expanduser()
    if re.fullmatch(r"\.[A-Za-z]{3,4}", given.suffix):  # not the .5 of "sample 0.5"
        return given, not given.is_dir()
    return given.with_name(f"{given.name}.ome.tif"), False


def _file_names(names: Sequence[str]) -> list[str]:
    """Names that every file system takes, each once."""
    found: list[str] = []
    for name in names:
        base = re.sub(r'[\x00-\x1f<>:"/\\|?*]+', "-", name).strip(" .-") or "layer"
        numbered = (
            base if number == 1 else f"{base} {number}" for number in itertools.count(1)
        )
        found.append(
            next(n for n in numbered if n.lower() not in {f.lower() for f in found})
        )
    return found


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
    """The class map in a layer's metadata, if there is one."""
    stored = (attributes.get("metadata") or {}).get(METADATA) or {}
    # An image that was converted to labels brings along what its own metadata say, which is no class map.
    return ClassMap.model_validate(stored) if "values" in stored else None


def _geometry(attributes: Mapping[str, Any], rgb: bool) -> dict[str, Any]:
    scale = tuple(float(s) for s in attributes.get("scale", ()))
    units = tuple(str(u) for u in attributes.get("units") or ())
    return {
        "scale": (*scale, 1.0) if rgb and scale else scale,
        "units": (*units, "pixel") if rgb and units else units,
        "name": str(attributes.get("name") or "layer"),
    }
