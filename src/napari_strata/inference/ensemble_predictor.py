"""Mean of probabilities over models, flips and turns, and views of a volume."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from napari_strata.core.axes import from_canonical
from napari_strata.core.image import Image
from napari_strata.core.normalization import Scale
from napari_strata.core.spec import ModelSpec
from napari_strata.core.tiling import Box
from napari_strata.inference.chunks import Chunk, plan_chunks
from napari_strata.models.device import Precision
from napari_strata.models.memory import is_out_of_memory
from napari_strata.models.tiled import TiledPredictor, class_indices

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class TTATransform:
    """One of the eight flips and quarter turns of a plane.

    Parameters
    ----------
    mirror
        True when columns are reversed first.
    quarter_turns
        Number of quarter turns after that.
    """

    mirror: bool = False
    quarter_turns: int = 0

    def apply(self, image: Array) -> Array:
        """Transform an array (..., H, W); a copy in the memory order of torch."""
        if self.mirror:
            image = np.flip(image, -1)
        return np.ascontiguousarray(np.rot90(image, self.quarter_turns, (-2, -1)))

    def invert(self, values: Tensor) -> Tensor:
        """Transform part of a transformed plane (..., h, w) back."""
        if self.quarter_turns:
            values = torch.rot90(values, -self.quarter_turns, (-2, -1))
        if self.mirror:
            values = torch.flip(values, (-1,))
        return values

    def invert_box(self, box: Box, shape: tuple[int, int]) -> Box:
        """Find the box in the plane that a box of the transformed plane came from.

        Parameters
        ----------
        box
            Rows and columns; planes of a volume may come first and stay as they are.
        shape
            Shape of the transformed plane.
        """
        *planes, rows, columns = box
        height, width = shape
        for _ in range(self.quarter_turns):
            # Turned back, rows from the top are columns from the right.
            rows, columns = columns, _reversed_range(rows, height)
            height, width = width, height
        if self.mirror:
            columns = _reversed_range(columns, width)
        return (*planes, rows, columns)


TTA_TRANSFORMS = tuple(
    TTATransform(mirror, quarter_turns)
    for mirror in (False, True)
    for quarter_turns in range(4)
)
"""All eight. The first one changes nothing."""


class EnsemblePredictor:
    """Predictors whose probabilities are averaged; the largest mean decides the class.

    One member without `tta` and `ortho` gives what that predictor gives, bit for bit
    and at its speed. Otherwise the probabilities float32 (K, H, W) of one image are
    held, on the device where it has room for them.

    Parameters
    ----------
    members
        Predictors of the same classes and channels, in a fixed order; all are on the
        device at the same time.
    tta
        Average over the eight flips and quarter turns of each plane too (test-time
        augmentation, as in Simonyan & Zisserman 2015, https://arxiv.org/abs/1409.1556,
        for flips). Each goes through the normal tiling, and its probabilities are
        transformed back. Eight times the work.
    ortho
        Average over the XY, XZ and YZ planes of a volume; 2D models only. Fusion of
        orthogonal planes (Prasoon et al. 2013,
        https://doi.org/10.1007/978-3-642-40763-5_31, who trained a network for each
        view; one network for all, as here, is how empanada and volume-segmantics
        predict). Voxels that are longer along Z are made isotropic for the XZ and YZ
        views, and the probabilities are resized back.
    """

    def __init__(
        self,
        members: Sequence[TiledPredictor],
        *,
        tta: bool = False,
        ortho: bool = False,
    ) -> None:
        self.members = tuple(members)
        self.transforms = TTA_TRANSFORMS if tta else TTA_TRANSFORMS[:1]
        self.ortho = ortho

    @property
    def spec(self) -> ModelSpec:
        """Spec of the first member; its classes are those of all."""
        return self.members[0].spec

    @property
    def device(self) -> torch.device:
        """Device of all members."""
        return self.members[0].device

    @property
    def precision(self) -> Precision:
        """Number format of all members."""
        return self.members[0].predictor.precision

    @property
    def averages(self) -> bool:
        """True when probabilities are averaged over anything."""
        return len(self.members) * len(self.transforms) > 1 or self.ortho

    def plan_chunks(self, image: Image) -> list[Chunk]:
        """The chunks in which an image is predicted."""
        specs = [member.spec for member in self.members]
        return plan_chunks(image, specs, ortho=self.ortho)

    def image_shapes(
        self, chunk: Chunk, image: Image
    ) -> list[tuple[tuple[int, ...], int]]:
        """Sizes of the images that each member predicts for a chunk, and their numbers.

        TTA transforms are not counted.
        """
        shape = chunk.shape(image)
        if self.ortho:
            return view_shapes(shape, chunk.stretch)
        return [(shape, 1)]

    def predict_chunk(
        self,
        chunk: Chunk,
        array: Array,
        scales: Sequence[Scale],
        *,
        probabilities: bool = False,
    ) -> tuple[Array, Array | None]:
        """Predict the planes of a chunk.

        Parameters
        ----------
        array
            Grey values (C, H, W) or (C, D, H, W) of the chunk's region.
        scales
            Scale of each member; see `Ensemble.scales`.

        Returns
        -------
        class indices uint8 (planes, H, W), and probabilities float16 (planes, K, H, W)
        if they are requested.

        Raises
        ------
        RunError
            when not even one tile fits into memory, naming a size that would.
        """
        class_probabilities: Array | None
        if self.ortho:
            volume = mean_of_views(
                array, chunk.stretch, lambda plane: self._mean(plane, scales)
            )
            mean = volume[:, chunk.keep]
            indices = class_indices(mean[None])[0].cpu().numpy()
            class_probabilities = mean.half().cpu().numpy() if probabilities else None
        else:
            indices, class_probabilities = self.predict(
                array, scales, probabilities=probabilities
            )
            if indices.ndim == 2:
                indices = indices[None]
                if class_probabilities is not None:
                    class_probabilities = class_probabilities[None]
                return indices, class_probabilities
            indices = indices[chunk.keep]
            if class_probabilities is not None:
                class_probabilities = class_probabilities[:, chunk.keep]
        if class_probabilities is not None:
            class_probabilities = from_canonical(class_probabilities, "ZCYX")
        return indices, class_probabilities

    def predict(
        self, image: Array, scales: Sequence[Scale], *, probabilities: bool = False
    ) -> tuple[Array, Array | None]:
        """Predict one plane or volume, as `TiledPredictor.predict` does.

        Parameters
        ----------
        scales
            Scale of each member; see `Ensemble.scales`.
        """
        if len(self.members) * len(self.transforms) == 1:
            member = self.members[0]
            return member.predict(image, scales[0], probabilities=probabilities)
        mean = self._mean(image, scales)
        indices = class_indices(mean[None])[0].cpu().numpy()
        return indices, mean.half().cpu().numpy() if probabilities else None

    @torch.inference_mode()
    def _mean(self, image: Array, scales: Sequence[Scale]) -> Tensor:
        """Mean probabilities float32 (K, H, W) over TTA transforms and members."""
        total = _zeros((len(self.spec.classes), *image.shape[1:]), self.device)
        for transform in self.transforms:
            transformed = transform.apply(image)
            height, width = transformed.shape[-2:]
            for member, scale in zip(self.members, scales, strict=True):
                for placements, batch in member.iter_probabilities(transformed, scale):
                    for (crop, write), tile in zip(placements, batch, strict=True):
                        box = transform.invert_box(write, (height, width))
                        probabilities = transform.invert(tile[:, *crop])
                        target = total[:, *box]
                        target += probabilities.to(total.device)
        total /= len(self.transforms) * len(self.members)
        return total


@torch.inference_mode()
def mean_of_views(
    volume: Array, stretch: tuple[float, float], predict: Callable[[Array], Tensor]
) -> Tensor:
    """Mean probabilities float32 (K, D, H, W) of the XY, XZ and YZ planes of a volume.

    Parameters
    ----------
    volume
        Grey values (C, D, H, W).
    stretch
        Factors that make Z's pixels as long as those of Y, and of X.
    predict
        Function that gives probabilities (K, h, w) of a plane (C, h, w).
    """
    total = None
    stretch_y, stretch_x = stretch
    for axis, factor in ((1, 1.0), (2, stretch_x), (3, stretch_y)):
        for number in range(volume.shape[axis]):
            plane = np.ascontiguousarray(volume.take(number, axis))
            probabilities = _predict_isotropic(plane, factor, predict)
            if total is None:
                shape = (len(probabilities), *volume.shape[1:])
                total = torch.zeros(shape, device=probabilities.device)
            total.select(axis, number).add_(probabilities)
    assert total is not None
    return total.div_(3)


def view_shapes(
    shape: tuple[int, ...], stretch: tuple[float, float]
) -> list[tuple[tuple[int, ...], int]]:
    """Sizes of the planes of three views as models see them, and the number of each.

    Parameters
    ----------
    shape
        Shape of the volume: D, H, W.
    stretch
        Factors that make Z's pixels as long as those of Y, and of X.
    """
    depth, height, width = shape
    stretch_y, stretch_x = stretch
    return [
        ((height, width), depth),
        ((_stretched(depth, stretch_x), width), height),
        ((_stretched(depth, stretch_y), height), width),
    ]


def _predict_isotropic(
    plane: Array, factor: float, predict: Callable[[Array], Tensor]
) -> Tensor:
    """Predict a plane (C, D, n) that is made `factor` times as long along D for it."""
    depth, width = plane.shape[1:]
    length = _stretched(depth, factor)
    if length == depth:
        return predict(plane)
    grey = torch.from_numpy(plane.astype(np.float32))
    probabilities = predict(_resize(grey, (length, width)).numpy())
    return _resize(probabilities, (depth, width))


def _resize(values: Tensor, shape: tuple[int, int]) -> Tensor:
    resized = interpolate(values[None], shape, mode="bilinear", antialias=True)
    return resized[0]


def _stretched(length: int, factor: float) -> int:
    return max(1, round(length * factor))


def _reversed_range(part: slice, length: int) -> slice:
    return slice(length - part.stop, length - part.start)


def _zeros(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Zeros on the device, or in main memory when the device has no room."""
    try:
        return torch.zeros(shape, device=device)
    except RuntimeError as error:
        if device.type == "cpu" or not is_out_of_memory(error):
            raise
    return torch.zeros(shape)
