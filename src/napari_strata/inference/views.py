"""Views: a volume seen plane by plane from three sides, and the mean of what a 2D network says of each.

Fusion of orthogonal planes (Prasoon et al. 2013, https://doi.org/10.1007/978-3-642-40763-5_31, who trained a network
for each view; one network for all, as here, is how empanada and volume-segmantics predict). Voxels that are longer
along Z are made isotropic for the upright views, and the answer is brought back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

Array = np.ndarray[Any, Any]


@torch.inference_mode()
def mean_of_views(
    volume: Array, stretch: tuple[float, float], mean: Callable[[Array], Tensor]
) -> Tensor:
    """Mean probabilities float32 (K, D, H, W) of the XY, XZ and YZ planes of a volume.

    Parameters
    ----------
    volume
        grey values (C, D, H, W).
    stretch
        by what Z is stretched so that its pixels are as long as those of Y, and of X.
    mean
        gives probabilities (K, h, w) of a plane (C, h, w).
    """
    total = None
    for axis, factor in enumerate((1.0, stretch[1], stretch[0]), start=1):
        for number in range(volume.shape[axis]):
            plane = np.ascontiguousarray(volume.take(number, axis))
            found = _isotropic(plane, factor, mean)
            if total is None:
                total = torch.zeros(
                    (len(found), *volume.shape[1:]), device=found.device
                )
            total.select(axis, number).add_(found)
    assert total is not None
    return total.div_(3)


def view_shapes(
    shape: tuple[int, ...], stretch: tuple[float, float]
) -> list[tuple[tuple[int, ...], int]]:
    """Sizes of the planes of a volume of `shape` (D, H, W) from three sides, as networks see them; how many of each."""
    depth, height, width = shape
    upright = [
        ((_stretched(depth, f), n), m)
        for f, n, m in ((stretch[1], width, height), (stretch[0], height, width))
    ]
    return [((height, width), depth), *upright]


def _isotropic(plane: Array, factor: float, mean: Callable[[Array], Tensor]) -> Tensor:
    """`mean` of a plane (C, D, n) that is `factor` times as long along D for it."""
    depth, width = plane.shape[1:]
    if _stretched(depth, factor) == depth:
        return mean(plane)
    grey = torch.from_numpy(plane.astype(np.float32))[None]
    longer = interpolate(
        grey, (_stretched(depth, factor), width), mode="bilinear", antialias=True
    )[0].numpy()
    return interpolate(
        mean(longer)[None], (depth, width), mode="bilinear", antialias=True
    )[0]


def _stretched(length: int, factor: float) -> int:
    return max(1, round(length * factor))
