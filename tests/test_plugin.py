"""The reader, writer and samples that napari.yaml names, without napari.

They are plain layer tuples.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import npe2
import numpy as np
import pytest
import tifffile
import yaml

from napari_strata import plugin
from napari_strata.core.classes import ClassMap
from napari_strata.core.errors import ImageError, RunError
from napari_strata.core.image import Image
from napari_strata.io import write_image, write_labels
from napari_strata.io.formats import FORMATS

MANIFEST = Path(plugin.__file__).with_name("napari.yaml")
CLASSES = ClassMap(names=("pore", "clay"), values=(1, 3), unlabelled=(9,))


def test_every_command_of_the_manifest_exists() -> None:
    manifest = yaml.safe_load(MANIFEST.read_text())
    for command in manifest["contributions"]["commands"]:
        module, name = command["python_name"].split(":")
        if module == "napari_strata.plugin":  # the docks are looked at in tests/widgets
            assert callable(getattr(plugin, name))
        else:
            assert module.startswith("napari_strata.widgets.")


def test_the_manifest_names_every_suffix_that_is_read() -> None:
    (reader,) = yaml.safe_load(MANIFEST.read_text())["contributions"]["readers"]
    suffixes = {suffix for file_format in FORMATS for suffix in file_format.suffixes}
    patterns = {pattern.removeprefix("*") for pattern in reader["filename_patterns"]}
    assert suffixes <= patterns


def test_labels_come_back_as_they_were(tmp_path: Path) -> None:
    image = Image(
        np.zeros((2, 5, 6), np.uint8),
        "ZYX",
        scale=(3, 2, 2),
        units=("micrometer",) * 3,
        name="rock",
    )
    array = np.random.default_rng(0).choice([1, 3, 9], (2, 5, 6)).astype(np.uint8)
    write_labels(tmp_path / "a.tif", image.labels_like(array, classes=CLASSES))
    reader = plugin.get_reader(str(tmp_path / "a.tif"))
    assert reader is not None
    [(data, given, kind)] = reader(str(tmp_path / "a.tif"))
    assert kind == "labels"
    np.testing.assert_array_equal(data, array)
    assert (given["scale"], given["units"]) == ([3, 2, 2], ["micrometer"] * 3)
    assert given["features"] == {
        "index": [0, 1, 3],
        "class": ["unlabelled", "pore", "clay"],
    }
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
    tifffile.imwrite(
        tmp_path / "c.ome.tif", np.zeros((2, 4, 5), np.uint16), metadata={"axes": "CYX"}
    )
    [(_, given, kind)] = plugin.read(str(tmp_path / "c.ome.tif"))
    assert (kind, given["channel_axis"], len(given["name"])) == ("image", 0, 2)
    assert given["axis_labels"] == ["y", "x"]
    tifffile.imwrite(
        tmp_path / "rgb.tif", np.zeros((4, 5, 3), np.uint8), photometric="rgb"
    )
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


def _image_attributes(**given: Any) -> dict[str, Any]:
    """What napari says of an image layer that nobody has touched, and what is given."""
    usual = {
        "name": "sand",
        "scale": (1.0, 1.0, 1.0),
        "units": ("pixel",) * 3,
        "axis_labels": ("-3", "-2", "-1"),
    }
    return usual | {"rgb": False, "multiscale": False, "metadata": {}} | given


@pytest.mark.parametrize("suffix", [".ome.tif", ".tif", ".zarr"])
def test_an_image_comes_back_with_axes_scale_and_name(
    tmp_path: Path, suffix: str
) -> None:
    array = np.random.default_rng(0).integers(0, 999, (2, 5, 6)).astype(np.uint16)
    units = ("second", "micrometer", "micrometer")
    given = _image_attributes(
        axis_labels=("t", "y", "x"), scale=(1.5, 2, 2), units=units
    )
    [written] = plugin.write_image(str(tmp_path / f"a{suffix}"), array, given)
    [(data, again, kind)] = plugin.read(written)
    np.testing.assert_array_equal(data, array)
    assert kind == "image"
    assert again["axis_labels"] == ["t", "y", "x"]
    assert (again["scale"], again["units"]) == ([1.5, 2, 2], list(units))
    assert again["name"] == "sand"
    where = {"path": written, "series": 0, "axes": "TYX", "channel": None}
    assert again["metadata"] == {plugin.METADATA: where}


@pytest.mark.parametrize(
    ("channels", "dtype"), [(3, "uint8"), (4, "uint8"), (3, "float32")]
)
def test_a_colour_picture_comes_back_as_one(
    tmp_path: Path, channels: int, dtype: str
) -> None:
    array = np.random.default_rng(0).integers(0, 2, (2, 5, 6, channels)).astype(dtype)
    [written] = plugin.write_image(
        str(tmp_path / "a.tif"), array, _image_attributes(rgb=True, scale=(3, 2, 2))
    )
    [(data, again, _)] = plugin.read(written)
    assert again["rgb"] is True
    np.testing.assert_array_equal(data, array)
    assert again["scale"] == [3, 2, 2]
    assert again["metadata"][plugin.METADATA]["channel"] is None


def test_fluorescence_in_red_green_and_blue_stays_three_layers() -> None:
    names = ("red", "green", "blue")
    _, given, _ = plugin.image_layer(
        Image(np.zeros((3, 4, 5), np.uint16), "CYX", channel_names=names)
    )
    assert "rgb" not in given
    assert given["channel_axis"] == 0


def test_of_a_pyramid_the_full_size_is_written(tmp_path: Path) -> None:
    full = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)
    given = _image_attributes(
        multiscale=True,
        scale=(1.0, 1.0),
        units=("pixel",) * 2,
        axis_labels=("-2", "-1"),
    )
    plugin.write_image(str(tmp_path / "a.tif"), [full, full[::2, ::2]], given)
    [(data, _, _)] = plugin.read(str(tmp_path / "a.tif"))
    np.testing.assert_array_equal(data, full)


def test_dask_is_written(tmp_path: Path) -> None:
    array = (
        pytest.importorskip("dask.array")
        .arange(24, chunks=5)
        .reshape(2, 3, 4)
        .astype(np.uint16)
    )
    plugin.write_image(str(tmp_path / "a.tif"), array, _image_attributes())
    [(data, _, _)] = plugin.read(str(tmp_path / "a.tif"))
    np.testing.assert_array_equal(data, np.arange(24).reshape(2, 3, 4))


def test_a_dtype_that_tiff_has_not_is_refused_with_the_cure(tmp_path: Path) -> None:
    array = np.ones((2, 3, 4), np.int64)
    with pytest.raises(
        ImageError, match=r"sand: found pixels of dtype int64.*save it as \.zarr"
    ):
        plugin.write_image(str(tmp_path / "a.tif"), array, _image_attributes())
    assert plugin.write_image(str(tmp_path / "a.zarr"), array, _image_attributes())
    # Labels are written in the smallest dtype that holds them.
    assert plugin.write_labels(str(tmp_path / "b.tif"), array, _image_attributes())


def test_what_napari_cannot_have_asked_about_is_not_replaced(tmp_path: Path) -> None:
    array = np.zeros((2, 3, 4), np.uint8)
    # A name without a suffix, or one with a dot in it, gets ours.
    for name in ("sand", "sand 0.5"):
        assert plugin.write_image(str(tmp_path / name), array, {}) == [
            str(tmp_path / f"{name}.ome.tif")
        ]
        with pytest.raises(RunError, match="exists already"):
            plugin.write_image(str(tmp_path / name), array + 1, {})
    [store] = plugin.write_labels(str(tmp_path / "a.zarr"), array, {})
    with pytest.raises(RunError, match="exists already"):
        plugin.write_labels(store, array + 1, {})
    # The name of a file that exists has been asked about.
    plugin.write_image(str(tmp_path / "sand.ome.tif"), array + 1, {})
    assert plugin.read(str(tmp_path / "sand.ome.tif"))[0][0].max() == 1


@pytest.mark.parametrize("write", [plugin.write_tiff_folder, plugin.write_zarr_folder])
def test_several_layers_go_into_a_folder(tmp_path: Path, write: Any) -> None:
    (image, given, _), (labels, labels_given, _) = plugin.sample_cells()
    layers = [
        (image, given, "image"),
        (image + 1, given, "image"),
        (labels, labels_given | {"name": "a/b"}, "labels"),
    ]
    written = write(str(tmp_path / "out"), layers)
    suffix = ".ome.tif" if write is plugin.write_tiff_folder else ".ome.zarr"
    names = [given["name"], f"{given['name']} 2", "a-b"]
    assert written == [str(tmp_path / "out" / f"{name}{suffix}") for name in names]
    assert plugin.read(written[1])[0][0].max() == image.max() + 1
    [(data, again, kind)] = plugin.read(written[2])
    np.testing.assert_array_equal(data, labels)
    assert kind == "labels"
    assert again["metadata"] == labels_given["metadata"]


def test_a_folder_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    array = np.zeros((2, 3, 4), np.uint8)
    layers = [(array, {"name": "new"}, "image"), (array, {"name": "old"}, "labels")]
    (tmp_path / "old.ome.tif").write_text("mine")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunError, match=r"holds old\.ome\.tif already"):
        plugin.write_tiff_folder(str(tmp_path), layers)
    with pytest.raises(ImageError, match="dtype int64"):
        plugin.write_tiff_folder(
            str(tmp_path / "x"),
            [layers[0], (array.astype(np.int64), {"name": "b"}, "image")],
        )
    with pytest.raises(RunError, match="is a file"):
        plugin.write_zarr_folder(str(tmp_path / "file"), layers)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "old.ome.tif"]
    # A suffix is no part of a folder's name.
    assert plugin.write_tiff_folder(str(tmp_path / "all.tif"), layers)[0] == str(
        tmp_path / "all" / "new.ome.tif"
    )


def test_an_image_made_into_labels_has_no_class_map() -> None:
    assert (
        plugin.stored_classes(
            {"metadata": {plugin.METADATA: {"path": "a.tif", "series": 0}}}
        )
        is None
    )
    assert (
        plugin.stored_classes(
            {"metadata": {plugin.METADATA: CLASSES.model_dump(mode="json")}}
        )
        == CLASSES
    )


def test_each_channel_knows_which_it_is(tmp_path: Path) -> None:
    tifffile.imwrite(
        tmp_path / "c.ome.tif", np.zeros((2, 4, 5), np.uint16), metadata={"axes": "CYX"}
    )
    [(_, given, _)] = plugin.read(str(tmp_path / "c.ome.tif"))
    assert [m[plugin.METADATA]["channel"] for m in given["metadata"]] == [0, 1]
    assert given["metadata"][1][plugin.METADATA]["path"] == str(tmp_path / "c.ome.tif")


def test_every_series_knows_its_number(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "s.ome.tif") as writer:
        for size in (4, 6):
            writer.write(np.zeros((size, 5), np.uint16), metadata={"axes": "YX"})
    layers = plugin.read(str(tmp_path / "s.ome.tif"))
    assert [given["metadata"][plugin.METADATA]["series"] for _, given, _ in layers] == [
        0,
        1,
    ]


def test_a_sample_comes_from_no_file() -> None:
    assert "metadata" not in plugin.sample_sandstone()[0][1]


def test_the_manifest_is_what_npe2_accepts() -> None:
    manifest = npe2.PluginManifest.from_file(MANIFEST)
    assert manifest.name == "napari-strata"


def test_slices_in_a_folder_are_called_what_they_show(tmp_path: Path) -> None:
    for folder in ("sandstone/images", "sandstone/dry"):
        for z in range(2):
            write_image(
                tmp_path / folder / f"{z}.tif", Image(np.zeros((8, 8), np.uint8), "YX")
            )
    names = [
        plugin.read(str(tmp_path / folder))[0][1]["name"]
        for folder in ("sandstone/images", "sandstone/dry")
    ]
    assert names == ["sandstone", "dry"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("suffix", [".tif", ".ome.zarr"])
def test_opening_a_file_reads_its_pixels_once(tmp_path: Path, suffix: str) -> None:
    def bytes_read() -> int:
        counters = Path("/proc/self/io").read_text(encoding="ascii").split()
        return int(counters[counters.index("rchar:") + 1])

    path = tmp_path / f"stack{suffix}"
    noise = np.random.default_rng(0).integers(0, 2**16, (20, 512, 512), np.uint16)
    write_image(path, Image(noise, "ZYX"))
    plugin.read(str(path))  # imports what reading needs
    before = bytes_read()
    reader = plugin.get_reader(str(path))
    assert reader is not None
    probed = bytes_read()
    layers = reader(str(path))
    after = bytes_read()
    assert np.array_equal(np.asarray(layers[0][0]), noise)
    assert probed - before < 0.2 * noise.nbytes
    assert after - probed < 1.3 * noise.nbytes
