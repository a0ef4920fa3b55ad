"""Guard against a crash of napari when it removes a layer."""

from __future__ import annotations

import weakref

from napari.components import ViewerModel
from qtpy.QtCore import QObject
from qtpy.QtOpenGLWidgets import QOpenGLWidget


def guard_removal(viewer: ViewerModel, window: QObject) -> None:
    """Make the OpenGL context of the canvas current before a layer is removed.

    napari 0.9 deletes the textures of a removed layer in the context that happens to be
    current, which may be Qt's own. The context of the canvas then still uses them, and
    the next frame may end in a segmentation fault (seen with Mesa's software renderer).

    Parameters
    ----------
    window
        napari's main window.
    """
    reference = weakref.ref(window)

    def make_current(_event: object) -> None:
        main_window = reference()
        if main_window is None:
            return
        for canvas in main_window.findChildren(QOpenGLWidget):
            canvas.makeCurrent()

    viewer.layers.events.removing.connect(make_current)
