"""Measurement of the best model at the end of a training, and its calibration.

The model is scored once more on the validation images, and a temperature is fitted to
its logits.

What is found goes into ``validation/`` of the run, in the form of every evaluation, and
the calibration into the model. Nothing here is random but which pixels are looked at,
and that depends on the recipe's seed alone.
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
from napari_strata.evaluation.calibration import Fit, calibrate, sample_evenly
from napari_strata.evaluation.pictures import Example, panel_boxes
from napari_strata.evaluation.report import name_files, write_report
from napari_strata.models.model import Calibration, Model
from napari_strata.models.predictor import Predictor
from napari_strata.models.tiled import TiledPredictor
from napari_strata.training.validation import Predicted, Truth, iter_predicted

Array = np.ndarray[Any, Any]


PIXELS, VALUES = 200_000, 4_000_000
"""Labelled pixels that the temperature is fitted on at most, and logits of theirs."""

CASES = 3
"""Best parts of which there is a picture, and worst ones."""


def measure(
    folder: RunFolder,
    truths: Sequence[Truth],
    *,
    fingerprint: str,
    build: Callable[[Model], Predictor],
) -> Generator[Event, None, None]:
    """Measure the model of a run whose epochs are over, unless that has been done
    on the same data.

    Parameters
    ----------
    fingerprint
        digest of the training data; see `plan.data_fingerprint`.
    build
        gives the predictor of a model on the device of the training.

    Yields a `Message`, a `RegionEnd` a part, and what was found as a `Message`. Stopped
    before its end it has changed nothing. Temperature divides logits and so changes no
    label. Without validation parts there is nothing to do.

    Raises
    ------
    RunError
        when the disk is full.
    """
    model = Model.load(folder.model_path)
    out = folder.validation.path
    if not truths or _is_measured(out, model, fingerprint):
        return
    noun = ("plane" if model.spec.depth is None else "block") + (
        "" if len(truths) == 1 else "s"
    )
    yield Message(f"measuring the best model on {len(truths)} validation {noun}")
    predictor = TiledPredictor(build(model))
    tally = Tally.of(truths, model.spec.classes, seed=model.recipe.training.seed)
    start = time.perf_counter()
    for number, predicted in enumerate(iter_predicted(predictor, truths), 1):
        tally.add(predicted)
        yield RegionEnd(
            _place(predicted.truth), number, len(truths), time.perf_counter() - start
        )
        start = time.perf_counter()
    fit = tally.fit()
    before, after = fit.before.ece, fit.after.ece
    model = replace(
        model,
        calibration=Calibration(fit.temperature, before, after, fit.before.pixels),
    )
    model.save(folder.model_path)
    # The report after the model: what says that both are there is the digest in its
    # metrics.json.
    best = model.best
    facts = {
        "epoch": best.epoch if best else None,
        "calibration": fit.as_dict(),
        "device": str(predictor.device),
    }
    keys = {"model": model.digest, "data": fingerprint}
    _write(out, tally, keys | facts)
    yield Message(_in_words(fit))


@dataclass
class Tally:
    """Sums over regions that are predicted one by one.

    Parameters
    ----------
    picks
        which of all labelled pixels, counted through the parts, the calibration looks
        at.
    """

    classes: ClassMap
    picks: Array
    seen: int = 0
    logits: list[Array] = field(default_factory=list)
    labels: list[Array] = field(default_factory=list)
    per_part: list[tuple[str, ConfusionMatrix]] = field(default_factory=list)
    ranked: dict[str, list[tuple[float, int, Example]]] = field(
        default_factory=lambda: {"best": [], "worst": []}
    )

    @classmethod
    def of(cls, truths: Sequence[Truth], classes: ClassMap, *, seed: int) -> Tally:
        """An empty one for these parts."""
        total = sum(int((truth.labels != IGNORE).sum()) for truth in truths)
        return cls(
            classes,
            sample_evenly(total, min(PIXELS, VALUES // len(classes)), seed=seed),
        )

    def add(self, found: Predicted) -> None:
        """Count a part, keep some of its pixels, and its picture if it is among the
        best or the worst so far.
        """
        labels = found.truth.labels.ravel()
        labelled = np.flatnonzero(labels != IGNORE)
        start, stop = np.searchsorted(
            self.picks, (self.seen, self.seen + len(labelled))
        )
        taken = labelled[self.picks[start:stop] - self.seen]
        self.seen += len(labelled)
        self.logits.append(found.logits.reshape(len(self.classes), -1)[:, taken].T)
        self.labels.append(labels[taken])
        number, score = len(self.per_part), found.confusion.mean_iou
        self.per_part.append((found.truth.part.name, found.confusion))
        example: Example | None = None
        for kind, rank in (("best", -score), ("worst", score)):
            examples = self.ranked[kind]
            if len(examples) < CASES or rank < examples[-1][0]:
                example = example or found.example()
                insort(examples, (rank, number, example), key=lambda entry: entry[:2])
                del examples[CASES:]

    def fit(self) -> Fit:
        """The temperature for the pixels kept."""
        return calibrate(np.concatenate(self.logits), np.concatenate(self.labels))

    def cases(self) -> dict[str, Example]:
        """The best and the worst parts by mean IoU, by the names of their pictures.

        None is both.
        """
        count = len(self.per_part)
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
            "mean_iou": none_if_nan(example.confusion.mean_iou),
            "pixel_accuracy": none_if_nan(example.confusion.pixel_accuracy),
            "panels": panel_boxes(example),
        }
        for name, example in cases.items()
    ]
    total = sum(
        (confusion for _, confusion in tally.per_part), ConfusionMatrix(tally.classes)
    )
    facts = {**facts, "parts": len(tally.per_part), "pictures": pictures}
    write_report(total, tally.per_part, out, examples=cases, facts=facts)


def _is_measured(out: Path, model: Model, fingerprint: str) -> bool:
    """Return True if `out` holds the result of this model on this data."""
    scores = EvaluationFolder(out).scores()
    return (scores.get("model"), scores.get("data")) == (model.digest, fingerprint)


def _place(truth: Truth) -> dict[str, Any]:
    """Position of a plane, a volume or a block of it, as plain data."""
    part = truth.part
    index = {
        axis: at if isinstance(at, int) else (at.start, at.stop)
        for axis, at in part.index.items()
    }
    return index | {
        axis: (along.start, along.stop)
        for axis, along in zip(part.axes, part.box, strict=True)
    }


def _in_words(fit: Fit) -> str:
    if fit.note:
        return fit.note
    return (
        f"confidence is off by {100 * fit.before.ece:.1f} % on average (expected"
        f" calibration error), and by {100 * fit.after.ece:.1f} % with the temperature"
        f" {fit.temperature:.2f}, which the model now holds"
    )
