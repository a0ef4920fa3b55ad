"""Averaged weights: an exponential moving average (EMA) of the network."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def build_average(network: nn.Module, decay: float) -> AveragedModel:
    """Build the average of a network's weights (Polyak and Juditsky 1992).

    The average starts as a copy of `network`. After t steps an update keeps
    ``min(decay, (1 + t) / (10 + t))`` of the average, so that the random initial
    weights lose their influence within a few steps. Normalisation statistics are
    averaged like weights; counters are copied.
    """
    averaged = _Average(network, decay)
    # With 0, AveragedModel would replace the start by the network after one step.
    averaged.n_averaged.fill_(1)
    return averaged.eval().requires_grad_(False)


class _Average(AveragedModel):
    """Average that lists the tensors of both networks once, not in every step."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        super().__init__(network, use_buffers=True)
        self._decay = decay
        self._floats: tuple[list[Tensor], list[Tensor]] = ([], [])
        self._counters: tuple[list[Tensor], list[Tensor]] = ([], [])
        for own, trained in zip(_tensors(self.module), _tensors(network), strict=True):
            pairs = self._floats if own.is_floating_point() else self._counters
            pairs[0].append(own)
            pairs[1].append(trained.detach())

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Update the average by the network that it was built for."""
        steps = int(self.n_averaged) - 1
        keep = min(self._decay, (1 + steps) / (10 + steps))
        torch._foreach_lerp_(*self._floats, 1 - keep)
        if self._counters[0]:
            torch._foreach_copy_(*self._counters)
        self.n_averaged += 1


def _tensors(network: nn.Module) -> Iterator[Tensor]:
    return chain(network.parameters(), network.buffers())


def average_state(averaged: AveragedModel) -> dict[str, Any]:
    """Return the state for a checkpoint: plain types and tensors only."""
    weights = averaged.module.state_dict()
    return {"updates": int(averaged.n_averaged) - 1, "weights": weights}


def load_average(averaged: AveragedModel, state: dict[str, Any]) -> None:
    """Restore the state that `average_state` returned."""
    averaged.n_averaged.fill_(int(state["updates"]) + 1)
    averaged.module.load_state_dict(state["weights"])
