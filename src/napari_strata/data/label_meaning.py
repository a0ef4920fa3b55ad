"""Warnings about label values that are probably not one class each.

Values that nobody named may be object ids, a value for "void", or the edges of a mask
that was smoothed or compressed with loss.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from scipy.ndimage import maximum_filter, minimum_filter
from skimage.measure import label

from napari_strata.core.classes import ClassMap
from napari_strata.core.image import AnnotatedImage

Array = np.ndarray[Any, Any]

_PLANES = 12
"""Planes that are examined, spread over all images."""

_SIDE = 2048
"""Largest side of the part of a plane that is examined."""

_FEWEST_OBJECTS = 4
"""Fewer values than this are not called object ids."""

_ALONE = 0.9
"""Share of values with one connected piece in each plane, from which they are ids."""

_CONTRAST = 8
"""Smallest distance of the values of a mask that was smoothed."""

_ALONG = 0.9
"""Share of the pixels of a value between lower and higher ones, on a smoothed edge."""

_RARE = 0.02
_NOISE = 10
_FEWEST_NOISE = 3
"""Share, distance and number of values that compression with loss leaves."""

_VOID = (255, 254, 65535, -1)
"""Values that data sets use for pixels without a class."""


def warn_of_meaning(pairs: Sequence[AnnotatedImage], classes: ClassMap) -> list[str]:
    """Write a warning if classes that were inferred from values are probably none."""
    inferred = tuple(f"class {value}" for value in classes.values)
    if classes.names != inferred or classes.rgb or len(classes) < 3:
        return []
    planes = list(_planes(pairs))
    counts = dict.fromkeys(classes.values, 0)
    for plane in planes:
        values, numbers = np.unique(plane, return_counts=True)
        for value, number in zip(values.tolist(), numbers.tolist(), strict=True):
            if value in counts:
                counts[value] += number
    return (
        _warn_of_objects(planes, classes)
        or _warn_of_edges(planes, counts)
        or _warn_of_void(counts)
    )


def _planes(pairs: Sequence[AnnotatedImage]) -> Iterator[Array]:
    """Read some planes of the labels, (Y, X), evenly spread."""
    regions = [(pair, plane) for pair in pairs for plane in pair.labels.planes()]
    count = min(_PLANES, len(regions))
    part = {"Y": slice(0, _SIDE), "X": slice(0, _SIDE)}
    for number in sorted({round(n) for n in np.linspace(0, len(regions) - 1, count)}):
        pair, plane = regions[number]
        yield pair.labels.read({**plane, **part})[0]


def _warn_of_objects(planes: Sequence[Array], classes: ClassMap) -> list[str]:
    objects = [value for value in classes.values if value != 0]
    if 0 not in classes.values or len(objects) < _FEWEST_OBJECTS:
        return []
    present, alone = 0, 0
    for plane in planes:
        pieces = label(plane, background=0, connectivity=2)
        first = np.unique(pieces, return_index=True)[1]
        values = plane.ravel()[first]
        numbers = np.unique(values[values != 0], return_counts=True)[1]
        present += len(numbers)
        alone += int((numbers == 1).sum())
    if not present or alone < _ALONE * present:
        return []
    return [
        f"the labels have {len(objects)} values besides 0, and each is one connected"
        " piece: they look like numbers of objects, not like classes; to learn objects"
        " against background, say --foreground (ClassMap.foreground())"
    ]


def _warn_of_edges(planes: Sequence[Array], counts: dict[int, int]) -> list[str]:
    low, high = min(counts), max(counts)
    if high - low < _CONTRAST:
        return []
    suspects = [v for v in counts if low < v < high and _is_edge(planes, v)]
    # Compression with loss scatters values close to those of the classes.
    main = sorted(counts, key=lambda value: counts[value])[-2:]
    total = sum(counts.values())
    noise = [
        value
        for value, count in counts.items()
        if count < _RARE * total and min(abs(value - m) for m in main) <= _NOISE
    ]
    if len(noise) >= _FEWEST_NOISE and abs(main[0] - main[1]) > 2 * _NOISE:
        suspects = sorted({*suspects, *noise})
    if not suspects:
        return []
    return [
        f"the label values {_listed(suspects)} lie along the edges between other"
        " values, or close to them: the mask was probably smoothed, resized or"
        " compressed with loss; save it again without interpolation as PNG or TIFF, or"
        " take everything but 0 as one class (--foreground)"
    ]


def _is_edge(planes: Sequence[Array], value: int) -> bool:
    """Return True if nearly all pixels of a value lie between lower and higher ones."""
    total, between = 0, 0
    for plane in planes:
        pixels = plane == value
        total += int(pixels.sum())
        lower, higher = (
            minimum_filter(plane, 3) < value,
            maximum_filter(plane, 3) > value,
        )
        between += int((pixels & lower & higher).sum())
    return total > 0 and between >= _ALONG * total


def _warn_of_void(counts: dict[int, int]) -> list[str]:
    others = [value for value in counts if value not in _VOID]
    if len(others) < 2 or others[-1] - others[0] != len(others) - 1:
        return []
    for value in _VOID:
        if value in counts:
            return [
                f"the label value {value} is taken as a class; beside {_listed(others)}"
                " it usually means that there is no label: if so, say --unlabelled"
                f" {value}"
            ]
    return []


def _listed(values: Sequence[int]) -> str:
    text = ", ".join(map(str, values[:6]))
    return f"{text}, ..." if len(values) > 6 else text
