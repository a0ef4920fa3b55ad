"""Connected pieces of one class as objects with ids: holes closed, touching ones split, small ones dropped.

A volume is worked on whole, one time point at a time, because a piece may run through all its planes; when the memory
that takes is not there, that is said before it is taken. Plane by plane no more than one plane is held. Ids are
written plane by plane into a temporary file, so that they take no memory in either case.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from contextlib import closing
from typing import IO, Any

import numpy as np

from napari_strata.core import axes as _axes
from napari_strata.core import files
from napari_strata.core.classes import MAX_INFERRED, ClassMap, check_integers
from napari_strata.core.errors import ImageError, LabelError, RunError, nearest
from napari_strata.core.image import Array, Image, LabelImage, Region
from napari_strata.inference.outputs import format_bytes

# Bytes a pixel, measured with scikit-image 0.26 and scipy 1.17.
LABEL_BYTES = 8  # the mask, numbers of 32 bits, and what filling holes takes
SPLIT_BYTES = 56  # the distance transform's index and float64 arrays; the watershed's copies and queue take less
PLANE_BYTES = 32  # of one plane while its label values become classes


def find_objects(
    labels: LabelImage,
    *,
    of: str | None = None,
    smallest: float = 0,
    fill_holes: bool = False,
    split: float | None = None,
    by_plane: bool = False,
) -> LabelImage:
    """Number the connected pieces of one class.

    Pixels are connected by their faces. Time points are always separate; planes are connected unless `by_plane`. Holes
    are closed first, then touching objects split, then small ones dropped: `smallest` holds for what comes out.

    Parameters
    ----------
    labels
        label values, axes of T, Z, Y, X in any order, read plane by plane.
    of
        name of the class whose pixels become objects, or its label value as text. May be left out when there are
        exactly two classes: it is then the second one. Without a class map each value found is a class.
    smallest
        least volume of an object in the pixel size's unit to the third; least area in its square `by_plane`, or where
        there is one plane only.
    fill_holes
        close holes that lie entirely inside one object, whatever class they are of. In a volume a hole that is open
        to its first or last plane, or any other face, is none.
    split
        cut objects that touch where they are narrow, by a watershed on the distance to their edge; this is the least
        distance between the centres of two parts, in the unit of the pixel size. None: leave them whole.
    by_plane
        work on every plane by itself; ids run on from plane to plane.

    Returns
    -------
    LabelImage
        ids 1..N, 0 elsewhere; uint16, or uint32 when there are more than 65535. Axes (less C), scale, units and name
        of `labels`, no classes. `data` is a copy-on-write map of a temporary file (in the folder that TMPDIR names),
        which goes when the array does.

    Raises
    ------
    LabelError
        when the class is not named and not clear, is unknown, or labels are colours or not integers.
    ImageError
        when the pixel size is not usable, or `smallest` or `split` is not.
    RunError
        when memory or the temporary folder is too small.
    """
    _check_options(smallest, split)
    whole = labels.size("Z") > 1 and not by_plane
    work = groups(labels, whole=whole)
    sampling = pixel_size(
        labels, "ZYX" if whole else "YX", needed=bool(smallest or split)
    )
    classes, index = _class_of(labels, of)
    check_volume(labels, LABEL_BYTES, whole=whole, what="finding objects")
    with closing(_Store()) as store:
        for group in work:
            mask = _mask(labels, group, classes, index)
            _number(
                mask,
                store,
                sampling,
                smallest=smallest,
                fill_holes=fill_holes,
                split=split,
            )
            del mask  # or the next time point's would be made beside it
        data = store.array(
            tuple(labels.size(a) for a in _axes.canonical(labels.label_axes))
        )
    return labels.labels_like(_axes.from_canonical(data, labels.label_axes))


def groups(image: Image, *, whole: bool) -> list[list[dict[str, int | slice]]]:
    """Regions of the planes that are worked on together: those of a time point, or each by itself.

    Raises `LabelError` when there is more than one value a pixel.
    """
    if image.channels > 1:
        raise LabelError(
            f"{image.name}: found {image.channels} channels ({image.axes}); needed is one label value a pixel: encode "
            "colours with ClassMap.from_rgb and write the labels first."
        )
    every = list(image.planes())
    together = image.size("Z") if whole else 1
    return [every[i : i + together] for i in range(0, len(every), together)]


def pixel_size(image: Image, letters: str, *, needed: bool = True) -> tuple[float, ...]:
    """Pixel size along `letters`; where it is `needed` and not positive and in one unit, raises `ImageError`."""
    sizes = tuple(image.pixel_size[a] for a in letters)
    units = [image.units[image.axes.index(a)] for a in letters]
    if not needed:
        return sizes
    shown = ", ".join(
        f"{a} {s:g} {u}" for a, s, u in zip(letters, sizes, units, strict=True)
    )
    if any(not math.isfinite(s) or s <= 0 for s in sizes):
        raise ImageError(
            f"{image.name}: found the pixel size {shown}; needed are positive numbers: correct the file."
        )
    if len(set(units)) > 1:
        raise ImageError(
            f"{image.name}: found the pixel size {shown}; volumes and distances need one unit along all axes: give "
            "the file its pixel size along Z, or work plane by plane (--by-plane)."
        )
    return sizes


def check_volume(image: Image, bytes_a_pixel: int, *, whole: bool, what: str) -> None:
    """Refuse, as `check_memory` does, work on a plane, or on all planes of a time point, that does not fit."""
    height, width, planes = (
        image.size("Y"),
        image.size("X"),
        image.size("Z") if whole else 1,
    )
    check_memory(
        height * width * (planes * bytes_a_pixel + PLANE_BYTES),
        what=f"{image.name}: {what} in {planes} x {height} x {width} pixels at once",
        instead="work plane by plane (--by-plane), crop the labels"
        if whole
        else "crop the labels",
    )


def check_memory(needed: int, *, what: str, instead: str) -> None:
    """Raise `RunError` when `needed` bytes are more than are free."""
    # Here, because torch takes seconds to load and nothing else in this room needs it.
    import torch

    from napari_strata.models import device

    free = device.free_memory(torch.device("cpu"))
    if free is not None and needed > free:
        raise RunError(
            f"{what} needs about {format_bytes(needed)} of memory and {format_bytes(free)} are free; {instead}, "
            "or use a machine with "
            "more memory."
        )


def _check_options(smallest: float, split: float | None) -> None:
    if not (math.isfinite(smallest) and smallest >= 0):
        raise ImageError(
            f"found smallest={smallest:g}; needed is an area or volume, 0 or more."
        )
    if split is not None and not (math.isfinite(split) and split > 0):
        raise ImageError(
            f"found split={split:g}; needed is a distance above 0, or none at all to leave objects whole."
        )


def _class_of(labels: LabelImage, of: str | None) -> tuple[ClassMap, int]:
    """What the label values mean, and the index of the class that is wanted."""
    classes = labels.classes or _classes_found(labels)
    if of is None and len(classes) == 2:
        return classes, 1
    if of is None:
        raise LabelError(
            f"{labels.name}: found the classes {', '.join(classes.names)}; needed is the one whose pixels become "
            f"objects: name it, for example of={classes.names[-1]!r} (--of {classes.names[-1]!r})."
        )
    if of in classes.names:
        return classes, classes.names.index(of)
    if of in (values := [str(value) for value in classes.values]):
        return classes, values.index(of)
    raise LabelError(
        f"{labels.name}: found no class {of!r}; {nearest(of, classes.names)}"
    )


def _classes_found(labels: LabelImage) -> ClassMap:
    found: set[int] = set()
    for plane in labels.planes():
        found.update(np.unique(check_integers(labels.read(plane))).tolist())
        if len(found) > MAX_INFERRED:
            raise LabelError(
                f"{labels.name}: found more than {MAX_INFERRED} label values and no class map; needed are classes: "
                "if these are ids already, measure them with region_table, else write the labels with a class map."
            )
    return ClassMap.from_values(found)


def _mask(
    labels: LabelImage, group: Sequence[Region], classes: ClassMap, index: int
) -> Array:
    """Where the class is, in the planes of a group (Z, Y, X); of a plane by itself, Y, X."""
    mask = np.empty((len(group), labels.size("Y"), labels.size("X")), bool)
    for plane, region in zip(mask, group, strict=True):
        plane[:] = classes.encode(check_integers(labels.read(region)[0])) == index
    return mask if len(group) > 1 else mask[0]


def _number(
    mask: Array,
    store: _Store,
    sampling: Sequence[float],
    *,
    smallest: float,
    fill_holes: bool,
    split: float | None,
) -> None:
    """Find the objects of a plane or volume and store them."""
    from scipy import ndimage

    if fill_holes:
        # Objects are connected by faces, so what is around them is by corners too; else a gap that leads out
        # diagonally, between two objects, would count as a hole in one.
        mask = ndimage.binary_fill_holes(
            mask, structure=np.ones((3,) * mask.ndim, bool)
        )
    found: Array = np.empty(mask.shape, np.int32)
    count = ndimage.label(mask, output=found)
    if split is not None:
        _split(found, count, split, sampling)
    planes = found if found.ndim == 3 else found[None]
    store.add(planes, _kept(planes, smallest, math.prod(sampling)))


def _kept(planes: Array, smallest: float, pixel: float) -> Array:
    """For each number, 0 included, whether it stays."""
    counts = np.zeros(1, np.int64)
    for plane in planes:  # a whole volume would be copied as int64
        before, counts = counts, np.bincount(plane.ravel(), minlength=len(counts))
        counts[: len(before)] += before
    # A millionth less, because pixels times their size is rarely exact.
    kept: Array = counts * pixel >= smallest * (1 - 1e-6)
    kept[0] = False
    return kept & (counts > 0)


def _split(
    found: Array, count: int, distance: float, sampling: Sequence[float]
) -> None:
    """Cut objects in place; their parts but the first get numbers above `count`."""
    from scipy import ndimage

    boxes = [
        (number, box)
        for number, box in enumerate(ndimage.find_objects(found), 1)
        # In a box this small no two centres are that far apart.
        if math.hypot(
            *((s.stop - s.start - 1) * d for s, d in zip(box, sampling, strict=True))
        )
        >= distance
    ]
    # With one pixel around it the distance to an object's edge is what it is in the whole; beyond the image is no edge.
    grown = [
        (number, tuple(slice(max(s.start - 1, 0), s.stop + 1) for s in box))
        for number, box in boxes
    ]
    check_memory(
        (largest := max((found[box].size for _, box in grown), default=0))
        * SPLIT_BYTES,
        what=f"splitting the largest object, in a box of {largest} pixels,",
        instead="leave out the split (--split)"
        + ", work plane by plane (--by-plane)" * (found.ndim == 3),
    )
    for number, box in grown:
        part = found[box]
        parts = _parts(part == number, distance, sampling)
        more = parts > 1
        part[more] = parts[more] + (count - 1)
        count += max(int(parts.max()) - 1, 0)


def _parts(mask: Array, distance: float, sampling: Sequence[float]) -> Array:
    """One connected object as its parts, 1..N; int32."""
    from scipy import ndimage
    from skimage.segmentation import watershed

    if mask.all():  # the whole image: it has no edge to be far from
        return mask.astype(np.int32)
    height = ndimage.distance_transform_edt(mask, sampling=tuple(sampling)).astype(
        np.float32
    )
    centers = _centers(height, distance, sampling)
    markers: Array = np.zeros(mask.shape, np.int32)
    markers[tuple(centers.T)] = np.arange(1, len(centers) + 1)
    parts: Array = watershed(-height, markers, mask=mask)
    return parts


def _centers(height: Array, distance: float, sampling: Sequence[float]) -> Array:
    """Pixels (centres x dimensions) where `height` peaks, each at least `distance` from every higher one taken.

    skimage's peak_local_max measures in pixels, and takes every pixel of a ridge of even height for a peak of its own,
    so that a bar would be cut into many; here a level top is one peak, at its pixel next to the middle.
    """
    from scipy import ndimage
    from scipy.spatial import cKDTree
    from skimage.morphology import local_maxima

    tops, count = ndimage.label(
        local_maxima(height), structure=np.ones((3,) * height.ndim, bool)
    )
    pixels = np.argwhere(tops)
    top = tops[tuple(pixels.T)] - 1
    places = pixels * np.asarray(sampling)
    members = np.bincount(top, minlength=count)
    middle = np.stack(
        [np.bincount(top, places[:, i], count) / members for i in range(height.ndim)],
        axis=1,
    )
    away = ((places - middle[top]) ** 2).sum(axis=1)
    by_top = np.lexsort((away, top))
    first = by_top[np.searchsorted(top[by_top], np.arange(count))]
    pixels, places = pixels[first], places[first]
    order = np.argsort(-height[tuple(pixels.T)], kind="stable")
    tree, open_, chosen = cKDTree(places), np.ones(count, bool), []
    for i in order:
        if open_[i]:
            chosen.append(i)
            open_[tree.query_ball_point(places[i], distance * (1 - 1e-6))] = False
    picked: Array = pixels[chosen]
    return picked


class _Store:
    """Planes of ids on their way into a temporary file, in uint16 for as long as that holds them."""

    def __init__(self) -> None:
        self._dtype: np.dtype[Any] = np.dtype(np.uint16)
        self._count = 0
        self._file: IO[bytes] = self._open()

    def close(self) -> None:
        self._file.close()

    def add(self, planes: Array, kept: Array) -> None:
        """Add planes (Z, Y, X) of numbers, those that are `kept` (by number) renumbered from the last id on."""
        last = self._count + int(kept.sum())
        if last > np.iinfo(self._dtype).max:
            self._widen()
        ids = np.where(kept, self._count + np.cumsum(kept), 0).astype(self._dtype)
        for plane in planes:
            self._write(ids[plane])
        self._count = last

    def array(self, shape: tuple[int, ...]) -> Array:
        """What was added, mapped; the file has no name any more and goes with the last view of it."""
        mapped: Array = np.memmap(self._file, self._dtype, mode="c", shape=shape)
        return mapped

    def _widen(self) -> None:
        narrow, self._file = self._file, self._open()
        dtype, self._dtype = self._dtype, np.dtype(np.uint32)
        narrow.seek(0)
        with narrow:
            while block := narrow.read(2**24):
                self._write(np.frombuffer(block, dtype).astype(self._dtype))

    def _open(self) -> IO[bytes]:
        try:
            return tempfile.TemporaryFile(prefix="napari-strata-")
        except OSError as error:
            raise _explained(error) from error

    def _write(self, array: Array) -> None:
        # Written and not mapped: a full disk under a map kills the process.
        try:
            self._file.write(np.ascontiguousarray(array).data)
            self._file.flush()
        except OSError as error:
            raise _explained(error) from error


def _explained(error: OSError) -> RunError:
    what = files.explain(error, tempfile.gettempdir())
    return RunError(
        f"{what} The ids are kept there for a while; the variable TMPDIR names another folder."
    )
