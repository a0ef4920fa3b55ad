"""What the runs in a folder are, read from their small files: no torch, and no error for a damaged one."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from statistics import fmean
from typing import Any

import psutil
import yaml

from napari_strata.core.events import (
    BatchEnd,
    EpochEnd,
    Event,
    TrainingEnd,
    TrainingStarted,
    from_json,
)
from napari_strata.core.files import CROSSVAL

BATCHES = 400
"""Batches that `last_events` gives at most."""

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class RunSummary:
    """A run at a glance.

    Parameters
    ----------
    classes
        name and colour (``#rrggbb``) of each class; empty when not known.
    created, modified
        local times; modified is when it last said something.
    epochs, planned
        how many are complete, and how many there are to be (0 when not known).
    mean_iou
        of the best epoch; None when nothing was scored.
    thumbnail
        the newest picture of a validation image.
    running
        what ``running.json`` says of the process that trains it without a viewer; None when there is none.
    ended
        "finished", "early stopping" or "stopped": why the last training is over; None when it was cut off or goes on.
    folds
        of a cross-validation, how many models it stands for; 0 of a run.
    """

    path: Path
    recipe: str
    classes: tuple[tuple[str, str], ...]
    created: datetime
    modified: datetime
    epochs: int
    planned: int
    mean_iou: float | None
    thumbnail: Path | None
    has_model: bool
    running: dict[str, Any] | None
    ended: str | None
    folds: int = 0

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.path.name


def list_runs(
    folder: Path, limit: int = 20, *, with_model: bool = False
) -> list[RunSummary]:
    """The newest runs right in a folder, the newest first; those that cannot be read are left out.

    With `with_model`, those that can predict: runs that have a model, and cross-validations whose folds all have one.
    """
    times: list[tuple[float, Path]] = []
    with suppress(OSError):
        for path in folder.iterdir():
            with suppress(OSError):
                kinds = ("recipe.yaml", CROSSVAL) if with_model else ("recipe.yaml",)
                if not path.name.startswith(".") and any(
                    (path / kind).is_file() for kind in kinds
                ):
                    times.append((_modified(path), path))
    found: list[RunSummary] = []
    for _, path in sorted(times, reverse=True):
        if len(found) == limit:
            break
        folds = with_model and (path / CROSSVAL).is_file()
        if with_model and not folds and not (path / "model.safetensors").is_file():
            continue
        with suppress(OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
            run = read_crossval(path) if folds else read_run(path)
            found += [run] if run.has_model or not with_model else []
    return found


def read_crossval(path: Path) -> RunSummary:
    """A cross-validation: what its first fold is, the mean of the folds' scores, and a model when every fold has one.

    Raises
    ------
    OSError, ValueError, KeyError, TypeError, yaml.YAMLError
        when a fold has not begun, or ``crossval.json`` cannot be read.
    """
    runs = [read_run(path / str(name)) for name in _json(path / CROSSVAL)["folds"]]
    if not runs:
        raise ValueError(f"{path}: found no folds")
    scores = [run.mean_iou for run in runs if run.mean_iou is not None]
    return replace(
        runs[0],
        path=path,
        created=min(run.created for run in runs),
        modified=max(run.modified for run in runs),
        mean_iou=fmean(scores) if len(scores) == len(runs) else None,
        has_model=all(run.has_model for run in runs),
        running=next((run.running for run in runs if run.running), None),
        folds=len(runs),
    )


def read_run(path: Path) -> RunSummary:
    """One run. What is missing or damaged in it is left empty.

    Raises
    ------
    OSError, ValueError, yaml.YAMLError
        when there is no recipe that can be read.
    """
    recipe = path / "recipe.yaml"
    last, best, started, ended = _scan(path / "events.jsonl")
    scored = best is not None and best.mean_iou == best.mean_iou
    return RunSummary(
        path=path,
        recipe=_recipe_name(recipe, recipe.stat().st_mtime_ns),
        classes=_classes(path / "data.json"),
        created=_created(path),
        modified=datetime.fromtimestamp(_modified(path)),
        epochs=last.epoch if last else 0,
        planned=max(started.epochs if started else 0, last.epochs if last else 0),
        mean_iou=best.mean_iou if best is not None and scored else None,
        thumbnail=max(
            (path / "previews").glob("epoch_*.png"),
            default=None,
            key=lambda file: (len(file.name), file.name),
        ),
        has_model=(path / "model.safetensors").is_file(),
        running=_running(path / "running.json"),
        ended=ended.reason if ended else None,
    )


def last_events(run: Path) -> list[Event]:
    """What a run went through, for its curves; lines that are cut off or damaged are left out.

    Of more than `BATCHES` batches only every second, third, ... is there, and the last one.
    """
    lines = _lines(run / "events.jsonl")
    batches = [i for i, line in enumerate(lines) if _is(line, BatchEnd)]
    step = -(-len(batches) // BATCHES)
    skipped = set(batches) - set(batches[:: step or 1]) - set(batches[-1:])
    found = (_event(line) for i, line in enumerate(lines) if i not in skipped)
    return [event for event in found if event is not None]


def _scan(
    file: Path,
) -> tuple[
    EpochEnd | None, EpochEnd | None, TrainingStarted | None, TrainingEnd | None
]:
    """The last epoch, the last one marked best, the last start, and the end after it, from the end of the file."""
    last = best = None
    ended: TrainingEnd | None = None
    started: TrainingStarted | None = None
    for event in _backwards(file):
        if isinstance(event, EpochEnd):
            last = last or event
            best = event if best is None and event.best_iou else best
        elif isinstance(event, TrainingEnd) and last is None and started is None:
            ended = ended or event
        elif isinstance(event, TrainingStarted):
            started = started or event
        if best and last and started:
            break
    return last, best, started, ended


def _backwards(file: Path) -> Iterator[Event]:
    """The events of a file from the last to the first, without those of batches."""
    for line in reversed(_lines(file)):
        if not _is(line, BatchEnd) and (event := _event(line)) is not None:
            yield event


def _lines(file: Path) -> list[bytes]:
    try:
        return file.read_bytes().splitlines()
    except OSError:
        return []


def _is(line: bytes, kind: type[Event]) -> bool:
    return line.startswith(b'{"event": "' + kind.__name__.encode() + b'"')


def _event(line: bytes) -> Event | None:
    try:
        return from_json(line.decode("utf-8"))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


@lru_cache(maxsize=256)
def _recipe_name(file: Path, _changed: int) -> str:
    raw = yaml.load(file.read_text(encoding="utf-8"), Loader=_Loader)
    if not isinstance(raw, dict):
        raise ValueError(f"{file}: found no recipe")
    return str(raw.get("name", ""))


def _classes(file: Path) -> tuple[tuple[str, str], ...]:
    raw = _json(file)
    try:
        return tuple((str(row["name"]), str(row["color"])) for row in raw["classes"])
    except (KeyError, TypeError):
        return ()


def _running(file: Path) -> dict[str, Any] | None:
    """The note of a training that goes on; None when its process, on this computer, is gone."""
    raw = _json(file)
    if not isinstance(raw, dict) or not isinstance(pid := raw.get("pid"), int):
        return None
    return (
        raw
        if raw.get("host") != socket.gethostname() or psutil.pid_exists(pid)
        else None
    )


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _modified(path: Path) -> float:
    """When a run last said something."""
    files = (path / name for name in ("events.jsonl", "recipe.yaml"))
    return (
        next((file for file in files if file.is_file()), path / CROSSVAL)
        .stat()
        .st_mtime
    )


def _created(path: Path) -> datetime:
    """When a run began: few file systems tell, so it is the oldest of what it wrote first and leaves as it is."""
    stats = [path.stat()]
    for one in (
        path / "recipe.yaml",
        path / "data.json",
        path / "layers",
        path / "previews" / "epoch_0001.png",
    ):
        with suppress(OSError):
            stats.append(one.stat())
    born = getattr(stats[0], "st_birthtime", None)
    return datetime.fromtimestamp(
        born if born is not None else min(stat.st_mtime for stat in stats)
    )
