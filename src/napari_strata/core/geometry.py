"""How each kind of network looks at a picture: the sizes it needs, and how far it sees. Plain integers only."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from math import prod
from operator import mul

from pydantic import BaseModel, ConfigDict

from napari_strata.core.sections import AtrousUNet, Network, UNet, UNet3d


class Geometry(BaseModel):
    """How a network looks at a picture: sizes it needs, how far it sees, whether it sees the whole tile."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stride: int
    reach: int
    whole_tile: bool
    depth_stride: int = 1
    depth_reach: int = 0
    """Stride and reach along Z, in planes."""


def geometry(network: Network, strides: Sequence[int] | None = None) -> Geometry:
    """Stride, reach (radius of the receptive field, in pixels) and whether a pixel depends on its whole tile.

    `strides` are those along Z of a 3D network (`Depth.strides`); it is halved at every level when left out.
    """
    if isinstance(network, UNet3d):
        flat = (2,) * (len(network.widths) - 1)
        strides = flat if strides is None else tuple(strides)
        return Geometry(
            stride=prod(flat),
            reach=_reach_3d(flat, (3,) * len(network.widths)),
            whole_tile=network.norm in ("instance", "group"),
            depth_stride=prod(strides),
            depth_reach=_reach_3d(strides, depth_kernels(strides)),
        )
    if isinstance(network, UNet):
        depth = len(network.widths)
        convolutions = (
            2 * (2**depth - 1)
            + 2 * (2 ** (depth - 1) - 1)
            + (network.head_width is not None)
        )
        # Measured on float64 gradients: pooling reaches a pixel of each level, so does a kernel of 3 or an
        # interpolation's convolution on the way up, and bilinear interpolation itself does once more.
        ways = 3 if network.upsampling == "bilinear" else 2
        ways -= network.upsampling == "transpose" and network.transpose_kernel == 2
        resampling = ways * (2 ** (depth - 1) - 1)
        return Geometry(
            stride=2 ** (depth - 1),
            reach=convolutions + resampling,
            whole_tile=network.norm in ("instance", "group"),
        )
    if isinstance(network, AtrousUNet):
        return Geometry(stride=32, reach=512, whole_tile=False)
    # Measured by moving a far pixel: global pooling, manet's attention and fpn's group norm see everything.
    pooled = network.architecture in (
        "deeplabv3",
        "deeplabv3plus",
        "pspnet",
        "pan",
        "upernet",
        "dpt",
        "manet",
        "fpn",
    )
    global_view = (
        pooled or network.attention == "scse" or network.norm in ("instance", "group")
    )
    # So do encoders that squeeze and excite or attend; timm's (tu-) may, and are taken to.
    squeeze = network.encoder.startswith(
        (
            "efficientnet",
            "timm-efficientnet",
            "timm-sk",
            "se",
            "mit_",
            "tu-",
            "mobileone_s4",
        )
    )
    return Geometry(stride=32, reach=256, whole_tile=global_view or squeeze)


def depth_strides(levels: int, anisotropy: float) -> tuple[int, ...]:
    """By what Z is divided at each halving of Y and X of a network of `levels` levels.

    Z is halved as soon as a voxel is less than twice as long along Z as along Y and X, as in nnU-Net (Isensee et al.
    2021, https://doi.org/10.1038/s41592-020-01008-z).
    """
    return tuple(
        2 if anisotropy < 2 ** (level + 1) else 1 for level in range(levels - 1)
    )


def depth_kernels(strides: Sequence[int]) -> tuple[int, ...]:
    """Kernel along Z at each level, 3 or 1: none looks up or down before Z is halved, as in nnU-Net.

    The deepest level always does, or a network would be 2D where voxels are very long.
    """
    return (*(3 if stride == 2 else 1 for stride in strides), 3)


def _reach_3d(strides: Sequence[int], kernels: Sequence[int]) -> int:
    """Radius of the receptive field of the residual 3D U-Net along an axis with these strides and kernels.

    Two convolutions at each level on the way down and, save at the deepest, on the way up. A voxel of the deepest level
    covers as many of the first as the strides' product; growing back by nearest neighbours adds nothing to that.
    """
    steps = list(accumulate(strides, mul, initial=1))
    sides = sum(
        4 * (kernel // 2) * step
        for kernel, step in zip(kernels[:-1], steps[:-1], strict=True)
    )
    return sides + 2 * (kernels[-1] // 2) * steps[-1] + steps[-1] - 1
