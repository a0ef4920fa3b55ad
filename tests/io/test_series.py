"""Files with several series, and folders with several groups of files."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import tifffile

from napari_strata.core.errors import ImageError
from napari_strata.io import describe, read_image, read_images, read_labels, read_pairs
from napari_strata.io.tiff import load
from napari_strata.plugin import read


def appended(path: Path, count: int = 6, dtype: str = "uint8") -> np.ndarray:
    stack = np.random.default_rng(0).integers(0, 99, (count, 20, 30)).astype(dtype)
    for plane in stack:
        tifffile.imwrite(path, plane, append=True)
    return stack


def mixed(path: Path, shapes: list[tuple[int, int]]) -> Path:
    with tifffile.TiffWriter(path) as writer:
        for shape in shapes:
            writer.write(np.full(shape, shape[0], "uint8"), metadata=None)
    return path


@pytest.mark.parametrize("lazy_above", [0, 2**26])
def test_pages_that_were_appended_are_one_stack(
    tmp_path: Path, lazy_above: int
) -> None:
    path = tmp_path / "a.tif"
    stack = appended(path)
    image, _ = load(path, lazy_above=lazy_above)
    assert image.axes == "ZYX"
    np.testing.assert_array_equal(image.read()[0], stack)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(image)).read()[0], stack)
    box = image.read({"Z": slice(2, 4), "Y": slice(3, 9)})[0]
    np.testing.assert_array_equal(box, stack[2:4, 3:9])
    assert any("6 equal series" in note for note in image.notes)
    assert read_image(path, axes="TYX").axes == "TYX"
    assert len(read(str(path))) == 1
    assert not any(line.startswith("series") for line in describe(path))


def test_appended_images_and_labels_make_a_pair(tmp_path: Path) -> None:
    appended(tmp_path / "a.tif")
    appended(tmp_path / "a_label.tif")
    (pair,) = read_pairs(tmp_path / "a.tif", tmp_path / "a_label.tif")
    assert pair.image.shape == pair.labels.shape == (6, 20, 30)


def test_series_of_different_kinds_are_refused_by_name(tmp_path: Path) -> None:
    path = mixed(tmp_path / "a.tif", [(64, 64), (64, 64), (32, 48)])
    for function in (read_image, read_labels):
        with pytest.raises(ImageError, match=r"\(2, 64, 64\).*\(32, 48\).*--series 0"):
            function(path)
    assert read_image(path, series=0).shape == (2, 64, 64)
    assert read_image(path, series=1).shape == (32, 48)
    assert len(read_images(path)) == 2
    assert len(read(str(path))) == 2
    assert sum("series" in line for line in describe(path)) == 3
    assert len([line for line in describe(path, series=1) if "shape" in line]) == 1


def test_pairs_of_a_series_with_labels_of_one(tmp_path: Path) -> None:
    path = mixed(tmp_path / "a.tif", [(64, 64), (32, 48)])
    labels = np.zeros((32, 48), "uint8")
    tifffile.imwrite(tmp_path / "b.tif", labels)
    (pair,) = read_pairs(path, tmp_path / "b.tif", series=1)
    assert pair.image.shape == (32, 48)


def test_thumbnails_are_no_images(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as writer:
        writer.write(np.zeros((64, 64), "uint8"), metadata=None)
        small = np.zeros((8, 8, 3), "uint8")
        writer.write(small, photometric="rgb", subfiletype=1, metadata=None)
    assert read_image(path).shape == (64, 64)


@pytest.mark.parametrize(
    "name", ["s{z:02d}_ch{c}", "ch{c}_z{z}", "s{z}_{word}", "a_t{c}_z{z:03d}"]
)
def test_channels_are_not_interleaved_along_z(tmp_path: Path, name: str) -> None:
    for z in range(3):
        for c, word in enumerate(("DAPI", "GFP")):
            file = tmp_path / (name.format(z=z, c=c, word=word) + ".tif")
            tifffile.imwrite(file, np.full((8, 8), c, "uint8"))
    with pytest.raises(ImageError, match="2 groups of 3 files"):
        read_image(tmp_path)
    pattern = name.format(z=0, c=1, word="GFP").replace("0", "*") + ".tif"
    assert read_image(tmp_path / pattern).shape == (3, 8, 8)


@pytest.mark.parametrize("name", ["s{z}", "time{z}", "c{z}", "rock2_{z}"])
def test_a_stack_may_be_numbered_by_any_letter(tmp_path: Path, name: str) -> None:
    for z in range(3):
        file = tmp_path / (name.format(z=z) + ".tif")
        tifffile.imwrite(file, np.zeros((8, 8), "uint8"))
    assert read_image(tmp_path).shape == (3, 8, 8)


def with_positions(path: Path, axes: str) -> np.ndarray:
    sizes = {"R": 2, "M": 2, "P": 2, "H": 5, "T": 3, "Z": 4, "C": 2, "Y": 16, "X": 20}
    shape = [sizes[axis] for axis in axes]
    array = np.random.default_rng(0).integers(0, 9999, shape).astype("uint16")
    metadata = {"axes": axes}
    tifffile.imwrite(path, array, metadata=metadata, photometric="minisblack")
    return array


@pytest.mark.parametrize("lazy_above", [0, 2**26])
@pytest.mark.parametrize("axes", ["RZYX", "MZYX", "PYX", "RTZCYX"])
def test_each_position_is_an_image(tmp_path: Path, axes: str, lazy_above: int) -> None:
    path = tmp_path / "a.tif"
    array = with_positions(path, axes)
    word = "tile" if "M" in axes else "position"
    with pytest.raises(ImageError, match=f"along the axes {axes}.*--series 0") as error:
        load(path, lazy_above=lazy_above)
    assert f"1: '{word} 1' {array.shape[1:]}" in str(error.value)
    for index in range(2):
        image, _ = load(path, series=index, lazy_above=lazy_above)
        assert (image.axes, image.name) == (axes[1:], f"a {word} {index}")
        np.testing.assert_array_equal(np.asarray(image.data), array[index])
        again = pickle.loads(pickle.dumps(image.data))
        np.testing.assert_array_equal(again[0, ..., 3:5], array[index, 0, ..., 3:5])
    with pytest.raises(ImageError, match="there is no series 2"):
        load(path, series=2)
    assert describe(path)[0].endswith("2 series")
    assert [image.shape for image in read_images(path)] == [array.shape[1:]] * 2
    assert len(read(str(path))) == 2
    if len(axes) == 4:
        assert read_image(path, axes="TZYX").shape == array.shape
        assert load(path, axes="TYX", series=1, lazy_above=lazy_above)[0].axes == "TYX"


def test_lifetimes_are_refused_by_name(tmp_path: Path) -> None:
    with_positions(tmp_path / "a.tif", "HYX")
    with pytest.raises(ImageError, match=r"H \(lifetimes\) is no axis of one image"):
        read_image(tmp_path / "a.tif")
    assert read_image(tmp_path / "a.tif", axes="CYX").channels == 5
