"""Several processes give the same training as one. They use gloo on the CPU and are started as by torchrun."""

from __future__ import annotations

import copy
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from torch import nn

from helpers import easy_pair, tiny_recipe
from napari_strata.core.events import BatchEnd, EpochEnd, TrainingStarted
from napari_strata.core.image import AnnotatedImage
from napari_strata.core.runs import RunFolder
from napari_strata.core.spec import resolve
from napari_strata.io import read_pairs
from napari_strata.models.model import Model
from napari_strata.networks import build_network
from napari_strata.training.ddp import process_group
from napari_strata.training.loop import train
from napari_strata.worker.protocol import JobEnded, JobFailed
from worker.client import train_request, worker

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")

PLAIN: dict[str, Any] = {
    "network.kind": "unet",
    "network.widths": [4, 8],
    "patches.size": 32,
    "patches.per_epoch": 14,
    "training.epochs": 3,
    "training.batch_size": 5,  # batches of 5, 4 and 5 patches: shares of 3 and 2
    "training.precision": "fp32",
    "augmentation.rotation": 20.0,
    "augmentation.noise": 0.3,
}
BARE = {
    "training.optimizer": "sgd",
    "training.schedule": "constant",
    "training.clip_norm": None,
}
"""Steps in proportion to the gradient: Adam and clipping would hide a wrong length of it."""

TOLERANCE = 2e-5
"""Relative difference of losses. Sums in another order differ by some 6e-8 (half a unit in float32's last place), by
1e-6 after a pass through a network and back, and each of nine steps adds to that. A mistake is seen at once: with each
rank's own statistics, or gradients of another length, losses differ by 1e-4 to 6e-2 (tried)."""

LIMIT = 300
"""Seconds to wait, long enough for a busy machine."""


def free_port() -> int:
    """Return a free port, below the range that the system gives to clients.

    The search starts at another place in each test process.
    """
    ports = range(15_000, 32_000)
    for number in range(len(ports)):
        port = ports[(os.getpid() * 17 + number) % len(ports)]
        with socket.socket() as candidate, suppress(OSError):
            candidate.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no port is free")


@dataclass
class Ranks:
    """Processes that are started as by torchrun."""

    processes: list[subprocess.Popen[str]]

    def wait(self) -> tuple[list[int], list[str], list[str]]:
        """Wait for their end; return their exit statuses, stdout and stderr."""
        said = [process.communicate(timeout=LIMIT) for process in self.processes]
        return (
            [p.returncode for p in self.processes],
            [out for out, _ in said],
            [err for _, err in said],
        )

    def kill(self) -> None:
        for process in self.processes:
            with suppress(ProcessLookupError):
                process.kill()
            process.communicate()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Ranks]]:
    """Start ``napari-strata train`` in two processes on a small stack; `settings` are overrides."""
    started: list[Ranks] = []

    def run(out: Path, *options: str, settings: dict[str, Any], size: int = 2) -> Ranks:
        words = [f"--set={key}={json.dumps(value)}" for key, value in settings.items()]
        command = [
            "-m",
            "napari_strata",
            "train",
            str(out.parent / "images.tif"),
            str(out.parent / "labels.tif"),
        ]
        command += ["--out", str(out), "--json", *words, *options]
        everyone = {
            "WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
        }
        environment = {
            **os.environ,
            **everyone,
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        pipe: Any = {
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "text": True,
        }
        ranks = Ranks(
            [
                subprocess.Popen(
                    [sys.executable, *command],
                    env=environment | {"RANK": str(r), "LOCAL_RANK": str(r)},
                    **pipe,
                )
                for r in range(size)
            ]
        )
        started.append(ranks)
        return ranks

    yield run
    for ranks in started:
        ranks.kill()


@pytest.fixture
def folder(tmp_path: Path, scene: Callable[..., AnnotatedImage]) -> Path:
    """A folder with an image stack and its labels."""
    pair = scene(0, planes=5)
    for name, image in (("images", pair.image), ("labels", pair.labels)):
        tifffile.imwrite(
            tmp_path / f"{name}.tif",
            np.asarray(image.data),
            imagej=True,
            metadata={"axes": "ZYX"},
        )
    return tmp_path


def alone(folder: Path, out: str, *, settings: dict[str, Any], **options: Any) -> Path:
    """Run the same training in this process."""
    pairs = read_pairs(folder / "images.tif", folder / "labels.tif")
    train(
        "default", pairs, out=folder / out, overrides=settings, device="cpu", **options
    )
    return folder / out


def assert_same_curve(one: Path, other: Path, *, tolerance: float = TOLERANCE) -> None:
    """Return the losses of all steps and validations, weights and normalisation statistics."""
    first, second = (RunFolder.open(path).events() for path in (one, other))
    for kind, names in (
        (BatchEnd, ("loss",)),
        (EpochEnd, ("train_loss", "validation_loss")),
    ):
        rows = [
            [[getattr(e, n) for n in names] for e in events if isinstance(e, kind)]
            for events in (first, second)
        ]
        assert len(rows[0]) == len(rows[1]) > 0
        np.testing.assert_allclose(rows[0], rows[1], rtol=tolerance)
    states = [
        RunFolder.open(path).load_checkpoint("last.pt")["learner"]["network"]
        for path in (one, other)
    ]
    for name, value in states[0].items():
        assert torch.allclose(
            value.double(), states[1][name].double(), rtol=1e-3, atol=50 * tolerance
        ), name
    scored = [
        [e.mean_iou for e in events if isinstance(e, EpochEnd)]
        for events in (first, second)
    ]
    np.testing.assert_allclose(
        scored[0], scored[1], atol=100 * tolerance
    )  # pixels between two classes


def test_two_processes_have_the_curve_of_one(
    folder: Path, start: Callable[..., Ranks]
) -> None:
    """Batch normalisation, uneven shares, cross-entropy, Dice and Lovasz over the whole batch, averaged weights."""
    settings = PLAIN | BARE | {"training.loss": {"ce": 1.0, "dice": 1.0, "lovasz": 0.5}}
    ranks = start(folder / "two", "--device", "cpu", settings=settings)
    one = alone(folder, "one", settings=settings)
    statuses, said, complaints = ranks.wait()
    assert statuses == [0, 0], complaints
    assert [bool(text) for text in said] == [
        True,
        False,
    ]  # the first one speaks, and nobody else
    assert_same_curve(folder / "two", one)
    events = RunFolder.open(folder / "two").events()
    assert [e.device[:17] for e in events if isinstance(e, TrainingStarted)] == [
        "2 processes, each"
    ]
    assert Model.load(folder / "two").calibration is not None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "tolerance"),
    [
        # Adam divides a gradient by its own length, so one that is nothing but rounding still moves a weight.
        ({"training.freeze_encoder": 1, "training.averaging": None}, 5e-4),
        ({"training.precision": "bf16"} | BARE, 5e-3),  # a number has 8 bits: 4e-3
    ],
    ids=["frozen encoder, adamw, one-cycle", "bf16"],
)
def test_two_processes_have_the_curve_of_one_for_other_recipes(
    folder: Path, start: Callable[..., Ranks], changes: dict[str, Any], tolerance: float
) -> None:
    settings = PLAIN | changes
    ranks = start(folder / "two", "--device", "cpu", settings=settings)
    one = alone(folder, "one", settings=settings)
    statuses, _, complaints = ranks.wait()
    assert statuses == [0, 0], complaints
    assert_same_curve(folder / "two", one, tolerance=tolerance)


@pytest.mark.slow
def test_a_run_resumes_with_another_number_of_processes(
    folder: Path, start: Callable[..., Ranks]
) -> None:
    """Compare one, then two, then one process with a single process."""
    settings = PLAIN | BARE | {"training.epochs": 1}
    alone(folder, "one", settings=settings)
    alone(folder, "two", settings=settings)
    ranks = start(folder / "two", "--device", "cpu", "--extend", "2", settings={})
    alone(folder, "one", settings={}, extend=2)
    assert ranks.wait()[0] == [0, 0]
    for name in ("one", "two"):
        alone(folder, name, settings={}, extend=1)
    assert_same_curve(folder / "two", folder / "one")


@pytest.mark.slow
def test_too_small_a_batch_is_refused_before_anything_is_written(
    folder: Path, start: Callable[..., Ranks]
) -> None:
    ranks = start(
        folder / "run", "--device", "cpu", settings=PLAIN | {"training.batch_size": 1}
    )
    statuses, said, complaints = ranks.wait()
    assert statuses == [2, 2]
    assert "found batches of 1 for 2 processes" in complaints[0]
    assert "training.batch_size=2" in complaints[0]
    assert len(complaints[0].splitlines()) == 1
    assert (said, complaints[1]) == (["", ""], "")
    assert not (folder / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rank", "number", "line"),
    [
        (1, signal.SIGKILL, "another of the 2 processes has ended"),
        (0, signal.SIGKILL, "another of the 2 processes has ended"),
        (1, signal.SIGTERM, "error: stopped"),
        (0, signal.SIGINT, "error: stopped"),
    ],
)
def test_a_killed_or_stopped_rank_ends_all_with_a_message_and_the_run_resumes(
    folder: Path,
    start: Callable[..., Ranks],
    rank: int,
    number: signal.Signals,
    line: str,
) -> None:
    ranks = start(
        folder / "run", "--device", "cpu", settings=PLAIN | {"training.epochs": 100_000}
    )
    wait_until((folder / "run" / "last.pt").exists)
    ranks.processes[rank].send_signal(number)
    statuses, _, complaints = ranks.wait()
    assert all(statuses)
    errors = [
        text for text in "".join(complaints).splitlines() if text.startswith("error: ")
    ]
    assert len(errors) == 1
    assert line in errors[0]
    done = RunFolder.open(folder / "run").load_checkpoint("last.pt")["progress"][
        "history"
    ]
    if "gone" in line:
        assert (
            f"epoch {len(done)}, is kept" in errors[0]
            or f"epoch {len(done) - 1}, is kept" in errors[0]
        )
        assert "--resume" in errors[0]
    run = alone(folder, "run", settings={"training.epochs": len(done) + 1}, resume=True)
    epochs = [e.epoch for e in RunFolder.open(run).events() if isinstance(e, EpochEnd)]
    assert epochs == list(range(1, len(done) + 2))


@pytest.mark.slow
def test_an_error_of_all_ranks_is_reported_once(
    folder: Path, start: Callable[..., Ranks]
) -> None:
    ranks = start(folder / "run", "--device", "no such", settings=PLAIN)
    statuses, _, complaints = ranks.wait()
    assert statuses == [2, 2]
    assert (
        len([t for t in "".join(complaints).splitlines() if t.startswith("error: ")])
        == 1
    )
    assert not (folder / "run").exists()


@pytest.mark.slow
def test_the_worker_trains_by_torchrun(
    tmp_path: Path, scene: Callable[..., AnnotatedImage]
) -> None:
    """Two trainings, of which one is stopped and resumed, with predictions between them."""
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "-m",
        "napari_strata.worker",
    ]
    with worker(command=torchrun) as client:
        client.ready()
        endless = train_request(
            tmp_path, scene(), overrides={"training.epochs": 100_000}
        )
        client.send(endless)
        client.receive_until(
            lambda _, event: isinstance(event, EpochEnd) and event.epoch == 2
        )
        client.send({"stop": "t"})
        assert client.receive_result("t")[-1] == JobEnded(reason="stopped")
        small = {
            "job": "r",
            "out": str(tmp_path / "small"),
            "overrides": {"training.batch_size": 1},
        }
        refused = client.run_job(endless | small)[-1]
        assert isinstance(refused, JobFailed)
        assert "found batches of 1 for 2 processes" in refused.text
        epochs = RunFolder.open(tmp_path / "run").load_checkpoint("last.pt")[
            "progress"
        ]["history"]
        again = client.run_job(
            endless
            | {
                "job": "g",
                "resume": True,
                "overrides": {"training.epochs": len(epochs) + 1},
            }
        )
        assert isinstance(again[-1], JobEnded)
        assert [e.epoch for e in again if isinstance(e, EpochEnd)] == [len(epochs) + 1]
        where = {
            "image": {"path": str(tmp_path / "image.npy"), "axes": "ZYX"},
            "out": str(tmp_path / "out.npy"),
        }
        ended = client.run_job(
            {
                "job": "p",
                "kind": "predict",
                "model": str(tmp_path / "run"),
                "device": "cpu",
            }
            | where
        )[-1]
        assert isinstance(ended, JobEnded)
        client.close_stdin()
        assert client.end() == 0


FAULTY = """
import os
from napari_strata.training.learner import Learner
from napari_strata.worker.__main__ import main

step = Learner.step
def bad(self, batch, *, epoch, number):
    if os.environ["RANK"] == os.environ["BAD"] and not os.path.exists(os.environ["ONCE"]):
        open(os.environ["ONCE"], "w").close()
        raise RuntimeError("out of memory, it is said")
    return step(self, batch, epoch=epoch, number=number)

Learner.step = bad
if __name__ == "__main__":
    main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_worker_trains_again_after_a_process_left_a_collective_operation(
    tmp_path: Path, scene: Callable[..., AnnotatedImage], rank: int
) -> None:
    (tmp_path / "faulty.py").write_text(FAULTY)
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        str(tmp_path / "faulty.py"),
    ]
    with worker(command=torchrun, BAD=str(rank), ONCE=str(tmp_path / "once")) as client:
        client.ready()
        failed = client.run_job(train_request(tmp_path / "first", scene()))[-1]
        assert isinstance(failed, JobFailed)
        assert failed.text.startswith(
            "rank 1 of 2: out of memory" if rank else "out of memory"
        )
        ended = client.run_job(train_request(tmp_path / "second", scene(), "again"))[-1]
        assert isinstance(ended, JobEnded)
        assert ended.reason == "finished"
        client.close_stdin()
        client.end(LIMIT)


NETWORKS: list[tuple[dict[str, Any], tuple[int, ...]]] = [
    ({"kind": "unet", "widths": [4, 8]}, (24, 40)),
    ({"kind": "unet3d", "widths": [4, 8]}, (4, 16, 16)),
    # Its pooling leaves one value a channel to the rank with one patch.
    (
        {"kind": "smp", "architecture": "deeplabv3plus", "encoder": "resnet18"},
        (64, 64),
    ),
    # Normalisation and activation are one layer here.
    ({"kind": "smp", "encoder": "tu-mobilenetv3_small_050"}, (64, 64)),
]


def _without_dropout(network: nn.Module) -> nn.Module:
    network.train()
    for layer in network.modules():
        if isinstance(layer, nn.Dropout | nn.Dropout2d):
            layer.eval()
    return network


def _compare_with_one_process(rank: int, port: int) -> None:
    """Compare logits, gradients and statistics of two ranks with those of one process.

    In float64, where nothing is rounding.
    """
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
    with process_group() as group:
        for section, shape in NETWORKS:
            torch.manual_seed(0)
            recipe = tiny_recipe().with_overrides({"network": section})
            spec = resolve(recipe, easy_pair((8, 64, 64)))
            whole = _without_dropout(build_network(spec).double())
            shared = group.synchronize(copy.deepcopy(whole), torch.device("cpu"))
            # A large mean must cost no digits of the variance.
            batch = torch.randn(3, 1, *shape).double() + 1000
            slope = torch.randn(3, 2, *shape).double()
            expected = whole(batch)
            torch.autograd.backward(expected, slope)
            logits = group.forward(shared, batch)
            torch.autograd.backward(logits, slope)
            torch.testing.assert_close(logits, expected, rtol=1e-7, atol=1e-7)
            gradients = [
                torch.cat(
                    [p.grad.flatten() for p in n.parameters() if p.grad is not None]
                )
                for n in (whole, shared)
            ]
            difference = gradients[0] - gradients[1]
            assert float(difference.norm()) < 1e-6 * float(gradients[0].norm())
            statistics = shared.state_dict()
            for name, value in whole.state_dict().items():
                torch.testing.assert_close(
                    statistics[name], value, rtol=1e-6, atol=1e-8, msg=name
                )


def test_two_processes_compute_logits_and_gradients_of_the_whole_batch() -> None:
    torch.multiprocessing.spawn(_compare_with_one_process, (free_port(),), nprocs=2)


def test_a_group_of_one_process_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "4")  # some clusters do, without torchrun
    network = nn.BatchNorm2d(1)
    with process_group() as group:
        assert (group.size, group.is_main) == (1, True)
        assert group.share([1, 2]) == [1, 2]
        assert group.gather(3) == [3]
        assert group.synchronize(network, torch.device("cpu")) is network
        assert group.describe("CPU") == "CPU"
        group.check_stop()


def wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + LIMIT
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)
