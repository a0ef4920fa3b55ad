"""Search over recipe keys: cross-validate all combinations and train the best.

Networks, encoders and whole recipes (the key ``recipe``) are keys like any other. Each
trial is a cross-validation in a folder under ``trials/``, which is named after its
values. The same call continues a search that was stopped, and a larger grid in the same
folder trains only the new trials.

No library for the search (such as Optuna) is used: a product and a ranking are ten
lines, and a database would repeat what the folders of the trials already contain.
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
from napari_strata.core.locks import one_writer
from napari_strata.core.recipe import Recipe, differences
from napari_strata.core.recipes import dump_recipe, load_recipe
from napari_strata.core.runs import SearchFolder, is_unused
from napari_strata.networks import build_network
from napari_strata.studies.crossval import (
    Crossval,
    Pairs,
    Study,
    check_same,
    skip_repeated_messages,
    train_to_end,
)
from napari_strata.studies.crossval_results import CrossvalResult
from napari_strata.studies.grid import Grid, build_trials, describe
from napari_strata.studies.trials import (
    Score,
    Trial,
    TuneResult,
    epochs_of,
    rank_trials,
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

    Parameters and errors are those of `iter_tune`.
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
    """Cross-validate every combination of `grid`, and train the best on all data.

    The score of the best of many trials is too good because it was selected, in
    addition to the reason that `iter_crossval` gives. Report a score on images that
    were not used in the search.

    Parameters
    ----------
    recipe, pairs, classes, unlabelled, overrides
        As in `iter_train`, for all trials.
    grid
        Dotted keys of a recipe and the values to try for each. The key ``recipe`` takes
        names or paths of recipes.
    out
        Folder for ``trials/``, ``trials.csv`` and ``trials.json`` (best first),
        ``best.yaml``, and ``final/``, the run that is trained on all data. A second
        call continues the first.
    options, keywords
        See `SearchOptions`; its fields may be given as keywords.

    Raises
    ------
    RecipeError
        Before anything is trained, for an unknown key (the message names the nearest),
        and for a combination that gives no valid recipe or network.
    ImageError, LabelError, RunError
        As in `iter_crossval`.
    TrainingError
        When every trial failed. A single failed trial is recorded, and the search
        continues.
    """
    search_options = options or SearchOptions(**keywords)
    trials = build_trials(recipe, grid, overrides=overrides)
    base = (
        trials[0].recipe
        if "recipe" in grid
        else load_recipe(recipe).with_overrides(overrides)
    )
    crossval_options: dict[str, Any] = {
        "group": search_options.group,
        "classes": classes,
        "unlabelled": unlabelled,
    }
    study = Study.of(
        pairs,
        search_options.folds,
        recipe=base,
        device=search_options.device,
        **crossval_options,
    )
    return Search(Path(out).expanduser(), trials, study, search_options, base).run()


@dataclass(frozen=True)
class SearchOptions:
    """Options of a search.

    Parameters
    ----------
    folds
        Number of folds of each trial; 1 uses the split of an ordinary training.
    group
        See `fold_pairs`.
    halving
        Divisor of the number of trials after each round of successive halving (Jamieson
        and Talwalkar 2016, https://arxiv.org/abs/1502.07943): with 3, the best third
        continues. None trains all trials to the end.
    retrain
        Whether the best recipe is trained on all data at the end.
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
                f"--halving {self.halving}: needed is 2 or more; with 3, the best third"
                " continues."
            )


@dataclass(eq=False)
class Search:
    """A search: its trials, the data, and the scores of the trials so far."""

    out: Path
    trials: list[Trial]
    study: Study
    options: SearchOptions
    base: Recipe
    scores: dict[str, dict[int, Score]] = field(default_factory=dict)

    def check(self) -> None:
        """Raise an error if a trial cannot run. Nothing is written."""
        built = set()
        if len({axes_of(trial.recipe) for trial in self.trials}) > 1:
            raise RecipeError(
                "found 2D and 3D networks in one search; their data are split"
                " differently (slices, blocks), so the folds cannot be compared: search"
                " each separately."
            )
        for trial in self.trials:
            try:
                plan = plan_new(
                    self.study.task(trial.recipe, self.out, self.study.splits[0])
                )
                network = plan.spec.network
                if not network.is_fitted and network not in built:
                    with torch.random.fork_rng(devices=[]):
                        build_network(plan.spec)
                built.add(network)
            except StrataError as error:
                raise type(error)(f"{describe(trial.values)}: {error}") from None
        if self.options.halving and any(
            "training.epochs" in trial.values for trial in self.trials
        ):
            raise RecipeError(
                "training.epochs cannot be in a grid with halving, which sets it; leave"
                " out one of the two."
            )
        self._load_scores()

    def _load_scores(self) -> None:
        """Take up the scores of an earlier call; errors as in `_read_scores`."""
        if not is_unused(self.out):
            rounds = self.rounds() if self.options.halving else []
            self.scores = _read_scores(
                self.out, self.trials, self.study.fingerprints, rounds=rounds
            )

    def rounds(self) -> list[tuple[int, int]]:
        """Return the number of trials in each round and the divisor of their epochs.

        For example ``[(9, 9), (3, 3), (1, 1)]``.
        """
        counts, eta = [len(self.trials)], self.options.halving
        while eta and counts[-1] >= eta:
            counts.append(counts[-1] // eta)
        return [
            (count, (eta or 1) ** (len(counts) - 1 - i))
            for i, count in enumerate(counts)
        ]

    def run(self) -> Generator[Event, None, None]:
        """Run the rounds and yield events; see `iter_tune`."""
        self.check()
        with one_writer(self.out) as messages:
            yield from messages
            yield from self._run()

    def _run(self) -> Generator[Event, None, None]:
        self._load_scores()
        self._save()
        sent_messages: set[Message] = set()
        yield Message(self._describe_plan())
        remaining = self.trials
        for count, divisor in self.rounds():
            epochs = {
                trial.name: epochs_of(trial, divisor) for trial in remaining[:count]
            }
            for number, trial in enumerate(remaining[:count], 1):
                position = number, count, trial.name
                yield TrialStarted(
                    *position, epochs[trial.name], len(self.study.splits)
                )
                yield from skip_repeated_messages(
                    self._crossval(trial, epochs[trial.name]), sent_messages
                )
                trial_score = self.scores[trial.name][epochs[trial.name]]
                yield TrialEnd(
                    *position,
                    trial_score.mean_iou,
                    trial_score.mean_iou_std,
                    trial_score.seconds,
                    trial_score.text,
                    trial_score.agreement,
                )
            # Rank by the scores of this round, although a search that was stopped may
            # have later scores too.
            round_scores = {
                name: {trained: self.scores[name][trained]}
                for name, trained in epochs.items()
            }
            remaining = rank_trials(remaining[:count], round_scores)
        best = rank_trials(self.trials, self.scores)[0]
        score = self.latest(best)
        if score is None or math.isnan(score.mean_iou):
            raise TrainingError(
                f"none of {len(self.trials)} trials has a score; reason of the first:"
                f" {self._missing_score_reason()}"
            )
        folder = SearchFolder(self.out)
        files.write_text(folder.best_recipe_path, dump_recipe(best.recipe))
        model = ""
        if self.options.retrain:
            yield from skip_repeated_messages(self._retrain(best), sent_messages)
            model = str(folder.final.model_path)
        best_scores = score.mean_iou, score.mean_iou_std
        yield TuneEnd(
            str(self.out),
            best.name,
            *best_scores,
            str(folder.best_recipe_path),
            model,
            score.agreement,
        )

    def latest(self, trial: Trial) -> Score | None:
        """Return the score of a trial after the most epochs."""
        trial_scores = self.scores.get(trial.name, {})
        return trial_scores[max(trial_scores)] if trial_scores else None

    def _crossval(self, trial: Trial, epochs: int) -> Generator[Event, None, None]:
        """Cross-validate a trial for `epochs`, unless it has that score already."""
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
        """Train the best recipe on all data.

        With early stopping there is no validation data to decide by. The number of
        epochs is then the mean of the folds' best epochs.
        """
        folder = SearchFolder(self.out)
        changed: dict[str, Any] = {"training.validation": 0.0}
        if best.recipe.training.early_stopping is not None:
            folds = CrossvalResult.load(folder.trial(best.name).path).folds
            epochs = max(1, round(sum(fold.best_epoch for fold in folds) / len(folds)))
            changed |= {"training.early_stopping": None, "training.epochs": epochs}
            yield Message(
                f"no validation data for early stopping: {epochs} epochs, the mean of"
                " the folds' best epochs"
            )
        run = folder.final
        task = self.study.task(best.recipe.with_overrides(changed), run.path)
        if run.has_begun:
            fingerprints = [run.read_json("data.json")["fingerprint"]]
            record = {
                "recipe": run.recipe.model_dump(mode="json"),
                "fingerprints": fingerprints,
            }
            check_same(run.path, record, task.recipe, [plan_new(task).fingerprint])
        yield Message(f"training {best.name} on all {len(self.study.pairs)} images")
        yield from train_to_end(task)

    def _describe_plan(self) -> str:
        """Return the number of trials and epochs in each round as text."""
        folds = len(self.study.splits)
        folds_text = (
            f"{folds} folds each"
            if folds > 1
            else f"one split ({self.study.splits[0].text})"
        )
        if len(self.rounds()) == 1:
            return f"{len(self.trials)} trials, {folds_text}"
        steps: list[str] = []
        for count, divisor in self.rounds():
            epochs = sorted({epochs_of(trial, divisor) for trial in self.trials})
            if not steps:
                trials = f"all {count}"
            elif count == 1:
                trials = "the best"
            else:
                trials = f"the best {count}"
            steps.append(f"{trials} to epoch {' or '.join(map(str, epochs))}")
        return f"successive halving, {folds_text}: train {', '.join(steps)}"

    def _missing_score_reason(self) -> str:
        first = self.latest(self.trials[0])
        if first is None:
            return "nothing was trained"
        return first.text or "nothing was validated"

    def _save(self) -> None:
        """Write ``trials.csv`` and ``trials.json``, the best trial first."""
        result = TuneResult(
            self.out,
            tuple(rank_trials(self.trials, self.scores)),
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
    """Read the scores of `trials` that an earlier search in `out` left.

    Parameters
    ----------
    rounds
        Rounds of successive halving, if any.

    Raises
    ------
    RunError
        When `out` contains anything but a search with the same data, rounds and
        recipes.
    """
    folder = SearchFolder(out)
    if not folder.exists:
        raise RunError(
            f"{out}: contains something that is not a search; choose another --out."
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
        changed_keys = [key for key in keys if key not in ("name", "description")]
        if changed_keys:
            raise RunError(
                f"{out}: trial {trial.name} was begun with other values of"
                f" {', '.join(changed_keys)}; choose another --out."
            )
    trial_names = {trial.name for trial in trials}
    return {
        name: dict(trial_scores)
        for name, trial_scores in before.scores.items()
        if name in trial_names
    }
