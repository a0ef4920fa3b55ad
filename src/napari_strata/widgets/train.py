"""The Train dock: from the selected image and painted labels to a model, in one click."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from magicgui.widgets import CheckBox, SpinBox
from napari.viewer import Viewer
from qtpy.QtWidgets import QLabel, QTabWidget, QVBoxLayout, QWidget

from napari_strata.errors import StrataError
from napari_strata.events import EpochEnd, Event
from napari_strata.files import LAYERS
from napari_strata.widgets import _background, _script
from napari_strata.widgets._autosave import Autosave
from napari_strata.widgets._client import JobHandle, Outcome
from napari_strata.widgets._data_box import DataBox
from napari_strata.widgets._dock import Dock, enable
from napari_strata.widgets._forecast import Forecast
from napari_strata.widgets._left_behind import LeftBehind
from napari_strata.widgets._live_preview import LivePreview
from napari_strata.widgets._panel import TrainingPanel
from napari_strata.widgets._prepare import LayerData, Wanted, class_colors, order_of_run
from napari_strata.widgets._recent import last_events
from napari_strata.widgets._recipe_box import RecipeBox
from napari_strata.worker.orders import TrainJob

SETUP, PROGRESS = 0, 1


class TrainDock(Dock):
    """Trains a network on the image layer that is selected and the labels painted on it."""

    def __init__(self, napari_viewer: Viewer) -> None:
        super().__init__(napari_viewer)
        self.handle: JobHandle | None = None
        self.run: Path | None = None
        self._draft: Path | None = None
        self._order: TrainJob | None = None
        self.data_box = DataBox(self.viewer)
        self.recipe_box = RecipeBox()
        self.panel = TrainingPanel()
        self.autosave = Autosave(self._layers_folder, self)
        self.forecast = Forecast(self.session)
        self.live = LivePreview(self.session, self)
        self.left_behind = LeftBehind(self.session, self)
        self._build_pages()
        self._build_foot()
        self.data_box.changed.connect(self._changed)
        self.recipe_box.changed.connect(self._changed)
        self.panel.epoch_ended.connect(self._epoch_ended)
        self.panel.warned.connect(lambda text: self.notice.say(text, "warning"))
        self.panel.ended.connect(self._ended)
        self.autosave.failed.connect(lambda text: self.notice.say(text, "error"))
        self.autosave.saved.connect(self._labels_saved)
        self.left_behind.follow.connect(self._follow_run)
        self._changed()

    # ------------------------------------------------------------------ what stands where

    def _build_pages(self) -> None:
        self.tabs = QTabWidget()
        (setup_page, setup), (progress_page, progress) = _page(), _page()
        self.preview_box = CheckBox(
            text="Preview after each epoch",
            value=True,
            tooltip="Segments the plane in sight with the newest weights, as a layer of its own.",
        )
        self.keep_box = CheckBox(
            text="Keep training when napari closes",
            tooltip="The training goes on by itself, and this dock finds it again next time.",
        )
        self.preview_box.changed.connect(self.live.switch)
        self.keep_box.changed.connect(self._keep)
        for widget in (self.left_behind, self.data_box, self.recipe_box, self.forecast):
            setup.addWidget(widget)
        setup.addWidget(self._links())
        check = "Versions, GPU, worker and disk; for a bug report too."
        setup.addWidget(self._native(self.button("Check this computer", self._doctor, check)))
        setup.addStretch(1)
        progress.addWidget(self.panel)
        for box in (self.preview_box, self.keep_box):
            progress.addWidget(self._native(box))
        self.extend_by = SpinBox(value=10, min=1, max=100_000, tooltip="Epochs to add.")
        self.resume_button = self.button("Resume", self.resume, "Go on where it stopped.")
        self.extend_button = self.button("Extend by", self.extend, "Train the same run for more epochs.")
        self.open_button = self.button("Open a run ...", self._choose_run, "Go on with a run on disk.")
        progress.addWidget(self.row(self.resume_button, self.open_button))
        progress.addWidget(self.row(self.extend_button, self.extend_by, QLabel("epochs"), stretch=1))
        self.tabs.addTab(setup_page, "Set up")
        self.tabs.addTab(progress_page, "Progress")
        self.add(self.tabs)

    def _links(self) -> QWidget:
        python = self.button("Copy as Python", lambda: self._copy(_script.as_python, "The Python script"))
        command = self.button("Copy as command", lambda: self._copy(_script.as_command, "The command"))
        return self.row(python, command)

    def _build_foot(self) -> None:
        self.start_button = self.button("Train", self.start)
        self.stop_button = self.button("Stop", self.stop)
        self.predict_button = self.button("Predict the whole stack", self.predict)
        self.add_to_foot(self.panel.bar)
        self.then_box = CheckBox(
            text="Then predict the whole stack",
            value=True,
            tooltip="When the training is complete, segment the image with the new model at once.",
        )
        self.add_to_foot(self.then_box)
        self.add_to_foot(self.row(self.start_button, self.stop_button, stretch=0))
        self.add_to_foot(self.predict_button)

    # ------------------------------------------------------------------ what is wanted

    def wanted(self) -> Wanted | None:
        """The training that the dock shows; None while something is missing."""
        data = self.data_box.data()
        if data is None or self.recipe_box.problem():
            return None
        box = self.recipe_box
        device = self.session.settings.device
        return Wanted(data, box.base(), dict(box.overrides()), device, bool(self.keep_box.value))

    def _why_not(self) -> str:
        if self.handle is not None:
            return "A training is running: stop it first."
        return self.data_box.problem() or self.recipe_box.problem()

    def _changed(self) -> None:
        why = self._why_not()
        running = self.handle is not None
        enable(self.start_button, why, "Train a network on this image and these labels.")
        enable(self.stop_button, "" if running else "Nothing is running.", "Stop; the best model so far is kept.")
        has_model = self.run is not None and (self.run / "model.safetensors").is_file()
        no_model = "" if has_model else "There is no model yet: train one."
        enable(self.predict_button, no_model or ("" if not running else "Stop the training first."))
        self.predict_button.visible = has_model and not running
        goes_on = "" if self._order is not None and not running else "Train, or open a run, first."
        for button in (self.resume_button, self.extend_button):
            enable(button, goes_on, "Go on with this run.")
        enable(self.open_button, "A training is running: stop it first." if running else "")
        if self.data_box.uses_layers:
            self.autosave.watch(self.data_box.labels.layer, self.data_box.images.image)
        self.forecast.ask(None if why else self.wanted(), why=self.data_box.problem(), folder=self._reserve)

    def _reserve(self) -> Path:
        """The folder of the run to come."""
        if self._draft is None:
            data = self.data_box.data()
            image = self.data_box.images.image
            name = data.name if data is not None else image.name if image is not None else "image"
            self._draft = self.session.new_run(name)
        return self._draft

    def _layers_folder(self) -> Path:
        return (self.run if self.handle is not None and self.run is not None else self._reserve()) / LAYERS

    # ------------------------------------------------------------------ what is done

    def start(self) -> None:
        """Train: write the layers in a thread, then give the order."""
        wanted = self.wanted()
        if wanted is None or self.handle is not None:
            return
        self._begin(lambda run: wanted.train_order(self.session.client.new_id(), run), new=True)

    def resume(self) -> None:
        """Go on with the run in the dock."""
        self._go_on({"resume": True, "extend": 0})

    def extend(self) -> None:
        """Add epochs to the run in the dock."""
        self._go_on({"resume": True, "extend": int(self.extend_by.value)})

    def stop(self) -> None:
        """Stop; what is trained so far is kept."""
        if self.handle is not None:
            self.notice.say("Stopping ...")
            self.handle.stop()

    def predict(self) -> None:
        """Segment the image that was trained on, in the Predict dock."""
        from napari_strata.widgets.predict import PredictDock

        if self.run is None:
            return
        _, dock = self.viewer.window.add_plugin_dock_widget("napari-strata", "Predict", tabify=True)
        if isinstance(dock, PredictDock):
            dock.come_forward()
            dock.predict_with(self.run, self.data_box.images.layer)

    def _go_on(self, change: dict[str, Any]) -> None:
        order = self._order
        if order is None or self.handle is not None:
            return
        now = {"job": self.session.client.new_id(), "keep": bool(self.keep_box.value)}
        self._begin(lambda _run: order.model_copy(update=change | now), new=False)

    def _begin(self, prepare: Any, *, new: bool) -> None:
        try:
            run = self._reserve() if new else self.run
        except StrataError as error:
            self.notice.say(str(error), "error")
            return
        assert run is not None
        self.notice.clear()
        self.forecast.pause()
        self.start_button.enabled = False
        self.panel.bar.show_step(0, 0, "Writing the layers for the training ...")
        _background.run(
            lambda: (prepare(run), [] if new else last_events(run)),
            lambda found: self._submit(run, *found),
            self._not_begun,
            owner=self,
        )

    def _submit(self, run: Path, order: TrainJob, past: list[Event]) -> None:
        self.run, self._draft = run, None
        self._order = order
        self.handle = self.session.submit(order)
        self.panel.follow(self.handle, run, self.data_box.colors(), past=past)
        data = self.data_box.data()
        layer = data if isinstance(data, LayerData) else None
        self.live.start(self.handle, order, layer, on=bool(self.preview_box.value))
        self.session.register_task(f"training {run.name}", self.handle)
        self.tabs.setCurrentIndex(PROGRESS)
        self._changed()

    def _not_begun(self, error: Exception) -> None:
        self.panel.bar.hide()
        self.notice.say(f"The training could not start: {error}", "error")
        self._changed()

    def _epoch_ended(self, event: EpochEnd) -> None:
        self.live.epoch_ended(event)
        if self.run is not None and event.best_iou:
            self.session.announce(self.run)

    def _ended(self, outcome: Outcome) -> None:
        run, self.handle = self.run, None
        self.live.stop()
        if run is None:
            return
        if not (run / "recipe.yaml").is_file():  # refused before it began: the folder can serve the next try
            self._draft, self.run, self._order = run, None, None
            self.tabs.setCurrentIndex(SETUP)
        has_model = (run / "model.safetensors").is_file()
        if outcome.status in ("finished", "stopped"):
            word = "Training finished" if outcome.status == "finished" else "Stopped"
            score = f", {self.panel.score()}" if self.panel.score() else ""
            model = f"The model is in {run}." if has_model else "There is no model yet: it was too early."
            self.notice.say(f"{word}{score}. {model}")
        else:
            self.notice.say(outcome.text, "error")
        if has_model:
            self.session.announce(run)
        self._changed()
        if outcome.status == "finished" and has_model and self.then_box.value and self.data_box.uses_layers:
            self.predict()

    # ------------------------------------------------------------------ the rest

    def _keep(self, on: bool) -> None:
        if self.handle is not None:
            self.handle.keep(on)

    def _labels_saved(self, path: Path) -> None:
        if self.handle is not None:
            self.handle.tell("labels", {"path": str(path)})

    def _choose_run(self) -> None:
        from qtpy.QtWidgets import QFileDialog

        path = QFileDialog.getExistingDirectory(self, "Open a run", str(self.session.settings.runs))
        if path:
            self.open_run(Path(path))

    def open_run(self, run: Path) -> None:
        """Show a run on disk and make it the one to go on with."""
        device = self.session.settings.device
        _background.run(
            lambda: (order_of_run(run, device=device), class_colors(run), last_events(run)),
            lambda found: self._show_run(run, *found),
            lambda error: self.notice.say(str(error), "error"),
            owner=self,
        )

    def _show_run(self, run: Path, order: TrainJob, colors: tuple[str, ...], past: list[Event]) -> None:
        if self.handle is not None:
            return
        self.run, self._order = run, order
        self.panel.prepare(run, colors, past=past)
        self.panel.bar.hide()
        self.tabs.setCurrentIndex(PROGRESS)
        self.notice.say(f"{run.name}: resume it where it stopped, or extend it.")
        self._changed()

    def _follow_run(self, run: Path, colors: tuple[str, ...], past: list[Event]) -> None:
        if self.handle is None:
            self.run = run
            self.panel.prepare(run, colors, past=past)
            self.tabs.setCurrentIndex(PROGRESS)

    def _copy(self, form: Any, what: str) -> None:
        wanted = self.wanted()
        if wanted is None:
            self.notice.say(f"Nothing to copy yet. {self._why_not()}", "warning")
            return
        try:
            run = self._reserve()
        except StrataError as error:
            self.notice.say(str(error), "error")
            return
        _background.run(
            lambda: form(wanted.train_order("copy", run)),
            lambda text: self.copy(text, what),
            lambda error: self.notice.say(f"The layers could not be written: {error}", "error"),
            owner=self,
        )

    def _doctor(self) -> None:
        from napari_strata.widgets.doctor import show_doctor

        show_doctor(self, command=self.session.settings.command, folder=self.session.settings.runs)

    def leave(self) -> None:
        """The viewer closes: keep what was painted, listen no more."""
        self.autosave.save_at_once()
        self.autosave.watch(None, None)
        self.data_box.leave()
        self.left_behind.stop()


def _page() -> tuple[QWidget, QVBoxLayout]:
    page = QWidget()
    rows = QVBoxLayout(page)
    rows.setContentsMargins(2, 4, 2, 2)
    rows.setSpacing(5)
    return page, rows
