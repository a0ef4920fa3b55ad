"""Search over recipe keys: cross-validate all combinations and train the best.

Networks, encoders and whole recipes (the key ``recipe``) are keys like any other, so
this is the sweep as well. Each trial is a cross-validation of its own under
``trials/``, named by what it changes: the same call goes on after a stop, and a larger
grid in the same folder trains only what is new.

A library for the search (Optuna) was considered: what is needed of it here, a product
and a ranking, is ten lines, and its resumable study would be a database beside the
folders that already say what is done.
"""

from __future__ import annotations

import math
import os
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from napari_strata.core import files
from napari_strata.core.classes import ClassMap
from napari_strata.core.errors import RecipeError, RunError, StrataError, TrainingError
from napari_strata.core.events import Event, Message, TrialEnd, TrialStarted, TuneEnd
from napari_strata.core.recipe import Recipe, differences
from napari_strata.core.recipes import dump_recipe, load_recipe
from napari_strata.core.runs import SearchFolder
from napari_strata.networks import build_network
from napari_strata.studies.crossval import (
    Crossval,
    Pairs,
    Study,
    check_same,
    train_on,
    unsaid,
)
from napari_strata.studies.crossval_results import CrossvalResult
from napari_strata.studies.grid import Grid, build_trials, in_words
from napari_strata.studies.trials import (
    Score,
    Trial,
    TuneResult,
    epochs_of,
    in_order,
)
from napari_strata.training.plan import axes_of, plan_new


def tune(
    recipe: str | os.PathLike[str] | Recipe,
    pairs: Pairs,
    grid: Grid,
    *,
    out: str | Path,
    **options: Any,
) -> TuneResult:
    """Search to the end and return the result.

    Parameters and errors as in `iter_tune`.
    """
    with closing(iter_tune(recipe, pairs, grid, out=out, **options)) as events:
        for _ in events:
            pass
    return TuneResult.load(out)


def iter_tune(
    recipe: str | os.PathLike[str] | Recipe,
    pairs: Pairs,
    grid: Grid,
    *,
    out: str | Path,
    options: SearchOptions | None = None,
    classes: ClassMap | None = None,
    unlabelled: Sequence[int] = (),
    overrides: Mapping[str, Any] | None = None,
    **keywords: Any,
) -> Generator[Event, None, None]:
    """Judge every combination of `grid` by cross-validation, and train the best one
    on all data.

    The score of the best of many trials is too good by the choice itself, besides what
    `iter_crossval` says: report a score on images that took no part.

    Parameters
    ----------
    recipe, pairs, classes, unlabelled, overrides
        as in `iter_train`; what every trial has in common.
    grid
        dotted keys of a recipe and the values of each to try; the key ``recipe`` takes
        names or paths of recipes.
    out
        folder for ``trials/``, ``trials.csv`` and ``trials.json`` (best first),
        ``best.yaml`` and ``final/``, the run that is trained on all data. A second call
        goes on where the first one stopped.
    options, keywords
        see `SearchOptions`; its fields may be given as keywords.

    Raises
    ------
    RecipeError
        before anything is trained, for a key that no recipe has (naming the nearest)
        and for each combination that makes no recipe or no network.
    ImageError, LabelError, RunError
        as in `iter_crossval`.
    TrainingError
        when every trial failed; one that fails is noted, and the search goes on.
    """
    chosen = options or SearchOptions(**keywords)
    trials = build_trials(recipe, grid, overrides=overrides)
    base = (
        trials[0].recipe
        if "recipe" in grid
        else load_recipe(recipe).with_overrides(overrides)
    )
    crossval_options: dict[str, Any] = {
        "group": chosen.group,
        "classes": classes,
        "unlabelled": unlabelled,
    }
    study = Study.of(
        pairs, chosen.folds, recipe=base, device=chosen.device, **crossval_options
    )
    return Search(Path(out).expanduser(), trials, study, chosen, base).run()


@dataclass(frozen=True)
class SearchOptions:
    """Options of a search.

    Parameters
    ----------
    folds
        of the cross-validation of each trial; 1 for the one split that a training has.
    group
        see `fold_pairs`.
    halving
        share of the trials that goes on after each round of successive halving
        (Jamieson and Talwalkar 2016, https://arxiv.org/abs/1502.07943): 3 lets the best
        third train on. None trains all of them to the end.
    retrain
        whether the best recipe is trained on all data at the end.
    device
        "auto", "cpu", "cuda", "cuda:1" or "mps".
    """

    folds: int = 3
    group: str | None = None
    halving: int | None = None
    retrain: bool = True
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.halving is not None and self.halving < 2:
            raise RecipeError(
                f"--halving {self.halving}: needed is 2 or more; 3 lets the best third"
                " go on."
            )


@dataclass(eq=False)
class Search:
    """One search: its trials, the data, and what is known of each trial so far."""

    out: Path
    trials: list[Trial]
    study: Study
    options: SearchOptions
    base: Recipe
    scores: dict[str, dict[int, Score]] = field(default_factory=dict)

    def check(self) -> None:
        """Raise whatever speaks against any trial, without writing anything."""
        built = set()
        if len({axes_of(trial.recipe) for trial in self.trials}) > 1:
            raise RecipeError(
                "found 2D and 3D networks in one search; they are split otherwise"
                " (slices, blocks) and cannot be compared fold by fold: search each by"
                " itself."
            )
        for trial in self.trials:
            try:
                plan = plan_new(
                    self.study.job(trial.recipe, self.out, self.study.splits[0])
                )
                if plan.spec.network not in built:
                    with torch.random.fork_rng(devices=[]):
                        build_network(plan.spec)
                built.add(plan.spec.network)
            except StrataError as error:
                raise type(error)(f"{in_words(trial.values)}: {error}") from None
        if self.options.halving and any(
            "training.epochs" in trial.values for trial in self.trials
        ):
            raise RecipeError(
                "training.epochs cannot be in a grid with halving, which sets it; leave"
                " out one of both."
            )
        if self.out.exists() and not (
            self.out.is_dir() and not any(self.out.iterdir())
        ):
            rounds = self.rounds() if self.options.halving else []
            self.scores = _read_scores(
                self.out, self.trials, self.study.fingerprints, rounds=rounds
            )

    def rounds(self) -> list[tuple[int, int]]:
        """Trials in each round, with the divisor of their epochs.

        ``[(9, 9), (3, 3), (1, 1)]``.
        """
        counts, eta = [len(self.trials)], self.options.halving
        while eta and counts[-1] >= eta:
            counts.append(counts[-1] // eta)
        return [
            (count, (eta or 1) ** (len(counts) - 1 - i))
            for i, count in enumerate(counts)
        ]

    def run(self) -> Generator[Event, None, None]:
        """Round by round; see `iter_tune`."""
        self.check()
        self._save()
        repeated: set[Event] = set()
        yield Message(self._plan_in_words())
        alive = self.trials
        for count, divisor in self.rounds():
            epochs = {trial.name: epochs_of(trial, divisor) for trial in alive[:count]}
            for number, trial in enumerate(alive[:count], 1):
                position = number, count, trial.name
                yield TrialStarted(
                    *position, epochs[trial.name], len(self.study.splits)
                )
                yield from unsaid(self._judge(trial, epochs[trial.name]), repeated)
                trial_score = self.scores[trial.name][epochs[trial.name]]
                yield TrialEnd(
                    *position,
                    trial_score.mean_iou,
                    trial_score.mean_iou_std,
                    trial_score.seconds,
                    trial_score.text,
                )
            # By the scores of this round, also where a stopped search has later ones.
            now = {name: {one: self.scores[name][one]} for name, one in epochs.items()}
            alive = in_order(alive[:count], now)
        best = in_order(self.trials, self.scores)[0]
        score = self.latest(best)
        if score is None or math.isnan(score.mean_iou):
            raise TrainingError(
                f"no trial of {len(self.trials)} has a score; the first says:"
                f" {self._why_none()}"
            )
        folder = SearchFolder(self.out)
        files.write_text(folder.best_recipe_path, dump_recipe(best.recipe))
        model = ""
        if self.options.retrain:
            yield from unsaid(self._retrain(best), repeated)
            model = str(folder.final.model_path)
        best_scores = score.mean_iou, score.mean_iou_std
        yield TuneEnd(
            str(self.out), best.name, *best_scores, str(folder.best_recipe_path), model
        )

    def latest(self, trial: Trial) -> Score | None:
        """The score after the most epochs."""
        trial_scores = self.scores.get(trial.name, {})
        return trial_scores[max(trial_scores)] if trial_scores else None

    def _judge(self, trial: Trial, epochs: int) -> Generator[Event, None, None]:
        """Cross-validate one trial for so many epochs, unless that is known."""
        trial_scores = self.scores.setdefault(trial.name, {})
        if epochs in trial_scores and not trial_scores[epochs].text:
            return
        trial_path = SearchFolder(self.out).trial(trial.name).path
        try:
            yield from Crossval(
                trial_path,
                trial.recipe.with_overrides({"training.epochs": epochs}),
                self.study,
            ).run()
            trial_scores[epochs] = Score.of(CrossvalResult.load(trial_path))
        except TrainingError as error:
            trial_scores[epochs] = Score(text=str(error))
        self._save()

    def _retrain(self, best: Trial) -> Generator[Event, None, None]:
        """Train the best recipe on everything, as long as it took to be best where
        early stopping may decide.
        """
        folder = SearchFolder(self.out)
        changed: dict[str, Any] = {"training.validation": 0.0}
        if best.recipe.training.early_stopping is not None:
            folds = CrossvalResult.load(folder.trial(best.name).path).folds
            epochs = max(1, round(sum(fold.best_epoch for fold in folds) / len(folds)))
            changed |= {"training.early_stopping": None, "training.epochs": epochs}
            yield Message(
                f"nothing is held back now to stop early: {epochs} epochs, the mean of"
                " the folds' best"
            )
        run = folder.final
        job = self.study.job(best.recipe.with_overrides(changed), run.path)
        if run.has_begun:
            fingerprints = [run.read_json("data.json")["fingerprint"]]
            record = {
                "recipe": run.recipe.model_dump(mode="json"),
                "fingerprints": fingerprints,
            }
            check_same(run.path, record, job.recipe, [plan_new(job).fingerprint])
        yield Message(f"training {best.name} on all {len(self.study.pairs)} images")
        yield from train_on(job)

    def _plan_in_words(self) -> str:
        folds = len(self.study.splits)
        each = (
            f"{folds} folds each"
            if folds > 1
            else f"one split ({self.study.splits[0].text})"
        )
        if len(self.rounds()) == 1:
            return f"{len(self.trials)} trials, {each}"
        steps: list[str] = []
        for count, divisor in self.rounds():
            epochs = sorted({epochs_of(trial, divisor) for trial in self.trials})
            who = (
                f"all {count}"
                if not steps
                else "the best"
                if count == 1
                else f"the best {count}"
            )
            steps.append(f"{who} to epoch {' or '.join(map(str, epochs))}")
        return f"successive halving, {each}: train {', '.join(steps)}"

    def _why_none(self) -> str:
        first = self.latest(self.trials[0])
        return first.text or "nothing validated" if first else "nothing was trained"

    def _save(self) -> None:
        """``trials.csv`` and ``trials.json``, best first."""
        result = TuneResult(
            self.out,
            tuple(in_order(self.trials, self.scores)),
            self.scores,
            self.study.classes.names,
            rounds=tuple(self.rounds()) if self.options.halving else (),
            splits=tuple(split.text for split in self.study.splits),
        )
        record = {
            "folds": len(self.study.splits),
            "fingerprints": self.study.fingerprints,
            "rounds": [list(round_sizes) for round_sizes in result.rounds],
            "splits": list(result.splits),
            "class_names": list(self.study.classes.names),
            "trials": result.rows(),
        }
        folder = SearchFolder(self.out)
        files.write_text(folder.table_path, result.csv())
        folder.write(record)


def _read_scores(
    out: Path,
    trials: Sequence[Trial],
    fingerprints: Sequence[str],
    *,
    rounds: Sequence[tuple[int, int]],
) -> dict[str, dict[int, Score]]:
    """What an earlier search in `out` found of these trials.

    `rounds` are those of successive halving, if any.

    Raises
    ------
    RunError
        when `out` holds something else, or a search on other data, in other rounds or
        with other recipes.
    """
    folder = SearchFolder(out)
    if not folder.exists:
        raise RunError(
            f"{out}: found something here that is no search; choose another --out."
        )
    record = folder.read()
    if record.get("fingerprints") != list(fingerprints):
        raise RunError(
            f"{out}: was begun with other images, labels or folds; give the same again,"
            " or choose another --out."
        )
    if record.get("rounds") != [list(round_sizes) for round_sizes in rounds]:
        raise RunError(
            f"{out}: was begun with another --halving, or another number of trials;"
            " choose another --out."
        )
    before = TuneResult.load(out)
    recipes = {trial.name: trial.recipe for trial in before.trials}
    for trial in trials:
        keys = differences(recipes.get(trial.name, trial.recipe), trial.recipe)
        if wrong := [key for key in keys if key not in ("name", "description")]:
            raise RunError(
                f"{out}: trial {trial.name} was begun with other values of"
                f" {', '.join(wrong)}; choose another --out."
            )
    trial_names = {trial.name for trial in trials}
    return {
        name: dict(trial_scores)
        for name, trial_scores in before.scores.items()
        if name in trial_names
    }
