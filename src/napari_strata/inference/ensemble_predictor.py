"""Mean of probabilities over models, flips and turns, and views of a volume."""

from __future__ import annotations

import math
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
from napari_strata.models.memory import with_room, zeros_with_room
from napari_strata.models.tiled import (
    ASYNCHRONOUS,
    BATCH_PIXELS,
    TiledPredictor,
    class_indices,
)

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
        # As it was asked for: a member lowers its own when memory runs out.
        self._batch = self.members[0].batch

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
        """The chunks in which an image is predicted.

        They depend on the image, the models, the options and the kind of device, so
        that all processes that share a prediction have the same ones.
        """
        specs = [member.spec for member in self.members]
        together = self._planes_together((image.size("Y"), image.size("X")))
        return plan_chunks(image, specs, ortho=self.ortho, together=together)

    def _planes_together(self, shape: tuple[int, int]) -> int:
        """Planes of this size that a GPU predicts together, to fill a batch.

        A CPU is as fast with single planes, and shows them earlier.
        """
        if self.device.type not in ASYNCHRONOUS or self.spec.depth or self.ortho:
            return 1
        counts = [1]
        for member in self.members:
            if member.spec.blend and not member.spec.resize:
                continue  # its tiles are blended image by image
            tiles = member.tile_shapes(shape)
            batch = self._batch
            if batch is None:
                pixels = BATCH_PIXELS[self.device.type]
                batch = pixels // max(math.prod(tile) for tile in tiles)
            counts.append(max(1, batch // len(tiles)))
        return max(counts)

    def image_shapes(
        self, chunk: Chunk, image: Image
    ) -> list[tuple[tuple[int, ...], int]]:
        """Sizes of the images that each member predicts for a chunk, and their numbers.

        TTA transforms are not counted.
        """
        shape = chunk.shape(image)
        if self.ortho:
            return view_shapes(shape, chunk.stretch)
        return [(shape, max(1, len(chunk.stack)))]

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
                array,
                chunk.stretch,
                lambda planes: self._mean(list(planes), scales),
                batch_pixels=BATCH_PIXELS.get(self.device.type, 2**20),
            )
            mean = volume[:, chunk.keep]
            indices = with_room(class_indices, mean[None])[0].cpu().numpy()
            class_probabilities = _as_half(mean) if probabilities else None
        elif chunk.stack:
            return self._predict_stack(
                list(array.swapaxes(0, 1)), scales, probabilities=probabilities
            )
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
        indices, class_probabilities = self._predict_stack(
            [image], scales, probabilities=probabilities
        )
        if class_probabilities is not None:
            class_probabilities = class_probabilities[0]
        return indices[0], class_probabilities

    def _predict_stack(
        self, images: Sequence[Array], scales: Sequence[Scale], *, probabilities: bool
    ) -> tuple[Array, Array | None]:
        """Predict images of one size, as `TiledPredictor.predict_stack` does."""
        if not self.averages:
            member = self.members[0]
            return member.predict_stack(images, scales[0], probabilities=probabilities)
        mean = self._mean(images, scales)
        indices = with_room(class_indices, mean).cpu().numpy()
        return indices, _as_half(mean) if probabilities else None

    @torch.inference_mode()
    def _mean(self, images: Sequence[Array], scales: Sequence[Scale]) -> Tensor:
        """Mean probabilities over TTA transforms and members.

        Returns
        -------
        float32 (n, K, H, W) of n images of one size, in main memory when the device has
        no room.
        """
        shape = (len(images), len(self.spec.classes), *images[0].shape[1:])
        total = zeros_with_room(shape, self.device)
        for transform in self.transforms:
            transformed = [transform.apply(image) for image in images]
            height, width = transformed[0].shape[-2:]
            for member, scale in zip(self.members, scales, strict=True):
                for placements, batch in member.iter_probabilities(transformed, scale):
                    for place, tile in zip(placements, batch, strict=True):
                        box = transform.invert_box(place.write, (height, width))
                        probabilities = transform.invert(tile[:, *place.crop])
                        target = total[place.image][:, *box]
                        target += probabilities.to(total.device)
        total /= len(self.transforms) * len(self.members)
        return total


@torch.inference_mode()
def mean_of_views(
    volume: Array,
    stretch: tuple[float, float],
    predict: Callable[[Array], Tensor],
    *,
    batch_pixels: int = 1,
) -> Tensor:
    """Mean probabilities float32 (K, D, H, W) of the XY, XZ and YZ planes of a volume.

    Parameters
    ----------
    volume
        Grey values (C, D, H, W).
    stretch
        Factors that make Z's pixels as long as those of Y, and of X.
    predict
        Function that gives probabilities (n, K, h, w) of planes (n, C, h, w).
    batch_pixels
        About how many pixels are predicted together; at least one plane.
    """
    total = None
    stretch_y, stretch_x = stretch
    views = view_shapes(volume.shape[1:], stretch)
    factors = (1.0, stretch_x, stretch_y)
    for axis, factor, (view, _) in zip((1, 2, 3), factors, views, strict=True):
        together = max(1, batch_pixels // math.prod(view))
        for start in range(0, volume.shape[axis], together):
            stop = min(start + together, volume.shape[axis])
            planes = np.stack([volume.take(i, axis) for i in range(start, stop)])
            probabilities = _predict_isotropic(planes, factor, predict)
            if total is None:
                shape = (probabilities.shape[1], *volume.shape[1:])
                total = torch.zeros(shape, device=probabilities.device)
            part = total.narrow(axis, start, stop - start)
            part += probabilities.movedim(0, axis).to(total.device)
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
    planes: Array, factor: float, predict: Callable[[Array], Tensor]
) -> Tensor:
    """Predict planes (n, C, D, w) that are made `factor` times as long along D."""
    depth, width = planes.shape[2:]
    length = _stretched(depth, factor)
    if length == depth:
        return predict(planes)
    grey = torch.from_numpy(planes.astype(np.float32))
    probabilities = predict(_resize(grey, (length, width)).numpy())
    return with_room(lambda values: _resize(values, (depth, width)), probabilities)


def _resize(values: Tensor, shape: tuple[int, int]) -> Tensor:
    return interpolate(values, shape, mode="bilinear", antialias=True)


def _as_half(values: Tensor) -> Array:
    array: Array = values.half().cpu().numpy()
    return array


def _stretched(length: int, factor: float) -> int:
    return max(1, round(length * factor))


def _reversed_range(part: slice, length: int) -> slice:
    return slice(length - part.stop, length - part.start)
