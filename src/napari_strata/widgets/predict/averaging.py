"""Choice of averaging: flips and turns of planes, three directions of volumes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from magicgui.widgets import CheckBox

from napari_strata.core.image import Image
from napari_strata.widgets.parts.control import Control
from napari_strata.widgets.parts.dock import draw
from napari_strata.widgets.predict.area import PLANE, VIEW

ORTHO_TOOLTIP = (
    "Each volume is cut into planes in three directions, XY, XZ and YZ. The model"
    " predicts all of them, and the mean of the probabilities decides. This is good for"
    " structures that look similar from all sides, because labels are then consistent"
    " from plane to plane. It takes 3 times as long, and longer if voxels are longer"
    " along Z."
)


class Averaging:
    """Check boxes for averaging over flips and turns, and over three directions.

    If three directions cannot be used, the box is disabled with a reason. It is checked
    again as soon as they can.
    """

    def __init__(self) -> None:
        self.turns = CheckBox(
            text="Average flipped and turned views",
            tooltip=(
                "Each plane is predicted in all eight flips and quarter turns, and the"
                " mean of the probabilities decides. Labels are often better, and it"
                " takes 8 times as long."
            ),
        )
        self.directions = CheckBox(
            text="Average views from top, front and side", tooltip=ORTHO_TOOLTIP
        )
        self._wanted = False
        self.directions.changed.connect(self._on_tick)

    @property
    def tta(self) -> bool:
        """True to average over flips and turns."""
        return bool(self.turns.value)

    @property
    def ortho(self) -> bool:
        """True to average over three directions."""
        return bool(self.directions.value)

    def update(
        self, image: Image | None, spec: Mapping[str, Any] | None, area: str
    ) -> None:
        """Enable or disable three directions.

        Parameters
        ----------
        spec
            `ModelSpec` of the model as plain data, or None if it is unknown.
        """
        why = why_not_ortho(image, spec, area)
        with self.directions.changed.blocked():
            draw(self.directions, Control(ORTHO_TOOLTIP, why))
            self.directions.value = self._wanted and not why

    def _on_tick(self, on: bool) -> None:
        self._wanted = on


def why_not_ortho(
    image: Image | None, spec: Mapping[str, Any] | None, area: str
) -> str:
    """Explain why three directions cannot be used; empty if they can."""
    if spec is not None and spec["depth"] is not None:
        return "This model sees whole volumes already."
    if spec is not None and spec["neighbours"]:
        return (
            "This model sees neighbouring slices along Z, which XZ and YZ planes do not"
            " have: take a 2D model without neighbours."
        )
    if spec is not None and spec["resize"]:
        return (
            "This model resizes every plane to a square, also the flat XZ and YZ"
            " planes: take a model without resizing."
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
