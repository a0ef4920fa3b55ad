"""Keyboard shortcuts of the Train dock. napari has no other use for these keys."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shortcut:
    """Key in napari's notation, and what it does."""

    key: str
    text: str


TRAIN = Shortcut("Shift-T", "Train, or stop the training")
NEXT_CLASS = Shortcut("W", "Paint with the next class")
PREVIOUS_CLASS = Shortcut("Q", "Paint with the class before")
HIDE_MASK = Shortcut("H", "Hide or show the live mask")
HIDE_PREVIEW = Shortcut("J", "Hide or show the preview of the training")
NEXT_WINDOW = Shortcut("N", "Next window to paint")
SKIP_WINDOW = Shortcut("K", "Skip this window")

SHORTCUTS = (
    TRAIN,
    NEXT_CLASS,
    PREVIOUS_CLASS,
    HIDE_MASK,
    HIDE_PREVIEW,
    NEXT_WINDOW,
    SKIP_WINDOW,
)
"""All shortcuts, in the order of the help."""
