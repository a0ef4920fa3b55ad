"""The plane in sight, segmented with the newest weights after each epoch of a
training.
"""

from __future__ import annotations

from time import monotonic

from qtpy.QtCore import QObject, QTimer

from napari_strata.core.events import EpochEnd, RegionEnd
from napari_strata.widgets.layers.convert import slug
from napari_strata.widgets.layers.live import LiveLabels, current_plane
from napari_strata.widgets.session import ViewerSession
from napari_strata.widgets.train.prepare import LayerData
from napari_strata.widgets.work.client import JobHandle
from napari_strata.worker.protocol import (
    PredictJob,
    TargetOpened,
    TrainJob,
    ViewChanged,
)

REST = 400
"""Milliseconds that the view must be at rest before the worker is told of it."""
SLOW, SHARE = 2.0, 0.25
"""Seconds above which a preview is dear (a wide plane of a volume, say), and the share
of the time that dear ones may take from the training.
"""


class LivePreview(QObject):
    """Asks the worker, between the steps of a training, to predict what the viewer
    shows.
    """

    def __init__(self, session: ViewerSession, parent: QObject) -> None:
        super().__init__(parent)
        self._session = session
        self._on = True
        self._training: JobHandle | None = None
        self._order: TrainJob | None = None
        self._data: LayerData | None = None
        self._job: JobHandle | None = None
        self._labels = LiveLabels(session.viewer, self)
        self._filled = False
        self._asked = self._next = (
            0.0  # when the last one was asked for, and before when no other is
        )
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(REST)
        self._timer.timeout.connect(self._tell)

    def start(
        self, training: JobHandle, order: TrainJob, data: LayerData | None, *, on: bool
    ) -> None:
        """Follow a training of `data`.

        None when it trains on files, which the viewer does not show.
        """
        self.stop()
        if self._data is None or data is None or data.layer is not self._data.layer:
            self._labels.layer, self._filled = None, False  # of another image
        self._training, self._order, self._data, self._on = training, order, data, on
        self._next = 0.0
        self._session.viewer.dims.events.current_step.connect(self._moved)

    def switch(self, on: bool) -> None:
        """Make previews, or no more."""
        self._on = on

    def stop(self) -> None:
        """The training is over."""
        if self._training is None:
            return
        self._session.viewer.dims.events.current_step.disconnect(self._moved)
        self._timer.stop()
        if self._job is not None and self._job.outcome is None:
            self._job.stop()
        self._training = self._job = None
        self._labels.leave()
        empty = None if self._session.is_closed else self._labels.layer
        if (
            empty is not None
            and not self._filled
            and empty in self._session.viewer.layers
        ):
            self._session.viewer.layers.remove(empty)
            self._labels.layer = None

    def hide(self) -> None:
        """The whole stack is being predicted with better weights."""
        if self._labels.layer is not None:
            self._labels.layer.visible = False

    def epoch_ended(self, _event: EpochEnd) -> None:
        """There are new weights."""
        self._ask()

    def _ask(self) -> None:
        data, order = self._data, self._order
        busy = self._job is not None and self._job.outcome is None
        if (
            not self._on
            or busy
            or data is None
            or order is None
            or self._training is None
        ):
            return
        if data.layer not in self._session.viewer.layers or monotonic() < self._next:
            return
        plane = current_plane(self._session.viewer, data.layer, data.image)
        job = PredictJob(
            job=self._session.client.new_id(),
            model=order.out,
            image=order.images[0],
            axes=order.axes,
            out=str(self._session.scratch() / f"{slug(data.name)}-preview.npy"),
            region=plane or None,
            overwrite=True,
            device=order.device,
            preview=True,
        )
        self._asked = monotonic()
        self._job = self._session.submit(job)
        self._job.replied.connect(self._take)
        self._job.ended.connect(self._done)

    def _take(self, event: object) -> None:
        if (
            isinstance(event, TargetOpened)
            and self._data is not None
            and self._labels.layer is None
        ):
            data = self._data
            name = f"{data.name} preview"
            self._labels.open(
                event, data.image, data.layer, name=name, below=data.labels_layer
            )
        if isinstance(event, RegionEnd):
            self._filled = True

    def _done(self, _outcome: object) -> None:
        took = monotonic() - self._asked
        self._next = self._asked + took / SHARE if took > SLOW else 0.0
        self._labels.refresh()

    def _moved(self, _event: object = None) -> None:
        self._timer.start()

    def _tell(self) -> None:
        if (
            self._training is None
            or self._data is None
            or self._data.layer not in self._session.viewer.layers
        ):
            return
        plane = current_plane(self._session.viewer, self._data.layer, self._data.image)
        change = ViewChanged(job=self._training.order.job, value=dict(plane))
        self._training.send_change(change)
        self._ask()
