"""Predictor: a network, and one plane after another through it.

It knows tiles, batches and memory; it knows nothing of files, stacks or label values. Nothing larger than one plane is
ever held, and of floats no more than a batch of tiles (blend: a strip of one tile's height; resize: one plane).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from itertools import groupby
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from napari_strata.device import Precision
from napari_strata.errors import RunError
from napari_strata.inference.tiling import Box, Tile, blend_weights, padded_length, plan_overlap, plan_tiles
from napari_strata.normalization import Scale
from napari_strata.spec import ModelSpec

Array = np.ndarray[Any, Any]
Part = TypeVar("Part")
Placement: TypeAlias = tuple[Box, Box]
"""What to keep of an answer, and where it belongs in the plane."""

AHEAD = ("cuda", "mps")
"""Kinds of device beside which a thread makes the next batch; a CPU has no hand free for that."""

PIXELS = {"cpu": 2**20, "cuda": 2**21, "mps": 2**20}
"""Pixels in a batch when nobody says how many tiles: four tiles of 512 x 512 on a CPU, eight on a GPU."""


class Predictor:
    """Class indices, probabilities or logits of single planes.

    Parameters
    ----------
    network
        takes float32 (N, C, H, W) of any H and W, gives logits (N, K, H, W). It is put on `device`, and left in the
        mode (training or not) it was in.
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
        self.network: nn.Module = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.spec = spec
        self.device = device
        self.precision = precision
        self.batch = batch
        self.temperature = temperature

    def plane(self, image: Array, scale: Scale, *, probabilities: bool = False) -> tuple[Array, Array | None]:
        """Predict one plane.

        Parameters
        ----------
        image
            grey values (C, H, W) of any dtype, as they are in the file; any H and W.
        scale
            see `ResolvedNormalization.scale_for`. Values that are not finite count as its centre.

        Returns
        -------
        class indices uint8 (H, W), and probabilities float16 (K, H, W) if asked for.

        Raises
        ------
        RunError
            when not even one tile fits into memory, saying what would.
        """
        indices = np.empty(image.shape[1:], np.uint8)
        chances = np.empty((len(self.spec.classes), *indices.shape), np.float16) if probabilities else None
        for places, logits in self._answers(image, scale):
            found = class_indices(logits).cpu().numpy()
            for (crop, write), one in zip(places, found, strict=True):
                indices[write] = one[crop]
            if chances is not None:
                _place(chances, places, self._softmax(logits).half())
        return indices, chances

    def probabilities(self, image: Array, scale: Scale) -> Iterator[tuple[list[Placement], Tensor]]:
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

    def tile_shapes(self, shape: tuple[int, int]) -> list[tuple[int, int]]:
        """Rows and columns of every tile that goes through the network for a plane of `shape`."""
        spec = self.spec
        if spec.resize:
            return [(spec.resize, spec.resize)]
        if not spec.blend:
            return [_read_shape(t) for t in plan_tiles(shape, tile=spec.tile, halo=spec.halo, stride=spec.stride)]
        sides = [padded_length(n, tile=spec.tile, stride=spec.stride) for n in shape]
        rows, columns = (len(plan_overlap(n, tile=spec.tile, stride=spec.stride)) for n in sides)
        return [(spec.tile, spec.tile)] * (rows * columns)

    def _softmax(self, logits: Tensor) -> Tensor:
        """Probabilities of logits (N, K, h, w). Of blended tiles the blend is tempered, as it was when that was fitted
        on `plane_logits`."""
        return torch.softmax(logits if self.temperature == 1 else logits / self.temperature, 1)

    def _answers(self, image: Array, scale: Scale) -> Iterator[tuple[list[Placement], Tensor]]:
        """Batches of logits float32 (N, K, h, w), each with its placement; together they cover the plane once."""
        way = self._resized if self.spec.resize else self._blended if self.spec.blend else self._cropped
        with _evaluating(self.network):
            yield from way(image, scale)

    def _cropped(self, image: Array, scale: Scale) -> Iterator[tuple[list[Placement], Tensor]]:
        spec = self.spec
        tiles = plan_tiles(image.shape[1:], tile=spec.tile, halo=spec.halo, stride=spec.stride)
        tiles.sort(key=_read_shape)  # a batch holds equal shapes; sorting is stable, so rows stay together
        for _, group in groupby(tiles, key=_read_shape):
            for batch, logits in self._through(list(group), lambda t: scale.apply(image[:, *t.read])):
                yield [(t.crop, t.write) for t in batch], logits

    def _blended(self, image: Array, scale: Scale) -> Iterator[tuple[list[Placement], Tensor]]:
        tile, stride = self.spec.tile, self.spec.stride
        height, width = image.shape[1:]
        padded = _pad(image, *(padded_length(n, tile=tile, stride=stride) for n in (height, width)))
        plans = [plan_overlap(n, tile=tile, stride=stride) for n in padded.shape[1:]]
        weights = [
            torch.from_numpy(blend_weights(starts, tile=tile, length=n)).to(self.device)
            for starts, n in zip(plans, padded.shape[1:], strict=True)
        ]
        rows, columns = plans
        strip = torch.zeros((len(self.spec.classes), tile, padded.shape[2]), device=self.device)
        for i, (top, following) in enumerate(zip(rows, [*rows[1:], padded.shape[1]], strict=True)):
            band = padded[:, top : top + tile]
            parts = [(j, band[:, :, left : left + tile]) for j, left in enumerate(columns)]
            for batch, logits in self._through(parts, lambda part: scale.apply(part[1])):
                for (j, _), one in zip(batch, logits, strict=True):
                    weight = weights[0][i][:, None] * weights[1][j]
                    strip[:, :, columns[j] : columns[j] + tile] += torch.softmax(one, 0) * weight
            # Rows above the next tiles are complete; what remains moves up.
            done = following - top
            write = (slice(top, min(following, height)), slice(0, width))
            crop = (slice(0, write[0].stop - top), slice(0, width))
            yield [(crop, write)], strip[None, :, :done].clamp_min(1e-30).log()
            strip = torch.cat([strip[:, done:], torch.zeros_like(strip[:, :done])], 1)

    def _resized(self, image: Array, scale: Scale) -> Iterator[tuple[list[Placement], Tensor]]:
        side, shape = self.spec.resize or 0, image.shape[1:]
        whole = tuple(slice(0, n) for n in shape)
        small = _interpolate(torch.from_numpy(scale.apply(image))[None], (side, side))[0].numpy()
        for _, logits in self._through([small], lambda array: array):
            yield [((whole[0], whole[1]), (whole[0], whole[1]))], _interpolate(logits, shape)

    def _through(self, parts: Sequence[Part], load: Callable[[Part], Array]) -> Iterator[tuple[Sequence[Part], Tensor]]:
        """The network's logits for `parts`, whose arrays are of one shape, in batches that memory holds.

        While a GPU works on one batch, a thread makes the next.
        """
        with ThreadPoolExecutor(1, "next-batch") if self.device.type in AHEAD else nullcontext() as pool:
            first = load(parts[0])
            start, made = 0, None
            while start < len(parts):
                now = parts[start : start + self._count(first)]
                batch = made.result() if made else np.stack([first if part is parts[0] else load(part) for part in now])
                following = parts[start + len(now) :][: len(now)]
                made = pool.submit(_stacked, load, following) if pool and following else None
                logits = self._try(batch)
                if logits is None:
                    made = None
                    self._halve(len(now), first)
                    continue
                yield now, logits
                start += len(now)

    def _count(self, example: Array) -> int:
        """Tiles of this shape that go through at a time."""
        return self.batch or max(1, PIXELS.get(self.device.type, 2**20) // (example.shape[1] * example.shape[2]))

    def answer(self, batch: Array) -> Tensor:
        """Logits float32 (N, K, h, w), on the device, of scaled tiles float32 (N, C, h, w). The network's mode is not
        changed: call it in evaluation mode."""
        with torch.inference_mode(), self.precision.autocast(self.device):
            inputs = torch.from_numpy(batch)
            if self.device.type == "cuda":  # from pinned memory the copy runs beside the computation
                inputs = inputs.pin_memory()
            inputs = inputs.to(self.device, non_blocking=True).contiguous(memory_format=torch.channels_last)
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
        height, width = example.shape[1:]
        side = self._fitting_side(example)
        way = "train with a smaller patches.resize" if self.spec.resize else f"set tile={side}"
        fits = f"{side} x {side} would fit: {way}" if side else "no smaller tile fits either"
        raise RunError(
            f"out of memory on {self.device}: found that one tile of {height} x {width} pixels is too much; {fits}, "
            "close other programs, or predict on the CPU (device='cpu')."
        )

    def _fitting_side(self, example: Array) -> int:
        """The largest side, found by halving, of a tile that memory holds; 0 when none does."""
        stride = self.spec.stride
        side: int = min(example.shape[1:]) // 2 // stride * stride
        while side >= stride:
            if self._try(np.zeros((1, len(example), side, side), np.float32)) is not None:
                return side
            side = side // 2 // stride * stride
        return 0


@torch.inference_mode()
def class_indices(logits: Tensor) -> Tensor:
    """Index uint8 (N, H, W) of the largest of logits (N, K, H, W), the first of equals.

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
    words = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed")
    return isinstance(error, torch.OutOfMemoryError) or any(w in str(error).lower() for w in words)


def _stacked(load: Callable[[Part], Array], parts: Sequence[Part]) -> Array:
    return np.stack([load(part) for part in parts])


def _read_shape(tile: Tile) -> tuple[int, int]:
    rows, columns = tile.read
    return rows.stop - rows.start, columns.stop - columns.start


def _place(out: Array, places: Sequence[Placement], answers: Tensor) -> None:
    for (crop, write), one in zip(places, answers.cpu().numpy(), strict=True):
        out[:, *write] = one[:, *crop]


def _pad(image: Array, height: int, width: int) -> Array:
    """Grow (C, H, W) at the far ends by reflection, as training does."""
    missing = (height - image.shape[1], width - image.shape[2])
    return np.pad(image, ((0, 0), *((0, m) for m in missing)), mode="reflect") if any(missing) else image


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
