"""Parts: the pieces that training and validation work on: one plane of an annotated image, or one volume (a time point)
where the network is 3D, or a block of one."""

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

STRIP = 2**24
"""Pixels read at a time where a whole plane or volume need not be held."""


@dataclass(frozen=True, eq=False)
class Part:
    """One plane or volume of a pair, or a block of one. Reads nothing before it is asked to.

    Parameters
    ----------
    pair
        the image and its labels.
    index
        which plane or volume, as `Image.regions` gives it: T and, of a plane, Z (those the image has) -> index.
    box
        the block within it: slices along Y and X, or along Z, Y and X; ``slice(None)`` takes all of an axis.
    name
        for people: ``sand Z=3``.
    counts
        labelled pixels of each class, int64 of shape (K,), once `count` has filled them.
    """

    pair: AnnotatedImage
    index: Mapping[str, int | slice]
    box: tuple[slice, ...]
    name: str
    counts: Array | None = None

    def __post_init__(self) -> None:
        ends = [
            part.indices(self.pair.image.size(a))[:2]
            for a, part in zip(self.axes, self.box, strict=True)
        ]
        object.__setattr__(
            self, "box", tuple(slice(start, stop) for start, stop in ends)
        )

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
        """Grey values (C, *shape) in the file's own dtype, NaN and infinities included."""
        image = self.pair.image.read(self._region())
        return image.reshape(len(image), *self.shape)

    def read_labels(self, classes: ClassMap) -> Array:
        """Class indices uint8 of `shape`, `IGNORE` where unlabelled or where a channel of the image is not finite.

        Raises
        ------
        LabelError
            naming the labels and the part, when a value is neither a class nor unlabelled, or is not a whole number.
        """
        if self.pair.image.dtype.kind == "f":
            return self.read(classes)[1]
        return self._encode(classes)

    def read(self, classes: ClassMap) -> tuple[Array, Array]:
        """Image and labels at once, as `read_image` and `read_labels` give them, reading each only once."""
        image = self.read_image()
        return image, self.read_labels_of(image, classes)

    def read_labels_of(self, image: Array, classes: ClassMap) -> Array:
        """`read_labels` where the part's grey values (C, *shape) are there already."""
        labels = self._encode(classes)
        if image.dtype.kind == "f":
            labels[~np.isfinite(image).all(axis=0)] = IGNORE
        return labels

    def block(
        self, box: Sequence[slice], *, name: str = "", counts: Array | None = None
    ) -> Part:
        """A part of this part; the slices of `box` count from its own corner and lie inside it."""
        moved = (
            slice(own.start + p.start, own.start + p.stop)
            for own, p in zip(self.box, box, strict=True)
        )
        return replace(self, box=tuple(moved), name=name or self.name, counts=counts)

    def strips(self) -> Iterator[Part]:
        """The same pixels in the order of memory, in parts of full width, each of a size that memory holds."""
        for box in _strips(self.shape):
            yield self.block(box)

    def _region(self) -> dict[str, int | slice]:
        # Labels may have an axis of length 1 that their image has not.
        return {
            "T": 0,
            "Z": 0,
            **self.index,
            **dict(zip(self.axes, self.box, strict=True)),
        }

    def _encode(self, classes: ClassMap) -> Array:
        labels = self.pair.labels.read(self._region())
        coded = classes.rgb is not None and len(labels) in (3, 4)
        if len(labels) > 1 and not coded:
            raise LabelError(
                f"{self.name}: found labels with {len(labels)} channels and classes {list(classes.values)} given as "
                "values; give labels of one channel, or name the colours of a colour-coded mask (ClassMap.from_rgb())."
            )
        try:
            # Flat: a volume of three planes is no colour.
            return classes.encode(labels if coded else labels[0].reshape(-1)).reshape(
                self.shape
            )
        except LabelError as error:
            raise LabelError(
                f"{self.pair.labels.source or self.pair.name} ({self.name}): {error}"
            ) from None


def count(part: Part, classes: ClassMap) -> Part:
    """`part` with its `counts`, the labelled pixels of each class, filled. Reads every pixel once, strip by strip.

    Raises
    ------
    LabelError
        as `Part.read_labels` does.
    """
    total = np.zeros(256, np.int64)
    for strip in part.strips():
        total += np.bincount(strip.read_labels(classes).ravel(), minlength=256)
    return replace(part, counts=total[: len(classes)])


def counts_of(parts: Sequence[Part], classes: ClassMap) -> Array:
    """Labelled pixels of each class in each part, int64 of shape (parts, K); counts those not counted yet."""
    rows = [count(p, classes).counts if p.counts is None else p.counts for p in parts]
    return np.array(rows, np.int64).reshape(len(parts), len(classes))


def whole(
    pairs: AnnotatedImage | Sequence[AnnotatedImage],
    classes: ClassMap,
    axes: str = "YX",
) -> list[Part]:
    """Every plane, or with ``axes="ZYX"`` every volume, with at least one labelled pixel, its `counts` filled.

    T is slowest, then Z. Planes of a volume that are not labelled are `IGNORE` like any other pixel, so that a stack of
    which every tenth slice is annotated trains and validates on these alone.

    Raises
    ------
    LabelError
        when nothing has a labelled pixel, or a label value is neither a class nor unlabelled.
    ImageError
        when volumes are asked for and an image is a single plane.
    """
    pairs = as_pairs(pairs)
    for pair in pairs if axes == "ZYX" else ():
        require_volume(pair.image)
    every = (count(part, classes) for pair in pairs for part in _all_parts(pair, axes))
    found = [part for part in every if part.counts is not None and part.counts.any()]
    if not found:
        raise LabelError(
            f"found no labelled pixel in {shown([p.name for p in pairs])}: every value is unlabelled "
            f"({list(classes.unlabelled)}) or lies where the image is not finite; paint some pixels of each class, or "
            "change which values are unlabelled."
        )
    return found


def find_nonfinite(pairs: AnnotatedImage | Sequence[AnnotatedImage]) -> list[str]:
    """A sentence for each image that holds NaN or infinities: how many pixels, and where the first one is."""
    found = (
        _nonfinite(pair) for pair in as_pairs(pairs) if pair.image.dtype.kind == "f"
    )
    return [sentence for sentence in found if sentence]


def shown(names: Sequence[str], most: int = 8) -> str:
    """Names for people, comma-separated; beyond `most` only how many more."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def planes_of(part: Part, most: int) -> list[Part]:
    """At most `most` planes of a volume, evenly spread; a plane itself."""
    depth, *plane = part.box
    if len(plane) < 2:
        return [part]
    count = min(most, depth.stop - depth.start)
    chosen = [
        depth.start + (2 * i + 1) * (depth.stop - depth.start) // (2 * count)
        for i in range(count)
    ]
    return [replace(part, index={**part.index, "Z": z}, box=tuple(plane), name=f"{part.name} Z={z}", counts=None)
            for z in chosen]  # fmt: skip


def _strips(shape: Sequence[int]) -> Iterator[tuple[slice, ...]]:
    """Boxes of at most `STRIP` pixels that cover a part of `shape` in the order of memory; never less than a row."""
    first, *rest = shape
    step = STRIP // math.prod(rest)
    if not step and len(rest) > 1:  # a single plane is too much
        yield from (
            (slice(i, i + 1), *box) for i in range(first) for box in _strips(rest)
        )
        return
    step = max(1, step)
    for start in range(0, first, step):
        yield (
            slice(start, min(start + step, first)),
            *(slice(0, length) for length in rest),
        )


def _all_parts(pair: AnnotatedImage, axes: str = "YX") -> Iterator[Part]:
    for index in pair.image.regions(axes):
        name = " ".join([pair.name, *_places(pair.image, index)])
        yield Part(pair, index, (slice(None),) * len(axes), name)


def _places(image: Image, index: Mapping[str, int | slice]) -> list[str]:
    """``["T=0", "Z=3"]``, without the axes that hold one plane only."""
    return [f"{a}={i}" for a, i in index.items() if image.size(a) > 1]


def _nonfinite(pair: AnnotatedImage) -> str:
    total, first = 0, ""
    for strip in (s for part in _all_parts(pair) for s in part.strips()):
        wrong = ~np.isfinite(strip.read_image()).all(axis=0)
        found = int(wrong.sum())
        if found and not total:
            row, column = np.unravel_index(int(wrong.argmax()), wrong.shape)
            places = _places(pair.image, strip.index)
            first = ", ".join([*places, f"Y={strip.rows.start + row}", f"X={column}"])
        total += found
    if not total:
        return ""
    noun = "pixel that is" if total == 1 else "pixels that are"
    return f"{pair.name}: found {total} {noun} not finite (NaN or infinite), the first at {first}; taken as unlabelled."
