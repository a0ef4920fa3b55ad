"""``python -m napari_strata.worker``: the pipes first, before anything can print; then the engine; then orders."""

from __future__ import annotations

import argparse
import faulthandler
import os
import sys
import threading
import time
from time import perf_counter

from napari_strata.worker.pipes import Inbox, Outbox, take_over


def main() -> None:
    """Run a worker on stdin and stdout until stdin ends, or SIGTERM."""
    started = perf_counter()
    parser = argparse.ArgumentParser(
        prog="python -m napari_strata.worker", description=__doc__
    )
    parser.add_argument(
        "--nice",
        type=int,
        default=0,
        help="leave the processor to others: 0 (never) to 19 (always)",
    )
    niceness = parser.parse_args().nice
    if hasattr(os, "nice"):
        os.nice(niceness)
    faulthandler.enable()  # a crash says where, on stderr
    orders, replies = take_over()
    if "TORCHELASTIC_RUN_ID" in os.environ:
        threading.Thread(
            target=_end_with, args=(os.getppid(),), name="parent-watch", daemon=True
        ).start()
    # Of several processes that torchrun has started the pipes are the first one's.
    if (
        int(os.environ.get("WORLD_SIZE", "1")) > 1
        and os.environ.get("RANK", "0") != "0"
    ):
        os.close(orders)
        os.close(replies)
        from napari_strata.worker.ddp import follow

        follow()
        return
    inbox = Inbox()
    outbox = Outbox(replies, inbox)
    from napari_strata.worker.ddp import end_followers
    from napari_strata.worker.server import Server  # the engine and torch: seconds

    inbox.start(orders)
    try:
        Server(inbox, outbox).serve(started)
    finally:
        end_followers()


def _end_with(parent: int) -> None:
    """End when torchrun is gone: a viewer that kills its worker reaches no further."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


if __name__ == "__main__":
    status = 0
    try:
        main()
    except SystemExit as end:
        status = int(end.code or 0)
    sys.stdout.flush()
    sys.stderr.flush()
    # Libraries take their time to leave, and nothing is left to be done.
    os._exit(status)
