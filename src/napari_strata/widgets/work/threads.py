"""Work in a thread, with its result delivered in the main thread."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

from qtpy.compat import isalive
from qtpy.QtCore import QObject, Qt, Signal, Slot

T = TypeVar("T")

THREADS = 4
"""Number of threads; most of them wait for a disk."""


@dataclass
class _Task:
    work: Callable[[], Any]
    done: Callable[[Any], Any]
    failed: Callable[[Exception], Any]
    owner: QObject
    result: Any = None
    error: Exception | None = None

    def compute(self) -> None:
        try:
            self.result = self.work()
        except Exception as error:  # delivered to `failed`
            self.error = error.with_traceback(None)  # its frames hold widgets

    def deliver(self) -> None:
        if not isalive(self.owner):  # type: ignore[no-untyped-call]
            return
        if self.error is None:
            self.done(self.result)
        else:
            self.failed(self.error)


class _Tasks(QObject):
    """All running tasks; exists as long as the program.

    A thread knows only the number of its task. The tasks are held and released in the
    main thread, because they refer to widgets: Qt crashes when the last reference to
    a widget is released in another thread. For the same reason the threads are
    Python's: PySide6 does not always release a QRunnable and what it refers to.
    """

    _computed = Signal(int)
    _rung = Signal(object)

    def __init__(self) -> None:
        super().__init__()
        self._tasks: dict[int, _Task] = {}
        self._numbers = itertools.count()
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="strata")
        queued = Qt.ConnectionType.QueuedConnection
        self._computed.connect(self._deliver, queued)  # type: ignore[call-arg]
        self._rung.connect(self._answer, queued)  # type: ignore[call-arg]

    def count(self) -> int:
        return len(self._tasks)

    def start(self, task: _Task) -> None:
        number = next(self._numbers)
        self._tasks[number] = task
        self._threads.submit(self._run, number)

    def ring(self, bell: Doorbell) -> None:
        self._rung.emit(bell)

    def _run(self, number: int) -> None:
        self._tasks[number].compute()
        self._computed.emit(number)

    @Slot(int)
    def _deliver(self, number: int) -> None:
        self._tasks.pop(number).deliver()

    @Slot(object)
    def _answer(self, bell: Doorbell) -> None:
        bell.answer()


class Doorbell:
    """Call of a method in the main thread, requested by other threads.

    It does not keep the object of the method alive, so that the object cannot be
    released in a thread. After the object is deleted, `ring` does nothing.

    Parameters
    ----------
    act
        Method of a QObject. Create the doorbell in the main thread.
    """

    def __init__(self, act: Callable[[], Any]) -> None:
        self._act: weakref.WeakMethod[Any] = weakref.WeakMethod(act)
        self._tasks = _tasks()
        self._rings = False

    def ring(self) -> None:
        """Request one call of the method, from any thread."""
        if not self._rings:
            self._rings = True
            self._tasks.ring(self)

    def answer(self) -> None:
        """Call the method, in the main thread."""
        self._rings = False
        act = self._act()
        # The Python object may exist longer than the Qt object.
        if act is not None and isalive(act.__self__):  # type: ignore[no-untyped-call]
            act()


@cache
def _tasks() -> _Tasks:
    return _Tasks()


def pending() -> int:
    """Count the tasks whose result has not been delivered yet."""
    if not _tasks.cache_info().currsize:
        return 0
    return _tasks().count()


def run(
    work: Callable[[], T],
    done: Callable[[T], Any],
    failed: Callable[[Exception], Any],
    *,
    owner: QObject,
) -> None:
    """Call `work` in a thread, then `done` or `failed` in the main thread.

    `done` gets the result, `failed` the error. Neither is called after `owner` is
    destroyed. Must be called in the main thread. Python does not exit before the work
    is done, because it may write labels.
    """
    _tasks().start(_Task(work, done, failed, owner))
