"""Numbers as a page shows them."""

from __future__ import annotations

import math

from napari_strata.core.text import (
    format_duration,
    format_mean_std,
    format_percent,
    format_score,
)

NONE = "\N{EN DASH}"
"""Text for a value that is missing."""


def number(value: float | None) -> str:
    """Format a score: ``0.742``; a dash if it is missing."""
    return format_score(value, missing=NONE)


def mean_std(mean: float, std: float) -> str:
    """Format a mean with its deviation: ``0.742 ± 0.031``; a dash without a mean."""
    return format_mean_std(mean, std, sign="\N{PLUS-MINUS SIGN}", missing=NONE)


def share(value: float | None) -> str:
    """Format a share as percent; a dash if it is missing."""
    return NONE if value is None or math.isnan(value) else format_percent(value)


def share_std(mean: float, std: float) -> str:
    """Format a mean share with its deviation: ``84.3 ± 3.6 %``."""
    if math.isnan(mean) or math.isnan(std):
        return share(mean)
    return f"{100 * mean:.1f} \N{PLUS-MINUS SIGN} {100 * std:.1f} %"


def duration(seconds: float) -> str:
    """Format a duration: ``1 h 2 min``, ``3 min 4 s`` or ``5.6 s``."""
    return format_duration(seconds, tenths_below=60)
