"""Batch normalisation folded into the convolution before it: the same answers with one pass over memory less.

For prediction only. Training and validation keep the layers apart.
"""

from __future__ import annotations

import copy
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from napari_strata.networks.blocks import BatchNorm, BatchNorm3d

TOLERANCE = 1e-3
"""Of the largest logit: an answer further off than rounding means that a layer was used in a way not seen here."""

Convolution: TypeAlias = nn.Conv2d | nn.Conv3d
Norm: TypeAlias = nn.BatchNorm2d | nn.BatchNorm3d
Pair: TypeAlias = tuple[Convolution, Norm]

PLAIN = (nn.BatchNorm2d, nn.BatchNorm3d, BatchNorm, BatchNorm3d)
"""Of timm's batch normalisations some hold an activation too, and would take it with them."""


@torch.no_grad()
def fold_batch_norms(
    network: nn.Module, *, channels: int, side: int | tuple[int, ...] = 64
) -> nn.Module:
    """A copy of `network` in evaluation mode, its batch normalisations folded into the convolutions they follow.

    Which layers follow each other is seen on one small image, whatever the code between them. Where the folded copy
    would answer differently, `network` itself is returned, in evaluation mode too.

    Parameters
    ----------
    network
        takes float32 (N, C, H, W), or (N, C, D, H, W), with C = `channels`.
    side
        of the square image that is sent through, or its size along each axis; the network must take it.
    """
    network.eval()
    device = next(network.parameters()).device
    shape = (side, side) if isinstance(side, int) else side
    image = torch.randn(
        (1, channels, *shape), generator=torch.Generator().manual_seed(0)
    ).to(device)
    folded = copy.deepcopy(network)
    pairs, wanted = _pairs(folded, image)
    if not pairs:
        return network
    for convolution, norm in pairs:
        _fold(convolution, norm)
    done = {id(norm) for _, norm in pairs}
    for parent in list(folded.modules()):
        for name, child in parent.named_children():
            if id(child) in done:
                setattr(parent, name, nn.Identity())
    error = (folded(image) - wanted).abs().max()
    return folded if error <= TOLERANCE * wanted.abs().max().clamp_min(1.0) else network


def _pairs(network: nn.Module, image: Tensor) -> tuple[list[Pair], Tensor]:
    """Convolutions whose answer goes straight into a batch normalisation, each used once; and the network's answer."""
    made: dict[int, tuple[Convolution, Tensor]] = {}
    """By identity of their answers, which are kept alive so that no other tensor takes their place."""
    found: list[Pair] = []
    calls: dict[int, int] = {}

    def note_call(module: nn.Module, _: Any, answer: Tensor) -> None:
        calls[id(module)] = calls.get(id(module), 0) + 1
        if isinstance(module, Convolution):
            made[id(answer)] = (module, answer)

    def note_input(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if isinstance(module, Norm) and id(inputs[0]) in made:
            found.append((made[id(inputs[0])][0], module))

    handles = []
    for module in network.modules():
        if isinstance(module, Convolution) or type(module) in PLAIN:
            handles.append(module.register_forward_hook(note_call))
            handles.append(module.register_forward_pre_hook(note_input))
    answer: Tensor = network(image)
    for handle in handles:
        handle.remove()
    followers: dict[int, int] = {}
    for convolution, _ in found:
        followers[id(convolution)] = followers.get(id(convolution), 0) + 1
    once = [
        (convolution, norm)
        for convolution, norm in found
        if calls[id(convolution)] == calls[id(norm)] == followers[id(convolution)] == 1
        and norm.running_mean is not None
    ]
    return once, answer


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
