"""Folders and patterns of slices as stacks; slices that do not fit are all named."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import tifffile

from napari_strata.core.classes import ClassMap
from napari_strata.core.errors import ImageError
from napari_strata.core.image import LabelImage
from napari_strata.io import (
    describe,
    read_image,
    read_images,
    read_labels,
    stack,
    write_labels,
)


def slices(
    folder: Path,
    count: int = 12,
    shape: tuple[int, ...] = (30, 20),
    dtype: str = "uint16",
) -> Any:
    """`count` TIFF slices named s0.tif ... s11.tif, and their volume."""
    folder.mkdir(exist_ok=True)
    volume = np.random.default_rng(0).integers(0, 60000, (count, *shape)).astype(dtype)
    for i, plane in enumerate(volume):
        photometric = "rgb" if len(shape) == 3 else "minisblack"
        options: dict[str, Any] = {
            "resolution": (20000, 20000),
            "resolutionunit": "centimeter",
            "metadata": None,
        }
        tifffile.imwrite(
            folder / f"s{i}.tif", plane, photometric=photometric, **options
        )
    return volume


def test_a_folder_in_natural_order(tmp_path: Path) -> None:
    volume = slices(tmp_path / "scan")
    (tmp_path / "scan" / "notes.txt").write_text("not an image")
    (tmp_path / "scan" / ".hidden.tif").write_text("not an image")
    image = read_image(tmp_path / "scan")
    np.testing.assert_array_equal(image.data, volume)
    assert (image.axes, image.name, image.source) == (
        "ZYX",
        "scan",
        str(tmp_path / "scan"),
    )
    assert image.scale == (1.0, 0.5, 0.5)
    assert image.units == ("pixel", "micrometer", "micrometer")
    assert image.notes == (
        "12 files as one stack along Z, in the order s0.tif ... s11.tif",
    )
    assert len(read_images(tmp_path / "scan")) == 1


def test_a_pattern(tmp_path: Path) -> None:
    volume = slices(tmp_path / "scan")
    image = read_image(tmp_path / "scan" / "s1*.tif")
    np.testing.assert_array_equal(image.data, volume[[1, 10, 11]])
    assert image.name == "scan"
    assert "s1.tif ... s11.tif" in image.notes[0]


def test_colour_slices_and_the_users_axes(tmp_path: Path) -> None:
    volume = slices(tmp_path, 3, (30, 20, 3), "uint8")
    image = read_image(tmp_path)
    assert image.axes == "ZYXC"
    np.testing.assert_array_equal(image.data, volume)
    assert read_image(tmp_path, axes="TYXC").axes == "TYXC"
    with pytest.raises(ImageError, match="need 4 letters"):
        read_image(tmp_path, axes="ZYX")


def test_lazy_above_a_size(tmp_path: Path) -> None:
    volume = slices(tmp_path)
    image, _ = stack.load(tmp_path, lazy_above=1000)
    data: Any = image.data
    assert isinstance(data, stack.StackArray)
    for key in (3, (slice(2, 9, 3), slice(4, 9)), (..., 7), (-1, 2, 3)):
        np.testing.assert_array_equal(data[key], volume[key])
    again = pickle.loads(pickle.dumps(data))
    np.testing.assert_array_equal(again[4:6], volume[4:6])
    np.testing.assert_array_equal(image.read({"Z": 11})[0], volume[11])


def test_a_plane_is_decoded_once_for_its_tiles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slices(tmp_path)
    data: Any = stack.load(tmp_path, lazy_above=0)[0].data
    calls = []
    load = stack.tiff.load
    monkeypatch.setattr(
        stack.tiff, "load", lambda *a, **k: (calls.append(a[0]), load(*a, **k))[1]
    )
    for row in range(0, 30, 10):
        data[5, row : row + 10]
    assert len(calls) == 1


def test_png_slices(tmp_path: Path) -> None:
    volume = np.random.default_rng(0).integers(0, 255, (3, 30, 20)).astype(np.uint8)
    for i, plane in enumerate(volume):
        PIL.Image.fromarray(plane).save(tmp_path / f"{i}.png")
    np.testing.assert_array_equal(read_image(tmp_path).data, volume)
    np.testing.assert_array_equal(read_labels(tmp_path).data, volume)


def test_one_slice_is_a_stack_of_one(tmp_path: Path) -> None:
    volume = slices(tmp_path, 1)
    assert read_image(tmp_path).shape == (1, 30, 20)
    np.testing.assert_array_equal(read_image(tmp_path).data, volume)


def test_slices_of_written_labels_keep_their_classes(tmp_path: Path) -> None:
    classes = ClassMap(names=("a", "b"), values=(0, 3))
    planes = np.random.default_rng(0).choice(np.array([0, 3], np.uint8), (4, 1, 30, 20))
    for i, plane in enumerate(planes):
        write_labels(
            tmp_path / f"{i}.tif",
            LabelImage(
                plane, "ZYX", (2.0, 0.5, 0.5), ("micrometer",) * 3, classes=classes
            ),
        )
    labels = read_labels(tmp_path)
    assert labels.classes == classes
    np.testing.assert_array_equal(labels.data, planes[:, 0])
    assert labels.scale == (2.0, 0.5, 0.5)


def test_bool_slices_as_labels(tmp_path: Path) -> None:
    mask = np.random.default_rng(0).random((3, 30, 20)) > 0.5
    for i, plane in enumerate(mask):
        tifffile.imwrite(tmp_path / f"{i}.tif", plane)
    np.testing.assert_array_equal(read_labels(tmp_path).data, mask.astype(np.uint8))
    lazy: Any = stack.load(tmp_path, lazy_above=0, labels=True)[0].data
    np.testing.assert_array_equal(lazy[1], mask[1])


def test_slices_that_differ_are_all_named(tmp_path: Path) -> None:
    slices(tmp_path)
    tifffile.imwrite(tmp_path / "s3.tif", np.zeros((31, 20), np.uint16))
    tifffile.imwrite(tmp_path / "s7.tif", np.zeros((30, 20), np.uint8))
    with pytest.raises(ImageError) as caught:
        read_image(tmp_path)
    text = str(caught.value)
    assert "s0.tif has shape (30, 20) uint16" in text
    assert "s3.tif (31, 20) uint16, s7.tif (30, 20) uint8" in text
    for i in range(1, 9):
        tifffile.imwrite(tmp_path / f"s{i}.tif", np.zeros((31, 20), np.uint16))
    with pytest.raises(ImageError, match="and 3 more"):
        read_image(tmp_path)


def test_a_stack_in_a_folder_is_not_a_slice(tmp_path: Path) -> None:
    tifffile.imwrite(
        tmp_path / "a.tif", np.zeros((5, 30, 20), np.uint8), metadata={"axes": "ZYX"}
    )
    with pytest.raises(
        ImageError, match=r"a\.tif: found shape \(5, 30, 20\) \(ZYX\).*single slices"
    ):
        read_image(tmp_path)


def test_folders_without_images(tmp_path: Path) -> None:
    with pytest.raises(
        ImageError, match="no images in this folder; TIFF, PNG and JPEG"
    ):
        read_image(tmp_path)
    (tmp_path / "images").mkdir()
    with pytest.raises(
        ImageError, match=r"no images in this folder but the folders \['images'\]"
    ):
        read_image(tmp_path)
    with pytest.raises(ImageError, match="nothing matches"):
        read_image(tmp_path / "*.tif")


def test_folders_with_two_formats(tmp_path: Path) -> None:
    slices(tmp_path, 2)
    PIL.Image.fromarray(np.zeros((30, 20), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(ImageError, match=r"several formats \(\.png, TIFF\)"):
        read_image(tmp_path)
    assert read_image(tmp_path / "*.png").shape == (1, 30, 20)


def test_a_folder_is_one_series(tmp_path: Path) -> None:
    slices(tmp_path, 2)
    with pytest.raises(ImageError, match="there is no series 1"):
        read_image(tmp_path, series=1)


def test_a_slice_that_changes_during_reading(tmp_path: Path) -> None:
    slices(tmp_path)
    data: Any = stack.load(tmp_path, lazy_above=0)[0].data
    tifffile.imwrite(tmp_path / "s3.tif", np.zeros((31, 20), np.uint16))
    with pytest.raises(ImageError, match=r"s3\.tif: changed while it was read"):
        data[3]


def test_unknown_suffix(tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(b"x")
    with pytest.raises(
        ImageError, match=r"found the suffix '\.npy'; TIFF, PNG, JPEG, OME-Zarr, "
    ):
        read_image(tmp_path / "a.npy")


def test_describe(tmp_path: Path) -> None:
    slices(tmp_path)
    text = "\n".join(describe(tmp_path))
    assert "12 files: TIFF, plain pages, not compressed, strips" in text
    assert "shape       12 x 30 x 20" in text
