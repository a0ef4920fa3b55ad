"""Labels that are being painted, kept on disk every half minute and offered back after
a crash.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import psutil
from napari.layers import Labels as LabelsLayer
from qtpy.QtCore import QObject, QTimer, Signal

from napari_strata.core import files
from napari_strata.core.errors import StrataError
from napari_strata.core.image import Image, LabelImage
from napari_strata.io import write_labels
from napari_strata.widgets.layers.convert import labels_of
from napari_strata.widgets.work import threads

SECONDS = 30
NAME = "autosave.tif"
NOTE = "autosave.json"
EVENTS = ("paint", "labels_update", "data")
"""Events of a Labels layer whose pixels change."""


@dataclass(frozen=True)
class Kept:
    """Labels that an earlier session left behind."""

    path: Path
    layer: str
    image: str
    time: datetime

    def describe(self) -> str:
        """``Labels "clay" of image "sand", painted 2026-11-21 14:05``."""
        return (
            f'Labels "{self.layer}" of image "{self.image}", painted'
            f" {self.time:%Y-%m-%d %H:%M}"
        )

    def take_over(self) -> None:
        """They are in this viewer now.

        Offer them again only if it ends without a word.
        """
        note = self.path.with_name(NOTE)
        with suppress(OSError, StrataError):
            files.write_text(
                note,
                json.dumps({"layer": self.layer, "image": self.image} | this_process())
                + "\n",
            )

    def forget(self) -> None:
        """Do not offer them again; the file itself stays until its run is deleted."""
        with suppress(OSError):
            self.path.with_name(NOTE).unlink()


class Autosave(QObject):
    """Writes one Labels layer to ``<folder>/autosave.tif`` when it was changed, at most
    every `SECONDS`.
    """

    saved = Signal(object)  # Path
    failed = Signal(str)

    def __init__(
        self, folder: Callable[[], Path], parent: QObject | None = None
    ) -> None:
        super().__init__(parent)
        self._folder = folder
        self._layer: LabelsLayer | None = None
        self._image: Image | None = None
        self._changed = False
        self._busy = False
        self._strokes = (0, 0)
        self._timer = QTimer(self)
        self._timer.setInterval(round(SECONDS * 1000))
        self._timer.timeout.connect(self.save)

    def watch(self, layer: LabelsLayer | None, image: Image | None) -> None:
        """Look after this layer from now on.

        What was changed in the one before is saved first.
        """
        self._image = image
        if layer is self._layer:
            return
        self.save()
        if self._layer is not None:
            for name in EVENTS:
                getattr(self._layer.events, name).disconnect(self._mark)
            self._layer.events.set_data.disconnect(self._look)
        self._layer = layer
        if layer is None:
            self._timer.stop()
            return
        for name in EVENTS:
            getattr(layer.events, name).connect(self._mark)
        layer.events.set_data.connect(self._look)
        self._strokes = _strokes(layer)
        self._timer.start()

    def _mark(self, _event: object = None) -> None:
        self._changed = True

    def _look(self, _event: object = None) -> None:
        # Undo and redo only show themselves as a new picture, and so does turning to
        # another plane.
        if (
            self._layer is not None
            and (strokes := _strokes(self._layer)) != self._strokes
        ):
            self._strokes, self._changed = strokes, True

    def save(self) -> None:
        """Write now, in a thread, if anything was changed since the last time."""
        if not self._changed or self._busy or self._layer is None:
            return
        try:
            labels, folder = labels_of(self._layer, self._image), self._folder()
        except (StrataError, OSError) as error:
            self.failed.emit(f"The labels could not be kept: {error}")
            return
        image = self._image.name if self._image is not None else ""
        self._changed, self._busy = False, True
        threads.run(
            lambda: _write(labels, folder, image), self._done, self._sorry, owner=self
        )

    def save_at_once(self) -> None:
        """Write now, in this thread: napari is closing."""
        if self._changed and self._layer is not None:
            with suppress(StrataError, OSError):
                _write(
                    labels_of(self._layer, self._image),
                    self._folder(),
                    self._image.name if self._image else "",
                )
                self._changed = False

    def _done(self, path: Path) -> None:
        self._busy = False
        self.saved.emit(path)

    def _sorry(self, error: Exception) -> None:
        self._busy, self._changed = False, True
        self.failed.emit(f"The labels could not be kept: {error}")


def kept(runs: Path) -> list[Kept]:
    """Labels that earlier sessions left under the runs folder, the newest of each
    layer, the newest first; those of a living napari are not.
    """
    drafts = []
    for note in runs.glob(f"*/layers/{NOTE}"):
        path = note.with_name(NAME)
        try:
            facts = json.loads(note.read_text(encoding="utf-8"))
            if path.is_file() and not is_alive(facts):
                time = datetime.fromtimestamp(path.stat().st_mtime)
                drafts.append(
                    Kept(path, str(facts["layer"]), str(facts["image"]), time)
                )
        except (OSError, ValueError, KeyError):
            continue
    newest = {
        (draft.layer, draft.image): draft
        for draft in sorted(drafts, key=lambda one: one.time)
    }
    return sorted(newest.values(), key=lambda one: one.time, reverse=True)


def _strokes(layer: LabelsLayer) -> tuple[int, int]:
    """Count the strokes that can be undone and redone."""
    return len(layer._undo_history), len(layer._redo_history)


def _write(labels: LabelImage, folder: Path, image: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = write_labels(folder / NAME, labels, overwrite=True)
    facts = {"layer": labels.name, "image": image} | this_process()
    files.write_text(folder / NOTE, json.dumps(facts) + "\n")
    return path


def this_process() -> dict[str, object]:
    """Identify this napari process, even after its number has gone to another one."""
    process = psutil.Process()
    return {
        "pid": process.pid,
        "started": process.create_time(),
        "host": socket.gethostname(),
    }


def is_alive(facts: Mapping[str, object]) -> bool:
    """Return True if the process that `this_process` described still runs here."""
    if facts.get("host") != socket.gethostname():
        return False
    try:
        return bool(
            psutil.Process(int(str(facts.get("pid")))).create_time()
            == facts.get("started")
        )
    except (psutil.Error, ValueError):
        return False
