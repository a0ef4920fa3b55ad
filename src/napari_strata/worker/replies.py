"""Replies: the lines that a worker writes. Each is an event of the engine or a reply of the worker, with its job."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

from napari_strata.core.events import Event, from_json, to_json

PROTOCOL = 1
"""Number of this form of orders and replies; it changes when an older client could not follow."""


@dataclass(frozen=True)
class Reply:
    """Base of what the worker itself says."""


@dataclass(frozen=True)
class Ready(Reply):
    """The worker has started. `devices` maps names for jobs to words for people, the fastest first."""

    protocol: int
    pid: int
    host: str
    versions: dict[str, str]
    devices: dict[str, str]
    seconds: float


@dataclass(frozen=True)
class Refused(Reply):
    """A line that is not an order, or a message about a job that is not there."""

    text: str


@dataclass(frozen=True)
class JobQueued(Reply):
    """The job waits for those before it."""


@dataclass(frozen=True)
class JobStarted(Reply):
    """The job begins."""

    kind: str


@dataclass(frozen=True)
class TargetOpened(Reply):
    """The array of a prediction is there, whole in size, and will fill. `classes` has a row a class: index, name,
    value, color. `probabilities` is the path of theirs (axes T, Z, C, Y, X as there are), or empty."""

    path: str
    axes: str
    shape: tuple[int, ...]
    dtype: str
    classes: tuple[dict[str, Any], ...]
    probabilities: str = ""


@dataclass(frozen=True)
class JobEnded(Reply):
    """The job is over. `reason`: "finished" or "stopped". `result` is what it gave, as plain data."""

    reason: str
    result: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class JobFailed(Reply):
    """The job is over without a result. `kind` is "StrataError" where the user can mend it, else the error's name."""

    text: str
    kind: str


Outgoing: TypeAlias = Event | Reply

_OURS: dict[str, Callable[..., Reply]] = {
    kind.__name__: kind for kind in Reply.__subclasses__()
}


def encode(event: Outgoing, job: str | None) -> str:
    """One line, without its end."""
    # A reply is a dataclass of plain data as an event is, and is written in the same way.
    return json.dumps(json.loads(to_json(cast(Event, event))) | {"job": job})


def decode(line: str | bytes) -> tuple[str | None, Outgoing]:
    """The job and the event of a line that `encode` made.

    Raises
    ------
    ValueError
        when it is anything else, such as the greeting of a login shell.
    """
    try:
        raw = json.loads(line)
        job = raw.pop("job")
        if kind := _OURS.get(raw["event"]):
            return job, kind(
                **{
                    k: tuple(v) if isinstance(v, list) else v
                    for k, v in raw.items()
                    if k != "event"
                }
            )
        return job, from_json(json.dumps(raw))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a reply of a worker: {line!r}") from error
