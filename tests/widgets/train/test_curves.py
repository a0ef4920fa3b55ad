"""Curves: what they keep of a training, what they draw of it, and how fast."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from qtpy.QtCore import QEvent, QObject, QPointF
from qtpy.QtGui import QImage, QTextDocument
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QToolTip

from napari_strata.core.events import BatchEnd, EpochEnd, Event, TrainingStarted
from napari_strata.widgets.parts.plot import Plot
from napari_strata.widgets.train.curves import FIRST, NO_SCORES, NONE, Curves
from napari_strata.widgets.train.history import MAX_POINTS, History, loss_range

NAMES = ("pore", "grain")
COLORS = ("#ff0000", "#00a000")


def started(
    *, first: int = 1, epochs: int = 30, names: tuple[str, ...] = NAMES
) -> TrainingStarted:
    return TrainingStarted(
        "run",
        "CPU",
        "fp32",
        1000,
        first,
        epochs,
        10,
        ("a",),
        ("a",),
        "1 of 4 slices: 2",
        names,
    )


def batch(epoch: int, number: int, loss: float = 0.5, batches: int = 10) -> BatchEnd:
    return BatchEnd(epoch, number, batches, loss, 1e-3, 0.1)


def epoch(
    number: int,
    *,
    iou: tuple[float, ...] = (0.9, 0.7),
    best: bool = False,
    epochs: int = 30,
) -> EpochEnd:
    mean = float(np.mean(iou))
    return EpochEnd(
        number, epochs, 0.4, 0.5, mean, 0.95, iou, 1e-3, 12.0, best, best, "raw"
    )


@pytest.fixture
def curves(qtbot: Any) -> Curves:
    widget = Curves()
    qtbot.addWidget(widget)
    widget.resize(420, 320)
    widget.show()
    qtbot.waitExposed(widget)
    return widget


def pixel_of(curves: Curves, plot: Plot, epoch: float, share: float) -> QPointF:
    """Where an epoch is drawn, at a share of the plot's height from its top."""
    area = plot.area()
    unit = area.width() / (plot.x_at(area.right()) - plot.x_at(area.left()))
    x = area.left() + (epoch - plot.x_at(area.left())) * unit
    return QPointF(plot.mapTo(curves, QPointF(x, area.top() + share * area.height())))


def pixels(widget: Curves) -> np.ndarray[Any, Any]:
    """What the widget looks like once it has drawn the last change, int (H, W, 3)."""
    QTest.qWait(150)
    image = widget.grab().toImage().convertToFormat(QImage.Format.Format_RGB32)
    rows = [
        [image.pixelColor(x, y).getRgb()[:3] for x in range(image.width())]
        for y in range(image.height())
    ]
    return np.array(rows, int)


def columns_of(
    picture: np.ndarray[Any, Any], channel: int, *, above: float
) -> set[int]:
    """Columns in which something red (0) or green (1) stands, above the legend."""
    others = np.delete(picture, channel, axis=-1).max(axis=-1)
    return set(
        np.flatnonzero(
            (picture[..., channel] - others > 50)[: int(above)].any(axis=0)
        ).tolist()
    )


def test_a_class_is_drawn_in_its_colour_with_a_gap_where_it_has_no_score(
    curves: Curves,
) -> None:
    curves.start(started(), COLORS)
    for n in range(1, 31):
        curves.add_epoch(epoch(n, iou=(math.nan if 10 < n < 20 else 0.9, 0.3)))
    picture = pixels(curves)
    xs = {n: pixel_of(curves, curves.iou, n, 0.5).x() for n in (5, 10, 20, 25)}
    bottom = pixel_of(curves, curves.iou, 1, 1.0).y()
    red = columns_of(picture, 0, above=bottom)
    green = columns_of(picture, 1, above=bottom)
    assert {round(xs[5]), round(xs[25])} <= red
    assert not {x for x in red if xs[10] + 3 < x < xs[20] - 3}
    assert round((xs[10] + xs[20]) / 2) in green


def test_a_resumed_run_keeps_its_epochs_and_drops_those_done_again(
    curves: Curves,
) -> None:
    curves.load([started(), *(epoch(n) for n in range(1, 8))], COLORS)
    curves.start(started(first=6), COLORS)
    assert [end.epoch for end in curves.epochs] == [1, 2, 3, 4, 5]
    curves.add_epoch(epoch(6, iou=(0.1, 0.1)))
    curves.add_epoch(epoch(6, iou=(0.8, 0.8)))
    assert [end.epoch for end in curves.epochs] == [1, 2, 3, 4, 5, 6]
    assert curves.epochs[-1].class_iou == (0.8, 0.8)
    curves.start(started(first=1), COLORS)
    assert curves.epochs == []


def test_batches_done_again_are_forgotten() -> None:
    history = History()
    history.start(started(), COLORS)
    for n in range(1, 4):
        for b in range(1, 11):
            history.add_batch(batch(n, b))
    history.start(started(first=3), COLORS)
    assert history.batches[-1][0] == 2.0
    history.add_batch(batch(3, 1, loss=7.0))
    assert history.batches[-1] == (pytest.approx(2.1), 7.0)


def test_the_smoothed_loss_does_not_depend_on_how_many_batches_are_told() -> None:
    whole, thin = History(), History()
    for b in range(1, 1001):
        event = batch(1, b, loss=2.0 - b / 1000, batches=1000)
        whole.add_batch(event)
        if b % 10 == 1:
            thin.add_batch(event)
    assert whole.batches[-1][1] == pytest.approx(thin.batches[-1][1], abs=0.02)
    whole.add_batch(batch(2, 1, loss=math.nan))
    assert math.isfinite(whole.batches[-1][1])


def test_the_batches_kept_are_few_and_span_the_training() -> None:
    history = History()
    for n in range(1, 101):
        for b in range(1, 101):
            history.add_batch(batch(n, b, batches=100))
    assert MAX_POINTS / 3 < len(history.batches) <= MAX_POINTS
    xs = [x for x, _ in history.batches]
    assert xs[0] < 0.1
    assert xs[-1] > 99.5
    assert np.ptp(np.diff(xs)) < 1e-6


def notes(curves: Curves) -> tuple[str, str]:
    QTest.qWait(150)
    return curves.loss.note.text(), curves.iou.note.text()


def test_what_is_said_before_there_are_curves(curves: Curves) -> None:
    assert notes(curves) == (NONE, "")
    curves.start(started(), COLORS)
    curves.add_batch(batch(1, 1))
    assert notes(curves) == ("", FIRST)
    curves.add_epoch(epoch(1))
    assert notes(curves) == ("", "")
    curves.clear()
    curves.start(started(), COLORS)
    curves.add_epoch(epoch(1, iou=(math.nan, math.nan)))
    assert notes(curves) == ("", NO_SCORES)


def test_the_mouse_over_an_epoch_tells_its_figures(curves: Curves, qtbot: Any) -> None:
    curves.start(started(), COLORS)
    for n in range(1, 16):
        curves.add_epoch(epoch(n, iou=(0.5 + n / 100, 0.25), best=n <= 12))
    QTest.qWait(150)
    over = pixel_of(curves, curves.iou, 12, 0.5) + QPointF(2, 0)
    qtbot.mouseMove(curves.window(), curves.mapTo(curves.window(), over.toPoint()))
    qtbot.waitUntil(lambda: QToolTip.isVisible())
    words = QToolTip.text()
    for part in (
        "Epoch 12 of 30, the best so far",
        "training 0.4, validation 0.5",
        "pore 0.620",
        "grain 0.250",
    ):
        assert part in words
    assert curves.epoch_at(pixel_of(curves, curves.loss, 12, 0.5)) == curves.epochs[11]
    assert curves.epoch_at(pixel_of(curves, curves.iou, 25, 0.5)) is None
    below = pixel_of(curves, curves.iou, 12, 1.0) + QPointF(0, 30)
    assert curves.epoch_at(below) is None


def test_the_best_epoch_is_the_last_one_marked(curves: Curves) -> None:
    curves.start(started(), COLORS)
    for n, best in ((1, True), (20, True), (30, False)):
        curves.add_epoch(epoch(n, iou=(0.3, 0.3), best=best))
    picture = pixels(curves)
    dark = (picture < 150).all(axis=-1)  # darker than the grid
    for plot in (curves.loss, curves.iou):
        # below all lines
        top = round(pixel_of(curves, plot, 1, 0.82).y())
        bottom = round(pixel_of(curves, plot, 1, 0.88).y())
        xs = {n: round(pixel_of(curves, plot, n, 0).x()) for n in (1, 10, 20, 30)}
        marked = [n for n, x in xs.items() if dark[top:bottom, x - 2 : x + 3].any()]
        assert marked == [20]


class _Paints(QObject):
    count = 0

    def eventFilter(self, _watched: QObject | None, event: QEvent | None) -> bool:  # noqa: N802
        self.count += event is not None and event.type() == QEvent.Type.Paint
        return False


def test_fast_events_are_painted_at_most_ten_times_a_second(curves: Curves) -> None:
    curves.start(started(), COLORS)
    QTest.qWait(250)
    paints = _Paints()
    curves.loss.viewport().installEventFilter(paints)
    begin, added = time.perf_counter(), 0
    while time.perf_counter() - begin < 1.0:
        curves.add_batch(batch(1, 1 + added % 10))
        added += 1
        if added % 50 == 0:
            QTest.qWait(1)
    QTest.qWait(150)
    assert added > 500
    assert 3 <= paints.count <= 13


def test_thousands_of_events_cost_little(curves: Curves) -> None:
    names = tuple(f"class {i}" for i in range(12))
    rng = np.random.default_rng(0)
    curves.start(started(epochs=200, names=names), ())
    begin = time.thread_time()
    for i in range(5000):
        curves.add_batch(batch(1 + i // 25, 1 + i % 25, float(rng.random()), 25))
    per_batch = (time.thread_time() - begin) / 5000
    begin = time.thread_time()
    for n in range(1, 201):
        curves.add_epoch(epoch(n, iou=tuple(rng.random(12)), epochs=200))
    per_epoch = (time.thread_time() - begin) / 200
    curves.resize(420, 480)
    seconds = []
    for _ in range(10):
        QTest.qWait(110)
        begin = time.thread_time()
        curves.add_epoch(curves.epochs[-1])
        curves.grab()
        seconds.append(time.thread_time() - begin)
    paint = sorted(seconds)[5]
    print(
        f"\n{1e6 * per_batch:.1f} us a batch, {1e6 * per_epoch:.1f} us an epoch, {1e3 * paint:.2f} ms a painting"
    )
    assert per_batch < 1e-3
    assert per_epoch < 5e-3
    assert paint < 0.1


def test_the_legend_gets_the_height_it_needs(curves: Curves) -> None:
    curves.start(started(), COLORS)
    QTest.qWait(150)
    few = curves.minimumHeight()
    curves.start(started(names=tuple(f"a rather long name {i}" for i in range(10))), ())
    QTest.qWait(150)
    assert curves.minimumHeight() > few
    curves.resize(300, curves.minimumHeight())
    QTest.qWait(50)
    assert curves.iou.area().height() > 40
    assert curves.legend.height() >= curves.legend.heightForWidth(curves.legend.width())
    assert curves.legend.geometry().bottom() <= curves.height()


def legend_words(curves: Curves) -> str:
    QTest.qWait(150)
    document = QTextDocument()
    document.setHtml(curves.legend.text())
    return " ".join(document.toPlainText().split())


def test_the_legend_has_the_newest_score_of_each_class(curves: Curves) -> None:
    curves.start(started(names=("pore", "a < b & c")), COLORS)
    curves.add_epoch(epoch(1, iou=(0.9, math.nan)))
    curves.add_epoch(epoch(2, iou=(0.8, 0.6)))
    assert legend_words(curves) == "━ mean 0.70 ■ pore 0.80 ■ a < b & c 0.60"


def test_a_legend_too_long_counts_what_it_leaves_out(curves: Curves) -> None:
    curves.start(started(names=tuple(f"class {i}" for i in range(60))), ())
    words = legend_words(curves)
    shown = words.count("class")
    assert 5 < shown < 60
    assert words.endswith(f"and {60 - shown} more")


def test_a_long_name_is_elided(curves: Curves) -> None:
    curves.start(started(names=("first " + "very " * 30 + "last", "x")), COLORS)
    words = legend_words(curves)
    assert "first" in words
    assert "last" in words
    assert "…" in words
    assert curves.legend.minimumSizeHint().width() <= 280


def test_a_single_high_loss_does_not_flatten_the_others() -> None:
    assert loss_range([0.5] * 99 + [1e6], [0.5]) == pytest.approx((0, 0.53))
    assert loss_range([0.5] * 99 + [2.0], [2.0])[1] > 2
    assert loss_range([math.nan, math.inf], []) == (0.0, 1.0)
    assert loss_range([-1.0, -2.0], [-2.0])[0] < -2
    assert loss_range([0.0], [0.0]) == (0.0, 1.0)


def test_the_text_follows_the_theme(make_napari_viewer: Any) -> None:
    viewer = make_napari_viewer(show=True)
    curves = Curves()
    viewer.window.add_dock_widget(curves, area="right")
    brightest, darkest = {}, {}
    for theme in ("dark", "light"):
        viewer.theme = theme
        picture = pixels(curves)
        axis = round(pixel_of(curves, curves.iou, 0, 0).x())
        plot = curves.iou.geometry()
        numbers = picture[plot.top() : plot.bottom(), : axis - 4]
        brightest[theme], darkest[theme] = numbers.max(), numbers.min()
    assert brightest["dark"] > 150
    assert darkest["dark"] < 60
    assert brightest["light"] > 200
    assert darkest["light"] < 120


def test_the_epochs_are_whole_numbers(curves: Curves) -> None:
    curves.start(started(epochs=2), COLORS)
    QTest.qWait(150)
    axis = curves.iou.getAxis("bottom")
    (spacing, values), *_ = axis.tickValues(*axis.range, curves.iou.area().width())
    assert axis.tickStrings(values, 1.0, spacing) == ["epoch", "1", "2"]


def test_the_wheel_reaches_what_holds_the_curves(curves: Curves, qtbot: Any) -> None:
    """A dock scrolls when the wheel turns over a plot."""
    over = pixel_of(curves, curves.iou, 1, 0.5).toPoint()
    assert curves.childAt(over) is None


def test_events_of_no_interest_pass_by(curves: Curves) -> None:
    def events() -> Iterator[Event]:
        yield Event()
        yield started()
        yield epoch(1)

    curves.load(events(), COLORS)
    assert len(curves.epochs) == 1
