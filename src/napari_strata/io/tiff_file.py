"""Opening a TIFF file: what is missing, not a TIFF, truncated or damaged is said before a pixel is used.

tifffile goes on reading where it can: a page chain that is cut gives fewer pages and a line in the log. That would be
half an image without a word, so the log is listened to.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tifffile import TiffFile, TiffPageSeries

from napari_strata.core.errors import ImageError
from napari_strata.io.lazy import reading

_BROKEN = re.compile(
    r"invalid page offset|corrupted|[Mm]issing data are zeroed|index out of range|failed to reshape"
)
_BROKEN_TAG = re.compile(r"TiffTag (\d+) .*invalid value offset")
_LAST_BASELINE_TAG = 400  # a private tag that points nowhere harms nothing

_OTHERS = {
    b"\x89PNG": "a PNG",
    b"\xff\xd8\xff": "a JPEG",
    b"\x89HDF": "an HDF5 file",
    b"PK\3\4": "a ZIP file",
}


@contextmanager
def opened(path: Path) -> Iterator[TiffFile]:
    """The file with its series resolved; what tifffile only logs about a damaged file becomes an error."""
    with _overheard() as messages:
        try:
            tif = TiffFile(path)
        except Exception as error:
            raise _not_tiff(path, error) from error
        with tif:
            with reading(path):
                found = tif.series
            _check_messages(path, messages)
            if not any(series.size for series in found):
                raise ImageError(
                    f"{path}: a TIFF file without pixels; choose another file."
                )
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
        return ImageError(
            f"{path}: a truncated or damaged TIFF file ({error}); copy it again from its source."
        )
    kind = next((name for magic, name in _OTHERS.items() if head.startswith(magic)), "")
    found = (
        f"it is {kind}; give it its own suffix"
        if kind
        else f"it starts with {head!r}"
        if head
        else "it is empty"
    )
    return ImageError(
        f"{path}: not a TIFF file: {found} (a TIFF file starts with 'II*' or 'MM')."
    )


def data_offset(series: TiffPageSeries) -> int | None:
    """Where the pixels of a series begin, when they lie in one piece, as they are, in the file that was opened."""
    return (
        series.dataoffset
        if series.keyframe.parent is series.parent and not series.is_multifile
        else None
    )


def pick(tif: TiffFile, path: Path, index: int) -> TiffPageSeries:
    """The series number `index`, or an error that says how many there are."""
    if not 0 <= index < len(tif.series):
        raise ImageError(
            f"{path}: found {len(tif.series)} series, numbered from 0; there is no series {index}."
        )
    return tif.series[index]


def _check_messages(path: Path, messages: list[str]) -> None:
    for text in messages:
        tag = _BROKEN_TAG.search(text)
        if _BROKEN.search(text) or (tag and int(tag[1]) < _LAST_BASELINE_TAG):
            raise ImageError(
                f"{path}: a truncated or damaged TIFF file ({text}); copy it again from its source."
            )


def check(tif: TiffFile, series: TiffPageSeries, path: Path) -> None:
    """Refuse dtypes that are no pixels, and a file that ends before its pixels do; reads page headers only."""
    if series.dtype.kind not in "uifb":
        raise ImageError(
            f"{path}: found pixels of dtype {series.dtype}; integers, floats and bool can be read."
        )
    with reading(path):  # a chain of pages that breaks off raises
        missing = _missing(tif, series, path.stat().st_size)
    if missing:
        raise ImageError(
            f"{path}: a truncated TIFF file: it ends before its pixels do; copy it again from its source."
        )


def _missing(tif: TiffFile, series: TiffPageSeries, size: int) -> bool:
    offset = data_offset(series)
    if offset is not None:
        return bool(offset + series.nbytes > size)
    pages = [page for page in series if page is None or page.parent is tif]
    return any(
        page is None
        or any(
            o + n > size
            for o, n in zip(page.dataoffsets, page.databytecounts, strict=False)
        )
        for page in pages
    )


@contextmanager
def _overheard() -> Iterator[list[str]]:
    """tifffile's log messages of this thread, as a list instead of on the terminal."""
    messages: list[str] = []
    thread = threading.get_ident()

    class _Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.thread == thread:
                messages.append(record.getMessage())

    ear = _Ear(logging.WARNING)
    logger = logging.getLogger("tifffile")
    logger.addHandler(ear)
    try:
        yield messages
    finally:
        logger.removeHandler(ear)
