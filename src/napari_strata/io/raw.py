"""Reading of raw volumes, whose layout the user or a ``.vgi`` file states.

A layout is ``1024x1024x512:uint16:little:0``: sizes along X, Y and Z (X changes fastest
in the file), dtype, byte order and bytes before the pixels. The last two may be left
out.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path, PureWindowsPath
from typing import TypeVar

import numpy as np

from napari_strata.core.errors import ImageError
from napari_strata.io.layout import resolve
from napari_strata.io.lazy import LAZY_BYTES
from napari_strata.io.mapped import plain_pixels
from napari_strata.io.metadata import Calibration, calibrated
from napari_strata.io.paths import (
    PathLike,
    existing,
    has_suffix,
    split_part,
    stem,
)
from napari_strata.io.record import Loaded
from napari_strata.io.units import size_of, unit_name
from napari_strata.io.vendors import Size

EXAMPLE = "1024x1024x512:uint16:little"
NEEDED = (
    f"needed are the sizes along X, Y and Z, the dtype and the byte order: {EXAMPLE}"
)

_DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")
_ORDERS = {"little": "<", "big": ">"}
_LAYOUT = re.compile(
    rf"(\d+(?:x\d+)+):({'|'.join(_DTYPES)})(?::(little|big))?(?::(\d+))?", re.IGNORECASE
)
_LAYOUT_SUFFIXES = (".raw", ".vol", ".bin", ".dat", ".data", ".img")
"""Suffixes of the files to which the option --raw applies."""

_LARGEST_TEXT = 2**20
_LARGEST_HEADER = 2**16
"""Bytes before the pixels that a message proposes at most."""

AnyPath = TypeVar("AnyPath", str, Path)


@dataclass(frozen=True)
class RawLayout:
    """How the pixels of a raw volume are stored.

    Parameters
    ----------
    sizes
        Numbers of pixels along X, Y and Z.
    dtype
        dtype with byte order.
    offset
        Bytes before the pixels; None if the file has nothing but pixels.
    pixel
        Pixel size and unit of each axis for which they are known.
    """

    sizes: tuple[int, ...]
    dtype: str
    offset: int | None = None
    pixel: dict[str, Size] | None = None


def parse_layout(text: str) -> RawLayout:
    """Parse a layout such as ``1024x1024x512:uint16:little``. Raises `ImageError`."""
    match = _LAYOUT.fullmatch(text.strip())
    if not match:
        raise ImageError(
            f"found the layout {text!r} of a raw volume; {NEEDED} (dtypes:"
            f" {', '.join(_DTYPES)})."
        )
    sizes, dtype, order, offset = match.groups()
    return RawLayout(
        tuple(map(int, sizes.lower().split("x"))),
        _ORDERS[(order or "little").lower()] + np.dtype(dtype.lower()).str[1:],
        int(offset) if offset else None,
    )


def with_layout(paths: Sequence[AnyPath], layout: str | None) -> list[AnyPath]:
    """Add a layout to the paths of raw volumes; other paths are returned unchanged.

    Raises
    ------
    ImageError
        When the layout cannot be parsed, or none of the files is a raw volume.
    """
    if layout is None:
        return list(paths)
    parse_layout(layout)
    changed = [
        type(path)(f"{path}:{layout}") if _is_raw(path) else path for path in paths
    ]
    if changed == list(paths):
        raise ImageError(
            f"found --raw {layout}, but no raw volume ({', '.join(_LAYOUT_SUFFIXES)})"
            f" in {', '.join(map(str, paths))}; leave it out, or add it to the path of"
            f" a file: scan:{layout}."
        )
    return changed


def load(
    path: PathLike,
    *,
    series: int | None = None,
    axes: str | None = None,
    lazy_above: int = LAZY_BYTES,
    labels: bool = False,
) -> Loaded:
    """Read a raw volume.

    Parameters
    ----------
    path
        A file and its layout, such as ``scan.raw:1024x1024x512:uint16:little``; or a
        pair of ``.vgi`` and ``.vol``.
    series
        0, because a raw volume is a single image.
    axes
        Axes from the user, the slowest first: ZYX by default.
    lazy_above
        Volumes with more bytes are memory-mapped.
    labels
        Not used.

    Raises
    ------
    ImageError
        When the file is missing, its layout is unknown, or it has another number of
        bytes.
    """
    file, layout = _layout_of(path)
    shape = layout.sizes[::-1]
    _check_size(file, layout)
    letters = "ZYX"[-len(shape) :] if len(shape) <= 3 else "Q" * len(shape)
    resolved = resolve(letters, shape, axes=axes, source=str(file))
    data = plain_pixels(
        file, layout.dtype, shape, offset=layout.offset or 0, lazy_above=lazy_above
    )
    calibration = Calibration(layout.pixel or {})
    return calibrated(data, resolved, calibration, name=stem(file), source=path), None


def storage(path: PathLike, *, series: int | None = None) -> str:
    """Describe the storage, such as ``raw, big-endian``."""
    file, layout = _layout_of(path)
    order = "big" if layout.dtype[0] == ">" else "little"
    return f"raw, {order}-endian, pixels in {file.name}"


def _is_raw(path: PathLike) -> bool:
    file, part = split_part(path)
    return not part and os.path.isfile(file) and has_suffix(file, _LAYOUT_SUFFIXES)


def _layout_of(path: PathLike) -> tuple[Path, RawLayout]:
    """Return the file with the pixels, and their layout."""
    file = existing(path)
    _, part = split_part(path)
    if part:
        return file, parse_layout(part)
    if has_suffix(file, (".vgi",)):
        return _from_vgi(file, None)
    for description in (file.with_suffix(".vgi"), Path(f"{file}.vgi")):
        if description.is_file():
            return _from_vgi(description, file)
    raise ImageError(
        f"{file}: a raw volume of {file.stat().st_size} bytes, which does not state its"
        f" sizes; {NEEDED} (--raw, or after the path: {file.name}:{EXAMPLE})."
    )


def _from_vgi(description: Path, file: Path | None) -> tuple[Path, RawLayout]:
    """Read the layout of a volume from the ``.vgi`` file of VGStudio.

    The first value of each key counts, which is that of the whole volume.
    """
    with description.open("rb") as stream:
        lines = stream.read(_LARGEST_TEXT).decode("utf-8", "replace").splitlines()
    values: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition("=")
        values.setdefault(key.strip().lower(), value.strip())
    if file is None:
        # The name may be a path on the computer that wrote it.
        name = PureWindowsPath(values.get("name", "").strip('"')).name
        named = description.with_name(name) if name else description
        same = description.with_suffix(".vol")
        file = existing(named if named != description and named.exists() else same)
    try:
        bits = int(values["bitsperelement"])
        kind = values.get("datatype", "unsigned integer").lower()
        letter = "f" if "float" in kind else "u" if "unsigned" in kind else "i"
        dtype = np.dtype(f"<{letter}{bits // 8}").str
        sizes = tuple(map(int, values["size"].split()))
        offset = int(values.get("skipheader", 0))
    except (KeyError, TypeError, ValueError) as error:
        raise ImageError(
            f"{description}: its size, data type or bits per element cannot be read"
            f" ({error}); state them: {file.name}:{EXAMPLE}."
        ) from None
    unit = unit_name(values.get("unit"))
    steps = values.get("resolution", "").split()
    pixel = {
        axis: (step, unit)
        for axis, value in zip("XYZ", steps, strict=False)
        if (step := size_of(value))
    }
    return file, RawLayout(sizes, dtype, offset or None, pixel)


def _check_size(file: Path, layout: RawLayout) -> None:
    """Refuse a file that has not the bytes of the layout."""
    needed = np.dtype(layout.dtype).itemsize * prod(layout.sizes)
    size = file.stat().st_size
    if size == needed + (layout.offset or 0):
        return
    if layout.offset is not None and size > needed + layout.offset:
        return
    sizes = "x".join(map(str, layout.sizes))
    hint = ""
    each, rest = divmod(size, max(prod(layout.sizes), 1))
    if not rest and each in (1, 2, 4):
        hint = (
            f": it has {each} bytes for each of these pixels"
            f" ({file.name}:{sizes}:uint{8 * each})"
        )
    elif layout.offset is None and needed < size <= needed + _LARGEST_HEADER:
        hint = f"; if a header precedes the pixels, add its bytes (:{size - needed})"
    raise ImageError(
        f"{file}: {sizes} pixels of {np.dtype(layout.dtype).name} take {needed} bytes,"
        f" and the file has {size}; check the layout{hint}."
    )
