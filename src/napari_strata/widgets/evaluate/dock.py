"""The Evaluate dock: how far predicted labels agree with the truth, class by class."""

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
from napari_strata.evaluation.compare import Comparison, Written, place
from napari_strata.plugin import labels_layer, stored_classes
from napari_strata.widgets.evaluate.score_view import ScoreView
from napari_strata.widgets.evaluate.scores import (
    ERRORS,
    PredictionChoice,
    TruthChoice,
)
from napari_strata.widgets.layers import convert
from napari_strata.widgets.layers.counts import PixelCounter
from napari_strata.widgets.layers.label_classes import ClassBook
from napari_strata.widgets.layers.live import PREDICTED, add_quietly, current_plane
from napari_strata.widgets.parts import script
from napari_strata.widgets.parts.class_rows import ZeroChoice
from napari_strata.widgets.parts.dock import Dock, Progress, enable
from napari_strata.widgets.parts.run_row import free_folder, page_of
from napari_strata.widgets.work import threads
from napari_strata.widgets.work.client import JobHandle, Outcome
from napari_strata.worker.orders import EvaluateJob, Layer

WHOLE, PLANE = "whole stack", "plane in sight"


class EvaluateDock(Dock):
    """Compares predicted labels with the truth: scores of each class, confusion, errors as a layer."""

    name = "Evaluate"

    def __init__(self, napari_viewer: Viewer) -> None:
        super().__init__(napari_viewer)
        self.handle: JobHandle | None = None
        self.written: Written | None = None
        self._busy = ""
        self._lies: dict[str, Any] = {}  # where the prediction lies that was compared
        self._most: list[list[dict[str, int] | None]] = []
        self._errors: LabelsLayer | None = None
        self._zeros: weakref.WeakKeyDictionary[LabelsLayer, bool] = (
            weakref.WeakKeyDictionary()
        )
        self._counter = PixelCounter(self)
        self._soon = QTimer(self)
        self._soon.setSingleShot(True)
        self._soon.timeout.connect(self._scroll_to_scores)
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

    # ------------------------------------------------------------------ what stands where

    def _build_page(self) -> None:
        self.zero = ZeroChoice()
        self.scope = ComboBox(choices=[WHOLE, PLANE], value=WHOLE)
        self.add(self.prediction)
        self.add(self.truth)
        self.add(self.zero)
        self.add(self.row(QLabel("Compare the"), self.scope, stretch=1))
        self.hint = _paragraph(
            "Compare shows the scores of each class, and which classes are taken for which."
        )
        self.add(self.hint)
        self.scores = ScoreView()
        self.scores.table.copied.connect(
            lambda: self.copy(self.scores.table.text(), "The table")
        )
        self.scores.picture.clicked.connect(self.go_to)
        self.scores.cases.wanted.connect(self._look_at)
        self.scores.hide()
        self.add(self.scores)
        python = self.button(
            "Copy as Python", lambda: self._copy(script.as_python, "The Python script")
        )
        command = self.button(
            "Copy as command", lambda: self._copy(script.as_command, "The command")
        )
        self.add(self.row(python, command))

    def _build_foot(self) -> None:
        self.progress = Progress()
        self.compare_button = self.button("Compare", self.compare)
        self.stop_button = self.button("Stop", self.stop)
        self.errors_button = self.button("Show errors as a layer", self.show_errors)
        self.export_button = self.button("Export ...", self._choose_folder)
        self.add_to_foot(self.progress)
        self.add_to_foot(self.row(self.compare_button, self.stop_button, stretch=0))
        self.add_to_foot(self.row(self.errors_button, self.export_button, stretch=0))

    # ------------------------------------------------------------------ what is wanted

    def problem(self) -> str:
        """Why nothing can be compared; empty when it can."""
        if problem := self.prediction.problem or self.truth.problem:
            return problem
        if self.prediction.layer is self.truth.layer:
            return "Prediction and truth are the same layer: choose another truth."
        try:
            found, true = self._labels()
        except ImageError as error:
            return str(error)
        wrong = [
            f"{a}: {found.size(a)} against {true.size(a)}"
            for a in "TZYX"
            if found.size(a) != true.size(a)
        ]
        if not wrong:
            return ""
        return f"{found.name} and {true.name} differ in size ({', '.join(wrong)}): choose labels of the same pixels."

    def _labels(self) -> tuple[LabelImage, LabelImage]:
        found = self.prediction.labels(None)
        return found, self.truth.labels(found)

    def asked(self) -> Comparison:
        """What the dock shows; `problem` must be empty."""
        layer, (found, true) = self.prediction.layer, self._labels()
        only = self.scope.value == PLANE and any(found.size(a) > 1 for a in "TZ")
        plane = current_plane(self.viewer, layer, found) if only else {}
        return Comparison(found, true, self.zero.background.isChecked(), plane)

    def _truth_changed(self) -> None:
        self._counter.watch(self.truth.layer)
        self._changed()

    def _changed(self, _event: object = None) -> None:
        self._show_zero()
        why = self._busy or self.problem()
        enable(self.compare_button, why, "Score the prediction against the truth.")
        running = self.handle is not None
        enable(
            self.stop_button,
            "" if running else "Nothing is running.",
            "Stop comparing.",
        )
        self.stop_button.visible = running
        none = self._busy or ("" if self.written is not None else "Compare first.")
        enable(
            self.errors_button,
            none,
            "The predicted classes where they are wrong; 0 elsewhere.",
        )
        enable(
            self.export_button,
            none,
            "report.html, metrics.json, metrics.csv and confusion.png, into a folder.",
        )
        layer = self.prediction.layer
        flat = layer is None or layer.ndim < 3
        self.scope.enabled = not flat
        self.scope.tooltip = (
            "These labels are one plane."
            if flat
            else "All planes, or only the one that you see."
        )
        if (
            not self._busy
            and why
            and layer is not None
            and self.truth.layer is not None
        ):
            self.truth.text.setText(why)

    def _show_zero(self) -> None:
        """What 0 means: as the truth's classes say; else as the user does; else by the rule of the class table."""
        layer = self.truth.layer
        classes = (
            stored_classes({"metadata": layer.metadata}) if layer is not None else None
        )
        said = classes is not None and 0 in (*classes.values, *classes.unlabelled)
        if layer is None:
            return
        counts, book = self._counter.counts, ClassBook.of(layer)
        background = bool(said and classes is not None and 0 in classes.values)
        if not said:
            background = self._zeros.get(
                layer, book.is_background(counts) if counts is not None else False
            )
        scored = "scored as a class" if background else "not scored"
        why = (
            f", as the classes of {layer.name} say (the Train dock changes them)"
            if said
            else ""
        )
        self.zero.show_choice(background, f"Where the truth is 0, it is {scored}{why}.")
        self.zero.unlabelled.setEnabled(not said)
        self.zero.background.setEnabled(not said)

    def _zero_chosen(self, background: bool) -> None:
        if self.truth.layer is not None:
            self._zeros[self.truth.layer] = background
        self._changed()

    # ------------------------------------------------------------------ what is done

    def compare(self) -> None:
        """Write the two layers in a thread, then have the worker compare them."""
        if self._busy or self.problem():
            return
        layer = self.prediction.layer
        self._lies = {
            key: getattr(layer, key)
            for key in ("translate", "rotate", "shear", "affine")
        }
        self._work("Writing the labels ...", self._prepared(), self._submit)

    def stop(self) -> None:
        """Stop comparing."""
        if self.handle is not None:
            self.notice.say("Stopping ...")
            self.handle.stop()

    def show_errors(self) -> None:
        """A layer of what is wrong in the newest comparison; the one that is there already is brought up to date."""
        if self.written is not None and not self._busy:
            self._work(
                "Looking for the errors ...", self.written.errors, self._show_errors
            )

    def export_to(self, folder: Path) -> None:
        """Write the report of the newest comparison into an empty folder, or into a new one in it; also as a page."""
        if (written := self.written) is None or self._busy:
            return
        out = free_folder(folder, convert.slug(written.asked.prediction.name))

        def paged(_result: object) -> None:
            self._work(
                "Writing ...",
                lambda: page_of(out),
                lambda page: self.notice.say(f"Written to {page}."),
            )

        self._run(self._order(written, out=out), paged)

    def go_to(self, row: int, column: int) -> None:
        """Show the plane that has most of the pixels of a square of the confusion picture."""
        if self.written is None or not (plane := self._most[row][column]):
            return
        most = f" Most of them: {place(at)}." if (at := self._look_at(plane)) else ""
        self.notice.say(f"{self.scores.picture.sentence(row, column)}.{most}")

    def _look_at(self, plane: dict[str, int]) -> dict[str, int]:
        """Show a plane of what was compared; where it is in the prediction's layer."""
        assert self.written is not None
        asked = self.written.asked
        at = {letter: asked.plane.get(letter, index) for letter, index in plane.items()}
        layer = next(
            (
                one
                for one in (self._errors, self.prediction.layer)
                if one in self.viewer.layers
            ),
            None,
        )
        if layer is not None and layer.ndim == len(asked.prediction.axes):
            here = zip(
                asked.prediction.axes,
                layer.world_to_data(self.viewer.dims.point),
                strict=True,
            )
            point = layer.data_to_world(
                [at.get(letter, value) for letter, value in here]
            )
            self.viewer.dims.set_point(
                range(self.viewer.dims.ndim)[-layer.ndim :], point
            )
        return at

    # ------------------------------------------------------------------ what happens then

    def _prepared(self) -> Callable[[], Written]:
        asked, session = self.asked(), self.session
        return lambda: asked.write(session.scratch())

    def _order(
        self, written: Written, *, job: str = "", out: Path | None = None
    ) -> EvaluateJob:
        return EvaluateJob(
            job=job or self.session.client.new_id(),
            prediction=Layer(path=str(written.prediction)),
            labels=(Layer(path=str(written.truth)),),
            classes=written.classes,
            out=None if out is None else str(out),
        )

    def _work(
        self, text: str, work: Callable[[], Any], done: Callable[[Any], None]
    ) -> None:
        """Something in a thread, with the dock saying what."""
        self._wait(text)

        def over(result: Any) -> None:
            self._rest()
            done(result)

        def failed(error: Exception) -> None:
            self._rest()
            self.notice.say(str(error), "error")

        threads.run(work, over, failed, owner=self)

    def _run(self, order: EvaluateJob, done: Callable[[dict[str, Any]], None]) -> None:
        """An order for the worker, with the dock saying how far it is."""
        self._wait("Comparing ...")
        handle = self.handle = self.session.submit(order)

        def ended(outcome: Outcome) -> None:
            self.handle = None
            self._rest()
            if outcome.status == "finished":
                done(outcome.result)
            elif outcome.status == "stopped":
                self.notice.say("Stopped: nothing was compared.")
            else:
                self.notice.say(outcome.text, "error")

        handle.replied.connect(self._progressed)
        handle.ended.connect(ended)
        self._changed()

    def _progressed(self, event: object) -> None:
        if isinstance(event, RegionEnd):
            self.progress.show_step(
                event.done, event.regions, f"Plane {event.done} of {event.regions}"
            )

    def _wait(self, text: str) -> None:
        self._busy = text
        self.notice.clear()
        self.progress.show_step(0, 0, text)
        self._changed()

    def _rest(self) -> None:
        self._busy = ""
        self.progress.hide()
        self._changed()

    def _submit(self, written: Written) -> None:
        self._run(
            self._order(written), lambda result: self._show_result(written, result)
        )

    def _show_result(self, written: Written, result: dict[str, Any]) -> None:
        self.written, self._most = written, result["most"]
        self.scores.show_result(result, written.classes, written.asked.describe())
        self.scores.cases.draw(written, result["cases"], self.viewer)
        self.hint.hide()
        self.scores.show()
        self._soon.start(0)  # once it is laid out
        self.notice.say(" ".join(written.notes), "warning")
        self._changed()
        if self._errors is not None and self._errors in self.viewer.layers:
            self.show_errors()

    def _scroll_to_scores(self) -> None:
        bar = self.scroller.verticalScrollBar()
        assert bar is not None
        bar.setValue(self.scores.y() - 4)

    def _show_errors(self, errors: LabelImage) -> None:
        assert self.written is not None
        data, given, _ = labels_layer(errors)
        given |= self._lies
        given["metadata"] = given["metadata"] | {PREDICTED: True, ERRORS: True}
        made, old = LabelsLayer(data, **given), self._errors
        if old is None or old not in self.viewer.layers or old.data.shape != data.shape:
            self._errors = made
            for layer in (
                self.viewer.layers
            ):  # under the same colours nobody would see what is wrong
                if layer.metadata.get(PREDICTED):
                    layer.visible = False
            add_quietly(self.viewer, made)
            return
        old.data, old.colormap, old.features = data, made.colormap, made.features
        old.name, old.metadata, old.scale, old.affine = (
            made.name,
            made.metadata,
            made.scale,
            made.affine,
        )

    def _choose_folder(self) -> None:
        if path := QFileDialog.getExistingDirectory(
            self, "A folder for the report", str(self.session.settings.runs)
        ):
            self.export_to(Path(path))

    def _copy(self, form: Callable[[Any], str], what: str) -> None:
        if why := self._busy or self.problem():
            self.notice.say(f"Nothing to copy yet. {why}", "warning")
            return

        def copied(written: Written) -> None:
            self.copy(form(self._order(written, job="copy")), what)
            self.notice.say(
                f"{what} is on the clipboard. It reads copies of both layers, kept until napari closes."
            )

        self._work("Writing the labels ...", self._prepared(), copied)

    def leave(self) -> None:
        """The viewer closes: listen no more."""
        self.prediction.disconnect_viewer()
        self.truth.disconnect_viewer()
        self._counter.watch(None)


def _paragraph(text: str = "") -> QLabel:
    label = QLabel(text)
    label.setWordWrap(True)
    return label


def evaluate_dock(napari_viewer: Viewer | None = None) -> EvaluateDock:
    """What the menu opens: the dock of the viewer, as it was left."""
    return EvaluateDock.of(napari_viewer)
