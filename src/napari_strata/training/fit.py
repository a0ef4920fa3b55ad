"""Training of a pixel classifier, which is fitted at once.

Its events and its run folder are those of every training, with a single epoch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from napari_strata.core import files
from napari_strata.core.classes import IGNORE
from napari_strata.core.errors import StrataError
from napari_strata.core.events import (
    BatchEnd,
    EpochEnd,
    Event,
    Message,
    TrainingEnd,
    TrainingStarted,
)
from napari_strata.core.network_sections import Pixels
from napari_strata.core.normalization import Scale
from napari_strata.core.runs import RunFolder
from napari_strata.core.spec import with_network
from napari_strata.data.regions import LabelledRegion
from napari_strata.data.strokes import number_strokes
from napari_strata.data.windows import count_windows
from napari_strata.evaluation.calibration import sample_evenly
from napari_strata.evaluation.pictures import draw_example
from napari_strata.inference.levels import (
    CHOICE_PIXELS,
    choose_levels,
    cross_entropy,
    predict_held_out,
    tree_probabilities,
)
from napari_strata.models.device import describe_device
from napari_strata.models.model import Model
from napari_strata.models.pixels.classifier import (
    PixelClassifier,
    guide_of,
    iter_trees,
    measure_steepness,
)
from napari_strata.models.pixels.features import count_features, features_at
from napari_strata.models.pixels.guided_filter import estimate_noise
from napari_strata.models.pixels.predictor import PixelPredictor
from napari_strata.models.pixels.trees import Tree, stack_trees
from napari_strata.models.tiled import TiledPredictor
from napari_strata.training.calibration import measure
from napari_strata.training.ddp import ProcessGroup
from napari_strata.training.drift import measure_reference
from napari_strata.training.estimate import count_parameters
from napari_strata.training.learner import Progress
from napari_strata.training.losses import build_loss
from napari_strata.training.plan import Plan, TrainingTask
from napari_strata.training.validation import load_truths, validate

Array = np.ndarray[Any, Any]

STEP_TREES = 10
"""Trees from one event to the next."""

MEASURE_TREES, MEASURE_PIXELS = 50, 20_000
"""Trees and pixels of the fits that measure the agreement with held-out strokes."""


@dataclass(frozen=True)
class LabelledPixels:
    """What a pixel classifier is fitted on.

    Parameters
    ----------
    features
        float32 (n, F).
    labels
        class indices (n,).
    strokes
        number of the stroke of each pixel (n,).
    noise
        standard deviation of the noise of the scaled images.
    windows
        number of small windows that are painted up to their edges.
    """

    features: Array
    labels: Array
    strokes: Array
    noise: float
    windows: int = 0

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, chosen: Array, count: int | None = None) -> LabelledPixels:
        """Return some of the pixels, with the first `count` of their features."""
        return LabelledPixels(
            self.features[chosen, :count],
            self.labels[chosen],
            self.strokes[chosen],
            self.noise,
            self.windows,
        )


@dataclass(frozen=True)
class _Fitted:
    """A model that was just fitted on some pixels, and its cross-entropy on them."""

    model: Model
    pixels: LabelledPixels
    loss: float


def iter_fit(
    task: TrainingTask, plan: Plan, group: ProcessGroup
) -> Generator[Event, None, None]:
    """Fit the classifier of a plan, and write a run folder; see `loop.iter_train`.

    A run that goes on is fitted anew where it was stopped, or its labels have changed.
    """
    if not group.is_main:
        return  # there is no work to share
    fit = _Fit.open(task, plan, group.choose_device(task.device))
    try:
        for event in fit.run():
            fit.folder.append_event(event)
            yield event
    except (GeneratorExit, KeyboardInterrupt, SystemExit):
        fit.folder.append_event(fit.ended("stopped"))
        raise


class _Fit:
    """A fit under way, with the folder that it writes to."""

    def __init__(
        self, task: TrainingTask, folder: RunFolder, plan: Plan, device: torch.device
    ) -> None:
        self.task = task
        self.folder = folder
        self.plan = plan
        self.device = device
        self.progress = Progress()
        self.start = time.perf_counter()
        section = plan.recipe.network
        assert isinstance(section, Pixels)
        self.section = section

    @classmethod
    def open(cls, task: TrainingTask, plan: Plan, device: torch.device) -> _Fit:
        """Begin a run, or open one that goes on."""
        plan = plan.with_epochs(1)
        if not task.resume:
            folder = RunFolder.create(task.out, plan.recipe, plan.record())
            return cls(task, folder, plan, device)
        folder = RunFolder.open(task.out)
        folder.save_recipe(plan.recipe)
        return cls(task, folder, plan, device)

    def run(self) -> Generator[Event, None, None]:
        """Fit and measure, event by event."""
        yield from self.plan.messages
        yield self.started()
        if self.plan.is_changed:
            yield self.plan.labels_updated(1)
        model = self.known_model()
        if model is None:
            fitted = yield from self.fit()
            if (yield from self.take_labels()):
                fitted = yield from self.fit()
            model = yield from self.finish(fitted)
        else:
            self.progress.history.extend(model.history)
            yield Message(
                "the run is complete: its model was fitted at once, on these labels"
            )
        yield from measure(
            self.folder,
            load_truths(self.plan.validation, model.spec),
            fingerprint=self.plan.fingerprint,
            build=self.build,
        )
        yield self.ended("finished")

    def known_model(self) -> Model | None:
        """Return the model that an earlier call fitted on the same data, if any."""
        if not self.folder.has_model:
            return None
        model = Model.load(self.folder.model_path)
        return model if model.fingerprint == self.plan.fingerprint else None

    def take_labels(self) -> Generator[Event, None, bool]:
        """Use strokes that were painted during the fit; return True if there are any.

        A fit is never restarted twice, or it would not end while somebody paints.
        """
        try:
            plan = self.task.changed(self.plan)
        except StrataError as error:
            yield Message(f"the new strokes are not used: {error}", "warning")
            return False
        if plan is None:
            return False
        self.plan = plan
        yield plan.labels_updated(1)
        return True

    def build(self, model: Model) -> PixelPredictor:
        """Build the predictor of a model on the device of this training."""
        return PixelPredictor.of(model, self.device)

    def fit(self) -> Generator[Event, None, _Fitted]:
        """Collect pixels, choose the levels and grow trees."""
        section, plan = self.section, self.plan
        pixels = collect_pixels(plan, section, self.device)
        levels = section.levels
        if levels is None:
            seed = plan.recipe.training.seed
            sample = pixels.subset(sample_evenly(len(pixels), CHOICE_PIXELS, seed=seed))
            levels, text = choose_levels(
                sample.features,
                sample.labels,
                sample.strokes,
                classes=len(plan.spec.classes),
                channels=plan.spec.in_channels,
                section=section,
                seed=seed,
            )
            yield Message(text)
        radius = section.resolve_filter_radius(pixels.windows)
        if section.filter_radius is None and pixels.windows:
            count = pixels.windows
            yield Message(
                f"{count} window{'s are' if count > 1 else ' is'} painted up to the"
                f" edges: the radius of the filter is {radius} pixels"
            )
        network = section.model_copy(update={"levels": levels, "filter_radius": radius})
        self.plan = replace(plan, spec=with_network(plan.spec, plan.recipe, network))
        self.folder.write_json("data.json", self.plan.record())
        count = count_features(plan.spec.in_channels, levels)
        pixels = pixels.subset(np.arange(len(pixels)), count)
        trees: list[Tree] = []
        losses: list[float] = []
        sums = np.zeros((len(pixels), len(plan.spec.classes)))
        started = time.perf_counter()
        for tree in _grow(pixels, plan, section):
            trees.append(tree)
            sums += tree.leaves[tree.leaf_of_pixel]
            if len(trees) % STEP_TREES and len(trees) < section.trees:
                continue
            losses.append(
                cross_entropy(tree_probabilities(sums, section), pixels.labels)
            )
            yield BatchEnd(
                epoch=1,
                batch=len(losses),
                batches=_count_steps(section),
                loss=losses[-1],
                learning_rate=math.nan,
                seconds=time.perf_counter() - started,
            )
            started = time.perf_counter()
        classifier = PixelClassifier(
            stack_trees(trees),
            levels,
            radius,
            pixels.noise,
            measure_steepness(pixels.features, levels, plan.spec.neighbours),
            plan.spec.neighbours,
            section.method == "boosting",
        )
        model = Model(
            self.plan.spec,
            plan.recipe,
            classifier.weights(),
            fingerprint=plan.fingerprint,
            drift=measure_reference(
                plan.training, plan.spec, seed=plan.recipe.training.seed
            ),
        )
        return _Fitted(model, pixels, losses[-1])

    def finish(self, fitted: _Fitted) -> Generator[Event, None, Model]:
        """Score a model that was fitted, and save it."""
        end, terms = yield from self.score(
            fitted.model, fitted.pixels, train_loss=fitted.loss
        )
        self.progress.add(end, terms, names=self.plan.spec.classes.names)
        model = replace(fitted.model, history=(end,))
        model.save(self.folder.model_path)
        files.write_text(self.folder.table_path, self.progress.csv())
        yield end
        return model

    def score(
        self, model: Model, pixels: LabelledPixels, *, train_loss: float
    ) -> Generator[Event, None, tuple[EpochEnd, dict[str, float]]]:
        """Score a model on the validation regions, or on strokes that are held back.

        Strokes say nothing of an intersection over union: they keep away from edges.
        """
        plan = self.plan
        truths = load_truths(plan.validation, model.spec)
        loss = build_loss(
            plan.recipe.training,
            classes=len(plan.spec.classes),
            class_counts=plan.counts,
        )
        scores = validate(TiledPredictor(self.build(model)), truths, loss)
        confusion = scores.confusion
        accuracy = confusion.pixel_accuracy
        stroke_pixels = int(confusion.counts.sum()) if plan.validates_strokes else 0
        if not truths and plan.recipe.training.validation:
            agreement = measure_agreement(pixels, plan, self.section)
            accuracy = agreement.share
            stroke_pixels = agreement.pixels
            if not stroke_pixels:
                yield Message(
                    "found one stroke of each class at most, so none can be held back "
                    "to measure on: paint a second one of each class",
                    "warning",
                )
        if scores.example is not None:
            with files.atomic(self.folder.preview_path(1)) as temporary:
                draw_example(scores.example).save(temporary)
        end = EpochEnd(
            epoch=1,
            epochs=1,
            train_loss=train_loss,
            validation_loss=scores.loss,
            mean_iou=confusion.mean_iou,
            pixel_accuracy=accuracy,
            class_iou=tuple(map(float, confusion.iou)),
            learning_rate=math.nan,
            seconds=time.perf_counter() - self.start,
            best_iou=not math.isnan(confusion.mean_iou),
            best_loss=not math.isnan(scores.loss),
            weights="raw",
            stroke_pixels=stroke_pixels,
            mean_iou_in_truth=confusion.mean_iou_in_truth,
            classes_in_truth=confusion.classes_in_truth,
            pixels=int(confusion.counts.sum()),
        )
        terms = {f"validation_{name}": value for name, value in scores.terms.items()}
        return end, terms

    def started(self) -> TrainingStarted:
        """Build the event that opens the training."""
        plan, section = self.plan, self.section
        return TrainingStarted(
            run=str(self.folder.path),
            device=describe_device(self.device),
            precision=PixelPredictor.precision.name,
            parameters=count_parameters(plan.spec),
            first_epoch=1,
            epochs=1,
            batches=_count_steps(section),
            training_images=tuple(_names(plan.training)),
            validation_images=tuple(_names(plan.validation)),
            validation_text=plan.text,
            class_names=plan.spec.classes.names,
        )

    def ended(self, reason: str) -> TrainingEnd:
        """Build the event that closes the training."""
        best = self.progress.best
        path = self.folder.model_path
        return TrainingEnd(
            reason=reason,
            epoch=self.progress.epoch,
            best_epoch=best.epoch if best else 0,
            mean_iou=best.reported_iou if best else math.nan,
            agreement=best.agreement if best else "",
            score=best.score if best else "",
            model=str(path) if path.exists() else "",
            seconds=time.perf_counter() - self.start,
        )


@dataclass(frozen=True)
class Agreement:
    """Share of the pixels of held-out strokes that are predicted as painted.

    NaN where no stroke could be held out.
    """

    share: float
    pixels: int


def collect_pixels(plan: Plan, section: Pixels, device: torch.device) -> LabelledPixels:
    """Compute the features of the labelled pixels of a plan, at most `section.pixels`.

    They are those of `section.resolved_levels`, and end at the border of a region:
    validation next to it is not looked at.
    """
    spec, levels = plan.spec, section.resolved_levels
    total = sum(plan.counts)
    picks = sample_evenly(total, section.pixels, seed=plan.recipe.training.seed)
    features, labels, strokes, noise = [], [], [], []
    scales: dict[int, Scale] = {}
    seen = 0
    last_stroke = windows = 0
    for region in plan.training:
        image = region.pair.image
        if id(image) not in scales:
            samples = np.concatenate(image.samples(), axis=1)
            scales[id(image)] = spec.normalization.scale_for(samples, image.dtype)
        grey, truth = region.read(spec.classes)
        labelled = np.flatnonzero(truth != IGNORE)
        first, stop = np.searchsorted(picks, (seen, seen + len(labelled)))
        chosen = labelled[picks[first:stop] - seen]
        seen += len(labelled)
        windows += count_windows(truth)
        if not len(chosen):
            continue
        scaled = torch.from_numpy(scales[id(image)].apply(grey))
        features.append(features_at(scaled, chosen, levels, device=device))
        noise.append(estimate_noise(guide_of(scaled, spec.neighbours).numpy()))
        labels.append(truth.ravel()[chosen])
        numbers = number_strokes(truth).ravel()[chosen]
        strokes.append(numbers + last_stroke)
        last_stroke += int(numbers.max())
    return LabelledPixels(
        np.concatenate(features),
        np.concatenate(labels).astype(np.int64),
        np.concatenate(strokes),
        float(np.median(noise)),
        windows,
    )


def measure_agreement(pixels: LabelledPixels, plan: Plan, section: Pixels) -> Agreement:
    """Measure how many pixels of held-out strokes are predicted as painted.

    Each stroke is held out once, and predicted by fewer trees of the others, without
    the filter.
    """
    chosen = sample_evenly(len(pixels), MEASURE_PIXELS, seed=plan.recipe.training.seed)
    small = section.model_copy(update={"trees": min(section.trees, MEASURE_TREES)})
    sample = pixels.subset(chosen)
    labels, probabilities = predict_held_out(
        sample.features,
        sample.labels,
        sample.strokes,
        classes=len(plan.spec.classes),
        section=small,
        seed=plan.recipe.training.seed,
    )
    if not len(labels):
        return Agreement(math.nan, 0)
    return Agreement(float((probabilities.argmax(1) == labels).mean()), len(labels))


def _grow(pixels: LabelledPixels, plan: Plan, section: Pixels) -> Iterator[Tree]:
    return iter_trees(
        pixels.features,
        pixels.labels,
        len(plan.spec.classes),
        section=section,
        seed=plan.recipe.training.seed,
    )


def _count_steps(section: Pixels) -> int:
    return -(-section.trees // STEP_TREES)


def _names(regions: Sequence[LabelledRegion]) -> list[str]:
    """Name of each image that regions come from, once."""
    return list(dict.fromkeys(region.pair.name for region in regions))
