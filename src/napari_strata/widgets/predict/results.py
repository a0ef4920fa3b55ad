"""Predicted layers of the viewer: origin, edits, and companion layers."""

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
from napari_strata.widgets.layers.live import MODEL, PREDICTED


@dataclass(frozen=True)
class Origin:
    """Origin of predicted labels; equal origins give equal labels."""

    layer: ReferenceType[ImageLayer]
    data: int
    axes: str
    model: str
    changed: int
    models: tuple[str, ...] = ()
    """Model files; `model` is their description, with the kind of averaging."""

    @classmethod
    def of(cls, layer: ImageLayer, image: Image, model: Path) -> Origin:
        """Return the origin for the current state of an image and a model."""
        file = RunFolder(model).model_path if model.is_dir() else model
        changed = file.stat().st_mtime_ns if file.is_file() else 0
        axes = " ".join((image.axes, *image.channel_names))
        path = str(file.resolve())
        return cls(ref(layer), id(array_of(layer)), axes, path, changed, (path,))


class PredictedLabels:
    """Predicted labels layer, whose array is in the file `path`."""

    def __init__(self, path: Path, origin: Origin) -> None:
        self.path, self.origin = path, origin
        self.edited = False
        self._layer: ReferenceType[LabelsLayer] | None = None
        self._data: int | None = None
        self._companions: dict[str, ReferenceType[ImageLayer]] = {}

    def layer(self) -> LabelsLayer | None:
        """Return the layer if it still exists."""
        return self._layer() if self._layer is not None else None

    def adopt(self, layer: LabelsLayer) -> None:
        """Set the layer that is being filled."""
        self._data = None
        if layer is self.layer():
            return
        self._layer = ref(layer)
        layer.metadata[MODEL] = self.origin.models
        _PREDICTIONS[layer] = self
        for name in ("paint", "labels_update"):
            getattr(layer.events, name).connect(self._on_edit)

    def settle(self) -> None:
        """Declare the prediction complete; later changes are edits of the user."""
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

    def add_image(self, viewer: ViewerModel, name: str, data: Any) -> bool:
        """Add a hidden image layer from 0 to 1 below the labels, or update it.

        Returns False if the labels do not exist any more.
        """
        labels, layers = self.layer(), viewer.layers
        if labels is None or labels not in layers:
            return False
        existing = self._companions.get(name, lambda: None)()
        if existing is not None and existing in layers:
            existing.data = data
            return True
        transform = {
            key: getattr(labels, key)
            for key in ("scale", "translate", "rotate", "shear", "affine", "units")
        }
        layer = ImageLayer(
            data,
            name=name,
            contrast_limits=(0, 1),
            visible=False,
            axis_labels=labels.axis_labels,
            **transform,
        )
        layer.metadata[PREDICTED] = True
        selected, active = set(layers.selection), layers.selection.active
        layers.insert(layers.index(labels), layer)
        # A new layer is selected, and the docks would choose it.
        layers.selection = selected
        if active is not None:
            layers.selection.active = active
        self._companions[name] = ref(layer)
        return True

    def _on_edit(self, _event: object = None) -> None:
        self.edited = True


_PREDICTIONS: WeakKeyDictionary[LabelsLayer, PredictedLabels] = WeakKeyDictionary()


def find(viewer: ViewerModel, origin: Origin) -> PredictedLabels | None:
    """Find an unedited layer of the same origin in this viewer."""
    for prediction in reversed(list(_PREDICTIONS.values())):
        if (
            prediction.origin == origin
            and prediction.is_untouched()
            and prediction.layer() in viewer.layers
        ):
            return prediction
    return None


def newest(viewer: ViewerModel) -> LabelsLayer | None:
    """Return the predicted labels to save: the selected, or the newest ones."""
    predicted_layers = [layer for layer in list(_PREDICTIONS) if layer in viewer.layers]
    selected = [layer for layer in predicted_layers if layer in viewer.layers.selection]
    return (
        selected[0]
        if len(selected) == 1
        else predicted_layers[-1]
        if predicted_layers
        else None
    )


@dataclass(frozen=True)
class ProbabilityFile:
    """File of probabilities with the axes T and Z (if the labels have them), C, Y, X.

    `letters` are the axes of the labels.
    """

    path: Path
    letters: str
    classes: tuple[str, ...]

    def layers(self, image: str) -> Iterator[tuple[str, Any]]:
        """Iterate over name and array of each class, in the axes of the labels.

        The arrays are read from the file when they are shown.
        """
        probabilities = np.lib.format.open_memmap(self.path, mode="r")
        for number, name in enumerate(self.classes):
            yield (
                f"p({name}) {image}",
                axes.from_canonical(probabilities[..., number, :, :], self.letters),
            )

    def confidence(self, cancelled: Callable[[], bool]) -> Any:
        """Compute the highest probability of each pixel, in the axes of the labels.

        Returns
        -------
        Any
            float16 array, or None if `cancelled` returned True.
        """
        probabilities = np.lib.format.open_memmap(self.path, mode="r")
        shape = probabilities.shape[:-3] + probabilities.shape[-2:]
        path = self.path.with_name(
            self.path.name.replace("_probabilities", "_confidence")
        )
        path.unlink(missing_ok=True)  # processes that have mapped the old file keep it
        best = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)
        for index in np.ndindex(*shape[:-2]):
            if cancelled():
                return None
            best[index] = probabilities[index].max(axis=0)
        return axes.from_canonical(best, self.letters)
