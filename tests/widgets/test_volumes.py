"""3D models and three directions in the docks."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from napari.settings import get_plugin_settings

from napari_strata.plugin import image_layer
from napari_strata.widgets.layers.live import PREDICTED
from napari_strata.widgets.predict.area import PLANE, WHOLE
from napari_strata.widgets.train.dock import TrainDock
from napari_strata.widgets.train.form import RecipeForm
from napari_strata.widgets.train.plan_summary import describe
from napari_strata.worker.protocol import PlanResult
from widgets.models import rock

TINY = {
    "network.widths": [4, 8],
    "patches.size": 32,
    "patches.per_epoch": 16,
    "training.epochs": 6,
    "training.learning_rate": 0.01,
    "training.averaging": None,
    "training.precision": "fp32",
}
PATIENCE = 120_000


@pytest.fixture
def dock(make_napari_viewer: Any, tmp_path: Path, qtbot: Any) -> Iterator[TrainDock]:
    """A Train dock with a small volume, in which every third slice is labelled, and a small recipe unet3d."""
    work = get_plugin_settings("napari-strata").work
    before, work.runs = work.runs, str(tmp_path / "runs")
    viewer = make_napari_viewer(show=True)
    image, truth = rock((24, 64, 64), seed=1)
    data, given, _ = image_layer(image)
    layer = viewer.add_image(data, **given)
    painted = np.array(truth.data)
    painted[np.arange(24) % 3 != 0] = 0
    viewer.add_labels(painted, name="painted", scale=layer.scale)
    viewer.layers.selection = {layer}
    _, found = viewer.window.add_plugin_dock_widget("napari-strata", "Train")
    found.then_box.value = False
    found.recipe_box.set_recipe("unet3d", TINY)
    yield weakref.proxy(
        found
    )  # pytest keeps what is given to a test until napari has looked for leaks
    process = found.session.client._process
    viewer.close()
    del found, viewer, layer, _
    qtbot.waitUntil(
        lambda: process is None or process.status is not None, timeout=PATIENCE
    )
    work.runs = before


def click(button: Any) -> None:
    assert button.enabled, button.tooltip
    button.native.click()


def predict(dock: Any, qtbot: Any) -> np.ndarray[Any, Any]:
    """Click Predict, and return the labels of the newest layer."""
    click(dock.predict_button)
    qtbot.waitUntil(lambda: dock.prediction is None, timeout=PATIENCE)
    assert dock.notice.level != "error", dock.notice.text()
    layers = [
        one
        for one in dock.viewer.layers
        if one.metadata.get(PREDICTED) and "preview" not in one.name
    ]
    return np.array(layers[-1].data)


def test_a_3d_model_from_sparse_slices_to_one_plane_and_the_whole_volume(
    dock: Any, qtbot: Any
) -> None:
    viewer = dock.viewer
    qtbot.waitUntil(
        lambda: "Validation" in dock.plan_summary.text.text(), timeout=PATIENCE
    )
    assert "Patches of 24 planes of 32 x 32 pixels" in dock.plan_summary.text.text()
    viewer.dims.set_current_step(0, 7)
    click(dock.start_button)
    preview: list[Any] = []

    def look() -> bool:
        preview[:] = [one for one in viewer.layers if one.name.endswith("preview")]
        return bool(preview) and bool(np.asarray(preview[0].data)[7].any())

    qtbot.waitUntil(look, timeout=PATIENCE)
    assert not np.asarray(preview[0].data)[[0, 6, 8, 23]].any()
    qtbot.waitUntil(lambda: dock.handle is None, timeout=PATIENCE)
    assert "Training finished" in dock.notice.text(), dock.notice.text()
    assert not dock.panel.preview.isHidden()
    assert list((dock.run / "previews").glob("*.png"))

    _, other = viewer.window.add_plugin_dock_widget("napari-strata", "Predict")
    qtbot.waitUntil(lambda: other.model.spec is not None, timeout=PATIENCE)
    assert "needs volumes" in other.model.text.text()
    assert not other.averaging.directions.enabled
    assert (
        other.averaging.directions.tooltip == "This model sees whole volumes already."
    )
    other.area.combo.value = PLANE
    one = predict(other, qtbot)
    assert one[7].all()
    assert not np.delete(one, 7, axis=0).any()
    assert "1 plane" in other.notice.text()
    other.area.combo.value = WHOLE
    whole = predict(other, qtbot)
    assert whole.all()
    np.testing.assert_array_equal(one[7], whole[7])
    truth = np.asarray(rock((24, 64, 64), seed=1)[1].data)
    assert (whole == truth).mean() > 0.8
    # What is shown last in the training is of these weights, or of those just before them.
    assert (np.asarray(preview[0].data)[7] == whole[7]).mean() > 0.5


def test_a_layer_without_z_is_refused_in_the_plan_and_by_train(
    dock: Any, qtbot: Any
) -> None:
    viewer = dock.viewer
    viewer.layers.clear()
    image, truth = rock((1, 64, 64))
    layer = viewer.add_image(np.asarray(image.data)[0], name="flat")
    viewer.add_labels(np.asarray(truth.data)[0], name="painted")
    viewer.layers.selection = {layer}
    qtbot.waitUntil(
        lambda: "single plane" in dock.plan_summary.text.text(), timeout=PATIENCE
    )
    click(dock.start_button)
    qtbot.waitUntil(lambda: dock.notice.level == "error", timeout=PATIENCE)
    assert "flat: found a single plane" in dock.notice.text()
    qtbot.waitUntil(lambda: dock.handle is None, timeout=PATIENCE)
    qtbot.waitUntil(lambda: bool(dock.start_button.enabled), timeout=PATIENCE)


def test_the_form_disables_settings_of_other_networks(qtbot: Any) -> None:
    form = RecipeForm()
    qtbot.addWidget(form.native)
    depth, flip = form.field("patches.depth"), form.field("augmentation.flip_depth")
    neighbours, resize = form.field("patches.neighbours"), form.field("patches.resize")
    assert [one.native.isEnabled() for one in (depth, flip, neighbours, resize)] == [
        False,
        False,
        True,
        True,
    ]
    assert "single planes" in depth.native.toolTip()
    neighbours.type("1")
    form.field("network.kind").type("unet3d")
    assert neighbours.native.isEnabled()  # it has a problem and can be corrected
    assert "unet3d sees whole volumes" in form.problem
    assert form.value().network.kind != "unet3d"
    neighbours.type("0")
    assert form.problem == ""
    assert form.value().network.kind == "unet3d"
    assert [one.native.isEnabled() for one in (depth, flip, neighbours, resize)] == [
        True,
        True,
        False,
        False,
    ]
    assert "planes above and below" in neighbours.native.toolTip()
    depth.type("12")
    assert form.value().patches.depth == 12
    assert form.field("network.anisotropy").native.isEnabled()
    form.field("network.kind").type("unet")
    assert depth.native.isEnabled()
    assert "sees single planes" in form.problem


def test_the_plan_of_a_3d_training_has_the_number_of_planes() -> None:
    plan = PlanResult(
        recipe={},
        spec={"patch": 64, "depth": {"patch": 1}},
        split="by halves",
        training=(),
        validation=(),
        classes=(),
        labelled_pixels=(),
        device="CPU",
        precision="fp32",
        memory=1_000_000,
        free_memory=None,
        parameters=1,
    )
    assert describe(plan)[2:] == ["Patches of 1 plane of 64 x 64 pixels"]
    flat = plan.model_copy(update={"spec": {"patch": 64, "depth": None}})
    assert len(describe(flat)) == 2
