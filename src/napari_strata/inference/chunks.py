"""Slabs: the pieces in which an image is predicted, each of which gives whole planes.

A 2D network takes plane by plane. A 3D network takes the planes of one row of tiles at a time, with the halo that
informs them, and so does a fusion of three views; then memory holds a slab, however deep the volume is. (Networks that
blend their tiles take a volume in one piece.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from napari_strata.core.image import Image, Region
from napari_strata.core.spec import ModelSpec
from napari_strata.core.tiling import plan_axis

HELD = 2**27
"""About how many float32 probabilities the planes hold that a slab of three views gives (half a gigabyte), unless the
halo asks for more of them; the halo's own come on top. The same on every machine."""


@dataclass(frozen=True)
class Slab:
    """Planes that are predicted together.

    Parameters
    ----------
    region
        what is read, see `Image.read`: one plane (Z an index), or several (Z a slice).
    planes
        numbers of the planes that it gives, as `Image.planes` counts them.
    keep
        which of the planes that are read those are.
    stretch
        for three views: by what Z is stretched so that its pixels are as long as those of Y, and of X.
    """

    region: Region
    planes: range
    keep: slice
    stretch: tuple[float, float] = (1.0, 1.0)

    def shape(self, image: Image) -> tuple[int, ...]:
        """Sizes along Y and X, or Z, Y and X, of what is read."""
        plane, depth = (image.size("Y"), image.size("X")), self.region.get("Z")
        return (depth.stop - depth.start, *plane) if isinstance(depth, slice) else plane


def plan_slabs(
    image: Image, specs: Sequence[ModelSpec], *, ortho: bool = False
) -> list[Slab]:
    """The slabs of an image in the order of their planes, each plane in one of them.

    Parameters
    ----------
    specs
        of networks that predict together, all 2D or all 3D.
    ortho
        for three views of each volume by 2D networks; see `views`.
    """
    if specs[0].depth is None and not ortho:
        return [
            Slab(region, range(i, i + 1), slice(0, 1))
            for i, region in enumerate(image.planes())
        ]
    depth = image.size("Z")
    parts = _views(image, specs) if ortho else _tiled(depth, specs)
    stretch = stretches(image) if ortho else (1.0, 1.0)
    times: Sequence[Region] = (
        [{"T": t} for t in range(image.size("T"))] if "T" in image.axes else [{}]
    )
    return [
        Slab(
            {**time, "Z": read},
            range(i * depth + write.start, i * depth + write.stop),
            crop,
            stretch,
        )
        for i, time in enumerate(times)
        for read, crop, write in parts
    ]


def _tiled(depth: int, specs: Sequence[ModelSpec]) -> list[tuple[slice, slice, slice]]:
    """Read, crop and write along Z, as the tiles of 3D networks have it; all of it where tiles are blended."""
    if any(spec.blend for spec in specs):
        return [(slice(0, depth),) * 3]
    halo, stride = (
        max(spec.halo_shape[0] for spec in specs),
        math.lcm(*(spec.stride_shape[0] for spec in specs)),
    )
    return plan_axis(
        depth, tile=min(spec.tile_shape[0] for spec in specs), halo=halo, stride=stride
    )


def _views(
    image: Image, specs: Sequence[ModelSpec]
) -> list[tuple[slice, slice, slice]]:
    """Read, crop and write along Z for three views: as thick as memory bears, and never thinner than their halo."""
    depth, halo = image.size("Z"), max(_halo(image, spec) for spec in specs)
    # Upright views begin where a network would begin a tile, as nearly as planes of this thickness allow.
    stride = math.ceil(
        math.lcm(*(spec.stride for spec in specs)) * max(1.0, 1 / min(stretches(image)))
    )
    plane = image.size("Y") * image.size("X") * len(specs[0].classes)
    count = -(-depth // max(HELD // plane, halo, 1))
    cuts = [round(i * depth / count) for i in range(count + 1)]
    parts = []
    for begin, end in pairwise(cuts):
        read = slice(
            max(0, begin - halo) // stride * stride,
            min(depth, -(-(end + halo) // stride) * stride),
        )
        parts.append(
            (read, slice(begin - read.start, end - read.start), slice(begin, end))
        )
    return parts


def _halo(image: Image, spec: ModelSpec) -> int:
    """Planes beyond a slab that inform the upright views of it."""
    pixels = max(spec.halo, spec.tile // 4) if spec.blend else spec.halo
    return math.ceil(pixels / min(stretches(image)))


def stretches(image: Image) -> tuple[float, float]:
    """By what Z is stretched so that its pixels are as long as those of Y, and of X; 1 where sizes are unknown."""
    sizes, units = image.pixel_size, dict(zip(image.axes, image.units, strict=True))
    if (
        "Z" not in sizes
        or min(sizes.values()) <= 0
        or len({units[a] for a in "ZYX"}) > 1
    ):
        return 1.0, 1.0
    return sizes["Z"] / sizes["Y"], sizes["Z"] / sizes["X"]
