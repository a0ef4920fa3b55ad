"""Table and picture of scores, for counts by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from qtpy.QtCore import QPoint, Qt
from qtpy.QtGui import QColor

from napari_strata.core.classes import ClassMap
from napari_strata.core.metrics import ConfusionMatrix
from napari_strata.widgets.evaluate.confusion import ConfusionPicture
from napari_strata.widgets.evaluate.score_view import ScoreView
from napari_strata.widgets.evaluate.scores import (
    ABSENT,
    DICE,
    IOU,
    NAME,
    PIXELS,
    PRECISION,
    RECALL,
    ScoreTable,
    short,
)

CLASSES = ClassMap(
    names=("pore", "clay", "grain"),
    values=(1, 2, 3),
    colors=("#4477aa", "#ee8866", "#ddcc77"),
)
COUNTS = np.array([[6, 2, 0], [1, 3, 0], [0, 0, 0]])
"""IoU of pore 6 / 9, of clay 3 / 6; grain does not occur."""


@pytest.fixture
def view(qtbot: Any) -> ScoreView:
    view = ScoreView()
    qtbot.addWidget(view)
    view.resize(300, 500)
    view.show_result(ConfusionMatrix(CLASSES, COUNTS).as_dict(), CLASSES, "a against b")
    view.show()
    return view


def _column(table: ScoreTable, column: int) -> list[str]:
    return [table.item(row, column).text() for row in range(table.rowCount())]


def test_scores_equal_those_of_the_counts(view: ScoreView) -> None:
    assert view.headline.text() == (
        "Mean IoU 0.583 over the 2 of 3 classes in the truth, pixel accuracy"
        " 75.0\N{NO-BREAK SPACE}%"
    )
    assert view.caption.text() == "a against b: 12 labelled pixels"
    assert _column(view.table, NAME) == ["pore", "clay", "grain"]
    assert _column(view.table, IOU) == [".667", ".500", ABSENT]
    assert _column(view.table, DICE) == [".800", ".667", ABSENT]
    assert _column(view.table, PRECISION) == [".857", ".600", ABSENT]
    assert _column(view.table, RECALL) == [".750", ".750", ABSENT]
    assert _column(view.table, PIXELS) == ["8", "4", "0"]
    assert "No pixel is grain in the truth" in view.table.item(2, IOU).toolTip()


def test_a_click_on_a_heading_sorts_by_the_number(view: ScoreView) -> None:
    view.table.sortItems(IOU, Qt.SortOrder.DescendingOrder)
    assert _column(view.table, NAME) == ["pore", "clay", "grain"]
    view.table.sortItems(PIXELS, Qt.SortOrder.AscendingOrder)
    assert _column(view.table, NAME) == ["grain", "clay", "pore"]
    view.show_result(ConfusionMatrix(CLASSES, COUNTS).as_dict(), CLASSES, "again")
    assert _column(view.table, NAME) == ["pore", "clay", "grain"]


def test_ctrl_c_copies_the_table_with_all_digits(view: ScoreView, qtbot: Any) -> None:
    with qtbot.waitSignal(view.table.copied):
        qtbot.keyClick(view.table, Qt.Key.Key_C, Qt.KeyboardModifier.ControlModifier)
    rows = [line.split("\t") for line in view.table.text().splitlines()]
    assert rows[0] == ["class", "IoU", "Dice", "precision", "recall", "pixels"]
    assert rows[1] == ["pore", str(6 / 9), "0.8", str(6 / 7), "0.75", "8"]
    assert rows[3] == ["grain", "", "", "", "", "0"]


def test_the_picture_describes_each_square(view: ScoreView) -> None:
    said = view.picture.sentence
    assert (
        said(0, 1)
        == "2 pixels of pore were predicted as clay: 25.0\N{NO-BREAK SPACE}% of pore"
    )
    assert (
        said(1, 0)
        == "1 pixel of clay was predicted as pore: 25.0\N{NO-BREAK SPACE}% of clay"
    )
    assert (
        said(0, 0)
        == "6 pixels of pore were correctly predicted as pore: 75.0\N{NO-BREAK SPACE}% of pore"
    )
    assert said(2, 0) == "The truth has no pixel of grain."


def test_a_click_on_a_square_emits_row_and_column(view: ScoreView, qtbot: Any) -> None:
    picture = view.picture
    with qtbot.waitSignal(picture.clicked) as clicked:
        qtbot.mouseClick(
            picture, Qt.MouseButton.LeftButton, pos=picture.cell_rect(0, 1).center()
        )
    assert clicked.args == [0, 1]
    assert picture.cell_at(QPoint(1, 1)) is None
    for cell in np.ndindex(3, 3):
        assert picture.cell_at(picture.cell_rect(*cell).center()) == cell
        assert picture.rect().contains(picture.cell_rect(*cell))


def test_squares_are_coloured_by_their_fraction(view: ScoreView) -> None:
    picture = view.picture
    drawn = picture.grab().toImage()

    def fill(row: int, column: int) -> QColor:
        return drawn.pixelColor(
            (picture.cell_rect(row, column).topLeft() + QPoint(4, 4))
            * drawn.devicePixelRatio()
        )

    right, wrong, empty = fill(0, 0), fill(0, 1), fill(0, 2)
    assert right.blue() > right.red()
    assert wrong.red() > wrong.blue()
    assert abs(empty.red() - empty.blue()) < 12
    assert len({right.rgb(), wrong.rgb(), empty.rgb()}) == 3


@pytest.mark.parametrize("count", [1, 2, 12, 40])
def test_any_number_of_classes_fits_into_the_widget(qtbot: Any, count: int) -> None:
    picture = ConfusionPicture()
    qtbot.addWidget(picture)
    names = [f"a rather long class name {i}" for i in range(count)]
    picture.show_counts(np.eye(count, dtype=int) * 5, names, ["#123456"] * count)
    picture.resize(290, picture.heightForWidth(290))
    picture.grab()
    assert picture.rect().contains(picture.cell_rect(count - 1, count - 1))


def test_counts_are_short() -> None:
    assert [short(n) for n in (0, 99_999, 123_456, 999_999, 4_560_000)] == [
        "0",
        "99,999",
        "123 k",
        "1 M",
        "4.56 M",
    ]
