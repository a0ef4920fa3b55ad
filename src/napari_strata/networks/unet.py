"""The classic U-Net.

After Ronneberger, Fischer and Brox 2015 (https://arxiv.org/abs/1505.04597).
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, cat, nn

from napari_strata.core.network_sections import UNet
from napari_strata.core.spec import ModelSpec
from napari_strata.networks.blocks import (
    AnySize,
    convolution,
    double_convolution,
    he_initialise,
)


def build_unet(spec: ModelSpec, section: UNet) -> AnySize:
    """Build the classic U-Net with the options of `section`; see `build_network`."""
    return AnySize(
        ClassicUNet(section, inputs=spec.in_channels, outputs=len(spec.classes)),
        spec.stride,
    )


class ClassicUNet(nn.Module):
    """Classic U-Net.

    Each level has two convolutions; max-pooling, skip connections and upsampling
    connect the levels. It takes images (N, C, H, W) with H and W multiples of
    ``2 ** (levels - 1)``; `AnySize` pads other sizes.
    """

    def __init__(self, section: UNet, *, inputs: int, outputs: int) -> None:
        super().__init__()
        widths, norm = section.widths, section.norm
        self.down = nn.ModuleList(
            double_convolution(before, width, norm=norm)
            for before, width in zip((inputs, *widths), widths, strict=False)
        )
        self.pool = nn.MaxPool2d(2)
        self.dropout = nn.Dropout2d(section.dropout)
        decoder_widths = list(zip(widths[::-1], widths[-2::-1], strict=False))
        self.up = nn.ModuleList(
            upsampling(
                deep, shallow, how=section.upsampling, kernel=section.transpose_kernel
            )
            for deep, shallow in decoder_widths
        )
        self.merge = nn.ModuleList(
            double_convolution(2 * shallow, shallow, norm=norm)
            for _, shallow in decoder_widths
        )
        width = section.head_width or widths[0]
        extra = (
            convolution(widths[0], width, norm=norm)
            if section.head_width
            else nn.Identity()
        )
        self.head = nn.Sequential(extra, nn.Conv2d(width, outputs, 1))
        he_initialise(self)

    @property
    def encoder(self) -> nn.Module:
        """The contracting path."""
        return self.down

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits (N, K, H, W) of images (N, C, H, W)."""
        features, skips = self.down[0](images), []
        for level in self.down[1:]:
            skips.append(features)
            features = level(self.pool(features))
        features = self.dropout(features)
        for up, merge, skip in zip(self.up, self.merge, reversed(skips), strict=True):
            features = merge(cat([skip, up(features)], dim=1))
        logits: Tensor = self.head(features)
        return logits


def upsampling(
    inputs: int,
    outputs: int,
    *,
    how: Literal["transpose", "nearest", "bilinear"],
    kernel: int = 2,
) -> nn.Module:
    """Build a layer that doubles height and width exactly.

    It is a transposed convolution, or interpolation and a 3 x 3 convolution.
    Interpolation avoids the checkerboard patterns of transposed convolutions (Odena et
    al. 2016, https://doi.org/10.23915/distill.00003). A transposed convolution with a
    kernel of 3 is padded like Keras' 'same'.
    """
    if how == "transpose":
        margin = kernel - 2
        return nn.ConvTranspose2d(
            inputs, outputs, kernel, stride=2, padding=margin, output_padding=margin
        )
    grow = nn.Upsample(
        scale_factor=2, mode=how, align_corners=False if how == "bilinear" else None
    )
    return nn.Sequential(grow, nn.Conv2d(inputs, outputs, 3, padding=1))
