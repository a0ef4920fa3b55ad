"""Summaries of the runs in a folder, from their small files."""

from __future__ import annotations

import json
import math
import socket
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from statistics import fmean
from typing import Any

import psutil

from napari_strata.core.errors import RunError
from napari_strata.core.events import EpochEnd, Event
from napari_strata.core.runs import CrossvalFolder, RunFolder

BATCHES = 400
"""Largest number of batches that `last_events` returns."""


@dataclass(frozen=True)
class RunSummary:
    """Summary of a run, or of a cross-validation, for a list.

    Parameters
    ----------
    classes
        Name and colour (``#rrggbb``) of each class; empty if unknown.
    created, modified
        Local times of the start and of the last event.
    epochs, planned
        Number of complete epochs, and of all planned epochs (0 if unknown).
    mean_iou
        Score of the best epoch; None without scores, and for strokes.
    agreement
        Agreement of the best epoch with held-out strokes, in words; else empty.
    thumbnail
        Newest picture of a validation image.
    running
        Note of the process that trains the run without a viewer, or None.
    ended
        Reason why the training ended ("finished", "early stopping" or "stopped");
        None if it was interrupted or is running.
    folds
        Number of models of a cross-validation; 0 for a run.
    """

    path: Path
    recipe: str
    classes: tuple[tuple[str, str], ...]
    created: datetime
    modified: datetime
    epochs: int
    planned: int
    mean_iou: float | None
    agreement: str
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
    """List the newest runs in a folder, the newest first; unreadable runs are left out.

    With `with_model`, only runs with a model are listed, and cross-validations whose
    folds all have a model.
    """
    paths: list[tuple[float, Path]] = []
    with suppress(OSError):
        for path in folder.iterdir():
            if path.name.startswith("."):
                continue
            is_study = with_model and CrossvalFolder(path).exists
            if is_study or RunFolder(path).exists:
                with suppress(OSError):
                    paths.append((_modified(path), path))
    summaries: list[RunSummary] = []
    for _, path in sorted(paths, reverse=True):
        if len(summaries) == limit:
            break
        with suppress(OSError, ValueError, KeyError, TypeError, RunError):
            summary = _summarize(path, with_model=with_model)
            if summary.has_model or not with_model:
                summaries.append(summary)
    return summaries


def _summarize(path: Path, *, with_model: bool) -> RunSummary:
    if with_model and CrossvalFolder(path).exists:
        return read_crossval(path)
    return read_run(path)


def read_crossval(path: Path) -> RunSummary:
    """Summarize a cross-validation by its first fold and the mean score.

    It has a model if every fold has one.

    Raises
    ------
    OSError, ValueError, KeyError, TypeError, RunError
        When a fold has not begun, or ``crossval.json`` cannot be read.
    """
    study = CrossvalFolder(path)
    runs = [read_run(study.fold(str(name)).path) for name in study.read()["folds"]]
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
    """Summarize a run; missing or damaged facts are left empty.

    Raises
    ------
    OSError, ValueError
        When the recipe cannot be read.
    """
    run = RunFolder(path)
    history = run.history()
    started, ended = history.started, history.ended
    ends = history.of_type(EpochEnd)
    last = ends[-1] if ends else None
    best = [end for end in ends if end.best_iou]
    mean_iou = None
    if best and not math.isnan(best[-1].reported_iou):
        mean_iou = best[-1].reported_iou
    return RunSummary(
        path=path,
        recipe=_recipe_name(path, run.recipe_path.stat().st_mtime_ns),
        classes=tuple(run.classes().items()),
        created=_created(run),
        modified=datetime.fromtimestamp(_modified(path)),
        epochs=last.epoch if last else 0,
        planned=max(started.epochs if started else 0, last.epochs if last else 0),
        mean_iou=mean_iou,
        agreement=history.best.agreement if history.best is not None else "",
        thumbnail=run.newest_preview(),
        has_model=run.has_model,
        running=_running(run.running_path),
        ended=ended.reason if ended else None,
    )


def last_events(run: Path) -> list[Event]:
    """Return the events of a run for its curves, with a limited number of batches."""
    return RunFolder(run).events(max_batches=BATCHES)


@lru_cache(maxsize=256)
def _recipe_name(path: Path, _changed: int) -> str:
    recipe = RunFolder(path).raw_recipe()
    if not recipe:
        raise ValueError(f"{path}: found no recipe")
    return str(recipe.get("name", ""))


def _running(path: Path) -> dict[str, Any] | None:
    """Read the note of a running training.

    None if its process on this computer has ended.
    """
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(note, dict) or not isinstance(pid := note.get("pid"), int):
        return None
    is_elsewhere = note.get("host") != socket.gethostname()
    return note if is_elsewhere or psutil.pid_exists(pid) else None


def _modified(path: Path) -> float:
    """Return the time of the last event, or of the last change of a study."""
    run = RunFolder(path)
    for file in (run.events_path, run.recipe_path):
        if file.is_file():
            return file.stat().st_mtime
    return CrossvalFolder(path).file.stat().st_mtime


def _created(run: RunFolder) -> datetime:
    """Return the time when a run began.

    Few file systems record it. Otherwise it is the oldest time of the files that are
    written first and never changed.
    """
    stats = [run.path.stat()]
    for path in (run.recipe_path, run.data_path, run.layers, run.preview_path(1)):
        with suppress(OSError):
            stats.append(path.stat())
    born = getattr(stats[0], "st_birthtime", None)
    if born is None:
        born = min(stat.st_mtime for stat in stats)
    return datetime.fromtimestamp(born)
