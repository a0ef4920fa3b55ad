"""Compare: two label images of the same pixels. No torch: a viewer may use it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from napari_strata.core import axes as _axes
from napari_strata.core.classes import IGNORE, MAX_INFERRED, ClassMap, default_colors
from napari_strata.core.errors import LabelError
from napari_strata.core.image import LabelImage
from napari_strata.io import read_labels, write_labels

Array = np.ndarray[Any, Any]

PIECE = 2**20
"""Pixels compared at once, so that other threads get their turn."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two label images to be compared, all of them or one plane.

    Parameters
    ----------
    prediction, truth
        labels of the same pixels.
    background
        whether 0 is a class, where the truth's classes do not say.
    plane
        T and Z of the only plane to compare; empty for all of them.
    """

    prediction: LabelImage
    truth: LabelImage
    background: bool
    plane: Mapping[str, int]

    def describe(self) -> str:
        """In words for people."""
        where = f", {place(self.plane)} only" if self.plane else ""
        return f"{self.prediction.name} against {self.truth.name}{where}"

    def write(self, folder: Path) -> Written:
        """Write both as label files that name their classes. Raises `StrataError`."""
        both = self._cut(self.prediction), self._cut(self.truth)
        found, true = (values_of(one) for one in both)
        classes = join_classes(
            self.truth.classes,
            self.prediction.classes,
            found | true,
            background=self.background,
        )
        part = "".join(
            f"-{letter.lower()}{index}" for letter, index in self.plane.items()
        )
        paths = [
            folder
            / f"{what}-{re.sub(r'[^A-Za-z0-9]+', '-', one.name).strip('-').lower()[:40]}{part}.ome.tif"
            for what, one in zip(("prediction", "truth"), both, strict=True)
        ]
        for path, one in zip(paths, both, strict=True):
            write_labels(path, replace(one, classes=classes), overwrite=True)
        notes = find_oddities(self.truth.classes, self.prediction.classes, found)
        return Written(self, paths[0], paths[1], classes, tuple(notes))

    def _cut(self, labels: LabelImage) -> LabelImage:
        return (
            replace(labels, data=np.array(labels.data[labels.region_index(self.plane)]))
            if self.plane
            else labels
        )


@dataclass(frozen=True, eq=False)
class Written:
    """The files of a comparison, the classes of both, and sentences about what is odd in them."""

    asked: Comparison
    prediction: Path
    truth: Path
    classes: ClassMap
    notes: tuple[str, ...]

    def errors(self) -> LabelImage:
        """`find_errors` of the files, in the axes and size of the prediction that was given, with `error_classes`."""
        whole = self.asked.prediction
        made = find_errors(
            read_labels(self.prediction), read_labels(self.truth), self.classes
        )
        made = _axes.from_canonical(made, whole.axes)
        if self.asked.plane:
            here, made = made, np.zeros(whole.shape, made.dtype)
            made[whole.region_index(self.asked.plane)] = here
        name = f"errors: {whole.name} against {self.asked.truth.name}"
        return replace(whole, data=made, name=name, classes=error_classes(self.classes))


def values_of(labels: LabelImage) -> set[int]:
    """The label values that occur; read in strips of planes."""
    found: set[int] = set()
    for plane in labels.planes():
        for strip in _strips(labels, plane):
            found.update(np.unique(labels.read(strip)).tolist())
    return found


def find_oddities(
    truth: ClassMap | None, prediction: ClassMap | None, found: set[int]
) -> list[str]:
    """Sentences for classes that only the prediction has (`found`: its values), and for values of two names."""
    if truth is None or truth.rest is not None:
        return []
    ours, theirs = (
        {value: name for value, (name, _) in _table(one).items()}
        for one in (truth, prediction)
    )
    sentences = []
    if new := sorted(found - set(ours) - set(truth.unlabelled) - {0}):
        named = ", ".join(
            f"{theirs.get(value, 'class')} ({value})" for value in new[:8]
        )
        sentences.append(
            f"The truth does not know {named}: where that was predicted, it counts as wrong."
        )
    if differ := [
        f"{v} is {ours[v]} and {theirs[v]}"
        for v in ours
        if theirs.get(v, ours[v]) != ours[v]
    ]:
        sentences.append(
            f"Truth and prediction name values differently ({', '.join(differ)}): the value counts."
        )
    return sentences


def place(plane: Mapping[str, int]) -> str:
    """``plane Z = 3``."""
    return "plane " + ", ".join(
        f"{letter} = {index}" for letter, index in plane.items()
    )


def join_classes(
    truth: ClassMap | None,
    prediction: ClassMap | None,
    values: Iterable[int],
    *,
    background: bool,
) -> ClassMap:
    """The classes of two label images that hold `values`: the truth's, then those that only the prediction has.

    Parameters
    ----------
    truth, prediction
        what their files or layers say of their classes, if anything.
    values
        label values that occur in either.
    background
        whether 0 is a class, or unlabelled, where the truth's classes do not say.

    Raises
    ------
    LabelError
        when nothing is left to score, or the values are too many to be classes.
    """
    found = {int(value) for value in values}
    base = truth or prediction
    if base is not None and base.rest is not None:
        return base.model_copy(update={"rgb": None})
    known = _table(prediction) | _table(truth)
    unlabelled = (
        set(base.unlabelled) - ({0} if truth is None else set())
        if base is not None
        else set()
    )
    if truth is None or 0 not in (*truth.values, *truth.unlabelled):
        unlabelled |= set() if background else {0}
    ours = list(truth.values) if truth is not None else []
    every = [
        value
        for value in sorted(found | set(known))
        if value not in (*ours, *unlabelled)
    ]
    ours = [value for value in (*ours, *every) if value not in unlabelled]
    if not ours:
        raise LabelError(
            f"found only label values {sorted(found)}, all unlabelled: there is nothing to score."
        )
    if len(ours) > MAX_INFERRED and truth is None:
        raise LabelError(
            f"found {len(ours)} label values ({min(ours)} to {max(ours)}): too many for classes. If they are object "
            "ids, give the truth one class for all objects first (the class table of the Train dock, or "
            "ClassMap.foreground())."
        )
    names = _named(ours, known)
    spare = default_colors(len(ours))
    colors = tuple(known[v][1] if v in known else spare[i] for i, v in enumerate(ours))
    return ClassMap(
        names=names,
        values=tuple(ours),
        colors=colors,
        unlabelled=tuple(sorted(unlabelled)),
    )


def error_classes(classes: ClassMap) -> ClassMap:
    """`classes` as an image of errors has them: 0 means "no error" there, so a class of value 0 takes the next free."""
    free = max(classes.values) + 1
    values = tuple(value or free for value in classes.values)
    return ClassMap(
        names=classes.names, values=values, colors=classes.colors, unlabelled=(0,)
    )


def find_errors(prediction: LabelImage, truth: LabelImage, classes: ClassMap) -> Array:
    """The predicted values where they are wrong, 0 where they are right and where the truth is unlabelled.

    Returns
    -------
    array
        in the prediction's own axes; its values are those of `error_classes`.

    Raises
    ------
    LabelError
        when a value is neither a class nor unlabelled.
    """
    shown = error_classes(classes)
    table = np.zeros(256, shown.dtype)
    table[: len(shown)] = shown.values
    letters = _axes.canonical(prediction.label_axes)
    errors = np.zeros([prediction.size(a) for a in letters], shown.dtype)
    for plane in prediction.planes():
        for strip in _strips(prediction, plane):
            true, found = (
                classes.encode(truth.read(strip)[0]),
                classes.encode(prediction.read(strip)[0]),
            )
            wrong = (true != IGNORE) & (true != found)
            if wrong.any():
                errors[tuple(strip[a] for a in letters)] = np.where(
                    wrong, table[found], 0
                )
    return _axes.from_canonical(errors, prediction.label_axes)


def _strips(
    labels: LabelImage, plane: Mapping[str, int | slice]
) -> Iterator[dict[str, int | slice]]:
    """A plane from top to bottom in regions of full width and about `PIECE` pixels."""
    height, step = labels.size("Y"), max(1, PIECE // labels.size("X"))
    for top in range(0, height, step):
        yield {
            "T": 0,
            "Z": 0,
            **plane,
            "Y": slice(top, min(top + step, height)),
            "X": slice(None),
        }


def _table(classes: ClassMap | None) -> dict[int, tuple[str, str]]:
    """Name and colour of each value."""
    if classes is None:
        return {}
    return dict(
        zip(
            classes.values, zip(classes.names, classes.colors, strict=True), strict=True
        )
    )


def _named(values: list[int], known: dict[int, tuple[str, str]]) -> tuple[str, ...]:
    """A name for each value; one that is taken is told apart by the value."""
    names: list[str] = []
    for value in values:
        unnamed = f"class {value}" if value else "background"
        name = known[value][0] if value in known else unnamed
        names.append(f"{name} ({value})" if name in names else name)
    return tuple(names)
