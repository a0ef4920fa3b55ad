"""Every kind of TIFF is read without loss, and damage is reported."""

from __future__ import annotations

import logging
import pickle
import re
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_strata.core.errors import ImageError, LabelError
from napari_strata.core.image import Image
from napari_strata.io import (
    describe,
    read_image,
    read_images,
    read_labels,
    read_pyramid,
    tiff,
    write_image,
)
from napari_strata.io.lazy import CastArray, FileArray

GREY = {"photometric": "minisblack"}


def stack(
    shape: tuple[int, ...] = (5, 40, 48), dtype: Any = "uint16", seed: int = 0
) -> np.ndarray[Any, Any]:
    values = np.random.default_rng(seed).integers(0, 60000, shape)
    return (values > 30000) if dtype is bool else values.astype(dtype)


def write(path: Path, array: np.ndarray[Any, Any], **options: Any) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tifffile.imwrite(path, array, **GREY | options)
    return path


def lazily(path: Path, **options: Any) -> Image:
    return tiff.load(path, lazy_above=0, **options)[0]


def same(image: Image, array: np.ndarray[Any, Any], axes: str) -> None:
    assert image.axes == axes
    assert image.shape == array.shape
    assert image.dtype == array.dtype
    np.testing.assert_array_equal(np.asarray(image.data), array)


# -- kinds of files


@pytest.mark.parametrize(
    "dtype",
    [
        "uint8",
        "uint16",
        "uint32",
        "int16",
        "int32",
        "int64",
        "float16",
        "float32",
        "float64",
    ],
)
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_dtypes_and_byte_orders_read_in_native_bytes(
    tmp_path: Path, dtype: str, byteorder: str
) -> None:
    array = stack(dtype=dtype)
    path = write(
        tmp_path / "a.tif", array, byteorder=byteorder, metadata={"axes": "ZYX"}
    )
    for image in (read_image(path), lazily(path)):
        same(image, array, "ZYX")
        assert image.dtype.isnative


@pytest.mark.parametrize("compression", [None, "zlib", "lzw", "zstd", "packbits"])
@pytest.mark.parametrize("tile", [None, (16, 16)])
@pytest.mark.parametrize("bigtiff", [False, True])
def test_compressions_and_tiles(
    tmp_path: Path, compression: str | None, tile: Any, bigtiff: bool
) -> None:
    array = stack()
    path = write(
        tmp_path / "a.tif",
        array,
        compression=compression,
        tile=tile,
        bigtiff=bigtiff,
        metadata={"axes": "ZYX"},
    )
    same(read_image(path), array, "ZYX")
    lazy = lazily(path)
    same(lazy, array, "ZYX")
    np.testing.assert_array_equal(
        lazy.read({"Z": 3, "Y": slice(7, 31), "X": slice(5, 40)})[0],
        array[3, 7:31, 5:40],
    )


def test_bool(tmp_path: Path) -> None:
    array = stack(dtype=bool)
    path = write(tmp_path / "a.tif", array, metadata={"axes": "ZYX"})
    same(read_image(path), array, "ZYX")
    same(lazily(path), array, "ZYX")


def test_jpeg_is_close_and_of_the_right_shape(tmp_path: Path) -> None:
    y, x = np.mgrid[:64, :80]
    array = np.stack([y * 2, x * 2, y + x], axis=-1).astype(np.uint8)
    path = write(
        tmp_path / "a.tif",
        array,
        photometric="rgb",
        compression="jpeg",
        compressionargs={"level": 95},
    )
    for image in (read_image(path), lazily(path)):
        assert (image.axes, image.shape) == ("YXC", (64, 80, 3))
        assert np.abs(np.asarray(image.data).astype(int) - array).mean() < 3


def test_imagej_hyperstack(tmp_path: Path) -> None:
    array = stack((2, 3, 4, 20, 24))
    metadata = {"axes": "TZCYX", "spacing": 0.5, "unit": "um", "finterval": 3.0}
    path = write(
        tmp_path / "a.tif", array, imagej=True, resolution=(4.0, 2.0), metadata=metadata
    )
    image = read_image(path)
    same(image, array, "TZCYX")
    assert image.scale == (3.0, 0.5, 1.0, 0.5, 0.25)
    assert image.units == ("second", "micrometer", "pixel", "micrometer", "micrometer")


@pytest.mark.parametrize("unit", ["um", "micron", "\\u00B5m", "microns", "micrometre"])
def test_imagej_spellings_of_micrometer(tmp_path: Path, unit: str) -> None:
    path = write(
        tmp_path / "a.tif",
        stack((20, 24)),
        imagej=True,
        resolution=(4.0, 4.0),
        metadata={"unit": unit},
    )
    image = read_image(path)
    assert image.scale == (0.25, 0.25)
    assert image.units == ("micrometer", "micrometer")


def test_imagej_without_a_unit_keeps_only_the_spacing(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.tif",
        stack(),
        imagej=True,
        metadata={"axes": "ZYX", "spacing": 3.0},
    )
    image = read_image(path)
    assert image.scale == (3.0, 1.0, 1.0)
    assert set(image.units) == {"pixel"}


def test_imagej_depth_is_one_unit_unless_stated(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.tif",
        stack(),
        imagej=True,
        resolution=(10, 10),
        metadata={"axes": "ZYX", "unit": "nm"},
    )
    assert read_image(path).scale == (1.0, 0.1, 0.1)
    assert read_image(path).units == ("nanometer",) * 3


def test_imagej_labels_name_the_channels(tmp_path: Path) -> None:
    metadata = {"axes": "CYX", "Labels": ["DAPI", "GFP"]}
    path = write(tmp_path / "a.tif", stack((2, 20, 24)), imagej=True, metadata=metadata)
    assert read_image(path).channel_names == ("DAPI", "GFP")


def test_ome_names_sizes_and_units(tmp_path: Path) -> None:
    array = stack((3, 4, 20, 24))
    metadata = {
        "axes": "CZYX",
        "PhysicalSizeX": 65.0,
        "PhysicalSizeXUnit": "nm",
        "PhysicalSizeY": 0.13,
        "PhysicalSizeZ": 0.5,
        "PhysicalSizeZUnit": "µm",
        "Channel": {"Name": ["DAPI", "GFP", "RFP"]},
    }
    path = write(tmp_path / "a.ome.tif", array, metadata=metadata)
    image = read_image(path)
    same(image, array, "CZYX")
    assert image.name == "a"
    assert image.source == str(path)
    assert image.scale == (1.0, 0.5, 0.13, 65.0)
    assert image.units == ("pixel", "micrometer", "micrometer", "nanometer")
    assert image.channel_names == ("DAPI", "GFP", "RFP")


def series_file(path: Path) -> tuple[Path, list[np.ndarray[Any, Any]]]:
    """Two OME series, the first with a pyramid of three levels."""
    first, second = stack((4, 64, 96)), stack((32, 32), "uint8", seed=1)
    with tifffile.TiffWriter(path, ome=True) as tif:
        options: dict[str, Any] = GREY | {"tile": (16, 16), "compression": "zlib"}
        sizes = {"PhysicalSizeX": 2.0, "PhysicalSizeY": 2.0, "PhysicalSizeZ": 5.0}
        tif.write(
            first,
            subifds=2,
            metadata={"axes": "ZYX", "Name": "rock"} | sizes,
            **options,
        )
        tif.write(first[:, ::2, ::2], subfiletype=1, **options)
        tif.write(first[:, ::4, ::4], subfiletype=1, **options)
        tif.write(
            second,
            metadata={"axes": "YX", "Name": "overview", "PhysicalSizeX": 8.0},
            **options,
        )
    return path, [first, second]


def test_every_series_is_an_image(tmp_path: Path) -> None:
    path, (first, second) = series_file(tmp_path / "a.ome.tif")
    images = read_images(path)
    same(images[0], first, "ZYX")
    same(images[1], second, "YX")
    same(read_image(path, series=1), second, "YX")
    assert [i.name for i in images] == ["a rock", "a overview"]
    assert images[0].scale == (5.0, 2.0, 2.0)
    assert images[1].scale == (1.0, 8.0)


def test_pyramid_levels_are_reachable_and_calibrated(tmp_path: Path) -> None:
    path, (first, _) = series_file(tmp_path / "a.ome.tif")
    levels = read_pyramid(path, series=0)
    assert [level.shape for level in levels] == [(4, 64, 96), (4, 32, 48), (4, 16, 24)]
    assert [level.scale for level in levels] == [(5, 2, 2), (5, 4, 4), (5, 8, 8)]
    np.testing.assert_array_equal(levels[2].data, first[:, ::4, ::4])
    lazy = tiff.pyramid(path, series=0, lazy_above=0)[1]
    same(lazy, first[:, ::2, ::2], "ZYX")
    assert len(read_pyramid(path, series=1)) == 1


def test_a_missing_series(tmp_path: Path) -> None:
    path, _ = series_file(tmp_path / "a.ome.tif")
    with pytest.raises(
        ImageError, match="found 2 series, numbered from 0; there is no series 2"
    ):
        read_image(path, series=2)


@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("pages", [0, 4])
def test_rgb_interleaved_and_planar(tmp_path: Path, planar: bool, pages: int) -> None:
    shape = (30, 20)
    array = stack(
        (*((pages,) if pages else ()), *((3, *shape) if planar else (*shape, 3))),
        "uint8",
    )
    config = "separate" if planar else "contig"
    path = write(
        tmp_path / "a.tif",
        array,
        photometric="rgb",
        planarconfig=config,
        metadata=None,
        compression="lzw",
    )
    axes = ("Z" if pages else "") + ("CYX" if planar else "YXC")
    same(read_image(path), array, axes)
    same(lazily(path), array, axes)
    red = array[..., 0, :, :] if planar else array[..., 0]
    np.testing.assert_array_equal(read_image(path).read()[0], red)


@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_alpha_is_dropped_with_a_note(
    tmp_path: Path, planar: bool, compression: str | None
) -> None:
    array = stack((4, 30, 20) if planar else (30, 20, 4), "uint8")
    config = "separate" if planar else "contig"
    path = write(
        tmp_path / "a.tif",
        array,
        photometric="rgb",
        planarconfig=config,
        compression=compression,
    )
    kept = array[:3] if planar else array[..., :3]
    for image in (read_image(path), lazily(path)):
        same(image, kept, "CYX" if planar else "YXC")
        assert any("alpha" in note for note in image.notes)


def test_a_fourth_channel_that_is_not_alpha_is_kept(tmp_path: Path) -> None:
    array = stack((30, 20, 4), "uint8")
    path = write(
        tmp_path / "a.tif", array, photometric="rgb", extrasamples=["unspecified"]
    )
    same(read_image(path), array, "YXC")
    assert read_image(path).notes == ()


def test_palette_indices_are_kept(tmp_path: Path) -> None:
    array = stack((30, 20), "uint8")
    colormap = np.zeros((3, 256), np.uint16)
    path = write(tmp_path / "a.tif", array, photometric="palette", colormap=colormap)
    same(read_image(path), array, "YX")
    assert any("colour table" in note for note in read_image(path).notes)


# -- axes


def test_unnamed_pages_are_taken_as_z_with_a_note(tmp_path: Path) -> None:
    array = stack()
    for metadata in (None, {}):
        image = read_image(write(tmp_path / "a.tif", array, metadata=metadata))
        same(image, array, "ZYX")
        assert len(image.notes) == 1
        assert "taken as Z" in image.notes[0]
        assert "--axes TYX" in image.notes[0]


def test_one_page_has_no_note(tmp_path: Path) -> None:
    image = read_image(write(tmp_path / "a.tif", stack((40, 48)), metadata=None))
    assert (image.axes, image.notes) == ("YX", ())


def test_the_users_axes_override_the_files(tmp_path: Path) -> None:
    array = stack()
    path = write(
        tmp_path / "a.tif",
        array,
        imagej=True,
        metadata={"axes": "ZYX", "unit": "um"},
        resolution=(2, 2),
    )
    image = read_image(path, axes="tyx")
    same(image, array, "TYX")
    assert image.scale == (1.0, 0.5, 0.5)
    assert image.notes == ()


def test_two_unknown_axes_must_be_named(tmp_path: Path) -> None:
    array = stack((2, 3, 20, 24))
    path = write(tmp_path / "a.tif", array)
    with pytest.raises(
        ImageError, match=r"a\.tif: found shape \(2, 3, 20, 24\).*--axes CZYX"
    ):
        read_image(path)
    same(read_image(path, axes="TZYX"), array, "TZYX")


@pytest.mark.parametrize(
    ("axes", "text"),
    [("ZY", "need 3 letters"), ("QYX", "not one of"), ("YYX", "is duplicated")],
)
def test_axes_that_do_not_fit(tmp_path: Path, axes: str, text: str) -> None:
    path = write(tmp_path / "a.tif", stack())
    with pytest.raises(ImageError, match=rf"a\.tif: found axes.*{text}"):
        read_image(path, axes=axes)


def test_axes_of_length_one_may_be_named_too(tmp_path: Path) -> None:
    array = stack((1, 4, 1, 20, 24))
    path = write(
        tmp_path / "a.ome.tif", array, metadata={"axes": "TZCYX"}, compression="zlib"
    )
    same(read_image(path), array[0, :, 0], "ZYX")
    same(read_image(path, axes="TZCYX"), array, "TZCYX")
    same(read_image(path, axes="ZCYX"), array[0], "ZCYX")
    lazy = lazily(path, axes="TZCYX")
    same(lazy, array, "TZCYX")
    np.testing.assert_array_equal(lazy.data[0, 2, 0, 3:9], array[0, 2, 0, 3:9])


def test_unknown_axes_of_length_one_are_ignored(tmp_path: Path) -> None:
    array = stack((1, 5, 20, 24))
    same(read_image(write(tmp_path / "a.tif", array)), array[0], "ZYX")
    same(read_image(write(tmp_path / "b.tif", array[0, :1])), array[0, :1], "ZYX")


def test_both_channels_and_samples_are_refused(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.tif",
        stack((2, 20, 24, 3), "uint8"),
        photometric="rgb",
        metadata={"axes": "CYXS"},
    )
    with pytest.raises(ImageError, match="both channels and RGB samples"):
        read_image(path)


# -- calibration by plain tags and shaped metadata


@pytest.mark.parametrize(
    ("unit", "per"),
    [("inch", 72), ("inch", 96), ("inch", 1), ("centimeter", 72 / 2.54)],
)
def test_default_resolutions_are_not_pixel_sizes(
    tmp_path: Path, unit: str, per: float
) -> None:
    path = write(
        tmp_path / "a.tif",
        stack((40, 48)),
        metadata=None,
        resolution=(per, per),
        resolutionunit=unit,
    )
    assert read_image(path).scale == (1.0, 1.0)
    assert read_image(path).units == ("pixel", "pixel")


def test_resolution_in_centimetres_is_a_pixel_size(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "resolution": (50000, 20000),
        "resolutionunit": "centimeter",
    }
    for metadata in (None, {"spacing": 0.0001}):
        array = stack((40, 48)) if metadata is None else stack((3, 40, 48))
        image = read_image(
            write(tmp_path / "a.tif", array, metadata=metadata, **options)
        )
        assert image.pixel_size == {"Y": 0.5, "X": 0.2} | (
            {} if metadata is None else {"Z": 1.0}
        )
        assert set(image.units) == {"micrometer"}


def test_shaped_metadata(tmp_path: Path) -> None:
    metadata = {
        "axes": "CZYX",
        "PhysicalSizeX": 0.1,
        "PhysicalSizeZ": 300,
        "PhysicalSizeZUnit": "nm",
        "Channel": {"Name": ["a", "b"]},
    }
    image = read_image(
        write(tmp_path / "a.tif", stack((2, 3, 20, 24)), metadata=metadata)
    )
    assert image.scale == (1.0, 300.0, 1.0, 0.1)
    assert image.units == ("pixel", "nanometer", "pixel", "micrometer")
    assert image.channel_names == ("a", "b")


def test_channel_names_that_do_not_fit_are_left_out(tmp_path: Path) -> None:
    metadata = {"axes": "CYX", "channel_names": ["a", "b"]}
    assert (
        read_image(
            write(tmp_path / "a.tif", stack((3, 20, 24)), metadata=metadata)
        ).channel_names
        == ()
    )


# -- lazy


def test_plain_large_files_are_mapped_and_others_chunked(tmp_path: Path) -> None:
    array = stack()
    mapped = lazily(write(tmp_path / "a.tif", array, metadata={"axes": "ZYX"}))
    assert isinstance(mapped.data, np.memmap)
    assert not mapped.data.flags.writeable
    swapped = lazily(
        write(tmp_path / "b.tif", array, metadata={"axes": "ZYX"}, byteorder=">")
    )
    packed = lazily(
        write(tmp_path / "c.tif", array, metadata={"axes": "ZYX"}, compression="zlib")
    )
    assert isinstance(swapped.data, FileArray)
    assert isinstance(packed.data, FileArray)
    assert isinstance(read_image(tmp_path / "c.tif").data, np.ndarray)


def test_the_default_limit_is_64_megabytes(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.memmap(
        path, shape=(65, 1024, 1024), dtype="uint8", metadata={"axes": "ZYX"}, **GREY
    )[64, 5, 6] = 7
    image = read_image(path)
    assert isinstance(image.data, np.memmap)
    assert image.read({"Z": 64, "Y": slice(5, 6), "X": slice(5, 8)}).tolist() == [
        [[0, 7, 0]]
    ]
    assert any("memory-mapped" in line for line in describe(path))


def test_lazy_arrays_pickle_by_path(tmp_path: Path) -> None:
    array = stack()
    path = write(
        tmp_path / "a.tif", array, compression="zlib", metadata={"axes": "ZYX"}
    )
    data = lazily(path).data
    np.testing.assert_array_equal(
        data[2], array[2]
    )  # opened: the open file must not travel
    packed = pickle.dumps(data)
    assert len(packed) < 1000
    again = pickle.loads(packed)
    np.testing.assert_array_equal(again[1:4, ::3, -5:], array[1:4, ::3, -5:])


def test_lazy_indexing_equals_numpy(tmp_path: Path) -> None:
    array = stack()
    data: Any = lazily(
        write(tmp_path / "a.tif", array, compression="zlib", metadata={"axes": "ZYX"})
    ).data
    keys: list[Any] = [
        0,
        -1,
        slice(1, 3),
        (slice(None), 4),
        (..., 7),
        (2, ..., slice(3, 9)),
        (1, 2, 3),
        slice(3, 3),
    ]
    for key in keys:
        found = data[key]
        assert found.shape == array[key].shape
        np.testing.assert_array_equal(found, array[key])
    assert (len(data), data.ndim, data.size, data.nbytes) == (
        5,
        3,
        array.size,
        array.nbytes,
    )
    assert np.asarray(data, np.float32).dtype == np.float32
    for wrong in (5, (0, 0, 0, 0), ([1, 2],), (slice(None, None, -1),)):
        with pytest.raises(IndexError):
            data[wrong]


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_pages_in_many_strips_are_read_by_region(
    tmp_path: Path, compression: str | None
) -> None:
    array = stack((3, 300, 260), "uint8")
    pages = [PIL.Image.fromarray(plane) for plane in array]
    path = tmp_path / "a.tif"
    options: dict[str, Any] = {"save_all": True, "append_images": pages[1:]}
    pages[0].save(path, compression=compression, strip_size=2000, **options)
    with tifffile.TiffFile(path) as tif:
        strips = len(tif.pages.first.dataoffsets)
    assert strips > 4 or compression is None  # Pillow compresses strip by strip only
    lazy = lazily(path)
    assert isinstance(lazy.data, FileArray)
    same(lazy, array, "ZYX")
    np.testing.assert_array_equal(
        lazy.data[::2, 11:299:7, 250:], array[::2, 11:299:7, 250:]
    )


def test_planar_samples_in_tiles_are_read_by_region(tmp_path: Path) -> None:
    array = stack((2, 3, 70, 50), "uint8")
    path = write(
        tmp_path / "a.tif",
        array,
        photometric="rgb",
        planarconfig="separate",
        compression="zlib",
        tile=(32, 32),
        metadata=None,
    )
    lazy = lazily(path)
    same(lazy, array, "ZCYX")
    np.testing.assert_array_equal(
        lazy.data[1, 1:, 30:66:5, 40], array[1, 1:, 30:66:5, 40]
    )


def test_missing_tiles_of_a_sparse_file_are_zero(tmp_path: Path) -> None:
    tile = np.full((16, 16), 7, np.uint8)
    tiles = iter([tile, None, None, tile])
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path, tiles, shape=(32, 32), dtype="uint8", tile=(16, 16), compression="zlib"
    )
    expected = np.kron(np.eye(2, dtype=np.uint8), tile)
    for image in (read_image(path), lazily(path)):
        same(image, expected, "YX")


def test_regions_of_an_ome_set_of_several_files(tmp_path: Path) -> None:
    array = stack((2, 20, 24))
    options: dict[str, Any] = {"compression": "zlib"}
    path = write(tmp_path / "a.ome.tif", array[0], **options)
    other = write(tmp_path / "b.ome.tif", array[1], **options)
    data = [
        f'<TiffData IFD="0" FirstZ="{z}" PlaneCount="1">'
        f'<UUID FileName="{file.name}">urn:uuid:{z}</UUID></TiffData>'
        for z, file in enumerate([path, other])
    ]
    for z, file in enumerate([path, other]):
        with tifffile.TiffFile(file) as tif:
            xml = tif.ome_metadata or ""
        xml = re.sub(r'UUID="urn[^"]*"', f'UUID="urn:uuid:{z}"', xml)
        xml = re.sub(r"<TiffData.*?(/>|</TiffData>)", "".join(data), xml)
        tifffile.tiffcomment(file, xml.replace('SizeZ="1"', 'SizeZ="2"'))
    same(read_image(path), array, "ZYX")
    lazy = lazily(path)
    same(lazy, array, "ZYX")
    np.testing.assert_array_equal(lazy.data[1, 3:9], array[1, 3:9])


# -- labels


def test_labels_keep_their_integers(tmp_path: Path) -> None:
    array = stack(dtype="int32")
    labels = read_labels(write(tmp_path / "a.tif", array, metadata={"axes": "ZYX"}))
    same(labels, array, "ZYX")
    assert labels.classes is None


def test_bool_images_that_this_project_writes(tmp_path: Path) -> None:
    array = stack(dtype=bool)
    path = write_image(tmp_path / "a.tif", Image(array, "ZYX"))
    np.testing.assert_array_equal(tifffile.imread(path), array)
    for lazy_above in (0, 2**26):
        (image,) = read_images(path, lazy_above=lazy_above)
        assert image.dtype == bool
        np.testing.assert_array_equal(np.asarray(image.data), array)


def test_bool_labels_become_zero_and_one(tmp_path: Path) -> None:
    array = stack(dtype=bool)
    path = write(tmp_path / "a.tif", array, metadata={"axes": "ZYX"})
    labels = read_labels(path)
    same(labels, array.astype(np.uint8), "ZYX")
    same(
        Image(CastArray(lazily(path).data, np.uint8), "ZYX"),
        array.astype(np.uint8),
        "ZYX",
    )  # type: ignore[arg-type]


def test_float_labels_are_refused_never_cut(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", np.tile(np.float32([0, 0.33, 0.67, 1]), (8, 2)))
    with pytest.raises(
        LabelError, match=r"a\.tif: found labels of dtype float32 \(0, 0\.33, 0\.67, 1"
    ):
        read_labels(path)


def test_rgb_masks_keep_their_colours(tmp_path: Path) -> None:
    array = stack((30, 20, 3), "uint8")
    same(read_labels(write(tmp_path / "a.tif", array, photometric="rgb")), array, "YXC")


# -- bad files


def test_missing_file_names_the_nearest(tmp_path: Path) -> None:
    write(tmp_path / "sandstone_01.tif", stack())
    with pytest.raises(
        ImageError, match=r"no such file; did you mean 'sandstone_01\.tif'\?"
    ):
        read_image(tmp_path / "sandstone_1.tif")
    with pytest.raises(ImageError, match="no such file; check the name"):
        read_image(tmp_path / "x.tif")
    with pytest.raises(ImageError, match="no folder"):
        read_image(tmp_path / "nowhere" / "x.tif")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"hello, this is text", "not a TIFF file: it starts with b'hello, t'"),
        (b"", "not a TIFF file: it is empty"),
        (b"\x89PNG\r\n\x1a\n....", "it is a PNG; give it its own suffix"),
        (b"II*\0", "truncated or damaged TIFF"),
        (b"II*\0\0\0\0\0", "without pixels"),
    ],
)
def test_not_a_tiff(tmp_path: Path, content: bytes, text: str) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(content)
    with pytest.raises(ImageError) as caught:
        read_image(path)
    assert text in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_folder_is_not_a_tiff(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="is a folder, not a TIFF"):
        tiff.load(tmp_path)


KINDS: dict[str, dict[str, Any]] = {
    "shaped": {},
    "plain": {"metadata": None},
    "imagej": {"imagej": True},
    "ome": {"ome": True},
    "shaped zlib": {"compression": "zlib"},
    "plain zlib": {"compression": "zlib", "metadata": None},
    "ome tiled": {"ome": True, "compression": "zlib", "tile": (16, 16)},
    "imagej zlib": {"imagej": True, "compression": "zlib"},
    "big": {"compression": "zlib", "metadata": None, "bigtiff": True},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.001, 0.1, 0.3, 0.6, 0.97])
def test_truncated_files_are_refused_before_use(
    tmp_path: Path, kind: str, share: float
) -> None:
    whole = write(
        tmp_path / "whole.tif", stack((6, 64, 64)), **KINDS[kind]
    ).read_bytes()
    path = tmp_path / "cut.tif"
    path.write_bytes(whole[: max(6, int(len(whole) * share))])
    for lazy_above in (0, 2**30):
        with pytest.raises(ImageError, match=r"cut\.tif: .*(truncated|damaged)"):
            tiff.load(path, lazy_above=lazy_above, axes="ZYX")


def test_damage_is_found_without_tifffile_messages(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.tif", stack((6, 64, 64)), metadata=None).read_bytes()
    path = tmp_path / "cut.tif"
    path.write_bytes(whole[: len(whole) // 2])
    logging.disable(logging.CRITICAL)
    try:
        with pytest.raises(ImageError, match="truncated or damaged"):
            read_image(path)
    finally:
        logging.disable(logging.NOTSET)


def test_pages_in_a_loop_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", stack(), compression="zlib", metadata=None)
    with tifffile.TiffFile(path) as tif:
        first, third = tif.pages[0].offset, tif.pages[2].offset
        count = len(tif.pages[2].tags)
    raw = bytearray(path.read_bytes())
    struct.pack_into("<I", raw, third + 2 + 12 * count, first)
    path.write_bytes(raw)
    with pytest.raises(ImageError, match="page 3 leads back to an earlier page"):
        read_image(path)


def test_a_tag_outside_the_file_is_damage(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", stack(), compression="zlib", metadata=None)
    with tifffile.TiffFile(path) as tif:
        tag = tif.pages[0].tags["XResolution"]
        raw = bytearray(path.read_bytes())
        struct.pack_into("<I", raw, tag.offset + 8, 10**8)
    path.write_bytes(raw)
    with pytest.raises(ImageError, match="tag 282 of page 0 is outside"):
        read_image(path)


def test_one_page_that_describes_all_planes(tmp_path: Path) -> None:
    array = stack()
    path = write(tmp_path / "a.tif", array, metadata={"axes": "ZYX", "truncated": True})
    same(read_image(path), array, "ZYX")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ImageError, match="truncated"):
        read_image(path)


def test_damage_inside_is_an_image_error_when_read(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.tif", stack(), compression="zlib", metadata={"axes": "ZYX"}
    )
    with tifffile.TiffFile(path) as tif:
        page = tif.pages[3]
        offset, length = page.dataoffsets[0], page.databytecounts[0]
    raw = bytearray(path.read_bytes())
    raw[offset : offset + length] = bytes(length)
    path.write_bytes(raw)
    with pytest.raises(ImageError, match="pixels cannot be read"):
        read_image(path)
    lazy = lazily(path)
    lazy.read({"Z": 2})
    with pytest.raises(ImageError, match="pixels cannot be read"):
        lazy.read({"Z": 3})


def test_a_file_that_vanishes_is_an_image_error(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.tif", stack(), compression="zlib", metadata={"axes": "ZYX"}
    )
    lazy = lazily(path)
    path.unlink()
    with pytest.raises(ImageError, match="pixels cannot be read"):
        lazy.read({"Z": 2})


def test_missing_companion_of_an_ome_set(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ome.tif", stack((2, 20, 24)), metadata={"axes": "ZYX"})
    with tifffile.TiffFile(path) as tif:
        xml = tif.ome_metadata or ""
    uuid = '<UUID FileName="b.ome.tif">urn:uuid:00000000-0000-0000-0000-000000000001</UUID>'
    second = f'<TiffData IFD="0" FirstZ="1" PlaneCount="1">{uuid}</TiffData>'
    xml = xml.replace('PlaneCount="2"/>', f'PlaneCount="1"/>{second}')
    tifffile.tiffcomment(path, xml)
    image = read_image(path)
    assert image.shape == (1, 20, 24)
    assert "1 of 2 planes along Z: the others are in b.ome.tif" in image.notes[0]


def test_an_ome_file_whose_planes_are_all_in_missing_files(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ome.tif", stack((20, 24)), metadata={"axes": "YX"})
    with tifffile.TiffFile(path) as tif:
        xml = tif.ome_metadata or ""
    uuid = '<UUID FileName="b.ome.tif">urn:uuid:0001</UUID>'
    planes = f'<TiffData IFD="0" PlaneCount="1">{uuid}</TiffData>'
    tifffile.tiffcomment(path, re.sub(r"<TiffData[^>]*/>", planes, xml))
    with pytest.raises(ImageError, match=r"planes are in b\.ome\.tif; put all files"):
        read_image(path)


def test_other_dtypes_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", stack((20, 24)).astype(np.complex64))
    with pytest.raises(ImageError, match="found pixels of dtype complex64"):
        read_image(path)
    with pytest.raises(ImageError, match="without pixels"):
        read_image(write(tmp_path / "b.tif", np.zeros((0, 4), np.uint8)))


# -- info


def test_describe(tmp_path: Path) -> None:
    path, _ = series_file(tmp_path / "a.ome.tif")
    text = "\n".join(describe(path))
    for part in (
        "2 series",
        "shape       4 x 64 x 96",
        "axes        ZYX",
        "dtype       uint16",
        "pixel size  Z 5 micrometer, Y 2 micrometer, X 2 micrometer",
        "TIFF, OME, zlib, tiles 16 x 16, 3 resolutions",
        "read        whole, into memory",
        "a overview",
    ):
        assert part in text


def test_describe_names_missing_axes(tmp_path: Path) -> None:
    text = "\n".join(describe(write(tmp_path / "a.tif", stack((2, 3, 20, 24)))))
    assert "axes        unknown" in text
    assert "(2, 3, 20, 24)" in text
    assert "not compressed" in text


# -- any array


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 40), st.integers(1, 40)),
    dtype=st.sampled_from(
        ["uint8", "uint16", "uint32", "int8", "int16", "float32", "float64"]
    ),
    kind=st.sampled_from(["shaped", "ome", "imagej"]),
    compression=st.sampled_from([None, "zlib", "lzw", "zstd"]),
    byteorder=st.sampled_from(["<", ">"]),
    seed=st.integers(0, 1000),
)
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory,
    shape: tuple[int, int, int],
    dtype: str,
    kind: str,
    compression: str | None,
    byteorder: str,
    seed: int,
) -> None:
    if kind == "imagej":  # whose files tifffile writes wrongly when a side is 1
        shape = (shape[0], max(shape[1], 2), max(shape[2], 2))
        dtype, byteorder = (
            {"uint32": "float32", "int8": "uint8", "float64": "float32"}.get(
                dtype, dtype
            ),
            ">",
        )
    array = stack(shape, dtype, seed)
    options = {
        "ome": kind == "ome",
        "imagej": kind == "imagej",
        "byteorder": byteorder,
        "compression": compression,
    }
    path = write(
        tmp_path_factory.mktemp("t") / "a.tif",
        array,
        metadata={"axes": "ZYX"},
        **options,
    )
    for image in (read_image(path, axes="ZYX"), lazily(path, axes="ZYX")):
        same(image, array, "ZYX")
