"""Curves: what they keep of a training, what they draw of it, and how fast."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from qtpy.QtCore import QEvent, QObject, QPointF
from qtpy.QtGui import QColor, QFont, QImage
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QToolTip

from napari_strata.core.events import BatchEnd, EpochEnd, Event, TrainingStarted
from napari_strata.widgets.parts.plot import flow, number, ticks, whole_ticks
from napari_strata.widgets.train.curves import FIRST, NO_SCORES, Curves
from napari_strata.widgets.train.history import POINTS, History, loss_range

NAMES = ("pore", "grain")
COLORS = ("#ff0000", "#00a000")


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten paintings a second, so that the tests need not wait."""
    monkeypatch.setattr("napari_strata.widgets.train.curves.REST", 100)


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
    _, lower, _ = curves._places()
    xs = {n: lower.left() + n / 30 * lower.width() for n in (5, 10, 20, 25)}
    red = columns_of(picture, 0, above=lower.bottom())
    green = columns_of(picture, 1, above=lower.bottom())
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
    assert POINTS / 3 < len(history.batches) <= POINTS
    xs = [x for x, _ in history.batches]
    assert xs[0] < 0.1
    assert xs[-1] > 99.5
    assert np.ptp(np.diff(xs)) < 1e-6


def test_what_is_said_before_there_are_curves(curves: Curves) -> None:
    curves.start(started(), COLORS)
    assert curves._loss_chart().note == FIRST
    curves.add_batch(batch(1, 1))
    assert (curves._loss_chart().note, curves._iou_chart().note) == ("", FIRST)
    curves.add_epoch(epoch(1))
    assert (curves._loss_chart().note, curves._iou_chart().note) == ("", "")
    curves.clear()
    curves.start(started(), COLORS)
    curves.add_epoch(epoch(1, iou=(math.nan, math.nan)))
    assert curves._iou_chart().note == NO_SCORES


def test_the_mouse_over_an_epoch_tells_its_figures(curves: Curves, qtbot: Any) -> None:
    curves.start(started(), COLORS)
    for n in range(1, 16):
        curves.add_epoch(epoch(n, iou=(0.5 + n / 100, 0.25), best=n <= 12))
    QTest.qWait(150)
    _, lower, _ = curves._places()
    at = lower.left() + 12 / 30 * lower.width()
    qtbot.mouseMove(curves, QPointF(at + 2, lower.center().y()).toPoint())
    qtbot.waitUntil(lambda: QToolTip.isVisible())
    words = QToolTip.text()
    for part in (
        "Epoch 12 of 30, the best so far",
        "training 0.4, validation 0.5",
        "pore 0.620",
        "grain 0.250",
    ):
        assert part in words
    far = lower.left() + 25 / 30 * lower.width()
    assert curves.epoch_at(QPointF(far, lower.center().y())) is None
    assert curves.epoch_at(QPointF(at, lower.bottom() + 30)) is None


def test_the_best_epoch_is_the_last_one_marked(curves: Curves) -> None:
    for n, best in ((1, True), (2, True), (3, False)):
        curves.add_epoch(epoch(n, best=best))
    assert curves._iou_chart().best == curves._loss_chart().best == 2


class _Paints(QObject):
    count = 0

    def eventFilter(self, _watched: QObject | None, event: QEvent | None) -> bool:  # noqa: N802
        self.count += event is not None and event.type() == QEvent.Type.Paint
        return False


def test_fast_events_are_painted_at_most_ten_times_a_second(curves: Curves) -> None:
    curves.start(started(), COLORS)
    QTest.qWait(250)
    paints = _Paints()
    curves.installEventFilter(paints)
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
    begin = time.perf_counter()
    for i in range(5000):
        curves.add_batch(batch(1 + i // 25, 1 + i % 25, float(rng.random()), 25))
    per_batch = (time.perf_counter() - begin) / 5000
    begin = time.perf_counter()
    for n in range(1, 201):
        curves.add_epoch(epoch(n, iou=tuple(rng.random(12)), epochs=200))
    per_epoch = (time.perf_counter() - begin) / 200
    curves.resize(420, 480)
    seconds = []
    for _ in range(10):
        curves._renew()
        begin = time.perf_counter()
        curves.grab()
        seconds.append(time.perf_counter() - begin)
    paint = sorted(seconds)[5]
    print(
        f"\n{1e6 * per_batch:.1f} us a batch, {1e6 * per_epoch:.1f} us an epoch, {1e3 * paint:.2f} ms a painting"
    )
    assert per_batch < 1e-3
    assert per_epoch < 5e-3
    assert paint < 0.1


def test_the_legend_gets_the_height_it_needs(curves: Curves) -> None:
    curves.start(started(), COLORS)
    few = curves.minimumHeight()
    curves.start(started(names=tuple(f"a rather long name {i}" for i in range(10))), ())
    assert curves.minimumHeight() > few
    curves.resize(300, curves.minimumHeight())
    _, lower, legend = curves._places()
    assert lower.height() > 40
    assert legend + curves._legend()[-1].place.bottom() <= curves.height()


def test_a_legend_too_long_counts_what_it_leaves_out(qapp: Any) -> None:
    words = [("mean", QColor("black"), "0.50")] + [
        (f"class {i}", QColor("red"), "0.50") for i in range(60)
    ]
    entries = flow(words, QFont(), 280, rows=3)
    assert entries[-1].text == f"and {len(words) - len(entries) + 1} more"
    assert all(entry.place.right() <= 280.5 for entry in entries)
    assert len({entry.place.top() for entry in entries}) == 3
    assert len(flow(words[:3], QFont(), 280, rows=3)) == 3


@pytest.mark.parametrize(
    ("low", "high", "most", "expected"),
    [
        (0, 1, 5, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0, 1, 2, [0, 0.5, 1]),
        (0, 1.9, 4, [0, 0.5, 1, 1.5]),
        (0, 0.0031, 3, [0, 0.0020]),
        (0, 730, 3, [0, 250, 500]),
        (-0.5, 0.5, 2, [-0.5, 0, 0.5]),
        (0, math.nan, 3, [0]),
    ],
)
def test_ticks_are_round(
    low: float, high: float, most: int, expected: list[float]
) -> None:
    assert ticks(low, high, most) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("last", "most", "expected"),
    [
        (1, 9, [1]),
        (3, 9, [1, 2, 3]),
        (30, 9, [5, 10, 15, 20, 25, 30]),
        (200, 5, [50, 100, 150, 200]),
        (1000, 1, [1000]),
    ],
)
def test_epochs_are_numbered_in_whole_steps(
    last: int, most: int, expected: list[int]
) -> None:
    assert whole_ticks(last, most) == expected


@pytest.mark.parametrize(
    ("value", "step", "expected"),
    [(0.5, 0.25, "0.50"), (2, 1, "2"), (0.002, 0.001, "0.002"), (1e6, 1e5, "1e+06")],
)
def test_a_tick_has_the_decimals_of_its_step(
    value: float, step: float, expected: str
) -> None:
    assert number(value, step) == expected


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
    lightness = {}
    for theme in ("dark", "light"):
        viewer.theme = theme
        QTest.qWait(50)
        lightness[theme] = curves._ink().lightness()
    assert lightness["dark"] > 180
    assert lightness["light"] < 80


def test_events_of_no_interest_pass_by(curves: Curves) -> None:
    def events() -> Iterator[Event]:
        yield Event()
        yield started()
        yield epoch(1)

    curves.load(events(), COLORS)
    assert len(curves.epochs) == 1
