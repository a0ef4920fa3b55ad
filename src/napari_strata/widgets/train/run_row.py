"""Buttons for a run: resume it, extend it, open another one, or read its report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from magicgui.widgets import PushButton, SpinBox
from qtpy.QtCore import QUrl, Signal
from qtpy.QtGui import QDesktopServices
from qtpy.QtWidgets import QFileDialog, QGridLayout, QLabel, QWidget

from napari_strata.core.runs import RunFolder
from napari_strata.widgets.parts.control import Control
from napari_strata.widgets.parts.dock import draw
from napari_strata.widgets.parts.report_page import page_of
from napari_strata.widgets.train.state import TrainState, TrainView, resolve
from napari_strata.widgets.work import threads


class RunRow(QWidget):
    """Says what the user wants done with a run; what can be done is told with `allow`.

    The report it writes by itself, of the run that `run` names: it asks for nothing
    that a dock knows.
    """

    resumed = Signal()
    extended = Signal(int)
    opened = Signal(object)  # Path

    def __init__(
        self, folder: Callable[[], Path], run: Callable[[], Path | None] = lambda: None
    ) -> None:
        super().__init__()
        self._folder, self._run = folder, run
        self._writing = False
        self.resume_button = PushButton(text="Resume")
        self.open_button = PushButton(text="Open a run ...")
        self.extend_button = PushButton(text="Extend by")
        self.extend_by: SpinBox = SpinBox(
            value=10, min=1, max=100_000, tooltip="Epochs to add."
        )
        self.extend_by.native.setMinimumWidth(0)
        self.report_button = PushButton(text="Report")
        self.said = QLabel()
        self.said.setWordWrap(True)
        self.said.hide()
        grid = QGridLayout(self)
        grid.setContentsMargins(0, 0, 0, 0)
        grid.addWidget(self.resume_button.native, 0, 0)
        grid.addWidget(self.open_button.native, 0, 1)
        grid.addWidget(self.report_button.native, 0, 2)
        grid.addWidget(self.extend_button.native, 1, 0)
        grid.addWidget(self.extend_by.native, 1, 1)
        grid.addWidget(QLabel("epochs"), 1, 2)
        grid.addWidget(self.said, 2, 0, 1, 3)
        grid.setColumnStretch(1, 1)
        self.resume_button.changed.connect(lambda _: self.resumed.emit())
        self.extend_button.changed.connect(
            lambda _: self.extended.emit(int(self.extend_by.value))
        )
        self.open_button.changed.connect(lambda _: self._ask())
        self.report_button.changed.connect(lambda _: self.report())
        self.show_view(resolve(TrainState()))

    def show_view(self, view: TrainView) -> None:
        """Show what can be done with the run in the dock."""
        draw(self.resume_button, view.resume)
        draw(self.extend_button, view.extend)
        draw(self.open_button, view.open_run)
        self._allow_report()

    def report(self) -> None:
        """Write the page of the run in a thread, and open it in the browser."""
        run = self._report_of()
        if run is None or self._writing:
            return
        self._writing = True
        self._say("Writing the report ...")
        threads.run(lambda: page_of(run), self._open, self._failed, owner=self)

    def _report_of(self) -> Path | None:
        """The run in question, once it is on disk."""
        run = self._run()
        return run if run is not None and RunFolder(run).exists else None

    def _allow_report(self) -> None:
        purpose = "Curves, scores, confusion and pictures on one page, in your browser."
        why_not = "Train, or open a run, first." if self._report_of() is None else ""
        draw(self.report_button, Control(purpose, why_not))

    def _open(self, page: Path) -> None:
        self._writing = False
        opened = QDesktopServices.openUrl(QUrl.fromLocalFile(str(page)))
        self._say(
            ""
            if opened
            else f"The report is written, and no browser was found to open it: {page}"
        )

    def _failed(self, error: Exception) -> None:
        self._writing = False
        self._say(str(error))

    def _say(self, text: str) -> None:
        self.said.setText(text)
        self.said.setVisible(bool(text))

    def _ask(self) -> None:
        path = QFileDialog.getExistingDirectory(self, "Open a run", str(self._folder()))
        if path:
            self.opened.emit(Path(path))
