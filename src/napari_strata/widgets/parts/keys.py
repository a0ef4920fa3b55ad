"""Keys of the viewer."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from napari.components import ViewerModel


def bind_method(viewer: ViewerModel, key: str, method: Callable[[], Any]) -> None:
    """Call a method when a key is pressed.

    The viewer does not keep the object of the method, and its window, alive.
    """
    reference = weakref.WeakMethod(method)

    def call(_viewer: object) -> None:
        bound = reference()
        if bound is not None:
            bound()

    viewer.bind_key(key, call, overwrite=True)
