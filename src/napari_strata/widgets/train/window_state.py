"""Decisions about the windows to be painted next, without Qt."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from napari_strata.widgets.parts.control import Control
from napari_strata.widgets.train.shortcuts import NEXT_WINDOW, SKIP_WINDOW

Array = np.ndarray[Any, Any]

LITTLE = 0.002
"""Share of the mask below which a window has changed little.

Measured on a sandstone slice of 1024 x 996 pixels: windows 2 to 9 changed .6 to 2.0 %,
10 to 28 about .3 %, and windows 33 to 35 were the first three in a row below .2 %. The
mean IoU of the slice, .85 with strokes alone, was .90 from window 15 on.
"""
FEW = 3
"""Windows in a row that change little before more are said to hardly help."""


@dataclass(frozen=True)
class WindowState:
    """Windows shown so far, on the same labels.

    Parameters
    ----------
    has_mask
        True while a live mask is shown.
    is_searching
        True while the worker looks for a window.
    is_skipping
        True if the window before is not counted.
    has_window
        True while a window is shown.
    number
        Number of the window that is shown, from 1; skipped ones do not count.
    changes
        Share of the mask that each painted window has changed.
    problem
        Reason why no window was found; empty if one was.
    """

    has_mask: bool = False
    is_searching: bool = False
    is_skipping: bool = False
    has_window: bool = False
    number: int = 0
    changes: tuple[float, ...] = ()
    problem: str = ""

    def searching(self, *, skip: bool) -> WindowState:
        """State while the next window is looked for."""
        return replace(
            self, is_searching=True, is_skipping=skip, has_window=False, problem=""
        )

    def found(self, changed: float | None) -> WindowState:
        """State when a window is shown; `changed` since the window before."""
        state = replace(self, is_searching=False, has_window=True)
        if self.is_skipping:
            return state
        changes = self.changes
        if self.number and changed is not None:
            changes += (changed,)
        return replace(state, number=self.number + 1, changes=changes)

    def failed(self, problem: str) -> WindowState:
        """State when there is no further window."""
        return replace(self, is_searching=False, problem=problem)


@dataclass(frozen=True)
class WindowView:
    """Buttons and text for a state."""

    next: Control
    skip: Control
    text: str


def resolve(state: WindowState) -> WindowView:
    """Decide which buttons are enabled, and what is said."""
    busy = "The next window is looked for." if state.is_searching else ""
    return WindowView(
        next=Control(
            purpose=(
                "Show the small window where the mask is least certain, with the mask"
                " as a start. Correct it up to its edges, and press this again: then"
                " all of the window counts as painted. A few windows help more than"
                f" many strokes. Key: {NEXT_WINDOW.key}."
            ),
            why_not=busy,
            visible=state.has_mask,
        ),
        skip=Control(
            purpose=(
                "Show another window. Of this one, only your own strokes count. Key:"
                f" {SKIP_WINDOW.key}."
            ),
            why_not=busy or ("" if state.has_window else "Press Next window first."),
            visible=state.has_mask,
        ),
        text=_text(state) if state.has_mask else "",
    )


def _text(state: WindowState) -> str:
    if state.is_searching:
        return "Looking for the next window ..."
    if state.problem:
        return state.problem
    if not state.number:
        return ""
    text = (
        f"Window {state.number}. Correct it up to its edges, then press Next window"
        f" ({NEXT_WINDOW.key}): it counts as painted from then on."
    )
    last = state.changes[-FEW:]
    if len(last) == FEW and max(last) < LITTLE:
        return (
            f"{text} The last three windows changed less than {LITTLE:.1%} of the"
            " mask: more windows will hardly help."
        )
    if last:
        return f"{text} The last one changed {last[-1]:.1%} of the mask."
    return text


def find_unlabelled(
    plane: tuple[int, ...],
    corner: tuple[int, int],
    labels: Array,
    unlabelled: Collection[int],
) -> tuple[tuple[Array, ...], tuple[Array, Array]]:
    """Find the pixels of a window that are not painted.

    Parameters
    ----------
    plane
        index of the plane.
    corner
        first row and column of the window.
    labels
        label values that are painted in the window (h, w).

    Returns
    -------
    Their indices along each dimension of the labels, and within the window.
    """
    rows, columns = np.nonzero(np.isin(labels, list(unlabelled)))
    leading = tuple(np.full(len(rows), index) for index in plane)
    return (*leading, rows + corner[0], columns + corner[1]), (rows, columns)
