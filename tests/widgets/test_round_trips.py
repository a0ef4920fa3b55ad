"""Layers that are saved and opened again in a real viewer are what they were."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import npe2
import numpy as np
import pytest
import yaml
from napari.layers import Image, Labels, Layer
from scipy import ndimage

import napari_strata
from napari_strata.core.classes import ClassMap
from napari_strata.core.image import LabelImage
from napari_strata.io import write_labels
from napari_strata.plugin import METADATA, labels_layer, labels_of_layer

MANIFEST = Path(napari_strata.__file__).with_name("napari.yaml")
WRITERS = yaml.safe_load(MANIFEST.read_text())["contributions"]["writers"]
SUFFIXES = sorted({s for w in WRITERS for s in w.get("filename_extensions", ())})
GEOMETRY: dict[str, Any] = {
    "scale": (2.5, 0.5, 0.25),
    "units": ("micrometer",) * 3,
    "axis_labels": ("z", "y", "x"),
}
PLANE = {key: values[1:] for key, values in GEOMETRY.items()}
CLASSES = ClassMap(
    names=("pore", "clay"),
    values=(1, 3),
    colors=("#112233", "#ff0000"),
    unlabelled=(9,),
)
RNG = np.random.default_rng(0)
PAINTED = RNG.choice([1, 3, 9], (4, 24, 32)).astype(np.uint8)


def labels_with_classes(data: np.ndarray[Any, Any]) -> Labels:
    axes = "ZYX"[-data.ndim :]
    image = LabelImage(
        data,
        axes,
        scale=GEOMETRY["scale"][-data.ndim :],
        units=GEOMETRY["units"][-data.ndim :],
        name="rock",
        classes=CLASSES,
    )
    return Layer.create(*labels_layer(image))


def objects(data: np.ndarray[Any, Any]) -> Labels:
    """Ids as the command `objects` writes them, which needs torch."""
    ids, count = ndimage.label(data == 3)
    assert count > 20
    image = labels_of_layer(ids.astype(np.uint16), GEOMETRY if ids.ndim == 3 else PLANE)
    return Layer.create(*labels_layer(image))


def _attributes(layer: Layer) -> dict[str, Any]:
    names = ("axis_labels", "scale", "units", "name", "metadata")
    return {name: getattr(layer, name) for name in names}


def grey(data: np.ndarray[Any, Any]) -> Image:
    return Image(data, name="scan", **(GEOMETRY if data.ndim == 3 else PLANE))


LAYERS: dict[str, Callable[[], Layer]] = {
    "uint8 image": lambda: grey(RNG.integers(0, 255, (4, 24, 32), np.uint8)),
    "uint16 image": lambda: grey(RNG.integers(0, 65535, (24, 32), np.uint16)),
    "float image": lambda: grey(RNG.normal(size=(4, 24, 32)).astype(np.float32)),
    "bool image": lambda: grey(PAINTED > 1),
    "colours": lambda: Image(
        RNG.integers(0, 255, (24, 32, 3), np.uint8), rgb=True, name="photo", **PLANE
    ),
    "movie": lambda: Image(
        RNG.integers(0, 255, (3, 24, 32), np.uint8),
        name="movie",
        scale=(0.5, 1, 1),
        units=("second", "nanometer", "nanometer"),
        axis_labels=("t", "y", "x"),
    ),
    "pixels": lambda: Image(RNG.integers(0, 9, (24, 32), np.int16), name="plain"),
    "classes": lambda: labels_with_classes(PAINTED),
    "classes of a plane": lambda: labels_with_classes(PAINTED[0]),
    "painted": lambda: Labels(PAINTED.astype(np.int64), name="Labels", **GEOMETRY),
    "empty labels": lambda: Labels(np.zeros((24, 32), np.uint8), name="new", **PLANE),
    "objects": lambda: objects(PAINTED),
    "objects of a plane": lambda: objects(PAINTED[0]),
    "many objects": lambda: Labels(
        np.arange(24 * 32, dtype=np.uint32).reshape(24, 32) * 1000, name="ids", **PLANE
    ),
}


FEW = ("colours", "classes", "objects")


@pytest.fixture
def viewer(make_napari_viewer: Callable[..., Any], npe2pm: Any) -> Any:
    made = make_napari_viewer()
    manifest = npe2.PluginManifest.from_file(MANIFEST)
    manifest.package_metadata = npe2.PackageMetadata.for_package("napari-strata")
    npe2pm.register(manifest)
    return made


def check_same(again: Layer, layer: Layer) -> None:
    """Compare type, values, geometry and classes of two layers."""
    assert type(again) is type(layer)
    np.testing.assert_array_equal(np.asarray(again.data), layer.data)
    assert again.axis_labels[-2:] == ("y", "x")
    np.testing.assert_allclose(again.scale, layer.scale, rtol=1e-12)
    assert again.units == layer.units
    if isinstance(layer, Image):
        assert again.rgb == layer.rgb
        assert again.data.dtype == layer.data.dtype
        return
    assert np.can_cast(again.data.dtype, layer.data.dtype)
    assert again.metadata.get(METADATA) == layer.metadata.get(METADATA)
    assert list(again.features.columns) == list(layer.features.columns)
    for value in np.unique(layer.data)[:9]:
        if METADATA in layer.metadata:
            np.testing.assert_array_equal(
                again.get_color(value), layer.get_color(value)
            )


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_layer_comes_back_as_it_was(
    viewer: Any, tmp_path: Path, suffix: str
) -> None:
    assert {".tif", ".ome.tif", ".zarr", ".ome.zarr"} <= set(SUFFIXES)
    # The same functions write the other suffixes, so that a few layers are enough.
    names = LAYERS if suffix in (".ome.tif", ".ome.zarr") else FEW
    for number, name in enumerate(names):
        layer = LAYERS[name]()
        path = tmp_path / f"{number}{suffix}"
        assert layer.save(str(path), plugin="napari-strata") == [str(path)], name
        (again,) = viewer.open(str(path), plugin="napari-strata")
        check_same(again, layer)
        viewer.layers.clear()


@pytest.mark.parametrize("kind", ["tiff", "zarr"])
def test_all_layers_come_back_from_a_folder(
    viewer: Any, tmp_path: Path, kind: str
) -> None:
    layers = [viewer.add_layer(LAYERS[name]()) for name in FEW]
    command = f"napari-strata.write_{kind}_folder"
    paths = viewer.layers.save(str(tmp_path / "all"), plugin=command)
    viewer.layers.clear()
    for path, layer in zip(paths, layers, strict=True):
        (again,) = viewer.open(path, plugin="napari-strata")
        check_same(again, layer)


@pytest.mark.parametrize(
    "name", ["classes of a plane", "empty labels", "objects of a plane"]
)
def test_labels_of_a_plane_come_back_from_png(
    viewer: Any, tmp_path: Path, name: str
) -> None:
    layer = LAYERS[name]()
    labels = labels_of_layer(layer.data, _attributes(layer))
    path = write_labels(tmp_path / "a.png", labels)
    (again,) = viewer.open(str(path), plugin="napari-strata")
    check_same(again, layer)
