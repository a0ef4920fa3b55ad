from __future__ import annotations

import subprocess
from typing import Any

import pytest

import system_libraries


@pytest.fixture
def commands_run(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Commands that were run on a Linux that lacks one library and Xvfb."""
    commands: list[Any] = []
    monkeypatch.setattr(
        system_libraries,
        "ENGINE_LIBRARIES",
        {"libz.so.1": "zlib1g", "libnone.so.9": "libnone9"},
    )
    monkeypatch.setattr(
        system_libraries, "VIEWER_LIBRARIES", {"libwindow.so.9": "libwindow9"}
    )
    monkeypatch.setattr(
        subprocess, "run", lambda command, **_: commands.append(command)
    )
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    return commands


def test_missing_libraries_are_named_or_installed(
    commands_run: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert system_libraries.main([]) == 1
    assert (
        "apt-get install -y --no-install-recommends libnone9" in capsys.readouterr().out
    )
    assert commands_run == []
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/apt-get")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert system_libraries.main([]) == 0
    assert commands_run[-1][-1] == "libnone9"


def test_the_viewer_needs_more_libraries(
    commands_run: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert system_libraries.main(["--viewer"]) == 1
    assert "missing: xvfb, libnone9, libwindow9." in capsys.readouterr().out
    monkeypatch.setenv("DISPLAY", ":0")
    assert system_libraries.main(["--viewer"]) == 1
    assert "missing: libnone9, libwindow9." in capsys.readouterr().out


def test_nothing_is_needed_on_other_systems(
    commands_run: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    assert system_libraries.main(["--viewer"]) == 0
