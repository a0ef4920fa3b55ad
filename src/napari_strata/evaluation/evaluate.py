"""Evaluate: how far a model's labels agree with a person's.

Counts are global: one confusion matrix over all labelled pixels, and one per image. Pixels that are unlabelled, or
where the image is not finite, are not counted.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from napari_strata.core.classes import IGNORE, ClassMap
from napari_strata.core.errors import LabelError, RunError
from napari_strata.core.events import (
    Event,
    Message,
    PredictionEnd,
    PredictionStarted,
    RegionEnd,
)
from napari_strata.core.image import AnnotatedImage, LabelImage, as_pairs
from napari_strata.core.metrics import ConfusionMatrix
from napari_strata.core.normalization import Scale
from napari_strata.core.options import PredictOptions
from napari_strata.core.spec import find_classes
from napari_strata.data.neighbours import own_channels, pairs_with_neighbours
from napari_strata.data.regions import Part, find_nonfinite, whole
from napari_strata.evaluation.pictures import MOST, Example
from napari_strata.evaluation.report import check_free, write_report
from napari_strata.inference.build import build_ensemble_predictor
from napari_strata.inference.checks import check_image
from napari_strata.inference.ensemble_predictor import EnsemblePredictor
from napari_strata.models.device import describe_device
from napari_strata.models.ensemble import AnyModel, Ensemble, load_models

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Scores:
    """Agreement of prediction and truth.

    Parameters
    ----------
    confusion
        over all images.
    per_image
        name and confusion matrix of each image, in the order given.
    examples
        a few planes for pictures, spread evenly over all of them.
    """

    confusion: ConfusionMatrix
    per_image: tuple[tuple[str, ConfusionMatrix], ...]
    examples: tuple[Example, ...] = field(default=(), repr=False)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, as in ``metrics.json``: see `ConfusionMatrix.as_dict`."""
        return self.confusion.as_dict()


class Evaluation(Iterator[Event]):
    """An evaluation as a job: iterate over its events, then take `scores`.

    Parameters and errors are those of `iter_evaluate`; errors are raised at the first step.
    """

    def __init__(
        self,
        model: AnyModel,
        pairs: AnnotatedImage | Sequence[AnnotatedImage],
        *,
        out: str | os.PathLike[str] | None = None,
        options: PredictOptions | None = None,
    ) -> None:
        self._model, self._pairs = model, as_pairs(pairs)
        self._out = None if out is None else Path(out).expanduser()
        self._options = options or PredictOptions()
        self._scores: Scores | None = None
        self._events = self._run()

    def __next__(self) -> Event:
        return next(self._events)

    @property
    def scores(self) -> Scores:
        """Raises `RunError` before the end."""
        if self._scores is None:
            raise RunError(
                "this evaluation is not finished; iterate over it to the end first."
            )
        return self._scores

    def _run(self) -> Generator[Event]:
        started = perf_counter()
        out, overwrite = self._out, self._options.overwrite
        if out is not None:
            check_free(out, overwrite=overwrite)
        models = load_models(self._model)
        pairs = pairs_with_neighbours(as_pairs(self._pairs), models.spec.neighbours)
        parts = whole(pairs, models.spec.classes)
        scales, warnings = _prepare(models, parts, ortho=self._options.ortho)
        yield from (
            Message(text)
            for text in models.averaging(self._options.tta, ortho=self._options.ortho)
        )
        yield from (Message(text, "warning") for text in warnings)
        predictor = build_ensemble_predictor(models, self._options)
        names = f"{len(scales)} image{'' if len(scales) == 1 else 's'}"
        yield PredictionStarted(names, describe_device(predictor.device), len(parts), 0)
        tally = _Tally(predictor, scales, shown=set(_evenly(len(parts), MOST)))
        number = 0
        for _, group in groupby(parts, key=lambda part: id(part.pair)):
            for part, seconds in tally.add(list(group)):
                number += 1
                yield RegionEnd(dict(part.index), number, len(parts), seconds)
        self._scores = tally.scores()
        if out is not None:
            write_report(
                self._scores.confusion,
                self._scores.per_image,
                out,
                examples=self._scores.examples,
            )
        yield PredictionEnd(
            names, "" if out is None else str(out), perf_counter() - started
        )


def iter_evaluate(
    model: AnyModel,
    pairs: AnnotatedImage | Sequence[AnnotatedImage],
    *,
    out: str | os.PathLike[str] | None = None,
    options: PredictOptions | None = None,
    **keywords: Any,
) -> Evaluation:
    """Predict every plane that has a label and compare, as a job to iterate over.

    Parameters
    ----------
    model
        a `Model`, the path of a model file or run folder, several of them, or a cross-validation folder: of several,
        the mean of their probabilities is taken.
    pairs
        images and their labels; label values mean what the model's classes say.
    out
        folder for ``metrics.json``, ``metrics.csv``, ``confusion.png`` and ``overlays/``; nothing is written when None.
    options, keywords
        see `PredictOptions`; its fields may be given as keywords. Probabilities are of no use here.

    Yields
    ------
    `Message` for what is odd, `PredictionStarted`, a `RegionEnd` per plane, `PredictionEnd`.

    Raises
    ------
    LabelError
        when no pixel is labelled, or a label value is not one of the model's; before anything is predicted.
    ImageError, ModelError
        when one cannot be read, or they do not go together.
    RunError
        when `out` holds something already (unless overwrite=True) or cannot be written.
    """
    return Evaluation(
        model, pairs, out=out, options=(options or PredictOptions()).updated(**keywords)
    )


def evaluate(
    model: AnyModel,
    pairs: AnnotatedImage | Sequence[AnnotatedImage],
    *,
    out: str | os.PathLike[str] | None = None,
    options: PredictOptions | None = None,
    **keywords: Any,
) -> Scores:
    """Scores of a model on images with labels. Parameters and errors are those of `iter_evaluate`."""
    job = iter_evaluate(model, pairs, out=out, options=options, **keywords)
    for _ in job:
        pass
    return job.scores


def score_labels(
    prediction: LabelImage,
    truth: LabelImage,
    classes: ClassMap | None = None,
    *,
    unlabelled: Sequence[int] = (),
    out: str | os.PathLike[str] | None = None,
) -> ConfusionMatrix:
    """Scores of labels that are there already, plane by plane, whoever made them.

    Parameters
    ----------
    prediction, truth
        labels of the same pixels.
    classes
        what the values of both mean; when left out, what the truth's file says, then the prediction's, then a class
        for each value but those that are `unlabelled`.
    out
        an empty or new folder for ``metrics.json``, ``metrics.csv`` and ``confusion.png``.

    Raises
    ------
    ImageError
        when they do not cover the same pixels.
    LabelError
        when a value is not in `classes`, or the prediction leaves pixels unlabelled that the truth labels.
    RunError
        when `out` holds something already or cannot be written.
    """
    if out is not None:
        check_free(Path(out).expanduser(), overwrite=False)
    known = classes or shared_classes(prediction, truth, unlabelled)
    confusion = sum(
        (one for _, _, one in iter_score_labels(prediction, truth, known)),
        ConfusionMatrix(known),
    )
    if out is not None:
        write_report(confusion, [(prediction.name, confusion)], Path(out).expanduser())
    return confusion


def shared_classes(
    prediction: LabelImage, truth: LabelImage, unlabelled: Sequence[int] = ()
) -> ClassMap:
    """What the values of both mean: see `score_labels`. Raises `ImageError` and `LabelError`."""
    return (
        truth.classes
        or prediction.classes
        or find_classes([AnnotatedImage(prediction, truth)], unlabelled)
    )


def iter_score_labels(
    prediction: LabelImage, truth: LabelImage, classes: ClassMap
) -> Iterator[tuple[Part, int, ConfusionMatrix]]:
    """The scores of `score_labels` plane by plane: the plane, how many there are in all, and its confusion matrix.

    Planes without a labelled pixel are left out. Parameters and errors are those of `score_labels`.
    """
    pair = AnnotatedImage(prediction, truth, name=prediction.name)
    predicted = AnnotatedImage(prediction, prediction)
    parts = whole(pair, classes)
    for part in parts:
        true = part.read_labels(classes)
        found = replace(part, pair=predicted).read_labels(classes)
        if missing := int(((true != IGNORE) & (found == IGNORE)).sum()):
            raise LabelError(
                f"{part.name}: found {missing} pixels that the prediction leaves unlabelled and the truth labels; "
                "predict all of them, or mark them unlabelled in the truth."
            )
        confusion = ConfusionMatrix(classes)
        confusion.update(true, found)
        yield part, len(parts), confusion


@dataclass
class _Tally:
    """Counts as they come."""

    predictor: EnsemblePredictor
    scales: dict[int, list[Scale]]
    shown: set[int]
    matrices: dict[int, tuple[AnnotatedImage, ConfusionMatrix]] = field(
        default_factory=dict
    )
    examples: list[Example] = field(default_factory=list)
    seen: int = 0

    def add(self, parts: Sequence[Part]) -> Iterator[tuple[Part, float]]:
        """Predict and count the labelled planes of one image, chunk by chunk as in prediction; each with the seconds that
        it took. Chunks without labels are left out."""
        pair = parts[0].pair
        numbers = {
            repr(index): number for number, index in enumerate(pair.image.planes())
        }
        known = {numbers[repr(part.index)]: part for part in parts}
        for chunk in self.predictor.plan_chunks(pair.image):
            started = perf_counter()
            wanted = [number for number in chunk.planes if number in known]
            if not wanted:
                continue
            array = pair.image.read(chunk.region)
            found, _ = self.predictor.predict_chunk(chunk, array, self.scales[id(pair)])
            grey = array[:, None] if array.ndim == 3 else array[:, chunk.keep]
            for number in wanted:
                place = chunk.planes.index(number)
                self._count(known[number], grey[:, place], found[place])
                yield known[number], perf_counter() - started
                started = perf_counter()

    def _count(self, part: Part, image: Array, prediction: Array) -> None:
        classes = self.predictor.spec.classes
        truth = part.read_labels_of(image, classes)
        here = ConfusionMatrix(classes)
        here.update(truth, prediction)
        key = id(part.pair)
        before = (
            self.matrices[key][1] if key in self.matrices else ConfusionMatrix(classes)
        )
        self.matrices[key] = part.pair, before + here
        if self.seen in self.shown:
            own = own_channels(image, self.predictor.spec.neighbours)
            self.examples.append(
                Example.of(part.name, own, truth, prediction=prediction, confusion=here)
            )
        self.seen += 1

    def scores(self) -> Scores:
        matrices = [matrix for _, matrix in self.matrices.values()]
        names = _told_apart([pair for pair, _ in self.matrices.values()])
        total = sum(matrices, ConfusionMatrix(self.predictor.spec.classes))
        return Scores(
            total, tuple(zip(names, matrices, strict=True)), tuple(self.examples)
        )


def _prepare(
    models: Ensemble, parts: Sequence[Part], *, ortho: bool
) -> tuple[dict[int, list[Scale]], list[str]]:
    """The scales of each pair's image, by the pair's id, and warnings about the images."""
    scales: dict[int, list[Scale]] = {}
    warnings: list[str] = []
    for pair in {id(part.pair): part.pair for part in parts}.values():
        samples = pair.image.samples()
        warnings += check_image(
            [model.spec for model in models.models], pair.image, samples, ortho=ortho
        )
        warnings += [*find_nonfinite(pair), *_other_names(models.spec.classes, pair)]
        scales[id(pair)] = models.scales(samples, pair.image.dtype)
    return scales, warnings


def _other_names(classes: ClassMap, pair: AnnotatedImage) -> list[str]:
    """A warning when the label file calls a value by another name than the model does."""
    theirs = pair.labels.classes
    if theirs is None:
        return []
    ours = dict(zip(classes.values, classes.names, strict=True))
    pairs = (
        (value, name)
        for value, name in zip(theirs.values, theirs.names, strict=True)
        if value in ours
    )
    differ = [
        f"{value} ({name!r} against {ours[value]!r})"
        for value, name in pairs
        if name != ours[value]
    ]
    if not differ:
        return []
    return [
        f"{pair.name}: the labels and the model name values differently: {', '.join(differ)}; the value counts."
    ]


def _told_apart(pairs: Sequence[AnnotatedImage]) -> list[str]:
    """Names of pairs; where two share one, as files of one microscope may, those of the files."""
    names = [pair.name for pair in pairs]
    if len(set(names)) == len(names):
        return names
    return [
        Path(pair.image.source).name if pair.image.source else pair.name
        for pair in pairs
    ]


def _evenly(count: int, most: int) -> list[int]:
    """At most `most` numbers of 0..count-1, the first and the last among them."""
    return sorted(
        {round(x) for x in np.linspace(0, count - 1, min(count, most)).tolist()}
    )
