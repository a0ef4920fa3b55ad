"""Record: what the small files of a run, or of an evaluation, say. No torch; nothing is changed; half a run will do."""

from __future__ import annotations

import csv
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

from napari_strata.core.classes import default_colors
from napari_strata.core.errors import RunError
from napari_strata.core.events import (
    EpochEnd,
    Event,
    Message,
    TrainingEnd,
    TrainingStarted,
    from_json,
)

MODEL, SCORES = "model.safetensors", "validation"

E = TypeVar("E", bound=Event)


@dataclass(frozen=True)
class ModelHeader:
    """What a model file says of itself before its weights: facts as text, and how many numbers the weights are."""

    facts: dict[str, str] = field(default_factory=dict)
    numbers: int = 0

    def table(self, key: str) -> dict[str, Any]:
        """A fact that is JSON; empty where there is none."""
        try:
            found = json.loads(self.facts.get(key, "{}"))
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}


@dataclass(frozen=True)
class Record:
    """A run folder, or the folder of an evaluation, as far as it can be read; what is missing is empty.

    Parameters
    ----------
    is_run
        False for the folder that ``evaluate`` writes, which has scores and pictures only.
    recipe_text
        ``recipe.yaml`` as it stands.
    data
        ``data.json``: sources, split, classes, spec, fingerprint.
    events
        all but those of single batches.
    rows
        ``metrics.csv`` of the run, one row an epoch.
    scores
        ``metrics.json`` of the validation, or of the evaluation.
    """

    path: Path
    is_run: bool
    recipe_text: str
    recipe: dict[str, Any]
    data: dict[str, Any]
    events: tuple[Event, ...]
    rows: tuple[dict[str, str], ...]
    header: ModelHeader
    scores: dict[str, Any]

    @property
    def overlays(self) -> Path:
        """The folder of pictures that belongs to the scores."""
        return (self.path / SCORES if self.is_run else self.path) / "overlays"

    @property
    def started(self) -> TrainingStarted | None:
        """The last start."""
        return next(reversed(self._all(TrainingStarted)), None)

    @property
    def ended(self) -> TrainingEnd | None:
        """The end after the last start; None when the training goes on or was cut off."""
        last = next(
            (
                e
                for e in reversed(self.events)
                if isinstance(e, (TrainingStarted, TrainingEnd))
            ),
            None,
        )
        return last if isinstance(last, TrainingEnd) else None

    @property
    def epochs(self) -> list[EpochEnd]:
        """Each epoch once, in order; of one that was done again, the newer."""
        return [
            end
            for _, end in sorted(
                {end.epoch: end for end in self._all(EpochEnd)}.items()
            )
        ]

    @property
    def best(self) -> EpochEnd | None:
        """The epoch with the best mean IoU; the last one where nothing was scored."""
        epochs = self.epochs
        return next(
            (end for end in reversed(epochs) if end.best_iou),
            epochs[-1] if epochs else None,
        )

    @property
    def warnings(self) -> list[str]:
        """Each once."""
        return list(
            dict.fromkeys(m.text for m in self._all(Message) if m.level == "warning")
        )

    @property
    def classes(self) -> dict[str, str]:
        """Colour (``#rrggbb``) of each class, in their order."""
        rows = self.data.get("classes") or []
        if not rows:
            names = list(self.scores.get("per_class", ()))
            return dict(zip(names, default_colors(len(names)), strict=True))
        return {str(row.get("name")): str(row.get("color")) for row in rows}

    def _all(self, kind: type[E]) -> list[E]:
        return [event for event in self.events if isinstance(event, kind)]


def read_record(path: str | Path) -> Record:
    """Read a run folder, or a folder that an evaluation wrote.

    Raises
    ------
    RunError
        when it is neither.
    """
    place = Path(path)
    is_run = (place / "recipe.yaml").is_file()
    if not is_run and not (place / "metrics.json").is_file():
        raise RunError(
            f"{place}: found neither a run nor an evaluation, a cross-validation or a search here; give a folder that "
            "train, evaluate, crossval or tune wrote."
        )
    text = _text(place / "recipe.yaml")
    return Record(
        path=place,
        is_run=is_run,
        recipe_text=text,
        recipe=_yaml(text),
        data=_json(place / "data.json"),
        events=tuple(_events(place / "events.jsonl")),
        rows=tuple(csv.DictReader(_text(place / "metrics.csv").splitlines()))
        if is_run
        else (),
        header=read_header(place / MODEL),
        scores=_sound(_json((place / SCORES if is_run else place) / "metrics.json")),
    )


def read_header(file: Path) -> ModelHeader:
    """The JSON at the beginning of a safetensors file; empty when there is no such file, or it is damaged."""
    try:
        with open(file, "rb") as source:
            (length,) = struct.unpack("<Q", source.read(8))
            if length > file.stat().st_size:
                return ModelHeader()
            found = json.loads(source.read(length))
        facts = dict(found.pop("__metadata__", {}))
        return ModelHeader(
            facts, sum(_product(tensor["shape"]) for tensor in found.values())
        )
    except (OSError, ValueError, struct.error, KeyError, TypeError, AttributeError):
        return ModelHeader()


def _sound(scores: dict[str, Any]) -> dict[str, Any]:
    """Scores whose table and matrix fit each other; empty when they do not, as of a file of something else."""
    table, counts = scores.get("per_class"), scores.get("confusion")
    if (
        not isinstance(table, dict)
        or not isinstance(counts, list)
        or len(table) != len(counts)
    ):
        return {}
    return (
        scores
        if all(isinstance(row, list) and len(row) == len(counts) for row in counts)
        else {}
    )


def _product(shape: list[int]) -> int:
    out = 1
    for length in shape:
        out *= int(length)
    return out


def _events(file: Path) -> Iterator[Event]:
    for line in _text(file).splitlines():
        if '"event": "BatchEnd"' in line[:30]:
            continue
        try:
            yield from_json(line)
        except (ValueError, KeyError, TypeError, AttributeError):
            continue


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(_text(file))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _yaml(text: str) -> dict[str, Any]:
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}
