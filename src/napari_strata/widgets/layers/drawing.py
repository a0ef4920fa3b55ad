"""Guard against a crash of vispy, which draws napari's canvas."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from vispy.gloo import gl


def guard_drawing(window: Any) -> None:
    """Disable all vertex arrays before each frame of a napari window.

    vispy leaves the vertex arrays of what it drew last enabled
    (https://github.com/vispy/vispy/issues/1611). When that layer is removed, they point
    to freed memory, and the next draw may end in a segmentation fault. Each visual
    enables the arrays that it needs, so nothing else changes.

    Parameters
    ----------
    window
        napari's main window.
    """
    window._qt_viewer.canvas.events.draw.connect(disable_arrays, position="first")


def disable_arrays(_event: object = None) -> None:
    """Disable all vertex arrays of the current OpenGL context."""
    for index in range(_count_arrays()):
        gl.glDisableVertexAttribArray(index)


@lru_cache(maxsize=1)
def _count_arrays() -> int:
    return int(gl.glGetParameter(gl.GL_MAX_VERTEX_ATTRIBS))
