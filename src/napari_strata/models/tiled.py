"""A predictor and one image after another: cut into tiles, predicted, put together.

An image here is a plane, or a volume where the predictor is a 3D one: (C, H, W) or
(C, D, H, W). Tiling knows batches and memory; it knows nothing of files, stacks and
label values. It holds no more than one image, and of floats no more than a batch of
tiles (with blending a strip as thick as a tile, with resizing one image).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from itertools import groupby, pairwise, product
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from napari_strata.core.errors import RunError
from napari_strata.core.normalization import Scale
from napari_strata.core.spec import ModelSpec
from napari_strata.core.tiling import (
    Box,
    Tile,
    blend_weights,
    padded_length,
    plan_overlap,
    plan_tiles,
)
from napari_strata.models.memory import is_out_of_memory, release_cache
from napari_strata.models.predictor import Predictor

Array = np.ndarray[Any, Any]
Item = TypeVar("Item")
Placement: TypeAlias = tuple[Box, Box]
"""The part of a tile's logits that is kept, and its place in the image."""

ASYNCHRONOUS = ("cuda", "mps")
"""Kinds of device beside which a thread makes the next batch. The CPU has no core to
spare for that."""

BATCH_PIXELS = {"cpu": 2**20, "cuda": 2**21, "mps": 2**20}
"""Pixels in a batch when its size is not set: four tiles of 512 x 512 on a CPU, eight
on a GPU."""


class TiledPredictor:
    """Class indices, probabilities or logits of single planes (of volumes).

    Parameters
    ----------
    predictor
        gives the logits of tiles; its spec says which tiles it needs.
    batch
        tiles at a time; when None, as many as make a modest batch on this device. It is
        halved when memory runs out.
    temperature
        what logits are divided by before the softmax; see `model.Calibration`. Classes
        and logits are the same with any.
    """

    def __init__(
        self,
        predictor: Predictor,
        *,
        batch: int | None = None,
        temperature: float = 1.0,
    ) -> None:
        self.predictor = predictor
        self.batch = batch
        self.temperature = temperature

    @property
    def spec(self) -> ModelSpec:
        """Spec of the predictor."""
        return self.predictor.spec

    @property
    def device(self) -> torch.device:
        """Device of the predictor."""
        return self.predictor.device

    def predict(
        self, image: Array, scale: Scale, *, probabilities: bool = False
    ) -> tuple[Array, Array | None]:
        """Predict one image.

        Parameters
        ----------
        image
            grey values (C, H, W) of any dtype, as they are in the file; any H and W.
            (C, D, H, W) for a 3D predictor.
        scale
            see `ResolvedNormalization.scale_for`. Values that are not finite count as
            its centre.

        Returns
        -------
        class indices uint8 (H, W), and probabilities float16 (K, H, W) if they are
        requested; of a volume (D, H, W) and (K, D, H, W).

        Raises
        ------
        RunError
            when not even one tile fits into memory, naming a size that would.
        """
        indices = np.empty(image.shape[1:], np.uint8)
        class_probabilities = None
        if probabilities:
            shape = (len(self.spec.classes), *indices.shape)
            class_probabilities = np.empty(shape, np.float16)
        for placements, logits in self._iter_logits(image, scale):
            tile_indices = class_indices(logits).cpu().numpy()
            for (crop, write), tile in zip(placements, tile_indices, strict=True):
                indices[write] = tile[crop]
            if class_probabilities is not None:
                tile_probabilities = self._softmax(logits).half()
                _write_tiles(class_probabilities, placements, tile_probabilities)
        return indices, class_probabilities

    def predict_logits(self, image: Array, scale: Scale) -> Array:
        """Logits float32 (K, H, W) of one image; parameters are those of `predict`.

        Where tiles are blended, the logarithm of the blended probabilities. This is for
        losses of validation images: no other call holds the floats of a whole image.
        """
        out = np.empty((len(self.spec.classes), *image.shape[1:]), np.float32)
        for placements, logits in self._iter_logits(image, scale):
            _write_tiles(out, placements, logits)
        return out

    def iter_probabilities(
        self, image: Array, scale: Scale
    ) -> Iterator[tuple[list[Placement], Tensor]]:
        """Yield probabilities of one image in batches of tiles.

        Parameters and errors are those of `predict`.

        Yields
        ------
        placements of N tiles, and their probabilities float32 (N, K, h, w) on the
        device. Together the tiles cover the image once.
        """
        for placements, logits in self._iter_logits(image, scale):
            yield placements, self._softmax(logits)

    def tile_shapes(self, shape: Sequence[int]) -> list[tuple[int, ...]]:
        """Sizes of all tiles that are predicted for an image of size `shape`."""
        spec = self.spec
        if spec.resize:
            return [(spec.resize, spec.resize)]
        if not spec.blend:
            return [_read_shape(tile) for tile in self._plan_tiles(shape)]
        count = 1
        for length, tile, stride in zip(
            shape, spec.tile_shape, spec.stride_shape, strict=True
        ):
            padded = padded_length(length, tile=tile, stride=stride)
            count *= len(plan_overlap(padded, tile=tile, stride=stride))
        return [spec.tile_shape] * count

    def _plan_tiles(self, shape: Sequence[int]) -> list[Tile]:
        spec = self.spec
        return plan_tiles(
            shape, tile=spec.tile_shape, halo=spec.halo_shape, stride=spec.stride_shape
        )

    def _softmax(self, logits: Tensor) -> Tensor:
        """Probabilities of logits (N, K, h, w).

        Where tiles are blended, the temperature acts on the blend, because it was
        fitted on `predict_logits`.
        """
        if self.temperature != 1:
            logits = logits / self.temperature
        return torch.softmax(logits, 1)

    def _iter_logits(
        self, image: Array, scale: Scale
    ) -> Iterator[tuple[list[Placement], Tensor]]:
        """Yield logits float32 (N, K, h, w) in batches of tiles, with placements."""
        if self.spec.resize:
            return self._iter_resized(image, scale)
        if self.spec.blend:
            return self._iter_blended(image, scale)
        return self._iter_cropped(image, scale)

    def _iter_cropped(
        self, image: Array, scale: Scale
    ) -> Iterator[tuple[list[Placement], Tensor]]:
        """Yield logits of tiles whose halo is cropped."""

        def load(tile: Tile) -> Array:
            return scale.apply(image[:, *tile.read])

        # A batch holds tiles of one size. Sorting is stable, so rows stay together.
        tiles = sorted(self._plan_tiles(image.shape[1:]), key=_read_shape)
        for _, group in groupby(tiles, key=_read_shape):
            for batch, logits in self._iter_batches(list(group), load):
                yield [(tile.crop, tile.write) for tile in batch], logits

    def _iter_blended(
        self, image: Array, scale: Scale
    ) -> Iterator[tuple[list[Placement], Tensor]]:
        """Yield logits of strips in which overlapping tiles are blended.

        Probabilities are summed in a strip that is one tile thick along the first axis.
        """
        spec, shape = self.spec, image.shape[1:]
        padded_shape, plans, weights = [], [], []
        for length, tile, stride in zip(
            shape, spec.tile_shape, spec.stride_shape, strict=True
        ):
            padded_side = padded_length(length, tile=tile, stride=stride)
            starts = plan_overlap(padded_side, tile=tile, stride=stride)
            axis_weights = blend_weights(starts, tile=tile, length=padded_side)
            padded_shape.append(padded_side)
            plans.append(starts)
            weights.append(torch.from_numpy(axis_weights).to(self.device))
        padded = _pad(image, padded_shape)
        thickness = spec.tile_shape[0]

        def load(item: tuple[tuple[int, ...], Box]) -> Array:
            numbers, box = item
            top = plans[0][numbers[0]]
            return scale.apply(padded[:, top : top + thickness, *box])

        strip = torch.zeros(
            (len(spec.classes), thickness, *padded_shape[1:]), device=self.device
        )
        other_axes = tuple(slice(0, length) for length in shape[1:])
        for row, (top, next_top) in enumerate(pairwise([*plans[0], padded_shape[0]])):
            items = _strip_tiles(row, plans[1:], spec.tile_shape[1:])
            for batch, logits in self._iter_batches(items, load):
                for (numbers, box), tile_logits in zip(batch, logits, strict=True):
                    probabilities = torch.softmax(tile_logits, 0)
                    weighted = probabilities * _tile_weights(weights, numbers)
                    strip[:, :, *box] += weighted
            # Rows above the next tiles are complete; the others move up.
            done = next_top - top
            write = (slice(top, min(next_top, shape[0])), *other_axes)
            crop = (slice(0, write[0].stop - top), *other_axes)
            yield [(crop, write)], strip[None, :, :done].clamp_min(1e-30).log()
            strip = torch.cat([strip[:, done:], torch.zeros_like(strip[:, :done])], 1)

    def _iter_resized(
        self, image: Array, scale: Scale
    ) -> Iterator[tuple[list[Placement], Tensor]]:
        """Yield the logits of an image that is resized to a square and back."""
        side, shape = self.spec.resize or 0, image.shape[1:]
        grey = torch.from_numpy(scale.apply(image))[None]
        small = _interpolate(grey, (side, side))[0].numpy()
        whole = (slice(0, shape[0]), slice(0, shape[1]))
        for _, logits in self._iter_batches([small], lambda array: array):
            yield [(whole, whole)], _interpolate(logits, shape)

    def _iter_batches(
        self, items: Sequence[Item], load: Callable[[Item], Array]
    ) -> Iterator[tuple[Sequence[Item], Tensor]]:
        """Yield items and their logits, in batches that memory holds.

        Parameters
        ----------
        items
            tiles of one size.
        load
            gives the scaled array of an item.

        While a GPU works on one batch, a thread makes the next.
        """

        def load_batch(batch: Sequence[Item]) -> Array:
            return np.stack([load(item) for item in batch])

        executor: ThreadPoolExecutor | nullcontext[None] = nullcontext()
        if self.device.type in ASYNCHRONOUS:
            executor = ThreadPoolExecutor(1, "next-batch")
        with executor as pool:
            example = load(items[0])
            start = 0
            next_arrays: Future[Array] | None = None
            while start < len(items):
                batch = items[start : start + self._batch_size(example)]
                if next_arrays is not None:
                    arrays = next_arrays.result()
                else:
                    arrays = load_batch(batch)
                following = items[start + len(batch) :][: len(batch)]
                next_arrays = None
                if pool is not None and following:
                    next_arrays = pool.submit(load_batch, following)
                logits = self._try_logits(arrays)
                if logits is None:
                    next_arrays = None
                    self._halve_batch(len(batch), example)
                    continue
                yield batch, logits
                start += len(batch)

    def _batch_size(self, example: Array) -> int:
        """Number of tiles of this size that are predicted at a time."""
        if self.batch:
            return self.batch
        pixels = BATCH_PIXELS.get(self.device.type, 2**20)
        tile_pixels: int = math.prod(example.shape[1:])
        return max(1, pixels // tile_pixels)

    def _try_logits(self, arrays: Array) -> Tensor | None:
        """Logits of a batch, or None when memory runs out."""
        try:
            return self.predictor.logits(arrays)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        return None

    def _halve_batch(self, count: int, example: Array) -> None:
        """Halve the batch, or raise `RunError` when it held a single tile."""
        release_cache(self.device)
        if count > 1:
            self.batch = count // 2
            return
        shape = example.shape[1:]
        side = self._largest_side(example)
        remedy = "no smaller tile fits either"
        if side:
            setting = f"set tile={side}"
            if self.spec.resize:
                setting = "train with a smaller patches.resize"
            remedy = f"{_by((*shape[:-2], side, side))} would fit: {setting}"
        raise RunError(
            f"out of memory on {self.device}: found that one tile of {_by(shape)} "
            f"pixels is too much; {remedy}, close other programs, or predict on the "
            "CPU (device='cpu')."
        )

    def _largest_side(self, example: Array) -> int:
        """Find, by halving, the largest side of a tile that memory holds; 0 for none.

        A tile of a volume stays as thick as it is.
        """
        stride = self.spec.stride
        side: int = min(example.shape[-2:]) // 2 // stride * stride
        while side >= stride:
            tile = np.zeros((1, *example.shape[:-2], side, side), np.float32)
            if self._try_logits(tile) is not None:
                return side
            side = side // 2 // stride * stride
        return 0


@torch.inference_mode()
def class_indices(logits: Tensor) -> Tensor:
    """Index uint8 (N, H, W) of the largest of logits (N, K, H, W), the first of equals.

    The same for volumes. A running maximum: `torch.argmax` over the second axis walks
    memory in strides and takes 80 times as long (measured: 79 against 1 to 4 ms a
    megapixel), and gives eight bytes a pixel.
    """
    best = logits[:, 0].clone()
    index = torch.zeros(best.shape, dtype=torch.uint8, device=logits.device)
    for k in range(1, logits.shape[1]):
        index.masked_fill_(logits[:, k] > best, k)
        torch.maximum(best, logits[:, k], out=best)
    return index


def _by(shape: Sequence[int]) -> str:
    """Sizes as ``512 x 512``."""
    return " x ".join(map(str, shape))


def _read_shape(tile: Tile) -> tuple[int, ...]:
    return tuple(part.stop - part.start for part in tile.read)


def _write_tiles(out: Array, placements: Sequence[Placement], tiles: Tensor) -> None:
    """Write tiles (N, K, h, w) into an array (K, H, W)."""
    for (crop, write), tile in zip(placements, tiles.cpu().numpy(), strict=True):
        out[:, *write] = tile[:, *crop]


def _pad(image: Array, shape: Sequence[int]) -> Array:
    """Grow (C, *spatial) at the far ends to `shape` by reflection, as training does."""
    widths = [(0, 0)]
    for length, padded_side in zip(image.shape[1:], shape, strict=True):
        widths.append((0, padded_side - length))
    if not np.any(widths):
        return image
    return np.pad(image, widths, mode="reflect")


def _strip_tiles(
    row: int, plans: Sequence[Sequence[int]], tile: Sequence[int]
) -> list[tuple[tuple[int, ...], Box]]:
    """Tiles of one strip: the number along each axis, and the box within the strip.

    Parameters
    ----------
    row
        number of the strip along the first axis.
    plans, tile
        first pixels of the tiles along each other axis, and sizes there.
    """
    tiles = []
    for numbers in product(*(range(len(starts)) for starts in plans)):
        box = []
        for number, starts, side in zip(numbers, plans, tile, strict=True):
            box.append(slice(starts[number], starts[number] + side))
        tiles.append(((row, *numbers), tuple(box)))
    return tiles


def _tile_weights(weights: Sequence[Tensor], numbers: Sequence[int]) -> Tensor:
    """Weights of one tile: the product of those of its number along each axis."""
    factors = [weight[number] for weight, number in zip(weights, numbers, strict=True)]
    out = factors[0]
    for factor in factors[1:]:
        out = out[..., None] * factor
    return out


@torch.inference_mode()
def _interpolate(values: Tensor, shape: tuple[int, ...]) -> Tensor:
    return nn.functional.interpolate(values, shape, mode="bilinear", antialias=True)
