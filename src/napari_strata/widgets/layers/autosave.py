"""Automatic saving of painted labels, to restore them after a crash."""

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

LABELS_FILE = "autosave.tif"
DRAFT_FILE = "autosave.json"
PIXEL_EVENTS = ("paint", "labels_update", "data")
"""Events of a Labels layer after its pixels have changed."""


@dataclass(frozen=True)
class Draft:
    """Labels that an earlier session has saved automatically."""

    path: Path
    layer: str
    image: str
    time: datetime

    def describe(self) -> str:
        """Describe the draft, such as ``"sand labels" of 30 Nov 14:05``."""
        return f'"{self.layer}" of {self.time:%d %b %H:%M}'

    def mark_open(self) -> None:
        """Record that this viewer has opened the labels.

        They are offered again only if it crashes.
        """
        draft_file = self.path.with_name(DRAFT_FILE)
        with suppress(OSError, StrataError):
            files.write_text(
                draft_file,
                json.dumps({"layer": self.layer, "image": self.image} | this_process())
                + "\n",
            )

    def forget(self) -> None:
        """Do not offer the labels again. The file is kept until its run is deleted."""
        with suppress(OSError):
            self.path.with_name(DRAFT_FILE).unlink()


class Autosave(QObject):
    """Saves a Labels layer to ``<folder>/autosave.tif`` after changes.

    There are at least `interval_s` seconds between two saves.
    """

    saved = Signal(object)  # Path
    failed = Signal(str)

    interval_s: float = 30
    failure = "The labels could not be saved"

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
        self._timer.setInterval(round(self.interval_s * 1000))
        self._timer.timeout.connect(self.save)

    def watch(self, layer: LabelsLayer | None, image: Image | None) -> None:
        """Save this layer from now on; save changes of the previous layer first."""
        self._image = image
        if layer is self._layer:
            return
        self.save()
        if self._layer is not None:
            for name in PIXEL_EVENTS:
                getattr(self._layer.events, name).disconnect(self._on_change)
            self._layer.events.set_data.disconnect(self._check_history)
        self._layer = layer
        if layer is None:
            self._timer.stop()
            return
        for name in PIXEL_EVENTS:
            getattr(layer.events, name).connect(self._on_change)
        layer.events.set_data.connect(self._check_history)
        self._strokes = _strokes(layer)
        self._timer.start()

    def _on_change(self, _event: object = None) -> None:
        self._changed = True

    def _check_history(self, _event: object = None) -> None:
        # Undo and redo have no event of their own. They only redraw the layer, as a
        # change of the plane does.
        if (
            self._layer is not None
            and (strokes := _strokes(self._layer)) != self._strokes
        ):
            self._strokes, self._changed = strokes, True

    def save(self) -> None:
        """Save in a thread if there were changes since the last save."""
        if not self._changed or self._busy or self._layer is None:
            return
        try:
            labels, folder = labels_of(self._layer, self._image), self._folder()
        except (StrataError, OSError) as error:
            self.failed.emit(f"{self.failure}: {error}")
            return
        image = self._image.name if self._image is not None else ""
        self._changed, self._busy = False, True
        threads.run(
            lambda: self.write(labels, folder, image),
            self._on_saved,
            self._on_error,
            owner=self,
        )

    def save_at_once(self) -> None:
        """Save in this thread, because napari closes."""
        if self._changed and self._layer is not None:
            with suppress(StrataError, OSError):
                self.write(
                    labels_of(self._layer, self._image),
                    self._folder(),
                    self._image.name if self._image else "",
                )
                self._changed = False

    def write(self, labels: LabelImage, folder: Path, image: str) -> Path:
        """Write the labels and a note on them; for a thread."""
        folder.mkdir(parents=True, exist_ok=True)
        path = write_labels(folder / LABELS_FILE, labels, overwrite=True)
        facts = {"layer": labels.name, "image": image} | this_process()
        files.write_text(folder / DRAFT_FILE, json.dumps(facts) + "\n")
        return path

    def _on_saved(self, path: Path) -> None:
        self._busy = False
        self.saved.emit(path)

    def _on_error(self, error: Exception) -> None:
        self._busy, self._changed = False, True
        self.failed.emit(f"{self.failure}: {error}")


def find_drafts(runs: Path) -> list[Draft]:
    """Find labels that earlier sessions saved, the newest first.

    There is one draft for each layer. Drafts of a running napari are left out.
    """
    drafts = []
    for draft_file in runs.glob(f"*/layers/{DRAFT_FILE}"):
        path = draft_file.with_name(LABELS_FILE)
        try:
            facts = json.loads(draft_file.read_text(encoding="utf-8"))
            if path.is_file() and not is_alive(facts):
                time = datetime.fromtimestamp(path.stat().st_mtime)
                drafts.append(
                    Draft(path, str(facts["layer"]), str(facts["image"]), time)
                )
        except (OSError, ValueError, KeyError):
            continue
    newest = {
        (draft.layer, draft.image): draft
        for draft in sorted(drafts, key=lambda draft: draft.time)
    }
    return sorted(newest.values(), key=lambda draft: draft.time, reverse=True)


def _strokes(layer: LabelsLayer) -> tuple[int, int]:
    """Count the strokes that can be undone and redone."""
    return len(layer._undo_history), len(layer._redo_history)


def this_process() -> dict[str, object]:
    """Identify this process, even if another process gets its number later."""
    process = psutil.Process()
    return {
        "pid": process.pid,
        "started": process.create_time(),
        "host": socket.gethostname(),
    }


def is_alive(facts: Mapping[str, object]) -> bool:
    """Return True if the process that `this_process` identifies still runs."""
    if facts.get("host") != socket.gethostname():
        return False
    try:
        return bool(
            psutil.Process(int(str(facts.get("pid")))).create_time()
            == facts.get("started")
        )
    except (psutil.Error, ValueError):
        return False
