"""Measure the statistics of batch normalisation again before validation.

The running averages of training depend on the last batches, which are drawn to balance
the classes. On the sandstone after 600 steps, the same weights gave a mean IoU of .908
with these averages, and .936 with statistics measured on 384 plain patches.

torch's `update_bn` is not used: it does not switch dropout off, which changes the
statistics, it also measures a frozen encoder, and it does not use autocast.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from napari_strata.models.device import Precision, memory_order


@torch.no_grad()
def recalibrate(
    network: nn.Module,
    batches: Iterable[Tensor],
    *,
    device: torch.device,
    precision: Precision,
    frozen: nn.Module | None = None,
) -> None:
    """Replace the running statistics of batch normalisation by means over `batches`.

    This is "precise batch normalisation" (Wu and Johnson 2021,
    https://arxiv.org/abs/2105.07576). The network is in evaluation mode afterwards.
    Statistics that no batch can give (one value per channel) are unchanged.

    Parameters
    ----------
    batches
        Images (N, C, ...).
    frozen
        Part of the network whose statistics do not change, such as a frozen encoder.
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
        norm.train()
    for number, batch in enumerate(batches, start=1):
        for norm in norms:
            # The plain mean of all batches. With momentum None it is the same, but then
            # each layer waits for the GPU to read its counter.
            norm.momentum = 1 / number
        images = batch.to(device, non_blocking=True)
        images = images.contiguous(memory_format=memory_order(batch.ndim, device))
        with precision.autocast(device):
            network(images)
    for norm, (momentum, mean, variance) in zip(norms, before, strict=True):
        if not int(norm.num_batches_tracked):  # type: ignore[arg-type]
            norm.running_mean.copy_(mean)  # type: ignore[union-attr]
            norm.running_var.copy_(variance)  # type: ignore[union-attr]
        norm.momentum = momentum
        norm.eval()
