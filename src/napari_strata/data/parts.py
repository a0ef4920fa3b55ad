"""Parts: the pieces that training and validation work on, one YX plane of an annotated image or a block of one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from napari_strata.classes import IGNORE, ClassMap
from napari_strata.errors import LabelError
from napari_strata.image import AnnotatedImage, Image, as_pairs

Array = np.ndarray[Any, Any]

STRIP = 2**24
"""Pixels read at a time where a whole plane need not be held."""


@dataclass(frozen=True, eq=False)
class Part:
    """One YX plane of a pair, or a block of one. Reads nothing before it is asked to.

    Parameters
    ----------
    pair
        the image and its labels.
    index
        which plane, as `Image.planes` gives it: T and Z (those the image has) -> index.
    rows, columns
        the block within the plane; ``slice(None)`` takes all of it.
    name
        for people: ``sand Z=3``.
    counts
        labelled pixels of each class, int64 of shape (K,), once `count` has filled them.
    """

    pair: AnnotatedImage
    index: Mapping[str, int | slice]
    rows: slice
    columns: slice
    name: str
    counts: Array | None = None

    def __post_init__(self) -> None:
        for field, letter in (("rows", "Y"), ("columns", "X")):
            start, stop, _ = getattr(self, field).indices(self.pair.image.size(letter))
            object.__setattr__(self, field, slice(start, stop))

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.rows.stop - self.rows.start, self.columns.stop - self.columns.start

    def read_image(self) -> Array:
        """Grey values (C, H, W) in the file's own dtype, NaN and infinities included."""
        return self.pair.image.read(self._region())

    def read_labels(self, classes: ClassMap) -> Array:
        """Class indices uint8 (H, W), `IGNORE` where unlabelled or where a channel of the image is not finite.

        Raises
        ------
        LabelError
            naming the labels and the plane, when a value is neither a class nor unlabelled, or is not a whole number.
        """
        if self.pair.image.dtype.kind == "f":
            return self.read(classes)[1]
        return self._encode(classes)

    def read(self, classes: ClassMap) -> tuple[Array, Array]:
        """Image and labels at once, as `read_image` and `read_labels` give them, reading each only once."""
        image, labels = self.read_image(), self._encode(classes)
        if image.dtype.kind == "f":
            labels[~np.isfinite(image).all(axis=0)] = IGNORE
        return image, labels

    def block(self, rows: slice, columns: slice, *, name: str = "", counts: Array | None = None) -> Part:
        """A part of this part; `rows` and `columns` count from its own corner and lie inside it."""
        top, left = self.rows.start, self.columns.start
        return replace(
            self,
            rows=slice(top + rows.start, top + rows.stop),
            columns=slice(left + columns.start, left + columns.stop),
            name=name or self.name,
            counts=counts,
        )

    def strips(self) -> Iterator[Part]:
        """The same pixels from top to bottom in parts of full width, each of a size that memory holds."""
        height, width = self.shape
        step = max(1, STRIP // width)
        for top in range(0, height, step):
            yield self.block(slice(top, min(top + step, height)), slice(0, width))

    def _region(self) -> dict[str, int | slice]:
        # Labels may have an axis of length 1 that their image has not.
        return {"T": 0, "Z": 0, **self.index, "Y": self.rows, "X": self.columns}

    def _encode(self, classes: ClassMap) -> Array:
        labels = self.pair.labels.read(self._region())
        coded = classes.rgb is not None and len(labels) in (3, 4)
        if len(labels) > 1 and not coded:
            raise LabelError(
                f"{self.name}: found labels with {len(labels)} channels and classes {list(classes.values)} given as "
                "values; give labels of one channel, or name the colours of a colour-coded mask (ClassMap.from_rgb())."
            )
        try:
            return classes.encode(labels if coded else labels[0])
        except LabelError as error:
            raise LabelError(f"{self.pair.labels.source or self.pair.name} ({self.name}): {error}") from None


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


def whole(pairs: AnnotatedImage | Sequence[AnnotatedImage], classes: ClassMap) -> list[Part]:
    """Every plane with at least one labelled pixel, T slowest, then Z, its `counts` filled.

    Raises
    ------
    LabelError
        when no plane has a labelled pixel, or a label value is neither a class nor unlabelled.
    """
    pairs = as_pairs(pairs)
    planes = (count(part, classes) for pair in pairs for part in _planes(pair))
    found = [part for part in planes if part.counts is not None and part.counts.any()]
    if not found:
        raise LabelError(
            f"found no labelled pixel in {shown([p.name for p in pairs])}: every value is unlabelled "
            f"({list(classes.unlabelled)}) or lies where the image is not finite; paint some pixels of each class, or "
            "change which values are unlabelled."
        )
    return found


def find_nonfinite(pairs: AnnotatedImage | Sequence[AnnotatedImage]) -> list[str]:
    """A sentence for each image that holds NaN or infinities: how many pixels, and where the first one is."""
    found = (_nonfinite(pair) for pair in as_pairs(pairs) if pair.image.dtype.kind == "f")
    return [sentence for sentence in found if sentence]


def shown(names: Sequence[str], most: int = 8) -> str:
    """Names for people, comma-separated; beyond `most` only how many more."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _planes(pair: AnnotatedImage) -> Iterator[Part]:
    for index in pair.image.planes():
        name = " ".join([pair.name, *_places(pair.image, index)])
        yield Part(pair, index, slice(None), slice(None), name)


def _places(image: Image, index: Mapping[str, int | slice]) -> list[str]:
    """``["T=0", "Z=3"]``, without the axes that hold one plane only."""
    return [f"{a}={i}" for a, i in index.items() if image.size(a) > 1]


def _nonfinite(pair: AnnotatedImage) -> str:
    total, first = 0, ""
    for strip in (s for part in _planes(pair) for s in part.strips()):
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
