"""The whole suite: the engine's tests, then the docks' in a process of their own, which has no torch.

``python tests/suite.py`` runs both and holds the coverage of both together to its bound. Words for pytest go to both,
paths to the half that they lie in; then no bound is held, since a part of the tests covers a part of the code.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

WIDGETS = "tests/widgets"
BOUND = 90
"""Percent of the lines that the tests must run through."""
TWICE = ["-n", "2"]
"""Tests compute with one thread each and wait for processes and windows besides: two at once take little more than half
as long."""
NOTHING = 5
"""pytest's status when no test was chosen."""


def commands(words: list[str]) -> list[list[str]]:
    """What pytest is told, for each half that has tests among `words`."""
    paths = [word for word in words if _is_test(Path(word.partition("::")[0]))]
    rest = [word for word in words if word not in paths]
    docks = [path for path in paths if "widgets" in Path(path.partition("::")[0]).parts]
    engine = [path for path in paths if path not in docks]
    if paths:
        return [rest + half for half in (engine, docks) if half]
    if words:
        return [rest, [*rest, WIDGETS]]
    first = [*TWICE, "--cov", "--cov-report="]
    return [
        first,
        [
            *TWICE,
            "--cov",
            "--cov-append",
            "--cov-report=term",
            f"--cov-fail-under={BOUND}",
            WIDGETS,
        ],
    ]


def _is_test(path: Path) -> bool:
    # Not the folder that a word of -k happens to be named as.
    return "tests" in path.parts and path.exists()


def main(words: list[str]) -> int:
    """Run them, all of them also when the first fails. Returns the exit status."""
    halves = [[sys.executable, "-m", "pytest", *half] for half in commands(words)]
    ended = [subprocess.run(half, check=False).returncode for half in halves]
    if set(ended) == {NOTHING}:
        return NOTHING
    return next((status for status in ended if status not in (0, NOTHING)), 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
