"""Figures: numbers as a page shows them."""

from __future__ import annotations

import math

from napari_strata.report.charts import percent

NONE = "\N{EN DASH}"
"""Where there is no figure."""


def number(value: float | None) -> str:
    """Three digits after the point; a dash where there is none."""
    return NONE if value is None or math.isnan(value) else f"{value:.3f}"


def mean_std(mean: float, std: float) -> str:
    """``0.742 ± 0.031``; a dash where there is no mean, and no spread where that is NaN."""
    known = not math.isnan(mean) and not math.isnan(std)
    return number(mean) + (f" \N{PLUS-MINUS SIGN} {std:.3f}" if known else "")


def share(value: float | None) -> str:
    """A share as percent; a dash where there is none."""
    return NONE if value is None or math.isnan(value) else percent(value)


def share_std(mean: float, std: float) -> str:
    """``84.3 ± 3.6 %``; a dash where there is no mean, and no spread where that is NaN."""
    if math.isnan(mean) or math.isnan(std):
        return share(mean)
    return f"{100 * mean:.1f} \N{PLUS-MINUS SIGN} {100 * std:.1f} %"


def duration(seconds: float) -> str:
    """``1 h 2 min``, ``3 min 4 s`` or ``5.6 s``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours} h {minutes} min"
        if hours
        else f"{minutes} min {rest} s"
        if minutes
        else f"{seconds:.1f} s"
    )
