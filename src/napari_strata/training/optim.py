"""The optimiser, and the schedule that moves its learning rate.

The schedules are closed formulas of the step number, so that a checkpoint holds a few numbers and a resumed run follows
the very same curve.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.nn import Parameter

from napari_strata.core.recipe import Plateau, Training

MOMENTA = (0.85, 0.95)
"""Momentum (Adam's first beta) at the top and at the ends of the one-cycle schedule; that of sgd is the recipe's."""

Phase = tuple[float, float]
"""Share of the recipe's learning rate, and momentum."""


def build_optimizer(
    training: Training, parameters: Iterable[Parameter], device: torch.device | str
) -> torch.optim.Optimizer:
    """Adam, AdamW or SGD over all `parameters`, with weight decay on all; a fused kernel where the device has one."""
    fused = torch.device(device).type in ("cpu", "cuda")
    rate, decay = training.learning_rate, training.weight_decay
    if training.optimizer == "sgd":
        return torch.optim.SGD(
            parameters,
            lr=rate,
            weight_decay=decay,
            momentum=training.momentum,
            fused=fused,
        )
    kind = torch.optim.AdamW if training.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, lr=rate, weight_decay=decay, fused=fused)


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load a checkpoint's state, which may have been written on a device with other kernels."""
    groups = [
        group | {"fused": optimizer.defaults["fused"]}
        for group in state["param_groups"]
    ]
    optimizer.load_state_dict(state | {"param_groups": groups})


class Schedule:
    """Moves the learning rate of an optimiser: call `step_batch` after each step, `step_epoch` after each validation.

    `restart` begins the curve again over another number of epochs, which is what extending a finished run does: the
    end of a one-cycle or cosine curve is too slow to learn anything new at (warm restarts: Loshchilov and Hutter 2017,
    https://arxiv.org/abs/1608.03983).
    """

    def __init__(
        self, training: Training, optimizer: torch.optim.Optimizer, steps_per_epoch: int
    ) -> None:
        self.optimizer = optimizer
        self.steps_per_epoch = steps_per_epoch
        self.peak = training.learning_rate
        self.curve = _CURVES.get(training.schedule)
        self.plateau = (
            _PlateauState(training.plateau) if training.schedule == "plateau" else None
        )
        self.restart(training.epochs)

    def restart(self, epochs: int) -> None:
        """Begin the curve again, over `epochs` epochs; constant and plateau simply go on."""
        self.epochs, self.step = epochs, 0
        self._apply()

    def stretch(self, epochs: int) -> None:
        """Make the curve longer by `epochs` epochs (shorter by negative ones), from where it stands."""
        self.epochs = max(self.epochs + epochs, 1)
        self._apply()

    def step_batch(self) -> None:
        """To be called after each step of the optimiser."""
        self.step += 1
        self._apply()

    def step_epoch(self, validation_loss: float) -> None:
        """To be called after each epoch; NaN counts as no improvement."""
        if self.plateau is not None and self.plateau.observe(validation_loss):
            self._apply()

    @property
    def learning_rate(self) -> float:
        """The rate that the next step takes."""
        return float(self.optimizer.param_groups[0]["lr"])

    def state_dict(self) -> dict[str, Any]:
        """Plain types only, counted in whole epochs: the steps of an epoch change when images are added."""
        plateau = self.plateau.state_dict() if self.plateau is not None else {}
        return {
            "epochs": self.epochs,
            "done": self.step // self.steps_per_epoch,
            "plateau": plateau,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave at the end of an epoch."""
        self.epochs, self.step = (
            int(state["epochs"]),
            int(state["done"]) * self.steps_per_epoch,
        )
        if self.plateau is not None:
            self.plateau.load_state_dict(state["plateau"])
        self._apply()

    def _apply(self) -> None:
        if self.plateau is not None:
            _set(self.optimizer, self.peak * self.plateau.share(self.peak))
        elif self.curve is not None:
            total = self.epochs * self.steps_per_epoch
            share, momentum = self.curve(min(self.step, total - 1), total)
            _set(self.optimizer, self.peak * share, momentum)


def build_schedule(
    training: Training, optimizer: torch.optim.Optimizer, steps_per_epoch: int
) -> Schedule:
    """The schedule a recipe asks for, set to its first learning rate."""
    return Schedule(training, optimizer, steps_per_epoch)


def cosine(step: int, total: int) -> Phase:
    """Half a cosine from 1 down to (nearly) 0 over `total` steps."""
    return (1 + math.cos(math.pi * step / total)) / 2, math.nan


def one_cycle(
    step: int,
    total: int,
    *,
    rise: float = 0.3,
    start: float = 1 / 25,
    end: float = 1e-4,
) -> Phase:
    """Up from `start` over the first `rise` of the steps, then down to ``start * end``; momentum the other way round.

    Smith and Topin 2018, https://arxiv.org/abs/1708.07120, with the constants of torch's OneCycleLR.
    """
    top, last = rise * total - 1, total - 1
    low, high = MOMENTA
    if step <= top:
        return _blend(start, 1.0, step / top), _blend(high, low, step / top)
    along = (step - top) / (last - top) if last > top else 1.0
    return _blend(1.0, start * end, along), _blend(low, high, along)


_CURVES: dict[str, Callable[[int, int], Phase]] = {
    "cosine": cosine,
    "one_cycle": one_cycle,
}


class _PlateauState:
    """How often the rate was lowered, and for how many epochs the loss has not improved by a ten-thousandth."""

    def __init__(self, section: Plateau) -> None:
        self.section = section
        self.best, self.waited, self.cuts = math.inf, 0, 0

    def observe(self, loss: float) -> bool:
        if loss < self.best * (1 - 1e-4):
            self.best, self.waited = loss, 0
            return False
        self.waited += 1
        if self.waited <= self.section.patience:
            return False
        self.waited = 0
        self.cuts += 1
        return True

    def share(self, peak: float) -> float:
        floor = min(self.section.min_rate / peak, 1.0)
        return max(self.section.factor**self.cuts, floor)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "waited": self.waited, "cuts": self.cuts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.waited, self.cuts = (
            float(state["best"]),
            int(state["waited"]),
            int(state["cuts"]),
        )


def _blend(start: float, end: float, along: float) -> float:
    """From `start` to `end` by half a cosine."""
    return end + (start - end) * (1 + math.cos(math.pi * along)) / 2


def _set(
    optimizer: torch.optim.Optimizer, rate: float, momentum: float = math.nan
) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
        if "betas" in group and not math.isnan(momentum):
            group["betas"] = (momentum, group["betas"][1])
