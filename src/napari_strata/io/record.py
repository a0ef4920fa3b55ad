"""Record in the files that this project writes, to read them without loss.

It is JSON in plain ASCII, stored where each format allows it: in an OME annotation, in
tifffile's shaped metadata, in a PNG text chunk, in zarr attributes. The files also have
the standard metadata for other programs.
"""

from __future__ import annotations

import json
from typing import TypeAlias

from pydantic import BaseModel, ConfigDict

from napari_strata.core.axes import canonical
from napari_strata.core.classes import ClassMap
from napari_strata.core.errors import LabelError
from napari_strata.core.image import ArrayLike, Image, LabelImage

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
        )

    def text(self) -> str:
        """Format the record as one line of ASCII, for `read`."""
        return json.dumps(self.model_dump(mode="json"))

    @classmethod
    def read(cls, text: object) -> Record | None:
        """Parse a record; None if `text` is not a valid record."""
        try:
            return cls.model_validate(json.loads(str(text)))
        except (ValueError, TypeError, LabelError):
            return None

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Return True if `shape` is the recorded one, apart from axes of length 1."""
        return [n for n in shape if n != 1] == [n for n in self.shape if n != 1]

    def image(self, data: ArrayLike, *, source: str) -> Image:
        """Return the image with the recorded metadata and `data` of that shape."""
        return Image(
            data,
            self.axes,
            self.scale,
            self.units,
            self.name,
            self.channel_names,
            source,
        )
