"""Features of pixels: grey values, medians, and Gaussian features at several scales.

Each step is a single addition, multiplication, comparison or square root of float32
numbers, all of which IEEE 754 rounds in one way. So a feature has the same bits on a
CPU and on a GPU, and in a tile as in the whole image. torch's convolution does not
guarantee this.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from napari_strata.core.geometry import GAUSSIANS, octave_reach
from napari_strata.core.tiling import Box, Tile, plan_tiles
from napari_strata.models.pixels.selection import median
from napari_strata.models.pixels.threads import single_threaded_pool

Array = np.ndarray[Any, Any]

MEDIANS = (3, 5)
"""Sides of the windows of the medians, in pixels."""

PLAIN = 1 + len(MEDIANS)
"""Features of a channel that belong to no level."""

PER_LEVEL = 4 * len(GAUSSIANS)
"""Features of a channel at one level."""


def count_features(channels: int, levels: int) -> int:
    """Number of features of an image with so many channels."""
    return channels * (PLAIN + PER_LEVEL * levels)


def gradient_rows(channels: int, neighbours: int = 0) -> slice:
    """Rows of the finest gradients of a plane itself, among the features of an image.

    Neighbouring slices, of which there are so many on each side, do not count.
    """
    own = channels // (2 * neighbours + 1)
    first = (PLAIN + 1) * channels + neighbours * own
    return slice(first, first + own)


@torch.inference_mode()
def compute_features(image: Tensor, levels: int) -> Tensor:
    """Compute the features of an image.

    At each octave level the image is half as large as before. There it is smoothed with
    each of `GAUSSIANS`, and the smoothed value, the length of its gradient and the two
    eigenvalues of its Hessian matrix are features; they are enlarged by linear
    interpolation. The border is continued by its nearest pixel.

    Parameters
    ----------
    image
        Scaled grey values float32 (C, H, W), on any device.
    levels
        Number of octave levels. Those of fewer levels come first, so that the first
        `count_features` rows are the features of fewer levels.

    Returns
    -------
    float32 (F, H, W) on the same device.
    """
    channels, height, width = image.shape
    out = image.new_empty((count_features(channels, levels), height, width))
    out[:channels] = image
    for number, size in enumerate(MEDIANS, start=1):
        out[number * channels : (number + 1) * channels] = median(image, size)
    row = PLAIN * channels
    sizes = [(height, width)]
    level_image = image
    for level in range(levels):
        if level:
            level_image = _halve(level_image)
            sizes.append((level_image.shape[-2], level_image.shape[-1]))
        for feature in _level_features(level_image):
            enlarged = feature
            for larger in reversed(sizes[:-1]):
                enlarged = _double(enlarged, larger)
            out[row : row + channels] = enlarged
            row += channels
    return out


def features_at(
    image: Tensor,
    places: Array,
    levels: int,
    *,
    device: torch.device,
    tile: int | None = None,
) -> Array:
    """Compute the features of some pixels of an image.

    Parts of the image without any of them are not looked at.

    Parameters
    ----------
    image
        Scaled grey values float32 (C, H, W), on the CPU.
    places
        Flat indices of the pixels, (n,).
    levels
        Number of octave levels; see `compute_features`.
    device
        Device that computes the features.
    tile
        Side of the parts that are computed at a time, a multiple of the stride; by
        default `tile_side`. It changes no feature.

    Returns
    -------
    float32 (n, F).
    """
    shape = image.shape[1:]
    rows, columns = np.divmod(places, shape[1])
    values = np.empty((len(places), count_features(len(image), levels)), np.float32)
    tiles = plan_tiles(
        shape,
        tile=tile or tile_side(levels),
        halo=octave_reach(levels),
        stride=2 ** (levels - 1),
    )

    def compute(tile: Tile) -> None:
        inside = np.flatnonzero(_is_within(rows, columns, tile.write))
        if not len(inside):
            return
        maps = compute_features(image[:, *tile.read].to(device), levels)
        y = torch.from_numpy(rows[inside] - tile.read[0].start).to(device)
        x = torch.from_numpy(columns[inside] - tile.read[1].start).to(device)
        values[inside] = maps[:, y, x].T.cpu().numpy()

    with single_threaded_pool() as pool:
        list(pool.map(compute, tiles))
    return values


def tile_side(levels: int) -> int:
    """Side of the parts of an image whose features are computed at a time."""
    return max(256, 8 * octave_reach(levels))


def _is_within(rows: Array, columns: Array, box: Box) -> Array:
    down, across = box
    inside: Array = (rows >= down.start) & (rows < down.stop)
    inside &= (columns >= across.start) & (columns < across.stop)
    return inside


def _level_features(image: Tensor) -> Iterator[Tensor]:
    """Features of one level (C, h, w) at its own size, for each Gaussian in turn."""
    for sigma, radius in GAUSSIANS:
        smooth = _smooth(image, _gaussian(sigma, radius))
        yield smooth
        padded = pad(smooth[None], (1, 1, 1, 1), mode="replicate")[0]
        left, right = padded[:, 1:-1, :-2], padded[:, 1:-1, 2:]
        above, below = padded[:, :-2, 1:-1], padded[:, 2:, 1:-1]
        along_x, along_y = (right - left).mul_(0.5), (below - above).mul_(0.5)
        yield along_x.square_().add_(along_y.square_()).sqrt_()
        twice = smooth + smooth
        xx, yy = (left + right).sub_(twice), (above + below).sub_(twice)
        falling = padded[:, :-2, :-2] + padded[:, 2:, 2:]
        rising = padded[:, :-2, 2:] + padded[:, 2:, :-2]
        xy = falling.sub_(rising).mul_(0.25)
        mean = (xx + yy).mul_(0.5)
        spread = xx.sub_(yy).mul_(0.5).square_().add_(xy.square_()).sqrt_()
        yield mean + spread
        yield mean.sub_(spread)


def _gaussian(sigma: float, radius: int) -> list[float]:
    """Weights of a Gaussian from its centre outwards; they sum to 1 on both sides."""
    weights = [math.exp(-0.5 * (i / sigma) ** 2) for i in range(radius + 1)]
    total = weights[0] + 2 * sum(weights[1:])
    return [weight / total for weight in weights]


def _smooth(image: Tensor, weights: list[float]) -> Tensor:
    """Convolve an image (C, H, W) with a symmetric kernel along both axes."""
    radius = len(weights) - 1
    for dimension in (-1, -2):
        length = image.shape[dimension]
        sides = (radius, radius, 0, 0) if dimension == -1 else (0, 0, radius, radius)
        padded = pad(image[None], sides, mode="replicate")[0]
        image = padded.narrow(dimension, radius, length) * weights[0]
        for i, weight in enumerate(weights[1:], start=1):
            before = padded.narrow(dimension, radius - i, length)
            after = padded.narrow(dimension, radius + i, length)
            image += (before + after).mul_(weight)
    return image


_BINOMIAL = [6 / 16, 4 / 16, 1 / 16]


def _halve(image: Tensor) -> Tensor:
    """Smooth an image (C, H, W) and take every second row and column."""
    return _smooth(image, _BINOMIAL)[:, ::2, ::2].contiguous()


def _double(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Enlarge an image (C, h, w) to twice its size, by linear interpolation."""
    for dimension, length in zip((-2, -1), size, strict=True):
        shape = list(image.shape)
        shape[dimension] = length
        out = image.new_empty(shape)
        half = image.shape[dimension]
        # Pixels of the coarse level lie on every second one of the finer.
        out[_every_second(dimension, 0)] = image
        odd = length // 2
        if odd:
            first = image.narrow(dimension, 0, odd)
            following = image.narrow(dimension, 1, half - 1)
            if odd == half:
                last = image.narrow(dimension, half - 1, 1)
                following = torch.cat([following, last], dimension)
            out[_every_second(dimension, 1)] = (first + following).mul_(0.5)
        image = out
    return image


def _every_second(dimension: int, start: int) -> tuple[slice, ...]:
    """Index of every second row (-2) or column (-1) of an image."""
    steps = [slice(None)] * 3
    steps[dimension] = slice(start, None, 2)
    return tuple(steps)
