"""The command objects, called as a user calls it."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from napari_strata.cli import app
from napari_strata.core.classes import ClassMap
from napari_strata.core.errors import StrataError
from napari_strata.core.image import Image, LabelImage
from napari_strata.io import read_labels, write_image, write_labels
from napari_strata.models import device

CELLS = ClassMap(names=("background", "cytoplasm", "nucleus"), values=(0, 1, 2))


def call(*words: Any) -> Result:
    return CliRunner().invoke(app, ["objects", *map(str, words)])


def works(*words: Any) -> str:
    result = call(*words)
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result.stdout


def refuses(*words: Any) -> str:
    """Return the one-line message of a user's mistake."""
    result = call(*words)
    assert isinstance(result.exception, StrataError), result.output
    assert len(str(result.exception).splitlines()) == 1
    return str(result.exception)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A label file with two touching nuclei (in every plane), a speck and a hole.

    And its image.
    """
    y, x = np.indices((40, 60))
    nuclei = (np.hypot(y - 20, x - 18) <= 10) | (np.hypot(y - 20, x - 35) <= 10)
    plane = np.where(nuclei, 2, 1).astype(np.uint8)
    plane[20, 18] = 0
    plane[2, 57] = 2
    data = np.stack([plane] * 3)
    data[[0, 2], 20, 18] = 2
    image = Image(
        (data * 100).astype(np.uint16),
        "ZYX",
        scale=(1.0, 0.4, 0.4),
        units=("micrometer",) * 3,
        name="cells",
    )
    write_labels(tmp_path / "labels.tif", image.labels_like(data, classes=CELLS))
    write_image(tmp_path / "image.tif", image)
    return tmp_path / "labels.tif", tmp_path / "image.tif"


def test_all_options_at_once(tmp_path: Path, files: tuple[Path, Path]) -> None:
    labels, image = files
    out, table = tmp_path / "ids.tif", tmp_path / "ids.csv"
    arguments = (
        labels,
        "--out",
        out,
        "--of",
        "nucleus",
        "--smallest",
        1,
        "--fill-holes",
        "--split",
        5,
    )
    text = works(*arguments, "--table", table, "--image", image)
    assert text == f"{out}, {table}: 2 objects\n"
    ids = read_labels(out)
    assert (ids.axes, ids.scale, ids.units[0], ids.classes) == (
        "ZYX",
        (1.0, 0.4, 0.4),
        "micrometer",
        None,
    )
    data = np.asarray(ids.data)
    assert data.dtype == np.uint16
    assert sorted(np.unique(data)) == [0, 1, 2]
    assert data[1, 20, 18] == data[1, 20, 12] != data[1, 20, 40]
    with open(table, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == ["1", "2"]
    assert [float(row["volume (micrometer^3)"]) for row in rows] == pytest.approx(
        [np.sum(data == i) * 0.16 for i in (1, 2)]
    )
    assert rows[0]["max"] == "200"


def test_plane_by_plane(tmp_path: Path, files: tuple[Path, Path]) -> None:
    out, table = tmp_path / "ids.zarr", tmp_path / "ids.csv"
    arguments = (files[0], "--out", out, "--of", 2, "--by-plane", "--table", table)
    assert works(*arguments).endswith(": 6 objects\n")
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [(row["id"], row["z"]) for row in rows] == [
        (str(i + 1), str(i // 2)) for i in range(6)
    ]
    assert "area (micrometer^2)" in rows[0]


def test_two_classes_need_no_name_and_axes_can_be_given(tmp_path: Path) -> None:
    import tifffile

    stack = np.zeros((4, 8, 8), np.uint8)
    stack[1:3, 2:4, 2:4] = 255
    tifffile.imwrite(
        tmp_path / "mask.tif", stack, photometric="minisblack", metadata=None
    )
    text = works(tmp_path / "mask.tif", "--out", tmp_path / "ids.tif", "--axes", "TYX")
    assert text.endswith("ids.tif: 2 objects\n")
    text = works(
        tmp_path / "mask.tif",
        "--out",
        tmp_path / "ids.tif",
        "--axes",
        "ZYX",
        "--overwrite",
    )
    assert text.endswith("ids.tif: 1 object\n")


def test_the_label_file_itself_can_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "m.png"
    write_labels(
        path,
        LabelImage(np.array([[0, 1], [1, 0]], np.uint8), classes=ClassMap.foreground()),
    )
    assert works(path, "--out", path, "--overwrite").endswith("2 objects\n")
    np.testing.assert_array_equal(read_labels(path).data, [[0, 1], [2, 0]])


def test_mistakes_end_in_words_and_write_nothing(
    tmp_path: Path, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    labels, image = files
    before = sorted(tmp_path.iterdir())
    out = ("--out", tmp_path / "ids.tif", "--of", "nucleus")
    table = ("--table", tmp_path / "t.csv")
    assert "no such file" in refuses(tmp_path / "nothing.tif", *out)
    assert "found the classes background, cytoplasm, nucleus" in refuses(
        labels, *out[:2]
    )
    assert "did you mean 'nucleus'" in refuses(labels, *out[:2], "--of", "nucleous")
    assert "--image without --table" in refuses(labels, *out, "--image", image)
    assert "a table is written as .csv" in refuses(
        labels, *out, "--table", tmp_path / "t.xlsx"
    )
    assert "suffix '.jpg'" in refuses(labels, "--out", tmp_path / "ids.jpg")
    assert "exists already" in refuses(labels, "--out", image, "--of", "nucleus")
    assert "split=0" in refuses(labels, *out, "--split", 0)
    small = tmp_path / "small.tif"
    write_image(small, Image(np.zeros((3, 40, 50), np.uint8), "ZYX"))
    assert "differ along X: 50 against 60" in refuses(
        labels, *out, *table, "--image", small
    )
    small.unlink()
    assert call(labels, *out, "--smallest", -1).exit_code == 2
    assert call(labels).exit_code == 2
    monkeypatch.setattr(device, "free_memory", lambda _: 100)
    assert "are free; work plane by plane (--by-plane)" in refuses(labels, *out, *table)
    assert sorted(tmp_path.iterdir()) == before


def test_a_table_that_exists_is_kept_and_nothing_is_computed(
    tmp_path: Path, files: tuple[Path, Path]
) -> None:
    table = tmp_path / "t.csv"
    table.write_text("mine")
    arguments = (
        files[0],
        "--out",
        tmp_path / "ids.tif",
        "--of",
        "nucleus",
        "--table",
        table,
    )
    assert "--overwrite" in refuses(*arguments)
    assert table.read_text() == "mine"
    assert not (tmp_path / "ids.tif").exists()
    works(*arguments, "--overwrite")
    assert table.read_text().startswith("id,centroid z (micrometer)")
