"""What every network is made of: padding to any size, normalisation that bears a single value, convolution blocks."""

from __future__ import annotations

import copy
from math import gcd
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_strata.recipe import Norm


class AnySize(nn.Module):
    """Runs a network that needs multiples of `stride` on images (N, C, H, W) of any size, and keeps that size.

    The image grows at the bottom and the right (so that the grid of strides stays where it is), mirrored where it is
    large enough and its last value repeated where it is not; the logits are cropped back.

    Parameters
    ----------
    stride
        the padded height and width are multiples of it, in pixels.
    smallest
        the padded height and width are at least this; two strides when left out, since normalisation over the one pixel
        that is left at the deepest level fails in training.
    """

    def __init__(self, network: nn.Module, stride: int, *, smallest: int | None = None) -> None:
        super().__init__()
        self.network = network
        self.stride = stride
        self.smallest = -(-(smallest or 2 * stride) // stride) * stride

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) to logits (N, K, H, W)."""
        height, width = images.shape[-2:]
        rows, columns = self._missing(height), self._missing(width)
        logits: Tensor = self.network(extend(images, rows, columns))
        return logits[..., :height, :width] if rows or columns else logits

    def _missing(self, length: int) -> int:
        return max(-length % self.stride, self.smallest - length)


def extend(images: Tensor, rows: int, columns: int) -> Tensor:
    """`images` (N, C, H, W) with `rows` more below and `columns` more at the right, mirrored or else repeated."""
    height, width = images.shape[-2:]
    if columns:
        images = F.pad(images, (0, columns, 0, 0), mode="reflect" if columns < width else "replicate")
    if rows:
        images = F.pad(images, (0, 0, 0, rows), mode="reflect" if rows < height else "replicate")
    return images


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation that takes its running statistics where a channel has one value only.

    So it is with a batch of one behind global pooling (DeepLab, PAN); torch refuses to train there.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Features (N, C, H, W) to the same shape."""
        if self.training and input.numel() == input.shape[1]:
            mean, variance = self.running_mean, self.running_var
            return F.batch_norm(input, mean, variance, self.weight, self.bias, training=False, eps=self.eps)
        return super().forward(input)


class GroupNorm(nn.GroupNorm):
    """Group normalisation that only scales and shifts where a group has one value, which it would set to zero."""

    def forward(self, input: Tensor) -> Tensor:
        """Features (N, C, H, W) to the same shape."""
        if input[0].numel() == self.num_groups:
            return input * self.weight[:, None, None] + self.bias[:, None, None]
        return super().forward(input)


def norm_layer(kind: Norm, channels: int) -> nn.Module:
    """Normalisation of `channels` features: none, batch, instance (each channel by itself) or group.

    Groups have 16 channels where that divides: Wu and He 2018 (https://arxiv.org/abs/1803.08494) found it as good as 32
    groups, and it suits narrow networks. Instance normalisation is group normalisation with one channel a group.
    """
    if kind == "batch":
        return BatchNorm(channels)
    if kind == "instance":
        return GroupNorm(channels, channels)
    if kind == "group":
        return GroupNorm(gcd(channels, max(1, channels // 16)), channels)
    return nn.Identity()


def convolution(inputs: int, outputs: int, *, norm: Norm, kernel: int = 3) -> nn.Sequential:
    """'Same' convolution, normalisation, ReLU. No bias before a normalisation that would take it out again."""
    biased = norm in ("none", "group")
    layers = [nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=biased), norm_layer(norm, outputs)]
    return nn.Sequential(*layers, nn.ReLU(inplace=True))


def double_convolution(inputs: int, outputs: int, *, norm: Norm) -> nn.Sequential:
    """Two 3 x 3 convolutions with normalisation and ReLU."""
    return nn.Sequential(convolution(inputs, outputs, norm=norm), convolution(outputs, outputs, norm=norm))


def without_weights(module: nn.Module) -> nn.Module:
    """A copy of `module` on torch's meta device, where nothing is computed and nothing held. Its weights are not copied
    on the way."""
    memo: dict[int, Any] = {id(p): nn.Parameter(p.to("meta"), requires_grad=False) for p in module.parameters()}
    memo |= {id(buffer): buffer.to("meta") for buffer in module.buffers()}
    return copy.deepcopy(module, memo)


def replace_batch_norms(module: nn.Module, kind: Norm = "batch") -> None:
    """Put our normalisation in the place of every plain `BatchNorm2d` below `module`, weights kept for kind "batch"."""
    for name, child in module.named_children():
        # Not timm's, which derive from torch's and do more.
        if not isinstance(child, nn.BatchNorm2d) or type(child) not in (nn.BatchNorm2d, BatchNorm):
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
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        elif isinstance(layer, nn.ConvTranspose2d):
            # With stride 2 a quarter of the kernel meets each pixel; no ReLU follows, so the gain is 1.
            fan = layer.in_channels * layer.kernel_size[0] * layer.kernel_size[1] / 4
            nn.init.normal_(layer.weight, std=max(fan, 1.0) ** -0.5)
        else:
            continue
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
