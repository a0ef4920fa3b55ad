"""Metadata that change what pixels mean: orientation, pixels without data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
import tifffile

from napari_strata.core.normalization import fixed
from napari_strata.core.recipes import load_recipe
from napari_strata.core.spec import resolve
from napari_strata.io import read_image, read_labels, read_pairs
from napari_strata.plugin import read

NODATA = 42113
ORIENTATION = 274


def write(path: Path, array: np.ndarray, *, tags: dict[int, object]) -> Path:
    codes = {NODATA: "s", ORIENTATION: "H"}
    extra = []
    for code, value in tags.items():
        count = 0 if codes[code] == "s" else 1
        extra.append((code, codes[code], count, value, True))
    photometric = "rgb" if array.shape[-1] == 3 else "minisblack"
    tifffile.imwrite(
        path, array, metadata=None, extratags=extra, photometric=photometric
    )
    return path


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_that_of_pillow(
    tmp_path: Path, orientation: int, *, lazy: bool
) -> None:
    stored = np.arange(6 * 9, dtype="uint8").reshape(6, 9)
    path = write(tmp_path / "a.tif", stored, tags={ORIENTATION: orientation})
    picture = PIL.Image.fromarray(stored)
    picture.getexif()[ORIENTATION] = orientation
    upright = np.asarray(PIL.ImageOps.exif_transpose(picture))

    from napari_strata.io.tiff import load

    image, _ = load(path, lazy_above=0 if lazy else 2**20)

    np.testing.assert_array_equal(np.asarray(image.data), upright)
    box = {"Y": slice(1, 4), "X": slice(2, 6)}
    np.testing.assert_array_equal(image.read(box)[0], upright[1:4, 2:6])
    np.testing.assert_array_equal(read_labels(path).read()[0], upright)
    assert bool(image.notes) == (orientation > 1)


def test_exif_turns_png_and_jpeg(tmp_path: Path) -> None:
    stored = np.zeros((16, 24), "uint8")
    stored[:4, :4] = 255
    exif = PIL.Image.Exif()
    exif[ORIENTATION] = 6
    for suffix in (".png", ".jpg"):
        path = tmp_path / f"a{suffix}"
        PIL.Image.fromarray(stored).save(path, exif=exif, quality=95)
        image = read_image(path)
        assert image.shape == (24, 16)
        assert image.read()[0][:3, -3:].min() > 200


def test_nodata_is_nan_in_scale_and_labelled_regions(tmp_path: Path) -> None:
    grey = np.random.default_rng(0).random((64, 64)).astype("float32")
    grey[:, :30] = -9999
    grey[0, -1] = np.nan
    write(tmp_path / "a.tif", grey, tags={NODATA: "-9999"})
    labels = (np.arange(64 * 64).reshape(64, 64) % 2).astype("uint8")
    tifffile.imwrite(tmp_path / "a_label.tif", labels)

    pairs = read_pairs(tmp_path / "a.tif", tmp_path / "a_label.tif")
    read_values = pairs[0].image.read()[0]
    spec = resolve(load_recipe("unet-ct"), pairs)

    assert np.isnan(read_values[:, :30]).all()
    assert np.isnan(read_values).sum() == 64 * 30 + 1
    assert -2 < spec.normalization.scale.low[0] < spec.normalization.scale.high[0] < 3
    assert any("no data" in note for note in pairs[0].image.notes)


def test_nodata_of_integers_keeps_values_and_full_scale(tmp_path: Path) -> None:
    grey = np.arange(32 * 32, dtype="uint16").reshape(32, 32)
    path = write(tmp_path / "a.tif", grey, tags={NODATA: "0"})
    image = read_image(path)
    values = image.read({"Y": slice(0, 2)})[0]
    assert np.isnan(values[0, 0])
    np.testing.assert_array_equal(values.ravel()[1:], grey[:2].ravel()[1:])
    assert fixed("dtype", image.dtype, 1).spread == (65535.0,)
    # A viewer shows the stored values.
    np.testing.assert_array_equal(np.asarray(read(str(path))[0][0]), grey)


def test_nodata_of_a_colour_image_is_in_all_channels(tmp_path: Path) -> None:
    grey = np.full((8, 8, 3), 9, "uint8")
    grey[0, 0] = 0
    grey[0, 1, 2] = 0
    image = read_image(write(tmp_path / "a.tif", grey, tags={NODATA: "0"}))
    empty = np.isnan(image.read({"C": slice(1, 2)})[0])
    assert empty.sum() == 1
    assert empty[0, 0]


@pytest.mark.parametrize("value", ["nan", "-9999", "300", "0.5", "what"])
def test_nodata_that_no_pixel_can_have_changes_nothing(
    tmp_path: Path, value: str
) -> None:
    path = write(tmp_path / "a.tif", np.ones((4, 4), "uint8"), tags={NODATA: value})
    image = read_image(path)
    assert (image.dtype, image.notes) == (np.uint8, ())


def test_labels_keep_their_values_and_name_the_option(tmp_path: Path) -> None:
    array = np.array([[0, 1], [255, 255]], "uint8")
    labels = read_labels(write(tmp_path / "a.tif", array, tags={NODATA: "255"}))
    np.testing.assert_array_equal(labels.read()[0], array)
    assert any("--unlabelled 255" in note for note in labels.notes)
