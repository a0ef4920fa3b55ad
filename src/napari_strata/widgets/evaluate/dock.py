"""Evaluate dock: scores of predicted labels against the truth, for each class."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from magicgui.widgets import ComboBox
from napari.layers import Labels as LabelsLayer
from napari.viewer import Viewer
from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QFileDialog, QLabel

from napari_strata.core.errors import ImageError
from napari_strata.core.events import RegionEnd
from napari_strata.core.image import LabelImage
from napari_strata.data.trained_on import TrainedOn
from napari_strata.evaluation.compare import Comparison, Written, describe_plane
from napari_strata.plugin import labels_layer, stored_classes
from napari_strata.widgets.evaluate.score_view import ScoreView
from napari_strata.widgets.evaluate.scores import (
    PredictionChoice,
    TruthChoice,
)
from napari_strata.widgets.evaluate.state import (
    EvaluateState,
    LabelsInfo,
    ZeroMeaning,
    resolve,
)
from napari_strata.widgets.layers import convert
from napari_strata.widgets.layers.counts import PixelCounter
from napari_strata.widgets.layers.label_classes import LabelClasses
from napari_strata.widgets.layers.live import (
    ERRORS,
    MODEL,
    PREDICTED,
    add_quietly,
    current_plane,
)
from napari_strata.widgets.measure.objects import ObjectsDialog
from napari_strata.widgets.parts.class_rows import ZeroChoice
from napari_strata.widgets.parts.dock import Dock, Progress, draw
from napari_strata.widgets.parts.report_page import free_folder, page_of
from napari_strata.widgets.work import threads
from napari_strata.widgets.work.client import JobHandle, Outcome
from napari_strata.worker.protocol import (
    EvaluateJob,
    EvaluateResult,
    KnownPlane,
    KnownPlanes,
    Layer,
)

WHOLE, PLANE = "whole stack", "visible plane"


class EvaluateDock(Dock):
    """Dock that compares predicted labels with the truth."""

    name = "Evaluate"
    manual_page = "docs/scores.md"
    steps = (
        "Choose the prediction, and as truth labels that were not trained on.",
        "Say what 0 means in the truth.",
        "Press Compare. A table scores each class; below it, the confusion matrix shows"
        " which classes are confused.",
        "Press Show errors as a layer to see where, and Export ... to keep the scores.",
    )

    def __init__(self, napari_viewer: Viewer) -> None:
        super().__init__(napari_viewer)
        self.handle: JobHandle | None = None
        self.objects_dialog: ObjectsDialog | None = None
        self.written: Written | None = None
        self._activity = ""
        self._layer_transform: dict[str, Any] = {}  # of the layer that was compared
        self._fullest_planes: tuple[tuple[dict[str, int] | None, ...], ...] = ()
        self._errors: LabelsLayer | None = None
        self._zeros: weakref.WeakKeyDictionary[LabelsLayer, bool] = (
            weakref.WeakKeyDictionary()
        )
        self._counter = PixelCounter(self)
        self._scroll_timer = QTimer(self)
        self._scroll_timer.setSingleShot(True)
        self._scroll_timer.timeout.connect(self._scroll_to_scores)
        self.prediction = PredictionChoice(self.viewer)
        self.truth = TruthChoice(self.viewer, self.prediction)
        self._build_page()
        self._build_foot()
        self._counter.counted.connect(self._changed)
        self.zero.chosen.connect(self._zero_chosen)
        self.scope.changed.connect(self._changed)
        self.prediction.changed.connect(self._changed)
        self.truth.changed.connect(self._truth_changed)
        self._truth_changed()

    # ---- Layout

    def _build_page(self) -> None:
        self.zero = ZeroChoice()
        self.scope = ComboBox(choices=[WHOLE, PLANE], value=WHOLE)
        self.add(self.prediction)
        self.add(self.truth)
        self.add(self.zero)
        self.add(self.row(QLabel("Compare the"), self.scope, stretch=1))
        self.hint = _paragraph(
            "Compare shows the scores of each class, and which classes are confused."
        )
        self.add(self.hint)
        self.scores = ScoreView()
        self.scores.table.copied.connect(
            lambda: self.copy(self.scores.table.text(), "The table")
        )
        self.scores.picture.clicked.connect(self.go_to)
        self.scores.cases.plane_requested.connect(self._show_plane)
        self.scores.hide()
        self.add(self.scores)
        self.add(self.copy_buttons(self._copy))
        self.objects_button = self.button(
            "Objects ...",
            self.open_objects,
            "Number the connected pieces of one class of the prediction, measure them,"
            " and save their table.",
        )
        self.add(self.objects_button)

    def _build_foot(self) -> None:
        self.progress = Progress("Evaluation")
        self.compare_button = self.button("Compare", self.compare)
        self.stop_button = self.button("Stop", self.stop)
        self.errors_button = self.button("Show errors as a layer", self.show_errors)
        self.export_button = self.button("Export ...", self._choose_folder)
        self.add_to_foot(self.progress)
        self.add_to_foot(self.row(self.compare_button, self.stop_button, stretch=0))
        self.add_to_foot(self.row(self.errors_button, self.export_button, stretch=0))

    # ------------------------------------------------------------------ state

    def state(self) -> EvaluateState:
        """Read the state of the dock from its layers and choices."""
        prediction, truth = self.prediction.layer, self.truth.layer
        problem = self.prediction.problem or self.truth.problem
        predicted_info = true_info = None
        if not problem and prediction is not truth:
            try:
                predicted_labels, true_labels = self._labels()
            except ImageError as error:
                problem = str(error)
            else:
                predicted_info = _info(predicted_labels)
                true_info = _info(true_labels)
        return EvaluateState(
            choice_problem=problem,
            prediction=predicted_info,
            truth=true_info,
            same_layer=prediction is not None and prediction is truth,
            prediction_ndim=0 if prediction is None else prediction.ndim,
            activity=self._activity,
            is_running=self.handle is not None,
            has_scores=self.written is not None,
            zero=None if truth is None else self._zero_meaning(truth),
            is_trained=self.truth.is_trained(truth),
        )

    def _labels(self) -> tuple[LabelImage, LabelImage]:
        predicted_labels = self.prediction.labels(None)
        return predicted_labels, self.truth.labels(predicted_labels)

    def _zero_meaning(self, truth: LabelsLayer) -> ZeroMeaning:
        classes = stored_classes({"metadata": truth.metadata})
        stored = None
        if classes is not None and 0 in (*classes.values, *classes.unlabelled):
            stored = 0 in classes.values
        counts = self._counter.counts
        suggested = False
        if counts is not None:
            suggested = LabelClasses.of(truth).is_background(counts)
        return ZeroMeaning(truth.name, stored, self._zeros.get(truth), suggested)

    def comparison(self) -> Comparison:
        """Return the comparison; `state` must have no problem."""
        predicted_labels, true_labels = self._labels()
        plane = {}
        is_stack = any(predicted_labels.size(axis) > 1 for axis in "TZ")
        if is_stack and self.scope.value == PLANE:
            plane = current_plane(self.viewer, self.prediction.layer, predicted_labels)
        return Comparison(
            predicted_labels, true_labels, self.zero.background.isChecked(), plane
        )

    def _truth_changed(self) -> None:
        self._counter.watch(self.truth.layer)
        self._changed()

    def _changed(self, _event: object = None) -> None:
        """Update the dock after a change of its state."""
        view = resolve(self.state())
        self.zero.show_choice(view.zero_is_background, view.zero_text)
        self.zero.unlabelled.setEnabled(view.zero_can_change)
        self.zero.background.setEnabled(view.zero_can_change)
        draw(self.compare_button, view.compare)
        draw(self.stop_button, view.stop)
        draw(self.errors_button, view.errors)
        draw(self.export_button, view.export)
        draw(self.scope, view.scope)
        if view.truth_text is not None:
            self.truth.text.setText(view.truth_text)

    def _zero_chosen(self, background: bool) -> None:
        if self.truth.layer is not None:
            self._zeros[self.truth.layer] = background
        self._changed()

    # ------------------------------------------------------------------ actions

    def compare(self) -> None:
        """Write both layers in a thread, then let the worker compare them."""
        if self._activity or resolve(self.state()).problem:
            return
        layer = self.prediction.layer
        self._layer_transform = {
            key: getattr(layer, key)
            for key in ("translate", "rotate", "shear", "affine")
        }
        self._run_in_thread(
            "Writing the labels ...", self._write_function(), self._submit
        )

    def stop(self) -> None:
        """Stop the comparison."""
        if self.handle is not None:
            self.notice.show_message("Stopping ...")
            self.handle.stop()

    def show_errors(self) -> None:
        """Add a layer with the errors of the last comparison, or update it."""
        if self.written is not None and not self._activity:
            self._run_in_thread(
                "Finding the errors ...", self.written.errors, self._show_errors
            )

    def open_objects(self) -> None:
        """Open the dialog that finds objects in the chosen prediction."""
        if self.prediction.layer is None:
            self.notice.show_message("Choose the labels first.", "warning")
            return
        if self.objects_dialog is not None and self.objects_dialog.isVisible():
            self.objects_dialog.raise_()
            return
        try:
            labels = self.prediction.labels(None)
        except ImageError as error:
            self.notice.show_message(str(error), "error")
            return
        if self.objects_dialog is not None:
            self.objects_dialog.close()
            self.objects_dialog.deleteLater()
        self.objects_dialog = ObjectsDialog(
            self,
            self.viewer,
            labels,
            convert.image_below(self.viewer, labels),
            folder=self.session.scratch() / "objects",
        )
        self.session.closing.connect(self.objects_dialog.stop)
        self.objects_dialog.show()

    def export_to(self, folder: Path) -> None:
        """Write the report of the last comparison to `folder`.

        If the folder is not empty, a new folder in it is used.
        """
        if (written := self.written) is None or self._activity:
            return
        out = free_folder(folder, convert.slug(written.comparison.prediction.name))

        def write_report(_result: object) -> None:
            self._run_in_thread(
                "Writing ...",
                lambda: page_of(out),
                lambda page: self.notice.show_message(f"Written to {page}."),
            )

        self._run_job(self._request(written, out=out), write_report)

    def go_to(self, row: int, column: int) -> None:
        """Show the plane with the most pixels of a square of the confusion picture."""
        if self.written is None or not (plane := self._fullest_planes[row][column]):
            return
        most = (
            f" Most of them: {describe_plane(position)}."
            if (position := self._show_plane(plane))
            else ""
        )
        self.notice.show_message(f"{self.scores.picture.sentence(row, column)}.{most}")

    def _show_plane(self, plane: dict[str, int]) -> dict[str, int]:
        """Show a plane of the comparison; return its index in the prediction layer."""
        assert self.written is not None
        comparison = self.written.comparison
        position = {
            axis: comparison.plane.get(axis, index) for axis, index in plane.items()
        }
        layer = next(
            (
                candidate
                for candidate in (self._errors, self.prediction.layer)
                if candidate in self.viewer.layers
            ),
            None,
        )
        if layer is not None and layer.ndim == len(comparison.prediction.axes):
            current_point = zip(
                comparison.prediction.axes,
                layer.world_to_data(self.viewer.dims.point),
                strict=True,
            )
            point = layer.data_to_world(
                [position.get(axis, value) for axis, value in current_point]
            )
            self.viewer.dims.set_point(
                range(self.viewer.dims.ndim)[-layer.ndim :], point
            )
        return position

    # ---- Jobs

    def _write_function(self) -> Callable[[], Written]:
        comparison, session = self.comparison(), self.session
        image = convert.image_below(self.viewer, comparison.prediction)
        layer = self.prediction.layer
        models = layer.metadata.get(MODEL) if layer is not None else None

        def write() -> Written:
            if models is None:
                trained_on = TrainedOn("the prediction does not name its model")
            else:
                trained_on = TrainedOn.of(models)
            written = comparison.write(session.scratch())
            return written.look_up(trained_on, image)

        return write

    def _request(
        self, written: Written, *, job: str = "", out: Path | None = None
    ) -> EvaluateJob:
        return EvaluateJob(
            job=job or self.session.client.new_id(),
            prediction=Layer(path=str(written.prediction)),
            labels=(Layer(path=str(written.truth)),),
            classes=written.classes,
            known=_known(written),
            out=None if out is None else str(out),
        )

    def _run_in_thread(
        self, text: str, work: Callable[[], Any], done: Callable[[Any], None]
    ) -> None:
        """Call `work` in a thread while the dock shows `text`."""
        self._begin_activity(text)

        def succeeded(result: Any) -> None:
            self._end_activity()
            done(result)

        def failed(error: Exception) -> None:
            self._end_activity()
            self.notice.show_message(str(error), "error")

        threads.run(work, succeeded, failed, owner=self)

    def _run_job(
        self, request: EvaluateJob, done: Callable[[EvaluateResult], None]
    ) -> None:
        """Send a request to the worker and show its progress."""
        self._begin_activity("Comparing ...")
        handle = self.handle = self.session.submit(request)

        def ended(outcome: Outcome) -> None:
            self.handle = None
            self._end_activity()
            if isinstance(outcome.result, EvaluateResult):
                done(outcome.result)
            elif outcome.status == "stopped":
                self.notice.show_message("Stopped: nothing was compared.")
            else:
                self.notice.show_message(outcome.text, "error")

        handle.replied.connect(self._progressed)
        handle.ended.connect(ended)
        self._changed()

    def _progressed(self, event: object) -> None:
        if isinstance(event, RegionEnd):
            self.progress.show_step(
                event.done, event.regions, f"Plane {event.done} of {event.regions}"
            )

    def _begin_activity(self, text: str) -> None:
        self._activity = text
        self.notice.clear()
        self.progress.show_step(0, 0, text)
        self._changed()

    def _end_activity(self) -> None:
        self._activity = ""
        self.progress.hide()
        self._changed()

    def _submit(self, written: Written) -> None:
        self._run_job(
            self._request(written), lambda result: self._show_result(written, result)
        )

    def _show_result(self, written: Written, result: EvaluateResult) -> None:
        self.written, self._fullest_planes = written, result.most
        self.scores.show_result(
            result.model_dump(), written.classes, written.comparison.describe()
        )
        self.scores.cases.draw(written, result.cases, self.viewer)
        self.hint.hide()
        self.scores.show()
        self._scroll_timer.start(0)  # after the layout
        self.notice.show_message(" ".join(written.notes), "warning")
        self._changed()
        if self._errors is not None and self._errors in self.viewer.layers:
            self.show_errors()

    def _scroll_to_scores(self) -> None:
        bar = self.scroller.verticalScrollBar()
        assert bar is not None
        bar.setValue(self.scores.y() - 4)

    def _show_errors(self, errors: LabelImage) -> None:
        assert self.written is not None
        data, attributes, _ = labels_layer(errors)
        attributes |= self._layer_transform
        attributes["metadata"] = attributes["metadata"] | {
            PREDICTED: True,
            ERRORS: True,
        }
        error_layer, old = LabelsLayer(data, **attributes), self._errors
        if old is None or old not in self.viewer.layers or old.data.shape != data.shape:
            self._errors = error_layer
            # The errors would not be visible over predictions of the same colours.
            for layer in self.viewer.layers:
                if layer.metadata.get(PREDICTED):
                    layer.visible = False
            add_quietly(self.viewer, error_layer)
            return
        old.data, old.colormap, old.features = (
            data,
            error_layer.colormap,
            error_layer.features,
        )
        old.name, old.metadata, old.scale, old.affine = (
            error_layer.name,
            error_layer.metadata,
            error_layer.scale,
            error_layer.affine,
        )

    def _choose_folder(self) -> None:
        if path := QFileDialog.getExistingDirectory(
            self, "A folder for the report", str(self.session.settings.runs)
        ):
            self.export_to(Path(path))

    def _copy(self, form: Callable[[Any], str], subject: str) -> None:
        if why := self._activity or resolve(self.state()).problem:
            self.notice.show_message(f"There is nothing to copy. {why}", "warning")
            return

        def copied(written: Written) -> None:
            self.copy(form(self._request(written, job="copy")), subject)
            self.notice.show_message(
                f"{subject} is on the clipboard. It reads copies of both layers, which"
                " are kept until napari closes."
            )

        self._run_in_thread("Writing the labels ...", self._write_function(), copied)

    def leave(self) -> None:
        """Disconnect from the viewer, when it closes."""
        self.prediction.disconnect_viewer()
        self.truth.disconnect_viewer()
        self._counter.watch(None)


def _known(written: Written) -> KnownPlanes:
    planes = [
        KnownPlane(index=dict(plane.index), kind=seen.kind, pixels=seen.pixels)
        for plane in written.planes
        if (seen := plane.seen).kind != "new"
    ]
    return KnownPlanes(planes=tuple(planes), why_unknown=written.why_unknown)


def _info(labels: LabelImage) -> LabelsInfo:
    return LabelsInfo(labels.name, {axis: labels.size(axis) for axis in "TZYX"})


def _paragraph(text: str = "") -> QLabel:
    label = QLabel(text)
    label.setWordWrap(True)
    return label


def evaluate_dock(napari_viewer: Viewer | None = None) -> EvaluateDock:
    """Open the Evaluate dock of a viewer; called by the menu."""
    return EvaluateDock.of(napari_viewer)
