"""Windows: where to paint next."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_strata.core.classes import IGNORE
from napari_strata.data.windows import SPACING, choose_window, count_windows

Array = np.ndarray[Any, Any]


@st.composite
def planes(draw: st.DrawFn) -> tuple[list[Array], list[Array]]:
    """Margins in a few steps, so that some are equal, and a few painted pixels."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    margins, painted = [], []
    for _ in range(draw(st.integers(1, 3))):
        shape = draw(st.tuples(st.integers(5, 40), st.integers(5, 40)))
        margins.append((rng.integers(0, 5, shape) / 4).astype(np.float16))
        painted.append(rng.random(shape) < draw(st.sampled_from([0, 0.002, 0.02])))
    return margins, painted


def free_windows(margins: list[Array], painted: list[Array], side: int) -> Any:
    """All windows that keep away from paint, and their mean margins, in order."""
    for number, (margin, taken) in enumerate(zip(margins, painted, strict=True)):
        for y in range(margin.shape[0] - side + 1):
            for x in range(margin.shape[1] - side + 1):
                top, left = max(y - SPACING, 0), max(x - SPACING, 0)
                around = taken[top : y + side + SPACING, left : x + side + SPACING]
                if not around.any():
                    mean = margin[y : y + side, x : x + side].mean(dtype=np.float64)
                    yield mean, number, y, x


@settings(max_examples=60, deadline=None)
@given(planes(), st.sampled_from([11, 12, 15]))
def test_it_is_the_least_certain_window_away_from_paint(
    case: tuple[list[Array], list[Array]], side: int
) -> None:
    margins, painted = case
    window = choose_window(margins, painted, side=side)
    free = list(free_windows(margins, painted, side))
    if not free:
        assert window is None
        return
    assert window is not None
    rows, columns = window.box
    assert (rows.stop - rows.start, columns.stop - columns.start) == (side, side)
    place = (window.margin, window.plane, rows.start, columns.start)
    assert place == min(free)
    assert choose_window(margins, painted, side=side) == window


@pytest.mark.parametrize("gap", [3, 4])
def test_four_pixels_are_left_free(gap: int) -> None:
    margin = np.ones((30, 30), np.float16)
    margin[10:21, 15 : 15 + 11] = 0
    painted = np.zeros((30, 30), bool)
    painted[12, 14 - gap] = True
    window = choose_window([margin], [painted])
    assert window is not None
    is_there = window.box == (slice(10, 21), slice(15, 26))
    assert is_there == (gap == 4)


def test_windows_are_told_from_strokes_and_from_areas() -> None:
    labels = np.full((120, 120), IGNORE, np.uint8)
    labels[5:25, 5:60] = 0  # a stroke of a broad brush
    labels[40:43, 5:60] = 1  # and a thin one across another
    labels[30:60, 20:23] = 0
    assert count_windows(labels) == 0
    labels[80:91, 20:31] = 0
    labels[80:91, 26:31] = 1
    assert count_windows(labels) == 1
    labels[84:86, 31:50] = 1  # a brush that left the window
    labels[100:111, 60:71] = 1
    labels[104:, 60:71] = 0
    assert count_windows(labels) == 2
    dense = np.zeros((120, 120), np.uint8)
    dense[60:] = 1
    assert count_windows(dense) == 0


def test_a_narrow_plane_has_no_windows() -> None:
    assert count_windows(np.zeros((8, 100), np.uint8)) == 0
