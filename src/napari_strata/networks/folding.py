"""Fold batch normalisation into the convolution before it.

The logits stay the same, and one pass over the memory is saved. This is for prediction
only: training and validation keep the layers separate.
"""

from __future__ import annotations

import copy
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from napari_strata.networks.blocks import BatchNorm, BatchNorm3d

TOLERANCE = 1e-3
"""Largest difference of logits, as a fraction of the largest logit.

A larger difference is more than rounding: a layer is used in a way that `_find_pairs`
does not recognise.
"""

Convolution: TypeAlias = nn.Conv2d | nn.Conv3d
Norm: TypeAlias = nn.BatchNorm2d | nn.BatchNorm3d
Pair: TypeAlias = tuple[Convolution, Norm]

FOLDABLE = (nn.BatchNorm2d, nn.BatchNorm3d, BatchNorm, BatchNorm3d)
"""Normalisations that can be folded; some of timm's also contain an activation."""


@torch.no_grad()
def fold_batch_norms(
    network: nn.Module, *, channels: int, side: int | tuple[int, ...] = 64
) -> nn.Module:
    """Return a copy of `network` with folded batch normalisations, in evaluation mode.

    A forward pass of one small image shows which layers follow each other. If the
    folded copy gives other logits, `network` itself is returned, in evaluation mode
    too.

    Parameters
    ----------
    network
        A network for float32 (N, C, H, W) or (N, C, D, H, W) with C = `channels`.
    side
        Side of the square image in pixels, or its size along each axis. The network
        must accept this size.
    """
    network.eval()
    device = next(network.parameters()).device
    shape = (side, side) if isinstance(side, int) else side
    image = torch.randn(
        (1, channels, *shape), generator=torch.Generator().manual_seed(0)
    ).to(device)
    folded = copy.deepcopy(network)
    pairs, expected = _find_pairs(folded, image)
    if not pairs:
        return network
    for convolution, norm in pairs:
        _fold(convolution, norm)
    folded_norms = {id(norm) for _, norm in pairs}
    for parent in list(folded.modules()):
        for name, child in parent.named_children():
            if id(child) in folded_norms:
                setattr(parent, name, nn.Identity())
    error = (folded(image) - expected).abs().max()
    largest = expected.abs().max().clamp_min(1.0)
    return folded if error <= TOLERANCE * largest else network


def _find_pairs(network: nn.Module, image: Tensor) -> tuple[list[Pair], Tensor]:
    """Find convolutions whose only output goes directly into a batch normalisation.

    Returns
    -------
    pairs
        Convolutions and their normalisations; each layer is used once.
    logits
        The logits of `image`.
    """
    # By id of the output tensors, which are kept so that no other tensor gets the id.
    outputs: dict[int, tuple[Convolution, Tensor]] = {}
    pairs: list[Pair] = []
    calls: dict[int, int] = {}

    def record_call(module: nn.Module, _: Any, output: Tensor) -> None:
        calls[id(module)] = calls.get(id(module), 0) + 1
        if isinstance(module, Convolution):
            outputs[id(output)] = (module, output)

    def record_pair(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if isinstance(module, Norm) and id(inputs[0]) in outputs:
            convolution, _ = outputs[id(inputs[0])]
            pairs.append((convolution, module))

    handles = []
    for module in network.modules():
        if isinstance(module, Convolution) or type(module) in FOLDABLE:
            handles.append(module.register_forward_hook(record_call))
            handles.append(module.register_forward_pre_hook(record_pair))
    logits: Tensor = network(image)
    for handle in handles:
        handle.remove()
    followers: dict[int, int] = {}
    for convolution, _ in pairs:
        followers[id(convolution)] = followers.get(id(convolution), 0) + 1
    foldable = []
    for convolution, norm in pairs:
        used_once = calls[id(convolution)] == calls[id(norm)] == 1
        only_follower = followers[id(convolution)] == 1
        if used_once and only_follower and norm.running_mean is not None:
            foldable.append((convolution, norm))
    return foldable, logits


def _fold(convolution: Convolution, norm: Norm) -> None:
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None
    assert variance is not None
    convolution.weight, convolution.bias = fuse_conv_bn_weights(
        convolution.weight,
        convolution.bias,
        mean,
        variance,
        norm.eps,
        norm.weight,
        norm.bias,
    )
