"""Counts of the pixels of each label value, updated in a thread during painting."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

import numpy as np
from napari.layers import Labels as LabelsLayer
from qtpy.QtCore import QObject, QTimer, Signal

from napari_strata.widgets.layers.convert import array_of
from napari_strata.widgets.work import threads

Array = np.ndarray[Any, Any]
Plane = tuple[int, ...]
"""Index of a plane: the dimensions before the last two; empty for 2D labels."""

PIECE_PIXELS = 2**20
"""Number of pixels that are counted at once.

numpy's bincount blocks Python for about 2 ms for this number.
"""
LARGE_BYTES = 2 * 2**30
"""Labels with more bytes are counted only if the user requests it."""
RECOUNT_BYTES = 2**28
"""Labels with more bytes are not counted again when they are redrawn."""
COUNT_INTERVAL_S = 0.7
"""Seconds between two counts of a layer."""


@dataclass(frozen=True)
class Counts:
    """Label values and their numbers of pixels, for each plane and in total."""

    planes: Mapping[Plane, tuple[Array, Array]]
    total: Mapping[int, int]

    @property
    def pixels(self) -> int:
        """Number of pixels of all values, including 0."""
        return sum(self.total.values())

    @property
    def labelled_everywhere(self) -> bool:
        """True if every plane has a value other than 0."""
        return all(bool(values.any()) for values, _ in self.planes.values())


def count_values(
    data: Any,
    previous: Counts | None = None,
    *,
    changed: Collection[Plane] = (),
    stop: Callable[[], bool] = lambda: False,
) -> Counts:
    """Count the pixels of each value, plane by plane.

    Parameters
    ----------
    data
        Labels (..., Y, X), any array that can be indexed.
    previous, changed
        Earlier counts, and the planes that have changed since then. Only these are
        counted again.
    stop
        Function that returns True to end early, with incomplete counts.
    """
    planes = dict(previous.planes) if previous is not None else {}
    all_planes: Iterable[Plane] = product(*(range(size) for size in data.shape[:-2]))
    for plane in all_planes if previous is None else changed:
        if stop():
            break
        flat = np.asarray(data[plane]).reshape(-1)
        pieces = (
            flat[start : start + PIECE_PIXELS]
            for start in range(0, flat.size, PIECE_PIXELS)
        )
        planes[plane] = _merge([_count(piece) for piece in pieces])
    values, counts = _merge(list(planes.values()))
    return Counts(planes, dict(zip(values.tolist(), counts.tolist(), strict=True)))


def _count(piece: Array) -> tuple[Array, Array]:
    if piece.min() >= 0 and piece.max() < 2**16:
        counts = np.bincount(piece.astype(np.intp, copy=False))
        values = np.flatnonzero(counts)
        return values, counts[values]
    values, counts = np.unique(piece, return_counts=True)
    return values.astype(np.int64), counts


def _merge(parts: list[tuple[Array, Array]]) -> tuple[Array, Array]:
    if len(parts) == 1:
        return parts[0]
    if not parts:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    values, where = np.unique(
        np.concatenate([values for values, _ in parts]), return_inverse=True
    )
    counts = np.zeros(len(values), np.int64)
    np.add.at(counts, where, np.concatenate([counts for _, counts in parts]))
    return values, counts


class LayerLinks:
    """Connections to the events of a layer, which are disconnected together.

    It is not a QObject, so that it exists longer than its widget.
    """

    def __init__(self) -> None:
        self.stop = threading.Event()
        """Set to end the thread that reads the layer."""
        self._connections: list[tuple[Any, Callable[..., Any]]] = []

    def connect(self, layer: LabelsLayer, **slots: Callable[[Any], None]) -> None:
        """Connect each slot, a bound method, to the event with its name."""
        for name, slot in slots.items():
            emitter = getattr(layer.events, name)
            function = _weak(slot)
            emitter.connect(function)
            self._connections.append((emitter, function))

    def clear(self, _gone: object = None) -> None:
        """Disconnect all slots, and stop the thread."""
        self.stop.set()
        for emitter, slot in self._connections:
            emitter.disconnect(slot)
        self._connections.clear()


def _weak(method: Callable[[Any], None]) -> Callable[[Any], None]:
    """Return a function that calls a method and does not keep its object alive.

    To disconnect a method, napari compares its object with others, which fails for a
    QObject that Qt has deleted.
    """
    reference = weakref.WeakMethod(method)

    def call(event: Any) -> None:
        bound = reference()
        if bound is not None:
            bound(event)

    return call


class PixelCounter(QObject):
    """Counts the pixels of a Labels layer in a thread, after each change."""

    counted = Signal()
    """Emitted when `counts`, `busy` or `stale` have changed."""
    painted = Signal(object)
    """Emitted with a value that was painted, before it is counted."""
    failed = Signal(str)

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self.counts: Counts | None = None
        self.stale = False
        """True if pixels have changed and the layer is too large to count it now."""
        self._layer: weakref.ref[LabelsLayer] | None = None
        self._links = LayerLinks()
        self._all, self._planes = False, set[Plane]()
        self._running: threading.Event | None = None
        self._started = 0.0
        self._history: tuple[int, int] = (0, 0)
        self._view: tuple[Any, ...] = ()
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.timeout.connect(self._begin)
        self.destroyed.connect(self._links.clear)

    @property
    def busy(self) -> bool:
        """True while a count runs or is about to start."""
        return self._running is not None or self._timer.isActive()

    @property
    def large(self) -> bool:
        """True if the layer is counted only on request."""
        layer = self._layer() if self._layer is not None else None
        return layer is not None and _bytes(layer) > LARGE_BYTES

    def describe(self) -> str:
        """Describe the state of the count, with a link to start it; mostly empty."""
        if self.busy:
            return "Counting the pixels …" if self.counts is None or self.large else ""
        if self.stale and self.counts is None:
            return (
                "These labels are large, so pixels are counted on request. <a"
                ' href="count">Count</a>'
            )
        return (
            'Labels have changed since the count. <a href="count">Count again</a>'
            if self.stale
            else ""
        )

    def watch(self, layer: LabelsLayer | None) -> None:
        """Count this layer from now on."""
        self._links.clear()
        self._timer.stop()
        self.counts, self._running, self.stale, self._started = None, None, False, 0.0
        self._all, self._planes = False, set()
        self._layer = weakref.ref(layer) if layer is not None else None
        if layer is None:
            return
        self._history, self._view = _history(layer), _view(layer)
        self._links.connect(
            layer, paint=self._on_paint, data=self._on_data, set_data=self._on_refresh
        )
        self._mark(None)

    def count(self) -> None:
        """Count all pixels now, even in a large layer."""
        self._all = True
        self._timer.start(0)

    def _mark(self, planes: set[Plane] | None) -> None:
        """Request to count planes again; None means all."""
        if self.large and (planes is None or self.counts is None):
            self.stale = True
            self.counted.emit()
            return
        self._all |= planes is None
        self._planes |= planes or set()
        self._wait()

    def _wait(self) -> None:
        if (self._all or self._planes) and not self.busy:
            since = time.monotonic() - self._started
            self._timer.start(max(20, round(1000 * (COUNT_INTERVAL_S - since))))

    def _begin(self) -> None:
        layer = self._layer() if self._layer is not None else None
        if layer is None or self._running is not None:
            return
        data, changed, stop = (
            array_of(layer),
            frozenset(self._planes),
            threading.Event(),
        )
        previous = None if self._all else self.counts
        self._links.stop = stop
        self._all, self._planes, self._running, self._started = (
            False,
            set(),
            stop,
            time.monotonic(),
        )
        threads.run(
            lambda: count_values(data, previous, changed=changed, stop=stop.is_set),
            lambda counts: self._end(stop, counts),
            lambda error: self._end(
                stop, None, f"The pixels could not be counted: {error}"
            ),
            owner=self,
        )

    def _end(
        self, run: threading.Event, counts: Counts | None, error: str = ""
    ) -> None:
        if run is not self._running:  # the count of an earlier layer
            return
        self._running, self.stale = None, False
        if counts is None:
            self.failed.emit(error)
            return
        self.counts = counts
        self._wait()
        self.counted.emit()

    def _on_data(self, _event: object = None) -> None:
        if self._running is not None:  # it reads the old array of the layer
            self._running.set()
            self._running = None
        self.counts = None
        self._mark(None)

    def _on_paint(self, event: Any) -> None:
        layer = self._layer() if self._layer is not None else None
        if layer is None:
            return
        self._history = _history(layer)
        values: set[int] = set()
        for atom in event.value:
            values.update(_painted_values(atom))
        self._mark(painted_planes(event.value))
        for value in sorted(values):
            self.painted.emit(value)

    def _on_refresh(self, _event: object = None) -> None:
        """Count again after undo, redo and scripts, which only redraw the layer."""
        layer = self._layer() if self._layer is not None else None
        if layer is None:
            return
        before, self._history = self._history, _history(layer)
        view, self._view = self._view, _view(layer)
        if self._history != before:
            undone = self._history[0] < before[0]
            steps = layer._redo_history if undone else layer._undo_history
            self._mark(painted_planes(steps[-1]) if steps else None)
        elif view == self._view and _bytes(layer) <= RECOUNT_BYTES:
            self._mark(None)


def _bytes(layer: LabelsLayer) -> int:
    array = array_of(layer)
    return int(prod(array.shape)) * int(np.dtype(array.dtype).itemsize)


def _history(layer: LabelsLayer) -> tuple[int, int]:
    """Return the lengths of undo and redo history, which change with undo."""
    return len(layer._undo_history), len(layer._redo_history)


def _view(layer: LabelsLayer) -> tuple[Any, ...]:
    """Return the display state of the layer, whose changes do not change pixels."""
    world = layer._slice_input.world_slice
    return (
        tuple(world.point),
        tuple(layer._slice_input.order),
        layer._slice_input.ndisplay,
    )


def _painted_values(atom: Any) -> Iterator[int]:
    value = atom.new_value if hasattr(atom, "slice_key") else atom[2]
    if np.ndim(value) == 0:  # several values are left to the count
        yield int(value)


def painted_planes(item: Iterable[Any]) -> set[Plane] | None:
    """Return the planes that a step of napari's history changes.

    None if this would take long to determine.
    """
    planes: set[Plane] = set()
    for atom in item:
        if hasattr(atom, "slice_key"):
            planes.update(
                product(*(range(key.start, key.stop) for key in atom.slice_key[:-2]))
            )
            continue
        leading = [np.asarray(axis).reshape(-1) for axis in atom[0][:-2]]
        if leading and leading[0].size > 10_000:
            return None
        planes.update(
            zip(*(axis.tolist() for axis in leading), strict=True) if leading else [()]
        )
    return planes
