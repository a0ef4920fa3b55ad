"""The demo opens with all docks filled in, ready to train."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import napari
import numpy as np
import pytest
from qtpy.QtWidgets import QDockWidget

from napari_strata.core.classes import ClassMap
from napari_strata.core.recipes import load_recipe
from napari_strata.io.samples import DEMO_OVERRIDES, DEMO_RECIPE, SANDSTONE, sandstone
from napari_strata.plugin import METADATA
from napari_strata.widgets import demo


def test_the_demo_is_ready_for_one_click(
    make_napari_viewer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, qtbot: Any
) -> None:
    viewer = make_napari_viewer(show=True)
    monkeypatch.setattr(napari, "Viewer", lambda: viewer)
    assert demo.open_demo() is viewer
    image, labels = viewer.layers
    pair = sandstone()
    np.testing.assert_array_equal(image.data, pair.image.data)
    painted = [z for z in range(8) if labels.data[z].any()]
    assert painted == list(demo.LABELLED_SLICES)
    np.testing.assert_array_equal(
        labels.data[painted], np.asarray(pair.labels.data)[painted]
    )
    classes = ClassMap.model_validate(labels.metadata[METADATA])
    assert (classes.names, classes.values, classes.unlabelled) == (
        SANDSTONE.names,
        SANDSTONE.values,
        (0,),
    )
    assert tuple(image.scale) == tuple(labels.scale) == pair.image.scale
    assert viewer.layers.selection.active is image
    assert viewer.dims.current_step[0] == demo.LABELLED_SLICES[0]
    window = viewer.window._qt_window
    docks = {
        dock.windowTitle().partition(" (")[0]: dock
        for dock in window.findChildren(QDockWidget)
    }
    train = docks["Train"]
    assert set(window.tabifiedDockWidgets(train)) == {
        docks["Predict"],
        docks["Evaluate"],
    }
    qtbot.waitUntil(lambda: not train.visibleRegion().isEmpty(), timeout=120_000)
    recipe = train.inner_widget().recipe_box.recipe()
    assert recipe == load_recipe(DEMO_RECIPE).with_overrides(DEMO_OVERRIDES)
