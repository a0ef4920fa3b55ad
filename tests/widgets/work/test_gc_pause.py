"""Garbage collections while threads and jobs run."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from qtpy.QtCore import QObject

from napari_strata.widgets.work import threads
from napari_strata.widgets.work.gc_pause import GcPause


@pytest.fixture
def pause(qtbot: Any) -> Iterator[GcPause]:
    yield GcPause()
    gc.unfreeze()
    gc.enable()


def test_what_exists_is_left_out_while_jobs_run(pause: GcPause) -> None:
    pause.begin_job()
    frozen = gc.get_freeze_count()
    assert frozen > 1000
    pause.begin_job()
    assert gc.get_freeze_count() <= frozen, "a second job freezes nothing more"
    pause.unfreeze()
    assert gc.get_freeze_count() == 0


def test_everything_is_included_when_jobs_have_long_been_over(
    pause: GcPause, qtbot: Any
) -> None:
    pause._rest_timer.setInterval(20)
    end = pause.begin_job()
    end()
    qtbot.waitUntil(lambda: gc.get_freeze_count() == 0)


def test_a_job_that_ends_beside_another_changes_nothing(
    pause: GcPause, qtbot: Any
) -> None:
    pause._rest_timer.setInterval(20)
    end_training = pause.begin_job()
    end_preview = pause.begin_job()
    end_preview("an outcome")
    end_preview("and again")
    qtbot.wait(100)
    assert gc.get_freeze_count() > 1000
    assert not gc.isenabled()
    end_training()
    assert gc.isenabled()
    qtbot.waitUntil(lambda: gc.get_freeze_count() == 0)


class Cycle:
    """An object that only a garbage collection frees."""

    def __init__(self, freed_in: list[str]) -> None:
        self.me = self
        weakref.finalize(self, lambda: freed_in.append(threading.current_thread().name))


def test_garbage_of_a_job_is_freed_in_the_main_thread(
    pause: GcPause, qtbot: Any
) -> None:
    pause._collect_timer.setInterval(20)
    freed_in: list[str] = []
    end = pause.begin_job()
    Cycle(freed_in)
    # Enough new objects for several automatic collections, made in another thread.
    busy = threading.Thread(target=lambda: [[] for _ in range(200_000)], name="other")
    busy.start()
    busy.join()
    qtbot.waitUntil(lambda: bool(freed_in))
    end()
    assert freed_in == [threading.main_thread().name]


def test_a_removed_layer_is_freed_though_it_is_older_than_the_job(
    pause: GcPause, qtbot: Any
) -> None:
    pause._collect_timer.setInterval(20)
    freed_in: list[str] = []
    layer = Cycle(freed_in)
    end = pause.begin_job()
    del layer
    qtbot.wait(100)
    assert not freed_in
    pause.unfreeze()
    qtbot.waitUntil(lambda: bool(freed_in))
    assert gc.get_freeze_count() > 1000, "what is left is frozen again"
    end()


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
