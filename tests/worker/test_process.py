"""The real worker process: clean pipes, stopping at any moment, and the end of the viewer."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import napari_strata as ns
from helpers import TINY, easy_pair, tiny_model
from napari_strata.core.events import (
    BatchEnd,
    EpochEnd,
    Event,
    LabelsUpdated,
    Message,
    PredictionStarted,
    RegionEnd,
    TrainingEnd,
    TrainingStarted,
)
from napari_strata.worker.protocol import (
    PROTOCOL,
    AnyEvent,
    JobEnded,
    JobFailed,
    JobQueued,
    JobStarted,
    Refused,
    TargetOpened,
)
from napari_strata.worker.server import Interrupted, Server, is_from_interruption
from napari_strata.worker.transport import Inbox, Notice
from worker.client import COMMAND, TIMEOUT_S, Worker, train_request, worker

STOP = 60.0
"""Seconds for a stop, which takes less than a second on an idle machine."""
FOREVER = {"training.epochs": 100_000}

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")


@pytest.fixture(scope="module")
def shared() -> Iterator[Worker]:
    """A process for all tests that do not end it."""
    with worker() as client:
        client.ready()
        yield client
        assert client.process.poll() is None


def until_epoch(client: Worker, epoch: int = 1) -> None:
    client.receive_until(
        lambda _, event: isinstance(event, EpochEnd) and event.epoch >= epoch
    )


def wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + TIMEOUT_S
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def names(events: list[AnyEvent]) -> list[str]:
    return [type(event).__name__ for event in events]


def slow_prediction(folder: Path) -> dict[str, Any]:
    """A job whose only plane takes minutes: a million pixels in tiles of 8 x 8."""
    np.save(
        folder / "big.npy",
        np.random.default_rng(0).integers(0, 255, (2, 1600, 1600), np.uint8),
    )
    model = tiny_model().save(folder / "model.safetensors")
    request = {
        "kind": "predict",
        "model": str(model),
        "image": {"path": str(folder / "big.npy"), "axes": "ZYX"},
    }
    return request | {
        "job": "slow",
        "out": str(folder / "big_out.npy"),
        "tile": 8,
        "batch": 1,
        "device": "cpu",
    }


def test_a_training_sends_its_events_line_by_line(
    shared: Worker, tmp_path: Path
) -> None:
    request = train_request(tmp_path, easy_pair())
    start = len(shared.lines)
    events = shared.run_job(request)
    assert names(events[:1] + events[-2:]) == ["JobStarted", "TrainingEnd", "JobEnded"]
    assert [e.epoch for e in events if isinstance(e, EpochEnd)] == [1, 2]
    end = events[-1]
    assert isinstance(end, JobEnded)
    assert end.reason == "finished"
    assert [json.loads(line)["job"] for line in shared.lines[start:]] == ["t"] * len(
        events
    )
    recorded = ns.RunFolder.open(request["out"]).events()
    assert recorded == [e for e in events if isinstance(e, Event)]
    assert ns.Model.load(end.result.model).history == tuple(
        e for e in recorded if isinstance(e, EpochEnd)
    )


def test_a_running_training_reads_new_labels(shared: Worker, tmp_path: Path) -> None:
    pair = easy_pair((4, 64, 64))
    request = train_request(tmp_path, pair, overrides=FOREVER, unlabelled=[7])
    truth = np.asarray(pair.labels.data)
    painted = truth.copy()
    painted[1:] = 7
    np.save(tmp_path / "labels.npy", painted)
    shared.send(request)
    until_epoch(shared)
    painted[3] = truth[3]
    np.save(tmp_path / "more.npy", painted)
    change = {"changed": "labels", "job": "t"}
    shared.send(change | {"value": str(tmp_path / "more.npy")})
    events = shared.receive_until(lambda _, event: isinstance(event, LabelsUpdated))
    updated = events[-1]
    assert isinstance(updated, LabelsUpdated)
    record = ns.RunFolder.open(request["out"]).data()
    assert record["pairs"][0]["labels"] == str(tmp_path / "more.npy")
    assert record["training"][-1]["index"] == {"Z": 3}
    painted[2, 0, 0] = 9
    np.save(tmp_path / "wrong.npy", painted)
    for path, words in (("wrong.npy", "label value 9"), ("none.npy", "none.npy")):
        shared.send(change | {"value": str(tmp_path / path)})
        warning = shared.receive_until(lambda _, event: isinstance(event, Message))[-1]
        assert isinstance(warning, Message)
        assert words in warning.text
    until_epoch(shared)
    shared.send({"stop": "t"})
    assert shared.receive_result("t")[-1] == JobEnded(reason="stopped")
    assert updated in ns.RunFolder.open(request["out"]).events()


def test_a_training_stops_at_once_and_resumes(shared: Worker, tmp_path: Path) -> None:
    request = train_request(tmp_path, easy_pair(), overrides=FOREVER)
    shared.send(request)
    until_epoch(shared, 2)
    started = time.monotonic()
    shared.send({"stop": "t"})
    events = shared.receive_result("t")
    assert time.monotonic() - started < STOP
    assert events[-1] == JobEnded(reason="stopped")
    recorded = ns.RunFolder.open(request["out"]).events()
    assert isinstance(recorded[-1], TrainingEnd)
    assert recorded[-1].reason == "stopped"
    done = recorded[-1].epoch
    assert done >= 2
    again = shared.run_job(
        request | {"resume": True, "overrides": {"training.epochs": done + 1}}
    )
    assert [e.first_epoch for e in again if isinstance(e, TrainingStarted)] == [
        done + 1
    ]
    assert [e.epoch for e in again if isinstance(e, EpochEnd)] == [done + 1]
    assert names(again)[-1] == "JobEnded"


def test_stop_in_the_middle_of_a_plane(shared: Worker, tmp_path: Path) -> None:
    request = slow_prediction(tmp_path)
    shared.send(request)
    shared.receive_until(lambda _, event: isinstance(event, PredictionStarted))
    time.sleep(0.5)
    started = time.monotonic()
    shared.send({"stop": "slow"})
    events = shared.receive_result("slow")
    assert time.monotonic() - started < STOP
    assert events == [JobEnded(reason="stopped")]
    # The engine is as it was: the next job of the same sort works.
    easy = request | {"job": "next", "tile": None, "batch": None, "overwrite": True}
    ended = shared.run_job(easy)[-1]
    assert isinstance(ended, JobEnded)
    assert ended.reason == "finished"
    expected = ns.predict(
        request["model"], ns.Image(np.load(tmp_path / "big.npy"), "ZYX"), device="cpu"
    )
    np.testing.assert_array_equal(np.load(request["out"]), expected.data)


@pytest.mark.parametrize(
    ("job", "message"),
    [
        ({"kind": "train", "images": "a.tif"}, "out is missing"),
        (
            {"kind": "predict", "model": "nowhere", "image": "a.npy", "out": "b.npy"},
            "no such file",
        ),
        ({"kind": "info", "path": "no/such/file.tif"}, "no folder"),
        (
            {
                "kind": "train",
                "images": "a",
                "out": "b",
                "recipe": {"patches": {"sise": 3}},
            },
            "did you mean 'size'?",
        ),
    ],
)
def test_a_wrong_job_fails_with_a_message_and_the_worker_continues(
    shared: Worker, job: dict[str, Any], message: str
) -> None:
    failed = shared.run_job(job | {"job": "bad"})[-1]
    assert isinstance(failed, JobFailed)
    assert message in failed.text
    assert failed.kind == "StrataError"


def test_lines_that_are_not_requests_are_refused(shared: Worker) -> None:
    for line in (
        "garbage",
        "\x00\xff",
        "[]",
        '{"halt": 1}',
        '{"stop": "nobody"}',
        '{"changed": "labels", "job": "x"}',
        '{"changed": "labels", "job": "x", "value": "a.npy"}',
        '{"changed": "view", "job": "x", "value": {"Z": 1}}',
        "[" * 100_000,
        '{"kind": []}',
    ):
        shared.send(line)
        job, reply = shared.next()
        assert isinstance(reply, Refused), reply
        assert job is None
    shared.send({"kind": [], "job": "a"})
    job, event = shared.next()
    assert job == "a"
    assert isinstance(event, JobFailed)
    shared.send("")  # says nothing, and is not answered
    shared.send({"keep": "nobody"})
    assert shared.next() == (
        None,
        Refused(
            text="no job 'nobody' is running or waiting; it has ended, or never existed."
        ),
    )


def test_jobs_wait_for_earlier_jobs_and_info_jobs_do_not(
    shared: Worker, tmp_path: Path
) -> None:
    first = train_request(tmp_path / "first", easy_pair(), overrides=FOREVER)
    shared.send(first)
    until_epoch(shared)
    second = train_request(tmp_path / "second", easy_pair(), job="u")
    shared.send(second)
    assert isinstance(shared.receive_until(lambda job, _: job == "u")[-1], JobQueued)
    info = {"job": "i", "kind": "info", "path": first["out"]}
    shared.send(info)
    shared.receive_until(lambda job, event: job == "i" and isinstance(event, JobEnded))
    shared.send(second)
    refusal = shared.receive_until(lambda job, _: job is None)[-1]
    assert isinstance(refusal, Refused)
    assert "a job 'u' is already" in refusal.text
    for news in (
        {"changed": "labels", "job": "t", "value": {"path": "labels.npy"}},
        {"keep": "u"},
    ):
        shared.send(news)
    shared.send({"stop": "u"})
    waited = shared.receive_until(
        lambda job, event: job in ("u", None) or isinstance(event, JobEnded)
    )
    assert waited[-1] == JobEnded(reason="stopped")
    assert not (tmp_path / "second" / "run").exists()
    third = train_request(tmp_path / "third", easy_pair(), job="v")
    shared.send(third)
    shared.send({"stop": "t"})
    assert shared.receive_result("t")[-1] == JobEnded(reason="stopped")
    events = shared.receive_result("v")
    assert events[0] == JobStarted(kind="train")
    assert isinstance(events[-1], JobEnded)
    assert events[-1].reason == "finished"


def test_a_new_process_is_ready_first_and_ends_on_sigterm(tmp_path: Path) -> None:
    with worker() as client:
        ready = client.ready()
        assert (ready.protocol, ready.pid, ready.host) == (
            PROTOCOL,
            client.process.pid,
            socket.gethostname(),
        )
        assert torch.__version__.startswith(ready.versions["torch"])
        assert ready.devices["cpu"].startswith("CPU, ")
        request = train_request(tmp_path, easy_pair(), overrides=FOREVER)
        client.send(request)
        until_epoch(client, 2)
        client.process.send_signal(
            signal.SIGINT
        )  # Ctrl-C in the terminal of the viewer
        client.process.send_signal(signal.SIGHUP)  # and that terminal closed
        until_epoch(client, 6)
        started = time.monotonic()
        client.process.terminate()
        assert client.receive_result("t")[-1] == JobEnded(reason="stopped")
        assert client.end() == 0
        assert time.monotonic() - started < STOP
        assert client.errors == []
    run = ns.RunFolder.open(request["out"])
    assert run.events()[-1].reason == "stopped"  # type: ignore[attr-defined]
    assert run.load_checkpoint("last.pt")["progress"]
    assert len(ns.Model.load(run.path).history) >= 1


def test_a_command_may_be_a_shell_that_changes_folder_and_environment(
    tmp_path: Path,
) -> None:
    """Like ``ssh host python -m napari_strata.worker``."""
    script = f"echo Welcome; cd {tmp_path} && HOME=/nowhere LC_ALL=C exec {' '.join(COMMAND)}"
    with worker(command=["sh", "-c", script]) as client:
        with pytest.raises(ValueError):  # the greeting
            client.next()
        assert client.ready().pid == client.process.pid
        np.save(tmp_path / "µ.npy", np.zeros((4, 5), np.uint8))
        ended = client.run_job({"job": "i", "kind": "info", "path": "µ.npy"})[-1]
        assert isinstance(ended, JobFailed)
        assert "µ.npy" in ended.text
        client.process.terminate()  # idle, or still importing
        assert client.end() == 0
        assert client.errors == []


def test_a_training_ends_with_its_viewer(tmp_path: Path) -> None:
    request = train_request(tmp_path, easy_pair(), overrides=FOREVER)
    with worker() as client:
        client.send(request)
        client.send(request | {"job": "waiting", "out": str(tmp_path / "never")})
        until_epoch(client, 2)
        client.close_stdin()
        assert client.end() == 0
        rest = client.receive_until(
            lambda job, event: job == "t" and isinstance(event, JobEnded)
        )
        assert rest[-1] == JobEnded(reason="stopped")
        assert rest.count(JobEnded(reason="stopped")) == 2
    assert not (tmp_path / "never").exists()
    assert not (tmp_path / "run" / "running.json").exists()
    run = ns.RunFolder.open(request["out"])
    ended = run.events()[-1]
    assert isinstance(ended, TrainingEnd)
    assert ended.reason == "stopped"
    assert run.load_checkpoint("last.pt")["progress"]
    assert ns.Model.load(run.path).spec.classes.values == (0, 255)


@pytest.mark.slow
def test_a_training_that_is_kept_continues_without_a_viewer(tmp_path: Path) -> None:
    request = train_request(tmp_path, easy_pair(), overrides=FOREVER)
    command = [sys.executable, str(Path(__file__).with_name("noisy.py")), "quietly"]
    run, note = Path(request["out"]), Path(request["out"]) / "running.json"
    with worker(command=command) as client:
        client.send(request)
        until_epoch(client, 1)
        client.send({"keep": "t"})
        client.send({"job": "next", "kind": "info", "path": request["out"]})
        client.receive_result("next")
        client.close_stdin()
        wait_until(note.exists)
        assert json.loads(note.read_text()) == {
            "job": "t",
            "pid": client.process.pid,
            "host": socket.gethostname(),
        }
        written = len(ns.RunFolder.open(run).events())
        wait_until(lambda: len(ns.RunFolder.open(run).events()) > written)
        wait_until(lambda: "noise" in (run / "log.txt").read_text())
        client.process.terminate()
        assert client.end() == 0
    assert not note.exists()
    end = ns.RunFolder.open(run).events()[-1]
    assert isinstance(end, TrainingEnd)
    assert end.reason == "stopped"


@pytest.mark.slow
def test_trainings_that_are_kept_end_without_a_viewer(tmp_path: Path) -> None:
    request = train_request(tmp_path, easy_pair(), keep=True)
    following = request | {"job": "next", "out": str(tmp_path / "next")}
    with worker() as client:
        client.send(request)
        client.send(following)
        # The viewer goes at once, and with it everything that reads.
        client.close_stdin()
        assert client.end() == 0
    for run in (request["out"], following["out"]):
        end = ns.RunFolder.open(run).events()[-1]
        assert isinstance(end, TrainingEnd)
        assert (end.reason, end.epoch) == ("finished", 2)
        assert len(ns.Model.load(run).history) == 2
        assert not (Path(run) / "running.json").exists()


@pytest.mark.slow
def test_a_killed_training_resumes_to_the_same_weights(
    tmp_path: Path,
) -> None:
    pair = easy_pair()
    request = train_request(tmp_path, pair, overrides=FOREVER)
    with worker() as client:
        client.send(request)
        until_epoch(client, 3)
        os.kill(client.process.pid, signal.SIGKILL)
        assert client.end() == -signal.SIGKILL
    done = ns.RunFolder.open(request["out"]).load_checkpoint("last.pt")
    assert len(done["progress"]["history"]) >= 3
    epochs = len(done["progress"]["history"]) + 1
    goes_on = ns.iter_train(
        "default", pair, out=request["out"], resume=True, device="cpu"
    )
    recipe = ns.Recipe.parse(TINY).with_overrides(request["overrides"])
    whole = ns.iter_train(recipe, pair, out=tmp_path / "whole", device="cpu")
    for events in (goes_on, whole):
        next(e for e in events if isinstance(e, EpochEnd) and e.epoch == epochs)
        events.close()  # type: ignore[attr-defined]
    states = [
        ns.RunFolder.open(path).load_checkpoint("last.pt")
        for path in (request["out"], tmp_path / "whole")
    ]
    for name, value in states[1]["learner"]["network"].items():
        assert torch.equal(value, states[0]["learner"]["network"][name]), name


def test_nothing_but_events_reaches_the_viewer(tmp_path: Path) -> None:
    """Libraries, C code and child processes print all the time; a job fails because of a bug, and the next one works."""
    command = [sys.executable, str(Path(__file__).with_name("noisy.py"))]
    with worker(command=command) as client:
        client.ready()
        failed = client.run_job({"job": "bug", "kind": "info", "path": "BUG"})[-1]
        assert isinstance(failed, JobFailed)
        assert failed.kind == "ZeroDivisionError"
        assert failed.text.startswith("unexpected ZeroDivisionError: ")
        events = client.run_job(train_request(tmp_path, easy_pair()))
        assert isinstance(events[-1], JobEnded)
        client.close_stdin()
        assert client.end() == 0
        assert all(json.loads(line)["event"] for line in client.lines)
        heard = "".join(client.errors)
    for sort in (
        "noise of print",
        "noise of write",
        "noise of C",
        "noise of a child",
        "in _read_nothing",
    ):
        assert sort in heard, sort


@pytest.mark.slow
def test_a_worker_ends_when_nobody_reads_its_events(tmp_path: Path) -> None:
    read, write = os.pipe()
    request = train_request(tmp_path, easy_pair(), overrides=FOREVER)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        COMMAND,
        stdin=subprocess.PIPE,
        stdout=write,
        stderr=subprocess.PIPE,
        env=environment,
    )
    os.close(write)
    assert process.stdin is not None
    process.stdin.write((json.dumps(request) + "\n").encode())
    process.stdin.flush()
    with open(read, "rb", buffering=0) as replies:
        assert b"Ready" in replies.read(2**16)
    with process:
        assert process.wait(TIMEOUT_S) == 0


def test_predictions_fill_the_array_that_is_mapped(
    shared: Worker, tmp_path: Path
) -> None:
    pair = easy_pair((4, 64, 64))
    np.save(tmp_path / "a.npy", pair.image.data)
    model = tiny_model().save(tmp_path / "model.safetensors")
    request = {
        "kind": "predict",
        "model": str(model),
        "image": {"path": str(tmp_path / "a.npy"), "axes": "ZYX"},
    }
    shared.send(
        request | {"job": "p", "out": str(tmp_path / "out.npy"), "device": "cpu"}
    )
    opened = shared.receive_until(lambda _, event: isinstance(event, TargetOpened))[-1]
    assert isinstance(opened, TargetOpened)
    mapped = np.load(opened.path, mmap_mode="r")
    events = shared.receive_result("p")
    assert [e.region for e in events if isinstance(e, RegionEnd)] == [
        {"Z": z} for z in range(4)
    ]
    np.testing.assert_array_equal(
        mapped, ns.predict(model, pair.image, device="cpu").data
    )
    assert mapped.any()


def test_a_stop_waits_for_the_current_batch(shared: Worker, tmp_path: Path) -> None:
    """The current batch is finished before the job stops."""
    shared.send(train_request(tmp_path, easy_pair(), overrides=FOREVER))
    until_epoch(shared)
    shared.send({"stop": "t"})
    shared.receive_result("t")
    told = [json.loads(line) for line in shared.lines]
    events = ns.RunFolder.open(tmp_path / "run").events()
    last = [e for e in events if isinstance(e, (BatchEnd, EpochEnd))][-1]
    assert told[-2]["event"] == type(last).__name__
    assert told[-2]["epoch"] == last.epoch


def test_a_request_that_breaks_the_parser_has_no_other_effect(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sent: list[AnyEvent] = []

    class Recorder:
        def send(self, event: AnyEvent, job: str | None = None) -> None:
            sent.append(event)

    def broken(line: bytes) -> Any:
        raise ZeroDivisionError("a mistake of ours")

    inbox = Inbox()
    inbox.put(b'{"job": "t", "kind": "train"}')
    inbox.put(Notice.TERMINATE)
    monkeypatch.setattr("napari_strata.worker.server.decode_request", broken)
    assert Server(inbox, Recorder())._next_job() is None  # type: ignore[arg-type]
    text = "unexpected ZeroDivisionError: a mistake of ours"
    assert sent == [Refused(text=text)]


def test_errors_that_follow_an_interruption_are_recognised() -> None:
    def raise_on_the_way_out(first: BaseException) -> None:
        try:
            raise first
        finally:
            raise RuntimeError("unexpected pos")

    for first, stopped in ((Interrupted(), True), (ValueError(), False)):
        with pytest.raises(RuntimeError) as caught:
            raise_on_the_way_out(first)
        assert is_from_interruption(caught.value) is stopped


def test_previews_do_not_change_the_training(shared: Worker, tmp_path: Path) -> None:
    changes = {"overrides": {"training.epochs": 4, "training.seed": 3}}
    plain, watched = tmp_path / "plain", tmp_path / "watched"
    shared.run_job(train_request(plain, easy_pair(), "plain", **changes))
    request = train_request(watched, easy_pair(), "watched", **changes)
    shared.send(request)
    answered = []
    for epoch in (1, 2):
        until_epoch(shared, epoch)
        look = {
            "job": f"look {epoch}",
            "kind": "predict",
            "model": request["out"],
            "image": request["images"],
            "out": str(watched / "look.npy"),
            "region": {"Z": 0},
            "overwrite": True,
            "device": "cpu",
            "aside": True,
        }
        shared.send(look)
        events = shared.receive_until(lambda job, event: isinstance(event, JobEnded))
        answered.append(events[-1])
    shared.receive_result("watched")
    assert [end.reason for end in answered if isinstance(end, JobEnded)] == [
        "finished",
        "finished",
    ]
    states = [
        torch.load(p / "run" / "last.pt", weights_only=True)["learner"]
        for p in (plain, watched)
    ]
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)


def test_previews_can_be_stopped_and_do_not_delay_a_stop_of_the_training(
    shared: Worker, tmp_path: Path
) -> None:
    request = train_request(tmp_path, easy_pair(), overrides=FOREVER)
    look = slow_prediction(tmp_path) | {"aside": True, "overwrite": True}
    shared.send(request)
    until_epoch(shared)
    shared.send(look)
    shared.receive_until(
        lambda job, event: job == "slow" and isinstance(event, PredictionStarted)
    )
    started = time.monotonic()
    shared.send({"stop": "slow"})
    events = shared.receive_result("slow")
    assert time.monotonic() - started < STOP
    assert events[-1] == JobEnded(reason="stopped")
    assert "RegionEnd" not in names(events), "the plane was finished first"
    shared.receive_until(lambda job, event: job == "t" and isinstance(event, EpochEnd))
    for pause in (
        0.0,
        0.5,
    ):  # between two events of what is done aside, and in the middle of its step
        shared.send(look | {"job": "again"})
        shared.receive_until(
            lambda job, event: job == "again" and isinstance(event, PredictionStarted)
        )
        time.sleep(pause)
        started = time.monotonic()
        shared.send({"stop": "t"})
        ended = shared.receive_until(
            lambda job, event: job == "t" and isinstance(event, JobEnded)
        )
        assert time.monotonic() - started < STOP
        assert ended.count(JobEnded(reason="stopped")) == 2
        assert "RegionEnd" not in names(ended), "the plane was finished first"
        shared.send(request | {"resume": True})
        until_epoch(shared)
    shared.send({"stop": "t"})
    shared.receive_result("t")


def test_failed_previews_do_not_disturb_the_training(
    shared: Worker, tmp_path: Path
) -> None:
    request = train_request(tmp_path, easy_pair(), overrides=FOREVER)
    shared.send(request)
    until_epoch(shared)
    shared.send(
        {"job": "x", "kind": "predict", "model": str(tmp_path / "nothing"), "image": request["images"],
         "out": str(tmp_path / "x.npy"), "aside": True}
    )  # fmt: skip
    failed = shared.receive_until(
        lambda job, event: job == "x" and isinstance(event, JobFailed)
    )[-1]
    assert isinstance(failed, JobFailed)
    assert failed.kind == "StrataError"
    until_epoch(shared, 3)
    shared.send({"stop": "t"})
    end = shared.receive_result("t")[-1]
    assert end == JobEnded(reason="stopped")


def test_a_worker_can_have_a_low_priority(tmp_path: Path) -> None:
    with worker(command=[*COMMAND, "--nice", "7"]) as client:
        client.ready()
        niceness = os.getpriority(os.PRIO_PROCESS, client.process.pid)
        assert niceness == min(os.getpriority(os.PRIO_PROCESS, 0) + 7, 19)
