"""What every test gets: one torch thread, so that figures repeat and two test runs do not fight for the cores.

``pytest`` runs all but ``tests/widgets``, which needs a process of its own (see there): ``pytest tests/widgets``.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

WIDGETS = Path(__file__).parent / "widgets"
collect_ignore = [] if any("widgets" in argument for argument in sys.argv) else [str(WIDGETS)]


@pytest.fixture(autouse=True, scope="session")
def _one_thread(request: pytest.FixtureRequest) -> None:
    if all(WIDGETS in item.path.parents for item in request.session.items):
        return
    import torch

    torch.set_num_threads(1)
