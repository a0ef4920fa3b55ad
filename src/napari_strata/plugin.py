"""What napari.yaml names: reader, writer and sample data, as plain layer tuples. No Qt, no napari, no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from napari_strata.classes import ClassMap
from napari_strata.errors import StrataError
from napari_strata.image import AnnotatedImage, ArrayLike, Image, LabelImage
from napari_strata.io import read_classes, read_images, read_labels, read_pyramid
from napari_strata.io import write_labels as _write_labels
from napari_strata.samples import cells, sandstone

Layer = tuple[Any, dict[str, Any], str]
METADATA = "napari_strata"
"""Key of a Labels layer's metadata under which its class map travels, as plain data."""


def get_reader(path: str | list[str]) -> Callable[[str | list[str]], list[Layer]] | None:
    """napari's question whether we read `path`: one file or folder we know is answered with a reader."""
    if isinstance(path, list):
        return None
    try:
        read_images(path)
    except StrataError:
        return None
    return read


def read(path: str | list[str]) -> list[Layer]:
    """Layers of a file: our label files as Labels with class names and colours, every series of others as Image."""
    one = path[0] if isinstance(path, list) else path
    if read_classes(one) is not None:
        return [labels_layer(read_labels(one))]
    images = read_images(one)
    return [image_layer(image, levels=read_pyramid(one, series=i)) for i, image in enumerate(images)]


def image_layer(image: Image, *, levels: Sequence[Image] = ()) -> Layer:
    """An image as a layer tuple: RGB as rgb, other channels along ``channel_axis``, pyramids as multiscale."""
    multiscale = len(levels) > 1
    data: ArrayLike | list[ArrayLike] = [level.data for level in levels] if multiscale else image.data
    given: dict[str, Any] = _placed(image, letters=image.label_axes) | {"name": image.name}
    if multiscale:
        given["multiscale"] = True
    if image.axes.endswith("C") and image.channels == 3 and str(image.dtype) in ("uint8", "uint16"):
        given["rgb"] = True
    elif "C" in image.axes:
        names = image.channel_names or tuple(f"channel {i + 1}" for i in range(image.channels))
        given |= {"channel_axis": image.axes.index("C"), "name": [f"{image.name} {name}" for name in names]}
    return data, given, "image"


def labels_layer(labels: LabelImage) -> Layer:
    """Labels as a layer tuple, with colours, a feature table of class names, and the class map in the metadata."""
    given = _placed(labels, letters=labels.axes) | {"name": labels.name}
    if (classes := labels.classes) is not None:
        given["metadata"] = {METADATA: classes.model_dump(mode="json")}
        named = {0: "unlabelled"} | dict(zip(classes.values, classes.names, strict=True))
        given["features"] = {"index": list(named), "class": list(named.values())}
        transparent = dict.fromkeys((0, *classes.unlabelled), "transparent")
        given["colormap"] = transparent | dict(zip(classes.values, classes.colors, strict=True)) | {None: "transparent"}
    return labels.data, given, "labels"


def write_labels(path: str, data: Any, attributes: Mapping[str, Any]) -> list[str]:
    """napari's writer for one Labels layer: keeps scale, units, axes and class map."""
    stored = attributes.get("metadata", {}).get(METADATA)
    axes = "".join(attributes.get("axis_labels") or ()).upper()
    known = len(axes) == data.ndim and set(axes) <= set("TZYX")
    labels = LabelImage(
        data,
        axes if known else "TZYX"[-data.ndim :],
        scale=tuple(float(s) for s in attributes.get("scale", ())),
        units=tuple(str(u) for u in attributes.get("units") or ()),
        name=str(attributes.get("name", "labels")),
        classes=ClassMap.model_validate(stored) if stored else None,
    )
    # napari itself has asked before it calls a writer with the name of a file that exists.
    return [str(_write_labels(Path(path), labels, overwrite=True))]


def sample_sandstone() -> list[Layer]:
    """A generated sandstone and its exact labels."""
    return _sample(sandstone())


def sample_cells() -> list[Layer]:
    """Generated cells and their exact labels."""
    return _sample(cells())


def _sample(pair: AnnotatedImage) -> list[Layer]:
    data, given, kind = labels_layer(pair.labels)
    return [image_layer(pair.image), (data, given | {"name": f"{pair.name} labels"}, kind)]


def _placed(image: Image, *, letters: str) -> dict[str, Any]:
    """Scale, units and axis labels for the dimensions `letters`."""
    keep = [image.axes.index(a) for a in letters]
    return {
        "scale": [image.scale[i] for i in keep],
        "units": [image.units[i] for i in keep],
        "axis_labels": [a.lower() for a in letters],
    }
