"""Augmentation: a batch of patches varied where it lies, on the device, after normalisation.

Mirroring and quarter turns move pixels without interpolating. Rotation, scale, shear and bending become one sampling
grid, so that a picture is interpolated once. Beyond the picture's edge the image is continued by reflection and the
labels are `IGNORE`: what was not seen is not background.

Every choice is drawn from a generator on the CPU, so it is the same on every device and goes on from a saved state.

Of a volume everything but the mirroring along Z happens in the YX plane, alike in all planes of a patch, as nnU-Net
does it where planes lie further apart than pixels (Isensee et al. 2021, https://doi.org/10.1038/s41592-020-01008-z):
no grey value is mixed with that of another plane, and no label moves to another one.
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
"""Pixels between the control points of a bend, at least."""

UNFOLDED = 2.1
"""Control points must be this many times further apart than they move, and no bend folds the picture over itself."""


class Augmenter:
    """Varies batches as the recipe's `section` says; an item at 0 or false costs nothing.

    Parameters
    ----------
    physical
        whether the grey value means something (CT): then brightness, contrast and gamma are left alone.

    Notes
    -----
    Bending is a free-form deformation by cubic B-splines (Rueckert et al. 1999, doi:10.1109/42.796284) whose control
    points are so far apart that it never folds (Choi and Lee 2000, doi:10.1006/gmod.2000.0531). Brightness and noise
    are in units of the normalised image, which are standard deviations.
    """

    def __init__(self, section: Augmentation, *, physical: bool) -> None:
        off = {"brightness": 0.0, "contrast": 0.0, "gamma": 0.0} if physical else {}
        self.section = section.model_copy(update=off)

    def __call__(
        self, images: Tensor, labels: Tensor, generator: Generator
    ) -> tuple[Tensor, Tensor]:
        """Images float (N, C, H, W) and labels uint8 (N, H, W), varied together: new tensors of the same shapes.

        Or volumes, (N, C, D, H, W) and (N, D, H, W).

        `generator` is on the CPU, whatever device the tensors are on; what is given is not changed.
        """
        images, labels = _turned(images, labels, self.section, generator)
        images, labels = _warped(images, labels, self.section, generator)
        return _recoloured(images, self.section, generator), labels


def _turned(
    images: Tensor, labels: Tensor, section: Augmentation, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Mirrored and turned by quarters: each sample gets one of the eight symmetries of the square; a volume may be
    mirrored along Z as well."""
    count = len(images)
    turns, mirror = (
        torch.zeros(count, dtype=torch.long),
        torch.zeros(count, dtype=torch.bool),
    )
    if section.quarter_turns:
        turns = torch.randint(4, (count,), generator=generator)
        if images.shape[-1] != images.shape[-2]:
            turns = turns // 2 * 2  # a quarter turn would change the shape
    if section.flip_horizontal:
        mirror = _chosen(count, 0.5, generator)
    if section.flip_vertical:  # the horizontal mirror, turned by two quarters
        upside = _chosen(count, 0.5, generator)
        mirror, turns = mirror ^ upside, (turns + 2 * upside) % 4
    depth = torch.zeros_like(mirror)
    if images.ndim == 5 and section.flip_depth:
        depth = _chosen(count, 0.5, generator)
    kinds = (turns + 4 * mirror + 8 * depth).tolist()
    if not any(kinds):
        return images, labels
    images, labels = images.clone(), labels.clone()
    for kind in sorted(set(kinds) - {0}):
        rows = [i for i, other in enumerate(kinds) if other == kind]
        images[rows], labels[rows] = (
            _symmetry(images[rows], kind),
            _symmetry(labels[rows], kind),
        )
    return images, labels


def _symmetry(values: Tensor, kind: int) -> Tensor:
    mirrored = values.flip(-1) if kind & 4 else values
    mirrored = mirrored.flip(-3) if kind & 8 else mirrored
    return torch.rot90(mirrored, kind % 4, (-2, -1))


def _warped(
    images: Tensor, labels: Tensor, section: Augmentation, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Rotated, scaled, sheared and bent by one grid; samples that were not chosen stay as they are, bit for bit."""
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
    pictures, codes = images.clone(), labels.clone()
    for some in _chunks(rows, images.device):
        bend = bends[some].to(images) if section.elastic else None
        grid = _grid(shape, matrices[some].to(images), bend, knots)
        # Planes of a volume stand beside each other as channels do: the grid moves them all alike.
        flat = _sampled(images[some].flatten(1, -3), grid, "bilinear", "reflection")
        pictures[some] = flat.reshape(-1, *images.shape[1:])
        # Labels less IGNORE, so that the zeros outside the picture come back as IGNORE.
        shifted = (labels[some].to(images.dtype) - IGNORE).reshape(
            len(some), -1, *shape
        )
        found = (_sampled(shifted, grid, "nearest", "zeros") + IGNORE).to(labels.dtype)
        codes[some] = found.reshape(-1, *labels.shape[1:])
    return pictures, codes


def _sampled(values: Tensor, grid: Tensor, mode: str, padding: str) -> Tensor:
    return F.grid_sample(
        values, grid, mode=mode, padding_mode=padding, align_corners=False
    )


def _matrices(count: int, section: Augmentation, generator: Generator) -> Tensor:
    """(N, 2, 2): where in the source (y, x from the centre, in pixels) each pixel is taken from."""
    most = (
        math.radians(section.rotation),
        math.log1p(section.scale),
        math.radians(section.shear),
    )
    angle, zoom, shear = (
        _sometimes(count, m, section.probability, generator) for m in most
    )
    one, zero = torch.ones(count), torch.zeros(count)
    turn = torch.stack(
        [angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1
    ).reshape(-1, 2, 2)
    slant = torch.stack([one, zero, shear.tan(), one], 1).reshape(-1, 2, 2)
    return turn @ slant * zoom.exp().reshape(-1, 1, 1)


def _grid(
    shape: Sequence[int],
    matrices: Tensor,
    bends: Tensor | None,
    knots: Sequence[Tensor],
) -> Tensor:
    """Sampling grid (N, *shape, axes) for `grid_sample`, from matrices (N, axes, axes) and control points of bends."""
    axes = len(shape)
    centred = [
        (
            torch.arange(n, device=matrices.device, dtype=matrices.dtype) - (n - 1) / 2
        ).reshape([-1 if i == j else 1 for j in range(axes)])
        for i, n in enumerate(shape)
    ]
    # In the grid's units from the start (the whole length of an axis is 2): small tensors are cheaper to scale.
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
        for weights in (
            knots
        ):  # each contracts the first spatial axis and appends it at full length
            bends = torch.tensordot(bends, weights.to(bends), ([2], [1]))
        source = [s + bends[:, i] for i, s in enumerate(source)]
    return torch.stack(source[::-1], -1)


def _knots(shape: Sequence[int], elastic: float) -> list[Tensor]:
    """For each axis the weights (pixels, control points) of cubic B-splines; rows sum to 1."""
    spacing = max(SPACING, UNFOLDED * elastic)
    return (
        [_spline(length, spacing) for length in shape]
        if elastic
        else [torch.zeros(n, 1) for n in shape]
    )


def _spline(length: int, spacing: float) -> Tensor:
    controls = torch.arange(math.ceil((length - 1) / spacing) + 3) - 1
    distance = (torch.arange(length)[:, None] / spacing - controls).abs()
    near, far = (
        2 / 3 - distance**2 + distance**3 / 2,
        (2 - distance).clamp_min(0) ** 3 / 6,
    )
    return torch.where(distance < 1, near, far)


def _recoloured(images: Tensor, section: Augmentation, generator: Generator) -> Tensor:
    """Blurred, then contrast, brightness and gamma, then noise: the order in which a camera would do it."""
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
    """Contrast multiplied by `stretch` (N,) about each channel's mean, then `shift` (N,) added."""
    factor, offset = _beside(stretch, images), _beside(shift, images)
    mean = (
        images.flatten(2).mean(2).reshape(images.shape[:2] + (1,) * (images.ndim - 2))
    )
    return torch.addcmul(mean * (1 - factor) + offset, images, factor)


def _bent(images: Tensor, power: Tensor) -> Tensor:
    """Grey values raised to `power` (N,) between each channel's smallest and largest, which stay."""

    def bend(chosen: Tensor, some: list[int]) -> Tensor:
        axes = tuple(range(2, chosen.ndim))
        low = chosen.amin(axes, keepdim=True)
        span = (chosen.amax(axes, keepdim=True) - low).clamp_min(1e-6)
        return ((chosen - low) / span).pow(_beside(power[some], chosen)) * span + low

    return _changed(images, power != 1, bend)


def _noisy(images: Tensor, spread: Tensor, generator: Generator) -> Tensor:
    """Gaussian noise of standard deviation `spread` (N,) added.

    The grains are drawn on the images' own device, from a seed that `generator` gives: on the CPU they would cost more
    than the step of a fast GPU. So they, and only they, differ between kinds of device.
    """
    rows = spread.nonzero().flatten().tolist()
    if not rows:
        return images
    own = Generator(images.device).manual_seed(
        int(torch.randint(2**62, (), generator=generator))
    )
    grains = torch.randn(
        (len(rows), *images.shape[1:]),
        generator=own,
        device=images.device,
        dtype=images.dtype,
    )
    out = images.clone()
    out[rows] = torch.addcmul(images[rows], grains, _beside(spread[rows], images))
    return out


def _blurred(images: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur of `sigma` (N,) pixels along Y and X; the edge continues as it is."""
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
    """Each sample convolved along one axis with its own kernel (N, taps)."""
    radius, length = kernels.shape[1] // 2, images.shape[axis]
    margins = [
        radius if other == axis else 0
        for other in range(images.ndim - 1, 1, -1)
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
    """Uniform numbers within `most` either way."""
    return (2 * torch.rand(*shape, generator=generator) - 1) * most


def _sometimes(
    count: int, most: float, probability: float, generator: Generator
) -> Tensor:
    """Numbers within `most` either way for about a share `probability` of the samples, 0 for the others."""
    if not most:
        return torch.zeros(count)
    return _within((count,), most, generator) * _chosen(count, probability, generator)


def _beside(numbers: Tensor, images: Tensor) -> Tensor:
    """One number a sample, shaped and placed to combine with images."""
    return numbers.to(images).reshape(-1, *[1] * (images.ndim - 1))


def _changed(
    images: Tensor, which: Tensor, change: Callable[[Tensor, list[int]], Tensor]
) -> Tensor:
    """Images with the samples `which` (N, bool) replaced by `change(samples, their numbers)`."""
    rows = which.nonzero().flatten().tolist()
    if not rows:
        return images
    out = images.clone()
    for some in _chunks(rows, images.device):
        out[some] = change(images[some], some)
    return out


def _chunks(rows: list[int], device: torch.device) -> list[list[int]]:
    """A CPU is fastest on what fits its cache (tried: half the time), a GPU on everything at once."""
    size = torch.get_num_threads() if device.type == "cpu" else len(rows)
    return [rows[i : i + size] for i in range(0, len(rows), size)]
