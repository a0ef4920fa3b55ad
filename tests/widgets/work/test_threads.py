from __future__ import annotations

import threading
import weakref
from typing import Any

from qtpy.QtCore import QObject

from napari_strata.widgets.work import threads


def test_the_result_arrives_in_the_main_thread(qtbot: Any) -> None:
    owner, found = QObject(), []
    main = threading.get_ident()
    threads.run(
        threading.get_ident,
        lambda r: found.append((r, threading.get_ident())),
        print,
        owner=owner,
    )
    qtbot.waitUntil(lambda: bool(found))
    assert found[0][0] != main
    assert found[0][1] == main


def test_an_error_is_delivered(qtbot: Any) -> None:
    owner, found = QObject(), []

    def work() -> None:
        raise ValueError("no such file")

    threads.run(work, print, found.append, owner=owner)
    qtbot.waitUntil(lambda: bool(found))
    assert str(found[0]) == "no such file"


def test_nothing_is_delivered_to_a_deleted_owner(qtbot: Any) -> None:
    owner, found, go = QObject(), [], threading.Event()
    threads.run(lambda: go.wait(5), found.append, found.append, owner=owner)
    owner.deleteLater()
    gone: list[bool] = []
    owner.destroyed.connect(lambda: gone.append(True))
    qtbot.waitUntil(lambda: bool(gone))
    go.set()
    qtbot.wait(100)
    assert found == []


class Listener(QObject):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def answer(self) -> None:
        self.calls.append(threading.current_thread().name)


def test_a_doorbell_calls_in_the_main_thread_once(qtbot: Any) -> None:
    listener = Listener()
    bell = threads.Doorbell(listener.answer)
    thread = threading.Thread(target=lambda: [bell.ring() for _ in range(5)])
    thread.start()
    thread.join()
    qtbot.waitUntil(lambda: bool(listener.calls))
    qtbot.wait(20)
    assert listener.calls == [threading.main_thread().name]


def test_a_doorbell_does_not_keep_its_object(qtbot: Any) -> None:
    listener = Listener()
    bell = threads.Doorbell(listener.answer)
    gone = weakref.ref(listener)
    bell.ring()
    del listener
    assert gone() is None
    qtbot.wait(20)  # the ring is answered by nobody
