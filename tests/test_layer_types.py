"""Labels come back as Labels, whoever wrote them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import tifffile
import zarr

from napari_strata import plugin
from napari_strata.core.image import Image, LabelImage
from napari_strata.io import read_image, write_image, write_labels

SUFFIXES = (".ome.tif", ".tif", ".ome.zarr", ".png")


def layer_types(path: Path) -> list[str]:
    return [kind for _, _, kind in plugin.read(str(path))]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_labels_without_classes_come_back_as_labels(
    tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"painted{suffix}"
    attributes = {"name": "painted", "scale": (0.5, 0.5), "units": ("um", "um")}
    plugin.write_labels(str(path), np.eye(8, dtype="uint8"), attributes)
    ((data, given, kind),) = plugin.read(str(path))
    assert kind == "labels"
    assert list(given["scale"]) == [0.5, 0.5]
    np.testing.assert_array_equal(np.asarray(data), np.eye(8))


@pytest.mark.parametrize("suffix", SUFFIXES[:3])
def test_images_come_back_as_images(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"grey{suffix}"
    write_image(path, Image(np.eye(8, dtype="uint8")))
    assert layer_types(path) == ["image"]


def test_numbered_objects_come_back_as_labels(tmp_path: Path) -> None:
    ids = LabelImage(np.arange(64, dtype="uint32").reshape(8, 8))
    path = write_labels(tmp_path / "ids.tif", ids)
    assert layer_types(path) == ["labels"]
    assert isinstance(read_image(path), LabelImage)


def multiscales(group: Any, version: str, extra: dict[str, Any]) -> None:
    axes = [{"name": name, "type": "space", "unit": "micrometer"} for name in "zyx"]
    scale = [{"type": "scale", "scale": [2.0, 0.5, 0.5]}]
    datasets = [{"path": "0", "coordinateTransformations": scale}]
    ome = {"multiscales": [{"axes": axes, "datasets": datasets}]} | extra
    group.attrs.update({"ome": {"version": version} | ome} if version == "0.5" else ome)


@pytest.mark.parametrize(("version", "zarr_format"), [("0.4", 2), ("0.5", 3)])
def test_label_groups_of_other_programs(
    tmp_path: Path, version: str, zarr_format: int
) -> None:
    path = tmp_path / "a.ome.zarr"
    group = zarr.open_group(path, mode="w", zarr_format=zarr_format)
    group.create_array("0", shape=(3, 8, 9), dtype="u2")[:] = 1
    multiscales(group, version, {})
    labels = group.create_group("labels")
    names = {"labels": ["pores", "missing"]}
    labels.attrs.update({"ome": names} if version == "0.5" else names)
    pores = labels.create_group("pores")
    pores.create_array("0", shape=(3, 8, 9), dtype="u1")[:] = 2
    multiscales(pores, version, {"image-label": {}})
    assert layer_types(path) == ["image", "labels"]
    ((data, given, kind),) = plugin.read(str(path / "labels" / "pores"))
    assert (kind, list(given["scale"])) == ("labels", [2.0, 0.5, 0.5])
    assert int(np.asarray(data).max()) == 2


@pytest.mark.parametrize("name", ["labels", "masks", "Annotations"])
def test_folders_called_labels_hold_labels(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    for k in range(3):
        plane = np.full((8, 8), k, "uint8")
        PIL.Image.fromarray(plane).save(folder / f"s{k}.png")
    assert layer_types(folder) == ["labels"]
    assert layer_types(folder / "s0.png") == ["labels"]
    (tmp_path / "images").mkdir()
    PIL.Image.fromarray(plane).save(tmp_path / "images" / "s0.png")
    assert layer_types(tmp_path / "images") == ["image"]


def test_grey_values_in_a_folder_called_labels_stay_an_image(tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    grey = np.arange(256, dtype="uint8").reshape(16, 16)
    tifffile.imwrite(tmp_path / "labels" / "a.tif", grey)
    assert layer_types(tmp_path / "labels" / "a.tif") == ["image"]


@pytest.mark.parametrize("unit", ["reference frame", "gridsq", "1/", "µm"])
def test_units_that_a_viewer_does_not_know_are_pixels(unit: str) -> None:
    pint = pytest.importorskip("pint")
    image = Image(np.zeros((4, 4)), scale=(0.5, 0.5), units=(unit, unit))
    _, given, _ = plugin.image_layer(image)
    assert given["scale"] == [0.5, 0.5]
    for name in given["units"]:
        pint.get_application_registry().Unit(name)
    assert (given["units"][0] == "pixel") == (unit != "µm")
