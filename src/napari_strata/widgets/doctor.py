"""Dialog with the checks of ``napari-strata doctor``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from qtpy.QtCore import QProcess, Qt, QTimer
from qtpy.QtWidgets import (
    QApplication,
    QDialog,
    QFrame,
    QGridLayout,
    QHBoxLayout,
    QLabel,
    QPushButton,
    QScrollArea,
    QVBoxLayout,
    QWidget,
)

from napari_strata.core.command import join_command
from napari_strata.doctor import Check, as_text, from_json

STATUS_ORDER = ("problem", "note", "ok")
MARKS = {"ok": "✓", "note": "•", "problem": "✗"}


def show_doctor(
    parent: QWidget | None, *, command: Sequence[str], folder: Path
) -> DoctorDialog:
    """Open the dialog and start the checks; the viewer can still be used.

    Parameters
    ----------
    command
        Command that starts the worker.
    folder
        Folder of the runs.
    """
    dialog = DoctorDialog(parent)
    dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
    dialog.start(command=command, folder=folder)
    dialog.show()
    return dialog


class DoctorDialog(QDialog):
    """Dialog with a line for each check, and a remedy below it.

    The checks run in a separate process.
    """

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setWindowTitle("Check this computer")
        self.checks: list[Check] = []
        self._process = QProcess(self)
        self._partial_line = b""
        self._process.readyReadStandardOutput.connect(self._read)
        self._process.finished.connect(self._finish)
        self._process.errorOccurred.connect(self._fail)
        if (application := QApplication.instance()) is not None:
            application.aboutToQuit.connect(self._stop)
        self.summary = QLabel("Checking ...")
        self.summary.setWordWrap(True)
        page = QWidget()
        self._rows = QVBoxLayout(page)
        self._rows.addStretch(1)
        scroll = QScrollArea()
        scroll.setWidget(page)
        scroll.setWidgetResizable(True)
        scroll.setFrameShape(QFrame.Shape.NoFrame)
        scroll.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.copy_button = QPushButton("Copy")
        self.copy_button.setToolTip("Copy all of this as text, for a bug report")
        letters = self.fontMetrics()
        self.copy_button.setMinimumWidth(
            letters.horizontalAdvance("Copied") + 4 * letters.averageCharWidth()
        )
        self.copy_button.clicked.connect(self._copy)
        self._copied_timer = QTimer(self)
        self._copied_timer.setSingleShot(True)
        self._copied_timer.setInterval(2000)
        self._copied_timer.timeout.connect(lambda: self.copy_button.setText("Copy"))
        self.close_button = QPushButton("Close")
        self.close_button.clicked.connect(self.reject)
        buttons = QHBoxLayout()
        buttons.addStretch(1)
        buttons.addWidget(self.copy_button)
        buttons.addWidget(self.close_button)
        column = QVBoxLayout(self)
        column.addWidget(self.summary)
        column.addWidget(scroll, 1)
        column.addLayout(buttons)
        self.resize(125 * letters.averageCharWidth(), 42 * letters.lineSpacing())

    def start(self, *, command: Sequence[str], folder: Path) -> None:
        """Start the checks; each adds a line when it has finished."""
        arguments = [
            "--json",
            "--folder",
            str(folder),
            "--worker",
            join_command(command),
        ]
        renderer = _check_renderer()
        if renderer is not None:
            self._add(renderer)
        self._process.start(sys.executable, ["-m", "napari_strata.doctor", *arguments])

    def text(self) -> str:
        """Return the text that *Copy* puts on the clipboard."""
        return as_text(self.checks)

    def done(self, result: int) -> None:
        """End the checks when the dialog is closed."""
        self._stop()
        super().done(result)

    def _stop(self) -> None:
        if self._process.state() != QProcess.ProcessState.NotRunning:
            self._process.finished.disconnect(self._finish)
            self._process.errorOccurred.disconnect(self._fail)
            self._process.kill()
            self._process.waitForFinished(1000)

    def _read(self) -> None:
        *lines, self._partial_line = (
            self._partial_line + bytes(self._process.readAllStandardOutput().data())
        ).split(b"\n")
        for line in lines:
            try:
                self._add(from_json(line.decode("utf-8", "replace")))
            except ValueError:  # a library printed something
                continue

    def _finish(self, status: int, how: QProcess.ExitStatus) -> None:
        self._read()
        if how != QProcess.ExitStatus.NormalExit or status not in (0, 1):
            error_text = (
                bytes(self._process.readAllStandardError().data())
                .decode("utf-8", "replace")
                .strip()
            )
            last = f": {error_text.splitlines()[-1][:300]}" if error_text else ""
            text = f"they ended early, with status {status}{last}"
            self._add(
                Check(
                    "The checks", "problem", text, "Copy all of this into a bug report."
                )
            )
        problems = sum(check.status == "problem" for check in self.checks)
        summary = {0: "No problems found.", 1: "One problem found."}.get(
            problems, f"{problems} problems found."
        )
        self.summary.setText(summary)

    def _fail(self, error: QProcess.ProcessError) -> None:
        if error == QProcess.ProcessError.FailedToStart:
            text = f"{sys.executable} cannot be started ({self._process.errorString()})"
            self._add(
                Check(
                    "The checks",
                    "problem",
                    text,
                    "Start napari from the Python that it is installed in.",
                )
            )
            self.summary.setText("The checks could not be started.")

    def _add(self, check: Check) -> None:
        self.checks.append(check)
        # Problems come first.
        row = (
            sum(
                STATUS_ORDER.index(earlier.status) <= STATUS_ORDER.index(check.status)
                for earlier in self.checks
            )
            - 1
        )
        self._rows.insertWidget(row, _row(check))

    def _copy(self) -> None:
        clipboard = QApplication.clipboard()
        if clipboard is not None:
            clipboard.setText(self.text())
        self.copy_button.setText("Copied")
        self._copied_timer.start()


def _row(check: Check) -> QWidget:
    row = QWidget()
    cells = QGridLayout(row)
    cells.setContentsMargins(0, 0, 0, 0)
    cells.setColumnStretch(1, 1)
    mark = QLabel(MARKS[check.status])
    mark.setToolTip(check.status)
    mark.setFixedWidth(
        max(mark.fontMetrics().horizontalAdvance(symbol) for symbol in MARKS.values())
        + 4
    )
    mark.setAlignment(Qt.AlignmentFlag.AlignHCenter)
    cells.addWidget(mark, 0, 0, Qt.AlignmentFlag.AlignTop)
    cells.addWidget(_paragraph(f"{check.name}: {check.text}"), 0, 1)
    if check.cure:
        cure = _paragraph(f"→ {check.cure}")
        font = cure.font()
        font.setItalic(True)
        cure.setFont(font)
        cells.addWidget(cure, 1, 1)
    return row


def _paragraph(text: str) -> QLabel:
    label = QLabel(text)
    label.setTextFormat(Qt.TextFormat.PlainText)
    label.setWordWrap(True)
    label.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
    return label


def _check_renderer() -> Check | None:
    """Check the OpenGL renderer of the viewer's window; None without a window."""
    from vispy.gloo import gl
    from vispy.gloo.context import get_current_canvas

    canvas = get_current_canvas()
    if canvas is None:
        return None
    try:
        canvas.set_current()
        names = [
            str(gl.glGetParameter(name))
            for name in (gl.GL_VENDOR, gl.GL_RENDERER, gl.GL_VERSION)
        ]
    except Exception as error:  # errors of a driver or of a closed canvas
        return Check(
            "This window",
            "problem",
            f"OpenGL does not answer ({error})",
            "Start napari again.",
        )
    return Check("This window", "ok", f"drawn by {' | '.join(names)}")
