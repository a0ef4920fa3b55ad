from __future__ import annotations

import math
import time
from itertools import pairwise
from typing import Any

import pytest
from qtpy.QtCore import QPoint
from qtpy.QtGui import QColor, QFont, QImage
from qtpy.QtWidgets import QToolTip

from napari_strata.classes import default_colors
from napari_strata.events import BatchEnd, EpochEnd, TrainingStarted
from napari_strata.widgets import _plot
from napari_strata.widgets._curves import Curves
from napari_strata.widgets._history import POINTS, History, loss_range


def started(*names: str, first: int = 1, epochs: int = 10) -> TrainingStarted:
    return TrainingStarted("r", "CPU", "fp32", 10, first, epochs, 4, ("a",), ("a",), "1 of 4 slices", names)


def epoch(number: int, *ious: float, loss: float = 0.5, epochs: int = 10, best: bool = False) -> EpochEnd:
    scored = [i for i in ious if math.isfinite(i)]
    mean = sum(scored) / len(scored) if scored else math.nan
    return EpochEnd(number, epochs, loss, loss + 0.1, mean, 0.93, ious, 1e-3, 4.0, best, True, "raw")


def batch(number: int, step: int, loss: float = 0.5, *, batches: int = 4) -> BatchEnd:
    return BatchEnd(number, step, batches, loss, 1e-3, 0.1)


@pytest.fixture
def curves(qtbot: Any) -> Curves:
    widget = Curves()
    qtbot.addWidget(widget)
    widget.resize(300, 320)
    widget.show()
    return widget


def has_color(widget: Curves, color: str) -> bool:
    """Whether a pixel of exactly this colour is in sight."""
    widget._renew()  # the timer would do it a little later
    image = widget.grab().toImage()
    wanted = QColor(color).rgb()
    return any(image.pixel(x, y) == wanted for y in range(image.height()) for x in range(image.width()))


def test_each_class_has_a_line_in_its_colour(curves: Curves) -> None:
    curves.start(started("pore", "grain"), ("#12ab34", "#cc00cc"))
    assert not has_color(curves, "#12ab34")
    for number in (1, 2, 3):
        curves.add_epoch(epoch(number, 0.3 * number, 0.2 * number))
    assert has_color(curves, "#12ab34")
    assert has_color(curves, "#cc00cc")
    curves.clear()
    assert curves.epochs == []
    assert not has_color(curves, "#12ab34")


def test_colours_are_chosen_when_none_are_known(curves: Curves) -> None:
    curves.start(started("pore", "grain"), ())
    curves.add_epoch(epoch(1, 0.5, 0.6))
    curves.add_epoch(epoch(2, 0.5, 0.6))
    assert has_color(curves, default_colors(2)[0])
    assert has_color(curves, default_colors(2)[1])


def test_an_epoch_that_comes_again_takes_the_place_of_the_first(curves: Curves) -> None:
    curves.start(started("pore"), ())
    for one in (epoch(1, 0.5, best=True), epoch(3, 0.9), epoch(2, 0.6), epoch(2, 0.7)):
        curves.add_epoch(one)
    assert [(e.epoch, e.mean_iou) for e in curves.epochs] == [(1, 0.5), (2, 0.7), (3, 0.9)]
    curves.start(started("pore", first=3, epochs=20), ())  # resumed after epoch 2
    assert [e.epoch for e in curves.epochs] == [1, 2]


def test_figures_in_words() -> None:
    history = History()
    history.start(started("pore", "clay"), ())
    history.add_epoch(epoch(1, 0.9, 0.5, best=True))
    history.add_epoch(epoch(2, math.nan, 0.25, loss=0.25))
    assert "best so far" in history.describe(history.epochs[0])
    assert history.describe(history.epochs[1]).splitlines()[:5] == [
        "Epoch 2 of 10",
        "Loss: training 0.25, validation 0.35",
        "Mean IoU 0.250, pixel accuracy 0.930",
        "    pore -",
        "    clay 0.250",
    ]


def test_the_mouse_over_an_epoch_tells_its_figures(qtbot: Any, curves: Curves, monkeypatch: Any) -> None:
    told: list[str] = []
    monkeypatch.setattr(QToolTip, "showText", lambda _place, text, _widget: told.append(text))
    curves.start(started("pore"), ())
    for number in range(1, 6):
        curves.add_epoch(epoch(number, 0.1 * number))
    qtbot.mouseMove(curves, QPoint(curves.width() * 4 // 10, 80))
    assert told
    assert "Epoch 3 of 10" in told[-1] or "Epoch 4 of 10" in told[-1]
    count = len(told)
    qtbot.mouseMove(curves, QPoint(curves.width() * 9 // 10, 80))  # epochs to come
    assert len(told) == count


def test_nothing_scored_leaves_gaps_and_draws(curves: Curves) -> None:
    curves.add_epoch(epoch(1, math.nan, math.nan, loss=math.nan))
    assert not curves.grab().isNull()
    curves.add_batch(batch(2, 1, math.nan))
    curves.add_epoch(epoch(2, math.nan, 0.4, loss=math.inf))
    assert not curves.grab().isNull()


def test_the_steps_are_thinned_out_without_losing_their_course() -> None:
    history = History()
    history.start(started("pore", epochs=100), ())
    for number in range(50_000):
        history.add_batch(batch(1 + number // 500, 1 + number % 500, number / 50_000, batches=500))
    assert POINTS / 3 < len(history.batches) <= POINTS
    assert all(abs(y - x / 100) < 0.005 for x, y in history.batches)
    history.start(started("pore", first=51, epochs=100), ())  # resumed in the middle
    assert 49 < max(x for x, _ in history.batches) <= 50


def test_many_steps_cause_few_repaints(qtbot: Any, curves: Curves, monkeypatch: Any) -> None:
    painted: list[float] = []
    paint = Curves.paintEvent
    monkeypatch.setattr(Curves, "paintEvent", lambda self, e: (painted.append(time.monotonic()), paint(self, e))[1])
    qtbot.wait(150)
    painted.clear()
    start = time.monotonic()
    step = 0
    while time.monotonic() - start < 0.6:
        step += 1
        curves.add_batch(batch(1, step, batches=10**6))
        qtbot.wait(1)
    assert step > 30
    assert 1 <= len(painted) <= (time.monotonic() - start) * 10 + 1


def test_painting_is_fast(curves: Curves) -> None:
    names = tuple(f"class {i}" for i in range(10))
    curves.start(started(*names, epochs=100), ())
    for number in range(1, 101):
        for step in range(1, 21):
            curves.add_batch(batch(number, step, 1 / number + 0.01 * (step % 3), batches=20))
        curves.add_epoch(epoch(number, *(1 - 1 / (number + i) for i in range(1, 11)), epochs=100))
    image = QImage(curves.size(), QImage.Format.Format_ARGB32_Premultiplied)
    took = []
    for _ in range(20):
        start = time.perf_counter()
        curves._renew()  # not the picture that is kept between events
        curves.render(image)
        took.append(time.perf_counter() - start)
    print(f"painting 100 epochs of 10 classes: {1000 * sorted(took)[10]:.2f} ms (median of 20)")
    assert min(took) < 0.05


def test_before_the_first_epoch_it_says_so(curves: Curves) -> None:
    curves.start(started("pore"), ())
    before = curves.grab().toImage()
    paper = before.pixel(1, 1)
    inked = sum(before.pixel(x, y) != paper for y in range(before.height()) for x in range(before.width()))
    assert inked > 200  # the words are there


@pytest.mark.parametrize(
    ("values", "newest", "most"),
    [([math.nan], [], 1.0), ([0.93, 0.2], [0.2], 1.0), ([0.5] * 99 + [80.0], [0.5], 1.0), ([1.0, 9.0], [9.0], 10.0)],
)
def test_the_top_of_the_loss_bears_outliers_but_shows_the_newest(
    values: list[float], newest: list[float], most: float
) -> None:
    low, high = loss_range(values, newest)
    assert low == 0
    assert max([0.4, *newest]) < high <= most


@pytest.mark.parametrize("epochs", [1, 2, 3, 7, 30, 100, 1234])
def test_ticks_are_whole_epochs_and_not_too_many(epochs: int) -> None:
    found = _plot.whole_ticks(epochs, 6)
    assert 1 <= len(found) <= 7
    assert all(isinstance(tick, int) and 1 <= tick <= epochs for tick in found)
    assert len({b - a for a, b in pairwise(found)}) <= 1


def test_a_long_legend_is_cut_and_says_how_many_are_left_out(qtbot: Any) -> None:
    words = [(f"mineral {i}", QColor("red"), "0.50") for i in range(60)]
    entries = _plot.flow(words, QFont(), 300, rows=3)
    assert entries[-1].text == f"and {60 - (len(entries) - 1)} more"
    assert len({entry.place.top() for entry in entries}) == 3
    assert all(entry.place.right() <= 301 for entry in entries)


def test_the_widget_grows_with_its_legend(curves: Curves) -> None:
    curves.start(started("pore"), ())
    small = curves.minimumHeight()
    curves.start(started(*(f"mineral with a long name {i}" for i in range(6))), ())
    assert curves.minimumHeight() > small
    assert curves.minimumWidth() <= 300
