"""Measure objects in physical units: position, size, shape and grey values."""

from __future__ import annotations

import csv
import itertools
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
from napari_strata.measure.crofton import surface_area
from napari_strata.measure.objects import check_memory, check_volume, groups, pixel_size

Row: TypeAlias = dict[str, float | int | str]

BOX_BYTES = 80
"""Bytes for each pixel of an object's box while it is measured: its coordinates and
moments, in float64."""


def region_table(
    objects: LabelImage, image: Image | None = None, *, by_plane: bool = False
) -> list[Row]:
    """Measure every object with scikit-image's regionprops, in physical units.

    Parameters
    ----------
    objects
        ids as `find_objects` gives them, axes of T, Z, Y, X in any order; 0 is no
        object.
    image
        image of the same sizes along T, Z, Y and X, for grey values.
    by_plane
        every plane by itself, as in `find_objects`: areas instead of volumes. An object
        with the same id in several planes has a row in each.

    Returns
    -------
    list of dict
        one row for each object, by time point, plane and id. Columns, with their units
        in their names:

        - ``id``; ``t``, if there is a time axis, and ``z``, if planes are measured one
        by
          one: numbers from 0;
        - ``centroid z (micrometer)`` and so on: the first pixel's middle is at 0;
        - ``volume (micrometer^3)`` and ``volume (pixels)``, or ``area (micrometer^2)``
        and
          ``area (pixels)``;
        - ``equivalent diameter``: of the ball, or disc, of that size;
        - ``major axis`` and ``minor axis``: of the ellipsoid, or ellipse, with the same
          second moments;
        - in planes ``eccentricity`` of that ellipse; ``orientation (degree)`` of its
          major axis, counterclockwise from the X axis, 0 to 180; and, if pixels are
          square, ``perimeter`` by the formula of Crofton;
        - in volumes ``surface`` by the formula of Crofton in 13 directions;
          ``sphericity``, the surface of a ball of that volume over the surface; and the
          direction of the major axis: ``azimuth (degree)``, in the XY plane from X to
          Y, and ``inclination (degree)``, from that plane towards Z;
        - ``solidity``: the size over that of the convex hull of the pixels' outlines;
        - ``touches border``: 1 if it reaches the border of the image, where it may be
          cut, else 0;
        - ``neighbours``: the number of other objects that touch it, by a face or a
          corner of a pixel; ``nearest centre``: the distance to the nearest centroid;
        - ``box z from (pixel)``, ``box z to (pixel)``: the first index inside and the
          first beyond;
        - with `image`, ``mean``, ``std``, ``min`` and ``max``, followed by the
          channel's name or number when there are several. NaN and infinite values
          count nowhere but in ``missing``, the number of such pixels, which images of
          floating-point numbers have.

    Raises
    ------
    LabelError
        when ids are not integers, or more than one for each pixel.
    ImageError
        when the sizes of `image` differ, or the pixel size is not positive and in one
        unit.
    RunError
        when memory is too small.
    """
    if image is not None:
        AnnotatedImage(image, objects)
    whole = objects.size("Z") > 1 and not by_plane
    letters = "ZYX" if whole else "YX"
    spacing = pixel_size(objects, letters)
    # The ids, a mask of them, the same numbered from 1, and a channel.
    bytes_per_pixel = objects.dtype.itemsize + 5
    if image is not None:
        bytes_per_pixel += image.dtype.itemsize
    rows: list[Row] = []
    for group in groups(objects, whole=whole):
        check_volume(objects, bytes_per_pixel, whole=whole, what="measuring objects")
        # A single plane is read without its axis: regionprops measures areas in two
        # dimensions only.
        region = {a: i for a, i in group[0].items() if a == "T" or not whole}
        position = {a.lower(): i for a, i in region.items() if isinstance(i, int)}
        ids = check_integers(objects.read(region)[0])
        numbered = _measure_regions(ids, spacing)
        regions = [measured for _, measured in numbered]
        _check_boxes(objects, regions)
        new_rows: list[Row] = []
        for number, measured in numbered:
            geometry = _geometry_columns(
                measured, letters, spacing, objects.pixel_unit, ids.shape
            )
            new_rows.append({"id": number, **position, **geometry})
        _add_neighbours(new_rows, ids, regions, objects.pixel_unit)
        if image is not None:
            _add_grey_values(new_rows, regions, image, region)
        rows += new_rows
    return rows


def count_objects(objects: LabelImage) -> int:
    """Highest id, which is the number of objects of `find_objects`; read by plane."""
    return max(int(objects.read(plane).max()) for plane in objects.planes())


def write_table(
    path: str | Path,
    rows: Sequence[Mapping[str, float | int | str]],
    *,
    overwrite: bool = False,
) -> Path:
    """Write rows as CSV (UTF-8, comma, one header line).

    Without rows the header is ``id`` alone.

    Raises
    ------
    RunError
        when `path` exists and `overwrite` is false, its suffix is not ``.csv``, or it
        cannot be written.
    """
    target = Path(path).expanduser()
    check_table_path(target, overwrite=overwrite)
    with (
        files.atomic(target) as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, list(rows[0]) if rows else ["id"])
        writer.writeheader()
        for row in rows:
            writer.writerow({key: _format(value) for key, value in row.items()})
    return target


def check_table_path(path: Path, *, overwrite: bool) -> None:
    """Raise `RunError` unless a table may be written to `path`.

    Called before long work, so that it is not done in vain.
    """
    if path.suffix.lower() != ".csv":
        raise RunError(
            f"{path}: found the suffix {path.suffix!r}; a table is written as .csv."
        )
    if path.is_dir():
        raise RunError(f"{path}: is a folder; choose another name for the table.")
    if path.exists() and not overwrite:
        raise RunError(
            f"{path}: exists already; choose another name, or allow it to be replaced "
            "(--overwrite)."
        )


def _measure_regions(ids: Array, spacing: Sequence[float]) -> list[tuple[int, Any]]:
    """Id and regionprops of each object, by rising id."""
    from skimage.measure import regionprops

    present = ids > 0
    if not present.any():
        return []
    # Numbered from 1, because scipy makes a list as long as the highest number, which
    # is high in the last plane of many.
    offset = int(ids.min(where=present, initial=ids.max())) - 1
    local = np.zeros(ids.shape, np.int32)
    np.subtract(ids, offset, out=local, where=present, casting="unsafe")
    regions = regionprops(local, spacing=tuple(spacing))
    return [(region.label + offset, region) for region in regions]


def _geometry_columns(
    measured: Any,
    letters: str,
    spacing: Sequence[float],
    unit: str,
    shape: Sequence[int],
) -> Row:
    """Columns of position, size and shape of one object in an image of a shape."""
    row: Row = {}
    for axis, center in zip(letters, measured.centroid, strict=True):
        row[f"centroid {axis.lower()} ({unit})"] = float(center)
    size, power = ("area", 2) if len(letters) == 2 else ("volume", 3)
    row[f"{size} ({unit}^{power})"] = float(measured.area)
    row[f"{size} (pixels)"] = int(measured.num_pixels)
    row[f"equivalent diameter ({unit})"] = float(measured.equivalent_diameter_area)
    row[f"major axis ({unit})"] = float(measured.axis_major_length)
    row[f"minor axis ({unit})"] = float(measured.axis_minor_length)
    if len(letters) == 2:
        row["eccentricity"] = float(measured.eccentricity)
        # regionprops measures from the Y axis.
        row["orientation (degree)"] = (math.degrees(measured.orientation) + 90) % 180
        # regionprops knows no perimeter of pixels that are not square.
        with suppress(NotImplementedError):
            row[f"perimeter ({unit})"] = float(measured.perimeter_crofton)
    else:
        surface = surface_area(measured.image, spacing)
        row[f"surface ({unit}^2)"] = surface
        ball = (math.pi * (6 * float(measured.area)) ** 2) ** (1 / 3)
        row["sphericity"] = ball / surface
        row |= _direction(measured)
    row["solidity"] = _solidity(measured.image)
    at_border = [
        part.start == 0 or part.stop == length
        for part, length in zip(measured.slice, shape, strict=True)
    ]
    row["touches border"] = int(any(at_border))
    for axis, part in zip(letters, measured.slice, strict=True):
        row[f"box {axis.lower()} from (pixel)"] = part.start
        row[f"box {axis.lower()} to (pixel)"] = part.stop
    return row


def _direction(measured: Any) -> Row:
    """Direction of the major axis of an object in a volume."""
    _, vectors = np.linalg.eigh(measured.inertia_tensor)
    # The least moment of inertia is that about the major axis.
    z, y, x = vectors[:, 0]
    if (z, y, x) < (0, 0, 0):
        z, y, x = -z, -y, -x
    return {
        "azimuth (degree)": math.degrees(math.atan2(y, x)) % 360,
        "inclination (degree)": math.degrees(math.atan2(z, math.hypot(y, x))),
    }


def _solidity(mask: Array) -> float:
    """Size of an object over the size of the convex hull of its pixels' outlines."""
    from scipy.spatial import ConvexHull

    # The hull is that of the first and last pixel of each row.
    rows = np.argwhere(mask.any(axis=-1))
    lines = mask[tuple(rows.T)]
    first = lines.argmax(axis=1)
    last = lines.shape[1] - lines[:, ::-1].argmax(axis=1)
    starts = np.column_stack([rows, first])
    ends = np.column_stack([rows, last])
    points = [starts, ends]
    for axis in range(mask.ndim - 1):
        moved = []
        for corners in points:
            shifted = corners.copy()
            shifted[:, axis] += 1
            moved.append(shifted)
        points += moved
    hull = ConvexHull(np.concatenate(points))
    return float(np.count_nonzero(mask) / hull.volume)


def _add_neighbours(
    rows: Sequence[Row], ids: Array, regions: Sequence[Any], unit: str
) -> None:
    """Add the number of objects that touch each one, and the nearest centroid."""
    from scipy.spatial import cKDTree

    numbers = np.asarray([row["id"] for row in rows], ids.dtype)
    pairs = _touching(ids, numbers)
    neighbours = np.bincount(pairs.ravel(), minlength=len(numbers))
    distances = np.full((len(rows), 2), np.nan)
    if len(rows) > 1:
        centers = np.asarray([measured.centroid for measured in regions])
        distances, _ = cKDTree(centers).query(centers, 2)
    for row, count, distance in zip(rows, neighbours, distances[:, 1], strict=True):
        row["neighbours"] = int(count)
        row[f"nearest centre ({unit})"] = float(distance)


def _touching(ids: Array, numbers: Array) -> Array:
    """Distinct pairs (positions in `numbers`, rising) of objects that touch."""
    planes = ids if ids.ndim == 3 else ids[None]
    codes = [np.zeros(0, np.int64)]
    size = len(numbers)
    before = None
    for plane in planes:
        partners = [(plane, False)]
        if before is not None:
            partners.append((before, True))
        for other, everywhere in partners:
            for dy, dx in itertools.product((-1, 0, 1), repeat=2):
                if everywhere or (dy, dx) > (0, 0):
                    first, second = _shifted(plane, other, dy, dx)
                    differ = (first != second) & (first > 0) & (second > 0)
                    one = np.searchsorted(numbers, first[differ])
                    two = np.searchsorted(numbers, second[differ])
                    low, high = np.minimum(one, two), np.maximum(one, two)
                    codes.append(np.unique(low * size + high))
        before = plane
    distinct = np.unique(np.concatenate(codes))
    return np.stack([distinct // max(size, 1), distinct % max(size, 1)], axis=1)


def _shifted(first: Array, second: Array, dy: int, dx: int) -> tuple[Array, Array]:
    """Pixels of two planes that lie `dy`, `dx` apart."""
    height, width = first.shape
    rows = slice(max(-dy, 0), height - max(dy, 0))
    columns = slice(max(-dx, 0), width - max(dx, 0))
    other_rows = slice(max(dy, 0), height - max(-dy, 0))
    other_columns = slice(max(dx, 0), width - max(-dx, 0))
    return first[rows, columns], second[other_rows, other_columns]


def _add_grey_values(
    rows: Sequence[Row], regions: Sequence[Any], image: Image, region: Region
) -> None:
    """Add mean, standard deviation, least and greatest value of each channel.

    One channel is in memory at a time.
    """
    whole = any(len(measured.slice) == 3 for measured in regions)
    part = {}
    for axis in "T" if whole else "TZ":
        if axis in image.axes:
            part[axis] = region.get(axis, 0)
    for channel in range(image.channels):
        if "C" in image.axes:
            part["C"] = channel
        grey = image.read(part)[0]
        suffix = ""
        if image.channels > 1:
            suffix = f" channel {channel}"
            if channel < len(image.channel_names):
                suffix = f" {image.channel_names[channel]}"
        for row, measured in zip(rows, regions, strict=True):
            values = grey[measured.slice][measured.image]
            missing = 0
            if values.dtype.kind == "f":
                known = np.isfinite(values)
                missing = int(known.size - np.count_nonzero(known))
                values = values[known] if missing < known.size else known * np.nan
            row[f"mean{suffix}"] = float(values.mean(dtype=np.float64))
            row[f"std{suffix}"] = float(values.std(dtype=np.float64))
            row[f"min{suffix}"] = values.min().item()
            row[f"max{suffix}"] = values.max().item()
            if grey.dtype.kind == "f":
                row[f"missing{suffix}"] = missing


def _check_boxes(objects: LabelImage, regions: Sequence[Any]) -> None:
    """Raise `RunError` when the largest object needs more memory than is free."""
    largest = 0
    for measured in regions:
        sides = [part.stop - part.start for part in measured.slice]
        largest = max(largest, math.prod(sides))
    check_memory(
        largest * BOX_BYTES,
        what=(
            f"{objects.name}: measuring the largest object, in a box of {largest} "
            "pixels,"
        ),
        instead="find smaller ones (--split, --by-plane), crop the labels",
    )


def _format(value: float | int | str) -> str:
    """Text of a value; ten digits are more than any measurement here has.

    NaN is an empty cell.
    """
    if isinstance(value, float) and math.isnan(value):
        return ""
    return f"{value:.10g}" if isinstance(value, float) else str(value)
