"""The training loop: plan, then epochs with steps, validation and checkpoint.

At the end the best model is measured once more. `iter_train` yields an event for each
step. To stop a training, stop iterating. The files on disk are valid at any moment, and
`resume` continues from the last complete epoch, with the same weights in the end as an
uninterrupted run: on a CPU bit for bit. On a CUDA GPU the convolutions are
deterministic too, but the backward passes of interpolation, adaptive pooling and 3D
maximum pooling are not, so that weights may differ by rounding.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from napari_strata.core.classes import ClassMap
from napari_strata.core.errors import StrataError, TrainingError
from napari_strata.core.events import BatchEnd, EpochEnd, Event, Message
from napari_strata.core.image import AnnotatedImage
from napari_strata.core.locks import one_writer
from napari_strata.core.metrics import ConfusionMatrix
from napari_strata.core.recipe import Recipe
from napari_strata.core.runs import RunFolder, check_free
from napari_strata.data.loader import Batch, PatchSource
from napari_strata.models.allocator import kept_pages
from napari_strata.models.device import choose_precision, describe_unused_gpus
from napari_strata.models.memory import out_of_memory_as
from napari_strata.models.model import Model
from napari_strata.models.network_predictor import NetworkPredictor
from napari_strata.models.tiled import TiledPredictor
from napari_strata.training.calibration import measure
from napari_strata.training.checkpoint import TrainingRun, open_run
from napari_strata.training.comparison import compare_with_trees
from napari_strata.training.ddp import ProcessGroup, process_group
from napari_strata.training.fit import iter_fit
from napari_strata.training.learner import Learner
from napari_strata.training.plan import Plan, TrainingTask, plan_new, plan_resumed
from napari_strata.training.validation import Truth, Validation, load_truths, validate


def train(  # noqa: PLR0913 (keyword options)
    recipe: str | os.PathLike[str] | Recipe,
    pairs: AnnotatedImage | Sequence[AnnotatedImage],
    *,
    out: str | Path,
    validation: AnnotatedImage | Sequence[AnnotatedImage] | None = None,
    classes: ClassMap | None = None,
    unlabelled: Sequence[int] = (),
    overrides: Mapping[str, Any] | None = None,
    device: str = "auto",
    resume: bool = False,
    extend: int = 0,
) -> Model:
    """Train to the end and return the model.

    Parameters and errors are those of `iter_train`.
    """
    events = iter_train(
        recipe,
        pairs,
        out=out,
        validation=validation,
        classes=classes,
        unlabelled=unlabelled,
        overrides=overrides,
        device=device,
        resume=resume,
        extend=extend,
    )
    with closing(events):
        for _ in events:
            pass
    return Model.load(out)


def iter_train(  # noqa: PLR0913 (as `train`)
    recipe: str | os.PathLike[str] | Recipe,
    pairs: AnnotatedImage | Sequence[AnnotatedImage],
    *,
    out: str | Path,
    validation: AnnotatedImage | Sequence[AnnotatedImage] | None = None,
    classes: ClassMap | None = None,
    unlabelled: Sequence[int] = (),
    overrides: Mapping[str, Any] | None = None,
    device: str = "auto",
    resume: bool = False,
    extend: int = 0,
) -> Generator[Event, None, None]:
    """Train a network and yield events.

    Several processes that ``torchrun`` started train together: each computes its share
    of every batch, and only the main process yields events and writes files. See
    `training.ddp`.

    Parameters
    ----------
    recipe
        Name of a recipe, path of a YAML file, or a `Recipe`.
    pairs
        Images and their labels.
    out
        Run folder to create; see `RunFolder` for its files. From the end of the first
        epoch, ``model.safetensors`` is the model with the best mean IoU on the
        validation data so far, or the latest model without validation data. The mean is
        that over the classes that occur in the labels of these data. A run that is
        stopped earlier saves its current weights. A complete training also has
        ``validation/``, the measurements by `training.calibration`.
    validation
        Pairs to validate on. By default, the recipe's fraction of `pairs` is used.
    classes, unlabelled
        Meaning of label values; see `core.spec.resolve`.
    overrides
        Dotted keys of the recipe and their values, such as ``{"training.epochs": 5}``.
    device
        "auto", "cpu", "cuda", "cuda:1" or "mps". With "auto", each of several processes
        uses its own GPU.
    resume
        Continue the run in `out` with its own recipe, spec and split. New pairs are
        added to the training data.
    extend
        Number of epochs to add after the planned ones, or after early stopping; implies
        `resume`. One-cycle and cosine schedules restart over the remaining epochs.

    Raises
    ------
    RecipeError, ImageError, LabelError, ModelError, RunError
        Before anything is written, when recipe, data or folder are not suitable.
    TrainingError
        When the loss is not finite, memory runs out, or one of several processes has
        ended. The last checkpoint is kept.
    """
    return iter_task(
        TrainingTask(
            recipe=recipe,
            pairs=pairs,
            out=Path(out),
            validation=validation,
            classes=classes,
            unlabelled=unlabelled,
            overrides=overrides,
            device=device,
            resume=resume or extend > 0,
            extend=extend,
        )
    )


def iter_task(task: TrainingTask) -> Generator[Event, None, None]:
    """Run a training task; see `iter_train`."""
    with process_group() as group:
        if not group.is_main:
            for _ in _train(task, group):
                pass
            return
        if task.resume:
            RunFolder.open(task.out)
        else:
            check_free(task.out)
        with one_writer(Path(task.out)) as messages:
            yield from messages
            yield from _train(task, group)


def _train(task: TrainingTask, group: ProcessGroup) -> Generator[Event, None, None]:
    start = time.perf_counter()
    # Decide everything first; nothing is written before `open_run`.
    if task.resume:
        plan = plan_resumed(task, RunFolder.open(task.out))
    else:
        plan = plan_new(task)
    if plan.recipe.network.is_fitted:
        yield from iter_fit(task, plan, group)
        return
    device = group.choose_device(task.device)
    unused = [Message(text, "warning") for text in describe_unused_gpus(task.device)]
    precision = choose_precision(plan.recipe.training.precision, device)
    source = PatchSource(
        plan.training, plan.spec, plan.recipe, pin=device.type == "cuda"
    )
    batches = len(source)
    batch_size = plan.recipe.training.batch_size
    smallest_batch = source.patches // batches
    group.check_batches(smallest_batch, batch_size=batch_size)
    data = _Data(source, load_truths(plan.validation, plan.spec))
    with out_of_memory_as(TrainingError(_explain_memory(device))):
        learner = Learner(
            plan, device=device, precision=precision, batches=batches, group=group
        )
    group.check_same(f"{plan.fingerprint} {plan.recipe.model_dump_json()}")
    run, messages = open_run(task, plan, learner, group)
    section = run.plan.recipe.training
    predictors = {
        kind: TiledPredictor(
            NetworkPredictor(network, plan.spec, device=device, precision=precision)
        )
        for kind, network in learner.networks.items()
    }
    reason = "finished"
    try:
        with (
            kept_pages(device.type),
            deterministic_convolutions(),
            out_of_memory_as(TrainingError(_explain_memory(device))),
        ):
            for event in run.opening([*messages, *unused], batches):
                yield run.record(event)
            for epoch in range(run.progress.epoch + 1, section.epochs + 1):
                if run.progress.is_stuck(section.early_stopping):
                    reason = "early stopping"
                    break
                yield from _epoch(epoch, task, run, data, predictors=predictors)
            group.check_stop()
            group.close()  # the main process does the rest
            if not group.is_main:
                return
            run.complete_history()
            for event in _measure_best(run, task, data.truths):
                yield run.record(event)
            run.link_equal_models()
    except (GeneratorExit, KeyboardInterrupt, SystemExit) as error:
        if isinstance(error, GeneratorExit):
            group.announce_stop()
        run.save_first_weights()
        run.record(run.ended("stopped", time.perf_counter() - start))
        raise
    yield run.record(run.ended(reason, time.perf_counter() - start))


@contextmanager
def deterministic_convolutions() -> Iterator[None]:
    """Let cuDNN use only algorithms that give the same numbers every time.

    It is nothing to a CPU. Not `torch.backends.cudnn.flags`, which also resets the
    caller's choice of TF32.
    """
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark = before


def _measure_best(
    run: TrainingRun, task: TrainingTask, truths: Sequence[Truth]
) -> Generator[Event, None, None]:
    """Measure the best model, and compare it with trees where strokes train."""
    learner = run.learner
    yield from measure(
        run.folder,
        truths,
        fingerprint=run.plan.fingerprint,
        build=learner.predictor,
    )
    yield from compare_with_trees(
        run.folder,
        run.plan,
        learner.group,
        build=learner.predictor,
        device=learner.device,
        # What was given to validate on, or by a cross-validation, is never learnt.
        may_learn_all=task.validation is None and task.split is None,
    )


@dataclass
class _Data:
    """What a training reads: batches, and labels to validate on."""

    source: PatchSource
    truths: list[Truth]


def _steps(
    epoch: int, task: TrainingTask, run: TrainingRun, data: _Data
) -> Generator[Event | Batch, None, None]:
    """Iterate over the batches of an epoch, from the newest labels.

    An event comes before the first batch that uses other labels.
    """
    number = 0
    while number < len(data.source):
        with closing(data.source.epoch(epoch, first=number)) as batches:
            for batch in batches:
                try:
                    plan = task.changed(run.plan)
                    if plan is not None and run.learner.group.size > 1:
                        raise TrainingError(
                            "several processes read the labels at the start only;"
                            " stop and resume."
                        )
                except StrataError as error:
                    yield Message(f"the new strokes are not used: {error}", "warning")
                    plan = None
                if plan is not None:
                    break
                yield batch
                number += 1
            else:
                return
        data.source.update(plan.training)
        data.truths = load_truths(plan.validation, plan.spec)
        yield run.change_labels(plan)


def _epoch(
    epoch: int,
    task: TrainingTask,
    run: TrainingRun,
    data: _Data,
    *,
    predictors: Mapping[str, TiledPredictor],
) -> Generator[Event, None, None]:
    """Train for one epoch, validate, and write the results to disk."""
    learner = run.learner
    group = learner.group
    too_large = TrainingError(_explain_step_memory(run.plan, learner.device))
    start = time.perf_counter()
    losses: list[dict[str, float]] = []
    rate = math.nan
    for batch in _steps(epoch, task, run, data):
        if isinstance(batch, Event):
            yield run.record(batch)
            continue
        number = len(losses) + 1
        group.check_stop()
        step_start = time.perf_counter()
        rate = learner.schedule.learning_rate
        with out_of_memory_as(too_large):
            losses.append(learner.step(batch, epoch=epoch, number=number))
        yield run.record(
            BatchEnd(
                epoch=epoch,
                batch=number,
                batches=len(data.source),
                loss=losses[-1]["loss"],
                learning_rate=rate,
                seconds=time.perf_counter() - step_start,
            )
        )
        run.save_snapshot(data.source)
    group.check_stop()
    means = {
        name: math.fsum(row[name] for row in losses) / len(losses) for name in losses[0]
    }
    learner.recalibrate(data.source)
    kind, scores = _validate(learner, predictors, data.truths)
    learner.schedule.step_epoch(scores.loss if data.truths else means["loss"])
    confusion = scores.confusion
    pixels = int(confusion.counts.sum())
    best_iou, best_loss = run.progress.is_best(
        iou=confusion.mean_iou_in_truth,
        loss=scores.loss,
        earlier_iou=confusion.mean_iou,
    )
    end = EpochEnd(
        epoch=epoch,
        epochs=run.plan.recipe.training.epochs,
        train_loss=means["loss"],
        validation_loss=scores.loss,
        mean_iou=confusion.mean_iou,
        pixel_accuracy=confusion.pixel_accuracy,
        class_iou=tuple(map(float, confusion.iou)),
        learning_rate=rate,
        seconds=time.perf_counter() - start,
        best_iou=best_iou,
        best_loss=best_loss,
        weights=kind,
        stroke_pixels=pixels if run.plan.validates_strokes else 0,
        mean_iou_in_truth=confusion.mean_iou_in_truth,
        classes_in_truth=confusion.classes_in_truth,
        pixels=pixels,
    )
    # Before the checkpoint, after which a killed training goes on.
    run.save_preview(end, scores.example)
    run.save_epoch(end, _loss_columns(means, scores))
    group.epoch = epoch
    yield run.record(end)


def _validate(
    learner: Learner, predictors: Mapping[str, TiledPredictor], truths: Sequence[Truth]
) -> tuple[str, Validation]:
    """Validate raw and averaged weights; return the name and scores of the better.

    The mean IoU over the classes in the truth decides; if it is equal or NaN, the
    averaged weights are chosen.
    """
    group = learner.group
    scores: dict[str, Validation] = {}
    for kind, predictor in predictors.items():
        own = validate(predictor, group.share(truths), learner.loss)
        shares = group.gather((own.loss, own.terms, own.confusion.counts))
        scores[kind] = own if len(shares) == 1 else _merge(own, shares)

    def mean_iou(kind: str) -> float:
        value = scores[kind].confusion.mean_iou_in_truth
        return -math.inf if math.isnan(value) else value

    best = max(scores, key=mean_iou)
    return best, scores[best]


def _merge(
    own: Validation, shares: Sequence[tuple[float, dict[str, float], Any]]
) -> Validation:
    """Combine the loss, its terms and the counts of all ranks."""
    total_counts = sum(counts for _, _, counts in shares)
    total = int(total_counts.sum())
    weighted: dict[str, list[float]] = {}
    for loss, terms, counts in shares:
        pixels = int(counts.sum())
        if pixels:
            for name, value in {"loss": loss, **terms}.items():
                weighted.setdefault(name, []).append(value * (pixels / total))
    means = {name: math.fsum(values) for name, values in weighted.items()}
    loss = means.pop("loss", math.nan)
    confusion = ConfusionMatrix(own.confusion.classes, total_counts)
    return replace(own, loss=loss, terms=means, confusion=confusion)


def _loss_columns(
    training: Mapping[str, float], scores: Validation
) -> dict[str, float]:
    """Return the terms of the loss as columns of ``metrics.csv``."""
    columns = {}
    for name, value in training.items():
        if name != "loss":
            columns[f"train_{name}"] = value
    for name, value in scores.terms.items():
        columns[f"validation_{name}"] = value
    return columns


def _explain_memory(device: torch.device) -> str:
    return (
        f"out of memory on {device}, not in a step but beside it (the weights "
        "themselves, or validation): close other programs, or use a smaller network or "
        "smaller images. The batch size is not the cause."
    )


def _explain_step_memory(plan: Plan, device: torch.device) -> str:
    batch = plan.recipe.training.batch_size
    shape = plan.spec.patch_shape
    if plan.spec.resize:
        shape = (plan.spec.resize, plan.spec.resize)
    remedy = "a smaller patches.size"
    if batch > 1:
        remedy = f"training.batch_size={batch // 2}"
    return (
        f"out of memory on {device}: found that {batch} patches of "
        f"{' x '.join(map(str, shape))} pixels are too much for one step; use "
        f"{remedy}, or a smaller network."
    )
