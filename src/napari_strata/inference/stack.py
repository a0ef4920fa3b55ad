"""An image as a stack of planes: read one slab ahead, recognised again, and its labels put together as the image was.

Planes are those of `Image.planes`, counted in its order.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from napari_strata.core import axes
from napari_strata.core.classes import ClassMap
from napari_strata.core.events import Message
from napari_strata.core.image import Image, LabelImage
from napari_strata.inference.chunks import Slab

Array = np.ndarray[Any, Any]


def read_ahead(image: Image, slabs: Sequence[Slab]) -> Iterator[tuple[Slab, Array]]:
    """Slabs with their grey values, the next one being read while the last is worked on."""
    with ThreadPoolExecutor(1, "read-ahead") as pool:
        pending: deque[tuple[Slab, Future[Array]]] = deque()
        for slab in slabs:
            pending.append((slab, pool.submit(image.read, slab.region)))
            if len(pending) > 1:
                first, future = pending.popleft()
                yield first, future.result()
        for slab, future in pending:
            yield slab, future.result()


def not_finite(image: Image, bad: Sequence[tuple[Mapping[str, Any], Array]]) -> Message:
    """A warning that counts and locates pixels that are NaN or infinite, from planes and the (row, column) of each."""
    region, where = bad[0]
    place = ", ".join(
        [
            *(f"{k}={v}" for k, v in region.items()),
            f"Y={where[0][0]}",
            f"X={where[0][1]}",
        ]
    )
    count = sum(len(w) for _, w in bad)
    noun = "pixel that is" if count == 1 else "pixels that are"
    return Message(
        f"{image.name}: found {count} {noun} not finite (NaN or infinite), the first at {place}; taken as the mean "
        "grey value.",
        "warning",
    )


def fingerprint(image: Image, samples: Sequence[Array]) -> str:
    """Sixteen hexadecimal digits that change with the image: its layout, its samples, its file's size and time; every
    plane where it is an array in memory, which has no file."""
    state = hashlib.sha256(repr((image.axes, image.shape, str(image.dtype))).encode())
    if image.source is not None and os.path.exists(image.source):
        facts = os.stat(image.source)
        state.update(
            repr(
                (os.path.abspath(image.source), facts.st_size, facts.st_mtime_ns)
            ).encode()
        )
    elif isinstance(image.data, np.ndarray):
        for plane in image.planes():
            state.update(
                b"%d"
                % zlib.crc32(
                    np.ascontiguousarray(image.read(plane)).view(np.uint8).data
                )
            )
    for sample in samples:
        state.update(np.ascontiguousarray(sample).view(np.uint8).data)
    return state.hexdigest()[:16]


def label_stack(planes: Array, image: Image, *, classes: ClassMap) -> LabelImage:
    """Planes (n, H, W) of label values as labels in the image's own order of axes. A view, also of a memory map."""
    letters = axes.canonical(image.label_axes)
    array = axes.from_canonical(
        planes.reshape([image.size(a) for a in letters]), image.label_axes
    )
    return image.labels_like(array, classes=classes)


def probability_stack(planes: Array, image: Image, names: tuple[str, ...]) -> Image:
    """Planes (n, K, H, W) of probabilities as an image with axes T and Z (as it has them), C, Y, X. A view."""
    leading = [a for a in "TZ" if a in image.axes]
    letters = "".join([*leading, "CYX"])
    known = {a: (image.scale[i], image.units[i]) for i, a in enumerate(image.axes)} | {
        "C": (1.0, "pixel")
    }
    return Image(
        planes.reshape([image.size(a) for a in leading] + list(planes.shape[1:])),
        letters,
        scale=tuple(known[a][0] for a in letters),
        units=tuple(known[a][1] for a in letters),
        name=image.name,
        channel_names=names,
    )
