"""Predict: a model, an image, and the labels of every plane of it, one event at a time.

`iter_predict` gives a job to iterate over; `predict` does that and returns the labels. To stop is to stop iterating:
what is finished stays in ``<out>.partial`` and the same call goes on from there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from napari_strata.allocator import kept_pages
from napari_strata.classes import ClassMap
from napari_strata.data.neighbours import with_neighbours
from napari_strata.device import describe_device
from napari_strata.ensemble import AnyModel, Ensemble, load_models
from napari_strata.errors import RunError
from napari_strata.events import Event, Message, PredictionEnd, PredictionStarted, RegionEnd
from napari_strata.image import Image, LabelImage, Region
from napari_strata.inference.checks import check_image
from napari_strata.inference.committee import Committee
from napari_strata.inference.estimate import Estimate, check_memory, estimate
from napari_strata.inference.output import Form, MemoryOutput, Output, PartialOutput
from napari_strata.inference.setup import PredictOptions as PredictOptions
from napari_strata.inference.setup import build_committee as build_committee
from napari_strata.inference.setup import build_predictor as build_predictor
from napari_strata.inference.setup import compiled
from napari_strata.inference.stack import fingerprint, label_stack, not_finite, probability_stack, read_ahead
from napari_strata.inference.target import check_image_against_out, check_out, probabilities_path
from napari_strata.io import read_image, read_labels, write_labels, write_probabilities
from napari_strata.normalization import Scale

Array = np.ndarray[Any, Any]
Results: TypeAlias = tuple[LabelImage, Image | None, Array]
"""Labels, probabilities, and pixels of each class."""

AnyImage: TypeAlias = Image | Array | str | os.PathLike[str]


class Prediction(Iterator[Event]):
    """A prediction as a job: iterate over its events, then take `labels`, `probabilities` and `pixels`.

    Parameters and errors are those of `iter_predict`; errors are raised at the first step. Without `out`, planes go to
    what `memory` makes.
    """

    def __init__(
        self,
        model: AnyModel,
        image: AnyImage,
        *,
        out: str | os.PathLike[str] | None = None,
        options: PredictOptions | None = None,
        committee: Committee | None = None,
        memory: Callable[[Form], Output] = MemoryOutput,
    ) -> None:
        self._model, self._image, self._committee, self._memory = model, image, committee, memory
        self._out = None if out is None else Path(out).expanduser()
        self._options = options or PredictOptions()
        self._results: Results | None = None
        self._events = self._run()

    def __next__(self) -> Event:
        return next(self._events)

    def close(self) -> None:
        """Stop here; what is finished is kept for the next time."""
        self._events.close()

    @property
    def labels(self) -> LabelImage:
        """Label values of every plane; when written to a file, read from there. Raises `RunError` before the end."""
        return self._finished[0]

    @property
    def probabilities(self) -> Image | None:
        """Probabilities, float16, the classes as axis C before Y and X; None when they were not asked for."""
        return self._finished[1]

    @property
    def pixels(self) -> Array:
        """Predicted pixels of each class, int64 (K,)."""
        return self._finished[2]

    @property
    def _finished(self) -> Results:
        if self._results is None:
            raise RunError("this prediction is not finished; iterate over it to the end first.")
        return self._results

    def _run(self) -> Generator[Event]:
        started = perf_counter()
        out, options = self._out, self._options
        if out is not None:
            check_out(out, overwrite=options.overwrite)
        image = as_image(self._image)
        if out is not None:
            check_image_against_out(image, out)
        models = load_models(self._model)
        seen = with_neighbours(image, models.spec.neighbours)
        samples = seen.samples()
        warnings = check_image([model.spec for model in models.models], seen, samples)
        yield from (Message(text) for text in (image.describe(), *image.notes, *models.averaging(options.tta)))
        yield from (Message(text, "warning") for text in warnings)
        committee = self._committee or build_committee(models, options)
        scales = models.scales(samples, image.dtype)
        made_of = _Origin(models, image, samples)
        with (
            kept_pages(committee.device.type),
            closing(_open_output(out, made_of, committee=committee, options=options, memory=self._memory)) as output,
        ):
            yield from _discarded(output)
            if len(output.pixels) < output.form.planes:
                in_memory = isinstance(output, MemoryOutput)
                check_memory(estimate(committee, seen, output.form, out=out, in_memory=in_memory), committee)
                yield from compiled(committee, output.form.shape)
            found = len(output.pixels)
            yield PredictionStarted(image.name, describe_device(committee.device), output.form.planes, found)
            yield from _predict_planes(committee, seen, scales, output=output)
            self._results = _finish(output, image, out, classes=models.spec.classes, overwrite=options.overwrite)
        yield PredictionEnd(image.name, "" if out is None else str(out), perf_counter() - started)


def iter_predict(
    model: AnyModel,
    image: AnyImage,
    *,
    out: str | os.PathLike[str] | None = None,
    options: PredictOptions | None = None,
    **keywords: Any,
) -> Prediction:
    """Segment every plane of an image, as a job to iterate over.

    Parameters
    ----------
    model
        a `Model`, the path of a model file or run folder, several of them, or a cross-validation folder: of several,
        the mean of their probabilities is taken; see `Ensemble`.
    image
        an `Image` with axes of T, C, Z, Y, X; a 2D array (Y, X); or the path of an image.
    out
        file to write labels to (see `write_labels`), streamed plane by plane; when None they stay in memory.
        Probabilities, if asked for, go beside it under ``<stem>_probabilities``.
    options, keywords
        see `PredictOptions`; its fields may be given as keywords.

    Yields
    ------
    `Message` for what is odd, `PredictionStarted`, a `RegionEnd` per plane, `PredictionEnd`.

    Raises
    ------
    ImageError, ModelError
        when one cannot be read, or they do not go together.
    RunError
        when the output exists, the disk is full, or memory does not hold a single tile.
    """
    return Prediction(model, image, out=out, options=replace(options or PredictOptions(), **keywords))


def predict(
    model: AnyModel,
    image: AnyImage,
    *,
    out: str | os.PathLike[str] | None = None,
    options: PredictOptions | None = None,
    **keywords: Any,
) -> LabelImage:
    """Label values of every pixel, with the image's axes (less C), scale and units, and the model's classes.

    Parameters and errors are those of `iter_predict`.
    """
    job = iter_predict(model, image, out=out, options=options, **keywords)
    for _ in job:
        pass
    return job.labels


def estimate_prediction(
    model: AnyModel,
    image: AnyImage,
    *,
    out: str | os.PathLike[str] | None = None,
    options: PredictOptions | None = None,
    committee: Committee | None = None,
    **keywords: Any,
) -> Estimate:
    """What `predict` with the same arguments takes, measured on one tile: time, memory, room on the disk.

    A `committee` of these models and options is used where it is given, so that it is built once for many images.
    Errors are those of `iter_predict`; that it would not fit is told by the figures and is no error here.
    """
    asked = replace(options or PredictOptions(), **keywords)
    models = load_models(model)
    opened = with_neighbours(as_image(image), models.spec.neighbours)
    check_image([model.spec for model in models.models], opened, opened.samples())
    committee = committee or build_committee(models, asked)
    place = None if out is None else Path(out).expanduser()
    form = _form(opened, models.spec.classes, asked)
    with kept_pages(committee.device.type):
        return estimate(committee, opened, form, out=place, in_memory=out is None, measure=True)


def as_image(image: AnyImage) -> Image:
    """An image from whatever `iter_predict` takes."""
    if isinstance(image, (str, os.PathLike)):
        return read_image(image)
    return image if isinstance(image, Image) else Image(image)


class _Origin(NamedTuple):
    """What a prediction is made of."""

    models: Ensemble
    image: Image
    samples: list[Array]


def _open_output(
    out: Path | None,
    made_of: _Origin,
    *,
    committee: Committee,
    options: PredictOptions,
    memory: Callable[[Form], Output],
) -> Output:
    """Memory, or the folder of an unfinished prediction, old or new."""
    models, image, samples = made_of
    classes, tiles = models.spec.classes, committee.tiles
    form = _form(image, classes, options)
    if out is None:
        return memory(form)
    identity = {
        "model": models.digest,
        "image": fingerprint(image, samples),
        "device": committee.device.type,
        "precision": committee.precision.name,
        "backend": options.backend,
        "choice of torch.compile": options.compile,
        "tile size": tiles[0] if len(set(tiles)) == 1 else tiles,
        "request for probabilities": options.probabilities,
        "choice of flips and turns": options.tta,
    }
    output = PartialOutput(out, form, identity)
    beside = probabilities_path(out)
    # Of a run killed between its two files, the probabilities are there already.
    if form.classes and len(output.pixels) < form.planes and beside.exists() and not options.overwrite:
        output.close()
        raise RunError(f"{beside}: exists already; choose another name, or allow it to be replaced (--overwrite).")
    return output


def _form(image: Image, classes: ClassMap, options: PredictOptions) -> Form:
    shape = (image.size("Y"), image.size("X"))
    return Form(len(list(image.planes())), shape, classes.dtype, len(classes) if options.probabilities else 0)


def _predict_planes(committee: Committee, image: Image, scales: Sequence[Scale], *, output: Output) -> Iterator[Event]:
    regions, classes = list(image.planes()), committee.spec.classes
    bad: list[tuple[Region, Array]] = []
    begun = perf_counter()
    for number, array in read_ahead(image, [i for i in range(len(regions)) if i not in output.pixels]):
        if array.dtype.kind == "f" and not (finite := np.isfinite(array).all(axis=0)).all():
            bad.append((regions[number], np.argwhere(~finite)))
        indices, probabilities = committee.plane(array, scales, probabilities=output.form.classes > 0)
        arrays = [classes.decode(indices), *([] if probabilities is None else [probabilities])]
        output.write(number, arrays, np.bincount(indices.ravel(), minlength=len(classes)).tolist())
        seconds, begun = perf_counter() - begun, perf_counter()
        yield RegionEnd(regions[number], len(output.pixels), len(regions), seconds)
    if bad:
        yield not_finite(image, bad)


def _finish(output: Output, image: Image, out: Path | None, *, classes: ClassMap, overwrite: bool) -> Results:
    """What a job gives; with `out`, the planes become files and their folder goes."""
    planes, *rest = output.arrays()
    labels = label_stack(planes, image, classes=classes)
    probabilities = probability_stack(rest[0], image, classes.names) if rest else None
    pixels = np.sum([output.pixels[i] for i in range(len(planes))], axis=0)
    if out is None:
        return labels, probabilities, pixels
    if probabilities is not None:
        beside = write_probabilities(probabilities_path(out), probabilities, overwrite=True)  # checked in _open_output
        probabilities = read_image(beside)
    write_labels(out, labels, overwrite=overwrite)
    output.remove()
    written = read_labels(out)
    return replace(written, classes=written.classes or classes), probabilities, pixels


def _discarded(output: Output) -> Iterator[Message]:
    if output.discarded:
        yield Message(
            f"{output.place}: the unfinished prediction there was made with another {' and '.join(output.discarded)}; "
            "it is discarded and prediction starts from the first plane.",
            "warning",
        )
