"""Predicted layers of the viewer: their origin, later edits, and companion layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import ReferenceType, WeakKeyDictionary, ref

import numpy as np
from napari.components import ViewerModel
from napari.layers import Image as ImageLayer
from napari.layers import Labels as LabelsLayer

from napari_strata.core import axes
from napari_strata.core.image import Image
from napari_strata.core.runs import RunFolder
from napari_strata.widgets.layers.convert import array_of
from napari_strata.widgets.layers.live import PREDICTED


@dataclass(frozen=True)
class Origin:
    """Origin of predicted labels: equal origins give equal labels."""

    layer: ReferenceType[ImageLayer]
    data: int
    axes: str
    model: str
    changed: int

    @classmethod
    def of(cls, layer: ImageLayer, image: Image, model: Path) -> Origin:
        """Describe an image and a model file or run folder in their present state."""
        file = RunFolder(model).model_path if model.is_dir() else model
        changed = file.stat().st_mtime_ns if file.is_file() else 0
        return cls(
            ref(layer), id(array_of(layer)), image.axes, str(file.resolve()), changed
        )


class Made:
    """A labels layer that a prediction made, over the array at `path`."""

    def __init__(self, path: Path, origin: Origin) -> None:
        self.path, self.origin = path, origin
        self.edited = False
        self._layer: ReferenceType[LabelsLayer] | None = None
        self._data: int | None = None
        self._beside: dict[str, ReferenceType[ImageLayer]] = {}

    def layer(self) -> LabelsLayer | None:
        """The layer, if it still exists."""
        return self._layer() if self._layer is not None else None

    def adopt(self, layer: LabelsLayer) -> None:
        """This is the layer that is being filled."""
        self._data = None
        if layer is self.layer():
            return
        self._layer = ref(layer)
        _MADE[layer] = self
        for name in ("paint", "labels_update"):
            getattr(layer.events, name).connect(self._mark)

    def settle(self) -> None:
        """Take the present pixels as predicted; every later change is the user's."""
        layer = self.layer()
        self._data = None if layer is None else id(layer.data)

    def is_untouched(self) -> bool:
        """Return True if the layer is unedited and its array still exists."""
        layer = self.layer()
        return (
            layer is not None
            and not self.edited
            and self._data == id(layer.data)
            and self.path.is_file()
        )

    def put(self, viewer: ViewerModel, name: str, data: Any) -> bool:
        """An image of 0 to 1 that belongs to the labels, hidden, under them.

        The one of that name before is renewed.

        False when the labels are gone.
        """
        labels, layers = self.layer(), viewer.layers
        if labels is None or labels not in layers:
            return False
        existing = self._beside.get(name, lambda: None)()
        if existing is not None and existing in layers:
            existing.data = data
            return True
        placed = {
            key: getattr(labels, key)
            for key in ("scale", "translate", "rotate", "shear", "affine", "units")
        }
        layer = ImageLayer(
            data,
            name=name,
            contrast_limits=(0, 1),
            visible=False,
            axis_labels=labels.axis_labels,
            **placed,
        )
        layer.metadata[PREDICTED] = True
        selected, active = set(layers.selection), layers.selection.active
        layers.insert(layers.index(labels), layer)
        layers.selection = (
            selected  # a new layer takes the selection, and the docks would follow it
        )
        if active is not None:
            layers.selection.active = active
        self._beside[name] = ref(layer)
        return True

    def _mark(self, _event: object = None) -> None:
        self.edited = True


_MADE: WeakKeyDictionary[LabelsLayer, Made] = WeakKeyDictionary()


def find(viewer: ViewerModel, origin: Origin) -> Made | None:
    """Find an earlier result of the same origin in this viewer that can take more
    planes.
    """
    for made in reversed(list(_MADE.values())):
        if (
            made.origin == origin
            and made.is_untouched()
            and made.layer() in viewer.layers
        ):
            return made
    return None


def newest(viewer: ViewerModel) -> LabelsLayer | None:
    """Return the labels to save: selected ones, else the newest prediction."""
    made_layers = [layer for layer in list(_MADE) if layer in viewer.layers]
    selected = [layer for layer in made_layers if layer in viewer.layers.selection]
    return (
        selected[0] if len(selected) == 1 else made_layers[-1] if made_layers else None
    )


@dataclass(frozen=True)
class Chances:
    """Probabilities on disk, with axes T and Z (as `letters`, those of the labels, have
    them), C, Y, X.
    """

    path: Path
    letters: str
    classes: tuple[str, ...]

    def layers(self, image: str) -> Iterator[tuple[str, Any]]:
        """Name and array of each class, in the axes of the labels.

        Read from disk as they are looked at.
        """
        chances = np.lib.format.open_memmap(self.path, mode="r")
        for number, name in enumerate(self.classes):
            yield (
                f"p({name}) {image}",
                axes.from_canonical(chances[..., number, :, :], self.letters),
            )

    def confidence(self, cancelled: Callable[[], bool]) -> Any:
        """The highest probability of each pixel, float16, in the axes of the labels.

        None when cancelled.
        """
        chances = np.lib.format.open_memmap(self.path, mode="r")
        shape = chances.shape[:-3] + chances.shape[-2:]
        path = self.path.with_name(
            self.path.name.replace("_probabilities", "_confidence")
        )
        path.unlink(missing_ok=True)  # who has the one before mapped keeps it
        best = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)
        for index in np.ndindex(*shape[:-2]):
            if cancelled():
                return None
            best[index] = chances[index].max(axis=0)
        return axes.from_canonical(best, self.letters)
