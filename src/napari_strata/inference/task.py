"""A prediction that is ready to start: input, predictors and options; and its loop."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import Any, Self

import numpy as np

from napari_strata.core.classes import ClassMap
from napari_strata.core.errors import ImageError
from napari_strata.core.events import RegionEnd
from napari_strata.core.image import Image
from napari_strata.core.normalization import Scale
from napari_strata.core.options import PredictOptions
from napari_strata.data.neighbours import with_neighbours
from napari_strata.inference.chunks import (
    Chunk,
    InvalidPixels,
    find_invalid,
    planes_of,
    read_ahead,
)
from napari_strata.inference.ensemble_predictor import EnsemblePredictor
from napari_strata.inference.outputs import Output, OutputSpec
from napari_strata.io.paths import ZARR_FILES, has_image_name, is_zarr
from napari_strata.models.ensemble import Ensemble
from napari_strata.models.tiled import ASYNCHRONOUS

Array = np.ndarray[Any, Any]

MAX_COUNTED_BY_CLASS = 16
"""Classes up to which counting one by one is faster."""


@dataclass(frozen=True, eq=False)
class PredictionInput:
    """An image and the models that predict it.

    Parameters
    ----------
    image
        Image as it was read.
    models
        Models that predict it, see `Ensemble`.
    """

    image: Image
    models: Ensemble

    @cached_property
    def model_image(self) -> Image:
        """The image as the models see it, with neighbouring slices as channels."""
        return with_neighbours(self.image, self.models.spec.neighbours)

    @cached_property
    def samples(self) -> list[Array]:
        """Grey values that scales are measured on."""
        return self.model_image.samples()

    @cached_property
    def fingerprint(self) -> str:
        """Digits that change with the image; see `fingerprint`."""
        return fingerprint(self.image, self.samples)

    @property
    def classes(self) -> ClassMap:
        """Classes of the models."""
        return self.models.spec.classes

    @cached_property
    def source_state(self) -> tuple[Any, ...] | None:
        """Facts of the image's file or files that change when they are replaced."""
        return describe_source(self.image.source)

    def check_unchanged(self) -> None:
        """Raise `ImageError` when the image was replaced since `source_state` was read.

        Or when it was deleted, unless its pixels stay at hand: Zarr would give zeros.
        """
        before, now = self.source_state, describe_source(self.image.source)
        is_at_hand = isinstance(self.image.data, np.ndarray)
        if now == before or (now is None and is_at_hand):
            return
        fate = "changed" if now else "been deleted"
        raise ImageError(
            f"{self.image.source}: has {fate} since the prediction began; run the same"
            " command again when the image is there."
        )

    def output_spec(self, options: PredictOptions) -> OutputSpec:
        """Sizes and types of what is written."""
        return OutputSpec(
            planes=len(list(self.image.planes())),
            shape=(self.image.size("Y"), self.image.size("X")),
            dtype=self.classes.dtype,
            classes=len(self.classes) if options.probabilities else 0,
        )


@dataclass(frozen=True, eq=False)
class PredictionTask:
    """An input and the predictors, on their device, that predict it."""

    input: PredictionInput
    predictor: EnsemblePredictor
    options: PredictOptions

    @cached_property
    def chunks(self) -> list[Chunk]:
        """The chunks of the image."""
        return self.predictor.plan_chunks(self.input.model_image)

    @cached_property
    def scales(self) -> list[Scale]:
        """The scale of the image for each member."""
        dtype = self.input.image.dtype
        return self.input.models.scales(self.input.samples, dtype)

    @property
    def identity(self) -> Mapping[str, Any]:
        """Facts that must be the same for planes of two predictions to go together."""
        tiles = [member.spec.tile for member in self.predictor.members]
        same_tiles = len(set(tiles)) == 1
        facts = {
            "model": self.input.models.digest,
            "image": self.input.fingerprint,
            "device": self.predictor.device.type,
            "precision": self.predictor.precision.name,
            "tile size": tiles[0] if same_tiles else tiles,
        }
        return facts | self.options.identity()


def predict_chunks(
    task: PredictionTask, chunks: Sequence[Chunk], output: Output
) -> Generator[RegionEnd, None, list[InvalidPixels]]:
    """Predict the planes of neighbouring chunks that `output` lacks.

    Yields
    ------
    an event for each plane.

    Returns
    -------
    planes that have pixels that are NaN or infinite.
    """
    image, predictor = task.input.model_image, task.predictor
    # A folder of slices has many files, none of which can be missed silently.
    folder = Path(task.input.image.source or "file")
    has_slices = folder.is_dir() and not is_zarr(folder)
    regions = list(image.planes())
    planes = planes_of(chunks)
    missing = []
    for chunk in chunks:
        if not output.pixels.keys() >= set(chunk.planes):
            missing.append(chunk)
    done = sum(number in output.pixels for number in planes)
    invalid: list[InvalidPixels] = []
    started = perf_counter()
    with _Writer(task, output) as writer:
        for chunk, array in read_ahead(image, missing):
            invalid += find_invalid(chunk, array, regions)
            indices, probabilities = predictor.predict_chunk(
                chunk, array, task.scales, probabilities=output.spec.classes > 0
            )
            if not has_slices:
                task.input.check_unchanged()
            for number in writer.add(chunk, indices, probabilities):
                seconds = perf_counter() - started
                started = perf_counter()
                done += 1
                yield RegionEnd(regions[number], done, len(planes), seconds)
        for number in writer.finish():
            seconds = perf_counter() - started
            started = perf_counter()
            done += 1
            yield RegionEnd(regions[number], done, len(planes), seconds)
    return invalid


class _Writer:
    """Writer of predicted planes; beside a GPU a thread of its own.

    The GPU then computes the next chunk while the planes of one are counted, turned
    into label values and written.
    """

    def __init__(self, task: PredictionTask, output: Output) -> None:
        self._classes = task.input.classes
        self._output = output
        self._pool: ThreadPoolExecutor | None = None
        if task.predictor.device.type in ASYNCHRONOUS:
            self._pool = ThreadPoolExecutor(1, "writer")
        self._pending: Future[list[int]] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Wait for what is being written, also when the prediction is stopped."""
        if self._pool is not None:
            self._pool.shutdown()

    def add(
        self, chunk: Chunk, indices: Array, probabilities: Array | None
    ) -> Iterator[int]:
        """Write the planes of a chunk that are missing; yield those that are written.

        With a thread, these are the planes of the chunk before.
        """
        if self._pool is None:
            for number in self._missing(chunk):
                self._write(chunk, number, indices, probabilities)
                yield number
            return
        previous = self._pending
        self._pending = self._pool.submit(
            self._write_all, chunk, indices, probabilities
        )
        if previous is not None:
            yield from previous.result()

    def finish(self) -> Iterator[int]:
        """Yield the planes that the thread still writes, once they are written."""
        if self._pending is not None:
            yield from self._pending.result()

    def _missing(self, chunk: Chunk) -> list[int]:
        return [number for number in chunk.planes if number not in self._output.pixels]

    def _write_all(
        self, chunk: Chunk, indices: Array, probabilities: Array | None
    ) -> list[int]:
        numbers = self._missing(chunk)
        for number in numbers:
            self._write(chunk, number, indices, probabilities)
        return numbers

    def _write(
        self, chunk: Chunk, number: int, indices: Array, probabilities: Array | None
    ) -> None:
        position = chunk.planes.index(number)
        plane = indices[position]
        arrays = [self._classes.decode(plane)]
        if probabilities is not None:
            arrays.append(probabilities[position])
        pixels = count_pixels(plane, len(self._classes))
        self._output.write(number, arrays, pixels)


def count_pixels(indices: Array, classes: int) -> list[int]:
    """Count the pixels of each class.

    Of few classes one by one, which for uint8 is several times as fast as
    `np.bincount`: that turns every pixel into an int64 first.
    """
    if classes > MAX_COUNTED_BY_CLASS:
        counts: list[int] = np.bincount(indices.ravel(), minlength=classes).tolist()
        return counts
    return [int(np.count_nonzero(indices == index)) for index in range(classes)]


def describe_source(source: str | None) -> tuple[Any, ...] | None:
    """Return size and time of a file, or of the files in a folder; None without one.

    Other files in the folder, such as ``.DS_Store``, and the chunks of a Zarr array do
    not count.
    """
    try:
        if source is None or not os.path.isdir(source):
            status = os.stat(source or "")
            return status.st_size, status.st_mtime_ns
        with os.scandir(source) as entries:
            # Slices of a stack, or the metadata of a Zarr array.
            files = [
                entry
                for entry in entries
                if has_image_name(entry.name) or entry.name in ZARR_FILES
            ]
            stats = [(entry.name, entry.stat()) for entry in files if entry.is_file()]
    except OSError:
        return None
    return tuple(sorted((name, s.st_size, s.st_mtime_ns) for name, s in stats))


def fingerprint(image: Image, samples: Sequence[Array]) -> str:
    """Sixteen hexadecimal digits that change with the image.

    They depend on its layout, its samples, the size and time of its file, and on every
    plane of an array in memory, which has no file.
    """
    digest = hashlib.sha256(repr((image.axes, image.shape, str(image.dtype))).encode())
    state = describe_source(image.source)
    if image.source is not None and state is not None:
        path = os.path.abspath(image.source)
        digest.update(repr((path, *state)).encode())
    elif isinstance(image.data, np.ndarray):
        for region in image.planes():
            plane = np.ascontiguousarray(image.read(region))
            digest.update(b"%d" % zlib.crc32(plane.view(np.uint8).data))
    for sample in samples:
        digest.update(np.ascontiguousarray(sample).view(np.uint8).data)
    return digest.hexdigest()[:16]
