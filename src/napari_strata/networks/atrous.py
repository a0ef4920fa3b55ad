"""U-Net with a ResNet encoder, a bridge and atrous blocks.

The parallel atrous convolutions are those of DeepLab (Chen et al. 2017,
https://arxiv.org/abs/1606.00915).
"""

from __future__ import annotations

from collections.abc import Sequence

from segmentation_models_pytorch.encoders import get_encoder
from torch import Tensor, cat, nn

from napari_strata.core.network_sections import AtrousUNet
from napari_strata.core.spec import ModelSpec
from napari_strata.networks.blocks import (
    AnySize,
    BatchNorm,
    double_convolution,
    he_initialise,
    replace_batch_norms,
)


def build_atrous_unet(spec: ModelSpec, section: AtrousUNet) -> AnySize:
    """Build the atrous U-Net with the options of `section`; see `build_network`."""
    return AnySize(
        AtrousResUNet(section, inputs=spec.in_channels, outputs=len(spec.classes)),
        spec.stride,
    )


class AtrousResUNet(nn.Module):
    """U-Net with a ResNet encoder and atrous blocks.

    The encoder goes down to 1/32 of the size, a bridge of two convolutions follows, and
    five decoder levels go up to the full size. It takes images (N, C, H, W) with H and
    W multiples of 32; `AnySize` pads other sizes.
    """

    def __init__(self, section: AtrousUNet, *, inputs: int, outputs: int) -> None:
        super().__init__()
        self.encoder = get_encoder(
            section.encoder, in_channels=inputs, depth=5, weights=None
        )
        replace_batch_norms(self.encoder)
        # 1/16, 1/8, 1/4, 1/2 and the raw image, which is the skip of the last level.
        skips = self.encoder.out_channels[-2::-1]
        deepest, widths = self.encoder.out_channels[-1], section.decoder_widths
        self.bridge = double_convolution(deepest, deepest, norm="batch")
        self.levels = nn.ModuleList(
            DecoderLevel(before, skip, width)
            for before, skip, width in zip(
                (deepest, *widths), skips, widths, strict=False
            )
        )
        # There are four blocks, at 1024, 512, 256 and 64 channels for ResNet-50. On the
        # skips these are all but the raw image. In the decoder, whose widths are 1024,
        # 512, 256, 128 and 64, these are all levels but the fourth; a block follows the
        # level's convolutions and precedes the next upsampling.
        at_skips = section.atrous_at == "skip"
        channels: Sequence[int] = (
            [*skips[:4], 0] if at_skips else [*widths[:3], 0, widths[4]]
        )
        blocks = nn.ModuleList(
            (
                AtrousBlock(width, kernels=section.kernels, dilations=section.dilations)
                if width
                else nn.Identity()
            )
            for width in channels
        )
        identities = nn.ModuleList(nn.Identity() for _ in channels)
        self.on_skips, self.on_levels = (
            (blocks, identities) if at_skips else (identities, blocks)
        )
        self.head = nn.Conv2d(widths[-1], outputs, 1)
        for part in (self.bridge, self.levels, blocks, self.head):
            he_initialise(part)

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits (N, K, H, W) of images (N, C, H, W)."""
        *skips, features = self.encoder(images)
        features = self.bridge(features)
        levels = zip(
            self.levels, reversed(skips), self.on_skips, self.on_levels, strict=True
        )
        for level, skip, on_skip, on_level in levels:
            features = on_level(level(features, on_skip(skip)))
        logits: Tensor = self.head(features)
        return logits


class DecoderLevel(nn.Module):
    """Decoder level: upsampling, concatenation with the skip, two convolutions."""

    def __init__(self, inputs: int, skip: int, outputs: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(inputs, outputs, 2, stride=2)
        self.merge = double_convolution(outputs + skip, outputs, norm="batch")

    def forward(self, features: Tensor, skip: Tensor) -> Tensor:
        """Merge features (N, inputs, h, w) with a skip (N, skip, 2h, 2w)."""
        merged: Tensor = self.merge(cat([self.up(features), skip], dim=1))
        return merged


class AtrousBlock(nn.Module):
    """Parallel dilated convolutions and a max-pool, fused back to `channels`.

    Each convolution has half of the channels: with four of them the concatenation has
    3 C channels.
    """

    def __init__(
        self, channels: int, *, kernels: Sequence[int], dilations: Sequence[int]
    ) -> None:
        super().__init__()
        half = max(1, channels // 2)
        self.branches = nn.ModuleList(
            # No bias: batch normalisation follows directly.
            nn.Conv2d(
                channels,
                half,
                kernel,
                padding=dilation * (kernel // 2),
                dilation=dilation,
                bias=False,
            )
            for kernel, dilation in zip(kernels, dilations, strict=True)
        )
        self.pool = nn.MaxPool2d(3, stride=1, padding=1)
        concatenated = channels + half * len(self.branches)
        self.fuse = nn.Sequential(
            BatchNorm(concatenated),
            nn.Conv2d(concatenated, channels, 1, bias=False),
            BatchNorm(channels),
            nn.ReLU(inplace=True),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Map features (N, C, H, W) to the same shape."""
        branches = [branch(features) for branch in self.branches]
        fused: Tensor = self.fuse(cat([*branches, self.pool(features)], dim=1))
        return fused
