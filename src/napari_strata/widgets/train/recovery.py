"""Unsaved labels and running trainings of an earlier napari."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
from napari.layers import Labels as LabelsLayer
from qtpy.QtCore import QTimer, Signal
from qtpy.QtWidgets import QHBoxLayout, QLabel, QPushButton, QVBoxLayout, QWidget
from superqt import QElidingLabel

from napari_strata.core.errors import StrataError
from napari_strata.core.events import Event
from napari_strata.core.image import LabelImage
from napari_strata.core.runs import RunFolder
from napari_strata.io import read_labels
from napari_strata.plugin import labels_layer
from napari_strata.widgets.layers.autosave import Draft, find_drafts
from napari_strata.widgets.parts.dock import Dock
from napari_strata.widgets.parts.recent import RunSummary, last_events, list_runs
from napari_strata.widgets.session import ViewerSession
from napari_strata.widgets.train.prepare import class_colors
from napari_strata.widgets.work import threads

CLOSE = "✕"
"""Text of the button that closes a line."""
LISTED_ITEMS = 2
"""Largest number of labels, and of trainings, that are offered."""


class Recovery(QWidget):
    """Offers to restore earlier work, one line each; hidden without offers."""

    follow = Signal(object, object, object, bool)
    """RunSummary, colours of its classes, its events, whether it still runs."""

    def __init__(self, session: ViewerSession, dock: Dock) -> None:
        super().__init__()
        self._session, self._dock = session, dock
        self._rows = QVBoxLayout(self)
        self._rows.setContentsMargins(0, 0, 0, 0)
        self._rows.setSpacing(2)
        self.hide()
        self._timer = QTimer(self)  # for the training that is followed
        self._timer.setInterval(2000)
        runs = session.settings.runs
        threads.run(
            lambda: (find_drafts(runs), _running(runs)), self._show, _ignore, owner=self
        )

    def buttons(self) -> list[QPushButton]:
        """Return the buttons of all offers."""
        return self.findChildren(QPushButton)

    def text(self) -> str:
        """Return the texts of all offers."""
        return "\n".join(label.toolTip() for label in self.findChildren(QLabel))

    def stop(self) -> None:
        """Stop reading the run folder."""
        self._timer.stop()

    def _show(self, offers: tuple[list[Draft], list[RunSummary]]) -> None:
        drafts, runs = offers
        for draft in drafts[:LISTED_ITEMS]:
            self._offer(
                f"Restore {draft.describe()}?",
                {"Open": partial(self._open, draft)},
                partial(self._forget, draft),
            )
        for run in runs[:LISTED_ITEMS]:
            text = f"The training {run.name} continues without napari."
            self._offer(
                text,
                {
                    "Show progress": partial(self._follow, run),
                    "Stop": partial(self.end, run),
                },
            )

    def _offer(
        self,
        text: str,
        answers: dict[str, Callable[[], object]],
        close: Callable[[], object] | None = None,
    ) -> None:
        """Add a line with a text, a button for each answer, and one to close it."""
        row = QWidget()
        layout = QHBoxLayout(row)
        layout.setContentsMargins(0, 0, 0, 0)
        label = QElidingLabel(text)
        label.setToolTip(text)
        layout.addWidget(label, 1)
        answers = answers | {CLOSE: close or (lambda: None)}
        for label_text, action in answers.items():
            button = QPushButton(label_text)
            if label_text == CLOSE:
                button.setToolTip(
                    "Close this line, and do not offer the labels again. The file is"
                    " kept."
                    if close is not None
                    else "Close this line. Nothing is stopped or deleted."
                )
                button.setFixedWidth(button.fontMetrics().horizontalAdvance("MMM"))
            # A training whose progress is shown can still be stopped.
            if label_text != "Show progress":
                button.clicked.connect(row.hide)
            button.clicked.connect(partial(_call, action))
            layout.addWidget(button)
        self._rows.addWidget(row)
        self.show()

    def _forget(self, draft: Draft) -> None:
        """Do not offer labels again, and say where they are."""
        draft.forget()
        self._dock.notice.show_message(f'"{draft.layer}" stays in {draft.path}.')

    def _open(self, draft: Draft) -> None:
        threads.run(
            lambda: read_labels(draft.path),
            lambda labels: self._add(labels, draft),
            lambda error: self._dock.notice.show_message(
                f"{draft.path} cannot be opened: {error}", "error"
            ),
            owner=self,
        )

    def _add(self, labels: LabelImage, draft: Draft) -> None:
        data, attributes, _ = labels_layer(labels)
        self._session.viewer.add_layer(
            LabelsLayer(data, **attributes | {"name": draft.layer})
        )
        draft.mark_open()
        self._dock.notice.show_message(
            f'"{draft.layer}" is restored; save it, or continue painting.'
        )

    def _follow(self, run: RunSummary) -> None:
        self._timer.timeout.connect(lambda: self._read_run(run))
        self._timer.start()
        self._read_run(run)

    def _read_run(self, run: RunSummary) -> None:
        path = run.path
        threads.run(
            lambda: (
                RunFolder(path).running_path.is_file(),
                class_colors(path),
                last_events(path),
            ),
            lambda state: self._report(run, *state),
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
        if not self._timer.isActive():  # read before the end, reported after it
            return
        self.follow.emit(run, colors, events, running)
        if not running:
            self._timer.stop()
            self._session.announce(run.path)

    def end(self, run: RunSummary) -> None:
        """Stop a training that runs without napari."""
        try:
            process = psutil.Process(int((run.running or {})["pid"]))
            if "napari_strata" not in " ".join(process.cmdline()):
                raise StrataError("its process has ended")
            process.terminate()
        except (psutil.Error, KeyError, ValueError, StrataError) as error:
            self._dock.notice.show_message(
                f"The training {run.name} could not be stopped from here: {error}.",
                "error",
            )
            return
        self._dock.notice.show_message(
            f"The training {run.name} is being stopped; its best model is kept."
        )


def _running(runs: Path) -> list[RunSummary]:
    return [run for run in list_runs(runs) if run.running]


def _call(action: Callable[[], object], _checked: bool = False) -> None:
    action()


def _ignore(_error: object) -> None:
    return
