"""A running prediction, from the image file for the worker to the finished layers.

A second prediction of the same image with the same model goes into the same layer, so
that plane after plane can be predicted; a layer that was edited, or made by another
model, is never touched: the new labels get a layer of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

from napari.layers import Image as ImageLayer
from napari.layers import Labels as LabelsLayer
from qtpy.QtCore import QObject, QTimer, Signal

from napari_strata.core.errors import StrataError
from napari_strata.core.events import (
    Message,
    PredictionEnd,
    PredictionStarted,
    RegionEnd,
)
from napari_strata.core.image import Image
from napari_strata.core.runs import MODEL_FILE, CrossvalFolder
from napari_strata.core.text import format_duration
from napari_strata.widgets.layers.convert import slug, source_of_image
from napari_strata.widgets.layers.live import LiveLabels, class_map
from napari_strata.widgets.predict import results
from napari_strata.widgets.session import ViewerSession
from napari_strata.widgets.work import threads
from napari_strata.widgets.work.client import JobHandle, Outcome
from napari_strata.worker.protocol import (
    JobQueued,
    Layer,
    PredictJob,
    PredictResult,
    TargetOpened,
)


@dataclass(frozen=True)
class PredictionOptions:
    """Options of a prediction.

    Parameters
    ----------
    region
        Area to predict, as in a PredictJob. None: the whole image.
    probabilities, confidence
        Layers to add at the end.
    tta, ortho
        True to average over flips and turns, and over three directions.
    """

    region: Mapping[Any, Any] | None = None
    probabilities: bool = False
    confidence: bool = False
    tta: bool = False
    ortho: bool = False


class LivePrediction(QObject):
    """One prediction of one image layer.

    `start` it; `ended` comes exactly once, when every layer is in place.

    The outcome's text says for people how far it came. Goes on when the image layer is
    deleted; stops when the labels layer is.
    """

    progress = Signal(
        int, int
    )  # planes done, planes in all; 0 of 0 while that is not known
    message = Signal(str, str)  # text, level
    ended = Signal(object)  # Outcome

    def __init__(
        self,
        session: ViewerSession,
        layer: ImageLayer,
        *,
        image: Image,
        model: Path,
        options: PredictionOptions = PredictionOptions(),
    ) -> None:
        super().__init__(session)
        self.labels_layer: LabelsLayer | None = None
        self.words = "Getting the image ready ..."
        self.added: list[str] = []  # names of the layers beside the labels
        self._begun = 0.0
        self._session, self._layer, self._image = session, layer, image
        self._model, self._options = model, options
        self._live = LiveLabels(session.viewer, self)
        self._live.settled.connect(self._settled)
        self._handle: JobHandle | None = None
        self._made: results.Made | None = None
        self._target: TargetOpened | None = None
        self._outcome: Outcome | None = None
        self._again = False  # into a layer that was there
        self._stopped = self._over = False
        self._done = self._total = 0
        self._seconds = 0.0

    def start(self) -> None:
        """Write the image in a thread, if no file holds it, and give the order."""
        session, layer, image, model = (
            self._session,
            self._layer,
            self._image,
            self._model,
        )
        session.closing.connect(self._leave)
        session.viewer.layers.events.removed.connect(self._removed)
        self.progress.emit(0, 0)
        try:
            scratch = session.scratch()
        except StrataError as error:
            self._refuse(error)
            return

        def prepare() -> tuple[Layer, results.Origin]:
            return source_of_image(layer, image, scratch), _origin(
                layer, image, model, self._options
            )

        threads.run(
            prepare,
            lambda found: self._submit(scratch, *found),
            self._refuse,
            owner=self,
        )

    def stop(self) -> None:
        """Stop within a second; planes that are done stay."""
        self._stopped = True
        if self._handle is not None and self._handle.outcome is None:
            self.words = "Stopping ..."
            self.progress.emit(self._done, self._total)
            self._handle.stop()

    # ------------------------------------------------------------------ the job

    def _submit(self, scratch: Path, source: Layer, origin: results.Origin) -> None:
        if self._stopped:
            self._end(Outcome("stopped", "Stopped before it began."))
            return
        options, session = self._options, self._session
        earlier = results.find(session.viewer, origin)
        self._made = earlier or results.Made(
            _free(scratch, slug(self._image.name)), origin
        )
        self._again = earlier is not None
        if earlier is not None:
            self._live.layer = earlier.layer()
            self.message.emit(
                f"The labels go into {earlier.layer()}, made with the same model.",
                "info",
            )
        request = PredictJob(
            job=session.client.new_id(),
            model=str(self._model),
            out=str(self._made.path),
            image=source,
            probabilities=options.probabilities or options.confidence,
            tta=options.tta,
            ortho=options.ortho,
            # What is in the layer stays until the plane is predicted again, also when
            # that is stopped half-way.
            region=options.region
            or ({"Y": (0, self._image.size("Y"))} if self._again else None),
            overwrite=True,
            device=session.settings.device,
        )
        self.words = "Loading the model ..."
        self.progress.emit(0, 0)
        self._handle = session.submit(request)
        self._handle.replied.connect(self._take)
        self._handle.ended.connect(self._job_ended)
        session.register_task(f"segmenting {self._image.name}", self._handle)

    def _take(self, event: object) -> None:
        """Follow one event; events without news for people are ignored."""
        match event:
            case JobQueued():
                self._show_queued(event)
            case Message():
                self._show_message(event)
            case TargetOpened():
                self._open_layer(event)
            case PredictionStarted():
                self._show_start(event)
            case RegionEnd():
                self._show_region(event)
            case PredictionEnd():
                self._seconds = event.seconds

    def _show_queued(self, event: JobQueued) -> None:
        self.words = "Waiting for the job before it ..."
        self.progress.emit(0, 0)

    def _show_message(self, event: Message) -> None:
        if event.level == "warning":
            self.message.emit(event.text, event.level)

    def _open_layer(self, event: TargetOpened) -> None:
        under = self._layer if self._layer in self._session.viewer.layers else None
        try:
            name = f"{self._image.name} segmented"
            self.labels_layer = self._live.open(event, self._image, under, name=name)
        except (OSError, ValueError) as error:
            self.message.emit(
                f"The labels cannot be shown ({error}): is the folder of runs on a"
                " shared disk?",
                "error",
            )
            self.stop()
            return
        self._target = event
        assert self._made is not None
        self._made.adopt(self.labels_layer)

    def _show_start(self, event: PredictionStarted) -> None:
        self._total = event.regions
        self._begun = perf_counter()
        self.words = f"The first of {_planes(event.regions)}, on {event.device}"
        self.progress.emit(0, event.regions)

    def _show_region(self, event: RegionEnd) -> None:
        self._done, self._total = event.done, event.regions
        self._live.region_done(event.region)
        left = (perf_counter() - self._begun) / self._done * (self._total - self._done)
        about = (
            "a few seconds left"
            if left < 5
            else (
                f"about {format_duration(left) if left >= 10 else f'{left:.0f} s'} left"
            )
        )
        if not self._stopped:
            self.words = f"{self._done} of {_planes(self._total)}"
            if self._done < self._total:
                self.words += f", {about}"
        self.progress.emit(self._done, self._total)

    def _job_ended(self, outcome: Outcome) -> None:
        if self._over:
            return
        self._outcome = outcome
        self._live.place()
        layer, layers = self.labels_layer, self._session.viewer.layers
        if layer is None or layer not in layers:
            self._end(outcome)
        elif self._done == 0 and not self._again and outcome.status != "finished":
            layers.remove(layer)  # there is nothing in it
            self.labels_layer = None
            self._end(outcome)
        else:
            self.words = "Finishing ..."
            self.progress.emit(self._done, self._total)
            self._live.finish()

    # ---- the layers at the end

    def _settled(self) -> None:
        """The labels are the viewer's own."""
        assert self._outcome is not None
        if self._over:
            return
        made, target, layer = self._made, self._target, self.labels_layer
        assert made is not None
        if layer is None or layer not in self._session.viewer.layers or target is None:
            self._end(self._outcome)
            return
        made.settle()
        if not target.probabilities or not self._done:
            self._end(self._outcome)
            return
        names = class_map(target.classes).names
        path = Path(target.probabilities)
        chances = results.Chances(path, target.axes, names)
        if self._options.probabilities:
            for name, data in chances.layers(self._image.name):
                self._put(name, data)
        if not self._options.confidence:
            self._end(self._outcome)
            return
        self.words = "Working out the confidence ..."
        self.progress.emit(0, 0)
        threads.run(
            lambda: chances.confidence(lambda: self._stopped or self._over),
            self._confident,
            self._refuse,
            owner=self,
        )

    def _confident(self, data: Any) -> None:
        if self._over:
            return
        if data is not None:
            self._put(f"confidence {self._image.name}", data)
        assert self._outcome is not None
        self._end(self._outcome)

    def _put(self, name: str, data: Any) -> None:
        assert self._made is not None
        if self._made.put(self._session.viewer, name, data):
            self.added.append(name)

    # ------------------------------------------------------------------ the end

    def _removed(self, event: Any) -> None:
        # Looked at once the list is at rest: the layer may only be moved.
        if event.value in (self.labels_layer, self._layer):
            QTimer.singleShot(0, self._check_removed)

    def _check_removed(self) -> None:
        layers = self._session.viewer.layers
        if self._over or self._outcome is not None or self._stopped:
            return
        self._live.place()
        if self.labels_layer is not None and self.labels_layer not in layers:
            self.message.emit(
                "The labels layer was deleted, so the prediction stops.", "warning"
            )
            self.stop()
        elif self._layer not in layers:
            self.message.emit(
                f"{self._image.name} was deleted; its prediction goes on.", "info"
            )

    def _leave(self) -> None:
        """The viewer closes: touch no layer any more."""
        self._stopped = True
        self._live.leave()
        self._end(Outcome("stopped", "napari was closed."))

    def _refuse(self, error: Exception) -> None:
        self._end(Outcome("failed", str(error)))

    def _end(self, outcome: Outcome) -> None:
        if self._over:
            return
        self._over = True
        self._session.closing.disconnect(self._leave)
        self._session.viewer.layers.events.removed.disconnect(self._removed)
        self.ended.emit(replace(outcome, text=self._summary(outcome)))

    def _summary(self, outcome: Outcome) -> str:
        """Describe the progress and the reason of the end."""
        done = (
            f"{self._done} of {_planes(self._total)}"
            f" {'is' if self._total == 1 else 'are'} done"
        )
        is_visible = (
            self.labels_layer is not None
            and self.labels_layer in self._session.viewer.layers
        )
        if outcome.status == "finished":
            if not is_visible:
                return "Finished, but its labels layer was deleted."
            spent = (
                f" in {format_duration(self._seconds)}" if self._seconds >= 0.1 else ""
            )
            return (
                f"{self.labels_layer}: {_planes(self._done)}{spent}{_shares(outcome)}."
            )
        text = outcome.text or ("Stopped." if outcome.status == "stopped" else "")
        if is_visible and self._total:
            return (
                f"Stopped: {done}."
                if outcome.status == "stopped"
                else f"{text} {done[0].upper()}{done[1:]}."
            )
        return text


def _origin(
    layer: ImageLayer, image: Image, model: Path, options: PredictionOptions
) -> results.Origin:
    """Describe the origin of the labels, including the kind of averaging."""
    origin = results.Origin.of(layer, image, model)
    folds = model.glob(f"*/{MODEL_FILE}") if CrossvalFolder(model).exists else ()
    changed = max((file.stat().st_mtime_ns for file in folds), default=origin.changed)
    parts = [
        origin.model,
        *(["turned"] if options.tta else []),
        *(["three directions"] if options.ortho else []),
    ]
    return replace(origin, model=", ".join(parts), changed=changed)


def _shares(outcome: Outcome) -> str:
    """``; pore 12.3 %, quartz 87.7 %``: of the pixels that were predicted."""
    result = outcome.result
    pixels = result.pixels if isinstance(result, PredictResult) else {}
    total = sum(pixels.values())
    return (
        "; "
        + ", ".join(
            f"{name} {100 * count / total:.1f} %" for name, count in pixels.items()
        )
        if total
        else ""
    )


def _planes(count: int) -> str:
    return f"{count} plane{'' if count == 1 else 's'}"


def _free(folder: Path, name: str) -> Path:
    """``<folder>/<name>-<n>.npy``, not used so far."""
    number = 1
    while (path := folder / f"{name}-{number}.npy").exists():
        number += 1
    return path
