"""Chunks: parts of an image that are predicted together and give whole planes.

A 2D model takes plane by plane on a CPU, and as many small planes together as make a
batch on a GPU. A 3D model takes the planes of one row of tiles at a
time, with their halo, and so does a fusion of three views. Memory then holds one chunk,
however deep the volume is. Models that blend their tiles take a volume in one piece.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from napari_strata.core.events import Message
from napari_strata.core.image import Image, Region
from napari_strata.core.spec import ModelSpec
from napari_strata.core.tiling import (
    plan_axis,
    read_range,
    shared_halo,
    shared_stride,
)

Array = np.ndarray[Any, Any]

VIEW_VALUES = 2**27
"""About how many float32 probabilities a chunk of three views holds (half a gigabyte),
unless the halo needs more planes; values of the halo are extra. The same on every
machine."""


@dataclass(frozen=True)
class Chunk:
    """Planes that are predicted together.

    Parameters
    ----------
    region
        Region that is read, see `Image.read`: one plane (Z an index), or several (Z
        a slice). Of a stack of planes, the first.
    planes
        Numbers of the planes that the chunk gives, as `Image.planes` counts them.
    keep
        Position of these planes among the planes that are read.
    stretch
        For three views: factors that make Z's pixels as long as those of Y, and of X.
    stack
        Regions of planes that a 2D model predicts together; empty for one plane and
        for a volume.
    """

    region: Region
    planes: range
    keep: slice
    stretch: tuple[float, float] = (1.0, 1.0)
    stack: tuple[Region, ...] = ()

    def read(self, image: Image) -> Array:
        """Grey values (C, H, W) of one plane, (C, D, H, W) of several."""
        if self.stack:
            return np.stack([image.read(region) for region in self.stack], axis=1)
        return image.read(self.region)

    def shape(self, image: Image) -> tuple[int, ...]:
        """Sizes along Y and X, or Z, Y and X, of what is predicted in one piece."""
        plane = (image.size("Y"), image.size("X"))
        depth = self.region.get("Z")
        if isinstance(depth, slice):
            return (depth.stop - depth.start, *plane)
        return plane


def plan_chunks(
    image: Image,
    specs: Sequence[ModelSpec],
    *,
    ortho: bool = False,
    together: int = 1,
) -> list[Chunk]:
    """The chunks of an image in the order of their planes, each plane in one of them.

    Parameters
    ----------
    specs
        Specs of models that predict together, all 2D or all 3D.
    ortho
        True for three views of each volume by 2D models; see `EnsemblePredictor`.
    together
        Planes that a 2D model predicts together.
    """
    if specs[0].depth is None and not ortho:
        return _plan_planes(list(image.planes()), together)
    chunks = []
    depth = image.size("Z")
    stretch = (1.0, 1.0)
    parts = _plan_volume(depth, specs)
    if ortho:
        stretch = pixel_stretch(image)
        parts = _plan_views(image, specs)
    times: list[Region] = [{}]
    if "T" in image.axes:
        times = [{"T": t} for t in range(image.size("T"))]
    for i, time in enumerate(times):
        for read, keep, write in parts:
            planes = range(i * depth + write.start, i * depth + write.stop)
            chunks.append(Chunk({**time, "Z": read}, planes, keep, stretch))
    return chunks


def _plan_planes(regions: Sequence[Region], together: int) -> list[Chunk]:
    """Chunks of `together` planes; the last one may have fewer."""
    chunks = []
    for start in range(0, len(regions), together):
        part = tuple(regions[start : start + together])
        planes = range(start, start + len(part))
        stack = part if together > 1 else ()
        chunks.append(Chunk(part[0], planes, slice(0, len(part)), stack=stack))
    return chunks


def planes_of(chunks: Sequence[Chunk]) -> range:
    """Numbers of the planes that neighbouring chunks give."""
    if not chunks:
        return range(0)
    return range(chunks[0].planes.start, chunks[-1].planes.stop)


def _plan_volume(
    depth: int, specs: Sequence[ModelSpec]
) -> list[tuple[slice, slice, slice]]:
    """Read, keep and write along Z for 3D models: rows of tiles, or all planes."""
    if any(spec.blend for spec in specs):
        return [(slice(0, depth), slice(0, depth), slice(0, depth))]
    tile = min(spec.tile_shape[0] for spec in specs)
    halo, stride = shared_halo(specs), shared_stride(specs)
    return plan_axis(depth, tile=tile, halo=halo, stride=stride)


def _plan_views(
    image: Image, specs: Sequence[ModelSpec]
) -> list[tuple[slice, slice, slice]]:
    """Read, keep and write along Z for three views.

    Chunks are as thick as memory allows, and never thinner than their halo.
    """
    depth = image.size("Z")
    stretch = min(pixel_stretch(image))
    halo = math.ceil(shared_halo(specs) / stretch)
    # XZ and YZ views start where a model would start a tile, as nearly as planes of
    # this thickness allow.
    stride = math.ceil(shared_stride(specs) * max(1.0, 1 / stretch))
    plane_values = image.size("Y") * image.size("X") * len(specs[0].classes)
    thickness = max(VIEW_VALUES // plane_values, halo, 1)
    count = math.ceil(depth / thickness)
    borders = [round(i * depth / count) for i in range(count + 1)]
    parts = []
    for begin, end in pairwise(borders):
        write = slice(begin, end)
        read = read_range(write, depth, halo=halo, stride=stride)
        keep = slice(begin - read.start, end - read.start)
        parts.append((read, keep, write))
    return parts


def pixel_stretch(image: Image) -> tuple[float, float]:
    """Factors that make Z's pixels as long as those of Y, and of X.

    1 where pixel sizes are unknown or in different units.
    """
    sizes = image.pixel_size
    units = dict(zip(image.axes, image.units, strict=True))
    if "Z" not in sizes or min(sizes.values()) <= 0:
        return 1.0, 1.0
    if len({units["Z"], units["Y"], units["X"]}) > 1:
        return 1.0, 1.0
    return sizes["Z"] / sizes["Y"], sizes["Z"] / sizes["X"]


def read_ahead(image: Image, chunks: Sequence[Chunk]) -> Iterator[tuple[Chunk, Array]]:
    """Yield chunks with their grey values; a thread reads the next one meanwhile."""
    with ThreadPoolExecutor(1, "read-ahead") as pool:
        pending: deque[tuple[Chunk, Future[Array]]] = deque()
        for chunk in chunks:
            pending.append((chunk, pool.submit(chunk.read, image)))
            if len(pending) > 1:
                first, future = pending.popleft()
                yield first, future.result()
        for chunk, future in pending:
            yield chunk, future.result()


@dataclass(frozen=True)
class InvalidPixels:
    """Pixels of one plane that are NaN or infinite.

    Parameters
    ----------
    plane
        Region of the plane, see `Image.planes`.
    first
        Row and column of the first of these pixels.
    count
        Number of these pixels.
    """

    plane: Region
    first: tuple[int, int]
    count: int


def find_invalid(
    chunk: Chunk, array: Array, planes: Sequence[Region]
) -> list[InvalidPixels]:
    """Find pixels of a chunk's own planes that are NaN or infinite in any channel.

    Parameters
    ----------
    array
        Grey values of the chunk, halo included.
    planes
        Regions of all planes of the image.
    """
    if array.dtype.kind != "f":
        return []
    finite = np.asarray(np.isfinite(array).all(axis=0))
    if finite.all():
        return []
    finite_planes = finite[None] if finite.ndim == 2 else finite[chunk.keep]
    invalid = []
    for number, finite_plane in zip(chunk.planes, finite_planes, strict=True):
        count = int((~finite_plane).sum())
        if count:
            row, column = np.unravel_index(np.argmin(finite_plane), finite_plane.shape)
            first = (int(row), int(column))
            invalid.append(InvalidPixels(planes[number], first, count))
    return invalid


def describe_invalid(image: Image, invalid: Sequence[InvalidPixels]) -> Message:
    """A warning that counts and locates pixels that are NaN or infinite."""
    first = invalid[0]
    index: Mapping[str, Any] = first.plane
    position = [f"{axis}={value}" for axis, value in index.items()]
    position += [f"Y={first.first[0]}", f"X={first.first[1]}"]
    count = sum(plane.count for plane in invalid)
    noun = "pixel that is" if count == 1 else "pixels that are"
    return Message(
        f"{image.name}: found {count} {noun} not finite (NaN or infinite), the first "
        f"at {', '.join(position)}; taken as the mean grey value.",
        "warning",
    )
