"""HDF5, NRRD, NIfTI, MRC, raw volumes and microscope files, which the tests write."""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import h5py
import mrcfile
import nibabel
import nrrd
import numpy as np
import pytest
from typer.testing import CliRunner

from napari_strata import plugin
from napari_strata.cli.commands import app
from napari_strata.core.errors import ImageError
from napari_strata.core.image import Image
from napari_strata.io import describe, read_image, read_labels, read_pairs
from napari_strata.io.formats import find_reader
from napari_strata.io.lazy import LazyArray
from napari_strata.io.paths import has_suffix, split_part, stem

VOLUME = np.random.default_rng(0).integers(0, 60000, (5, 6, 7)).astype(np.uint16)
SCALE = (2.0, 0.5, 0.5)
MICROMETERS = ("micrometer",) * 3


def read_lazily(path: Any) -> Image:
    return find_reader(path).load(path, lazy_above=0)[0]


def write_h5(path: Path, **options: Any) -> Path:
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset("raw", data=VOLUME, **options)
        dataset.attrs["element_size_um"] = SCALE
    return path


def write_nrrd(path: Path, array: np.ndarray[Any, Any] = VOLUME, **header: Any) -> Path:
    fields = {"spacings": SCALE[::-1], "units": ["um"] * 3} | header
    nrrd.write(str(path), array.T, {k: v for k, v in fields.items() if v is not None})
    return path


def write_nifti(
    path: Path,
    array: np.ndarray[Any, Any] = VOLUME,
    *,
    unit: str = "micron",
    scaling: tuple[float, float] | None = None,
) -> Path:
    image = nibabel.Nifti1Image(array.T, np.diag([*SCALE[::-1], 1]))
    image.header.set_xyzt_units(unit, "sec")
    if scaling:
        image.header.set_slope_inter(*scaling)
    nibabel.save(image, path)
    return path


def write_mrc(path: Path, array: np.ndarray[Any, Any] = VOLUME) -> Path:
    with mrcfile.new(path) as file:
        file.set_data(array)
        file.set_volume()
        file.voxel_size = (5, 5, 20)
    return path


def write_vgi(path: Path) -> Path:
    VOLUME.tofile(path.with_suffix(".vol"))
    path.write_text(
        "{volume1}\n[file1]\nSize = 7 6 5\nName = D:\\scans\\a.vol\n"
        "Datatype = unsigned integer\nBitsPerElement = 16\n{volumeprimitive1}\n"
        "[geometry]\nresolution = 0.5 0.5 2\nunit = mm\n"
    )
    return path


FILES: dict[str, tuple[Callable[[Path], Any], tuple[float, ...], str]] = {
    "a.h5": (write_h5, SCALE, "micrometer"),
    "a.hdf5": (lambda p: write_h5(p, compression="gzip"), SCALE, "micrometer"),
    "raw.nrrd": (lambda p: write_nrrd(p, encoding="raw"), SCALE, "micrometer"),
    "gzip.nrrd": (write_nrrd, SCALE, "micrometer"),
    "bzip2.nrrd": (lambda p: write_nrrd(p, encoding="bzip2"), SCALE, "micrometer"),
    "text.nrrd": (lambda p: write_nrrd(p, encoding="ascii"), SCALE, "micrometer"),
    "beside.nhdr": (lambda p: write_nrrd(p, encoding="raw"), SCALE, "micrometer"),
    "big.nrrd": (
        lambda p: write_nrrd(p, VOLUME.astype(">u2"), encoding="raw"),
        SCALE,
        "micrometer",
    ),
    "a.nii": (write_nifti, SCALE, "micrometer"),
    "a.nii.gz": (write_nifti, SCALE, "micrometer"),
    "big.nii": (lambda p: write_nifti(p, VOLUME.astype(">u2")), SCALE, "micrometer"),
    "a.mrc": (write_mrc, (20.0, 5.0, 5.0), "angstrom"),
    "a.rec": (write_mrc, (20.0, 5.0, 5.0), "angstrom"),
    "a.vgi": (write_vgi, SCALE, "millimeter"),
}


@pytest.mark.parametrize("name", FILES)
def test_volumes_have_their_pixels_axes_and_pixel_size(
    tmp_path: Path, name: str
) -> None:
    write, scale, unit = FILES[name]
    path = write(tmp_path / name)
    image = read_image(path)
    assert (image.axes, image.dtype, image.scale) == ("ZYX", VOLUME.dtype, scale)
    assert image.units == (unit,) * 3
    assert (image.name, image.source) == (stem(Path(name)), str(path))
    assert image.notes == ()
    np.testing.assert_array_equal(image.data, VOLUME)
    np.testing.assert_array_equal(read_labels(path).data, VOLUME)

    lazy = read_lazily(path).data
    assert isinstance(lazy, LazyArray | np.memmap) or name == "text.nrrd"
    for key in (2, (slice(1, 4), 3), (..., slice(0, 7, 3)), (slice(None), 1, 2)):
        np.testing.assert_array_equal(lazy[key], VOLUME[key])
    again = pickle.loads(pickle.dumps(lazy))
    np.testing.assert_array_equal(again[1], VOLUME[1])
    assert f"shape       {' x '.join(map(str, VOLUME.shape))}" in "\n".join(
        describe(path)
    )

    reader = plugin.get_reader(str(path))
    assert reader is not None
    ((data, attributes, kind),) = reader(str(path))
    assert (kind, attributes["scale"]) == ("image", list(scale))
    np.testing.assert_array_equal(np.asarray(data), VOLUME)


@pytest.mark.parametrize("name", FILES)
def test_truncated_volumes_are_refused(tmp_path: Path, name: str) -> None:
    path = FILES[name][0](tmp_path / name)
    pixels = tmp_path / {"a.vgi": "a.vol", "beside.nhdr": "beside.raw"}.get(name, name)
    pixels.write_bytes(pixels.read_bytes()[:-60])
    for read in (read_image, lambda p: np.asarray(read_lazily(p).data)):
        with pytest.raises(ImageError, match=r"copy it again|check the layout"):
            read(path)


@pytest.mark.parametrize("name", FILES)
def test_other_content_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    for content in (b"", b"version https://git-lfs", b"\x89PNG" + bytes(2000)):
        path.write_bytes(content)
        with pytest.raises(ImageError) as error:
            read_image(path)
        if not name.endswith(".vgi"):
            assert any(w in str(error.value) for w in ("empty", "Git LFS", "PNG"))
        assert plugin.get_reader(str(path)) is None


@pytest.mark.parametrize(
    ("name", "library"),
    [
        ("a.h5", "h5py"),
        ("gzip.nrrd", "nrrd"),
        ("a.nii", "nibabel"),
        ("a.mrc", "mrcfile"),
    ],
)
def test_a_missing_library_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, library: str
) -> None:
    path = FILES[name][0](tmp_path / name)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImageError, match=library) as error:
        read_image(path)
    assert 'pip install "napari-strata[formats]"' in str(error.value)
    assert plugin.get_reader(str(path)) is None


def test_parts_of_paths(tmp_path: Path) -> None:
    assert split_part("a/b.h5:/x/raw") == (Path("a/b.h5"), "x/raw")
    assert split_part("C:\\b.H5:\\x\\raw") == (Path("C:\\b.H5"), "x/raw")
    assert split_part("C:\\b.raw:8x8x4:uint8") == (Path("C:\\b.raw"), "8x8x4:uint8")
    assert split_part("~nobody.tif") == (Path("~nobody.tif"), "")
    assert stem(Path("a/b.h5:/x/raw")) == "b_x_raw"
    assert stem(Path("b.raw:8x8x4:uint8")) == "b"
    assert has_suffix("a/b.NII.gz", (".nii.gz",))
    strange = tmp_path / "a.raw:8x8:tif"
    strange.touch()
    assert split_part(strange) == (strange, "")


# HDF5


@pytest.fixture
def many(tmp_path: Path) -> Path:
    path = tmp_path / "many.h5"
    with h5py.File(path, "w") as file:
        file["exported/raw"] = VOLUME
        file["exported/raw"].attrs["axistags"] = json.dumps(
            {
                "axes": [
                    {"key": k, "resolution": r}
                    for k, r in zip("tyx", (0, 3, 3), strict=True)
                ]
            }
        )
        file["labels"] = (VOLUME % 2).astype(np.uint8)
        file["positions"] = np.zeros(9)
        file["words"] = ["a", "b"]
    return path


def test_one_dataset_is_named(many: Path) -> None:
    with pytest.raises(
        ImageError, match=r"found 2 images .*/exported/raw .*/labels"
    ) as e:
        read_image(many)
    assert f"choose one, as {many}:/exported/raw" in str(e.value)
    image = read_image(f"{many}:/exported/raw")
    assert (image.axes, image.scale, image.name) == ("TYX", (1, 3, 3), "many")
    assert image.source == f"{many}:/exported/raw"
    assert read_image(many, series=1).name == "many labels"
    assert read_labels(f"{many}:labels").dtype == np.uint8
    with pytest.raises(
        ImageError, match=r"no dataset nothing; inside are .*/positions"
    ):
        read_image(f"{many}:/nothing")
    with pytest.raises(ImageError, match="no dataset"):
        read_image(f"{many}:/exported")
    with pytest.raises(ImageError, match="there is no series 2"):
        read_image(many, series=2)
    text = "\n".join(describe(many))
    assert "2 series" in text
    assert "HDF5, /labels, not compressed, contiguous" in text
    assert [layer[1]["name"] for layer in plugin.read(str(many))] == [
        "many exported raw",
        "many labels",
    ]
    ((pair),) = read_pairs(f"{many}:/exported/raw", f"{many}:/labels")
    assert (pair.image.axes, pair.labels.axes) == ("TYX", "TYX")
    (many.parent / "pairs.csv").write_text("many.h5:/exported/raw,many.h5:/labels\n")
    assert len(read_pairs(many.parent / "pairs.csv")) == 1


def test_axes_of_datasets(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["named"] = np.zeros((2, 3, 6, 7), np.float32)
        for dimension, label in zip(file["named"].dims, "czyx", strict=True):
            dimension.label = label
        file["plane"] = np.zeros((6, 7), bool)
        file["volume"] = VOLUME
        file["colours"] = np.zeros((60, 70, 3), np.uint8)
    assert read_image(f"{path}:named").axes == "CZYX"
    assert read_image(f"{path}:plane").axes == "YX"
    volume = read_image(f"{path}:volume")
    assert volume.axes == "ZYX"
    assert "taken as Z" in volume.notes[0]
    with pytest.raises(ImageError, match="name them, for example --axes"):
        read_image(f"{path}:colours")
    assert read_image(f"{path}:colours", axes="YXC").channels == 3


def test_hdf5_without_images(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["table"] = np.zeros(5)
    with pytest.raises(ImageError, match=r"found no datasets .*/table \(5,\) float64"):
        read_image(tmp_path / "a.h5")
    with h5py.File(tmp_path / "b.h5", "w") as file:
        for number in range(70):
            file[f"{number}"] = VOLUME
    with pytest.raises(ImageError, match="more than 64"):
        read_image(tmp_path / "b.h5")
    assert read_image(tmp_path / "b.h5:/69").shape == VOLUME.shape


def test_hdf5_whose_pixels_are_elsewhere(tmp_path: Path) -> None:
    write_h5(tmp_path / "part.h5")
    layout = h5py.VirtualLayout(VOLUME.shape, VOLUME.dtype)
    layout[:] = h5py.VirtualSource("part.h5", "raw", VOLUME.shape)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_virtual_dataset("all", layout)
    np.testing.assert_array_equal(read_image(tmp_path / "a.h5").data, VOLUME)
    (tmp_path / "part.h5").unlink()
    with pytest.raises(ImageError, match=r"are in part\.h5, which is not there"):
        read_image(tmp_path / "a.h5")


def test_hdf5_with_a_filter_that_is_not_installed(tmp_path: Path) -> None:
    number = 256  # reserved for tests
    with h5py.File(tmp_path / "a.h5", "w") as file:
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_chunk((1, 6, 7))
        plist.set_filter(number, h5py.h5z.FLAG_OPTIONAL)
        space = h5py.h5s.create_simple(VOLUME.shape)
        h5py.h5d.create(file.id, b"raw", h5py.h5t.NATIVE_UINT16, space, plist)
    with pytest.raises(ImageError, match=r"compressed by .*pip install hdf5plugin"):
        read_image(tmp_path / "a.h5")


# NRRD


def test_axes_of_nrrd(tmp_path: Path) -> None:
    colours = np.zeros((4, 5, 6, 3), np.uint8)
    directions = [[np.nan] * 3, [0.3, 0.4, 0], [0, 0.5, 0], [0, 0, 2]]
    fields = {
        "kinds": ["RGB-color", "domain", "domain", "domain"],
        "space": "right-anterior-superior",
        "space directions": np.array(directions),
        "spacings": None,
        "units": None,
    }
    image = read_image(write_nrrd(tmp_path / "a.nrrd", colours, **fields))
    assert (image.axes, image.scale) == ("ZYXC", (2, 0.5, 0.5, 1))
    assert image.units == ("millimeter",) * 3 + ("pixel",)
    times = np.zeros((4, 5, 6, 7), np.int16)
    fields = {"kinds": ["domain", "domain", "domain", "time"], "spacings": [1, 1, 2, 9]}
    fields["units"] = ["um", "um", "um", "s"]
    image = read_image(write_nrrd(tmp_path / "b.nrrd", times, **fields))
    assert (image.axes, image.scale) == ("TZYX", (9, 2, 1, 1))
    assert image.units == ("second", *MICROMETERS)
    unnamed = write_nrrd(tmp_path / "c.nrrd", times, spacings=None, units=None)
    with pytest.raises(ImageError, match="--axes"):
        read_image(unnamed)
    assert read_image(unnamed, axes="TZYX").axes == "TZYX"


def test_detached_nrrd(tmp_path: Path) -> None:
    (tmp_path / "pixels.bin").write_bytes(b"line\n" + bytes(10) + VOLUME.tobytes())
    header = (
        "NRRD0004\ntype: ushort\ndimension: 3\nsizes: 7 6 5\nendian: little\n"
        "encoding: raw\n"
    )
    for skips in ("line skip: 1\nbyte skip: 10\n", "byteskip: -1\n"):
        text = f"{header}{skips}data file: pixels.bin\n"
        (tmp_path / "a.nhdr").write_text(text)
        np.testing.assert_array_equal(read_image(tmp_path / "a.nhdr").data, VOLUME)
    (tmp_path / "a.nhdr").write_text(f"{header}data file: gone.bin\n")
    with pytest.raises(ImageError, match=r"gone\.bin: no such file"):
        read_image(tmp_path / "a.nhdr")
    (tmp_path / "a.nhdr").write_text(f"{header}data file: a%02d.raw 1 5 1\n")
    with pytest.raises(ImageError, match="in several files"):
        read_image(tmp_path / "a.nhdr")


# NIfTI


def test_nifti_scales_its_values(tmp_path: Path) -> None:
    stored = VOLUME.astype(np.int16)
    path = write_nifti(tmp_path / "a.nii", stored, scaling=(2, -1024))
    image = read_image(path)
    assert image.dtype == np.float32
    expected = stored.astype(np.float32) * 2 - 1024
    np.testing.assert_array_equal(image.data, expected)
    np.testing.assert_array_equal(np.asarray(read_lazily(path).data), expected)
    assert "times 2 plus -1024" in image.notes[0]


def test_axes_and_units_of_nifti(tmp_path: Path) -> None:
    times = np.zeros((4, 3, 5, 6), np.uint8)
    image = read_image(write_nifti(tmp_path / "a.nii", times, unit="mm"))
    assert (image.axes, image.shape) == ("TZYX", times.shape)
    assert image.units == ("second",) + ("millimeter",) * 3
    image = read_image(write_nifti(tmp_path / "b.nii", unit="unknown"))
    assert image.units == ("millimeter",) * 3
    assert "names no unit" in image.notes[0]
    plane = read_image(write_nifti(tmp_path / "c.nii", np.zeros((5, 6), np.uint8)))
    assert (plane.axes, plane.shape) == ("YX", (5, 6))
    write_nifti(tmp_path / "d.nii", VOLUME.astype(np.complex64))
    with pytest.raises(ImageError, match="complex64"):
        read_image(tmp_path / "d.nii")


# MRC


def test_bytes_and_stacks_of_mrc(tmp_path: Path) -> None:
    path = write_mrc(tmp_path / "a.mrc", VOLUME.astype(np.int8))
    assert read_image(path).dtype == np.int8
    content = bytearray(path.read_bytes())
    content[152:160] = np.array([1146047817, 0], "<i4").tobytes()  # by IMOD, unsigned
    path.write_bytes(content)
    np.testing.assert_array_equal(read_image(path).data, VOLUME.astype(np.uint8))
    with mrcfile.new(tmp_path / "b.mrc") as file:
        file.set_data(VOLUME)
        file.set_image_stack()
    image = read_image(tmp_path / "b.mrc")
    assert image.axes == "ZYX"
    assert "taken as Z" in image.notes[0]
    with mrcfile.new(tmp_path / "c.mrc") as file:
        file.set_data(VOLUME[0])
    assert read_image(tmp_path / "c.mrc").axes == "YX"
    with mrcfile.new(tmp_path / "d.mrc") as file:
        file.set_data(VOLUME.astype(np.complex64))
    with pytest.raises(ImageError, match="complex64"):
        read_image(tmp_path / "d.mrc")


# Raw volumes


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    VOLUME.tofile(tmp_path / "a.raw")
    return tmp_path / "a.raw"


def test_layouts_of_raw_volumes(raw: Path) -> None:
    image = read_image(f"{raw}:7x6x5:uint16:little")
    assert (image.axes, image.source) == ("ZYX", f"{raw}:7x6x5:uint16:little")
    np.testing.assert_array_equal(image.data, VOLUME)
    np.testing.assert_array_equal(read_lazily(f"{raw}:7x6x5:uint16").data, VOLUME)
    swapped = read_image(f"{raw}:7x6x5:uint16:big")
    np.testing.assert_array_equal(swapped.data, VOLUME.byteswap())
    assert read_image(f"{raw}:7x30:uint16").axes == "YX"
    assert read_image(f"{raw}:7x6x5:uint16", axes="TYX").axes == "TYX"
    later = read_image(f"{raw}:7x6x4:uint16:little:84")
    np.testing.assert_array_equal(later.data, VOLUME[1:])
    other = raw.rename(raw.with_suffix(".data"))
    np.testing.assert_array_equal(read_image(f"{other}:7x6x5:uint16").data, VOLUME)


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ("7x6x5:uint8", r"420; check the layout: it has 2 bytes .*a\.raw:7x6x5:uint16"),
        ("7x6x4:uint16", r"if a header precedes the pixels, add its bytes \(:84\)"),
        ("7x6x9:uint16", "take 756 bytes, and the file has 420"),
        ("0x6x9:uint16", "check the layout"),
        ("99999999999x6x9:float64", "check the layout"),
        ("7x6x5:word", "dtypes: uint8"),
    ],
)
def test_layouts_that_do_not_fit(raw: Path, layout: str, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        read_image(f"{raw}:{layout}")


def test_a_raw_volume_without_a_layout(raw: Path) -> None:
    with pytest.raises(ImageError, match=r"of 420 bytes, .*along X, Y and Z.*--raw"):
        read_image(raw)
    assert plugin.get_reader(str(raw)) is None
    with pytest.raises(ImageError, match=r"b\.raw: no such file"):
        read_image(f"{raw.with_name('b.raw')}:7x6x5:uint16")


def test_the_volume_of_a_vgi_file(tmp_path: Path) -> None:
    write_vgi(tmp_path / "a.vgi")
    image = read_image(tmp_path / "a.vol")
    assert image.scale == SCALE
    np.testing.assert_array_equal(image.data, VOLUME)
    (tmp_path / "a.vol").unlink()
    with pytest.raises(ImageError, match=r"a\.vol: no such file"):
        read_image(tmp_path / "a.vgi")
    (tmp_path / "a.vol").touch()
    (tmp_path / "a.vgi").write_text("Size = 7 6\n")
    with pytest.raises(ImageError, match=r"state them: a\.vol:1024x1024x512"):
        read_image(tmp_path / "a.vgi")


def command(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(word) for word in words])
    if isinstance(result.exception, Exception):
        raise result.exception
    return result.exit_code, result.output


def test_the_option_raw(raw: Path) -> None:
    status, output = command("info", raw, "--raw", "7x6x5:uint16:little")
    assert status == 0
    assert "axes        ZYX" in output
    (VOLUME % 2).astype(np.uint8).tofile(raw.with_name("b.raw"))
    (VOLUME % 2).astype(np.uint8).tofile(raw.with_name("c.raw"))
    labels = raw.with_name("b.raw")
    status, output = command(
        "evaluate",
        labels,
        raw.with_name("c.raw"),
        "--raw",
        "7x6x5:uint8",
        "--out",
        raw.with_name("scores"),
    )
    assert status == 0
    assert "1.000" in output
    with pytest.raises(ImageError, match="but no raw volume"):
        command("info", raw.with_name("scores") / "metrics.csv", "--raw", "7x6:uint8")
    (pair,) = read_pairs(f"{raw}:7x6x5:uint16", f"{labels}:7x6x5:uint8")
    assert pair.labels.shape == pair.image.shape


# Claims


def test_claims_of_many_pixels_are_refused(tmp_path: Path) -> None:
    header = "NRRD0004\ntype: uchar\ndimension: 3\nsizes: 9000 9000 9000\nencoding: "
    for encoding in ("raw", "gzip", "bzip2", "ascii"):
        (tmp_path / "a.nrrd").write_text(f"{header}{encoding}\n\n1 2 3")
        with pytest.raises(ImageError, match="claims"):
            read_image(tmp_path / "a.nrrd")
    for name in ("a.nii", "a.nii.gz"):
        write_nifti(tmp_path / name)
        image = nibabel.load(tmp_path / name)
        image.header["dim"][1:4] = 30000
        with (tmp_path / "b.nii").open("wb") as stream:
            stream.write(image.header.binaryblock + bytes(100))
        with pytest.raises(ImageError, match="claims"):
            read_image(tmp_path / "b.nii")
    content = bytearray(write_mrc(tmp_path / "a.mrc").read_bytes())
    for value in (2**31 - 1, -5, 0):
        content[:12] = np.array([value] * 3, "<i4").tobytes()
        (tmp_path / "a.mrc").write_bytes(content)
        with pytest.raises(ImageError, match=r"a\.mrc"):
            read_image(tmp_path / "a.mrc")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("raw", (2**16, 2**16), "u1", chunks=(64, 64))
    with pytest.raises(ImageError, match=r"claims .*NAPARI_STRATA_LARGEST_EXPANSION"):
        read_image(tmp_path / "a.h5")


# Microscope files


class FakeBioImage:
    """The parts of bioio's `BioImage` that its documentation names."""

    scenes = ("A1", "A2")
    dtype = np.dtype(np.uint16)
    channel_names = ("red", "green")
    physical_pixel_sizes = SimpleNamespace(Z=None, Y=0.25, X=0.25)

    def __init__(self, path: Path) -> None:
        if not path.read_bytes():
            raise ValueError("unsupported")
        self.scene = 0
        shape = (1, 2, 1, 6, 7)
        self.dims = SimpleNamespace(order="TCZYX", shape=shape)

    def set_scene(self, scene: int) -> None:
        self.scene = scene

    @property
    def dask_data(self) -> Any:
        return np.full(self.dims.shape, self.scene, self.dtype)


def test_scenes_of_microscope_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.czi"
    path.write_bytes(b"ZISRAWFILE")
    with pytest.raises(ImageError, match="pip install bioio bioio-czi"):
        read_image(path)
    bioio = ModuleType("bioio")
    bioio.BioImage = FakeBioImage  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "bioio", bioio)
    with pytest.raises(ImageError, match=r"found 2 scenes, .*0: A1; 1: A2.*--series 0"):
        read_image(path)
    for load in (
        read_image,
        lambda p, series: find_reader(p).load(p, series=series, lazy_above=0)[0],
    ):
        image = load(path, series=1)
        assert (image.axes, image.shape) == ("CYX", (2, 6, 7))
        assert (image.name, image.channel_names) == ("a A2", ("red", "green"))
        assert (image.scale, image.units[1:]) == ((1, 0.25, 0.25), MICROMETERS[1:])
        np.testing.assert_array_equal(image.data, np.ones((2, 6, 7)))
    assert len(plugin.read(str(path))) == 2
    path.write_bytes(b"")
    with pytest.raises(
        ImageError, match=r"bioio cannot read it .*pip install bioio-czi"
    ):
        read_image(path)
