"""Fold batch normalisation into the convolution before it.

The logits stay the same, with one pass over memory less. For prediction only: training
and validation keep the layers separate.
"""

from __future__ import annotations

import copy
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from napari_strata.networks.blocks import BatchNorm, BatchNorm3d

TOLERANCE = 1e-3
"""Largest difference of logits, as a share of the largest logit.

A larger one is not rounding: a layer is used in a way that was not noticed.
"""

Convolution: TypeAlias = nn.Conv2d | nn.Conv3d
Norm: TypeAlias = nn.BatchNorm2d | nn.BatchNorm3d
Pair: TypeAlias = tuple[Convolution, Norm]

PLAIN = (nn.BatchNorm2d, nn.BatchNorm3d, BatchNorm, BatchNorm3d)
"""Normalisations that can be folded; some of timm's hold an activation too."""


@torch.no_grad()
def fold_batch_norms(
    network: nn.Module, *, channels: int, side: int | tuple[int, ...] = 64
) -> nn.Module:
    """Return a copy of `network` with folded batch normalisations, in evaluation mode.

    One small image shows which layers follow each other, whatever the code between
    them. Where the folded copy would give other logits, `network` itself is returned,
    in evaluation mode too.

    Parameters
    ----------
    network
        Takes float32 (N, C, H, W), or (N, C, D, H, W), with C = `channels`.
    side
        Side of the square image, or its size along each axis; the network must take it.
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
    """Find convolutions whose output goes straight into a batch normalisation.

    Each is used once. Also returns the logits of `image`.
    """
    # By id of their outputs, which are kept alive so that no other tensor has that id.
    outputs: dict[int, tuple[Convolution, Tensor]] = {}
    pairs: list[Pair] = []
    calls: dict[int, int] = {}

    def note_call(module: nn.Module, _: Any, output: Tensor) -> None:
        calls[id(module)] = calls.get(id(module), 0) + 1
        if isinstance(module, Convolution):
            outputs[id(output)] = (module, output)

    def note_input(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if isinstance(module, Norm) and id(inputs[0]) in outputs:
            convolution, _ = outputs[id(inputs[0])]
            pairs.append((convolution, module))

    handles = []
    for module in network.modules():
        if isinstance(module, Convolution) or type(module) in PLAIN:
            handles.append(module.register_forward_hook(note_call))
            handles.append(module.register_forward_pre_hook(note_input))
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
