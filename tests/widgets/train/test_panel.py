"""The panel's words on a training, and the comparison with trees of its run only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from napari_strata.core.events import STROKES_ARE_EASY, EpochEnd, TreesCompared
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


@pytest.mark.parametrize(
    ("values", "score"),
    [
        (
            {"stroke_pixels": 2200, "pixels": 2200},
            f"agrees with 93 % of 2,200 held-out stroke pixels ({STROKES_ARE_EASY})",
        ),
        (
            {"mean_iou_in_truth": 0.8, "classes_in_truth": 2, "pixels": 36864},
            "best mean IoU 0.800 over the 2 of 3 classes in the truth (0.533 with those"
            " only predicted) in epoch 4, on 36,864 validation pixels",
        ),
        ({}, "best mean IoU 0.533 in epoch 4"),  # of an earlier version
    ],
)
def test_a_score_says_on_what_it_was_measured(
    qtbot: Any, values: dict[str, Any], score: str
) -> None:
    panel = TrainingPanel()
    qtbot.addWidget(panel)
    assert panel.score() == ""
    iou = (0.9, 0.7, 0.0)
    end = EpochEnd(
        *(4, 9, 0.4, 0.5, 1.6 / 3, 0.93, iou, 1e-3, 12.0, True, True, "raw"), **values
    )
    panel.handle_event(end)
    assert panel.score() == score
