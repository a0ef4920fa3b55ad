"""Losses and scores of a training for its curves, without Qt."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from napari_strata.core.classes import default_colors
from napari_strata.core.events import BatchEnd, EpochEnd, TrainingStarted
from napari_strata.core.text import format_duration

MAX_POINTS = 1024
"""Largest number of batches; above it, every second one is dropped."""
SMOOTHING_EPOCHS = 0.15
"""Number of epochs over which the loss of the batches is smoothed."""


class History:
    """Epochs and batches of a training, from its events.

    `names` and `colors` have one entry for each class; `batches` are points (epochs
    done, smoothed training loss).
    """

    def __init__(self) -> None:
        self.names: tuple[str, ...] = ()
        self.colors: tuple[str, ...] = ()
        self.started: TrainingStarted | None = None
        self.batches: list[tuple[float, float]] = []
        self._ends: dict[int, EpochEnd] = {}
        self._smoothed: float | None = None
        self._last_x = 0.0
        self._count, self._stride = 0, 1

    def start(self, event: TrainingStarted, colors: Sequence[str]) -> None:
        """Begin or resume a training; epochs before its first epoch are kept."""
        self.started = event
        done = event.first_epoch - 1
        self._ends = {epoch: end for epoch, end in self._ends.items() if epoch <= done}
        batches = [point for point in self.batches if point[0] <= done]
        if len(batches) < len(self.batches):
            self.batches, self._smoothed, self._last_x = batches, None, 0.0
        self._set_classes(event.class_names, colors)

    def add_batch(self, event: BatchEnd) -> None:
        """Add the loss of a step."""
        if not math.isfinite(event.loss):
            return
        x = event.epoch - 1 + event.batch / max(event.batches, 1)
        # Smoothed over epochs, not over calls, so that missing batches have no
        # influence.
        weight = (
            1.0
            if self._smoothed is None
            else 1 - math.exp(-max(x - self._last_x, 0.0) / SMOOTHING_EPOCHS)
        )
        before = event.loss if self._smoothed is None else self._smoothed
        self._smoothed, self._last_x = before + weight * (event.loss - before), x
        if self._count % self._stride == 0:
            self.batches.append((x, self._smoothed))
        self._count += 1
        if len(self.batches) > MAX_POINTS:
            self.batches = self.batches[::2]
            self._stride *= 2

    def add_epoch(self, event: EpochEnd) -> None:
        """Add an epoch, or replace the one with the same number."""
        self._ends[event.epoch] = event
        if len(self.names) != len(event.class_iou):
            self._set_classes(
                tuple(f"class {i + 1}" for i in range(len(event.class_iou))),
                self.colors,
            )

    @property
    def epochs(self) -> list[EpochEnd]:
        """Epochs in their order."""
        return [self._ends[epoch] for epoch in sorted(self._ends)]

    @property
    def best(self) -> EpochEnd | None:
        """Epoch of the best model: the last one marked as best."""
        return next((end for end in reversed(self.epochs) if end.best_iou), None)

    @property
    def newest(self) -> EpochEnd | None:
        """Last epoch."""
        return self._ends[max(self._ends)] if self._ends else None

    @property
    def planned(self) -> int:
        """Planned number of epochs; at least 1."""
        newest = self.newest
        return max(
            self.started.epochs if self.started else 1,
            newest.epochs if newest else 1,
            *self._ends,
            1,
        )

    def nearest(self, x: float) -> EpochEnd | None:
        """Return the epoch nearest to a position on the axis."""
        return (
            self._ends[min(self._ends, key=lambda epoch: abs(epoch - x))]
            if self._ends
            else None
        )

    def iou(self) -> np.ndarray[Any, Any]:
        """Return the IoU, float (classes, epochs), NaN where it is unknown."""
        table = np.full((len(self.names), len(self._ends)), math.nan)
        for column, end in enumerate(self.epochs):
            iou = end.reported_class_iou
            table[: len(iou), column] = iou[: len(table)]
        return table

    @property
    def validates_strokes(self) -> bool:
        """True if strokes are held out, whose IoU would mislead."""
        return self.newest is not None and self.newest.stroke_pixels > 0

    def overall(self, end: EpochEnd | None) -> float:
        """Return the mean IoU, or the share of held-out stroke pixels; or NaN."""
        if end is None:
            return math.nan
        return end.pixel_accuracy if end.stroke_pixels else end.comparable_iou

    def describe(self, end: EpochEnd) -> str:
        """Describe the scores of an epoch in lines of text."""
        lines = [
            f"Epoch {end.epoch} of {self.planned}"
            + (", the best so far" if end == self.best else ""),
            (
                f"Loss: training {format_loss(end.train_loss)}, validation"
                f" {format_loss(end.validation_loss)}"
            ),
        ]
        if end.agreement:
            lines.append(f"The model {end.agreement}")
        else:
            score = end.score or "mean IoU -"
            lines.append(
                f"{score[0].upper()}{score[1:]}, pixel accuracy"
                f" {format_score(end.pixel_accuracy, 3)}"
            )
            if end.pixels:
                lines.append(f"on {end.pixels:,} validation pixels")
            lines += [
                f"    {name} {format_score(iou, 3)}"
                for name, iou in zip(self.names, end.class_iou, strict=False)
            ]
        weights = (
            "averaged weights" if end.weights == "averaged" else "weights as trained"
        )
        return "\n".join(
            [
                *lines,
                (
                    f"Learning rate {end.learning_rate:.2g}, "
                    f"{format_duration(end.seconds)}, {weights}"
                ),
            ]
        )

    def _set_classes(self, names: Sequence[str], colors: Sequence[str]) -> None:
        self.names = tuple(names)
        self.colors = (
            tuple(colors) if len(colors) >= len(names) else default_colors(len(names))
        )


def loss_range(values: Sequence[float], newest: Sequence[float]) -> tuple[float, float]:
    """Return a range from 0 or a lower loss to a value that few losses exceed.

    It always contains the newest values.
    """
    finite = np.asarray(values, float)
    finite = finite[np.isfinite(finite)]
    if not finite.size:
        return 0.0, 1.0
    last = [value for value in newest if math.isfinite(value)]
    high = max(float(np.percentile(finite, 97)), 0.0, *last)
    low = min(float(np.percentile(finite, 3)), 0.0, *last)
    return (low * 1.06, high * 1.06) if high > low else (0.0, 1.0)


def format_loss(value: float) -> str:
    """Format a loss with three significant digits."""
    return f"{value:.3g}" if math.isfinite(value) else "-"


def format_score(value: float, digits: int) -> str:
    """Format a score from 0 to 1."""
    return f"{value:.{digits}f}" if math.isfinite(value) else "-"
