"""Comparison of two label images of the same pixels; it does not import torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from napari_strata.core import axes as _axes
from napari_strata.core.classes import IGNORE, MAX_INFERRED, ClassMap, default_colors
from napari_strata.core.errors import LabelError
from napari_strata.core.image import Image, LabelImage
from napari_strata.data.trained_on import SeenPlane, TrainedOn, values_of
from napari_strata.io import read_labels, write_labels

Array = np.ndarray[Any, Any]

STRIP_PIXELS = 2**20
"""Pixels compared at once, so that other threads can run in between."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two label images to be compared, all of them or one plane.

    Parameters
    ----------
    prediction, truth
        Labels of the same pixels.
    background
        True if 0 is a class, unless the truth's classes say otherwise.
    plane
        T and Z of the only plane to compare; empty for all of them.
    """

    prediction: LabelImage
    truth: LabelImage
    background: bool
    plane: Mapping[str, int]

    def describe(self) -> str:
        """Describe the comparison for people."""
        text = f"{self.prediction.name} against {self.truth.name}"
        if self.plane:
            text += f", {describe_plane(self.plane)} only"
        return text

    def write(self, folder: Path) -> Written:
        """Write both as label files that name their classes. Raises `StrataError`."""
        prediction, truth = self._cut(self.prediction), self._cut(self.truth)
        predicted_values = label_values(prediction)
        classes = join_classes(
            self.truth.classes,
            self.prediction.classes,
            predicted_values | label_values(truth),
            background=self.background,
        )
        paths = []
        for kind, labels in (("prediction", prediction), ("truth", truth)):
            path = folder / f"{kind}-{self._file_name(labels)}.ome.tif"
            write_labels(path, replace(labels, classes=classes), overwrite=True)
            paths.append(path)
        notes = find_oddities(
            self.truth.classes, self.prediction.classes, predicted_values
        )
        return Written(self, paths[0], paths[1], classes, tuple(notes))

    def _cut(self, labels: LabelImage) -> LabelImage:
        """Return a copy of the only plane, or all of it."""
        if not self.plane:
            return labels
        data = np.array(labels.data[labels.region_index(self.plane)])
        return replace(labels, data=data)

    def _file_name(self, labels: LabelImage) -> str:
        name = re.sub(r"[^A-Za-z0-9]+", "-", labels.name).strip("-").lower()[:40]
        for axis, index in self.plane.items():
            name += f"-{axis.lower()}{index}"
        return name


@dataclass(frozen=True, eq=False)
class Written:
    """Files of a comparison, the classes of both, and notes on oddities in them.

    Parameters
    ----------
    planes
        The labelled planes, and how the model of the prediction knows them.
    why_unknown
        Reason why that is not known; else empty.
    """

    comparison: Comparison
    prediction: Path
    truth: Path
    classes: ClassMap
    notes: tuple[str, ...]
    planes: tuple[SeenPlane, ...] = ()
    why_unknown: str = ""

    def look_up(self, trained_on: TrainedOn, image: Image | None) -> Written:
        """Return a copy that tells which planes were trained on.

        Parameters
        ----------
        image
            Image of the labels, if it is at hand.
        """
        truth = read_labels(self.truth)
        planes = find_seen(
            truth,
            self.classes,
            trained_on,
            image=image,
            indices=list(read_labels(self.prediction).planes()),
            plane=self.comparison.plane,
        )
        return replace(self, planes=tuple(planes), why_unknown=trained_on.why_unknown)

    def errors(self) -> LabelImage:
        """Return the errors in the axes and size of the original prediction.

        See `find_errors` and `error_classes`.
        """
        whole, plane = self.comparison.prediction, self.comparison.plane
        errors = find_errors(
            read_labels(self.prediction), read_labels(self.truth), self.classes
        )
        errors = _axes.from_canonical(errors, whole.axes)
        if plane:
            padded = np.zeros(whole.shape, errors.dtype)
            padded[whole.region_index(plane)] = errors
            errors = padded
        name = f"errors: {whole.name} against {self.comparison.truth.name}"
        classes = error_classes(self.classes)
        return replace(whole, data=errors, name=name, classes=classes)


def find_seen(
    labels: LabelImage,
    classes: ClassMap | None,
    trained_on: TrainedOn,
    *,
    image: Image | None = None,
    indices: Sequence[Mapping[str, Any]] | None = None,
    plane: Mapping[str, int] | None = None,
    most: int | None = None,
) -> list[SeenPlane]:
    """Look up the labelled planes of labels among those that a model was trained on.

    Parameters
    ----------
    classes
        Meaning of the values; without it, 0 is unlabelled.
    image
        Image of the labels, if it is at hand.
    indices
        The planes; all of them when left out.
    plane
        Index in the image of the only plane that the labels have; see `Comparison`.
    most
        Count of the planes to find at most, in a random order.

    Raises
    ------
    LabelError, ImageError
        When a value is not one of `classes`, or a file cannot be read.
    """
    shape = (labels.size("Y"), labels.size("X"))
    indices = list(labels.planes()) if indices is None else list(indices)
    if most is not None:
        np.random.default_rng(0).shuffle(indices)
    planes: list[SeenPlane] = []
    for index in indices:
        if most is not None and len(planes) == most:
            break
        region = {"T": 0, "Z": 0, **index}
        values = labels.read(region).reshape(shape).astype(np.int64)
        if classes is None:
            values = np.where(values, values, -1)
        else:
            values = values_of(classes.encode(values), classes)
        labelled = int((values >= 0).sum())
        if labelled:
            grey = None
            if image is not None:
                grey = image.read(region | dict(plane or {})).reshape(-1, *shape)
            planes.append(SeenPlane(index, trained_on.find(grey, values), labelled))
    return planes


def label_values(labels: LabelImage) -> set[int]:
    """Return the label values that occur."""
    values: set[int] = set()
    for plane in labels.planes():
        for strip in _strips(labels, plane):
            values.update(np.unique(labels.read(strip)).tolist())
    return values


def find_oddities(
    truth: ClassMap | None, prediction: ClassMap | None, predicted_values: set[int]
) -> list[str]:
    """Describe classes that only the prediction has, and values with two names."""
    if truth is None or truth.rest is not None:
        return []
    true_names = _names(truth)
    predicted_names = _names(prediction)
    sentences = []
    new_values = predicted_values - set(true_names) - set(truth.unlabelled) - {0}
    if new_values:
        named = ", ".join(
            f"{predicted_names.get(value, 'class')} ({value})"
            for value in sorted(new_values)[:8]
        )
        sentences.append(
            f"The truth does not know {named}: pixels predicted as such count as wrong."
        )
    differences = []
    for value, name in true_names.items():
        predicted_name = predicted_names.get(value, name)
        if predicted_name != name:
            differences.append(f"{value} is {name} and {predicted_name}")
    if differences:
        sentences.append(
            f"Truth and prediction name values differently ({', '.join(differences)}): "
            "the value counts."
        )
    return sentences


def describe_plane(plane: Mapping[str, int]) -> str:
    """Describe a plane: ``plane Z = 3``."""
    return "plane " + ", ".join(f"{axis} = {index}" for axis, index in plane.items())


def join_classes(
    truth: ClassMap | None,
    prediction: ClassMap | None,
    values: Iterable[int],
    *,
    background: bool,
) -> ClassMap:
    """Join the classes of two label images.

    The truth's classes come first, then those that only the prediction has.

    Parameters
    ----------
    truth, prediction
        Classes in their files or layers, if any.
    values
        Label values that occur in either.
    background
        True if 0 is a class, False if it is unlabelled, unless the truth's classes say.

    Raises
    ------
    LabelError
        If nothing is left to score, or the values are too many to be classes.
    """
    values = {int(value) for value in values}
    base = truth or prediction
    if base is not None and base.rest is not None:
        return base.model_copy(update={"rgb": None})
    names = _names(prediction) | _names(truth)
    colors = _colors(prediction) | _colors(truth)
    unlabelled = set(base.unlabelled) if base is not None else set()
    if truth is None:
        unlabelled -= {0}
    truth_knows_0 = truth is not None and 0 in (*truth.values, *truth.unlabelled)
    if not truth_knows_0 and not background:
        unlabelled |= {0}
    true_values = list(truth.values) if truth is not None else []
    other_values = sorted((values | set(names)) - set(true_values))
    class_values = [v for v in (*true_values, *other_values) if v not in unlabelled]
    if not class_values:
        raise LabelError(
            f"found only label values {sorted(values)}, all unlabelled: there is "
            "nothing to score."
        )
    if len(class_values) > MAX_INFERRED and truth is None:
        raise LabelError(
            f"found {len(class_values)} label values ({min(class_values)} to "
            f"{max(class_values)}): too many for classes. If they are object ids, give "
            "the truth one class for all objects first (the class table of the Train "
            "dock, or ClassMap.foreground())."
        )
    spare_colors = default_colors(len(class_values))
    return ClassMap(
        names=_unique_names(class_values, names),
        values=tuple(class_values),
        colors=tuple(
            colors.get(value, spare)
            for value, spare in zip(class_values, spare_colors, strict=True)
        ),
        unlabelled=tuple(sorted(unlabelled)),
    )


def error_classes(classes: ClassMap) -> ClassMap:
    """Return the classes of an image of errors, in which 0 means "no error".

    A class of value 0 takes the next free value.
    """
    free = max(classes.values) + 1
    values = tuple(value or free for value in classes.values)
    return ClassMap(
        names=classes.names, values=values, colors=classes.colors, unlabelled=(0,)
    )


def find_errors(prediction: LabelImage, truth: LabelImage, classes: ClassMap) -> Array:
    """Return the predicted values where they are wrong, and 0 elsewhere.

    Returns
    -------
    array
        In the prediction's own axes, with the values of `error_classes`; 0 where the
        truth is unlabelled.

    Raises
    ------
    LabelError
        If a value is neither a class nor unlabelled.
    """
    values = error_classes(classes)
    table = np.zeros(256, values.dtype)
    table[: len(values)] = values.values
    axes = _axes.canonical(prediction.label_axes)
    errors = np.zeros([prediction.size(axis) for axis in axes], values.dtype)
    for plane in prediction.planes():
        for strip in _strips(prediction, plane):
            true = classes.encode(truth.read(strip)[0])
            predicted = classes.encode(prediction.read(strip)[0])
            wrong = (true != IGNORE) & (true != predicted)
            if wrong.any():
                index = tuple(strip[axis] for axis in axes)
                errors[index] = np.where(wrong, table[predicted], 0)
    return _axes.from_canonical(errors, prediction.label_axes)


def _strips(
    labels: LabelImage, plane: Mapping[str, int | slice]
) -> Iterator[dict[str, int | slice]]:
    """Divide a plane into regions of full width and about `STRIP_PIXELS` pixels."""
    height, width = labels.size("Y"), labels.size("X")
    step = max(1, STRIP_PIXELS // width)
    for top in range(0, height, step):
        rows = slice(top, min(top + step, height))
        yield {"T": 0, "Z": 0, **plane, "Y": rows, "X": slice(None)}


def _names(classes: ClassMap | None) -> dict[int, str]:
    """Return the name of each value."""
    if classes is None:
        return {}
    return dict(zip(classes.values, classes.names, strict=True))


def _colors(classes: ClassMap | None) -> dict[int, str]:
    """Return the colour of each value."""
    if classes is None:
        return {}
    return dict(zip(classes.values, classes.colors, strict=True))


def _unique_names(values: list[int], names: Mapping[int, str]) -> tuple[str, ...]:
    """Return a name for each value; a name that is taken gets the value behind it."""
    unique: list[str] = []
    for value in values:
        default = f"class {value}" if value else "background"
        name = names.get(value, default)
        unique.append(f"{name} ({value})" if name in unique else name)
    return tuple(unique)
