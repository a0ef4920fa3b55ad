"""The client with the real worker, and with programs that misbehave."""

from __future__ import annotations

import os
import signal
import sys
import textwrap
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qtpy.QtCore import QTimer

from napari_strata.core.events import BatchEnd, EpochEnd, TrainingEnd, TrainingStarted
from napari_strata.core.image import Image
from napari_strata.io import write_image
from napari_strata.widgets.work.client import Outcome, WorkerClient
from napari_strata.widgets.work.process import explain
from napari_strata.worker.protocol import InfoJob, PredictResult, TrainJob

COMMAND = [sys.executable, "-m", "napari_strata.worker", "--nice", "5"]
READY = '{"event": "Ready", "protocol": 1, "pid": 1, "host": "h", "versions": {}, "devices": {}, "seconds": 0, "job": null}'
TINY = {
    "network": {"kind": "unet", "widths": [4, 8]},
    "patches": {"size": 32, "per_epoch": 16},
    "training": {"epochs": 2, "batch_size": 4, "averaging": None, "precision": "fp32"},
}

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")


@pytest.fixture
def make(qtbot: Any) -> Iterator[Callable[..., WorkerClient]]:
    made: list[WorkerClient] = []

    def build(command: list[str] = COMMAND) -> WorkerClient:
        made.append(WorkerClient(command))
        return made[-1]

    yield build
    for one in made:
        process = one._process
        one.close()
        qtbot.waitUntil(
            lambda p=process: p is None or p.status is not None or bool(p.problem),
            timeout=120_000,
        )


@pytest.fixture
def program(tmp_path: Path) -> Callable[[str], list[str]]:
    """Write a program that sends Ready and then runs the given code."""

    def write(body: str, *, ready: str = READY) -> list[str]:
        file = tmp_path / "program.py"
        start = (
            f"import sys, time, os, signal, json\nprint('''{ready}''', flush=True)\n"
        )
        file.write_text(start + textwrap.dedent(body))
        return [sys.executable, str(file)]

    return write


def _request(client: WorkerClient, folder: Path, **change: Any) -> TrainJob:
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 255, (2, 64, 64), np.uint8)
    folder.mkdir(exist_ok=True)
    np.save(folder / "image.npy", grey)
    write_image(folder / "image.tif", Image(grey, "ZYX"), overwrite=True)
    np.save(folder / "labels.npy", (grey > 127).astype(np.uint8))
    return TrainJob(
        job=client.new_id(),
        images=({"path": str(folder / "image.npy"), "axes": "ZYX"},),
        labels=(str(folder / "labels.npy"),),
        out=str(folder / "run"),
        recipe=TINY,
        device="cpu",
        **change,
    )


def _end(qtbot: Any, handle: Any, timeout: int = 60_000) -> Outcome:
    qtbot.waitUntil(lambda: handle.outcome is not None, timeout=timeout)
    return handle.outcome  # type: ignore[no-any-return]


def test_events_are_emitted_and_the_process_is_reused(
    make: Any, qtbot: Any, tmp_path: Path
) -> None:
    client = make()
    assert client.current_state == "off"
    states: list[str] = []
    client.state.connect(states.append)
    handle = client.submit(_request(client, tmp_path))
    events: list[object] = []
    ended: list[Outcome] = []
    handle.replied.connect(events.append)
    handle.ended.connect(ended.append)
    outcome = _end(qtbot, handle)
    assert outcome.status == "finished", outcome
    assert outcome.result.epoch == 2
    assert ended == [outcome]
    kinds = [type(event) for event in events]
    assert kinds.count(EpochEnd) == 2
    assert (
        kinds.index(TrainingStarted)
        < kinds.index(BatchEnd)
        < kinds.index(EpochEnd)
        < kinds.index(TrainingEnd)
    )
    assert states == ["starting", "busy", "ready"]
    assert client.ready is not None
    pid = client._process.pid
    again = client.submit(InfoJob(job=client.new_id(), path=str(tmp_path / "run")))
    assert _end(qtbot, again).result.what == "model"
    assert client._process.pid == pid


def test_a_mistake_of_the_user_fails_with_a_message(
    make: Any, qtbot: Any, tmp_path: Path
) -> None:
    client = make()
    outcome = _end(
        qtbot,
        client.submit(InfoJob(job=client.new_id(), path=str(tmp_path / "nothing.tif"))),
    )
    assert outcome.status == "failed"
    assert "nothing.tif" in outcome.text


@pytest.mark.parametrize("seconds", [0.0, 0.3, 2.5])
def test_stop_at_any_moment(
    make: Any, qtbot: Any, tmp_path: Path, seconds: float
) -> None:
    client = make()
    if seconds:
        client.warm()
        qtbot.waitUntil(lambda: client.ready is not None, timeout=120_000)
    handle = client.submit(
        _request(client, tmp_path, overrides={"training.epochs": 100_000})
    )
    qtbot.wait(int(1000 * seconds))
    start = time.perf_counter()
    handle.stop()
    outcome = _end(qtbot, handle)
    assert outcome.status == "stopped"
    assert time.perf_counter() - start < 1.5  # asked: 1; this machine may be busy
    other = client.submit(
        InfoJob(job=client.new_id(), path=str(tmp_path / "image.tif"))
    )
    assert _end(qtbot, other).status == "finished"


def test_a_process_that_hangs_is_killed_and_waiting_jobs_run_in_the_next(
    make: Any, qtbot: Any, tmp_path: Path
) -> None:
    client = make()
    handle = client.submit(
        _request(client, tmp_path, overrides={"training.epochs": 100_000})
    )
    qtbot.waitUntil(lambda: client.ready is not None, timeout=120_000)
    qtbot.wait(500)
    waiting = client.submit(_request(client, tmp_path / "other"))
    os.kill(client._process.pid, signal.SIGSTOP)
    start = time.perf_counter()
    handle.stop()
    assert _end(qtbot, handle).status == "stopped"
    assert time.perf_counter() - start < 1.5
    assert _end(qtbot, waiting).status == "finished"


def test_a_killed_worker_is_reported_and_the_next_request_starts_another(
    make: Any, qtbot: Any, tmp_path: Path
) -> None:
    client = make()
    handle = client.submit(
        _request(client, tmp_path, overrides={"training.epochs": 100_000})
    )
    epochs: list[object] = []
    handle.replied.connect(
        lambda event: epochs.append(event) if isinstance(event, EpochEnd) else None
    )
    qtbot.waitUntil(lambda: bool(epochs), timeout=120_000)
    os.kill(client._process.pid, signal.SIGKILL)
    outcome = _end(qtbot, handle)
    assert outcome.status == "died"
    assert "killed" in outcome.text
    assert "smaller patches" in outcome.text
    assert "press Resume" in outcome.text
    assert client.current_state == "off"
    on = _request(client, tmp_path, resume=True)
    resumed = client.submit(
        on.model_copy(update={"overrides": {"training.epochs": len(epochs) + 1}})
    )
    assert _end(qtbot, resumed).status == "finished"


def test_a_missing_command(make: Any, qtbot: Any) -> None:
    client = make(["/nowhere/python", "-m", "napari_strata.worker"])
    outcome = _end(qtbot, client.submit(InfoJob(job="1", path="x")))
    assert outcome.status == "died"
    assert "could not be started" in outcome.text
    assert "/nowhere/python" in outcome.text
    assert "Preferences" in outcome.text


def test_a_command_that_fails_shows_its_last_output(
    make: Any, program: Any, qtbot: Any
) -> None:
    client = make(
        program("print('cannot open libfoo', file=sys.stderr, flush=True); sys.exit(3)")
    )
    outcome = _end(qtbot, client.submit(InfoJob(job="1", path="x")))
    assert outcome.status == "died"
    assert "status 3" in outcome.text
    assert "cannot open libfoo" in outcome.text


def test_another_protocol_is_refused(make: Any, program: Any, qtbot: Any) -> None:
    client = make(
        program(
            "sys.stdin.read()", ready=READY.replace('"protocol": 1', '"protocol": 99')
        )
    )
    outcome = _end(qtbot, client.submit(InfoJob(job="1", path="x")))
    assert outcome.status == "failed"
    assert "install the same version" in outcome.text
    assert client.command[1] in outcome.text


def test_a_worker_that_does_not_start_is_given_up(
    make: Any, program: Any, qtbot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("napari_strata.widgets.work.client.STARTUP_TIMEOUT_S", 8)
    client = make(program("sys.stdin.read()", ready="Welcome to gpu-host!"))
    outcome = _end(qtbot, client.submit(InfoJob(job="1", path="x")))
    assert outcome.status == "died"
    assert "did not start within" in outcome.text
    assert "Welcome to gpu-host!" in outcome.text


def test_other_output_is_ignored(make: Any, program: Any, qtbot: Any) -> None:
    body = """
        print('Last login: Monday', flush=True)
        job = json.loads(sys.stdin.readline())['job']
        print('\\x00\\xff not json', flush=True)
        print(json.dumps({'event': 'JobEnded', 'reason': 'finished', 'result': {'out': 'x'}, 'job': job}), flush=True)
        sys.stdin.read()
    """
    outcome = _end(qtbot, make(program(body)).submit(InfoJob(job="1", path="x")))
    assert outcome == Outcome("finished", result=PredictResult(out="x"))


def test_many_steps_do_not_block_the_viewer(
    make: Any, program: Any, qtbot: Any
) -> None:
    body = """
        job = json.loads(sys.stdin.readline())['job']
        for i in range(20000):
            step = {'event': 'BatchEnd', 'epoch': 1, 'batch': i, 'batches': 20000, 'loss': 1.0, 'learning_rate': 1.0,
                    'seconds': 0.0, 'job': job}
            print(json.dumps(step))
        print(json.dumps({'event': 'Message', 'text': 'after the flood', 'level': 'info', 'job': job}))
        print(json.dumps({'event': 'JobEnded', 'reason': 'finished', 'result': {}, 'job': job}), flush=True)
        sys.stdin.read()
    """
    gaps, last = [], [time.perf_counter()]

    def tick() -> None:
        now = time.perf_counter()
        gaps.append(now - last[0])
        last[0] = now

    timer = QTimer()
    timer.setInterval(10)
    timer.timeout.connect(tick)
    client = make(program(body))
    handle = client.submit(InfoJob(job="1", path="x"))
    events: list[object] = []
    handle.replied.connect(events.append)
    qtbot.waitUntil(lambda: client.ready is not None, timeout=120_000)
    last[0] = time.perf_counter()
    timer.start()
    assert _end(qtbot, handle).status == "finished"
    timer.stop()
    print(f"{len(events)} events shown, worst pause {1000 * max(gaps):.0f} ms")
    batches = [event.batch for event in events if isinstance(event, BatchEnd)]
    assert batches == sorted(batches)
    assert batches[-1] == 19999
    assert getattr(events[-1], "text", "") == "after the flood"
    assert max(gaps) < 0.2


FAKE = """
    for line in sys.stdin:
        request = json.loads(line)
        job = request.get('job')
        if job is None:
            continue
        print(json.dumps({'event': 'JobStarted', 'kind': request['kind'], 'job': job}), flush=True)
        END
"""


def test_stopping_previews_and_waiting_jobs_does_not_end_the_running_job(
    make: Any, program: Any, qtbot: Any
) -> None:
    """A preview or waiting job that cannot be stopped in time is dropped; the process and its training continue."""
    client = make(program(FAKE.replace("END", "pass")))
    training = client.submit(TrainJob(job="t", images=("a",), out="b"))
    beside = client.submit(InfoJob(job="i", path="x"))
    behind = client.submit(TrainJob(job="u", images=("a",), out="c"))
    qtbot.waitUntil(lambda: training.started and beside.started, timeout=120_000)
    process = client._process
    for handle in (beside, behind):
        handle.stop()
        assert _end(qtbot, handle).status == "stopped"
    qtbot.wait(1000)
    assert client._process is process
    assert training.outcome is None
    assert process.status is None


def test_waiting_jobs_survive_a_terminated_process(
    make: Any, program: Any, qtbot: Any
) -> None:
    """A terminated worker reports all its jobs as stopped, although only one was to be stopped."""
    body = """
        heard = []
        def leave(*_):
            for job in heard:
                print(json.dumps({'event': 'JobEnded', 'reason': 'stopped', 'result': {}, 'job': job}), flush=True)
            os._exit(0)
        signal.signal(signal.SIGTERM, leave)
        for line in sys.stdin:
            request = json.loads(line)
            if 'stop' in request:
                continue
            heard.append(request['job'])
            if request['job'] == 'u' and len(heard) == 1:
                print(json.dumps({'event': 'JobEnded', 'reason': 'finished', 'result': {}, 'job': 'u'}), flush=True)
    """
    client = make(program(body))
    first = client.submit(TrainJob(job="t", images=("a",), out="b"))
    second = client.submit(TrainJob(job="u", images=("a",), out="c"))
    qtbot.waitUntil(lambda: client.ready is not None, timeout=120_000)
    first.stop()
    assert _end(qtbot, first).status == "stopped"
    assert _end(qtbot, second).status == "finished"


def test_a_worker_that_ignores_signals_is_killed_within_a_second(
    make: Any, program: Any, qtbot: Any
) -> None:
    client = make(
        program(
            "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
            + textwrap.dedent(FAKE).replace("END", "pass")
        )
    )
    handle = client.submit(TrainJob(job="t", images=("a",), out="b"))
    qtbot.waitUntil(lambda: handle.started, timeout=120_000)
    start, process = time.perf_counter(), client._process
    handle.stop()
    outcome = _end(qtbot, handle)
    assert time.perf_counter() - start < 1.2
    assert (outcome.status, outcome.text) == (
        "stopped",
        "Stopped; the current step was interrupted.",
    )
    qtbot.waitUntil(lambda: process.status == -signal.SIGKILL, timeout=120_000)


def test_after_an_unexpected_error_there_is_a_new_process(
    make: Any, program: Any, qtbot: Any
) -> None:
    end = "print(json.dumps({'event': 'JobFailed', 'text': 'CUDA error', 'kind': KIND, 'job': job}), flush=True)"
    client = make(program(FAKE.replace("END", end.replace("KIND", "request['path']"))))
    for kind, same in (("StrataError", True), ("AcceleratorError", False)):
        client.warm()
        qtbot.waitUntil(lambda: client.ready is not None, timeout=120_000)
        process = client._process
        assert (
            _end(qtbot, client.submit(InfoJob(job=kind, path=kind))).status == "failed"
        )
        assert (client._process is process) is same


def test_stop_before_the_start_sends_nothing(
    make: Any, program: Any, qtbot: Any, tmp_path: Path
) -> None:
    body = f"""
        for line in sys.stdin:
            open({str(tmp_path / "heard")!r}, 'a').write(line)
    """
    client = make(program(body))
    handle = client.submit(TrainJob(job="t", images=("a",), out="b"))
    handle.stop()
    assert handle.outcome is None
    assert _end(qtbot, handle, 1000) == Outcome("stopped", "Stopped before it began.")
    qtbot.waitUntil(lambda: client.current_state == "ready", timeout=120_000)
    client.submit(TrainJob(job="u", images=("a",), out="b"))
    qtbot.waitUntil(
        lambda: (
            (tmp_path / "heard").exists() and (tmp_path / "heard").read_text() != ""
        ),
        timeout=120_000,
    )
    assert '"job":"t"' not in (tmp_path / "heard").read_text()


def test_a_client_may_be_released_while_a_job_is_being_stopped(qtbot: Any) -> None:
    # PySide6 crashed: the last reference to the client was in what Qt was deleting.
    for _ in range(5):
        client = WorkerClient([sys.executable, "-c", "import time; time.sleep(60)"])
        client.submit(InfoJob(job="info", path="file")).stop()
        client.close()
        reference = weakref.ref(client)
        del client
        qtbot.wait(50)
        assert reference() is None


def test_a_shell_that_changes_folder_and_environment(
    make: Any, qtbot: Any, tmp_path: Path
) -> None:
    script = tmp_path / "remote.sh"
    script.write_text(
        "#!/bin/sh\necho 'Welcome to this server'\ncd /tmp\nexport STRATA_TEST=1\n"
        f"exec {sys.executable} -m napari_strata.worker\n"
    )
    script.chmod(0o755)
    client = make([str(script)])
    assert _end(qtbot, client.submit(_request(client, tmp_path))).status == "finished"


def test_closing_ends_the_process_and_the_jobs(
    make: Any, qtbot: Any, tmp_path: Path
) -> None:
    client = make()
    handle = client.submit(
        _request(client, tmp_path, overrides={"training.epochs": 100_000})
    )
    qtbot.waitUntil(lambda: client.ready is not None, timeout=120_000)
    process = client._process
    start = time.perf_counter()
    client.close()
    assert time.perf_counter() - start < 0.1
    assert handle.outcome is not None
    qtbot.waitUntil(lambda: process.status is not None, timeout=120_000)
    assert process.status == 0


def test_a_kept_training_continues_when_the_client_closes(
    make: Any, qtbot: Any, tmp_path: Path
) -> None:
    client = make()
    handle = client.submit(_request(client, tmp_path, overrides={"training.epochs": 6}))
    epochs: list[object] = []
    handle.replied.connect(
        lambda event: epochs.append(event) if isinstance(event, EpochEnd) else None
    )
    handle.keep(True)
    qtbot.waitUntil(lambda: bool(epochs), timeout=120_000)
    process = client._process
    client.close()
    qtbot.waitUntil(lambda: process.status == 0, timeout=120_000)
    assert (tmp_path / "run" / "metrics.csv").read_text().count("\n") == 7


@pytest.mark.parametrize(
    ("status", "lines", "said"),
    [
        (-9, [], "ran out of memory"),
        (137, [], "ran out of memory"),
        (1, ["torch.OutOfMemoryError: CUDA out of memory"], "ran out of memory"),
        (-11, ["Fatal Python error"], "segmentation fault"),
        (-15, [], "another program"),
        (2, ["No module named napari_strata"], "No module named napari_strata"),
    ],
)
def test_crashes_are_explained(status: int, lines: list[str], said: str) -> None:
    assert said in explain(["python"], status, lines)
