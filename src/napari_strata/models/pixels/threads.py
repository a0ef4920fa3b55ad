"""Threads of Python, each of which computes with a single thread of torch.

torch's own threads wait for each other after each of hundreds of small operations: on
two cores that others use as well, that took ten times as long (measured).
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch


@contextmanager
def single_threaded_pool(size: int | None = None) -> Iterator[ThreadPoolExecutor]:
    """Yield a pool of threads, by default as many as torch has.

    Inside, torch has a single thread in each of them.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(size or threads, "pixels") as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)
