"""Memory of a device: recognise that it ran out, and go on with less of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from napari_strata.core.errors import StrataError

PHRASES = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "alloc_failed",
    # oneDNN on the CPU, where a convolution gets no memory for its code or its weights.
    "could not create a primitive",
    "could not create a memory object",
    # cuDNN and cuBLAS, where no algorithm gets its working memory.
    "unable to find an engine",
    "workspace allocation",
)
"""Words of torch's errors for memory that ran out, in lower case."""


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether memory ran out. CPU and Apple's GPU say so in the message only."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    message = str(error).lower()
    return any(phrase in message for phrase in PHRASES)


def make_room(device: torch.device) -> str:
    """Say what to do when a prediction has too little memory on a device."""
    if device.type == "cpu":
        return "close other programs."
    return "close other programs, or predict on the CPU (device='cpu')."


def release_cache(device: torch.device) -> None:
    """Give memory that torch keeps for later back to a GPU."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


@contextmanager
def out_of_memory_as(error: StrataError) -> Iterator[None]:
    """Raise `error` when memory runs out in the block."""
    try:
        yield
    except (RuntimeError, MemoryError) as cause:
        if not is_out_of_memory(cause):
            raise
        raise error from cause


def with_room(compute: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    """Compute on the device of `values`, or on the CPU when the device has no room."""
    try:
        return compute(values)
    except RuntimeError as error:
        if values.device.type == "cpu" or not is_out_of_memory(error):
            raise
    release_cache(values.device)
    return compute(values.cpu())


def zeros_with_room(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Zeros on the device, or in main memory when the device has no room."""
    try:
        return torch.zeros(shape, device=device)
    except RuntimeError as error:
        if device.type == "cpu" or not is_out_of_memory(error):
            raise
    return torch.zeros(shape)


def upload_array(
    shape: Sequence[int], device: torch.device
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Make an array to be filled and copied to a device.

    For a CUDA GPU it lies in pinned memory, from which a copy runs beside the
    computation; where the system gives none, it is an ordinary array.
    """
    if device.type == "cuda":
        try:
            return torch.empty(math.prod(shape), pin_memory=True).numpy().reshape(shape)
        except RuntimeError:
            pass
    return np.empty(shape, np.float32)
