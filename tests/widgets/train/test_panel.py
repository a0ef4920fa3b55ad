"""After a training on strokes, the panel has the comparison of that run only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from napari_strata.core.events import TreesCompared
from napari_strata.widgets.train.panel import TrainingPanel


def test_a_comparison_belongs_to_its_run(qtbot: Any) -> None:
    panel = TrainingPanel()
    qtbot.addWidget(panel)
    assert panel.comparison is None
    event = TreesCompared(9, 100, 0.9, 0.95, 0.95, -0.08, -0.02, "trees", "run/trees")
    panel.handle_event(event)
    assert panel.comparison == event
    panel.prepare(Path("next"), ())
    assert panel.comparison is None
