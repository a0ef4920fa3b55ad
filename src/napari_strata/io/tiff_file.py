"""Opening of TIFF files; truncated, damaged and other files are refused.

tifffile reads as much as it can: if the chain of pages is interrupted, it returns the
first pages. This would silently be an incomplete image. Therefore the structure of the
file is checked here before pixels are used. Only page headers are read.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from tifffile import TiffFile, TiffPageSeries

from napari_strata.core.errors import ImageError
from napari_strata.io.lazy import reading

# The checks below find damage, so tifffile's messages are not shown.
logging.getLogger("tifffile").addHandler(logging.NullHandler())

_LAST_BASELINE_TAG = 400
"""Largest code of the tags that are checked; private tags may be invalid."""

_MOST_TAGS = 4096
"""Longer lists of tags count as damage, as in tifffile."""

_TYPE_BYTES = np.zeros(65536, np.int64)
_TYPE_BYTES[1:14] = (1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4)
_TYPE_BYTES[16:19] = 8

_OTHER_FORMATS = {
    b"\x89PNG": "a PNG",
    b"\xff\xd8\xff": "a JPEG",
    b"\x89HDF": "an HDF5 file",
    b"PK\3\4": "a ZIP file",
}


@contextmanager
def opened(path: Path) -> Iterator[TiffFile]:
    """Open a file, check its structure, and close it at the end."""
    try:
        tif = TiffFile(path)
    except Exception as error:
        raise _not_tiff(path, error) from error
    with tif:
        if not tif.pages:
            raise _without_pixels(path)
        # ImageJ may store all pixels after the first page; then only that page counts.
        if not tif.is_imagej:
            _check_chain(tif, path)
        with reading(path):
            all_series = list(tif.series)
        if not any(series.size for series in all_series):
            raise _without_pixels(path)
        if tif.is_imagej:
            first = all_series[0]
            is_contiguous = first.kind == "imagej" and data_offset(first) is not None
            _check_chain(tif, path, first_only=is_contiguous)
        _check_description(tif, all_series, path)
        yield tif


def _not_tiff(path: Path, error: Exception) -> ImageError:
    if path.is_dir():
        return ImageError(f"{path}: is a folder, not a TIFF file.")
    try:
        with path.open("rb") as file:
            head = file.read(8)
    except OSError as failed:
        return ImageError(
            f"{path}: cannot be opened ({failed.strerror}); check its permissions."
        )
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return _damaged(path, str(error))
    kind = "it is empty"
    if head:
        kind = f"it starts with {head!r}"
    for magic, name in _OTHER_FORMATS.items():
        if head.startswith(magic):
            kind = f"it is {name}; give it its own suffix"
    return ImageError(
        f"{path}: not a TIFF file: {kind} (a TIFF file starts with 'II*' or 'MM')."
    )


def _without_pixels(path: Path) -> ImageError:
    return ImageError(f"{path}: is a TIFF file without pixels; choose another file.")


def _damaged(path: Path, problem: str) -> ImageError:
    return ImageError(
        f"{path}: is a truncated or damaged TIFF file ({problem}); copy it again from"
        " its source."
    )


def data_offset(series: TiffPageSeries) -> int | None:
    """Return the position of contiguous pixels of a series in the file, or None."""
    if series.keyframe.parent is not series.parent or series.is_multifile:
        return None
    offset: int | None = series.dataoffset
    return offset


def pick(tif: TiffFile, path: Path, index: int) -> TiffPageSeries:
    """Return the series `index`, or raise an error with the number of series."""
    count = len(tif.series)
    if not 0 <= index < count:
        raise ImageError(
            f"{path}: found {count} series, numbered from 0; there is no series"
            f" {index}."
        )
    return tif.series[index]


def _check_chain(tif: TiffFile, path: Path, *, first_only: bool = False) -> None:
    """Check that all pages of the chain and their tags are inside the file."""
    if tif.is_ndpi:  # its offsets have 64 bits in a classic TIFF
        return
    if tif.is_mmstack or tif.is_ndtiff or tif.is_scanimage:
        first_only = True  # these formats have other lists of their pages
    size = tif.filehandle.size
    seen: set[int] = set()
    offset = tif.pages.first.offset
    while offset:
        number = len(seen)
        if offset in seen:
            raise _damaged(path, f"page {number} leads back to an earlier page")
        seen.add(offset)
        tags, following = _read_ifd(tif, offset)
        if tags is None:
            raise _damaged(path, f"page {number} at byte {offset} of {size} is cut off")
        for code in _misplaced_tags(tif, tags):
            if code < _LAST_BASELINE_TAG:
                raise _damaged(path, f"tag {code} of page {number} is outside the file")
        if first_only:
            return
        offset = following


def _read_ifd(tif: TiffFile, offset: int) -> tuple[np.ndarray[Any, Any] | None, int]:
    """Read the tags of a page and the offset of the next page.

    The tags are None if the file is truncated.
    """
    order = tif.byteorder
    offset_format, count_format = "I", "H"
    if tif.is_bigtiff:
        offset_format, count_format = "Q", "Q"
    width = struct.calcsize(offset_format)
    entry = np.dtype(
        [
            ("code", f"{order}u2"),
            ("type", f"{order}u2"),
            ("count", f"{order}u{width}"),
            ("value", f"{order}u{width}"),
        ]
    )
    file = tif.filehandle
    file.seek(offset)
    head = file.read(struct.calcsize(count_format))
    if len(head) < struct.calcsize(count_format):
        return None, 0
    (count,) = struct.unpack(order + count_format, head)
    if count > _MOST_TAGS:
        return None, 0
    body = file.read(count * entry.itemsize + width)
    if len(body) < count * entry.itemsize + width:
        return None, 0
    (following,) = struct.unpack(order + offset_format, body[-width:])
    return np.frombuffer(body, entry, count), following


def _misplaced_tags(tif: TiffFile, tags: np.ndarray[Any, Any]) -> list[int]:
    """Return the codes of tags whose values begin or end outside the file."""
    inline = tags.dtype["value"].itemsize
    lengths = _TYPE_BYTES[tags["type"]].astype(float) * tags["count"]
    begins = tags["value"].astype(float)
    outside = (begins < 8) | (begins + lengths > tif.filehandle.size)
    codes: list[int] = tags["code"][(lengths > inline) & outside].tolist()
    return codes


def _check_description(
    tif: TiffFile, all_series: list[TiffPageSeries], path: Path
) -> None:
    """Refuse files whose pages do not agree with their metadata."""
    first = all_series[0]
    if tif.is_imagej and not tif.is_ome and first.kind in ("uniform", "generic"):
        raise _damaged(path, "its pages do not agree with its ImageJ description")
    if tif.is_ome and first.kind != "ome":
        names = _missing_files(tif, path)
        if names:
            raise ImageError(
                f"{path}: its planes are in {', '.join(names)}; put all files of the"
                " set into one folder."
            )
    metadata = list(tif.shaped_metadata or [])
    if first.kind == "shaped" and len(all_series) == 1 and len(metadata) == 1:
        shape = metadata[0].get("shape", first.shape)
        if prod(shape) != first.size:
            raise _damaged(path, f"it describes a shape of {tuple(shape)}")


def check(tif: TiffFile, series: TiffPageSeries, path: Path) -> None:
    """Refuse other dtypes than numbers and bool, and truncated files."""
    if series.dtype.kind not in "uifb":
        raise ImageError(
            f"{path}: found pixels of dtype {series.dtype}; integers, floats and bool"
            " can be read."
        )
    size = path.stat().st_size
    offset = data_offset(series)
    if offset is not None:
        if offset + series.nbytes > size:
            raise _ends_early(path)
        return
    with reading(path):  # a page that cannot be read raises
        pages = list(series)
    missing = sum(page is None for page in pages)
    if missing:
        raise _incomplete(tif, path, missing, len(pages))
    for page in pages:
        if page.parent is not tif:
            continue
        segments = zip(page.dataoffsets, page.databytecounts, strict=False)
        if any(start + length > size for start, length in segments):
            raise _ends_early(path)


def _ends_early(path: Path) -> ImageError:
    return ImageError(
        f"{path}: is a truncated TIFF file that ends before its pixels; copy it again"
        " from its source."
    )


def _incomplete(tif: TiffFile, path: Path, missing: int, total: int) -> ImageError:
    """Return the error for a series with missing pages; it names missing files."""
    names = _missing_files(tif, path)
    if names:
        return ImageError(
            f"{path}: {missing} of {total} planes are missing: they are in"
            f" {', '.join(names)}; put all files of the set into one folder."
        )
    return _damaged(path, f"{missing} of the {total} planes it describes are missing")


def _missing_files(tif: TiffFile, path: Path) -> list[str]:
    """Return the files of an OME set that are not in its folder."""
    try:
        root = ElementTree.fromstring(tif.ome_metadata or "")
    except ElementTree.ParseError:
        return []
    names = {
        element.get("FileName", "")
        for element in root.iter()
        if element.tag.endswith("UUID")
    }
    return sorted(name for name in names if name and not (path.parent / name).exists())
