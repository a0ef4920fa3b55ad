"""The viewer's worker process, ``python -m napari_strata.worker``: jobs come in and events go out, as JSON lines.

The viewer imports `orders` (what it may send) and `replies` (what comes back), which need neither torch nor Qt. The
rest runs in the process: `pipes`, `server`, `jobs`, and what jobs read and write, `sources` and `npy`; and `crew`, for
a worker of several processes.
"""
