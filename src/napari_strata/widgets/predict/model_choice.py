"""Choice of the model: the newest, a recent run, or a file."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from html import escape
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from magicgui.widgets import PushButton
from napari.layers import Image as ImageLayer
from qtpy.QtCore import QObject, Qt, QTimer, Signal
from qtpy.QtWidgets import (
    QFileDialog,
    QHBoxLayout,
    QLabel,
    QToolButton,
    QVBoxLayout,
    QWidget,
)
from superqt import QElidingLabel

from napari_strata.core.errors import StrataError
from napari_strata.core.image import Image, spread_slices
from napari_strata.core.runs import CROSSVAL_FILE, RunFolder
from napari_strata.core.text import format_count
from napari_strata.widgets.layers.convert import source_of_image
from napari_strata.widgets.parts.recent import RunList
from napari_strata.widgets.session import ViewerSession
from napari_strata.widgets.work import threads
from napari_strata.widgets.work.client import JobHandle, Outcome
from napari_strata.worker.protocol import InfoJob, Layer, ModelInfo

REQUEST_DELAY_MS = 150
"""Milliseconds without a change before a request is sent."""
MAX_PIXELS = 2**24
"""Larger images without a file are subsampled to check whether they fit."""

_SCALING = {
    "physical": "Grey values are taken as they are, as in training.",
    "relative": "Grey values are scaled to this image's own range, as in training.",
    "dtype": "Grey values are scaled by the range of their data type, as in training.",
    "imagenet": "Grey values are scaled as ImageNet's, as in training.",
}


class ModelInfoRequest(QObject):
    """Requests facts about a model, and whether an image fits.

    Only the last of several requests is answered.
    """

    received = Signal(object)  # Outcome of an InfoJob

    def __init__(self, session: ViewerSession, parent: QObject) -> None:
        super().__init__(parent)
        self._session = session
        self._number = 0
        self._models: tuple[Path, ...] = ()
        self._layer_and_image: tuple[ImageLayer, Image] | None = None
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(REQUEST_DELAY_MS)
        self._timer.timeout.connect(self._send)

    def request(
        self,
        models: tuple[Path, ...],
        layer: ImageLayer | None,
        image: Image | None,
    ) -> None:
        """Send a request after a delay; results of earlier requests are ignored."""
        self._number += 1
        self._models = models
        self._layer_and_image = (
            None if layer is None or image is None else (layer, image)
        )
        self._timer.start()

    def cancel(self) -> None:
        """Ignore the results of all requests."""
        self._number += 1
        self._timer.stop()

    def _send(self) -> None:
        number = self._number
        if self._layer_and_image is None:
            self._submit(number, None)
            return
        layer, image = self._layer_and_image
        try:
            scratch = self._session.scratch()
        except StrataError as error:
            self._fail(number, error)
            return

        def export() -> Layer:
            sample = subsample(image)
            return source_of_image(
                layer, sample, scratch if sample is image else scratch / "samples"
            )

        threads.run(
            export,
            lambda source: self._submit(number, source),
            lambda error: self._fail(number, error),
            owner=self,
        )

    def _submit(self, number: int, source: Layer | None) -> None:
        if number != self._number:
            return
        handle: JobHandle = self._session.submit(
            InfoJob(
                job=self._session.client.new_id(),
                path=one_or_all(self._models),
                image=source,
            )
        )
        handle.ended.connect(lambda outcome: self._on_end(number, outcome))

    def _on_end(self, number: int, outcome: Outcome) -> None:
        if number == self._number:
            self.received.emit(outcome)

    def _fail(self, number: int, error: Exception) -> None:
        self._on_end(number, Outcome("failed", str(error)))


def one_or_all(models: tuple[Path, ...]) -> str | tuple[str, ...]:
    """Return the models of a request: a path, or the paths of several."""
    paths = tuple(map(str, models))
    return paths[0] if len(paths) == 1 else paths


def subsample(image: Image) -> Image:
    """Return the image, or blocks of a few planes of a large image.

    They have the same channels and scale, and neighbouring pixels stay neighbours.
    """
    planes = image.size("T") * image.size("Z")
    if planes * image.size("Y") * image.size("X") * image.channels <= MAX_PIXELS:
        return image
    steps = {"Z": ceil(planes / 8), "T": ceil(image.size("T") / 2)}
    rows = []
    for y in spread_slices(image.size("Y")):
        blocks = []
        for x in spread_slices(image.size("X")):
            box = {"Y": y, "X": x}
            index = tuple(
                box.get(axis, slice(None, None, steps.get(axis, 1)))
                for axis in image.axes
            )
            blocks.append(np.asarray(image.data[index]))
        rows.append(np.concatenate(blocks, axis=image.axes.index("X")))
    data = np.concatenate(rows, axis=image.axes.index("Y"))
    return replace(image, data=data, source=None)


class ModelChoice(QWidget):
    """List of recent runs, button for a file, and facts about the chosen model."""

    changed = Signal()

    def __init__(self, session: ViewerSession) -> None:
        super().__init__()
        self._session = session
        self.paths: tuple[Path, ...] = ()
        """The model, or several whose mean predicts; empty before the choice."""
        self.problem = ""
        self.doubt = ""
        """Sentence about an image for which wrong labels are likely; or empty."""
        self.spec: dict[str, Any] | None = None
        """`ModelSpec` of the model as plain data; None until the worker has read it."""
        self._is_manual = (
            False  # chosen by the user; a running training does not change it
        )
        self._announced: Path | None = None
        self._layer_and_image: tuple[ImageLayer | None, Image | None] = (None, None)
        self._info_request = ModelInfoRequest(session, self)
        self._info_request.received.connect(self._show_info)
        self.runs = RunList()
        self.runs.set_folder(session.settings.runs)
        self.name = QElidingLabel()
        self.name.setElideMode(Qt.TextElideMode.ElideMiddle)
        self.open_button = PushButton(
            text="Open a model file ...",
            tooltip=(
                "A .safetensors file of this plugin, such as the one in a run folder;"
                " or the crossval.json of a cross-validation, whose models predict"
                " together."
            ),
        )
        self.delete_button = QToolButton()
        self.delete_button.setDefaultAction(self.runs.delete_action)
        self.text, self.fit = QLabel(), QLabel()
        for label in (self.text, self.fit):
            label.setWordWrap(True)
            label.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self.fit.setTextFormat(Qt.TextFormat.PlainText)
        self._build()
        self.open_button.changed.connect(lambda _: self._open_file())
        self.runs.chosen.connect(self._on_pick)
        self.runs.deleted.connect(self._on_deleted)
        session.model_ready.connect(self._announce)
        session.runs_changed.connect(self.runs.refresh)
        if session.latest_model is not None:
            self._announce(session.latest_model)
        else:
            self._request_info()

    @property
    def path(self) -> Path | None:
        """Path of the model, or of the first of several."""
        return self.paths[0] if self.paths else None

    def choose(self, *paths: Path) -> None:
        """Choose a model, as a file or a run folder, or several to take the mean of."""
        self.paths, self.spec = paths, None
        self.runs.select(paths[0])
        self._request_info()

    def set_image(self, layer: ImageLayer | None, image: Image | None) -> None:
        """Set the image, to check whether it fits the model."""
        old_layer, old = self._layer_and_image
        self._layer_and_image = (layer, image)
        if layer is not old_layer or _image_key(image) != _image_key(old):
            self._request_info()

    def leave(self) -> None:
        """Cancel requests, when the viewer closes."""
        self._info_request.cancel()

    def _build(self) -> None:
        rows, row, below = QVBoxLayout(self), QHBoxLayout(), QHBoxLayout()
        rows.setContentsMargins(0, 0, 0, 0)
        rows.setSpacing(3)
        row.addWidget(QLabel("Model"))
        row.addWidget(self.name, 1)
        below.addWidget(QLabel("or"))
        below.addWidget(self.open_button.native, 1)
        below.addWidget(self.delete_button)
        rows.addLayout(row)
        rows.addWidget(self.runs)
        rows.addLayout(below)
        rows.addWidget(self.text)
        rows.addWidget(self.fit)

    def _on_pick(self, path: object) -> None:
        self._is_manual = True
        self.choose(Path(str(path)))

    def _on_deleted(self, path: object) -> None:
        self._session.runs_changed.emit()
        if self._session.latest_model == path:
            self._session.latest_model = None
        if path in self.paths:
            self.paths, self.spec = (), None
            self._request_info()

    def _announce(self, run: object) -> None:
        path = Path(str(run))
        is_repeated = path == self._announced
        self._announced = path
        if is_repeated and self._is_manual and path != self.path:
            return
        self._is_manual = False
        self.choose(path)

    def _open_file(self) -> None:
        start = str(self._session.settings.runs)
        path, _ = QFileDialog.getOpenFileName(
            self, "Open a model", start, f"Models (*.safetensors {CROSSVAL_FILE})"
        )
        if path:
            file = Path(path)
            run = RunFolder(file.parent)
            inside = run.exists and file == run.model_path
            self._on_pick(file.parent if inside or file.name == CROSSVAL_FILE else file)

    def _request_info(self) -> None:
        self._info_request.cancel()
        self.doubt = ""
        self.fit.hide()
        self.text.setVisible(self.path is not None)
        if self.path is None:
            self.problem = (
                "Choose a model: click a recent run or open a file; or train one in the"
                " Train dock."
            )
            self.name.setText("none chosen yet")
        else:
            self.problem = ""
            self.name.setText(" and ".join(map(_short_name, self.paths)))
            self.name.setToolTip("\n".join(map(str, self.paths)))
            self.text.setText("Reading the model ...")
            self._info_request.request(self.paths, *self._layer_and_image)
        self.changed.emit()

    def _show_info(self, outcome: Outcome) -> None:
        if outcome.status != "finished":
            # The crash of a worker is no problem of the model; the next request starts
            # a new worker.
            self.problem = outcome.text if outcome.status == "failed" else ""
            self.text.setText(escape(outcome.text))
        elif not isinstance(outcome.result, ModelInfo):
            self.problem = (
                f"{self.path} is an image, not a model: open a .safetensors file or a"
                " run folder."
            )
            self.text.setText(escape(self.problem))
        else:
            self.spec = outcome.result.spec
            self.text.setText(
                f"{_describe_classes(outcome.result)}<br>{escape(_describe_facts(outcome.result))}"
            )
            self._show_fit(outcome.result)
        self.changed.emit()

    def _show_fit(self, result: ModelInfo) -> None:
        if result.fits is None:
            return
        name = (
            self._layer_and_image[1].name
            if self._layer_and_image[1] is not None
            else ""
        )
        # Questions are shown beside the button.
        notes = [line for line in result.fit if line not in result.questions]
        lines = [_without_name(name, line) for line in notes]
        self.doubt = "\n".join(_without_name(name, line) for line in result.questions)
        scaling = _SCALING.get(result.spec["normalization"]["kind"], "")
        if not result.fits:
            self.problem = " ".join(lines)
            text = "\n".join(["The image does not fit this model.", *lines])
        elif lines:
            text = "\n".join(
                ["It can be predicted, but the image differs:", *lines, scaling]
            )
        elif self.doubt:
            text = scaling
        else:
            text = f"The image fits this model. {scaling}"
        self.fit.setText(text)
        self.fit.show()


def _short_name(path: Path) -> str:
    return path.name if path.is_dir() else f"{path.parent.name}/{path.name}"


def _image_key(image: Image | None) -> object:
    """Return a key of the image that determines the result."""
    return (
        None
        if image is None
        else (id(image.data), image.axes, image.scale, image.units, image.name)
    )


def _describe_classes(result: ModelInfo) -> str:
    """Return rich text with colour and name of each class."""
    squares = (
        f'<span style="color:{escape(row["color"])}">■</span>' for row in result.classes
    )
    names = (escape(row["name"]).replace(" ", "&nbsp;") for row in result.classes)
    return "&nbsp; ".join(
        f"{square}&nbsp;{name}" for square, name in zip(squares, names, strict=True)
    )


def _describe_facts(result: ModelInfo) -> str:
    """Describe a model: ``Recipe unet-ct, 30 epochs, mean IoU 0.872, trained DATE``.

    For a cross-validation, it has the number of models and the mean of their scores.
    """
    epochs, score, group = (
        result.epochs,
        result.mean_iou,
        result.models,
    )
    spec = result.spec
    facts = [
        f"Recipe {result.recipe['name']}",
        *(["needs volumes"] if spec["depth"] is not None else []),
    ]
    facts += (
        [f"sees {format_count(count, 'slice')} on each side"]
        if (count := spec["neighbours"])
        else []
    )
    facts.append(group if group != "1 model" else format_count(epochs, "epoch"))
    if result.agreement:
        facts.append(result.agreement)
    elif score is not None:
        facts.append(f"mean IoU {score:.3f}")
    with suppress(ValueError):
        facts.append(
            "trained"
            f" {datetime.fromisoformat(result.created).astimezone():%Y-%m-%d %H:%M}"
        )
    return ", ".join(facts)


def _without_name(name: str, line: str) -> str:
    """Remove the name of the image from the start of a message."""
    text = line.removeprefix(f"{name}: ")
    return text[:1].upper() + text[1:]
