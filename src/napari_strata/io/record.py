"""Record in the files that this project writes, to read them without loss.

It is JSON in plain ASCII, stored where each format allows it: in an OME annotation, in
tifffile's shaped metadata, in a PNG text chunk, in zarr attributes. The files also have
the standard metadata for other programs.
"""

from __future__ import annotations

import json
from dataclasses import fields
from typing import TypeAlias

from pydantic import BaseModel, ConfigDict, model_validator

from napari_strata.core.axes import canonical
from napari_strata.core.classes import ClassMap
from napari_strata.core.errors import LabelError
from napari_strata.core.image import ArrayLike, Image, LabelImage
from napari_strata.io.units import size_of

KEY = "napari_strata"
"""Key of the record in every format."""

NAMESPACE = "napari-strata/record/1"
"""Namespace of the OME annotation with the record."""

Loaded: TypeAlias = tuple[Image, ClassMap | None]
"""Image of a file, and its class map if it has one."""


class Record(BaseModel):
    """Geometry, names and class map of an image, in the axis order TCZYX."""

    model_config = ConfigDict(frozen=True)

    axes: str
    shape: tuple[int, ...]
    scale: tuple[float, ...]
    units: tuple[str, ...]
    name: str
    channel_names: tuple[str, ...] = ()
    classes: ClassMap | None = None
    labels: bool = False
    """True for labels; files of earlier versions have the classes only."""

    @model_validator(mode="after")
    def _check(self) -> Record:
        counts = {len(self.axes), len(self.shape), len(self.scale), len(self.units)}
        if len(counts) > 1 or self.axes != canonical(self.axes):
            raise ValueError("axes, shape, scale and units do not fit each other")
        return self

    @property
    def is_labels(self) -> bool:
        return self.labels or self.classes is not None

    @classmethod
    def of(cls, image: Image) -> Record:
        """Return the record of an image, in the axis order of files."""
        axes = canonical(image.axes)
        order = [image.axes.index(a) for a in axes]
        return cls(
            axes=axes,
            shape=tuple(image.shape[i] for i in order),
            scale=tuple(float(image.scale[i]) for i in order),
            units=tuple(image.units[i] for i in order),
            name=image.name,
            channel_names=image.channel_names,
            classes=image.classes if isinstance(image, LabelImage) else None,
            labels=isinstance(image, LabelImage),
        )

    def text(self) -> str:
        """Format the record as one line of ASCII, for `read`."""
        return json.dumps(self.model_dump(mode="json"))

    @classmethod
    def read(cls, text: object) -> Record | None:
        """Parse a record; None if `text` is not a valid record."""
        try:
            return cls.model_validate(json.loads(str(text)))
        # Objects nested a thousand times raise RecursionError.
        except (ValueError, TypeError, LabelError, RecursionError):
            return None

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Return True if `shape` is the recorded one, apart from axes of length 1."""
        return [n for n in shape if n != 1] == [n for n in self.shape if n != 1]

    def image(self, data: ArrayLike, *, source: str) -> Image:
        """Return the image with the recorded metadata and `data` of that shape.

        Labels are a `LabelImage`.
        """
        image = Image(
            data,
            self.axes,
            tuple(size_of(step) or 1.0 for step in self.scale),
            self.units,
            self.name,
            self.channel_names,
            source,
        )
        return as_labels(image, self.classes) if self.is_labels else image


def as_labels(image: Image, classes: ClassMap | None = None) -> LabelImage:
    """Return an image as labels with a class map."""
    values = {field.name: getattr(image, field.name) for field in fields(Image)}
    return LabelImage(**values, classes=classes)
