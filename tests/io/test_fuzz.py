"""Damaged files are read right or refused; see benchmarks/fuzz.py."""

from __future__ import annotations

import importlib.util
import time
from itertools import islice
from pathlib import Path
from types import ModuleType

import pytest

FUZZ = Path(__file__).parents[2] / "benchmarks" / "fuzz.py"
LONGEST_S = 10


@pytest.fixture(scope="module")
def fuzz() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz", FUZZ)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# The libraries warn of damage too.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("seed", "count"), [(0, 400), pytest.param(1, 6000, marks=pytest.mark.slow)]
)
def test_damaged_files_raise_no_other_errors(
    fuzz: ModuleType, tmp_path: Path, seed: int, count: int
) -> None:
    outcomes = set()
    for path in islice(fuzz.inputs(tmp_path, seed), count):
        start = time.process_time()
        outcomes.add(fuzz.check(path))
        assert time.process_time() - start < LONGEST_S, path
    assert outcomes == {"read", "refused"}
