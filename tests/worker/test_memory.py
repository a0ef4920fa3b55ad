"""A worker takes no more memory with each job, and reports when there is none."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from helpers import easy_pair, tiny_model
from napari_strata.worker.protocol import JobEnded
from worker.client import Worker, train_request, worker

JOBS = 50
WARM = 10
"""Jobs after which everything that is imported on first use is there."""
GROWTH_MB = 30
"""Largest growth from then on; 1 MB a job would be 40."""

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")


def requests(folder: Path) -> list[dict[str, Any]]:
    """A job of each kind that a dock sends while somebody works."""
    train = train_request(folder, easy_pair((2, 96, 96)))
    model = str(tiny_model().save(folder / "model.safetensors"))
    on_images = {"model": model, "images": train["images"], "labels": train["labels"]}
    image = {"image": train["images"], "device": "cpu"}
    labels = train["labels"]["path"]
    classes = {"names": ["pore", "grain"], "values": [0, 255]}
    return [
        train,
        {key: train[key] for key in train if key != "out"} | {"kind": "plan"},
        {"kind": "predict", "model": model, "overwrite": True} | image,
        {"kind": "evaluate", "device": "cpu"} | on_images,
        {"kind": "info", "path": model, "image": train["images"]},
        {"kind": "segment", "labels": labels, "classes": classes, "threads": 1} | image,
    ]


def run_jobs(client: Worker, folder: Path, count: int, first: int) -> None:
    kinds = requests(folder)
    for number in range(first, first + count):
        request = kinds[number % len(kinds)] | {"job": f"job {number}"}
        if request["kind"] == "train":
            request["out"] = str(folder / f"run {number}")
        if request["kind"] in ("predict", "segment"):
            request["out"] = str(folder / "out.npy")
        if request["kind"] == "segment":
            # New strokes, so that the classifier is fitted again.
            request["planes"] = [{"index": {"Z": 0}, "version": number}]
        assert isinstance(client.run_job(request)[-1], JobEnded)


@pytest.mark.slow
def test_memory_levels_off(tmp_path: Path) -> None:
    with worker() as client:
        ready = client.ready()
        process = psutil.Process(ready.pid)
        run_jobs(client, tmp_path, WARM, 0)
        before = process.memory_info().rss
        run_jobs(client, tmp_path, JOBS, WARM)
        growth = (process.memory_info().rss - before) / 2**20
    assert growth < GROWTH_MB
