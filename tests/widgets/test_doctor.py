"""The dialog with the real checks, and with processes that fail."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from qtpy.QtCore import QProcess, Qt
from qtpy.QtWidgets import QApplication, QLabel

from napari_strata.doctor import Check
from napari_strata.widgets import doctor
from napari_strata.widgets.doctor import DoctorDialog, show_doctor


@pytest.fixture
def dialog(qtbot: Any) -> DoctorDialog:
    made = DoctorDialog()
    qtbot.addWidget(made)
    made.show()
    return made


def _python(dialog: DoctorDialog, code: str) -> None:
    """Run `code` instead of the checks."""
    dialog._process.start(sys.executable, ["-c", code])


def _texts(dialog: DoctorDialog) -> list[str]:
    """Return the lines of the dialog from top to bottom."""
    labels = [
        label
        for label in dialog.findChildren(QLabel)
        if len(label.text()) > 1 and label is not dialog.summary
    ]
    return [
        label.text()
        for label in sorted(
            labels, key=lambda label: label.mapTo(dialog, label.rect().topLeft()).y()
        )
    ]


def test_the_real_checks_are_shown_and_copied(
    make_napari_viewer: Callable[..., Any], qtbot: Any, tmp_path: Path
) -> None:
    viewer = make_napari_viewer(show=True)
    command = [sys.executable, "-c", "import sys; sys.exit('no worker today')"]
    dialog = show_doctor(
        viewer.window._qt_window, command=command, folder=tmp_path / "runs"
    )
    assert not dialog.isModal()
    qtbot.waitUntil(lambda: dialog.summary.text().endswith("found."), timeout=120_000)
    found = {check.name: check for check in dialog.checks}
    assert len(found) == 13
    assert str(tmp_path / "runs") in found["Folder for runs"].text
    assert found["This window"].status == "ok", found["This window"]
    worker = found["Worker"]
    assert (worker.status, "no worker today" in worker.text) == ("problem", True)
    QApplication.processEvents()
    texts = _texts(dialog)
    first = min(
        texts.index(f"{c.name}: {c.text}") for c in dialog.checks if c.status == "ok"
    )
    assert (
        texts.index(f"Worker: {worker.text}") < texts.index(f"→ {worker.cure}") < first
    )
    qtbot.mouseClick(dialog.copy_button, Qt.MouseButton.LeftButton)
    assert dialog.copy_button.text() == "Copied"
    copied = QApplication.clipboard().text()
    assert all(check.text in copied for check in dialog.checks)
    assert "what to do: " in copied
    qtbot.waitUntil(lambda: dialog.copy_button.text() == "Copy", timeout=120_000)
    with qtbot.waitSignal(dialog.destroyed, timeout=120_000):
        qtbot.mouseClick(dialog.close_button, Qt.MouseButton.LeftButton)


def test_checks_are_shown_when_they_finish(dialog: DoctorDialog, qtbot: Any) -> None:
    line = '{"name": "GPU", "status": "note", "text": "none", "cure": "buy one"}'
    _python(
        dialog,
        f"import time; print('noise'); print('''{line}''', flush=True); time.sleep(30)",
    )
    qtbot.waitUntil(
        lambda: dialog.checks == [Check("GPU", "note", "none", "buy one")],
        timeout=120_000,
    )
    assert dialog.summary.text() == "Checking ..."
    assert _texts(dialog)[:2] == ["GPU: none", "→ buy one"]


def test_closing_ends_the_checks(dialog: DoctorDialog, qtbot: Any) -> None:
    _python(dialog, "import time; print('{}', flush=True); time.sleep(30)")
    qtbot.waitUntil(
        lambda: dialog._process.state() == QProcess.ProcessState.Running,
        timeout=120_000,
    )
    qtbot.keyClick(dialog, Qt.Key.Key_Escape)
    assert not dialog.isVisible()
    assert dialog._process.state() == QProcess.ProcessState.NotRunning
    assert dialog.checks == []


def test_checks_that_crash_are_reported(dialog: DoctorDialog, qtbot: Any) -> None:
    _python(
        dialog,
        "import sys, os; print('torn apart', file=sys.stderr, flush=True); os.kill(os.getpid(), 9)",
    )
    qtbot.waitUntil(
        lambda: dialog.summary.text() == "One problem found.", timeout=120_000
    )
    assert dialog.checks[0].text.endswith("status 9: torn apart")


def test_a_missing_python(
    dialog: DoctorDialog, qtbot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    dialog.start(command=["x"], folder=Path("/tmp"))
    qtbot.waitUntil(
        lambda: dialog.summary.text() == "The checks could not be started.",
        timeout=120_000,
    )
    assert "/nowhere/python cannot be started" in dialog.checks[-1].text


def test_nothing_is_wider_than_a_narrow_dialog(
    dialog: DoctorDialog, qtbot: Any
) -> None:
    for status in ("ok", "note", "problem"):
        dialog._add(
            Check(
                "Worker",
                status,
                "a rather long line of words " * 9,
                "and some more words " * 9,
            )
        )
    dialog.resize(300, 400)
    QApplication.processEvents()
    for label in dialog.findChildren(QLabel):
        right = label.mapTo(dialog, label.rect().topRight()).x()
        assert right <= dialog.width(), label.text()


def test_a_window_without_opengl_is_a_problem(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Canvas:
        def set_current(self) -> None:
            raise RuntimeError("context lost")

    monkeypatch.setattr("vispy.gloo.context.get_current_canvas", Canvas)
    check = doctor._check_renderer()
    assert check is not None
    assert (check.status, "context lost" in check.text) == ("problem", True)
    monkeypatch.setattr("vispy.gloo.context.get_current_canvas", lambda: None)
    assert doctor._check_renderer() is None
