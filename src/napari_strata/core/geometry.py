"""Geometry of networks: the sizes they need and their reach, in plain integers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from operator import mul

from pydantic import BaseModel, ConfigDict


class Geometry(BaseModel):
    """Sizes that a network needs, its reach, and True if it sees the whole tile."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stride: int
    reach: int
    whole_tile: bool
    depth_stride: int = 1
    depth_reach: int = 0
    """Stride and reach along Z, in planes."""


def depth_strides(levels: int, anisotropy: float) -> tuple[int, ...]:
    """Divisors of Z at each halving of Y and X in a network of `levels` levels.

    Z is halved as soon as a voxel is less than twice as long along Z as along Y and X,
    as in nnU-Net (Isensee et al. 2021, https://doi.org/10.1038/s41592-020-01008-z).
    """
    return tuple(
        2 if anisotropy < 2 ** (level + 1) else 1 for level in range(levels - 1)
    )


def depth_kernels(strides: Sequence[int]) -> tuple[int, ...]:
    """Kernel along Z at each level, 3 or 1.

    None looks up or down before Z is halved, as in nnU-Net.

    The deepest level always does, or a network would be 2D where voxels are very long.
    """
    return (*(3 if stride == 2 else 1 for stride in strides), 3)


def reach_3d(strides: Sequence[int], kernels: Sequence[int]) -> int:
    """Radius of the receptive field of the residual 3D U-Net along one axis.

    Two convolutions at each level on the way down and, save at the deepest, on the way
    up. A voxel of the deepest level covers as many of the first as the strides'
    product; growing back by nearest neighbours adds nothing to that.
    """
    steps = list(accumulate(strides, mul, initial=1))
    sides = sum(
        4 * (kernel // 2) * step
        for kernel, step in zip(kernels[:-1], steps[:-1], strict=True)
    )
    return sides + 2 * (kernels[-1] // 2) * steps[-1] + steps[-1] - 1


GAUSSIANS = ((1.0, 3), (1.5, 4))
"""Standard deviations and radii of the pixel classifier's Gaussians, in pixels."""


def octave_reach(levels: int) -> int:
    """How far the features of the pixel classifier see, in pixels.

    Going down to the deepest level takes a radius of 2 at each one. There, a Gaussian
    and the differences beside it see pixels of that level; growing back, a pixel takes
    part of the next one of that level.
    """
    deepest_stride = 1 << (levels - 1)
    down = 2 * (deepest_stride - 1)
    radius = max(radius for _, radius in GAUSSIANS) + 1
    return down + radius * deepest_stride + deepest_stride - 1
