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
    """Wrapper that makes a network accept images of any size.

    The wrapped network needs sizes that are multiples of `stride`. The wrapper takes
    images (N, C, H, W) or volumes (N, C, D, H, W), pads them at the end of each axis,
    so that the grid of strides stays in place, and crops the logits. The padding
    mirrors the image; where the image is too small for that, it repeats the last value.

    Parameters
    ----------
    stride
        The padded height and width are multiples of this number of pixels. For
        volumes, one stride for each of the three axes.
    smallest
        Smallest padded height and width in pixels; for volumes, one number for each
        axis. The default is two strides: with one stride, the deepest level has one
        pixel, and normalising over one pixel fails in training.
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
            self.smallest: Any = _round_up(smallest or 2 * stride, stride)
        else:
            if not isinstance(smallest, tuple):
                smallest = tuple(smallest or 2 * step for step in stride)
            self.smallest = tuple(map(_round_up, smallest, stride))

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits (N, K, H, W) of images (N, C, H, W), or of volumes."""
        shape = images.shape[2:]
        padding = self._padding(shape)
        logits: Tensor = self.network(extend(images, *padding))
        if not any(padding):
            return logits
        inside: tuple[Any, ...] = (..., *(slice(length) for length in shape))
        return logits[inside]

    def _padding(self, shape: Sequence[int]) -> list[int]:
        """Return the number of pixels to add along each axis."""
        strides, smallest = (
            value if isinstance(value, tuple) else (value,) * len(shape)
            for value in (self.stride, self.smallest)
        )
        return [
            max(-length % stride, minimum - length)
            for length, stride, minimum in zip(shape, strides, smallest, strict=True)
        ]


def extend(images: Tensor, *padding: int) -> Tensor:
    """Pad images (N, C, H, W) or volumes (N, C, D, H, W) at the end of each axis.

    The padding mirrors the image; where the image is too small for that, it repeats the
    last value.

    Parameters
    ----------
    padding
        Number of pixels to add along each spatial axis, such as rows and columns.
    """
    for axis in reversed(range(len(padding))):
        if padding[axis]:
            margins = [0, 0] * len(padding)
            # F.pad counts axes from the last.
            margins[2 * (len(padding) - axis) - 1] = padding[axis]
            mode = "reflect" if padding[axis] < images.shape[2 + axis] else "replicate"
            images = F.pad(images, margins, mode=mode)
    return images


class _SingleValueNorm(_BatchNorm):
    """Batch normalisation that also trains when a channel has only one value.

    It then uses the running statistics. torch raises an error instead, for example for
    a batch of one image after global pooling (DeepLab, PAN).
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
    """Build a normalisation of `channels` features.

    Groups have 16 channels where `channels` is a multiple of 16: according to Wu and He
    2018 (https://arxiv.org/abs/1803.08494) this is as good as 32 groups, and it suits
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
    """Build a 'same' convolution, a normalisation and, if `active`, a ReLU.

    The convolution is 3D if `kernel` has three numbers. It has no bias if the
    normalisation would remove it.
    """
    kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
    layer_type: Any = nn.Conv2d if len(kernel) == 2 else nn.Conv3d
    has_bias = norm in ("none", "group")
    padding = tuple(length // 2 for length in kernel)
    layers = [
        layer_type(inputs, outputs, kernel, padding=padding, bias=has_bias),
        norm_layer(norm, outputs, dims=len(kernel)),
    ]
    if active:
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def double_convolution(inputs: int, outputs: int, *, norm: Norm) -> nn.Sequential:
    """Build two 3 x 3 convolutions with normalisation and ReLU."""
    return nn.Sequential(
        convolution(inputs, outputs, norm=norm),
        convolution(outputs, outputs, norm=norm),
    )


def without_weights(module: nn.Module) -> nn.Module:
    """Copy `module` to torch's meta device, without copying its weights."""
    memo: dict[int, Any] = {
        id(p): nn.Parameter(p.to("meta"), requires_grad=False)
        for p in module.parameters()
    }
    memo |= {id(buffer): buffer.to("meta") for buffer in module.buffers()}
    return copy.deepcopy(module, memo)


def replace_batch_norms(module: nn.Module, kind: Norm = "batch") -> None:
    """Replace every plain `BatchNorm2d` below `module` by a layer of this module.

    The weights are kept if `kind` is "batch".
    """
    for name, child in module.named_children():
        # timm's subclasses of BatchNorm2d do more and stay as they are.
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
    """Initialise the convolutions of `module` after He et al. 2015, biases with zero.

    See https://arxiv.org/abs/1502.01852.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Conv3d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        elif isinstance(layer, nn.ConvTranspose2d):
            # With stride 2 a quarter of the kernel acts on each pixel. No ReLU follows,
            # so the gain is 1.
            fan_in = layer.in_channels * layer.kernel_size[0] * layer.kernel_size[1] / 4
            nn.init.normal_(layer.weight, std=max(fan_in, 1.0) ** -0.5)
        else:
            continue
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def _round_up(length: int, stride: int) -> int:
    """Round `length` up to a multiple of `stride`."""
    return -(-length // stride) * stride
