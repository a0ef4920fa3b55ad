"""Previews leave time to the training. test_end_to_end checks their planes."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from qtpy.QtCore import QObject, Signal

from napari_strata.core.runs import RunFolder
from napari_strata.widgets.layers.convert import image_of
from napari_strata.widgets.train import live_preview
from napari_strata.widgets.train.live_preview import SLOW_FRACTION, LivePreview
from napari_strata.worker.protocol import PredictJob, TrainJob


class Handle(QObject):
    """A job that the test ends."""

    replied, ended = Signal(object), Signal(object)
    outcome: Any = None

    def stop(self) -> None:
        """Do nothing."""


@pytest.mark.parametrize(("seconds", "again"), [(0.5, True), (10.0, False)])
def test_slow_previews_are_less_frequent(
    make_napari_viewer: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    seconds: float,
    again: bool,
) -> None:
    viewer, now, requested = make_napari_viewer(), [100.0], []
    layer = viewer.add_image(np.zeros((6, 8, 8)), name="rock")
    handles: list[Handle] = []

    def submit(request: PredictJob) -> Handle:
        requested.append(request.region)
        handles.append(Handle())
        return handles[-1]

    client = SimpleNamespace(new_id=lambda: "1")
    session = SimpleNamespace(
        viewer=viewer,
        client=client,
        scratch=lambda: tmp_path,
        submit=submit,
        is_closed=False,
    )
    monkeypatch.setattr(live_preview, "monotonic", lambda: now[0])
    owner = QObject()
    live = LivePreview(session, owner)  # type: ignore[arg-type]
    request = TrainJob(job="t", images="rock.tif", labels="labels.tif", out="run")
    data = SimpleNamespace(
        layer=layer, image=image_of(layer), name="rock", labels_layer=None
    )
    live.start(Handle(), request, data, on=True)  # type: ignore[arg-type]
    viewer.dims.set_current_step(0, 4)
    live._timer.stop()
    live.epoch_ended(None)  # type: ignore[arg-type]
    assert requested == [{"Z": 4}]
    live.epoch_ended(None)  # type: ignore[arg-type]
    assert len(requested) == 1  # one at a time
    now[0] += seconds
    handles[0].outcome = "finished"
    handles[0].ended.emit("finished")
    now[0] += 0.1
    live.epoch_ended(None)  # type: ignore[arg-type]
    assert (len(requested) == 2) == again
    now[0] = 100.0 + seconds / SLOW_FRACTION
    live.epoch_ended(None)  # type: ignore[arg-type]
    assert len(requested) == 2
    live.stop()
    live.setParent(None)


def test_newer_weights_within_an_epoch_are_shown(
    make_napari_viewer: Any, tmp_path: Path, qtbot: Any
) -> None:
    viewer, requested = make_napari_viewer(), []
    layer = viewer.add_image(np.zeros((6, 8, 8)), name="rock")

    def submit(request: PredictJob) -> Handle:
        requested.append(request.model)
        return Handle()

    session = SimpleNamespace(
        viewer=viewer,
        client=SimpleNamespace(new_id=lambda: "1"),
        scratch=lambda: tmp_path,
        submit=submit,
        is_closed=False,
    )
    owner = QObject()
    live = LivePreview(session, owner)  # type: ignore[arg-type]
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    request = TrainJob(
        job="t", images="rock.tif", labels="labels.tif", out=str(run.path)
    )
    data = SimpleNamespace(
        layer=layer, image=image_of(layer), name="rock", labels_layer=None
    )
    live.start(Handle(), request, data, on=True)  # type: ignore[arg-type]
    run.model_path.write_bytes(b"of the last epoch")
    os.utime(run.model_path, (1, 1))
    run.snapshot_path.write_bytes(b"newer")
    qtbot.waitUntil(lambda: bool(requested), timeout=120_000)
    assert requested == [str(run.snapshot_path)]
    live.stop()
    live.setParent(None)
