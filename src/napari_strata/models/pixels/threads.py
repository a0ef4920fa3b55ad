"""Threads of Python, each of which computes with a single thread of torch.

torch's own threads wait for each other after each of hundreds of small operations: on
two cores that others use as well, that took ten times as long (measured).
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch


class Pool(ThreadPoolExecutor):
    """Threads, and their number."""

    def __init__(self, size: int) -> None:
        super().__init__(size, "pixels")
        self.size = size


@contextmanager
def single_threaded_pool() -> Iterator[Pool]:
    """Yield a pool of as many threads as torch has; inside, torch has one in each."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with Pool(threads) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)
