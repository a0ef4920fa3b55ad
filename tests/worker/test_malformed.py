"""Malformed requests are answered with an error and disturb no job."""

from __future__ import annotations

import json
import math
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import easy_pair
from napari_strata.core.events import EpochEnd
from napari_strata.worker.protocol import (
    AnyEvent,
    JobEnded,
    JobFailed,
    JobQueued,
    JobStarted,
    Refused,
    RequestError,
    decode_request,
)
from worker.client import Worker, train_request, worker

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")

SURROGATE = "\ud800"
"""Text that no UTF-8 has."""
VALUES: tuple[Any, ...] = (
    None, True, -1, 3, 2**63, 10**30, 1e308, math.nan, math.inf, "", "x" * 3000,
    SURROGATE, "a\0b", [], [[]], {}, {"a": {"b": []}}, ["a", 1], [math.nan], [1, 2],
    {"Z": 10**30}, {"path": None}, {"path": SURROGATE}, [{"path": "x", "scale": "2"}],
)  # fmt: skip
CLASSES = {"names": ["pore", "grain"], "values": [0, 255]}
LIVE = {"image": {"path": "i.npy", "axes": "ZYX"}, "axes": "ZYX", "labels": "l.npy",
        "planes": [{"index": {"Z": 0}, "version": 1}], "classes": CLASSES,
        "recipe": "instant", "overrides": {"network.levels": 2}, "plane": {"Z": 0},
        "device": "cpu", "threads": 1}  # fmt: skip
REQUESTS: tuple[dict[str, Any], ...] = (
    {"kind": "train", "images": {"path": "i.npy", "axes": "ZYX"}, "labels": ["l.npy"],
     "out": "run", "recipe": {"patches": {"size": 32}}, "validation": None,
     "classes": CLASSES, "unlabelled": [7], "overrides": {}, "device": "cpu",
     "resume": False, "extend": 0, "snapshot_s": 0, "keep": False},
    {"kind": "plan", "images": ["i.npy"], "axes": "ZYX"},
    {"kind": "predict", "model": "m", "image": "i.npy", "out": "o.npy", "axes": "ZYX",
     "region": {"Z": 0, "Y": [0, 5]}, "tile": 8, "batch": 1, "precision": "auto",
     "aside": True},
    {"kind": "predict", "model": ["m"], "inputs": ["i.npy"], "out": "o"},
    {"kind": "evaluate", "model": "m", "images": "i.npy", "labels": "l.npy"},
    {"kind": "evaluate", "prediction": "p.npy", "labels": "l.npy", "classes": CLASSES},
    {"kind": "info", "path": "m", "image": {"path": "i.npy", "axes": "ZYX"}},
    LIVE | {"kind": "segment", "out": "mask.npy", "visible": [[0, 10], [0, 10]]},
    LIVE | {"kind": "next_window", "side": 11,
            "skipped": [{"index": {"Z": 0}, "rows": [0, 5], "columns": [0, 5]}]},
    LIVE | {"kind": "choose_levels"},
)  # fmt: skip
LINES: tuple[bytes, ...] = (
    b'{"kind": [], "job": "a"}',
    b"[]",
    b"null",
    b"3",
    b'"text"',
    b"{",
    b"[" * 100_000,
    b'{"job": "a", "kind": "info", "path": ' + b"[" * 100_000,
    b'{"job": "a", "kind": "info", "path": ' + b"[" * 300 + b"]" * 300 + b"}",
    b'{"job": "a", "kind": "train", "recipe": ' + b'{"a":' * 900 + b"1" + b"}" * 901,
    b'{"job": "a", "kind": "train", "extend": ' + b"9" * 5000 + b"}",
    b'{"job": "a", "kind": "train", "extend": 1e999, "images": "i", "out": "o"}',
    b"NaN",
    b"\xff\xfe\x00",
    b'{"job": "a", "kind": "inf\xff"}',
    b"\xef\xbb\xbf{}",
    b'{"\\ud800": 1}',
    b'{"kind": "\\ud800", "job": "\\ud800"}',
    b'{"stop": "\\ud800"}',
    b'{"stop": {"stop": "t"}}',
    b'{"keep": []}',
    b'{"keep": "t", "on": "perhaps"}',
    b'{"changed": [], "job": "t", "value": "l.npy"}',
    b'{"changed": "labels", "job": "t", "value": [1]}',
)


def places(request: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each container of a request with each of its keys, also those inside."""
    keys = request.items() if isinstance(request, dict) else enumerate(request)
    for key, value in list(keys):
        yield request, key
        if isinstance(value, (dict, list)):
            yield from places(value)


def damage(request: dict[str, Any], chance: random.Random) -> bytes:
    """Return a request with one wrong value, or with wrong bytes."""
    request = json.loads(json.dumps(request))
    container, key = chance.choice(list(places(request)))
    container[key] = chance.choice(VALUES)
    line = bytearray(json.dumps(request).encode())
    if chance.random() < 0.2:
        line[chance.randrange(len(line))] = chance.choice(b'\xff\x00{["\\,9')
    if chance.random() < 0.1:
        del line[chance.randrange(len(line)) :]
    return bytes(line)


def send_line(client: Worker, line: bytes) -> None:
    assert client.process.stdin is not None
    client.process.stdin.write(line + b"\n")
    client.process.stdin.flush()


@pytest.fixture
def busy(tmp_path: Path) -> Iterator[Worker]:
    """A worker that trains; its job is ``t``."""
    endless = {"training.epochs": 100_000}
    with worker() as client:
        client.send(train_request(tmp_path, easy_pair(), overrides=endless))
        client.receive_until(lambda _, event: isinstance(event, EpochEnd))
        yield client
        assert client.process.poll() is None


def replies_to(client: Worker, line: bytes) -> list[tuple[str | None, AnyEvent]]:
    """Send a line; return the events that are not of the training."""
    send_line(client, line)
    client.send({"stop": "the end of the replies"})
    replies: list[tuple[str | None, AnyEvent]] = []
    while True:
        job, event = client.next()
        if isinstance(event, Refused) and "the end of the replies" in event.text:
            return replies
        if job != "t":
            replies.append((job, event))
        # Nothing ends the training.
        assert job != "t" or not isinstance(event, (JobEnded, JobFailed))


def test_every_malformed_line_is_answered(busy: Worker) -> None:
    for line in LINES:
        (reply,) = replies_to(busy, line)
        expected = None
        try:
            decode_request(line)
        except RequestError as error:
            expected = error.job
        assert reply[0] == expected, line
        assert isinstance(reply[1], JobFailed if expected else Refused), line
    assert busy.errors == []


def test_malformed_requests_disturb_no_training(tmp_path: Path) -> None:
    """The same weights with and without requests that are damaged at random."""
    chance = random.Random(0)
    changes = {"overrides": {"training.epochs": 40, "training.averaging": None}}
    sent: dict[str, list[AnyEvent]] = {}
    with worker() as client:
        client.send(train_request(tmp_path / "quiet", easy_pair(), "quiet", **changes))
        client.receive_result("quiet")
        client.send(train_request(tmp_path / "noisy", easy_pair(), "noisy", **changes))
        for number in range(200):
            request = chance.choice(REQUESTS) | {"job": f"job {number}"}
            send_line(client, damage(request, chance))
            # Jobs that happen to be valid are not to run.
            client.send({"stop": f"job {number}"})
        client.send({"stop": "the end"})
        replies = 0
        while True:
            job, event = client.next()
            replies += isinstance(event, Refused)
            if job is not None and job.startswith("job "):
                sent.setdefault(job, []).append(event)
            if isinstance(event, Refused) and "the end" in event.text:
                break
            assert not isinstance(event, (JobEnded, JobFailed)) or job != "noisy"
        client.receive_result("noisy")
        assert client.errors == []
    for events in sent.values():
        known = (JobQueued, JobStarted, JobEnded, JobFailed)
        assert isinstance(events[0], known), events
        assert isinstance(events[-1], (JobEnded, JobFailed)), events
    assert replies > 200
    assert len(sent) > 100
    states = [
        torch.load(tmp_path / name / "run" / "last.pt", weights_only=True)["learner"]
        for name in ("quiet", "noisy")
    ]
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)


def test_a_malformed_request_with_the_id_of_a_running_job(busy: Worker) -> None:
    ((job, reply),) = replies_to(busy, b'{"kind": "info", "job": "t"}')
    assert job is None  # the training has not failed
    assert isinstance(reply, Refused)
    assert "path is missing" in reply.text


def test_an_endless_line_is_refused_and_not_kept(busy: Worker) -> None:
    (reply,) = replies_to(busy, b"x" * 80_000_000)
    assert reply == (None, Refused(text="found a line of more than 64 MB."))


def test_a_path_that_is_not_utf8_is_reported(busy: Worker) -> None:
    request = {"job": "i", "kind": "info", "path": "no/\udcff.tif"}
    events = [event for _, event in replies_to(busy, json.dumps(request).encode())]
    if not any(isinstance(event, JobFailed) for event in events):
        events += busy.receive_result("i")
    assert isinstance(events[-1], JobFailed)
    assert "\udcff.tif" in events[-1].text
