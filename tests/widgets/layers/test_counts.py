"""Counts of label values are exact for every kind of array; only painted planes are counted again."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.array
import numpy as np
import pytest
import zarr
from napari import Viewer
from napari.layers import Labels
from pytestqt.qtbot import QtBot
from qtpy.QtCore import QObject

from napari_strata.widgets.layers import counts
from napari_strata.widgets.layers.counts import Counts, PixelCounter, count_values

RNG = np.random.default_rng(0)


def _plainly(array: np.ndarray[Any, Any]) -> dict[int, int]:
    return dict(Counter(array.ravel().tolist()))


def _settled(qtbot: QtBot, counter: PixelCounter) -> Counts:
    qtbot.waitUntil(lambda: not counter.busy, timeout=120_000)
    assert counter.counts is not None
    return counter.counts


@pytest.mark.parametrize(
    "array",
    [
        RNG.integers(0, 5, (3, 40, 50)).astype(np.uint8),
        RNG.integers(0, 5, (40, 50)).astype(bool),
        RNG.integers(-3, 5, (2, 3, 10, 11)).astype(np.int32),
        RNG.choice([0, 3, 2**17, 2**31 - 1], (2, 10, 11)).astype(np.int64),
        RNG.integers(0, 900, (4, 30, 31)).astype(np.uint16),
        np.zeros((0, 4, 5), np.uint8),
    ],
    ids=str,
)
def test_counts_are_exact(
    array: np.ndarray[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counts, "PIECE_PIXELS", 333)
    assert count_values(array).total == _plainly(array)


def test_lazy_arrays_count_as_well(tmp_path: Path) -> None:
    array = RNG.integers(0, 4, (3, 20, 30)).astype(np.uint8)
    stored = zarr.create_array(tmp_path / "a.zarr", data=array, chunks=(1, 20, 30))
    np.save(tmp_path / "a.npy", array)
    for lazy in (
        dask.array.from_array(array),
        stored,
        np.load(tmp_path / "a.npy", mmap_mode="r"),
    ):
        assert count_values(lazy).total == _plainly(array)


def test_only_changed_planes_are_read_again() -> None:
    array = RNG.integers(0, 4, (5, 20, 30)).astype(np.uint8)
    before = count_values(array)
    array[2], array[4] = 7, 9  # 4 is not named: it must not be read
    after = count_values(array, before, changed=[(2,)])
    array[4] = 0
    assert after.total[7] == 600
    assert 9 not in after.total
    assert before.total[1] > after.total[1]


def test_a_count_can_be_stopped() -> None:
    asked: list[int] = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) > 2

    assert count_values(np.ones((9, 4, 5), np.uint8), stop=stop).pixels == 2 * 20


def test_strokes_undo_redo_and_scripts_are_counted(qtbot: QtBot) -> None:
    layer = Labels(np.zeros((4, 60, 50), np.uint8))
    owner = QObject()
    counter = PixelCounter(owner)
    counter.watch(layer)
    assert _settled(qtbot, counter).total == {0: 12000}

    def check() -> None:
        qtbot.waitUntil(
            lambda: counter.busy or counter.counts.total == _plainly(layer.data),
            timeout=120_000,
        )  # type: ignore[union-attr]
        assert _settled(qtbot, counter).total == _plainly(layer.data)

    layer.paint((1, 30, 30), 3)
    check()
    assert 3 in counter.counts.total  # type: ignore[union-attr]
    layer.data_setitem((np.array([0, 3]), np.array([1, 1]), np.array([2, 2])), 5)
    check()
    assert counter.counts.total[5] == 2  # type: ignore[union-attr]
    layer.fill((1, 0, 0), 2)
    check()
    layer.undo()
    check()
    assert 2 not in counter.counts.total  # type: ignore[union-attr]
    layer.redo()
    check()
    layer.data[0, :5] = 8
    layer.refresh()
    check()
    layer.data = np.full((2, 9, 9), 6, np.uint8)
    check()
    assert counter.counts.total == {6: 162}  # type: ignore[union-attr]


def test_strokes_read_the_painted_planes_only(
    qtbot: QtBot, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Any] = []
    real = counts.count_values
    monkeypatch.setattr(
        counts,
        "count_values",
        lambda data, before, **more: (
            read.append((before is None, set(more["changed"])))
            or real(data, before, **more)
        ),
    )
    layer = Labels(np.zeros((6, 40, 40), np.uint8))
    owner = QObject()
    counter = PixelCounter(owner)
    counter.watch(layer)
    _settled(qtbot, counter)
    with layer.block_history():  # as napari groups a stroke
        layer.paint((2, 10, 10), 1)
        layer.paint((3, 10, 14), 1)
    _settled(qtbot, counter)
    layer.undo()
    _settled(qtbot, counter)
    assert read == [(True, set()), (False, {(2,), (3,)}), (False, {(2,), (3,)})]


def test_many_strokes_are_counted_together(qtbot: QtBot) -> None:
    layer = Labels(np.zeros((4, 60, 50), np.uint8))
    owner = QObject()
    counter = PixelCounter(owner)
    counter.watch(layer)
    _settled(qtbot, counter)
    seen: list[int] = []
    counter.counted.connect(lambda: seen.append(1))
    for column in range(0, 50, 2):
        layer.paint((1, 30, column), 3)
        qtbot.wait(20)
    assert _settled(qtbot, counter).total == _plainly(layer.data)
    assert 1 <= len(seen) <= 3


def test_a_change_of_the_slice_does_not_count(
    make_napari_viewer: Callable[..., Viewer], qtbot: QtBot
) -> None:
    viewer = make_napari_viewer()
    layer = viewer.add_labels(np.zeros((4, 60, 50), np.uint8))
    owner = QObject()
    counter = PixelCounter(owner)
    counter.watch(layer)
    _settled(qtbot, counter)
    for plane in (0, 3, 1):
        viewer.dims.set_point(0, plane)
        assert not counter.busy
    viewer.dims.ndisplay = 3
    assert not counter.busy
    layer.refresh()
    assert counter.busy
    _settled(qtbot, counter)


def test_large_labels_are_counted_on_request(
    qtbot: QtBot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counts, "LARGE_BYTES", 1000)
    layer = Labels(np.zeros((4, 60, 50), np.uint8))
    owner = QObject()
    counter = PixelCounter(owner)
    counter.watch(layer)
    qtbot.wait(100)
    assert counter.counts is None
    assert not counter.busy
    assert "Count" in counter.describe()
    counter.count()
    assert _settled(qtbot, counter).total == {0: 12000}
    assert counter.describe() == ""
    layer.paint((1, 30, 30), 3)
    assert _settled(qtbot, counter).total == _plainly(layer.data)  # a plane is small
    layer.data = layer.data.copy()
    assert not counter.busy
    assert counter.stale


def test_an_error_is_reported(qtbot: QtBot) -> None:
    class Broken(np.ndarray):  # type: ignore[type-arg]
        def __getitem__(self, key: Any) -> Any:
            raise OSError("the disk is gone")

    layer = Labels(np.zeros((4, 60, 50), np.uint8))
    owner = QObject()
    counter = PixelCounter(owner)
    counter.watch(layer)
    _settled(qtbot, counter)
    layer._data = layer.data.view(Broken)
    with qtbot.waitSignal(counter.failed) as said:
        counter.count()
    assert "the disk is gone" in said.args[0]
    assert not counter.busy


def test_no_reference_to_a_layer_is_kept(qtbot: QtBot) -> None:
    layer = Labels(np.zeros((4, 60, 50), np.uint8))
    slots = [len(emitter.callbacks) for emitter in layer.events.emitters.values()]
    owner = QObject()
    counter = PixelCounter(owner)
    counter.watch(layer)
    _settled(qtbot, counter)
    counter.watch(None)
    assert [
        len(emitter.callbacks) for emitter in layer.events.emitters.values()
    ] == slots
    counter.watch(layer)
    gone = weakref.ref(layer)
    del layer
    _settled(qtbot, counter)
    gc.collect()
    assert gone() is None
    assert not counter.large
