"""The process of a worker, without Qt: it never blocks and always ends."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from queue import Queue

import pytest

from napari_strata.widgets.work.process import Process, end_process_tree

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")


def start(command: list[str]) -> tuple[Process, Queue[bytes], Queue[bool]]:
    said: Queue[bytes] = Queue()
    over: Queue[bool] = Queue()
    process = Process(command, said.put, lambda: over.put(True))
    process.start()
    return process, said, over


def wait_until(true: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    with open(f"/proc/{pid}/stat") as stat:  # in a container nobody may bury an orphan
        return stat.read().rsplit(")", 1)[1].split()[0] == "Z"


def test_lines_are_received_and_the_end_is_reported_once() -> None:
    process, said, over = start(
        ["sh", "-c", "read x; echo got $x; echo why >&2; exit 3"]
    )
    process.write("this")
    assert said.get(timeout=10) == b"got this\n"
    assert over.get(timeout=10)
    assert (process.status, process.last_lines(), over.qsize()) == (3, ["why"], 0)


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="reads /proc")
def test_a_kill_also_ends_children() -> None:
    """A shell script without exec: if only the shell were killed, the worker would continue."""
    process, said, over = start(["sh", "-c", "sleep 100 & echo $!; wait"])
    child = int(said.get(timeout=10))
    process.kill()
    assert over.get(timeout=10)
    wait_until(lambda: is_gone(child))
    assert process.status == -9


def test_a_kill_before_the_start_takes_effect() -> None:
    over: Queue[bool] = Queue()
    process = Process(["sleep", "100"], print, lambda: over.put(True))
    process.kill()
    process.start()
    assert over.get(timeout=10)
    assert process.status == -9


def test_a_process_that_does_not_exit_is_killed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("napari_strata.widgets.work.process.EXIT_TIMEOUT_S", 0.2)
    process, said, over = start(
        ["sh", "-c", "trap '' TERM; echo on; while :; do sleep 0.05; done"]
    )
    said.get(timeout=10)
    process.close()
    assert over.get(timeout=10)
    assert process.status == -9


def test_a_process_with_a_kept_job_continues(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("napari_strata.widgets.work.process.EXIT_TIMEOUT_S", 0.1)
    process, said, over = start(["sh", "-c", "echo on; cat; sleep 1"])
    said.get(timeout=10)
    process.close(force=False)
    assert over.get(timeout=10)
    assert process.status == 0


def test_a_detached_process_calls_nothing() -> None:
    process, said, over = start(["sh", "-c", "read x; echo late"])
    process.detach()
    process.write("go")
    wait_until(lambda: process.status == 0)
    assert said.empty()
    assert over.empty()


def test_a_process_tree_is_ended_without_a_process_group() -> None:
    """As on Windows, where children are not in a process group."""
    child = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import subprocess, sys, time\n"
            "own = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
            "print(own.pid, flush=True); time.sleep(60)",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    grandchild = int(child.stdout.readline())
    end_process_tree(child.pid)
    child.wait(timeout=10)
    wait_until(lambda: is_gone(grandchild))
    child.stdout.close()
    end_process_tree(child.pid)  # gone already: nothing happens
