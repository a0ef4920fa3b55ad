"""Garbage collection while threads work: in the main thread only, and short."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import cache

from qtpy.QtCore import QObject, QTimer

REST_MS = 60_000
"""Milliseconds without a job after which everything is collected again."""
INTERVAL_MS = 2_000
"""Milliseconds between two collections while threads work."""


class GcPause(QObject):
    """Control of Python's garbage collections, one for the whole program.

    Python collects in the thread that happens to create an object. A thread that reads
    a file or the messages of a worker could so delete widgets, which Qt allows in the
    main thread only. While such threads work, Python's automatic collections are
    therefore off, and a timer collects in the main thread.

    A collection also stops everything: 160 to 180 ms for the 320,000 objects of a
    napari with one dock, measured on two cores. Most of them are modules and the
    window, which live as long as the program. While a job runs, what existed before it
    is left out. When a layer is removed, which may hold gigabytes, everything is
    collected once.
    """

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._jobs: set[object] = set()
        self._threads = 0
        self._frozen = False
        self._rest_timer = QTimer(self)
        self._rest_timer.setSingleShot(True)
        self._rest_timer.setInterval(REST_MS)
        self._rest_timer.timeout.connect(self.unfreeze)
        self._collect_timer = QTimer(self)
        self._collect_timer.setInterval(INTERVAL_MS)
        self._collect_timer.timeout.connect(self._collect)

    def begin_thread(self) -> None:
        """Collect in the main thread only, until `end_thread`."""
        self._threads += 1
        if self._threads == 1:
            gc.disable()
            self._collect_timer.start()

    def end_thread(self) -> None:
        """Let Python collect by itself again, if no other thread works."""
        self._threads -= 1
        if self._threads == 0:
            self._collect_timer.stop()
            gc.enable()

    def begin_job(self) -> Callable[..., None]:
        """Leave out what exists now, until the job has ended; a thread listens to it.

        Everything is included again a while after the last job. Not at once, because
        its result is about to be shown.

        Returns
        -------
        Function to call when the job has ended. Arguments, and further calls, have no
        effect, so that several signals may be connected to it.
        """
        job = object()
        self._jobs.add(job)
        self.begin_thread()
        self._rest_timer.stop()
        self._freeze()
        return lambda *_: self._end_job(job)

    def _end_job(self, job: object) -> None:
        if job not in self._jobs:
            return
        self._jobs.remove(job)
        self.end_thread()
        if not self._jobs:
            self._rest_timer.start()

    def unfreeze(self, _event: object = None) -> None:
        """Include everything in the next collection."""
        gc.unfreeze()
        self._frozen = False

    def _freeze(self) -> None:
        # The flag, because gc.get_freeze_count() counts the objects one by one.
        if not self._frozen:
            gc.freeze()
            self._frozen = True

    def _collect(self) -> None:
        if self._jobs:
            gc.collect()
            self._freeze()
        else:
            gc.collect(1)  # young objects; all of them would take long


@cache
def gc_pause() -> GcPause:
    """Return the one of this program. Call it in the main thread."""
    return GcPause()
