"""Loss and scores of a training so far, as its curves need them. No Qt."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from napari_strata.core.classes import default_colors
from napari_strata.core.events import BatchEnd, EpochEnd, TrainingStarted
from napari_strata.core.text import format_duration

POINTS = 1024
"""Batches kept at most; above it every second one is forgotten."""
MEMORY = 0.15
"""Epochs over which the loss of the batches is smoothed."""


class History:
    """The epochs and batches of one training, as its events tell them.

    `names` and `colors` have one of each class; `batches` are points (epochs done,
    smoothed training loss).
    """

    def __init__(self) -> None:
        self.names: tuple[str, ...] = ()
        self.colors: tuple[str, ...] = ()
        self.started: TrainingStarted | None = None
        self.batches: list[tuple[float, float]] = []
        self._ends: dict[int, EpochEnd] = {}
        self._smooth: float | None = None
        self._last_x = 0.0
        self._seen, self._stride = 0, 1

    def start(self, event: TrainingStarted, colors: Sequence[str]) -> None:
        """A training begins, or goes on: epochs before its first one stay."""
        self.started = event
        done = event.first_epoch - 1
        self._ends = {epoch: end for epoch, end in self._ends.items() if epoch <= done}
        batches = [point for point in self.batches if point[0] <= done]
        if len(batches) < len(self.batches):
            self.batches, self._smooth, self._last_x = batches, None, 0.0
        self._name(event.class_names, colors)

    def add_batch(self, event: BatchEnd) -> None:
        """One more step of the training loss."""
        if not math.isfinite(event.loss):
            return
        x = event.epoch - 1 + event.batch / max(event.batches, 1)
        # Smoothed over epochs, not over calls: batches that were left out change
        # nothing.
        share = (
            1.0
            if self._smooth is None
            else 1 - math.exp(-max(x - self._last_x, 0.0) / MEMORY)
        )
        before = event.loss if self._smooth is None else self._smooth
        self._smooth, self._last_x = before + share * (event.loss - before), x
        if self._seen % self._stride == 0:
            self.batches.append((x, self._smooth))
        self._seen += 1
        if len(self.batches) > POINTS:
            self.batches = self.batches[::2]
            self._stride *= 2

    def add_epoch(self, event: EpochEnd) -> None:
        """An epoch and its scores; one of the same number is replaced."""
        self._ends[event.epoch] = event
        if len(self.names) != len(event.class_iou):
            self._name(
                tuple(f"class {i + 1}" for i in range(len(event.class_iou))),
                self.colors,
            )

    @property
    def epochs(self) -> list[EpochEnd]:
        """The epochs, in order."""
        return [self._ends[epoch] for epoch in sorted(self._ends)]

    @property
    def best(self) -> EpochEnd | None:
        """The epoch whose model is kept: the last one marked best."""
        return next((end for end in reversed(self.epochs) if end.best_iou), None)

    @property
    def newest(self) -> EpochEnd | None:
        """The last epoch."""
        return self._ends[max(self._ends)] if self._ends else None

    @property
    def planned(self) -> int:
        """Number of epochs, as far as it is known; at least 1."""
        newest = self.newest
        return max(
            self.started.epochs if self.started else 1,
            newest.epochs if newest else 1,
            *self._ends,
            1,
        )

    def nearest(self, x: float) -> EpochEnd | None:
        """The epoch nearest to a place on the axis."""
        return (
            self._ends[min(self._ends, key=lambda epoch: abs(epoch - x))]
            if self._ends
            else None
        )

    def iou(self) -> np.ndarray[Any, Any]:
        """IoU as float (classes, epochs); NaN where there is none."""
        table = np.full((len(self.names), len(self._ends)), math.nan)
        for column, end in enumerate(self.epochs):
            table[: len(end.class_iou), column] = end.class_iou[: len(table)]
        return table

    def describe(self, end: EpochEnd) -> str:
        """The figures of an epoch, in words, a line each."""
        lines = [
            f"Epoch {end.epoch} of {self.planned}"
            + (", the best so far" if end == self.best else ""),
            (
                f"Loss: training {figure(end.train_loss)}, validation"
                f" {figure(end.validation_loss)}"
            ),
            (
                f"Mean IoU {score(end.mean_iou, 3)}, pixel accuracy"
                f" {score(end.pixel_accuracy, 3)}"
            ),
        ]
        lines += [
            f"    {name} {score(iou, 3)}"
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

    def _name(self, names: Sequence[str], colors: Sequence[str]) -> None:
        self.names = tuple(names)
        self.colors = (
            tuple(colors) if len(colors) >= len(names) else default_colors(len(names))
        )


def loss_range(values: Sequence[float], newest: Sequence[float]) -> tuple[float, float]:
    """From 0 (or lower, where a loss is) to a value that few exceed.

    The newest ones are always in sight.
    """
    finite = np.asarray(values, float)
    finite = finite[np.isfinite(finite)]
    if not finite.size:
        return 0.0, 1.0
    last = [value for value in newest if math.isfinite(value)]
    high = max(float(np.percentile(finite, 97)), 0.0, *last)
    low = min(float(np.percentile(finite, 3)), 0.0, *last)
    return (low * 1.06, high * 1.06) if high > low else (0.0, 1.0)


def figure(value: float) -> str:
    """A loss, with three digits that count."""
    return f"{value:.3g}" if math.isfinite(value) else "-"


def score(value: float, digits: int) -> str:
    """A score from 0 to 1."""
    return f"{value:.{digits}f}" if math.isfinite(value) else "-"
