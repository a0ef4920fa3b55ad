"""Predictor: a network, and one picture after another through it: planes, or volumes where the network is a 3D one.

It knows tiles, batches and memory; it knows nothing of files, stacks or label values. Nothing larger than one picture
is ever held, and of floats no more than a batch of tiles (blend: a strip of one tile's height; resize: one plane).

Arrays are (C, H, W) and (N, C, H, W) for planes, (C, D, H, W) and (N, C, D, H, W) for volumes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
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
from napari_strata.models.device import Precision, channels_last

Array = np.ndarray[Any, Any]
Part = TypeVar("Part")
Placement: TypeAlias = tuple[Box, Box]
"""What to keep of an answer, and where it belongs in the picture."""

AHEAD = ("cuda", "mps")
"""Kinds of device beside which a thread makes the next batch; a CPU has no hand free for that."""

PIXELS = {"cpu": 2**20, "cuda": 2**21, "mps": 2**20}
"""Pixels in a batch when nobody says how many tiles: four tiles of 512 x 512 on a CPU, eight on a GPU."""


class Predictor:
    """Class indices, probabilities or logits of single planes (of volumes).

    Parameters
    ----------
    network
        takes float32 (N, C, H, W) of any H and W, gives logits (N, K, H, W); with one more axis D before H if it is 3D.
        It is put on `device`, and left in the mode (training or not) it was in.
    spec
        says how the network wants its tiles; see `ModelSpec`.
    batch
        tiles at a time; when None, as many as make a modest batch on this device. Halved when memory runs out.
    temperature
        what logits are divided by before the softmax, so that probabilities are honest; see `model.Calibration`.
        Classes and logits are the same with any.
    """

    def __init__(
        self,
        network: nn.Module,
        spec: ModelSpec,
        *,
        device: torch.device,
        precision: Precision,
        batch: int | None = None,
        temperature: float = 1.0,
    ) -> None:
        order = channels_last(2 + len(spec.axes))
        self.network: nn.Module = network.to(device, memory_format=order)  # type: ignore[call-overload]
        self.spec = spec
        self.device = device
        self.precision = precision
        self.batch = batch
        self.temperature = temperature

    def plane(
        self, image: Array, scale: Scale, *, probabilities: bool = False
    ) -> tuple[Array, Array | None]:
        """Predict one plane (volume).

        Parameters
        ----------
        image
            grey values (C, H, W) of any dtype, as they are in the file; any H and W. (C, D, H, W) for a 3D network.
        scale
            see `ResolvedNormalization.scale_for`. Values that are not finite count as its centre.

        Returns
        -------
        class indices uint8 (H, W), and probabilities float16 (K, H, W) if asked for; of a volume (D, H, W) and
        (K, D, H, W).

        Raises
        ------
        RunError
            when not even one tile fits into memory, saying what would.
        """
        indices = np.empty(image.shape[1:], np.uint8)
        chances = (
            np.empty((len(self.spec.classes), *indices.shape), np.float16)
            if probabilities
            else None
        )
        for places, logits in self._answers(image, scale):
            found = class_indices(logits).cpu().numpy()
            for (crop, write), one in zip(places, found, strict=True):
                indices[write] = one[crop]
            if chances is not None:
                _place(chances, places, self._softmax(logits).half())
        return indices, chances

    def probabilities(
        self, image: Array, scale: Scale
    ) -> Iterator[tuple[list[Placement], Tensor]]:
        """Batches of probabilities float32 (N, K, h, w) on the device, each with its placement, of one plane as `plane`
        takes it; together they cover the plane once. Raises `RunError` as `plane` does."""
        for places, logits in self._answers(image, scale):
            yield places, self._softmax(logits)

    def plane_logits(self, image: Array, scale: Scale) -> Array:
        """Logits float32 (K, H, W) of one plane, as `plane` takes it; where tiles are blended, the logarithm of the
        blended probabilities. For losses of validation planes: this is the one call that holds floats of a plane."""
        out = np.empty((len(self.spec.classes), *image.shape[1:]), np.float32)
        for places, logits in self._answers(image, scale):
            _place(out, places, logits)
        return out

    def tile_shapes(self, shape: Sequence[int]) -> list[tuple[int, ...]]:
        """Sizes of every tile that goes through the network for a picture of `shape`."""
        spec = self.spec
        if spec.resize:
            return [(spec.resize, spec.resize)]
        if not spec.blend:
            return [_read_shape(tile) for tile in self._tiles(shape)]
        plans = [
            plan_overlap(padded_length(n, tile=t, stride=s), tile=t, stride=s)
            for n, t, s in zip(shape, spec.tile_shape, spec.stride_shape, strict=True)
        ]
        return [spec.tile_shape] * math.prod(map(len, plans))

    def _tiles(self, shape: Sequence[int]) -> list[Tile]:
        spec = self.spec
        return plan_tiles(
            shape, tile=spec.tile_shape, halo=spec.halo_shape, stride=spec.stride_shape
        )

    def _softmax(self, logits: Tensor) -> Tensor:
        """Probabilities of logits (N, K, h, w). Of blended tiles the blend is tempered, as it was when that was fitted
        on `plane_logits`."""
        return torch.softmax(
            logits if self.temperature == 1 else logits / self.temperature, 1
        )

    def _answers(
        self, image: Array, scale: Scale
    ) -> Iterator[tuple[list[Placement], Tensor]]:
        """Batches of logits float32 (N, K, h, w), each with its placement; together they cover the plane once."""
        way = (
            self._resized
            if self.spec.resize
            else self._blended
            if self.spec.blend
            else self._cropped
        )
        with _evaluating(self.network):
            yield from way(image, scale)

    def _cropped(
        self, image: Array, scale: Scale
    ) -> Iterator[tuple[list[Placement], Tensor]]:
        tiles = self._tiles(image.shape[1:])
        tiles.sort(
            key=_read_shape
        )  # a batch holds equal shapes; sorting is stable, so rows stay together
        for _, group in groupby(tiles, key=_read_shape):
            for batch, logits in self._through(
                list(group), lambda t: scale.apply(image[:, *t.read])
            ):
                yield [(t.crop, t.write) for t in batch], logits

    def _blended(
        self, image: Array, scale: Scale
    ) -> Iterator[tuple[list[Placement], Tensor]]:
        """Probabilities of overlapping tiles, summed in a strip that is one tile thick along the first axis."""
        tile, stride, shape = (
            self.spec.tile_shape,
            self.spec.stride_shape,
            image.shape[1:],
        )
        sides = [
            padded_length(n, tile=t, stride=s)
            for n, t, s in zip(shape, tile, stride, strict=True)
        ]
        padded = _pad(image, sides)
        plans = [
            plan_overlap(n, tile=t, stride=s)
            for n, t, s in zip(sides, tile, stride, strict=True)
        ]
        weights = [
            torch.from_numpy(blend_weights(starts, tile=t, length=n)).to(self.device)
            for starts, t, n in zip(plans, tile, padded.shape[1:], strict=True)
        ]
        first, *others = plans
        strip = torch.zeros(
            (len(self.spec.classes), tile[0], *padded.shape[2:]), device=self.device
        )
        for i, (top, following) in enumerate(pairwise([*first, padded.shape[1]])):
            band = padded[:, top : top + tile[0]]
            parts = [
                ((i, *numbers), box, band[:, :, *box])
                for numbers, box in zip(
                    product(*(range(len(plan)) for plan in others)),
                    _boxes(others, tile[1:]),
                    strict=True,
                )
            ]
            for batch, logits in self._through(
                parts, lambda part: scale.apply(part[2])
            ):
                for (numbers, box, _), one in zip(batch, logits, strict=True):
                    strip[:, :, *box] += torch.softmax(one, 0) * _outer(
                        weights, numbers
                    )
            # What lies before the next tiles is complete; what remains moves up.
            done = following - top
            rest = tuple(slice(0, n) for n in shape[1:])
            write = (slice(top, min(following, shape[0])), *rest)
            crop = (slice(0, write[0].stop - top), *rest)
            yield [(crop, write)], strip[None, :, :done].clamp_min(1e-30).log()
            strip = torch.cat([strip[:, done:], torch.zeros_like(strip[:, :done])], 1)

    def _resized(
        self, image: Array, scale: Scale
    ) -> Iterator[tuple[list[Placement], Tensor]]:
        side, shape = self.spec.resize or 0, image.shape[1:]
        whole = tuple(slice(0, n) for n in shape)
        small = _interpolate(torch.from_numpy(scale.apply(image))[None], (side, side))[
            0
        ].numpy()
        for _, logits in self._through([small], lambda array: array):
            yield (
                [((whole[0], whole[1]), (whole[0], whole[1]))],
                _interpolate(logits, shape),
            )

    def _through(
        self, parts: Sequence[Part], load: Callable[[Part], Array]
    ) -> Iterator[tuple[Sequence[Part], Tensor]]:
        """The network's logits for `parts`, whose arrays are of one shape, in batches that memory holds.

        While a GPU works on one batch, a thread makes the next.
        """
        with (
            ThreadPoolExecutor(1, "next-batch")
            if self.device.type in AHEAD
            else nullcontext() as pool
        ):
            first = load(parts[0])
            start, made = 0, None
            while start < len(parts):
                now = parts[start : start + self._count(first)]
                batch = (
                    made.result()
                    if made
                    else np.stack(
                        [first if part is parts[0] else load(part) for part in now]
                    )
                )
                following = parts[start + len(now) :][: len(now)]
                made = (
                    pool.submit(_stacked, load, following)
                    if pool and following
                    else None
                )
                logits = self._try(batch)
                if logits is None:
                    made = None
                    self._halve(len(now), first)
                    continue
                yield now, logits
                start += len(now)

    def _count(self, example: Array) -> int:
        """Tiles of this shape that go through at a time."""
        return self.batch or max(
            1, PIXELS.get(self.device.type, 2**20) // math.prod(example.shape[1:])
        )

    def answer(self, batch: Array) -> Tensor:
        """Logits float32 (N, K, h, w), on the device, of scaled tiles float32 (N, C, h, w), or with one more axis for a
        3D network. The network's mode is not changed: call it in evaluation mode."""
        with torch.inference_mode(), self.precision.autocast(self.device):
            inputs = torch.from_numpy(batch)
            if (
                self.device.type == "cuda"
            ):  # from pinned memory the copy runs beside the computation
                inputs = inputs.pin_memory()
            inputs = inputs.to(self.device, non_blocking=True)
            inputs = inputs.contiguous(memory_format=channels_last(inputs.ndim))
            logits: Tensor = self.network(inputs)
            return logits.float()

    def _try(self, batch: Array) -> Tensor | None:
        """Logits of a batch, or None when there is not memory enough."""
        try:
            return self.answer(batch)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        return None

    def _halve(self, count: int, example: Array) -> None:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if count > 1:
            self.batch = count // 2
            return
        side = self._fitting_side(example)
        way = (
            "train with a smaller patches.resize"
            if self.spec.resize
            else f"set tile={side}"
        )
        shape, smaller = (
            " x ".join(map(str, n))
            for n in (example.shape[1:], (*example.shape[1:-2], side, side))
        )
        fits = f"{smaller} would fit: {way}" if side else "no smaller tile fits either"
        raise RunError(
            f"out of memory on {self.device}: found that one tile of {shape} pixels is too much; {fits}, "
            "close other programs, or predict on the CPU (device='cpu')."
        )

    def _fitting_side(self, example: Array) -> int:
        """The largest side, found by halving, of a tile (of a volume: as thick as it is) that memory holds; 0 when none
        does."""
        stride = self.spec.stride
        side: int = min(example.shape[-2:]) // 2 // stride * stride
        while side >= stride:
            if (
                self._try(np.zeros((1, *example.shape[:-2], side, side), np.float32))
                is not None
            ):
                return side
            side = side // 2 // stride * stride
        return 0


@torch.inference_mode()
def class_indices(logits: Tensor) -> Tensor:
    """Index uint8 (N, H, W) of the largest of logits (N, K, H, W), the first of equals; so of volumes.

    A running maximum: `torch.argmax` over the second axis walks memory in strides and takes 80 times as long (tried:
    79 against 1 to 4 ms a megapixel), and gives eight bytes a pixel.
    """
    best = logits[:, 0].clone()
    index = torch.zeros(best.shape, dtype=torch.uint8, device=logits.device)
    for k in range(1, logits.shape[1]):
        index.masked_fill_(logits[:, k] > best, k)
        torch.maximum(best, logits[:, k], out=best)
    return index


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a forward pass failed for want of memory: CUDA has a type for it, CPU and Apple's GPU only words."""
    words = (
        "out of memory",
        "can't allocate memory",
        "not enough memory",
        "alloc_failed",
    )
    return isinstance(error, torch.OutOfMemoryError) or any(
        w in str(error).lower() for w in words
    )


def _stacked(load: Callable[[Part], Array], parts: Sequence[Part]) -> Array:
    return np.stack([load(part) for part in parts])


def _read_shape(tile: Tile) -> tuple[int, ...]:
    return tuple(part.stop - part.start for part in tile.read)


def _place(out: Array, places: Sequence[Placement], answers: Tensor) -> None:
    for (crop, write), one in zip(places, answers.cpu().numpy(), strict=True):
        out[:, *write] = one[:, *crop]


def _pad(image: Array, shape: Sequence[int]) -> Array:
    """Grow (C, *spatial) at the far ends to `shape` by reflection, as training does."""
    missing = [
        wanted - found for wanted, found in zip(shape, image.shape[1:], strict=True)
    ]
    return (
        np.pad(image, ((0, 0), *((0, m) for m in missing)), mode="reflect")
        if any(missing)
        else image
    )


def _boxes(plans: Sequence[Sequence[int]], tile: Sequence[int]) -> Iterator[Box]:
    """Boxes of tiles that start at every combination of `plans`."""
    for starts in product(*plans):
        yield tuple(
            slice(start, start + side) for start, side in zip(starts, tile, strict=True)
        )


def _outer(weights: Sequence[Tensor], numbers: Sequence[int]) -> Tensor:
    """The weights of one tile: the product of those of its number along each axis."""
    chosen = [weight[number] for weight, number in zip(weights, numbers, strict=True)]
    out = chosen[0]
    for other in chosen[1:]:
        out = out[..., None] * other
    return out


@torch.inference_mode()
def _interpolate(values: Tensor, shape: tuple[int, ...]) -> Tensor:
    return nn.functional.interpolate(values, shape, mode="bilinear", antialias=True)


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; afterwards each layer is in the mode it was in, frozen ones too."""
    before = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training
