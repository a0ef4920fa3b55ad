"""The reader, writer and samples that napari.yaml names, without napari: they are plain layer tuples."""

from __future__ import annotations

from pathlib import Path

import npe2
import numpy as np
import pytest
import tifffile
import yaml

from napari_strata import plugin
from napari_strata.classes import ClassMap
from napari_strata.image import Image
from napari_strata.io import write_labels

MANIFEST = Path(plugin.__file__).with_name("napari.yaml")
CLASSES = ClassMap(names=("pore", "clay"), values=(1, 3), unlabelled=(9,))


def test_every_command_of_the_manifest_exists() -> None:
    manifest = yaml.safe_load(MANIFEST.read_text())
    for command in manifest["contributions"]["commands"]:
        module, name = command["python_name"].split(":")
        assert module == "napari_strata.plugin"
        assert callable(getattr(plugin, name))


def test_labels_come_back_as_they_were(tmp_path: Path) -> None:
    image = Image(np.zeros((2, 5, 6), np.uint8), "ZYX", scale=(3, 2, 2), units=("micrometer",) * 3, name="rock")
    array = np.random.default_rng(0).choice([1, 3, 9], (2, 5, 6)).astype(np.uint8)
    write_labels(tmp_path / "a.tif", image.labels_like(array, classes=CLASSES))
    reader = plugin.get_reader(str(tmp_path / "a.tif"))
    assert reader is not None
    [(data, given, kind)] = reader(str(tmp_path / "a.tif"))
    assert kind == "labels"
    np.testing.assert_array_equal(data, array)
    assert (given["scale"], given["units"]) == ([3, 2, 2], ["micrometer"] * 3)
    assert given["features"] == {"index": [0, 1, 3], "class": ["unlabelled", "pore", "clay"]}
    assert given["colormap"][1] == CLASSES.colors[0]
    assert given["colormap"][9] == "transparent"

    written = plugin.write_labels(str(tmp_path / "b.tif"), data, given)
    assert written == [str(tmp_path / "b.tif")]
    [(again, given_again, _)] = plugin.read(written)
    np.testing.assert_array_equal(again, array)
    assert given_again == given | {"name": given_again["name"]}


def test_a_file_we_do_not_know_is_left_to_others(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_text("hello")
    assert plugin.get_reader(str(tmp_path / "a.tif")) is None
    assert plugin.get_reader([str(tmp_path / "a.tif")]) is None


def test_channels_become_layers_and_rgb_one(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "c.ome.tif", np.zeros((2, 4, 5), np.uint16), metadata={"axes": "CYX"})
    [(_, given, kind)] = plugin.read(str(tmp_path / "c.ome.tif"))
    assert (kind, given["channel_axis"], len(given["name"])) == ("image", 0, 2)
    assert given["axis_labels"] == ["y", "x"]
    tifffile.imwrite(tmp_path / "rgb.tif", np.zeros((4, 5, 3), np.uint8), photometric="rgb")
    [(data, given, _)] = plugin.read(str(tmp_path / "rgb.tif"))
    assert given["rgb"] is True
    assert data.shape == (4, 5, 3)


def test_pyramids_are_multiscale(tmp_path: Path) -> None:
    full = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)
    with tifffile.TiffWriter(tmp_path / "p.ome.tif") as writer:
        writer.write(full, subifds=1, metadata={"axes": "YX"})
        writer.write(full[::2, ::2], subfiletype=1)
    [(data, given, _)] = plugin.read(str(tmp_path / "p.ome.tif"))
    assert given["multiscale"] is True
    assert [level.shape for level in data] == [(64, 64), (32, 32)]


@pytest.mark.parametrize("sample", [plugin.sample_sandstone, plugin.sample_cells])
def test_samples_are_an_image_and_labels(sample: object) -> None:
    image, labels = sample()  # type: ignore[operator]
    assert (image[2], labels[2]) == ("image", "labels")
    assert image[0].shape == labels[0].shape
    assert labels[1]["metadata"][plugin.METADATA]["names"]


def test_the_manifest_is_what_npe2_accepts() -> None:
    manifest = npe2.PluginManifest.from_file(MANIFEST)
    manifest.validate_imports()
    assert manifest.name == "napari-strata"
