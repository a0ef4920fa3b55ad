"""The demo in the viewer.

A sandstone with a few painted slices and every dock filled in, one click from training.
"""

from __future__ import annotations

import napari
import numpy as np
from napari.viewer import Viewer
from qtpy.QtWidgets import QApplication

from napari_strata.core.classes import ClassMap
from napari_strata.io.samples import DEMO_OVERRIDES, DEMO_RECIPE, SANDSTONE, sandstone
from napari_strata.plugin import image_layer, labels_layer

PAINTED = (1, 4, 6)
"""Slices of the sandstone that come with labels."""

CLASSES = ClassMap.model_validate(SANDSTONE.model_dump() | {"unlabelled": (0,)})


def open_demo() -> Viewer:
    """A napari viewer with image, labels and the three docks.

    The Train dock is in front, ready to start.
    """
    viewer = napari.Viewer()
    pair = sandstone()
    data, image_attributes, _ = image_layer(pair.image)
    image = viewer.add_image(data, **image_attributes | {"name": "sandstone"})
    exact = np.asarray(pair.labels.data)
    painted = np.zeros_like(exact)
    painted[list(PAINTED)] = exact[list(PAINTED)]
    labels = pair.image.labels_like(painted, classes=CLASSES, name="sandstone labels")
    data, image_attributes, _ = labels_layer(labels)
    viewer.add_labels(data, **image_attributes)
    viewer.dims.set_point(0, PAINTED[0] * image.scale[0])
    viewer.layers.selection.active = image
    dock, train = viewer.window.add_plugin_dock_widget("napari-strata", "Train")
    for name in ("Predict", "Evaluate"):
        viewer.window.add_plugin_dock_widget("napari-strata", name, tabify=True)
    train.recipe_box.set_recipe(DEMO_RECIPE, DEMO_OVERRIDES)
    # until the docks are laid out, none of them can be put in front
    QApplication.processEvents()
    dock.raise_()
    return viewer


def show_demo() -> None:
    """Open the demo and stay until its window is closed."""
    open_demo()
    napari.run()
