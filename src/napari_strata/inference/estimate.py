"""What a prediction will take, before it starts: time, memory, room on the disk; and a refusal where it cannot fit."""

from __future__ import annotations

import math
import shutil
import weakref
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from napari_strata.core.errors import RunError
from napari_strata.core.image import Image
from napari_strata.inference.ensemble_predictor import Committee
from napari_strata.inference.output import Form, disk_needed, size
from napari_strata.models.device import describe_device, free_memory
from napari_strata.models.network_predictor import Predictor
from napari_strata.networks.blocks import without_weights


@dataclass(frozen=True)
class Estimate:
    """What a prediction takes on one device.

    Parameters
    ----------
    device
        in words.
    planes, shape
        how many, and rows and columns of each.
    forwarded
        pixels that go through the network for each pixel of the image, all networks, flips and turns together.
    seconds
        measured on one tile; None when it was not.
    memory
        bytes that the device needs beyond the networks, which it holds already: for one tile, and on a CPU for the
        slab (a plane, or several), the next one and what becomes of them. The libraries come on top.
    free_memory
        bytes that are free there now; None where that cannot be known.
    disk, free_disk
        bytes that are written at most, and that are free; 0 and None when nothing is written.
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
        """For people: ``CPU, 2 cores: about 12 s; 820 MB of memory (12 GB free); 9 MB on disk (48 GB free)``."""
        parts = [] if self.seconds is None else [f"about {_duration(self.seconds)}"]
        parts.append(f"{size(self.memory)} of memory" + _free(self.free_memory))
        if self.disk:
            parts.append(f"up to {size(self.disk)} on disk" + _free(self.free_disk))
        return f"{self.device}: {'; '.join(parts)}"


def estimate(
    committee: Committee,
    image: Image,
    form: Form,
    *,
    out: Path | None,
    in_memory: bool,
    measure: bool = False,
) -> Estimate:
    """What predicting all planes of `image` takes.

    Parameters
    ----------
    committee
        the networks, on their device.
    form
        what is to be written.
    out
        file that it becomes; None when that is not for the prediction to write.
    in_memory
        whether the planes are kept in arrays, not in a file.
    measure
        send one tile through, twice, to know how long it takes.
    """
    turns = len(committee.turns)
    slabs = committee.slabs(image)
    pictures = Counter[tuple[int, ...]]()
    for slab in slabs:
        for shape, times in committee.pictures(slab, image):
            pictures[shape] += times * turns
    seconds, forwarded, memory = 0.0, 0.0, 0
    for member in committee.members:
        tiles = Counter[tuple[int, ...]]()
        for shape, times in pictures.items():
            for tile in member.tile_shapes(shape):
                tiles[tile] += times
        largest = max(tiles, key=math.prod)
        pixels = sum(math.prod(tile) * times for tile, times in tiles.items())
        memory = max(memory, tile_memory(member, largest))
        if measure:
            seconds += _seconds(member, largest) / math.prod(largest) * pixels
        forwarded += pixels / (form.planes * math.prod(form.shape))
    voxels = max(math.prod(slab.shape(image)) for slab in slabs)
    if (
        len(committee.members) * turns > 1 or committee.ortho
    ):  # the mean of their probabilities
        memory += voxels * len(committee.spec.classes) * 4
    if (
        committee.device.type == "cpu"
    ):  # a GPU holds neither the planes nor what becomes of them
        memory += voxels * (image.channels * image.dtype.itemsize * 2 + 2) + (
            form.nbytes if in_memory else 0
        )
    place = (
        None if out is None else next(p for p in out.absolute().parents if p.exists())
    )
    return Estimate(
        describe_device(committee.device),
        form.planes,
        form.shape,
        forwarded,
        seconds if measure else None,
        memory,
        free_memory(committee.device),
        0 if out is None else disk_needed(form),
        None if place is None else shutil.disk_usage(place).free,
    )


def check_memory(found: Estimate, committee: Committee) -> None:
    """Raise `RunError` when the device has less memory free than one tile needs, saying what would fit."""
    if found.free_memory is None or found.memory <= found.free_memory:
        return
    member = committee.members[0]
    side = member.spec.tile
    while (
        side > member.spec.stride
        and tile_memory(member, (*member.spec.tile_shape[:-2], side, side))
        > found.free_memory
    ):
        side = (
            side // 2 // member.spec.stride * member.spec.stride or member.spec.stride
        )
    way = (
        f"set tile={side}, "
        if side < member.spec.tile and not member.spec.blend
        else ""
    )
    raise RunError(
        f"found {size(found.free_memory)} of memory free on {found.device}; needed are about {size(found.memory)} for "
        f"planes of {found.shape[0]} x {found.shape[1]} in tiles of {member.spec.tile}; {way}close other programs or "
        "predict on another device."
    )


def tile_memory(member: Predictor, shape: tuple[int, ...]) -> int:
    """Bytes at most alive while the network answers one tile, its float32 input and answer among them.

    The forward pass runs on torch's meta device: nothing is computed and nothing allocated. The working memory of
    single operations comes on top.
    """
    half = member.precision.dtype is not None
    key = (*shape, half)
    if key not in (known := _KNOWN.setdefault(member.network, {})):
        known[key] = _alive(member, shape) // (2 if half else 1)
    return known[key] + 4 * (
        member.spec.in_channels + len(member.spec.classes)
    ) * math.prod(shape)


def _alive(member: Predictor, shape: tuple[int, ...]) -> int:
    """Bytes of float32 tensors at most alive in the network; 0 where it cannot be run on the meta device."""
    network = without_weights(
        getattr(member.network, "_orig_mod", member.network)
    )  # not torch.compile's
    try:
        with torch.inference_mode(), _Alive() as alive:
            network(torch.empty((1, member.spec.in_channels, *shape), device="meta"))
    except (RuntimeError, NotImplementedError):  # an operation that looks at values
        return 0
    return int(alive.peak)


_KNOWN: weakref.WeakKeyDictionary[nn.Module, dict[tuple[int, ...], int]] = (
    weakref.WeakKeyDictionary()
)


class _Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all tensors that are alive at a time."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._seen: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()
        self._now = self.peak = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        answer = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(answer):
            if (
                isinstance(tensor, Tensor)
                and (storage := tensor.untyped_storage()) not in self._seen
            ):
                self._seen.add(storage)
                self._now += storage.nbytes()
                weakref.finalize(storage, self._gone, storage.nbytes())
        self.peak = max(self.peak, self._now)
        return answer

    def _gone(self, count: int) -> None:
        self._now -= count


def _seconds(member: Predictor, shape: tuple[int, ...]) -> float:
    """Of one tile, the second time it is asked for."""
    batch = np.zeros((1, member.spec.in_channels, *shape), np.float32)
    for _ in range(2):
        begun = perf_counter()
        member.answer(batch)
        seconds = perf_counter() - begun
    return seconds


def _free(count: int | None) -> str:
    return "" if count is None else f" ({size(count)} free)"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
