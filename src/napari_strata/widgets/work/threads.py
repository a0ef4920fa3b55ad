"""Work in a thread, with its result delivered in the main thread."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

from qtpy.compat import isalive
from qtpy.QtCore import QObject, QRunnable, Qt, QThreadPool, Signal, Slot

T = TypeVar("T")


class _Post(QObject):
    """Carries results from threads to the main thread, in which it is made; it outlives every owner.

    A messenger that went with its owner would be emitted, or be called by an event still queued, after its end.
    """

    arrived = Signal(object)

    def __init__(self) -> None:
        super().__init__()
        self.arrived.connect(self._deliver, Qt.ConnectionType.QueuedConnection)  # type: ignore[call-arg]

    @Slot(object)
    def _deliver(self, letter: Callable[[], None]) -> None:
        letter()


@cache
def _post() -> _Post:
    return _Post()


class _Task(QRunnable):
    def __init__(
        self, work: Callable[[], Any], send: Callable[[bool, Any], None]
    ) -> None:
        super().__init__()
        self._work, self._send = work, send

    def run(self) -> None:
        try:
            result: tuple[bool, Any] = (True, self._work())
        except Exception as error:  # delivered to `failed`
            result = (False, error)
        self._send(*result)


def run(
    work: Callable[[], T],
    done: Callable[[T], Any],
    failed: Callable[[Exception], Any],
    *,
    owner: QObject,
) -> None:
    """Call `work` in a thread, then `done` with its result, or `failed` with its error, in the main thread.

    Neither is called after `owner` is destroyed. Must be called in the main thread.
    """
    post = _post()

    def send(fine: bool, value: Any) -> None:
        def deliver() -> None:
            if isalive(owner):  # type: ignore[no-untyped-call]
                (done if fine else failed)(value)

        post.arrived.emit(deliver)

    pool = QThreadPool.globalInstance()
    assert pool is not None
    pool.start(_Task(work, send))
