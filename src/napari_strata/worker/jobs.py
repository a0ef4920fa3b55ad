"""Jobs: generators of events that return a result.

A job does the same as the function of the Python API; only the results are stored in
another place.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import singledispatch
from pathlib import Path
from statistics import fmean
from time import perf_counter
from typing import Any, TypeAlias

import numpy as np
import torch

from napari_strata.core.errors import ImageError, LabelError
from napari_strata.core.events import (
    PredictionEnd,
    PredictionStarted,
    RegionEnd,
    TrainingEnd,
)
from napari_strata.core.image import AnnotatedImage, Image, LabelImage
from napari_strata.core.metrics import ConfusionMatrix
from napari_strata.core.options import PredictOptions
from napari_strata.core.recipe import Recipe
from napari_strata.core.runs import RunFolder
from napari_strata.data.neighbours import with_neighbours
from napari_strata.data.trained_on import Seen
from napari_strata.evaluation.evaluate import (
    iter_evaluate,
    iter_score_labels,
    shared_classes,
)
from napari_strata.evaluation.report import check_free, write_report
from napari_strata.evaluation.seen_scores import SeenScores
from napari_strata.inference.batch import predict_files
from napari_strata.inference.checks import check_image
from napari_strata.inference.outputs import OutputSpec
from napari_strata.inference.predict import Prediction
from napari_strata.io import describe, read_images
from napari_strata.measure.measures import iter_measure
from napari_strata.measure.objects import infer_classes
from napari_strata.measure.region import SPECIMEN, find_region
from napari_strata.models.device import (
    choose_device,
    choose_precision,
    describe_device,
    free_memory,
)
from napari_strata.models.ensemble import Ensemble, is_crossval, load_models
from napari_strata.models.model import find_model
from napari_strata.training.estimate import count_parameters, training_memory
from napari_strata.training.loop import iter_task
from napari_strata.training.plan import ChangedLabels, TrainingTask, plan_new
from napari_strata.worker.live import run_choose_levels, run_next_window, run_segment
from napari_strata.worker.npy import NpyOutput, check_array
from napari_strata.worker.protocol import (
    AnyEvent,
    Case,
    ChooseLevelsJob,
    EvaluateJob,
    EvaluateResult,
    ImageFacts,
    ImageInfo,
    InfoJob,
    Job,
    JobResult,
    KnownPlanes,
    Layer,
    MeasureJob,
    MeasureResult,
    ModelInfo,
    NextWindowJob,
    Pairs,
    PlanJob,
    PlanResult,
    PredictJob,
    PredictResult,
    SegmentJob,
    TrainJob,
    TrainResult,
)
from napari_strata.worker.sources import (
    Window,
    open_changed,
    open_image,
    open_labels,
    open_pairs,
)

Events: TypeAlias = Generator[AnyEvent, None, JobResult | None]

CASES = 4
"""Number of the worst planes, and of the best planes, in a comparison."""


@singledispatch
def run(job: Job) -> Events:
    """Run a job.

    To stop it, close the generator, or raise KeyboardInterrupt at any moment.

    Raises
    ------
    StrataError
        As the corresponding function of the API.
    """
    raise NotImplementedError(type(job).__name__)


@run.register
def run_train(
    job: TrainJob, take_labels: Callable[[], Layer | None] = lambda: None
) -> Events:
    """Train a model, or resume its training.

    `take_labels` returns labels that have changed since the last call, or None.
    """
    events = iter_task(
        TrainingTask(
            _recipe(job.recipe),
            open_pairs(job),
            Path(job.out),
            open_pairs(job.validation) if job.validation else None,
            job.classes,
            job.unlabelled,
            job.overrides,
            job.device,
            job.resume or job.extend > 0,
            job.extend,
            snapshot_s=job.snapshot_s,
            take_labels=lambda pairs: _read_changed(pairs, take_labels()),
        )
    )
    result = None
    with closing(events):
        for event in events:
            if isinstance(event, TrainingEnd):
                result = TrainResult(
                    run=job.out,
                    model=event.model,
                    ended=event.reason,
                    epoch=event.epoch,
                )
            yield event
    return result


def _read_changed(
    pairs: Sequence[AnnotatedImage], layer: Layer | None
) -> ChangedLabels | None:
    """Read labels of one of these pairs that have changed."""
    if layer is None:
        return None
    matching = [pair for pair in pairs if pair.labels.source == layer.path]
    if not matching and len(pairs) > 1:
        raise LabelError(
            f"{layer.path}: found no image with these labels; give the path that the"
            " training was started with."
        )
    (pair,) = matching or pairs
    labels = open_changed(pair, layer)
    if np.array_equal(pair.labels.data[...], labels.data[...]):
        return None
    return ChangedLabels(pair.labels, labels)


@run.register
def run_plan(job: PlanJob) -> Events:
    """Plan a training without starting it."""
    validation = open_pairs(job.validation) if job.validation else None
    task = TrainingTask(
        _recipe(job.recipe),
        open_pairs(job),
        Path(),
        validation,
        job.classes,
        job.unlabelled,
        job.overrides,
    )
    plan = plan_new(task)
    device = choose_device(job.device)
    precision = choose_precision(plan.recipe.training.precision, device)
    yield from plan.messages
    return PlanResult(
        recipe=plan.recipe.model_dump(mode="json"),
        spec=plan.spec.model_dump(mode="json"),
        split=plan.text,
        training=tuple(region.name for region in plan.training),
        validation=tuple(region.name for region in plan.validation),
        classes=tuple(plan.spec.classes.table()),
        labelled_pixels=tuple(map(int, plan.counts)),
        device=describe_device(device),
        precision=precision.name,
        memory=training_memory(plan, precision),
        free_memory=free_memory(device),
        parameters=count_parameters(plan.spec),
        suggested_recipe=plan.suggestion.recipe if plan.suggestion else "",
        suggestion=plan.suggestion.text if plan.suggestion else "",
    )


@run.register
def run_predict(job: PredictJob) -> Events:
    """Predict files, or one image to a file or an array."""
    options = _options(job).updated(
        probabilities=job.probabilities, ortho=job.ortho, strict=job.strict
    )
    if job.image is None:
        yield from predict_files(
            job.model,
            job.inputs,
            job.out,
            options=options,
            axes=job.axes,
            stack=job.stack,
        )
        return PredictResult(out=job.out)
    image = open_image(job.image, axes=job.axes)
    out = Path(job.out).expanduser()
    models = load_models(job.model)
    if job.is_array:
        window = Window.of(image, job.region)
        return (yield from _predict_array(models, window, out, options=options))
    with closing(Prediction(models, image, out=out, options=options)) as events:
        yield from events
        return PredictResult(out=str(out), pixels=_count_pixels(events))


@run.register
def run_evaluate(job: EvaluateJob) -> Events:
    """Score a model on images, or a label file against reference labels."""
    out = Path(job.out).expanduser() if job.out else None
    if job.model is not None and job.images:
        pairs = open_pairs(Pairs(images=job.images, labels=job.labels, axes=job.axes))
        events = iter_evaluate(job.model, pairs, out=out, options=_options(job))
        yield from events
        scores = events.scores
        per_image = {name: matrix.as_dict() for name, matrix in scores.per_image}
        return EvaluateResult(**scores.as_dict(), per_image=per_image, out=job.out)
    return (yield from _compare(job, out))


@run.register
def run_measure(job: MeasureJob) -> Events:
    """Measure labels in a region."""
    labels = open_labels(job.labels)
    image = None if job.image is None else open_image(job.image)
    model = job.model if isinstance(job.model, (str, type(None))) else list(job.model)
    events = iter_measure(labels, model, image, job.region, job.along, rock=job.rock)
    measures = yield from events
    if job.out is not None:
        measures.save(job.out)
    mask = ""
    if job.mask and job.region == SPECIMEN:
        _write_specimen(labels, Path(job.mask))
        mask = job.mask
    maps = ""
    if job.maps and measures.shape is not None:
        maps = job.maps
        Path(maps).parent.mkdir(parents=True, exist_ok=True)
        np.save(maps, np.stack(list(measures.shape.local.fractions.values())))
    return MeasureResult(measures=measures.to_dict(), mask=mask, maps=maps, out=job.out)


@run.register
def run_info(job: InfoJob) -> Events:
    """Describe an image file or a model."""
    yield from ()
    paths = (job.path,) if isinstance(job.path, str) else job.path
    path = Path(paths[0]).expanduser()
    if len(paths) == 1 and (
        path.suffix != ".safetensors"
        and not RunFolder(path).exists
        and not is_crossval(path)
    ):
        images = tuple(
            _image_facts(image) for image in read_images(path, axes=job.axes)
        )
        return ImageInfo(what="image", lines=tuple(describe(path)), images=images)
    models = load_models(job.path)
    fit = {}
    if job.image is not None:
        fit = _check_fit(models, open_image(job.image, axes=job.axes))
    model_path = path if models.folds else find_model(path)
    return _model_info(models, model_path, fit)


run.register(SegmentJob, run_segment)
run.register(NextWindowJob, run_next_window)
run.register(ChooseLevelsJob, run_choose_levels)


def _write_specimen(labels: LabelImage, path: Path) -> None:
    """Write the mask of the specimen, with the axes of the labels."""
    classes = labels.classes or infer_classes(labels)
    region = find_region(SPECIMEN, labels, classes)
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.lib.format.open_memmap(
        path, mode="w+", dtype=np.uint8, shape=labels.label_shape
    )
    for plane in labels.planes():
        codes = classes.encode(labels.read(plane)[0])
        inside = region.find(plane, codes)
        part = mask[labels.region_index(plane)]
        part[...] = 1 if inside is None else inside.reshape(part.shape)
    mask.flush()


def release_memory() -> None:
    """Release the memory that a job used."""
    gc.collect()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()


def _model_info(models: Ensemble, path: Path, fit: dict[str, Any]) -> ModelInfo:
    """Describe models by facts of the first, and the means of their scores."""
    model = models.models[0]
    best_epochs = [model.best for model in models.models if model.best is not None]
    mean_iou: float | None = None
    class_iou: tuple[float, ...] = ()
    if len(best_epochs) == len(models):
        mean_iou = fmean(epoch.reported_iou for epoch in best_epochs)
        columns = zip(*(epoch.reported_class_iou for epoch in best_epochs), strict=True)
        class_iou = tuple(fmean(column) for column in columns)
    return ModelInfo(
        what="model",
        model=str(path),
        models=models.describe(),
        created=model.created,
        versions=model.versions,
        recipe=model.recipe.model_dump(mode="json"),
        spec=model.spec.model_dump(mode="json"),
        classes=tuple(model.spec.classes.table()),
        epochs=len(model.history),
        mean_iou=mean_iou,
        class_iou=class_iou,
        agreement=best_epochs[0].agreement if len(models) == 1 and best_epochs else "",
        **fit,
    )


def _predict_array(
    models: Ensemble, window: Window, out: Path, *, options: PredictOptions
) -> Events:
    """Predict a window into a .npy file; events name regions of the whole image."""
    check_array(out, probabilities=options.probabilities, overwrite=options.overwrite)
    window = window.with_context([model.spec for model in models.models])
    context = len(window.context_planes)
    outputs: list[NpyOutput] = []

    def make_output(spec: OutputSpec) -> NpyOutput:
        output = NpyOutput(out, spec, window=window, classes=models.spec.classes)
        outputs.append(output)
        return output

    prediction = Prediction(
        models, window.image, options=options, make_output=make_output
    )
    with closing(prediction) as events:
        for event in events:
            if isinstance(event, PredictionStarted):
                yield outputs[0].target_opened()
            if isinstance(event, (PredictionStarted, RegionEnd)):
                done, regions = event.done - context, event.regions - context
                event = replace(event, done=done, regions=regions)
            if isinstance(event, RegionEnd):
                event = replace(event, region=window.region_of(event.region))
            elif isinstance(event, PredictionEnd):
                event = replace(event, path=str(out))
            yield event
        return PredictResult(out=str(out), pixels=_count_pixels(events))


def _compare(job: EvaluateJob, out: Path | None) -> Events:
    """Score a label file against reference labels."""
    assert job.prediction is not None
    assert job.labels is not None
    if out is not None:
        check_free(out, overwrite=job.overwrite)
    prediction, truth = open_labels(job.prediction), open_labels(job.labels[0])
    classes = job.classes or shared_classes(prediction, truth, job.unlabelled)
    confusion, fullest = ConfusionMatrix(classes), ConfusionMatrix(classes)
    most: list[list[dict[str, Any] | None]] = [
        [None] * len(classes) for _ in classes.names
    ]
    planes: list[tuple[float, Case]] = []
    known = job.known or KnownPlanes()
    seen_planes = {
        repr(plane.index): Seen(plane.kind, plane.pixels) for plane in known.planes
    }
    seen = SeenScores(classes, known.why_unknown)
    started = perf_counter()
    for number, (region, total, matrix) in enumerate(
        iter_score_labels(prediction, truth, classes), 1
    ):
        confusion += matrix
        index, mean_iou = dict(region.index), matrix.mean_iou_in_truth
        seen.add(seen_planes.get(repr(index), Seen()), matrix)
        if not np.isnan(mean_iou):
            planes.append((mean_iou, Case(index=index, mean_iou=mean_iou)))
        for i, j in np.argwhere(matrix.counts > fullest.counts):
            most[i][j] = index
        fullest.counts = np.maximum(fullest.counts, matrix.counts)
        yield RegionEnd(index, number, total, perf_counter() - started)
        started = perf_counter()
    facts = {} if job.known is None else {"trained_on": seen.as_dict()}
    if out is not None:
        write_report(confusion, [(prediction.name, confusion)], out, facts=facts)
    ranked = [case for _, case in sorted(planes, key=lambda plane: plane[0])]
    if len(ranked) > 2 * CASES:
        ranked = ranked[:CASES] + ranked[-CASES:]
    scores = confusion.as_dict()
    return EvaluateResult(
        **scores,
        **facts,
        per_image={prediction.name: scores},
        out=job.out,
        most=tuple(map(tuple, most)),
        cases=tuple(ranked),
    )


def _recipe(value: str | dict[str, Any]) -> str | Recipe:
    return value if isinstance(value, str) else Recipe.parse(value)


def _options(job: PredictJob | EvaluateJob) -> PredictOptions:
    names = ("device", "overwrite", "batch", "precision", "tile", "tta")
    return PredictOptions(**{name: getattr(job, name) for name in names})


def _count_pixels(prediction: Prediction) -> dict[str, int]:
    """Count the predicted pixels of each class, by name."""
    classes = prediction.labels.classes
    names = classes.names if classes else ()
    return dict(zip(names, map(int, prediction.pixels), strict=True))


def _image_facts(image: Image) -> ImageFacts:
    return ImageFacts(
        name=image.name,
        axes=image.axes,
        shape=image.shape,
        scale=image.scale,
        units=image.units,
        channel_names=image.channel_names,
        notes=image.notes,
        dtype=str(image.dtype),
    )


def _check_fit(models: Ensemble, image: Image) -> dict[str, Any]:
    """Check whether models accept an image; collect warnings or the reason."""
    try:
        image = with_neighbours(image, models.spec.neighbours)
        drift = check_image(models.models, image, image.samples())
    except ImageError as error:
        return {"fits": False, "fit": (str(error),)}
    return {"fits": True, "fit": drift.sentences, "questions": drift.questions}
