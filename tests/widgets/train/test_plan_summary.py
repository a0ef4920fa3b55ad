"""The summary of a training is planned when nobody waits for a live mask."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from qtpy.QtCore import QObject, Signal

from napari_strata.widgets.train.plan_summary import DELAY_MS, PlanSummary


class Handle(QObject):
    """A job that never ends."""

    replied = Signal(object)
    ended = Signal(object)
    outcome = None

    def stop(self) -> None:
        """Do nothing."""


def test_the_plan_waits_for_the_live_mask(qtbot: Any, tmp_path: Path) -> None:
    jobs: list[str] = []

    def submit(job: str) -> Handle:
        jobs.append(job)
        return Handle()

    client = SimpleNamespace(new_id=lambda: "1")
    session: Any = SimpleNamespace(client=client, submit=submit)
    request: Any = SimpleNamespace(plan_job=lambda name, _run: f"plan {name}")
    busy = [True]
    summary = PlanSummary(session, lambda: busy[0])
    qtbot.addWidget(summary)
    summary.request_plan(request, why="", folder=lambda: tmp_path)
    qtbot.wait(DELAY_MS + 600)
    assert not jobs, "a mask is being computed"
    busy[0] = False
    qtbot.waitUntil(lambda: jobs == ["plan 1"], timeout=120_000)
