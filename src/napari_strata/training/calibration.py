"""Measurement of the best model at the end of a training, and its calibration.

The model is scored once more on the validation images; its errors on blocks of their
planes are stored in it, for the intervals of fractions. A temperature is fitted to its
logits: to those of one half of the planes (or blocks). Its calibration error is
measured on the other half; a single plane is cut in two. The scores are written to
``validation/`` in the run folder, with the same files as any evaluation, and the
temperature is stored in the model. The only random choice is the sample of pixels,
which depends on the recipe's seed.
"""

from __future__ import annotations

import time
from bisect import insort
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from napari_strata.core.classes import IGNORE, ClassMap
from napari_strata.core.events import Event, Message, RegionEnd
from napari_strata.core.metrics import ConfusionMatrix, none_if_nan
from napari_strata.core.runs import EvaluationFolder, RunFolder
from napari_strata.core.text import format_count
from napari_strata.evaluation.calibration import (
    NOT_INDEPENDENT,
    Fit,
    calibrate,
    sample_evenly,
)
from napari_strata.evaluation.pictures import Example, panel_boxes
from napari_strata.evaluation.report import name_files, write_report
from napari_strata.measure.blocks import BlockCounter
from napari_strata.measure.region import PLANES_TO_SEARCH, find_outside_class
from napari_strata.models.model import Calibration, Model
from napari_strata.models.predictor import Predictor
from napari_strata.models.tiled import TiledPredictor
from napari_strata.training.validation import Predicted, Truth, iter_predicted

Array = np.ndarray[Any, Any]


MAX_PIXELS = 200_000
"""Largest number of labelled pixels to fit the temperature."""

MAX_LOGITS = 4_000_000
"""Largest number of logits of these pixels."""

CASES = 3
"""Number of the best regions, and of the worst regions, that are drawn."""


def measure(
    folder: RunFolder,
    truths: Sequence[Truth],
    *,
    fingerprint: str,
    build: Callable[[Model], Predictor],
) -> Generator[Event, None, None]:
    """Measure the model of a run after its last epoch, and calibrate it.

    This is skipped without validation regions, or if the model has been measured on the
    same data. If it is stopped, nothing has changed. A temperature divides the logits,
    so no predicted label changes.

    Parameters
    ----------
    fingerprint
        Digest of the training data; see `plan.data_fingerprint`.
    build
        Function that builds the predictor of a model on the device of the training.

    Yields
    ------
    Event
        A `Message`, a `RegionEnd` for each region, and a `Message` with the result.

    Raises
    ------
    RunError
        When the disk is full.
    """
    model = Model.load(folder.model_path)
    out = folder.validation.path
    if not truths or _is_measured(out, model, fingerprint):
        return
    noun = "plane" if model.spec.depth is None else "block"
    regions = format_count(len(truths), f"validation {noun}")
    yield Message(f"measuring the best model on {regions}")
    predictor = TiledPredictor(build(model))
    tally = Tally.of(truths, model.spec.classes, seed=model.recipe.training.seed)
    start = time.perf_counter()
    for number, predicted in enumerate(iter_predicted(predictor, truths), 1):
        tally.add(predicted)
        yield RegionEnd(
            _region_index(predicted.truth),
            number,
            len(truths),
            time.perf_counter() - start,
        )
        start = time.perf_counter()
    fit = tally.fit()
    before, after = fit.before.ece, fit.after.ece
    model = replace(
        model,
        calibration=Calibration(fit.temperature, before, after, fit.fitted_pixels),
        residuals=tally.blocks.residuals(),
    )
    model.save(folder.model_path)
    # The report is written after the model. The digest in its metrics.json shows that
    # both are complete.
    best = model.best
    facts = {
        "epoch": best.epoch if best else None,
        "calibration": fit.as_dict(),
        "device": str(predictor.device),
    }
    keys = {"model": model.digest, "data": fingerprint}
    _write(out, tally, keys | facts)
    yield Message(_describe_fit(fit))


@dataclass
class Tally:
    """Results of regions that are predicted one by one.

    Parameters
    ----------
    sample
        Numbers of the labelled pixels, counted over all regions, that are used for the
        calibration.
    first_check
        Number of the first labelled pixel that measures the calibration; those before
        it fit the temperature.
    outside
        Class index of what surrounds the specimen in the truth, if anything does.
    pixels
        Number of labelled pixels so far.
    blocks
        Counts in blocks of planes.
    """

    classes: ClassMap
    sample: Array
    first_check: int
    outside: int | None = None
    pixels: int = 0
    logits: list[Array] = field(default_factory=list)
    labels: list[Array] = field(default_factory=list)
    per_region: list[tuple[str, ConfusionMatrix]] = field(default_factory=list)
    blocks: BlockCounter = field(init=False)
    ranked: dict[str, list[tuple[float, int, Example]]] = field(
        default_factory=lambda: {"best": [], "worst": []}
    )

    def __post_init__(self) -> None:
        self.blocks = BlockCounter(self.classes, self.outside)

    @classmethod
    def of(cls, truths: Sequence[Truth], classes: ClassMap, *, seed: int) -> Tally:
        """Build an empty tally for these regions."""
        counts = [int((truth.labels != IGNORE).sum()) for truth in truths]
        total = sum(counts)
        planes = [plane for truth in truths for _, plane in truth.planes()]
        step = max(1, len(planes) // PLANES_TO_SEARCH)
        return cls(
            classes,
            sample_evenly(
                total, min(MAX_PIXELS, MAX_LOGITS // len(classes)), seed=seed
            ),
            _middle(counts),
            find_outside_class(planes[::step]),
        )

    def add(self, predicted: Predicted) -> None:
        """Add a region: its counts, its sampled pixels, and its picture if needed."""
        labels = predicted.truth.labels.ravel()
        labelled = np.flatnonzero(labels != IGNORE)
        start, stop = np.searchsorted(
            self.sample, (self.pixels, self.pixels + len(labelled))
        )
        sampled = labelled[self.sample[start:stop] - self.pixels]
        self.pixels += len(labelled)
        logits = predicted.logits.reshape(len(self.classes), -1)
        self.logits.append(logits[:, sampled].T)
        self.labels.append(labels[sampled])
        self._add_blocks(predicted)
        number, score = len(self.per_region), predicted.confusion.mean_iou_in_truth
        self.per_region.append((predicted.truth.region.name, predicted.confusion))
        example: Example | None = None
        for kind, rank in (("best", -score), ("worst", score)):
            examples = self.ranked[kind]
            if len(examples) < CASES or rank < examples[-1][0]:
                example = example or predicted.example()
                insort(examples, (rank, number, example), key=lambda entry: entry[:2])
                del examples[CASES:]

    def _add_blocks(self, predicted: Predicted) -> None:
        """Add the planes of a region to the counts in blocks."""
        truth = predicted.truth
        image = truth.region.pair.image
        key = (id(image), truth.region.index.get("T", 0))
        size = image.pixel_size
        step = size.get("Z", 1.0) / size["X"]
        shape = truth.labels.shape[-2:]
        indices = predicted.indices.reshape(-1, *shape)
        logits = predicted.logits.reshape(len(self.classes), -1, *shape)
        for number, (z, labels) in enumerate(truth.planes()):
            name = truth.region.name
            if len(indices) > 1:
                name = f"{name} Z={z}"
            self.blocks.add(
                labels,
                indices[number],
                logits[:, number],
                name=name,
                image=key,
                position=z * step,
            )

    def fit(self) -> Fit:
        """Fit the temperature to the sampled pixels."""
        return calibrate(
            np.concatenate(self.logits),
            np.concatenate(self.labels),
            self.sample >= self.first_check,
        )

    def cases(self) -> dict[str, Example]:
        """Return the best and the worst regions by mean IoU.

        The keys are names of pictures. No region is both.
        """
        count = len(self.per_region)
        counts = {
            "best": max(1, min(CASES, count // 2)),
            "worst": min(CASES, count // 2),
        }
        files_by_name: dict[str, Example] = {}
        for kind, most in counts.items():
            files_by_name |= name_files(
                (example for _, _, example in self.ranked[kind][:most]), f"{kind}_"
            )
        return files_by_name


def _write(out: Path, tally: Tally, facts: Mapping[str, Any]) -> None:
    cases = tally.cases()
    pictures = [
        {
            "file": f"{name}.png",
            "name": example.name,
            "mean_iou": none_if_nan(example.confusion.mean_iou_in_truth),
            "pixel_accuracy": none_if_nan(example.confusion.pixel_accuracy),
            "panels": panel_boxes(example),
        }
        for name, example in cases.items()
    ]
    total = sum(
        (confusion for _, confusion in tally.per_region), ConfusionMatrix(tally.classes)
    )
    facts = {**facts, "parts": len(tally.per_region), "pictures": pictures}
    write_report(total, tally.per_region, out, examples=cases, facts=facts)


def _is_measured(out: Path, model: Model, fingerprint: str) -> bool:
    """Return True if `out` has the result of this model on this data."""
    scores = EvaluationFolder(out).scores()
    if model.residuals is None:  # a model of an earlier version
        return False
    return (scores.get("model"), scores.get("data")) == (model.digest, fingerprint)


def _region_index(truth: Truth) -> dict[str, Any]:
    """Return the position of a region (plane, volume or block) as plain data."""
    region = truth.region
    index = {
        axis: position if isinstance(position, int) else (position.start, position.stop)
        for axis, position in region.index.items()
    }
    return index | {
        axis: (bounds.start, bounds.stop)
        for axis, bounds in zip(region.axes, region.box, strict=True)
    }


def _middle(counts: Sequence[int]) -> int:
    """Return the number of the first pixel of the second half of regions.

    Neighbouring regions stay together: they look alike. One region is cut in two.
    """
    total = sum(counts)
    if len(counts) < 2:
        return total // 2
    ends = np.cumsum(counts)[:-1]
    return int(ends[np.abs(ends - total / 2).argmin()])


def _describe_fit(fit: Fit) -> str:
    if fit.note:
        return fit.note
    text = (
        f"confidence is off by {100 * fit.before.ece:.1f} % on average (expected"
        f" calibration error), and by {100 * fit.after.ece:.1f} % with the temperature"
        f" {fit.temperature:.2f}, which is now stored in the model"
    )
    if fit.independent:
        return (
            f"{text}; fitted on one half of the validation data, measured on the other"
        )
    return f"{text}; {NOT_INDEPENDENT}"
