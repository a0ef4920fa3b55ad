from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow
from PIL import ImageDraw
from qtpy.QtCore import Qt
from qtpy.QtGui import QColor

from napari_strata.widgets.parts.picture import find_panels
from napari_strata.widgets.parts.preview import Preview, pictures


def draw(folder: Path, epoch: int, *, prediction: str = "blue") -> Path:
    """Draw a picture like the engine's: three panels of 90 x 60 with text above and below."""
    folder.mkdir(exist_ok=True)
    canvas = Pillow.new("RGB", (358, 200), "white")
    pen = ImageDraw.Draw(canvas)
    pen.text((28, 10), "sandstone", "black")
    for number, color in enumerate(("red", "lime", prediction)):
        left = 28 + number * 106
        pen.rectangle((left, 60, left + 89, 119), fill=color)
        pen.text((left, 150), "pore", "black")
    path = folder / f"epoch_{epoch:04d}.png"
    canvas.save(path)
    return path


@pytest.fixture
def preview(qtbot: Any, tmp_path: Path) -> Preview:
    """A preview, 300 wide, of epochs 1 to 3."""
    for epoch in (1, 2, 3):
        draw(tmp_path / "previews", epoch)
    widget = Preview()
    qtbot.addWidget(widget)
    widget.resize(300, 200)
    widget.show()
    widget.set_folder(tmp_path / "previews")
    qtbot.waitUntil(lambda: widget.epoch == 3)
    return widget


def panel_color(preview: Preview, panel: int) -> QColor:
    """Return the colour in the middle of a visible panel."""
    return QColor(
        preview.picture.grab()
        .toImage()
        .pixelColor(preview.picture.panel_areas()[panel].center().toPoint())
    )


def test_pictures_are_sorted_by_epoch(tmp_path: Path) -> None:
    for epoch in (10000, 2, 9999):
        draw(tmp_path / "p", epoch)
    assert [path.name for path in pictures(tmp_path / "p")] == [
        "epoch_0002.png",
        "epoch_9999.png",
        "epoch_10000.png",
    ]
    assert pictures(tmp_path / "nowhere") == ()


def test_the_three_panels_are_cut_out() -> None:
    pixels = np.full((200, 358, 3), 255, np.uint8)
    for number in range(3):
        pixels[60:120, 28 + number * 106 : 118 + number * 106] = 10 * number
    assert [(p.shape, p.min(), p.max()) for p in find_panels(pixels)] == [
        ((60, 90, 3), v, v) for v in (0, 10, 20)
    ]
    assert find_panels(np.full((50, 40, 3), 255, np.uint8)) == ()


def test_image_truth_and_prediction_of_the_newest_epoch_are_visible(
    qtbot: Any, preview: Preview
) -> None:
    assert "epoch 3" in preview.caption.text()
    for number, color in enumerate(("red", "lime", "blue")):
        qtbot.waitUntil(lambda n=number, c=color: panel_color(preview, n) == QColor(c))
    assert preview.picture.panel_areas()[2].right() <= 300


def test_a_newer_picture_is_shown(qtbot: Any, preview: Preview, tmp_path: Path) -> None:
    draw(tmp_path / "previews", 4, prediction="yellow")
    preview.refresh()
    qtbot.waitUntil(lambda: preview.epoch == 4)
    qtbot.waitUntil(lambda: panel_color(preview, 2) == QColor("yellow"))
    assert "epoch 4" in preview.caption.text()


def test_it_follows_the_width(preview: Preview) -> None:
    preview.resize(200, 200)
    assert preview.picture.panel_areas()[2].right() <= 200
    assert preview.minimumSizeHint().width() < 200


def test_the_arrows_show_earlier_epochs_and_are_disabled_at_the_ends(
    qtbot: Any, preview: Preview, tmp_path: Path
) -> None:
    assert not preview.forth.isEnabled()
    assert "newest" in preview.forth.toolTip()
    qtbot.mouseClick(preview.back, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: preview.epoch == 2)
    draw(tmp_path / "previews", 4)
    preview.refresh()
    qtbot.waitUntil(lambda: "of 4" in preview.describe())
    assert preview.epoch == 2  # the one that is looked at stays


def test_without_pictures_a_text_is_shown(
    qtbot: Any, preview: Preview, tmp_path: Path
) -> None:
    preview.set_folder(tmp_path / "nowhere")
    qtbot.wait(150)
    assert preview.text.isVisible()
    assert not preview.picture.isVisible()
    preview.set_folder(None)
    preview.refresh()
    assert preview.epoch is None


def test_a_damaged_picture_is_reported_and_ignored(
    qtbot: Any, preview: Preview, tmp_path: Path
) -> None:
    (tmp_path / "previews" / "epoch_0004.png").write_bytes(b"PNG")
    preview.refresh()
    qtbot.waitUntil(lambda: "cannot be read" in preview.text.text())
    draw(tmp_path / "previews", 5)
    preview.refresh()
    qtbot.waitUntil(lambda: preview.epoch == 5)
    assert not preview.text.isVisible()


def test_a_click_opens_it_large_and_keys_step_through_the_epochs(
    qtbot: Any, preview: Preview
) -> None:
    qtbot.mouseClick(preview.picture, Qt.MouseButton.LeftButton)
    large = preview._large
    assert large is not None
    assert large.isVisible()
    assert not large.isModal()
    qtbot.waitUntil(large.isActiveWindow)
    for key, epoch in (
        (Qt.Key.Key_Left, 2),
        (Qt.Key.Key_Left, 1),
        (Qt.Key.Key_Right, 2),
    ):
        qtbot.keyClick(large, key)
        qtbot.waitUntil(lambda e=epoch: preview.epoch == e)
        assert f"epoch {epoch}" in large.windowTitle()
    qtbot.keyClick(large, Qt.Key.Key_Escape)
    qtbot.waitUntil(lambda: not large.isVisible())
