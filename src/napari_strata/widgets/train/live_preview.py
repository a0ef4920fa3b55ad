"""Preview of a training: the visible plane, every few seconds and after each epoch."""

from __future__ import annotations

from pathlib import Path
from time import monotonic

from qtpy.QtCore import QObject, QTimer

from napari_strata.core.events import EpochEnd, RegionEnd
from napari_strata.core.runs import RunFolder
from napari_strata.widgets.layers.convert import slug
from napari_strata.widgets.layers.live import LiveLabels, current_plane
from napari_strata.widgets.session import ViewerSession
from napari_strata.widgets.train.prepare import LayerData
from napari_strata.widgets.work.client import JobHandle
from napari_strata.worker.protocol import PredictJob, TargetOpened, TrainJob

VIEW_DELAY_MS = 400
"""Milliseconds without a change of the view before it is predicted."""
SNAPSHOT_S = 10
"""Seconds between two previews within an epoch."""
SLOW_S = 2.0
"""Seconds above which a preview is slow, such as a large plane of a volume."""
SLOW_FRACTION = 0.25
"""Largest fraction of the time of a training that slow previews may take."""


class LivePreview(QObject):
    """Previews of the plane that the viewer shows, between the steps of a training."""

    def __init__(self, session: ViewerSession, parent: QObject) -> None:
        super().__init__(parent)
        self._session = session
        self._on = True
        self._training: JobHandle | None = None
        self._request: TrainJob | None = None
        self._data: LayerData | None = None
        self._job: JobHandle | None = None
        self._labels = LiveLabels(session.viewer, self)
        self._filled = False
        # Times of the last request, and before which there is no other request.
        self._request_time = self._next_time = 0.0
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(VIEW_DELAY_MS)
        self._timer.timeout.connect(self._request_preview)
        self._shown_snapshot = 0.0
        self._snapshot_timer = QTimer(self)
        self._snapshot_timer.setInterval(1000)
        self._snapshot_timer.timeout.connect(self._look_for_snapshot)

    def start(
        self,
        training: JobHandle,
        request: TrainJob,
        data: LayerData | None,
        *,
        on: bool,
    ) -> None:
        """Follow a training.

        `data` is None if it trains on files, which the viewer does not show.
        """
        self.stop()
        if self._data is None or data is None or data.layer is not self._data.layer:
            self._labels.layer, self._filled = None, False  # of another image
        self._training, self._request, self._data, self._on = (
            training,
            request,
            data,
            on,
        )
        self._next_time = 0.0
        self._snapshot_timer.start()
        self._session.viewer.dims.events.current_step.connect(self._moved)

    def switch(self, on: bool) -> None:
        """Switch previews on or off."""
        self._on = on

    def stop(self) -> None:
        """Stop at the end of a training."""
        if self._training is None:
            return
        self._session.viewer.dims.events.current_step.disconnect(self._moved)
        self._timer.stop()
        self._snapshot_timer.stop()
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

    def toggle(self) -> None:
        """Hide the preview, or show it again."""
        layer = self._labels.layer
        if layer is not None and not self._session.is_closed:
            layer.visible = not layer.visible

    def hide(self) -> None:
        """Hide the preview while the whole stack is predicted."""
        if self._labels.layer is not None:
            self._labels.layer.visible = False

    def epoch_ended(self, _event: EpochEnd) -> None:
        """Request a preview with the new weights."""
        self._request_preview()

    def _look_for_snapshot(self) -> None:
        """Request a preview if there are new weights within an epoch."""
        if self._request is None:
            return
        time = _time_of(RunFolder(self._request.out).snapshot_path)
        if time > self._shown_snapshot:
            self._request_preview()

    def _newest_model(self, out: str) -> str:
        """Return the newest weights of a run: a snapshot, or the best model."""
        run = RunFolder(out)
        time = _time_of(run.snapshot_path)
        if time <= _time_of(run.model_path):
            return out
        self._shown_snapshot = time
        return str(run.snapshot_path)

    def _request_preview(self) -> None:
        data, request = self._data, self._request
        busy = self._job is not None and self._job.outcome is None
        if (
            not self._on
            or busy
            or data is None
            or request is None
            or self._training is None
        ):
            return
        if (
            data.layer not in self._session.viewer.layers
            or monotonic() < self._next_time
        ):
            return
        plane = current_plane(self._session.viewer, data.layer, data.image)
        job = PredictJob(
            job=self._session.client.new_id(),
            model=self._newest_model(request.out),
            image=request.images[0],
            axes=request.axes,
            out=str(self._session.scratch() / f"{slug(data.name)}-preview.npy"),
            region=plane or None,
            overwrite=True,
            device=request.device,
            preview=True,
        )
        self._request_time = monotonic()
        self._job = self._session.submit(job)
        self._job.replied.connect(self._on_event)
        self._job.ended.connect(self._on_end)

    def _on_event(self, event: object) -> None:
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

    def _on_end(self, _outcome: object) -> None:
        seconds = monotonic() - self._request_time
        self._next_time = 0.0
        if seconds > SLOW_S:
            self._next_time = self._request_time + seconds / SLOW_FRACTION
        self._labels.refresh()

    def _moved(self, _event: object = None) -> None:
        self._timer.start()


def _time_of(path: Path) -> float:
    """Return the time of the last change of a file; 0 if it does not exist."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
