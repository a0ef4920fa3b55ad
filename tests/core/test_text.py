"""Numbers as text."""

from __future__ import annotations

import math

import pytest

from napari_strata.core.text import (
    format_duration,
    format_mean_std,
    format_percent,
    format_score,
    printable,
)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.44, "0.4 s"),
        (12.2, "12 s"),
        (61, "1 min 1 s"),
        (7260, "2 h 1 min"),
        (59.7, "1 min 0 s"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_a_longer_duration_can_have_tenths() -> None:
    assert format_duration(12.24, tenths_below=60) == "12.2 s"
    assert format_duration(61.4, tenths_below=60) == "1 min 1 s"


def test_missing_scores_have_a_text_of_their_own() -> None:
    assert format_score(0.7424) == "0.742"
    assert format_score(None) == format_score(math.nan) == "-"
    assert format_score(None, missing="?") == "?"


def test_a_mean_without_a_deviation_stands_alone() -> None:
    assert format_mean_std(0.5, 0.03) == "0.500 +- 0.030"
    assert format_mean_std(0.5, math.nan) == "0.500"
    assert format_mean_std(math.nan, 0.1) == "-"


def test_a_small_share_is_not_zero() -> None:
    shares = [format_percent(share) for share in (0, 1e-5, 0.123, 1)]
    assert shares == ["0 %", "<0.1 %", "12.3 %", "100.0 %"]


def test_control_characters_do_not_reach_a_terminal() -> None:
    assert printable("a\x1b[31mred\x07\u202e") == "a?[31mred??"
    assert printable("Größe 5 µm\n\tZ") == "Größe 5 µm\n\tZ"
