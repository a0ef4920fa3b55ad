"""Several processes train what one would: by gloo, on this computer's CPU, as torchrun starts them."""

from __future__ import annotations

import copy
import json
import os
import signal
import socket
import subprocess
import sys
import threading
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
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from helpers import easy_pair, tiny_recipe
from napari_strata.core.events import BatchEnd, EpochEnd, TrainingStarted
from napari_strata.core.image import AnnotatedImage
from napari_strata.core.runs import RunFolder
from napari_strata.core.spec import resolve
from napari_strata.io import read_pairs
from napari_strata.models.model import Model
from napari_strata.networks import build_network
from napari_strata.networks.blocks import BatchNorm, BatchNorm3d
from napari_strata.training.distributed import Team, _Gathered, join
from napari_strata.training.loop import train
from napari_strata.training.membership import held
from napari_strata.training.syncnorm import SharedStatistics, statistics
from napari_strata.worker.replies import JobEnded, JobFailed
from worker.client import train_order, worker

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
"""Seconds for anything: the machine may be busy."""


def free_port() -> int:
    """A port that nobody listens on, below those that the system gives to clients.

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
    """Processes that were started as torchrun does."""

    processes: list[subprocess.Popen[str]]

    def wait(self) -> tuple[list[int], list[str], list[str]]:
        """Their statuses, what they said, and what they complained of."""
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
        port = free_port()
        everyone = {
            "WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
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
    """The same training in this process."""
    pairs = read_pairs(folder / "images.tif", folder / "labels.tif")
    train(
        "default", pairs, out=folder / out, overrides=settings, device="cpu", **options
    )
    return folder / out


def assert_same_curve(one: Path, other: Path, *, tolerance: float = TOLERANCE) -> None:
    """Losses of every step, of every validation, weights and normalisation statistics."""
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


def test_two_processes_train_to_the_curve_of_one(
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
def test_it_is_so_for_other_recipes(
    folder: Path, start: Callable[..., Ranks], changes: dict[str, Any], tolerance: float
) -> None:
    settings = PLAIN | changes
    ranks = start(folder / "two", "--device", "cpu", settings=settings)
    one = alone(folder, "one", settings=settings)
    statuses, _, complaints = ranks.wait()
    assert statuses == [0, 0], complaints
    assert_same_curve(folder / "two", one, tolerance=tolerance)


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(
    folder: Path, start: Callable[..., Ranks]
) -> None:
    """One, then two, then one again, against one all the time."""
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
        (1, signal.SIGKILL, "rank 1 of 2 is gone"),
        (0, signal.SIGKILL, "rank 0 of 2 is gone"),
        (1, signal.SIGTERM, "error: stopped"),
        (0, signal.SIGINT, "error: stopped"),
    ],
)
def test_a_rank_that_is_killed_or_stopped_ends_all_with_a_line_and_the_run_resumes(
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
    told = [
        text for text in "".join(complaints).splitlines() if text.startswith("error: ")
    ]
    assert len(told) == 1
    assert line in told[0]
    done = RunFolder.open(folder / "run").load_checkpoint("last.pt")["progress"][
        "history"
    ]
    if "gone" in line:
        assert (
            f"epoch {len(done)}, is kept" in told[0]
            or f"epoch {len(done) - 1}, is kept" in told[0]
        )
        assert "--resume" in told[0]
    run = alone(folder, "run", settings={"training.epochs": len(done) + 1}, resume=True)
    epochs = [e.epoch for e in RunFolder.open(run).events() if isinstance(e, EpochEnd)]
    assert epochs == list(range(1, len(done) + 2))


@pytest.mark.slow
def test_a_mistake_that_all_ranks_meet_is_told_once(
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
def test_the_viewers_worker_trains_by_torchrun(
    tmp_path: Path, scene: Callable[..., AnnotatedImage]
) -> None:
    """The real protocol: two trainings, one of them stopped and resumed, predictions between; and it exits."""
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
        endless = train_order(tmp_path, scene(), overrides={"training.epochs": 100_000})
        client.say(endless)
        client.until(lambda _, event: isinstance(event, EpochEnd) and event.epoch == 2)
        client.say({"stop": "t"})
        assert client.result("t")[-1] == JobEnded("stopped")
        small = {
            "job": "r",
            "out": str(tmp_path / "small"),
            "overrides": {"training.batch_size": 1},
        }
        refused = client.do(endless | small)[-1]
        assert isinstance(refused, JobFailed)
        assert "found batches of 1 for 2 processes" in refused.text
        epochs = RunFolder.open(tmp_path / "run").load_checkpoint("last.pt")[
            "progress"
        ]["history"]
        again = client.do(
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
        ended = client.do(
            {
                "job": "p",
                "kind": "predict",
                "model": str(tmp_path / "run"),
                "device": "cpu",
            }
            | where
        )[-1]
        assert isinstance(ended, JobEnded)
        client.hang_up()
        assert client.end() == 0


FAULTY = """
import os
from napari_strata.training.learner import Learner
from napari_strata.worker.__main__ import main

step = Learner.step
def bad(self, batch, *, epoch, number):
    if os.environ["RANK"] == os.environ["BAD"] and os.environ.pop("ONCE", ""):
        raise RuntimeError("out of memory, it is said")
    return step(self, batch, epoch=epoch, number=number)

Learner.step = bad
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_worker_trains_again_after_one_of_its_processes_left_the_others_in_a_collective(
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
    with worker(command=torchrun, BAD=str(rank), ONCE="yes") as client:
        client.ready()
        failed = client.do(train_order(tmp_path / "first", scene()))[-1]
        assert isinstance(failed, JobFailed)
        assert failed.text.startswith(
            "rank 1 of 2: out of memory" if rank else "out of memory"
        )
        ended = client.do(train_order(tmp_path / "second", scene(), "again"))[-1]
        assert isinstance(ended, JobEnded)
        assert ended.reason == "finished"
        client.hang_up()
        client.end(LIMIT)


# The parts, in threads that play ranks.


class Threads:
    """Ranks as threads; `gather` hands each the tensors of all."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._barrier = threading.Barrier(size)
        self._given: list[Tensor | None] = [None] * size
        self._rank = threading.local()

    def gather(self, values: Tensor) -> Tensor:
        self._given[self._rank.value] = values.detach().clone()
        self._barrier.wait(LIMIT)
        found = torch.stack([one for one in self._given if one is not None])
        self._barrier.wait(LIMIT)
        return found

    def run(self, work: Callable[[int], Any]) -> list[Any]:
        results: list[Any] = [None] * self.size
        errors: list[BaseException] = []

        def one(rank: int) -> None:
            self._rank.value = rank
            try:
                results[rank] = work(rank)
            except BaseException as error:
                errors.append(error)
                self._barrier.abort()

        threads = [
            threading.Thread(target=one, args=(rank,)) for rank in range(self.size)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        return results


shapes = st.lists(st.integers(1, 5), min_size=2, max_size=3)


@settings(max_examples=25)
@given(
    counts=st.lists(st.integers(1, 3), min_size=2, max_size=3),
    shape=shapes,
    shift=st.floats(-100, 100),
)
def test_shared_statistics_are_those_of_the_whole_batch(
    counts: list[int], shape: list[int], shift: float
) -> None:
    """Output, gradients, running statistics: two layers in 2D or 3D, shares of any sizes, one value a channel too."""
    torch.manual_seed(0)
    batch = torch.randn(sum(counts), 3, *shape) + shift
    norm = BatchNorm if len(shape) == 2 else BatchNorm3d

    def network() -> nn.Sequential:
        layers = nn.Sequential(norm(3), nn.ReLU(), norm(3, affine=False))
        nn.init.uniform_(layers[0].weight, generator=torch.Generator().manual_seed(1))
        return layers.train()

    def slope(output: Tensor) -> Tensor:
        return (
            torch.linspace(-1, 1, output[0].numel())
            .reshape(output.shape[1:])
            .expand_as(output)
        )

    whole, inputs = network(), batch.clone().requires_grad_()
    expected = whole(inputs)
    scaled = torch.arange(1, len(batch) + 1).reshape(-1, *[1] * (batch.ndim - 1))
    torch.autograd.backward(expected, slope(expected) * scaled)
    team = Threads(len(counts))
    replicas = [network() for _ in counts]

    def work(rank: int) -> tuple[Tensor, Tensor]:
        part = torch.split(batch, counts)[rank].clone().requires_grad_()
        with SharedStatistics(replicas[rank], team.gather, group=None, size=team.size):
            output = replicas[rank](part)
        torch.autograd.backward(
            output, slope(output) * torch.split(scaled, counts)[rank]
        )
        assert part.grad is not None
        return output.detach(), part.grad

    outputs, gradients = zip(*team.run(work), strict=True)
    close = {"rtol": 1e-3, "atol": 2e-3 + 1e-4 * abs(shift)}
    assert torch.allclose(torch.cat(outputs), expected, **close)
    assert inputs.grad is not None
    spread = float(inputs.grad.abs().max()) + 1
    assert torch.allclose(torch.cat(gradients) / spread, inputs.grad / spread, **close)
    for name, value in whole.state_dict().items():
        for replica in replicas:
            assert torch.allclose(
                replica.state_dict()[name].double(), value.double(), **close
            ), name
    shares = [replica[0].weight.grad for replica in replicas]
    assert torch.allclose(
        sum(shares),
        whole[0].weight.grad,
        rtol=1e-3,
        atol=1e-2 + 1e-3 * abs(shift) * spread,
    )


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        ({"kind": "unet", "widths": [4, 8]}, (24, 40)),
        pytest.param({"kind": "atrous_unet"}, (64, 64), marks=pytest.mark.slow),
        ({"kind": "unet3d"}, (4, 16, 16)),
        (
            {"kind": "smp", "architecture": "deeplabv3plus", "encoder": "resnet18"},
            (64, 64),
        ),
        ({"kind": "smp", "encoder": "tu-mobilenetv3_small_050"}, (64, 64)),
    ],
    ids=lambda value: (
        "-".join(map(str, value.values())) if isinstance(value, dict) else None
    ),
)
def test_networks_in_shares_give_the_logits_and_gradients_of_the_whole_batch(
    network: dict[str, Any], shape: tuple[int, ...]
) -> None:
    """In float64, where nothing is rounding. DeepLab's pooling leaves one value a channel to the rank with one patch;
    MobileNet of timm has normalisation and activation in one layer."""
    recipe = tiny_recipe().with_overrides({"network": network})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        whole = build_network(resolve(recipe, easy_pair((8, 64, 64)))).double().train()
        for layer in whole.modules():
            if isinstance(layer, nn.Dropout | nn.Dropout2d):
                layer.eval()
        batch, slope = (
            torch.randn(3, 1, *shape).double(),
            torch.randn(3, 2, *shape).double(),
        )
    replicas, counts, team = (
        [copy.deepcopy(whole) for _ in range(2)],
        [2, 1],
        Threads(2),
    )
    expected = whole(batch)
    torch.autograd.backward(expected, slope)

    def work(rank: int) -> Tensor:
        with SharedStatistics(replicas[rank], team.gather, group=None, size=2):
            logits: Tensor = replicas[rank](torch.split(batch, counts)[rank])
        torch.autograd.backward(logits, torch.split(slope, counts)[rank])
        return logits.detach()

    assert torch.allclose(torch.cat(team.run(work)), expected, rtol=1e-7, atol=1e-7)
    pairs = list(
        zip(
            whole.parameters(),
            *(replica.parameters() for replica in replicas),
            strict=True,
        )
    )
    ours = [
        (one.grad + two.grad).flatten()
        for _, one, two in pairs
        if one.grad is not None and two.grad is not None
    ]
    theirs = [
        parameter.grad.flatten()
        for parameter, _, _ in pairs
        if parameter.grad is not None
    ]
    assert len(ours) == len(theirs) > 0
    assert float((torch.cat(ours) - torch.cat(theirs)).norm()) < 1e-6 * float(
        torch.cat(theirs).norm()
    )
    for name, value in whole.state_dict().items():
        assert torch.allclose(
            replicas[1].state_dict()[name].double(),
            value.double(),
            rtol=1e-6,
            atol=1e-8,
        ), name


def test_variance_survives_a_large_mean() -> None:
    values = torch.randn(6, 2, 8, 8, generator=torch.Generator().manual_seed(0)) + 1e4
    team = Threads(2)
    mean, variance, count = team.run(
        lambda rank: statistics(torch.split(values, [4, 2])[rank], team.gather)
    )[1]
    assert count == 6 * 64
    assert torch.allclose(mean, values.double().mean([0, 2, 3]), rtol=1e-6)
    assert torch.allclose(
        variance, values.double().var([0, 2, 3], correction=0), rtol=1e-2
    )


def test_gathered_logits_give_each_rank_the_gradient_of_its_share() -> None:
    """Times the number of ranks, because gradients of parameters are averaged over ranks afterwards."""
    logits, counts = (
        torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(0)),
        [3, 2],
    )
    whole = logits.clone().requires_grad_()
    whole.softmax(1).square().sum().backward()
    team = Threads(2)

    def work(rank: int) -> tuple[Tensor, Tensor]:
        own = torch.split(logits, counts)[rank].clone().requires_grad_()
        gathered = _Gathered.apply(own, counts, rank, team.gather)
        gathered.softmax(1).square().sum().backward()
        assert own.grad is not None
        return gathered.detach(), own.grad

    for gathered, _ in (found := team.run(work)):
        assert torch.equal(gathered, logits)
    assert whole.grad is not None
    assert torch.allclose(
        torch.cat([gradient for _, gradient in found]), 2 * whole.grad
    )


def test_signals_wait_for_the_end_of_a_section() -> None:
    done = []

    def section(divisor: int) -> None:
        with held():
            signal.raise_signal(signal.SIGINT)
            done.append(1 / divisor)

    with pytest.raises(KeyboardInterrupt):
        section(1)
    assert done == [1]
    with pytest.raises(ZeroDivisionError):  # an error is the end that was asked for
        section(0)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_process_alone_is_a_team_that_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "4")  # as some clusters do, without torchrun
    with join() as team:
        assert type(team) is Team
        assert (
            team.leads,
            team.share([1, 2]),
            team.collect(3),
            team.hand_out(dict),
        ) == (True, [1, 2], [3], {})


def wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + LIMIT
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)
