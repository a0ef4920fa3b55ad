"""Figures: numbers as a page shows them."""

from __future__ import annotations

import math

from napari_strata.evaluation.charts import percent

NONE = "\N{EN DASH}"
"""Where there is no figure."""


def number(value: float | None) -> str:
    """Three digits after the point; a dash where there is none."""
    return NONE if value is None or math.isnan(value) else f"{value:.3f}"


def mean_std(mean: float | None, std: float | None) -> str:
    """``0.742 ± 0.031``; a dash where there is no mean."""
    known = mean is not None and std is not None
    return number(mean) + (f" \N{PLUS-MINUS SIGN} {std:.3f}" if known else "")


def share(value: float | None) -> str:
    """A share as percent; a dash where there is none."""
    return NONE if value is None or math.isnan(value) else percent(value)


def duration(seconds: float) -> str:
    """``1 h 2 min``, ``3 min 4 s`` or ``5.6 s``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
