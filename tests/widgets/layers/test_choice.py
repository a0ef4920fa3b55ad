from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from napari.components import ViewerModel
from napari.layers import Labels as LabelsLayer
from qtpy.QtWidgets import QWidget

from napari_strata.widgets.layers.choice import ImageChoice, LabelsChoice
from napari_strata.widgets.layers.live import PREDICTED, add_quietly

GREY = np.zeros((4, 32, 48), np.uint16)


@pytest.fixture
def make(
    qtbot: Any,
) -> Iterator[Callable[[ViewerModel], tuple[ImageChoice, LabelsChoice]]]:
    made: list[Any] = []
    holders: list[QWidget] = []

    def build(viewer: ViewerModel) -> tuple[ImageChoice, LabelsChoice]:
        holder = QWidget()
        qtbot.addWidget(holder)
        holders.append(holder)  # qtbot holds it weakly
        images = ImageChoice(viewer, holder)
        labels = LabelsChoice(viewer, images)
        made.extend((images, labels))
        return images, labels

    yield build
    for one in made:
        one.disconnect_viewer()


def _settle(qtbot: Any) -> None:
    qtbot.wait(20)


def test_without_layers_a_text_says_what_to_do(make: Any) -> None:
    images, labels = make(ViewerModel())
    assert images.layer is None
    assert "No image is open" in images.text.text()
    assert not labels.new_button.enabled


def test_the_choice_follows_the_selection_and_is_empty_among_several(
    make: Any, qtbot: Any
) -> None:
    viewer = ViewerModel()
    images, _ = make(viewer)
    one = viewer.add_image(
        GREY,
        name="one",
        scale=(2, 1, 1),
        axis_labels=("z", "y", "x"),
        units=("um",) * 3,
    )
    _settle(qtbot)
    assert images.layer is one
    assert images.text.text() == "4 x 32 x 48 (ZYX), uint16, 2 x 1 x 1 µm"
    two = viewer.add_image(GREY, name="two")
    viewer.layers.selection = {two}
    _settle(qtbot)
    assert images.layer is two
    assert "axes assumed" in images.text.text()
    other = viewer.add_image(GREY, name="three")
    viewer.layers.selection = {one, other}
    _settle(qtbot)
    assert images.layer is None
    assert images.problem == "2 images are selected: choose one here."
    images.combo.value = one
    assert images.layer is one


def test_painting_on_the_labels_keeps_the_image(make: Any, qtbot: Any) -> None:
    viewer = ViewerModel()
    images, labels = make(viewer)
    one, _two = viewer.add_image(GREY, name="one"), viewer.add_image(GREY, name="two")
    viewer.layers.selection = {one}
    _settle(qtbot)
    mine = viewer.add_labels(np.zeros(GREY.shape, np.uint8))
    viewer.layers.selection = {mine}
    _settle(qtbot)
    assert images.layer is one
    assert labels.layer is mine


def test_rename_reorder_and_delete(make: Any, qtbot: Any) -> None:
    viewer = ViewerModel()
    images, _ = make(viewer)
    one, two = viewer.add_image(GREY, name="one"), viewer.add_image(GREY, name="two")
    viewer.layers.selection = {one}
    _settle(qtbot)
    one.name = "renamed"
    _settle(qtbot)
    assert images.combo.native.currentText() == "renamed"
    assert images.image is not None
    assert images.image.name == "renamed"
    viewer.layers.move(0, 2)
    _settle(qtbot)
    assert images.layer is one
    viewer.layers.remove(one)
    viewer.layers.selection = set()
    _settle(qtbot)
    assert images.layer is two  # the only one that is left


def test_edited_axes_are_stored_in_the_layer(make: Any, qtbot: Any) -> None:
    viewer = ViewerModel()
    images, _ = make(viewer)
    layer = viewer.add_image(GREY, name="one")
    _settle(qtbot)
    assert images.axes.value == "ZYX"
    images.axes.value = "tyx"
    images.axes.native.editingFinished.emit()
    assert layer.axis_labels == ("t", "y", "x")
    assert images.image is not None
    assert images.image.axes == "TYX"
    images.axes.value = "YX"
    images.axes.native.editingFinished.emit()
    assert images.image is None
    assert "3 dimensions need 3 letters" in images.text.text()


def test_new_labels_fit_the_image_and_can_be_painted(make: Any, qtbot: Any) -> None:
    viewer = ViewerModel()
    _, labels = make(viewer)
    place = {
        "scale": (2, 1, 1),
        "translate": (5, 6, 7),
        "axis_labels": ("z", "y", "x"),
        "units": ("um",) * 3,
    }
    viewer.add_image(GREY, name="sand", **place)
    _settle(qtbot)
    assert "press New labels" in labels.text.text()
    labels.names.setText("pore, clay,, pore")
    created: list[Any] = []
    labels.created.connect(lambda *arguments: created.append(arguments))
    labels.new_button.native.click()
    (layer,) = [one for one in viewer.layers if one.name == "sand labels"]
    assert layer.data.shape == GREY.shape
    assert tuple(layer.scale) == (2, 1, 1)
    assert tuple(layer.translate) == (5, 6, 7)
    assert layer.axis_labels == ("z", "y", "x")
    assert (layer.mode, layer.selected_label) == ("paint", 1)
    assert created == [(layer, ("pore", "clay"))]
    _settle(qtbot)
    assert labels.layer is layer
    assert not labels.names.isVisibleTo(labels)


def test_labels_that_fit_are_chosen_and_others_are_explained(
    make: Any, qtbot: Any
) -> None:
    viewer = ViewerModel()
    _, labels = make(viewer)
    image = viewer.add_image(GREY, name="sand")
    wrong = viewer.add_labels(np.zeros((4, 32, 40), np.uint8), name="wrong")
    right = viewer.add_labels(np.zeros(GREY.shape, np.uint8), name="right")
    viewer.layers.selection = {image}
    _settle(qtbot)
    assert labels.layer is right
    viewer.layers.selection = {wrong}
    _settle(qtbot)
    assert labels.layer is wrong
    assert "4 x 32 x 40, and the image is 4 x 32 x 48" in labels.problem
    viewer.layers.remove(right)
    viewer.layers.remove(wrong)
    _settle(qtbot)
    assert labels.layer is None


def test_a_prediction_is_trained_on_only_if_the_user_chooses_it(
    make: Any, qtbot: Any
) -> None:
    viewer = ViewerModel()
    _, labels = make(viewer)
    viewer.add_image(GREY, name="sand")
    mine = viewer.add_labels(np.zeros(GREY.shape, np.uint8), name="mine")
    viewer.layers.selection = {mine}
    _settle(qtbot)
    made = LabelsLayer(
        np.zeros(GREY.shape, np.uint8),
        name="sand segmented",
        metadata={PREDICTED: True},
    )
    add_quietly(viewer, made)
    _settle(qtbot)
    assert viewer.layers.selection.active is mine
    assert labels.layer is mine
    viewer.layers.selection = {made}
    _settle(qtbot)
    assert labels.layer is mine
    labels.combo.value = made
    _settle(qtbot)
    assert labels.layer is made
