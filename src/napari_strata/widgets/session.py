"""State that the docks of a viewer share: worker, run folder, newest model."""

from __future__ import annotations

import atexit
import json
import shutil
from contextlib import suppress
from datetime import date
from pathlib import Path
from time import monotonic
from weakref import WeakSet

from napari.utils.notifications import show_info, show_warning
from napari.utils.task_status import Status
from napari.viewer import Viewer
from qtpy.QtCore import QEvent, QObject, Signal
from qtpy.QtWidgets import QApplication, QWidget

from napari_strata.core import files
from napari_strata.widgets.layers.autosave import is_alive, this_process
from napari_strata.widgets.layers.convert import slug
from napari_strata.widgets.layers.drawing import guard_removal
from napari_strata.widgets.settings import Settings, preferences
from napari_strata.widgets.work import threads
from napari_strata.widgets.work.client import JobHandle, Outcome, WorkerClient
from napari_strata.worker.protocol import Job

SCRATCH_PREFIX = ".session-"
"""Start of the names of folders for temporary files."""
LONG_S = 60.0
"""Seconds after which the end of a job is announced."""
OWNER_FILE = "session.json"
"""File in such a folder that identifies its process."""

_sessions: WeakSet[ViewerSession] = WeakSet()


class ViewerSession(QObject):
    """Session of a viewer; see `ViewerSession.of`.

    The worker starts when the first dock requests the session.
    """

    model_ready = Signal(object)  # Path of the run whose model is new or better
    runs_changed = Signal()
    closing = Signal()

    @classmethod
    def of(cls, viewer: Viewer) -> ViewerSession:
        """Return the session of a viewer; create it at the first call."""
        # Docks get a proxy of the viewer that hides its private window.
        whole = getattr(viewer, "__wrapped__", viewer)
        window = whole.window._qt_window
        session: ViewerSession | None = window.findChild(cls)
        return session or cls(whole, window)

    def __init__(self, viewer: Viewer, window: QObject) -> None:
        super().__init__(window)
        self.viewer = viewer
        self.settings = Settings.load()
        self.latest_model: Path | None = None
        self.docks: dict[type, QWidget] = {}
        self.client = WorkerClient(self.settings.command)
        self.client.warm()
        self._live_client: WorkerClient | None = None
        # Or Python may delete the window when napari forgets it, and no event says so.
        self._window = window
        self._scratch: Path | None = None
        self._closed = False
        self._stale = False
        self._preferences = preferences()
        self._preferences.events.connect(self._settings_changed)
        window.installEventFilter(self)
        _sessions.add(self)
        guard_removal(viewer, window)
        if (application := QApplication.instance()) is not None:
            application.aboutToQuit.connect(self.close)
        threads.run(lambda: _sweep(self.settings.runs), _ignore, _ignore, owner=self)

    def submit(self, request: Job) -> JobHandle:
        """Send a request to the worker."""
        self._reload()
        return self.client.submit(request)

    @property
    def live_client(self) -> WorkerClient:
        """Worker for live masks, started at the first call; the other may be busy."""
        if self._live_client is None:
            self._live_client = WorkerClient(self.settings.command)
        return self._live_client

    def _settings_changed(self, _event: object = None) -> None:
        self._stale = True
        self._reload()

    def _reload(self) -> None:
        """Apply changed Preferences if no job runs.

        If the command has changed, a new worker starts.
        """
        if not self._stale or self.client.current_state == "busy":
            return
        self._stale = False
        settings = Settings.load()
        if settings.command != self.settings.command:
            self._close_clients()
            self.client = WorkerClient(settings.command)
            self.client.warm()
        self.settings = settings

    def new_run(self, image: str) -> Path:
        """Create a run folder with a readable name.

        Raises `StrataError` if it cannot be created.
        """
        stem = f"{date.today():%Y-%m-%d}-{slug(image)}"
        number = 1
        while (
            path := self.settings.runs / (stem if number == 1 else f"{stem}-{number}")
        ).exists():
            number += 1
        try:
            (path / "layers").mkdir(parents=True)
        except OSError as error:
            raise files.explain(error, path) from error
        return path

    def scratch(self) -> Path:
        """Return a folder for temporary arrays of this viewer.

        It is beside the runs, where a worker on another computer can reach it.
        """
        if self._scratch is None:
            number = 1
            while (
                path := self.settings.runs
                / f"{SCRATCH_PREFIX}{this_process()['pid']}-{number}"
            ).exists():
                number += 1
            files.write_text(path / OWNER_FILE, json.dumps(this_process()) + "\n")
            self._scratch = path
        return self._scratch

    @property
    def is_closed(self) -> bool:
        """True after the viewer has closed; its layers must not be used any more."""
        return self._closed

    def register_task(self, description: str, handle: JobHandle) -> None:
        """Make napari ask for confirmation if it is closed while this job runs.

        If the job took long, napari announces its end.
        """
        window = self.viewer.window
        number = window._register_task_status("Strata", Status.BUSY, description)
        start = monotonic()

        def end(outcome: Outcome) -> None:
            window._update_task_status(number, Status.COMPLETED)
            if monotonic() - start > LONG_S and not self._closed:
                announce_end(description, outcome)

        handle.ended.connect(end)

    def announce(self, run: Path) -> None:
        """Announce that a run has a new or better model."""
        self.latest_model = run
        self.model_ready.emit(run)
        self.runs_changed.emit()

    def close(self) -> None:
        """End the session when its viewer closes.

        The worker ends (a kept training continues), and temporary files of this viewer
        are removed.
        """
        if self._closed:
            return
        self._closed = True
        self._preferences.events.disconnect(self._settings_changed)
        with suppress(RuntimeError):  # Qt may have deleted parts of the window
            self.closing.emit()
            for dock in self.docks.values():
                if dock.parent() is None:  # closed before, so no window owns it
                    dock.deleteLater()
        self.docks.clear()
        self._close_clients()
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)

    def _close_clients(self) -> None:
        self.client.close()
        if self._live_client is not None:
            self._live_client.close()
            self._live_client = None

    def eventFilter(self, watched: QObject | None, event: QEvent | None) -> bool:  # noqa: N802 (Qt's name)
        if event is not None and event.type() == QEvent.Type.DeferredDelete:
            # The window is closed, and it and its docks are still there. Later,
            # signals would reach Python wrappers of objects that Qt has deleted.
            self.close()
        return super().eventFilter(watched, event)


@atexit.register
def _end_sessions() -> None:
    """End all sessions and delete closed windows before PyQt cleans up.

    PyQt deletes windows while it iterates over all wrappers, and crashes when our event
    filter adds one to them. The end of an event loop would delete closed windows, but a
    script may end without one.
    """
    for session in list(_sessions):
        with suppress(RuntimeError):  # Qt may have deleted it
            session.close()
            session._window.removeEventFilter(session)
    if QApplication.instance() is not None:
        QApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete)


def announce_end(description: str, outcome: Outcome) -> None:
    """Show a message of napari about the end of a job."""
    if outcome.status == "finished":
        show_info(f"Strata has finished {description}.")
    elif outcome.status in ("failed", "died"):
        show_warning(f"Strata could not finish {description}: {outcome.text}")


def _sweep(runs: Path) -> None:
    """Remove the temporary folders of sessions that ended without clean-up."""
    for owner_file in list(runs.glob(f"{SCRATCH_PREFIX}*/{OWNER_FILE}")):
        with suppress(OSError, ValueError):
            if not is_alive(json.loads(owner_file.read_text(encoding="utf-8"))):
                shutil.rmtree(owner_file.parent, ignore_errors=True)


def _ignore(_result: object) -> None:
    return
