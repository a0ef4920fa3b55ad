"""Evaluation of a model, or of predicted labels, against true labels.

Counts are global: one confusion matrix over all labelled pixels, and one for each
image. Pixels that are unlabelled, or where the image is not finite, are not counted.
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
from napari_strata.core.set_notes import set_notes
from napari_strata.core.spec import find_classes
from napari_strata.core.text import format_count
from napari_strata.data.neighbours import own_channels, pairs_with_neighbours
from napari_strata.data.regions import LabelledRegion, find_nonfinite, labelled_regions
from napari_strata.data.trained_on import TrainedOn, values_of
from napari_strata.evaluation.calibration import Reliability, ReliabilityTally
from napari_strata.evaluation.pictures import MAX_EXAMPLES, Example
from napari_strata.evaluation.report import check_free, write_report
from napari_strata.evaluation.seen_scores import SeenScores
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
        Counts over all images.
    per_image
        Name and confusion matrix of each image, in their order.
    seen
        Counts of the planes that the model was trained on, and of the others.
    reliability
        Agreement of probabilities and labels, over all labelled pixels.
    examples
        A few planes for pictures, spread evenly over all of them.
    """

    confusion: ConfusionMatrix
    per_image: tuple[tuple[str, ConfusionMatrix], ...]
    seen: SeenScores
    reliability: Reliability
    examples: tuple[Example, ...] = field(default=(), repr=False)

    def as_dict(self) -> dict[str, Any]:
        """Return plain data.

        See `ConfusionMatrix.as_dict`; for ``trained_on``, `SeenScores.as_dict`; and for
        ``calibration``, `Reliability.as_dict`.
        """
        return self.confusion.as_dict() | self.facts()

    def facts(self) -> dict[str, Any]:
        """Return what `as_dict` has beside the scores of the confusion matrix."""
        names = self.confusion.classes.names
        return {
            "trained_on": self.seen.as_dict(),
            "calibration": self.reliability.as_dict(names),
        }


class Evaluation(Iterator[Event]):
    """Evaluation as a job: iterate over its events, then take `scores`.

    Parameters and errors are those of `iter_evaluate`; errors are raised at the first
    step.
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
        """Scores of the model. Raises `RunError` before the end."""
        if self._scores is None:
            raise RunError(
                "this evaluation is not finished; iterate over it to the end first."
            )
        return self._scores

    def _run(self) -> Generator[Event]:
        started = perf_counter()
        out, options = self._out, self._options
        if out is not None:
            check_free(out, overwrite=options.overwrite)
        models = load_models(self._model)
        pairs = pairs_with_neighbours(as_pairs(self._pairs), models.spec.neighbours)
        parts = labelled_regions(pairs, models.spec.classes)
        scales, messages = _prepare(models, parts, ortho=options.ortho)
        for text in models.averaging(options.tta, ortho=options.ortho):
            yield Message(text)
        for text in set_notes(self._pairs):
            yield Message(text)
        yield from messages
        predictor = build_ensemble_predictor(models, options)
        name = format_count(len(scales), "image")
        yield PredictionStarted(name, describe_device(predictor.device), len(parts), 0)
        trained_on = TrainedOn.of([model.source for model in models.models])
        tally = _Tally(
            predictor,
            scales,
            set(_spread_evenly(len(parts), MAX_EXAMPLES)),
            trained_on,
            SeenScores(models.spec.classes, trained_on.why_unknown),
            ReliabilityTally(len(models.spec.classes)),
        )
        number = 0
        for _, group in groupby(parts, key=lambda part: id(part.pair)):
            for part, seconds in tally.add(list(group)):
                number += 1
                yield RegionEnd(dict(part.index), number, len(parts), seconds)
        self._scores = tally.scores()
        yield Message(tally.seen.text, tally.seen.level)
        if out is not None:
            write_report(
                self._scores.confusion,
                self._scores.per_image,
                out,
                examples=self._scores.examples,
                facts=self._scores.facts(),
            )
        path = "" if out is None else str(out)
        yield PredictionEnd(name, path, perf_counter() - started)


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
        A `Model`, the path of a model file or run folder, or a cross-validation folder;
        or several of them, of whose probabilities the mean is taken.
    pairs
        Images and their labels; label values have the meaning that the model's classes
        give them.
    out
        Folder for ``metrics.json``, ``metrics.csv``, ``confusion.png`` and
        ``overlays/``; nothing is written when None.
    options, keywords
        See `PredictOptions`; its fields may be given as keywords. Probabilities have no
        effect here.

    Yields
    ------
    Event
        `Message` for oddities, `PredictionStarted`, a `RegionEnd` for each plane, a
        `Message` that says whether the planes were trained on, `PredictionEnd`.

    Raises
    ------
    LabelError
        If no pixel is labelled, or a label value is not one of the model's; before
        anything is predicted.
    ImageError, ModelError
        If one cannot be read, or they do not fit each other.
    RunError
        If `out` is not empty (unless overwrite=True) or cannot be written.
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
    """Score a model on images with labels; see `iter_evaluate`."""
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
    """Score predicted labels from any source, plane by plane.

    Parameters
    ----------
    prediction, truth
        Labels of the same pixels.
    classes
        Meaning of the values of both. When left out, the classes in the truth's file,
        then in the prediction's, then a class for each value that is not `unlabelled`.
    out
        An empty or new folder for ``metrics.json``, ``metrics.csv`` and
        ``confusion.png``.

    Raises
    ------
    ImageError
        If they do not cover the same pixels.
    LabelError
        If a value is not in `classes`, or the prediction leaves pixels unlabelled that
        the truth labels.
    RunError
        If `out` is not empty or cannot be written.
    """
    if out is not None:
        check_free(Path(out).expanduser(), overwrite=False)
    classes = classes or shared_classes(prediction, truth, unlabelled)
    confusion = ConfusionMatrix(classes)
    for _, _, plane_confusion in iter_score_labels(prediction, truth, classes):
        confusion += plane_confusion
    if out is not None:
        write_report(confusion, [(prediction.name, confusion)], Path(out).expanduser())
    return confusion


def shared_classes(
    prediction: LabelImage, truth: LabelImage, unlabelled: Sequence[int] = ()
) -> ClassMap:
    """Return the classes of both; see `score_labels`.

    Raises
    ------
    ImageError, LabelError
        If the labels do not fit each other, or have no classes.
    """
    return (
        truth.classes
        or prediction.classes
        or find_classes([AnnotatedImage(prediction, truth)], unlabelled)
    )


def iter_score_labels(
    prediction: LabelImage, truth: LabelImage, classes: ClassMap
) -> Iterator[tuple[LabelledRegion, int, ConfusionMatrix]]:
    """Score labels plane by plane; parameters and errors as in `score_labels`.

    Planes without a labelled pixel are left out.

    Yields
    ------
    tuple
        The plane, the count of all planes, and the confusion matrix of the plane.
    """
    pair = AnnotatedImage(prediction, truth, name=prediction.name)
    predicted_pair = AnnotatedImage(prediction, prediction)
    parts = labelled_regions(pair, classes)
    for part in parts:
        true = part.read_class_indices(classes)
        predicted = replace(part, pair=predicted_pair).read_class_indices(classes)
        missing = int(((true != IGNORE) & (predicted == IGNORE)).sum())
        if missing:
            raise LabelError(
                f"{part.name}: found {missing} pixels that the prediction leaves "
                "unlabelled and the truth labels; predict all of them, or mark them "
                "unlabelled in the truth."
            )
        confusion = ConfusionMatrix(classes)
        confusion.update(true, predicted)
        yield part, len(parts), confusion


@dataclass
class _Tally:
    """Counts of an evaluation so far.

    Parameters
    ----------
    scales
        Scales of each pair's image, by the pair's id.
    pictured
        Numbers of the planes of which a picture is kept.
    trained_on
        What the models were trained on.
    seen
        Counts of the planes by it.
    reliability
        Sums of the probabilities.
    """

    predictor: EnsemblePredictor
    scales: dict[int, list[Scale]]
    pictured: set[int]
    trained_on: TrainedOn
    seen: SeenScores
    reliability: ReliabilityTally
    matrices: dict[int, tuple[AnnotatedImage, ConfusionMatrix]] = field(
        default_factory=dict
    )
    examples: list[Example] = field(default_factory=list)
    count: int = 0

    def add(
        self, parts: Sequence[LabelledRegion]
    ) -> Iterator[tuple[LabelledRegion, float]]:
        """Predict and count the labelled planes of one image.

        Planes are predicted in the chunks of a prediction; chunks without labels are
        left out. Yields each plane with the seconds that it took.
        """
        pair = parts[0].pair
        numbers = {
            repr(index): number for number, index in enumerate(pair.image.planes())
        }
        labelled = {numbers[repr(part.index)]: part for part in parts}
        for chunk in self.predictor.plan_chunks(pair.image):
            started = perf_counter()
            planes = [number for number in chunk.planes if number in labelled]
            if not planes:
                continue
            array = chunk.read(pair.image)
            prediction, probabilities = self.predictor.predict_chunk(
                chunk, array, self.scales[id(pair)], probabilities=True
            )
            assert probabilities is not None
            grey = array[:, None] if array.ndim == 3 else array[:, chunk.keep]
            for number in planes:
                i = chunk.planes.index(number)
                truth = self._count(labelled[number], grey[:, i], prediction[i])
                is_labelled = truth != IGNORE
                self.reliability.add(
                    probabilities[i][:, is_labelled].T, truth[is_labelled]
                )
                yield labelled[number], perf_counter() - started
                started = perf_counter()

    def _count(self, part: LabelledRegion, image: Array, prediction: Array) -> Array:
        """Count a plane; return its true class indices."""
        spec = self.predictor.spec
        truth = part.class_indices_of(image, spec.classes)
        confusion = ConfusionMatrix(spec.classes)
        confusion.update(truth, prediction)
        channels = own_channels(image, spec.neighbours)
        values = values_of(truth, spec.classes)
        self.seen.add(self.trained_on.find(channels, values), confusion)
        if self.count in self.pictured:
            self.examples.append(
                Example.of(
                    part.name,
                    channels,
                    truth,
                    prediction=prediction,
                    confusion=confusion,
                )
            )
        self.count += 1
        key = id(part.pair)
        if key in self.matrices:
            confusion = self.matrices[key][1] + confusion
        self.matrices[key] = part.pair, confusion
        return truth

    def scores(self) -> Scores:
        """Return the counts of all images."""
        matrices = [matrix for _, matrix in self.matrices.values()]
        names = _unique_names([pair for pair, _ in self.matrices.values()])
        total = sum(matrices, ConfusionMatrix(self.predictor.spec.classes))
        per_image = tuple(zip(names, matrices, strict=True))
        return Scores(
            total,
            per_image,
            self.seen,
            self.reliability.result(),
            tuple(self.examples),
        )


def _prepare(
    models: Ensemble, parts: Sequence[LabelledRegion], *, ortho: bool
) -> tuple[dict[int, list[Scale]], list[Message]]:
    """Return scales of each pair's image, by the pair's id, and what is unusual."""
    scales: dict[int, list[Scale]] = {}
    messages: list[Message] = []
    for pair in {id(part.pair): part.pair for part in parts}.values():
        samples = pair.image.samples()
        drift = check_image(models.models, pair.image, samples, ortho=ortho)
        messages += drift.messages
        for text in (*find_nonfinite(pair), *_compare_names(models.spec.classes, pair)):
            messages.append(Message(text, "warning"))
        scales[id(pair)] = models.scales(samples, pair.image.dtype)
    return scales, messages


def _compare_names(classes: ClassMap, pair: AnnotatedImage) -> list[str]:
    """Return a warning if the label file has other class names than the model."""
    file_classes = pair.labels.classes
    if file_classes is None:
        return []
    model_names = dict(zip(classes.values, classes.names, strict=True))
    differences = []
    for value, name in zip(file_classes.values, file_classes.names, strict=True):
        if value in model_names and name != model_names[value]:
            differences.append(f"{value} ({name!r} against {model_names[value]!r})")
    if not differences:
        return []
    return [
        f"{pair.name}: the labels and the model name values differently: "
        f"{', '.join(differences)}; the value counts."
    ]


def _unique_names(pairs: Sequence[AnnotatedImage]) -> list[str]:
    """Return names of pairs; if two are alike, names of their files."""
    names = [pair.name for pair in pairs]
    if len(set(names)) == len(names):
        return names
    file_names = []
    for pair in pairs:
        source = pair.image.source
        file_names.append(Path(source).name if source else pair.name)
    return file_names


def _spread_evenly(count: int, limit: int) -> list[int]:
    """Return at most `limit` of 0..count-1, the first and the last among them."""
    numbers = np.linspace(0, count - 1, min(count, limit)).tolist()
    return sorted({round(number) for number in numbers})
