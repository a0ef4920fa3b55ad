"""Decisions about the windows to be painted next, without a viewer."""

from __future__ import annotations

import numpy as np
import pytest

from napari_strata.widgets.train.window_state import (
    WindowState,
    find_unlabelled,
    resolve,
)


def paint_windows(*changes: float) -> WindowState:
    """State after a first window, and one more for each share that changed."""
    state = WindowState(has_mask=True).searching(skip=False).found(None)
    for changed in changes:
        state = state.searching(skip=False).found(changed)
    return state


def test_nothing_is_shown_without_a_mask() -> None:
    view = resolve(WindowState())
    assert not view.next.visible
    assert not view.text


def test_there_is_nothing_to_skip_before_the_first_window() -> None:
    view = resolve(WindowState(has_mask=True))
    assert view.next.enabled
    assert "N" in view.next.tooltip
    assert "Press Next window first" in view.skip.tooltip


def test_one_window_is_looked_for_at_a_time() -> None:
    view = resolve(paint_windows().searching(skip=True))
    assert not view.next.enabled
    assert not view.skip.enabled
    assert "Looking" in view.text


def test_painted_windows_are_counted_and_skipped_ones_are_not() -> None:
    state = paint_windows(0.05, 0.04)
    assert "Window 3. Correct it up to its edges" in resolve(state).text
    skipped = state.searching(skip=True).found(0.0)
    assert "Window 3." in resolve(skipped).text
    assert skipped.changes == (0.05, 0.04), "a skipped window says nothing"


@pytest.mark.parametrize(
    ("changes", "enough"),
    [
        ((0.001, 0.001), False),
        ((0.05, 0.001, 0.001, 0.0005), True),
        ((0.001, 0.001, 0.003), False),
    ],
)
def test_it_is_said_when_more_windows_hardly_help(
    changes: tuple[float, ...], enough: bool
) -> None:
    text = resolve(paint_windows(*changes)).text
    assert ("more windows will hardly help" in text) == enough


def test_after_a_failure_the_reason_is_shown_and_one_can_ask_again() -> None:
    view = resolve(paint_windows().searching(skip=False).failed("No free place."))
    assert view.text == "No free place."
    assert view.next.enabled
    assert not view.skip.enabled, "no window is shown"


def test_only_what_is_not_painted_is_filled_in() -> None:
    labels = np.zeros((2, 20, 30), np.uint8)
    labels[1, 5, 7] = 3
    values = np.arange(1, 17, dtype=np.uint8).reshape(4, 4)
    indices, inside = find_unlabelled((1,), (4, 6), labels[1, 4:8, 6:10], (0,))
    labels[indices] = values[inside]
    values[1, 1] = 3
    expected = np.zeros_like(labels)
    expected[1, 4:8, 6:10] = values
    np.testing.assert_array_equal(labels, expected)
