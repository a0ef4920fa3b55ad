"""Committee: several predictors, and the flips and turns of a plane, whose probabilities are averaged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from napari_strata.core.axes import from_canonical
from napari_strata.core.image import Image
from napari_strata.core.normalization import Scale
from napari_strata.core.spec import ModelSpec
from napari_strata.core.tiling import Box
from napari_strata.inference.chunks import Slab, plan_slabs
from napari_strata.inference.views import mean_of_views, view_shapes
from napari_strata.models.device import Precision
from napari_strata.models.network_predictor import (
    Predictor,
    class_indices,
    is_out_of_memory,
)

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Turn:
    """One of the eight flips and quarter turns of a plane (the dihedral group of the square).

    Parameters
    ----------
    mirror
        whether columns are reversed first.
    quarters
        quarter turns that follow.
    """

    mirror: bool = False
    quarters: int = 0

    def apply(self, image: Array) -> Array:
        """An array (..., H, W), turned. A copy, in the order of memory that torch takes."""
        return np.ascontiguousarray(
            np.rot90(
                np.flip(image, -1) if self.mirror else image, self.quarters, (-2, -1)
            )
        )

    def undo(self, answer: Tensor) -> Tensor:
        """An answer (..., h, w) for part of a turned plane, turned back."""
        straight = (
            torch.rot90(answer, -self.quarters, (-2, -1)) if self.quarters else answer
        )
        return torch.flip(straight, (-1,)) if self.mirror else straight

    def place(self, box: Box, shape: tuple[int, int]) -> Box:
        """Where a part of the turned plane, whose size is `shape`, lies in the plane. Planes of a volume stay."""
        (*planes, rows, columns), (height, width) = box, shape
        for _ in range(
            self.quarters
        ):  # turned back, rows from the top are columns from the right
            rows, columns, height, width = (
                columns,
                _reversed(rows, height),
                width,
                height,
            )
        return (*planes, rows, _reversed(columns, width) if self.mirror else columns)


TURNS = tuple(Turn(*pair) for pair in product((False, True), range(4)))
"""All eight, the first of which changes nothing."""


class Committee:
    """Predictors that decide together: the class of the largest mean probability.

    One member without `tta` is that predictor, to the bit and at its speed. Otherwise the probabilities float32
    (K, H, W) of one plane are held, on the device where there is room for them.

    Parameters
    ----------
    members
        of the same classes and channels, in a fixed order; all networks are on the device at the same time.
    tta
        average over the eight flips and quarter turns of the plane too (test-time augmentation, as in Simonyan &
        Zisserman 2015, https://arxiv.org/abs/1409.1556, for flips): each goes through the normal tiling, and its
        answer is turned back. Eight times the work.
    ortho
        average over the XY, XZ and YZ planes of a volume; 2D networks only. See `views`.
    """

    def __init__(
        self, members: Sequence[Predictor], *, tta: bool = False, ortho: bool = False
    ) -> None:
        self.members = tuple(members)
        self.turns = TURNS if tta else TURNS[:1]
        self.ortho = ortho

    @property
    def spec(self) -> ModelSpec:
        """The first member's; its classes are everybody's."""
        return self.members[0].spec

    @property
    def device(self) -> torch.device:
        return self.members[0].device

    @property
    def precision(self) -> Precision:
        return self.members[0].precision

    @property
    def tiles(self) -> list[int]:
        """Side of each member's tiles."""
        return [member.spec.tile for member in self.members]

    def slabs(self, image: Image) -> list[Slab]:
        """The pieces in which an image is predicted."""
        return plan_slabs(
            image, [member.spec for member in self.members], ortho=self.ortho
        )

    def pictures(self, slab: Slab, image: Image) -> list[tuple[tuple[int, ...], int]]:
        """Sizes of what goes through each network for a slab, and how many of each; turns not counted."""
        shape = slab.shape(image)
        return view_shapes(shape, slab.stretch) if self.ortho else [(shape, 1)]

    def slab(
        self,
        slab: Slab,
        array: Array,
        scales: Sequence[Scale],
        *,
        probabilities: bool = False,
    ) -> tuple[Array, Array | None]:
        """Predict the planes of a slab from its grey values (C, H, W) or (C, D, H, W); see `plane`.

        Returns
        -------
        class indices uint8 (planes, H, W), and probabilities float16 (planes, K, H, W) if asked for.
        """
        if not self.ortho:
            indices, chances = self.plane(array, scales, probabilities=probabilities)
            if indices.ndim == 2:
                return indices[None], None if chances is None else chances[None]
            return indices[slab.keep], None if chances is None else from_canonical(
                chances[:, slab.keep], "ZCYX"
            )
        mean = mean_of_views(
            array, slab.stretch, lambda plane: self._mean(plane, scales)
        )[:, slab.keep]
        indices = class_indices(mean[None])[0].cpu().numpy()
        return indices, from_canonical(
            mean.half().cpu().numpy(), "ZCYX"
        ) if probabilities else None

    def plane(
        self, image: Array, scales: Sequence[Scale], *, probabilities: bool = False
    ) -> tuple[Array, Array | None]:
        """Predict one plane (C, H, W), or volume, as `Predictor.plane` does, with the scale of each member; see
        `Ensemble.scales`.

        Returns
        -------
        class indices uint8 (H, W), and probabilities float16 (K, H, W) if asked for.

        Raises
        ------
        RunError
            when not even one tile fits into memory, saying what would.
        """
        if len(self.members) == len(self.turns) == 1:
            return self.members[0].plane(image, scales[0], probabilities=probabilities)
        mean = self._mean(image, scales)
        indices = class_indices(mean[None])[0].cpu().numpy()
        return indices, mean.half().cpu().numpy() if probabilities else None

    @torch.inference_mode()
    def _mean(self, image: Array, scales: Sequence[Scale]) -> Tensor:
        """Mean probabilities float32 (K, H, W)."""
        total = _zeros((len(self.spec.classes), *image.shape[1:]), self.device)
        for turn in self.turns:
            turned = turn.apply(image)
            height, width = turned.shape[-2:]
            for member, scale in zip(self.members, scales, strict=True):
                for places, chances in member.probabilities(turned, scale):
                    for (crop, write), one in zip(places, chances, strict=True):
                        target = total[:, *turn.place(write, (height, width))]
                        target += turn.undo(one[:, *crop]).to(total.device)
        total /= len(self.turns) * len(self.members)
        return total


def _reversed(part: slice, length: int) -> slice:
    return slice(length - part.stop, length - part.start)


def _zeros(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """On the device, or beside the processor when the device has no room."""
    try:
        return torch.zeros(shape, device=device)
    except RuntimeError as error:
        if device.type == "cpu" or not is_out_of_memory(error):
            raise
    return torch.zeros(shape)
