"""Memory that stays at hand inside a block, on Linux with glibc, and goes back after it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from napari_strata.models import allocator

SCRIPT = """
import ctypes
import resource
import torch
from napari_strata.models.allocator import kept_pages

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for size in (50, 40, 30) * 5:
        torch.full((size * 2**18,), 1.0)  # 30 to 50 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def held():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon")) / 1024

torch.set_num_threads(1)
# Huge pages, where the system gives them to all programs, would hide the faults.
PR_SET_THP_DISABLE = 41
ctypes.CDLL(None).prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)
usual = faults()
with kept_pages() as kept:
    with kept_pages():
        faults()
    inside = faults()
    much = held()
after = held()
print(kept, usual, inside, much - after)
"""


def run(**environment: str) -> tuple[bool, int, int, float]:
    answer = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        check=True,
        env=dict(os.environ) | environment,
    )
    kept, usual, inside, freed = answer.stdout.split()
    return kept == "True", int(usual), int(inside), float(freed)


@pytest.mark.skipif(allocator._glibc() is None, reason="no glibc here")
def test_pages_stay_inside_and_go_after() -> None:
    kept, usual, inside, freed = run()
    assert kept
    assert usual > 1000
    assert inside < usual / 20
    assert freed > 30, "megabytes that went back to the system"


def test_it_can_be_switched_off() -> None:
    kept, usual, inside, _ = run(NAPARI_STRATA_KEEP_PAGES="0")
    assert not kept
    assert inside > 1000
    assert usual > 1000


def test_without_glibc_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator, "_glibc", lambda: None)
    with allocator.kept_pages() as kept:
        assert not kept
