"""Training, from top to bottom: plan, then for each epoch steps, validation, checkpoint; at the end the best model is
measured.

`iter_train` yields an event after everything that happens. To stop is to stop iterating: what is on disk is valid at
any moment, and `resume` goes on from the last complete epoch to the very weights that an unbroken run would have had.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from napari_strata.core.classes import ClassMap
from napari_strata.core.errors import TrainingError
from napari_strata.core.events import BatchEnd, EpochEnd, Event
from napari_strata.core.image import AnnotatedImage
from napari_strata.core.metrics import ConfusionMatrix
from napari_strata.core.recipe import Recipe
from napari_strata.core.runs import RunFolder, check_free
from napari_strata.data.loader import PatchSource
from napari_strata.models.allocator import kept_pages
from napari_strata.models.device import choose_precision
from napari_strata.models.model import Model
from napari_strata.models.network_predictor import NetworkPredictor
from napari_strata.models.tiled import TiledPredictor, is_out_of_memory
from napari_strata.training.calibration import measure
from napari_strata.training.checkpoint import Session, open_session
from napari_strata.training.ddp import ProcessGroup, process_group
from napari_strata.training.learner import Learner
from napari_strata.training.plan import Job, Plan, plan_new, plan_resumed
from napari_strata.training.validation import Truth, Validation, load_truths, validate


def train(  # noqa: PLR0913 (what a user may say, each by its name)
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
    """Train to the end and return the model; parameters and errors as in `iter_train`."""
    options: dict[str, Any] = {
        "validation": validation,
        "classes": classes,
        "unlabelled": unlabelled,
    }
    options |= {
        "overrides": overrides,
        "device": device,
        "resume": resume,
        "extend": extend,
    }
    with closing(iter_train(recipe, pairs, out=out, **options)) as events:
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
    """Train a network and yield an event after each thing that happens.

    In processes that ``torchrun`` has started, each takes its share of every batch, whose size is that of all together
    (DistributedDataParallel); the first one alone yields events and writes. See `training.distributed`.

    Parameters
    ----------
    recipe
        name of a recipe, path of a YAML file, or a `Recipe`.
    pairs
        images and their labels.
    out
        run folder to make; see `RunFolder` for what it will hold. ``model.safetensors`` in it is the best so far by
        mean IoU of the validation (the latest where nothing validates), from the end of the first epoch on; a run that
        is stopped earlier leaves the weights it had. A training that comes to its end also leaves ``validation/``,
        what `training.final` measured of that model.
    validation
        pairs to validate on; when left out, the recipe's share of `pairs` is held back.
    classes, unlabelled
        what label values mean; see `resolve`.
    overrides
        dotted keys of the recipe and their values, such as ``{"training.epochs": 5}``.
    device
        "auto", "cpu", "cuda", "cuda:1" or "mps". Of several processes each takes the GPU of its number, with "auto".
    resume
        go on with the run in `out`, with its own recipe, spec and split. Pairs it does not know join the training.
    extend
        train so many epochs more than planned (or than it took until early stopping); implies `resume`. One-cycle and
        cosine schedules begin again over the epochs that remain.

    Raises
    ------
    RecipeError, ImageError, LabelError, ModelError, RunError
        before anything is written, when recipe, data or folder do not make a training.
    TrainingError
        when the loss stops being a number, memory runs out, or one of several processes is gone. The last checkpoint
        is kept.
    """
    goes_on = resume or extend > 0
    return iter_job(
        Job(
            recipe,
            pairs,
            Path(out),
            validation,
            classes,
            unlabelled,
            overrides,
            device,
            goes_on,
            extend,
        )
    )


def iter_job(job: Job) -> Generator[Event, None, None]:
    """The events of a training that is wholly described; see `iter_train`."""
    with process_group() as group:
        events = _train(job, group)
        if group.is_main:
            yield from events
        else:
            for _ in events:
                pass


def _train(job: Job, group: ProcessGroup) -> Generator[Event, None, None]:
    start = time.perf_counter()
    # Decide everything; nothing is written before `open_session`.
    if job.resume:
        plan = plan_resumed(job, RunFolder.open(job.out))
    else:
        check_free(job.out)
        plan = plan_new(job)
    device = group.choose_device(job.device)
    precision = choose_precision(plan.recipe.training.precision, device)
    source = PatchSource(plan.training, plan.spec, plan.recipe)
    group.check_batches(
        source.patches // len(source), batch_size=plan.recipe.training.batch_size
    )
    truths = load_truths(plan.validation, plan.spec)
    learner = Learner(
        plan, device=device, precision=precision, batches=len(source), group=group
    )
    group.check_same(f"{plan.fingerprint} {plan.recipe.model_dump_json()}")
    session, messages = open_session(job, plan, learner, group)
    predictors = {
        kind: TiledPredictor(
            NetworkPredictor(network, plan.spec, device=device, precision=precision)
        )
        for kind, network in learner.networks.items()
    }
    reason, pages = "finished", ExitStack()
    pages.enter_context(kept_pages(device.type))
    try:
        for message in (*plan.messages, *messages):
            yield session.tell(message)
        yield session.tell(session.started(len(source)))
        for epoch in range(
            session.progress.epoch + 1, session.plan.recipe.training.epochs + 1
        ):
            if session.progress.is_stuck(session.plan.recipe.training.early_stopping):
                reason = "early stopping"
                break
            yield from _epoch(
                epoch, session, source, predictors=predictors, truths=truths
            )
        group.check_stop()
        group.close()
        if not group.is_main:
            return
        session.complete()
        for event in measure(session, truths):
            yield session.tell(event)
    except (GeneratorExit, KeyboardInterrupt, SystemExit) as error:
        if isinstance(error, GeneratorExit):
            group.announce_stop()
        session.leave()
        session.tell(session.ended("stopped", time.perf_counter() - start))
        raise
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(_why_no_memory(plan, device)) from error
    finally:
        pages.close()
    yield session.tell(session.ended(reason, time.perf_counter() - start))


def _epoch(
    epoch: int,
    session: Session,
    source: PatchSource,
    *,
    predictors: Mapping[str, TiledPredictor],
    truths: Sequence[Truth],
) -> Generator[Event, None, None]:
    """Steps, then validation, then everything on disk, then the event."""
    learner, start, losses = session.learner, time.perf_counter(), []
    for number, batch in enumerate(source.epoch(epoch), start=1):
        batch_start, rate = time.perf_counter(), learner.schedule.learning_rate
        learner.group.check_stop()
        losses.append(learner.step(batch, epoch=epoch, number=number))
        seconds = time.perf_counter() - batch_start
        yield session.tell(
            BatchEnd(epoch, number, len(source), losses[-1]["loss"], rate, seconds)
        )
    learner.group.check_stop()
    means = _means(losses)
    learner.recalibrate(source)
    kind, scores = _validate(learner, predictors, truths)
    learner.schedule.step_epoch(scores.loss if truths else means["loss"])
    end = _epoch_end(session, kind, scores, train_loss=means["loss"])
    end = replace(end, learning_rate=rate, seconds=time.perf_counter() - start)
    session.keep(end, _columns(means, scores))
    learner.group.epoch = epoch
    session.draw(end, scores.example)
    yield session.tell(end)


def _means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: math.fsum(row[name] for row in rows) / len(rows) for name in rows[0]}


def _validate(
    learner: Learner, predictors: Mapping[str, TiledPredictor], truths: Sequence[Truth]
) -> tuple[str, Validation]:
    """Which weights validate best by mean IoU, the averaged ones where that does not tell, and their scores."""
    group = learner.group
    scores = {
        kind: validate(one, group.share(truths), learner.loss)
        for kind, one in predictors.items()
    }
    shares = group.gather(
        {
            kind: (one.loss, one.terms, one.confusion.counts)
            for kind, one in scores.items()
        }
    )
    if len(shares) > 1:
        scores = {
            kind: _merged(one, [share[kind] for share in shares])
            for kind, one in scores.items()
        }
    best = max(scores, key=lambda kind: _or_lowest(scores[kind].confusion.mean_iou))
    return best, scores[best]


def _merged(
    own: Validation, shares: Sequence[tuple[float, dict[str, float], Any]]
) -> Validation:
    """One validation from the loss, terms and counts that each rank found in its share of the parts."""
    counts = sum(counts for _, _, counts in shares)
    total = int(counts.sum())
    found = [
        ({"loss": loss} | terms, int(counts.sum()) / total)
        for loss, terms, counts in shares
        if counts.any()
    ]
    means = {
        name: math.fsum(row[name] * weight for row, weight in found)
        for name in (found[0][0] if found else ())
    }
    loss = means.pop("loss", math.nan)
    return replace(
        own,
        loss=loss,
        terms=means,
        confusion=ConfusionMatrix(own.confusion.classes, counts),
    )


def _or_lowest(value: float) -> float:
    return -math.inf if math.isnan(value) else value


def _epoch_end(
    session: Session, kind: str, scores: Validation, *, train_loss: float
) -> EpochEnd:
    confusion = scores.confusion
    best_iou, best_loss = session.progress.is_best(
        iou=confusion.mean_iou, loss=scores.loss
    )
    return EpochEnd(
        epoch=session.progress.epoch + 1,
        epochs=session.plan.recipe.training.epochs,
        train_loss=train_loss,
        validation_loss=scores.loss,
        mean_iou=confusion.mean_iou,
        pixel_accuracy=confusion.pixel_accuracy,
        class_iou=tuple(map(float, confusion.iou)),
        learning_rate=math.nan,
        seconds=math.nan,
        best_iou=best_iou,
        best_loss=best_loss,
        weights=kind,
    )


def _columns(training: Mapping[str, float], scores: Validation) -> dict[str, float]:
    """The single losses as columns of ``metrics.csv``."""
    train_terms = {
        f"train_{name}": value for name, value in training.items() if name != "loss"
    }
    return train_terms | {
        f"validation_{name}": value for name, value in scores.terms.items()
    }


def _why_no_memory(plan: Plan, device: torch.device) -> str:
    batch, spec = plan.recipe.training.batch_size, plan.spec
    shape = (spec.resize, spec.resize) if spec.resize else spec.patch_shape
    smaller = (
        f"training.batch_size={batch // 2}" if batch > 1 else "a smaller patches.size"
    )
    return (
        f"out of memory on {device}: found that {batch} patches of {' x '.join(map(str, shape))} pixels are too much "
        f"for one step; use {smaller}, or a smaller network."
    )
