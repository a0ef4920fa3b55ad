"""Measure batch normalisation's statistics again before a network is validated.

The running averages of training follow single batches, drawn to balance the classes. On
the sandstone after 600 steps, the same weights gave a mean IoU of .908 with them and
.936 with statistics measured on 384 plain patches.

torch's `update_bn` is not used: it leaves dropout at work, which changes the
statistics, measures a frozen encoder too, and knows no autocast.
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
    frozen: nn.Module | None = None,
) -> None:
    """Replace the running statistics of batch normalisation by their means.

    "Precise batch normalisation" (Wu and Johnson 2021,
    https://arxiv.org/abs/2105.07576). Leaves the network in evaluation mode. Statistics
    that no batch could give (one value a channel) stay as they were.

    Parameters
    ----------
    batches
        Images (N, C, ...) to measure on.
    frozen
        Part of the network whose statistics stay, such as a frozen encoder.
    """
    network.eval()
    skipped = set(frozen.modules()) if frozen is not None else set()
    norms = []
    before = []
    for layer in network.modules():
        if not isinstance(layer, _BatchNorm) or layer in skipped:
            continue
        mean, variance = layer.running_mean, layer.running_var
        if mean is not None and variance is not None:
            norms.append(layer)
            before.append((layer.momentum, mean.clone(), variance.clone()))
    if not norms:
        return
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean of all batches
        norm.train()
    for batch in batches:
        images = batch.to(device, memory_format=channels_last(batch.ndim))
        with precision.autocast(device):
            network(images)
    for norm, (momentum, mean, variance) in zip(norms, before, strict=True):
        if not int(norm.num_batches_tracked):  # type: ignore[arg-type]
            norm.running_mean.copy_(mean)  # type: ignore[union-attr]
            norm.running_var.copy_(variance)  # type: ignore[union-attr]
        norm.momentum = momentum
        norm.eval()
