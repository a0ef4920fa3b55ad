"""PNG and JPEG files as colours or label indices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import PIL.Image
import pytest

from napari_strata.core.errors import ImageError, LabelError
from napari_strata.io import (
    describe,
    raster,
    read_image,
    read_images,
    read_labels,
    read_pyramid,
)


def noise(shape: tuple[int, ...], dtype: str = "uint8") -> np.ndarray[Any, Any]:
    return (
        np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape).astype(dtype)
    )


def save(path: Path, array: np.ndarray[Any, Any], mode: str | None = None) -> Path:
    picture = PIL.Image.fromarray(array)
    (picture.convert(mode) if mode else picture).save(path)
    return path


@pytest.mark.parametrize(
    ("array", "axes"),
    [
        (noise((30, 20)), "YX"),
        (noise((30, 20), "uint16"), "YX"),
        (noise((30, 20, 3)), "YXC"),
    ],
    ids=["grey", "16 bits", "rgb"],
)
def test_png(tmp_path: Path, array: np.ndarray[Any, Any], axes: str) -> None:
    path = save(tmp_path / "a.png", array)
    image = read_image(path)
    assert (image.axes, image.dtype, image.name, image.source, image.notes) == (
        axes,
        array.dtype,
        "a",
        str(path),
        (),
    )
    np.testing.assert_array_equal(image.data, array)
    assert raster.header(path) == (axes, array.shape, array.dtype)
    assert [i.shape for i in read_images(path)] == [array.shape]
    assert [i.shape for i in read_pyramid(path)] == [array.shape]
    np.testing.assert_array_equal(read_labels(path).data, array)


@pytest.mark.parametrize("channels", [3, 4])
def test_colours_of_16_bits_are_not_cut(tmp_path: Path, channels: int) -> None:
    array = noise((30, 20, channels), "uint16")
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(array))
    image = read_image(tmp_path / "a.png")
    assert image.dtype == np.uint16
    np.testing.assert_array_equal(image.data, array[..., :3])
    assert raster.header(tmp_path / "a.png") == ("YXC", (30, 20, 3), np.uint16)


@pytest.mark.parametrize(("channels", "axes"), [(4, "YXC"), (2, "YX")])
def test_alpha_is_dropped_with_a_note(tmp_path: Path, channels: int, axes: str) -> None:
    array = noise((30, 20, channels))
    image = read_image(save(tmp_path / "a.png", array))
    assert image.axes == axes
    np.testing.assert_array_equal(
        image.data, array[..., :3] if channels == 4 else array[..., 0]
    )
    assert image.notes == ("the alpha (transparency) channel is left out",)


def test_palette_is_colours_as_an_image_and_indices_as_labels(tmp_path: Path) -> None:
    indices = noise((30, 20)) % 3
    picture = PIL.Image.fromarray(indices.astype(np.uint8))
    picture = PIL.Image.frombytes("P", picture.size, picture.tobytes())
    picture.putpalette([0, 0, 0, 255, 0, 0, 0, 200, 30])
    picture.save(tmp_path / "a.png")
    labels = read_labels(tmp_path / "a.png")
    assert (labels.axes, labels.dtype) == ("YX", np.uint8)
    np.testing.assert_array_equal(labels.data, indices)
    image = read_image(tmp_path / "a.png")
    assert image.axes == "YXC"
    palette = np.array([(0, 0, 0), (255, 0, 0), (0, 200, 30)], np.uint8)
    np.testing.assert_array_equal(image.data, palette[indices])
    assert any("palette" in note for note in image.notes)


def test_one_bit(tmp_path: Path) -> None:
    mask = noise((30, 20)) > 100
    path = save(tmp_path / "a.png", mask)
    assert read_image(path).dtype == bool
    np.testing.assert_array_equal(read_labels(path).data, mask.astype(np.uint8))
    assert raster.header(path)[2] == np.dtype("bool")


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpeg(tmp_path: Path, mode: str) -> None:
    y, x = np.mgrid[:64, :80]
    path = save(tmp_path / "a.jpg", np.stack([y, x, x + y], -1).astype(np.uint8), mode)
    image = read_image(path)
    assert image.shape == ((64, 80) if mode == "L" else (64, 80, 3))
    if mode == "RGB":
        assert np.abs(np.asarray(image.data)[..., 1].astype(int) - x).mean() < 4
    with pytest.raises(LabelError, match="JPEG changes label values"):
        read_labels(path)


def test_the_users_axes(tmp_path: Path) -> None:
    assert read_image(save(tmp_path / "a.png", noise((30, 20))), axes="XY").axes == "XY"
    with pytest.raises(ImageError, match=r"a\.png: found axes 'ZYX'"):
        read_image(tmp_path / "a.png", axes="ZYX")


def test_bad_files(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", noise((300, 200)))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        ImageError, match=r"a\.png: the pixels cannot be read .*truncated"
    ):
        read_image(path)
    path.write_bytes(b"hello")
    with pytest.raises(ImageError, match="not a PNG or JPEG"):
        read_image(path)
    with pytest.raises(ImageError, match="no such file"):
        read_image(tmp_path / "b.png")
    with pytest.raises(ImageError, match="there is no series 1"):
        read_image(save(path, noise((3, 3))), series=1)


def test_images_larger_than_pillow_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 100)
    assert read_image(save(tmp_path / "a.png", noise((300, 200)))).shape == (300, 200)
    assert PIL.Image.MAX_IMAGE_PIXELS == 100


def test_describe(tmp_path: Path) -> None:
    text = "\n".join(describe(save(tmp_path / "a.png", noise((30, 20, 4)))))
    assert "PNG, mode RGBA" in text
    assert "note        the alpha" in text
