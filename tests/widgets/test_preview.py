from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Pillow
from PIL import ImageDraw
from qtpy.QtCore import Qt
from qtpy.QtGui import QColor, QImage

from napari_strata.widgets._preview import Preview, fitted, panels, pictures

COLORS = ("red", "lime", "blue")


def draw(folder: Path, epoch: int, *, prediction: str = "blue") -> Path:
    """As the engine's: three panels of 90 x 60 on white paper, words above and below."""
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
    qtbot.waitUntil(lambda: widget.strip.isVisible())
    return widget


def test_pictures_come_in_the_order_of_the_epochs(tmp_path: Path) -> None:
    for epoch in (10000, 2, 9999):
        draw(tmp_path / "p", epoch)
    (tmp_path / "p" / "epoch_0003.png.part").write_bytes(b"")
    assert list(pictures(tmp_path / "p")) == [2, 9999, 10000]
    assert pictures(tmp_path / "nowhere") == {}


def test_the_three_panels_are_cut_out(tmp_path: Path) -> None:
    parts = panels(QImage(str(draw(tmp_path, 1))))
    assert [(p.width(), p.height()) for p in parts] == [(90, 60)] * 3
    for part, color in zip(parts, COLORS, strict=True):
        for corner in ((0, 0), (89, 59)):
            assert part.pixelColor(*corner) == QColor(color)


@pytest.mark.parametrize("color", ["white", "black"])
def test_another_picture_stays_whole(color: str) -> None:
    other = QImage(50, 40, QImage.Format.Format_RGB32)
    other.fill(QColor(color))
    assert [(p.width(), p.height()) for p in panels(other)] == [(50, 40)]
    assert len(panels(QImage())) == 1


def test_panels_fill_the_width_on_a_fine_display_but_are_not_enlarged(tmp_path: Path) -> None:
    parts = panels(QImage(str(draw(tmp_path, 1))))
    strip = fitted(parts, 128, 2.0)
    assert (strip.width(), strip.height()) == (80 * 3 + 16, 53)
    assert strip.deviceIndependentSize().width() == 128
    assert strip.pixelColor(80 + 4, 10).alpha() == 0
    assert fitted(parts, 2000, 1.0).width() == 90 * 3 + 8


def test_the_newest_epoch_is_shown(preview: Preview) -> None:
    assert preview.epoch == 3
    assert "epoch 3" in preview.caption.text()
    assert preview.strip.pixmap().deviceIndependentSize().width() == 278  # not enlarged: 3 x 90 and two gaps


def test_a_newer_picture_is_taken_up(qtbot: Any, preview: Preview, tmp_path: Path) -> None:
    draw(tmp_path / "previews", 4, prediction="yellow")
    preview.refresh()
    qtbot.waitUntil(lambda: preview.epoch == 4)
    qtbot.waitUntil(lambda: preview.strip.pixmap().toImage().pixelColor(250, 20) == QColor("yellow"))
    assert "epoch 4" in preview.caption.text()


def test_it_follows_the_width(qtbot: Any, preview: Preview) -> None:
    preview.resize(200, 200)
    qtbot.waitUntil(lambda: preview.strip.pixmap().deviceIndependentSize().width() == 200)
    assert preview.minimumSizeHint().width() < 150


def test_nothing_there_yet_is_said(qtbot: Any, preview: Preview, tmp_path: Path) -> None:
    preview.set_folder(tmp_path / "nowhere")
    qtbot.wait(200)
    assert "after the first epoch" in preview.caption.text()
    assert not preview.strip.isVisible()
    preview.enlarge()
    preview.set_folder(None)
    preview.refresh()
    assert preview.epoch is None


def test_a_half_written_picture_does_no_harm(qtbot: Any, preview: Preview, tmp_path: Path) -> None:
    (tmp_path / "previews" / "epoch_0004.png").write_bytes(b"\x89PNG")
    preview.refresh()
    qtbot.wait(200)
    assert preview.epoch == 3


def test_a_click_opens_it_large_and_keys_step_through_the_epochs(qtbot: Any, preview: Preview, tmp_path: Path) -> None:
    qtbot.mouseClick(preview.strip, Qt.MouseButton.LeftButton)
    large = preview._large
    assert large is not None
    assert large.isVisible()
    assert not large.isModal()
    qtbot.waitUntil(lambda: not large.pixmap.isNull())
    assert large.epoch == 3
    for key, epoch in (("Left", 2), ("Left", 1), ("Left", 1), ("Right", 2), ("End", 3), ("Right", 3), ("Home", 1)):
        qtbot.keyClick(large, getattr(Qt.Key, f"Key_{key}"))
        assert large.epoch == epoch
        assert f"Epoch {epoch} of 3" in large.windowTitle()
    draw(tmp_path / "previews", 4)
    preview.refresh()
    qtbot.waitUntil(lambda: preview.epoch == 4)
    assert large.epoch == 1  # an older one that is looked at stays
    qtbot.keyClick(large, Qt.Key.Key_End)
    draw(tmp_path / "previews", 5)
    preview.refresh()
    qtbot.waitUntil(lambda: large.epoch == 5)
    assert not large.grab().isNull()
    qtbot.keyClick(large, Qt.Key.Key_Escape)
    assert not large.isVisible()


def test_the_keyboard_opens_it_too(qtbot: Any, preview: Preview) -> None:
    qtbot.keyClick(preview.strip, Qt.Key.Key_Return)
    assert preview._large is not None
    assert preview._large.isVisible()
    preview.set_folder(None)
    assert not preview._large.isVisible()
