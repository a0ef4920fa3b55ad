"""Work in a thread, with its result delivered in the main thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from qtpy.QtCore import QObject, QRunnable, Qt, QThreadPool, Signal

T = TypeVar("T")


class _Messenger(QObject):
    """Carries a result from a thread to the main thread; it lives there, and goes when its owner goes."""

    arrived = Signal(object)


class _Task(QRunnable):
    def __init__(self, work: Callable[[], Any], messenger: _Messenger) -> None:
        super().__init__()
        self._work, self._messenger = work, messenger

    def run(self) -> None:
        try:
            result: tuple[bool, Any] = (True, self._work())
        except Exception as error:  # delivered to `failed`
            result = (False, error)
        try:
            self._messenger.arrived.emit(result)
        except RuntimeError:  # the owner is gone, and the messenger with it
            return


def run(
    work: Callable[[], T], done: Callable[[T], Any], failed: Callable[[Exception], Any], *, owner: QObject
) -> None:
    """Call `work` in a thread, then `done` with its result, or `failed` with its error, in the main thread.

    Neither is called after `owner` is destroyed. Must be called in the main thread.
    """
    messenger = _Messenger(owner)

    def deliver(result: tuple[bool, Any]) -> None:
        try:
            messenger.deleteLater()
        except RuntimeError:  # the owner went while this was on its way
            return
        fine, value = result
        if fine:
            done(value)
        else:
            failed(value)

    messenger.arrived.connect(deliver, Qt.ConnectionType.QueuedConnection)  # type: ignore[call-arg]
    pool = QThreadPool.globalInstance()
    assert pool is not None
    pool.start(_Task(work, messenger))
