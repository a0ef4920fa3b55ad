"""Run the tests of the engine, then those of the docks in a process of their own.

Software OpenGL and torch's compiler cannot share a process. ``python tests/suite.py``
runs everything and requires that the tests cover enough of the code. Options are passed
to both runs of pytest, and paths to the run that they belong to. With either of them,
coverage is not measured, because a part of the tests covers a part of the code.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

DOCK_TESTS = "tests/widgets"
MIN_COVERAGE = 90
"""Percent of the lines that the tests must run."""
# Tests compute with one thread and often wait for processes and windows.
TWO_AT_ONCE = ["-n", "2"]
NO_TESTS_COLLECTED = 5
"""pytest's exit status when no test was selected."""


def pytest_arguments(arguments: list[str]) -> list[list[str]]:
    """Return the arguments of each run of pytest.

    Parameters
    ----------
    arguments
        Options and paths from the command line.
    """
    if not arguments:
        coverage = [*TWO_AT_ONCE, "--cov"]
        minimum = f"--cov-fail-under={MIN_COVERAGE}"
        return [
            [*coverage, "--cov-report="],
            [*coverage, "--cov-append", "--cov-report=term", minimum, DOCK_TESTS],
        ]
    paths = [argument for argument in arguments if _is_test_path(argument)]
    options = [argument for argument in arguments if argument not in paths]
    if not paths:
        return [options, [*options, DOCK_TESTS]]
    dock_paths = [path for path in paths if "widgets" in _file(path).parts]
    engine_paths = [path for path in paths if path not in dock_paths]
    groups = [group for group in (engine_paths, dock_paths) if group]
    return [options + group for group in groups]


def _file(argument: str) -> Path:
    return Path(argument.partition("::")[0])


def _is_test_path(argument: str) -> bool:
    # An expression for -k may be the name of a folder outside tests.
    path = _file(argument)
    return "tests" in path.parts and path.exists()


def main(arguments: list[str]) -> int:
    """Run both, also when the first fails, and return the exit status."""
    statuses = []
    for words in pytest_arguments(arguments):
        command = [sys.executable, "-m", "pytest", *words]
        statuses.append(subprocess.run(command, check=False).returncode)
    if set(statuses) == {NO_TESTS_COLLECTED}:
        return NO_TESTS_COLLECTED
    failures = [status for status in statuses if status not in (0, NO_TESTS_COLLECTED)]
    return failures[0] if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
