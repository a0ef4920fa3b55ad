"""``python -m napari_strata.worker``: the pipes first, before anything can print; then the engine; then orders."""

from __future__ import annotations

import argparse
import faulthandler
import os
import sys
from time import perf_counter

from napari_strata.worker.pipes import Inbox, Outbox, take_over


def main() -> None:
    """Run a worker on stdin and stdout until stdin ends, or SIGTERM."""
    started = perf_counter()
    parser = argparse.ArgumentParser(prog="python -m napari_strata.worker", description=__doc__)
    parser.add_argument("--nice", type=int, default=0, help="leave the processor to others: 0 (never) to 19 (always)")
    niceness = parser.parse_args().nice
    if hasattr(os, "nice"):
        os.nice(niceness)
    faulthandler.enable()  # a crash says where, on stderr
    orders, replies = take_over()
    if int(os.environ.get("RANK", "0")):  # torchrun has started several: the pipes are the first one's
        os.close(orders)
        os.close(replies)
        from napari_strata.worker.crew import follow

        follow()
        return
    inbox = Inbox()
    outbox = Outbox(replies, inbox)
    from napari_strata.worker.crew import dismiss
    from napari_strata.worker.server import Server  # the engine and torch: seconds

    inbox.start(orders)
    try:
        Server(inbox, outbox).serve(started)
    finally:
        dismiss()


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
