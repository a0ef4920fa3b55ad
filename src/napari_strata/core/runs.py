"""Folders that trainings, evaluations, cross-validations and searches leave on disk.

This module is the only one that knows the names of the files in them. Reading never
imports torch, and a run that was cut off or damaged is read as far as possible.
"""

from __future__ import annotations

import csv
import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar

import yaml

from napari_strata.core import files
from napari_strata.core.errors import ModelError, RunError
from napari_strata.core.events import (
    BatchEnd,
    EpochEnd,
    Event,
    Message,
    TrainingEnd,
    TrainingStarted,
    from_json,
    to_json,
)
from napari_strata.core.locks import LOCK
from napari_strata.core.recipe import Recipe
from napari_strata.core.recipes import RECIPE_FILE, dump_recipe, load_recipe
from napari_strata.core.spec import ModelSpec

MODEL_FILE = "model.safetensors"
"""Name of the model in a run folder."""

CROSSVAL_FILE = "crossval.json"
"""Name of the file that makes a folder a cross-validation."""

MEASURES_FILE = "measures.json"
"""Name of the file that makes a folder a measurement."""

_OWN_NAMES = (
    *(RECIPE_FILE, "data.json", "events.jsonl", "metrics.csv", "last.pt", MODEL_FILE),
    *("best_iou.safetensors", "best_loss.safetensors", "newest.safetensors", "trees"),
    *("previews", "validation", files.LAYERS, "report.html", "running.json", "log.txt"),
    *(CROSSVAL_FILE, "crossval.csv", "fold_*"),
    *("trials", "trials.json", "trials.csv", "best.yaml", "final", LOCK),
)
"""Names in the folders of runs, cross-validations and searches."""

_BATCH_LINE = b'{"event": "' + BatchEnd.__name__.encode() + b'"'
_YamlLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

E = TypeVar("E", bound=Event)


@dataclass(frozen=True)
class RunHistory:
    """Events of a run, without those of single batches."""

    events: tuple[Event, ...] = ()

    def of_type(self, kind: type[E]) -> list[E]:
        """Return the events of one type, in order."""
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def started(self) -> TrainingStarted | None:
        """Last start of the training."""
        starts = self.of_type(TrainingStarted)
        return starts[-1] if starts else None

    @property
    def ended(self) -> TrainingEnd | None:
        """End after the last start; None while the run trains or if it was cut off."""
        for event in reversed(self.events):
            if isinstance(event, TrainingEnd):
                return event
            if isinstance(event, TrainingStarted):
                return None
        return None

    @property
    def epochs(self) -> list[EpochEnd]:
        """Each epoch once, in order; if one was repeated, the newer."""
        ends = {end.epoch: end for end in self.of_type(EpochEnd)}
        return [ends[epoch] for epoch in sorted(ends)]

    @property
    def best(self) -> EpochEnd | None:
        """Epoch of the best model; the last one if nothing was scored."""
        epochs = self.epochs
        for end in reversed(epochs):
            if end.best_iou:
                return end
        return epochs[-1] if epochs else None

    @property
    def warnings(self) -> list[str]:
        """Each warning once, in order."""
        messages = self.of_type(Message)
        texts = [message.text for message in messages if message.level == "warning"]
        return list(dict.fromkeys(texts))


class RunFolder:
    """A run on disk. `create` and `open` never delete or overwrite a run.

    =======================  ====================================================
    ``recipe.yaml``          the recipe
    ``data.json``            sources, split, classes, spec, fingerprint
    ``events.jsonl``         events, only ever appended to; curves are read here
    ``metrics.csv``          one row for each epoch
    ``last.pt``              checkpoint to resume from
    ``model.safetensors``    the model; also ``best_iou`` and ``best_loss``
    ``previews/``            a predicted validation image for each epoch
    ``validation/``          scores of the best model; see `EvaluationFolder`
    ``report.html``          written on request
    ``layers/``              layers of a viewer that were in no file
    ``running.json``         process that trains the run without a viewer
    ``log.txt``              output of that process
    ``.lock``                process that writes to the run, while it does
    =======================  ====================================================
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @classmethod
    def create(
        cls, path: str | Path, recipe: Recipe, data: Mapping[str, Any]
    ) -> RunFolder:
        """Make a new run. The recipe is written last and makes the folder a run.

        Parameters
        ----------
        path
            Folder, which may exist as long as `check_free` accepts it.
        recipe
            The recipe.
        data
            The record of the data.

        Raises
        ------
        RunError
            If the folder holds something else, or cannot be made.
        """
        check_free(path)
        run = cls(path)
        run.write_json(run.data_path.name, data)
        run.save_recipe(recipe)
        return run

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """Open an existing run. Raises `RunError` when there is none."""
        run = cls(path)
        if not run.exists:
            raise RunError(
                f"{run.path}: found no run here (no {RECIPE_FILE}); check the path, "
                "or train without --resume."
            )
        return run

    @property
    def exists(self) -> bool:
        """True if the folder holds a run."""
        return self.recipe_path.is_file()

    @property
    def has_begun(self) -> bool:
        """True if recipe and data were written, the last step before training."""
        return self.exists and self.data_path.is_file()

    @property
    def has_model(self) -> bool:
        """True if a model was saved."""
        return self.model_path.is_file()

    @property
    def recipe_path(self) -> Path:
        """Path of the recipe."""
        return self.path / RECIPE_FILE

    @property
    def data_path(self) -> Path:
        """Path of the record of sources, split, classes and fingerprint."""
        return self.path / "data.json"

    @property
    def events_path(self) -> Path:
        """Path of the events."""
        return self.path / "events.jsonl"

    @property
    def table_path(self) -> Path:
        """Path of the table with one row for each epoch."""
        return self.path / "metrics.csv"

    @property
    def model_path(self) -> Path:
        """Path of the model."""
        return self.path / MODEL_FILE

    @property
    def snapshot_path(self) -> Path:
        """Path of the newest weights of a running training, for previews."""
        return self.path / "newest.safetensors"

    @property
    def running_path(self) -> Path:
        """Path of the note on the process that trains the run without a viewer."""
        return self.path / "running.json"

    @property
    def log_path(self) -> Path:
        """Path of the output of a training without a viewer."""
        return self.path / "log.txt"

    @property
    def previews(self) -> Path:
        """Folder of the predicted validation images."""
        return self.path / "previews"

    @property
    def layers(self) -> Path:
        """Folder of the viewer's layers; it may exist before the run."""
        return self.path / files.LAYERS

    @property
    def validation(self) -> EvaluationFolder:
        """Scores of the best model on the validation data."""
        return EvaluationFolder(self.path / "validation")

    def preview_path(self, epoch: int) -> Path:
        """Return the path of the predicted validation image of an epoch."""
        return self.previews / f"epoch_{epoch:04d}.png"

    def newest_preview(self) -> Path | None:
        """Return the predicted validation image of the last epoch that has one."""
        paths = self.previews.glob("epoch_*.png")
        return max(paths, default=None, key=lambda path: (len(path.name), path.name))

    @property
    def recipe(self) -> Recipe:
        """The recipe. Raises `RecipeError` when it is missing or damaged."""
        return load_recipe(self.recipe_path)

    def save_recipe(self, recipe: Recipe) -> None:
        """Write the recipe."""
        files.write_text(self.recipe_path, dump_recipe(recipe))

    def recipe_text(self) -> str:
        """Return the recipe as it stands; empty when it is missing."""
        return _read_text(self.recipe_path)

    def raw_recipe(self) -> dict[str, Any]:
        """Return the recipe as plain data; empty when it is missing or damaged."""
        try:
            raw = yaml.load(self.recipe_text(), Loader=_YamlLoader)
        except Exception:  # PyYAML raises errors of many kinds
            return {}
        return raw if isinstance(raw, dict) else {}

    def data(self) -> dict[str, Any]:
        """Return the record of the data; empty when it is missing or damaged."""
        return _read_table(self.data_path)

    def classes(self) -> dict[str, str]:
        """Return the colour (``#rrggbb``) of each class; empty when unknown."""
        return class_colors(self.data())

    def epoch_rows(self) -> list[dict[str, str]]:
        """Return the rows of ``metrics.csv``."""
        try:
            return list(csv.DictReader(_read_text(self.table_path).splitlines()))
        except csv.Error:
            return []

    def append_event(self, event: Event) -> None:
        """Append one line to ``events.jsonl``."""
        try:
            with open(self.events_path, "a", encoding="utf-8") as file:
                file.write(to_json(event) + "\n")
        except OSError as error:
            raise files.explain(error, self.events_path) from error

    def events(self, max_batches: int | None = None) -> list[Event]:
        """Return all events so far; damaged lines are left out.

        Parameters
        ----------
        max_batches
            If there are more batches, only every second, third, ... is returned, and
            the last one. 0 leaves all of them out.
        """
        try:
            lines = self.events_path.read_bytes().splitlines()
        except OSError:
            return []
        if max_batches is not None:
            lines = _thin_batches(lines, max_batches)
        events = (_parse_event(line) for line in lines)
        return [event for event in events if event is not None]

    def history(self) -> RunHistory:
        """Return the events without those of single batches."""
        return RunHistory(tuple(self.events(max_batches=0)))

    def write_json(self, name: str, data: Any) -> None:
        """Write plain data to a file of the run."""
        files.write_text(self.path / name, json.dumps(data, indent=2) + "\n")

    def read_json(self, name: str) -> Any:
        """Read plain data. Raises `RunError` when they are missing or damaged."""
        path = self.path / name
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise RunError(
                f"{path}: cannot be read ({error}); the run is damaged."
            ) from None

    def save_checkpoint(self, name: str, state: dict[str, Any]) -> None:
        """Write training state as a whole or not at all.

        Parameters
        ----------
        name
            File name, such as ``last.pt``.
        state
            Plain types and tensors.
        """
        import torch

        # Through an open file: given a path, torch hides a full disk in a RuntimeError.
        with files.atomic(self.path / name) as temporary, open(temporary, "wb") as file:
            torch.save(state, file)

    def load_checkpoint(self, name: str) -> dict[str, Any]:
        """Read training state. Raises `RunError` when it is missing or damaged."""
        import torch

        path = self.path / name
        try:
            state: dict[str, Any] = torch.load(
                path, map_location="cpu", weights_only=True
            )
        except FileNotFoundError:
            raise RunError(
                f"{self.path}: found no {name} to resume from; start a new run."
            ) from None
        except Exception as error:  # whatever the bytes are
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise RunError(
                f"{path}: the checkpoint is damaged ({reason}); start a new run."
            ) from None
        return state


class EvaluationFolder:
    """Scores and pictures of a model on labelled images."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def exists(self) -> bool:
        """True if the evaluation is complete: its scores are written last."""
        return self.scores_path.is_file()

    @property
    def scores_path(self) -> Path:
        """Path of the scores."""
        return self.path / "metrics.json"

    @property
    def table_path(self) -> Path:
        """Path of the table with one row for each image."""
        return self.path / "metrics.csv"

    @property
    def confusion_path(self) -> Path:
        """Path of the picture of the confusion matrix."""
        return self.path / "confusion.png"

    @property
    def overlays(self) -> Path:
        """Folder of pictures with image, truth and prediction."""
        return self.path / "overlays"

    def scores(self) -> dict[str, Any]:
        """Return the scores; empty when they are missing or damaged."""
        return _read_table(self.scores_path)


class CrossvalFolder:
    """A cross-validation on disk: a run folder for each fold, and their scores."""

    FORMAT = "napari-strata crossval 1"

    def __init__(self, path: str | Path) -> None:
        """Take the folder, or the path of its ``crossval.json``."""
        path = Path(path).expanduser()
        self.path = path.parent if path.name == CROSSVAL_FILE else path

    @property
    def exists(self) -> bool:
        """True if the folder holds a cross-validation."""
        return self.file.is_file()

    @property
    def file(self) -> Path:
        """Path of the names of the folds, their scores, the recipe and the classes."""
        return self.path / CROSSVAL_FILE

    @property
    def table_path(self) -> Path:
        """Path of the table with one row for each fold."""
        return self.path / "crossval.csv"

    def fold(self, name: str) -> RunFolder:
        """Return the run of a fold."""
        return RunFolder(self.path / name)

    def read(self) -> dict[str, Any]:
        """Read the record.

        Raises
        ------
        RunError
            When it is missing, damaged or of another kind.
        """
        return _read_study(self.file, self.FORMAT)

    def write(self, record: Mapping[str, Any]) -> None:
        """Write the record."""
        _write_study(self.file, self.FORMAT, record)


class SearchFolder:
    """A search on disk.

    A cross-validation for each trial, the best recipe and model.
    """

    FORMAT = "napari-strata tune 1"

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()

    @property
    def exists(self) -> bool:
        """True if the folder holds a search."""
        return self.file.is_file()

    @property
    def file(self) -> Path:
        """Path of the trials and their scores."""
        return self.path / "trials.json"

    @property
    def table_path(self) -> Path:
        """Path of the table with one row for each trial."""
        return self.path / "trials.csv"

    @property
    def best_recipe_path(self) -> Path:
        """Path of the best recipe."""
        return self.path / "best.yaml"

    @property
    def final(self) -> RunFolder:
        """Run that trains the best recipe on all data."""
        return RunFolder(self.path / "final")

    def trial(self, name: str) -> CrossvalFolder:
        """Return the cross-validation of a trial."""
        return CrossvalFolder(self.path / "trials" / name)

    def read(self) -> dict[str, Any]:
        """Read the record; errors as in `CrossvalFolder.read`."""
        return _read_study(self.file, self.FORMAT)

    def write(self, record: Mapping[str, Any]) -> None:
        """Write the record."""
        _write_study(self.file, self.FORMAT, record)


@dataclass(frozen=True)
class ModelHeader:
    """Header of a model file.

    Parameters
    ----------
    facts
        Metadata as text.
    numbers
        Count of the weights.
    """

    facts: dict[str, str] = field(default_factory=dict)
    numbers: int = 0

    def table(self, key: str) -> dict[str, Any]:
        """Return a fact that is a JSON object; empty when it is missing."""
        try:
            value = json.loads(self.facts.get(key, "{}"))
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}


def read_model_header(path: Path) -> ModelHeader:
    """Read the header of a safetensors file; empty when it is missing or damaged."""
    try:
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > path.stat().st_size:
                return ModelHeader()
            tensors = json.loads(file.read(length))
        facts = dict(tensors.pop("__metadata__", {}))
        numbers = sum(math.prod(tensor["shape"]) for tensor in tensors.values())
        return ModelHeader(facts, numbers)
    except Exception:  # whatever the bytes are
        return ModelHeader()


def check_model_header(path: Path) -> None:
    """Refuse a model whose header is damaged, without reading its weights.

    Raises
    ------
    ModelError
        When the file is one of ours and its facts cannot be read.
    """
    facts = read_model_header(path).facts
    if "spec" not in facts:
        return  # not one of ours, which the reader of models explains
    try:
        ModelSpec.model_validate_json(facts["spec"])
        Recipe.model_validate_json(facts["recipe"])
        for line in facts["history"].splitlines():
            from_json(line)
    except Exception as error:  # the header may be anything
        raise ModelError(
            f"{path}: its header cannot be read ({type(error).__name__}); take another"
            " copy."
        ) from None


def class_colors(data: Mapping[str, Any]) -> dict[str, str]:
    """Return the colour of each class in the record of a run; empty when unknown."""
    try:
        return {str(row["name"]): str(row["color"]) for row in data["classes"]}
    except (KeyError, TypeError):
        return {}


def check_free(path: str | Path) -> None:
    """Check that a run can be made; a viewer may have put layers there before.

    Raises
    ------
    RunError
        If `path` is a file, or a folder that holds anything else.
    """
    path = Path(path)
    if path.is_file():
        raise RunError(
            f"{path}: found a file where a run folder is to be made; choose another "
            "--out."
        )
    if not path.is_dir():
        return
    if not is_unused(path):
        raise RunError(
            f"{path}: this run folder exists already; choose another one, or go on "
            "with it (resume, or extend it by some epochs)."
        )


def is_unused(path: Path) -> bool:
    """Return True if a folder holds nothing, or what may be there before a run.

    That is what a viewer writes, and what a process leaves that is killed before it
    trains.
    """
    if not path.exists():
        return True
    run = RunFolder(path)
    if not path.is_dir() or run.has_begun:
        return False
    early_paths = {
        run.layers,
        run.path / LOCK,
        run.data_path,
        run.recipe_path,
        run.previews,
    }
    return all(
        entry in early_paths or files.is_leftover(entry) for entry in path.iterdir()
    )


def is_own(path: Path) -> bool:
    """Return True if a file or folder in a run or a study is a part of it."""
    is_known = any(fnmatchcase(path.name, name) for name in _OWN_NAMES)
    return is_known or files.is_leftover(path)


def _thin_batches(lines: Sequence[bytes], max_batches: int) -> list[bytes]:
    """Leave out batches so that about `max_batches` evenly spread ones remain."""
    batches = [i for i, line in enumerate(lines) if line.startswith(_BATCH_LINE)]
    skipped = set(batches)
    if batches and max_batches:
        step = math.ceil(len(batches) / max_batches)
        skipped -= {*batches[::step], batches[-1]}
    return [line for i, line in enumerate(lines) if i not in skipped]


def _parse_event(line: bytes) -> Event | None:
    """Parse one line; None if it is damaged."""
    try:
        return from_json(line.decode("utf-8"))
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _read_text(path: Path) -> str:
    """Read a text file; empty when it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _read_table(path: Path) -> dict[str, Any]:
    """Read a JSON object; empty when it is missing or damaged."""
    try:
        raw = json.loads(_read_text(path))
    except (ValueError, RecursionError):
        return {}
    return raw if isinstance(raw, dict) else {}


def _read_study(path: Path, format_name: str) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(
            f"{path.parent}: found no {path.name} here; check the path."
        ) from None
    except (OSError, ValueError) as error:
        raise RunError(
            f"{path}: cannot be read ({error}); move the folder away and begin anew."
        ) from None
    if not isinstance(raw, dict) or raw.get("format") != format_name:
        raise RunError(
            f"{path}: found something else than {format_name!r}; choose another folder."
        )
    return raw


def _write_study(path: Path, format_name: str, record: Mapping[str, Any]) -> None:
    """Write the record of a study; the format comes first, as a reader expects."""
    content = {"format": format_name} | dict(record)
    files.write_text(path, json.dumps(content, indent=2) + "\n")
