"""Regions of interest: the whole image, the specimen, or a mask.

The specimen is found plane by plane: it is the convex hull of everything that is not
outside. The outside is the largest piece of one class (or of unlabelled pixels) that
touches the border of the plane, if it lies around the rest, not within it.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np

from napari_strata.core.classes import ClassMap
from napari_strata.core.errors import ImageError
from napari_strata.core.image import Array, Image, LabelImage, Region
from napari_strata.io import read_labels

ALL, SPECIMEN = "all", "specimen"

PLANES_TO_SEARCH = 16
"""Planes, spread evenly, that decide which class is outside."""

LEAST_BORDER = 0.25
"""Share of the border of a plane that an outside has at least."""

LEAST_AROUND = 0.75
"""Share of the outside's pixels that lie around the specimen, not within its hull."""

SMALLEST_PART = 0.005
"""Parts of the specimen that are smaller than this share of its largest part are
wrong labels or dust in the outside."""

RegionChoice: TypeAlias = "str | os.PathLike[str] | Array | Image | Any"
"""What a caller may name: "all", "specimen", or a mask as a file, an array, an image
or a layer of napari."""


class RegionOfInterest(Protocol):
    """Pixels that are measured."""

    @property
    def name(self) -> str:
        """Name that goes beside every figure."""
        ...

    @property
    def kind(self) -> str:
        """``all``, ``specimen`` or ``mask``."""
        ...

    def find(self, plane: Region, codes: Array) -> Array | None:
        """Return the mask (Y, X) of a plane; None if all of it is inside.

        Parameters
        ----------
        codes
            Class indices (Y, X), `IGNORE` where unlabelled.
        """
        ...


@dataclass(frozen=True)
class Whole:
    """Every pixel of the image."""

    name: str = ALL
    kind: str = ALL

    def find(self, plane: Region, codes: Array) -> Array | None:
        return None


@dataclass(frozen=True)
class Specimen:
    """The specimen, in planes where something is outside.

    Parameters
    ----------
    outside
        Index of the class that surrounds the specimen; `IGNORE` for unlabelled pixels.
    """

    outside: int
    name: str = SPECIMEN
    kind: str = SPECIMEN

    def find(self, plane: Region, codes: Array) -> Array | None:
        return find_specimen(codes, self.outside)


@dataclass(frozen=True, eq=False)
class Mask:
    """Pixels that are not 0 in a mask.

    Parameters
    ----------
    image
        It has the axes of the labels, or some of them with Y and X among them.
    """

    image: Image
    name: str = "mask"
    kind: str = "mask"

    def find(self, plane: Region, codes: Array) -> Array | None:
        part = {axis: i for axis, i in plane.items() if axis in self.image.axes}
        mask: Array = self.image.read(part)[0].reshape(codes.shape) != 0
        return mask


def find_region(
    choice: RegionChoice, labels: LabelImage, classes: ClassMap
) -> RegionOfInterest:
    """Return the region that a caller names.

    A specimen for which nothing like an outside exists is the whole image, and its name
    says so.

    Raises
    ------
    ImageError
        When a mask does not cover the pixels of the labels.
    """
    if isinstance(choice, str) and choice == ALL:
        return Whole()
    if isinstance(choice, str) and choice == SPECIMEN:
        outside = find_outside_class(
            classes.encode(labels.read(plane)[0]) for plane in _spread(labels)
        )
        if outside is None:
            return Whole(name="all (no outside was found, so all is the specimen)")
        return Specimen(outside)
    return _open_mask(choice, labels)


def find_outside_class(planes: Iterable[Array]) -> int | None:
    """Return the class index that surrounds the specimen in most planes.

    `IGNORE` stands for unlabelled pixels; None if nothing like an outside exists.

    Parameters
    ----------
    planes
        Class indices, each Y, X.
    """
    votes: Counter[int] = Counter()
    for codes in planes:
        for value in np.unique(_border(codes)):
            specimen = find_specimen(codes, int(value))
            if specimen is not None and specimen.any():
                votes[int(value)] += int((~specimen).sum())
    return votes.most_common(1)[0][0] if votes else None


def find_specimen(codes: Array, outside: int) -> Array | None:
    """Return the mask of the specimen in a plane; None if all of it is specimen.

    Parameters
    ----------
    codes
        Class indices (Y, X).
    outside
        Class index of the outside.

    Returns
    -------
    Array or None
        The mask is empty where the plane has nothing but the outside.
    """
    from scipy import ndimage

    pieces, _ = ndimage.label(codes == outside)
    border = _border(pieces)
    touching = np.unique(border[border > 0])
    if not len(touching):
        return None
    sizes = np.bincount(pieces.ravel())
    largest = touching[sizes[touching].argmax()]
    if (border == largest).mean() < LEAST_BORDER:
        return None
    around = pieces == largest
    parts, count = ndimage.label(~around)
    if not count:
        return np.zeros(codes.shape, bool)
    part_sizes = np.bincount(parts.ravel())
    part_sizes[0] = 0
    keep = part_sizes >= SMALLEST_PART * part_sizes.max()
    keep[0] = False
    hull = _fill_hull(keep[parts])
    if (around & ~hull).sum() < LEAST_AROUND * sizes[largest]:
        return None
    return hull


def _fill_hull(mask: Array) -> Array:
    """Return the convex hull of the pixels' centres.

    skimage's convex_hull_image takes many seconds for a plane of a megapixel.
    """
    from scipy.spatial import ConvexHull, QhullError

    rows = np.flatnonzero(mask.any(axis=1))
    first = mask[rows].argmax(axis=1)
    last = mask.shape[1] - 1 - mask[rows, ::-1].argmax(axis=1)
    ends = np.concatenate([np.stack([rows, x], axis=1) for x in (first, last)])
    try:
        corners = ends[ConvexHull(ends).vertices]
    except QhullError:  # all pixels are on one line
        return mask
    left = np.full(len(mask), np.inf)
    right = np.full(len(mask), -np.inf)
    for start, stop in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        (y0, x0), (y1, x1) = sorted([start.tolist(), stop.tolist()])
        # The ends of a level edge are also those of its neighbours.
        crossings = np.linspace(x0, x1, y1 - y0 + 1)
        part = slice(y0, y1 + 1)
        left[part] = np.minimum(left[part], crossings)
        right[part] = np.maximum(right[part], crossings)
    columns = np.arange(mask.shape[1])
    # Pixels at the very edge are not lost to rounding.
    return (columns >= left[:, None] - 1e-6) & (columns <= right[:, None] + 1e-6)


def _border(plane: Array) -> Array:
    """Pixels on the border of a plane."""
    return np.concatenate([plane[0], plane[-1], plane[:, 0], plane[:, -1]])


def _spread(labels: LabelImage) -> Iterator[Region]:
    """Iterate over planes that are spread evenly."""
    planes = list(labels.planes())
    positions = np.linspace(0, len(planes) - 1, min(PLANES_TO_SEARCH, len(planes)))
    for number in sorted({round(position) for position in positions}):
        yield planes[number]


def _open_mask(choice: RegionChoice, labels: LabelImage) -> Mask:
    """Open a mask, and check that it covers the labels."""
    if isinstance(choice, Image):
        mask, name = choice, choice.name
    elif isinstance(choice, (str, os.PathLike)):
        mask = read_labels(choice)
        name = mask.name
    else:
        data = choice if hasattr(choice, "shape") else getattr(choice, "data", choice)
        array = data if hasattr(data, "shape") else np.asarray(data)
        name = str(getattr(choice, "name", "mask"))
        mask = Image(array, _mask_axes(array.shape, labels), name=name)
    differs = any(
        mask.size(axis) != labels.size(axis)
        for axis in "TZYX"
        if axis in "YX" or axis in mask.axes
    )
    if differs or mask.channels > 1:
        raise ImageError(
            f"{name}: found a mask of shape {mask.shape} ({mask.axes}) for labels of "
            f"shape {labels.shape} ({labels.axes}); a region covers the same pixels "
            "along Y and X, and along Z and T if it has them. Make the mask from these "
            "labels or their image."
        )
    return Mask(mask, name)


def _mask_axes(shape: tuple[int, ...], labels: LabelImage) -> str:
    """Axes of an array: those of the labels, or the last of them."""
    letters = labels.label_axes[-len(shape) :] if shape else ""
    if len(letters) != len(shape) or not {"Y", "X"} <= set(letters):
        raise ImageError(
            f"found a mask of shape {shape} for labels of shape {labels.shape} "
            f"({labels.axes}); give one with these dimensions, or with Y and X."
        )
    return letters
