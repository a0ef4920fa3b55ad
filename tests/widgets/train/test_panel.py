"""After a training on strokes, the better one of network and trees is used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from napari_strata.core.events import TreesCompared
from napari_strata.widgets.train.panel import TrainingPanel


@pytest.mark.parametrize(
    ("better", "expected"),
    [("network", "run"), ("trees", "run/trees"), ("", "run")],
)
def test_the_better_one_predicts(qtbot: Any, better: str, expected: str) -> None:
    panel = TrainingPanel()
    qtbot.addWidget(panel)
    assert panel.better_run(Path("run")) == Path("run")
    panel.handle_event(
        TreesCompared(9, 100, 0.9, 0.95, 0.95, -0.08, -0.02, better, "run/trees")
    )
    assert panel.better_run(Path("run")) == Path(expected)
    panel.prepare(Path("next"), ())
    assert panel.better_run(Path("next")) == Path("next")
