"""Pictures of a real training: reading, panels, scaling, arrows, large window."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qtpy.QtCore import Qt
from qtpy.QtGui import QColor, QImage

from napari_strata.core.metrics import ConfusionMatrix
from napari_strata.evaluation.pictures import Example, draw_example
from napari_strata.widgets.parts.picture import find_panels, read_pixels
from napari_strata.widgets.parts.preview import NO_PICTURE_TEXT, Preview, pictures
from widgets.models import CLASSES, make_run

WIDE = 420


def draw(path: Path, shape: tuple[int, int], *, wrong: bool = False) -> Path:
    """Draw a picture with the engine: upper half grain, lower half pore; the prediction is all grain if `wrong`."""
    truth = np.zeros(shape, np.uint8)
    truth[shape[0] // 2 :] = 1
    prediction = np.zeros(shape, np.uint8) if wrong else truth
    confusion = ConfusionMatrix(CLASSES)
    confusion.update(truth, prediction)
    image = np.full((1, *shape), 100, np.uint8)
    image[0, ::2] = 140
    path.parent.mkdir(parents=True, exist_ok=True)
    draw_example(
        Example.of("rock", image, truth, prediction=prediction, confusion=confusion)
    ).save(path)
    return path


@pytest.fixture
def preview(qtbot: Any) -> Preview:
    widget = Preview()
    qtbot.addWidget(widget)
    widget.resize(WIDE, 300)
    widget.show()
    qtbot.waitExposed(widget)
    return widget


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures, of which the second has a wrong prediction."""
    for number in (1, 2, 10):
        draw(tmp_path / f"epoch_{number:04d}.png", (64, 64), wrong=number == 2)
    return tmp_path


def color_at(preview: Preview, panel: int, down: float) -> QColor:
    """Return the colour in the middle of a panel, at a relative height."""
    place = preview.picture.panel_areas()[panel]
    image = preview.picture.grab().toImage()
    return image.pixelColor(
        round(place.center().x()), round(place.top() + down * place.height())
    )


def is_like(color: QColor, wanted: str) -> bool:
    return (
        max(
            abs(a - b)
            for a, b in zip(
                color.getRgb()[:3], QColor(wanted).getRgb()[:3], strict=True
            )
        )
        < 45
    )


def test_the_newest_picture_of_a_training(
    preview: Preview, qtbot: Any, tmp_path: Path
) -> None:
    run = make_run(tmp_path)
    preview.set_folder(run / "previews")
    qtbot.waitUntil(lambda: preview.epoch == 3)
    assert preview.caption.text() == "Validation after epoch 3"
    qtbot.waitUntil(lambda: len(preview.picture._scaled) == 3)
    assert not preview.text.isVisible()


def test_the_panels_are_cut_out_and_scaled_to_the_width(
    preview: Preview, qtbot: Any, folder: Path
) -> None:
    preview.set_folder(folder)
    qtbot.waitUntil(lambda: len(preview.picture._scaled) == 3)
    qtbot.wait(150)
    places = preview.picture.panel_areas()
    assert places[0].width() == pytest.approx((WIDE - 8) / 3, abs=1)
    assert places[0].width() == pytest.approx(places[0].height())
    assert preview.picture._scaled[0].width() == pytest.approx(places[0].width(), abs=1)
    grain, pore = CLASSES.colors
    for panel in (1, 2):
        assert is_like(color_at(preview, panel, 0.25), grain)
        assert is_like(color_at(preview, panel, 0.75), pore)
    assert color_at(preview, 0, 0.75).saturation() == 0


@pytest.mark.parametrize("shape", [(64, 64), (200, 90), (40, 400), (700, 900)])
def test_the_panels_of_any_shape_are_found(
    tmp_path: Path, shape: tuple[int, int]
) -> None:
    panels = find_panels(read_pixels(draw(tmp_path / "epoch_0001.png", shape)))
    assert len({panel.shape for panel in panels}) == 1
    assert panels[0].shape[1] / panels[0].shape[0] == pytest.approx(
        shape[1] / shape[0], rel=0.05
    )
    assert np.ptp(panels[0], axis=2).max() == 0
    for panel in panels[1:]:
        assert (
            np.ptp(panel, axis=2).min() > 20
        )  # colours to every edge: no paper, no neighbour
    assert find_panels(np.full((50, 50, 3), 255, np.uint8)) == ()


def test_flat_panels_are_below_each_other(
    preview: Preview, qtbot: Any, tmp_path: Path
) -> None:
    draw(tmp_path / "epoch_0001.png", (40, 400))
    preview.set_folder(tmp_path)
    qtbot.waitUntil(lambda: len(preview.picture._scaled) == 3)
    places = preview.picture.panel_areas()
    assert places[0].bottom() < places[1].top()
    assert places[0].width() == pytest.approx(WIDE, abs=2)
    assert places[2].bottom() <= preview.picture.height() + 1


def test_arrows_step_through_the_epochs(
    preview: Preview, qtbot: Any, folder: Path
) -> None:
    preview.set_folder(folder)
    qtbot.waitUntil(lambda: preview.epoch == 10)
    assert not preview.forth.isEnabled()
    assert "newest" in preview.forth.toolTip()
    qtbot.mouseClick(preview.back, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: preview.epoch == 2)
    qtbot.waitUntil(lambda: is_like(color_at(preview, 2, 0.75), CLASSES.colors[0]))
    draw(folder / "epoch_0011.png", (64, 64))
    preview.refresh()
    qtbot.waitUntil(lambda: preview.describe() == "Epoch 2 of 11")
    qtbot.mouseClick(preview.back, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: preview.epoch == 1)
    assert not preview.back.isEnabled()
    preview.step(99)
    qtbot.waitUntil(lambda: preview.epoch == 11)
    draw(folder / "epoch_0012.png", (64, 64))
    preview.refresh()
    qtbot.waitUntil(lambda: preview.epoch == 12)


def test_a_folder_that_fills_later_and_no_folder(
    preview: Preview, qtbot: Any, folder: Path, tmp_path: Path
) -> None:
    later = tmp_path / "later"
    preview.set_folder(later)
    qtbot.waitUntil(lambda: not preview._busy)
    assert preview.text.text() == NO_PICTURE_TEXT
    assert preview.text.isVisible()
    assert not preview.picture.isVisible()
    draw(later / "epoch_0001.png", (64, 64))
    (later / ".99.tmp.epoch_0002.png").write_bytes(b"half")
    preview.refresh()
    qtbot.waitUntil(lambda: preview.epoch == 1)
    assert preview.picture.isVisible()
    preview.set_folder(None)
    assert preview.epoch is None
    assert preview.text.isVisible()


def test_the_last_folder_is_shown(
    preview: Preview, qtbot: Any, folder: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    draw(other / "epoch_0005.png", (64, 64))
    preview.set_folder(folder)
    preview.set_folder(other)
    qtbot.waitUntil(lambda: not preview._busy)
    assert preview.epoch == 5


def test_a_damaged_picture_is_reported(
    preview: Preview, qtbot: Any, folder: Path
) -> None:
    (folder / "epoch_0011.png").write_bytes(b"no picture")
    preview.set_folder(folder)
    qtbot.waitUntil(lambda: "cannot be read" in preview.text.text())
    (folder / "epoch_0011.png").unlink()
    preview.refresh()
    qtbot.waitUntil(lambda: preview.epoch == 10)
    assert not preview.text.isVisible()


def test_a_click_opens_a_window_that_follows_and_closes_with_escape(
    preview: Preview, qtbot: Any, folder: Path
) -> None:
    preview.set_folder(folder)
    qtbot.waitUntil(lambda: preview.epoch == 10)
    qtbot.mouseClick(preview.picture, Qt.MouseButton.LeftButton)
    window = preview._large
    assert window is not None
    qtbot.waitUntil(window.isVisible)
    assert not window.isModal()
    assert "epoch 10" in window.windowTitle()
    qtbot.waitUntil(lambda: len(window.picture._scaled) == 1)
    whole = QImage(str(pictures(folder)[-1]))
    shown = window.picture.panel_areas()[0]
    assert shown.width() / shown.height() == pytest.approx(
        whole.width() / whole.height(), rel=0.01
    )
    window.activateWindow()
    preview.step(-1)
    qtbot.waitUntil(lambda: "epoch 2 of 10" in window.windowTitle())
    qtbot.waitUntil(window.isActiveWindow)
    qtbot.keyClick(window, Qt.Key.Key_Left)
    qtbot.waitUntil(lambda: preview.epoch == 1)
    qtbot.keyClick(window, Qt.Key.Key_Right)
    qtbot.waitUntil(lambda: preview.epoch == 2)
    qtbot.keyClick(window, Qt.Key.Key_Escape)
    assert not window.isVisible()
    qtbot.mouseClick(preview.picture, Qt.MouseButton.LeftButton)
    assert preview._large is window
    assert window.isVisible()
    window.close()


def test_a_widget_that_is_deleted_while_a_picture_is_read(
    qtbot: Any, folder: Path
) -> None:
    widget = Preview()
    widget.set_folder(folder)
    widget.deleteLater()
    qtbot.wait(200)
    shutil.rmtree(folder)
