"""Cross-validation: one training for each fold, in a run folder of its own.

Every labelled image, slice or specimen validates once.

To stop is to stop iterating; the same call goes on: finished folds are left alone, a
half-trained one is resumed. Other data than it began with, or another recipe, is
refused.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from napari_strata.core import files
from napari_strata.core.classes import ClassMap
from napari_strata.core.errors import LabelError, RunError
from napari_strata.core.events import (
    CrossvalEnd,
    Event,
    FoldEnd,
    FoldStarted,
    Message,
)
from napari_strata.core.image import AnnotatedImage
from napari_strata.core.metrics import ConfusionMatrix
from napari_strata.core.recipe import Recipe, Training, differences
from napari_strata.core.recipes import load_recipe
from napari_strata.core.runs import CrossvalFolder, RunFolder
from napari_strata.core.spec import find_classes
from napari_strata.data.folds import fold_pairs
from napari_strata.data.split import Split, distinct_pairs, split_pairs
from napari_strata.studies.crossval_results import CrossvalResult, FoldScore
from napari_strata.training.loop import iter_job
from napari_strata.training.plan import TrainingJob, axes_of, data_fingerprint, plan_new

Pairs = AnnotatedImage | Sequence[AnnotatedImage]


def crossval(
    recipe: str | os.PathLike[str] | Recipe,
    pairs: Pairs,
    *,
    out: str | Path,
    folds: int = 5,
    group: str | None = None,
    classes: ClassMap | None = None,
    unlabelled: Sequence[int] = (),
    overrides: Mapping[str, Any] | None = None,
    device: str = "auto",
) -> CrossvalResult:
    """Cross-validate to the end and return the scores.

    Parameters and errors as in `iter_crossval`.
    """
    options: dict[str, Any] = {
        "folds": folds,
        "group": group,
        "classes": classes,
        "unlabelled": unlabelled,
    }
    with closing(
        iter_crossval(
            recipe, pairs, out=out, overrides=overrides, device=device, **options
        )
    ) as events:
        for _ in events:
            pass
    return CrossvalResult.load(Path(out).expanduser())


def iter_crossval(
    recipe: str | os.PathLike[str] | Recipe,
    pairs: Pairs,
    *,
    out: str | Path,
    folds: int = 5,
    group: str | None = None,
    classes: ClassMap | None = None,
    unlabelled: Sequence[int] = (),
    overrides: Mapping[str, Any] | None = None,
    device: str = "auto",
) -> Generator[Event, None, None]:
    """Train once for each fold on the rest, score the fold, and yield an event
    after each thing that happens.

    The model of a fold is its best epoch by mean IoU on the fold itself, as in any
    training, and that is the part it is then scored on: the scores are a little better
    than on images that had no part in the choice.

    Parameters
    ----------
    recipe, pairs, classes, unlabelled, overrides, device
        as in `iter_train`. The recipe's seed draws the folds; its share for validation
        is not used.
    out
        folder for ``fold_1`` ... ``fold_K``, which are run folders, and
        ``crossval.json`` and ``crossval.csv``, renewed after each fold. It stands for
        the ensemble of the folds' models wherever a model is asked for. A second call
        goes on where the first one stopped; with more epochs than before, it adds them
        to each fold.
    folds, group
        how many, and the specimen in the images' names that keeps them together; see
        `fold_pairs`.

    Raises
    ------
    RecipeError, ImageError, LabelError, RunError
        before anything is written: when there are fewer images (or slices, or
        specimens) than folds, recipe and data do not make a training, or `out` holds
        something else, or a cross-validation of other data or by another recipe.
    TrainingError
        as in `iter_train`.
    """
    chosen = load_recipe(recipe).with_overrides(overrides)
    study = Study.of(
        pairs,
        folds,
        recipe=chosen,
        group=group,
        classes=classes,
        unlabelled=unlabelled,
        device=device,
    )
    return Crossval(Path(out).expanduser(), chosen, study).run()


@dataclass(frozen=True, eq=False)
class Study:
    """The data of a cross-validation, or of a search with one inside.

    What all its trainings have in common.
    """

    pairs: list[AnnotatedImage]
    classes: ClassMap
    splits: list[Split]
    fingerprints: list[str]
    device: str = "auto"
    group: str | None = None

    @classmethod
    def of(
        cls,
        pairs: Pairs,
        folds: int,
        *,
        recipe: Recipe,
        group: str | None = None,
        classes: ClassMap | None = None,
        unlabelled: Sequence[int] = (),
        device: str = "auto",
    ) -> Study:
        """Draw the folds; of one fold, the split that a single training would have.

        Errors as in `fold_pairs`.
        """
        ones, section, axes = distinct_pairs(pairs), recipe.training, axes_of(recipe)
        class_map = (
            classes.with_unlabelled(unlabelled)
            if classes
            else find_classes(ones, unlabelled)
        )
        if folds == 1:
            share = section.validation or Training().validation
            splits = [
                split_pairs(
                    ones,
                    fraction=share,
                    seed=section.seed,
                    classes=class_map,
                    axes=axes,
                )
            ]
        else:
            splits = fold_pairs(
                ones,
                folds,
                seed=section.seed,
                classes=class_map,
                group=group,
                axes=axes,
            )
        if not all(split.validation for split in splits):
            raise LabelError(
                f"found nothing to score a model on ({splits[0].text}); label more"
                " images or slices."
            )
        return cls(
            ones,
            class_map,
            splits,
            [data_fingerprint(split, ones, class_map) for split in splits],
            device,
            group,
        )

    def job(self, recipe: Recipe, out: Path, split: Split | None = None) -> TrainingJob:
        """The training of `recipe` on this data.

        On all of it without a split, if the recipe holds nothing back.
        """
        return TrainingJob(
            recipe,
            self.pairs,
            out,
            classes=self.classes,
            device=self.device,
            split=split,
        )


@dataclass(frozen=True, eq=False)
class Crossval:
    """One cross-validation: a folder, a recipe and the data."""

    out: Path
    recipe: Recipe
    study: Study

    def check(self) -> None:
        """Raise whatever speaks against it, without writing anything."""
        for split in self.study.splits[
            :1
        ]:  # the others differ in what trains and what validates only
            plan_new(self.study.job(self.recipe, self.out, split))
        self._known()

    def run(self) -> Generator[Event, None, None]:
        """Train and score fold by fold; see `iter_crossval`."""
        self.check()
        # Scores after fewer epochs than are asked for now do not count.
        epochs = self.recipe.training.epochs
        scores = {
            name: score
            for name, score in self._known().items()
            if score.epochs == epochs
        }
        study, count = self.study, len(self.study.splits)
        self._save(scores)
        repeated: set[Event] = set()
        for number, split in enumerate(study.splits):
            run = self.out / f"fold_{number + 1}"
            yield FoldStarted(number + 1, count, str(run), split.text)
            if run.name not in scores or not is_finished(run):
                yield from unsaid(
                    train_on(study.job(self.recipe, run, split)), repeated
                )
                scores[run.name] = _score(run, split, study.classes, epochs=epochs)
                self._save(scores)
            score = scores[run.name]
            confusion = score.confusion
            scored = (
                confusion.mean_iou,
                confusion.pixel_accuracy,
                tuple(map(float, confusion.iou)),
            )
            yield FoldEnd(
                number + 1, count, str(run), *scored, study.classes.names, score.seconds
            )
        yield self._end(CrossvalResult.load(self.out))

    def _known(self) -> dict[str, FoldScore]:
        """Scores of folds that an earlier call left.

        Raises `RunError` when it had other data or another recipe.
        """
        if not self.out.exists() or (self.out.is_dir() and not any(self.out.iterdir())):
            return {}
        folder = CrossvalFolder(self.out)
        if not folder.exists:
            raise RunError(
                f"{self.out}: found something here that is no cross-validation; choose"
                " another --out."
            )
        check_same(self.out, folder.read(), self.recipe, self.study.fingerprints)
        return {fold.run: fold for fold in CrossvalResult.load(self.out).folds}

    def _save(self, scores: Mapping[str, FoldScore]) -> None:
        names = [f"fold_{number + 1}" for number in range(len(self.study.splits))]
        done = tuple(scores[name] for name in names if name in scores)
        result = CrossvalResult(self.out, self.study.classes, done, len(names))
        record = {
            "folds": names,
            "finished": len(done),
            "group": self.study.group,
            "splits": [split.text for split in self.study.splits],
            "warnings": [list(split.warnings) for split in self.study.splits],
            "fingerprints": self.study.fingerprints,
            "class_map": self.study.classes.model_dump(mode="json"),
            "recipe": self.recipe.model_dump(mode="json"),
        }
        # The table first: a crossval.json that names a score has its table beside it.
        folder = CrossvalFolder(self.out)
        files.write_text(folder.table_path, result.csv())
        folder.write(record | result.as_dict())

    def _end(self, result: CrossvalResult) -> CrossvalEnd:
        (mean, deviation), names = result.spread("iou"), result.classes.names
        each = tuple(map(float, mean)), tuple(map(float, deviation))
        overall = result.mean_iou, result.mean_iou_std
        return CrossvalEnd(str(self.out), len(result.folds), *overall, *each, names)


def check_same(
    out: Path, known: Mapping[str, Any], recipe: Recipe, fingerprints: Sequence[str]
) -> None:
    """Raise `RunError` when `out` was begun on other data or by another recipe.

    More epochs may be asked for.
    """
    if (found := known.get("fingerprints", [])) != list(fingerprints):
        what = (
            "other images, labels or groups"
            if len(found) == len(fingerprints)
            else f"{len(found)} folds"
        )
        raise RunError(
            f"{out}: was begun with {what}; give the same again, or choose another"
            " --out."
        )
    before = Recipe.parse(known.get("recipe"), source=str(out))
    keys = differences(before, recipe)
    fewer = recipe.training.epochs < before.training.epochs
    if wrong := [
        key for key in keys if key not in ("name", "description", "training.epochs")
    ]:
        raise RunError(
            f"{out}: was begun with other values of {', '.join(wrong)}; choose another"
            " --out."
        )
    if fewer:
        raise RunError(
            f"{out}: was trained for {before.training.epochs} epochs already, and"
            f" {recipe.training.epochs} are asked for; ask for as many or more, or"
            " choose another --out."
        )


def train_on(job: TrainingJob) -> Generator[Event, None, None]:
    """Train a run to the end of its recipe, as it stands.

    Begin, resume, add epochs, or leave alone.

    A run that early stopping ended has had what it needs: it gets no more epochs.
    """
    run, epochs = RunFolder(job.out), job.recipe.training.epochs
    if not run.has_begun:
        _clear(run)
        yield from iter_job(job)
        return
    planned = run.recipe.training.epochs
    ended = _ended(run)
    if ended == "finished" and planned < epochs:
        yield from iter_job(replace(job, resume=True, extend=epochs - planned))
    elif ended is None or not (job.split is None or is_finished(run.path)):
        # Epochs that were to be added come with the next turn: a schedule begins anew
        # for them.
        yield from iter_job(replace(job, resume=True))
        if planned < epochs and _ended(run) == "finished":
            yield from iter_job(replace(job, resume=True, extend=epochs - planned))


def is_finished(run: Path) -> bool:
    """Return True if the training of a run has ended and its model was measured."""
    folder = RunFolder(run)
    return _ended(folder) is not None and folder.validation.exists


def unsaid(events: Iterable[Event], said: set[Event]) -> Generator[Event, None, None]:
    """The events, less messages that are in `said` already.

    Folds see the same images.
    """
    for event in events:
        if not isinstance(event, Message):
            yield event
        elif event not in said:
            said.add(event)
            yield event


def _ended(run: RunFolder) -> str | None:
    """Return how a training ended, "finished" or "early stopping".

    None before its end.
    """
    if not run.exists:
        return None
    history = run.history()
    if history.ended is None or history.ended.reason == "stopped":
        return None
    # A kill can come between a recipe with more epochs and the event of their start.
    trained = history.epochs[-1].epoch if history.epochs else 0
    if history.ended.reason == "finished" and trained < run.recipe.training.epochs:
        return None
    return history.ended.reason


def _clear(run: RunFolder) -> None:
    """Take away what a kill left of a run that had not begun, and nothing else."""
    if not run.path.is_dir():
        return
    if set(run.path.iterdir()) <= {run.previews, run.recipe_path}:
        shutil.rmtree(run.path)


def _score(run: Path, split: Split, classes: ClassMap, *, epochs: int) -> FoldScore:
    """Read the score of the best model of a run on its validation data."""
    folder = RunFolder(run)
    ends = folder.history().epochs
    counts = folder.validation.scores().get("confusion")
    if counts is None:
        raise RunError(f"{folder.validation.scores_path}: cannot be read.")
    confusion = ConfusionMatrix(classes, np.array(counts))
    best = max((end.epoch for end in ends if end.best_iou), default=len(ends))
    return FoldScore(
        run.name,
        split.text,
        confusion,
        epochs,
        best,
        sum(end.seconds for end in ends),
    )
