"""Errors of a model on blocks of its validation planes.

A training measures them at its end and stores them in the model. The interval of a
measured fraction comes from them; see `napari_strata.measure.fractions`.
"""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

GRID = 5
"""Blocks of a plane along Y, and along X."""

BLOCKS = GRID * GRID


@dataclass(frozen=True)
class ValidationPlane:
    """A plane of a validation image.

    Parameters
    ----------
    image
        Number of its image and time point; planes with the same number may be
        neighbours.
    position
        Position along Z, in pixels of X.
    side
        Mean side of its blocks in pixels.
    """

    name: str
    image: int
    position: float
    side: float


@dataclass(frozen=True, eq=False)
class RegionBlocks:
    """Counts in the blocks of all validation planes, inside one region of interest.

    Parameters
    ----------
    area
        Pixels of the region in each plane, labelled or not; int64 of shape (S,).
    pieces
        Connected pieces of each class in each plane of the truth; int64 (S, K).
    pixels
        Labelled pixels of each block; int64 (S, B). Blocks outside the region have
        none.
    true, predicted
        Pixels of each class in each block, int64 (S, B, K).
    probabilities
        Sum of the predicted probabilities of each class, float64 (S, B, K).
    """

    area: Array
    pieces: Array
    pixels: Array
    true: Array
    predicted: Array
    probabilities: Array

    def merge(self, groups: list[list[int]]) -> RegionBlocks:
        """Return the blocks of groups of planes, each as those of one plane.

        A piece that is seen in several planes of a group counts once.
        """
        return RegionBlocks(
            *(
                np.stack(
                    [
                        values[group].max(0)
                        if name == "pieces"
                        else values[group].sum(0)
                        for group in groups
                    ]
                )
                for name, values in self.__dict__.items()
            )
        )


_DTYPES = {
    "area": "<i8",
    "pieces": "<i4",
    "pixels": "<i4",
    "true": "<i4",
    "predicted": "<i4",
    "probabilities": "<f4",
}
"""How the arrays are stored."""


@dataclass(frozen=True, eq=False)
class Residuals:
    """Validation planes, and the counts in their blocks.

    Parameters
    ----------
    classes
        Names of the classes.
    planes
        The S planes.
    regions
        Counts by the kind of the region of interest: "all", and "specimen" where the
        truth shows an outside.
    """

    classes: tuple[str, ...]
    planes: tuple[ValidationPlane, ...]
    regions: Mapping[str, RegionBlocks]

    def independent(self, kind: str) -> RegionBlocks:
        """Return the blocks of a region in planes that lie apart.

        Planes of one image that are nearer to each other than the side of a block show
        the same grains. They are one plane here.
        """
        groups: list[list[int]] = []
        order = sorted(
            range(len(self.planes)),
            key=lambda i: (self.planes[i].image, self.planes[i].position),
        )
        for i in order:
            plane = self.planes[i]
            first = self.planes[groups[-1][0]] if groups else None
            if (
                first is not None
                and first.image == plane.image
                and plane.position - first.position < first.side
            ):
                groups[-1].append(i)
            else:
                groups.append([i])
        return self.regions[kind].merge(groups)

    @property
    def side(self) -> float:
        """Mean side of the blocks in pixels."""
        return math.fsum(plane.side for plane in self.planes) / len(self.planes)

    def to_text(self) -> str:
        """Return it as JSON; the arrays are compressed bytes in base64."""
        regions = {}
        for kind, blocks in self.regions.items():
            regions[kind] = {
                name: _encode(getattr(blocks, name), dtype)
                for name, dtype in _DTYPES.items()
            }
        planes = [
            [plane.name, plane.image, plane.position, plane.side]
            for plane in self.planes
        ]
        return json.dumps(
            {"classes": self.classes, "planes": planes, "regions": regions}
        )

    @classmethod
    def from_text(cls, text: str) -> Residuals | None:
        """Read what `to_text` wrote; None in models of earlier versions."""
        values = json.loads(text)
        if values is None:
            return None
        classes = tuple(values["classes"])
        planes = tuple(ValidationPlane(*row) for row in values["planes"])
        count, last = len(planes), len(classes)
        shapes = {
            "area": (count,),
            "pieces": (count, last),
            "pixels": (count, BLOCKS),
        }
        regions = {}
        for kind, arrays in values["regions"].items():
            regions[kind] = RegionBlocks(
                **{
                    name: _decode(arrays[name], dtype).reshape(
                        shapes.get(name, (count, BLOCKS, last))
                    )
                    for name, dtype in _DTYPES.items()
                }
            )
        return cls(classes, planes, regions)


def _encode(values: Array, dtype: str) -> str:
    data = zlib.compress(np.ascontiguousarray(values, dtype).tobytes())
    return base64.b64encode(data).decode("ascii")


def _decode(text: str, dtype: str) -> Array:
    """Return the values as int64 or float64, in which sums are exact."""
    values = np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype)
    return values.astype(np.float64 if "f" in dtype else np.int64)
