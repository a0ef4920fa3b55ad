"""Writing of TIFF with tiles and compression, as a stream.

Files are OME-TIFF. Since OME has no float16, such files have tifffile's shaped format.

The record of `record.py` is stored in an OME MapAnnotation (namespace `NAMESPACE`, key
`KEY`), which also has an entry for each class, for people and other programs. The files
are valid OME-XML 2016-06. In a shaped file the record is a key of the JSON description.
"""

from __future__ import annotations

import math
import os
import re
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from tifffile import TiffWriter

from napari_strata.core import axes as _axes
from napari_strata.core.image import Array, Image
from napari_strata.io.blocks import bands, canonical_shape
from napari_strata.io.record import KEY, NAMESPACE, Record
from napari_strata.io.units import ome_symbol

TILE = 512
"""Side of a tile in pixels."""

ZLIB_LEVEL = 4
"""Level of compression from 1 to 9.

On labels it is twice as fast as the usual 6, for a quarter more bytes; see
docs/performance.md.
"""

CLASSIC_BYTES = 2**32 - 2**27
"""Images with more bytes before compression are written as BigTIFF.

A classic TIFF has offsets of 32 bits.
"""

_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def write(path: Path, image: Image, record: Record, *, dtype: np.dtype[Any]) -> None:
    """Write an image as `dtype`, in canonical axis order.

    It is read in bands, and its tiles are compressed in several threads.
    """
    shape = canonical_shape(image)
    ome = dtype != np.float16
    big = math.prod(shape) * dtype.itemsize > CLASSIC_BYTES
    with path.open("wb") as file, TiffWriter(file, bigtiff=big, ome=ome) as tif:
        tif.write(
            _compressed(_tiles(image, dtype)),
            shape=shape,
            dtype=dtype,
            photometric="minisblack",
            tile=(TILE, TILE),
            compression="zlib",
            predictor=None,
            software="napari-strata",
            metadata=_ome(record) if ome else {"axes": record.axes, KEY: record.text()},
        )


def _tiles(image: Image, dtype: np.dtype[Any]) -> Iterator[Array]:
    for band in bands(image, multiple=TILE, itemsize=image.dtype.itemsize):
        for top in range(0, band.shape[0], TILE):
            for left in range(0, band.shape[1], TILE):
                tile = band[top : top + TILE, left : left + TILE]
                if tile.shape != (TILE, TILE):
                    tile = np.pad(tile, [(0, TILE - n) for n in tile.shape])
                tile = np.ascontiguousarray(tile, dtype)
                # TIFF stores eight pixels of bool in a byte.
                yield np.packbits(tile, axis=1) if dtype == np.bool_ else tile


def _compressed(tiles: Iterator[Array]) -> Iterator[bytes]:
    """Iterate over the compressed tiles, in order; a few are compressed ahead."""
    threads = os.cpu_count() or 1
    pending: deque[Future[bytes]] = deque()
    with ThreadPoolExecutor(threads, "compress") as pool:
        for tile in tiles:
            pending.append(_submit(pool, tile))
            if len(pending) > 4 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _submit(pool: ThreadPoolExecutor, tile: Array) -> Future[bytes]:
    try:
        return pool.submit(_zlib, tile)
    except RuntimeError:  # Python is ending, and starts no threads any more
        compressed: Future[bytes] = Future()
        compressed.set_result(_zlib(tile))
        return compressed


def _zlib(tile: Array) -> bytes:
    encode: Any = (
        imagecodecs.zlibng_encode
        if imagecodecs.ZLIBNG.available
        else imagecodecs.zlib_encode
    )
    return bytes(encode(tile, level=ZLIB_LEVEL))


def _ome(record: Record) -> dict[str, Any]:
    """Return the OME metadata in the form that tifffile expects."""
    metadata: dict[str, Any] = {"axes": record.axes, "Name": _xml(record.name)}
    for axis, size, unit in zip(record.axes, record.scale, record.units, strict=True):
        key = "TimeIncrement" if axis == "T" else f"PhysicalSize{axis}"
        symbol = ome_symbol(unit, time=axis == "T")
        if (
            axis != "C"
            and symbol
            and size > 0
            and math.isfinite(size)
            and (size, symbol) != (1, "pixel")
        ):
            metadata |= {key: size, f"{key}Unit": symbol}
    channels = (
        record.shape[_axes.canonical(record.axes).index("C")]
        if "C" in record.axes
        else 0
    )
    if channels and len(record.channel_names) == channels:
        metadata["Channel"] = {"Name": [_xml(name) for name in record.channel_names]}
    table = record.classes.table() if record.classes else []
    entries = {
        f"class {row['value']}": _xml(f"{row['name']} {row['color']}") for row in table
    }
    return metadata | {
        "MapAnnotation": {"Namespace": NAMESPACE, KEY: record.text(), **entries}
    }


def _xml(text: str) -> str:
    """Replace the characters that XML does not allow; the record keeps them."""
    return _NOT_XML.sub("?", text)
