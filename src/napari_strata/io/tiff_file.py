"""Opening of TIFF files; truncated, damaged and other files are refused.

tifffile reads as much as it can: if the chain of pages is interrupted, it returns the
first pages. This would silently be an incomplete image. Therefore the structure of the
file is checked here before pixels are used. Only page headers are read.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, TypeVar
from xml.etree import ElementTree

import numpy as np
from tifffile import TiffFile, TiffPageSeries

from napari_strata.core.errors import ImageError, StrataError
from napari_strata.io.budget import check_expansion, check_memory
from napari_strata.io.lazy import reading
from napari_strata.io.paths import TIFF_SUFFIXES, content_of
from napari_strata.io.series import check_series

# The checks below find damage, so tifffile's messages are not shown.
logging.getLogger("tifffile").addHandler(logging.NullHandler())

_LAST_BASELINE_TAG = 400
"""Largest code of the tags that are checked; private tags may be invalid."""

_PLAIN_KINDS = ("shaped", "generic", "uniform")
"""Kinds of tifffile's series that have no metadata on how they belong together."""

_KINDS_WITH_MAIN_IMAGE = ("svs", "ndpi", "philips", "scn", "bif", "avs", "qpi", "lsm")
"""Kinds of tifffile's series whose first is the image, beside labels and overviews."""

HEADER_BYTES = 8
"""Bytes of a TIFF before anything else."""

_LISTED_SERIES = 8

POSITIONS = {"R": "position", "M": "tile", "P": "position", "A": "angle", "V": "event"}
"""tifffile's letters for axes along which there are images of their own."""

_T = TypeVar("_T")

MOST_PLANES = 2**24
"""Files that claim more planes are refused."""

_SMALLEST_PAGE = 40
"""Bytes of the shortest page header that describes a plane."""

_MOST_TAGS = 4096
"""Longer lists of tags count as damage, as in tifffile."""

_TYPE_BYTES = np.zeros(65536, np.int64)
_TYPE_BYTES[1:14] = (1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4)
_TYPE_BYTES[16:19] = 8


@contextmanager
def opened(path: Path) -> Iterator[TiffFile]:
    """Open a file, check its structure, and close it at the end."""
    try:
        tif = open_tiff(path)
    except StrataError:
        raise
    except Exception as error:
        raise _not_tiff(path, error) from error
    with tif:
        if not tif.pages:
            raise _without_pixels(path)
        # ImageJ may store all pixels after the first page; then only that page counts.
        if not tif.is_imagej:
            _check_chain(tif, path)
        if tif.is_ome:
            _check_ome(tif, path)
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


def open_tiff(path: Path) -> TiffFile:
    """Open a TIFF file, with the OME-XML of its companion file if it has one."""
    tif = TiffFile(path)
    try:
        xml = _companion_xml(tif, path)
    except BaseException:
        tif.close()
        raise
    if xml is None:
        return tif
    tif.close()
    return TiffFile(path, omexml=xml)


def _companion_xml(tif: TiffFile, path: Path) -> str | None:
    """Read the OME-XML of a file that says: the metadata are in another file."""
    if not tif.pages or not tif.is_ome or "BinaryOnly" not in (tif.ome_metadata or ""):
        return None
    root = _ome_root(tif)
    names = [e.get("MetadataFile", "") for e in root if e.tag.endswith("BinaryOnly")]
    if not names:
        return None
    companion = path.parent / Path(names[0]).name
    if not companion.is_file():
        raise ImageError(
            f"{path}: its OME metadata are in {names[0]}, which is not in this folder;"
            " put both files into one folder."
        )
    if companion.suffix.lower() in TIFF_SUFFIXES:
        with TiffFile(companion) as other:
            xml: str | None = other.ome_metadata
            return xml
    return companion.read_text(encoding="utf-8")


def _ome_root(tif: TiffFile) -> ElementTree.Element:
    """Parse the OME-XML of a file; the result has no elements if it is damaged."""
    try:
        return ElementTree.fromstring(tif.ome_metadata or "")
    except ElementTree.ParseError:
        return ElementTree.Element("OME")


def _check_ome(tif: TiffFile, path: Path) -> None:
    """Refuse a set that names pipes or devices, or more planes than its files hold."""
    size = path.stat().st_size
    names, planes = set(), 0
    for element in _ome_root(tif).iter():
        tag = element.tag.rsplit("}", 1)[-1]
        if tag == "UUID":
            names.add(element.get("FileName", ""))
        elif tag == "Pixels":
            counts = [element.get(f"Size{axis}", "1") for axis in "ZCT"]
            planes += prod(int(n) if n.strip().isdigit() else 1 for n in counts)
    for name in names - {"", path.name}:
        member = path.parent / name
        if member.exists() and not member.is_file():
            raise ImageError(
                f"{path}: names {name!r} as a part of its set, which is not a file;"
                " remove it from the folder."
            )
        if member.is_file():
            size += member.stat().st_size
    if planes > MOST_PLANES or (planes > 1000 and planes * _SMALLEST_PAGE > size):
        raise _damaged(path, f"it claims {planes} planes and has {size} bytes")


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
    content = content_of(path)
    kind = f"it is {content}" if content else f"it starts with {head!r}"
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


@dataclass(frozen=True)
class TiffImage:
    """Image in a TIFF file.

    Parameters
    ----------
    series
        Numbers of tifffile's series that are joined to one stack; mostly one.
    position
        Dimension and index for each axis of which the image has one position only.
    name
        Name in the file, and the position.
    """

    series: tuple[int, ...]
    position: tuple[tuple[int, int], ...] = ()
    name: str = ""

    def without_positions(self, values: Sequence[_T]) -> list[_T]:
        """Return the values of a series' dimensions that the image has too."""
        left_out = [dimension for dimension, _ in self.position]
        return [value for i, value in enumerate(values) if i not in left_out]


def images(tif: TiffFile, axes: str | None = None) -> list[TiffImage]:
    """Return the images of a file.

    Thumbnails are left out. Pages that were appended one by one are series of their
    own in tifffile; if all are alike, they are one stack. A series with an axis of
    positions has one image for each, if `axes` does not name all of its axes.
    """
    all_series = list(tif.series)
    numbers = [i for i, s in enumerate(all_series) if not s.keyframe.is_reduced]
    numbers = numbers or [*range(len(all_series))]
    kinds = {_kind(all_series[i]) for i in numbers}
    if len(numbers) > 1 and len(kinds) == 1 and kinds.pop()[0] in _PLAIN_KINDS:
        return [TiffImage(tuple(numbers))]
    found = []
    for number in numbers:
        series = all_series[number]
        is_named = len((axes or "").strip()) == len(series.axes)
        dimensions = [i for i, a in enumerate(series.axes) if a in POSITIONS]
        if is_named or not dimensions:
            found.append(TiffImage((number,), name=str(series.name or "")))
            continue
        for indices in np.ndindex(*(series.shape[i] for i in dimensions)):
            position = tuple(zip(dimensions, map(int, indices), strict=True))
            words = [f"{POSITIONS[series.axes[i]]} {index}" for i, index in position]
            name = " ".join([*filter(None, [str(series.name or "")]), *words])
            found.append(TiffImage((number,), position, name))
    return found


def pick(
    tif: TiffFile, path: Path, index: int | None, axes: str | None = None
) -> TiffImage:
    """Return an image of a file.

    Parameters
    ----------
    index
        Number of the image, or None for the only one or the main one.
    axes
        Axes from the user, or None.

    Raises
    ------
    ImageError
        When there is no such image, or several for None. The message lists them.
    """
    choices = images(tif, axes)
    if index is None:
        is_main = tif.series[0].kind in _KINDS_WITH_MAIN_IMAGE
        if len(choices) == 1 or (is_main and not choices[0].position):
            return choices[0]
        listed = []
        for number, image in enumerate(choices[:_LISTED_SERIES]):
            series = tif.series[image.series[0]]
            name = f" {image.name!r}" if image.name else ""
            shape = tuple(image.without_positions(series.shape))
            listed.append(f"{number}:{name} {shape} {series.dtype}")
        more = ", ..." if len(choices) > len(listed) else ""
        different = " of different kinds"
        if all(image.position for image in choices):
            letters = sorted({tif.series[i.series[0]].axes for i in choices})
            different = f" along the axes {', '.join(letters)}"
        raise ImageError(
            f"{path}: found {len(choices)} images{different}, called series"
            f" ({'; '.join(listed)}{more}); choose one, as --series 0 (series=0)."
        )
    check_series(path, index, count=len(choices))
    return choices[index]


def _kind(series: TiffPageSeries) -> tuple[Any, ...]:
    page = series.keyframe
    return (series.kind, series.shape, series.axes, str(series.dtype), page.photometric)


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
        names = missing_files(tif, path)
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
    _check_codec(series, path)
    offset = data_offset(series)
    if offset is not None:
        if offset < HEADER_BYTES:
            raise _damaged(path, "its pixels would begin in the header")
        if offset + series.nbytes > size:
            raise _ends_early(path)
        return
    with reading(path):  # a page that cannot be read raises
        pages = list(series)
    if None in pages:
        present_planes(tif, series, path)
        pages = [page for page in pages if page is not None]
    keyframe = series.keyframe
    stored = 0
    for number, page in enumerate(pages):
        if page.parent is tif:
            segments = zip(page.dataoffsets, page.databytecounts, strict=False)
            if any(start + length > size for start, length in segments):
                raise _ends_early(path)
        if not _is_complete(page, prod(keyframe.chunked)):
            raise _damaged(path, f"page {number} has no offsets for all its pixels")
        stored += sum(page.databytecounts)
    segment = prod(keyframe.chunks) * series.dtype.itemsize
    check_memory(path, segment, "one strip or tile")
    claimed = max(series.nbytes, len(pages) * prod(keyframe.chunked) * segment)
    if not _is_sparse(pages):
        check_expansion(path, claimed, stored)


def _check_codec(series: TiffPageSeries, path: Path) -> None:
    """Refuse compressions and colours that tifffile does not know."""
    page = series.keyframe
    for word, value in (
        ("compression", page.compression),
        ("photometric interpretation", page.photometric),
    ):
        if not hasattr(value, "name"):
            raise ImageError(
                f"{path}: its {word} {value} is not known; save it again with another,"
                " such as zlib, or the file is damaged."
            )


def _is_complete(page: Any, segments: int) -> bool:
    """Return True if a page says where all its strips or tiles are.

    One that was left out, because its pixels are all 0, has offset and length 0.
    """
    offsets, counts = page.dataoffsets, page.databytecounts
    if len(offsets) < segments or len(counts) < segments:
        return False
    pairs = zip(offsets, counts, strict=False)
    return all((offset > 0) == (count > 0) for offset, count in pairs)


def _is_sparse(pages: Sequence[Any]) -> bool:
    return any(0 in page.databytecounts for page in pages)


def _ends_early(path: Path) -> ImageError:
    return ImageError(
        f"{path}: is a truncated TIFF file that ends before its pixels; copy it again"
        " from its source."
    )


Planes = tuple[int, tuple[int, ...]]
"""Axis of a series, and the indices along it that are there."""


def present_planes(tif: TiffFile, series: TiffPageSeries, path: Path) -> Planes | None:
    """Return which planes of a set are there; None if all are.

    Raises
    ------
    ImageError
        When planes are missing that are not all of some indices along one axis, or not
        because a file of the set is missing.
    """
    pages = list(series)
    missing = sum(page is None for page in pages)
    if not missing:
        return None
    lead = 0
    while prod(series.shape[:lead]) < len(pages):
        lead += 1
    present = np.array([page is not None for page in pages])
    if present.any() and missing_files(tif, path):
        grid = present.reshape(series.shape[:lead])
        for axis in range(lead):
            rest = tuple(k for k in range(lead) if k != axis)
            if (grid.all(axis=rest) == grid.any(axis=rest)).all():
                indices = np.flatnonzero(grid.all(axis=rest))
                return axis, tuple(indices.tolist())
    raise _incomplete(tif, path, missing, len(pages))


def _incomplete(tif: TiffFile, path: Path, missing: int, total: int) -> ImageError:
    """Return the error for a series with missing pages; it names missing files."""
    names = missing_files(tif, path)
    if names:
        return ImageError(
            f"{path}: {missing} of {total} planes are missing: they are in"
            f" {', '.join(names)}; put all files of the set into one folder."
        )
    return _damaged(path, f"{missing} of the {total} planes it describes are missing")


def missing_files(tif: TiffFile, path: Path) -> list[str]:
    """Return the files of an OME set that are not in its folder."""
    names = {
        element.get("FileName", "")
        for element in _ome_root(tif).iter()
        if element.tag.endswith("UUID")
    }
    return sorted(name for name in names if name and not (path.parent / name).exists())
