"""Work of an earlier napari: painted labels, and trainings that still run."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
from napari.layers import Labels as LabelsLayer
from qtpy.QtCore import QTimer, Signal
from qtpy.QtWidgets import QHBoxLayout, QLabel, QPushButton, QVBoxLayout, QWidget

from napari_strata.core.errors import StrataError
from napari_strata.core.events import Event
from napari_strata.core.image import LabelImage
from napari_strata.core.runs import RunFolder
from napari_strata.io import read_labels
from napari_strata.plugin import labels_layer
from napari_strata.widgets.layers.autosave import Kept, kept
from napari_strata.widgets.parts.dock import Dock
from napari_strata.widgets.parts.recent import RunSummary, last_events, list_runs
from napari_strata.widgets.session import ViewerSession
from napari_strata.widgets.train.prepare import class_colors
from napari_strata.widgets.work import threads

MOST = 2
"""Lines of each sort."""


class Recovery(QWidget):
    """Offers, one line each; empty and out of sight when there is nothing."""

    follow = Signal(
        object, object, object, bool
    )  # RunSummary, its colours, its events, whether it still runs

    def __init__(self, session: ViewerSession, dock: Dock) -> None:
        super().__init__()
        self._session, self._dock = session, dock
        self._rows = QVBoxLayout(self)
        self._rows.setContentsMargins(0, 0, 0, 0)
        self._rows.setSpacing(2)
        self.hide()
        self._timer = QTimer(self)  # of the training that is followed
        self._timer.setInterval(2000)
        runs = session.settings.runs
        threads.run(
            lambda: (kept(runs), _running(runs)), self._show, _ignore, owner=self
        )

    def buttons(self) -> list[QPushButton]:
        """The answers that can be given."""
        return self.findChildren(QPushButton)

    def text(self) -> str:
        """Texts of the offers."""
        return "\n".join(label.text() for label in self.findChildren(QLabel))

    def stop(self) -> None:
        """Ask the disk no more."""
        self._timer.stop()

    def _show(self, found: tuple[list[Kept], list[RunSummary]]) -> None:
        labels, runs = found
        for draft in labels[:MOST]:
            self._offer(
                f"{draft.describe()}, was kept.",
                {"Open": partial(self._open, draft), "Forget": draft.forget},
            )
        for run in runs[:MOST]:
            text = f"The training {run.name} goes on without napari."
            self._offer(
                text,
                {"Follow": partial(self._follow, run), "Stop": partial(self.end, run)},
            )

    def _offer(self, text: str, answers: dict[str, Callable[[], object]]) -> None:
        row = QWidget()
        layout = QHBoxLayout(row)
        layout.setContentsMargins(0, 0, 0, 0)
        label = QLabel(text)
        label.setWordWrap(True)
        layout.addWidget(label, 1)
        for word, action in answers.items():
            button = QPushButton(word)
            if word != "Follow":  # who follows it may want to stop it
                button.clicked.connect(row.hide)
            button.clicked.connect(partial(_call, action))
            layout.addWidget(button)
        self._rows.addWidget(row)
        self.show()

    def _open(self, one: Kept) -> None:
        threads.run(
            lambda: read_labels(one.path),
            lambda labels: self._add(labels, one),
            lambda error: self._dock.notice.say(
                f"{one.path} cannot be opened: {error}", "error"
            ),
            owner=self,
        )

    def _add(self, labels: LabelImage, one: Kept) -> None:
        data, attributes, _ = labels_layer(labels)
        self._session.viewer.add_layer(
            LabelsLayer(data, **attributes | {"name": one.layer})
        )
        one.take_over()
        self._dock.notice.say(f'"{one.layer}" is back; save it, or go on painting.')

    def _follow(self, run: RunSummary) -> None:
        self._timer.timeout.connect(lambda: self._again(run))
        self._timer.start()
        self._again(run)

    def _again(self, run: RunSummary) -> None:
        path = run.path
        threads.run(
            lambda: (
                RunFolder(path).running_path.is_file(),
                class_colors(path),
                last_events(path),
            ),
            lambda found: self._report(run, *found),
            _ignore,
            owner=self,
        )

    def _report(
        self,
        run: RunSummary,
        running: bool,
        colors: tuple[str, ...],
        events: list[Event],
    ) -> None:
        if (
            not self._timer.isActive()
        ):  # an answer to a question that was asked before the end
            return
        self.follow.emit(run, colors, events, running)
        if not running:
            self._timer.stop()
            self._session.announce(run.path)

    def end(self, run: RunSummary) -> None:
        """Tell a training that goes on without napari to stop."""
        try:
            process = psutil.Process(int((run.running or {})["pid"]))
            if "napari_strata" not in " ".join(process.cmdline()):
                raise StrataError("its process is gone")
            process.terminate()
        except (psutil.Error, KeyError, ValueError, StrataError) as error:
            self._dock.notice.say(
                f"The training {run.name} could not be stopped from here: {error}.",
                "error",
            )
            return
        self._dock.notice.say(
            f"The training {run.name} was told to stop; its best model is kept."
        )


def _running(runs: Path) -> list[RunSummary]:
    return [run for run in list_runs(runs) if run.running]


def _call(action: Callable[[], object], _checked: bool = False) -> None:
    action()


def _ignore(_error: object) -> None:
    return
