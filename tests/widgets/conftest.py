"""Widgets are tested through a real viewer, in a process of their own: ``pytest tests/widgets``.

Software OpenGL and torch's compiler do not bear each other in one process (both bring an LLVM), so nothing here may
import torch; the worker that the docks drive is a process of its own, as it is for the user. pytest-xvfb gives a
display where there is none.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic, sleep
from types import SimpleNamespace
from typing import Any
from weakref import WeakSet

import pytest

from widgets.models import make_run

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("NAPARI_CONFIG", "")  # no settings are read or saved


def pytest_runtest_setup() -> None:
    """Free the viewers of the test before; pytest has held its fixtures until now.

    napari then fails the test if one is still alive.
    """
    module = sys.modules.get("napari._qt.qt_viewer")
    if module is not None and len(module.QtViewer._instances):
        gc.collect()
        gc.collect()


@pytest.fixture(autouse=True)
def _no_torch() -> Iterator[None]:
    yield
    assert "torch" not in sys.modules, (
        "a widget has imported torch into the viewer's process"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown() -> None:
    """Let the work in threads end: until then it holds its viewer.

    napari's fixture fails the test if a viewer is alive after it was closed.
    """
    _wait_for_threads()


def pytest_fixture_post_finalizer(fixturedef: Any) -> None:
    """Wait for what a dock does when its fixture closes its viewer, as above."""
    if fixturedef.argname == "dock":
        _wait_for_threads()


@pytest.fixture(autouse=True)
def _old_garbage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Free all garbage before napari's fixture says that a viewer is alive.

    It collects young objects only, and a viewer that lived through a collection is old.
    The event loop of a program deletes ended jobs, whose slots may hold the viewer.
    """

    def collect(generation: int = 2) -> None:
        gc.collect(generation)
        module = sys.modules.get("napari._qt.qt_viewer")
        end = monotonic() + 3  # a timer of the worker's client may still wait
        while module and len(module.QtViewer._instances) and monotonic() < end:
            _wait_for_threads()
            _delete_later_now()
            gc.collect()

    monkeypatch.setattr(
        "napari.utils._testsupport.gc", SimpleNamespace(collect=collect)
    )


@pytest.fixture
def make_napari_viewer(make_napari_viewer: Callable[..., Any]) -> Iterator[Any]:
    """With PySide6, delete closed windows before napari looks for leaks.

    The event loop of a program does that. Until then PySide6 keeps what is connected to
    a window, and with it the viewer.
    """
    viewers: WeakSet[Any] = WeakSet()

    def make(*arguments: Any, **options: Any) -> Any:
        viewer = make_napari_viewer(*arguments, **options)
        viewers.add(viewer)
        return viewer

    yield make
    if "PySide6" not in sys.modules:
        return
    from qtpy.QtCore import QEvent
    from qtpy.QtWidgets import QApplication

    for viewer in list(viewers):
        viewer.close()
        del viewer
    _wait_for_threads()
    QApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete)
    QApplication.processEvents()
    gc.collect()


def _wait_for_threads() -> None:
    if "qtpy.QtWidgets" not in sys.modules:
        return
    from qtpy.QtWidgets import QApplication

    from napari_strata.widgets.work import threads

    if QApplication.instance() is None:
        return
    end = monotonic() + 30
    while threads.pending() and monotonic() < end:
        QApplication.processEvents()
        sleep(0.01)


@pytest.fixture(autouse=True)
def _windows_deleted() -> Iterator[None]:
    """Delete the closed windows, as the event loop of a program would."""
    yield
    _delete_later_now()


def _delete_later_now() -> None:
    from qtpy.QtCore import QEvent
    from qtpy.QtWidgets import QApplication

    if QApplication.instance() is not None:
        QApplication.processEvents()
        QApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete)


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of runs with one run, for every session."""
    from napari_strata.widgets import session
    from napari_strata.widgets.settings import Settings

    make_run(tmp_path / "runs")
    settings = Settings(
        "cpu", tmp_path / "runs", (sys.executable, "-m", "napari_strata.worker")
    )
    monkeypatch.setattr(session.Settings, "load", classmethod(lambda _cls: settings))
    return tmp_path / "runs"
