"""Train, predict and evaluate for another program."""

from __future__ import annotations

import argparse
import faulthandler
import os
import sys
import threading
import time
from time import perf_counter

import psutil

from napari_strata.worker.transport import Inbox, Outbox, take_over_pipes


def main() -> None:
    """Run a worker on stdin and stdout until stdin ends or SIGTERM comes."""
    started = perf_counter()
    parser = argparse.ArgumentParser(
        prog="python -m napari_strata.worker", description=__doc__
    )
    parser.add_argument(
        "--nice",
        type=int,
        default=0,
        help="give way to other processes: from 0 (never) to 19 (always)",
    )
    _give_way(parser.parse_args().nice)
    faulthandler.enable()  # a crash writes a traceback to stderr
    # Before any import that may print.
    requests, events = take_over_pipes()
    if "TORCHELASTIC_RUN_ID" in os.environ:
        threading.Thread(
            target=_exit_with_parent,
            args=(os.getppid(),),
            name="parent-watch",
            daemon=True,
        ).start()
    is_distributed = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if is_distributed and os.environ.get("RANK", "0") != "0":
        # Only the main process communicates with the client.
        os.close(requests)
        os.close(events)
        from napari_strata.worker.ddp import follow

        follow()
        return
    inbox = Inbox()
    outbox = Outbox(events, inbox)
    # These import torch, which takes seconds.
    from napari_strata.worker.ddp import end_followers
    from napari_strata.worker.server import Server

    inbox.start(requests)
    try:
        Server(inbox, outbox).serve(started)
    finally:
        end_followers()


def _give_way(niceness: int) -> None:
    """Let other processes go first."""
    if sys.platform != "win32":
        os.nice(niceness)
    elif niceness > 0:
        psutil.Process().nice(psutil.BELOW_NORMAL_PRIORITY_CLASS)


def _exit_with_parent(parent: int) -> None:
    """Exit when torchrun has ended; a client can kill only torchrun itself."""
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
    # Without the clean-up of libraries, which takes time and has no use here.
    os._exit(status)
