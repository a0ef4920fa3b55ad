"""Averaged weights: an exponential moving average (EMA) of the network."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

Tensors: TypeAlias = tuple[Tensor, ...] | list[Tensor]


def build_average(network: nn.Module, decay: float) -> AveragedModel:
    """Build the average of a network's weights (Polyak and Juditsky 1992).

    The average starts as a copy of `network`. After t steps an update keeps
    ``min(decay, (1 + t) / (10 + t))`` of the average, so that the random initial
    weights lose their influence within a few steps. Normalisation statistics are
    averaged like weights; counters are copied.
    """

    @torch.no_grad()
    def update(average: Tensors, network: Tensors, number: Tensor | int) -> None:
        if not average[0].is_floating_point():
            torch._foreach_copy_(average, network)
            return
        steps = int(number) - 1
        keep = min(decay, (1 + steps) / (10 + steps))
        torch._foreach_lerp_(average, network, 1 - keep)

    averaged = AveragedModel(network, multi_avg_fn=update, use_buffers=True)
    # With 0, AveragedModel would replace the start by the network after one step.
    averaged.n_averaged.fill_(1)
    return averaged.eval().requires_grad_(False)


def average_state(averaged: AveragedModel) -> dict[str, Any]:
    """Return the state for a checkpoint: plain types and tensors only."""
    weights = averaged.module.state_dict()
    return {"updates": int(averaged.n_averaged) - 1, "weights": weights}


def load_average(averaged: AveragedModel, state: dict[str, Any]) -> None:
    """Restore the state that `average_state` returned."""
    averaged.n_averaged.fill_(int(state["updates"]) + 1)
    averaged.module.load_state_dict(state["weights"])
