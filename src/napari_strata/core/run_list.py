"""Runs, cross-validations and searches in a folder: their summaries, and deletion.

Summaries are made from small files.
"""

from __future__ import annotations

import json
import math
import os
import socket
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, TypeAlias

import psutil

from napari_strata.core import files
from napari_strata.core.errors import RunError
from napari_strata.core.events import EpochEnd, Event
from napari_strata.core.locks import LOCK, find_writer, one_writer
from napari_strata.core.runs import (
    CrossvalFolder,
    RunFolder,
    SearchFolder,
    is_own,
    read_model_header,
)

BATCHES = 400
"""Largest number of batches that `last_events` returns."""

DELETED = "deleted"
"""Word in the temporary name of a folder that is being deleted."""

State: TypeAlias = Literal["running", "finished", "stopped", "damaged"]


@dataclass(frozen=True)
class RunSummary:
    """Summary of a run, a cross-validation or a search, for a list.

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
    trials
        Number of trials of a search; else 0.
    done
        Number of finished folds or trials.
    writer
        Process that writes to the folder, as ``process 123 on node7``; or empty.
    is_damaged
        True if the recipe, the record or the model cannot be read.
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
    trials: int = 0
    done: int = 0
    writer: str = ""
    is_damaged: bool = False

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.path.name

    @property
    def is_running(self) -> bool:
        """True if a process trains it."""
        return self.running is not None or bool(self.writer)

    @property
    def state(self) -> State:
        """State in one word; a training that was killed is stopped."""
        if self.is_running:
            return "running"
        if self.is_damaged:
            return "damaged"
        return "stopped" if self.ended in (None, "stopped") else "finished"

    def measure_size(self) -> int:
        """Return the bytes that the folder takes; files are looked up at each call."""
        return files.measure_size(self.path)


def find_runs(folder: str | Path) -> list[RunSummary]:
    """Summarize all runs, cross-validations and searches in a folder, newest first.

    Parameters
    ----------
    folder
        Their folder, or one of them. Folders within them are not searched.

    Raises
    ------
    RunError
        When there is no such folder.
    """
    folder = Path(folder).expanduser()
    if is_run(folder):
        return [summarize(folder)]
    try:
        paths = [path for path in folder.iterdir() if is_run(path)]
    except OSError as error:
        raise RunError(
            f"{folder}: cannot be read ({error.strerror}); give a folder with runs."
        ) from None
    runs = []
    for path in paths:
        with suppress(FileNotFoundError):  # deleted in the meantime
            runs.append(summarize(path))
    return sorted(runs, key=lambda run: run.modified, reverse=True)


def is_run(path: Path) -> bool:
    """Return True if a folder holds a run, a cross-validation or a search."""
    return not path.name.startswith(".") and any(
        kind(path).exists for kind in (RunFolder, CrossvalFolder, SearchFolder)
    )


def summarize(path: Path) -> RunSummary:
    """Summarize a run, a cross-validation or a search, as far as it can be read."""
    read = read_run
    if SearchFolder(path).exists:
        read = read_search
    elif CrossvalFolder(path).exists:
        read = read_crossval
    try:
        summary = read(path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RunError):
        time = datetime.fromtimestamp(path.stat().st_mtime)
        summary = replace(_empty(path, time), is_damaged=True)
    if read is read_run and (summary.has_model or summary.state == "finished"):
        header = read_model_header(RunFolder(path).model_path)
        summary = replace(summary, is_damaged="spec" not in header.facts)
    return replace(summary, writer=find_writer(path))


def check_deletable(path: str | Path) -> Path:
    """Return the whole path of a run, a cross-validation or a search to be deleted.

    Raises
    ------
    RunError
        When it is something else, is part of a cross-validation or a search, holds
        files of somebody else, or when a process writes to it.
    """
    path = Path(path).expanduser()
    if path.is_symlink() or not is_run(path):
        raise RunError(
            f"{path}: found no run, cross-validation or search here; nothing was"
            " deleted."
        )
    path = path.resolve()
    # A fold is three folders below its search.
    whole = [parent for parent in path.parents[:3] if is_run(parent)]
    if whole:
        raise RunError(f"{path}: is a part of {whole[-1]}, which can be deleted whole.")
    foreign = sorted(entry.name for entry in path.iterdir() if not is_own(entry))
    if foreign:
        names = ", ".join(foreign[:3]) + (", ..." if foreign[3:] else "")
        raise RunError(
            f"{path}: also holds {names}, which is no part of it; move that to another"
            " place, then delete the folder."
        )
    writers = (find_writer(lock.parent) for lock in path.rglob(LOCK))
    writer = next(filter(None, writers), "")
    if writer or summarize(path).is_running:
        raise RunError(
            f"{path}: {writer or 'another process'} is training it; stop the training"
            " first, or wait until it has ended."
        )
    return path


def delete_run(path: str | Path) -> int:
    """Delete a run, a cross-validation or a search; return the bytes that it took.

    Parameters
    ----------
    path
        Its folder.

    Raises
    ------
    RunError
        As `check_deletable`. Nothing is then deleted.
    """
    path = check_deletable(path)
    size = files.measure_size(path)
    with one_writer(path):  # or it is refused
        pass
    # Under this name, a deletion that is cut off leaves no half of a run.
    hidden = files.beside(path, before=f".{os.getpid()}.{DELETED}.")
    try:
        os.rename(path, hidden)
    except OSError as error:
        raise files.explain(error, path) from error
    files.remove(hidden)
    for entry in path.parent.iterdir():
        if files.is_leftover(entry, DELETED):
            files.remove(entry)
    return size


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

    It has a model if every fold has one. Folds that have not begun are left out.

    Raises
    ------
    OSError, ValueError, KeyError, TypeError, RunError
        When ``crossval.json`` or the recipe of a fold cannot be read.
    """
    study = CrossvalFolder(path)
    record = study.read()
    folds = [study.fold(str(name)) for name in record["folds"]]
    if not folds:
        raise ValueError(f"{path}: found no folds")
    runs = [read_run(fold.path) for fold in folds if fold.exists]
    scores = [run.mean_iou for run in runs if run.mean_iou is not None]
    done = sum(run.state == "finished" for run in runs)
    is_finished = done == len(folds)
    first = runs[0] if runs else _empty(path, datetime.fromtimestamp(_modified(path)))
    return replace(
        first,
        path=path,
        recipe=first.recipe or str(record["recipe"]["name"]),
        created=min((run.created for run in runs), default=first.created),
        modified=max((run.modified for run in runs), default=first.modified),
        mean_iou=fmean(scores) if len(scores) == len(folds) else None,
        has_model=len(runs) == len(folds) and all(run.has_model for run in runs),
        running=next((run.running for run in runs if run.running), None),
        ended="finished" if is_finished else None,
        folds=len(folds),
        done=done,
    )


def read_search(path: Path) -> RunSummary:
    """Summarize a search by its best trial.

    Raises
    ------
    OSError, ValueError, KeyError, TypeError, AttributeError, RunError
        When ``trials.json`` cannot be read.
    """
    study = SearchFolder(path)
    trials = study.read()["trials"]
    best = trials[0]
    scores = best["epochs"]
    score = scores[max(scores, key=int)]["mean_iou"] if scores else None
    waiting = ("waiting", "at epoch")
    is_finished = study.best_recipe_path.is_file()
    if study.final.exists:
        is_finished = read_run(study.final.path).state == "finished"
    modified = datetime.fromtimestamp(study.file.stat().st_mtime)
    return replace(
        _empty(path, modified),
        recipe=str(best["recipe"]["name"]),
        mean_iou=score,
        has_model=study.final.has_model,
        ended="finished" if is_finished else None,
        trials=len(trials),
        done=sum(not str(trial["state"]).startswith(waiting) for trial in trials),
    )


def _empty(path: Path, time: datetime) -> RunSummary:
    """Return a summary without facts."""
    return RunSummary(
        path=path,
        recipe="",
        classes=(),
        created=time,
        modified=time,
        epochs=0,
        planned=0,
        mean_iou=None,
        agreement="",
        thumbnail=None,
        has_model=False,
        running=None,
        ended=None,
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
