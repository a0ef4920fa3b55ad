"""Jobs: what each kind of order does. Each is a generator of events that returns its result, as plain data.

Nothing is added here to what the Python API can do, except where results go.
"""

from __future__ import annotations

import gc
from collections.abc import Generator
from contextlib import closing
from dataclasses import replace
from functools import singledispatch
from pathlib import Path
from statistics import fmean
from time import perf_counter
from typing import Any, TypeAlias

import numpy as np
import torch

from napari_strata.core.errors import ImageError
from napari_strata.core.events import (
    PredictionEnd,
    PredictionStarted,
    RegionEnd,
    TrainingEnd,
)
from napari_strata.core.image import Image
from napari_strata.core.metrics import ConfusionMatrix
from napari_strata.core.options import PredictOptions
from napari_strata.core.recipe import Recipe
from napari_strata.core.runs import RunFolder
from napari_strata.data.neighbours import with_neighbours
from napari_strata.evaluation.evaluate import (
    iter_evaluate,
    iter_score_labels,
    shared_classes,
)
from napari_strata.evaluation.report import check_free, write_report
from napari_strata.inference.batch import predict_files
from napari_strata.inference.checks import check_image
from napari_strata.inference.outputs import OutputSpec
from napari_strata.inference.predict import Prediction
from napari_strata.io import describe, read_images
from napari_strata.models.device import (
    choose_device,
    choose_precision,
    describe_device,
    free_memory,
)
from napari_strata.models.ensemble import Ensemble, is_crossval, load_models
from napari_strata.models.model import find_model
from napari_strata.networks import build_network
from napari_strata.training.estimate import step_memory
from napari_strata.training.loop import iter_train
from napari_strata.training.plan import TrainingJob, plan_new
from napari_strata.worker.npy import NpyOutput, check_array
from napari_strata.worker.orders import (
    EvaluateJob,
    InfoJob,
    Job,
    Pairs,
    PlanJob,
    PredictJob,
    TrainJob,
)
from napari_strata.worker.replies import Outgoing
from napari_strata.worker.sources import Window, open_image, open_labels, open_pairs

Result: TypeAlias = dict[str, Any]
Events: TypeAlias = Generator[Outgoing, None, Result]

CASES = 4
"""Planes that a comparison of labels names as the worst, and as the best."""


@singledispatch
def run(job: Job) -> Events:
    """Do a job. It is stopped by closing the generator, or by a KeyboardInterrupt at any moment.

    Raises
    ------
    StrataError
        as the function of the API that does the same.
    """
    raise NotImplementedError(type(job).__name__)


@run.register
def _(job: TrainJob) -> Events:
    events = iter_train(
        _recipe(job.recipe),
        open_pairs(job),
        out=job.out,
        validation=open_pairs(job.validation) if job.validation else None,
        classes=job.classes,
        unlabelled=job.unlabelled,
        overrides=job.overrides,
        device=job.device,
        resume=job.resume,
        extend=job.extend,
    )
    result: Result = {}
    with closing(events):
        for event in events:
            if isinstance(event, TrainingEnd):
                result = {
                    "run": job.out,
                    "model": event.model,
                    "ended": event.reason,
                    "epoch": event.epoch,
                }
            yield event
    return result


@run.register
def _(job: PlanJob) -> Events:
    validation = open_pairs(job.validation) if job.validation else None
    order = TrainingJob(
        _recipe(job.recipe),
        open_pairs(job),
        Path(),
        validation,
        job.classes,
        job.unlabelled,
        job.overrides,
    )
    plan = plan_new(order)
    device = choose_device(job.device)
    precision = choose_precision(plan.recipe.training.precision, device)
    yield from plan.messages
    return {
        "recipe": plan.recipe.model_dump(mode="json"),
        "spec": plan.spec.model_dump(mode="json"),
        "split": plan.text,
        "training": [part.name for part in plan.training],
        "validation": [part.name for part in plan.validation],
        "classes": plan.spec.classes.table(),
        "labelled_pixels": list(plan.counts),
        "device": describe_device(device),
        "precision": precision.name,
        "memory": step_memory(plan.spec, plan.recipe, precision),
        "free_memory": free_memory(device),
        "parameters": sum(p.numel() for p in build_network(plan.spec).parameters()),
    }


@run.register
def _(job: PredictJob) -> Events:
    options = _options(job).updated(probabilities=job.probabilities, ortho=job.ortho)
    if job.image is None:
        yield from predict_files(
            job.model, job.inputs, job.out, options=options, axes=job.axes
        )
        return {"out": job.out}
    image, out = open_image(job.image, axes=job.axes), Path(job.out).expanduser()
    models = load_models(job.model)
    if job.is_array:
        return (
            yield from _into_array(
                models, Window.of(image, job.region), out, options=options
            )
        )
    with closing(Prediction(models, image, out=out, options=options)) as events:
        yield from events
        return {"out": str(out)} | _pixels(events)


@run.register
def _(job: EvaluateJob) -> Events:
    out = Path(job.out).expanduser() if job.out else None
    if job.model is not None and job.images:
        pairs = open_pairs(Pairs(images=job.images, labels=job.labels, axes=job.axes))
        events = iter_evaluate(job.model, pairs, out=out, options=_options(job))
        yield from events
        rows = events.scores.per_image
        return events.scores.as_dict() | {
            "per_image": {name: one.as_dict() for name, one in rows},
            "out": job.out,
        }
    return (yield from _compare(job, out))


@run.register
def _(job: InfoJob) -> Events:
    yield from ()
    path = Path(job.path).expanduser()
    if (
        path.suffix != ".safetensors"
        and not RunFolder(path).exists
        and not is_crossval(path)
    ):
        images = [_facts(image) for image in read_images(path, axes=job.axes)]
        return {"what": "image", "lines": describe(path), "images": images}
    models = load_models(path)
    fit = (
        {} if job.image is None else _fit(models, open_image(job.image, axes=job.axes))
    )
    return (
        fit
        | _about(models)
        | {"model": str(path if models.folds else find_model(path))}
    )


def give_back_memory() -> None:
    """Let other programs have what a job has used."""
    gc.collect()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()


def _about(models: Ensemble) -> Result:
    """What models are; of several, what the first one is, and the mean of their scores."""
    model, best = models.models[0], [one.best for one in models.models]
    scored = [end for end in best if end is not None]
    whole = len(scored) == len(models)
    return {
        "what": "model",
        "models": models.describe(),
        "created": model.created,
        "versions": model.versions,
        "recipe": model.recipe.model_dump(mode="json"),
        "spec": model.spec.model_dump(mode="json"),
        "classes": model.spec.classes.table(),
        "epochs": len(model.history),
        "mean_iou": fmean(end.mean_iou for end in scored) if whole else None,
        "class_iou": tuple(
            map(fmean, zip(*(end.class_iou for end in scored), strict=True))
        )
        if whole
        else (),
    }


def _into_array(
    models: Ensemble, window: Window, out: Path, *, options: PredictOptions
) -> Events:
    """Predict a window into a .npy file; regions in the events are those of the whole image."""
    check_array(out, probabilities=options.probabilities, overwrite=options.overwrite)
    window = window.widened([model.spec for model in models.models])
    opened: list[NpyOutput] = []
    beside = len(window.informing)

    def target(spec: OutputSpec) -> NpyOutput:
        opened.append(NpyOutput(out, spec, window=window, classes=models.spec.classes))
        return opened[0]

    with closing(
        Prediction(models, window.image, options=options, make_output=target)
    ) as events:
        for event in events:
            if isinstance(event, PredictionStarted):
                yield opened[0].announce()
            if isinstance(event, (PredictionStarted, RegionEnd)):
                event = replace(
                    event, done=event.done - beside, regions=event.regions - beside
                )
            if isinstance(event, RegionEnd):
                yield replace(event, region=window.told(event.region))
            else:
                yield (
                    replace(event, path=str(out))
                    if isinstance(event, PredictionEnd)
                    else event
                )
        return {"out": str(out)} | _pixels(events)


def _compare(job: EvaluateJob, out: Path | None) -> Events:
    """Scores of labels that are there already; `most` names the plane with most pixels of each cell of the matrix, and
    `cases` the worst and the best planes."""
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
    planes: list[dict[str, Any]] = []
    started = perf_counter()
    for number, (part, total, here) in enumerate(
        iter_score_labels(prediction, truth, classes), 1
    ):
        confusion += here
        planes.append({"index": dict(part.index), "mean_iou": here.mean_iou})
        for i, j in np.argwhere(here.counts > fullest.counts):
            most[i][j] = dict(part.index)
        fullest.counts = np.maximum(fullest.counts, here.counts)
        yield RegionEnd(dict(part.index), number, total, perf_counter() - started)
        started = perf_counter()
    if out is not None:
        write_report(confusion, [(prediction.name, confusion)], out)
    scores = confusion.as_dict()
    ranked = sorted(planes, key=lambda plane: plane["mean_iou"])
    cases = ranked if len(ranked) <= 2 * CASES else ranked[:CASES] + ranked[-CASES:]
    return scores | {
        "per_image": {prediction.name: scores},
        "most": most,
        "cases": cases,
        "out": job.out,
    }


def _recipe(given: str | dict[str, Any]) -> str | Recipe:
    return given if isinstance(given, str) else Recipe.parse(given)


def _options(job: PredictJob | EvaluateJob) -> PredictOptions:
    names = ("device", "overwrite", "batch", "precision", "tile", "tta")
    return PredictOptions(**{name: getattr(job, name) for name in names})


def _pixels(prediction: Prediction) -> Result:
    """Predicted pixels of each class, by name."""
    names = prediction.labels.classes.names if prediction.labels.classes else ()
    return {"pixels": dict(zip(names, map(int, prediction.pixels), strict=True))}


def _facts(image: Image) -> Result:
    known = {
        k: getattr(image, k)
        for k in ("name", "axes", "shape", "scale", "units", "channel_names", "notes")
    }
    return known | {"dtype": str(image.dtype)}


def _fit(models: Ensemble, image: Image) -> Result:
    """Whether models take an image, and what there is to say about it."""
    try:
        image = with_neighbours(image, models.spec.neighbours)
        warnings = check_image(
            [model.spec for model in models.models], image, image.samples()
        )
    except ImageError as error:
        return {"fits": False, "fit": [str(error)]}
    return {"fits": True, "fit": warnings}
