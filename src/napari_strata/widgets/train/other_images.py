"""Choice of more images to train on, each with its own labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from napari.components import ViewerModel
from napari.layers import Image as ImageLayer
from napari.layers import Labels as LabelsLayer
from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import QLabel, QListWidget, QListWidgetItem, QVBoxLayout, QWidget

from napari_strata.core.errors import ImageError
from napari_strata.core.image import Image
from napari_strata.widgets.layers import convert

ROWS = 3
"""Number of images that are visible without scrolling."""


@dataclass(frozen=True, eq=False)
class LabelledLayer:
    """Image layer and its labels layer."""

    layer: ImageLayer
    image: Image
    labels_layer: LabelsLayer

    def __str__(self) -> str:
        return f"{self.layer.name}, with {self.labels_layer.name}"


def find_labelled(
    layers: Sequence[ImageLayer],
    chosen: Sequence[ImageLayer | None],
    like: Image | None,
    partner: Callable[[ImageLayer], LabelsLayer | None],
) -> list[LabelledLayer]:
    """Find the image layers that can be trained together with an image.

    They have as many channels, and labels of their own size.

    Parameters
    ----------
    chosen
        Layers of the image that is chosen already.
    like
        The image that is chosen; None if there is none.
    partner
        Function that returns the labels layer of an image layer.
    """
    found = []
    for layer in layers:
        labels = None if layer in chosen else partner(layer)
        if like is None or labels is None:
            continue
        try:
            image = convert.image_of(layer)
        except ImageError:
            continue
        if image.channels == like.channels and not convert.mismatch(image, labels):
            found.append(LabelledLayer(layer, image, labels))
    return found


class OtherImages(QWidget):
    """List of images with labels, of which the user ticks some; hidden if empty."""

    changed = Signal()

    def __init__(self, viewer: ViewerModel) -> None:
        super().__init__()
        self._viewer = viewer
        self._found: list[LabelledLayer] = []
        self._chosen: ImageLayer | None = None
        self.list = QListWidget()
        self.list.setToolTip(
            "Ticked images are trained on, too, with the classes of the table. Strokes"
            " that are painted during a training count for the chosen image only."
        )
        rows = QVBoxLayout(self)
        rows.setContentsMargins(0, 0, 0, 0)
        rows.setSpacing(2)
        rows.addWidget(QLabel("Train also on"))
        rows.addWidget(self.list)
        self.list.itemChanged.connect(lambda _: self.changed.emit())
        self.hide()

    def chosen(self) -> list[LabelledLayer]:
        """Return the ticked images that still exist."""
        items = (self.list.item(row) for row in range(self.list.count()))
        return [
            found
            for found, item in zip(self._found, items, strict=True)
            if item is not None
            and item.checkState() == Qt.CheckState.Checked
            and {found.layer, found.labels_layer} <= set(self._viewer.layers)
        ]

    def offer(self, found: list[LabelledLayer], chosen: ImageLayer | None) -> None:
        """Show these images besides the chosen one; ticks are kept.

        If a ticked image is chosen now, the one that was chosen before gets its tick:
        the same images are trained on.
        """
        ticked = {labelled.layer for labelled in self.chosen()}
        if chosen in ticked and self._chosen is not None:
            ticked.add(self._chosen)
        self._found, self._chosen = found, chosen
        self.list.blockSignals(True)
        self.list.clear()
        for labelled in found:
            item = QListWidgetItem(str(labelled), self.list)
            is_ticked = labelled.layer in ticked
            item.setCheckState(
                Qt.CheckState.Checked if is_ticked else Qt.CheckState.Unchecked
            )
        self.list.blockSignals(False)
        height = self.list.sizeHintForRow(0) * min(len(found), ROWS)
        self.list.setFixedHeight(height + 2 * self.list.frameWidth() + 2)
        self.setVisible(bool(found))
