"""Axes of a TIFF series: from the file, concluded, or named by the user."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from napari_strata.core import axes as _axes
from napari_strata.core.errors import ImageError

GUESSED_Z = "it is taken as Z"
"""Words of the note on an axis without a name."""

_KNOWN = set("TCZYXS")


_WITHOUT_NAME = "QI"
"""tifffile's letters for axes that the file does not name."""

_OTHER_AXES = {
    "R": "positions",
    "M": "mosaic tiles",
    "P": "positions or phases",
    "A": "angles",
    "H": "lifetimes",
    "L": "exposures",
    "E": "wavelengths",
    "V": "events",
}


_DIMENSIONS = {"time": "T", "channel": "C", "channels": "C", "depth": "Z", "plane": "Z"}
"""Axes that names of dimensions stand for, besides their first letter."""


class AxesError(ImageError):
    """The file does not contain the axes; the user must name them."""


@dataclass(frozen=True)
class Layout:
    """Axes and shape of an image, and notes for the user on how they were found."""

    axes: str
    shape: tuple[int, ...]
    notes: tuple[str, ...] = ()


def dimension_letters(names: Sequence[object], ndim: int) -> str:
    """Return the letters of dimensions that a file names; "" for other names."""
    letters = "".join(
        _DIMENSIONS.get(str(name).lower(), str(name)[:1].upper()) for name in names
    )
    is_unique = len(names) == len(set(letters)) == ndim
    if not is_unique or not set(letters) <= set(_axes.CANONICAL):
        return ""  # such as "depth", "lat" and "lon"
    return letters


def resolve(
    letters: str,
    shape: Sequence[int],
    *,
    full: Sequence[tuple[str, int]] = (),
    axes: str | None = None,
    source: str = "",
) -> Layout:
    """Determine the axes of an array.

    Parameters
    ----------
    letters, shape
        Axes and shape in the file, mostly without dimensions of length 1. The letters
        are tifffile's codes; Q and I mean an unknown axis.
    full
        Letter and length of every dimension, including those of length 1, which `axes`
        may name.
    axes
        Axes from the user; they override those of the file.
    source
        Name of the file, for messages.

    Raises
    ------
    AxesError
        When the axes are unknown, or those of the user do not fit.
    """
    shape = tuple(shape)
    if axes:
        named_lengths = tuple(
            length
            for letter, length in full
            if letter in letters or letter in axes.upper()
        )
        all_lengths = tuple(length for _, length in full)
        return _apply_axes(axes, [shape, named_lengths, all_lengths], source)
    letters, shape = _drop_unknown_axes(letters, shape)
    unknown = [axis for axis in letters if axis not in _KNOWN]
    named = [axis for axis in unknown if axis not in _WITHOUT_NAME]
    if named:
        words = [f"{axis} ({_OTHER_AXES.get(axis, 'unknown here')})" for axis in named]
        raise AxesError(
            f"{source}: found axes {letters} of lengths {shape}; {', '.join(words)} is"
            " no axis of one image: save one image for each, or name all axes, for"
            f" example --axes {_axes.default(shape)}."
        )
    if (
        len(unknown) == 1
        and letters[0] == unknown[0]
        and letters[1:] in ("YX", "YXS", "SYX")
    ):
        note = (
            f"the file does not name its axis of {shape[0]} pages; {GUESSED_Z}"
            " (name the axes to change it, for example --axes"
            f" {('T' + letters[1:]).replace('S', 'C')})"
        )
        return Layout("Z" + letters[1:], shape, (note,))
    if unknown or "Y" not in letters or "X" not in letters:
        raise AxesError(
            f"{source}: found shape {shape}, but the file does not name its axes;"
            f" name them, for example --axes {_axes.default(shape)}"
            f" (axes={_axes.default(shape)!r})."
        )
    if "S" in letters and "C" in letters:
        raise AxesError(
            f"{source}: found shape {shape} with both channels and RGB samples"
            f" ({letters}); save one image per channel, or the samples as channels."
        )
    return Layout(letters, shape)


def _apply_axes(axes: str, shapes: list[tuple[int, ...]], source: str) -> Layout:
    """Apply the axes to the first shape with as many dimensions."""
    for shape in shapes:
        if len(axes.strip()) == len(shape):
            break
    else:
        shape = shapes[0]
    try:
        return Layout(_axes.parse(axes, shape), shape)
    except ImageError as error:
        raise AxesError(f"{source}: {error}") from None


def _drop_unknown_axes(
    letters: str, shape: tuple[int, ...]
) -> tuple[str, tuple[int, ...]]:
    """Remove unknown axes of length 1 if there are several unknown axes."""
    if sum(axis not in _KNOWN for axis in letters) < 2:
        return letters, shape
    dimensions = [
        (a, n) for a, n in zip(letters, shape, strict=True) if a in _KNOWN or n != 1
    ]
    return "".join(a for a, _ in dimensions), tuple(n for _, n in dimensions)
