"""Membership: how one of several processes comes to its team, follows the first one, and leaves it, whatever happens.

The first rank leads. It opens each section by a word in the store, which the others wait for, and leaves by another
word there; so nobody is left waiting in a collective for one that will not come. Signals stop the first rank between
sections; another rank that gets one passes it on. Where a process fails or is killed within a section, the others find
out from the store who it was and why, and the first of those that are there says so.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cache
from itertools import count
from typing import Any

from torch import distributed as _distributed

from napari_strata.core.errors import StrataError, TrainingError
from napari_strata.training.watch import Watch

GO, DONE, STOPPED, FAILED, LOST = "go", "done", "stopped", "failed", "lost"
"""Words in the store; after FAILED comes why."""

JOIN = 600.0
"""Seconds within which every process must have come."""
REPLY = 3.0
"""Seconds without a sign of life after which a process that is missed is taken for gone."""

when_stuck: list[Callable[[], None]] = []
"""What a process that is to live on does when it must leave in the middle of a section; see `worker.crew`."""


class Dismissed(Exception):  # noqa: N818 (no error of this rank)
    """The first rank has left, and said why."""


class Membership:
    """This process in a team of `size`, with a store of the team's own."""

    def __init__(self, store: Any, *, rank: int, size: int) -> None:
        self.store, self.rank, self.size = store, rank, size
        self.leads = rank == 0
        self.epoch = 0
        """The last epoch on disk."""
        self.watch = Watch(store, rank=rank, size=size, end=self._end_process)
        self._turn = 0
        self._told = False
        """Whether this process got SIGTERM."""
        self._gone: list[int] = []
        self._handlers: dict[int, Any] = {}

    def come(self) -> None:
        """Meet the others.

        Raises
        ------
        TrainingError
            when one does not come, or fails on the way.
        """
        self._handlers = self._hear_signals()
        self.watch.start()
        self.store.set(f"here/{self.rank}", "1")
        end = time.monotonic() + JOIN
        while absent := [
            r for r in range(self.size) if not self.store.check([f"here/{r}"])
        ]:
            self._stand_by(absent[0])
            if time.monotonic() > end:
                raise TrainingError(
                    f"rank {absent[0]} of {self.size} did not come within {JOIN:.0f} s; start {self.size} processes "
                    "that reach each other (torchrun does)."
                )
            time.sleep(0.02)

    def agree(self, facts: str) -> None:
        """See `Team.agree`."""
        self.store.set(f"facts/{self.rank}", facts)
        if not self.leads:
            return
        for other in range(1, self.size):
            while not self.store.check([f"facts/{other}"]):
                self._stand_by(other)
                time.sleep(0.02)
            if self.store.get(f"facts/{other}").decode() != facts:
                raise TrainingError(
                    f"rank {other} of {self.size} found other data, or another recipe, than the first one; needed are "
                    "the same files for all: give a path that every machine sees."
                )

    @contextmanager
    def section(self) -> Iterator[None]:
        """Go through the block with all others; a signal meanwhile waits for its end."""
        if self.leads and self.watch.wish:
            raise KeyboardInterrupt
        with held():
            self.watch.waiting = True
            self._turn += 1
            if self.leads:
                self.store.set(f"go/{self._turn}", GO)
                self.store.delete_key(f"go/{self._turn - 2}")  # everyone has passed it
            else:
                self._follow()
            yield
            self.watch.waiting = False  # not after an error

    def leave(self, error: BaseException | None) -> BaseException | None:
        """Tell the others, and return what is to be raised here: `error`, or what is behind it."""
        inside = self.watch.waiting
        raised = (
            self._leave_first(error, inside=inside)
            if self.leads
            else self._leave_other(error, inside=inside)
        )
        if (
            inside
            and when_stuck
            and not isinstance(error, Dismissed)
            and not self._all_alike(error)
        ):
            when_stuck[0]()
        return raised

    def rest(self) -> None:
        """After `leave`: no more signs of life, and signals as before.

        A process that has a handler for SIGTERM lives on, as a worker does, and gets the one that it has missed.
        """
        self.watch.stop()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if signal.SIGTERM in _dropped and callable(self._handlers.get(signal.SIGTERM)):
            again = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM))
            again.daemon = True
            again.start()
        _dropped.clear()

    def _follow(self) -> None:
        """Wait for the first rank's word. Raises `Dismissed` when it leaves, RuntimeError when it is gone."""
        key, pause = f"go/{self._turn}", 1e-4
        while not self.store.check([key]):
            self._stand_by(0)
            time.sleep(pause)
            pause = min(1.2 * pause, 0.005)
        if (word := self.store.get(key).decode()) != GO:
            self.watch.waiting = False
            raise Dismissed(word)

    def _stand_by(self, other: int) -> None:
        """To be called while another rank is waited for."""
        if self.leads and self.watch.wish:
            raise KeyboardInterrupt
        if other in self.watch.silent or self.watch.lost:
            self.watch.waiting = True  # what follows is nobody's error here
            raise RuntimeError(f"no sign of life from rank {other}")
        if why := self.watch.left().get(other):
            raise (
                TrainingError(self._said({other: why}))
                if self.leads
                else Dismissed(why)
            )

    def _leave_first(
        self, error: BaseException | None, *, inside: bool
    ) -> BaseException | None:
        stopped = _why(error) == STOPPED
        # SIGTERM may come from torchrun, which ends all when one has died.
        found = (
            self._behind()
            if (stopped and self._told) or (inside and isinstance(error, RuntimeError))
            else None
        )
        raised = found or error
        why = _why(raised)
        self.watch.leave(why)
        with suppress(RuntimeError):
            self.store.set(f"go/{self._turn + 1}", why)
            end = time.monotonic() + (0 if raised or _outlives() else REPLY)
            while len(self.watch.left()) < self.size - 1 and time.monotonic() < end:
                time.sleep(0.02)
        return raised

    def _leave_other(
        self, error: BaseException | None, *, inside: bool
    ) -> BaseException | None:
        if error is None or isinstance(error, Dismissed):
            why = str(error or DONE)
            self.watch.leave(why)
            return None if why == DONE else SystemExit(130 if why == STOPPED else 2)
        if inside and isinstance(error, RuntimeError) and (found := self._behind()):
            self.watch.leave(LOST)
            return found if self._speaks else SystemExit(2)
        self.watch.leave(_why(error))
        return SystemExit(2) if isinstance(error, StrataError) else error

    def _behind(self) -> TrainingError | None:
        """What has become of the others, if that is why this rank cannot go on."""
        self._gone = self.watch.missing(REPLY)
        if self.watch.lost and not self.leads and not _outlives():
            self._gone = [0]
        failed = {
            rank: why
            for rank, why in self.watch.left().items()
            if why.startswith(FAILED)
        }
        if failed:
            return TrainingError(self._said(failed))
        return (
            TrainingError(self._why_gone()) if self._gone or self.watch.lost else None
        )

    def _all_alike(self, error: BaseException | None) -> bool:
        """Whether the first rank met the same error, as where the loss is no number: then nobody hangs."""
        end = time.monotonic() + REPLY / 6
        while (word := self.watch.left().get(0)) is None and time.monotonic() < end:
            time.sleep(0.02)
        return word == _why(error)

    @property
    def _speaks(self) -> bool:
        """Whether this rank is the first of those that are there."""
        return self.rank == min(set(range(self.size)) - set(self._gone))

    def _said(self, words: dict[int, str]) -> str:
        rank, why = min(words.items())
        return f"rank {rank} of {self.size}: {why.removeprefix(FAILED).strip()}"

    def _why_gone(self) -> str:
        names = ", ".join(map(str, self._gone))
        who = (
            f"rank {names} of {self.size} is"
            if len(self._gone) == 1
            else f"ranks {names} of {self.size} are"
        )
        kept = (
            f"the last checkpoint, epoch {self.epoch}, is kept"
            if self.epoch
            else "no epoch was complete yet"
        )
        return (
            f"{who if self._gone else 'what started this process is'} gone (killed, or out of memory, or its machine "
            f"is off); {kept}: run the same with --resume."
        )

    def _end_process(self) -> None:
        """In the watch's thread, when this process waits for one that is gone and nothing else interrupts it."""
        found = self._behind()
        self.watch.leave(LOST)
        if when_stuck:
            when_stuck[0]()
        if found and (self.leads or (self._speaks and 0 in self._gone)):
            os.write(2, f"error: {found}\n".encode())
        os._exit(2)

    def _hear_signals(self) -> dict[int, Any]:
        """Make a stop of any rank one of the first; the handlers before."""
        if threading.current_thread() is not threading.main_thread():
            return {}

        def wish(_number: int, _frame: Any) -> None:
            self.watch.wish = True

        if not self.leads:
            return {
                number: signal.signal(number, wish)
                for number in (signal.SIGINT, signal.SIGTERM)
            }
        before = signal.getsignal(signal.SIGTERM)

        def told(number: int, frame: Any) -> None:
            self._told = True
            (before if callable(before) else signal.default_int_handler)(number, frame)

        return {signal.SIGTERM: signal.signal(signal.SIGTERM, told)}


distributed: Any = _distributed  # much of it has no types


@contextmanager
def held(*, drop: bool = False) -> Iterator[None]:
    """Signals that stop a process wait for the end of the block; after an error, or with `drop`, they are forgotten."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: dict[int, None] = {}
    before: dict[int, Any] = {
        number: signal.signal(number, lambda found, _frame: caught.setdefault(found))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    done = False
    try:
        yield
        done = not drop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if not done:
            _dropped.update(caught)
    for number in caught if done else ():
        signal.raise_signal(number)


_dropped: set[int] = set()


@contextmanager
def meeting(name: str) -> Iterator[None]:
    """The team that is joined inside the block has this name, on all ranks. Who fails before it joins says so."""
    _names.append(name)
    rank = int(os.environ["RANK"])
    try:
        yield
    finally:
        _names.clear()
        with suppress(RuntimeError):
            place, key = within(f"team/{name}"), f"left/{rank}"
            if not place.check([key]):
                place.set(key, _why(sys.exception()))


_names: list[str] = []
_numbers = count(1)


def next_meeting() -> str:
    """Name of the team to join now: teams of a process are numbered, where no `meeting` names them."""
    return _names[0] if _names else str(next(_numbers))


def is_several() -> bool:
    """Whether this process is one of several that ``torchrun`` has started."""
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    count = os.environ.get("WORLD_SIZE", "")
    return (
        all(os.environ.get(name) for name in names)
        and count.isdigit()
        and int(count) > 1
    )


def within(name: str) -> Any:
    """A part of the store that all processes see, under a name."""
    return distributed.PrefixStore(name, _store())


@cache
def _store() -> Any:
    # torchrun's store is there before us; one of the first rank comes with it.
    patience = timedelta(seconds=20 if _outlives() else JOIN)
    store, _, _ = next(distributed.rendezvous("env://", timeout=patience))
    return store


def _outlives() -> bool:
    """Whether the store goes on when the first rank ends: it is torchrun's."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _why(error: BaseException | None) -> str:
    """The word for leaving by `error`."""
    if error is None:
        return DONE
    if isinstance(error, (GeneratorExit, KeyboardInterrupt, SystemExit)):
        return STOPPED
    text = (
        str(error)
        if isinstance(error, StrataError)
        else f"unexpected {type(error).__name__}: {error}"
    )
    return f"{FAILED} {' '.join(text.split())}"
