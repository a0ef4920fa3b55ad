"""Number the connected objects of one class: holes closed, touching ones split.

A volume is processed as a whole, one time point at a time, because an object may extend
through all planes; an error says beforehand when memory is too small for it. Plane by
plane no more than one plane is held. Ids are written plane by plane into a temporary
file, so that they take no memory in either case.
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
from napari_strata.core.text import format_bytes

# Bytes for each pixel, measured with scikit-image 0.26 and scipy 1.17.
LABEL_BYTES = 8
"""The mask, numbers of 32 bits, and the arrays that fill holes."""
SPLIT_BYTES = 56
"""The index and float64 arrays of the distance transform. The watershed needs less."""
PLANE_BYTES = 32
"""One plane while its label values become classes."""


def find_objects(
    labels: LabelImage,
    *,
    of: str | None = None,
    smallest: float = 0,
    fill_holes: bool = False,
    split: float | None = None,
    by_plane: bool = False,
) -> LabelImage:
    """Number the connected objects of one class.

    Pixels are connected by their faces. Time points are always separate; planes are
    connected unless `by_plane`. Holes are closed first, then touching objects are
    split, then small ones are dropped: `smallest` holds for the results.

    Parameters
    ----------
    labels
        label values, axes of T, Z, Y, X in any order, read plane by plane.
    of
        name of the class whose pixels become objects, or its label value as text. May
        be left out when there are exactly two classes: it is then the second one.
        Without a class map each label value is a class.
    smallest
        least volume of an object in the cube of the pixel size's unit; least area in
        its square with `by_plane`, or when there is one plane only.
    fill_holes
        close holes that lie entirely inside one object, whatever class they are of. In
        a volume a hole that is open to its first or last plane, or any other face, is
        none.
    split
        cut objects that touch where they are narrow, by a watershed on the distance to
        their edge; this is the least distance between the centres of two parts, in the
        unit of the pixel size. None: leave them whole.
    by_plane
        process every plane by itself; ids continue from plane to plane.

    Returns
    -------
    LabelImage
        ids 1..N, 0 elsewhere; uint16, or uint32 when there are more than 65535. Axes
        (less C), scale, units and name of `labels`, no classes. `data` is a
        copy-on-write map of a temporary file (in the folder that TMPDIR names), which
        is deleted with the array.

    Raises
    ------
    LabelError
        when the class is not named and not clear, is unknown, or labels are colours or
        not integers.
    ImageError
        when the pixel size is not usable, or `smallest` or `split` is not.
    RunError
        when memory or the temporary folder is too small.
    """
    _check_options(smallest, split)
    whole = labels.size("Z") > 1 and not by_plane
    plane_groups = groups(labels, whole=whole)
    letters = "ZYX" if whole else "YX"
    sampling = pixel_size(labels, letters, needed=bool(smallest or split))
    classes, index = _find_class(labels, of)
    check_volume(labels, LABEL_BYTES, whole=whole, what="finding objects")
    with closing(_Store()) as store:
        for group in plane_groups:
            mask = _read_mask(labels, group, classes, index)
            _number_objects(
                mask,
                store,
                sampling,
                smallest=smallest,
                fill_holes=fill_holes,
                split=split,
            )
            # Before the mask of the next time point is made.
            del mask
        letters = _axes.canonical(labels.label_axes)
        data = store.array(tuple(labels.size(axis) for axis in letters))
    return labels.labels_like(_axes.from_canonical(data, labels.label_axes))


def groups(image: Image, *, whole: bool) -> list[list[dict[str, int | slice]]]:
    """Regions of the planes that are processed together.

    These are all planes of a time point (`whole`), or each plane by itself. Raises
    `LabelError` when there is more than one value for each pixel.
    """
    if image.channels > 1:
        raise LabelError(
            f"{image.name}: found {image.channels} channels ({image.axes}); needed is "
            "one label value a pixel: encode colours with ClassMap.from_rgb and write "
            "the labels first."
        )
    planes = list(image.planes())
    length = image.size("Z") if whole else 1
    return [planes[i : i + length] for i in range(0, len(planes), length)]


def pixel_size(image: Image, letters: str, *, needed: bool = True) -> tuple[float, ...]:
    """Pixel size along `letters`.

    Raises `ImageError` when it is `needed` and in several units.
    """
    sizes = tuple(image.pixel_size[axis] for axis in letters)
    units = [image.units[image.axes.index(axis)] for axis in letters]
    if not needed:
        return sizes
    parts = []
    for axis, size, unit in zip(letters, sizes, units, strict=True):
        parts.append(f"{axis} {size:g} {unit}")
    text = ", ".join(parts)
    if len(set(units)) > 1:
        raise ImageError(
            f"{image.name}: found the pixel size {text}; volumes and distances need one"
            " unit along all axes: give the file its pixel size along Z, or work plane"
            " by plane (--by-plane)."
        )
    return sizes


def check_volume(image: Image, bytes_a_pixel: int, *, whole: bool, what: str) -> None:
    """Raise `RunError` if a plane or the planes of a time point exceed the memory."""
    height, width = image.size("Y"), image.size("X")
    planes, instead = 1, "crop the labels"
    if whole:
        planes = image.size("Z")
        instead = "work plane by plane (--by-plane), crop the labels"
    check_memory(
        height * width * (planes * bytes_a_pixel + PLANE_BYTES),
        what=f"{image.name}: {what} in {planes} x {height} x {width} pixels at once",
        instead=instead,
    )


def check_memory(needed: int, *, what: str, instead: str) -> None:
    """Raise `RunError` when `needed` bytes are more than are free."""
    # Imported here, because torch takes seconds and nothing else in this module needs
    # it.
    import torch

    from napari_strata.models import device

    free = device.free_memory(torch.device("cpu"))
    if free is not None and needed > free:
        raise RunError(
            f"{what} needs about {format_bytes(needed)} of memory and "
            f"{format_bytes(free)} are free; {instead}, or use a machine with more "
            "memory."
        )


def _check_options(smallest: float, split: float | None) -> None:
    if not (math.isfinite(smallest) and smallest >= 0):
        raise ImageError(
            f"found smallest={smallest:g}; needed is an area or volume, 0 or more."
        )
    if split is not None and not (math.isfinite(split) and split > 0):
        raise ImageError(
            f"found split={split:g}; needed is a distance above 0, or none at all to "
            "leave objects whole."
        )


def _find_class(labels: LabelImage, of: str | None) -> tuple[ClassMap, int]:
    """Class map of the labels, and the index of the class `of`."""
    classes = labels.classes or infer_classes(labels)
    if of is None and len(classes) == 2:
        return classes, 1
    if of is None:
        raise LabelError(
            f"{labels.name}: found the classes {', '.join(classes.names)}; needed is"
            " the one whose pixels become objects: name it, for example"
            f" of={classes.names[-1]!r} (--of {classes.names[-1]!r})."
        )
    if of in classes.names:
        return classes, classes.names.index(of)
    values = [str(value) for value in classes.values]
    if of in values:
        return classes, values.index(of)
    raise LabelError(
        f"{labels.name}: found no class {of!r}; {nearest(of, classes.names)}"
    )


def infer_classes(labels: LabelImage) -> ClassMap:
    """One class for each label value."""
    values: set[int] = set()
    for plane in labels.planes():
        values.update(np.unique(check_integers(labels.read(plane))).tolist())
        if len(values) > MAX_INFERRED:
            raise LabelError(
                f"{labels.name}: found more than {MAX_INFERRED} label values and no"
                " class map; needed are classes: if these are ids already, measure"
                " them with region_table, else write the labels with a class map."
            )
    return ClassMap.from_values(values)


def _read_mask(
    labels: LabelImage, group: Sequence[Region], classes: ClassMap, index: int
) -> Array:
    """Pixels of the class in the planes of a group (Z, Y, X).

    Of a single plane, Y, X.
    """
    mask = np.empty((len(group), labels.size("Y"), labels.size("X")), bool)
    for plane, region in zip(mask, group, strict=True):
        plane[:] = classes.encode(check_integers(labels.read(region)[0])) == index
    return mask if len(group) > 1 else mask[0]


def _number_objects(
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
        # Objects are connected by faces, so the background is connected by corners too.
        # Else a gap that leads out diagonally, between two objects, would count as a
        # hole in one.
        corners = np.ones((3,) * mask.ndim, bool)
        mask = ndimage.binary_fill_holes(mask, structure=corners)
    numbers: Array = np.empty(mask.shape, np.int32)
    count = ndimage.label(mask, output=numbers)
    if split is not None:
        _split_objects(numbers, count, split, sampling)
    planes = numbers if numbers.ndim == 3 else numbers[None]
    store.add(planes, _select_objects(planes, smallest, math.prod(sampling)))


def _select_objects(planes: Array, smallest: float, pixel: float) -> Array:
    """For each number, 0 included: true when the object is kept.

    Parameters
    ----------
    pixel
        area or volume of a pixel.
    """
    counts = np.zeros(1, np.int64)
    # Plane by plane, because a whole volume would be copied as int64.
    for plane in planes:
        plane_counts = np.bincount(plane.ravel(), minlength=len(counts))
        plane_counts[: len(counts)] += counts
        counts = plane_counts
    # A millionth less, because pixels times their size is rarely exact.
    selected: Array = counts * pixel >= smallest * (1 - 1e-6)
    selected[0] = False
    return selected & (counts > 0)


def _split_objects(
    numbers: Array, count: int, distance: float, sampling: Sequence[float]
) -> None:
    """Cut objects in place; their parts but the first get numbers above `count`."""
    from scipy import ndimage

    boxes = []
    for number, box in enumerate(ndimage.find_objects(numbers), start=1):
        sides = []
        for part, length in zip(box, sampling, strict=True):
            sides.append((part.stop - part.start - 1) * length)
        # In a smaller box no two centres are that far apart.
        if math.hypot(*sides) >= distance:
            # One pixel more around it, so that distances to the object's edge are those
            # in the whole image. The border of the image is no edge.
            grown = tuple(slice(max(p.start - 1, 0), p.stop + 1) for p in box)
            boxes.append((number, grown))
    largest = max((numbers[box].size for _, box in boxes), default=0)
    instead = "leave out the split (--split)"
    if numbers.ndim == 3:
        instead += ", work plane by plane (--by-plane)"
    check_memory(
        largest * SPLIT_BYTES,
        what=f"splitting the largest object, in a box of {largest} pixels,",
        instead=instead,
    )
    for number, box in boxes:
        view = numbers[box]
        parts = _find_parts(view == number, distance, sampling)
        others = parts > 1
        view[others] = parts[others] + (count - 1)
        count += max(int(parts.max()) - 1, 0)


def _find_parts(mask: Array, distance: float, sampling: Sequence[float]) -> Array:
    """Parts 1..N of one connected object; int32."""
    from scipy import ndimage
    from skimage.segmentation import watershed

    if mask.all():
        # The object fills the image and has no edge.
        return mask.astype(np.int32)
    distances = ndimage.distance_transform_edt(mask, sampling=tuple(sampling))
    height = distances.astype(np.float32)
    centers = _find_centers(height, distance, sampling)
    markers: Array = np.zeros(mask.shape, np.int32)
    markers[tuple(centers.T)] = np.arange(1, len(centers) + 1)
    parts: Array = watershed(-height, markers, mask=mask)
    return parts


def _find_centers(height: Array, distance: float, sampling: Sequence[float]) -> Array:
    """Pixels (centres x dimensions) at peaks of `height`, at least `distance` apart.

    Of peaks that are nearer the higher one counts. skimage's peak_local_max measures in
    pixels, and takes every pixel of a ridge of even height for a peak of its own, so
    that a bar would be cut into many; here a level top is one peak, at its pixel next
    to the middle.
    """
    from scipy import ndimage
    from scipy.spatial import cKDTree
    from skimage.morphology import local_maxima

    corners = np.ones((3,) * height.ndim, bool)
    tops, count = ndimage.label(local_maxima(height), structure=corners)
    pixels = np.argwhere(tops)
    top = tops[tuple(pixels.T)] - 1
    positions = pixels * np.asarray(sampling)
    # The pixel of each top that is next to its middle.
    members = np.bincount(top, minlength=count)
    means = []
    for axis in range(height.ndim):
        means.append(np.bincount(top, positions[:, axis], count) / members)
    middles = np.stack(means, axis=1)
    offsets = ((positions - middles[top]) ** 2).sum(axis=1)
    by_top = np.lexsort((offsets, top))
    first = by_top[np.searchsorted(top[by_top], np.arange(count))]
    pixels, positions = pixels[first], positions[first]
    # From the highest down, each top removes the lower ones that are too near.
    order = np.argsort(-height[tuple(pixels.T)], kind="stable")
    tree = cKDTree(positions)
    available = np.ones(count, bool)
    chosen = []
    for number in order:
        if available[number]:
            chosen.append(number)
            near = tree.query_ball_point(positions[number], distance * (1 - 1e-6))
            available[near] = False
    centers: Array = pixels[chosen]
    return centers


class _Store:
    """Planes of ids in a temporary file, in uint16 as long as that holds them."""

    def __init__(self) -> None:
        self._dtype: np.dtype[Any] = np.dtype(np.uint16)
        self._count = 0
        self._file: IO[bytes] = self._open()

    def close(self) -> None:
        """Close the file; a map of it stays."""
        self._file.close()

    def add(self, planes: Array, selected: Array) -> None:
        """Add planes (Z, Y, X) of numbers.

        Parameters
        ----------
        selected
            for each number, true when it gets an id; ids continue from the last one.
        """
        last = self._count + int(selected.sum())
        if last > np.iinfo(self._dtype).max:
            self._widen()
        ids = np.where(selected, self._count + np.cumsum(selected), 0)
        ids = ids.astype(self._dtype)
        for plane in planes:
            self._write(ids[plane])
        self._count = last

    def array(self, shape: tuple[int, ...]) -> Array:
        """Map all planes. The file has no name, so it is deleted with the last view."""
        mapped: Array = np.memmap(self._file, self._dtype, mode="c", shape=shape)
        return mapped

    def _widen(self) -> None:
        """Copy the ids into a file of a wider type."""
        narrow_file, narrow_dtype = self._file, self._dtype
        self._file = self._open()
        self._dtype = np.dtype(np.uint32)
        narrow_file.seek(0)
        with narrow_file:
            while block := narrow_file.read(2**24):
                ids = np.frombuffer(block, narrow_dtype)
                self._write(ids.astype(self._dtype))

    def _open(self) -> IO[bytes]:
        try:
            return tempfile.TemporaryFile(prefix="napari-strata-")
        except OSError as error:
            raise _explain_temporary(error) from error

    def _write(self, array: Array) -> None:
        # Not through a map: a full disk under a map kills the process.
        try:
            self._file.write(np.ascontiguousarray(array).data)
            self._file.flush()
        except OSError as error:
            raise _explain_temporary(error) from error


def _explain_temporary(error: OSError) -> RunError:
    """Explain an error of the temporary file."""
    problem = files.explain(error, tempfile.gettempdir())
    return RunError(
        f"{problem} The ids are kept there for a while; the variable TMPDIR names"
        " another folder."
    )
