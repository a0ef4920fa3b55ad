"""Unit names of file formats, translated to one name for each unit."""

from __future__ import annotations

import re

PIXEL = "pixel"
"""The unit where none is known."""

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
"""Name -> what files write for it, the OME symbol first.

Plurals and the British spelling are dealt with below.
"""

_NAMES = {
    symbol: name for name, symbols in _KNOWN.items() for symbol in (*symbols, name)
}
_TIMES = {"second", "millisecond", "microsecond", "nanosecond", "minute", "hour", "day"}


def unit_name(text: str | None) -> str:
    """The project's name for a unit as a file gives it.

    "µm", "um", "micron", ``\\u00B5m`` -> "micrometer".

    Nothing, or one of the words for nothing, is "pixel". A unit that is not known is
    returned as it stands.
    """
    plain = re.sub(
        r"\\u00b5|\u03bc", "µ", (text or "").strip(), flags=re.IGNORECASE
    ).replace("\u212b", "Å")
    if not plain:
        return PIXEL
    if plain in _NAMES:
        return _NAMES[plain]
    word = plain.lower().replace("metre", "meter")
    return _NAMES.get(word) or _NAMES.get(word.removesuffix("s")) or plain


def ome_symbol(unit: str, *, time: bool = False) -> str | None:
    """OME's symbol for a unit, or None when OME has none for a length (or for a
    time, when `time`).
    """
    name = unit_name(unit)
    if name not in _KNOWN or (name in _TIMES) != time:
        return None
    return _KNOWN[name][0]
