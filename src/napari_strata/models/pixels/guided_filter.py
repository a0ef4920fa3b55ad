"""The guided filter, which moves probabilities to the edges of an image.

He, Sun and Tang 2013, https://doi.org/10.1109/TPAMI.2012.213.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

SMALLEST_VARIANCE = 1e-4
"""Least variance of scaled grey values that counts as an edge; an image has about 1."""


@torch.inference_mode()
def guided_filter(
    values: Tensor, guide: Tensor, weights: Tensor, *, radius: int, variance: float
) -> Tensor:
    """Smooth values where the guide is smooth; keep edges where the guide has edges.

    In each window the values are fitted as a linear function of the guide, by weighted
    least squares; each pixel gets the weighted mean of the fits of its windows. With
    equal weights this is the filter of the paper. A pixel of small weight takes its
    value from the others: halfway up an edge it is halfway between the two sides, and
    not a third class that has such grey values.

    Sums are shifted and added; there are no cumulative sums, so that a tile gives the
    same bits as the whole image.

    Parameters
    ----------
    values
        Values to smooth, float32 (K, H, W).
    guide
        Guide, float32 (H, W).
    weights
        Weight of each pixel, float32 (H, W), above 0: how far its value is trusted.
    radius
        Radius of the windows in pixels; each value depends on twice as many pixels on
        each side.
    variance
        Variance of the guide below which a window counts as smooth; the epsilon of the
        paper.

    Returns
    -------
    float32 (K, H, W).
    """
    guide, weights = guide[None], weights[None]
    trust = _box_mean(weights, radius)
    weighted_guide = weights * guide
    mean_guide = _box_mean(weighted_guide, radius).div_(trust)
    deviation = _box_mean(weighted_guide * guide, radius).div_(trust)
    deviation = deviation.sub_(mean_guide * mean_guide).clamp_min_(0)
    deviation.add_(max(variance, SMALLEST_VARIANCE))
    total_trust = _box_mean(trust, radius)
    out = torch.empty_like(values)
    for k in range(len(values)):
        weighted = weights * values[k : k + 1]
        mean = _box_mean(weighted, radius).div_(trust)
        slope = _box_mean(weighted.mul_(guide), radius).div_(trust)
        slope = slope.sub_(mean_guide * mean).div_(deviation)
        offset = mean.sub_(slope * mean_guide)
        smooth = _box_mean(slope.mul_(trust), radius).mul_(guide)
        smooth = smooth.add_(_box_mean(offset.mul_(trust), radius))
        out[k] = smooth.div_(total_trust)[0]
    return out


def estimate_noise(guide: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> float:
    """Estimate the standard deviation of the noise of an image (H, W).

    From the second differences of Immerkaer 1996
    (https://doi.org/10.1006/cviu.1996.0060), by their median instead of their mean, so
    that edges do not count. 0 for an image of fewer than 3 x 3 pixels.
    """
    if min(guide.shape) < 3:
        return 0.0
    rows = guide[:-2] - 2 * guide[1:-1] + guide[2:]
    second = rows[:, :-2] - 2 * rows[:, 1:-1] + rows[:, 2:]
    # .6745 is the median of the absolute value of a standard normal variable; the
    # weights of the differences have the norm 6.
    return float(np.median(np.abs(second))) / 0.6745 / 6


def _box_mean(values: Tensor, radius: int) -> Tensor:
    """Mean of the window around each pixel of (C, H, W); its border is continued."""
    side = 2 * radius + 1
    for dimension in (-1, -2):
        length = values.shape[dimension]
        sides = (radius, radius, 0, 0) if dimension == -1 else (0, 0, radius, radius)
        sums = pad(values[None], sides, mode="replicate")[0]
        total, offset, width = None, 0, 1
        # Sums of 1, 2, 4, ... pixels; those that add up to the side are taken.
        while width <= side:
            if side & width:
                part = sums.narrow(dimension, offset, length)
                total = part.clone() if total is None else total.add_(part)
                offset += width
            width *= 2
            if width <= side:
                rest = sums.shape[dimension] - width // 2
                first = sums.narrow(dimension, 0, rest)
                sums = first + sums.narrow(dimension, width // 2, rest)
        assert total is not None
        values = total
    return values.mul_(1 / (side * side))
