"""Batches of patches for training, on the CPU.

A batch depends on the seed and the epoch alone. Images are held in memory in the file's
own dtype when they fit a budget, and read patch by patch when they do not. One thread
prepares the next batch; there are no loader processes, which can freeze when started
from a threaded program.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from napari_strata.core.classes import IGNORE
from napari_strata.core.errors import ImageError, LabelError
from napari_strata.core.normalization import Scale
from napari_strata.core.recipe import Recipe
from napari_strata.core.spec import ModelSpec
from napari_strata.data.regions import LabelledRegion, label_counts
from napari_strata.data.sampling import PatchLocation, Sampler

Array = np.ndarray[Any, Any]

HELD_BYTES = 2 * 2**30
"""Bytes of images and labels that are held; of more, patches are read when drawn."""

MIN_PATCHES = 200
"""Patches of an epoch at least, where the recipe does not say.

A small stack, covered once, gives too few steps.
"""


class Batch(NamedTuple):
    """Patches on the CPU, with the axes (Y, X), or (Z, Y, X) for a 3D network.

    Parameters
    ----------
    images
        float32 (N, C, *patch), normalised.
    labels
        uint8 (N, *patch), class indices or `IGNORE`.
    """

    images: Tensor
    labels: Tensor


Locations = list[PatchLocation] | list[int]
"""Locations of patches; or numbers of planes, where the recipe resizes planes."""


class PatchSource:
    """Training batches from labelled regions.

    Patches are drawn by `Sampler`. Where the recipe resizes planes, each plane is one
    patch instead, and an epoch shows each once, shuffled. Batches of an epoch differ by
    at most one patch in size.

    Parameters
    ----------
    pin
        Put batches into pinned memory, from which a CUDA GPU copies while it computes.

    Raises
    ------
    ImageError
        When an image has not the channels that the model takes.
    LabelError
        When there is no region, or a label value is not in the class map.
    """

    def __init__(
        self,
        regions: Sequence[LabelledRegion],
        spec: ModelSpec,
        recipe: Recipe,
        *,
        pin: bool = False,
    ) -> None:
        if not regions:
            raise LabelError(
                "found nothing to train on; give at least one image with labels."
            )
        for region in regions:
            _check_channels(region, spec)
        self.regions = list(regions)
        self.spec = spec
        self.pin = pin
        self.seed = recipe.training.seed
        self.balance = recipe.patches.balance
        self.shape = spec.patch_shape
        if spec.resize:
            self.shape = (spec.resize, spec.resize)
        self._scales = _measure_scales(self.regions, spec)
        self._held = _hold(self.regions, spec)
        self._sampler = None if spec.resize else self._make_sampler()
        self.patches = self._count_patches(recipe)
        self._batches = math.ceil(self.patches / recipe.training.batch_size)

    def __len__(self) -> int:
        """Batches in an epoch."""
        return self._batches

    def update(self, regions: Sequence[LabelledRegion]) -> None:
        """Take regions whose labels have changed, and perhaps further ones.

        No iterator of batches may be in use. The number of batches stays.

        Parameters
        ----------
        regions
            The regions in their order, then further ones.
        """
        held = self._held
        if held is not None:
            updated = []
            for old, new, (image, labels) in zip(
                self.regions, regions, held, strict=False
            ):
                is_same = new.pair is old.pair
                updated.append(
                    (
                        image,
                        labels
                        if is_same
                        else _read_class_indices(new, image, self.spec),
                    )
                )
            further = regions[len(held) :]
            updated += [_read_by_strips(region, self.spec) for region in further]
            self._held = updated
        self.regions = list(regions)
        self._scales = _measure_scales(self.regions, self.spec)
        if self._sampler is not None:
            self._sampler = self._make_sampler()

    def epoch(self, epoch: int, *, first: int = 0) -> Generator[Batch]:
        """Iterate over the batches of an epoch; `iter_train` counts epochs from 1.

        `first` is the number of batches to leave out.
        """
        rng = np.random.default_rng([self.seed, 3, epoch])
        locations = self._draw(self.patches, rng, balance=self.balance)
        bounds = [round(i * len(locations) / len(self)) for i in range(len(self) + 1)]
        chunks = [locations[start:stop] for start, stop in pairwise(bounds)]
        return _prepare_ahead(chunks[first:], self._batch)

    def plain(self, count: int, *, batch_size: int) -> Iterator[Batch]:
        """Iterate over `count` patches (or planes) as they occur, classes not balanced.

        They are the same at every call.
        """
        rng = np.random.default_rng([self.seed, 4])
        locations = self._draw(count, rng, balance=0.0)
        starts = range(0, len(locations), batch_size)
        chunks = [locations[start : start + batch_size] for start in starts]
        return _prepare_ahead(chunks, self._batch)

    def _draw(
        self, count: int, rng: np.random.Generator, *, balance: float
    ) -> Locations:
        if self._sampler is None:
            numbers: list[int] = rng.permutation(len(self.regions)).tolist()
            return numbers[:count]
        return self._sampler.draw(count, rng, balance=balance)

    def _make_sampler(self) -> Sampler:
        classes = self.spec.classes
        counts = label_counts(self.regions, classes)
        if not counts.any():
            raise LabelError(
                "found no labelled pixel to train on; paint some pixels of each class."
            )
        labels: list[Iterable[Array]] = []
        for number, region in enumerate(self.regions):
            if self._held is None:
                labels.append(
                    strip.read_class_indices(classes) for strip in region.strips()
                )
            else:
                labels.append([self._held[number][1]])
        shapes = [region.shape for region in self.regions]
        return Sampler(
            labels, shapes=shapes, counts=counts, size=self.shape, seed=self.seed
        )

    def _count_patches(self, recipe: Recipe) -> int:
        if self._sampler is None:
            return len(self.regions)
        if recipe.patches.per_epoch:
            return recipe.patches.per_epoch
        pixels = sum(math.prod(region.shape) for region in self.regions)
        covering = math.ceil(pixels / math.prod(self.shape))
        return max(MIN_PATCHES, recipe.training.batch_size, covering)

    def _batch(self, locations: Locations) -> Batch:
        images, labels = [], []
        for location in locations:
            if isinstance(location, int):
                image, codes = self._resized_plane(location)
            else:
                image, codes = self._patch(location)
            images.append(image)
            labels.append(codes)
        batch = Batch(torch.stack(images), torch.stack(labels))
        return pinned(batch) if self.pin else batch

    def _patch(self, location: PatchLocation) -> tuple[Tensor, Tensor]:
        image, labels = self._read(location.region, location.box)
        image = self._scales[location.region].apply(image)
        image, labels = pad(image, labels, self.shape)
        return _as_tensor(image), _as_tensor(labels)

    def _resized_plane(self, number: int) -> tuple[Tensor, Tensor]:
        box = tuple(slice(0, length) for length in self.regions[number].shape)
        image, labels = self._read(number, box)
        return resize(self._scales[number].apply(image), labels, self.shape[0])

    def _read(self, number: int, box: tuple[slice, ...]) -> tuple[Array, Array]:
        if self._held is None:
            return self.regions[number].block(box).read(self.spec.classes)
        image, labels = self._held[number]
        return image[:, *box], labels[box]


def pinned(batch: Batch) -> Batch:
    """Return a batch in pinned memory, or itself where the system gives none."""
    try:
        return Batch(batch.images.pin_memory(), batch.labels.pin_memory())
    except RuntimeError:
        return batch


def pad(image: Array, labels: Array, shape: Sequence[int]) -> tuple[Array, Array]:
    """Grow image (C, *spatial) and labels (*spatial) at the far ends to `shape`.

    The image is continued by reflection (a single plane, row or column by repeating
    it), the labels by `IGNORE`. Axes that are longer stay.
    """
    margins = []
    for side, length in zip(shape, labels.shape, strict=True):
        margins.append((0, max(side - length, 0)))
    if not np.any(margins):
        return image, labels
    padded_image = np.pad(image, [(0, 0), *margins], mode="reflect")
    padded_labels = np.pad(labels, margins, constant_values=IGNORE)
    return padded_image, padded_labels


def resize(image: Array, labels: Array, side: int) -> tuple[Tensor, Tensor]:
    """Resize image float32 (C, H, W) and labels uint8 (H, W) to `side` x `side`.

    The image is interpolated as in prediction, linearly and smoothed against aliasing;
    of the labels the nearest one is taken, so that no class appears between two others.
    """
    size = (side, side)
    images = _as_tensor(image)[None]
    codes = _as_tensor(labels)[None, None]
    small_image = F.interpolate(images, size, mode="bilinear", antialias=True)
    small_labels = F.interpolate(codes, size, mode="nearest-exact")
    return small_image[0], small_labels[0, 0]


def _as_tensor(array: Array) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def _prepare_ahead(
    chunks: Sequence[Locations], make: Callable[[Locations], Batch]
) -> Generator[Batch]:
    """Make a batch of each chunk in order; a thread prepares the next one.

    The thread ends with the iterator.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="patches") as pool:
        next_batch = pool.submit(make, chunks[0])
        for chunk in chunks[1:]:
            batch = next_batch.result()
            next_batch = pool.submit(make, chunk)
            yield batch
        yield next_batch.result()


def _check_channels(region: LabelledRegion, spec: ModelSpec) -> None:
    channels = region.pair.image.channels
    if channels != spec.in_channels:
        raise ImageError(
            f"{region.pair.name}: found {channels} channels, the model takes "
            f"{spec.in_channels}; give images with {spec.in_channels}, or train a new "
            "model on these."
        )


def _measure_scales(regions: Sequence[LabelledRegion], spec: ModelSpec) -> list[Scale]:
    """Return the scale of each region's image, measured once per image."""
    scales: dict[int, Scale] = {}
    for region in regions:
        image = region.pair.image
        if id(image) not in scales:
            samples = np.concatenate(image.samples(), axis=1)
            scales[id(image)] = spec.normalization.scale_for(samples, image.dtype)
    return [scales[id(region.pair.image)] for region in regions]


def _hold(
    regions: Sequence[LabelledRegion], spec: ModelSpec
) -> list[tuple[Array, Array]] | None:
    """Read image and class indices of every region; None if over `HELD_BYTES`."""
    size = 0
    for region in regions:
        image = region.pair.image
        bytes_per_pixel = image.channels * image.dtype.itemsize + 1
        size += bytes_per_pixel * math.prod(region.shape)
    if size > HELD_BYTES:
        return None
    return [_read_by_strips(region, spec) for region in regions]


def _read_class_indices(region: LabelledRegion, image: Array, spec: ModelSpec) -> Array:
    """Read the class indices of a region strip by strip; `image` has been read."""
    labels = np.empty(region.shape, np.uint8)
    for strip in region.strips():
        box = _box_within(strip, region)
        labels[box] = strip.class_indices_of(image[:, *box], spec.classes)
    return labels


def _box_within(part: LabelledRegion, region: LabelledRegion) -> tuple[slice, ...]:
    """Return the box of a part of a region, counted from the region's corner."""
    return tuple(
        slice(bounds.start - own.start, bounds.stop - own.start)
        for bounds, own in zip(part.box, region.box, strict=True)
    )


def _read_by_strips(region: LabelledRegion, spec: ModelSpec) -> tuple[Array, Array]:
    """Read image and class indices of a region strip by strip.

    Making class indices takes many times their memory.
    """
    strips = list(region.strips())
    if len(strips) == 1:
        return region.read(spec.classes)  # perhaps a view, which costs no memory
    source = region.pair.image
    image = np.empty((source.channels, *region.shape), source.dtype)
    labels = np.empty(region.shape, np.uint8)
    for strip in strips:
        box = _box_within(strip, region)
        image[:, *box], labels[*box] = strip.read(spec.classes)
    return image, labels
