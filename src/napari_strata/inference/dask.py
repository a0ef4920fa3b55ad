"""Predict on the workers of a Dask scheduler, on this machine or on many.

An adapter over the shards of a prediction: each shard is a task. A worker predicts it
into the folder that all of them fill (see `ledger`) and returns its numbers of pixels.
A shard whose worker is lost goes to another one, which continues from the planes that
are there. Everything is named by path.
"""

from __future__ import annotations

import logging
import math
import os
import re
import signal
import threading
import warnings
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from multiprocessing import resource_tracker
from pathlib import Path
from time import monotonic, perf_counter, sleep
from types import TracebackType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse
from uuid import uuid4

import torch

from napari_strata.core import files
from napari_strata.core.errors import ImageError, RunError, StrataError
from napari_strata.core.events import Event, Message, RegionEnd
from napari_strata.core.image import Image
from napari_strata.core.options import PredictOptions
from napari_strata.inference.backends import check_backend
from napari_strata.inference.build import build_ensemble_predictor, compile_networks
from napari_strata.inference.chunks import Chunk, InvalidPixels, planes_of
from napari_strata.inference.ensemble_predictor import EnsemblePredictor
from napari_strata.inference.estimate import check_memory, estimate
from napari_strata.inference.ledger import ResumableOutput, WriterRole
from napari_strata.inference.outputs import OutputSpec
from napari_strata.inference.shards import Shard
from napari_strata.inference.task import (
    PredictionInput,
    PredictionTask,
    predict_chunks,
)
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

if TYPE_CHECKING:
    from distributed import Client, Future

CONNECT_TIMEOUT = 10.0
"""Seconds in which a scheduler must answer and a first worker must be there."""

SHARD_PIXELS = {"cpu": 2**22, "cuda": 2**26, "mps": 2**24}
"""About how many pixels a shard has, by the kind of device: some seconds of work on a
CPU (of a GPU it is a guess)."""

SHARDS_PER_WORKER = 4
"""Shards for each worker at least, so that none is idle long at the end."""

NO_WORKERS_TIMEOUT = 60.0
"""Seconds without any worker after which a prediction is given up."""

RETRIES = 2
"""Retries of a shard whose task fails. How often workers may die of one is a setting of
the scheduler (allowed-failures)."""

WORKER_WAIT = 600.0
"""Seconds to wait for planes that are written by a worker of which the scheduler has
heard nothing for long."""

_ONE_TASK = threading.Lock()
"""Held by the one task of a process that runs, however many threads its worker has."""


class Cluster:
    """Workers of a Dask scheduler, for one prediction after another; a context manager.

    Parameters
    ----------
    address
        "local:N" for N worker processes on this machine, one for each GPU if there are
        some; "tcp://host:port" for a scheduler that runs already.

    Raises
    ------
    RunError
        when the extra ``distributed`` is missing, the address is not valid, or no
        scheduler or no worker answers.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.local_workers = _parse_address(address)
        self._resources = ExitStack()
        try:
            self.client = self._connect()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Disconnect from the scheduler, and end it if this object started it."""
        self._resources.close()

    def workers(self) -> dict[str, dict[str, Any]]:
        """Facts that the scheduler has of each worker, by address."""
        # Not client.scheduler_info: its reply may be that of another call, without
        # workers.
        identity: dict[str, Any] = self.client.sync(
            self.client.scheduler.identity, n_workers=-1
        )
        workers: dict[str, dict[str, Any]] = identity["workers"]
        return workers

    def task_resources(self) -> dict[str, int] | None:
        """Resources that a task needs: one GPU, where workers declare any."""
        for worker in self.workers().values():
            if worker.get("resources", {}).get("GPU"):
                return {"GPU": 1}
        return None

    def _connect(self) -> Client:
        try:
            from distributed import Client, LocalCluster
            from distributed.utils import silence_logging_cmgr
        except ImportError:
            raise RunError(
                "found no Dask for --scheduler; needed is the extra: pip install "
                '"napari-strata[distributed]".'
            ) from None
        # Events say what matters of the log, and `ClusterPrediction` compares versions.
        self._resources.enter_context(silence_logging_cmgr(logging.CRITICAL))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if self.local_workers:
                with _interrupts_blocked():
                    cluster = LocalCluster(**_local_options(self.local_workers))
                self._resources.callback(cluster.close)
                client = Client(cluster, set_as_default=False)
                return self._resources.enter_context(client)
            try:
                client = Client(
                    self.address, timeout=CONNECT_TIMEOUT, set_as_default=False
                )
            except (OSError, TimeoutError, ValueError):
                raise RunError(
                    f"{self.address}: no scheduler answered in {CONNECT_TIMEOUT:.0f} "
                    "s; start one with: dask scheduler, and workers with: dask worker "
                    f"{self.address} --nthreads 1"
                ) from None
            self._resources.enter_context(client)
        try:
            client.wait_for_workers(1, timeout=CONNECT_TIMEOUT)
        except TimeoutError:
            raise RunError(
                f"{self.address}: the scheduler has no workers; start some, where the "
                f"GPUs are, with: dask worker {self.address} --nthreads 1"
            ) from None
        return client


def _parse_address(address: str) -> int:
    """N of ``local:N``, 0 for a scheduler elsewhere; raises `RunError` otherwise."""
    if match := re.fullmatch(r"local:([1-9]\d*)", address):
        return int(match[1])
    if re.fullmatch(r"(tcp|tls|ws|wss|ucx)://[^/\s]+:\d+/?", address):
        return 0
    raise RunError(
        f"found scheduler {address!r}; needed is local:N for N workers on this "
        "machine, or tcp://host:port of a running dask scheduler."
    )


def _local_options(workers: int) -> dict[str, Any]:
    """Options of workers on this machine.

    Each has as many threads as one process would have, so that labels are the same bit
    for bit, and keeps no core busy while it waits.
    """
    threads = str(torch.get_num_threads())
    return {
        "n_workers": workers,
        "threads_per_worker": 1,
        "processes": True,
        "memory_limit": 0,
        "dashboard_address": None,
        # Any free port: there may be other clusters.
        "scheduler_kwargs": {"dashboard_address": "127.0.0.1:0"},
        # For the processes of the workers.
        "silence_logs": logging.CRITICAL,
        "env": {
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "OMP_WAIT_POLICY": "PASSIVE",
        },
    }


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Start processes inside this block that ignore Ctrl-C, then and later.

    It is for this process, which ends the workers.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    # The resource tracker would let signals through again when the first worker starts.
    resource_tracker.ensure_running()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@dataclass(frozen=True)
class PredictionRequest:
    """Request to workers: paths, and digests that show that files are the same.

    Parameters
    ----------
    models, image, out
        Absolute paths.
    axes, scale, units, name
        Facts of the image, which may differ from its file.
    digest, fingerprint
        Digest of the models, and fingerprint of the image.
    threads
        Threads of torch in each worker; labels depend on it in single pixels.
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
        cls,
        model: AnyModel,
        inputs: PredictionInput,
        out: Path,
        options: PredictOptions,
    ) -> PredictionRequest:
        """Describe a prediction.

        Raises `RunError` when model or image are not files, which workers could open.
        """
        models: Sequence[Any] = [model]
        if not isinstance(model, (str, os.PathLike, Model, Ensemble)):
            models = model
        paths = []
        for path in models:
            if not isinstance(path, (str, os.PathLike)):
                raise RunError(
                    "found a model in memory, and workers open models by path; save it "
                    "(model.save) to a folder that all of them see and give its path."
                )
            paths.append(os.path.abspath(Path(path).expanduser()))
        image = inputs.image
        if image.source is None:
            raise RunError(
                f"{image.name}: found an image in memory, and workers open images by "
                "path; write it to a file in a folder that all of them see and give "
                "its path."
            )
        return cls(
            models=tuple(paths),
            image=os.path.abspath(image.source),
            out=os.path.abspath(out),
            axes=image.axes,
            scale=image.scale,
            units=image.units,
            name=image.name,
            digest=inputs.models.digest,
            fingerprint=inputs.fingerprint,
            options=options,
        )


@dataclass(frozen=True)
class WorkerFacts:
    """Paths that a worker does not see, and what it computes with."""

    missing: tuple[str, ...]
    versions: dict[str, str]
    device: str
    precision: str
    cores: int


@dataclass(frozen=True)
class WorkerPlan:
    """Identity and chunks of a prediction on a worker, and its device in words."""

    identity: Mapping[str, Any]
    chunks: Sequence[Chunk]
    device: str


@dataclass(frozen=True)
class FinishedShard:
    """Pixels of each class in the planes of a shard, seconds, and invalid pixels."""

    pixels: dict[int, tuple[int, ...]]
    seconds: float
    invalid: Sequence[InvalidPixels]


@dataclass(frozen=True)
class Refusal:
    """Text of a `StrataError` of a worker. Another try would not help."""

    text: str


class ClusterPrediction:
    """A prediction on workers that are able to do it.

    Parameters
    ----------
    cluster
        Cluster of the workers.
    request
        Request to the workers, see `PredictionRequest`.

    Raises
    ------
    RunError
        when a worker does not see a path, has another version of this package, or
        computes differently from the others.
    """

    def __init__(self, cluster: Cluster, request: PredictionRequest) -> None:
        with _token_file(Path(request.out)) as token:
            replies: dict[str, Any] = cluster.client.run(
                inspect_worker, request, str(token), on_error="return"
            )
        if not replies:
            raise RunError(
                f"{cluster.address}: the workers are gone; start some and run the same "
                "command again."
            )
        facts = {}
        for address, reply in replies.items():
            facts[address] = _check_facts(address, reply)
        self.messages = compare_workers(facts)
        self.cluster = cluster
        threads = common_threads(facts)
        if cluster.local_workers:
            threads = torch.get_num_threads()
        self.request = replace(request, threads=threads)
        self._device_kind = next(iter(facts.values())).device
        self._resources = cluster.task_resources()
        future = cluster.client.submit(
            plan_on_worker, self.request, pure=False, resources=self._resources
        )
        for finished in self._iter_finished([future]):
            if isinstance(finished, Message):
                self.messages.append(finished)
        self._plan: WorkerPlan = _check_refusal(self._result(future, request.image))

    @property
    def identity(self) -> Mapping[str, Any]:
        """Identity of the planes; see `PredictionTask.identity`."""
        return self._plan.identity

    @property
    def device(self) -> str:
        """Workers in words: ``2 workers, 1 thread each, CPU, 2 cores``."""
        count, threads = len(self.cluster.workers()), self.request.threads
        text = "1 worker" if count == 1 else f"{count} workers"
        if self._device_kind == "cpu":
            text += ", 1 thread each" if threads == 1 else f", {threads} threads each"
        return f"{text}, {self._plan.device}"

    def run(
        self, output: ResumableOutput, image: Image
    ) -> Generator[Event, None, list[InvalidPixels]]:
        """Predict what `output` lacks.

        Yields
        ------
        an event for each plane, and a message when workers are lost.

        Returns
        -------
        planes that have pixels that are NaN or infinite.
        """
        client, spec = self.cluster.client, output.spec
        planes = list(image.planes())
        missing = []
        for shard in self._shards(spec):
            shard_planes = planes_of(shard.share(self._plan.chunks))
            if not output.pixels.keys() >= set(shard_planes):
                missing.append(shard)
        futures = client.map(
            predict_shard,
            missing,
            request=self.request,
            pure=False,
            retries=RETRIES,
            resources=self._resources,
        )
        shards = {}
        for future, shard in zip(futures, missing, strict=True):
            shards[future.key] = shard
        invalid: dict[int, InvalidPixels] = {}
        try:
            for future in self._iter_finished(futures):
                if isinstance(future, Message):
                    yield future
                    continue
                result = self._result(future, f"part {shards[future.key]}")
                # Or the scheduler would have it computed again when the worker that
                # keeps the result is lost.
                future.release()
                finished: FinishedShard = _check_refusal(result)
                for pixels in finished.invalid:
                    invalid[planes.index(dict(pixels.plane))] = pixels
                new = [n for n in finished.pixels if n not in output.pixels]
                for number in new:
                    output.pixels[number] = finished.pixels[number]
                    yield RegionEnd(
                        planes[number],
                        len(output.pixels),
                        spec.planes,
                        finished.seconds / len(new),
                    )
        finally:
            # A scheduler that is gone has nothing to cancel.
            with suppress(Exception):
                client.cancel(futures)
        return [invalid[number] for number in sorted(invalid)]

    def _shards(self, spec: OutputSpec) -> list[Shard]:
        """Shards of a good size, and enough of them for the workers."""
        pixels = spec.planes * math.prod(spec.shape)
        shard_pixels = SHARD_PIXELS.get(self._device_kind, SHARD_PIXELS["cpu"])
        count = max(
            math.ceil(pixels / shard_pixels),
            SHARDS_PER_WORKER * len(self.cluster.workers()),
        )
        count = min(count, len(self._plan.chunks))
        return [Shard(number, count) for number in range(1, count + 1)]

    def _iter_finished(self, futures: Sequence[Future]) -> Iterator[Future | Message]:
        """Yield futures as they finish, and a message when workers are lost.

        Raises
        ------
        RunError
            when there has been no worker for long.
        """
        from distributed import as_completed

        pending = as_completed(futures, loop=self.cluster.client.loop)
        workers = set(self.cluster.workers())
        last_look = last_worker = monotonic()
        while not pending.is_empty():
            batch = pending.next_batch(block=False)
            yield from batch
            if not batch:
                sleep(0.02)
            if monotonic() - last_look < 1.0:
                continue
            last_look = monotonic()
            present = workers
            # Without a scheduler the futures end by themselves.
            with suppress(OSError, TimeoutError):
                present = set(self.cluster.workers())
            lost = workers - present
            if lost:
                yield Message(
                    f"lost worker {', '.join(sorted(lost))}; another worker repeats "
                    "its part",
                    "warning",
                )
            workers = present
            if workers:
                last_worker = last_look
            if last_look - last_worker > NO_WORKERS_TIMEOUT:
                raise RunError(
                    f"{self.cluster.address}: no worker has been there for "
                    f"{NO_WORKERS_TIMEOUT:.0f} s; start some and run the same command "
                    "again; finished planes are kept."
                )

    def _result(self, future: Future, name: str) -> Any:
        """Result of a future; `name` says what it does. Raises `RunError`."""
        from distributed import CancelledError, KilledWorker

        try:
            return future.result()
        except KilledWorker:
            raise RunError(
                f"{name}: all workers that tried this part crashed, perhaps because "
                "memory ran out; give workers more memory or smaller tiles, and run "
                "the same command again; finished planes are kept."
            ) from None
        except (CancelledError, OSError, TimeoutError) as error:
            if future.status == "error":
                # An error of the task itself, which was retried in vain.
                text = " ".join(str(error).split())[:160]
                raise RunError(
                    f"{name}: {type(error).__name__} on a worker: {text}. Correct this "
                    "and run the same command again; finished planes are kept."
                ) from None
            raise RunError(
                f"{self.cluster.address}: lost the scheduler; start the scheduler and "
                "run the same command again; finished planes are kept."
            ) from None


@contextmanager
def _token_file(out: Path) -> Iterator[Path]:
    """Give a new file in the folder of the output.

    A worker that sees it sees that folder, and not another one of the same name.
    """
    token = out.with_name(f".{uuid4().hex}.{out.name}")
    try:
        token.parent.mkdir(parents=True, exist_ok=True)
        token.touch()
    except OSError as error:
        raise files.explain(error, out) from error
    try:
        yield token
    finally:
        token.unlink(missing_ok=True)


def _check_facts(address: str, reply: Any) -> WorkerFacts:
    """Facts of a worker; raises `RunError` when the reply is an error."""
    if isinstance(reply, WorkerFacts):
        return reply
    text = " ".join(str(reply).split())[:160]
    if isinstance(reply, StrataError):
        raise RunError(f"worker {address}: {text}.")
    raise RunError(
        f"worker {address}: {type(reply).__name__}: {text}; needed there is the same "
        "version of napari-strata as here."
    )


def _check_refusal(result: Any) -> Any:
    """Raise `RunError` when the result of a task is a refusal."""
    if isinstance(result, Refusal):
        raise RunError(f"a worker refused: {result.text}")
    return result


def common_threads(facts: Mapping[str, WorkerFacts]) -> int:
    """Threads of torch for every worker alike: those of one host share its cores."""
    hosts = {address: urlparse(address).hostname for address in facts}
    workers = Counter(hosts.values())
    shares = []
    for address, fact in facts.items():
        shares.append(fact.cores // workers[hosts[address]])
    return max(1, min(shares))


def compare_workers(facts: Mapping[str, WorkerFacts]) -> list[Message]:
    """Warn of differences between workers.

    Raises
    ------
    RunError
        where they cannot predict, or not alike.
    """
    versions = current_versions()
    messages: list[Message] = []
    first_address, first = next(iter(facts.items()))
    for address, fact in facts.items():
        if fact.missing:
            raise RunError(
                f"worker {address}: does not see {fact.missing[0]}; image, models and "
                "output must lie on a file system that is shared with all workers, "
                "under the same path."
            )
        version = fact.versions.get("napari-strata")
        if version != versions["napari-strata"]:
            raise RunError(
                f"worker {address}: found napari-strata {version}, and here is "
                f"{versions['napari-strata']}; install the same."
            )
        if (fact.device, fact.precision) != (first.device, first.precision):
            raise RunError(
                f"worker {first_address} computes on {first.device} in "
                f"{first.precision}, worker {address} on {fact.device} in "
                f"{fact.precision}, which gives different labels; use workers of one "
                "kind, or --device cpu."
            )
        if fact.versions["torch"] != versions["torch"] and not messages:
            text = (
                f"worker {address}: found torch {fact.versions['torch']}, and here is "
                f"{versions['torch']}; single pixels may get different labels."
            )
            messages.append(Message(text, "warning"))
    return messages


# The functions below run on the workers.


def inspect_worker(request: PredictionRequest, token: str) -> WorkerFacts:
    """Report the paths that this worker does not see, and what it computes with.

    Parameters
    ----------
    token
        A file that was just made in the folder of the output.
    """
    names = {path: path for path in (request.image, *request.models)}
    names[token] = str(Path(request.out).parent)
    missing = tuple(name for path, name in names.items() if not _exists(path))
    device = choose_device(request.options.device)
    precision_name = check_backend(
        request.options.backend, device, request.options.precision
    )
    precision = choose_precision(precision_name, device)
    return WorkerFacts(
        missing, current_versions(), device.type, precision.name, cores()
    )


def _exists(path: str) -> bool:
    """True when the path exists. A shared folder may show a new file a little later."""
    if any(wildcard in path for wildcard in "*?["):
        return True
    for _ in range(10):
        if os.path.exists(path):
            return True
        sleep(0.1)
    return False


def plan_on_worker(request: PredictionRequest) -> WorkerPlan | Refusal:
    """Plan a prediction as this worker would do it."""
    with _ONE_TASK:
        try:
            task = _open_task(request)
            estimated = estimate(
                task.predictor,
                task.input.model_image,
                task.input.output_spec(request.options),
                out=Path(request.out),
                in_memory=False,
            )
            check_memory(estimated, task.predictor)
            device = describe_device(task.predictor.device)
            return WorkerPlan(task.identity, task.chunks, device)
        except StrataError as error:
            return Refusal(str(error))


def predict_shard(
    shard: Shard, *, request: PredictionRequest
) -> FinishedShard | Refusal:
    """Predict a shard into the folder of the output; its finished planes are kept."""
    started = perf_counter()
    with _ONE_TASK:
        try:
            task = _open_task(request)
            chunks = shard.share(task.chunks)
            planes = planes_of(chunks)
            role = WriterRole(
                shard, planes, shared=True, wait=WORKER_WAIT, trust_ledgers=True
            )
            spec = task.input.output_spec(request.options)
            with (
                kept_pages(task.predictor.device.type),
                closing(
                    ResumableOutput(Path(request.out), spec, task.identity, role)
                ) as output,
            ):
                invalid = _run_to_end(predict_chunks(task, chunks, output))
                output.sync()
                pixels = {plane: output.pixels[plane] for plane in planes}
        except StrataError as error:
            return Refusal(str(error))
    return FinishedShard(pixels, perf_counter() - started, invalid)


def _run_to_end(
    events: Generator[RegionEnd, None, list[InvalidPixels]],
) -> list[InvalidPixels]:
    """Run a generator to its end and give what it returns."""
    while True:
        try:
            next(events)
        except StopIteration as end:
            invalid: list[InvalidPixels] = end.value
            return invalid


@lru_cache(maxsize=1)
def _open_task(request: PredictionRequest) -> PredictionTask:
    """Open image and predictors, once for all shards."""
    torch.set_num_threads(request.threads)
    inputs = PredictionInput(
        _open_image(request), _load_models(request.models, request.digest)
    )
    if inputs.models.digest != request.digest:
        raise _files_differ(" ".join(request.models))
    if inputs.fingerprint != request.fingerprint:
        raise _files_differ(request.image)
    options = request.options.updated(device=_own_device(request.options.device))
    predictor = _build_predictor(request.models, request.digest, options)
    for _ in compile_networks(predictor, inputs.model_image, options):
        pass
    return PredictionTask(inputs, predictor, options)


def _files_differ(name: str) -> RunError:
    return RunError(
        f"{name}: has different content on the worker; needed is the same file on a "
        "shared file system."
    )


@lru_cache(maxsize=1)
def _load_models(models: tuple[str, ...], digest: str) -> Ensemble:
    """Load models, also for the next image, unless their digest is another by then."""
    return load_models([*models])


@lru_cache(maxsize=1)
def _build_predictor(
    models: tuple[str, ...], digest: str, options: PredictOptions
) -> EnsemblePredictor:
    """Build the predictors on their device, also for the next image."""
    return build_ensemble_predictor(_load_models(models, digest), options)


def _open_image(request: PredictionRequest) -> Image:
    image = None
    # The file may not name its axes.
    with suppress(ImageError):
        image = read_image(request.image)
    if image is None or image.axes != request.axes:
        image = read_image(request.image, axes=request.axes)
    return replace(image, scale=request.scale, units=request.units, name=request.name)


def _own_device(name: str) -> str:
    """Device of this worker: of several GPUs, the one with the worker's own number."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    number = _worker_name()
    if name in ("auto", "cuda") and count > 1 and isinstance(number, int):
        return f"cuda:{number % count}"
    return name


def _worker_name() -> Any:
    """Name of this worker: a number in a cluster of this machine, else a text."""
    from distributed import get_worker

    return get_worker().name
