"""Train dock: from the selected image and painted labels to a model."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from magicgui.widgets import CheckBox
from napari.viewer import Viewer
from qtpy.QtWidgets import QLabel, QTabWidget

from napari_strata.core.errors import StrataError
from napari_strata.core.events import EpochEnd, Event
from napari_strata.core.files import LAYERS
from napari_strata.core.runs import CrossvalFolder, RunFolder, SearchFolder
from napari_strata.widgets.doctor import show_doctor
from napari_strata.widgets.layers.autosave import Autosave
from napari_strata.widgets.parts.dock import Dock, draw, new_page
from napari_strata.widgets.parts.keys import bind_method
from napari_strata.widgets.parts.recent import RunSummary, last_events
from napari_strata.widgets.parts.script import as_crossval, as_search
from napari_strata.widgets.train.data_box import DataBox
from napari_strata.widgets.train.live_mask import LiveMask
from napari_strata.widgets.train.live_preview import SNAPSHOT_S, LivePreview
from napari_strata.widgets.train.next_window import NextWindow
from napari_strata.widgets.train.painted import PaintedLabels
from napari_strata.widgets.train.panel import TrainingPanel
from napari_strata.widgets.train.plan_summary import PlanSummary
from napari_strata.widgets.train.prepare import (
    LayerData,
    TrainRequest,
    class_colors,
    resume_job,
    write_painted,
)
from napari_strata.widgets.train.recipe_box import RecipeBox
from napari_strata.widgets.train.recovery import Recovery
from napari_strata.widgets.train.run_row import RunRow
from napari_strata.widgets.train.shortcuts import (
    HIDE_MASK,
    HIDE_PREVIEW,
    NEXT_CLASS,
    NEXT_WINDOW,
    PREVIOUS_CLASS,
    SHORTCUTS,
    SKIP_WINDOW,
    TRAIN,
)
from napari_strata.widgets.train.state import TrainState, resolve
from napari_strata.widgets.train.stored import StoredModel, choose_start, find_models
from napari_strata.widgets.work import threads
from napari_strata.widgets.work.client import JobHandle, Outcome
from napari_strata.worker.protocol import Layer, PlanResult, TrainJob

SETUP_TAB, PROGRESS_TAB = 0, 1
"""Indices of the tabs."""


class TrainDock(Dock):
    """Dock that trains a network on an image layer and its labels.

    Scripts set the main settings through magicgui widgets: ``dock.epochs.value = 5``,
    and likewise `learning_rate`, `patch_size` and `batch_size`.
    """

    name = "Train"
    manual_page = "docs/painting.md"
    shortcuts = tuple((each.key, each.text) for each in SHORTCUTS)
    steps = (
        "Open an image and click it in the layer list.",
        "Name the classes, such as pore, clay, quartz, and press New labels.",
        "Paint a few strokes of each class. The live mask follows after each stroke.",
        "Correct it where it is wrong, or press Next window to be asked where it is"
        " least certain.",
        "Press Train. You can go on painting: the training uses new strokes.",
        "The network then segments the whole stack, and Evaluate scores the result.",
    )

    def __init__(self, napari_viewer: Viewer) -> None:
        super().__init__(napari_viewer)
        self.handle: JobHandle | None = None
        self.run: Path | None = None
        self._draft: Path | None = None
        self._copied: tuple[str, Path] | None = None  # image and run of copied texts
        self._job: TrainJob | None = None
        self._is_starting = False
        self._trained: LayerData | None = None
        self._models: list[StoredModel] = []
        self._models_key: tuple[object, ...] = ()
        self._followed: RunSummary | None = None
        self._warnings: list[str] = []
        self.data_box = DataBox(self.viewer)
        self.recipe_box = RecipeBox()
        fields = self.recipe_box.fields
        self.epochs = fields["training.epochs"].widget
        self.learning_rate = fields["training.learning_rate"].widget
        self.patch_size = fields["patches.size"].widget
        self.batch_size = fields["training.batch_size"].widget
        self.panel = TrainingPanel()
        self.autosave = Autosave(self._layers_folder, self)
        self.painted = PaintedLabels(self._layers_folder, self)
        self.live = LivePreview(self.session, self)
        self.live_mask = LiveMask(self.session, self)
        self.plan_summary = PlanSummary(self.session, self.live_mask.is_busy)
        self.next_window = NextWindow(self.session, self.live_mask)
        self.recovery = Recovery(self.session, self)
        self._build_pages()
        self._build_foot()
        self.plan_summary.planned.connect(self._planned)
        self.data_box.changed.connect(self._changed)
        self.recipe_box.changed.connect(self._changed)
        self.panel.epoch_ended.connect(self._epoch_ended)
        self.panel.warned.connect(self._warned)
        self.panel.ended.connect(self._ended)
        self.autosave.failed.connect(
            lambda text: self.notice.show_message(text, "error")
        )
        self.painted.failed.connect(
            lambda text: self.notice.show_message(text, "warning")
        )
        self.painted.saved.connect(self._labels_saved)
        self.recovery.follow.connect(self._follow_run)
        self._bind_keys()
        self._changed()

    def _bind_keys(self) -> None:
        methods = {
            TRAIN: self.train_or_stop,
            NEXT_CLASS: self.data_box.table.pick_next,
            PREVIOUS_CLASS: self.data_box.table.pick_previous,
            HIDE_MASK: self.live_mask.toggle,
            HIDE_PREVIEW: self.live.toggle,
            NEXT_WINDOW: self.next_window.next,
            SKIP_WINDOW: self.next_window.skip,
        }
        for shortcut, method in methods.items():
            bind_method(self.viewer, shortcut.key, method)

    # ---- Layout

    def _build_pages(self) -> None:
        self.tabs = QTabWidget()
        (setup_page, setup), (progress_page, progress) = new_page(), new_page()
        self.preview_box = CheckBox(
            text="Preview during the training",
            value=True,
            tooltip=(
                "Segments the visible plane with the newest weights, in a separate"
                f" layer, about every {SNAPSHOT_S} seconds."
            ),
        )
        self.keep_box = CheckBox(
            text="Keep training when napari closes",
            tooltip=(
                "The training continues without napari. Next time, this dock offers to"
                " follow it."
            ),
        )
        self.preview_box.changed.connect(self.live.switch)
        self.keep_box.changed.connect(self._keep)
        self.live_box = CheckBox(
            text="Live mask",
            value=True,
            tooltip=(
                "After each stroke, decision trees segment the visible area, within"
                " seconds."
                " It needs strokes of two classes, and 0 must mean unlabelled."
            ),
        )
        self.live_text = QLabel()
        self.live_text.setWordWrap(True)
        self.live_text.hide()
        self.live_box.changed.connect(self.live_mask.switch)
        self.data_box.table.painted.connect(self.live_mask.wake)
        self.live_mask.changed.connect(self._show_live_text)
        setup.addWidget(self.recovery)
        setup.addWidget(self.data_box)
        setup.addWidget(self._native(self.live_box))
        setup.addWidget(self.live_text)
        setup.addWidget(self.next_window)
        setup.addWidget(self.recipe_box)
        setup.addWidget(self.plan_summary)
        setup.addWidget(self.copy_buttons(self._copy))
        crossval = self.button(
            "Copy as cross-validation",
            self._copy_crossval,
            "A command that trains five times, each time without a fifth of the data,"
            " and scores that fifth: a better judgement than one split, in five times"
            " the time.",
        )
        search = self.button(
            "Copy as search",
            self._copy_search,
            "A command that tries other settings, cross-validates each, and trains with"
            " the best one. Change its --grid to try what you like.",
        )
        setup.addWidget(self.row(crossval, search))
        check = "Check versions, GPU, worker and disk, also for a bug report."
        doctor = partial(
            show_doctor,
            self,
            command=self.session.settings.command,
            folder=self.session.settings.runs,
        )
        setup.addWidget(self._native(self.button("Check this computer", doctor, check)))
        setup.addStretch(1)
        progress.addWidget(self.panel)
        for box in (self.preview_box, self.keep_box):
            progress.addWidget(self._native(box))
        self.runs = RunRow(lambda: self.session.settings.runs, lambda: self.run)
        self.runs.resumed.connect(self.resume)
        self.runs.extended.connect(self.extend)
        self.runs.opened.connect(self.open_run)
        progress.addWidget(self.runs)
        self.tabs.addTab(setup_page, "Set up")
        self.tabs.addTab(progress_page, "Progress")
        self.add(self.tabs)

    def _build_foot(self) -> None:
        self.start_button = self.button("Train", self.start)
        self.start_over_button = self.button("Start over", self.start_over)
        self.stop_button = self.button("Stop", self.stop)
        self.predict_button = self.button("Predict the whole stack", self.predict)
        self.add_to_foot(self.panel.bar)
        self.then_box = CheckBox(
            text="Then predict the whole stack",
            value=True,
            tooltip=(
                "When the training is complete, segment the image with the new model."
            ),
        )
        self.add_to_foot(self.then_box)
        self.why = QLabel()
        self.why.setWordWrap(True)
        self.add_to_foot(self.why)
        buttons = self.start_button, self.start_over_button, self.stop_button
        self.add_to_foot(self.row(*buttons, stretch=0))
        self.add_to_foot(self.predict_button)

    # ---- State

    def request(self, *, start_over: bool = False) -> TrainRequest | None:
        """Return the training that is set up; None while something is missing.

        It continues from an earlier model, if there is one, unless it is to start over.
        """
        data = self.data_box.data()
        if data is None or self.recipe_box.problem():
            return None
        box, device = self.recipe_box, self.session.settings.device
        overrides = dict(box.overrides())
        start = None if start_over else self._start_model()
        if start is not None:
            overrides["training.start"] = str(start.run)
        return TrainRequest(
            data, box.base(), overrides, device, bool(self.keep_box.value)
        )

    def _start_model(self) -> StoredModel | None:
        """Return the model that *Train* continues from."""
        classes = self.data_box.table.classes() if self.data_box.uses_layers else None
        if classes is None:
            return None
        # A run may have been deleted since.
        models = [each for each in self._models if RunFolder(each.run).has_model]
        return choose_start(models, self.recipe_box.recipe(), classes.names)

    def _find_models(self, *, again: bool = False) -> None:
        """Look for models of the chosen image, in a thread, if it has changed."""
        image, runs = self.data_box.images.image, self.session.settings.runs
        if image is None:
            return
        key = (runs, image.name, image.axes, image.shape)
        if key != self._models_key:
            self._models_key, self._models = key, []
        elif not again:
            return

        def take(models: list[StoredModel]) -> None:
            if key == self._models_key:
                self._models = models
                self._changed()

        threads.run(
            lambda: find_models(runs, image), take, lambda _error: None, owner=self
        )

    def state(self) -> TrainState:
        """Read the state of the dock from its boxes and its run."""
        run, start = self.run, self._start_model()
        return TrainState(
            data_problem=self.data_box.problem(),
            recipe_problem=self.recipe_box.problem(),
            is_starting=self._is_starting,
            is_running=self.handle is not None or self._followed is not None,
            has_model=run is not None and RunFolder(run).has_model,
            can_continue=self._job is not None,
            start=start.describe() if start is not None else "",
        )

    def _changed(self) -> None:
        """Update the dock after a change of its state."""
        self._find_models()
        view = resolve(self.state())
        self.why.setText(view.problem_text)
        self.why.setVisible(view.problem_text not in ("", *self.data_box.texts()))
        has_labels = self.data_box.has_labels
        self.live_box.native.setVisible(has_labels)
        self.start_button.text = view.train_text
        draw(self.start_button, view.train)
        draw(self.start_over_button, view.start_over)
        draw(self.stop_button, view.stop)
        draw(self.predict_button, view.predict)
        self.runs.show_view(view)
        if self.data_box.uses_layers:
            self.autosave.watch(self.data_box.labels.layer, self.data_box.images.image)
        data = self.data_box.data()
        self.live_mask.watch(data if isinstance(data, LayerData) else None)
        request = None if view.problem else self.request()
        self.plan_summary.request_plan(request, why="", folder=self._reserve)

    def _planned(self, plan: PlanResult | None) -> None:
        """Offer the recipe that suits the data better, if there is one."""
        recipe, reason = "", ""
        if plan is not None:
            recipe, reason = plan.suggested_recipe, plan.suggestion
        self.recipe_box.suggestion.suggest(recipe, reason)

    def _show_live_text(self) -> None:
        self.live_text.setText(self.live_mask.text)
        self.live_text.setVisible(bool(self.live_mask.text))

    def _reserve(self) -> Path:
        """Return the folder of the next run."""
        # A copied command may have used the folder.
        if self._draft is None or RunFolder(self._draft).exists:
            data = self.data_box.data()
            image = self.data_box.images.image
            name = (
                data.name
                if data is not None
                else image.name
                if image is not None
                else "image"
            )
            self._draft = self.session.new_run(name)
        return self._draft

    def _layers_folder(self) -> Path:
        return (
            self.run
            if self.handle is not None and self.run is not None
            else self._reserve()
        ) / LAYERS

    # ---- Actions

    def start(self) -> None:
        """Write the layers in a thread, then send the request to train."""
        self._start(self.request())

    def start_over(self) -> None:
        """Train from the beginning, though there is a model to continue from."""
        self._start(self.request(start_over=True))

    def _start(self, request: TrainRequest | None) -> None:
        if request is None or self.handle is not None or self._is_starting:
            return
        self._trained = request.data if isinstance(request.data, LayerData) else None
        self._begin(
            lambda run: request.train_job(self.session.client.new_id(), run), new=True
        )

    def resume(self) -> None:
        """Resume the run in the dock."""
        self._continue({"resume": True, "extend": 0})

    def extend(self, epochs: int) -> None:
        """Add epochs to the run in the dock."""
        self._continue({"resume": True, "extend": epochs})

    def train_or_stop(self) -> None:
        """Stop the training that runs, or start one; say why if neither can be done."""
        view = resolve(self.state())
        if view.stop.enabled:
            self.stop()
        elif view.train.enabled:
            self.start()
        else:
            self.notice.show_message(view.problem)

    def stop(self) -> None:
        """Stop the training; the best model so far is kept."""
        if self.handle is not None:
            self.notice.show_message("Stopping ...")
            self.handle.stop()
        elif self._followed is not None:
            self.recovery.end(self._followed)

    def predict(self) -> None:
        """Segment the image in the Predict dock.

        It is the image of the training, or the chosen image for a run from disk.
        """
        from napari_strata.widgets.predict.dock import PredictDock

        layer = (
            self._trained.layer
            if self._trained is not None
            else self.data_box.images.layer
        )
        if self.run is None:
            return
        if layer is None or layer not in self.viewer.layers:
            self.notice.show_message(
                "The image of the training was removed. Open the Predict dock and"
                " choose another image."
            )
            return
        _, dock = self.viewer.window.add_plugin_dock_widget(
            "napari-strata", "Predict", tabify=True
        )
        if isinstance(dock, PredictDock):
            self.live.hide()
            dock.come_forward()
            comparison = self.panel.comparison
            runs = comparison.better_runs(self.run) if comparison else (self.run,)
            dock.predict_with(runs, layer)

    def _continue(self, change: dict[str, Any]) -> None:
        job = self._job
        if job is None or self.handle is not None or self._is_starting:
            return
        changes = {
            "job": self.session.client.new_id(),
            "keep": bool(self.keep_box.value),
        }
        try:
            labels = self._open_labels()
        except StrataError as error:
            self.notice.show_message(str(error), "error")
            return

        def prepare(run: Path) -> TrainJob:
            if labels is not None:
                write_painted(labels.labels, run / LAYERS, labels.labels.classes)
            return job.model_copy(update=change | changes)

        self._begin(prepare, new=False)

    def _open_labels(self) -> LayerData | None:
        """Return the layers of the run with their current labels, if they are open."""
        data = self._trained
        if data is None or data.labels_layer not in self.viewer.layers:
            return None
        return data.current()

    def _begin(self, prepare: Any, *, new: bool) -> None:
        try:
            run = self._reserve() if new else self.run
        except StrataError as error:
            self.notice.show_message(str(error), "error")
            return
        assert run is not None
        self.notice.clear()
        self._warnings = []
        self.plan_summary.pause()
        self._is_starting = True
        self._changed()
        self.panel.bar.show_step(0, 0, "Writing the layers for the training ...")
        threads.run(
            lambda: (prepare(run), [] if new else last_events(run)),
            lambda prepared: self._submit(run, *prepared),
            self._on_start_failed,
            owner=self,
        )

    def _submit(self, run: Path, job: TrainJob, past: list[Event]) -> None:
        self._is_starting = False
        self.run, self._draft = run, None
        if self._trained is not None:
            job = job.model_copy(update={"snapshot_s": SNAPSHOT_S})
        self._job = job
        self.handle = self.session.submit(job)
        self.panel.follow(self.handle, run, self.data_box.colors(), past=past)
        self.live.start(
            self.handle, job, self._trained, on=bool(self.preview_box.value)
        )
        if self._trained is not None:
            self.painted.follow(self._trained)
        self.session.register_task(f"training {run.name}", self.handle)
        self.tabs.setCurrentIndex(PROGRESS_TAB)
        self.scroller.ensureVisible(0, 0)
        self._changed()

    def _warned(self, text: str) -> None:
        self._warnings.append(text)
        self.notice.show_message("\n".join(self._warnings), "warning")

    def _on_start_failed(self, error: Exception) -> None:
        self._is_starting = False
        self.panel.bar.hide()
        self.notice.show_message(f"The training could not start: {error}", "error")
        self._changed()

    def _epoch_ended(self, event: EpochEnd) -> None:
        self.live.epoch_ended(event)
        if self.run is not None and event.best_iou:
            self.session.announce(self.run)

    def _ended(self, outcome: Outcome) -> None:
        run, self.handle = self.run, None
        self.live.stop()
        self.painted.leave()
        if run is None or self.session.is_closed:
            return
        # If the training was refused, the folder is used for the next attempt.
        if not RunFolder(run).exists:
            self._draft, self.run, self._job = run, None, None
            self.tabs.setCurrentIndex(SETUP_TAB)
        has_model = RunFolder(run).has_model
        if outcome.status in ("finished", "stopped"):
            state = "Training finished" if outcome.status == "finished" else "Stopped"
            score = f", {self.panel.score()}" if self.panel.score() else ""
            model = (
                f"The model is in {run}."
                if has_model
                else "There is no model yet: no step was complete."
            )
            ending = f"{state}{score}. {model}{self._compared()}"
            warnings = [f"⚠ {text}" for text in self._warnings]
            self.notice.show_message("\n".join([ending, *warnings]))
        else:
            self.notice.show_message(outcome.text, "error")
        if has_model:
            self.session.announce(run)
            self._find_models(again=True)
        self._changed()
        if (
            outcome.status == "finished"
            and has_model
            and self.then_box.value
            and self._trained is not None
        ):
            self.predict()

    def _compared(self) -> str:
        """Show the better one of network and trees; return the result in words."""
        comparison = self.panel.comparison
        if comparison is None:
            return ""
        if comparison.better == "network":
            self.live_box.value = False
        elif comparison.better == "trees":
            self.live.hide()
        return f"\n{comparison.text}"

    # ---- Runs on disk, copied code, closing

    def _keep(self, on: bool) -> None:
        if self.handle is not None:
            self.handle.keep(on)

    def _labels_saved(self, path: Path) -> None:
        if self.handle is not None:
            self.handle.send_labels(Layer(path=str(path)))

    def open_run(self, run: Path) -> None:
        """Show a run on disk, to resume or extend it."""
        device = self.session.settings.device
        threads.run(
            lambda: (
                resume_job(run, device=device),
                class_colors(run),
                last_events(run),
            ),
            lambda stored: self._show_run(run, *stored),
            lambda error: self.notice.show_message(str(error), "error"),
            owner=self,
        )

    def _show_run(
        self, run: Path, job: TrainJob, colors: tuple[str, ...], past: list[Event]
    ) -> None:
        if self.handle is not None:
            return
        self.run, self._job, self._trained = run, job, None
        data = self.data_box.data()
        if isinstance(data, LayerData) and data.is_of(run):
            self._trained = data
        self.panel.prepare(run, colors, past=past)
        self.panel.bar.hide()
        self.tabs.setCurrentIndex(PROGRESS_TAB)
        self.notice.show_message(
            f"{run.name} has ended: press Resume or Train longer. Its folder is {run}."
        )
        self._changed()

    def _follow_run(
        self, run: RunSummary, colors: tuple[str, ...], past: list[Event], running: bool
    ) -> None:
        if self.handle is not None:
            return
        if not running:
            self._followed = None
            self.open_run(run.path)
            return
        if self._followed is None:
            self.tabs.setCurrentIndex(PROGRESS_TAB)
        self.run, self._followed, self._trained = run.path, run, None
        self.panel.prepare(run.path, colors, past=past)
        self._changed()

    def _copy_crossval(self) -> None:
        # A model that was trained on all data would know what is held back.
        self._copy(as_crossval, "The command", request=self.request(start_over=True))

    def _copy_search(self) -> None:
        request = self.request(start_over=True)
        form = partial(as_search, recipe=self.recipe_box.recipe())
        self._copy(form, "The command", request=request)

    def _copy(
        self, form: Any, subject: str, *, request: TrainRequest | None = None
    ) -> None:
        request = request or self.request()
        if request is None:
            self.notice.show_message(
                f"There is nothing to copy. {resolve(self.state()).problem}", "warning"
            )
            return
        name = request.data.name
        try:
            # A folder of its own, which the dock does not train in; one for all texts
            # of an image, until one of them has run.
            if (
                self._copied is None
                or self._copied[0] != name
                or RunFolder(self._copied[1]).exists
                or CrossvalFolder(f"{self._copied[1]}-crossval").exists
                or SearchFolder(f"{self._copied[1]}-search").exists
            ):
                self._copied = name, self.session.new_run(name)
            run = self._copied[1]
        except StrataError as error:
            self.notice.show_message(str(error), "error")
            return
        self.copy_later(lambda: form(request.train_job("copy", run)), subject)

    def leave(self) -> None:
        """Save painted labels and disconnect, when the viewer closes."""
        self.autosave.save_at_once()
        self.autosave.watch(None, None)
        self.painted.leave()
        self.live_mask.watch(None)
        self.data_box.leave()
        self.recovery.stop()


def train_dock(napari_viewer: Viewer | None = None) -> TrainDock:
    """Open the Train dock of a viewer; called by the menu."""
    return TrainDock.of(napari_viewer)
