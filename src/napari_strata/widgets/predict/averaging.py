"""Choice of averaging: flips and turns of a plane, three directions of a volume."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from magicgui.widgets import CheckBox

from napari_strata.core.image import Image
from napari_strata.widgets.parts.control import Control
from napari_strata.widgets.parts.dock import draw
from napari_strata.widgets.predict.area import PLANE, VIEW

THREE = (
    "Each volume is cut into planes in three directions, XY, XZ and YZ; the model"
    " predicts all, and the mean of the probabilities decides. Good for structures that"
    " look alike from every side: labels hold together from plane to plane. It takes 3"
    " times as long, and longer where voxels are longer along Z."
)


class Averaging:
    """Check boxes for averaging over flips and turns, and over three directions.

    The latter is disabled with a reason where it cannot be used; its tick comes back
    when it can.
    """

    def __init__(self) -> None:
        self.turns = CheckBox(
            text="Average over flips and turns",
            tooltip=(
                "Each plane is predicted in all eight flips and quarter turns, and the"
                " mean of the probabilities decides: often better labels, and it takes"
                " 8 times as long."
            ),
        )
        self.directions = CheckBox(text="Average over three directions", tooltip=THREE)
        self._wanted = False
        self.directions.changed.connect(self._ticked)

    @property
    def tta(self) -> bool:
        """True to average over flips and turns."""
        return bool(self.turns.value)

    @property
    def ortho(self) -> bool:
        """True to average over three directions."""
        return bool(self.directions.value)

    def look(
        self, image: Image | None, spec: Mapping[str, Any] | None, area: str
    ) -> None:
        """Allow three directions of an image, by a model (what is known of it.

        A `ModelSpec` as plain data), or not.
        """
        why = why_not_three(image, spec, area)
        with self.directions.changed.blocked():
            draw(self.directions, Control(THREE, why))
            self.directions.value = self._wanted and not why

    def _ticked(self, on: bool) -> None:
        self._wanted = on


def why_not_three(
    image: Image | None, spec: Mapping[str, Any] | None, area: str
) -> str:
    """Explain why three directions cannot be predicted; empty when they can."""
    if spec is not None and spec["depth"] is not None:
        return "This model sees whole volumes already."
    if spec is not None and spec["neighbours"]:
        return (
            "This model sees neighbouring slices along Z, which XZ and YZ planes do not"
            " have: take a plain 2D one."
        )
    if spec is not None and spec["resize"]:
        return (
            "This model resizes every plane to a square, also the flat XZ and YZ"
            " planes: take one that does not."
        )
    if image is not None and image.size("Z") < 2:
        return (
            f"{image.name} has one plane only (axes {image.axes}): a stack with an axis"
            " Z is needed."
        )
    if area in (PLANE, VIEW):
        return (
            "One plane has no XZ and YZ planes: choose the whole stack, or a rectangle,"
            " as the area."
        )
    return ""
