"""Region: what a worker of a cluster does for a prediction, all of it by path; see `scheduler`."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import torch

from napari_strata.core.errors import ImageError, RunError, StrataError
from napari_strata.core.image import Image, Region
from napari_strata.inference.backends import check_backend
from napari_strata.inference.build import PredictOptions, build_committee, compiled
from napari_strata.inference.chunks import Slab
from napari_strata.inference.ensemble_predictor import Committee
from napari_strata.inference.estimate import check_memory, estimate
from napari_strata.inference.ledger import Hand, PartialOutput
from napari_strata.inference.output import Identity
from napari_strata.inference.shards import Part
from napari_strata.inference.task import Subject, Work, planes_of, predict_slabs
from napari_strata.io import read_image
from napari_strata.models.allocator import kept_pages
from napari_strata.models.device import (
    choose_device,
    choose_precision,
    cores,
    describe_device,
)
from napari_strata.models.ensemble import AnyModel, Ensemble, load_models
from napari_strata.models.model import Model, current_versions

WAIT = 600.0
"""Seconds to wait for planes that a worker writes of whom the scheduler has heard nothing for long."""

_BUSY = threading.Lock()
"""One region at a time in a process, however many threads its worker has."""


@dataclass(frozen=True)
class Order:
    """A prediction for workers to do: paths, and what tells that they find the same there.

    Parameters
    ----------
    models, image, out
        absolute paths.
    axes, scale, units, name
        of the image, which need not be what its file says.
    digest, fingerprint
        of the models and of the image.
    threads
        of torch, for each worker; more or fewer would add numbers in another order.
    """

    models: tuple[str, ...]
    image: str
    out: str
    axes: str
    scale: tuple[float, ...]
    units: tuple[str, ...]
    name: str
    digest: str
    fingerprint: str
    options: PredictOptions
    threads: int = 1

    @classmethod
    def of(
        cls, model: AnyModel, subject: Subject, out: Path, options: PredictOptions
    ) -> Order:
        """Raises `RunError` when model or image are not files, which workers could open."""
        given = (
            [model]
            if isinstance(model, (str, os.PathLike, Model, Ensemble))
            else list(model)
        )
        paths = [
            os.path.abspath(Path(one).expanduser())
            for one in given
            if isinstance(one, (str, os.PathLike))
        ]
        if len(paths) < len(given):
            raise RunError(
                "found a model in memory, and workers open models by path; save it (model.save) to a folder that all "
                "of them see and give its path."
            )
        image = subject.image
        if image.source is None:
            raise RunError(
                f"{image.name}: found an image in memory, and workers open images by path; write it to a file in a "
                "folder that all of them see and give its path."
            )
        return cls(
            tuple(paths),
            os.path.abspath(image.source),
            os.path.abspath(out),
            image.axes,
            image.scale,
            image.units,
            image.name,
            subject.models.digest,
            subject.fingerprint,
            options,
        )


@dataclass(frozen=True)
class Facts:
    """What a worker says of itself: paths that it does not see, and what it computes with."""

    missing: tuple[str, ...]
    versions: dict[str, str]
    device: str
    precision: str
    cores: int


@dataclass(frozen=True)
class Plan:
    """A prediction as a worker sees it: what it is made of, and in what pieces it is done."""

    identity: Identity
    slabs: Sequence[Slab]
    device: str


@dataclass(frozen=True)
class Done:
    """A region that is written: pixels of each class in its planes; planes with pixels that are NaN or infinite, the
    first of them (row, column), how many."""

    pixels: dict[int, tuple[int, ...]]
    seconds: float
    bad: tuple[tuple[Region, tuple[int, int], int], ...]


@dataclass(frozen=True)
class Refusal:
    """A `StrataError`, which another try would not mend."""

    text: str


def look(order: Order, token: str) -> Facts:
    """What this worker sees and is. `token` is a file that was just made in the folder of the output."""
    paths = {path: path for path in (order.image, *order.models)} | {
        token: str(Path(order.out).parent)
    }
    missing = tuple(name for path, name in paths.items() if not _seen(path))
    device = choose_device(order.options.device)
    precision = choose_precision(
        check_backend(order.options.backend, device, order.options.precision), device
    )
    return Facts(missing, current_versions(), device.type, precision.name, cores())


def _seen(path: str) -> bool:
    """Whether there is something; a shared folder may show what is new a little later."""
    for _ in range(10):
        if os.path.exists(path) or any(letter in path for letter in "*?["):
            return True
        sleep(0.1)
    return False


def plan(order: Order) -> Plan | Refusal:
    """How this worker would do it."""
    with _BUSY:
        try:
            work = _work(order)
            committee, options = work.committee, order.options
            form = work.subject.form(options)
            found = estimate(
                committee, work.subject.seen, form, out=Path(order.out), in_memory=False
            )
            check_memory(found, committee)
            return Plan(work.identity, work.slabs, describe_device(committee.device))
        except StrataError as error:
            return Refusal(str(error))


def predict_region(region: Part, *, order: Order) -> Done | Refusal:
    """Predict one of the regions into the folder of the output; what is there of it is kept."""
    begun = perf_counter()
    with _BUSY:
        try:
            work = _work(order)
            slabs = region.share(work.slabs)
            planes = planes_of(slabs)
            hand = Hand(region, planes, shared=True, wait=WAIT, sent=True)
            form = work.subject.form(order.options)
            with (
                kept_pages(work.committee.device.type),
                closing(
                    PartialOutput(Path(order.out), form, work.identity, hand)
                ) as output,
            ):
                job = predict_slabs(work, slabs, output)
                while True:
                    try:
                        next(job)
                    except StopIteration as end:
                        bad = end.value
                        break
                output.settle()
                pixels = {plane: output.pixels[plane] for plane in planes}
        except StrataError as error:
            return Refusal(str(error))
    told = tuple((where, (int(at[0][0]), int(at[0][1])), len(at)) for where, at in bad)
    return Done(pixels, perf_counter() - begun, told)


@lru_cache(maxsize=1)
def _work(order: Order) -> Work:
    """The image and the networks, opened once for all regions."""
    torch.set_num_threads(order.threads)
    subject = Subject(_image(order), _load(order.models, order.digest))
    if (subject.models.digest, subject.fingerprint) != (
        order.digest,
        order.fingerprint,
    ):
        what = (
            order.image
            if subject.models.digest == order.digest
            else " ".join(order.models)
        )
        raise RunError(
            f"{what}: reads otherwise there than here; needed is the same file on a shared file system."
        )
    options = replace(order.options, device=_device(order.options.device))
    work = Work(subject, _committee(order.models, order.digest, options), options)
    for _ in compiled(work.committee, subject.seen):
        pass
    return work


@lru_cache(maxsize=1)
def _load(models: tuple[str, ...], digest: str) -> Ensemble:
    """The models, also for the next image, unless by then they should be others (`digest`)."""
    return load_models([*models])


@lru_cache(maxsize=1)
def _committee(
    models: tuple[str, ...], digest: str, options: PredictOptions
) -> Committee:
    """The networks on their device, also for the next image."""
    return build_committee(_load(models, digest), options)


def _image(order: Order) -> Image:
    image = None
    with suppress(ImageError):  # such as axes that cannot be known
        image = read_image(order.image)
    if image is None or image.axes != order.axes:
        image = read_image(order.image, axes=order.axes)
    return replace(image, scale=order.scale, units=order.units, name=order.name)


def _device(asked: str) -> str:
    """Of several GPUs that this process sees, the one whose number is the worker's own, counted around."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    name = _name()
    return (
        f"cuda:{name % count}"
        if asked in ("auto", "cuda") and count > 1 and isinstance(name, int)
        else asked
    )


def _name() -> Any:
    """Of the worker that does this: a number on this machine's own cluster, else a text."""
    from distributed import get_worker

    return get_worker().name
