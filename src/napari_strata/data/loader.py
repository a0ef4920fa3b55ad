"""Batches of patches for training, on the CPU, the same for the same seed and epoch whatever came before.

Images are held in memory in the file's own dtype when they fit a budget, and read patch by patch when they do not. One
thread prepares the next batch; there are no loader processes, which can freeze when started from a threaded program.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from napari_strata.core.classes import IGNORE
from napari_strata.core.errors import ImageError, LabelError
from napari_strata.core.image import Image
from napari_strata.core.normalization import Scale
from napari_strata.core.recipe import Recipe
from napari_strata.core.spec import ModelSpec
from napari_strata.data.regions import Part, counts_of
from napari_strata.data.sampling import Place, Sampler

Array = np.ndarray[Any, Any]

MEMORY = 2 * 2**30
"""Bytes of images and labels that are held; beyond, patches are read from their files as they are drawn."""


class Batch(NamedTuple):
    """`images` float32 (N, C, *patch), normalised; `labels` uint8 (N, *patch), class indices or `IGNORE`. On the CPU.

    A patch has the axes (Y, X), or (Z, Y, X) for a 3D network.
    """

    images: Tensor
    labels: Tensor


LEAST = 200
"""Fewest patches of an epoch where the recipe does not say: a small stack, covered once, gives too few steps."""


class PatchSource:
    """Training batches from `parts`.

    Patches are drawn by `Sampler`, or, where the recipe resizes planes, each plane is one patch and an epoch shows each
    once, shuffled. Batches of an epoch differ by at most one patch in size.

    Raises
    ------
    ImageError
        when an image has not the channels that the model takes.
    LabelError
        when there is no part, or a label value is not in the class map.
    """

    def __init__(self, parts: Sequence[Part], spec: ModelSpec, recipe: Recipe) -> None:
        if not parts:
            raise LabelError(
                "found nothing to train on; give at least one image with labels."
            )
        self.parts = [_checked(part, spec) for part in parts]
        self.spec = spec
        self.seed = recipe.training.seed
        self.balance = recipe.patches.balance
        self.shape = (spec.resize, spec.resize) if spec.resize else spec.patch_shape
        self._scales = _scales(self.parts, spec)
        self._held = _hold(self.parts, spec)
        self._sampler = None if spec.resize else self._make_sampler()
        self.patches = self._patches(recipe)
        self._batches = math.ceil(self.patches / recipe.training.batch_size)

    def __len__(self) -> int:
        """Batches in an epoch."""
        return self._batches

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of one epoch, which depend on the recipe's seed and `epoch` (0 or more) alone."""
        rng = np.random.default_rng([self.seed, 3, epoch])
        places: list[Place] | list[int]
        if self._sampler is None:
            places = rng.permutation(len(self.parts)).tolist()
        else:
            places = self._sampler.draw(self.patches, rng, balance=self.balance)
        bounds = [round(i * len(places) / len(self)) for i in range(len(self) + 1)]
        return _ahead([places[a:b] for a, b in pairwise(bounds)], self._batch)

    def plain(self, count: int, *, batch_size: int) -> Iterator[Batch]:
        """Batches of `count` patches (or planes, where they are resized) as they occur, classes not balanced.

        The same at every call.
        """
        rng = np.random.default_rng([self.seed, 4])
        places: list[Place] | list[int]
        if self._sampler is None:
            places = rng.permutation(len(self.parts)).tolist()[:count]
        else:
            places = self._sampler.draw(count, rng, balance=0.0)
        return _ahead(
            [places[i : i + batch_size] for i in range(0, len(places), batch_size)],
            self._batch,
        )

    def _make_sampler(self) -> Sampler:
        classes = self.spec.classes
        counts = counts_of(self.parts, classes)
        if not counts.any():
            raise LabelError(
                "found no labelled pixel to train on; paint some pixels of each class."
            )
        held = self._held
        labels: list[Iterable[Array]] = (
            [(s.read_labels(classes) for s in part.strips()) for part in self.parts]
            if held is None
            else [[labels] for _, labels in held]
        )
        shapes = [part.shape for part in self.parts]
        return Sampler(
            labels, shapes=shapes, counts=counts, size=self.shape, seed=self.seed
        )

    def _patches(self, recipe: Recipe) -> int:
        if self._sampler is None:
            return len(self.parts)
        pixels = sum(math.prod(part.shape) for part in self.parts)
        cover = max(
            LEAST, recipe.training.batch_size, math.ceil(pixels / math.prod(self.shape))
        )
        return recipe.patches.per_epoch or cover

    def _batch(self, places: Sequence[Place] | Sequence[int]) -> Batch:
        patches = [
            self._whole(p) if isinstance(p, int) else self._patch(p) for p in places
        ]
        images, labels = zip(*patches, strict=True)
        return Batch(torch.stack(images), torch.stack(labels))

    def _patch(self, place: Place) -> tuple[Tensor, Tensor]:
        image, labels = self._read(place.part, place.box)
        image, labels = pad(self._scales[place.part].apply(image), labels, self.shape)
        return torch.from_numpy(np.ascontiguousarray(image)), torch.from_numpy(
            np.ascontiguousarray(labels)
        )

    def _whole(self, number: int) -> tuple[Tensor, Tensor]:
        image, labels = self._read(
            number, tuple(slice(0, length) for length in self.parts[number].shape)
        )
        return resize(self._scales[number].apply(image), labels, self.shape[0])

    def _read(self, number: int, box: tuple[slice, ...]) -> tuple[Array, Array]:
        if self._held is None:
            return self.parts[number].block(box).read(self.spec.classes)
        image, labels = self._held[number]
        return image[:, *box], labels[box]


def pad(image: Array, labels: Array, shape: Sequence[int]) -> tuple[Array, Array]:
    """Grow image (C, *spatial) and labels (*spatial) at the far ends to at least `shape` pixels.

    The image is continued by reflection (a single plane, row or column by repeating it), the labels by `IGNORE`.
    """
    missing = [
        (0, max(side - length, 0))
        for side, length in zip(shape, labels.shape, strict=True)
    ]
    if not np.any(missing):
        return image, labels
    return np.pad(image, [(0, 0), *missing], mode="reflect"), np.pad(
        labels, missing, constant_values=IGNORE
    )


def resize(image: Array, labels: Array, side: int) -> tuple[Tensor, Tensor]:
    """Image float32 (C, H, W) and labels uint8 (H, W) as tensors of `side` x `side`.

    The image is interpolated as in prediction, linearly and smoothed against aliasing; of the labels the nearest one is
    taken, so that no class appears between two others.
    """
    pixels = torch.from_numpy(np.ascontiguousarray(image))[None]
    codes = torch.from_numpy(np.ascontiguousarray(labels))[None, None]
    small = F.interpolate(pixels, (side, side), mode="bilinear", antialias=True)[0]
    return small, F.interpolate(codes, (side, side), mode="nearest-exact")[0, 0]


def _ahead(
    chunks: Sequence[Sequence[Place] | Sequence[int]],
    make: Callable[[Sequence[Place] | Sequence[int]], Batch],
) -> Iterator[Batch]:
    """`make` of each chunk in order, the next one prepared in a thread that ends with the iterator."""
    with ThreadPoolExecutor(1, thread_name_prefix="patches") as pool:
        waiting = pool.submit(make, chunks[0])
        for chunk in chunks[1:]:
            batch = waiting.result()
            waiting = pool.submit(make, chunk)
            yield batch
        yield waiting.result()


def _checked(part: Part, spec: ModelSpec) -> Part:
    image = part.pair.image
    if image.channels != spec.in_channels:
        raise ImageError(
            f"{part.pair.name}: found {image.channels} channels, the model takes {spec.in_channels}; give images with "
            f"{spec.in_channels}, or train a new model on these."
        )
    return part


def _scales(parts: Sequence[Part], spec: ModelSpec) -> list[Scale]:
    """The scale of each part's image, measured once an image."""
    images: dict[int, Image] = {id(part.pair.image): part.pair.image for part in parts}
    found = {
        key: spec.normalization.scale_for(
            np.concatenate(image.samples(), axis=1), image.dtype
        )
        for key, image in images.items()
    }
    return [found[id(part.pair.image)] for part in parts]


def _hold(parts: Sequence[Part], spec: ModelSpec) -> list[tuple[Array, Array]] | None:
    """Image and class indices of every part, or None when they are more than `MEMORY`."""
    pixel = [
        part.pair.image.channels * part.pair.image.dtype.itemsize + 1 for part in parts
    ]
    size = sum(
        bytes_ * math.prod(part.shape)
        for bytes_, part in zip(pixel, parts, strict=True)
    )
    return [_read_whole(part, spec) for part in parts] if size <= MEMORY else None


def _read_whole(part: Part, spec: ModelSpec) -> tuple[Array, Array]:
    """Image and class indices of a part, read strip by strip: making class indices takes many times their memory."""
    strips = list(part.strips())
    if len(strips) == 1:
        return part.read(spec.classes)  # perhaps a view, which costs no memory
    source = part.pair.image
    image, labels = (
        np.empty((source.channels, *part.shape), source.dtype),
        np.empty(part.shape, np.uint8),
    )
    for strip in strips:
        box = tuple(
            slice(p.start - own.start, p.stop - own.start)
            for own, p in zip(part.box, strip.box, strict=True)
        )
        image[:, *box], labels[box] = strip.read(spec.classes)
    return image, labels
