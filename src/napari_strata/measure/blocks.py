"""Counting of true and predicted classes in blocks of validation planes."""

from __future__ import annotations

import math
from collections.abc import Hashable

import numpy as np

from napari_strata.core.classes import IGNORE, ClassMap
from napari_strata.core.image import Array
from napari_strata.core.residuals import (
    BLOCKS,
    GRID,
    RegionBlocks,
    Residuals,
    ValidationPlane,
)
from napari_strata.measure.region import ALL, SPECIMEN, find_specimen


class BlockCounter:
    """Counts in blocks of planes that are added one by one.

    Parameters
    ----------
    outside
        Class index of what surrounds the specimen; None if nothing does.
    """

    def __init__(self, classes: ClassMap, outside: int | None = None) -> None:
        self._classes = classes
        self._outside = outside
        self._planes: list[ValidationPlane] = []
        self._images: dict[Hashable, int] = {}
        kinds = [ALL] if outside is None else [ALL, SPECIMEN]
        self._rows: dict[str, list[tuple[Array, ...]]] = {kind: [] for kind in kinds}

    def add(
        self,
        truth: Array,
        predicted: Array,
        logits: Array,
        *,
        name: str,
        image: Hashable,
        position: float,
    ) -> None:
        """Add a plane.

        Parameters
        ----------
        truth, predicted
            Class indices (Y, X); `IGNORE` in `truth` where unlabelled.
        logits
            (K, Y, X). Their probabilities are those of temperature 1.
        name, image, position
            See `ValidationPlane`; any key of an image that is the same for its planes.
        """
        number = self._images.setdefault(image, len(self._images))
        side = math.sqrt(truth.size) / GRID
        self._planes.append(ValidationPlane(name, number, position, side))
        weights = np.exp(logits - logits.max(axis=0))
        probabilities = weights / weights.sum(axis=0)
        for kind, rows in self._rows.items():
            inside = None
            if kind == SPECIMEN and self._outside is not None:
                inside = find_specimen(truth, self._outside)
            if inside is None:
                inside = np.ones(truth.shape, bool)
            rows.append(self._count(truth, predicted, probabilities, inside))

    def residuals(self) -> Residuals:
        """Return the counts of all planes."""
        regions = {}
        for kind, rows in self._rows.items():
            regions[kind] = RegionBlocks(*map(np.stack, zip(*rows, strict=True)))
        return Residuals(self._classes.names, tuple(self._planes), regions)

    def _count(
        self, truth: Array, predicted: Array, probabilities: Array, inside: Array
    ) -> tuple[Array, ...]:
        """Count one plane; see `RegionBlocks`."""
        from scipy import ndimage

        classes = len(self._classes)
        height, width = truth.shape
        block = (
            np.arange(height)[:, None] * GRID // height * GRID
            + np.arange(width) * GRID // width
        )
        is_labelled = inside & (truth != IGNORE)
        block = block[is_labelled]
        counts = [
            np.bincount(
                block * classes + codes[is_labelled], minlength=BLOCKS * classes
            ).reshape(BLOCKS, classes)
            for codes in (truth, predicted)
        ]
        sums = [
            np.bincount(block, values[is_labelled], minlength=BLOCKS)
            for values in probabilities
        ]
        pieces = [
            ndimage.label(is_labelled & (truth == index))[1] for index in range(classes)
        ]
        return (
            np.array(int(inside.sum())),
            np.array(pieces),
            np.bincount(block, minlength=BLOCKS),
            *counts,
            np.stack(sums, axis=1),
        )
