"""Settings of every test: one torch thread, no GPU and the usual reaction to Ctrl-C.

One thread makes figures repeat, and two test runs do not fight for the cores.

``pytest`` runs all but ``tests/widgets``, which needs a process of its own (see there): ``pytest tests/widgets``.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples everywhere, so that a green commit stays green; `--hypothesis-profile=search` looks for new ones.
settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("search", deadline=None, print_blob=True)
settings.load_profile("same")

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

WIDGETS = Path(__file__).parent / "widgets"
collect_ignore = (
    [] if any("widgets" in argument for argument in sys.argv) else [str(WIDGETS)]
)


def pytest_configure(config: pytest.Config) -> None:
    """Hide the GPUs from all tests but those that need one (``-m gpu``)."""
    expression = config.getoption("markexpr")
    if "gpu" not in expression or "not gpu" in expression:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture(autouse=True, scope="session")
def _one_thread(request: pytest.FixtureRequest) -> None:
    if all(WIDGETS in item.path.parents for item in request.session.items):
        return
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _default_interrupt() -> Iterator[None]:
    """Let SIGINT interrupt this process and the processes that it starts.

    A background job of a shell inherits that SIGINT is ignored, and so would the
    programs that the tests start and interrupt.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
