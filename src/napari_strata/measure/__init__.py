"""Measurements on label images.

`napari_strata.measure` is this package and the function `measures.measure` at once:
importing a module of a package replaces the package's attribute of the same name.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Measure(ModuleType):
    """Package that can be called."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        from napari_strata.measure.measures import measure

        return measure(*args, **options)


sys.modules[__name__].__class__ = _Measure
