"""Cross-validation: one training for each fold, each in its own run folder.

Every labelled image, slice or specimen validates once.

To stop a cross-validation, stop iterating. The same call continues it: finished folds
stay as they are, and an unfinished fold is resumed. A call with other data or another
recipe is refused.
"""

from __future__ import annotations

import os
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
from napari_strata.core.locks import one_writer
from napari_strata.core.metrics import ConfusionMatrix
from napari_strata.core.recipe import Recipe, Training, differences
from napari_strata.core.recipes import load_recipe
from napari_strata.core.runs import CrossvalFolder, RunFolder, is_unused
from napari_strata.core.spec import find_classes
from napari_strata.data.folds import fold_pairs
from napari_strata.data.split import Split, distinct_pairs, split_pairs
from napari_strata.studies.crossval_results import CrossvalResult, FoldScore
from napari_strata.training.loop import iter_task
from napari_strata.training.plan import (
    TrainingTask,
    axes_of,
    data_fingerprint,
    plan_new,
)

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

    Parameters and errors are those of `iter_crossval`.
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
    """Train without each fold in turn, score the model on the fold, and yield events.

    As in any training, the model of a fold is from the epoch with the best mean IoU on
    the validation data, which is the fold. The scores on the same fold are therefore
    slightly better than on images that had no influence on this choice.

    Parameters
    ----------
    recipe, pairs, classes, unlabelled, overrides, device
        As in `iter_train`. The folds are drawn with the recipe's seed; its fraction of
        validation data is not used.
    out
        Folder for the run folders ``fold_1`` ... ``fold_K``, and for ``crossval.json``
        and ``crossval.csv``, which are written again after each fold. The folder can be
        given wherever a model is needed; it then means the ensemble of the folds'
        models. A second call continues the first. If the recipe has more epochs than
        before, each fold is trained for the additional epochs.
    folds
        Number of folds.
    group
        Pattern for the specimen in the images' names. Images of one specimen stay in
        one fold; see `fold_pairs`.

    Raises
    ------
    RecipeError, ImageError, LabelError, RunError
        Before anything is written: when there are fewer images (or slices, or
        specimens) than folds, when the recipe does not suit the data, or when `out`
        contains anything else, including a cross-validation with other data or another
        recipe.
    TrainingError
        As in `iter_train`.
    """
    resolved = load_recipe(recipe).with_overrides(overrides)
    study = Study.of(
        pairs,
        folds,
        recipe=resolved,
        group=group,
        classes=classes,
        unlabelled=unlabelled,
        device=device,
    )
    return Crossval(Path(out).expanduser(), resolved, study).run()


@dataclass(frozen=True, eq=False)
class Study:
    """The data that all trainings of a cross-validation or a search have in common."""

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
        """Draw the folds. For one fold, use the split of an ordinary training.

        Errors as in `fold_pairs`.
        """
        images = distinct_pairs(pairs)
        section = recipe.training
        axes = axes_of(recipe)
        class_map = (
            classes.with_unlabelled(unlabelled)
            if classes
            else find_classes(images, unlabelled)
        )
        if folds == 1:
            fraction = section.validation or Training().validation
            splits = [
                split_pairs(
                    images,
                    fraction=fraction,
                    seed=section.seed,
                    classes=class_map,
                    axes=axes,
                )
            ]
        else:
            splits = fold_pairs(
                images,
                folds,
                seed=section.seed,
                classes=class_map,
                group=group,
                axes=axes,
            )
        if not all(split.validation for split in splits):
            raise LabelError(
                f"found no validation data to score a model on ({splits[0].text});"
                " label more images or slices."
            )
        return cls(
            images,
            class_map,
            splits,
            [data_fingerprint(split, images, class_map) for split in splits],
            device,
            group,
        )

    def task(
        self, recipe: Recipe, out: Path, split: Split | None = None
    ) -> TrainingTask:
        """Return the training of `recipe` on this data.

        Without `split` the recipe decides which data validate, if any.
        """
        return TrainingTask(
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
        """Raise an error if the cross-validation cannot run. Nothing is written."""
        # The other splits contain the same data and would raise the same errors.
        plan_new(self.study.task(self.recipe, self.out, self.study.splits[0]))
        self._read_scores()

    def run(self) -> Generator[Event, None, None]:
        """Train and score fold by fold; see `iter_crossval`."""
        self.check()
        with one_writer(self.out) as messages:
            yield from messages
            yield from self._run()

    def _run(self) -> Generator[Event, None, None]:
        # Scores after fewer epochs than the recipe has now are ignored.
        epochs = self.recipe.training.epochs
        scores = {
            name: score
            for name, score in self._read_scores().items()
            if score.epochs == epochs
        }
        study, count = self.study, len(self.study.splits)
        self._save(scores)
        sent_messages: set[Message] = set()
        for number, split in enumerate(study.splits):
            run = self.out / f"fold_{number + 1}"
            yield FoldStarted(number + 1, count, str(run), split.text)
            if run.name not in scores or not is_finished(run):
                yield from skip_repeated_messages(
                    train_to_end(study.task(self.recipe, run, split)), sent_messages
                )
                scores[run.name] = _score(run, split, study.classes, epochs=epochs)
                self._save(scores)
            score = scores[run.name]
            confusion = score.confusion
            scores_of_fold = (
                confusion.mean_iou,
                confusion.pixel_accuracy,
                tuple(map(float, confusion.iou)),
            )
            yield FoldEnd(
                number + 1,
                count,
                str(run),
                *scores_of_fold,
                study.classes.names,
                score.seconds,
                score.agreement,
                confusion.describe_mean_iou(),
            )
        yield self._end(CrossvalResult.load(self.out))

    def _read_scores(self) -> dict[str, FoldScore]:
        """Read the scores of the folds that an earlier call finished.

        Raises `RunError` if it had other data or another recipe.
        """
        if is_unused(self.out):
            return {}
        folder = CrossvalFolder(self.out)
        if not folder.exists:
            raise RunError(
                f"{self.out}: contains something that is not a cross-validation; choose"
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
        # The table first, so that every score in crossval.json is also in the table.
        folder = CrossvalFolder(self.out)
        files.write_text(folder.table_path, result.csv())
        folder.write(record | result.as_dict())

    def _end(self, result: CrossvalResult) -> CrossvalEnd:
        (mean, deviation), names = result.spread("iou"), result.classes.names
        class_ious = tuple(map(float, mean)), tuple(map(float, deviation))
        overall = result.mean_iou, result.mean_iou_std
        return CrossvalEnd(
            str(self.out),
            len(result.folds),
            *overall,
            *class_ious,
            names,
            result.agreement,
        )


def check_same(
    out: Path, known: Mapping[str, Any], recipe: Recipe, fingerprints: Sequence[str]
) -> None:
    """Raise `RunError` if `out` was begun with other data or another recipe.

    More epochs than before are allowed.
    """
    known_fingerprints = known.get("fingerprints", [])
    if known_fingerprints != list(fingerprints):
        difference = (
            "other images, labels or groups"
            if len(known_fingerprints) == len(fingerprints)
            else f"{len(known_fingerprints)} folds"
        )
        raise RunError(
            f"{out}: was begun with {difference}; give the same again, or choose"
            " another --out."
        )
    before = Recipe.parse(known.get("recipe"), source=str(out))
    may_differ = ("name", "description", "training.epochs")
    changed_keys = [key for key in differences(before, recipe) if key not in may_differ]
    if changed_keys:
        raise RunError(
            f"{out}: was begun with other values of {', '.join(changed_keys)}; choose"
            " another --out."
        )
    if recipe.training.epochs < before.training.epochs:
        raise RunError(
            f"{out}: was trained for {before.training.epochs} epochs already, and"
            f" {recipe.training.epochs} are requested; request as many or more, or"
            " choose another --out."
        )


def train_to_end(task: TrainingTask) -> Generator[Event, None, None]:
    """Train a run to the end of its recipe: begin, resume or extend it.

    A finished run stays as it is. A run that early stopping ended gets no more epochs.
    """
    run, epochs = RunFolder(task.out), task.recipe.training.epochs
    if not run.has_begun:
        yield from iter_task(task)
        return
    planned = run.recipe.training.epochs
    end = _end_reason(run)
    if end == "finished" and planned < epochs:
        yield from iter_task(replace(task, resume=True, extend=epochs - planned))
    elif end is None or not (task.split is None or is_finished(run.path)):
        # Additional epochs are trained afterwards: the schedule restarts for them.
        yield from iter_task(replace(task, resume=True))
        if planned < epochs and _end_reason(run) == "finished":
            yield from iter_task(replace(task, resume=True, extend=epochs - planned))


def is_finished(run: Path) -> bool:
    """Return True if the training of a run has ended and its model has scores."""
    folder = RunFolder(run)
    return _end_reason(folder) is not None and folder.validation.exists


def skip_repeated_messages(
    events: Iterable[Event], sent: set[Message]
) -> Generator[Event, None, None]:
    """Iterate over `events` without messages that are in `sent`; add new ones to it.

    The trainings of all folds send the same messages about the same images.
    """
    for event in events:
        if not isinstance(event, Message):
            yield event
        elif event not in sent:
            sent.add(event)
            yield event


def _end_reason(run: RunFolder) -> str | None:
    """Return how a training ended: "finished", "early stopping" or None (not yet)."""
    if not run.exists:
        return None
    history = run.history()
    if history.ended is None or history.ended.reason == "stopped":
        return None
    # The process may have been killed after it wrote a recipe with more epochs and
    # before these began.
    trained = history.epochs[-1].epoch if history.epochs else 0
    if history.ended.reason == "finished" and trained < run.recipe.training.epochs:
        return None
    return history.ended.reason


def _score(run: Path, split: Split, classes: ClassMap, *, epochs: int) -> FoldScore:
    """Read the score of the best model of a run on its validation data."""
    folder = RunFolder(run)
    ends = folder.history().epochs
    counts = folder.validation.scores().get("confusion")
    if counts is None:
        raise RunError(f"{folder.validation.scores_path}: cannot be read.")
    confusion = ConfusionMatrix(classes, np.array(counts))
    best = max((end.epoch for end in ends if end.best_iou), default=len(ends))
    is_strokes = bool(ends) and ends[-1].stroke_pixels > 0
    return FoldScore(
        run.name,
        split.text,
        confusion,
        epochs,
        best,
        sum(end.seconds for end in ends),
        int(confusion.counts.sum()) if is_strokes else 0,
    )
