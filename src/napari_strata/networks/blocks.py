"""What every network is made of: padding to any size, normalisation that bears a single value, convolution blocks."""

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
    """Runs a network that needs multiples of `stride` on images (N, C, H, W) of any size, and keeps that size.

    Volumes (N, C, D, H, W) are served in the same way. The image grows at the end of each axis (so that the grid of
    strides stays where it is), mirrored where it is large enough and its last value repeated where it is not; the
    logits are cropped back.

    Parameters
    ----------
    stride
        the padded height and width are multiples of it, in pixels; of a volume a stride for each of its three axes.
    smallest
        the padded height and width are at least this; two strides when left out, since normalisation over the one pixel
        that is left at the deepest level fails in training. Of a volume a number for each axis.
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
            wanted = (
                smallest
                if isinstance(smallest, tuple)
                else tuple(smallest or 2 * step for step in stride)
            )
            self.smallest = tuple(map(_multiple, wanted, stride))

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) to logits (N, K, H, W); volumes (N, C, D, H, W) to (N, K, D, H, W)."""
        shape = images.shape[2:]
        missing = self._missing(shape)
        logits: Tensor = self.network(extend(images, *missing))
        kept: tuple[Any, ...] = (..., *(slice(length) for length in shape))
        return logits[kept] if any(missing) else logits

    def _missing(self, shape: Sequence[int]) -> list[int]:
        """How much is to be added along each axis."""
        strides, smallest = (
            v if isinstance(v, tuple) else (v,) * len(shape)
            for v in (self.stride, self.smallest)
        )
        return [
            max(-n % step, least - n)
            for n, step, least in zip(shape, strides, smallest, strict=True)
        ]


def extend(images: Tensor, *more: int) -> Tensor:
    """`images` (N, C, H, W) with so many more rows below and columns at the right, mirrored or else repeated.

    A volume (N, C, D, H, W) is given planes, rows and columns.
    """
    for axis in reversed(range(len(more))):
        if more[axis]:
            margins = [0, 0] * len(more)
            margins[2 * (len(more) - axis) - 1] = more[
                axis
            ]  # F.pad counts axes from the last
            mode = "reflect" if more[axis] < images.shape[2 + axis] else "replicate"
            images = F.pad(images, margins, mode=mode)
    return images


class _BearsOneValue(_BatchNorm):
    """Batch normalisation that takes its running statistics where a channel has one value only.

    So it is with a batch of one behind global pooling (DeepLab, PAN); torch refuses to train there.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Features (N, C, ...) to the same shape."""
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


class BatchNorm(_BearsOneValue, nn.BatchNorm2d):
    """Batch normalisation of images (N, C, H, W); see `_BearsOneValue`."""


class BatchNorm3d(_BearsOneValue, nn.BatchNorm3d):
    """Batch normalisation of volumes (N, C, D, H, W); see `_BearsOneValue`."""


class GroupNorm(nn.GroupNorm):
    """Group normalisation that only scales and shifts where a group has one value, which it would set to zero."""

    def forward(self, input: Tensor) -> Tensor:
        """Features (N, C, ...) to the same shape."""
        if input[0].numel() == self.num_groups:
            shape = (-1,) + (1,) * (input.ndim - 2)
            return input * self.weight.view(shape) + self.bias.view(shape)
        return super().forward(input)


def norm_layer(kind: Norm, channels: int, *, dims: int = 2) -> nn.Module:
    """Normalisation of `channels` features: none, batch, instance (each channel by itself) or group.

    `dims` is 2 for images, 3 for volumes.

    Groups have 16 channels where that divides: Wu and He 2018 (https://arxiv.org/abs/1803.08494) found it as good as 32
    groups, and it suits narrow networks. Instance normalisation is group normalisation with one channel a group.
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
    """'Same' convolution, normalisation and, where `active`, ReLU; of volumes where `kernel` has three numbers.

    No bias before a normalisation that would take it out again.
    """
    kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
    kind: Any = nn.Conv2d if len(kernel) == 2 else nn.Conv3d
    biased = norm in ("none", "group")
    layers = [
        kind(
            inputs, outputs, kernel, padding=tuple(k // 2 for k in kernel), bias=biased
        ),
        norm_layer(norm, outputs, dims=len(kernel)),
    ]
    return nn.Sequential(*layers, *([nn.ReLU(inplace=True)] if active else []))


def double_convolution(inputs: int, outputs: int, *, norm: Norm) -> nn.Sequential:
    """Two 3 x 3 convolutions with normalisation and ReLU."""
    return nn.Sequential(
        convolution(inputs, outputs, norm=norm),
        convolution(outputs, outputs, norm=norm),
    )


def without_weights(module: nn.Module) -> nn.Module:
    """A copy of `module` on torch's meta device, where nothing is computed and nothing held. Its weights are not copied
    on the way."""
    memo: dict[int, Any] = {
        id(p): nn.Parameter(p.to("meta"), requires_grad=False)
        for p in module.parameters()
    }
    memo |= {id(buffer): buffer.to("meta") for buffer in module.buffers()}
    return copy.deepcopy(module, memo)


def replace_batch_norms(module: nn.Module, kind: Norm = "batch") -> None:
    """Put our normalisation in the place of every plain `BatchNorm2d` below `module`, weights kept for kind "batch"."""
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
    """Weights by He et al. 2015 (https://arxiv.org/abs/1502.01852), biases zero, for all convolutions of `module`."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Conv3d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        elif isinstance(layer, nn.ConvTranspose2d):
            # With stride 2 a quarter of the kernel meets each pixel; no ReLU follows, so the gain is 1.
            fan = layer.in_channels * layer.kernel_size[0] * layer.kernel_size[1] / 4
            nn.init.normal_(layer.weight, std=max(fan, 1.0) ** -0.5)
        else:
            continue
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def _multiple(length: int, stride: int) -> int:
    return -(-length // stride) * stride
