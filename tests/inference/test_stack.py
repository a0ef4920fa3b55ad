from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest

from napari_strata.core.image import Image
from napari_strata.inference.chunks import Chunk, read_ahead
from napari_strata.inference.task import fingerprint

IMAGE = Image(
    np.random.default_rng(0).integers(0, 255, (9, 30, 20)).astype(np.uint8), "ZYX"
)


def mark(image: Image) -> str:
    return fingerprint(image, image.samples())


def test_planes_come_in_the_order_asked_for():
    chunks = [
        Chunk({"Z": 7}, range(7, 8), slice(0, 1)),
        Chunk({"Z": slice(0, 3)}, range(1, 2), slice(1, 2)),
    ]
    read = list(read_ahead(IMAGE, chunks))
    assert [chunk for chunk, _ in read] == chunks
    assert np.array_equal(read[0][1][0], IMAGE.data[7])
    assert np.array_equal(read[1][1][0], IMAGE.data[:3])
    assert list(read_ahead(IMAGE, [])) == []


def test_errors_of_reading_reach_the_reader():
    class Broken:
        shape, dtype = (2, 4, 4), np.dtype(np.uint8)

        def __getitem__(self, key):
            raise OSError("the drive is gone")

    with pytest.raises(OSError, match="drive is gone"):
        list(
            read_ahead(
                Image(Broken(), "ZYX"),
                [Chunk({"Z": i}, range(i, i + 1), slice(0, 1)) for i in (0, 1)],
            )
        )


def test_a_fingerprint_is_of_the_pixels_and_their_layout():
    same = replace(IMAGE, data=np.array(IMAGE.data))
    assert mark(same) == mark(IMAGE)
    for number in range(9):  # sampled or not
        data = np.array(IMAGE.data)
        data[number, 2, 2] ^= 1
        assert mark(replace(IMAGE, data=data)) != mark(IMAGE)
    assert mark(replace(IMAGE, axes="TYX")) != mark(IMAGE)


def test_a_fingerprint_of_a_file_is_of_its_size_and_time_too(tmp_path):
    file = tmp_path / "a.tif"
    file.write_bytes(b"x")
    image = replace(IMAGE, source=str(file))
    first = mark(image)
    assert mark(image) == first
    os.utime(file, (1, 1))
    assert mark(image) != first
    assert mark(replace(IMAGE, source=str(tmp_path / "none"))) == mark(IMAGE)
