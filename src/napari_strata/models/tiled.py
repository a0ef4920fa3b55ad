"""A predictor and a few images: cut into tiles, predicted, put together.

An image here is a plane, or a volume where the predictor is a 3D one: (C, H, W) or
(C, D, H, W). Tiling knows batches and memory; it knows nothing of files, stacks and
label values. Tiles of several images of one size go through the network together. Of
floats it holds no more than a batch of tiles (with blending a strip as thick as a tile,
with resizing a batch of images).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from itertools import groupby, pairwise, product
from typing import Any, NamedTuple, TypeVar

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
from napari_strata.models.memory import (
    is_out_of_memory,
    make_room,
    release_cache,
    upload_array,
    with_room,
    zeros_with_room,
)
from napari_strata.models.predictor import Predictor

Array = np.ndarray[Any, Any]
Item = TypeVar("Item")


class Placement(NamedTuple):
    """What is kept of a tile's logits.

    Parameters
    ----------
    image
        Number of the image.
    crop, write
        The part of the tile that is kept, and its place in the image.
    """

    image: int
    crop: Box
    write: Box


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
        indices, class_probabilities = self.predict_stack(
            [image], scale, probabilities=probabilities
        )
        if class_probabilities is not None:
            class_probabilities = class_probabilities[0]
        return indices[0], class_probabilities

    def predict_stack(
        self, images: Sequence[Array], scale: Scale, *, probabilities: bool = False
    ) -> tuple[Array, Array | None]:
        """Predict several images of one size, whose tiles share batches.

        Parameters, results and errors are those of `predict`, with an axis of the
        images in front of the results.
        """
        indices = np.empty((len(images), *images[0].shape[1:]), np.uint8)
        class_probabilities = None
        if probabilities:
            shape = (len(images), len(self.spec.classes), *indices.shape[1:])
            class_probabilities = np.empty(shape, np.float16)
        for placements, logits in self._iter_logits(images, scale):
            tile_indices = with_room(class_indices, logits).cpu().numpy()
            for place, tile in zip(placements, tile_indices, strict=True):
                indices[place.image][place.write] = tile[place.crop]
            if class_probabilities is not None:
                tile_probabilities = with_room(self._half_softmax, logits)
                _write_tiles(class_probabilities, placements, tile_probabilities)
        return indices, class_probabilities

    def predict_logits(self, image: Array, scale: Scale) -> Array:
        """Logits float32 (K, H, W) of one image; parameters are those of `predict`.

        Where tiles are blended, the logarithm of the blended probabilities. This is for
        losses of validation images: no other call holds the floats of a whole image.
        """
        out = np.empty((len(self.spec.classes), *image.shape[1:]), np.float32)
        for placements, logits in self._iter_logits([image], scale):
            _write_tiles(out[None], placements, logits)
        return out

    def iter_probabilities(
        self, images: Sequence[Array], scale: Scale
    ) -> Iterator[tuple[list[Placement], Tensor]]:
        """Yield probabilities of images of one size in batches of tiles.

        Parameters and errors are those of `predict_stack`.

        Yields
        ------
        placements of N tiles, and their probabilities float32 (N, K, h, w) on the
        device, or in main memory when the device has no room. Together the tiles cover
        each image once.
        """
        for placements, logits in self._iter_logits(images, scale):
            yield placements, with_room(self._softmax, logits)

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

    def batch_shapes(
        self, images: Mapping[tuple[int, ...], int]
    ) -> set[tuple[int, ...]]:
        """Shapes (N, *size) of all batches for so many images of each size.

        Images of one size are predicted together, those of other sizes apart.
        """
        shapes: set[tuple[int, ...]] = set()
        for size, count in images.items():
            for tile, per_image in Counter(self.tile_shapes(size)).items():
                tiles = count * per_image
                batch = min(self.batch_size(tile), tiles)
                shapes |= {(batch, *tile), (tiles % batch or batch, *tile)}
        return shapes

    def sums_memory(self, shape: Sequence[int]) -> int:
        """Bytes of the strip in which tiles of an image are blended; 0 without."""
        spec = self.spec
        if not spec.blend or spec.resize:
            return 0
        strip = [spec.tile_shape[0]]
        for length, tile, stride in zip(
            shape[1:], spec.tile_shape[1:], spec.stride_shape[1:], strict=True
        ):
            strip.append(padded_length(length, tile=tile, stride=stride))
        # Twice while it moves on.
        return 2 * 4 * len(spec.classes) * math.prod(strip)

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

    def _half_softmax(self, logits: Tensor) -> Tensor:
        return self._softmax(logits).half()

    def _iter_logits(
        self, images: Sequence[Array], scale: Scale
    ) -> Iterator[tuple[list[Placement], Tensor]]:
        """Yield logits float32 (N, K, h, w) in batches of tiles, with placements."""
        if self.spec.resize:
            yield from self._iter_resized(images, scale)
        elif self.spec.blend:
            for number, image in enumerate(images):
                yield from self._iter_blended(number, image, scale)
        else:
            yield from self._iter_cropped(images, scale)

    def _iter_cropped(
        self, images: Sequence[Array], scale: Scale
    ) -> Iterator[tuple[list[Placement], Tensor]]:
        """Yield logits of tiles whose halo is cropped."""

        def load(item: tuple[int, Tile]) -> Array:
            number, tile = item
            return scale.apply(images[number][:, *tile.read])

        # A batch holds tiles of one size. Sorting is stable, so rows stay together.
        tiles = sorted(self._plan_tiles(images[0].shape[1:]), key=_read_shape)
        for _, group in groupby(tiles, key=_read_shape):
            items = list(product(range(len(images)), group))
            for batch, logits in self._iter_batches(items, load):
                yield [Placement(i, tile.crop, tile.write) for i, tile in batch], logits

    def _iter_blended(
        self, number: int, image: Array, scale: Scale
    ) -> Iterator[tuple[list[Placement], Tensor]]:
        """Yield logits of strips in which overlapping tiles are blended.

        Probabilities are summed in a strip that is one tile thick along the first axis.
        """
        spec, shape = self.spec, image.shape[1:]
        padded_shape: list[int] = []
        plans, weights = [], []
        for length, tile, stride in zip(
            shape, spec.tile_shape, spec.stride_shape, strict=True
        ):
            padded_side = padded_length(length, tile=tile, stride=stride)
            starts = plan_overlap(padded_side, tile=tile, stride=stride)
            axis_weights = blend_weights(starts, tile=tile, length=padded_side)
            padded_shape.append(padded_side)
            plans.append(starts)
            weights.append(torch.from_numpy(axis_weights))
        padded = _pad(image, padded_shape)
        thickness = spec.tile_shape[0]

        def load(item: tuple[tuple[int, ...], Box]) -> Array:
            numbers, box = item
            top = plans[0][numbers[0]]
            return scale.apply(padded[:, top : top + thickness, *box])

        strip = zeros_with_room(
            (len(spec.classes), thickness, *padded_shape[1:]), self.device
        )
        weights = [weight.to(strip.device) for weight in weights]
        other_axes = tuple(slice(0, length) for length in shape[1:])
        for row, (top, next_top) in enumerate(pairwise([*plans[0], padded_shape[0]])):
            items = _strip_tiles(row, plans[1:], spec.tile_shape[1:])
            for batch, logits in self._iter_batches(items, load):
                for (numbers, box), tile_logits in zip(batch, logits, strict=True):
                    probabilities = torch.softmax(tile_logits.to(strip.device), 0)
                    weighted = probabilities * _tile_weights(weights, numbers)
                    strip[:, :, *box] += weighted
            # Rows above the next tiles are complete; the others move up.
            done = next_top - top
            write = (slice(top, min(next_top, shape[0])), *other_axes)
            crop = (slice(0, write[0].stop - top), *other_axes)
            place = Placement(number, crop, write)
            yield [place], strip[None, :, :done].clamp_min(1e-30).log()
            strip = torch.cat([strip[:, done:], torch.zeros_like(strip[:, :done])], 1)

    def _iter_resized(
        self, images: Sequence[Array], scale: Scale
    ) -> Iterator[tuple[list[Placement], Tensor]]:
        """Yield the logits of images that are resized to a square and back."""
        side, shape = self.spec.resize or 0, images[0].shape[1:]
        whole = tuple(slice(0, length) for length in shape)

        def load(number: int) -> Array:
            grey = torch.from_numpy(scale.apply(images[number]))[None]
            small: Array = _interpolate(grey, (side, side))[0].numpy()
            return small

        def enlarge(logits: Tensor) -> Tensor:
            return _interpolate(logits, shape)

        for batch, logits in self._iter_batches(range(len(images)), load):
            places = [Placement(number, whole, whole) for number in batch]
            yield places, with_room(enlarge, logits)

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
            arrays = upload_array((len(batch), *example.shape), self.device)
            for array, item in zip(arrays, batch, strict=True):
                array[...] = example if item is items[0] else load(item)
            return arrays

        executor: ThreadPoolExecutor | nullcontext[None] = nullcontext()
        if self.device.type in ASYNCHRONOUS:
            executor = ThreadPoolExecutor(1, "next-batch")
        with executor as pool:
            example = load(items[0])
            start = 0
            next_arrays: Future[Array] | None = None
            while start < len(items):
                batch = items[start : start + self.batch_size(example.shape[1:])]
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

    def batch_size(self, shape: Sequence[int]) -> int:
        """Number of tiles of this size that are predicted at a time."""
        if self.batch:
            return self.batch
        pixels = BATCH_PIXELS.get(self.device.type, 2**20)
        return max(1, pixels // math.prod(shape))

    def _try_logits(self, arrays: Array) -> Tensor | None:
        """Logits of a batch, or None when memory runs out."""
        try:
            return self.predictor.logits(arrays)
        except (RuntimeError, MemoryError) as error:
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
            f"pixels is too much; {remedy}; {make_room(self.device)}"
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
    """Write tiles (N, K, h, w) into images (n, K, H, W)."""
    for place, tile in zip(placements, tiles.cpu().numpy(), strict=True):
        out[place.image][:, *place.write] = tile[:, *place.crop]


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
