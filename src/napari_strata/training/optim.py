"""Optimisers, and schedules of the learning rate.

The schedules are closed formulas of the step number. Therefore a checkpoint stores only
a few numbers, and a resumed run follows the same curve.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.nn import Parameter

from napari_strata.core.recipe import Plateau, Training

MOMENTA = (0.85, 0.95)
"""Momentum (Adam's first beta) at the maximum and the ends of the one-cycle schedule.

SGD has the momentum of the recipe.
"""

Phase = tuple[float, float]
"""Factor of the recipe's learning rate, and momentum (NaN if unchanged)."""


def build_optimizer(
    training: Training, parameters: Iterable[Parameter], device: torch.device | str
) -> torch.optim.Optimizer:
    """Build Adam, AdamW or SGD with weight decay over all `parameters`.

    A fused kernel is used if the device has one.
    """
    fused = torch.device(device).type in ("cpu", "cuda")
    rate = training.learning_rate
    decay = training.weight_decay
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
    """Load the state of a checkpoint, possibly from a device with other kernels."""
    fused = optimizer.defaults["fused"]
    groups = [group | {"fused": fused} for group in state["param_groups"]]
    optimizer.load_state_dict(state | {"param_groups": groups})


class Schedule:
    """Learning rate of an optimiser over the steps of a training.

    Call `step_batch` after each step and `step_epoch` after each validation. `restart`
    starts the curve again over another number of epochs, to extend a finished run: at
    the end of a one-cycle or cosine curve the rate is too low to learn (warm restarts:
    Loshchilov and Hutter 2017, https://arxiv.org/abs/1608.03983).
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
        """Start the curve again over `epochs`; constant and plateau are unchanged."""
        self.epochs = epochs
        self.step = 0
        self._apply()

    def stretch(self, epochs: int) -> None:
        """Extend the curve by `epochs`, or shorten it if they are negative."""
        self.epochs = max(self.epochs + epochs, 1)
        self._apply()

    def step_batch(self) -> None:
        """Set the rate of the next step."""
        self.step += 1
        self._apply()

    def step_epoch(self, validation_loss: float) -> None:
        """Lower the rate on a plateau of the loss; NaN counts as no improvement."""
        if self.plateau is not None and self.plateau.observe(validation_loss):
            self._apply()

    @property
    def learning_rate(self) -> float:
        """Rate of the next step."""
        return float(self.optimizer.param_groups[0]["lr"])

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain types.

        It counts whole epochs, because images that are added change the number of steps
        per epoch.
        """
        plateau = self.plateau.state_dict() if self.plateau is not None else {}
        return {
            "epochs": self.epochs,
            "done": self.step // self.steps_per_epoch,
            "plateau": plateau,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned at the end of an epoch."""
        self.epochs = int(state["epochs"])
        self.step = int(state["done"]) * self.steps_per_epoch
        if self.plateau is not None:
            self.plateau.load_state_dict(state["plateau"])
        self._apply()

    def _apply(self) -> None:
        if self.plateau is not None:
            _set(self.optimizer, self.peak * self.plateau.factor(self.peak))
        elif self.curve is not None:
            total = self.epochs * self.steps_per_epoch
            factor, momentum = self.curve(min(self.step, total - 1), total)
            _set(self.optimizer, self.peak * factor, momentum)


def cosine(step: int, total: int) -> Phase:
    """Return half a cosine from 1 to nearly 0 over `total` steps."""
    return (1 + math.cos(math.pi * step / total)) / 2, math.nan


def one_cycle(
    step: int,
    total: int,
    *,
    rise: float = 0.3,
    start: float = 1 / 25,
    end: float = 1e-4,
) -> Phase:
    """Return the phase of the one-cycle schedule.

    The rate increases from `start` to 1 over the fraction `rise` of the steps, and then
    decreases to ``start * end``. Momentum changes in the opposite direction. Smith and
    Topin 2018, https://arxiv.org/abs/1708.07120, with the constants of torch's
    OneCycleLR.
    """
    peak_step = rise * total - 1
    last = total - 1
    low, high = MOMENTA
    if step <= peak_step:
        fraction = step / peak_step
        return _blend(start, 1.0, fraction), _blend(high, low, fraction)
    fraction = (step - peak_step) / (last - peak_step) if last > peak_step else 1.0
    return _blend(1.0, start * end, fraction), _blend(low, high, fraction)


_CURVES: dict[str, Callable[[int, int], Phase]] = {
    "cosine": cosine,
    "one_cycle": one_cycle,
}


class _PlateauState:
    """Number of reductions of the rate, and of epochs without improvement.

    A loss that is lower by at least a ten-thousandth is an improvement.
    """

    def __init__(self, section: Plateau) -> None:
        self.section = section
        self.best = math.inf
        self.waited = 0
        self.cuts = 0

    def observe(self, loss: float) -> bool:
        if loss < self.best * (1 - 1e-4):
            self.best = loss
            self.waited = 0
            return False
        self.waited += 1
        if self.waited <= self.section.patience:
            return False
        self.waited = 0
        self.cuts += 1
        return True

    def factor(self, peak: float) -> float:
        floor = min(self.section.min_rate / peak, 1.0)
        return max(self.section.factor**self.cuts, floor)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "waited": self.waited, "cuts": self.cuts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best = float(state["best"])
        self.waited = int(state["waited"])
        self.cuts = int(state["cuts"])


def _blend(start: float, end: float, fraction: float) -> float:
    """Interpolate from `start` to `end` by half a cosine."""
    return end + (start - end) * (1 + math.cos(math.pi * fraction)) / 2


def _set(
    optimizer: torch.optim.Optimizer, rate: float, momentum: float = math.nan
) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
        if "betas" in group and not math.isnan(momentum):
            group["betas"] = (momentum, group["betas"][1])
