from __future__ import annotations

import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

import suite


def test_coverage_is_measured_over_both_runs() -> None:
    engine, docks = suite.pytest_arguments([])
    assert "tests/widgets" not in engine
    assert docks[-1] == "tests/widgets"
    assert "--cov-append" in docks
    assert "--cov-append" not in engine
    assert any(argument.startswith("--cov-fail-under=") for argument in docks)


@pytest.mark.parametrize(
    ("arguments", "runs"),
    [
        (["-k", "labels"], [["-k", "labels"], ["-k", "labels", "tests/widgets"]]),
        (
            ["tests/cli/test_commands.py::test_help", "-x"],
            [["-x", "tests/cli/test_commands.py::test_help"]],
        ),
        (["tests/widgets/conftest.py"], [["tests/widgets/conftest.py"]]),
        (["tests/io", "tests/widgets"], [["tests/io"], ["tests/widgets"]]),
    ],
)
def test_options_go_to_both_runs_and_paths_to_one(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], runs: list[list[str]]
) -> None:
    monkeypatch.chdir(Path(__file__).parents[1])
    assert suite.pytest_arguments(arguments) == runs


@pytest.mark.parametrize(
    ("statuses", "expected"),
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
def test_a_failure_in_either_run_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, statuses: tuple[int, int], expected: int
) -> None:
    remaining = iter(statuses)
    monkeypatch.setattr(
        subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=next(remaining))
    )
    assert suite.main([]) == expected
    assert next(remaining, None) is None, "the second run did not happen"


@pytest.mark.parametrize(
    ("expression", "visible"),
    [("not slow and not gpu", ""), ("slow", ""), ("gpu", "0")],
)
def test_only_tests_of_a_gpu_see_one(
    monkeypatch: pytest.MonkeyPatch,
    pytestconfig: pytest.Config,
    expression: str,
    visible: str,
) -> None:
    path = Path(__file__).with_name("conftest.py")
    settings = pytestconfig.pluginmanager.get_plugin(str(path))
    assert settings is not None
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    settings.pytest_configure(SimpleNamespace(getoption=lambda _: expression))
    assert os.environ["CUDA_VISIBLE_DEVICES"] == visible
