from __future__ import annotations

import subprocess
from typing import Any

import pytest

import system_libraries


def test_what_cannot_be_loaded_is_named_or_installed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[Any] = []
    monkeypatch.setattr(system_libraries, "NEEDED", {"libz.so.1": "zlib1g", "libnone.so.9": "libnone9"})
    monkeypatch.setattr(subprocess, "run", lambda words, **_: ran.append(words))
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert system_libraries.main() == 1
    assert "apt-get install -y --no-install-recommends libnone9" in capsys.readouterr().out
    assert ran == []
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/apt-get")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert system_libraries.main() == 0
    assert ran[-1][-1] == "libnone9"


def test_nothing_to_do_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    assert system_libraries.main() == 0
