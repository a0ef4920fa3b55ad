"""Memory that runs out on a device; the device is a fake, the computation is real."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from napari_strata.core.errors import RunError
from napari_strata.models.device import free_memory, memory_order, synchronize
from napari_strata.models.memory import (
    out_of_memory_as,
    release_cache,
    upload_array,
    with_room,
    zeros_with_room,
)

CPU, GPU, APPLE = (torch.device(name) for name in ("cpu", "cuda:1", "mps"))


def test_where_the_device_has_no_room_zeros_lie_beside_the_processor(monkeypatch):
    asked = []
    real = torch.zeros

    def full(shape, device=None, **words):
        asked.append(device)
        if device is not None:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(shape, **words)

    monkeypatch.setattr(torch, "zeros", full)
    assert zeros_with_room((2, 3), torch.device("meta")).device.type == "cpu"
    assert [str(device) for device in asked] == ["meta", "None"]
    with pytest.raises(torch.OutOfMemoryError):
        zeros_with_room((2, 3), CPU)


def test_what_the_device_has_no_room_for_the_cpu_computes(monkeypatch):
    released = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: released.append(True))
    there: Any = SimpleNamespace(device=GPU, cpu=lambda: torch.ones(2))

    def double(values: Any) -> torch.Tensor:
        if values is there:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return values * 2

    assert with_room(double, there).tolist() == [2, 2]
    assert released

    def fail(values: Any) -> torch.Tensor:
        raise RuntimeError("shapes differ" if values is there else "out of memory")

    for values in (there, torch.ones(2)):  # another error; no other device
        with pytest.raises(RuntimeError):
            with_room(fail, values)


def test_arrays_are_pinned_for_a_gpu_where_the_system_allows_it(monkeypatch):
    pinned = []
    real = torch.empty

    def empty(count: int, *, pin_memory: bool) -> torch.Tensor:
        pinned.append(pin_memory)
        if count > 100:
            raise RuntimeError("CUDA error: OS call failed or operation not supported")
        return real(count)

    monkeypatch.setattr(torch, "empty", empty)
    for shape in ((2, 3, 4), (20, 30)):
        array = upload_array(shape, GPU)
        assert array.shape == shape
        assert array.dtype == np.float32
    assert pinned == [True, True]
    assert upload_array((2, 3), CPU).shape == (2, 3)
    assert len(pinned) == 2


def test_memory_that_torch_keeps_counts_as_free(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5, 100))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 40)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 10)
    assert free_memory(GPU) == 35


def test_each_gpu_gives_back_its_own_memory_and_is_waited_for(monkeypatch):
    calls = []
    for module in (torch.cuda, torch.mps):
        for name in ("empty_cache", "synchronize"):
            call = f"{module.__name__}.{name}"
            monkeypatch.setattr(
                module, name, lambda *_, call=call: calls.append(call), raising=True
            )
    for device in (CPU, GPU, APPLE):
        release_cache(device)
        synchronize(device)
    assert calls == [
        "torch.cuda.empty_cache",
        "torch.cuda.synchronize",
        "torch.mps.empty_cache",
        "torch.mps.synchronize",
    ]


def test_only_want_of_memory_gets_the_words():
    error = RunError("out of memory: close other programs.")
    with pytest.raises(RunError, match="close other"), out_of_memory_as(error):
        raise RuntimeError("MPS backend out of memory (MPS allocated: 5 GB)")
    with pytest.raises(RuntimeError, match="shapes"), out_of_memory_as(error):
        raise RuntimeError("shapes differ")


def test_apples_gpu_has_channels_first():
    """With channels last, gradients of batch normalisation were wrong (pytorch#175189)."""
    assert memory_order(4, APPLE) is torch.contiguous_format
    assert memory_order(5, APPLE) is torch.contiguous_format
    assert memory_order(4, GPU) is torch.channels_last
    assert memory_order(5, CPU) is torch.channels_last_3d
