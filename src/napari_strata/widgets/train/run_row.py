"""Buttons for a run: resume, extend, open, and report."""

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
    """Row of buttons for the run in the dock.

    Signals announce what the user wants. The report is written by the row itself.

    Parameters
    ----------
    folder
        Function that returns the folder in which runs are opened.
    run
        Function that returns the run to report on, or None.
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
        self.extend_button = PushButton(text="Train longer by")
        self.extend_by: SpinBox = SpinBox(
            value=10, min=1, max=100_000, tooltip="Epochs to add."
        )
        self.extend_by.native.setMinimumWidth(0)
        self.report_button = PushButton(text="Report")
        self.status = QLabel()
        self.status.setWordWrap(True)
        self.status.hide()
        grid = QGridLayout(self)
        grid.setContentsMargins(0, 0, 0, 0)
        grid.addWidget(self.resume_button.native, 0, 0)
        grid.addWidget(self.open_button.native, 0, 1)
        grid.addWidget(self.report_button.native, 0, 2)
        grid.addWidget(self.extend_button.native, 1, 0)
        grid.addWidget(self.extend_by.native, 1, 1)
        grid.addWidget(QLabel("epochs"), 1, 2)
        grid.addWidget(self.status, 2, 0, 1, 3)
        grid.setColumnStretch(1, 1)
        self.resume_button.changed.connect(lambda _: self.resumed.emit())
        self.extend_button.changed.connect(
            lambda _: self.extended.emit(int(self.extend_by.value))
        )
        self.open_button.changed.connect(lambda _: self._choose_run())
        self.report_button.changed.connect(lambda _: self.report())
        self.show_view(resolve(TrainState()))

    def show_view(self, view: TrainView) -> None:
        """Enable the buttons that make sense for the run in the dock."""
        draw(self.resume_button, view.resume)
        draw(self.extend_button, view.extend)
        draw(self.open_button, view.open_run)
        self._allow_report()

    def report(self) -> None:
        """Write the report of the run in a thread, and open it in the browser."""
        run = self._finished_run()
        if run is None or self._writing:
            return
        self._writing = True
        self._show_status("Writing the report ...")
        threads.run(lambda: page_of(run), self._open, self._failed, owner=self)

    def _finished_run(self) -> Path | None:
        """Return the run to report on, or None if it is not on disk yet."""
        run = self._run()
        return run if run is not None and RunFolder(run).exists else None

    def _allow_report(self) -> None:
        purpose = "Curves, scores, confusion and pictures on one page, in your browser."
        why_not = "Train, or open a run, first." if self._finished_run() is None else ""
        draw(self.report_button, Control(purpose, why_not))

    def _open(self, page: Path) -> None:
        self._writing = False
        opened = QDesktopServices.openUrl(QUrl.fromLocalFile(str(page)))
        self._show_status(
            ""
            if opened
            else f"The report is written, but no browser was found to open it: {page}"
        )

    def _failed(self, error: Exception) -> None:
        self._writing = False
        self._show_status(str(error))

    def _show_status(self, text: str) -> None:
        self.status.setText(text)
        self.status.setVisible(bool(text))

    def _choose_run(self) -> None:
        path = QFileDialog.getExistingDirectory(self, "Open a run", str(self._folder()))
        if path:
            self.opened.emit(Path(path))
