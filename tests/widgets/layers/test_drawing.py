"""A removed layer is deleted in the OpenGL context that draws it."""

from __future__ import annotations

from typing import Any

import numpy as np
from qtpy.QtGui import QOpenGLContext
from qtpy.QtOpenGLWidgets import QOpenGLWidget
from vispy.gloo.glir import GlirTexture

from napari_strata.widgets.session import ViewerSession


def test_textures_are_deleted_in_the_context_of_the_canvas(
    make_napari_viewer: Any, runs: Any, monkeypatch: Any
) -> None:
    viewer = make_napari_viewer(show=True)
    ViewerSession.of(viewer)
    (canvas,) = viewer.window._qt_window.findChildren(QOpenGLWidget)
    image = viewer.add_image(np.eye(20))
    viewer.screenshot(canvas_only=True, flash=False)
    contexts = []
    delete = GlirTexture.delete

    def record(self: Any) -> None:
        contexts.append(QOpenGLContext.currentContext())
        delete(self)

    monkeypatch.setattr(GlirTexture, "delete", record)
    canvas.doneCurrent()  # as after Qt has drawn the window
    viewer.layers.remove(image)
    assert contexts
    assert all(context == canvas.context() for context in contexts)
