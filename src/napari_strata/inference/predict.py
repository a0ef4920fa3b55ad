"""Predict: a model, an image, and the labels of every plane of it, one event at a time.

`iter_predict` gives a job to iterate over; `predict` does that and returns the labels. To stop is to stop iterating:
what is finished stays in ``<out>.partial`` and the same call goes on from there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from napari_strata.core.errors import RunError
from napari_strata.core.events import Event, Message, PredictionEnd, PredictionStarted
from napari_strata.core.image import Image, LabelImage
from napari_strata.inference.build import PredictOptions as PredictOptions
from napari_strata.inference.build import build_committee as build_committee
from napari_strata.inference.build import build_predictor as build_predictor
from napari_strata.inference.build import compiled
from napari_strata.inference.checks import check_image
from napari_strata.inference.ensemble_predictor import Committee
from napari_strata.inference.estimate import Estimate, check_memory, estimate
from napari_strata.inference.finish import Results, assemble, finish
from napari_strata.inference.ledger import Hand, PartialOutput
from napari_strata.inference.output import Form, MemoryOutput, Output
from napari_strata.inference.shards import Part, as_part
from napari_strata.inference.stack import not_finite
from napari_strata.inference.target import (
    check_image_against_out,
    check_out,
    is_put_together,
    probabilities_path,
)
from napari_strata.inference.task import Subject, Told, Work, planes_of, predict_slabs
from napari_strata.io import read_image
from napari_strata.models.allocator import kept_pages
from napari_strata.models.device import describe_device
from napari_strata.models.ensemble import AnyModel, load_models

if TYPE_CHECKING:
    from napari_strata.inference.scheduler import Cluster

Array = np.ndarray[Any, Any]
PATIENCE = 5.0
"""Seconds to wait for planes that another process writes, such as a worker that has not heard yet that it may stop."""

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
        part: Part | str | None = None,
        scheduler: str | Cluster | None = None,
        committee: Committee | None = None,
        memory: Callable[[Form], Output] = MemoryOutput,
    ) -> None:
        self._model, self._image, self._committee, self._memory = (
            model,
            image,
            committee,
            memory,
        )
        self._out = None if out is None else Path(out).expanduser()
        self._options = options or PredictOptions()
        self._part, self._scheduler = part, scheduler
        self._results: Results | None = None
        self._events = self._run()

    def __next__(self) -> Event:
        return next(self._events)

    def close(self) -> None:
        """Stop here; what is finished is kept for the next time."""
        self._events.close()

    @property
    def complete(self) -> bool:
        """Whether there are labels: not before the end, nor after a part while others are to come."""
        return self._results is not None

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
            raise RunError(
                "this prediction is not finished; iterate over it to the end first."
            )
        return self._results

    def _run(self) -> Generator[Event]:
        started = perf_counter()
        out, options, part = self._out, self._options, as_part(self._part)
        check_asked(out, part, self._scheduler)
        if (
            out is not None
            and part is not None
            and is_put_together(out, overwrite=options.overwrite)
        ):
            text = f"part {part.number} of {part.of}: {out} is there and nothing unfinished beside it, so all parts are"
            yield Message(f"{text} done (to replace it: --overwrite)")
            return
        if out is not None:
            check_out(out, overwrite=options.overwrite)
        image = as_image(self._image)
        if out is not None:
            check_image_against_out(image, out)
        subject = Subject(image, load_models(self._model))
        specs = [model.spec for model in subject.models.models]
        warnings = check_image(
            specs, subject.seen, subject.samples, ortho=options.ortho
        )
        averaging = subject.models.averaging(options.tta, ortho=options.ortho)
        yield from (
            Message(text) for text in (image.describe(), *image.notes, *averaging)
        )
        yield from (Message(text, "warning") for text in warnings)
        if self._scheduler is not None and out is not None:
            yield from self._on_cluster(subject, out)
        else:
            work = Work(
                subject,
                self._committee or build_committee(subject.models, options),
                options,
            )
            yield from self._here(work, part)
        if self.complete:
            yield PredictionEnd(
                image.name, "" if out is None else str(out), perf_counter() - started
            )

    def _here(self, work: Work, part: Part | None) -> Iterator[Event]:
        """Predict in this process: everything, or one part."""
        subject, out, committee = work.subject, self._out, work.committee
        slabs = work.slabs if part is None else part.share(work.slabs)
        planes = planes_of(slabs)
        with (
            kept_pages(committee.device.type),
            closing(self._open(work, Hand(part, planes, wait=PATIENCE))) as output,
        ):
            yield from _discarded(output)
            found = sum(plane in output.pixels for plane in planes)
            if found < len(planes):
                in_memory = isinstance(output, MemoryOutput)
                check_memory(
                    estimate(
                        committee,
                        subject.seen,
                        output.form,
                        out=out,
                        in_memory=in_memory,
                    ),
                    committee,
                )
                yield from compiled(committee, subject.seen)
            yield PredictionStarted(
                subject.image.name,
                describe_device(committee.device),
                len(planes),
                found,
            )
            if bad := (yield from predict_slabs(work, slabs, output)):
                yield not_finite(subject.seen, bad)
            if part is not None and isinstance(output, PartialOutput):
                output.settle()
                self._results = yield from assemble(
                    output, subject, self._options, told=Told(part, work.slabs)
                )
            else:
                self._results = finish(output, subject, out, self._options)

    def _on_cluster(self, subject: Subject, out: Path) -> Iterator[Event]:
        """Predict on the workers of a scheduler."""
        from napari_strata.inference.region import Order
        from napari_strata.inference.scheduler import Cluster
        from napari_strata.inference.workers import Workers

        order = Order.of(self._model, subject, out, self._options)
        scheduler = self._scheduler
        with (
            Cluster(str(scheduler))
            if not isinstance(scheduler, Cluster)
            else nullcontext(scheduler) as cluster
        ):
            workers = Workers(cluster, order)
            hand = Hand(planes=range(0), shared=True)
            with closing(
                PartialOutput(out, subject.form(self._options), workers.identity, hand)
            ) as output:
                _check_beside(
                    output,
                    out,
                    range(output.form.planes),
                    overwrite=self._options.overwrite,
                )
                yield from workers.messages
                yield PredictionStarted(
                    subject.image.name,
                    workers.device,
                    output.form.planes,
                    len(output.pixels),
                )
                if bad := (yield from workers.predict(output, subject.image)):
                    yield not_finite(subject.seen, bad)
                self._results = yield from assemble(output, subject, self._options)

    def _open(self, work: Work, hand: Hand) -> Output:
        """Memory, or the folder of an unfinished prediction, old or new."""
        form, out = work.subject.form(self._options), self._out
        if out is None:
            return self._memory(form)
        output = PartialOutput(out, form, work.identity, hand)
        _check_beside(
            output, out, hand.planes or range(0), overwrite=self._options.overwrite
        )
        return output


def iter_predict(
    model: AnyModel,
    image: AnyImage,
    *,
    out: str | os.PathLike[str] | None = None,
    options: PredictOptions | None = None,
    part: Part | str | None = None,
    scheduler: str | Cluster | None = None,
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
    part
        "i/n": only the i-th of n runs of neighbouring planes. The n processes, on one machine or many, fill the folder
        ``<out>.partial`` in any order and at any time; the one that finishes last writes `out`. See docs/cluster.md.
    scheduler
        "local:N": N worker processes on this machine, one a GPU if there are some; "tcp://host:port": the workers of a
        running Dask scheduler, which must see image, models and `out` under the same paths; or an open `Cluster`. Needs
        the extra ``distributed``; with "local:N" a script needs ``if __name__ == "__main__":`` around it.

    Labels are the same, bit for bit, however many processes there are, on GPUs of one kind, and on CPUs of one kind
    with as many threads for each (torch adds in another order with another number of threads).

    Yields
    ------
    `Message` for what is odd, `PredictionStarted`, a `RegionEnd` per plane, `PredictionEnd`. After a part while others
    are to come there is a `Message` in place of the last, and no labels.

    Raises
    ------
    ImageError, ModelError
        when one cannot be read, or they do not go together.
    RunError
        when the output exists, the disk is full, memory does not hold a single tile, the part is none, another process
        predicts the same planes or other parts are of another model, image or options, no scheduler answers, or its
        workers do not see a path.
    """
    asked = replace(options or PredictOptions(), **keywords)
    return Prediction(
        model, image, out=out, options=asked, part=part, scheduler=scheduler
    )


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
    subject = Subject(as_image(image), load_models(model))
    check_image(
        [one.spec for one in subject.models.models],
        subject.seen,
        subject.samples,
        ortho=asked.ortho,
    )
    committee = committee or build_committee(subject.models, asked)
    place = None if out is None else Path(out).expanduser()
    with kept_pages(committee.device.type):
        form = subject.form(asked)
        return estimate(
            committee,
            subject.seen,
            form,
            out=place,
            in_memory=out is None,
            measure=True,
        )


def as_image(image: AnyImage) -> Image:
    """An image from whatever `iter_predict` takes."""
    if isinstance(image, (str, os.PathLike)):
        return read_image(image)
    return image if isinstance(image, Image) else Image(image)


def check_asked(
    out: Path | None, part: Part | None, scheduler: str | Cluster | None
) -> None:
    """Raise `RunError` when several processes are asked for what they cannot do."""
    if part is not None and scheduler is not None:
        raise RunError(
            "found a part and a scheduler, which cuts the image itself; give one of them."
        )
    if out is None and (part is not None or scheduler is not None):
        raise RunError(
            "several processes need a file to write to (out), in a folder that all of them see; give one."
        )


def _check_beside(
    output: PartialOutput, out: Path, planes: range, *, overwrite: bool
) -> None:
    """Raise `RunError` when probabilities would replace a file; those of a run killed between its two files may be."""
    beside = probabilities_path(out)
    if (
        output.form.classes
        and not output.pixels.keys() >= set(planes)
        and beside.exists()
        and not overwrite
    ):
        output.close()
        raise RunError(
            f"{beside}: exists already; choose another name, or allow it to be replaced (--overwrite)."
        )


def _discarded(output: Output) -> Iterator[Message]:
    if output.discarded:
        yield Message(
            f"{output.place}: the unfinished prediction there was made with another {' and '.join(output.discarded)}; "
            "it is discarded and prediction starts from the first plane.",
            "warning",
        )
