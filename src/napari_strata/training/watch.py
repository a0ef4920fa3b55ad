"""Watch: which processes of a team are there, told through a store that all of them see.

Each writes a count every `BEAT` seconds, and a word when it leaves. The count of a process that was killed, or whose
machine is gone, stands still. A collective cannot be interrupted, and one with such a process may last for ever: gloo
learns from the system that a process has ended, but not that one hangs, or of a machine that is off; NCCL learns of
neither. Then the watch ends this process, with a sentence. What is on disk is valid at any moment.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import Any

BEAT = 0.1
"""Seconds between two signs of life."""

SILENT = 600
"""Beats of our own without one of another after which it is taken for gone: a minute. Counted, not timed, so that
nothing is thought of a computer that was asleep."""

HASTY = 30
"""The same after a stop was asked for: torchrun asks all when one has died."""

GRACE = 50
"""Beats within which a process that waits for one that is gone should have noticed by itself."""


class Watch:
    """The signs of life of one process of a team, and what it sees of the others.

    Parameters
    ----------
    store
        of `torch.distributed`; its keys are this team's own.
    end
        called in a thread when this process waits for one that is gone; it must end the process.
    """

    def __init__(
        self, store: Any, *, rank: int, size: int, end: Callable[[], None]
    ) -> None:
        self.rank, self.size = rank, size
        self.others = [other for other in range(size) if other != rank]
        self.waiting = False
        """Whether the main thread is where it may wait for others."""
        self.wish = False
        """Whether someone has asked for a stop, here or in another process."""
        self.store = store
        self._own = store.clone()  # a connection serves one thread at a time
        self._end = end
        # The first rank looks after all, and all look after the first.
        self._guarded = self.others if rank == 0 else [0]
        self._beats = dict.fromkeys(self._guarded, b"")
        self._quiet = dict.fromkeys(self._guarded, 0)
        self._over = threading.Event()
        self._somebody_left = False
        self.lost = False
        """Whether the store is out of reach: what started the team, or its first rank, is gone."""
        self._thread = threading.Thread(
            target=self._live, name="team-watch", daemon=True
        )

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Be silent from now on."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    def leave(self, why: str) -> None:
        """Say that this process leaves the team, and why; the first word counts."""
        if not self._read(f"left/{self.rank}") and not self.lost:
            with suppress(RuntimeError):
                self.store.set(f"left/{self.rank}", why)

    def left(self) -> dict[int, str]:
        """What others said when they left."""
        return {
            other: word.decode()
            for other in self.others
            if (word := self._read(f"left/{other}"))
        }

    def missing(self, seconds: float) -> list[int]:
        """Those who neither have said that they leave nor give a sign of life for so long; soon, if all do."""
        end = monotonic() + seconds
        before = {other: int(self._read(f"beat/{other}") or 0) for other in self.others}
        while True:
            # The first new beat may be one that was given before.
            silent = [
                r
                for r, beat in before.items()
                if int(self._read(f"beat/{r}") or 0) < beat + 2
            ]
            silent = [r for r in silent if r not in self.left()]
            if not silent or self.lost or monotonic() > end:
                return [] if self.lost else silent
            time.sleep(BEAT / 5)

    @property
    def silent(self) -> list[int]:
        """Of those that are looked after, who has given no sign of life for long."""
        limit = HASTY if self.wish else SILENT
        return [other for other, beats in self._quiet.items() if beats >= limit]

    def _read(self, key: str) -> bytes:
        """What stands in the store, empty where there is nothing. Not to be called in two threads."""
        if not self.lost:
            with suppress(RuntimeError):
                return self.store.get(key) if self.store.check([key]) else b""
            self.lost = True
        return b""

    def _live(self) -> None:
        count = stuck = 0
        while not self._over.wait(BEAT):
            count += 1
            try:
                self._look(count)
            except RuntimeError:
                self.lost = True
            away = self.lost or self._somebody_left or bool(self.silent)
            stuck = stuck + 1 if away and self.waiting else 0
            if stuck > GRACE:
                self._end()

    def _look(self, count: int) -> None:
        if self.lost:
            return
        store = self._own
        store.set(f"beat/{self.rank}", str(count))
        if self.wish:
            store.set("wish", "1")
        self.wish = self.wish or store.check(["wish"])
        for other in self._guarded:
            beat = store.get(f"beat/{other}") if store.check([f"beat/{other}"]) else b""
            self._quiet[other] = (
                self._quiet[other] + 1 if beat == self._beats[other] else 0
            )
            self._beats[other] = beat
        self._somebody_left = any(
            store.check([f"left/{other}"]) for other in self._guarded
        )
