"""Colours of the theme."""

from __future__ import annotations

from qtpy.QtGui import QColor


def faded(color: QColor, share: float) -> QColor:
    """Return a colour with its opacity set to `share`, from 0 to 1."""
    result = QColor(color)
    result.setAlphaF(share)
    return result
