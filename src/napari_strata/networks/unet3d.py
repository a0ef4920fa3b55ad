"""A residual 3D U-Net.

Residual blocks (He et al. 2016, https://arxiv.org/abs/1512.03385) at the levels of a
U-Net, after Lee et al. 2017 (https://arxiv.org/abs/1706.00120), whose skip connections
are summed, not concatenated: the widest features are computed once. Strides and kernels
along Z follow the pixel size; see `geometry.depth_strides`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from napari_strata.core.geometry import depth_kernels
from napari_strata.core.network_sections import Norm, UNet3d
from napari_strata.core.spec import ModelSpec
from napari_strata.networks.blocks import AnySize, convolution, he_initialise


def build_unet3d(spec: ModelSpec, section: UNet3d) -> AnySize:
    """Build the residual 3D U-Net with the options of `section`.

    See `build_network`.
    """
    assert spec.depth is not None
    network = ResidualUNet3d(
        section,
        inputs=spec.in_channels,
        outputs=len(spec.classes),
        strides=spec.depth.strides,
        kernels=depth_kernels(spec.depth.strides),
    )
    # Two strides along Y and X leave enough pixels at the deepest level for any
    # normalisation. One stride along Z, because stacks may be thin.
    return AnySize(
        network,
        spec.stride_shape,
        smallest=(spec.depth.stride, 2 * spec.stride, 2 * spec.stride),
    )


class ResidualUNet3d(nn.Module):
    """Residual 3D U-Net.

    Each level has a residual block; max-pooling and summed skip connections connect the
    levels. It takes volumes (N, C, D, H, W) with D, H and W multiples of the strides'
    products; `AnySize` pads other sizes.

    Parameters
    ----------
    strides
        Strides along Z, 1 or 2, for each halving of Y and X.
    kernels
        Kernels along Z, 1 or 3, for each level.
    """

    def __init__(
        self,
        section: UNet3d,
        *,
        inputs: int,
        outputs: int,
        strides: Sequence[int],
        kernels: Sequence[int],
    ) -> None:
        super().__init__()
        widths, norm = section.widths, section.norm
        self.down = nn.ModuleList(
            ResidualBlock(before, width, norm=norm, depth=kernel)
            for before, width, kernel in zip(
                (inputs, *widths), widths, kernels, strict=False
            )
        )
        self.pools = nn.ModuleList(nn.MaxPool3d((stride, 2, 2)) for stride in strides)
        self.dropout = nn.Dropout3d(section.dropout)
        decoder_levels = list(
            zip(widths[::-1], widths[-2::-1], strides[::-1], strict=False)
        )
        # Channels are reduced before the upsampling, where there are fewer voxels.
        self.narrow = nn.ModuleList(
            nn.Conv3d(deep, shallow, 1) for deep, shallow, _ in decoder_levels
        )
        self.grow = nn.ModuleList(
            nn.Upsample(scale_factor=(stride, 2, 2)) for _, _, stride in decoder_levels
        )
        self.merge = nn.ModuleList(
            ResidualBlock(shallow, shallow, norm=norm, depth=kernel)
            for (_, shallow, _), kernel in zip(
                decoder_levels, kernels[-2::-1], strict=True
            )
        )
        self.head = nn.Conv3d(widths[0], outputs, 1)
        he_initialise(self)
        blocks = [*self.down, *self.merge]
        if norm == "none":
            # Otherwise the sums of branch and shortcut grow block by block. The factor
            # is that of Zhang et al. 2019 (https://arxiv.org/abs/1901.09321) for
            # branches of two convolutions.
            with torch.no_grad():
                for block in blocks:
                    block.second[0].weight *= len(blocks) ** -0.5

    @property
    def encoder(self) -> nn.Module:
        """The contracting path."""
        return self.down

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits (N, K, D, H, W) of images (N, C, D, H, W)."""
        features, skips = self.down[0](images), []
        for pool, level in zip(self.pools, self.down[1:], strict=True):
            skips.append(features)
            features = level(pool(features))
        features = self.dropout(features)
        for narrow, grow, merge, skip in zip(
            self.narrow, self.grow, self.merge, reversed(skips), strict=True
        ):
            features = merge(skip + grow(narrow(features)))
        logits: Tensor = self.head(features)
        return logits


class ResidualBlock(nn.Module):
    """Two convolutions beside a shortcut.

    The shortcut is a 1 x 1 x 1 convolution where the width changes. Kernels are 3 along
    Y and X and `depth` along Z.
    """

    def __init__(self, inputs: int, outputs: int, *, norm: Norm, depth: int) -> None:
        super().__init__()
        self.first = convolution(inputs, outputs, norm=norm, kernel=(depth, 3, 3))
        self.second = convolution(
            outputs, outputs, norm=norm, kernel=(depth, 3, 3), active=False
        )
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs:
            self.shortcut = convolution(
                inputs, outputs, norm=norm, kernel=(1, 1, 1), active=False
            )
        self.activation = nn.ReLU(inplace=True)

    def forward(self, features: Tensor) -> Tensor:
        """Map features (N, inputs, D, H, W) to (N, outputs, D, H, W)."""
        branch = self.second(self.first(features))
        summed: Tensor = self.activation(branch + self.shortcut(features))
        return summed
