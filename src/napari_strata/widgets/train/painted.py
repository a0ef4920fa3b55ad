"""Labels that are painted during a training, saved where the training reads them."""

from __future__ import annotations

from pathlib import Path
from time import monotonic

from napari_strata.core.classes import ClassMap
from napari_strata.core.image import LabelImage
from napari_strata.widgets.layers.autosave import Autosave
from napari_strata.widgets.train.prepare import LayerData, write_painted

PAUSE = 4
"""Pause between two saves, in the time of the last one: large labels take long."""


class PaintedLabels(Autosave):
    """Saves the labels of a running training a second after each stroke.

    `saved` is emitted with the path of the labels of the run.
    """

    interval_s = 1.0
    failure = "The training does not use the new strokes"

    _classes: ClassMap | None = None
    _started = _next_time = 0.0

    def follow(self, data: LayerData) -> None:
        """Save these labels, at once and after each stroke."""
        self._classes = data.labels.classes
        self._next_time = 0.0
        self.watch(data.labels_layer, data.image)
        self._changed = True  # strokes may have been painted since the start

    def leave(self) -> None:
        """Save no longer: the training has ended."""
        self._changed = False
        self.watch(None, None)

    def save(self) -> None:
        """Save in a thread if there were changes, and a pause since the last save."""
        if monotonic() >= self._next_time:
            self._started = monotonic()
            super().save()

    def write(self, labels: LabelImage, folder: Path, _image: str) -> Path:
        """Write the labels of the run; for a thread."""
        return write_painted(labels, folder, self._classes)

    def _on_saved(self, path: Path) -> None:
        now = monotonic()
        self._next_time = now + PAUSE * (now - self._started)
        super()._on_saved(path)

    def _on_error(self, error: Exception) -> None:
        super()._on_error(error)
        self._changed = False  # until the next stroke
