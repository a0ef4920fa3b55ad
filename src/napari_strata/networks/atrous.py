"""U-Net with a ResNet encoder, a bridge and atrous blocks.

It is the seed's "U-Net with ResNet50 encoder and atrous convolutions". Parallel atrous
convolutions are those of DeepLab (Chen et al. 2017, https://arxiv.org/abs/1606.00915).
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
    """ResNet down to 1/32, two convolutions as a bridge, five decoder levels up to
    full size.

    Takes (N, C, H, W) with H and W multiples of 32; `AnySize` sees to that.
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
        # The seed counts four blocks at 1024, 512, 256 and 64 channels. On the skips
        # these are all but the raw image. In the decoder, whose widths are 1024, 512,
        # 256, 128 and 64, they are all levels but the fourth, and a block follows the
        # level's convolutions, before the next upsampling, as in the seed's diagram.
        at_skips = section.atrous_at == "skip"
        channels: Sequence[int] = (
            [*skips[:4], 0] if at_skips else [*widths[:3], 0, widths[4]]
        )
        blocks = nn.ModuleList(
            (
                AtrousBlock(c, kernels=section.kernels, dilations=section.dilations)
                if c
                else nn.Identity()
            )
            for c in channels
        )
        plain = nn.ModuleList(nn.Identity() for _ in channels)
        self.on_skips, self.on_levels = (blocks, plain) if at_skips else (plain, blocks)
        self.head = nn.Conv2d(widths[-1], outputs, 1)
        for part in (self.bridge, self.levels, blocks, self.head):
            he_initialise(part)

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits (N, K, H, W) of images (N, C, H, W)."""
        *skips, features = self.encoder(images)
        features = self.bridge(features)
        parts = zip(
            self.levels, reversed(skips), self.on_skips, self.on_levels, strict=True
        )
        for level, skip, on_skip, on_level in parts:
            features = on_level(level(features, on_skip(skip)))
        logits: Tensor = self.head(features)
        return logits


class DecoderLevel(nn.Module):
    """Transposed convolution to twice the size, the skip beside it, two
    convolutions.
    """

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
            # No bias: the concatenation goes straight into batch normalisation.
            nn.Conv2d(channels, half, k, padding=d * (k // 2), dilation=d, bias=False)
            for k, d in zip(kernels, dilations, strict=True)
        )
        self.pool = nn.MaxPool2d(3, stride=1, padding=1)
        together = channels + half * len(self.branches)
        self.fuse = nn.Sequential(
            BatchNorm(together),
            nn.Conv2d(together, channels, 1, bias=False),
            BatchNorm(channels),
            nn.ReLU(inplace=True),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Map features (N, C, H, W) to the same shape."""
        fused: Tensor = self.fuse(
            cat(
                [*(branch(features) for branch in self.branches), self.pool(features)],
                dim=1,
            )
        )
        return fused
