"""Stacks along Z from a folder or a pattern of single-slice files."""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from glob import glob, has_magic
from pathlib import Path
from typing import Any

import numpy as np

from napari_strata.core.errors import ImageError
from napari_strata.core.image import Array, ArrayLike, Image
from napari_strata.io import raster, tiff
from napari_strata.io.lazy import LAZY_BYTES, LazyArray
from napari_strata.io.paths import (
    RASTER_SUFFIXES,
    TIFF_SUFFIXES,
    PathLike,
    existing,
    natural,
)
from napari_strata.io.record import Loaded

_GROUP = re.compile(
    r"((?<![A-Za-z])(?:c|ch|chan|channel|w|t|time|p|pos|position|xy)[_-]?\d+)(?![A-Za-z])",
    re.IGNORECASE,
)
"""Parts of names that number channels, times or positions."""

_LISTED_NAMES = 5
"""Number of names in a message."""


class StackArray(LazyArray):
    """Array of several files with the same shape, with the files along the first axis.

    The last plane is cached.
    """

    def __init__(
        self, paths: Sequence[str], plane: Sequence[int], dtype: Any, *, labels: bool
    ) -> None:
        super().__init__((len(paths), *plane), dtype)
        self.paths = tuple(paths)
        self.labels = labels
        self._lock = threading.Lock()
        self._last: tuple[int, Array] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return _stack_array, (self.paths, self.shape[1:], self.dtype, self.labels)

    def _fetch(self, region: tuple[slice, ...]) -> Array:
        first, *rest = region
        return np.stack(
            [
                self._plane(i)[tuple(rest)]
                for i in range(first.start, first.stop, first.step)
            ]
        )

    def _plane(self, index: int) -> Array:
        with self._lock:
            if self._last is None or self._last[0] != index:
                image, _ = _reader(Path(self.paths[index])).load(
                    self.paths[index], labels=self.labels
                )
                array = np.asarray(image.data)
                if (
                    array.size * len(self.paths) != self.size
                    or array.dtype != self.dtype
                ):
                    raise ImageError(
                        f"{self.paths[index]}: changed while it was read; start again."
                    )
                self._last = (index, array.reshape(self.shape[1:]))
            return self._last[1]


def slices(path: PathLike) -> list[Path]:
    """Return the image files of a folder or a pattern, slice2 before slice10.

    Raises
    ------
    ImageError
        When there are no files, or files of different formats.
    """
    if has_magic(str(path)) and not Path(path).exists():
        entries = [Path(p) for p in glob(str(Path(path).expanduser()))]
        problem = f"nothing matches {str(path)!r}"
    else:
        folder = existing(path)
        entries = list(folder.iterdir())
        inside = sorted(
            p.name for p in entries if p.is_dir() and not p.name.startswith(".")
        )
        problem = (
            f"{folder}: no images in this"
            f" folder{f' but the folders {inside[:_LISTED_NAMES]}' if inside else ''}"
        )
    files = [
        p
        for p in entries
        if p.suffix.lower() in TIFF_SUFFIXES + RASTER_SUFFIXES
        and not p.name.startswith(".")
    ]
    if not files:
        raise ImageError(f"{problem}; TIFF, PNG and JPEG files can be read.")
    kinds = {
        "TIFF" if p.suffix.lower() in TIFF_SUFFIXES else p.suffix.lower() for p in files
    }
    if len(kinds) > 1:
        kinds_text = ", ".join(sorted(kinds))
        raise ImageError(
            f"{path}: found files of several formats ({kinds_text}); select some by a"
            " pattern such as '*.png'."
        )
    return sorted(files, key=natural)


def _check_groups(paths: Sequence[Path]) -> None:
    """Refuse files that are named by slice and by channel, time or position.

    One after another along Z they would alternate between the channels.
    """
    groups: dict[str, list[Path]] = {}
    for path in paths:
        groups.setdefault(_template(path), []).append(path)
    counts = {len(group) for group in groups.values()}
    if len(groups) < 2 or len(counts) > 1 or counts == {1}:
        return
    patterns = [f"'{template}'" for template in groups]
    more = ", ..." if len(patterns) > _LISTED_NAMES else ""
    raise ImageError(
        f"{paths[0].parent}: found {len(groups)} groups of {counts.pop()} files each"
        f" ({', '.join(patterns[:_LISTED_NAMES])}{more}), such as channels or times,"
        " which are not slices of one stack; select one group by such a pattern."
    )


def _template(path: Path) -> str:
    """Return the pattern of the files that are the same but for the slice."""
    kept = _GROUP.split(path.stem)
    parts = []
    for i, part in enumerate(kept):
        parts.append(part if i % 2 else re.sub(r"\d+", "*", part))
    return "".join(parts) + path.suffix


def count(path: PathLike) -> int:
    """Return 1: all files are one stack."""
    slices(path)
    return 1


def load(
    path: PathLike,
    *,
    series: int | None = None,
    axes: str | None = None,
    lazy_above: int = LAZY_BYTES,
    labels: bool = False,
) -> Loaded:
    """Read single-slice files as one image with axes ZYX (ZYXC for colour).

    Parameters
    ----------
    path
        Folder, or pattern with ``*`` or ``?``.
    series
        0, because there is a single image.
    axes
        Axes of the stack from the user, with the files along the first.
    lazy_above
        Stacks with more bytes of pixels are read slice by slice on demand.
    labels
        The files contain labels: palette indices are values, and JPEG is refused.

    Raises
    ------
    ImageError
        When there are no files, or files that differ in shape or dtype or have more
        than one slice. The message names the files.
    """
    paths = slices(path)
    if series:
        raise ImageError(
            f"{path}: a folder of slices is one series; there is no series {series}."
        )
    _check_groups(paths)
    first, classes = _reader(paths[0]).load(paths[0], lazy_above=0, labels=labels)
    headers = [_header(p, labels=labels) for p in paths]
    _check_alike(paths, headers)
    letters, plane, dtype = headers[0]
    stack = StackArray([str(p) for p in paths], plane, dtype, labels=labels)
    data: ArrayLike = np.asarray(stack) if stack.nbytes <= lazy_above else stack
    stack_axes = "Z" + letters
    sizes = dict(
        zip(first.axes, zip(first.scale, first.units, strict=True), strict=True)
    )
    note = (
        f"{len(paths)} files as one stack along Z, in the order {paths[0].name} ..."
        f" {paths[-1].name}"
    )
    image = Image(
        data,
        axes or stack_axes,
        scale=tuple(sizes[a][0] if a in sizes else 1.0 for a in stack_axes),
        units=tuple(sizes[a][1] if a in sizes else "pixel" for a in stack_axes),
        name=(
            paths[0].parent if has_magic(str(path)) else existing(path).resolve()
        ).name,
        channel_names=first.channel_names,
        source=str(path),
        notes=(note, *first.notes),
    )
    return image, classes


def storage(path: PathLike, *, series: int | None = None) -> str:
    """Describe the storage, for example ``120 files: TIFF, plain pages, strips``."""
    paths = slices(path)
    return f"{len(paths)} files: {_reader(paths[0]).storage(paths[0])}"


def _reader(path: Path) -> Any:
    return tiff if path.suffix.lower() in TIFF_SUFFIXES else raster


def _header(path: Path, *, labels: bool) -> tuple[str, tuple[int, ...], np.dtype[Any]]:
    """Read axes, shape and dtype of a slice, without axes T and Z of length 1."""
    if _reader(path) is raster:
        return raster.header(path, labels=labels)
    image, _ = tiff.load(path, lazy_above=0)
    dimensions = [
        (a, n)
        for a, n in zip(image.axes, image.shape, strict=True)
        if a in "YXC" or n != 1
    ]
    return (
        "".join(a for a, _ in dimensions),
        tuple(n for _, n in dimensions),
        image.dtype,
    )


def _check_alike(
    paths: Sequence[Path], headers: Sequence[tuple[str, tuple[int, ...], np.dtype[Any]]]
) -> None:
    letters, plane, dtype = headers[0]
    if set(letters) & set("TZ"):
        raise ImageError(
            f"{paths[0]}: found shape {plane} ({letters}); a folder is read as a stack"
            " of single slices: give the path of a file to read that file."
        )
    different = [
        f"{p.name} {h[1]} {h[2]}"
        for p, h in zip(paths, headers, strict=True)
        if h != headers[0]
    ]
    if different:
        more = (
            f" and {len(different) - _LISTED_NAMES} more"
            if len(different) > _LISTED_NAMES
            else ""
        )
        raise ImageError(
            f"{paths[0].parent}: {paths[0].name} has shape {plane} {dtype}, but"
            f" {', '.join(different[:_LISTED_NAMES])}{more}: the slices of a"
            " stack must have the same shape and dtype; move the others away, or select"
            " files by a pattern."
        )


def _stack_array(
    paths: tuple[str, ...], plane: tuple[int, ...], dtype: Any, labels: bool
) -> StackArray:
    return StackArray(paths, plane, dtype, labels=labels)
