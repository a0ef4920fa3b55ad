"""Choice of the model: the newest one, a recent run, or a file."""

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
from qtpy.QtWidgets import QFileDialog, QHBoxLayout, QLabel, QVBoxLayout, QWidget
from superqt import QElidingLabel

from napari_strata.core.errors import StrataError
from napari_strata.core.image import Image
from napari_strata.core.runs import CROSSVAL_FILE, RunFolder
from napari_strata.widgets.layers.convert import source_of_image
from napari_strata.widgets.parts.recent import RunList
from napari_strata.widgets.session import ViewerSession
from napari_strata.widgets.work import threads
from napari_strata.widgets.work.client import JobHandle, Outcome
from napari_strata.worker.protocol import InfoJob, Layer, ModelInfo

REST = 150
"""Milliseconds of rest before the worker is asked."""
SAMPLED = 2**24
"""Pixels above which an image that is in no file is thinned out for the question
whether it fits.
"""

_SCALING = {
    "physical": "Grey values are taken as they are, as in training.",
    "relative": "Grey values are scaled to this image's own range, as in training.",
    "dtype": "Grey values are scaled by the range of their data type, as in training.",
    "imagenet": "Grey values are scaled as ImageNet's, as in training.",
}


class ModelQuestion(QObject):
    """Asks the worker what a model is and whether an image fits it.

    Of several questions only the last is answered.
    """

    answered = Signal(object)  # Outcome of an InfoJob

    def __init__(self, session: ViewerSession, parent: QObject) -> None:
        super().__init__(parent)
        self._session = session
        self._number = 0
        self._model: Path | None = None
        self._subject: tuple[ImageLayer, Image] | None = None
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(REST)
        self._timer.timeout.connect(self._go)

    def ask(self, model: Path, layer: ImageLayer | None, image: Image | None) -> None:
        """Ask soon; an answer to an earlier question is dropped."""
        self._number += 1
        self._model, self._subject = (
            model,
            None if layer is None or image is None else (layer, image),
        )
        self._timer.start()

    def forget(self) -> None:
        """Want no answer any more."""
        self._number += 1
        self._timer.stop()

    def _go(self) -> None:
        number = self._number
        if self._subject is None:
            self._submit(number, None)
            return
        layer, image = self._subject
        try:
            scratch = self._session.scratch()
        except StrataError as error:
            self._sorry(number, error)
            return

        def export() -> Layer:
            thin = thinned(image)
            return source_of_image(
                layer, thin, scratch if thin is image else scratch / "samples"
            )

        threads.run(
            export,
            lambda source: self._submit(number, source),
            lambda error: self._sorry(number, error),
            owner=self,
        )

    def _submit(self, number: int, source: Layer | None) -> None:
        if number != self._number:
            return
        handle: JobHandle = self._session.submit(
            InfoJob(
                job=self._session.client.new_id(), path=str(self._model), image=source
            )
        )
        handle.ended.connect(lambda outcome: self._answer(number, outcome))

    def _answer(self, number: int, outcome: Outcome) -> None:
        if number == self._number:
            self.answered.emit(outcome)

    def _sorry(self, number: int, error: Exception) -> None:
        self._answer(number, Outcome("failed", str(error)))


def thinned(image: Image) -> Image:
    """The image itself, or of a large one every few planes and pixels.

    Its grey values, channels and scale.
    """
    planes, side = (
        image.size("T") * image.size("Z"),
        max(image.size("Y"), image.size("X")),
    )
    if planes * image.size("Y") * image.size("X") * image.channels <= SAMPLED:
        return image
    steps = {
        "Z": ceil(planes / 8),
        "T": ceil(image.size("T") / 2),
        "Y": ceil(side / 1024),
        "X": ceil(side / 1024),
    }
    parts = tuple(slice(None, None, steps.get(axis, 1)) for axis in image.axes)
    return replace(image, data=np.asarray(image.data[parts]), source=None)


class ModelChoice(QWidget):
    """The list of recent runs, a button for a file, and what the chosen model is."""

    changed = Signal()

    def __init__(self, session: ViewerSession) -> None:
        super().__init__()
        self._session = session
        self.path: Path | None = None
        self.problem = ""
        self.spec: dict[str, Any] | None = None
        """`ModelSpec` of the model as plain data; None until the worker has read it."""
        self._picked = False  # by hand: a training that goes on does not take it away
        self._announced: Path | None = None
        self._subject: tuple[ImageLayer | None, Image | None] = (None, None)
        self._question = ModelQuestion(session, self)
        self._question.answered.connect(self._show_answer)
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
        self.text, self.fit = QLabel(), QLabel()
        for label in (self.text, self.fit):
            label.setWordWrap(True)
            label.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self.fit.setTextFormat(Qt.TextFormat.PlainText)
        self._lay_out()
        self.open_button.changed.connect(lambda _: self._open_file())
        self.runs.chosen.connect(self._pick)
        session.model_ready.connect(self._announce)
        session.runs_changed.connect(self.runs.refresh)
        if session.latest_model is not None:
            self._announce(session.latest_model)
        else:
            self._ask()

    def choose(self, path: Path) -> None:
        """Take this model: a file, or a run folder."""
        self.path, self.spec = path, None
        self.runs.select(path)
        self._ask()

    def set_image(self, layer: ImageLayer | None, image: Image | None) -> None:
        """Tell what is to be predicted, for the question whether it fits."""
        old_layer, old = self._subject
        self._subject = (layer, image)
        if layer is not old_layer or _facts(image) != _facts(old):
            self._ask()

    def leave(self) -> None:
        """The dock is going."""
        self._question.forget()

    def _lay_out(self) -> None:
        rows, row, below = QVBoxLayout(self), QHBoxLayout(), QHBoxLayout()
        rows.setContentsMargins(0, 0, 0, 0)
        rows.setSpacing(3)
        row.addWidget(QLabel("Model"))
        row.addWidget(self.name, 1)
        below.addWidget(QLabel("or"))
        below.addWidget(self.open_button.native, 1)
        rows.addLayout(row)
        rows.addWidget(self.runs)
        rows.addLayout(below)
        rows.addWidget(self.text)
        rows.addWidget(self.fit)

    def _pick(self, path: object) -> None:
        self._picked = True
        self.choose(Path(str(path)))

    def _announce(self, run: object) -> None:
        path = Path(str(run))
        is_repeated = path == self._announced
        self._announced = path
        if is_repeated and self._picked and path != self.path:
            return
        self._picked = False
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
            self._pick(file.parent if inside or file.name == CROSSVAL_FILE else file)

    def _ask(self) -> None:
        self._question.forget()
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
            self.name.setText(
                self.path.name
                if self.path.is_dir()
                else f"{self.path.parent.name}/{self.path.name}"
            )
            self.name.setToolTip(str(self.path))
            self.text.setText("Looking at the model ...")
            self._question.ask(self.path, *self._subject)
        self.changed.emit()

    def _show_answer(self, outcome: Outcome) -> None:
        if outcome.status != "finished":
            # A worker that died says nothing about the model: the next order starts
            # another one.
            self.problem = outcome.text if outcome.status == "failed" else ""
            self.text.setText(escape(outcome.text))
        elif not isinstance(outcome.result, ModelInfo):
            self.problem = (
                f"{self.path} is an image, no model: open a .safetensors file or a run"
                " folder."
            )
            self.text.setText(escape(self.problem))
        else:
            self.spec = outcome.result.spec
            self.text.setText(
                f"{_class_words(outcome.result)}<br>{escape(_facts_words(outcome.result))}"
            )
            self._show_fit(outcome.result)
        self.changed.emit()

    def _show_fit(self, result: ModelInfo) -> None:
        if result.fits is None:
            return
        name = self._subject[1].name if self._subject[1] is not None else ""
        lines = [_without(name, str(line)) for line in result.fit]
        scaling = _SCALING.get(result.spec["normalization"]["kind"], "")
        if not result.fits:
            self.problem = " ".join(lines)
            text = "\n".join(["The image does not fit this model.", *lines])
        elif lines:
            text = "\n".join(
                ["It can be predicted, but the image differs:", *lines, scaling]
            )
        else:
            text = f"The image fits this model. {scaling}"
        self.fit.setText(text)
        self.fit.show()


def _facts(image: Image | None) -> object:
    """Key of a reply: everything that the reply depends on."""
    return (
        None
        if image is None
        else (id(image.data), image.axes, image.scale, image.units, image.name)
    )


def _class_words(result: ModelInfo) -> str:
    """Rich text: a square of each class's colour, and its name."""
    squares = (
        f'<span style="color:{escape(row["color"])}">■</span>' for row in result.classes
    )
    names = (escape(row["name"]).replace(" ", "&nbsp;") for row in result.classes)
    return "&nbsp; ".join(
        f"{square}&nbsp;{name}" for square, name in zip(squares, names, strict=True)
    )


def _facts_words(result: ModelInfo) -> str:
    """``Recipe unet-resnet34, 30 epochs, mean IoU 0.872, trained 2026-11-21 14:05``.

    Of a cross-validation how many models it is, and the mean of their scores.
    """
    epochs, score, group = (
        result.epochs,
        result.mean_iou,
        result.models,
    )
    spec = result.spec
    facts = [
        f"Recipe {result.recipe['name']}",
        *(["sees volumes"] if spec["depth"] is not None else []),
    ]
    facts += (
        [f"sees {count} slice{'' if count == 1 else 's'} on each side"]
        if (count := spec["neighbours"])
        else []
    )
    facts.append(
        group if group != "1 model" else f"{epochs} epoch{'' if epochs == 1 else 's'}"
    )
    if score is not None:
        facts.append(f"mean IoU {score:.3f}")
    with suppress(ValueError):
        facts.append(
            "trained"
            f" {datetime.fromisoformat(result.created).astimezone():%Y-%m-%d %H:%M}"
        )
    return ", ".join(facts)


def _without(name: str, line: str) -> str:
    """A line of the engine without the image's name before it, which stands above."""
    text = line.removeprefix(f"{name}: ")
    return text[:1].upper() + text[1:]
