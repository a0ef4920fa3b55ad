"""A table of objects: where they lie, how large and long they are, and their grey values; in physical units."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from napari_strata.core import files
from napari_strata.core.classes import check_integers
from napari_strata.core.errors import RunError
from napari_strata.core.image import AnnotatedImage, Array, Image, LabelImage, Region
from napari_strata.measure.objects import check_memory, check_volume, groups, pixel_size

Row: TypeAlias = dict[str, float | int | str]

BOX_BYTES = 80
"""Bytes a pixel of an object's box while it is measured: its coordinates and moments, in float64."""


def region_table(
    objects: LabelImage, image: Image | None = None, *, by_plane: bool = False
) -> list[Row]:
    """Measure every object (scikit-image's regionprops, with the pixel size as spacing).

    Parameters
    ----------
    objects
        ids as `find_objects` gives them, axes of T, Z, Y, X in any order; 0 is no object.
    image
        the picture they were found in, of the same sizes along T, Z, Y and X, for grey values.
    by_plane
        every plane by itself, as they were found: areas instead of volumes. One that has the same id in several
        planes has a row in each.

    Returns
    -------
    list of dict
        one row an object, by time point, plane and id. Columns, with their units in their names:

        - ``id``; ``t``, where there is a time axis, and ``z``, where planes stand by themselves: numbers from 0;
        - ``centroid z (micrometer)`` and so on: the first pixel's middle is at 0;
        - ``volume (micrometer^3)`` and ``volume (pixels)``, or ``area (micrometer^2)`` and ``area (pixels)``;
        - ``equivalent diameter``: of the ball, or disc, of that size;
        - ``major axis`` and ``minor axis``: of the ellipsoid, or ellipse, with the same second moments;
        - in planes ``eccentricity`` of that ellipse and, where pixels are square, ``perimeter``;
        - ``box z from (pixel)``, ``box z to (pixel)``: the first index inside and the first beyond;
        - with `image`, ``mean``, ``min`` and ``max``, followed by the channel's name or number when there are several.

    Raises
    ------
    LabelError
        when ids are not integers, or more than one a pixel.
    ImageError
        when the sizes of `image` differ, or the pixel size is not positive and in one unit.
    RunError
        when memory is too small.
    """
    if image is not None:
        AnnotatedImage(image, objects)
    whole = objects.size("Z") > 1 and not by_plane
    letters = "ZYX" if whole else "YX"
    spacing = pixel_size(objects, letters)
    # The ids, whether they are above 0, the same numbered from 1, and a channel.
    needed = (
        objects.dtype.itemsize + 5 + (image.dtype.itemsize if image is not None else 0)
    )
    rows: list[Row] = []
    for group in groups(objects, whole=whole):
        check_volume(objects, needed, whole=whole, what="measuring objects")
        # A single plane is taken out of its axis: regionprops measures areas in two dimensions only.
        region = {a: i for a, i in group[0].items() if a == "T" or not whole}
        found = _regions(check_integers(objects.read(region)[0]), spacing)
        _check_boxes(objects, [one for _, one in found])
        where = {a.lower(): i for a, i in region.items() if isinstance(i, int)}
        new: list[Row] = [
            {"id": n, **where, **_geometry(one, letters, objects.pixel_unit)}
            for n, one in found
        ]
        if image is not None:
            _add_grey_values(new, [one for _, one in found], image, region)
        rows += new
    return rows


def count_objects(objects: LabelImage) -> int:
    """The highest id, which is the number of objects that `find_objects` found; read plane by plane."""
    return max(int(objects.read(plane).max()) for plane in objects.planes())


def write_table(
    path: str | Path,
    rows: Sequence[Mapping[str, float | int | str]],
    *,
    overwrite: bool = False,
) -> Path:
    """Write rows as CSV (UTF-8, comma, one header line); without rows the header is ``id`` alone.

    Raises
    ------
    RunError
        when `path` exists and `overwrite` is false, its suffix is not ``.csv``, or it cannot be written.
    """
    target = Path(path).expanduser()
    check_table_path(target, overwrite=overwrite)
    with (
        files.atomic(target) as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, list(rows[0]) if rows else ["id"])
        writer.writeheader()
        writer.writerows(
            {key: _shown(value) for key, value in row.items()} for row in rows
        )
    return target


def check_table_path(path: Path, *, overwrite: bool) -> None:
    """Raise `RunError` unless a table may be written to `path`; long work is better refused before it is done."""
    if path.suffix.lower() != ".csv":
        raise RunError(
            f"{path}: found the suffix {path.suffix!r}; a table is written as .csv."
        )
    if path.is_dir():
        raise RunError(f"{path}: is a folder; choose another name for the table.")
    if path.exists() and not overwrite:
        raise RunError(
            f"{path}: exists already; choose another name, or allow it to be replaced (--overwrite)."
        )


def _regions(ids: Array, spacing: Sequence[float]) -> list[tuple[int, Any]]:
    """Each object's id and its regionprops, by rising id."""
    from skimage.measure import regionprops

    present = ids > 0
    if not present.any():
        return []
    # From 1 on: scipy makes a list as long as the highest number, and in the last plane of many that is high.
    before = int(ids.min(where=present, initial=ids.max())) - 1
    local = np.zeros(ids.shape, np.int32)
    np.subtract(ids, before, out=local, where=present, casting="unsafe")
    return [
        (one.label + before, one) for one in regionprops(local, spacing=tuple(spacing))
    ]


def _geometry(one: Any, letters: str, unit: str) -> Row:
    """Where one object is, and how large and long."""
    volume = len(letters) == 3
    word, power = ("volume", 3) if volume else ("area", 2)
    row: Row = {
        f"centroid {a.lower()} ({unit})": float(c)
        for a, c in zip(letters, one.centroid, strict=True)
    }
    row |= {
        f"{word} ({unit}^{power})": float(one.area),
        f"{word} (pixels)": int(one.num_pixels),
    }
    row[f"equivalent diameter ({unit})"] = float(one.equivalent_diameter_area)
    row[f"major axis ({unit})"] = float(one.axis_major_length)
    row[f"minor axis ({unit})"] = float(one.axis_minor_length)
    if not volume:
        row["eccentricity"] = float(one.eccentricity)
        with suppress(
            NotImplementedError
        ):  # regionprops knows no perimeter of oblong pixels
            row[f"perimeter ({unit})"] = float(one.perimeter)
    for letter, part in zip(letters, one.slice, strict=True):
        row |= {
            f"box {letter.lower()} from (pixel)": part.start,
            f"box {letter.lower()} to (pixel)": part.stop,
        }
    return row


def _add_grey_values(
    rows: Sequence[Row], found: Sequence[Any], image: Image, region: Region
) -> None:
    """Mean, least and greatest grey value of each channel, one channel in memory at a time."""
    whole = any(len(one.slice) == 3 for one in found)
    part = {
        a: region.get(a, 0) for a in "TZ" if a in image.axes and (a == "T" or not whole)
    }
    for channel in range(image.channels):
        grey = image.read(part | ({"C": channel} if "C" in image.axes else {}))[0]
        known = (
            image.channel_names[channel]
            if channel < len(image.channel_names)
            else f"channel {channel}"
        )
        suffix = f" {known}" if image.channels > 1 else ""
        for row, one in zip(rows, found, strict=True):
            values = grey[one.slice][one.image]
            row[f"mean{suffix}"] = float(values.mean(dtype=np.float64))
            row |= {
                f"min{suffix}": values.min().item(),
                f"max{suffix}": values.max().item(),
            }


def _check_boxes(objects: LabelImage, found: Sequence[Any]) -> None:
    largest = max(
        (math.prod(s.stop - s.start for s in one.slice) for one in found), default=0
    )
    what = (
        f"{objects.name}: measuring the largest object, in a box of {largest} pixels,"
    )
    check_memory(
        largest * BOX_BYTES,
        what=what,
        instead="find smaller ones (--split, --by-plane), crop the labels",
    )


def _shown(value: float | int | str) -> str:
    """Ten digits are more than any measure here has."""
    return f"{value:.10g}" if isinstance(value, float) else str(value)
