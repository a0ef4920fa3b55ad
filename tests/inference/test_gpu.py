"""Prediction on a GPU against the CPU, and what happens when its memory runs out. Run with ``-m gpu``."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers import easy_pair, tiny_model
from napari_strata.core.image import Image
from napari_strata.core.options import PredictOptions
from napari_strata.inference.build import build_ensemble_predictor
from napari_strata.inference.predict import Prediction, estimate_prediction, predict
from napari_strata.models.ensemble import load_models
from napari_strata.models.model import Model
from napari_strata.training.loop import train

pytestmark = pytest.mark.gpu

PAIR = easy_pair((6, 200, 150))
SETTINGS: dict[str, Any] = {
    "network.widths": (8, 16),
    "patches.size": 64,
    "patches.per_epoch": 64,
    "training.epochs": 4,
    "training.batch_size": 8,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    out = tmp_path_factory.mktemp("gpu") / "run"
    return train("unet-ct", PAIR, out=out, overrides=SETTINGS, device="cpu")


@pytest.mark.parametrize(
    ("precision", "least"), [("fp32", 0.9995), ("bf16", 0.99), ("fp16", 0.998)]
)
@pytest.mark.parametrize("tta", [False, True])
def test_labels_are_those_of_the_cpu(
    model: Model, precision: str, least: float, tta: bool
) -> None:
    wanted = predict(model, PAIR.image, device="cpu", precision="fp32", tta=tta)
    found = predict(model, PAIR.image, device="cuda", precision=precision, tta=tta)
    assert np.mean(np.asarray(found.data) == np.asarray(wanted.data)) >= least


def test_volumes_have_the_labels_of_the_cpu(tmp_path: Path) -> None:
    settings = {"network.widths": (4, 8, 16), "training.epochs": 1}
    settings |= {"patches.per_epoch": 8, "patches.size": 32}
    pair = easy_pair((24, 64, 64))
    model = train(
        "unet3d", pair, out=tmp_path / "run", overrides=settings, device="cuda"
    )
    wanted = predict(model, pair.image, device="cpu", precision="fp32")
    found = predict(model, pair.image, device="cuda", precision="fp32")
    assert np.mean(np.asarray(found.data) == np.asarray(wanted.data)) > 0.99


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Half a gigabyte of the GPU."""
    gc.collect()
    torch.cuda.empty_cache()
    total = torch.cuda.mem_get_info()[1]
    torch.cuda.set_per_process_memory_fraction(2**29 / total)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


def test_it_goes_on_with_fewer_tiles_when_memory_runs_out(
    model: Model, little_memory: None
) -> None:
    plane = np.tile(np.asarray(PAIR.image.data)[0], (20, 25))
    image = Image(plane, "YX")
    options = PredictOptions(device="cuda", tile=512, batch=64, precision="fp32")
    predictor = build_ensemble_predictor(load_models(model), options)
    job = Prediction(model, image, options=options, predictor=predictor)
    list(job)
    batch = predictor.members[0].batch
    assert batch is not None
    assert batch < 64
    wanted = predict(model, image, device="cpu", precision="fp32")
    assert np.mean(np.asarray(job.labels.data) == np.asarray(wanted.data)) > 0.999


def test_the_estimate_is_that_of_the_clock(model: Model) -> None:
    image = Image(np.tile(np.asarray(PAIR.image.data), (4, 10, 10)), "ZYX")
    options = PredictOptions(device="cuda")
    predictor = build_ensemble_predictor(load_models(model), options)
    found = estimate_prediction(model, image, options=options, predictor=predictor)
    assert found.seconds is not None
    assert 0 < found.seconds < 60


def test_a_worker_gives_the_memory_back(tmp_path: Path) -> None:
    tiny_model(PAIR).save(tmp_path / "model.safetensors")
    np.save(tmp_path / "image.npy", PAIR.image.data)
    request = {
        "job": "a",
        "kind": "predict",
        "device": "cuda",
        "model": str(tmp_path / "model.safetensors"),
        "image": {"path": str(tmp_path / "image.npy"), "axes": "ZYX"},
        "out": str(tmp_path / "labels.tif"),
    }
    with subprocess.Popen(
        [sys.executable, "-m", "napari_strata.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        ends = []
        for line in process.stdout:
            event = json.loads(line)["event"]
            if event == "Ready":
                before = torch.cuda.mem_get_info()[0]
                process.stdin.write(json.dumps(request) + "\n")
                process.stdin.flush()
            elif event in ("JobEnded", "JobFailed", "Refused"):
                ends.append(event)
                break
        assert ends == ["JobEnded"]
        assert before - torch.cuda.mem_get_info()[0] < 5e8
        process.stdin.close()
