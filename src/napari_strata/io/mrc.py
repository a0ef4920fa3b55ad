"""Reading of MRC, memory-mapped."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from napari_strata.core.errors import ImageError
from napari_strata.io.layout import resolve
from napari_strata.io.lazy import LAZY_BYTES
from napari_strata.io.libraries import library
from napari_strata.io.mapped import plain_pixels
from napari_strata.io.metadata import Calibration, calibrated
from napari_strata.io.paths import PathLike, content_of, existing, stem
from napari_strata.io.record import Loaded
from napari_strata.io.units import size_of
from napari_strata.io.vendors import Size

_HEADER = 1024
_LARGEST_MODE = 255
_IMOD_PLACE = 152
_IMOD = 1146047817
"""Stamp of IMOD, followed by flags; without flag 1, bytes are unsigned."""


def load(
    path: PathLike,
    *,
    series: int | None = None,
    axes: str | None = None,
    lazy_above: int = LAZY_BYTES,
    labels: bool = False,
) -> Loaded:
    """Read an MRC file, whose voxel size is in angstrom.

    Parameters
    ----------
    path
        The file (``.mrc``, ``.rec`` or ``.map``).
    series
        0, because the format has a single image.
    axes
        Axes from the user, the slowest first.
    lazy_above
        Images with more bytes of pixels are memory-mapped.
    labels
        Not used.

    Raises
    ------
    ImageError
        When the file is missing or truncated, is not MRC, or has several volumes.
    """
    file = existing(path)
    header, dtype, shape = _header(file)
    ispg = int(header.ispg)
    letters = "QZYX"[-len(shape) :]
    if ispg == 0 and len(shape) == 3:
        letters = "IYX"  # the file says that it is a stack of images
    layout = resolve(letters, shape, axes=axes, source=str(file))
    data = plain_pixels(
        file,
        dtype,
        shape,
        offset=_HEADER + int(header.nsymbt),
        lazy_above=lazy_above,
    )
    calibration = Calibration(_sizes(header))
    image = calibrated(data, layout, calibration, name=stem(file), source=path)
    return image, None


def storage(path: PathLike, *, series: int | None = None) -> str:
    """Describe the storage, such as ``MRC, mode 2``."""
    header, _, _ = _header(existing(path))
    return f"MRC, mode {int(header.mode)}"


def _header(file: Path) -> tuple[Any, np.dtype[Any], tuple[int, ...]]:
    """Read header, dtype and shape.

    `mrcfile.open` would also read the extended header, whose size a damaged file may
    state as anything.
    """
    mrcfile = library("mrcfile", file)
    with file.open("rb") as stream:
        content = stream.read(_HEADER)
    try:
        header = _parse(content, mrcfile.dtypes.HEADER_DTYPE)
        dtype = mrcfile.utils.data_dtype_from_header(header)
        shape = tuple(map(int, mrcfile.utils.data_shape_from_header(header)))
        extended = int(header.nsymbt)
        if min(shape) < 1 or extended < 0:
            raise ValueError(f"its header states the shape {shape}")
        needed = _HEADER + extended + dtype.itemsize * prod(shape)
        # Programs of before 2000 write no stamp.
        if bytes(header.map)[:3] != b"MAP" and needed != file.stat().st_size:
            raise ValueError("the stamp MAP is missing")
    except Exception as error:  # errors of mrcfile and numpy, of many kinds
        text = content_of(file) or " ".join(str(error).split())[:160]
        raise ImageError(
            f"{file}: is not an MRC file that can be read ({text}); copy it again."
        ) from None
    stamp, flags = np.frombuffer(content, header.nx.dtype, 2, _IMOD_PLACE)
    if dtype == np.int8 and stamp == _IMOD and not flags & 1:
        dtype = np.dtype(np.uint8)
    if len(shape) == 3 and shape[0] == 1:
        shape = shape[1:]
    return header, dtype, shape


def _parse(content: bytes, dtype: np.dtype[Any]) -> Any:
    """Return a header in the byte order in which its mode is a small number."""
    for stored in (dtype.newbyteorder("<"), dtype.newbyteorder(">")):
        records = np.frombuffer(content, stored, 1)
        header = records.view(np.recarray)[0]
        if 0 <= header.mode <= _LARGEST_MODE:
            return header
    raise ValueError("its mode is unknown")


def _sizes(header: Any) -> dict[str, Size]:
    """Return the voxel sizes of columns, rows and sections."""
    cell = [float(header.cella[axis]) for axis in "xyz"]
    samples = [int(header.mx), int(header.my), int(header.mz)]
    order = [int(header.mapc), int(header.mapr), int(header.maps)]
    if sorted(order) != [1, 2, 3]:
        order = [1, 2, 3]
    sizes: dict[str, Size] = {}
    for letter, number in zip("XYZ", order, strict=True):
        length, count = cell[number - 1], samples[number - 1]
        if count > 0 and (step := size_of(length / count)):
            # Lengths are stored as float32.
            sizes[letter] = (float(f"{step:.6g}"), "angstrom")
    return sizes
