"""Predict labels of every plane of an image with one model or several.

`iter_predict` gives a job to iterate over; `predict` does that and returns the labels.
To stop, stop iterating. Finished planes stay in ``<out>.partial``, and the same
call continues from there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from napari_strata.core.drift import Drift
from napari_strata.core.errors import ImageError, RunError
from napari_strata.core.events import Event, Message, PredictionEnd, PredictionStarted
from napari_strata.core.files import partial_folder
from napari_strata.core.image import Image, LabelImage
from napari_strata.core.options import PredictOptions
from napari_strata.inference.build import build_ensemble_predictor, compile_networks
from napari_strata.inference.checks import check_image
from napari_strata.inference.chunks import Chunk, describe_invalid, planes_of
from napari_strata.inference.ensemble_predictor import EnsemblePredictor
from napari_strata.inference.estimate import Estimate, check_memory, estimate
from napari_strata.inference.ledger import (
    ResumableOutput,
    WriterRole,
    remove_written,
    restore_removed,
)
from napari_strata.inference.outputs import (
    MemoryOutput,
    Output,
    OutputSpec,
    Results,
    check_image_against_out,
    check_out,
    finish,
    is_assembled,
    probabilities_path,
    read_results,
)
from napari_strata.inference.shards import Shard, as_shard
from napari_strata.inference.task import (
    PredictionInput,
    PredictionTask,
    predict_chunks,
)
from napari_strata.io import read_image
from napari_strata.models.allocator import kept_pages
from napari_strata.models.device import describe_device, describe_unused_gpus
from napari_strata.models.ensemble import AnyModel, load_models

if TYPE_CHECKING:
    from napari_strata.inference.dask import Cluster

Array = np.ndarray[Any, Any]

PATIENCE = 5.0
"""Seconds to wait for planes that another process writes, such as a worker that does
not know yet that it may stop."""

STRICT = "(To refuse such images: --strict.)"
REFUSED = (
    "It is refused (--strict): make it as the training images were made, train on such "
    "images too, or predict without --strict."
)

AnyImage: TypeAlias = Image | Array | str | os.PathLike[str]


class Prediction(Iterator[Event]):
    """A prediction as a job: iterate over its events, then take the results.

    Parameters and errors are those of `iter_predict`; errors are raised at the first
    step.

    Parameters
    ----------
    predictor
        Predictor of these models and options, if it has been built already.
    make_output
        Function that makes the output of a prediction without `out`.
    """

    def __init__(
        self,
        model: AnyModel,
        image: AnyImage,
        *,
        out: str | os.PathLike[str] | None = None,
        options: PredictOptions | None = None,
        part: Shard | str | None = None,
        scheduler: str | Cluster | None = None,
        predictor: EnsemblePredictor | None = None,
        make_output: Callable[[OutputSpec], Output] = MemoryOutput,
    ) -> None:
        self._model = model
        self._image = image
        self._out = None if out is None else Path(out).expanduser()
        self._options = options or PredictOptions()
        self._part = part
        self._scheduler = scheduler
        self._predictor = predictor
        self._make_output = make_output
        self._results: Results | None = None
        self.drift: Drift | None = None
        """Comparison with the training images, from the first event on."""
        self._events = self._run()

    def __next__(self) -> Event:
        try:
            return next(self._events)
        except MemoryError as error:
            reason = str(error) or type(error).__name__
            raise RunError(
                f"memory ran out while predicting ({reason}): close other programs, or"
                " use smaller tiles or fewer models; finished planes are kept."
            ) from error

    def close(self) -> None:
        """Stop; finished planes are kept for the next time."""
        self._events.close()

    @property
    def complete(self) -> bool:
        """True when the labels are complete.

        That is so at the end, but not at the end of a shard while other shards are
        missing.
        """
        return self._results is not None

    @property
    def labels(self) -> LabelImage:
        """Label values of every plane, read from the file if there is one.

        Raises `RunError` before the end.
        """
        return self._finished.labels

    @property
    def probabilities(self) -> Image | None:
        """Probabilities, float16, the classes as axis C before Y and X.

        None when they were not requested.
        """
        return self._finished.probabilities

    @property
    def pixels(self) -> Array:
        """Predicted pixels of each class, int64 (K,)."""
        return self._finished.pixels

    @property
    def _finished(self) -> Results:
        if self._results is None:
            raise RunError(
                "this prediction is not finished; iterate over it to the end first."
            )
        return self._results

    def _run(self) -> Generator[Event]:
        started = perf_counter()
        out, options, shard = self._out, self._options, as_shard(self._part)
        check_processes(out, shard, self._scheduler)
        if out is not None:
            if shard is None and self._scheduler is None:
                restore_removed(out)
            if shard is not None and is_assembled(out, overwrite=options.overwrite):
                yield Message(
                    f"part {shard.number} of {shard.count}: {out} exists and there is "
                    "no unfinished prediction, so all parts are complete (to replace "
                    "it: --overwrite)"
                )
                return
            check_out(out, overwrite=options.overwrite or self._may_be_written)
        image = as_image(self._image)
        if out is not None:
            check_image_against_out(image, out)
        inputs = PredictionInput(image, load_models(self._model))
        _ = inputs.source_state  # before the first pixel is read
        yield from self._describe_input(inputs)
        if self._scheduler is not None and out is not None:
            yield from self._run_on_cluster(inputs, out)
        else:
            predictor = self._predictor
            if predictor is None:
                predictor = build_ensemble_predictor(inputs.models, options)
            for text in describe_unused_gpus(options.device):
                yield Message(text, "warning")
            task = PredictionTask(inputs, predictor, options)
            yield from self._run_in_process(task, shard)
        if self.complete:
            path = "" if out is None else str(out)
            yield PredictionEnd(image.name, path, perf_counter() - started)

    def _describe_input(self, inputs: PredictionInput) -> Iterator[Message]:
        """Describe the image, what is averaged and what is unusual.

        Raises
        ------
        ImageError
            when the image is not like the training images, and the options are strict.
        """
        options = self._options
        drift = self.drift = _compare_input(inputs, options)
        if options.strict and drift.questions:
            raise ImageError(f"{' '.join(drift.questions)} {REFUSED}")
        yield Message(inputs.image.describe())
        for note in inputs.image.notes:
            yield Message(note)
        for sentence in inputs.models.averaging(options.tta, ortho=options.ortho):
            yield Message(sentence)
        for message in drift.messages:
            if message.text in drift.questions:
                message = Message(f"{message.text} {STRICT}", "warning")
            yield message
        for warning in _ignored_options(inputs, options):
            yield Message(warning, "warning")

    def _run_in_process(
        self, task: PredictionTask, shard: Shard | None
    ) -> Iterator[Event]:
        """Predict in this process: everything, or one shard."""
        if self._may_be_written:
            yield self._finish_written(task)
            return
        image, predictor = task.input.model_image, task.predictor
        chunks: Sequence[Chunk] = task.chunks
        if shard is not None:
            chunks = shard.share(task.chunks)
        planes = planes_of(chunks)
        role = WriterRole(shard, planes, wait=PATIENCE)
        with (
            kept_pages(predictor.device.type),
            closing(self._open_output(task, role)) as output,
        ):
            yield from _describe_discarded(output)
            finished = sum(plane in output.pixels for plane in planes)
            if finished < len(planes):
                estimated = estimate(
                    predictor,
                    image,
                    output.spec,
                    out=self._out,
                    in_memory=isinstance(output, MemoryOutput),
                )
                check_memory(estimated, predictor)
                yield from compile_networks(predictor, image, task.options)
            device = describe_device(predictor.device)
            yield PredictionStarted(image.name, device, len(planes), finished)
            invalid = yield from predict_chunks(task, chunks, output)
            task.input.check_unchanged()
            if invalid:
                yield describe_invalid(image, invalid)
            if shard is not None and isinstance(output, ResumableOutput):
                output.sync()
                self._results = yield from _assemble(
                    output, task.input, task.options, shard=shard, chunks=task.chunks
                )
            else:
                self._results = finish(
                    output,
                    task.input.image,
                    task.input.classes,
                    self._out,
                    overwrite=task.options.overwrite,
                )

    def _run_on_cluster(self, inputs: PredictionInput, out: Path) -> Iterator[Event]:
        """Predict on the workers of a Dask scheduler."""
        from napari_strata.inference.dask import (
            Cluster,
            ClusterPrediction,
            PredictionRequest,
        )

        options = self._options
        request = PredictionRequest.of(self._model, inputs, out, options)
        spec = inputs.output_spec(options)
        cluster: Cluster | nullcontext[Cluster]
        if isinstance(self._scheduler, Cluster):
            cluster = nullcontext(self._scheduler)
        else:
            cluster = Cluster(str(self._scheduler))
        with cluster as opened:
            prediction = ClusterPrediction(opened, request)
            # This process writes no planes itself.
            role = WriterRole(planes=range(0), shared=True)
            output = ResumableOutput(out, spec, prediction.identity, role)
            with closing(output):
                _check_probabilities_free(
                    output, range(spec.planes), overwrite=options.overwrite
                )
                yield from prediction.messages
                yield PredictionStarted(
                    inputs.image.name,
                    prediction.device,
                    spec.planes,
                    len(output.pixels),
                )
                invalid = yield from prediction.run(output, inputs.image)
                if invalid:
                    yield describe_invalid(inputs.model_image, invalid)
                self._results = yield from _assemble(output, inputs, options)

    @property
    def _may_be_written(self) -> bool:
        """True if a killed process may have left nothing to do but to tidy up."""
        out = self._out
        return (
            out is not None
            and self._part is None
            and self._scheduler is None
            and not self._options.overwrite
            and out.exists()
            and partial_folder(out).exists()
        )

    def _finish_written(self, task: PredictionTask) -> Message:
        """Tidy up after a process that was killed when it had written the output.

        Raises `RunError` if the output is something else.
        """
        out, spec = self._out, task.input.output_spec(task.options)
        assert out is not None
        pixels = remove_written(out, spec, task.identity)
        check_out(out, overwrite=pixels is not None)
        self._results = read_results(
            out, task.input.classes, pixels or (), probabilities=spec.classes > 0
        )
        return Message(f"{out} is complete: an earlier process has written it")

    def _open_output(self, task: PredictionTask, role: WriterRole) -> Output:
        """Open memory, or the folder of an unfinished prediction, old or new."""
        spec = task.input.output_spec(task.options)
        if self._out is None:
            return self._make_output(spec)
        output = ResumableOutput(self._out, spec, task.identity, role)
        planes = role.planes or range(0)
        overwrite = task.options.overwrite
        _check_probabilities_free(output, planes, overwrite=overwrite)
        return output


def iter_predict(
    model: AnyModel,
    image: AnyImage,
    *,
    out: str | os.PathLike[str] | None = None,
    options: PredictOptions | None = None,
    part: Shard | str | None = None,
    scheduler: str | Cluster | None = None,
    **keywords: Any,
) -> Prediction:
    """Segment every plane of an image, as a job to iterate over.

    Parameters
    ----------
    model
        A `Model`, the path of a model file or run folder, several of them, or a
        cross-validation folder: of several, the mean of their probabilities is taken;
        see `Ensemble`.
    image
        An `Image` with axes of T, C, Z, Y, X; a 2D array (Y, X); or the path of an
        image.
    out
        File to write labels to (see `write_labels`), streamed plane by plane; when None
        they stay in memory. Probabilities, if requested, go beside it under
        ``<stem>_probabilities``.
    options, keywords
        See `PredictOptions`; its fields may be given as keywords.
    part
        "i/n": only the i-th of n shares of neighbouring planes. The n processes, on one
        machine or many, fill the folder ``<out>.partial`` in any order and at any time;
        the one that finishes last writes `out`. See docs/cluster.md.
    scheduler
        "local:N": N worker processes on this machine, one for each GPU if there are
        some; "tcp://host:port": the workers of a running Dask scheduler, which must see
        image, models and `out` under the same paths; or an open `Cluster`. Needs the
        extra ``distributed``; with "local:N" a script needs
        ``if __name__ == "__main__":`` around it.

    Labels are the same, bit for bit, however many processes there are, on GPUs of one
    kind, and on CPUs of one kind with as many threads for each (torch adds in another
    order with another number of threads).

    Yields
    ------
    `Message` for what is unusual, `PredictionStarted`, a `RegionEnd` per plane,
    `PredictionEnd`. If other parts are missing, the last event is a `Message`, and
    there are no labels.

    Raises
    ------
    ImageError, ModelError
        when one cannot be read, or they do not go together.
    RunError
        when the output exists, the disk is full, memory does not hold a single tile,
        there is no such part, another process predicts the same planes, other parts are
        of another model, image or options, no scheduler answers, or its workers do not
        see a path.
    """
    options = (options or PredictOptions()).updated(**keywords)
    return Prediction(
        model, image, out=out, options=options, part=part, scheduler=scheduler
    )


def predict(
    model: AnyModel,
    image: AnyImage,
    *,
    out: str | os.PathLike[str] | None = None,
    options: PredictOptions | None = None,
    **keywords: Any,
) -> LabelImage:
    """Segment every plane of an image.

    Parameters and errors are those of `iter_predict`.

    Returns
    -------
    label values of every pixel, with the image's axes (less C), scale and units, and
    the model's classes.
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
    predictor: EnsemblePredictor | None = None,
    **keywords: Any,
) -> Estimate:
    """Estimate time, memory and disk space of `predict` with the same arguments.

    It is measured on one tile. Errors are those of `iter_predict`; a prediction that
    would not fit is no error here.

    Parameters
    ----------
    predictor
        Predictor of these models and options, to build it once for many images.
    """
    options = (options or PredictOptions()).updated(**keywords)
    inputs = PredictionInput(as_image(image), load_models(model))
    _compare_input(inputs, options)
    if predictor is None:
        predictor = build_ensemble_predictor(inputs.models, options)
    with kept_pages(predictor.device.type):
        return estimate(
            predictor,
            inputs.model_image,
            inputs.output_spec(options),
            out=None if out is None else Path(out).expanduser(),
            in_memory=out is None,
            measure=True,
        )


def as_image(image: AnyImage) -> Image:
    """Convert what `iter_predict` takes to an image."""
    if isinstance(image, Image):
        return image
    if isinstance(image, (str, os.PathLike)):
        return read_image(image)
    return Image(image)


def check_processes(
    out: Path | None, shard: Shard | None, scheduler: str | Cluster | None
) -> None:
    """Raise `RunError` when several processes cannot work as requested."""
    if shard is not None and scheduler is not None:
        raise RunError(
            "give either a part or a scheduler: a scheduler divides the image itself."
        )
    if out is None and (shard is not None or scheduler is not None):
        raise RunError(
            "several processes need a file to write to (out), in a folder that all of "
            "them see; give one."
        )


def _compare_input(inputs: PredictionInput, options: PredictOptions) -> Drift:
    """Compare the image with the training images; see `check_image`."""
    return check_image(
        inputs.models.models, inputs.model_image, inputs.samples, ortho=options.ortho
    )


def _ignored_options(inputs: PredictionInput, options: PredictOptions) -> list[str]:
    """Warnings about options that have no effect."""
    if not all(model.spec.network.is_fitted for model in inputs.models.models):
        return []
    ignored = [f"backend {options.backend!r}"] if options.backend != "torch" else []
    ignored += ["compile"] if options.compile else []
    return [
        f"{name} has no effect: it is for networks, and a pixel classifier has none"
        for name in ignored
    ]


def _check_probabilities_free(
    output: ResumableOutput, planes: range, *, overwrite: bool
) -> None:
    """Raise `RunError` when probabilities would replace a file.

    They may replace those of a run that was killed between writing its two files.
    """
    path = probabilities_path(output.path)
    if overwrite or not output.spec.classes or not path.exists():
        return
    if output.pixels.keys() >= set(planes):
        return
    output.close()
    raise RunError(
        f"{path}: exists already; choose another name, or allow it to be replaced "
        "(--overwrite)."
    )


def _describe_discarded(output: Output) -> Iterator[Message]:
    if output.discarded:
        yield Message(
            f"{output.location}: the unfinished prediction there was made with another "
            f"{' and '.join(output.discarded)}; it is discarded and prediction starts "
            "from the first plane.",
            "warning",
        )


def _assemble(
    output: ResumableOutput,
    inputs: PredictionInput,
    options: PredictOptions,
    *,
    shard: Shard | None = None,
    chunks: Sequence[Chunk] = (),
) -> Generator[Message, None, Results | None]:
    """Finish a folder that several processes fill, in one of them.

    The others say in a message how things stand, and give no results.

    Parameters
    ----------
    shard, chunks
        Shard that this process has predicted, and all chunks; without a shard, all
        planes are predicted.

    Raises
    ------
    RunError
        when a plane is not as its ledger says.
    """
    done = "every plane is predicted"
    if shard is not None:
        done = _describe_shard(shard, chunks)
    all_planes = range(output.spec.planes)
    try:
        if not output.folder.exists():
            raise FileNotFoundError(output.folder)
        if shard is not None:
            missing = set(all_planes) - output.recorded_planes()
            if missing:
                yield Message(f"{done}; {_describe_missing(missing, shard, chunks)}")
                return None
        holder = output.claim_assembly()
        if holder:
            yield Message(f"{done}. {output.describe_assembly(holder)}")
            return None
        output.load_finished(all_planes)
        damaged = [plane for plane in all_planes if plane not in output.pixels]
        if damaged:
            raise RunError(
                f"{output.location}: found {len(damaged)} damaged planes (wrong "
                f"checksum), the first is plane {damaged[0] + 1}; run the same command "
                "without --part or --scheduler to predict them again."
            )
        return finish(
            output,
            inputs.image,
            inputs.classes,
            output.path,
            overwrite=options.overwrite,
        )
    except FileNotFoundError:
        if output.folder.exists() or not output.path.exists():
            raise
    # Another process has put the file together meanwhile.
    yield Message(
        f"{done}; all other parts are done too, and {output.path} has been written"
    )
    return None


def _describe_shard(shard: Shard, chunks: Sequence[Chunk]) -> str:
    """Say which planes a shard has, as ``part 2 of 3 is done: planes 34 to 66``."""
    planes = planes_of(shard.share(chunks))
    text = "no plane is left for it"
    if planes:
        text = f"planes {planes.start + 1} to {planes.stop}"
    return f"part {shard.number} of {shard.count} is done: {text}"


def _describe_missing(missing: set[int], shard: Shard, chunks: Sequence[Chunk]) -> str:
    """Say how many shards of the same count lack planes."""
    count = 0
    for number in range(1, shard.count + 1):
        planes = planes_of(Shard(number, shard.count).share(chunks))
        if not missing.isdisjoint(planes):
            count += 1
    parts = "1 part is" if count == 1 else f"{count} parts are"
    return f"{parts} not finished yet"
