from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from helpers import easy_pair, tiny_model
from napari_strata.core.errors import RunError
from napari_strata.core.events import (
    FileEnd,
    Message,
    PredictionEnd,
    PredictionStarted,
    RegionEnd,
)
from napari_strata.core.image import Image
from napari_strata.core.options import PredictOptions
from napari_strata.inference import dask as module
from napari_strata.inference.batch import predict_files
from napari_strata.inference.dask import (
    Cluster,
    ClusterPrediction,
    PredictionRequest,
    WorkerFacts,
    common_threads,
    compare_workers,
)
from napari_strata.inference.ledger import ResumableOutput
from napari_strata.inference.predict import Prediction, iter_predict
from napari_strata.inference.task import PredictionInput
from napari_strata.io import read_image, write_image
from napari_strata.models.ensemble import load_models
from napari_strata.models.model import current_versions

pytest.importorskip("distributed")

PAIR = easy_pair((10, 40, 48))
OPTIONS = PredictOptions(device="cpu", precision="fp32", probabilities=True)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two worker processes on this machine; starting them takes seconds, so all tests share them."""
    with Cluster("local:2") as found:
        yield found


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Path:
    """A folder that all workers see, with an image and a model."""
    folder = tmp_path_factory.mktemp("shared")
    tiny_model(PAIR).save(folder / "model.safetensors")
    write_image(folder / "image.tif", PAIR.image)
    return folder


@pytest.fixture
def gate(cluster, tmp_path_factory) -> Iterator[Path]:
    """A file without which the workers write no more than six planes.

    Each plane takes a ticket, because workers take shards in any order.
    """
    path = tmp_path_factory.mktemp("gate") / "open"
    # A cancelled task of an earlier test may still run. It must not take a ticket.
    wait = "from napari_strata.inference.dask import _ONE_TASK\nwith _ONE_TASK: pass"
    cluster.client.run(exec, wait, {})
    code = f"""
import time
from pathlib import Path
from napari_strata.inference.ledger import ResumableOutput
write = ResumableOutput.write
def may_write(gate=Path({str(path)!r})):
    if gate.exists():
        return True
    for number in range(6):
        try:
            gate.with_name(f"ticket-{{number}}").open("x").close()
            return True
        except FileExistsError:
            pass
    return False
def write_behind_gate(self, plane, *values):
    while not may_write():
        time.sleep(0.01)
    write(self, plane, *values)
ResumableOutput.write = write_behind_gate
"""
    cluster.client.run(exec, code, {})
    yield path
    path.touch()
    cluster.client.wait_for_workers(2, timeout=120)


def job(
    shared: Path, out: Path, on: Cluster | str | None = None, **options
) -> Prediction:
    asked = OPTIONS.updated(**options)
    return iter_predict(
        shared / "model.safetensors",
        shared / "image.tif",
        out=out,
        options=asked,
        scheduler=on,
    )


def contents(folder: Path) -> dict[str, bytes]:
    """Files and what is in them, less locks and the random UUID of every OME file."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file()]
    files = [p for p in files if not re.fullmatch(r"\..*\.lock", p.name)]
    return {
        str(p.relative_to(folder)): re.sub(
            rb"urn:uuid:[0-9a-f-]{36}", b"", p.read_bytes()
        )
        for p in files
    }


@pytest.fixture(scope="module")
def whole(shared, tmp_path_factory) -> dict[str, bytes]:
    """What one process writes."""
    folder = tmp_path_factory.mktemp("whole")
    list(job(shared, folder / "x.tif"))
    return contents(folder)


def test_two_workers_give_what_one_process_gives_to_the_bit(
    cluster, shared, whole, tmp_path
):
    found = job(shared, tmp_path / "x.tif", cluster)
    events = list(found)
    assert contents(tmp_path) == whole
    (started,) = [e for e in events if isinstance(e, PredictionStarted)]
    assert started.device.startswith("2 workers, 1 thread each, CPU")
    assert (started.regions, started.done) == (10, 0)
    regions = [e for e in events if isinstance(e, RegionEnd)]
    assert [e.done for e in regions] == list(range(1, 11))
    assert sorted(e.region["Z"] for e in regions) == list(range(10))
    assert isinstance(events[-1], PredictionEnd)
    assert not [e for e in events if isinstance(e, Message) and e.level == "warning"]
    assert found.pixels.sum() == 10 * 40 * 48
    assert found.probabilities is not None


def test_what_is_finished_is_taken_up_by_workers_and_by_one_process(
    cluster, shared, whole, tmp_path
):
    for first, then in ((cluster, None), (None, cluster)):
        folder = tmp_path / str(first is None)
        for event in (stopped := job(shared, folder / "x.tif", first)):
            if isinstance(event, RegionEnd) and event.done == 4:
                stopped.close()
        again = list(job(shared, folder / "x.tif", then))
        done = next(e for e in again if isinstance(e, PredictionStarted)).done
        assert done >= 4
        assert len([e for e in again if isinstance(e, RegionEnd)]) == 10 - done
        assert contents(folder) == whole


def test_pixels_that_are_not_finite_are_told_as_one_process_tells_them(
    cluster, shared, tmp_path
):
    data = PAIR.image.data.astype(np.float32)
    data[1, 5, 7], data[8, 0, :3] = np.nan, np.inf
    image = write_image(tmp_path / "odd.tif", replace(PAIR.image, data=data))
    said = []
    for number, on in enumerate((None, cluster)):
        model, out = shared / "model.safetensors", tmp_path / f"{number}.tif"
        events = list(
            iter_predict(model, image, out=out, options=OPTIONS, scheduler=on)
        )
        said.append(
            [e.text for e in events if isinstance(e, Message) and e.level == "warning"]
        )
    assert said[0] == said[1]
    assert (
        "found 4 pixels that are not finite (NaN or infinite), the first at Z=1, Y=5, X=7"
        in said[1][-1]
    )


def test_several_files_go_through_the_same_workers(cluster, shared, tmp_path):
    for number in range(2):
        write_image(
            tmp_path / "scans" / f"s{number}.tif",
            replace(PAIR.image, data=PAIR.image.data[number : number + 3]),
        )
    options, model = OPTIONS.updated(probabilities=False), shared / "model.safetensors"
    ends = {}
    for name, on in (("here", None), ("there", cluster)):
        events = predict_files(
            model, [tmp_path / "scans"], tmp_path / name, options=options, scheduler=on
        )
        ends[name] = [
            (Path(e.source).name, e.status) for e in events if isinstance(e, FileEnd)
        ]
        (tmp_path / name / "report.csv").unlink()
    assert ends["there"] == ends["here"] == [("s0.tif", "done"), ("s1.tif", "done")]
    assert contents(tmp_path / "there") == contents(tmp_path / "here")


def test_axes_that_the_user_named_hold_for_workers_too(cluster, shared, tmp_path):
    image, model = shared / "image.tif", shared / "model.safetensors"
    for name, on in (("here", None), ("there", cluster)):
        list(
            predict_files(
                model,
                [image],
                tmp_path / name / "x.tif",
                options=OPTIONS,
                axes="TYX",
                scheduler=on,
            )
        )
    assert contents(tmp_path / "there") == contents(tmp_path / "here")


def test_what_workers_cannot_open_is_refused(cluster, shared, tmp_path):
    out, model = tmp_path / "x.tif", shared / "model.safetensors"
    with pytest.raises(
        RunError,
        match="easy: found an image in memory, and workers open images by path; write it",
    ):
        list(
            iter_predict(model, PAIR.image, out=out, options=OPTIONS, scheduler=cluster)
        )
    with pytest.raises(
        RunError,
        match="found a model in memory, and workers open models by path; save it",
    ):
        list(
            iter_predict(
                tiny_model(PAIR),
                shared / "image.tif",
                out=out,
                options=OPTIONS,
                scheduler=cluster,
            )
        )
    with pytest.raises(
        RunError, match=r"several processes need a file to write to \(out\)"
    ):
        list(
            iter_predict(
                model, shared / "image.tif", options=OPTIONS, scheduler=cluster
            )
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("hidden", ["image.tif", "model.safetensors", "the output"])
def test_a_path_that_a_worker_does_not_see_is_named(cluster, shared, tmp_path, hidden):
    place = str(shared / hidden) if hidden != "the output" else str(tmp_path)
    first = next(iter(cluster.workers()))
    code = f"""
from napari_strata.inference import dask
dask._kept = dask._exists
dask._exists = lambda path: not path.startswith({place!r})
"""
    cluster.client.run(exec, code, {}, workers=[first])
    try:
        with pytest.raises(
            RunError,
            match=rf"worker {first}: does not see {place}; image, models and output must lie",
        ):
            list(job(shared, tmp_path / "x.tif", cluster))
    finally:
        code = "from napari_strata.inference import dask; dask._exists = dask._kept"
        cluster.client.run(exec, code, {}, workers=[first])
    assert list(tmp_path.iterdir()) == []


def test_another_image_under_the_same_path_is_refused(cluster, shared, tmp_path):
    image = Image(PAIR.image.data[::-1].copy(), "ZYX", source=str(shared / "image.tif"))
    with pytest.raises(
        RunError,
        match=r"image\.tif: has different content on the worker; needed is the same file",
    ):
        list(
            iter_predict(
                shared / "model.safetensors",
                image,
                out=tmp_path / "x.tif",
                options=OPTIONS,
                scheduler=cluster,
            )
        )
    assert list(tmp_path.iterdir()) == []


def test_parts_of_another_origin_are_refused_and_stay(cluster, shared, tmp_path):
    model, image = shared / "model.safetensors", shared / "image.tif"
    list(
        iter_predict(model, image, out=tmp_path / "x.tif", options=OPTIONS, part="1/2")
    )
    before = contents(tmp_path)
    with pytest.raises(
        RunError,
        match="another choice of flips and turns; planes of other processes are not deleted",
    ):
        list(job(shared, tmp_path / "x.tif", cluster, tta=True))
    assert contents(tmp_path) == before
    list(job(shared, tmp_path / "x.tif", cluster))
    assert (tmp_path / "x.tif").exists()


@pytest.mark.parametrize(
    "address",
    ["local:0", "local:", "local", "somewhere", "tcp://host", "http://host:1"],
)
def test_addresses_that_are_none_are_refused(address, shared, tmp_path):
    with pytest.raises(
        RunError,
        match=r"needed is local:N for N workers on this machine, or tcp://host:port",
    ):
        list(job(shared, tmp_path / "x.tif", address))


def test_a_scheduler_that_does_not_answer_is_named_in_one_line(monkeypatch):
    monkeypatch.setattr(module, "CONNECT_TIMEOUT", 1.0)
    with pytest.raises(
        RunError,
        match=r"tcp://127.0.0.1:9: no scheduler answered in 1 s; start one with: dask sch",
    ):
        Cluster("tcp://127.0.0.1:9")


LONELY = {
    "dashboard_address": None,
    "scheduler_kwargs": {"dashboard_address": "127.0.0.1:0"},
}


def test_a_scheduler_without_workers_is_told(monkeypatch):
    from distributed import LocalCluster

    monkeypatch.setattr(module, "CONNECT_TIMEOUT", 1.0)
    with (
        LocalCluster(
            n_workers=0, processes=False, protocol="tcp://", **LONELY
        ) as empty,
        pytest.raises(
            RunError,
            match=r"the scheduler has no workers; start some, where the GPUs are, with: dask work",
        ),
    ):
        Cluster(empty.scheduler_address)


def test_without_dask_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(RunError, match=r'pip install "napari-strata\[distributed\]"'):
        Cluster("local:2")


FACTS = WorkerFacts((), current_versions(), "cpu", "fp32", 8)


def test_workers_that_compute_otherwise_are_refused():
    assert compare_workers({"tcp://a:1": FACTS, "tcp://b:1": FACTS}) == []
    with pytest.raises(
        RunError,
        match=r"worker tcp://a:1 computes on cpu in fp32, worker tcp://b:1 on cuda in bf16",
    ):
        compare_workers(
            {
                "tcp://a:1": FACTS,
                "tcp://b:1": replace(FACTS, device="cuda", precision="bf16"),
            }
        )
    old = FACTS.versions | {"napari-strata": "0.0.1"}
    with pytest.raises(
        RunError,
        match=r"tcp://b:1: found napari-strata 0\.0\.1, and here is .*; install the same",
    ):
        compare_workers({"tcp://a:1": FACTS, "tcp://b:1": replace(FACTS, versions=old)})
    other = FACTS.versions | {"torch": "1.0"}
    (message,) = compare_workers(
        {"tcp://a:1": FACTS, "tcp://b:1": replace(FACTS, versions=other)}
    )
    assert message.level == "warning"
    assert "tcp://b:1: found torch 1.0" in message.text


def test_what_a_worker_met_is_told_and_is_not_taken_for_a_lost_scheduler():
    from distributed import CancelledError

    def told(error: Exception, status: str) -> str:
        workers = object.__new__(ClusterPrediction)
        workers.cluster = SimpleNamespace(address="tcp://x:1")

        def result():
            raise error

        with pytest.raises(RunError) as caught:
            workers._result(SimpleNamespace(result=result, status=status), "part 1/4")
        return str(caught.value)

    assert told(PermissionError("no entry"), "error").startswith(
        "part 1/4: PermissionError on a worker: no entry. Correct this and run"
    )
    assert told(OSError("closed"), "lost").startswith("tcp://x:1: lost the scheduler")
    assert told(CancelledError("x"), "cancelled").startswith(
        "tcp://x:1: lost the scheduler"
    )


def test_a_cluster_whose_workers_are_gone_is_told(shared, tmp_path):
    client = SimpleNamespace(run=lambda *args, **kwargs: {})
    subject = PredictionInput(
        read_image(shared / "image.tif"), load_models(tiny_model(PAIR))
    )
    request = PredictionRequest.of(
        shared / "model.safetensors", subject, tmp_path / "x.tif", OPTIONS
    )
    with pytest.raises(RunError, match=r"tcp://x:1: the workers are gone"):
        ClusterPrediction(SimpleNamespace(address="tcp://x:1", client=client), request)


def test_workers_of_one_host_share_its_cores_and_all_have_as_manycommon_threads():
    assert common_threads({"tcp://a:1": FACTS}) == 8
    assert (
        common_threads({"tcp://a:1": FACTS, "tcp://a:2": FACTS, "tcp://b:1": FACTS})
        == 4
    )
    assert common_threads({f"tcp://a:{port}": FACTS for port in range(20)}) == 1


def test_each_worker_of_this_machine_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(module, "_worker_name", lambda: 6)
    assert [
        module._own_device(asked) for asked in ("auto", "cuda", "cuda:1", "cpu")
    ] == [
        "cuda:2",
        "cuda:2",
        "cuda:1",
        "cpu",
    ]
    monkeypatch.setattr(
        module, "_worker_name", lambda: "tcp://10.0.0.7:4000"
    )  # of somebody's own cluster
    assert module._own_device("auto") == "auto"


def test_workers_that_stay_away_end_it(cluster, shared, gate, monkeypatch, tmp_path):
    monkeypatch.setattr(module, "NO_WORKERS_TIMEOUT", 0.0)
    found = job(shared, tmp_path / "x.tif", cluster)
    while not isinstance(next(found), PredictionStarted):
        pass
    monkeypatch.setattr(Cluster, "workers", lambda self: {})
    with pytest.raises(
        RunError, match="local:2: no worker has been there for 0 s; start some"
    ):
        list(found)


def test_a_killed_worker_costs_the_plane_that_it_was_at(
    cluster, shared, whole, tmp_path, gate, monkeypatch
):
    (victim, *_) = cluster.client.run(os.getpid).values()
    lines = []

    def counted(self, real=ResumableOutput.remove):
        lines.extend(
            line
            for path in self.folder.glob("ledger*")
            for line in path.read_text().splitlines()[1:]
        )
        real(self)

    monkeypatch.setattr(ResumableOutput, "remove", counted)
    events = []
    for event in job(shared, tmp_path / "x.tif", cluster):
        events.append(event)
        if isinstance(event, RegionEnd) and event.done == 3:
            os.kill(victim, signal.SIGKILL)
        if isinstance(event, Message) and "lost worker" in event.text:
            gate.touch()
    assert contents(tmp_path) == whole
    assert (
        10 <= len(lines) <= 11
    )  # killed between a plane and its line, it is written twice
    assert [e.done for e in events if isinstance(e, RegionEnd)] == list(range(1, 11))
    assert any("lost worker" in e.text for e in events if isinstance(e, Message))
