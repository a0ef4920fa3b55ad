"""The live mask: what is in view, segmented by trees after each stroke."""

from __future__ import annotations

import itertools
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from napari.layers import Image as ImageLayer
from qtpy.QtCore import QObject, QTimer, Signal

from napari_strata.core.network_sections import LEVELS
from napari_strata.widgets.layers.convert import array_of, source_of_image
from napari_strata.widgets.layers.counts import LayerLinks, Plane, painted_planes
from napari_strata.widgets.layers.live import LiveLabels, current_plane
from napari_strata.widgets.session import ViewerSession
from napari_strata.widgets.train.prepare import LayerData
from napari_strata.widgets.train.shortcuts import HIDE_MASK
from napari_strata.widgets.work import threads
from napari_strata.widgets.work.client import JobHandle, Outcome
from napari_strata.worker.protocol import (
    ChooseLevelsJob,
    ChooseLevelsResult,
    LabelledPlane,
    Layer,
    MaskPart,
    NextWindowJob,
    NextWindowResult,
    PlaneBox,
    SegmentJob,
    SegmentResult,
    TargetOpened,
)

WAIT_MS = 30
"""Milliseconds without a further stroke or page before a mask is asked for."""
OPACITY = 0.4
"""Opacity of the mask, which must hide neither the image nor the strokes."""
IDLE_MS = 3000
"""Milliseconds without a stroke or page before the levels are chosen."""
MIN_STROKES = 8
"""Strokes from which on levels are chosen; again when there are twice as many."""


@dataclass(eq=False)
class _StrokeCopy:
    """Copy on disk of a Labels layer, which the worker maps.

    Planes without labels take no room in it. `versions` has the planes with labels.
    """

    path: Path
    image: Layer
    copy: np.ndarray[Any, Any]
    versions: dict[Plane, int] = field(default_factory=dict)
    numbers: itertools.count[int] = field(default_factory=itertools.count)

    @classmethod
    def create(cls, data: LayerData, folder: Path) -> _StrokeCopy:
        """Copy all labels, and name a file with the image; for a thread."""
        path = folder / f"live-{id(data.labels_layer)}.npy"
        labels = data.labels.data
        copy = np.lib.format.open_memmap(
            path, mode="w+", dtype=labels.dtype, shape=labels.shape
        )
        strokes = cls(path, source_of_image(data.layer, data.image, folder), copy)
        strokes.update(labels, set(np.ndindex(labels.shape[:-2])))
        return strokes

    def update(self, labels: Any, planes: Collection[Plane]) -> None:
        """Copy planes that have changed; for a thread."""
        for plane in planes:
            now = np.asarray(labels[plane])
            if np.array_equal(now, self.copy[plane]):
                continue
            self.copy[plane] = now
            if now.any():
                self.versions[plane] = next(self.numbers)
            else:
                self.versions.pop(plane, None)


class LiveMask(QObject):
    """Asks a worker of its own for a mask after each stroke and each turned page.

    A worker of its own, because the other one may be busy with a training. Outdated
    requests are stopped.
    """

    changed = Signal()
    """`text` is new."""
    data_changed = Signal()
    """Other layers or arrays are followed, or none."""
    window_found = Signal(object)
    """Emitted with the `NextWindowResult` that `ask_window` asked for."""
    window_failed = Signal(str)
    """Emitted with the reason why there is none."""

    def __init__(self, session: ViewerSession, parent: QObject) -> None:
        super().__init__(parent)
        self.text = ""
        """What the mask shows, or why there is none."""
        self._session = session
        self._is_on = True
        self._is_awake = False
        self._data: LayerData | None = None
        self._strokes: _StrokeCopy | None = None
        self._is_copying = False
        self._touched: set[Plane] = set()
        self._handle: JobHandle | None = None
        self._skipped: tuple[PlaneBox, ...] | None = None
        self._window_handle: JobHandle | None = None
        self._stage = ""
        self._levels: int | None = None  # the fewest
        self._stroke_count = 0
        self._levels_strokes = 0  # strokes when levels were chosen
        self._levels_handle: JobHandle | None = None
        self._idle_timer = QTimer(self)
        self._idle_timer.setSingleShot(True)
        self._idle_timer.setInterval(IDLE_MS)
        self._idle_timer.timeout.connect(self._choose_levels)
        self._mask = LiveLabels(session.viewer, self)
        self._links = LayerLinks()
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(WAIT_MS)
        self._timer.timeout.connect(self._copy)
        self.destroyed.connect(self._links.clear)

    @property
    def layer(self) -> Any:
        """The layer with the mask; None before the first."""
        return self._mask.layer

    @property
    def data(self) -> LayerData | None:
        """The layers that are followed."""
        return self._data

    def is_busy(self) -> bool:
        """Return True while a mask or a window is computed, or about to be."""
        handles = self._handle, self._window_handle
        is_computing = any(handle is not None for handle in handles)
        return is_computing or self._is_copying or self._timer.isActive()

    def ask_window(self, skipped: tuple[PlaneBox, ...]) -> None:
        """Ask for the window where the mask is least certain, except for skipped ones.

        `window_found` or `window_failed` follows, unless the data change before.
        """
        self._skipped = skipped
        self._ask()

    def switch(self, on: bool) -> None:
        """Show a mask from now on, or none."""
        self._is_on = on
        if on:
            self._is_awake = True
            self._ask()
        else:
            self._stop()
            self._forget_window()
            self._remove()

    def wake(self) -> None:
        """Somebody paints: show masks from now on, unless they are switched off."""
        if not self._is_awake:
            self._is_awake = True
            self._ask()

    def watch(self, data: LayerData | None) -> None:
        """Follow the strokes on these layers; None while they cannot be used."""
        if data is not None and not _has_strokes(data):
            data = None
        before, self._data = self._data, data
        is_new = data is None or before is None or not _is_same(before, data)
        if is_new:
            self._stop()
            self._forget_window()
            self._strokes = None
            self._levels, self._levels_strokes = None, 0
        if data is None or before is None or before.layer is not data.layer:
            self._remove()
        if data is None or before is None or not _is_same_layer(before, data):
            self._follow(data)
        elif self._strokes is None:
            self._ask()
        if is_new:
            self.data_changed.emit()

    def _follow(self, data: LayerData | None) -> None:
        """Listen to the layer of these labels, and to the pages of the viewer."""
        self._links.clear()
        step = self._session.viewer.dims.events.current_step
        step.disconnect(self._page_turned)
        if data is not None:
            self._links = LayerLinks()
            self._links.connect(
                data.labels_layer, paint=self._painted, set_data=self._edited
            )
            step.connect(self._page_turned)
            self._ask()

    def _painted(self, event: Any) -> None:
        planes = painted_planes(event.value)
        data = self._data
        if planes is None and data is not None:
            planes = set(np.ndindex(data.labels.shape[:-2]))
        self._touched |= planes or set()
        self._ask()

    def _edited(self, _event: object = None) -> None:
        """An undone stroke, or a change by a script, on the plane in view."""
        self._ask()

    def _page_turned(self, _event: object = None) -> None:
        self._ask()

    def _ask(self) -> None:
        self._stop_choice()
        if self._is_on and self._is_awake and self._data is not None:
            self._timer.start()

    def _copy(self) -> None:
        """Copy the planes that may have changed, in a thread."""
        data = self._data
        if data is None or not self._is_on or data.layer not in self._viewer_layers:
            return
        if self._is_copying:  # it asks again when it is done
            self._touched.add(self._plane_in_view(data))
            return
        self._is_copying = True
        planes = self._touched | {self._plane_in_view(data)}
        self._touched = set()
        strokes, labels = self._strokes, array_of(data.labels_layer)

        def copy() -> _StrokeCopy:
            if strokes is None:
                return _StrokeCopy.create(data, self._session.scratch())
            strokes.update(labels, planes)
            return strokes

        threads.run(
            copy,
            lambda copied: self._copied(data, copied),
            self._not_copied,
            owner=self,
        )

    def _copied(self, data: LayerData, strokes: _StrokeCopy) -> None:
        self._is_copying = False
        if self._data is None or not _is_same(self._data, data):
            return self._ask()
        self._strokes = strokes
        if self._touched:
            return self._ask()
        if self._session.is_closed:
            return None
        if self._skipped is not None:
            return self._submit_window(data, strokes, self._skipped)
        return self._submit(data, strokes)

    def _not_copied(self, error: Exception) -> None:
        self._is_copying = False
        self._say(f"No live mask: {error}")
        if self._skipped is not None:
            self._forget_window()
            self.window_failed.emit(str(error))

    def _submit(self, data: LayerData, strokes: _StrokeCopy) -> None:
        """Ask for a mask of what is in view, instead of an older one."""
        self._stop()
        if not self._is_on:
            return
        job = SegmentJob(
            **self._common_fields(data, strokes),
            visible=self._visible(data.layer),
            out=str(strokes.path.with_suffix(".mask.npy")),
        )
        self._stage = ""
        handle = self._session.live_client.submit(job)
        handle.replied.connect(lambda event: self._receive(handle, event))
        handle.ended.connect(lambda outcome: self._ended(handle, outcome))
        self._handle = handle

    def _submit_window(
        self, data: LayerData, strokes: _StrokeCopy, skipped: tuple[PlaneBox, ...]
    ) -> None:
        """Ask for a window, after the mask that is being computed."""
        self._forget_window()
        job = NextWindowJob(**self._common_fields(data, strokes), skipped=skipped)
        handle = self._session.live_client.submit(job)
        handle.ended.connect(lambda outcome: self._window_ended(handle, outcome))
        self._window_handle = handle

    def _window_ended(self, handle: JobHandle, outcome: Outcome) -> None:
        if handle is not self._window_handle:
            return
        self._forget_window()
        if isinstance(outcome.result, NextWindowResult):
            self.window_found.emit(outcome.result)
        else:
            self.window_failed.emit(outcome.text)
        self._ask()  # for strokes that were painted just before

    def _forget_window(self) -> None:
        self._skipped = None
        handle, self._window_handle = self._window_handle, None
        if handle is not None:
            handle.stop()

    def _common_fields(self, data: LayerData, strokes: _StrokeCopy) -> dict[str, Any]:
        """Fields that both kinds of jobs have."""
        axes = data.image.label_axes[:-2]
        planes = tuple(
            LabelledPlane(index=dict(zip(axes, plane, strict=True)), version=version)
            for plane, version in sorted(strokes.versions.items())
        )
        classes = data.labels.classes
        assert classes is not None
        is_training = self._session.client.current_state == "busy"
        return {
            "job": self._session.live_client.new_id(),
            "image": strokes.image,
            "axes": data.image.axes,
            "labels": Layer(path=str(strokes.path)),
            "planes": planes,
            "classes": classes,
            "plane": current_plane(self._session.viewer, data.layer, data.image),
            "device": self._session.settings.device,
            "threads": 1 if is_training else 0,
            "overrides": {"network.levels": self._levels} if self._levels else {},
        }

    def _receive(self, handle: JobHandle, event: object) -> None:
        data = self._data
        if handle is not self._handle or data is None:
            return
        if isinstance(event, TargetOpened):
            self._show(event, data)
        elif isinstance(event, MaskPart):
            if self._stage == "coarse" and event.stage == "full":
                self._mask.refresh()
            self._stage = event.stage
            self._mask.region_done({})

    def _show(self, target: TargetOpened, data: LayerData) -> None:
        """Make the layer of the mask, unless it is there."""
        layer = self._mask.layer
        if layer is not None and layer in self._viewer_layers:
            return
        layer = self._mask.open(
            target,
            data.image,
            data.layer,
            name=f"{data.name} live mask",
            below=data.labels_layer,
        )
        layer.opacity = OPACITY

    def _ended(self, handle: JobHandle, outcome: Outcome) -> None:
        if handle is not self._handle:
            return
        self._handle = None
        if isinstance(outcome.result, SegmentResult):
            self._mask.refresh()
            result = outcome.result
            text = (
                f"Live mask: decision trees, {result.strokes} strokes,"
                f" {result.seconds:.1f} s. Press {HIDE_MASK.key} to hide it."
            )
            if result.levels > min(LEVELS):
                text += (
                    f" They look further than at first ({result.levels} levels), which"
                    " tells held-out strokes better."
                )
            self._say(text)
            self._stroke_count = result.strokes
            if result.strokes >= max(MIN_STROKES, 2 * self._levels_strokes):
                self._idle_timer.start()
        elif outcome.status in ("failed", "died"):
            self._say(f"No live mask: {outcome.text}")

    def _choose_levels(self) -> None:
        """Choose how far the trees look, while nothing else is to be done."""
        data, strokes = self._data, self._strokes
        if data is None or strokes is None or self.is_busy():
            return
        if self._session.client.current_state == "busy":  # with a training, or its plan
            self._idle_timer.start()
            return
        job = ChooseLevelsJob(**self._common_fields(data, strokes))
        handle = self._session.live_client.submit(job)
        handle.ended.connect(lambda outcome: self._levels_chosen(handle, outcome))
        self._levels_handle = handle

    def _levels_chosen(self, handle: JobHandle, outcome: Outcome) -> None:
        if handle is not self._levels_handle:
            return
        self._levels_handle = None
        self._levels_strokes = self._stroke_count
        if not isinstance(outcome.result, ChooseLevelsResult):
            return
        best = outcome.result.best_levels
        levels = best if best > min(LEVELS) else None
        if levels != self._levels:
            self._levels = levels
            self._ask()

    def _stop_choice(self) -> None:
        self._idle_timer.stop()
        handle, self._levels_handle = self._levels_handle, None
        if handle is not None:
            handle.stop()

    def toggle(self) -> None:
        """Hide the mask, or show it again."""
        layer = self._mask.layer
        if layer is not None and layer in self._viewer_layers:
            layer.visible = not layer.visible

    def _stop(self) -> None:
        self._stop_choice()
        handle, self._handle = self._handle, None
        if handle is not None:
            handle.stop()

    def _remove(self) -> None:
        layer = self._mask.layer
        self._mask.leave()
        self._mask.layer = None
        if (
            layer is not None
            and not self._session.is_closed
            and layer in self._viewer_layers
        ):
            self._session.viewer.layers.remove(layer)
        self._say("")

    def _say(self, text: str) -> None:
        if text != self.text:
            self.text = text
            self.changed.emit()

    @property
    def _viewer_layers(self) -> Any:
        return self._session.viewer.layers

    def _plane_in_view(self, data: LayerData) -> Plane:
        index = current_plane(self._session.viewer, data.layer, data.image)
        return tuple(index.get(axis, 0) for axis in data.image.label_axes[:-2])

    def _visible(
        self, layer: ImageLayer
    ) -> tuple[tuple[int, int], tuple[int, int]] | None:
        """Rows and columns of an image in view; None in 3D or in another order."""
        dims = self._session.viewer.dims
        if dims.ndisplay != 2 or tuple(dims.order) != tuple(range(dims.ndim)):
            return None
        (top, left), (bottom, right) = np.asarray(layer.corner_pixels)[:, -2:].tolist()
        return (int(top), int(bottom) + 1), (int(left), int(right) + 1)


def _has_strokes(data: LayerData) -> bool:
    """Return False if every pixel is labelled, or the planes are not YX."""
    classes = data.labels.classes
    is_sparse = classes is not None and 0 in classes.unlabelled
    return is_sparse and data.image.label_axes.endswith("YX")


def _is_same_layer(one: LayerData, other: LayerData) -> bool:
    return one.layer is other.layer and one.labels_layer is other.labels_layer


def _is_same(one: LayerData, other: LayerData) -> bool:
    """Whether strokes that were copied for one are those of the other, too."""
    return (
        _is_same_layer(one, other)
        and one.image.axes == other.image.axes
        and one.labels.data is other.labels.data
    )
