"""Every example runs as it stands."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "examples"
PORESPY = FOLDER / "measure_with_porespy.py"
EXAMPLES = sorted(set(FOLDER.glob("*.py")) - {PORESPY})

STANDINS = {
    "porespy.py": """
import types
import numpy as np
def local_thickness(mask):
    return np.where(mask, 3.0, 0.0)
def snow2(mask, voxel_size):
    net = {"pore.coords": np.zeros((4, 3)), "throat.conns": np.zeros((5, 2))}
    return types.SimpleNamespace(network=net)
filters = types.SimpleNamespace(local_thickness=local_thickness)
networks = types.SimpleNamespace(snow2=snow2)
""",
    "taufactor.py": """
class Solver:
    def __init__(self, mask):
        assert set(mask.ravel()) == {0, 1}
    def solve(self):
        self.tau = 1.5
""",
}
"""Modules in place of packages that the tests do not have."""


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda p: p.stem)
def test_example(example: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, example, tmp_path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "IoU" in done.stdout


def test_labels_go_to_porespy_or_words_say_that_it_is_missing(tmp_path: Path) -> None:
    words = [sys.executable, str(PORESPY)]
    if find_spec("porespy") is None:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert "pip install porespy taufactor" in done.stderr
        assert "Traceback" not in done.stderr
    for name, text in STANDINS.items():
        (tmp_path / name).write_text(text)
    path = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        words,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr
    assert "pore fills" in done.stdout
    assert "local thickness: median 12.6 micrometer" in done.stdout
    assert "4 pores, 5 throats" in done.stdout
    assert "tortuosity factor along Z: 1.5" in done.stdout
