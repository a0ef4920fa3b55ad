"""Tiles of a picture for the network, and the pixels of each that are kept.

Plain integers only.

A picture is a plane (rows, columns) or a volume (planes, rows, columns); sizes are one
number for all of its axes or one for each.

Two plans. `plan_tiles` crops a halo, so that every output pixel comes from one tile and
equals the prediction of the whole plane. `plan_overlap` is for networks that look at
their whole tile, where no halo helps: equal tiles overlap and their probabilities are
blended with `blend_weights`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Protocol, TypeAlias

import numpy as np

Box: TypeAlias = tuple[slice, ...]
"""Rows and columns; of a volume planes, rows and columns."""

Sizes: TypeAlias = int | Sequence[int]
"""The same for every axis, or one for each."""


@dataclass(frozen=True)
class Tile:
    """One part of an image plane or volume.

    Parameters
    ----------
    read
        Box that is given to the network.
    crop
        Box of the network's output that is kept, counted from the start of `read`.
    write
        Box of the image that this output belongs to. The writes of a plan cover every
        pixel exactly once.
    """

    read: Box
    crop: Box
    write: Box


def plan_tiles(
    shape: Sequence[int], *, tile: Sizes, halo: Sizes, stride: Sizes
) -> list[Tile]:
    """Plan the tiles of an image of `shape`, row by row (plane by plane).

    Reads start at multiples of `stride`: downsampling depends on the first pixel, so a
    tile that starts elsewhere gives other labels (measured: an offset of 13 pixels
    changed 1.2 % of them). Every read reaches `halo` pixels (rounded up to the stride)
    beyond what it writes, or to the border of the plane. Sizes are spread evenly: at
    most two lengths along an axis, and the last one, which is cut at the border.

    Parameters
    ----------
    tile
        Intended side of a tile in pixels. A read may be up to four halos longer, since
        fewer tiles have fewer halos. Example: for 2048 x 2048 pixels and tile 512, the
        network computes 1.20 times the pixels with halo 32, and 1.27 times with halo
        64. A plane no longer than that is read in one piece.
    halo
        Pixels around a tile that the network sees and whose output is cropped away.
    stride
        Factor by which the network's deepest level is smaller than its input.

    Raises
    ------
    ValueError
        when a length is below 1 (halo: below 0).
    """
    axes = len(shape)
    sizes = [shape, each(tile, axes), each(stride, axes), each(halo, axes)]
    if min(min(lengths) for lengths in sizes[:3]) < 1 or min(sizes[3]) < 0:
        raise ValueError(
            f"shape {shape}, tile {tile} and stride {stride} must be positive, halo"
            f" {halo} not negative"
        )
    plans = (
        plan_axis(n, tile=t, halo=h, stride=s)
        for n, t, s, h in zip(*sizes, strict=True)
    )
    return [Tile(*zip(*parts, strict=True)) for parts in product(*plans)]


def each(size: Sizes, axes: int) -> tuple[int, ...]:
    """One size for each of so many axes."""
    return (size,) * axes if isinstance(size, int) else tuple(size)


def plan_axis(
    length: int, *, tile: int, halo: int, stride: int
) -> list[tuple[slice, slice, slice]]:
    """Read, crop and write along one axis.

    Counted in strides, of which the last may be cut by the border.
    """
    margin = -(-halo // stride)
    longest = max(1, tile // stride) + 4 * margin
    total = -(-length // stride)
    if total <= longest:
        return [(slice(0, length),) * 3]
    count = -(-(total - 2 * margin) // (longest - 2 * margin))
    # All reads together are the axis and two halos at each of the seams, however it is
    # cut.
    base, extra = divmod(total + 2 * margin * (count - 1), count)
    cuts, start = [0], 0
    for i in range(count - 1):
        start += base + (i < extra) - 2 * margin
        cuts.append(start + margin)
    parts = []
    for begin, end in zip(cuts, [*cuts[1:], total], strict=True):
        read = slice(
            max(0, begin - margin) * stride, min(length, (end + margin) * stride)
        )
        write = slice(begin * stride, min(length, end * stride))
        parts.append(
            (read, slice(write.start - read.start, write.stop - read.start), write)
        )
    return parts


class TilingSpec(Protocol):
    """The fields of a `ModelSpec` that say how images are cut.

    One size for each axis.
    """

    @property
    def blend(self) -> bool:
        """True when overlapping tiles are blended, false when a halo is cropped."""

    @property
    def tile_shape(self) -> tuple[int, ...]:
        """Size of a tile."""

    @property
    def halo_shape(self) -> tuple[int, ...]:
        """Pixels that are cropped from each side of a tile."""

    @property
    def stride_shape(self) -> tuple[int, ...]:
        """Factor by which the deepest level is smaller than the input."""


def shared_stride(specs: Sequence[TilingSpec], axis: int = 0) -> int:
    """Return the stride along an axis that suits models that predict together."""
    return math.lcm(*(spec.stride_shape[axis] for spec in specs))


def shared_halo(specs: Sequence[TilingSpec], axis: int = 0) -> int:
    """Return the largest halo along an axis of models that predict together.

    Where tiles are blended, it is a quarter of a tile at least.
    """
    halos = []
    for spec in specs:
        halo = spec.halo_shape[axis]
        if spec.blend:
            halo = max(halo, spec.tile_shape[axis] // 4)
        halos.append(halo)
    return max(halos)


def read_range(
    write: slice, length: int, *, halo: int, stride: int, least: int = 0
) -> slice:
    """Return the range to read along one axis to predict `write`: a halo on both sides.

    It starts at a multiple of the stride, as tiles do, and ends at one or at the
    border.

    Parameters
    ----------
    length
        Length of the image along this axis.
    least
        Number of pixels to read at least, if the image has them.
    """
    halo = max(halo, (least - (write.stop - write.start)) // 2)
    # Near a border, shift the range so that it still has `least` pixels.
    start = max(0, min(write.start - halo, length - least))
    stop = max(write.stop + halo, start + least)
    return slice(
        start // stride * stride, min(length, math.ceil(stop / stride) * stride)
    )


def plan_overlap(
    length: int, *, tile: int, stride: int, overlap: float = 0.25
) -> list[int]:
    """First pixels of evenly spread tiles of `tile` pixels, multiples of `stride`.

    Neighbours share at least the `overlap` share of a tile, and at least one stride of
    it. `length` must be at least `tile`, and both multiples of `stride`: the plane is
    padded first, see `padded_length`.
    """
    shared = max(1, round(tile * overlap / stride))
    total, side = length // stride, tile // stride
    step = max(1, side - shared)
    count = 1 + max(0, -(-(total - side) // step))
    return [round(x) * stride for x in np.linspace(0, total - side, count)]


def padded_length(length: int, *, tile: int, stride: int) -> int:
    """The shortest multiple of `stride` that holds both `length` pixels and a tile."""
    return max(tile, -(-length // stride) * stride)


def blend_weights(
    starts: list[int], *, tile: int, length: int
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Weights (tiles, tile) float32 of the tiles starting at `starts`.

    Over each of `length` pixels they sum to one.

    A Gaussian of a standard deviation of an eighth of the tile, as in nnU-Net (Isensee
    et al. 2021, https://doi.org/10.1038/s41592-020-01008-z), divided by the sum over
    all tiles. The weight of a pixel is the product of its row's and its column's, so
    nothing of the size of the plane is needed to divide by.
    """
    position = np.arange(tile) - (tile - 1) / 2
    gaussian = np.maximum(np.exp(-0.5 * (position / (tile / 8)) ** 2), 1e-3)
    total = np.zeros(length)
    for start in starts:
        total[start : start + tile] += gaussian
    return np.stack(
        [gaussian / total[start : start + tile] for start in starts]
    ).astype(np.float32)
