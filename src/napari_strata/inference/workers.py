"""Workers: those of a cluster, for one prediction: asked whether they can do it, and the regions that they do.

A region is a run of neighbouring slabs and a task: a worker predicts it into the folder that all of them fill
(`partial`) and answers with its numbers of pixels. A region whose worker is lost goes to another, which takes up the
planes that are there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse
from uuid import uuid4

import numpy as np
import torch

from napari_strata.core import files
from napari_strata.core.errors import RunError, StrataError
from napari_strata.core.events import Event, Message, RegionEnd
from napari_strata.core.image import Image
from napari_strata.inference.ledger import PartialOutput
from napari_strata.inference.output import Form, Identity
from napari_strata.inference.region import (
    Done,
    Facts,
    Order,
    Plan,
    Refusal,
    look,
    plan,
    predict_region,
)
from napari_strata.inference.scheduler import Cluster
from napari_strata.inference.shards import Part
from napari_strata.inference.task import Places, planes_of
from napari_strata.models.model import current_versions

if TYPE_CHECKING:
    from distributed import Future

PIXELS = {"cpu": 2**22, "cuda": 2**26, "mps": 2**24}
"""About how many pixels a region has, by the kind of device: some seconds of work on a CPU (of a GPU it is a guess)."""

EACH = 4
"""Regions for each worker at least, so that none stands idle long while the last are done."""

DESERTED = 60.0
"""Seconds without any worker after which a prediction is given up."""

RETRIES = 2
"""Of a region whose task fails by a fault; how often workers may die of one, the scheduler says (allowed-failures)."""


class Workers:
    """Workers that have been asked and found fit for an order.

    Parameters
    ----------
    cluster
        whose workers they are.
    order
        what they are to do.

    Raises
    ------
    RunError
        when one does not see a path, has another version of this package, or computes otherwise than the others.
    """

    def __init__(self, cluster: Cluster, order: Order) -> None:
        with _token(Path(order.out)) as token:
            answers: dict[str, Any] = cluster.client.run(
                look, order, str(token), on_error="return"
            )
        facts = {
            address: _answered(address, answer) for address, answer in answers.items()
        }
        if not facts:
            raise RunError(
                f"{cluster.address}: the workers are gone; start some and run the same again."
            )
        self.messages = _compare(facts)
        self.cluster = cluster
        self.order = replace(
            order, threads=torch.get_num_threads() if cluster.local else _threads(facts)
        )
        self._kind = next(iter(facts.values())).device
        self._resources = cluster.resources()
        future = cluster.client.submit(
            plan, self.order, pure=False, resources=self._resources
        )
        self.messages += [
            found for found in self._finished([future]) if isinstance(found, Message)
        ]
        self._plan: Plan = _granted(self._result(future, self.order.image))

    @property
    def identity(self) -> Identity:
        return self._plan.identity

    @property
    def device(self) -> str:
        """In words: ``2 workers, 1 thread each, CPU, 2 cores``."""
        count, threads = len(self.cluster.workers()), self.order.threads
        each = (
            f", {threads} thread{'' if threads == 1 else 's'} each"
            if self._kind == "cpu"
            else ""
        )
        return f"{count} worker{'' if count == 1 else 's'}{each}, {self._plan.device}"

    def predict(
        self, output: PartialOutput, image: Image
    ) -> Generator[Event, None, Places]:
        """Predict what `output` lacks of `image`; returns where there is NaN or infinity in it."""
        client, slabs, form = self.cluster.client, self._plan.slabs, output.form
        regions, planes = self._regions(form), list(image.planes())
        lacking = [
            part
            for part in regions
            if not output.pixels.keys() >= set(planes_of(part.share(slabs)))
        ]
        futures = client.map(
            predict_region,
            lacking,
            order=self.order,
            pure=False,
            retries=RETRIES,
            resources=self._resources,
        )
        of = dict(zip((future.key for future in futures), lacking, strict=True))
        bad: dict[int, Any] = {}
        try:
            for future in self._finished(futures):
                if isinstance(future, Message):
                    yield future
                    continue
                done: Done = _granted(self._result(future, f"region {of[future.key]}"))
                new = [plane for plane in done.pixels if plane not in output.pixels]
                bad |= {
                    planes.index(dict(where)): (where, at, count)
                    for where, at, count in done.bad
                }
                for plane in new:
                    output.pixels[plane] = done.pixels[plane]
                    yield RegionEnd(
                        planes[plane],
                        len(output.pixels),
                        form.planes,
                        done.seconds / len(new),
                    )
        finally:
            with suppress(Exception):  # a scheduler that is gone has nothing to cancel
                client.cancel(futures)
        return [
            (where, np.broadcast_to(np.array(at), (count, 2)))
            for _, (where, at, count) in sorted(bad.items())
        ]

    def _regions(self, form: Form) -> list[Part]:
        pixels, slabs = form.planes * int(np.prod(form.shape)), len(self._plan.slabs)
        wanted = max(
            -(-pixels // PIXELS.get(self._kind, PIXELS["cpu"])),
            EACH * len(self.cluster.workers()),
        )
        count = min(wanted, slabs)
        return [Part(number, count) for number in range(1, count + 1)]

    def _finished(self, futures: Sequence[Future]) -> Iterator[Future | Message]:
        """Futures as they come to an end; a word when workers are lost, an error when all are for long."""
        from distributed import as_completed

        coming, known = (
            as_completed(futures, loop=self.cluster.client.loop),
            set(self.cluster.workers()),
        )
        last_seen = looked = monotonic()
        while not coming.is_empty():
            batch = coming.next_batch(block=False)
            yield from batch
            if not batch:
                sleep(0.02)
            if monotonic() - looked < 1.0:
                continue
            looked, now = monotonic(), known
            with suppress(
                OSError, TimeoutError
            ):  # without a scheduler, futures come to an end by themselves
                now = set(self.cluster.workers())
            if lost := known - now:
                shown = ", ".join(sorted(lost))
                yield Message(
                    f"lost worker {shown}; what it was doing is done again by another",
                    "warning",
                )
            known = now
            last_seen = looked if now else last_seen
            if looked - last_seen > DESERTED:
                raise RunError(
                    f"{self.cluster.address}: no worker has been there for {DESERTED:.0f} s; start some and run the "
                    "same again, what is finished is kept."
                )

    def _result(self, future: Future, what: str) -> Any:
        from distributed import CancelledError, KilledWorker

        try:
            return future.result()
        except KilledWorker:
            raise RunError(
                f"{what}: the workers that tried died one after another, for want of memory perhaps; give workers "
                "more memory or smaller tiles, and run the same again, what is finished is kept."
            ) from None
        except (CancelledError, OSError, TimeoutError) as error:
            if future.status == "error":  # of the task, tried again in vain
                text = " ".join(str(error).split())[:160]
                raise RunError(
                    f"{what}: a worker met {type(error).__name__}: {text}; run the same again when that is mended, "
                    "what is finished is kept."
                ) from None
            raise RunError(
                f"{self.cluster.address}: lost the scheduler; start it and the same again, what is finished is kept."
            ) from None


@contextmanager
def _token(out: Path) -> Iterator[Path]:
    """A file in the folder of the output, for a while: who sees it sees that folder, and not one of the same name."""
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


def _answered(address: str, answer: Any) -> Facts:
    if isinstance(answer, Facts):
        return answer
    text = " ".join(str(answer).split())[:160]
    kind = "" if isinstance(answer, StrataError) else f"{type(answer).__name__}: "
    cure = (
        ""
        if kind == ""
        else "; needed there is the same version of napari-strata as here"
    )
    raise RunError(f"worker {address}: {kind}{text}{cure}.")


def _threads(facts: Mapping[str, Facts]) -> int:
    """Of torch, for every worker alike: those of one host share its cores."""
    hosts = Counter(urlparse(address).hostname for address in facts)
    return max(
        1,
        min(
            fact.cores // hosts[urlparse(address).hostname]
            for address, fact in facts.items()
        ),
    )


def _compare(facts: Mapping[str, Facts]) -> list[Message]:
    """Messages about workers; raises `RunError` where they cannot do the work, or not alike."""
    mine, messages = current_versions(), list[Message]()
    (first, one), *_ = facts.items()
    for address, fact in facts.items():
        if fact.missing:
            raise RunError(
                f"worker {address}: does not see {fact.missing[0]}; image, models and output must lie on a file system "
                "that is shared with all workers, under the same path."
            )
        found = fact.versions.get("napari-strata")
        if found != mine["napari-strata"]:
            raise RunError(
                f"worker {address}: found napari-strata {found}, and here is {mine['napari-strata']}; install the same."
            )
        if (fact.device, fact.precision) != (one.device, one.precision):
            raise RunError(
                f"worker {first} computes on {one.device} in {one.precision}, worker {address} on {fact.device} in "
                f"{fact.precision}, which gives other labels; use workers of one kind, or --device cpu."
            )
        if fact.versions["torch"] != mine["torch"] and not messages:
            text = f"worker {address}: found torch {fact.versions['torch']}, and here is {mine['torch']}; single pixels "
            messages.append(
                Message(f"{text}may be labelled otherwise than here.", "warning")
            )
    return messages


def _granted(found: Any) -> Any:
    """An answer that is not a refusal."""
    if isinstance(found, Refusal):
        raise RunError(f"a worker refused: {found.text}")
    return found
