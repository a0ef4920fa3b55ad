"""Work: a prediction that is ready to be done, and the doing of it, slab by slab, wherever that is."""

from __future__ import annotations

from collections.abc import Generator, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from time import perf_counter
from typing import Any

import numpy as np

from napari_strata.core.classes import ClassMap
from napari_strata.core.events import RegionEnd
from napari_strata.core.image import Image, Region
from napari_strata.core.normalization import Scale
from napari_strata.data.neighbours import with_neighbours
from napari_strata.inference.build import PredictOptions
from napari_strata.inference.chunks import Slab
from napari_strata.inference.ensemble_predictor import Committee
from napari_strata.inference.output import Form, Identity, Output
from napari_strata.inference.shards import Part
from napari_strata.inference.stack import fingerprint, read_ahead
from napari_strata.models.ensemble import Ensemble

Array = np.ndarray[Any, Any]
Places = list[tuple[Region, Array]]
"""Planes, each with the (row, column) of pixels in it."""


@dataclass(frozen=True, eq=False)
class Subject:
    """An image and the models that are to see it.

    Parameters
    ----------
    image
        as it was read.
    models
        see `Ensemble`.
    """

    image: Image
    models: Ensemble

    @cached_property
    def seen(self) -> Image:
        """The image as the networks see it, neighbouring slices among its channels."""
        return with_neighbours(self.image, self.models.spec.neighbours)

    @cached_property
    def samples(self) -> list[Array]:
        return self.seen.samples()

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(self.image, self.samples)

    @property
    def classes(self) -> ClassMap:
        return self.models.spec.classes

    def form(self, options: PredictOptions) -> Form:
        """What is to be written."""
        image, classes = self.image, self.classes
        shape = (image.size("Y"), image.size("X"))
        return Form(
            len(list(image.planes())),
            shape,
            classes.dtype,
            len(classes) if options.probabilities else 0,
        )


@dataclass(frozen=True, eq=False)
class Work:
    """What is to be predicted and the networks that do it, on their device."""

    subject: Subject
    committee: Committee
    options: PredictOptions

    @cached_property
    def slabs(self) -> list[Slab]:
        return self.committee.slabs(self.subject.seen)

    @cached_property
    def scales(self) -> list[Scale]:
        return self.subject.models.scales(
            self.subject.samples, self.subject.image.dtype
        )

    @property
    def identity(self) -> Identity:
        """What its planes are made of: those of two predictions may lie side by side if theirs is the same."""
        committee, options, tiles = self.committee, self.options, self.committee.tiles
        return {
            "model": self.subject.models.digest,
            "image": self.subject.fingerprint,
            "device": committee.device.type,
            "precision": committee.precision.name,
            "backend": options.backend,
            "choice of torch.compile": options.compile,
            "tile size": tiles[0] if len(set(tiles)) == 1 else tiles,
            "request for probabilities": options.probabilities,
            "choice of flips and turns": options.tta,
        } | (
            {"choice of three views": True} if options.ortho else {}
        )  # unfinished work from before there was a choice


@dataclass(frozen=True)
class Told:
    """What is said of a part of `slabs` that is done: ``part 2 of 3 is done: planes 34 to 66``."""

    part: Part
    slabs: Sequence[Slab]

    def __str__(self) -> str:
        planes = planes_of(self.part.share(self.slabs))
        held = (
            f"planes {planes.start + 1} to {planes.stop}"
            if planes
            else "no plane is left for it"
        )
        return f"part {self.part.number} of {self.part.of} is done: {held}"

    def to_come(self, missing: Set[int]) -> str:
        """Of how many parts planes are `missing`."""
        parts = [Part(number, self.part.of) for number in range(1, self.part.of + 1)]
        count = sum(
            not missing.isdisjoint(planes_of(part.share(self.slabs))) for part in parts
        )
        return f"{count} part{' is' if count == 1 else 's are'} to come"


def planes_of(slabs: Sequence[Slab]) -> range:
    """Numbers of the planes that neighbouring slabs give."""
    return range(slabs[0].planes.start, slabs[-1].planes.stop) if slabs else range(0)


def predict_slabs(
    work: Work, slabs: Sequence[Slab], output: Output
) -> Generator[RegionEnd, None, Places]:
    """Predict what `output` lacks of the planes of `slabs`, which are neighbours; returns where there is NaN or
    infinity in them."""
    image, committee, classes = work.subject.seen, work.committee, work.subject.classes
    regions, planes = list(image.planes()), planes_of(slabs)
    wanted = [slab for slab in slabs if not output.pixels.keys() >= set(slab.planes)]
    done = sum(number in output.pixels for number in planes)
    bad: Places = []
    begun = perf_counter()
    for slab, array in read_ahead(image, wanted):
        bad += _places_not_finite(slab, array, regions)
        indices, probabilities = committee.slab(
            slab, array, work.scales, probabilities=output.form.classes > 0
        )
        for place, number in enumerate(slab.planes):
            if number in output.pixels:
                continue
            arrays = [
                classes.decode(indices[place]),
                *([] if probabilities is None else [probabilities[place]]),
            ]
            output.write(
                number,
                arrays,
                np.bincount(indices[place].ravel(), minlength=len(classes)).tolist(),
            )
            seconds, begun = perf_counter() - begun, perf_counter()
            done += 1
            yield RegionEnd(regions[number], done, len(planes), seconds)
    return bad


def _places_not_finite(slab: Slab, array: Array, regions: Sequence[Region]) -> Places:
    """Planes of a slab that hold NaN or infinities, each with the (row, column) of every one."""
    if array.dtype.kind != "f":
        return []
    finite = np.asarray(np.isfinite(array).all(axis=0))
    if finite.all():
        return []
    planes = finite[None] if finite.ndim == 2 else finite[slab.keep]
    found = [
        (regions[number], np.argwhere(~plane))
        for number, plane in zip(slab.planes, planes, strict=True)
    ]
    # Of each plane the first place and how many there are: a masked volume has billions.
    return [
        (region, np.broadcast_to(where[0].copy(), where.shape))
        for region, where in found
        if len(where)
    ]
