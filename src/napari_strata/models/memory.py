"""Memory of a device: recognise that it ran out, and free what torch keeps."""

from __future__ import annotations

import torch

PHRASES = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "alloc_failed",
    # cuDNN and cuBLAS, where no algorithm gets its working memory.
    "unable to find an engine",
    "workspace allocation",
)
"""Words of torch's errors for memory that ran out, in lower case."""


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether memory ran out. CPU and Apple's GPU say so in the message only."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    message = str(error).lower()
    return any(phrase in message for phrase in PHRASES)


def release_cache(device: torch.device) -> None:
    """Give memory that torch keeps for later back to a GPU."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
