"""A running prediction, from the image file for the worker to the finished layers.

A second prediction of the same image with the same model is written to the same layer,
so that planes can be predicted one by one. A layer that was edited, or predicted by
another model, is not changed; the new labels get a new layer.
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
from napari_strata.core.text import format_count, format_duration
from napari_strata.widgets.layers.convert import slug, source_of_image
from napari_strata.widgets.layers.live import LiveLabels, class_map
from napari_strata.widgets.predict import results
from napari_strata.widgets.predict.model_choice import one_or_all
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
        Area to predict, as in a PredictJob; None for the whole image.
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
    """Prediction of an image layer.

    Call `start`; `ended` is emitted exactly once, when all layers exist. The text of
    the outcome describes the result for the user. The prediction continues if the image
    layer is deleted, and stops if the labels layer is deleted.
    """

    progress = Signal(int, int)
    """Number of finished planes and of all planes; 0 and 0 if unknown."""
    message = Signal(str, str)
    """Text and level."""
    ended = Signal(object)
    """Outcome."""

    def __init__(
        self,
        session: ViewerSession,
        layer: ImageLayer,
        *,
        image: Image,
        models: tuple[Path, ...],
        options: PredictionOptions = PredictionOptions(),
    ) -> None:
        super().__init__(session)
        self.labels_layer: LabelsLayer | None = None
        self.status_text = "Preparing the image ..."
        self.added: list[str] = []  # names of the layers besides the labels
        self._start_time = 0.0
        self._session, self._layer, self._image = session, layer, image
        self._models, self._options = models, options
        self._live = LiveLabels(session.viewer, self)
        self._live.settled.connect(self._on_settled)
        self._handle: JobHandle | None = None
        self._result: results.PredictedLabels | None = None
        self._target: TargetOpened | None = None
        self._outcome: Outcome | None = None
        self._is_refill = False  # the labels go into an existing layer
        self._stopped = self._has_ended = False
        self._planes_done = self._total = 0
        self._seconds = 0.0

    def start(self) -> None:
        """Write the image in a thread if it has no file, and send the request."""
        session, layer, image = self._session, self._layer, self._image
        session.closing.connect(self._on_closing)
        session.viewer.layers.events.removed.connect(self._on_removed)
        self.progress.emit(0, 0)
        try:
            scratch = session.scratch()
        except StrataError as error:
            self._fail(error)
            return

        def prepare() -> tuple[Layer, results.Origin]:
            return source_of_image(layer, image, scratch), _origin(
                layer, image, self._models, self._options
            )

        threads.run(
            prepare,
            lambda prepared: self._submit(scratch, *prepared),
            self._fail,
            owner=self,
        )

    def stop(self) -> None:
        """Stop within a second; finished planes are kept."""
        self._stopped = True
        if self._handle is not None and self._handle.outcome is None:
            self.status_text = "Stopping ..."
            self.progress.emit(self._planes_done, self._total)
            self._handle.stop()

    # ------------------------------------------------------------------ the job

    def _submit(self, scratch: Path, source: Layer, origin: results.Origin) -> None:
        if self._stopped:
            self._end(Outcome("stopped", "Stopped before it began."))
            return
        options, session = self._options, self._session
        earlier = results.find(session.viewer, origin)
        self._result = earlier or results.PredictedLabels(
            _unused_path(scratch, slug(self._image.name)), origin
        )
        self._is_refill = earlier is not None
        if earlier is not None:
            self._live.layer = earlier.layer()
            self.message.emit(
                f"The labels go into {earlier.layer()}, predicted with the same model.",
                "info",
            )
        request = PredictJob(
            job=session.client.new_id(),
            model=one_or_all(self._models),
            out=str(self._result.path),
            image=source,
            probabilities=options.probabilities or options.confidence,
            tta=options.tta,
            ortho=options.ortho,
            # The region keeps the labels in an existing layer until their plane is
            # predicted again.
            region=options.region
            or ({"Y": (0, self._image.size("Y"))} if self._is_refill else None),
            overwrite=True,
            device=session.settings.device,
        )
        self.status_text = "Loading the model ..."
        self.progress.emit(0, 0)
        self._handle = session.submit(request)
        self._handle.replied.connect(self._on_event)
        self._handle.ended.connect(self._job_ended)
        session.register_task(f"segmenting {self._image.name}", self._handle)

    def _on_event(self, event: object) -> None:
        """Handle an event; those without information for the user are ignored."""
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
        self.status_text = "Waiting for an earlier job ..."
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
                f"The labels cannot be shown ({error}): the folder of runs must be on a"
                " disk that viewer and worker share.",
                "error",
            )
            self.stop()
            return
        self._target = event
        assert self._result is not None
        self._result.adopt(self.labels_layer)

    def _show_start(self, event: PredictionStarted) -> None:
        self._total = event.regions
        self._start_time = perf_counter()
        planes = format_count(event.regions, "plane")
        self.status_text = f"Predicting the first of {planes}, on {event.device}"
        self.progress.emit(0, event.regions)

    def _show_region(self, event: RegionEnd) -> None:
        self._planes_done, self._total = event.done, event.regions
        self._live.region_done(event.region)
        left = (
            (perf_counter() - self._start_time)
            / self._planes_done
            * (self._total - self._planes_done)
        )
        about = (
            "a few seconds left"
            if left < 5
            else (
                f"about {format_duration(left) if left >= 10 else f'{left:.0f} s'} left"
            )
        )
        if not self._stopped:
            self.status_text = (
                f"{self._planes_done} of {format_count(self._total, 'plane')}"
            )
            if self._planes_done < self._total:
                self.status_text += f", {about}"
        self.progress.emit(self._planes_done, self._total)

    def _job_ended(self, outcome: Outcome) -> None:
        if self._has_ended:
            return
        self._outcome = outcome
        self._live.place()
        layer, layers = self.labels_layer, self._session.viewer.layers
        if layer is None or layer not in layers:
            self._end(outcome)
        elif (
            self._planes_done == 0
            and not self._is_refill
            and outcome.status != "finished"
        ):
            layers.remove(layer)  # it is empty
            self.labels_layer = None
            self._end(outcome)
        else:
            self.status_text = "Finishing ..."
            self.progress.emit(self._planes_done, self._total)
            self._live.finish()

    # ---- Layers at the end

    def _on_settled(self) -> None:
        """Add companion layers when the labels are complete."""
        assert self._outcome is not None
        if self._has_ended:
            return
        prediction, target, layer = self._result, self._target, self.labels_layer
        assert prediction is not None
        if layer is None or layer not in self._session.viewer.layers or target is None:
            self._end(self._outcome)
            return
        prediction.settle()
        if not target.probabilities or not self._planes_done:
            self._end(self._outcome)
            return
        names = class_map(target.classes).names
        path = Path(target.probabilities)
        probabilities = results.ProbabilityFile(path, target.axes, names)
        if self._options.probabilities:
            for name, data in probabilities.layers(self._image.name):
                self._add_layer(name, data)
        if not self._options.confidence:
            self._end(self._outcome)
            return
        self.status_text = "Computing the confidence ..."
        self.progress.emit(0, 0)
        threads.run(
            lambda: probabilities.confidence(lambda: self._stopped or self._has_ended),
            self._on_confidence,
            self._fail,
            owner=self,
        )

    def _on_confidence(self, data: Any) -> None:
        if self._has_ended:
            return
        if data is not None:
            self._add_layer(f"confidence {self._image.name}", data)
        assert self._outcome is not None
        self._end(self._outcome)

    def _add_layer(self, name: str, data: Any) -> None:
        assert self._result is not None
        if self._result.add_image(self._session.viewer, name, data):
            self.added.append(name)

    # ------------------------------------------------------------------ the end

    def _on_removed(self, event: Any) -> None:
        # Checked after all events, because the layer may only be moved.
        if event.value in (self.labels_layer, self._layer):
            QTimer.singleShot(0, self._check_removed)

    def _check_removed(self) -> None:
        layers = self._session.viewer.layers
        if self._has_ended or self._outcome is not None or self._stopped:
            return
        self._live.place()
        if self.labels_layer is not None and self.labels_layer not in layers:
            self.message.emit(
                "The labels layer was deleted, so the prediction stops.", "warning"
            )
            self.stop()
        elif self._layer not in layers:
            self.message.emit(
                f"{self._image.name} was deleted; its prediction continues.", "info"
            )

    def _on_closing(self) -> None:
        """End without changing layers, because the viewer closes."""
        self._stopped = True
        self._live.leave()
        self._end(Outcome("stopped", "napari was closed."))

    def _fail(self, error: Exception) -> None:
        self._end(Outcome("failed", str(error)))

    def _end(self, outcome: Outcome) -> None:
        if self._has_ended:
            return
        self._has_ended = True
        self._session.closing.disconnect(self._on_closing)
        self._session.viewer.layers.events.removed.disconnect(self._on_removed)
        self.ended.emit(replace(outcome, text=self._summary(outcome)))

    def _summary(self, outcome: Outcome) -> str:
        """Describe the progress and the reason of the end."""
        done = (
            f"{self._planes_done} of {format_count(self._total, 'plane')}"
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
            planes = format_count(self._planes_done, "plane")
            pixels = _describe_pixels(outcome)
            return f"{self.labels_layer}: {planes}{spent}{pixels}."
        text = outcome.text or ("Stopped." if outcome.status == "stopped" else "")
        if is_visible and self._total:
            return (
                f"Stopped: {done}."
                if outcome.status == "stopped"
                else f"{text} {done[0].upper()}{done[1:]}."
            )
        return text


def _origin(
    layer: ImageLayer,
    image: Image,
    models: tuple[Path, ...],
    options: PredictionOptions,
) -> results.Origin:
    """Return the origin of the labels, including the kind of averaging."""
    origins = [results.Origin.of(layer, image, model) for model in models]
    folds = [
        file
        for model in models
        if CrossvalFolder(model).exists
        for file in model.glob(f"*/{MODEL_FILE}")
    ]
    changed = max(
        *(origin.changed for origin in origins),
        *(file.stat().st_mtime_ns for file in folds),
        0,
    )
    descriptions = [
        *(origin.model for origin in origins),
        *(["turned"] if options.tta else []),
        *(["three directions"] if options.ortho else []),
    ]
    return replace(
        origins[0],
        model=", ".join(descriptions),
        changed=changed,
        models=tuple(origin.model for origin in origins),
    )


def _describe_pixels(outcome: Outcome) -> str:
    """Describe the predicted pixels as ``; pore 12.3 %, quartz 87.7 %``."""
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


def _unused_path(folder: Path, name: str) -> Path:
    """Return a path ``<folder>/<name>-<n>.npy`` that does not exist."""
    number = 1
    while (path := folder / f"{name}-{number}.npy").exists():
        number += 1
    return path
