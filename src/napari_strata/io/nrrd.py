"""Reading of NRRD, with the pixels in the file or beside it.

Pixels that are not compressed are memory-mapped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from napari_strata.core.errors import ImageError
from napari_strata.core.image import ArrayLike
from napari_strata.io.budget import check_expansion, check_memory
from napari_strata.io.layout import resolve
from napari_strata.io.lazy import LAZY_BYTES, reading
from napari_strata.io.libraries import library
from napari_strata.io.mapped import compressed_pixels, plain_pixels
from napari_strata.io.metadata import Calibration, calibrated
from napari_strata.io.paths import PathLike, content_of, existing, stem
from napari_strata.io.record import Loaded
from napari_strata.io.units import PIXEL, size_of, unit_name
from napari_strata.io.vendors import Size

_HEADER = 2**20
"""Largest number of bytes of a header."""

_TYPES = {
    "i1": ("signed char", "int8", "int8_t"),
    "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
    "i2": ("short", "short int", "signed short", "signed short int", "int16"),
    "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    "i4": ("int", "signed int", "int32", "int32_t"),
    "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
    "i8": ("longlong", "long long", "long long int", "signed long long", "int64"),
    "u8": ("ulonglong", "unsigned long long", "unsigned long long int", "uint64"),
    "f4": ("float",),
    "f8": ("double",),
}
_DTYPES = {name: dtype for dtype, names in _TYPES.items() for name in names} | {
    "int16_t": "i2",
    "int64_t": "i8",
    "uint64_t": "u8",
    "signed long long int": "i8",
}
"""dtype of each name that the specification lists."""

_COMPRESSIONS = {"gz": "gzip", "gzip": "gzip", "bz2": "bzip2", "bzip2": "bzip2"}
_TEXT = ("ascii", "txt", "text")
_COLOURS = ("color", "colour", "list", "vector", "component", "scalar", "point")
"""Parts of the kinds of axes that are read as channels."""

_PATIENT = ("left", "right", "posterior", "anterior", "las", "lps", "ras")
"""Parts of the names of patient spaces, whose unit is the millimetre."""


@dataclass(frozen=True)
class _Header:
    """Header of a file, and where its pixels are."""

    fields: Mapping[str, Any]
    data_file: Path
    start: int
    skip: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape with the slowest axis first."""
        return tuple(int(n) for n in self.fields["sizes"][::-1])

    @property
    def encoding(self) -> str:
        return str(self.fields["encoding"]).lower()

    @property
    def dtype(self) -> np.dtype[Any]:
        code = _DTYPES.get(str(self.fields["type"]).lower())
        if code is None:
            raise ImageError(
                f"{self.data_file}: found pixels of type {self.fields['type']!r}; the"
                " numbers of NRRD can be read, but not blocks of bytes."
            )
        order = ">" if self.fields.get("endian") == "big" else "<"
        return np.dtype(order + code)


def load(
    path: PathLike,
    *,
    series: int | None = None,
    axes: str | None = None,
    lazy_above: int = LAZY_BYTES,
    labels: bool = False,
) -> Loaded:
    """Read a NRRD file (``.nrrd``), or the pixels that a header (``.nhdr``) names.

    Parameters
    ----------
    path
        The file with the header.
    series
        0, because the format has a single image.
    axes
        Axes from the user, the slowest first.
    lazy_above
        Images with more bytes of pixels are memory-mapped; compressed ones are read
        whole, when they are first needed.
    labels
        Not used.

    Raises
    ------
    ImageError
        When a file is missing or truncated, or the axes are unknown.
    """
    file = existing(path)
    header = _header(file)
    letters, sizes = _axes_of(header.fields)
    layout = resolve(letters, header.shape, axes=axes, source=str(file))
    image = calibrated(
        _pixels(header, file, lazy_above),
        layout,
        Calibration(sizes),
        name=stem(file),
        source=path,
    )
    return image, None


def storage(path: PathLike, *, series: int | None = None) -> str:
    """Describe the storage, such as ``NRRD, gzip, pixels in scan.raw.gz``."""
    file = existing(path)
    header = _header(file)
    place = "" if header.data_file == file else f", pixels in {header.data_file.name}"
    return f"NRRD, {_COMPRESSIONS.get(header.encoding, header.encoding)}{place}"


def _header(file: Path) -> _Header:
    nrrd = library("nrrd", file)
    with file.open("rb") as stream, _damage(file):
        lines = _header_lines(stream)
        start = stream.tell()
        fields = nrrd.read_header(lines)
        if len(fields["sizes"]) != int(fields["dimension"]):
            raise ValueError("dimension and sizes do not fit")
        line_skip = int(_field(fields, "line skip", 0))
        byte_skip = int(_field(fields, "byte skip", 0))
        named = _field(fields, "data file", "")
        if not named:
            data_file = file
        else:
            if "%" in named or named.upper().startswith("LIST"):
                raise ImageError(
                    f"{file}: its pixels are in several files ({named}); save them as"
                    " one NRRD."
                )
            data_file = existing(file.parent / named)
            start = 0
    if line_skip:
        with data_file.open("rb") as stream:
            stream.seek(start)
            for _ in range(line_skip):
                stream.readline(_HEADER)
            start = stream.tell()
    header = _Header(fields, data_file, start, byte_skip)
    if byte_skip == -1:  # the pixels are the last bytes
        needed = header.dtype.itemsize * int(np.prod(header.shape, dtype=object))
        start = data_file.stat().st_size - needed
        header = _Header(fields, data_file, start, 0)
    return header


def _header_lines(stream: Any) -> list[bytes]:
    """Read the lines of a header up to the empty one."""
    lines: list[bytes] = []
    size = 0
    while line := stream.readline(_HEADER):
        size += len(line)
        if not line.strip() or size > _HEADER:
            break
        lines.append(line)
    return lines


@contextmanager
def _damage(file: Path) -> Iterator[None]:
    """Turn errors of the header into an `ImageError`."""
    try:
        yield
    except ImageError:
        raise
    except Exception as error:  # errors of pynrrd, or a missing field
        content = content_of(file)
        raise ImageError(
            f"{file}: its NRRD header cannot be read"
            f" ({content or ' '.join(str(error).split())[:120]}); copy it again."
        ) from None


def _field(fields: Mapping[str, Any], name: str, default: Any) -> Any:
    """Return a field, which may be written without the blank."""
    return fields.get(name, fields.get(name.replace(" ", ""), default))


def _pixels(header: _Header, file: Path, lazy_above: int) -> ArrayLike:
    place, encoding, shape = header.data_file, header.encoding, header.shape
    if encoding == "raw":
        return plain_pixels(
            place,
            header.dtype,
            shape,
            offset=header.start + header.skip,
            lazy_above=lazy_above,
        )
    if encoding in _COMPRESSIONS:
        return compressed_pixels(
            place,
            header.dtype,
            shape,
            compression=_COMPRESSIONS[encoding],
            start=header.start,
            skip=header.skip,
            lazy_above=lazy_above,
        )
    if encoding not in _TEXT:
        raise ImageError(
            f"{file}: found the encoding {encoding!r}; raw, gzip, bzip2 and text can be"
            " read."
        )
    needed = header.dtype.itemsize * int(np.prod(shape, dtype=object))
    check_expansion(place, needed, place.stat().st_size, limit=8)
    check_memory(place, needed, "its image")
    with reading(place), place.open("rb") as stream:
        stream.seek(header.start + header.skip)
        numbers = stream.read().split()
        return np.array(numbers, header.dtype.newbyteorder("=")).reshape(shape)


def _axes_of(fields: Mapping[str, Any]) -> tuple[str, dict[str, Size]]:
    """Return letters and pixel sizes, the slowest axis first; Q for unknown axes."""
    count = len(fields["sizes"])
    kinds = [str(kind).lower() for kind in fields.get("kinds", ["???"] * count)]
    directions = fields.get("space directions")
    steps: list[float | None] = [None] * count
    spatial = [False] * count
    if directions is not None:
        for i, direction in enumerate(directions):
            vector = np.asarray(direction, float)
            steps[i] = size_of(np.sqrt((vector**2).sum()))
            spatial[i] = not np.isnan(vector).any()
    else:
        for i, value in enumerate(fields.get("spacings", ())):
            steps[i] = size_of(value)
    letters = ["Q"] * count
    free = iter("XYZ")
    for i, kind in enumerate(kinds):
        if kind == "time":
            letters[i] = "T"
        elif any(word in kind for word in _COLOURS):
            letters[i] = "C"
        elif kind in ("domain", "space") or spatial[i] or count <= 3:
            letters[i] = next(free, "Q")
    units = _units(fields, spatial, count)
    sizes: dict[str, Size] = {}
    for letter, step, unit in zip(letters, steps, units, strict=True):
        if step and letter not in "CQ":
            sizes[letter] = (step, unit)
    return "".join(letters[::-1]), sizes


def _units(fields: Mapping[str, Any], spatial: list[bool], count: int) -> list[str]:
    """Return the unit of each axis, the fastest first."""
    units = [unit_name(unit) for unit in fields.get("units", ())]
    units += [PIXEL] * (count - len(units))
    space = list(fields.get("space units", ()))
    if not space and any(word in str(fields.get("space")).lower() for word in _PATIENT):
        space = ["mm"] * sum(spatial)
    # The units belong to the directions of the space. Mostly they are all the same.
    for i, unit in zip([i for i in range(count) if spatial[i]], space, strict=False):
        units[i] = unit_name(unit)
    return units
