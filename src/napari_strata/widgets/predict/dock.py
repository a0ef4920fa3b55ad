"""Predict dock: labels of the selected image from a trained model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from magicgui.widgets import CheckBox, ComboBox
from napari.layers import Image as ImageLayer
from napari.viewer import Viewer
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QFileDialog, QLabel

from napari_strata.core.errors import StrataError
from napari_strata.core.files import LAYERS
from napari_strata.core.image import Image
from napari_strata.io import read_image, write_labels
from napari_strata.plugin import METADATA, image_layer
from napari_strata.plugin import Layer as LayerTuple
from napari_strata.plugin import read as read_layers
from napari_strata.widgets.layers.choice import ImageChoice
from napari_strata.widgets.layers.convert import (
    image_layers,
    labels_of,
    slug,
    source_of_image,
)
from napari_strata.widgets.layers.group import (
    Channels,
    describe_channels,
    find_channels,
    in_order,
)
from napari_strata.widgets.parts.dock import Dock, Progress, draw
from napari_strata.widgets.predict import results
from napari_strata.widgets.predict.area import WHOLE, AreaChoice, AreaError
from napari_strata.widgets.predict.averaging import Averaging
from napari_strata.widgets.predict.batch import Batch, batch_job
from napari_strata.widgets.predict.batch_box import BatchBox
from napari_strata.widgets.predict.batch_state import BatchFile
from napari_strata.widgets.predict.model_choice import ModelChoice, one_or_all
from napari_strata.widgets.predict.running import LivePrediction, PredictionOptions
from napari_strata.widgets.predict.state import PredictState, resolve
from napari_strata.widgets.work import threads
from napari_strata.widgets.work.client import Outcome
from napari_strata.worker.protocol import PredictJob

FORMATS = {
    "OME-TIFF (*.ome.tif *.ome.tiff *.tif *.tiff)": "ome.tif",
    "OME-Zarr (*.ome.zarr *.zarr)": "ome.zarr",
}
LAYER, FILES = "the selected layer", "files and folders"


class PredictDock(Dock):
    """Dock that segments an image layer or a part of it, or files."""

    name = "Predict"
    steps = (
        "Click the image in the layer list, or choose files and folders.",
        "Choose a model: the list has your trainings, the newest first.",
        "Press Predict. The labels appear at once and fill in slice by slice.",
        "Press Save ... to keep them with axes, pixel size and class names.",
    )

    def __init__(self, napari_viewer: Viewer) -> None:
        super().__init__(napari_viewer)
        self.prediction: LivePrediction | None = None
        self.batch: Batch | None = None
        self._warnings: list[str] = []
        self._saving = False
        self._shown_layer: ImageLayer | Channels | None = None
        # All channels of the file, if the chosen layer is one of them.
        self._all_channels: Image | None = None
        self.source = ComboBox(
            choices=[LAYER, FILES],
            value=LAYER,
            tooltip="Whether a layer of the viewer is segmented, or files on disk.",
        )
        self.files = BatchBox()
        self.images = ImageChoice(self.viewer)
        self.channels = CheckBox(
            text="Use all channels of its file",
            visible=False,
            tooltip=(
                "The layer is one channel of its file. Use all channels for a model"
                " that was trained on several."
            ),
        )
        self.which = QLabel()
        self.which.setWordWrap(True)
        self.use_button = self.button("", self._use_channels)
        self._proposal: Channels | None = None
        self.model = ModelChoice(self.session)
        self.area = AreaChoice(self.viewer, self.images)
        self.probabilities = CheckBox(
            text="Probabilities",
            tooltip="Add a layer for each class with its probability, 0 to 1.",
        )
        self.confidence = CheckBox(
            text="Confidence",
            tooltip=(
                "Add a layer with the probability of the predicted class, 0 to 1."
            ),
        )
        self.averaging = Averaging()
        self.bar = Progress("Prediction")
        self.add(self.row(QLabel("Predict"), self.source, stretch=1))
        for widget in (
            self.images,
            self.channels,
            self.which,
            self.use_button,
            self.files,
            self.model,
            self.area,
        ):
            self.add(widget)
        self.add(self.row(self.probabilities, self.confidence, stretch=1))
        self.add(self.averaging.turns)
        self.add(self.averaging.directions)
        self.add(self.copy_buttons(self._copy))
        self.predict_button = self.button("Predict", self.predict)
        self.stop_button = self.button("Stop", self.stop)
        self.save_button = self.button("Save ...", self.save)
        self.doubt = QLabel()
        self.doubt.setWordWrap(True)
        self.doubt.setTextFormat(Qt.TextFormat.PlainText)
        self.add_to_foot(self.bar)
        self.add_to_foot(self.doubt)
        self.add_to_foot(
            self.row(self.predict_button, self.stop_button, self.save_button, stretch=0)
        )
        self.source.changed.connect(self._switch)
        self.files.changed.connect(self._changed)
        self.files.opened.connect(self._open_results)
        self.images.changed.connect(self._image_changed)
        self.channels.changed.connect(self._open_channels)
        self.model.changed.connect(self._changed)
        self.area.changed.connect(self._changed)
        self._switch()

    # ---- State

    @property
    def uses_files(self) -> bool:
        """True if files are segmented, not a layer."""
        return bool(self.source.value == FILES)

    def _switch(self, _value: object = None) -> None:
        """Show what belongs to a layer, or to files."""
        for widget in (self.images, self.area):
            widget.setVisible(not self.uses_files)
        self.confidence.visible = not self.uses_files
        self.files.setVisible(self.uses_files)
        self._image_changed()

    def _problem(self) -> str:
        """Explain why the image or the files cannot be predicted; empty if they can."""
        if self.uses_files:
            return self.files.problem or self.model.problem
        return self.images.problem or self.model.problem or self.area.problem

    @property
    def image(self) -> Image | None:
        """Image to segment: the layer, or all channels of its file."""
        return self.images.image if self._all_channels is None else self._all_channels

    def _image_changed(self) -> None:
        layer, channels = self.images.layer, self.images.channels
        if (channels or layer) != self._shown_layer:
            self._shown_layer, self._all_channels = channels or layer, None
            self.channels.value = False
        self.channels.visible = (
            not self.uses_files
            and channels is None
            and layer is not None
            and _file_of(layer) is not None
        )
        if self.uses_files:
            self.model.set_image(None, None)
        else:
            self.model.set_image(layer, self.image)
        self._changed()

    def _show_channels(self) -> None:
        """Say which layer is which channel of the model, or propose layers."""
        chosen, names, text = self.images.channels, _channel_names(self.model.spec), ""
        self._proposal = None
        if len(names) > 1 and not self.uses_files:
            if chosen is not None and in_order(chosen, names) != chosen:
                self.images.choose(in_order(chosen, names))
                return
            if chosen is not None and len(chosen.layers) == len(names):
                text = describe_channels(chosen, names)
            elif self.image is None or self.image.channels != len(names):
                layers = image_layers(self.viewer.layers)
                self._proposal = find_channels(names, layers, self.images.layer)
                text = (
                    f"This model needs {len(names)} channels: {', '.join(names)}."
                    " Select their layers in the layer list together, and choose them"
                    " as channels above."
                )
        proposal = self._proposal
        if proposal is not None:
            which = describe_channels(proposal, names)
            text = f"This model needs {len(names)} channels. {which}"
            self.use_button.text = f"Use {len(names)} layers as channels"
        self.which.setText(text)
        self.which.setVisible(bool(text))
        self.use_button.visible = proposal is not None

    def _use_channels(self) -> None:
        if self._proposal is not None:
            self.images.choose(self._proposal)

    def _open_channels(self, on: bool) -> None:
        layer, self._all_channels = self.images.layer, None
        file = _file_of(layer) if on and layer is not None else None
        if file is None:
            self._image_changed()
            return

        def done(image: Image) -> None:
            if self.channels.value and self.images.layer is layer:
                self._all_channels = image
                self._image_changed()

        def failed(error: Exception) -> None:
            self.channels.value = False
            self.notice.show_message(str(error), "error")

        threads.run(
            lambda: read_image(file[0], series=file[1]), done, failed, owner=self
        )

    def state(self) -> PredictState:
        """Read the state of the dock from its layers and choices."""
        labels = results.newest(self.viewer)
        return PredictState(
            problem=self._problem(),
            files=len(self.files.files) if self.uses_files else None,
            is_running=self.prediction is not None or self.batch is not None,
            is_saving=self._saving,
            labels_name=None if labels is None else labels.name,
            doubt=self.model.doubt,
        )

    def _changed(self) -> None:
        """Update the dock after a change of its state."""
        self._show_channels()
        image, area = self.image, str(self.area.combo.value)
        if self.uses_files:
            image, area = None, WHOLE
        self.averaging.update(image, self.model.spec, area)
        view = resolve(self.state())
        self.predict_button.text = view.predict_text
        draw(self.predict_button, view.predict)
        draw(self.stop_button, view.stop)
        draw(self.save_button, view.save)
        self.doubt.setText(view.doubt)
        self.doubt.setVisible(bool(view.doubt))

    # ------------------------------------------------------------------ predict

    def predict(self) -> None:
        """Segment the chosen area of the image, or the files."""
        if self.uses_files:
            self._predict_files()
            return
        layer, image, models = self.images.layer, self.image, self.model.paths
        if self.prediction is not None or layer is None or image is None or not models:
            return
        try:
            region = self.area.area().region
        except AreaError as error:
            self.notice.show_message(str(error), "error")
            return
        options = PredictionOptions(
            region,
            bool(self.probabilities.value),
            bool(self.confidence.value),
            tta=self.averaging.tta,
            ortho=self.averaging.ortho,
        )
        self._warnings = []
        self.notice.clear()
        self.prediction = LivePrediction(
            self.session, layer, image=image, models=models, options=options
        )
        self.prediction.progress.connect(self._on_progress)
        self.prediction.message.connect(self._on_message)
        self.prediction.ended.connect(self._ended)
        self._changed()
        self.prediction.start()

    def predict_with(self, runs: tuple[Path, ...], layer: ImageLayer | None) -> None:
        """Segment a whole image layer with the model of a run, or the mean of several.

        The Train dock calls this.
        """
        if self.prediction is not None or self.batch is not None:
            self.notice.show_message(
                "A prediction is running: stop it first.", "warning"
            )
            return
        self.source.value = LAYER
        if layer is not None:
            self.images.choose(layer)
        self.model.choose(*runs)
        self.area.combo.value = WHOLE
        if why := self._problem():
            self.notice.show_message(why, "error")
            return
        self.predict()

    def stop(self) -> None:
        """Stop the prediction; finished planes or files are kept."""
        running = self.prediction or self.batch
        if running is not None:
            running.stop()

    def _on_progress(self, done: int, total: int) -> None:
        running = self.prediction or self.batch
        if running is not None:
            self.bar.show_step(done, total, running.status_text)

    def _on_message(self, text: str, level: str) -> None:
        if level != "info":
            self._warnings.append(text)
        self.notice.show_message(text, level)

    def _ended(self, outcome: Outcome) -> None:
        prediction, self.prediction = self.prediction, None
        assert prediction is not None
        prediction.deleteLater()
        self.bar.hide()
        text = "\n".join([outcome.text, *self._warnings])
        if outcome.status in ("failed", "died"):
            self.notice.show_message(text, "error")
        else:
            self.notice.show_message(
                f"{text}{_hidden(prediction.added)}",
                "warning" if self._warnings else "info",
            )
        self._changed()

    # ------------------------------------------------------------------ files

    def _predict_files(self) -> None:
        if self.prediction is not None or self.batch is not None or self._problem():
            return
        self._warnings = []
        self.notice.clear()
        self.files.set_enabled(False)
        self.batch = Batch(
            self.session,
            self.files.request(),
            self.files.files,
            self._batch_job(self.session.client.new_id()),
        )
        self.batch.progress.connect(self._on_progress)
        self.batch.changed.connect(self._show_files)
        self.batch.message.connect(self._on_message)
        self.batch.ended.connect(self._batch_ended)
        self.bar.show_step(0, 0, self.batch.status_text)
        self._show_files()
        self.scroller.ensureWidgetVisible(self.files.table)
        self._changed()

    def _batch_job(self, job: str) -> PredictJob:
        return batch_job(
            job,
            self.files.request(),
            self.model.paths,
            device=self.session.settings.device,
            probabilities=bool(self.probabilities.value),
            tta=self.averaging.tta,
            ortho=self.averaging.ortho,
        )

    def _show_files(self) -> None:
        if self.batch is not None:
            self.files.show_files(self.batch.files)

    def _batch_ended(self, outcome: Outcome) -> None:
        batch, self.batch = self.batch, None
        assert batch is not None
        batch.deleteLater()
        self.bar.hide()
        self.files.set_enabled(True)
        has_failed = any(file.status == "failed" for file in batch.files)
        self.notice.show_message(
            "\n".join([outcome.text, *self._warnings]),
            "error"
            if outcome.status in ("failed", "died")
            else "warning"
            if has_failed or self._warnings
            else "info",
        )
        self._changed()

    def _open_results(self, file: BatchFile) -> None:
        """Open an image and its labels as layers."""
        axes = self.files.request().axes

        def open_both() -> list[LayerTuple]:
            if axes:  # the file does not state them
                images = [image_layer(read_image(file.source, axes=axes))]
            else:
                images = read_layers(file.source)
            labels = read_layers(file.output)
            for _data, attributes, _kind in labels:
                attributes["name"] = Path(file.output).stem
            return [*images, *labels]

        def done(layers: list[LayerTuple]) -> None:
            for data, attributes, kind in layers:
                getattr(self.viewer, f"add_{kind}")(data, **attributes)

        threads.run(
            open_both,
            done,
            lambda error: self.notice.show_message(
                f"The layers could not be opened: {error}", "error"
            ),
            owner=self,
        )

    # ------------------------------------------------------------------ save

    def save(self) -> None:
        """Write the labels to a file that the user chooses."""
        layer = results.newest(self.viewer)
        if layer is None:
            return
        path = self._ask_path(slug(layer.name))
        if path is None or layer not in self.viewer.layers:
            return
        labels, replaced = (
            labels_of(layer, self.images.image),
            path.exists(),
        )  # the dialog has asked
        self._saving = True
        self._changed()
        self.notice.show_message(f"Saving {layer.name} ...")
        threads.run(
            lambda: write_labels(path, labels, overwrite=replaced),
            self._saved,
            self._not_saved,
            owner=self,
        )

    def _ask_path(self, name: str) -> Path | None:
        dialog = QFileDialog(self, "Save the labels", str(Path.cwd() / name))
        dialog.setAcceptMode(QFileDialog.AcceptMode.AcceptSave)
        dialog.setNameFilters(list(FORMATS))
        # The dialog adds the suffix, so that it can check whether the file exists.
        dialog.filterSelected.connect(
            lambda text: dialog.setDefaultSuffix(FORMATS[text])
        )
        dialog.setDefaultSuffix(FORMATS[dialog.selectedNameFilter()])
        dialog.selectFile(name)
        paths = dialog.selectedFiles() if dialog.exec() else []
        dialog.deleteLater()
        return Path(paths[0]) if paths else None

    def _saved(self, path: Path) -> None:
        self._saving = False
        self.notice.show_message(f"Saved to {path}.")
        self._changed()

    def _not_saved(self, error: Exception) -> None:
        self._saving = False
        self.notice.show_message(f"The labels could not be saved: {error}", "error")
        self._changed()

    # ------------------------------------------------------------------ copied code

    def _copy(self, form: Callable[[PredictJob], str], subject: str) -> None:
        if self.uses_files:
            if why := self._problem():
                self.notice.show_message(f"There is nothing to copy. {why}", "warning")
            else:
                self.copy(form(self._batch_job("copy")), subject)
            return
        layer, image, models = self.images.layer, self.image, self.model.paths
        if layer is None or image is None or not models:
            self.notice.show_message(
                f"There is nothing to copy. {self._problem()}", "warning"
            )
            return
        folder = models[0] if models[0].is_dir() else models[0].parent
        device, probabilities = (
            self.session.settings.device,
            bool(self.probabilities.value),
        )
        is_whole, tta, ortho = (
            self.area.combo.value == WHOLE,
            self.averaging.tta,
            self.averaging.ortho,
        )

        def make() -> str:
            request = PredictJob(
                job="copy",
                model=one_or_all(models),
                image=source_of_image(layer, image, folder / LAYERS),
                out=str(_unused(folder / f"{slug(image.name)}-labels.tif")),
                probabilities=probabilities,
                tta=tta,
                ortho=ortho,
                device=device,
            )
            return form(request)

        def done(text: str) -> None:
            self.copy(text, subject)
            if not is_whole:
                self.notice.show_message(
                    f"{subject} is on the clipboard, for the whole image: areas can be"
                    " predicted only here."
                )

        def failed(error: Exception) -> None:
            reason = (
                str(error)
                if isinstance(error, StrataError)
                else f"{type(error).__name__}: {error}"
            )
            self.notice.show_message(
                f"The image could not be written: {reason}", "error"
            )

        threads.run(make, done, failed, owner=self)

    def leave(self) -> None:
        """Disconnect from the viewer, when it closes."""
        if (
            self.prediction is not None
        ):  # it ends by itself, and there is nobody left to tell
            for signal in (
                self.prediction.progress,
                self.prediction.message,
                self.prediction.ended,
            ):
                signal.disconnect()
        if self.batch is not None:
            for signal in (
                self.batch.progress,
                self.batch.changed,
                self.batch.message,
                self.batch.ended,
            ):
                signal.disconnect()
        self.images.disconnect_viewer()
        self.area.disconnect_viewer()
        self.model.leave()


def _channel_names(spec: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Return the names of the channels that a model needs; empty if unknown."""
    if spec is None:
        return ()
    count = spec["in_channels"] // (2 * spec["neighbours"] + 1)
    names = tuple(spec["channel_names"])
    return (
        names
        if len(names) == count
        else tuple(f"channel {number + 1}" for number in range(count))
    )


def _file_of(layer: ImageLayer) -> tuple[str, int] | None:
    """Return file and series of a layer that is one of several channels, or None."""
    stored = layer.metadata.get(METADATA) or {}
    if stored.get("channel") is None or not stored.get("path"):
        return None
    return str(stored["path"]), int(stored.get("series") or 0)


def _unused(path: Path) -> Path:
    """Return a path that does not exist, with a number if necessary."""
    unused, number = path, 1
    while unused.exists():
        number += 1
        unused = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return unused


def _hidden(names: list[str]) -> str:
    """Describe the hidden layers that were added below the labels."""
    if not names:
        return ""
    count = f"{len(names)} more layers are" if len(names) > 1 else f"{names[0]} is"
    return (
        f"\n{count} in the layer list, hidden below the labels: click an eye to show"
        " one."
    )


def predict_dock(napari_viewer: Viewer | None = None) -> PredictDock:
    """Open the Predict dock of a viewer; called by the menu."""
    return PredictDock.of(napari_viewer)
