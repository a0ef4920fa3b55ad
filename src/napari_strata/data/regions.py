"""Labelled regions, the units of training and validation.

A region is one plane of an annotated image or, for a 3D network, one volume (a time
point); or a block of either.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from napari_strata.core.classes import IGNORE, ClassMap
from napari_strata.core.errors import LabelError
from napari_strata.core.image import AnnotatedImage, Image, as_pairs, require_volume

Array = np.ndarray[Any, Any]

STRIP_PIXELS = 2**24
"""Pixels read at a time where a whole plane or volume need not be held."""


@dataclass(frozen=True, eq=False)
class LabelledRegion:
    """One plane or volume of a pair, or a block of one. Reads nothing until asked to.

    Parameters
    ----------
    pair
        The image and its labels.
    index
        Which plane or volume, as `Image.regions` gives it: index along T and, for a
        plane, along Z (those axes that the image has).
    box
        The block within it: slices along Y and X, or along Z, Y and X. ``slice(None)``
        takes all of an axis.
    name
        Name for messages, such as ``sand Z=3``.
    counts
        Labelled pixels of each class, int64 of shape (K,); None until counted.
    """

    pair: AnnotatedImage
    index: Mapping[str, int | slice]
    box: tuple[slice, ...]
    name: str
    counts: Array | None = None

    def __post_init__(self) -> None:
        box = []
        for axis, part in zip(self.axes, self.box, strict=True):
            start, stop, _ = part.indices(self.pair.image.size(axis))
            box.append(slice(start, stop))
        object.__setattr__(self, "box", tuple(box))

    @property
    def axes(self) -> str:
        """``YX`` of a plane, ``ZYX`` of a volume."""
        return "ZYX"[-len(self.box) :]

    @property
    def rows(self) -> slice:
        return self.box[-2]

    @property
    def columns(self) -> slice:
        return self.box[-1]

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes along `axes` in pixels."""
        return tuple(part.stop - part.start for part in self.box)

    def read_image(self) -> Array:
        """Read grey values (C, *shape) in the dtype of the file, with NaN and inf."""
        image = self.pair.image.read(self._selection())
        return image.reshape(len(image), *self.shape)

    def read_class_indices(self, classes: ClassMap) -> Array:
        """Read class indices, uint8 of `shape`.

        They are `IGNORE` where a pixel is unlabelled or where a channel of the image is
        not finite.

        Raises
        ------
        LabelError
            When a value is neither a class nor unlabelled, or is not a whole number; it
            names the labels and the region.
        """
        if self.pair.image.dtype.kind == "f":
            return self.read(classes)[1]
        return self._encode(classes)

    def read(self, classes: ClassMap) -> tuple[Array, Array]:
        """Read the image and the class indices, each once."""
        image = self.read_image()
        return image, self.class_indices_of(image, classes)

    def class_indices_of(self, image: Array, classes: ClassMap) -> Array:
        """Read class indices for callers that have the grey values (C, *shape)."""
        labels = self._encode(classes)
        if image.dtype.kind == "f":
            labels[~np.isfinite(image).all(axis=0)] = IGNORE
        return labels

    def block(
        self, box: Sequence[slice], *, name: str = "", counts: Array | None = None
    ) -> LabelledRegion:
        """Return a block of this region.

        Parameters
        ----------
        box
            Slices within the region, counted from its corner.
        """
        moved = []
        for own, part in zip(self.box, box, strict=True):
            moved.append(slice(own.start + part.start, own.start + part.stop))
        return replace(self, box=tuple(moved), name=name or self.name, counts=counts)

    def strips(self) -> Iterator[LabelledRegion]:
        """Iterate over the same pixels in the order of memory.

        Strips have full width, and each is small enough to be held.
        """
        for box in _strip_boxes(self.shape):
            yield self.block(box)

    def _selection(self) -> dict[str, int | slice]:
        # Labels may have an axis of length 1 that their image has not.
        box = dict(zip(self.axes, self.box, strict=True))
        return {"T": 0, "Z": 0, **self.index, **box}

    def _encode(self, classes: ClassMap) -> Array:
        labels = self.pair.labels.read(self._selection())
        is_rgb = classes.rgb is not None and len(labels) in (3, 4)
        if len(labels) > 1 and not is_rgb:
            raise LabelError(
                f"{self.name}: found labels with {len(labels)} channels and classes "
                f"{list(classes.values)} given as values; give labels of one channel, "
                "or name the colours of a colour-coded mask (ClassMap.from_rgb())."
            )
        if not is_rgb:
            # Flat, because a volume of three planes is not RGB.
            labels = labels[0].reshape(-1)
        try:
            return classes.encode(labels).reshape(self.shape)
        except LabelError as error:
            source = self.pair.labels.source or self.pair.name
            raise LabelError(f"{source} ({self.name}): {error}") from None


def count_labels(region: LabelledRegion, classes: ClassMap) -> LabelledRegion:
    """Return `region` with `counts`, the labelled pixels of each class.

    Every pixel is read once, strip by strip.

    Raises
    ------
    LabelError
        As `LabelledRegion.read_class_indices` does.
    """
    total = np.zeros(256, np.int64)
    for strip in region.strips():
        total += np.bincount(strip.read_class_indices(classes).ravel(), minlength=256)
    return replace(region, counts=total[: len(classes)])


def label_counts(regions: Sequence[LabelledRegion], classes: ClassMap) -> Array:
    """Labelled pixels of each class in each region, int64 of shape (regions, K).

    Regions that are not counted yet are counted.
    """
    rows = []
    for region in regions:
        counted = count_labels(region, classes) if region.counts is None else region
        rows.append(counted.counts)
    return np.array(rows, np.int64).reshape(len(regions), len(classes))


def labelled_regions(
    pairs: AnnotatedImage | Sequence[AnnotatedImage],
    classes: ClassMap,
    axes: str = "YX",
) -> list[LabelledRegion]:
    """Find the planes, or the volumes, with a labelled pixel, and count their labels.

    T is slowest, then Z. Unlabelled planes of a volume are `IGNORE` like any other
    unlabelled pixel, so a stack with labels on every tenth slice trains and validates
    on these alone.

    Parameters
    ----------
    axes
        ``YX`` for planes, ``ZYX`` for volumes.

    Raises
    ------
    LabelError
        When nothing has a labelled pixel, or a label value is neither a class nor
        unlabelled.
    ImageError
        When volumes are asked for and an image is a single plane.
    """
    pairs = as_pairs(pairs)
    if axes == "ZYX":
        for pair in pairs:
            require_volume(pair.image)
    labelled = []
    for pair in pairs:
        for region in all_regions(pair, axes):
            counted = count_labels(region, classes)
            if counted.counts is not None and counted.counts.any():
                labelled.append(counted)
    if not labelled:
        raise LabelError(
            f"found no labelled pixel in {join_names([p.name for p in pairs])}: every "
            f"value is unlabelled ({list(classes.unlabelled)}) or lies where the image "
            "is not finite; paint some pixels of each class, or change which values "
            "are unlabelled."
        )
    return labelled


def all_regions(pair: AnnotatedImage, axes: str = "YX") -> Iterator[LabelledRegion]:
    """Iterate over the planes, or the volumes, of a pair, labelled or not."""
    for index in pair.image.regions(axes):
        name = " ".join([pair.name, *_index_words(pair.image, index)])
        yield LabelledRegion(pair, index, (slice(None),) * len(axes), name)


def find_nonfinite(pairs: AnnotatedImage | Sequence[AnnotatedImage]) -> list[str]:
    """Write a sentence for each image that holds NaN or infinities.

    It says how many pixels there are, and where the first one is.
    """
    sentences = []
    for pair in as_pairs(pairs):
        if pair.image.dtype.kind == "f":
            sentence = _describe_nonfinite(pair)
            if sentence:
                sentences.append(sentence)
    return sentences


def join_names(names: Sequence[str], most: int = 8) -> str:
    """Join names by commas; beyond `most`, only say how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def spread_planes(region: LabelledRegion, most: int) -> list[LabelledRegion]:
    """Return at most `most` planes of a volume, evenly spread; a plane as it is."""
    depth, *plane = region.box
    if len(plane) < 2:
        return [region]
    length = depth.stop - depth.start
    count = min(most, length)
    planes = []
    for i in range(count):
        z = depth.start + (2 * i + 1) * length // (2 * count)
        planes.append(
            replace(
                region,
                index={**region.index, "Z": z},
                box=tuple(plane),
                name=f"{region.name} Z={z}",
                counts=None,
            )
        )
    return planes


def _strip_boxes(shape: Sequence[int]) -> Iterator[tuple[slice, ...]]:
    """Boxes of at most `STRIP_PIXELS` that cover a shape in the order of memory.

    They are never smaller than a row.
    """
    first, *rest = shape
    step = STRIP_PIXELS // math.prod(rest)
    if not step and len(rest) > 1:  # a single plane is too large
        for i in range(first):
            for box in _strip_boxes(rest):
                yield (slice(i, i + 1), *box)
        return
    step = max(1, step)
    whole_axes = tuple(slice(0, length) for length in rest)
    for start in range(0, first, step):
        yield (slice(start, min(start + step, first)), *whole_axes)


def _index_words(image: Image, index: Mapping[str, int | slice]) -> list[str]:
    """``["T=0", "Z=3"]``, without axes that hold one plane only."""
    return [f"{axis}={i}" for axis, i in index.items() if image.size(axis) > 1]


def _describe_nonfinite(pair: AnnotatedImage) -> str:
    total = 0
    first_position = ""
    for region in all_regions(pair):
        for strip in region.strips():
            nonfinite = ~np.isfinite(strip.read_image()).all(axis=0)
            count = int(nonfinite.sum())
            if count and not total:
                row, column = np.unravel_index(int(nonfinite.argmax()), nonfinite.shape)
                position = _index_words(pair.image, strip.index)
                position += [f"Y={strip.rows.start + row}", f"X={column}"]
                first_position = ", ".join(position)
            total += count
    if not total:
        return ""
    noun = "pixel that is" if total == 1 else "pixels that are"
    return (
        f"{pair.name}: found {total} {noun} not finite (NaN or infinite), the first at "
        f"{first_position}; taken as unlabelled."
    )
