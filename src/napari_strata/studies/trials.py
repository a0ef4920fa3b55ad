"""Trials of a search, their scores, and their table."""

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
    """Combination of settings: folder name, changed keys and recipe."""

    name: str
    values: Mapping[str, Any]
    recipe: Recipe


@dataclass(frozen=True)
class Score:
    """Scores of a trial: means over folds and their standard deviations.

    Parameters
    ----------
    class_iou, class_iou_std
        One number for each class.
    seconds
        Time of training from the start, all folds together.
    text
        The reason if there is no score.
    agreement
        Agreement with held-out strokes in words; empty where areas are labelled.
    """

    mean_iou: float = math.nan
    mean_iou_std: float = math.nan
    class_iou: tuple[float, ...] = ()
    class_iou_std: tuple[float, ...] = ()
    seconds: float = 0.0
    text: str = ""
    agreement: str = ""

    @classmethod
    def of(cls, result: CrossvalResult) -> Score:
        """Return the score of a cross-validation."""
        mean, deviation = (tuple(map(float, values)) for values in result.spread("iou"))
        return cls(
            result.mean_iou,
            result.mean_iou_std,
            mean,
            deviation,
            result.seconds,
            agreement=result.agreement,
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the score as plain data, with None instead of NaN."""
        return {
            "mean_iou": none_if_nan(self.mean_iou),
            "mean_iou_std": none_if_nan(self.mean_iou_std),
            "class_iou": [none_if_nan(value) for value in self.class_iou],
            "class_iou_std": [none_if_nan(value) for value in self.class_iou_std],
            "seconds": round(self.seconds, 3),
            "text": self.text,
            "agreement": self.agreement,
        }

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Score:
        """Rebuild the value from the result of `as_dict`."""
        mean, deviation = (
            tuple(map(_float, raw[key])) for key in ("class_iou", "class_iou_std")
        )
        overall = _float(raw["mean_iou"]), _float(raw["mean_iou_std"])
        seconds, text = float(raw["seconds"]), raw["text"]
        agreement = raw.get("agreement", "")  # older files have none
        return cls(*overall, mean, deviation, seconds, text, agreement)


Stage = Literal["waiting", "active", "given up", "failed", "finished"]

Scores = Mapping[str, Mapping[int, Score]]
"""Scores of trials by name of the trial and number of epochs."""


@dataclass(frozen=True, eq=False)
class TuneResult:
    """Trials of a search with their scores, the best first.

    Trials that trained for longer rank before trials that were given up. Among equally
    long trainings the mean IoU decides.

    Parameters
    ----------
    rounds
        Rounds of successive halving: the number of trials in each, and the divisor of
        their epochs. Empty without successive halving.
    splits
        Description of the validation data of each fold.
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
        """Parse the content of ``trials.json``; raises like `load`."""
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
        """Path of the best recipe's model that was trained on all data, or None."""
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
        """Return the state of a trial as text.

        For example ``finished``, ``given up after epoch 3``, ``at epoch 3``,
        ``failed: REASON`` or ``waiting``.
        """
        epochs, score = self.latest(trial)
        stage = self.stage(trial)
        if stage == "failed" and score is not None:
            return f"failed: {score.text}"
        return {
            "given up": f"given up after epoch {epochs}",
            "active": f"at epoch {epochs}",
        }.get(stage, stage)

    def stage(self, trial: Trial) -> Stage:
        """Return the stage of a trial.

        A trial that is "active" may train for more epochs in the next round.
        """
        epochs, score = self.latest(trial)
        if score is None:
            return "waiting"
        if score.text:
            return "failed"
        if epochs >= trial.recipe.training.epochs:
            return "finished"
        return "given up" if trial.name in self._given_up() else "active"

    @property
    def is_finished(self) -> bool:
        """True if all trials have their final score.

        The best one may still be trained on all data.
        """
        return not any(
            self.stage(trial) in ("waiting", "active") for trial in self.trials
        )

    def latest(self, trial: Trial) -> tuple[int, Score | None]:
        """Return the largest number of epochs and the score, or 0 and None."""
        return _latest(trial, self.scores)

    def _given_up(self) -> set[str]:
        """Return the names of trials that successive halving does not train further.

        A round that is not finished gives up no trial.
        """
        remaining, given_up = list(self.trials), set()
        for count, divisor in self.rounds:
            given_up |= {trial.name for trial in remaining[count:]}
            epochs = {
                trial.name: epochs_of(trial, divisor) for trial in remaining[:count]
            }
            if any(
                number not in self.scores.get(name, {})
                for name, number in epochs.items()
            ):
                break
            round_scores = {
                name: {number: self.scores[name][number]}
                for name, number in epochs.items()
            }
            remaining = rank_trials(remaining[:count], round_scores)
        return given_up

    def csv(self) -> str:
        """Format the trials as CSV, one row for each, the best first."""
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
            for column, values in (
                ("iou", score.class_iou),
                ("iou std", score.class_iou_std),
            ):
                padded = values or (math.nan,) * len(self.class_names)
                row |= {
                    f"{column} {name}": number(v)
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
        """Format the trials as text: rank, scores, seconds and state."""
        rows = [["trial", "rank", "mean IoU", *self.class_names, "seconds", "state"]]
        for rank, trial in enumerate(self.trials, 1):
            score = self.latest(trial)[1] or Score()
            class_ious = [mean_std(value, math.nan) for value in score.class_iou]
            if not class_ious:
                class_ious = ["-"] * len(self.class_names)
            overall = mean_std(score.mean_iou, score.mean_iou_std)
            rows.append(
                [
                    trial.name,
                    str(rank),
                    overall,
                    *class_ious,
                    f"{score.seconds:.0f}",
                    self.state(trial),
                ]
            )
        return columns(rows)


def rank_trials(trials: Sequence[Trial], scores: Scores) -> list[Trial]:
    """Sort trials by the fraction of their epochs that they trained, then by mean IoU.

    The best comes first; trials without a score come last.
    """

    def key(trial: Trial) -> tuple[float, float]:
        epochs, score = _latest(trial, scores)
        if score is None or math.isnan(score.mean_iou):
            return 0.0, 0.0
        return epochs / trial.recipe.training.epochs, score.mean_iou

    return sorted(trials, key=key, reverse=True)


def _latest(trial: Trial, scores: Scores) -> tuple[int, Score | None]:
    """Return the largest number of epochs and the score, or 0 and None."""
    trial_scores = scores.get(trial.name, {})
    epochs = max(trial_scores, default=0)
    return epochs, trial_scores.get(epochs)


def _float(value: float | None) -> float:
    return math.nan if value is None else float(value)


def epochs_of(trial: Trial, divisor: int) -> int:
    """Return the epochs of a trial in a round of successive halving, at least 1."""
    return math.ceil(trial.recipe.training.epochs / divisor)
