"""Team: the processes that train one network together, as ``torchrun`` starts them. Of one process it is a formality.

Each rank computes its share of every batch; loss, gradients, normalisation statistics and so all weights are those of
one process with the whole batch, up to the rounding of sums. For that the logits of all are gathered, and each rank
takes the loss of the whole batch: exact for every loss, Dice and Lovasz too, for K floats a pixel, which is less than
the gradients of a common network need. Augmentation is drawn and done for the whole batch on every rank. Dropout alone
draws other numbers. Validation images are shared out, and their counts added up.
"""

from __future__ import annotations

import gc
import io
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from napari_strata.core.errors import TrainingError
from napari_strata.models.device import choose_device, cores
from napari_strata.training.membership import (
    Dismissed,
    Membership,
    distributed,
    held,
    is_several,
    next_meeting,
    within,
)
from napari_strata.training.syncnorm import SharedStatistics

T = TypeVar("T")

LONG = timedelta(days=7)
"""Limit of a single collective. The others wait while the first rank writes; who is gone is for `Watch` to see."""


class Team:
    """One process alone."""

    rank, size = 0, 1
    leads = True
    """Whether this is the rank that writes, yields events and is stopped."""

    def choose_device(self, name: str) -> torch.device:
        """The device called `name` for this process; see `device.choose_device`."""
        return choose_device(name)

    def check_batch(self, smallest: int, *, size: int) -> None:
        """Raise `TrainingError` when not every rank gets a patch of the smallest batch of an epoch; the recipe's has
        `size`."""

    def agree(self, facts: str) -> None:
        """Wait until all have planned. Raises `TrainingError` when one cannot, or plans by other `facts`."""

    def together(self) -> AbstractContextManager[None]:
        """A section, which all ranks go through at a time and no signal interrupts."""
        return nullcontext()

    def hand_out(self, state: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
        """Tensors and plain data of the first rank, for the others; on the CPU."""
        return {}

    def forward(self, network: nn.Module, images: Tensor) -> Tensor:
        """Logits (N, K, ...) of the whole batch of `images` (N, C, ...), the same on all ranks; in a section."""
        logits: Tensor = network(images)
        return logits

    def follow(self, events: Iterable[object]) -> None:
        """Do the work behind `events` without a word, on another rank than the first, and wait for that one's end."""

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Those that this rank is to do, the first of all among them on the first rank."""
        return items

    def collect(self, value: T) -> list[T]:
        """The plain data of each rank."""
        return [value]

    def completed(self, epoch: int) -> None:
        """The last epoch that is on disk, for what there is to say when a rank is lost."""

    def describe(self, device: str) -> str:
        """What computes, in words."""
        return device


def join() -> AbstractContextManager[Team]:
    """The team of this process, inside the block.

    On other ranks than the first the block ends quietly when the first one leaves it; in `SystemExit` where that was by
    a stop or an error, of which the first one tells.

    Raises
    ------
    TrainingError
        when not all processes come, and from the block when one fails or is gone.
    """
    return Ranks() if is_several() else nullcontext(Team())


class Ranks(Team, AbstractContextManager[Team]):
    """One of several processes."""

    def __init__(self) -> None:
        self.rank, self.size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self.leads = self.rank == 0
        self._here = int(os.environ.get("LOCAL_WORLD_SIZE", self.size))
        self._place = within(f"team/{next_meeting()}")
        self._member = Membership(self._place, rank=self.rank, size=self.size)
        self._threads = torch.get_num_threads()
        self._parallel: tuple[list[int], nn.Module] | None = None

    def __enter__(self) -> Ranks:
        if distributed.is_initialized():
            raise TrainingError(
                "torch.distributed is set up already in this process; leave that to napari-strata."
            )
        gpus = torch.cuda.is_available() and distributed.is_nccl_available()
        backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
        try:
            self._member.come()
            store = distributed.PrefixStore("group", self._place)
            distributed.init_process_group(
                backend, store=store, rank=self.rank, world_size=self.size, timeout=LONG
            )
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        with held(drop=True):
            raised = self._member.leave(error)
            self._parallel = None
            gc.collect()  # what torch wraps a network in refers to itself
            with suppress(Exception):
                distributed.destroy_process_group()
        self._member.rest()
        torch.set_num_threads(self._threads)
        if raised is not None and raised is not error:
            raise raised from (error if isinstance(raised, TrainingError) else None)
        return isinstance(error, Dismissed)

    def choose_device(self, name: str) -> torch.device:
        local = int(os.environ.get("LOCAL_RANK", self.rank))
        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if name == "auto":
            name = "cuda" if gpus else "cpu"
        if name.startswith("cuda") and gpus and (name != "cuda" or gpus < self._here):
            raise TrainingError(
                f"found {self._here} processes for {'the one GPU ' + name if name != 'cuda' else f'{gpus} GPUs'}; each "
                f"needs a GPU of its own: start as many as there are GPUs (--nproc-per-node {gpus}) with --device auto."
            )
        device = choose_device(f"cuda:{local}" if name == "cuda" and gpus else name)
        if device.type not in ("cpu", "cuda"):
            raise TrainingError(
                f"found device {name!r} for {self.size} processes, which it cannot serve; start one."
            )
        if device.type == "cuda":
            torch.cuda.set_device(device)
        elif (
            os.environ.get("OMP_NUM_THREADS", "1") == "1"
        ):  # torchrun's way of saying nothing
            torch.set_num_threads(max(1, cores() // self._here))
        return device

    def check_batch(self, smallest: int, *, size: int) -> None:
        if smallest < self.size:
            more = (
                f"training.batch_size={self.size}"
                if size < self.size
                else f"patches.per_epoch={2 * size}"
            )
            raise TrainingError(
                f"found batches of {smallest} for {self.size} processes; each needs a patch of its own: set {more} or "
                "more, or start fewer processes."
            )

    def agree(self, facts: str) -> None:
        self._member.agree(facts)

    def together(self) -> AbstractContextManager[None]:
        return self._member.section()

    def hand_out(self, state: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
        buffer = io.BytesIO()
        if self.leads:
            torch.save(dict(state()), buffer)
        with self.together():
            given = [buffer.getvalue()]
            distributed.broadcast_object_list(given)
        found: dict[str, Any] = torch.load(
            io.BytesIO(given[0]), map_location="cpu", weights_only=True
        )
        return found

    def forward(self, network: nn.Module, images: Tensor) -> Tensor:
        if (
            self.rank
        ):  # rank 0 draws as one process would; the others must not draw the same
            torch.manual_seed(torch.initial_seed() + self.rank)
        counts = [
            len(images) // self.size + (rank < len(images) % self.size)
            for rank in range(self.size)
        ]
        part = torch.split(images, counts)[self.rank]
        with SharedStatistics(
            network, self._stacked, group=distributed.group.WORLD, size=self.size
        ):
            logits = self._wrapped(network)(part)
        whole: Tensor = _Gathered.apply(logits, counts, self.rank, self._stacked)
        return whole

    def follow(self, events: Iterable[object]) -> None:
        for _ in events:
            pass
        with self.together():  # what the first rank says next is that it is done
            pass

    def share(self, items: Sequence[T]) -> Sequence[T]:
        return items[self.rank :: self.size]

    def collect(self, value: T) -> list[T]:
        found: list[Any] = [None] * self.size
        with self.together():
            distributed.all_gather_object(found, value)
        return found

    def completed(self, epoch: int) -> None:
        self._member.epoch = epoch

    def describe(self, device: str) -> str:
        return f"{self.size} processes, each on {device}"

    def _wrapped(self, network: nn.Module) -> nn.Module:
        """What adds up gradients while they are computed, made anew when the encoder is frozen or let go."""
        from torch.nn.parallel import DistributedDataParallel

        learning = [
            id(network),
            *(id(p) for p in network.parameters() if p.requires_grad),
        ]
        if self._parallel is None or self._parallel[0] != learning:
            self._parallel = None
            gc.collect()  # its hooks go with it
            self._parallel = learning, DistributedDataParallel(network)
        return self._parallel[1]

    def _stacked(self, values: Tensor) -> Tensor:
        """A tensor of each rank, of one shape on all, as (ranks, *shape)."""
        found = [torch.empty_like(values) for _ in range(self.size)]
        distributed.all_gather(found, values)
        return torch.stack(found)


class _Gathered(torch.autograd.Function):
    """Logits of all ranks, one after another. Each rank takes the loss of all of them and so has their gradient, of
    which its own part goes on, times the number of ranks: those add up gradients and divide them by it."""

    @staticmethod
    def forward(
        ctx: Any,
        ours: Tensor,
        counts: Sequence[int],
        rank: int,
        stacked: Callable[[Tensor], Tensor],
    ) -> Tensor:
        ctx.counts, ctx.rank = counts, rank
        sent = ours.new_zeros(max(counts), *ours.shape[2:], ours.shape[1])
        sent[: len(ours)] = ours.movedim(1, -1)
        parts = [
            part[:number] for part, number in zip(stacked(sent), counts, strict=True)
        ]
        return torch.cat(parts).movedim(-1, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return (
            torch.split(gradients[0], ctx.counts)[ctx.rank] * len(ctx.counts),
            None,
            None,
            None,
        )
