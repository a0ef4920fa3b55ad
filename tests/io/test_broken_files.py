"""Broken and hostile files: one short message, fast, in little memory."""

from __future__ import annotations

import json
import os
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import tifffile
import zarr

from napari_strata.core.errors import ImageError, StrataError
from napari_strata.io import describe, read_image, read_pairs
from napari_strata.io.budget import SETTING
from napari_strata.io.tiff import load
from napari_strata.plugin import get_reader

OME = (
    '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="I:0">'
    '<Pixels ID="P:0" DimensionOrder="XYZCT" Type="uint8" SizeX="20" SizeY="16"'
    ' SizeZ="{planes}" SizeC="1" SizeT="1">{data}</Pixels></Image></OME>'
)


def refused(path: Path, match: str, **options: Any) -> str:
    """Check that reading is refused in a single line; return it."""
    with pytest.raises(ImageError, match=match) as caught:
        read_image(path, **options)
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    assert get_reader(str(path)) is None
    with pytest.raises(StrataError):
        describe(path)
    return text


def patched(path: Path, code: int, value: int, *, page: int = 0) -> Path:
    """Change the value of a tag of a TIFF file."""
    with tifffile.TiffFile(path, mode="r+") as tif:
        tif.pages[page].tags[code].overwrite(value)
    return path


@pytest.mark.parametrize(("code", "word"), [(259, "compression"), (262, "photometric")])
def test_unknown_codecs_are_named(tmp_path: Path, code: int, word: str) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((8, 8), "uint8"), metadata=None)
    refused(patched(path, code, 9999), f"{word}.*9999")


def test_ome_that_claims_more_planes_than_the_file_can_hold(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    xml = OME.format(planes=10**9, data="<TiffData/>")
    tifffile.imwrite(path, np.zeros((16, 20), "uint8"), description=xml, metadata=None)
    refused(path, "claims 1000000000 planes")


def test_ome_that_names_a_pipe(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    part = '<TiffData FirstZ="{z}" PlaneCount="1"><UUID FileName="{name}">{z}</UUID></TiffData>'
    data = part.format(z=0, name="a.ome.tif") + part.format(z=1, name="pipe")
    xml = OME.format(planes=2, data=data)
    tifffile.imwrite(path, np.zeros((16, 20), "uint8"), description=xml, metadata=None)
    os.mkfifo(tmp_path / "pipe")
    refused(path, "'pipe'.*not a file")
    refused(tmp_path / "pipe", "pipe or a device")


def test_ome_sets_without_some_files_open_what_is_there(tmp_path: Path) -> None:
    data = "".join(
        f'<TiffData FirstZ="{z}" IFD="0" PlaneCount="1"><UUID FileName="s{z}.ome.tif">'
        f"urn:uuid:{z:032}</UUID></TiffData>"
        for z in range(4)
    )
    for z in range(4):
        xml = OME.format(planes=4, data=data)
        xml = xml.replace("<OME ", f'<OME UUID="urn:uuid:{z:032}" ')
        plane = np.full((16, 20), 10 + z, "uint8")
        path = tmp_path / f"s{z}.ome.tif"
        tifffile.imwrite(path, plane, description=xml, metadata=None)
    (tmp_path / "s2.ome.tif").unlink()
    for lazy_above in (0, 2**20):
        image, _ = load(tmp_path / "s0.ome.tif", lazy_above=lazy_above)
        assert image.axes == "ZYX"
        assert image.read()[0].max(axis=(1, 2)).tolist() == [10, 11, 13]
        assert "3 of 4 planes along Z" in image.notes[0]
        assert "s2.ome.tif" in image.notes[0]
    (tmp_path / "s3.ome.tif").rename(tmp_path / "renamed.tif")
    image = read_image(tmp_path / "renamed.tif")
    assert image.read()[0].max(axis=(1, 2)).tolist() == [10, 11, 13]


def test_pixels_do_not_begin_in_the_header(tmp_path: Path) -> None:
    # tifffile reads them from wherever the file is open.
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.ones((24, 32), np.uint8))
    with tifffile.TiffFile(path, mode="r+b") as tif:
        tif.pages.first.tags["StripOffsets"].overwrite(0)
    for lazy_above in (0, 10**6):
        with pytest.raises(ImageError, match="begin in the header"):
            load(path, lazy_above=lazy_above)


def test_pages_without_offsets_are_no_zeros(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    stack = np.ones((5, 40, 48), "uint16")
    with tifffile.TiffWriter(path) as writer:
        for plane in stack:
            writer.write(plane, compression="zlib", metadata=None)
    patched(path, 279, 0, page=4)
    for lazy_above in (0, 2**20):
        with pytest.raises(ImageError, match="page 4 has no offsets"):
            load(path, lazy_above=lazy_above)


def test_tiles_that_gdal_leaves_out_are_zeros(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tiles = [np.full((64, 64), 5, "uint8"), None, np.full((64, 64), 7, "uint8"), None]
    options: dict[str, Any] = {"shape": (128, 128), "dtype": "uint8", "tile": (64, 64)}
    tifffile.imwrite(path, iter(tiles), metadata=None, **options)
    assert np.unique(read_image(path).read()).tolist() == [0, 5, 7]


def test_a_small_file_cannot_claim_gigabytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path, np.zeros((64, 64), "uint8"), compression="zlib", tile=(64, 64)
    )
    with path.open("r+b") as file:  # the same tile, many times
        count = 400_000
        file.seek(0, os.SEEK_END)
        with tifffile.TiffFile(path) as tif:
            page = tif.pages.first
            offset, length = page.dataoffsets[0], page.databytecounts[0]
        places = []
        for value in (offset, length):
            places.append(file.tell())
            file.write(struct.pack("<I", value) * count)
    with tifffile.TiffFile(path) as tif:
        tags = {code: tif.pages.first.tags[code].offset for code in (257, 324, 325)}
    with path.open("r+b") as file:
        for code, values in (
            (257, (1, 64 * count)),
            (324, (count, places[0])),
            (325, (count, places[1])),
        ):
            file.seek(tags[code])
            file.write(struct.pack("<HHII", code, 4, *values))
    monkeypatch.setenv(SETTING, "10")
    refused(path, f"claims 1.64 GB.*{SETTING}")


def test_png_bombs(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    PIL.Image.fromarray(np.zeros((8, 8), "uint8")).save(path)
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">II", 60_000, 60_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.write_bytes(content)
    refused(path, "claims 3.6 GB")


@pytest.mark.parametrize(
    "change",
    [
        {"axes": [{}] * 2},
        {"axes": 5},
        {"datasets": []},
        {"datasets": None},
        {"datasets": [{"path": "0", "coordinateTransformations": [5]}]},
        {"datasets": [{"path": ["0"]}]},
        {"datasets": [{"path": "../../outside"}]},
    ],
)
def test_damaged_ome_zarr(tmp_path: Path, change: dict[str, Any]) -> None:
    path = store(tmp_path / "a.zarr", change)
    refused(path, r"a\.zarr: .*(metadata are damaged|without OME|cannot be read)")


@pytest.mark.parametrize("scale", [["a", 1], [0, 1], [-1, 1], [None, 1], ["nan", 1]])
def test_steps_that_are_no_sizes_are_1(tmp_path: Path, scale: list[Any]) -> None:
    step = {"type": "scale", "scale": scale}
    dataset = {"path": "0", "coordinateTransformations": [step]}
    image = read_image(store(tmp_path / "a.zarr", {"datasets": [dataset]}))
    assert image.scale == (1, 1)


@pytest.mark.parametrize("omero", [5, {"channels": 5}, {"channels": [5]}])
def test_damaged_display_settings_do_not_matter(tmp_path: Path, omero: Any) -> None:
    path = store(tmp_path / "a.zarr", {})
    attributes = json.loads((path / ".zattrs").read_text()) | {"omero": omero}
    (path / ".zattrs").write_text(json.dumps(attributes))
    image = read_image(path)
    assert (image.axes, image.channel_names) == ("YX", ())


def store(path: Path, change: dict[str, Any]) -> Path:
    group = zarr.open_group(path, mode="w", zarr_format=2)
    group.create_array("0", shape=(8, 8), dtype="u1")[:] = 1
    axes = [{"name": name, "type": "space"} for name in "yx"]
    image = {"axes": axes, "datasets": [{"path": "0"}]} | change
    group.attrs.update({"multiscales": [image]})
    return path


def test_a_chunk_larger_than_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    zarr.open_array(path, mode="w", shape=(8, 8), chunks=(8, 8), dtype="u1")
    metadata = json.loads((path / "zarr.json").read_text())
    metadata["chunk_grid"]["configuration"]["chunk_shape"] = [2**20, 2**20]
    (path / "zarr.json").write_text(json.dumps(metadata))
    refused(path, "one chunk takes|claims")


def test_groups_list_what_is_inside(tmp_path: Path) -> None:
    group = zarr.open_group(tmp_path / "a.zarr", mode="w")
    group.create_array("raw", shape=(3, 8, 9), dtype="u2")
    group.create_group("more")
    refused(tmp_path / "a.zarr", r"raw \(3, 8, 9\) uint16, more/")
    plate = zarr.open_group(tmp_path / "plate.zarr", mode="w", zarr_format=2)
    plate.attrs.update({"plate": {"wells": [{"path": "A/1"}]}})
    plate.create_group("A/1/0")
    refused(tmp_path / "plate.zarr", "is a plate.*A/1/0")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"\x1f\x8b\x08\x00", "gzip"),
        (b"", "empty"),
        (b"II*\0", "damaged"),
    ],
)
@pytest.mark.parametrize("suffix", [".tif", ".png"])
def test_content_that_is_something_else(
    tmp_path: Path, content: bytes, words: str, suffix: str
) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    refused(path, words if suffix == ".tif" or words != "damaged" else "TIFF")


@pytest.mark.parametrize("letter", "HLE")
def test_axes_of_other_kinds_are_named(tmp_path: Path, letter: str) -> None:
    path = tmp_path / "a.tif"
    array = np.zeros((2, 4, 16, 20), "uint16")
    metadata = {"axes": f"{letter}ZYX"}
    tifffile.imwrite(path, array, metadata=metadata, photometric="minisblack")
    with pytest.raises(ImageError, match=rf"{letter} \("):
        read_image(path)
    assert read_image(path, axes="TZYX").axes == "TZYX"


@pytest.mark.parametrize("name", ["x" * 300 + ".tif", "~nobody_here/a.tif", "a\0b.tif"])
def test_tables_with_impossible_names(tmp_path: Path, name: str) -> None:
    table = tmp_path / "pairs.csv"
    table.write_text(f"image,label\n{name},b.tif\n", encoding="utf-8")
    with pytest.raises(ImageError) as caught:
        read_pairs(table)
    assert all(len(line) < 600 for line in str(caught.value).splitlines())


def test_a_table_with_a_huge_field(tmp_path: Path) -> None:
    table = tmp_path / "pairs.csv"
    table.write_text("x" * 200_000 + ",b.tif\n", encoding="utf-8")
    with pytest.raises(ImageError, match="not a table"):
        read_pairs(table)


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("a.tif", "a_cp_masks.png"),
        ("case_0000.tif", "case.tif"),
        ("a.tif", "a-labelled.tif"),
        ("a [x=0,y=0].tif", "a [x=0,y=0]-labels.png"),
    ],
)
def test_names_of_other_programs_are_paired(
    tmp_path: Path, image: str, label: str
) -> None:
    for folder, name in (("images", image), ("labels", label)):
        (tmp_path / folder).mkdir()
        array = np.zeros((8, 8), "uint8")
        if name.endswith(".tif"):
            tifffile.imwrite(tmp_path / folder / name, array)
        else:
            PIL.Image.fromarray(array).save(tmp_path / folder / name)
    assert len(read_pairs(tmp_path)) == 1


def test_names_that_no_rule_pairs_mention_a_table(tmp_path: Path) -> None:
    for folder, name in (("images", "a.tif"), ("labels", "task-1-annotation-2.tif")):
        (tmp_path / folder).mkdir()
        tifffile.imwrite(tmp_path / folder / name, np.zeros((8, 8), "uint8"))
    with pytest.raises(ImageError, match="CSV"):
        read_pairs(tmp_path)


def test_a_reader_never_raises(tmp_path: Path) -> None:
    folder = tmp_path / "a.zarr"
    folder.mkdir()
    (folder / "zarr.json").write_text("[" * 5000)
    assert get_reader(str(folder)) is None
    shutil.rmtree(folder)
    assert get_reader(str(folder)) is None
    assert get_reader("a\0b.tif") is None
