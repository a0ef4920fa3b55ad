"""Batch normalisation over the patches of all ranks: what one process with the whole batch would compute.

No layer is replaced: whatever a network normalises by `F.batch_norm` is taken over inside the block, in 2D and 3D, and
in timm's layers that add an activation. On a GPU torch's own kernels do it; torch has none for the CPU, and there the
arithmetic is written out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules._functions import SyncBatchNorm
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

Gather = Callable[[Tensor], Tensor]
"""A tensor of each rank, of one shape on all, to all of them stacked in the order of the ranks."""


class SharedStatistics(TorchFunctionMode):
    """Inside the block the batch normalisations of `network` that learn take their statistics over all ranks.

    Every rank must go through the same layers in the same order.

    Parameters
    ----------
    group, size
        the processes, and how many they are.
    gather
        see `Gather`.
    """

    def __init__(
        self, network: nn.Module, gather: Gather, *, group: Any, size: int
    ) -> None:
        super().__init__()
        self._gather, self._group, self._size = gather, group, size
        norms = (
            m
            for m in network.modules()
            if isinstance(m, _BatchNorm) and m.training and m.track_running_stats
        )
        self._norms = {id(norm.running_mean): norm for norm in norms}

    def __torch_function__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is F.batch_norm:
            given = dict(
                zip(("input", "running_mean", "running_var"), args, strict=False)
            ) | (kwargs or {})
            norm = self._norms.get(id(given["running_mean"]))
            if norm is not None and not given["training"]:
                # One value a channel here, for which our layer takes its running statistics; all ranks have more.
                assert norm.num_batches_tracked is not None
                norm.num_batches_tracked.add_(1)
                given |= {"training": True, "momentum": norm.momentum}
            if given["training"]:
                return self._normalised(**given)
        return func(*args, **(kwargs or {}))

    def _normalised(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        training: bool,
        momentum: float,
        eps: float,
    ) -> Any:
        if input.is_cuda:
            given = (
                input,
                weight,
                bias,
                running_mean,
                running_var,
                eps,
                momentum,
                self._group,
                self._size,
            )
            return SyncBatchNorm.apply(*given)
        mean, variance, count = statistics(input.detach(), self._gather)
        if running_mean is not None and running_var is not None:
            running_mean.lerp_(mean.to(running_mean), momentum)
            running_var.lerp_(
                (variance * (count / (count - 1))).to(running_var), momentum
            )
        if weight is None or bias is None:
            weight, bias = torch.ones_like(mean), torch.zeros_like(mean)
        deviation = (variance + eps).rsqrt()
        return _Normalise.apply(
            input, weight, bias, (mean, deviation, count), self._gather
        )


def statistics(values: Tensor, gather: Gather) -> tuple[Tensor, Tensor, int]:
    """Mean and variance (of all values, not of a sample) of each channel, float64 (C,), and how many values it has.

    Sums of squares about the ranks' own means are put together (Chan, Golub and LeVeque 1983, doi:10.2307/2683386), so
    that nothing is lost where a mean is large.
    """
    axes = [0, *range(2, values.ndim)]
    variance, mean = torch.var_mean(_exact(values), axes, correction=0)
    here = torch.full_like(
        mean[:1], values.numel() // values.shape[1], dtype=torch.float64
    )
    found = gather(torch.cat([here, mean.double(), variance.double()]))
    counts, means, variances = torch.split(found, [1, len(mean), len(mean)], dim=1)
    total = counts.sum()
    overall = (counts * means).sum(0) / total
    spread = (counts * (variances + (means - overall) ** 2)).sum(0) / total
    return overall, spread, int(total)


class _Normalise(torch.autograd.Function):
    """Features less `mean`, times `deviation` (one over the standard deviation), scaled and shifted.

    The gradient that goes to the features counts that the statistics depend on the features of all ranks; those of
    weight and bias are this rank's share.
    """

    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        weight: Tensor,
        bias: Tensor,
        facts: Any,
        gather: Gather,
    ) -> Tensor:
        exact = _exact(values)
        ctx.gather, ctx.count = gather, facts[2]
        mean, deviation = (fact.to(exact.dtype) for fact in facts[:2])
        ctx.save_for_backward(values, weight, mean, deviation)
        factor = weight.to(exact.dtype) * deviation
        offset = bias.to(exact.dtype) - mean * factor
        return torch.addcmul(_wide(offset, exact), exact, _wide(factor, exact)).to(
            values.dtype
        )

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        values, weight, mean, deviation = ctx.saved_tensors
        slope = _exact(gradients[0])
        normal = (_exact(values) - _wide(mean, values)) * _wide(deviation, values)
        axes = [0, *range(2, values.ndim)]
        ours = torch.stack([slope.sum(axes), (slope * normal).sum(axes)])
        shift, stretch = (ctx.gather(ours.double()).sum(0) / ctx.count).to(slope.dtype)
        slope = slope - _wide(shift, values) - normal * _wide(stretch, values)
        features = slope * _wide(weight.to(slope.dtype) * deviation, values)
        return (
            features.to(values.dtype),
            ours[1].to(weight.dtype),
            ours[0].to(weight.dtype),
            None,
            None,
        )


def _exact(values: Tensor) -> Tensor:
    """In float32 at least."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _wide(numbers: Tensor, like: Tensor) -> Tensor:
    """One number a channel, shaped to combine with features (N, C, ...)."""
    return numbers.reshape(1, -1, *[1] * (like.ndim - 2))
