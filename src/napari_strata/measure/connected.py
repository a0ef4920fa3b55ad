"""Connected, open and closed pieces of each class, and percolation along each axis.

Planes are labelled one by one and joined with the plane before, so that a volume of any
depth is measured with two planes in memory.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from napari_strata.core.classes import IGNORE
from napari_strata.core.image import Array
from napari_strata.measure.sample import AXES, Sample

END_SHARE = 0.5
"""Least area of the region's first and last section, as a share of its mean section,
for percolation along an axis. The ends of a cylinder across its axis are lines."""


@dataclass(frozen=True)
class Connection:
    """Connection of one class in a volume. Shares are shares of the class's pixels.

    Parameters
    ----------
    pieces
        Number of pieces that are connected by faces of pixels.
    largest
        Share of the largest piece.
    open, closed
        Share of the pieces that reach the border of the region, and of the others.
    through
        For each axis, share of the pieces that reach from the first section of the
        region to the last one; None where that is not defined (see `why`). The class
        percolates along the axis if it is above 0.
    why
        For each axis without a share, the reason.
    """

    pieces: int
    largest: float
    open: float
    closed: float
    through: dict[str, float | None]
    why: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


class ConnectionCounter:
    """Connection of each class, from planes that are added in order along Z.

    Raises
    ------
    ImageError
        When the sample is a single plane.
    """

    def __init__(self, sample: Sample) -> None:
        sample.require_volume("connected, open and closed pores and percolation")
        self._sample = sample
        self._z = 0
        self._codes: Array | None = None
        self._numbers: Array = np.zeros(sample.shape[1:], np.int32)
        self._active = _Pieces.empty()
        self._open: list[_Pieces] = []
        count = len(sample.classes)
        self._pixels = np.zeros(count, np.int64)
        self._closed_pixels = np.zeros(count, np.int64)
        self._count = np.zeros(count, np.int64)
        self._largest = np.zeros(count, np.int64)
        self._sections = [np.zeros(length, np.int64) for length in sample.shape]

    def add(self, codes: Array) -> None:
        """Add the next plane."""
        from skimage.measure import label

        inside = codes != IGNORE
        self._add_sections(inside)
        numbers, count = label(
            codes, background=IGNORE, connectivity=1, return_num=True
        )
        at_border = _find_border(inside)
        before = self._codes
        links = np.zeros((0, 2), np.int64)
        if before is None:
            at_border |= inside
        else:
            was_inside = before != IGNORE
            at_border |= inside & ~was_inside
            ended = self._numbers[was_inside & ~inside] - 1
            self._active.open[ended] = True
            same = inside & (before == codes)
            links = _pairs(self._numbers[same] - 1, numbers[same] - 1, count)
        pieces = _Pieces.of_plane(codes, numbers, count, at_border, self._z)
        group, joined = _join(self._active, pieces, links)
        # Pieces that have no pixel in this plane are complete.
        old = len(self._active)
        is_active = np.zeros(len(joined), bool)
        is_active[group[old:]] = True
        self._finish(joined.select(~is_active))
        position = np.cumsum(is_active)
        table = np.concatenate([[0], position[group[old:]]]).astype(np.int32)
        self._numbers = table[numbers]
        self._active = joined.select(is_active)
        self._codes = codes
        self._z += 1

    def result(self) -> dict[str, Connection]:
        """Return the connection of each class, after the last plane."""
        self._active.open[:] = True
        self._finish(self._active)
        self._active = _Pieces.empty()
        self._open = [_Pieces.concatenate(self._open)]
        why, ends = self._find_ends()
        connections = {}
        for index, name in enumerate(self._sample.classes):
            pieces = self._open[0].select(self._open[0].code == index)
            total = int(self._pixels[index])
            through: dict[str, float | None] = {}
            for axis, (first, last) in ends.items():
                number = AXES.index(axis)
                spans = pieces.low[:, number] <= first
                spans &= pieces.high[:, number] >= last
                through[axis] = _share(int(pieces.pixels[spans].sum()), total)
            through |= dict.fromkeys(why)
            closed = _share(int(self._closed_pixels[index]), total)
            connections[name] = Connection(
                pieces=int(self._count[index]),
                largest=_share(int(self._largest[index]), total),
                open=1 - closed if total else 0.0,
                closed=closed,
                through=through,
                why=why,
            )
        return connections

    def _add_sections(self, inside: Array) -> None:
        self._sections[0][self._z] = np.count_nonzero(inside)
        self._sections[1] += np.count_nonzero(inside, axis=1)
        self._sections[2] += np.count_nonzero(inside, axis=0)

    def _find_ends(self) -> tuple[dict[str, str], dict[str, tuple[int, int]]]:
        """Reasons against percolation by axis, and the first and last section."""
        why: dict[str, str] = {}
        ends: dict[str, tuple[int, int]] = {}
        for axis, section in zip(AXES, self._sections, strict=True):
            filled = np.flatnonzero(section)
            if len(filled) < 2:
                why[axis] = f"the region is a single section along {axis.upper()}"
                continue
            first, last = int(filled[0]), int(filled[-1])
            mean = section[first : last + 1].mean()
            smallest = min(section[first], section[last]) / mean
            if smallest < END_SHARE:
                why[axis] = (
                    f"the region has no flat ends along {axis.upper()}: its end is"
                    f" {100 * smallest:.0f} % of its mean section"
                )
            else:
                ends[axis] = (first, last)
        return why, ends

    def _finish(self, pieces: _Pieces) -> None:
        """Count pieces that are complete."""
        size = len(self._pixels)
        np.add.at(self._pixels, pieces.code, pieces.pixels)
        self._count += np.bincount(pieces.code, minlength=size)
        np.maximum.at(self._largest, pieces.code, pieces.pixels)
        closed = pieces.select(~pieces.open)
        np.add.at(self._closed_pixels, closed.code, closed.pixels)
        # Only these can reach from end to end.
        self._open.append(pieces.select(pieces.open))


def find_connections(sample: Sample) -> dict[str, Connection]:
    """Measure how each class is connected; see `Connection`.

    Raises
    ------
    ImageError
        When the sample is a single plane.
    """
    counter = ConnectionCounter(sample)
    for plane in sample.planes():
        counter.add(plane)
    return counter.result()


@dataclass
class _Pieces:
    """Class, pixels, first and last index along Z, Y, X of pieces.

    `open` is true for those that reach the border of the region.
    """

    code: Array
    pixels: Array
    low: Array
    high: Array
    open: Array

    def __len__(self) -> int:
        return len(self.code)

    @classmethod
    def empty(cls) -> _Pieces:
        none = np.zeros(0, np.int64)
        return cls(none, none, none.reshape(0, 3), none.reshape(0, 3), none > 0)

    @classmethod
    def of_plane(
        cls, codes: Array, numbers: Array, count: int, at_border: Array, z: int
    ) -> _Pieces:
        """Pieces 1 to `count` of a plane."""
        from scipy import ndimage

        pixels = np.bincount(numbers.ravel(), minlength=count + 1)[1:]
        code = np.zeros(count + 1, np.int64)
        code[numbers] = codes
        is_open = np.zeros(count + 1, bool)
        is_open[numbers[at_border]] = True
        low = np.full((count, 3), z)
        high = np.full((count, 3), z)
        boxes = ndimage.find_objects(numbers)
        if boxes:
            low[:, 1:] = [(rows.start, columns.start) for rows, columns in boxes]
            high[:, 1:] = [(rows.stop - 1, columns.stop - 1) for rows, columns in boxes]
        return cls(code[1:], pixels, low, high, is_open[1:])

    @classmethod
    def concatenate(cls, parts: list[_Pieces]) -> _Pieces:
        columns = []
        for field in fields(cls):
            columns.append(np.concatenate([getattr(p, field.name) for p in parts]))
        return cls(*columns)

    def select(self, mask: Array) -> _Pieces:
        return _Pieces(*(getattr(self, field.name)[mask] for field in fields(self)))


def _pairs(first: Array, second: Array, count: int) -> Array:
    """Distinct pairs of two arrays of numbers; those of `second` are below `count`."""
    codes = np.unique(first.astype(np.int64) * count + second)
    return np.stack([codes // max(count, 1), codes % max(count, 1)], axis=1)


def _join(active: _Pieces, pieces: _Pieces, links: Array) -> tuple[Array, _Pieces]:
    """Join pieces that touch; return the group of each piece, and the groups."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    size = len(active) + len(pieces)
    ends = (links[:, 0], links[:, 1] + len(active))
    graph = coo_array((np.ones(len(links), bool), ends), shape=(size, size))
    count, group = connected_components(graph, directed=False)
    both = _Pieces.concatenate([active, pieces])
    joined = _Pieces(
        code=np.zeros(count, np.int64),
        pixels=np.zeros(count, np.int64),
        low=np.full((count, 3), np.iinfo(np.int64).max),
        high=np.full((count, 3), -1),
        open=np.zeros(count, bool),
    )
    joined.code[group] = both.code
    np.add.at(joined.pixels, group, both.pixels)
    np.minimum.at(joined.low, group, both.low)
    np.maximum.at(joined.high, group, both.high)
    np.logical_or.at(joined.open, group, both.open)
    return group, joined


def _find_border(inside: Array) -> Array:
    """Pixels of a plane's region with a neighbour in the plane outside."""
    padded = np.pad(inside, 1)
    surrounded = padded[:-2, 1:-1] & padded[2:, 1:-1]
    surrounded &= padded[1:-1, :-2] & padded[1:-1, 2:]
    border: Array = inside & ~surrounded
    return border


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
