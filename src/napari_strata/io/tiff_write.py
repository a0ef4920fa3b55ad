"""Writing TIFF: tiled, compressed, streamed.

OME where OME has the dtype, tifffile's shaped form where not (float16).

The record of `record.py` goes into an OME MapAnnotation (namespace `NAMESPACE`, key
`KEY`), with one entry a class for people and other programs; the file stays valid
OME-XML 2016-06. In a shaped file it is a key of the JSON description.
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

LEVEL = 4
"""Of zlib's 1 to 9.

On label planes twice as fast as the usual 6 for a quarter more bytes; see
docs/performance.md.
"""

CLASSIC_BYTES = 2**32 - 2**27
"""More pixels than this, before compression, make a BigTIFF.

Offsets of a classic TIFF have 32 bits.
"""

_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def write(path: Path, image: Image, record: Record, *, dtype: np.dtype[Any]) -> None:
    """Write `image` to `path` as `dtype`, in canonical axis order, zlib, tiles of
    512 x 512, one band at a time; tiles are compressed on several threads.
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
                part = band[top : top + TILE, left : left + TILE]
                missing = [(0, TILE - n) for n in part.shape]
                whole = part if part.shape == (TILE, TILE) else np.pad(part, missing)
                yield np.ascontiguousarray(whole, dtype)


def _compressed(tiles: Iterator[Array]) -> Iterator[bytes]:
    """Each tile as a zlib stream, in order; a few are being compressed ahead."""
    threads = os.cpu_count() or 1
    pending: deque[Future[bytes]] = deque()
    with ThreadPoolExecutor(threads, "compress") as pool:
        for tile in tiles:
            pending.append(pool.submit(_zlib, tile))
            if len(pending) > 4 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _zlib(tile: Array) -> bytes:
    encode: Any = (
        imagecodecs.zlibng_encode
        if imagecodecs.ZLIBNG.available
        else imagecodecs.zlib_encode
    )
    return bytes(encode(tile, level=LEVEL))


def _ome(record: Record) -> dict[str, Any]:
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
    """`text` without the characters that XML cannot hold; the record keeps them."""
    return _NOT_XML.sub("?", text)
