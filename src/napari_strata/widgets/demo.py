"""Demo in the viewer: a sandstone with a few labelled slices, ready to train."""

from __future__ import annotations

import napari
import numpy as np
from napari.viewer import Viewer
from qtpy.QtWidgets import QApplication

from napari_strata.core.classes import ClassMap
from napari_strata.io.samples import DEMO_OVERRIDES, DEMO_RECIPE, SANDSTONE, sandstone
from napari_strata.plugin import image_layer, labels_layer

LABELLED_SLICES = (1, 4, 6)
"""Slices of the sandstone with labels."""

CLASSES = ClassMap.model_validate(SANDSTONE.model_dump() | {"unlabelled": (0,)})


def open_demo() -> Viewer:
    """Open a napari viewer with image, labels and the docks, ready to train."""
    viewer = napari.Viewer()
    pair = sandstone()
    data, image_attributes, _ = image_layer(pair.image)
    image = viewer.add_image(data, **image_attributes | {"name": "sandstone"})
    exact = np.asarray(pair.labels.data)
    painted = np.zeros_like(exact)
    painted[list(LABELLED_SLICES)] = exact[list(LABELLED_SLICES)]
    labels = pair.image.labels_like(painted, classes=CLASSES, name="sandstone labels")
    data, image_attributes, _ = labels_layer(labels)
    viewer.add_labels(data, **image_attributes)
    viewer.dims.set_point(0, LABELLED_SLICES[0] * image.scale[0])
    viewer.layers.selection.active = image
    dock, train = viewer.window.add_plugin_dock_widget("napari-strata", "Train")
    for name in ("Predict", "Evaluate"):
        viewer.window.add_plugin_dock_widget("napari-strata", name, tabify=True)
    train.recipe_box.set_recipe(DEMO_RECIPE, DEMO_OVERRIDES)
    # A dock can be raised only after the layout of the docks.
    QApplication.processEvents()
    dock.raise_()
    return viewer


def show_demo() -> None:
    """Open the demo and wait until its window is closed."""
    open_demo()
    napari.run()
