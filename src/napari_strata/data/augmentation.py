"""Augmentation of batches of patches on the device, after normalisation.

Mirroring and quarter turns move pixels without interpolating. Rotation, scale, shear
and bending become one sampling grid, so that an image is interpolated once. Beyond the
image's edge, grey values are continued by reflection and labels are `IGNORE`, because
pixels that were not seen are not background.

Every choice is drawn from a generator on the CPU, so it is the same on every device and
continues from a saved state.

Volumes are mirrored along Z too. Everything else happens in the YX plane, equally in
all planes of a patch, as nnU-Net does it where planes lie further apart than pixels
(Isensee et al. 2021, https://doi.org/10.1038/s41592-020-01008-z): no grey value is
mixed with that of another plane, and no label moves to another one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from napari_strata.core.classes import IGNORE
from napari_strata.core.recipe import Augmentation

SPACING = 32.0
"""Smallest distance between control points of a bend, in pixels."""

UNFOLDED = 2.1
"""Distance between control points over their largest move, so that no bend folds."""


class Augmenter:
    """Varies batches as a recipe's section says; an item at 0 or false costs nothing.

    Parameters
    ----------
    physical
        True if grey values have a physical meaning (CT). Brightness, contrast and gamma
        are then not changed.

    Notes
    -----
    Bending is a free-form deformation by cubic B-splines (Rueckert et al. 1999,
    doi:10.1109/42.796284) whose control points are so far apart that it never folds
    (Choi and Lee 2000, doi:10.1006/gmod.2000.0531). Brightness and noise are in units
    of the normalised image, which are standard deviations.
    """

    def __init__(self, section: Augmentation, *, physical: bool) -> None:
        if physical:
            off = {"brightness": 0.0, "contrast": 0.0, "gamma": 0.0}
            section = section.model_copy(update=off)
        self.section = section

    def __call__(
        self, images: Tensor, labels: Tensor, generator: Generator
    ) -> tuple[Tensor, Tensor]:
        """Vary images and labels together, and return new tensors of the same shapes.

        Parameters
        ----------
        images
            Float (N, C, H, W), or volumes (N, C, D, H, W).
        labels
            uint8 (N, H, W), or (N, D, H, W).
        generator
            Generator on the CPU, whatever device the tensors are on.
        """
        images, labels = _turned(images, labels, self.section, generator)
        images, labels = _warped(images, labels, self.section, generator)
        return _recoloured(images, self.section, generator), labels


def _turned(
    images: Tensor, labels: Tensor, section: Augmentation, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Mirror and turn by quarters.

    Each sample gets one of the eight symmetries of the square; a volume may be mirrored
    along Z as well.
    """
    count = len(images)
    turns = torch.zeros(count, dtype=torch.long)
    mirror = torch.zeros(count, dtype=torch.bool)
    if section.quarter_turns:
        turns = torch.randint(4, (count,), generator=generator)
        if images.shape[-1] != images.shape[-2]:
            turns = turns // 2 * 2  # a quarter turn would change the shape
    if section.flip_horizontal:
        mirror = _chosen(count, 0.5, generator)
    if section.flip_vertical:  # the horizontal mirror, turned by two quarters
        vertical = _chosen(count, 0.5, generator)
        mirror = mirror ^ vertical
        turns = (turns + 2 * vertical) % 4
    depth = torch.zeros_like(mirror)
    if images.ndim == 5 and section.flip_depth:
        depth = _chosen(count, 0.5, generator)
    kinds = (turns + 4 * mirror + 8 * depth).tolist()
    if not any(kinds):
        return images, labels
    images, labels = images.clone(), labels.clone()
    for kind in sorted(set(kinds) - {0}):
        rows = [i for i, row_kind in enumerate(kinds) if row_kind == kind]
        images[rows] = _symmetry(images[rows], kind)
        labels[rows] = _symmetry(labels[rows], kind)
    return images, labels


def _symmetry(values: Tensor, kind: int) -> Tensor:
    """Turn by ``kind % 4`` quarters; bits 4 and 8 mirror along X and Z before that."""
    mirrored = values.flip(-1) if kind & 4 else values
    mirrored = mirrored.flip(-3) if kind & 8 else mirrored
    return torch.rot90(mirrored, kind % 4, (-2, -1))


def _warped(
    images: Tensor, labels: Tensor, section: Augmentation, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Rotate, scale, shear and bend by one grid.

    Samples that were not chosen stay as they are, bit for bit.
    """
    count, shape = len(images), images.shape[-2:]
    matrices = _matrices(count, section, generator)
    knots = _knots(shape, section.elastic)
    bends = torch.zeros(count, len(shape), *(k.shape[1] for k in knots))
    if section.elastic:
        bends = _within(bends.shape, section.elastic, generator)
        bends *= _chosen(count, section.probability, generator).reshape(
            -1, *[1] * (bends.ndim - 1)
        )
    changed = (matrices != torch.eye(2)).flatten(1).any(1) | bends.flatten(1).any(1)
    rows = changed.nonzero().flatten().tolist()
    if not rows:
        return images, labels
    warped_images, warped_labels = images.clone(), labels.clone()
    for samples in _chunks(rows, images.device):
        bend = bends[samples].to(images) if section.elastic else None
        grid = _grid(shape, matrices[samples].to(images), bend, knots)
        # Planes of a volume are sampled as channels: the grid moves them all equally.
        planes = images[samples].flatten(1, -3)
        planes = _sampled(planes, grid, "bilinear", "reflection")
        warped_images[samples] = planes.reshape(-1, *images.shape[1:])
        # IGNORE is subtracted, so that zeros outside the image come back as IGNORE.
        shifted = labels[samples].to(images.dtype) - IGNORE
        shifted = shifted.reshape(len(samples), -1, *shape)
        codes = (_sampled(shifted, grid, "nearest", "zeros") + IGNORE).to(labels.dtype)
        warped_labels[samples] = codes.reshape(-1, *labels.shape[1:])
    return warped_images, warped_labels


def _sampled(values: Tensor, grid: Tensor, mode: str, padding: str) -> Tensor:
    return F.grid_sample(
        values, grid, mode=mode, padding_mode=padding, align_corners=False
    )


def _matrices(count: int, section: Augmentation, generator: Generator) -> Tensor:
    """Matrices (N, 2, 2) from a pixel to its source, as (y, x) from the centre."""
    most = (
        math.radians(section.rotation),
        math.log1p(section.scale),
        math.radians(section.shear),
    )
    angle, zoom, shear = (
        _sometimes(count, m, section.probability, generator) for m in most
    )
    ones, zero = torch.ones(count), torch.zeros(count)
    turn = torch.stack(
        [angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1
    ).reshape(-1, 2, 2)
    slant = torch.stack([ones, zero, shear.tan(), ones], 1).reshape(-1, 2, 2)
    return turn @ slant * zoom.exp().reshape(-1, 1, 1)


def _grid(
    shape: Sequence[int],
    matrices: Tensor,
    bends: Tensor | None,
    knots: Sequence[Tensor],
) -> Tensor:
    """Sampling grid (N, *shape, axes) for `grid_sample`.

    Parameters
    ----------
    matrices
        From a pixel to its source, (N, axes, axes).
    bends
        Moves of the control points.
    """
    axes = len(shape)
    centred = [
        (
            torch.arange(n, device=matrices.device, dtype=matrices.dtype) - (n - 1) / 2
        ).reshape([-1 if i == j else 1 for j in range(axes)])
        for i, n in enumerate(shape)
    ]
    # In the grid's units from the start (the whole length of an axis is 2), because
    # small tensors are cheaper to scale.
    units = 2 / torch.tensor(shape, device=matrices.device, dtype=matrices.dtype)
    factors = (matrices * units[:, None]).reshape(-1, axes, axes, *[1] * axes)
    source = [
        sum(
            (factors[:, i, j] * centred[j] for j in range(1, axes)),
            factors[:, i, 0] * centred[0],
        )
        for i in range(axes)
    ]
    if bends is not None:
        bends = bends * units.reshape(-1, *[1] * axes)
        for weights in knots:
            # Contracts the first spatial axis and appends it at full length.
            bends = torch.tensordot(bends, weights.to(bends), ([2], [1]))
        source = [s + bends[:, i] for i, s in enumerate(source)]
    return torch.stack(source[::-1], -1)


def _knots(shape: Sequence[int], elastic: float) -> list[Tensor]:
    """Weights (pixels, control points) of cubic B-splines per axis; rows sum to 1."""
    spacing = max(SPACING, UNFOLDED * elastic)
    if not elastic:
        return [torch.zeros(length, 1) for length in shape]
    return [_spline(length, spacing) for length in shape]


def _spline(length: int, spacing: float) -> Tensor:
    controls = torch.arange(math.ceil((length - 1) / spacing) + 3) - 1
    distance = (torch.arange(length)[:, None] / spacing - controls).abs()
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = (2 - distance).clamp_min(0) ** 3 / 6
    return torch.where(distance < 1, near, far)


def _recoloured(images: Tensor, section: Augmentation, generator: Generator) -> Tensor:
    """Blur, then change contrast, brightness and gamma, then add noise, as a camera."""
    count, p = len(images), section.probability
    if section.blur:
        images = _blurred(images, _sometimes(count, section.blur, p, generator).abs())
    if section.contrast or section.brightness:
        stretch = 1 + _sometimes(count, section.contrast, p, generator)
        images = _stretched(
            images, stretch, _sometimes(count, section.brightness, p, generator)
        )
    if section.gamma:
        images = _bent(
            images, _sometimes(count, math.log1p(section.gamma), p, generator).exp()
        )
    if section.noise:
        images = _noisy(
            images, _sometimes(count, section.noise, p, generator).abs(), generator
        )
    return images


def _stretched(images: Tensor, stretch: Tensor, shift: Tensor) -> Tensor:
    """Multiply contrast by `stretch` (N,) about each channel's mean.

    Add `shift` (N,).
    """
    factor, offset = _beside(stretch, images), _beside(shift, images)
    mean = (
        images.flatten(2).mean(2).reshape(images.shape[:2] + (1,) * (images.ndim - 2))
    )
    return torch.addcmul(mean * (1 - factor) + offset, images, factor)


def _bent(images: Tensor, power: Tensor) -> Tensor:
    """Raise grey values to `power` (N,) between each channel's smallest and largest."""

    def bend(chosen: Tensor, some: list[int]) -> Tensor:
        axes = tuple(range(2, chosen.ndim))
        low = chosen.amin(axes, keepdim=True)
        span = (chosen.amax(axes, keepdim=True) - low).clamp_min(1e-6)
        return ((chosen - low) / span).pow(_beside(power[some], chosen)) * span + low

    return _changed(images, power != 1, bend)


def _noisy(images: Tensor, spread: Tensor, generator: Generator) -> Tensor:
    """Add Gaussian noise of standard deviation `spread` (N,).

    The noise is drawn on the images' device, from a seed that `generator` gives: on the
    CPU it would cost more than the step of a fast GPU. So noise, and only noise,
    differs between kinds of device.
    """
    rows = spread.nonzero().flatten().tolist()
    if not rows:
        return images
    own = Generator(images.device).manual_seed(
        int(torch.randint(2**62, (), generator=generator))
    )
    noise = torch.randn(
        (len(rows), *images.shape[1:]),
        generator=own,
        device=images.device,
        dtype=images.dtype,
    )
    out = images.clone()
    out[rows] = torch.addcmul(images[rows], noise, _beside(spread[rows], images))
    return out


def _blurred(images: Tensor, sigma: Tensor) -> Tensor:
    """Blur by a Gaussian of `sigma` (N,) pixels along Y and X; edges are repeated."""
    radius = math.ceil(3 * float(sigma.max()))
    distance = torch.arange(-radius, radius + 1)
    kernels = torch.exp(-(distance**2) / (2 * sigma.clamp_min(1e-3)[:, None] ** 2))
    kernels = kernels / kernels.sum(1, keepdim=True)

    def blur(chosen: Tensor, some: list[int]) -> Tensor:
        for axis in (chosen.ndim - 2, chosen.ndim - 1):
            chosen = _convolved(chosen, kernels[some].to(chosen), axis)
        return chosen

    return _changed(images, sigma > 0, blur)


def _convolved(images: Tensor, kernels: Tensor, axis: int) -> Tensor:
    """Convolve each sample along one axis with its own kernel (N, taps)."""
    radius, length = kernels.shape[1] // 2, images.shape[axis]
    margins = [
        radius if dimension == axis else 0
        for dimension in range(images.ndim - 1, 1, -1)
        for _ in range(2)
    ]
    padded = F.pad(images, margins, mode="replicate")
    out = torch.zeros_like(images)
    for shift, weight in enumerate(kernels.unbind(1)):
        out.addcmul_(padded.narrow(axis, shift, length), _beside(weight, images))
    return out


def _chosen(count: int, probability: float, generator: Generator) -> Tensor:
    return torch.rand(count, generator=generator) < probability


def _within(shape: Sequence[int], most: float, generator: Generator) -> Tensor:
    """Draw uniform numbers from -`most` to `most`."""
    return (2 * torch.rand(*shape, generator=generator) - 1) * most


def _sometimes(
    count: int, most: float, probability: float, generator: Generator
) -> Tensor:
    """Draw numbers from -`most` to `most` for a share of the samples, else 0."""
    if not most:
        return torch.zeros(count)
    return _within((count,), most, generator) * _chosen(count, probability, generator)


def _beside(numbers: Tensor, images: Tensor) -> Tensor:
    """Shape one number per sample to combine with images, on their device."""
    return numbers.to(images).reshape(-1, *[1] * (images.ndim - 1))


def _changed(
    images: Tensor, which: Tensor, change: Callable[[Tensor, list[int]], Tensor]
) -> Tensor:
    """Replace the samples `which` (N, bool) by `change(samples, their numbers)`."""
    rows = which.nonzero().flatten().tolist()
    if not rows:
        return images
    out = images.clone()
    for samples in _chunks(rows, images.device):
        out[samples] = change(images[samples], samples)
    return out


def _chunks(rows: list[int], device: torch.device) -> list[list[int]]:
    """Split samples into chunks.

    Few for a CPU's cache (half the time), all for a GPU.
    """
    size = torch.get_num_threads() if device.type == "cpu" else len(rows)
    return [rows[i : i + size] for i in range(0, len(rows), size)]
