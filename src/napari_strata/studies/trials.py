"""Trials of a search, their scores, and their table with the best first."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from napari_strata.core.errors import RunError
from napari_strata.core.metrics import none_if_nan
from napari_strata.core.recipe import Recipe
from napari_strata.core.runs import SearchFolder
from napari_strata.studies.crossval_results import (
    CrossvalResult,
    as_csv,
    columns,
    mean_std,
    number,
)


@dataclass(frozen=True, eq=False)
class Trial:
    """One combination of settings: folder name, changed keys and recipe."""

    name: str
    values: Mapping[str, Any]
    recipe: Recipe


@dataclass(frozen=True)
class Score:
    """Scores of a trial: means over folds and their standard deviations.

    `seconds` of training, all folds together and from the start; `text` says why there
    is no score.
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
        return cls(
            result.mean_iou, result.mean_iou_std, mean, deviation, result.seconds
        )

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
        """Rebuild the value from the result of `as_dict`."""
        mean, deviation = (
            tuple(map(_float, raw[key])) for key in ("class_iou", "class_iou_std")
        )
        overall = _float(raw["mean_iou"]), _float(raw["mean_iou_std"])
        return cls(*overall, mean, deviation, float(raw["seconds"]), raw["text"])


Stage = Literal["waiting", "goes on", "given up", "failed", "finished"]

Scores = Mapping[str, Mapping[int, Score]]
"""Name of a trial -> epochs -> its score after them."""


@dataclass(frozen=True, eq=False)
class TuneResult:
    """Trials of a search with their scores, the best first.

    Longer training ranks before trials that were given up; then the mean IoU decides.

    Parameters
    ----------
    rounds
        of successive halving: how many trials train in each, and the divisor of their
        epochs; empty without it.
    splits
        what each fold holds back, in words.
    """

    out: Path
    trials: tuple[Trial, ...]
    scores: Scores
    class_names: tuple[str, ...]
    rounds: tuple[tuple[int, int], ...] = ()
    splits: tuple[str, ...] = ()

    @classmethod
    def load(cls, out: str | Path) -> TuneResult:
        """Read ``trials.json``. Raises `RunError` when it is missing or damaged."""
        folder = SearchFolder(out)
        return cls.parse(folder.read(), folder.path)

    @classmethod
    def parse(cls, raw: Mapping[str, Any], out: Path) -> TuneResult:
        """From what ``trials.json`` of `out` holds; raises as `load`."""
        try:
            rows = list(raw["trials"])
            trials = tuple(
                Trial(row["name"], row["values"], Recipe.parse(row["recipe"]))
                for row in rows
            )
            scores = {
                row["name"]: {
                    int(k): Score.from_dict(v) for k, v in row["epochs"].items()
                }
                for row in rows
            }
            rounds = tuple(
                (int(count), int(divisor)) for count, divisor in raw["rounds"]
            )
            return cls(
                out,
                trials,
                scores,
                tuple(raw["class_names"]),
                rounds,
                tuple(map(str, raw["splits"])),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(
                f"{SearchFolder(out).file}: cannot be read ({error}); move it away and"
                " begin anew."
            ) from None

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
        run = SearchFolder(self.out).final
        return run.model_path if run.has_model else None

    def rows(self) -> list[dict[str, Any]]:
        """Build the rows of ``trials.json``.

        Each trial has its scores after each number of epochs.
        """
        return [
            {
                "rank": rank,
                "name": trial.name,
                "values": dict(trial.values),
                "state": self.state(trial),
            }
            | {"recipe": trial.recipe.model_dump(mode="json")}
            | {
                "epochs": {
                    str(epochs): epoch_score.as_dict()
                    for epochs, epoch_score in self.scores.get(trial.name, {}).items()
                }
            }
            for rank, trial in enumerate(self.trials, 1)
        ]

    def state(self, trial: Trial) -> str:
        """``finished``, ``given up after epoch 3``, ``at epoch 3``, ``failed.

        ...`` or ``waiting``.
        """
        epochs, score = self.latest(trial)
        stage = self.stage(trial)
        if stage == "failed" and score is not None:
            return f"failed: {score.text}"
        return {
            "given up": f"given up after epoch {epochs}",
            "goes on": f"at epoch {epochs}",
        }.get(stage, stage)

    def stage(self, trial: Trial) -> Stage:
        """Return the state of a trial.

        One that "goes on" may do so in the next round.
        """
        epochs, score = self.latest(trial)
        if score is None:
            return "waiting"
        if score.text:
            return "failed"
        if epochs >= trial.recipe.training.epochs:
            return "finished"
        return "given up" if trial.name in self._given_up() else "goes on"

    @property
    def is_finished(self) -> bool:
        """True when all trials are judged.

        The best may still be trained on all data.
        """
        return not any(
            self.stage(trial) in ("waiting", "goes on") for trial in self.trials
        )

    def latest(self, trial: Trial) -> tuple[int, Score | None]:
        """Epochs and the score after them; without a score 0 and None."""
        return _latest(trial, self.scores)

    def _given_up(self) -> set[str]:
        """Trials that a round of successive halving left behind.

        Of a round under way nobody knows yet.
        """
        alive, out = list(self.trials), set()
        for count, divisor in self.rounds:
            out |= {trial.name for trial in alive[count:]}
            epochs = {trial.name: epochs_of(trial, divisor) for trial in alive[:count]}
            if any(
                after not in self.scores.get(name, {}) for name, after in epochs.items()
            ):
                break
            now = {
                name: {after: self.scores[name][after]}
                for name, after in epochs.items()
            }
            alive = in_order(alive[:count], now)
        return out

    def csv(self) -> str:
        """A row a trial, best first."""
        rows = []
        for rank, trial in enumerate(self.trials, 1):
            epochs, latest_score = self.latest(trial)
            score = latest_score or Score()
            row: dict[str, Any] = {
                "rank": rank,
                "trial": trial.name,
                **{k: str(v) for k, v in trial.values.items()},
            }
            row |= {
                "mean_iou": number(score.mean_iou),
                "mean_iou_std": number(score.mean_iou_std),
            }
            for what, values in (
                ("iou", score.class_iou),
                ("iou std", score.class_iou_std),
            ):
                padded = values or (math.nan,) * len(self.class_names)
                row |= {
                    f"{what} {name}": number(v)
                    for name, v in zip(self.class_names, padded, strict=True)
                }
            rows.append(
                row
                | {
                    "epochs": epochs,
                    "seconds": f"{score.seconds:.1f}",
                    "state": self.state(trial),
                }
            )
        return as_csv(rows)

    def table(self) -> str:
        """For people: rank, trial, scores, seconds, state."""
        rows = [["trial", "rank", "mean IoU", *self.class_names, "seconds", "state"]]
        for rank, trial in enumerate(self.trials, 1):
            score = self.latest(trial)[1] or Score()
            each = [mean_std(value, math.nan) for value in score.class_iou] or [
                "-"
            ] * len(self.class_names)
            overall = mean_std(score.mean_iou, score.mean_iou_std)
            rows.append(
                [
                    trial.name,
                    str(rank),
                    overall,
                    *each,
                    f"{score.seconds:.0f}",
                    self.state(trial),
                ]
            )
        return columns(rows)


def in_order(trials: Sequence[Trial], scores: Scores) -> list[Trial]:
    """Trials from the best: those that got furthest first, then by mean IoU.

    Those without a score last.
    """

    def key(trial: Trial) -> tuple[float, float]:
        epochs, score = _latest(trial, scores)
        if score is None or math.isnan(score.mean_iou):
            return 0.0, 0.0
        return epochs / trial.recipe.training.epochs, score.mean_iou

    return sorted(trials, key=key, reverse=True)


def _latest(trial: Trial, scores: Scores) -> tuple[int, Score | None]:
    """Epochs and the score after them; without a score 0 and None."""
    trial_scores = scores.get(trial.name, {})
    epochs = max(trial_scores, default=0)
    return epochs, trial_scores.get(epochs)


def _float(value: float | None) -> float:
    return math.nan if value is None else float(value)


def epochs_of(trial: Trial, divisor: int) -> int:
    """Epochs of one round of successive halving.

    A share of those that the trial's recipe has, at least one.
    """
    return math.ceil(trial.recipe.training.epochs / divisor)
