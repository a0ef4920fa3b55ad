"""Axes of a TIFF series: stated by the file, concluded, or named by the user."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from napari_strata.core import axes as _axes
from napari_strata.core.errors import ImageError

_KNOWN = set("TCZYXS")


class AxesError(ImageError):
    """The axes cannot be known from the file: the user must name them."""


@dataclass(frozen=True)
class Layout:
    """Axes and shape of an image, and what the user should know about how they were
    found.
    """

    axes: str
    shape: tuple[int, ...]
    notes: tuple[str, ...] = ()


def resolve(
    letters: str,
    shape: Sequence[int],
    *,
    full: Sequence[tuple[str, int]] = (),
    axes: str | None = None,
    source: str = "",
) -> Layout:
    """Axes of an array whose file names its dimensions `letters` (tifffile's codes.

    Q and I are "some axis").

    Parameters
    ----------
    letters, shape
        as the file has them, dimensions of length 1 mostly left out.
    full
        letter and length of every dimension, those of length 1 too, when the file has
        some; `axes` may name those.
    axes
        the user's axes: they win.
    source
        for messages.

    Raises
    ------
    AxesError
        when the axes cannot be known, or the user's do not fit.
    """
    shape = tuple(shape)
    if axes:
        named = [n for a, n in full if a in letters or a in axes.upper()]
        return _given(axes, [shape, tuple(named), tuple(n for _, n in full)], source)
    letters, shape = _drop_idle(letters, shape)
    unknown = [axis for axis in letters if axis not in _KNOWN]
    if (
        len(unknown) == 1
        and letters[0] == unknown[0]
        and letters[1:] in ("YX", "YXS", "SYX")
    ):
        note = (
            f"the file does not name its axis of {shape[0]} pages; it is taken as Z"
            " (name the axes to change it, for example --axes"
            f" {('T' + letters[1:]).replace('S', 'C')})"
        )
        return Layout("Z" + letters[1:], shape, (note,))
    if unknown or "Y" not in letters or "X" not in letters:
        raise AxesError(
            f"{source}: found shape {shape} and a file that does not say which axes"
            f" these are; name them, for example --axes {_axes.default(shape)}"
            f" (axes={_axes.default(shape)!r})."
        )
    if "S" in letters and "C" in letters:
        raise AxesError(
            f"{source}: found shape {shape} with channels and RGB samples at once"
            f" ({letters}); save one image per channel, or the samples as channels."
        )
    return Layout(letters, shape)


def _given(axes: str, shapes: list[tuple[int, ...]], source: str) -> Layout:
    for shape in shapes:
        if len(axes.strip()) == len(shape):
            break
    else:
        shape = shapes[0]
    try:
        return Layout(_axes.parse(axes, shape), shape)
    except ImageError as error:
        raise AxesError(f"{source}: {error}") from None


def _drop_idle(letters: str, shape: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
    """Without unknown axes of length 1, when there is more than one unknown axis.

    They say nothing.
    """
    if sum(axis not in _KNOWN for axis in letters) < 2:
        return letters, shape
    dimensions = [
        (a, n) for a, n in zip(letters, shape, strict=True) if a in _KNOWN or n != 1
    ]
    return "".join(a for a, _ in dimensions), tuple(n for _, n in dimensions)
