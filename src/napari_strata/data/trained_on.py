"""Recognition of the planes that a model was trained on, by their content.

A run records a digest of the grey values and of the labels of each plane that trains or
is held back. An evaluation looks its own planes up: a copy of a plane is recognised
under any name and path, and other planes of the same stack are not.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from napari_strata.core.classes import IGNORE, ClassMap
from napari_strata.core.errors import RunError
from napari_strata.core.runs import CrossvalFolder, RunFolder
from napari_strata.data.neighbours import own_channels
from napari_strata.data.regions import LabelledRegion

Array = np.ndarray[Any, Any]
Kind: TypeAlias = Literal["trained", "held back", "new"]
Rectangle: TypeAlias = tuple[tuple[int, int], tuple[int, int]]
"""First row and last + 1, first column and last + 1."""
Regions: TypeAlias = tuple[Mapping[str, Any], ...]
"""Regions as in ``data.json``."""

CONTENT = "content"
"""Key of the digests of a region in ``data.json``."""

EARLIER = "earlier"
"""Key in ``data.json`` of regions that trained before and do not any more.

They trained the model that a training started from, or have lost their labels. None if
that is not known; missing in runs of earlier versions.
"""

SAMPLED = 2**16
"""Grey values of a plane that its digest is made of, evenly spaced."""


@dataclass(frozen=True)
class Seen:
    """How a model knows a plane.

    Parameters
    ----------
    pixels
        Count of its labelled pixels that were trained on.
    """

    kind: Kind = "new"
    pixels: int = 0


@dataclass(frozen=True)
class SeenPlane:
    """A plane with labelled pixels, and how a model knows it.

    Parameters
    ----------
    index
        Its index along T and Z.
    labelled
        Count of its labelled pixels.
    """

    index: Mapping[str, int]
    seen: Seen
    labelled: int


def are_trained(planes: Sequence[SeenPlane]) -> bool:
    """Return True if half of the labelled pixels, or more, were trained on."""
    labelled = sum(plane.labelled for plane in planes)
    return labelled > 0 and 2 * sum(plane.seen.pixels for plane in planes) >= labelled


class Digests:
    """Digests of regions for ``data.json``. Grey values are read once."""

    def __init__(self) -> None:
        self._images: dict[Any, str] = {}

    def of(
        self, region: LabelledRegion, classes: ClassMap, neighbours: int = 0
    ) -> list[list[Any]]:
        """Return digest of grey values, digest of labels, and count of labelled pixels.

        There is one row for each plane of the region that has labelled pixels.
        """
        rows = []
        for plane in _planes(region):
            indices = plane.read_class_indices(classes)
            pixels = int((indices != IGNORE).sum())
            if pixels:
                key = (id(plane.pair.image), repr(dict(plane.index)), repr(plane.box))
                if key not in self._images:
                    grey = own_channels(plane.read_image(), neighbours)
                    self._images[key] = digest_image(grey)
                labels = digest_labels(values_of(indices, classes))
                rows.append([self._images[key], labels, pixels])
        return rows


@dataclass
class TrainedOn:
    """Planes that one or more runs trained on or held back.

    Parameters
    ----------
    why_unknown
        Reason why they are not known, or not all of them; else empty.
    """

    why_unknown: str = ""
    _pixels: dict[Kind, dict[Rectangle, dict[str, int]]] = field(
        default_factory=lambda: {"trained": {}, "held back": {}}
    )

    @classmethod
    def of(cls, models: Iterable[str | os.PathLike[str] | None]) -> TrainedOn:
        """Read what models were trained on from their runs.

        Parameters
        ----------
        models
            Run folders, model files in them, or folders of cross-validations. None
            stands for a model that was read from no file.
        """
        trained_on = cls()
        for model in models:
            runs = [] if model is None else _runs(Path(model).expanduser())
            if not runs:
                trained_on.why_unknown = "the model is not in its run folder"
            for run in runs:
                trained_on._add(run.data())
        return trained_on

    def _add(self, record: Mapping[str, Any]) -> None:
        if EARLIER not in record:
            self.why_unknown = "its run was made by an earlier version"
            return
        if record[EARLIER] is None:
            self.why_unknown = "it started from a model whose images are not known"
        kinds: list[tuple[Kind, Regions]] = [
            ("trained", (*record["training"], *(record[EARLIER] or ()))),
            ("held back", tuple(record["validation"])),
        ]
        for kind, regions in kinds:
            for region in regions:
                rectangle = tuple(region["rows"]), tuple(region["columns"])
                known = self._pixels[kind].setdefault(rectangle, {})
                for image, labels, pixels in region[CONTENT]:
                    known[image] = max(pixels, known.get(image, 0))
                    known[labels] = max(pixels, known.get(labels, 0))

    def find(self, image: Array | None, labels: Array) -> Seen:
        """Look a plane up.

        Parameters
        ----------
        image
            Its grey values (C, H, W), without neighbours; None if they are not at hand.
        labels
            Its label values (H, W); see `values_of`.
        """
        if pixels := self._find("trained", image, labels):
            return Seen("trained", pixels)
        if self._find("held back", image, labels):
            return Seen("held back")
        return Seen()

    def _find(self, kind: Kind, image: Array | None, labels: Array) -> int:
        """Count the pixels of the regions that lie in a plane."""
        total = 0
        for (rows, columns), known in self._pixels[kind].items():
            if rows[1] > labels.shape[0] or columns[1] > labels.shape[1]:
                continue
            box = (slice(*rows), slice(*columns))
            pixels = 0
            if image is not None:
                pixels = known.get(digest_image(image[:, *box]), 0)
            # Labels of one value are the same in many planes.
            if not pixels and np.ptp(labels[box]) > 0:
                pixels = known.get(digest_labels(labels[box]), 0)
            total += pixels
        return min(total, int((labels >= 0).sum()))


def digest_image(image: Array) -> str:
    """Return a digest of grey values (C, H, W), whatever their dtype."""
    step = max(1, -(-image.size // SAMPLED))
    with np.errstate(over="ignore"):
        values = image.reshape(-1)[::step].astype("<f4")
    return _digest(image.shape, values)


def digest_labels(values: Array) -> str:
    """Return a digest of label values (H, W)."""
    return _digest(values.shape, np.ascontiguousarray(values, "<i8"))


def values_of(indices: Array, classes: ClassMap) -> Array:
    """Return the label values of class indices; -1 where unlabelled."""
    values = np.full(indices.shape, -1, np.int64)
    labelled = indices != IGNORE
    values[labelled] = classes.decode(indices[labelled])
    return values


def regions_of_start(start: str | os.PathLike[str]) -> Regions | None:
    """Return the regions that trained a model to start from; None if not known."""
    runs = _runs(Path(start).expanduser())
    return regions_of_record(runs[0].data()) if runs else None


def regions_of_record(record: Mapping[str, Any]) -> Regions | None:
    """Return the regions that trained the model of a run; None if not known."""
    earlier = record.get(EARLIER)
    if earlier is None:
        return None
    return (*record.get("training", []), *earlier)


def without(regions: Regions, others: Regions) -> Regions:
    """Leave out the regions whose grey values are among those of others."""
    images = {row[0] for other in others for row in other[CONTENT]}
    return tuple(
        region
        for region in regions
        if any(row[0] not in images for row in region[CONTENT])
    )


def _runs(path: Path) -> list[RunFolder]:
    """Return the runs of a model: several for a cross-validation."""
    folder = path if path.is_dir() else path.parent
    study = CrossvalFolder(folder)
    if study.exists:
        try:
            return [study.fold(str(name)) for name in study.read()["folds"]]
        except (RunError, KeyError, TypeError):
            return []
    run = RunFolder(folder)
    return [run] if run.exists else []


def _planes(region: LabelledRegion) -> Sequence[LabelledRegion]:
    """Return the planes of a region; a plane as it is."""
    depth, *plane = region.box
    if len(plane) < 2:
        return [region]
    return [
        LabelledRegion(region.pair, {**region.index, "Z": z}, tuple(plane), region.name)
        for z in range(depth.start, depth.stop)
    ]


def _digest(shape: Sequence[int], values: Array) -> str:
    state = hashlib.blake2b(repr(tuple(shape)).encode(), digest_size=8)
    state.update(values.tobytes())
    return state.hexdigest()
