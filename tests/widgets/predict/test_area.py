"""Areas of an image from a real viewer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from napari.viewer import Viewer

from napari_strata.widgets.layers.choice import ImageChoice
from napari_strata.widgets.predict.area import (
    PLANE,
    RECTANGLE,
    VIEW,
    WHOLE,
    AreaChoice,
    AreaError,
)

SHAPE = (5, 60, 80)


@pytest.fixture
def viewer(make_napari_viewer: Callable[..., Viewer], qtbot: Any) -> Viewer:
    made = make_napari_viewer(show=True)
    made.add_image(
        np.zeros(SHAPE, np.uint8),
        name="sand",
        scale=(4, 2, 2),
        translate=(0, 10, 20),
        axis_labels=("z", "y", "x"),
    )
    return made


@pytest.fixture
def area(viewer: Viewer, qtbot: Any) -> Iterator[AreaChoice]:
    images = ImageChoice(viewer)
    made = AreaChoice(viewer, images)
    qtbot.addWidget(images)
    qtbot.addWidget(made)
    qtbot.waitUntil(lambda: images.image is not None)
    yield made
    made.disconnect_viewer()
    images.disconnect_viewer()


def _choose(area: AreaChoice, kind: str) -> None:
    area.combo.native.setCurrentIndex([WHOLE, PLANE, VIEW, RECTANGLE].index(kind))


def test_the_whole_stack_has_no_region(area: AreaChoice) -> None:
    assert area.area().region is None
    assert area.text.text() == "5 planes"
    assert area.combo.native.itemText(0) == "Whole stack"


def test_an_image_of_one_plane_is_called_an_image(
    viewer: Viewer, area: AreaChoice, qtbot: Any
) -> None:
    viewer.layers.clear()
    viewer.add_image(np.zeros((40, 40), np.uint8), name="photo")
    qtbot.waitUntil(lambda: area.combo.native.itemText(0) == "Whole image")
    assert area.text.text() == "1 plane"
    _choose(area, PLANE)
    assert area.area().region is None


def test_the_current_plane_follows_the_slider(
    viewer: Viewer, area: AreaChoice, qtbot: Any
) -> None:
    _choose(area, PLANE)
    viewer.dims.set_current_step(0, 3)
    qtbot.waitUntil(lambda: area.combo.native.itemText(1) == "Current plane (Z 3)")
    assert area.area().region == {"Z": 3}
    assert area.text.text() == "1 of 5 planes"


def test_other_displayed_axes_are_refused(
    viewer: Viewer, area: AreaChoice, qtbot: Any
) -> None:
    viewer.layers.clear()
    viewer.add_image(
        np.zeros((3, 4, 30, 30), np.uint8),
        name="film",
        axis_labels=("t", "z", "y", "x"),
    )
    viewer.dims.set_current_step(0, 2)
    viewer.dims.set_current_step(1, 1)
    _choose(area, PLANE)
    qtbot.waitUntil(lambda: area.combo.native.itemText(1) == "Current plane (T 2, Z 1)")
    assert area.area().region == {"T": 2, "Z": 1}


def test_the_visible_area_is_that_of_the_camera(
    viewer: Viewer, area: AreaChoice, qtbot: Any
) -> None:
    viewer.dims.set_current_step(0, 2)
    _choose(area, VIEW)
    viewer.scene.camera.center = (
        0,
        10 + 2 * 30,
        20 + 2 * 40,
    )  # the middle of the image
    viewer.scene.camera.zoom = 20  # screen pixels a unit of the world
    qtbot.waitUntil(
        lambda: "Z 2" in area.text.text() and "60 x 80" not in area.text.text()
    )
    qtbot.wait(200)
    region = area.area().region
    assert region is not None
    assert region["Z"] == 2
    (top, bottom), (left, right) = region["Y"], region["X"]  # type: ignore[misc]
    assert abs((top + bottom) / 2 - 30.5) <= 1.5
    assert abs((left + right) / 2 - 40.5) <= 1.5
    height, width = viewer.window._qt_viewer.canvas.size
    assert abs((bottom - top) - height / 40) <= 3
    assert abs((right - left) - min(80, width / 40)) <= 3


def test_the_view_of_a_pyramid_is_in_pixels_of_its_first_level(
    viewer: Viewer, area: AreaChoice, qtbot: Any
) -> None:
    viewer.layers.clear()
    full = np.zeros((4096, 4096), np.uint8)
    viewer.add_image(
        [full, full[::2, ::2], full[::4, ::4]], multiscale=True, name="slide"
    )
    _choose(area, VIEW)
    viewer.reset_view()
    qtbot.waitUntil(lambda: area.text.text().startswith("4096 x 4096"))


def test_a_view_outside_the_image_is_reported(
    viewer: Viewer, area: AreaChoice, qtbot: Any
) -> None:
    _choose(area, VIEW)
    viewer.scene.camera.zoom = 20
    viewer.scene.camera.center = (0, 5000, 5000)
    qtbot.waitUntil(lambda: "sand is not in view" in area.problem)
    with pytest.raises(AreaError, match="not in view"):
        area.area()


def test_a_view_in_3d_or_from_the_side_is_reported(
    viewer: Viewer, area: AreaChoice, qtbot: Any
) -> None:
    _choose(area, VIEW)
    viewer.dims.ndisplay = 3
    qtbot.waitUntil(lambda: "in 3D" in area.problem)
    viewer.dims.ndisplay = 2
    viewer.dims.order = (1, 0, 2)
    qtbot.waitUntil(lambda: "shows X and Z" in area.problem)


def test_a_rectangle_in_world_units_becomes_pixels_of_the_image(
    viewer: Viewer, area: AreaChoice, qtbot: Any
) -> None:
    _choose(area, RECTANGLE)
    assert "There is no rectangle" in area.problem
    # Rows 5 to 24 and columns 10 to 39 of the image, drawn with the scale and place of the image.
    corners = np.array([[5, 10], [5, 39], [24, 39], [24, 10]])
    viewer.add_shapes([corners], scale=(2, 2), translate=(10, 20), name="box")
    qtbot.waitUntil(lambda: not area.problem)
    assert area.area().region == {"Y": (5, 25), "X": (10, 40)}
    assert (
        area.text.text()
        == "20 x 30 pixels (Y 5 to 24, X 10 to 39), through all 5 planes"
    )


def test_a_rectangle_is_clipped_at_the_edge_and_refused_outside(
    viewer: Viewer, area: AreaChoice, qtbot: Any
) -> None:
    _choose(area, RECTANGLE)
    shapes = viewer.add_shapes(
        [np.array([[-90, -90], [-90, 40], [30, 40], [30, -90]])], name="box"
    )
    qtbot.waitUntil(lambda: not area.problem)
    assert area.area().region == {"Y": (0, 11), "X": (0, 11)}
    shapes.data = [np.array([[-90, -90], [-90, -40], [-30, -40], [-30, -90]])]
    qtbot.waitUntil(lambda: "outside sand" in area.problem)


def test_among_several_shapes_the_selected_one_is_used(
    viewer: Viewer, area: AreaChoice, qtbot: Any
) -> None:
    _choose(area, RECTANGLE)
    one = np.array([[0, 10, 20], [0, 10, 40], [0, 30, 40], [0, 30, 20]], float)
    shapes = viewer.add_shapes([one, one + np.array([0, 20, 20])], name="boxes")
    qtbot.waitUntil(lambda: "has 2 shapes" in area.problem)
    shapes.mode = "select"
    shapes.selected_data = {1}
    qtbot.waitUntil(lambda: not area.problem)
    assert area.area().region == {"Y": (10, 21), "X": (10, 21)}
    viewer.add_shapes([one], name="another")
    viewer.layers.selection.clear()
    qtbot.waitUntil(lambda: "2 Shapes layers" in area.problem)


def test_the_choice_gets_no_events_after_it_is_disconnected(
    viewer: Viewer, qtbot: Any
) -> None:
    images = ImageChoice(viewer)
    area = AreaChoice(viewer, images)
    qtbot.addWidget(images)
    qtbot.addWidget(area)
    _choose(area, RECTANGLE)
    shapes = viewer.add_shapes([np.array([[0, 0], [0, 9], [9, 9], [9, 0]])])
    qtbot.wait(150)
    area.disconnect_viewer()
    images.disconnect_viewer()
    before = area.text.text()
    shapes.data = [np.array([[20, 30], [20, 99], [99, 99], [99, 30]])]
    viewer.dims.set_current_step(0, 4)
    qtbot.wait(200)
    assert area.text.text() == before
