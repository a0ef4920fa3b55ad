"""Wording of values that several places show to a person."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """Format a duration: ``1 h 4 min``, ``3 min 20 s``, ``12 s`` or ``0.4 s``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    if minutes:
        return f"{minutes} min {rest} s"
    return f"{rest} s"
