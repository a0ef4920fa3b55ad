"""The docks' worker gets SIGKILL in a phase of a job; the same job then finishes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from napari_strata.core.image import Image
from napari_strata.core.runs import RunFolder
from napari_strata.io import read_labels, write_image
from napari_strata.widgets.work.client import Outcome, WorkerClient
from napari_strata.worker.protocol import Job, PredictJob, TrainJob

DYING = Path(__file__).parents[2] / "worker" / "dying.py"
TINY = {
    "network": {"kind": "unet", "widths": [4, 8]},
    "patches": {"size": 32, "per_epoch": 16},
    "training": {"epochs": 2, "batch_size": 4, "averaging": None, "precision": "fp32"},
}

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")


@pytest.fixture
def dying(tmp_path: Path, qtbot: Any) -> Iterator[Callable[[str], WorkerClient]]:
    """Make a client whose first worker is killed in a phase."""
    clients: list[WorkerClient] = []

    def make(phase: str) -> WorkerClient:
        marker = str(tmp_path / f"killed in {phase}")
        clients.append(WorkerClient([sys.executable, str(DYING), phase, marker]))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


def run(client: WorkerClient, job: Job, qtbot: Any) -> Outcome:
    handle = client.submit(job.model_copy(update={"job": client.new_id()}))
    qtbot.waitUntil(lambda: handle.outcome is not None, timeout=600_000)
    return handle.outcome  # type: ignore[no-any-return]


def train_job(folder: Path, out: str) -> TrainJob:
    grey = np.random.default_rng(0).integers(0, 255, (4, 64, 64), np.uint8)
    write_image(folder / "image.tif", Image(grey, "ZYX"), overwrite=True)
    np.save(folder / "labels.npy", (grey > 127).astype(np.uint8))
    return TrainJob(
        job="t",
        images=(str(folder / "image.tif"),),
        labels=(str(folder / "labels.npy"),),
        out=str(folder / out),
        recipe=TINY,
        device="cpu",
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "phase",
    [
        *("plan", "start", "training", "validation"),
        *("model", "picture", "checkpoint", "measurement"),
    ],
)
def test_a_training_loses_nothing(
    dying: Callable[[str], WorkerClient], qtbot: Any, tmp_path: Path, phase: str
) -> None:
    client, job = dying(phase), train_job(tmp_path, "run")
    outcome = run(client, job, qtbot)
    assert outcome.status == "died"
    assert "was killed" in outcome.text
    folder = RunFolder(job.out)
    again = job.model_copy(update={"resume": folder.has_begun})
    assert run(client, again, qtbot).status == "finished"
    assert not list(folder.path.rglob(".*"))
    whole = train_job(tmp_path, "whole")
    assert run(client, whole, qtbot).status == "finished"
    models = [load_file(RunFolder(path).model_path) for path in (job.out, whole.out)]
    for name, weights in models[1].items():
        np.testing.assert_array_equal(weights, models[0][name])
    entries = [
        {path.relative_to(run).as_posix() for path in Path(run).rglob("*")}
        for run in (job.out, whole.out)
    ]
    assert entries[0] == entries[1]
    assert [len(RunFolder(run).epoch_rows()) for run in (job.out, whole.out)] == [2, 2]


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["predicting", "plane", "writing"])
def test_a_prediction_loses_nothing(
    dying: Callable[[str], WorkerClient], qtbot: Any, tmp_path: Path, phase: str
) -> None:
    client, training = dying(phase), train_job(tmp_path, "run")
    assert run(client, training, qtbot).status == "finished"
    predict = PredictJob(
        job="p",
        model=training.out,
        image=str(tmp_path / "image.tif"),
        out=str(tmp_path / "out" / "labels.tif"),
        device="cpu",
    )
    outcome = run(client, predict, qtbot)
    assert outcome.status == "died"
    assert "was killed" in outcome.text
    assert run(client, predict, qtbot).status == "finished"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["labels.tif"]
    whole = predict.model_copy(update={"out": str(tmp_path / "whole.tif")})
    assert run(client, whole, qtbot).status == "finished"
    found = read_labels(predict.out)
    np.testing.assert_array_equal(found.data, read_labels(whole.out).data)
