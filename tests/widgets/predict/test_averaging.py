from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from napari_strata.core.image import Image
from napari_strata.widgets.predict.area import PLANE, RECTANGLE, VIEW, WHOLE
from napari_strata.widgets.predict.averaging import Averaging, why_not_ortho

FLAT = {"depth": None, "neighbours": 0, "resize": None}
STACK = Image(np.zeros((4, 8, 8), np.uint8), "ZYX", name="sand")


@pytest.mark.parametrize(
    ("image", "change", "area", "said"),
    [
        (STACK, {}, WHOLE, ""),
        (STACK, {}, RECTANGLE, ""),
        (STACK, {}, PLANE, "choose the whole stack, or a rectangle"),
        (STACK, {}, VIEW, "choose the whole stack, or a rectangle"),
        (
            Image(np.zeros((8, 8), np.uint8), "YX", name="sand"),
            {},
            WHOLE,
            "sand has one plane only (axes YX)",
        ),
        (
            Image(np.zeros((4, 8, 8), np.uint8), "TYX", name="film"),
            {},
            WHOLE,
            "film has one plane only (axes TYX)",
        ),
        (STACK, {"depth": {"patch": 8}}, WHOLE, "sees whole volumes already"),
        (STACK, {"neighbours": 1}, WHOLE, "neighbouring slices along Z"),
        (STACK, {"resize": 256}, WHOLE, "resizes every plane"),
    ],
)
def test_conditions_for_three_directions(
    image: Image, change: dict[str, Any], area: str, said: str
) -> None:
    why = why_not_ortho(image, FLAT | change, area)
    assert (said in why) if said else why == ""


def test_a_disabled_box_has_a_reason_and_is_checked_again(qtbot: Any) -> None:
    averaging = Averaging()
    box = averaging.directions
    for one in (averaging.turns, box):
        qtbot.addWidget(one.native)
    averaging.update(STACK, FLAT, WHOLE)
    assert "3 times as long" in box.tooltip
    box.native.click()
    assert averaging.ortho
    averaging.update(STACK, FLAT, PLANE)
    assert not averaging.ortho
    assert not box.enabled
    assert box.tooltip.startswith("One plane has no XZ and YZ planes")
    box.native.click()
    averaging.update(STACK, None, WHOLE)  # what the model is, is not known yet
    assert averaging.ortho
    assert box.enabled
    box.native.click()
    averaging.update(STACK, FLAT, PLANE)
    averaging.update(STACK, FLAT, WHOLE)
    assert not averaging.ortho
