"""The report button of a run writes the report in a thread and opens it in the browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from qtpy.QtCore import QUrl
from qtpy.QtGui import QDesktopServices

from napari_strata.core.recipes import dump_recipe, load_recipe
from napari_strata.widgets.train.run_row import RunRow
from napari_strata.widgets.train.state import TrainState, resolve


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replace the browser; return the opened addresses."""
    found: list[str] = []
    monkeypatch.setattr(
        QDesktopServices,
        "openUrl",
        lambda url: (found.append(QUrl(url).toLocalFile()), True)[1],
    )
    return found


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "recipe.yaml").write_text(
        dump_recipe(load_recipe("default")), encoding="utf-8"
    )
    return folder


def make(qtbot: Any, run: Path | None) -> RunRow:
    row = RunRow(lambda: Path("."), lambda: run)
    qtbot.addWidget(row)
    return row


def test_the_report_is_written_and_opened(
    qtbot: Any, run: Path, opened: list[str]
) -> None:
    row = make(qtbot, run)
    row.show_view(resolve(TrainState(can_continue=True)))
    assert row.report_button.enabled
    row.report_button.native.click()
    row.report_button.native.click()  # at once: no second one
    qtbot.waitUntil(lambda: bool(opened))
    assert opened == [str(run / "report.html")]
    assert "Report of a training" in (run / "report.html").read_text(encoding="utf-8")
    assert not row.status.text()


def test_without_a_run_there_is_no_report(
    qtbot: Any, tmp_path: Path, opened: list[str]
) -> None:
    for none in (None, tmp_path):
        row = make(qtbot, none)
        assert not row.report_button.enabled
        assert row.report_button.tooltip == "Train, or open a run, first."
        row.report()
        assert not row.status.text()
    assert opened == []


def test_errors_are_shown(
    qtbot: Any, run: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    row = make(qtbot, run)
    (run / "report.html").write_text("mine", encoding="utf-8")
    row.report()
    qtbot.waitUntil(lambda: "found another file here" in row.status.text())
    assert opened == []
    (run / "report.html").unlink()
    monkeypatch.setattr(QDesktopServices, "openUrl", lambda url: False)
    row.report()
    qtbot.waitUntil(lambda: "no browser was found" in row.status.text())
    assert str(run / "report.html") in row.status.text()
