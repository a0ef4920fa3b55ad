"""Averaged weights: an exponential moving average (EMA) of the network, kept beside the raw one."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import nn


class AveragedWeights:
    """A copy of `network` whose weights follow the raw ones slowly (Polyak and Juditsky 1992).

    After t steps an update keeps ``min(decay, (1 + t) / (10 + t))`` of the average, so that the random start is
    forgotten within a few steps. Normalisation statistics are averaged like weights; counters are copied.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.network = deepcopy(network).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Move the average towards `network`, by one step."""
        keep = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        ours, theirs = self.network.state_dict(), network.state_dict()
        moving = [name for name, value in ours.items() if value.is_floating_point()]
        torch._foreach_lerp_(
            [ours[name] for name in moving], [theirs[name] for name in moving], 1 - keep
        )
        for name in ours.keys() - set(moving):
            ours[name].copy_(theirs[name])

    def state_dict(self) -> dict[str, Any]:
        """Plain types and tensors only."""
        return {"updates": self.updates, "weights": self.network.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.updates = int(state["updates"])
        self.network.load_state_dict(state["weights"])
