"""Files that are predicted one after another: their choice, and a table of results."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from magicgui.widgets import CheckBox, LineEdit, PushButton
from qtpy.QtCore import Qt, QTimer, Signal
from qtpy.QtGui import QDragEnterEvent, QDragMoveEvent, QDropEvent
from qtpy.QtWidgets import (
    QFileDialog,
    QHBoxLayout,
    QHeaderView,
    QLabel,
    QListWidget,
    QTreeWidget,
    QTreeWidgetItem,
    QVBoxLayout,
    QWidget,
)

from napari_strata.core.errors import StrataError
from napari_strata.core.options import PredictOptions
from napari_strata.widgets.predict.batch_state import (
    BatchFile,
    BatchRequest,
    default_folder,
    describe_plan,
    plan_files,
    short_name,
)
from napari_strata.widgets.work import threads

PLAN_DELAY_MS = 200
"""Milliseconds without a change before the images are looked for."""


class BatchBox(QWidget):
    """Choice of files, folders and patterns, and of the folder of their labels.

    `files` are the images that were found, `problem` the reason why they cannot be
    predicted.
    """

    changed = Signal()
    opened = Signal(object)
    """Emitted with the `BatchFile` whose image and labels are to be opened."""

    def __init__(self) -> None:
        super().__init__()
        self.files: tuple[BatchFile, ...] = ()
        self._shown: tuple[BatchFile | None, ...] = ()
        self.problem = ""
        self._number = 0
        self.inputs = _DropList()
        self.add_files_button = PushButton(text="Add files ...")
        self.add_folder_button = PushButton(
            text="Add folder ...", tooltip="All images in a folder."
        )
        self.remove_button = PushButton(
            text="Remove", tooltip="Remove the selected lines; all if none is selected."
        )
        self.pattern = LineEdit(
            tooltip="A pattern such as /data/scan*.tif; press Enter to add it."
        )
        self.pattern.native.setPlaceholderText("or a pattern: /data/scan*.tif")
        self.out = LineEdit(
            tooltip="Folder of the labels and of the table report.csv, made if needed."
        )
        self.out_button = PushButton(text="Folder ...")
        self.stack = CheckBox(
            text="Folders are stacks",
            tooltip="Take each folder and pattern as one image, a stack of slices.",
        )
        overwrite = str(PredictOptions.model_fields["overwrite"].description)
        self.overwrite = CheckBox(
            text=overwrite.rstrip("."),
            tooltip="If not checked, images whose labels exist already are skipped.",
        )
        strict = str(PredictOptions.model_fields["strict"].description)
        self.strict = CheckBox(
            text="Refuse unusual images",
            tooltip=f"{strict} Otherwise they are predicted, and the report says so.",
        )
        self.axes = LineEdit(
            tooltip="Axes such as ZYX, if the files do not state them; else empty."
        )
        self.text = QLabel()
        self.text.setWordWrap(True)
        self.table = QTreeWidget()
        self.open_button = PushButton(
            text="Open as layers",
            enabled=False,
            tooltip="Open image and labels of the selected line, as a double click.",
        )
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(PLAN_DELAY_MS)
        self._timer.timeout.connect(self._plan)
        self._build()
        self._connect()
        self.look()

    def request(self) -> BatchRequest:
        """Return what is chosen."""
        return BatchRequest(
            self.inputs.texts(),
            _absolute(self.out.value.strip()),
            bool(self.stack.value),
            bool(self.overwrite.value),
            self.axes.value.strip().upper(),
            bool(self.strict.value),
        )

    def add(self, *paths: str) -> None:
        """Add files, folders or patterns."""
        known = self.inputs.texts()
        # The worker may have another home and another working folder.
        full = [_absolute(path) for path in paths]
        new = [path for path in dict.fromkeys(full) if path and path not in known]
        self.inputs.addItems(new)
        if new:
            self.look()

    def look(self) -> None:
        """Look for the images of the request, in a thread, after a delay."""
        self._number += 1
        folder = default_folder(self.inputs.texts())
        self.out.native.setPlaceholderText(str(folder) if folder.name else "")
        self.files, self.problem = (), "Looking for images ..."
        if not self.inputs.count():
            self.problem = "Add files or folders, or drop them on the list."
        self._show()
        self._timer.start()

    def show_files(self, files: Sequence[BatchFile]) -> None:
        """Show the state of the images."""
        self.files = tuple(files)
        self._fill()

    def selected(self) -> BatchFile | None:
        """Return the image of the selected line."""
        row = self.table.indexOfTopLevelItem(self.table.currentItem())
        return self.files[row] if 0 <= row < len(self.files) else None

    def set_enabled(self, enabled: bool) -> None:
        """Enable or disable the choices; the table stays enabled."""
        for widget in (self.inputs, self._choices):
            widget.setEnabled(enabled)

    # ---- Layout

    def _build(self) -> None:
        self.inputs.setFixedHeight(58)
        self.table.setHeaderLabels(["Image", "Labels"])
        self.table.setRootIsDecorated(False)
        self.table.setFixedHeight(130)
        self.axes.native.setMaximumWidth(
            self.axes.native.fontMetrics().horizontalAdvance("MMMMMM")
        )
        header = self.table.header()
        assert header is not None
        header.setSectionResizeMode(0, QHeaderView.ResizeMode.Stretch)
        header.setSectionResizeMode(1, QHeaderView.ResizeMode.ResizeToContents)
        header.setStretchLastSection(False)
        self._choices = QWidget()
        choices = _column(self._choices)
        buttons = (self.add_files_button, self.add_folder_button, self.remove_button)
        choices.addLayout(_row(*(button.native for button in buttons)))
        choices.addWidget(self.pattern.native)
        choices.addLayout(
            _row(QLabel("Labels to"), self.out.native, self.out_button.native, wide=1)
        )
        choices.addLayout(
            _row(self.stack.native, QLabel("Axes"), self.axes.native, wide=0)
        )
        choices.addWidget(self.overwrite.native)
        choices.addWidget(self.strict.native)
        rows = _column(self)
        rows.addWidget(self.inputs)
        rows.addWidget(self._choices)
        rows.addWidget(self.table)
        rows.addWidget(self.text)
        rows.addWidget(self.open_button.native)

    def _connect(self) -> None:
        self.inputs.dropped.connect(lambda paths: self.add(*paths))
        self.add_files_button.clicked.connect(self._choose_files)
        self.add_folder_button.clicked.connect(self._choose_folder)
        self.remove_button.clicked.connect(self._remove)
        self.pattern.native.returnPressed.connect(self._add_pattern)
        self.out_button.clicked.connect(self._choose_out)
        for widget in (self.out, self.stack, self.overwrite, self.axes):
            widget.changed.connect(lambda _: self.look())
        self.table.itemDoubleClicked.connect(lambda *_: self._open())
        self.table.currentItemChanged.connect(lambda *_: self._selected())
        self.open_button.clicked.connect(self._open)

    # ---- Actions

    def _choose_files(self) -> None:
        paths, _ = QFileDialog.getOpenFileNames(self, "Images", self._start_folder())
        self.add(*paths)

    def _choose_folder(self) -> None:
        title = "Folder of images"
        self.add(QFileDialog.getExistingDirectory(self, title, self._start_folder()))

    def _choose_out(self) -> None:
        title = "Folder of the labels"
        folder = self.out.value or self._start_folder()
        if path := QFileDialog.getExistingDirectory(self, title, folder):
            self.out.value = path

    def _start_folder(self) -> str:
        inputs = self.inputs.texts()
        return str(Path(inputs[-1]).expanduser().parent if inputs else Path.home())

    def _add_pattern(self) -> None:
        self.add(self.pattern.value.strip())
        self.pattern.value = ""

    def _remove(self) -> None:
        rows = [self.inputs.row(item) for item in self.inputs.selectedItems()]
        for row in sorted(rows or range(self.inputs.count()), reverse=True):
            self.inputs.takeItem(row)
        self.look()

    def _open(self) -> None:
        file = self.selected()
        if file is not None and file.has_labels:
            self.opened.emit(file)

    # ---- The images

    def _plan(self) -> None:
        number, request = self._number, self.request()
        if not request.inputs:
            return

        def found(files: tuple[BatchFile, ...]) -> None:
            if number == self._number:
                self.files, self.problem = files, ""
                self._show()

        def failed(error: Exception) -> None:
            if number == self._number:
                self.problem = str(error)
                if not isinstance(error, StrataError):
                    self.problem = f"The images cannot be found: {error}"
                self._show()

        threads.run(lambda: plan_files(request), found, failed, owner=self)

    def _show(self) -> None:
        self._fill()
        self.changed.emit()

    def _fill(self) -> None:
        """Show each image in the line with its number; only changed lines are set."""
        while self.table.topLevelItemCount() > len(self.files):
            self.table.takeTopLevelItem(self.table.topLevelItemCount() - 1)
        while self.table.topLevelItemCount() < len(self.files):
            self.table.addTopLevelItem(QTreeWidgetItem())
        shown = self._shown + (None,) * len(self.files)
        for number, file in enumerate(self.files):
            if file is shown[number]:
                continue
            item = self.table.topLevelItem(number)
            assert item is not None
            item.setText(0, short_name(file.source))
            item.setText(1, file.status)
            item.setToolTip(0, file.source)
            item.setToolTip(1, file.text or file.output)
        self._shown = self.files
        self._selected()

    def _selected(self) -> None:
        """Show why the image of the selected line failed, or what was found."""
        file = self.selected()
        self.open_button.enabled = file is not None and file.has_labels
        reason = file.text if file is not None and file.status == "failed" else ""
        self.text.setText(reason or self.problem or describe_plan(self.files))


class _DropList(QListWidget):
    """List of paths, on which files can be dropped."""

    dropped = Signal(object)  # list of paths

    def __init__(self) -> None:
        super().__init__()
        self.setAcceptDrops(True)
        self.setSelectionMode(QListWidget.SelectionMode.ExtendedSelection)
        self.setTextElideMode(Qt.TextElideMode.ElideMiddle)
        self.setToolTip("Files, folders and patterns; drop files here to add them.")

    def texts(self) -> tuple[str, ...]:
        """Return the paths."""
        items = (self.item(row) for row in range(self.count()))
        return tuple(item.text() for item in items if item is not None)

    def dragEnterEvent(self, event: QDragEnterEvent | None) -> None:  # noqa: N802 (Qt)
        if event is not None and (data := event.mimeData()) and data.hasUrls():
            event.acceptProposedAction()

    def dragMoveEvent(self, event: QDragMoveEvent | None) -> None:  # noqa: N802 (Qt)
        if event is not None:
            event.acceptProposedAction()

    def dropEvent(self, event: QDropEvent | None) -> None:  # noqa: N802 (Qt's name)
        if event is not None and (data := event.mimeData()):
            event.acceptProposedAction()
            self.dropped.emit([url.toLocalFile() for url in data.urls()])


def _column(widget: QWidget) -> QVBoxLayout:
    layout = QVBoxLayout(widget)
    layout.setContentsMargins(0, 0, 0, 0)
    layout.setSpacing(4)
    return layout


def _absolute(path: str) -> str:
    """Return the whole path or pattern; empty for an empty one."""
    return os.path.abspath(os.path.expanduser(path)) if path else ""


def _row(*widgets: QWidget, wide: int | None = None) -> QHBoxLayout:
    layout = QHBoxLayout()
    layout.setSpacing(5)
    for number, widget in enumerate(widgets):
        layout.addWidget(widget, int(wide is None or number == wide))
    return layout
