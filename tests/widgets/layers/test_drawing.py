"""vispy leaves vertex arrays enabled; before each frame of a viewer with docks, none is."""

from __future__ import annotations

from typing import Any

import numpy as np
from vispy.gloo import gl

from napari_strata.widgets.layers.drawing import disable_arrays
from napari_strata.widgets.session import ViewerSession


def _enabled(_event: object = None) -> list[int]:
    count = gl.glGetParameter(gl.GL_MAX_VERTEX_ATTRIBS)
    states = [
        gl.glGetVertexAttrib(index, gl.GL_VERTEX_ATTRIB_ARRAY_ENABLED)
        for index in range(count)
    ]
    return [index for index, state in enumerate(states) if state]


def test_no_vertex_array_is_enabled_before_a_frame(
    make_napari_viewer: Any, runs: Any
) -> None:
    viewer = make_napari_viewer(show=True)
    ViewerSession.of(viewer)
    viewer.add_image(np.eye(20))
    before: list[list[int]] = []
    after: list[list[int]] = []
    draw = viewer.window._qt_viewer.canvas.events.draw
    draw.connect(lambda _event: before.append(_enabled()), after=disable_arrays)
    draw.connect(lambda _event: after.append(_enabled()), position="last")
    viewer.screenshot(canvas_only=True, flash=False)
    viewer.screenshot(canvas_only=True, flash=False)
    assert before[-1] == []
    assert after[-1], "vispy does not need this guard any more"
