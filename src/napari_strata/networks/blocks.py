"""Blocks of networks: padding to any size, normalisation, convolutions."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from math import gcd
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from napari_strata.core.network_sections import Norm


class AnySize(nn.Module):
    """Network for images of any size, from one that needs multiples of `stride`.

    It takes images (N, C, H, W) or volumes (N, C, D, H, W). The image is padded at the
    end of each axis (so that the grid of strides stays in place), mirrored where it is
    large enough and its last value repeated where it is not; the logits are cropped.

    Parameters
    ----------
    stride
        The padded height and width are multiples of it, in pixels. For volumes, a
        stride for each of the three axes.
    smallest
        The padded height and width are at least this. Two strides when left out, since
        normalisation over the one pixel that is left at the deepest level fails in
        training. For volumes, a number for each axis.
    """

    def __init__(
        self,
        network: nn.Module,
        stride: int | tuple[int, ...],
        *,
        smallest: int | tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.stride = stride
        if isinstance(stride, int):
            assert smallest is None or isinstance(smallest, int)
            self.smallest: Any = _multiple(smallest or 2 * stride, stride)
        else:
            if not isinstance(smallest, tuple):
                smallest = tuple(smallest or 2 * step for step in stride)
            self.smallest = tuple(map(_multiple, smallest, stride))

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits (N, K, H, W) of images (N, C, H, W), or of volumes."""
        shape = images.shape[2:]
        missing = self._missing(shape)
        logits: Tensor = self.network(extend(images, *missing))
        if not any(missing):
            return logits
        inside: tuple[Any, ...] = (..., *(slice(length) for length in shape))
        return logits[inside]

    def _missing(self, shape: Sequence[int]) -> list[int]:
        """Pixels to add along each axis."""
        strides, smallest = (
            v if isinstance(v, tuple) else (v,) * len(shape)
            for v in (self.stride, self.smallest)
        )
        return [
            max(-n % step, least - n)
            for n, step, least in zip(shape, strides, smallest, strict=True)
        ]


def extend(images: Tensor, *more: int) -> Tensor:
    """Pad images (N, C, H, W) by so many rows below and columns at the right.

    Volumes (N, C, D, H, W) are padded by planes, rows and columns. The image is
    mirrored, or its last value is repeated where it is too small.
    """
    for axis in reversed(range(len(more))):
        if more[axis]:
            margins = [0, 0] * len(more)
            # F.pad counts axes from the last.
            margins[2 * (len(more) - axis) - 1] = more[axis]
            mode = "reflect" if more[axis] < images.shape[2 + axis] else "replicate"
            images = F.pad(images, margins, mode=mode)
    return images


class _SingleValueNorm(_BatchNorm):
    """Batch normalisation by running statistics where a channel has one value only.

    That is so for a batch of one after global pooling (DeepLab, PAN), where torch
    refuses to train.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise features (N, C, ...)."""
        if self.training and input.numel() == input.shape[1]:
            mean, variance = self.running_mean, self.running_var
            return F.batch_norm(
                input,
                mean,
                variance,
                self.weight,
                self.bias,
                training=False,
                eps=self.eps,
            )
        return super().forward(input)


class BatchNorm(_SingleValueNorm, nn.BatchNorm2d):
    """Batch normalisation of images (N, C, H, W); see `_SingleValueNorm`."""


class BatchNorm3d(_SingleValueNorm, nn.BatchNorm3d):
    """Batch normalisation of volumes (N, C, D, H, W); see `_SingleValueNorm`."""


class GroupNorm(nn.GroupNorm):
    """Group normalisation that does not set a group of one value to zero.

    Such a group is only scaled and shifted.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise features (N, C, ...)."""
        if input[0].numel() == self.num_groups:
            shape = (-1,) + (1,) * (input.ndim - 2)
            return input * self.weight.view(shape) + self.bias.view(shape)
        return super().forward(input)


def norm_layer(kind: Norm, channels: int, *, dims: int = 2) -> nn.Module:
    """Make a normalisation of `channels` features.

    Groups have 16 channels where that divides: Wu and He 2018
    (https://arxiv.org/abs/1803.08494) found it as good as 32 groups, and it suits
    narrow networks. Instance normalisation is group normalisation with one channel per
    group.

    Parameters
    ----------
    dims
        2 for images, 3 for volumes.
    """
    if kind == "batch":
        return BatchNorm(channels) if dims == 2 else BatchNorm3d(channels)
    if kind == "instance":
        return GroupNorm(channels, channels)
    if kind == "group":
        return GroupNorm(gcd(channels, max(1, channels // 16)), channels)
    return nn.Identity()


def convolution(
    inputs: int,
    outputs: int,
    *,
    norm: Norm,
    kernel: int | tuple[int, ...] = 3,
    active: bool = True,
) -> nn.Sequential:
    """Make a 'same' convolution, a normalisation and, if `active`, a ReLU.

    It is for volumes where `kernel` has three numbers. There is no bias before a
    normalisation that would remove it.
    """
    kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
    kind: Any = nn.Conv2d if len(kernel) == 2 else nn.Conv3d
    biased = norm in ("none", "group")
    padding = tuple(length // 2 for length in kernel)
    layers = [
        kind(inputs, outputs, kernel, padding=padding, bias=biased),
        norm_layer(norm, outputs, dims=len(kernel)),
    ]
    if active:
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def double_convolution(inputs: int, outputs: int, *, norm: Norm) -> nn.Sequential:
    """Make two 3 x 3 convolutions with normalisation and ReLU."""
    return nn.Sequential(
        convolution(inputs, outputs, norm=norm),
        convolution(outputs, outputs, norm=norm),
    )


def without_weights(module: nn.Module) -> nn.Module:
    """Copy `module` to torch's meta device, where nothing is computed or held.

    Its weights are not copied.
    """
    memo: dict[int, Any] = {
        id(p): nn.Parameter(p.to("meta"), requires_grad=False)
        for p in module.parameters()
    }
    memo |= {id(buffer): buffer.to("meta") for buffer in module.buffers()}
    return copy.deepcopy(module, memo)


def replace_batch_norms(module: nn.Module, kind: Norm = "batch") -> None:
    """Replace every plain `BatchNorm2d` below `module` by a normalisation of ours.

    Weights are kept for kind "batch".
    """
    for name, child in module.named_children():
        # Not timm's, which derive from torch's and do more.
        if not isinstance(child, nn.BatchNorm2d) or type(child) not in (
            nn.BatchNorm2d,
            BatchNorm,
        ):
            replace_batch_norms(child, kind)
            continue
        layer = norm_layer(kind, child.num_features)
        if isinstance(layer, BatchNorm):
            layer.eps, layer.momentum = child.eps, child.momentum
            layer.load_state_dict(child.state_dict())
        setattr(module, name, layer)


@torch.no_grad()
def he_initialise(module: nn.Module) -> None:
    """Initialise all convolutions of `module` by He et al. 2015, biases by zero.

    See https://arxiv.org/abs/1502.01852.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Conv3d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        elif isinstance(layer, nn.ConvTranspose2d):
            # With stride 2 a quarter of the kernel meets each pixel. No ReLU follows,
            # so the gain is 1.
            fan = layer.in_channels * layer.kernel_size[0] * layer.kernel_size[1] / 4
            nn.init.normal_(layer.weight, std=max(fan, 1.0) ** -0.5)
        else:
            continue
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def _multiple(length: int, stride: int) -> int:
    return -(-length // stride) * stride
