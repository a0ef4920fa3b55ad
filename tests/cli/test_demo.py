from __future__ import annotations

import json
from pathlib import Path

import pytest

from napari_strata.cli import demo
from napari_strata.core.errors import RunError
from napari_strata.core.events import EpochEnd, Message, PredictionEnd
from napari_strata.core.text import format_percent
from napari_strata.io.samples import sandstone


def test_the_demo_leaves_stacks_model_labels_and_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        demo, "sandstone", lambda *, seed: sandstone((3, 96, 96), seed=seed)
    )
    monkeypatch.setattr(
        demo,
        "DEMO_OVERRIDES",
        demo.DEMO_OVERRIDES | {"network.widths": (4, 8), "training.epochs": 2},
    )
    out = tmp_path / "demo"
    events = list(demo.iter_demo(out))
    assert len([e for e in events if isinstance(e, EpochEnd)]) == 2
    assert [e for e in events if isinstance(e, PredictionEnd)][-1].path == str(
        out / "new_prediction.tif"
    )
    scores = json.loads((out / "scores" / "metrics.json").read_text())
    scored, calibrated = [e for e in events if isinstance(e, Message)][-3:-1]
    assert f"mean IoU {scores['mean_iou']:.3f}" in scored.text
    assert scores["trained_on"]["text"] == "None of these planes was trained on."
    error = format_percent(scores["calibration"]["ece"])
    assert f"on the new stack: calibration error (ECE) {error}" in calibrated.text
    assert "on the validation data of the training, the error was" in calibrated.text
    assert list((out / "run" / "previews").glob("*.png"))
    with pytest.raises(RunError, match="exists already"):
        list(demo.iter_demo(out))
