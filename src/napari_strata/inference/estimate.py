"""Estimate time, memory and disk space of a prediction, and refuse what cannot fit."""

from __future__ import annotations

import math
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np

from napari_strata.core.errors import RunError
from napari_strata.core.image import Image
from napari_strata.core.text import format_bytes
from napari_strata.inference.ensemble_predictor import EnsemblePredictor
from napari_strata.inference.outputs import OutputSpec, existing_parent
from napari_strata.models.device import describe_device, free_memory, synchronize
from napari_strata.models.memory import is_out_of_memory, release_cache
from napari_strata.models.predictor import Predictor
from napari_strata.models.tiled import TiledPredictor


@dataclass(frozen=True)
class Estimate:
    """Time, memory and disk space of a prediction on one device.

    Parameters
    ----------
    device
        Device in words.
    planes, shape
        Number of planes, and rows and columns of each.
    forwarded
        Pixels that go through the network for each pixel of the image, all networks,
        flips and turns together.
    seconds
        Seconds that the prediction takes, measured on one tile (on a GPU on a batch);
        None when they were not measured.
    memory
        Bytes that the device needs beyond the weights, which it holds already: for one
        tile, sums of probabilities (averages, blended tiles), and on a CPU for the
        chunk (a plane, or several), the next one and their results. The libraries come
        on top. Sums that a GPU has no room for lie in main memory and do not count.
    free_memory
        Bytes that are free there now; None where that cannot be known.
    disk, free_disk
        Bytes that are written at most, and that are free; 0 and None when nothing is
        written.
    """

    device: str
    planes: int
    shape: tuple[int, int]
    forwarded: float
    seconds: float | None
    memory: int
    free_memory: int | None
    disk: int = 0
    free_disk: int | None = None

    def describe(self) -> str:
        """The estimate in one line.

        Example: ``CPU, 2 cores: about 12 s; 820 MB of memory (12 GB free); up to 9 MB
        on disk (48 GB free)``.
        """
        parts = []
        if self.seconds is not None:
            parts.append(f"about {_format_duration(self.seconds)}")
        parts.append(f"{format_bytes(self.memory)} of memory{_free(self.free_memory)}")
        if self.disk:
            disk = format_bytes(self.disk)
            parts.append(f"up to {disk} on disk{_free(self.free_disk)}")
        return f"{self.device}: {'; '.join(parts)}"


def estimate(
    predictor: EnsemblePredictor,
    image: Image,
    output: OutputSpec,
    *,
    out: Path | None,
    in_memory: bool,
    measure: bool = False,
) -> Estimate:
    """Estimate what predicting all planes of `image` takes.

    Parameters
    ----------
    output
        Sizes and types of what is to be written.
    out
        File that the planes become; None when the prediction writes none.
    in_memory
        True when the planes are kept in arrays.
    measure
        Predict one tile, twice, to measure the time.
    """
    chunks = predictor.plan_chunks(image)
    images = Counter[tuple[int, ...]]()
    for chunk in chunks:
        for shape, count in predictor.image_shapes(chunk, image):
            images[shape] += count * len(predictor.transforms)
    seconds = 0.0
    forwarded = 0.0
    memory = 0
    sums = 0
    for member in predictor.members:
        tiles = _count_tiles(member, images)
        largest = max(tiles, key=math.prod)
        pixels = sum(math.prod(tile) * count for tile, count in tiles.items())
        memory = max(memory, member.predictor.memory(largest))
        sums = max(sums, *(member.sums_memory(shape) for shape in images))
        if measure:
            seconds += _time_tiles(member, largest, tiles[largest], pixels)
        forwarded += pixels / (output.planes * math.prod(output.shape))
    voxels = max(
        math.prod(chunk.shape(image)) * max(1, len(chunk.stack)) for chunk in chunks
    )
    if predictor.averages:
        sums += voxels * len(predictor.spec.classes) * 4
    free = free_memory(predictor.device)
    is_cpu = predictor.device.type == "cpu"
    if is_cpu or free is None or memory + sums <= free:
        memory += sums
    if is_cpu:
        # A GPU holds neither the planes nor their results.
        memory += voxels * (image.channels * image.dtype.itemsize * 2 + 2)
        if in_memory:
            memory += output.nbytes
    disk, free_disk = 0, None
    if out is not None:
        disk = output.disk_space
        free_disk = shutil.disk_usage(existing_parent(out)).free
    return Estimate(
        device=describe_device(predictor.device),
        planes=output.planes,
        shape=output.shape,
        forwarded=forwarded,
        seconds=seconds if measure else None,
        memory=memory,
        free_memory=free,
        disk=disk,
        free_disk=free_disk,
    )


def check_memory(estimated: Estimate, predictor: EnsemblePredictor) -> None:
    """Raise `RunError` when the device has less memory free than one tile needs.

    The message names a tile size that would fit.
    """
    free = estimated.free_memory
    if free is None or estimated.memory <= free:
        return
    member = predictor.members[0]
    spec = member.spec
    side = spec.tile
    while side > spec.stride:
        tile = (*spec.tile_shape[:-2], side, side)
        if member.predictor.memory(tile) <= free:
            break
        side = side // 2 // spec.stride * spec.stride or spec.stride
    remedy = ""
    if side < spec.tile and not spec.blend:
        remedy = f"set tile={side}, "
    rows, columns = estimated.shape
    raise RunError(
        f"found {format_bytes(free)} of memory free on {estimated.device}; needed are "
        f"about {format_bytes(estimated.memory)} for planes of {rows} x {columns} in "
        f"tiles of {spec.tile}; {remedy}close other programs or predict on another "
        "device."
    )


def _count_tiles(
    member: TiledPredictor, images: Counter[tuple[int, ...]]
) -> Counter[tuple[int, ...]]:
    """Numbers of tiles by size, from the numbers of images by size."""
    tiles = Counter[tuple[int, ...]]()
    for shape, count in images.items():
        for tile in member.tile_shapes(shape):
            tiles[tile] += count
    return tiles


def _time_tiles(
    member: TiledPredictor, tile: tuple[int, ...], tiles: int, pixels: int
) -> float:
    """Seconds that so many pixels take, from predicting tiles a second time.

    On a CPU it is one tile, on a GPU a batch, which takes hardly longer than one.
    """
    predictor = member.predictor
    count = 1
    if predictor.device.type != "cpu":
        count = min(tiles, member.batch_size(tile))
    shape = (count, predictor.spec.in_channels, *tile)
    try:
        seconds = _time_batch(predictor, shape)
    except RuntimeError as error:
        if count == 1 or not is_out_of_memory(error):
            raise
        release_cache(predictor.device)
        shape = (1, *shape[1:])
        seconds = _time_batch(predictor, shape)
    return seconds / (shape[0] * math.prod(tile)) * pixels


def _time_batch(predictor: Predictor, shape: tuple[int, ...]) -> float:
    """Seconds of the second prediction of a batch, until a GPU has finished it."""
    batch = np.zeros(shape, np.float32)
    predictor.logits(batch)
    synchronize(predictor.device)
    started = perf_counter()
    predictor.logits(batch)
    synchronize(predictor.device)
    return perf_counter() - started


def _free(count: int | None) -> str:
    return "" if count is None else f" ({format_bytes(count)} free)"


def _format_duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
