"""The table of objects: values worked out by hand, in physical units."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from napari_strata.core.errors import ImageError, LabelError, RunError
from napari_strata.core.image import Image, LabelImage
from napari_strata.measure.object_table import count_objects, region_table, write_table
from napari_strata.models import device


def make(
    data: Any, axes: str, scale: tuple[float, ...], unit: str = "micrometer"
) -> LabelImage:
    return LabelImage(
        np.asarray(data), axes, scale=scale, units=(unit,) * len(axes), name="rock"
    )


def rectangle() -> LabelImage:
    """Object 1 of 2 x 3 pixels, object 2 of one; pixels of 0.5 micrometer."""
    data = np.zeros((6, 8), np.uint16)
    data[1:3, 2:5] = 1
    data[5, 7] = 2
    return make(data, "YX", (0.5, 0.5))


def test_a_rectangle_by_hand() -> None:
    row, dot = region_table(rectangle())
    expected = {
        "id": 1,
        "centroid y (micrometer)": 0.75,  # rows 1 and 2
        "centroid x (micrometer)": 1.5,  # columns 2, 3, 4
        "area (micrometer^2)": 1.5,
        "area (pixels)": 6,
        "equivalent diameter (micrometer)": math.sqrt(4 * 1.5 / math.pi),
        "box y from (pixel)": 1,
        "box y to (pixel)": 3,
        "box x from (pixel)": 2,
        "box x to (pixel)": 5,
    }
    assert {key: row[key] for key in expected} == pytest.approx(expected)
    # Second moments of the 2 x 3 pixels' centres are 1/4 and 2/3 pixel^2; an ellipse's axis is 4 times their root.
    assert row["major axis (micrometer)"] == pytest.approx(4 * 0.5 * math.sqrt(2 / 3))
    assert row["minor axis (micrometer)"] == pytest.approx(4 * 0.5 * math.sqrt(1 / 4))
    assert row["eccentricity"] == pytest.approx(math.sqrt(1 - (1 / 4) / (2 / 3)))
    assert dot["area (pixels)"] == 1
    assert (dot["centroid y (micrometer)"], dot["centroid x (micrometer)"]) == (
        2.5,
        3.5,
    )
    assert set(row) == set(dot)


def test_a_disc_is_round_and_a_bar_is_not() -> None:
    y, x = np.indices((81, 81)) * 0.1
    disc = np.hypot(y - 4, x - 4) <= 3
    row = region_table(make(disc.astype(np.uint8), "YX", (0.1, 0.1)))[0]
    assert row["area (micrometer^2)"] == pytest.approx(math.pi * 9, rel=0.01)
    assert row["major axis (micrometer)"] == pytest.approx(6, rel=0.01)
    assert row["perimeter (micrometer)"] == pytest.approx(6 * math.pi, rel=0.01)
    assert float(row["eccentricity"]) < 0.05
    bar = np.zeros((20, 60), np.uint8)
    bar[8:12, 5:55] = 1
    assert float(region_table(make(bar, "YX", (1, 1)))[0]["eccentricity"]) > 0.95
    # Pixels so long that 4 rows are as long as 50 columns; oblong pixels have no perimeter.
    squared = region_table(make(bar, "YX", (12.5, 1.0)))[0]
    assert float(squared["eccentricity"]) == pytest.approx(
        math.sqrt(1 - 12.5**2 * 15 / 2499)
    )
    assert "perimeter (micrometer)" not in squared


def test_a_box_in_a_volume_whatever_the_order_of_the_axes() -> None:
    data = np.zeros((4, 5, 6), np.uint8)
    data[1:3, 2:5, 4:6] = 1
    row = region_table(make(data, "ZYX", (2.0, 0.5, 0.25)))[0]
    assert row["volume (pixels)"] == 12
    assert row["volume (micrometer^3)"] == pytest.approx(12 * 0.25)
    assert [row[f"centroid {a} (micrometer)"] for a in "zyx"] == pytest.approx(
        [3.0, 1.5, 1.125]
    )
    assert row["equivalent diameter (micrometer)"] == pytest.approx(
        (6 * 3 / math.pi) ** (1 / 3)
    )
    assert [row[f"box {a} {b} (pixel)"] for a in "zyx" for b in ("from", "to")] == [
        1,
        3,
        2,
        5,
        4,
        6,
    ]
    assert "eccentricity" not in row
    turned = make(np.ascontiguousarray(data.T), "XYZ", (0.25, 0.5, 2.0))
    assert region_table(turned)[0] == pytest.approx(row, nan_ok=True)


def test_a_ball_has_its_diameter_in_thick_slices() -> None:
    grid = np.meshgrid(np.arange(25) * 2.0, np.arange(49), np.arange(49), indexing="ij")
    ball = sum((g - 24) ** 2 for g in grid) <= 20**2
    row = region_table(make(np.asarray(ball, np.uint8), "ZYX", (2.0, 1.0, 1.0)))[0]
    for name in ("equivalent diameter", "major axis", "minor axis"):
        assert row[f"{name} (micrometer)"] == pytest.approx(40, rel=0.02)


def test_planes_by_themselves_and_time() -> None:
    data = np.zeros((2, 2, 3, 3), np.uint16)
    data[0, 0, 0, :2] = 1
    data[0, 1, 1, 1] = 2
    data[1, 1, 2, 2] = 3
    objects = make(data, "TZYX", (60.0, 2.0, 0.5, 0.5))
    rows = region_table(objects, by_plane=True)
    assert [(r["id"], r["t"], r["z"], r["area (pixels)"]) for r in rows] == [
        (1, 0, 0, 2),
        (2, 0, 1, 1),
        (3, 1, 1, 1),
    ]
    whole = region_table(objects)
    assert [(r["id"], r["t"], r["volume (micrometer^3)"]) for r in whole] == [
        (1, 0, 1.0),
        (2, 0, 0.5),
        (3, 1, 0.5),
    ]
    assert "z" not in whole[0]


def test_one_plane_of_a_stack_is_measured_as_a_plane() -> None:
    row = region_table(make([[[1, 1, 0]]], "ZYX", (2.0, 0.5, 0.5)))[0]
    assert (row["z"], row["area (micrometer^2)"]) == (0, 0.5)


def test_high_ids_need_no_lower_ones() -> None:
    data = np.zeros((3, 4), np.uint32)
    data[0, :2], data[2, 3] = 4_000_000_000, 4_000_000_002
    assert [r["id"] for r in region_table(make(data, "YX", (1, 1)))] == [
        4_000_000_000,
        4_000_000_002,
    ]
    assert count_objects(rectangle()) == 2


def test_grey_values_of_each_channel() -> None:
    grey = np.zeros((2, 6, 8), np.uint16)
    grey[0, 1:3, 2:5] = [[10, 20, 30], [40, 50, 60]]
    grey[1, 5, 7] = 65535
    image = Image(grey, "CYX", channel_names=("actin", "DNA"))
    one, dot = region_table(rectangle(), image)
    assert (one["mean actin"], one["min actin"], one["max actin"]) == (35.0, 10, 60)
    assert (one["max DNA"], dot["mean DNA"], dot["min actin"]) == (0, 65535.0, 0)
    single = region_table(rectangle(), Image(grey[0], "YX"))[0]
    assert (single["mean"], single["min"], single["max"]) == (35.0, 10, 60)


def test_grey_values_in_volumes_planes_and_other_axes() -> None:
    rng = np.random.default_rng(0)
    ids = (rng.random((2, 3, 5, 4)) < 0.5).astype(np.uint8)
    grey = rng.random((2, 3, 5, 4)).astype(np.float32)
    objects = make(ids, "TZYX", (1,) * 4)
    image = Image(np.ascontiguousarray(grey.T), "XYZT")
    for t, row in enumerate(region_table(objects, image)):
        assert row["mean"] == pytest.approx(grey[t][ids[t] > 0].mean(dtype=float))
    rows = region_table(objects, image, by_plane=True)
    assert len(rows) == 6
    for row in rows:
        t, z = int(row["t"]), int(row["z"])
        assert row["max"] == grey[t, z][ids[t, z] > 0].max()
    flat = make(
        ids[0, 0], "YX", (1, 1)
    )  # and an image with axes of one that the objects do not have
    assert (
        region_table(flat, Image(grey[:1, :1], "TZYX"))[0]["min"]
        == grey[0, 0][ids[0, 0] > 0].min()
    )


def test_what_cannot_be_measured_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ImageError, match=r"differ along Y: 5 against 6; X: 5 against 8"
    ):
        region_table(rectangle(), Image(np.zeros((5, 5)), "YX"))
    with pytest.raises(LabelError, match="must be integers"):
        region_table(make(np.zeros((2, 2)), "YX", (1, 1)))
    with pytest.raises(LabelError, match="2 channels"):
        region_table(make(np.zeros((2, 2, 2), int), "CYX", (1, 1, 1)))
    depth = LabelImage(
        np.ones((2, 2, 2), int), "ZYX", units=("pixel", "micrometer", "micrometer")
    )
    with pytest.raises(ImageError, match="one unit"):
        region_table(depth)
    assert len(region_table(depth, by_plane=True)) == 2
    monkeypatch.setattr(device, "free_memory", lambda _: 1000)
    with pytest.raises(
        RunError, match=r"rock: measuring objects in 1 x 6 x 8 .* are free; crop"
    ):
        region_table(rectangle())
    monkeypatch.setattr(device, "free_memory", lambda _: 10000)
    big = make(np.ones((12, 12), np.uint8), "YX", (1, 1))
    with pytest.raises(
        RunError, match="measuring the largest object, in a box of 144 pixels"
    ):
        region_table(big)


def test_no_objects_make_no_rows(tmp_path: Path) -> None:
    assert region_table(make(np.zeros((3, 3), int), "YX", (1, 1))) == []
    assert write_table(tmp_path / "t.csv", []).read_text() == "id\n"


def test_the_file_reads_back(tmp_path: Path) -> None:
    rows = region_table(rectangle())
    path = write_table(tmp_path / "new" / "t.csv", rows)
    with open(path, newline="", encoding="utf-8") as file:
        back = list(csv.DictReader(file))
    assert list(back[0]) == list(rows[0])
    for found, row in zip(back, rows, strict=True):
        assert {k: float(v) for k, v in found.items()} == pytest.approx(row)
    assert found["id"] == "2"


def test_a_table_is_not_replaced_unasked_nor_half_written(tmp_path: Path) -> None:
    path = write_table(tmp_path / "t.csv", [{"id": 1}])
    with pytest.raises(RunError, match=r"exists already.*--overwrite"):
        write_table(path, [{"id": 2}])
    with pytest.raises(ValueError, match="b"):
        write_table(path, [{"id": 3}, {"b": 4}], overwrite=True)
    assert path.read_text() == "id\n1\n"
    write_table(path, [{"id": 2}], overwrite=True)
    assert path.read_text() == "id\n2\n"
    with pytest.raises(RunError, match=r"suffix '.txt'"):
        write_table(tmp_path / "t.txt", [])
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(RunError, match="is a folder"):
        write_table(tmp_path / "folder.csv", [], overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder.csv", "t.csv"]


def ellipse(angle: float) -> Any:
    """Ellipse of 40 x 12 pixels, turned counterclockwise from the X axis."""
    y, x = np.indices((101, 101)) - 50
    a = math.radians(angle)
    along, across = x * math.cos(a) - y * math.sin(a), x * math.sin(a) + y * math.cos(a)
    return ((along / 40) ** 2 + (across / 12) ** 2 <= 1).astype(np.uint8)


@pytest.mark.parametrize("angle", [0, 30, 90, 135])
def test_orientation_of_a_turned_ellipse(angle: float) -> None:
    row = region_table(make(ellipse(angle), "YX", (1, 1)))[0]
    turn = (float(row["orientation (degree)"]) - angle + 90) % 180 - 90
    assert turn == pytest.approx(0, abs=0.5)


def test_direction_of_a_rod_in_a_volume() -> None:
    rod = np.zeros((30, 30, 30), np.uint8)
    for step in range(24):
        rod[3 + step, 3 + step, 15:17] = 1  # up along Z and down along Y
    row = region_table(make(rod, "ZYX", (1, 1, 1)))[0]
    assert row["azimuth (degree)"] == pytest.approx(90, abs=0.5)
    assert row["inclination (degree)"] == pytest.approx(45, abs=0.5)
    row = region_table(make(rod, "ZYX", (2, 1, 1)))[0]
    assert row["inclination (degree)"] == pytest.approx(
        math.degrees(math.atan(2)), abs=0.5
    )


def test_surface_and_sphericity_of_a_ball_and_a_box() -> None:
    z, y, x = np.indices((51, 51, 51)) - 25
    ball = (z**2 + y**2 + x**2 <= 20**2).astype(np.uint8)
    row = region_table(make(ball, "ZYX", (0.5, 0.5, 0.5)))[0]
    assert row["surface (micrometer^2)"] == pytest.approx(4 * math.pi * 10**2, rel=0.01)
    assert row["sphericity"] == pytest.approx(1, abs=0.01)
    thick = (
        (2.0 * np.arange(-12, 13))[:, None, None] ** 2 + y[:1] ** 2 + x[:1] ** 2
    ) <= 20**2
    row = region_table(make(thick.astype(np.uint8), "ZYX", (2.0, 1, 1)))[0]
    assert row["surface (micrometer^2)"] == pytest.approx(4 * math.pi * 20**2, rel=0.02)
    box = np.zeros((44, 44, 44), np.uint8)
    box[2:42, 2:42, 2:42] = 1
    row = region_table(make(box, "ZYX", (1, 1, 1)))[0]
    assert row["surface (micrometer^2)"] == pytest.approx(6 * 40**2, rel=0.1)


def test_solidity_of_known_shapes() -> None:
    corner = np.zeros((22, 22), np.uint8)
    corner[1:21, 1:21] = 1
    corner[1:11, 11:21] = 0  # three quarters; its hull lacks an eighth
    assert region_table(make(corner, "YX", (1, 2)))[0]["solidity"] == pytest.approx(
        0.75 / 0.875
    )
    for shape in ((1, 1), (1, 5), (4, 3)):
        bar = np.ones(shape, np.uint8)
        assert region_table(make(bar, "YX", (1, 1)))[0]["solidity"] == pytest.approx(1)
    deep = np.repeat(corner[None], 4, axis=0)
    assert region_table(make(deep, "ZYX", (2, 1, 1)))[0]["solidity"] == pytest.approx(
        0.75 / 0.875
    )


def test_touching_the_border_and_neighbours() -> None:
    data = np.zeros((7, 9), np.uint16)
    data[0:2, 0:3] = 4  # at the border
    data[2:4, 3:6] = 5  # touches 4 and 9 by a corner
    data[4:6, 1:3] = 9
    data[5, 7] = 12
    rows = region_table(make(data, "YX", (0.5, 0.5)))
    assert [row["touches border"] for row in rows] == [1, 0, 0, 0]
    assert [row["neighbours"] for row in rows] == [1, 2, 1, 0]
    assert rows[0]["nearest centre (micrometer)"] == pytest.approx(
        0.5 * math.hypot(2, 3)
    )
    alone = region_table(make([[0, 1]], "YX", (1, 1)))[0]
    assert alone["neighbours"] == 0
    assert math.isnan(float(alone["nearest centre (micrometer)"]))
    deep = np.zeros((3, 4, 4), np.uint8)
    deep[0, :2, :2], deep[1, 2:, 2:], deep[2, 0, 0] = 1, 2, 3
    rows = region_table(make(deep, "ZYX", (1, 1, 1)))
    assert [row["neighbours"] for row in rows] == [1, 1, 0]
    assert [row["touches border"] for row in rows] == [1, 1, 1]


def test_pixels_without_a_grey_value_count_apart() -> None:
    grey = np.zeros((6, 8), np.float32)
    grey[1:3, 2:5] = [[1, 2, np.nan], [4, np.inf, 5]]
    grey[5, 7] = np.nan
    one, dot = region_table(rectangle(), Image(grey, "YX"))
    assert (one["mean"], one["min"], one["max"], one["missing"]) == (3, 1, 5, 2)
    assert one["std"] == pytest.approx(np.std([1, 2, 4, 5]))
    assert math.isnan(float(dot["mean"]))
    assert math.isnan(float(dot["max"]))
    assert dot["missing"] == 1
    row = region_table(rectangle(), Image(np.ones((6, 8), np.uint8), "YX"))[0]
    assert "missing" not in row
