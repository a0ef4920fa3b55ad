"""Measuring batch normalisation's statistics anew before a network is validated and kept.

The running averages of training follow single batches, drawn to balance the classes. Tried on the sandstone after 600
steps: the same weights give a mean IoU of .908 with them and .936 with statistics measured on 384 plain patches.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from napari_strata.models.device import Precision, channels_last


@torch.no_grad()
def recalibrate(
    network: nn.Module,
    batches: Iterable[Tensor],
    *,
    device: torch.device,
    precision: Precision,
) -> None:
    """Replace the running statistics of each batch normalisation by their means over `batches`.

    "Precise batch normalisation" (Wu and Johnson 2021, https://arxiv.org/abs/2105.07576). Leaves the network in
    evaluation mode. Statistics that no batch could give (one value a channel) stay as they were.
    """
    network.eval()
    norms = [
        m
        for m in network.modules()
        if isinstance(m, _BatchNorm) and m.track_running_stats
    ]
    if not norms:
        return
    before = [(n.momentum, _statistics(n)) for n in norms]
    for n in norms:
        n.reset_running_stats()
        n.momentum = None  # the plain mean of all batches
        n.train()
    for batch in batches:
        images = batch.to(device, memory_format=channels_last(batch.ndim))
        with precision.autocast(device):
            network(images)
    for n, (momentum, statistics) in zip(norms, before, strict=True):
        if not int(n.num_batches_tracked):  # type: ignore[arg-type]
            for target, value in zip(
                (n.running_mean, n.running_var), statistics, strict=True
            ):
                target.copy_(value)  # type: ignore[union-attr]
        n.momentum = momentum
        n.eval()


def _statistics(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None
    assert variance is not None
    return mean.clone(), variance.clone()
