"""Docks are opened, used and closed in a separate process, with both Qt bindings."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from widgets.models import make_run

PROGRAM = Path(__file__).with_name("lifecycle.py")


def _leave(runs: Path, end: str, *docks: str) -> None:
    """Run the program and assert that it ends without a crash."""
    command = [sys.executable, str(PROGRAM), str(runs), end, *docks]
    environment = os.environ | {"NAPARI_CONFIG": ""}
    ended = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=900
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr, ended.stderr


@pytest.mark.parametrize("dock", ["Train", "Predict", "Evaluate"])
def test_a_dock_is_used_and_freed(dock: str, tmp_path: Path) -> None:
    if dock == "Predict":
        make_run(tmp_path)
    _leave(tmp_path, "viewer", dock)


@pytest.mark.parametrize("end", ["viewer", "window"])
def test_all_docks_are_used_and_closed(end: str, tmp_path: Path) -> None:
    _leave(tmp_path, end, "Train", "Predict", "Evaluate")


@pytest.mark.slow
@pytest.mark.parametrize("number", range(10))
def test_all_docks_close_ten_times_in_a_row(number: int, tmp_path: Path) -> None:
    _leave(
        tmp_path, "window" if number % 2 else "viewer", "Train", "Predict", "Evaluate"
    )
