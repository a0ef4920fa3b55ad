"""Training in several processes: torchrun, DistributedDataParallel, SyncBatchNorm.

Each process (rank) computes its share of every batch. The logits of all ranks are then
gathered, and each rank computes the loss of the whole batch. Therefore all losses,
including Dice and Lovasz, and all weights equal those of one process with the whole
batch, except for rounding. Augmentation is drawn for the whole batch on every rank;
only dropout differs. Validation images are distributed and their counts are added.

All ranks stop together: a signal is kept until `ProcessGroup.check_stop`, where the
ranks exchange whether one of them is to stop. If a rank is killed, the others end with
an error, immediately with gloo and after at most `TIMEOUT` with NCCL.
"""

from __future__ import annotations

import gc
import io
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cache
from itertools import count
from types import FrameType, MethodType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as _distributed
from torch.nn.modules.batchnorm import _BatchNorm

from napari_strata.core.errors import StrataError, TrainingError
from napari_strata.models.device import choose_device, cores

distributed: Any = _distributed  # much of it has no types

T = TypeVar("T")

TIMEOUT = timedelta(minutes=30)
"""Longest wait for another rank, for example while the main process writes files."""

REPORT_TIMEOUT = timedelta(seconds=3)
"""Longest wait for the main process before rank 1 reports an error instead."""


def is_distributed() -> bool:
    """Return True if torchrun started this process as one of several."""
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    size = os.environ.get("WORLD_SIZE", "")
    described = all(os.environ.get(name) for name in names)
    return described and size.isdigit() and int(size) > 1


@contextmanager
def process_group(name: str = "") -> Iterator[ProcessGroup]:
    """Join the process group of torchrun, or a group of one process without torchrun.

    Inside another `process_group` the block uses that group.

    Parameters
    ----------
    name
        Name of the group, equal on all ranks and unique. By default, groups are
        numbered.

    Raises
    ------
    TrainingError
        When not all processes join in time.
    SystemExit
        On all ranks but the main one, after an error or a stop. The main process
        reports it.
    """
    global _current
    if _current is not None or not is_distributed():
        yield _current or ProcessGroup()
        return
    group = ProcessGroup.join(name or f"training {next(_group_numbers)}")
    _current = group
    try:
        yield group
    except BaseException as error:
        failure = group.explain(error) or error
        if group.report(failure):
            if failure is error:
                raise
            raise failure from error
        stopped = isinstance(error, (KeyboardInterrupt, GeneratorExit))
        raise SystemExit(130 if stopped else 2) from error
    finally:
        _current = None
        with suppress(KeyboardInterrupt):
            group.close()


_current: ProcessGroup | None = None
_group_numbers = count(1)


class ProcessGroup:
    """Processes that train a network together; by default a single process."""

    def __init__(self, rank: int = 0, size: int = 1, store: Any = None) -> None:
        self.rank = rank
        self.size = size
        self.epoch = 0
        """Last epoch on disk, for error messages."""
        self._store = store
        self._parallel: nn.Module | None = None
        self._trained_parameters: list[int] = []
        self._threads = torch.get_num_threads()
        self._handlers: dict[int, Any] = {}
        self._pending: list[int] = []

    @classmethod
    def join(cls, name: str) -> ProcessGroup:
        """Wait for the other ranks. From then on, keep signals until `check_stop`."""
        if distributed.is_initialized():
            raise TrainingError(
                "torch.distributed is already initialised in this process; leave this "
                "to napari-strata."
            )
        rank = int(os.environ["RANK"])
        size = int(os.environ["WORLD_SIZE"])
        has_nccl = torch.cuda.is_available() and distributed.is_nccl_available()
        try:
            store = distributed.PrefixStore(name, _store())
            distributed.init_process_group(
                "cpu:gloo,cuda:nccl" if has_nccl else "gloo",
                store=store,
                rank=rank,
                world_size=size,
                timeout=TIMEOUT,
            )
        except RuntimeError as error:
            raise TrainingError(
                f"not all {size} processes joined within {_minutes(TIMEOUT)} "
                f"({_first_line(error)}); start {size} processes that can connect to "
                "each other, for example by torchrun."
            ) from error
        group = cls(rank, size, store)
        group._keep_signals()
        return group

    @property
    def is_main(self) -> bool:
        """True on the rank that writes files, yields events and reports errors."""
        return self.rank == 0

    def choose_device(self, name: str) -> torch.device:
        """Return the device of this process; see `device.choose_device`."""
        if self.size == 1:
            return choose_device(name)
        local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", self.size))
        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if name == "auto":
            name = "cuda" if gpus else "cpu"
        if name.startswith("cuda") and gpus and (name != "cuda" or gpus < local_ranks):
            available = f"{gpus} GPUs" if name == "cuda" else f"the one GPU {name}"
            raise TrainingError(
                f"found {local_ranks} processes for {available}; each needs its own"
                f" GPU: start as many as there are GPUs (--nproc-per-node {gpus})"
                " with --device auto."
            )
        if name == "cuda" and gpus:
            name = f"cuda:{os.environ.get('LOCAL_RANK', self.rank)}"
        device = choose_device(name)
        if device.type not in ("cpu", "cuda"):
            raise TrainingError(
                f"found device {name!r} for {self.size} processes; it supports only "
                "one: start one."
            )
        if device.type == "cuda":
            torch.cuda.set_device(device)
        elif os.environ.get("OMP_NUM_THREADS", "1") == "1":  # torchrun's default
            torch.set_num_threads(max(1, cores() // local_ranks))
        return device

    def check_batches(self, smallest: int, *, batch_size: int) -> None:
        """Raise `TrainingError` if the smallest batch has fewer patches than ranks."""
        if smallest >= self.size:
            return
        remedy = f"patches.per_epoch={2 * batch_size}"
        if batch_size < self.size:
            remedy = f"training.batch_size={self.size}"
        raise TrainingError(
            f"found batches of {smallest} for {self.size} processes; each needs at "
            f"least one patch: set {remedy} or more, or start fewer processes."
        )

    def check_same(self, facts: str) -> None:
        """Raise `TrainingError` if `facts` differ between ranks."""
        for rank, value in enumerate(self.gather(facts)):
            if value != facts:
                raise TrainingError(
                    f"rank {rank} of {self.size} found other data, or another recipe, "
                    f"than rank {self.rank}; needed are the same files for all: give "
                    "a path that all machines can read."
                )

    def broadcast(self, state: Mapping[str, Any] | None) -> dict[str, Any]:
        """Send tensors and plain data from the main process to all ranks."""
        buffer = io.BytesIO()
        if self.is_main:
            torch.save(state, buffer)
        messages = [buffer.getvalue()]
        if self.size > 1:
            distributed.broadcast_object_list(messages)
        received: dict[str, Any] = torch.load(
            io.BytesIO(messages[0]), map_location="cpu", weights_only=True
        )
        return received

    def gather(self, value: T) -> list[T]:
        """Collect plain data from all ranks, in their order."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        distributed.all_gather_object(values, value)
        return values

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Return the items that this rank processes."""
        return items[self.rank :: self.size]

    def split(self, batch: Tensor) -> Tensor:
        """Return this rank's patches of a batch, or all if there are too few."""
        if len(batch) < self.size:
            return batch
        return batch.tensor_split(self.size)[self.rank]

    def forward(self, network: nn.Module, batch: Tensor) -> Tensor:
        """Compute the logits (N, K, ...) of a batch (N, C, ...) on all ranks.

        The gradients of all ranks are added during the backward pass.
        """
        if self.size == 1:
            logits: Tensor = network(batch)
            return logits
        if not self.is_main:  # rank 0 has the random numbers of a single process
            torch.manual_seed(torch.initial_seed() + self.rank)
        own = self._wrap(network)(self.split(batch))
        # DistributedDataParallel divides the sum of all gradients by the size.
        own.register_hook(lambda gradient: gradient * self.size)
        longest = -(-len(batch) // self.size)
        padded = own.new_zeros(longest, *own.shape[1:])
        padded[: len(own)] = own.detach()
        shares = [torch.empty_like(padded) for _ in range(self.size)]
        distributed.all_gather(shares, padded)
        lengths = [len(part) for part in batch.tensor_split(self.size)]
        parts = [share[:length] for share, length in zip(shares, lengths, strict=True)]
        parts[self.rank] = own
        return torch.cat(parts)

    def check_stop(self) -> None:
        """Stop all ranks if one of them is to stop.

        All ranks call this before each collective operation that follows a `yield`.

        Raises
        ------
        KeyboardInterrupt
            When a rank received SIGINT or SIGTERM, or called `announce_stop`.
        """
        if self.size == 1:
            return
        stop: KeyboardInterrupt | None = None
        try:
            self._deliver_signals()
        except KeyboardInterrupt as error:
            stop = error
        if self._is_true_on_any_rank(stop is not None):
            raise stop or KeyboardInterrupt

    def announce_stop(self) -> None:
        """Stop the other ranks at their next `check_stop`."""
        if self.size > 1:
            with suppress(RuntimeError):
                self._is_true_on_any_rank(True)

    def report(self, error: BaseException) -> bool:
        """Inform the other ranks that this one ends because of `error`.

        Returns
        -------
        bool
            True if this rank shows the error to the user. This is the main process, or
            rank 1 if the main process has ended. Unexpected errors are always shown.
        """
        is_lost = isinstance(error, LostRankError)
        is_stop = isinstance(error, (KeyboardInterrupt, GeneratorExit))
        with suppress(RuntimeError):
            if not is_lost and not is_stop:
                self._store.set("error", f"{self.rank} {_one_line(error)}")
            self._store.set(f"left/{self.rank}", "")
        if self.is_main:
            return True
        if is_lost and self.rank == 1:
            try:
                self._store.wait(["left/0"], REPORT_TIMEOUT)
            except RuntimeError:
                return True
        return not is_stop and not isinstance(error, StrataError)

    def explain(self, error: BaseException) -> TrainingError | None:
        """Return an error about another rank if that rank caused `error`."""
        if self.size == 1 or not isinstance(error, RuntimeError):
            return None
        with suppress(RuntimeError):
            if self._store.check(["error"]):
                rank, _, text = self._store.get("error").decode().partition(" ")
                return LostRankError(f"rank {rank} of {self.size}: {text}")
        if not _is_connection_error(error):
            return None
        checkpoint = "no epoch was complete yet"
        if self.epoch:
            checkpoint = f"the last checkpoint, epoch {self.epoch}, is kept"
        return LostRankError(
            f"another of the {self.size} processes has ended (killed, or out of "
            f"memory, or its machine is off); {checkpoint}: repeat the command with "
            "--resume."
        )

    def close(self) -> None:
        """Leave the group; afterwards this process works alone."""
        if self.size == 1:
            return
        self.size = 1
        self._parallel = None
        gc.collect()  # DistributedDataParallel refers to itself
        with suppress(RuntimeError):
            distributed.destroy_process_group()
        torch.set_num_threads(self._threads)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._deliver_signals()

    def describe(self, device: str) -> str:
        """Describe the device and the number of processes."""
        if self.size == 1:
            return device
        return f"{self.size} processes, each on {device}"

    def synchronize(self, network: nn.Module, device: torch.device) -> nn.Module:
        """Make batch normalisation use the patches of all ranks."""
        if self.size == 1:
            return network
        if device.type == "cuda":
            # timm also converts its layers of normalisation and activation.
            from timm.layers import convert_sync_batchnorm

            converted: nn.Module = convert_sync_batchnorm(network)
            return converted
        for layer in network.modules():
            if isinstance(layer, _BatchNorm):
                layer.forward = MethodType(_batch_norm, layer)  # type: ignore[method-assign]
        return network

    def _wrap(self, network: nn.Module) -> nn.Module:
        """Wrap the network, again if other parameters are trained (frozen encoder)."""
        from torch.nn.parallel import DistributedDataParallel

        trained = [id(p) for p in network.parameters() if p.requires_grad]
        if self._parallel is None or trained != self._trained_parameters:
            self._parallel = None
            gc.collect()  # removes the hooks of the previous wrapper
            self._parallel = DistributedDataParallel(network)
            self._trained_parameters = trained
        return self._parallel

    def _is_true_on_any_rank(self, value: bool) -> bool:
        flag = torch.tensor(int(value))
        distributed.all_reduce(flag, op=distributed.ReduceOp.MAX)
        return bool(flag)

    def _keep_signals(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return

        def keep(number: int, _frame: FrameType | None) -> None:
            self._pending.append(number)

        for number in (signal.SIGINT, signal.SIGTERM):
            self._handlers[number] = signal.signal(number, keep)

    def _deliver_signals(self) -> None:
        """Call the handlers of the received signals, which may raise."""
        numbers = list(self._pending)
        self._pending.clear()
        for number in numbers:
            handler = self._handlers[number]
            if callable(handler):
                handler(number, None)
            elif handler is not signal.SIG_IGN:
                raise KeyboardInterrupt


class LostRankError(TrainingError):
    """Another rank has ended or failed."""


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        distributed.all_reduce(total)
        return total


def _batch_norm(layer: Any, features: Tensor) -> Tensor:
    """Normalise with the patches of all ranks on CPUs.

    SyncBatchNorm works on GPUs only.
    """
    if not layer.training or not layer.track_running_stats:
        plain: Tensor = type(layer).forward(layer, features)
        return plain
    axes = [0, *range(2, features.ndim)]
    shape = (1, -1) + (1,) * (features.ndim - 2)
    exact = features.double()
    count = _SumOverRanks.apply(exact.new_tensor(features[:, 0].numel()))
    mean = _SumOverRanks.apply(exact.sum(axes)) / count
    deviation = exact - mean.view(shape)
    variance = _SumOverRanks.apply(deviation.square().sum(axes)) / count
    layer.num_batches_tracked.add_(1)
    momentum = layer.momentum or 1 / layer.num_batches_tracked.item()
    with torch.no_grad():
        unbiased = variance * count / (count - 1)
        layer.running_mean.lerp_(mean.to(layer.running_mean), momentum)
        layer.running_var.lerp_(unbiased.to(layer.running_var), momentum)
    normal = deviation * (variance + layer.eps).rsqrt().view(shape)
    if layer.affine:
        normal = normal * layer.weight.view(shape) + layer.bias.view(shape)
    output: Tensor = normal.to(features.dtype)
    for name in ("drop", "act"):  # of timm's layers
        if hasattr(layer, name):
            output = getattr(layer, name)(output)
    return output


@cache
def _store() -> Any:
    """Open the store of torchrun, or of rank 0 without torchrun."""
    store, _, _ = next(distributed.rendezvous("env://", timeout=TIMEOUT))
    return store


def named_store(name: str) -> Any:
    """Return a store with this name that all ranks share."""
    return distributed.PrefixStore(name, _store())


def _is_connection_error(error: RuntimeError) -> bool:
    if isinstance(error, distributed.DistError):
        return True
    text = str(error).lower()
    return "gloo" in text or "nccl" in text


def _minutes(time: timedelta) -> str:
    return f"{time.total_seconds() / 60:.0f} minutes"


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _one_line(error: BaseException) -> str:
    if isinstance(error, StrataError):
        return " ".join(str(error).split())
    return f"unexpected {type(error).__name__}: {' '.join(str(error).split())}"
