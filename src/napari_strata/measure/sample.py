"""The classes of one volume or plane as the measures of shape read them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from napari_strata.core.classes import IGNORE, ClassMap
from napari_strata.core.errors import ImageError
from napari_strata.core.image import Array, LabelImage
from napari_strata.measure.objects import pixel_size

AXES = ("z", "y", "x")


@dataclass(frozen=True)
class Sample:
    """Class indices of a volume, read plane by plane.

    Parameters
    ----------
    read
        Plane (Y, X) of the given number: class indices as uint8, `IGNORE` for pixels
        that are unlabelled or outside the region of interest.
    shape
        Pixels along Z, Y and X; Z is 1 for a single plane.
    spacing
        Pixel size along Z, Y and X, in `unit`.
    classes
        Names of the classes.
    """

    read: Callable[[int], Array]
    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    unit: str = "pixel"
    name: str = "labels"

    @classmethod
    def from_array(
        cls,
        indices: Array,
        classes: tuple[str, ...],
        *,
        spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
        unit: str = "pixel",
        region: Array | None = None,
        name: str = "labels",
    ) -> Sample:
        """Make a sample of class indices in memory.

        Parameters
        ----------
        indices
            Class indices, Z, Y, X or Y, X.
        region
            Mask of the same shape; true where pixels count.
        """
        planes = np.asarray(indices)
        if planes.ndim == 2:
            planes = planes[None]
        mask = (
            None if region is None else np.asarray(region, bool).reshape(planes.shape)
        )

        def read(z: int) -> Array:
            plane: Array = planes[z].astype(np.uint8)
            if mask is not None:
                plane[~mask[z]] = IGNORE
            return plane

        depth, height, width = planes.shape
        return cls(read, (depth, height, width), classes, spacing, unit, name)

    @classmethod
    def from_labels(
        cls,
        labels: LabelImage,
        classes: ClassMap,
        *,
        time: int = 0,
        inside: Callable[[int], Array] | None = None,
    ) -> Sample:
        """Read the labels of a time point.

        Parameters
        ----------
        inside
            Mask (Y, X) of the region of interest in the plane of the given number.

        Raises
        ------
        ImageError
            When the pixel size is in several units.
        """
        depth = labels.size("Z")
        letters = "ZYX" if depth > 1 else "YX"
        sizes = pixel_size(labels, letters)
        height, width = labels.size("Y"), labels.size("X")

        def read(z: int) -> Array:
            region = {"T": time, "Z": z}
            part = {axis: i for axis, i in region.items() if axis in labels.axes}
            plane = classes.encode(labels.read(part)[0].reshape(height, width))
            if inside is not None:
                plane[~inside(z)] = IGNORE
            return plane

        spacing = (sizes[0] if depth > 1 else 1.0, sizes[-2], sizes[-1])
        return cls(
            read,
            (depth, height, width),
            classes.names,
            spacing,
            labels.pixel_unit,
            labels.name,
        )

    @property
    def is_volume(self) -> bool:
        return self.shape[0] > 1

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the axes along which it has more than one pixel a line."""
        return AXES if self.is_volume else AXES[1:]

    def planes(self) -> Iterator[Array]:
        """Iterate over the planes, along Z."""
        for z in range(self.shape[0]):
            yield self.read(z)

    def require_volume(self, what: str) -> None:
        """Raise `ImageError` for a single plane.

        Parameters
        ----------
        what
            What cannot be measured, as the subject of a sentence in the plural.
        """
        if not self.is_volume:
            raise ImageError(
                f"{self.name}: found a single plane; {what} cannot be seen in a plane:"
                " pieces that are separate here may be connected above or below it."
                " Give a volume with an axis Z."
            )
