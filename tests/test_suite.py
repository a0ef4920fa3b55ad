from __future__ import annotations

import subprocess
from types import SimpleNamespace

import pytest

import suite


def test_both_halves_are_measured_together() -> None:
    engine, docks = suite.commands([])
    assert "tests/widgets" not in engine
    assert docks[-1] == "tests/widgets"
    assert "--cov-append" in docks
    assert "--cov-append" not in engine
    assert any(word.startswith("--cov-fail-under=") for word in docks)


def test_words_go_to_both_and_paths_to_their_half() -> None:
    assert suite.commands(["-k", "labels"]) == [
        ["-k", "labels"],
        ["-k", "labels", "tests/widgets"],
    ]
    assert suite.commands(["tests/cli/test_commands.py::test_help", "-x"]) == [
        ["-x", "tests/cli/test_commands.py::test_help"]
    ]
    assert suite.commands(["tests/widgets/conftest.py"]) == [
        ["tests/widgets/conftest.py"]
    ]
    assert suite.commands(["tests/io", "tests/widgets"]) == [
        ["tests/io"],
        ["tests/widgets"],
    ]


@pytest.mark.parametrize(
    ("ended", "status"),
    [
        ((0, 0), 0),
        ((1, 0), 1),
        ((0, 2), 2),
        ((5, 0), 0),
        ((0, 5), 0),
        ((5, 5), 5),
        ((5, 1), 1),
    ],
)
def test_one_failure_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, ended: tuple[int, int], status: int
) -> None:
    statuses = iter(ended)
    monkeypatch.setattr(
        subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=next(statuses))
    )
    assert suite.main([]) == status
    assert next(statuses, None) is None, "the second half was not run"
