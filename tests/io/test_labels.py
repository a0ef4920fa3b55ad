"""Files of every format read back identical: pixels, dtype, axes, scale, units, names, class map."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_strata.core.classes import ClassMap
from napari_strata.core.errors import ImageError, LabelError, RunError
from napari_strata.core.image import Image, LabelImage
from napari_strata.io import (
    blocks,
    describe,
    read_image,
    read_labels,
    tiff,
    tiff_write,
    write_labels,
)
from napari_strata.io import write_probabilities as write_floats
from napari_strata.io.labels import label_dtype, write_image

CLASSES = ClassMap(
    names=("pore", "clay µ <&>"),
    values=(1, 4),
    colors=("#102030", "#fffefd"),
    unlabelled=(0, 9),
)
FORMATS = [".tif", ".ome.tiff", ".zarr"]


def labels(
    shape: tuple[int, ...] = (3, 40, 52),
    dtype: Any = "uint8",
    axes: str = "ZYX",
    **more: Any,
) -> LabelImage:
    values = np.random.default_rng(1).integers(0, 5, shape).astype(dtype)
    given: dict[str, Any] = {
        "scale": tuple(0.1 * (i + 3) for i in range(len(shape))),
        "units": ("micrometer",) * len(shape),
        "name": "rock",
        "classes": CLASSES,
    }
    return LabelImage(values, axes, **given | more)


def same(found: Image, expected: Image) -> None:
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(np.asarray(found.data), np.asarray(expected.data))
    for name in ("axes", "scale", "units", "name", "channel_names"):
        assert getattr(found, name) == getattr(expected, name), name
    if isinstance(expected, LabelImage):
        assert isinstance(found, LabelImage)
        assert found.classes == expected.classes


# -- round trips


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32"])
@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((40, 52), "YX"),
        ((3, 40, 52), "ZYX"),
        ((2, 3, 40, 52), "TZYX"),
        ((1, 300, 520), "ZYX"),
    ],
)
def test_round_trip(
    tmp_path: Path, suffix: str, dtype: str, shape: tuple[int, ...], axes: str
) -> None:
    expected = labels(shape, dtype, axes)
    path = write_labels(tmp_path / "new" / f"a{suffix}", expected)
    assert path == tmp_path / "new" / f"a{suffix}"
    same(read_labels(path), expected)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", FORMATS)
def test_read_back_lazily(tmp_path: Path, suffix: str) -> None:
    expected = labels((1, 300, 520))
    path = write_labels(tmp_path / f"a{suffix}", expected)
    if suffix == ".zarr":
        from napari_strata.io import zarr

        image, classes = zarr.load(path, lazy_above=0)
    else:
        image, classes = tiff.load(path, lazy_above=0)
    assert not isinstance(image.data, np.ndarray)
    same(image, Image(expected.data, "ZYX", expected.scale, expected.units, "rock"))
    assert classes == CLASSES
    np.testing.assert_array_equal(
        image.data[0, 250:270, 500:], np.asarray(expected.data)[0, 250:270, 500:]
    )


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("shape", [(40, 52), (1, 40, 52)])
def test_png_round_trip(tmp_path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    expected = labels(shape, dtype, "ZYX"[-len(shape) :])
    same(read_labels(write_labels(tmp_path / "a.png", expected)), expected)


@pytest.mark.parametrize("suffix", FORMATS)
def test_other_axis_orders_become_canonical_pixel_by_pixel(
    tmp_path: Path, suffix: str
) -> None:
    given = labels(
        (40, 3, 52, 2),
        axes="YZXT",
        scale=(0.5, 2.0, 0.25, 60.0),
        units=("um", "um", "um", "s"),
    )
    found = read_labels(write_labels(tmp_path / f"a{suffix}", given))
    assert (found.axes, found.shape) == ("TZYX", (2, 3, 40, 52))
    assert found.scale == (60.0, 2.0, 0.5, 0.25)
    assert found.units == ("s", "um", "um", "um")
    assert np.asarray(found.data)[1, 2, 30, 7] == np.asarray(given.data)[30, 2, 7, 1]
    np.testing.assert_array_equal(found.read({"T": 1}), given.read({"T": 1}))


TEXTS = st.text(st.characters(exclude_categories=()), max_size=12)


@st.composite
def label_images(draw: st.DrawFn) -> LabelImage:
    axes = draw(st.sampled_from(["YX", "ZYX", "TYX", "TZYX"]))
    shape = tuple(draw(st.integers(1, 3)) for _ in axes[:-2]) + tuple(
        draw(st.integers(1, 40)) for _ in "YX"
    )
    dtype = draw(st.sampled_from([np.uint8, np.uint16, np.uint32]))
    values = draw(
        st.lists(
            st.integers(0, np.iinfo(dtype).max), min_size=2, max_size=6, unique=True
        )
    )
    data = np.random.default_rng(draw(st.integers(0, 99))).choice(
        np.array(values, dtype), shape
    )
    names = draw(
        st.lists(TEXTS, min_size=len(values) - 1, max_size=len(values) - 1, unique=True)
    )
    classes = ClassMap(
        names=tuple(names), values=tuple(values[1:]), unlabelled=(values[0],)
    )
    positive = st.floats(1e-12, 1e12)
    return LabelImage(
        data,
        axes,
        scale=tuple(draw(positive) for _ in axes),
        units=tuple(
            draw(
                st.sampled_from(["micrometer", "nm", "pixel", "second", "parsec"])
                | TEXTS
            )
            for _ in axes
        ),
        name=draw(TEXTS),
        classes=draw(st.none() | st.just(classes)),
    )


@settings(max_examples=60, deadline=None)
@given(
    expected=label_images(), suffix=st.sampled_from([".tif", ".tif", ".png", ".zarr"])
)
def test_any_labels_read_back_identical(
    tmp_path_factory: pytest.TempPathFactory, expected: LabelImage, suffix: str
) -> None:
    path = tmp_path_factory.mktemp("t") / f"a{suffix}"
    if suffix == ".png" and (
        expected.shape[:-2] not in ((), (1,), (1, 1)) or expected.dtype == np.uint32
    ):
        with pytest.raises(LabelError, match="PNG holds one plane"):
            write_labels(path, expected)
        assert list(path.parent.iterdir()) == []
        return
    found = read_labels(write_labels(path, expected))
    np.testing.assert_array_equal(found.scale, expected.scale)  # NaN included
    same(found, LabelImage(**vars(expected) | {"scale": found.scale}))


# -- what lies in the file


def test_ome_inside_for_every_name(tmp_path: Path) -> None:
    for name in ("a.tif", "a.ome.tif"):
        path = write_labels(
            tmp_path / name, labels(units=("micrometer", "nanometer", "micrometer"))
        )
        with tifffile.TiffFile(path) as tif:
            assert tif.is_ome
            assert not tif.is_bigtiff
            page = tif.pages[0]
            assert (page.compression.name, page.tile, page.predictor) == (
                "ADOBE_DEFLATE",
                (512, 512),
                1,
            )
            root = ElementTree.fromstring(tif.ome_metadata or "")
        space = "{http://www.openmicroscopy.org/Schemas/OME/2016-06}"
        pixels = root.find(f"{space}Image/{space}Pixels")
        assert pixels is not None
        assert [
            float(pixels.attrib[f"PhysicalSize{a}"]) for a in "ZYX"
        ] == pytest.approx([0.3, 0.4, 0.5])
        assert pixels.attrib["PhysicalSizeYUnit"] == "nm"
        assert pixels.attrib["Type"] == "uint8"
        entries = {m.attrib["K"]: m.text for m in root.iter(f"{space}M")}
        assert entries["class 1"] == "pore #102030"
        assert root.find(f"{space}Image/{space}AnnotationRef") is not None


def test_ome_xml_follows_the_schema(tmp_path: Path) -> None:
    etree = pytest.importorskip(
        "lxml.etree", reason="lxml checks OME-XML against its schema"
    )
    ome_types = pytest.importorskip(
        "ome_types", reason="ome-types brings the OME schema"
    )
    schema = etree.XMLSchema(
        etree.parse(Path(ome_types.__file__).with_name("ome-2016-06.xsd"))
    )
    odd = labels(
        (2, 2, 8, 8),
        axes="TZYX",
        name="\x00 <µ> \ud800",
        scale=(0.0, -1.0, 1.0, 2.0),
        units=("s", "um", "pixel", "?"),
    )
    for image in (labels(), odd):
        with tifffile.TiffFile(
            write_labels(tmp_path / "a.tif", image, overwrite=True)
        ) as tif:
            schema.assertValid(etree.fromstring((tif.ome_metadata or "").encode()))
    write_floats(tmp_path / "p.tif", floats("float32"), dtype="float32")
    with tifffile.TiffFile(tmp_path / "p.tif") as tif:
        schema.assertValid(etree.fromstring((tif.ome_metadata or "").encode()))


def test_another_program_sees_pixel_size_and_pixels(tmp_path: Path) -> None:
    expected = labels()
    path = write_labels(tmp_path / "a.tif", expected)
    np.testing.assert_array_equal(tifffile.imread(path), expected.data)
    with tifffile.TiffFile(path) as tif:
        stripped = (tif.ome_metadata or "").replace(
            "napari-strata/record/1", "somebody else's"
        )
    tifffile.tiffcomment(path, stripped.encode())
    found = read_labels(path)
    assert found.scale == expected.scale
    assert found.units == expected.units
    assert (found.name, found.classes) == ("a", None)


def test_the_users_axes_override_and_the_classes_are_kept(tmp_path: Path) -> None:
    found = read_labels(write_labels(tmp_path / "a.tif", labels()), axes="TYX")
    assert (found.axes, found.classes) == ("TYX", CLASSES)
    assert found.scale[1:] == labels().scale[1:]


def test_only_the_classes_of_a_record_that_does_not_fit_are_used(
    tmp_path: Path,
) -> None:
    path = write_labels(tmp_path / "a.tif", labels())
    with tifffile.TiffFile(path) as tif:
        xml = (tif.ome_metadata or "").encode()
    cut = xml.replace(b'SizeZ="3"', b'SizeZ="2"').replace(
        b'PlaneCount="3"', b'PlaneCount="2"'
    )
    tifffile.tiffcomment(path, cut)
    found = read_labels(path)
    assert (found.shape, found.axes, found.classes) == ((2, 40, 52), "ZYX", CLASSES)


def test_large_files_are_bigtiff(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiff_write, "CLASSIC_BYTES", 1000)
    expected = labels()
    path = write_labels(tmp_path / "a.tif", expected)
    with tifffile.TiffFile(path) as tif:
        assert tif.is_bigtiff
    same(read_labels(path), expected)


# -- dtypes


@pytest.mark.parametrize(
    ("dtype", "high", "expected"),
    [(d, 127, "uint8") for d in ("int8", "int16", "int32", "int64", "uint64")]
    + [(d, 256, "uint16") for d in ("int16", "int32", "int64", "uint64")]
    + [(d, 2**32 - 1, "uint32") for d in ("int64", "uint64")],
)
def test_other_integers_become_the_smallest_dtype_that_fits(
    tmp_path: Path, dtype: str, high: int, expected: str
) -> None:
    array = np.zeros((2, 30, 30), dtype)
    array[1, 29, 29] = high
    found = read_labels(write_labels(tmp_path / "a.tif", LabelImage(array, "ZYX")))
    assert found.dtype == expected
    np.testing.assert_array_equal(found.data, array)


def test_class_values_count_for_the_dtype() -> None:
    wide = ClassMap(names=("a", "b"), values=(0, 1), unlabelled=(300,))
    assert label_dtype(labels(dtype="int64", classes=wide)) == np.uint16
    assert label_dtype(labels(dtype="uint8", classes=wide)) == np.uint8
    assert label_dtype(labels(dtype=">u2")) == np.dtype("uint16")
    assert label_dtype(labels(dtype=bool, classes=None)) == np.uint8


def test_negative_values_need_int32(tmp_path: Path) -> None:
    array = np.array([[-1, 5]], np.int64)
    found = read_labels(write_labels(tmp_path / "a.tif", LabelImage(array, "YX")))
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found.data, array)


def test_values_that_fit_nowhere_are_refused(tmp_path: Path) -> None:
    array = np.array([[0, 2**32]], np.int64)
    with pytest.raises(LabelError, match="do not fit 32-bit"):
        write_labels(tmp_path / "a.tif", LabelImage(array, "YX"))
    assert list(tmp_path.iterdir()) == []


def test_bool_and_swapped_bytes(tmp_path: Path) -> None:
    mask = np.random.default_rng(0).random((20, 30)) > 0.5
    found = read_labels(write_labels(tmp_path / "a.tif", LabelImage(mask, "YX")))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found.data, mask.astype(np.uint8))
    swapped = labels(dtype=">u2")
    same(read_labels(write_labels(tmp_path / "b.tif", swapped)), labels(dtype="uint16"))


def test_floats_and_colours_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LabelError, match="labels must be integers"):
        write_labels(tmp_path / "a.tif", LabelImage(np.full((8, 8), 0.33), "YX"))
    with pytest.raises(LabelError, match="found 3 channels"):
        write_labels(
            tmp_path / "a.tif", LabelImage(np.zeros((8, 8, 3), np.uint8), "YXC")
        )
    assert list(tmp_path.iterdir()) == []


# -- streaming


class Generated:
    """A volume that is computed when it is read, and records the largest region read."""

    def __init__(
        self,
        shape: tuple[int, ...],
        fail_at: int | None = None,
        error: Exception | None = None,
    ) -> None:
        self.shape, self.dtype, self.largest, self.fail_at, self.error = (
            shape,
            np.dtype("uint8"),
            0,
            fail_at,
            error,
        )

    def __getitem__(self, key: tuple[slice, ...]) -> np.ndarray[Any, Any]:
        grids = np.ogrid[
            tuple(slice(*s.indices(n)) for s, n in zip(key, self.shape, strict=True))
        ]
        found = (
            sum(g * k for g, k in zip(grids, (31, 7, 3), strict=True)) % 251
        ).astype(np.uint8)
        self.largest = max(self.largest, found.size)
        if self.fail_at is not None and grids[0].flat[0] == self.fail_at and self.error:
            raise self.error
        return found


@pytest.mark.parametrize("suffix", FORMATS)
def test_written_plane_by_plane(tmp_path: Path, suffix: str) -> None:
    source = Generated((5, 300, 400))
    write_labels(tmp_path / f"a{suffix}", LabelImage(source, "ZYX"))
    assert source.largest == 300 * 400
    np.testing.assert_array_equal(
        read_labels(tmp_path / f"a{suffix}").data, source[:, :, :]
    )


@pytest.mark.parametrize("suffix", [".tif", ".zarr"])
@pytest.mark.parametrize("dtype", [">u2", ">f4", "<u2"])
def test_byte_orders(tmp_path: Path, dtype: str, suffix: str) -> None:
    array = (np.arange(600 * 30).reshape(600, 30) % 5000).astype(dtype)
    path = write_image(tmp_path / f"a{suffix}", Image(array, "YX"))
    np.testing.assert_array_equal(np.asarray(read_image(path).data), array)


def test_a_large_plane_is_written_in_bands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "BAND_BYTES", 400 * 300)
    source = Generated((2, 1100, 400))
    write_labels(tmp_path / "a.tif", LabelImage(source, "ZYX"))
    assert source.largest == 400 * 512
    np.testing.assert_array_equal(read_labels(tmp_path / "a.tif").data, source[:, :, :])


def test_zarr_is_written_shard_by_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from napari_strata.io import zarr

    monkeypatch.setattr(zarr, "SHARD", 512)
    source = Generated((2, 600, 1100))
    write_labels(tmp_path / "a.zarr", LabelImage(source, "ZYX"))
    assert source.largest == 512 * 512
    np.testing.assert_array_equal(
        read_labels(tmp_path / "a.zarr").data, source[:, :, :]
    )


def test_memory_is_bounded_by_a_plane(tmp_path: Path) -> None:
    source = Generated((60, 512, 512))  # 15 MB
    tracemalloc.start()
    try:
        write_labels(tmp_path / "a.tif", LabelImage(source, "ZYX"))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 12 * 2**20  # of which the generated plane's own sums are 4


# -- nothing half-written


@pytest.mark.parametrize("suffix", [".tif", ".zarr", ".png"])
def test_an_existing_file_is_replaced_only_with_overwrite(
    tmp_path: Path, suffix: str
) -> None:
    old, new = labels((40, 52), axes="YX"), labels((8, 8), axes="YX", name="new")
    path = write_labels(tmp_path / f"a{suffix}", old)
    with pytest.raises(RunError, match=r"exists already; .*--overwrite"):
        write_labels(path, new)
    same(read_labels(path), old)
    write_labels(path, new, overwrite=True)
    same(read_labels(path), new)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_folder_that_is_not_a_store_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.zarr").mkdir()
    (tmp_path / "a.zarr" / "diary.txt").write_text("dear")
    with pytest.raises(RunError, match="is a folder and not a zarr store"):
        write_labels(tmp_path / "a.zarr", labels(), overwrite=True)
    assert (tmp_path / "a.zarr" / "diary.txt").read_text() == "dear"


@pytest.mark.parametrize("suffix", [".tif", ".zarr"])
@pytest.mark.parametrize("there", [False, True])
def test_a_failed_write_leaves_the_existing_file(
    tmp_path: Path, suffix: str, there: bool
) -> None:
    path = tmp_path / f"a{suffix}"
    old = labels()
    if there:
        write_labels(path, old)
    broken = Generated((5, 300, 400), fail_at=3, error=ImageError("source: truncated"))
    with pytest.raises(ImageError, match="source: truncated"):
        write_labels(path, LabelImage(broken, "ZYX"), overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ([path.name] if there else [])
    if there:
        same(read_labels(path), old)


def test_disk_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tifffile.FileHandle, "write", full)
    with pytest.raises(RunError, match=r"a\.tif: .*disk is full"):
        write_labels(tmp_path / "a.tif", labels())
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def _small_files() -> Iterator[None]:
    """Limit files to 100 kB, so that writing fails in the middle as on a full disk."""
    import resource
    import signal

    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, old)


@pytest.mark.usefixtures("_small_files")
@pytest.mark.parametrize("suffix", [".tif", ".zarr"])
def test_an_interrupted_write(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 2**31, (2, 300, 300)).astype(np.uint32)
    with pytest.raises(RunError, match=rf"a\{suffix}: cannot be written"):
        write_labels(tmp_path / f"a{suffix}", LabelImage(noise, "ZYX"))
    assert list(tmp_path.iterdir()) == []


def test_unknown_suffix(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"found the suffix '\.npy'"):
        write_labels(tmp_path / "new" / "a.npy", labels())
    assert list(tmp_path.iterdir()) == []


# -- probabilities


def floats(dtype: str = "float16") -> Image:
    values = np.random.default_rng(2).random((4, 3, 30, 300)).astype(dtype)
    values[:, :, 0, 0] = np.nan
    return Image(
        values,
        "CZYX",
        (1, 2.0, 0.5, 0.5),
        ("pixel", *("micrometer",) * 3),
        "p",
        channel_names=("a", "b", "µ", "d"),
    )


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("suffix", FORMATS)
def test_probabilities_round_trip(tmp_path: Path, dtype: str, suffix: str) -> None:
    expected = floats(dtype)
    path = write_floats(tmp_path / f"p{suffix}", expected, dtype=dtype)
    same(read_image(path), expected)
    with pytest.raises(RunError, match="exists already"):
        write_floats(path, expected)
    with pytest.raises(LabelError, match="must be integers"):
        read_labels(path)


def test_probabilities_with_the_classes_last_become_canonical(tmp_path: Path) -> None:
    values = np.random.default_rng(2).random((30, 20, 3)).astype(np.float32)
    found = read_image(
        write_floats(
            tmp_path / "p.tif", Image(values, "YXC", channel_names=("a", "b", "c"))
        )
    )
    assert (found.axes, found.dtype, found.channel_names) == (
        "CYX",
        np.dtype("float16"),
        ("a", "b", "c"),
    )
    for channel in range(3):
        np.testing.assert_array_equal(
            np.asarray(found.data)[channel], values[..., channel].astype(np.float16)
        )


def test_probabilities_refuse_other_dtypes_and_png(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="float16 and float32"):
        write_floats(tmp_path / "p.tif", floats(), dtype="float64")
    with pytest.raises(RunError, match="PNG cannot store probabilities"):
        write_floats(tmp_path / "p.png", floats())


# -- info


def test_describe_shows_the_class_table(tmp_path: Path) -> None:
    text = "\n".join(describe(write_labels(tmp_path / "a.tif", labels())))
    assert "class       1: pore #102030" in text
    assert "class       4: clay µ <&> #fffefd" in text
    assert "unlabelled  0" in text
    assert "unlabelled  9" in text
    assert "channels    a, b, µ, d" in "\n".join(
        describe(write_floats(tmp_path / "p.tif", floats()))
    )


def test_a_store_that_cannot_be_replaced_is_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = labels()
    path = write_labels(tmp_path / "a.zarr", old)
    replace = os.replace

    def refuse(source: Any, target: Any) -> None:
        if Path(source).name.endswith(".tmp.a.zarr"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(RunError, match=r"a\.zarr: cannot be written"):
        write_labels(path, labels((8, 8), axes="YX"), overwrite=True)
    same(read_labels(path), old)
    assert [p.name for p in tmp_path.iterdir()] == ["a.zarr"]


def test_labels_are_written_while_python_ends(tmp_path: Path) -> None:
    """A viewer that a script leaves open saves its labels then; no thread starts."""
    path = tmp_path / "labels.tif"
    program = (
        "import atexit, functools, sys, numpy as np\n"
        "from napari_strata.core.image import LabelImage\n"
        "from napari_strata.io import write_labels\n"
        "labels = LabelImage(np.ones((2, 30, 40), np.uint8), 'ZYX')\n"
        "write = functools.partial(write_labels, sys.argv[1], overwrite=True)\n"
        "write(labels)\n"
        "atexit.register(write, LabelImage(2 * labels.data, 'ZYX'))\n"
    )
    command = [sys.executable, "-c", program, str(path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert not ended.stderr
    assert (read_labels(path).read()[0] == 2).all()
