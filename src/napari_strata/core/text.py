"""Numbers as text for people."""

from __future__ import annotations

import math
import re

_CONTROL = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]"
)
"""Characters that control a terminal or the direction of writing."""


def printable(text: str) -> str:
    """Replace the control characters in a text, such as a name from a file, by "?"."""
    return _CONTROL.sub("?", text)


def format_duration(seconds: float, *, tenths_below: float = 10) -> str:
    """Format a duration: ``1 h 4 min``, ``3 min 20 s``, ``12 s`` or ``0.4 s``.

    Shorter durations than `tenths_below`, in seconds, have one digit after the point.
    """
    if seconds < tenths_below:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    if minutes:
        return f"{minutes} min {rest} s"
    return f"{rest} s"


def format_score(value: float | None, *, missing: str = "-") -> str:
    """Format a score: ``0.742``, or `missing` for None and NaN."""
    if value is None or math.isnan(value):
        return missing
    return f"{value:.3f}"


def format_mean_std(
    mean: float, std: float, *, sign: str = "+-", missing: str = "-"
) -> str:
    """Format a mean with its standard deviation: ``0.742 +- 0.031``.

    A NaN deviation is left out; a NaN mean is `missing`.
    """
    text = format_score(mean, missing=missing)
    if math.isnan(mean) or math.isnan(std):
        return text
    return f"{text} {sign} {std:.3f}"


def format_percent(share: float) -> str:
    """Format a share: ``12.3 %``; a share above 0 is never shown as ``0 %``."""
    if share == 0:
        return "0 %"
    if share < 0.001:
        return "<0.1 %"
    return f"{100 * share:.1f} %"


def format_bytes(count: int) -> str:
    """Format a number of bytes: ``12 MB``."""
    value = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"
