"""Unit names of file formats, translated to one name for each unit."""

from __future__ import annotations

import math
import re
from contextlib import suppress
from typing import Any

PIXEL = "pixel"
"""Unit if none is known."""

_KNOWN = {
    "kilometer": ("km",),
    "meter": ("m",),
    "centimeter": ("cm",),
    "millimeter": ("mm",),
    "micrometer": ("µm", "um", "micron"),
    "nanometer": ("nm",),
    "picometer": ("pm",),
    "angstrom": ("Å", "ångström"),
    "inch": ("in", "inche", '"'),
    "second": ("s", "sec"),
    "millisecond": ("ms", "msec"),
    "microsecond": ("µs", "us", "usec"),
    "nanosecond": ("ns", "nsec"),
    "minute": ("min",),
    "hour": ("h", "hr"),
    "day": ("d",),
    PIXEL: ("pixel", "px", "voxel", "none", "null"),
}
"""Symbols and names in files for each unit, the OME symbol first.

`unit_name` handles plurals and British spelling.
"""

_NAMES = {
    symbol: name for name, symbols in _KNOWN.items() for symbol in (*symbols, name)
}
_TIMES = {"second", "millisecond", "microsecond", "nanosecond", "minute", "hour", "day"}


def unit_name(text: Any) -> str:
    """Return the name of a unit in a file.

    For example "µm", "um", "micron" and "micrometres" become "micrometer". An empty
    text is "pixel". An unknown unit is returned unchanged.
    """
    # ImageJ writes the micro sign as an escape sequence.
    plain = re.sub(
        r"\\u00b5|\u03bc", "µ", str(text or "").strip(), flags=re.IGNORECASE
    ).replace("\u212b", "Å")
    if not plain:
        return PIXEL
    if plain in _NAMES:
        return _NAMES[plain]
    word = plain.lower().replace("metre", "meter")
    return _NAMES.get(word) or _NAMES.get(word.removesuffix("s")) or plain


def ome_symbol(unit: str, *, time: bool = False) -> str | None:
    """Return OME's symbol for a unit of length, or None if it has none.

    With `time`, the unit must be one of time.
    """
    name = unit_name(unit)
    if name not in _KNOWN or (name in _TIMES) != time:
        return None
    return _KNOWN[name][0]


def size_of(value: Any) -> float | None:
    """Return a pixel size as a positive number; None if it is none.

    The sign of a step is a direction.
    """
    with suppress(TypeError, ValueError):
        number = abs(float(value))
        if number > 0 and math.isfinite(number):
            return number
    return None
