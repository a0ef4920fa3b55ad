"""OME-Zarr 0.4 and 0.5 are read; OME-Zarr 0.5 is written for other programs too."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr as store
from zarr.storage import LocalStore

from napari_strata.core.classes import ClassMap
from napari_strata.core.errors import ImageError
from napari_strata.core.image import Image, LabelImage
from napari_strata.io import (
    describe,
    read_image,
    read_images,
    read_labels,
    read_pyramid,
    write_labels,
    zarr,
)
from napari_strata.io import write_probabilities as write_floats

AXES = [
    {"name": "c", "type": "channel"},
    {"name": "z", "type": "space", "unit": "micrometer"},
    {"name": "y", "type": "space", "unit": "nanometer"},
    {"name": "x", "type": "space"},
]


def array(
    shape: tuple[int, ...] = (2, 4, 40, 48), dtype: str = "uint16"
) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 60000, shape).astype(dtype)


def multiscale(
    group: Any,
    levels: list[np.ndarray[Any, Any]],
    *,
    version: str,
    axes: Any = AXES,
    **more: Any,
) -> None:
    """Write OME-Zarr by hand, as its specification says, with a factor that belongs to all levels."""
    datasets = []
    for i, level in enumerate(levels):
        group.create_array(f"s{i}", data=level, chunks=(1, 1, 16, 16)[-level.ndim :])
        scale = [1.0, 5.0, 0.5 * 2**i, 0.25 * 2**i][-level.ndim :]
        datasets.append(
            {
                "path": f"s{i}",
                "coordinateTransformations": [{"type": "scale", "scale": scale}],
            }
        )
    entry: dict[str, Any] = {"name": "cells", "datasets": datasets}
    if axes:
        entry["axes"] = axes
    entry["coordinateTransformations"] = [
        {"type": "scale", "scale": [1.0, 2.0, 2.0, 2.0][-levels[0].ndim :]}
    ]
    metadata = {"multiscales": [entry | {"version": version}]} | more
    group.attrs.update(
        {"ome": metadata | {"version": version}} if version == "0.5" else metadata
    )


def group(path: Path, version: str) -> Any:
    return store.open_group(path, mode="w", zarr_format=3 if version == "0.5" else 2)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_both_versions_read_alike(tmp_path: Path, version: str) -> None:
    data = array()
    channels = {"omero": {"channels": [{"label": "DAPI"}, {"label": ""}]}}
    multiscale(
        group(tmp_path / "a.zarr", version),
        [data, data[..., ::2, ::2]],
        version=version,
        **channels,
    )
    image = read_image(tmp_path / "a.zarr")
    assert (image.axes, image.name, image.dtype) == ("CZYX", "cells", np.uint16)
    np.testing.assert_array_equal(image.data, data)
    assert image.scale == (1.0, 10.0, 1.0, 0.5)
    assert image.units == ("pixel", "micrometer", "nanometer", "pixel")
    assert image.channel_names == ("DAPI", "channel 1")
    levels = read_pyramid(tmp_path / "a.zarr")
    assert [level.shape[-1] for level in levels] == [48, 24]
    assert levels[1].scale == (1.0, 10.0, 2.0, 1.0)
    text = "\n".join(describe(tmp_path / "a.zarr"))
    assert (
        f"OME-Zarr, format {3 if version == '0.5' else 2}, chunks 1 x 1 x 16 x 16, 2 resolutions"
        in text
    )


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_lazy_reading_pickles_by_path(tmp_path: Path, version: str) -> None:
    data = array(dtype=">u2")
    multiscale(group(tmp_path / "a.zarr", version), [data], version=version)
    image, _ = zarr.load(tmp_path / "a.zarr", lazy_above=0)
    assert image.dtype.isnative
    again = pickle.loads(pickle.dumps(image.data))
    np.testing.assert_array_equal(again[1, 2:, 5:9], data[1, 2:, 5:9])
    np.testing.assert_array_equal(image.read({"Z": 3})[:, 7], data[:, 3, 7])


@pytest.mark.parametrize(
    ("axes", "letters"), [(["c", "z", "y", "x"], "CZYX"), (AXES, "CZYX")]
)
def test_axes_as_names_only(tmp_path: Path, axes: Any, letters: str) -> None:
    multiscale(group(tmp_path / "a.zarr", "0.4"), [array()], version="0.3", axes=axes)
    assert read_image(tmp_path / "a.zarr").axes == letters


def test_the_first_version_had_five_axes(tmp_path: Path) -> None:
    data = array((1, 2, 4, 40, 48))
    place = group(tmp_path / "a.zarr", "0.4")
    place.create_array("0", data=data)
    place.attrs["multiscales"] = [{"datasets": [{"path": "0"}]}]
    image = read_image(tmp_path / "a.zarr")
    assert (image.axes, image.shape, image.name) == ("TCZYX", data.shape, "a")
    assert set(image.scale) == {1.0}


def test_several_images_in_numbered_groups(tmp_path: Path) -> None:
    place = group(tmp_path / "a.zarr", "0.4")
    place.attrs["bioformats2raw.layout"] = 3
    for name in ("0", "1", "OME"):
        inner = place.create_group(name)
        if name != "OME":
            multiscale(inner, [array() + int(name)], version="0.4")
    images = read_images(tmp_path / "a.zarr")
    assert len(images) == 2
    np.testing.assert_array_equal(images[1].data, array() + 1)
    np.testing.assert_array_equal(
        read_image(tmp_path / "a.zarr" / "1").data, array() + 1
    )
    with pytest.raises(
        ImageError, match="found 2 series, numbered from 0; there is no series 2"
    ):
        read_image(tmp_path / "a.zarr", series=2)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_plain_arrays_need_axes(tmp_path: Path, version: str) -> None:
    data = array((3, 40, 48))
    store.create_array(
        tmp_path / "a.zarr", data=data, zarr_format=3 if version == "0.5" else 2
    )
    with pytest.raises(ImageError, match=r"found shape \(3, 40, 48\).*--axes ZYX"):
        read_image(tmp_path / "a.zarr")
    store.create_array(
        tmp_path / "b.zarr", data=data[0], zarr_format=3 if version == "0.5" else 2
    )
    assert read_image(tmp_path / "b.zarr").axes == "YX"
    image = read_image(tmp_path / "a.zarr", axes="TYX")
    assert (image.axes, image.shape) == ("TYX", (3, 40, 48))


def test_dimension_names_are_axes(tmp_path: Path) -> None:
    data = array((3, 40, 48))
    store.create_array(tmp_path / "a.zarr", data=data, dimension_names=["z", "y", "x"])
    assert read_image(tmp_path / "a.zarr").axes == "ZYX"
    old = store.create_array(tmp_path / "b.zarr", data=data, zarr_format=2)
    old.attrs["_ARRAY_DIMENSIONS"] = ["time", "y", "x"]
    assert read_image(tmp_path / "b.zarr").axes == "TYX"


def test_bad_stores(tmp_path: Path) -> None:
    (tmp_path / "empty.zarr").mkdir()
    with pytest.raises(ImageError, match="not a zarr store"):
        read_image(tmp_path / "empty.zarr")
    group(tmp_path / "nothing.zarr", "0.5")
    with pytest.raises(ImageError, match="without OME-Zarr multiscales"):
        read_image(tmp_path / "nothing.zarr")
    (tmp_path / "broken.zarr").mkdir()
    (tmp_path / "broken.zarr" / "zarr.json").write_text("{")
    with pytest.raises(ImageError, match="not a zarr store that can be read"):
        read_image(tmp_path / "broken.zarr")
    store.create_array(tmp_path / "c.zarr", data=np.zeros((4, 4), np.complex64))
    with pytest.raises(ImageError, match="complex64"):
        read_image(tmp_path / "c.zarr", axes="YX")
    multiscale(group(tmp_path / "lost.zarr", "0.4"), [array()], version="0.4")
    (tmp_path / "lost.zarr" / "s0" / ".zarray").unlink()
    with pytest.raises(ImageError, match="pixels cannot be read"):
        read_image(tmp_path / "lost.zarr")


def test_a_damaged_chunk_is_an_image_error(tmp_path: Path) -> None:
    multiscale(group(tmp_path / "a.zarr", "0.4"), [array()], version="0.4")
    (tmp_path / "a.zarr" / "s0" / "1.2.0.1").write_bytes(b"rubbish")
    image, _ = zarr.load(tmp_path / "a.zarr", lazy_above=0)
    image.read({"Z": 1})
    with pytest.raises(ImageError, match="pixels cannot be read"):
        image.read({"Z": 2})


def test_written_stores_are_ome_zarr(tmp_path: Path) -> None:
    classes = ClassMap(
        names=("pore", "clay"), values=(1, 4), colors=("#102030", "#ffee00")
    )
    data = array((2, 300, 520), "uint8")
    labels = LabelImage(
        data, "ZYX", (5.0, 0.5, 0.5), ("um", "um", "furlong"), "rock", classes=classes
    )
    path = write_labels(tmp_path / "a.zarr", labels)
    metadata = json.loads((path / "zarr.json").read_text())
    assert metadata["zarr_format"] == 3
    ome = metadata["attributes"]["ome"]
    assert ome["version"] == "0.5"
    scales = ome["multiscales"][0]
    assert scales["axes"] == [
        {"name": "z", "type": "space", "unit": "micrometer"},
        {"name": "y", "type": "space", "unit": "micrometer"},
        {"name": "x", "type": "space", "unit": "furlong"},
    ]
    scale = [{"type": "scale", "scale": [5.0, 0.5, 0.5]}]
    assert scales["datasets"] == [{"path": "0", "coordinateTransformations": scale}]
    assert ome["image-label"]["colors"] == [
        {"label-value": 1, "rgba": [16, 32, 48, 255]},
        {"label-value": 4, "rgba": [255, 238, 0, 255]},
    ]
    assert ome["image-label"]["properties"][1] == {"label-value": 4, "name": "clay"}
    written: Any = store.open_array(path / "0", mode="r")
    assert (written.chunks, written.shards) == ((1, 512, 512), (1, 512, 1024))
    assert written.metadata.dimension_names == ("z", "y", "x")
    np.testing.assert_array_equal(written[:], data)


@pytest.mark.parametrize(
    ("height", "width", "count"),
    [(1024, 1024, 1), (1025, 7, 2), (9000, 20, 4), (40_000, 3, 4)],
)
def test_large_planes_have_smaller_resolutions(
    tmp_path: Path, height: int, width: int, count: int
) -> None:
    data = array((2, height, width), "uint8")
    path = write_labels(
        tmp_path / "a.zarr",
        LabelImage(data, "ZYX", (3.0, 0.5, 0.25), ("micrometer",) * 3),
    )
    levels = read_pyramid(path)
    assert len(levels) == count
    for k, level in enumerate(levels):
        np.testing.assert_array_equal(np.asarray(level.data), data[:, :: 2**k, :: 2**k])
        assert level.scale == (3.0, 0.5 * 2**k, 0.25 * 2**k)


def test_no_shard_is_written_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zarr, "SHARD", 1024)
    monkeypatch.setattr(zarr, "SMALLEST_RESOLUTION", 100)
    written: list[str] = []
    put = LocalStore.set

    async def counted(self: LocalStore, key: str, *args: Any, **keywords: Any) -> None:
        written.append(key)
        await put(self, key, *args, **keywords)

    monkeypatch.setattr(LocalStore, "set", counted)
    monkeypatch.setattr(zarr, "_pipeline", dict)
    data = array((2, 2500, 1500), "uint8")
    path = write_labels(tmp_path / "a.zarr", LabelImage(data, "ZYX"))
    shards = [key for key in written if "/c/" in key]
    assert len(shards) == len(set(shards)) == 2 * 2 * (3 * 2)
    np.testing.assert_array_equal(read_pyramid(path)[1].data, data[:, ::2, ::2])


def test_the_users_axes_override_the_record(tmp_path: Path) -> None:
    labels = LabelImage(
        array((2, 30, 30), "uint8"), "ZYX", (5.0, 0.5, 0.5), name="rock"
    )
    found = read_labels(write_labels(tmp_path / "a.zarr", labels), axes="TYX")
    assert (found.axes, found.scale) == ("TYX", (1.0, 0.5, 0.5))


def test_probabilities_name_their_channels(tmp_path: Path) -> None:
    image = Image(np.zeros((2, 30, 30), np.float32), "CYX", channel_names=("a", "b"))
    path = write_floats(tmp_path / "p.zarr", image)
    ome = json.loads((path / "zarr.json").read_text())["attributes"]["ome"]
    assert ome["omero"] == {"channels": [{"label": "a"}, {"label": "b"}]}
    assert "image-label" not in ome
    assert ome["multiscales"][0]["axes"][0] == {"name": "c", "type": "channel"}


def test_a_damaged_chunk_of_blosc_is_refused(tmp_path: Path) -> None:
    # blosc trusts the length in its header: without the check Python crashes.
    path = tmp_path / "blosc.zarr"
    values = np.random.default_rng(0).integers(0, 999, (2, 32, 32)).astype(np.uint16)
    store.create_array(
        path,
        data=values,
        chunks=(1, 32, 32),
        compressors=numcodecs.Blosc("lz4"),
        zarr_format=2,
    )
    np.testing.assert_array_equal(read_image(path, axes="ZYX").data, values)
    chunk = path / "1.0.0"
    content = bytearray(chunk.read_bytes())
    content[12:16] = (10 * len(content)).to_bytes(4, "little")
    chunk.write_bytes(content)
    with pytest.raises(ImageError, match="damaged"):
        np.asarray(read_image(path, axes="ZYX").data)
