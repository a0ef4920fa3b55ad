"""Trials: what a search tries, what it found of each, and the table of it, best first."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from napari_strata.errors import RunError
from napari_strata.files import TRIALS, read_study
from napari_strata.metrics import none_if_nan
from napari_strata.recipe import Recipe
from napari_strata.training.plan import differences
from napari_strata.training.study import CrossvalResult, as_csv, columns, mean_std, number


@dataclass(frozen=True, eq=False)
class Trial:
    """One combination: the name of its folder under ``trials/``, what it changes, and the recipe that this makes."""

    name: str
    values: Mapping[str, Any]
    recipe: Recipe


@dataclass(frozen=True)
class Score:
    """What the cross-validation of a trial gave: means over folds and their standard deviations.

    `seconds` of training, all folds together and from the start; `text` says why there is no score.
    """

    mean_iou: float = math.nan
    mean_iou_std: float = math.nan
    class_iou: tuple[float, ...] = ()
    class_iou_std: tuple[float, ...] = ()
    seconds: float = 0.0
    text: str = ""

    @classmethod
    def of(cls, result: CrossvalResult) -> Score:
        """The score in a cross-validation."""
        mean, deviation = (tuple(map(float, values)) for values in result.spread("iou"))
        return cls(result.mean_iou, result.mean_iou_std, mean, deviation, result.seconds)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, NaN as None."""
        return {
            "mean_iou": none_if_nan(self.mean_iou),
            "mean_iou_std": none_if_nan(self.mean_iou_std),
            "class_iou": [none_if_nan(value) for value in self.class_iou],
            "class_iou_std": [none_if_nan(value) for value in self.class_iou_std],
            "seconds": round(self.seconds, 3),
            "text": self.text,
        }

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Score:
        """What `as_dict` gave."""
        mean, deviation = (tuple(map(_float, raw[key])) for key in ("class_iou", "class_iou_std"))
        overall = _float(raw["mean_iou"]), _float(raw["mean_iou_std"])
        return cls(*overall, mean, deviation, float(raw["seconds"]), raw["text"])


Scores = Mapping[str, Mapping[int, Score]]
"""Name of a trial -> epochs -> its score after them."""


@dataclass(frozen=True, eq=False)
class TuneResult:
    """Trials, best first: those that trained longest before those that were given up, then by mean IoU."""

    out: Path
    trials: tuple[Trial, ...]
    scores: Scores
    class_names: tuple[str, ...]

    @classmethod
    def load(cls, out: str | Path) -> TuneResult:
        """Read ``trials.json``. Raises `RunError` when it is missing or damaged."""
        place = Path(out).expanduser()
        raw = read_study(place / TRIALS)
        try:
            rows = list(raw["trials"])
            trials = tuple(Trial(row["name"], row["values"], Recipe.parse(row["recipe"])) for row in rows)
            scores = {row["name"]: {int(k): Score.from_dict(v) for k, v in row["epochs"].items()} for row in rows}
            return cls(place, trials, scores, tuple(raw["class_names"]))
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(f"{place / TRIALS}: cannot be read ({error}); move it away and begin anew.") from None

    @property
    def best(self) -> Trial:
        return self.trials[0]

    @property
    def recipe(self) -> Recipe:
        """The best recipe."""
        return self.best.recipe

    @property
    def model(self) -> Path | None:
        """The model of it that was trained on all data, if there is one."""
        path = self.out / "final" / "model.safetensors"
        return path if path.is_file() else None

    def rows(self) -> list[dict[str, Any]]:
        """For ``trials.json``: everything of each trial, with its scores after each number of epochs."""
        return [
            {"rank": rank, "name": trial.name, "values": dict(trial.values), "state": self.state(trial)}
            | {"recipe": trial.recipe.model_dump(mode="json")}
            | {"epochs": {str(epochs): one.as_dict() for epochs, one in self.scores.get(trial.name, {}).items()}}
            for rank, trial in enumerate(self.trials, 1)
        ]

    def state(self, trial: Trial) -> str:
        """``finished``, ``given up after epoch 3``, ``failed: ...`` or ``waiting``."""
        epochs, score = _latest(trial, self.scores)
        if score is None:
            return "waiting"
        if score.text:
            return f"failed: {score.text}"
        return "finished" if epochs >= trial.recipe.training.epochs else f"given up after epoch {epochs}"

    def csv(self) -> str:
        """A row a trial, best first."""
        rows = []
        for rank, trial in enumerate(self.trials, 1):
            epochs, found = _latest(trial, self.scores)
            score = found or Score()
            row: dict[str, Any] = {"rank": rank, "trial": trial.name, **{k: str(v) for k, v in trial.values.items()}}
            row |= {"mean_iou": number(score.mean_iou), "mean_iou_std": number(score.mean_iou_std)}
            for what, values in (("iou", score.class_iou), ("iou std", score.class_iou_std)):
                padded = values or (math.nan,) * len(self.class_names)
                row |= {f"{what} {name}": number(v) for name, v in zip(self.class_names, padded, strict=True)}
            rows.append(row | {"epochs": epochs, "seconds": f"{score.seconds:.1f}", "state": self.state(trial)})
        return as_csv(rows)

    def table(self) -> str:
        """For people: rank, trial, scores, seconds, state."""
        rows = [["trial", "rank", "mean IoU", *self.class_names, "seconds", "state"]]
        for rank, trial in enumerate(self.trials, 1):
            score = _latest(trial, self.scores)[1] or Score()
            each = [mean_std(value, math.nan) for value in score.class_iou] or ["-"] * len(self.class_names)
            overall = mean_std(score.mean_iou, score.mean_iou_std)
            rows.append([trial.name, str(rank), overall, *each, f"{score.seconds:.0f}", self.state(trial)])
        return columns(rows)


def in_order(trials: Sequence[Trial], scores: Scores) -> list[Trial]:
    """Trials from the best: those that got furthest first, then by mean IoU; those without a score last."""

    def key(trial: Trial) -> tuple[float, float]:
        epochs, score = _latest(trial, scores)
        if score is None or math.isnan(score.mean_iou):
            return 0.0, 0.0
        return epochs / trial.recipe.training.epochs, score.mean_iou

    return sorted(trials, key=key, reverse=True)


def read_scores(
    out: Path, trials: Sequence[Trial], fingerprints: Sequence[str], *, rounds: Sequence[tuple[int, int]]
) -> dict[str, dict[int, Score]]:
    """What an earlier search in `out` found of these trials. `rounds` are those of successive halving, if any.

    Raises
    ------
    RunError
        when `out` holds something else, or a search on other data, in other rounds or with other recipes.
    """
    if not (out / TRIALS).is_file():
        raise RunError(f"{out}: found something here that is no search; choose another --out.")
    record = read_study(out / TRIALS)
    if record.get("fingerprints") != list(fingerprints):
        raise RunError(
            f"{out}: was begun with other images, labels or folds; give the same again, or choose another --out."
        )
    if record.get("rounds") != [list(one) for one in rounds]:
        raise RunError(f"{out}: was begun with another --halving, or another number of trials; choose another --out.")
    before = TuneResult.load(out)
    recipes = {trial.name: trial.recipe for trial in before.trials}
    for trial in trials:
        keys = differences(recipes.get(trial.name, trial.recipe), trial.recipe)
        if wrong := [key for key in keys if key not in ("name", "description")]:
            raise RunError(
                f"{out}: trial {trial.name} was begun with other values of {', '.join(wrong)}; choose another --out."
            )
    known = {trial.name for trial in trials}
    return {name: dict(found) for name, found in before.scores.items() if name in known}


def _latest(trial: Trial, scores: Scores) -> tuple[int, Score | None]:
    """Epochs and the score after them; without a score 0 and None."""
    known = scores.get(trial.name, {})
    epochs = max(known, default=0)
    return epochs, known.get(epochs)


def _float(value: float | None) -> float:
    return math.nan if value is None else float(value)
