"""Buttons to go on with a run: resume it, extend it, or open another one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from magicgui.widgets import PushButton, SpinBox
from qtpy.QtCore import Signal
from qtpy.QtWidgets import QFileDialog, QGridLayout, QLabel, QWidget

from napari_strata.widgets._dock import enable


class RunRow(QWidget):
    """Says what the user wants done with a run; what can be done is told with `allow`."""

    resumed = Signal()
    extended = Signal(int)
    opened = Signal(object)  # Path

    def __init__(self, folder: Callable[[], Path]) -> None:
        super().__init__()
        self._folder = folder
        self.resume_button = PushButton(text="Resume")
        self.open_button = PushButton(text="Open a run ...")
        self.extend_button = PushButton(text="Extend by")
        self.extend_by: SpinBox = SpinBox(value=10, min=1, max=100_000, tooltip="Epochs to add.")
        self.extend_by.native.setMinimumWidth(0)
        grid = QGridLayout(self)
        grid.setContentsMargins(0, 0, 0, 0)
        grid.addWidget(self.resume_button.native, 0, 0)
        grid.addWidget(self.open_button.native, 0, 1, 1, 2)
        grid.addWidget(self.extend_button.native, 1, 0)
        grid.addWidget(self.extend_by.native, 1, 1)
        grid.addWidget(QLabel("epochs"), 1, 2)
        grid.setColumnStretch(1, 1)
        self.resume_button.changed.connect(lambda _: self.resumed.emit())
        self.extend_button.changed.connect(lambda _: self.extended.emit(int(self.extend_by.value)))
        self.open_button.changed.connect(lambda _: self._ask())

    def allow(self, *, running: bool, has_run: bool) -> None:
        """Enable what can be done now, and say why the rest cannot."""
        busy = "A training is running: stop it first." if running else ""
        none = busy or ("" if has_run else "Train, or open a run, first.")
        enable(self.resume_button, none, "Go on where it stopped.")
        enable(self.extend_button, none, "Train the same run for more epochs.")
        enable(self.open_button, busy, "Go on with a run on disk.")

    def _ask(self) -> None:
        path = QFileDialog.getExistingDirectory(self, "Open a run", str(self._folder()))
        if path:
            self.opened.emit(Path(path))
