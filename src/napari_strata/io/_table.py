"""Pairs of image and label files listed in a CSV."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from napari_strata.core.errors import ImageError
from napari_strata.io._matching import IMAGE_NAMES, LABEL_NAMES, Matches
from napari_strata.io.paths import IMAGE_SUFFIXES, has_suffix, split_part

_LONGEST_NAME = 200
"""Characters of a path that a message repeats."""

Row = tuple[int, list[str]]
"""Line number and cells."""


def match_table(path: Path) -> Matches:
    """Pair the files that a CSV lists.

    The CSV has two columns, images and labels, with paths relative to the CSV. Columns
    are separated by comma, semicolon or tab. A header is optional; with more than two
    columns it must name the two columns ("image", "label").

    Raises
    ------
    ImageError
        When the file is not a text table, or has no rows.
    """
    rows = _read(path)
    columns = _columns(rows[0][1], path.parent) if rows else None
    rows = rows[1:] if columns else rows
    if not rows:
        raise ImageError(
            f"{path}: a table without rows; needed are two columns, image files and"
            " label files."
        )
    pairs, problems = [], []
    for number, row in rows:
        names = [row[i] for i in columns or range(len(row)) if i < len(row) and row[i]]
        if len(names) != 2:
            problems.append(
                f"{path}, line {number}: found {len(names)} entries; needed: an image"
                " and a label file"
            )
            continue
        image, label = (_resolve(path, name) for name in names)
        # os.path answers False, where `Path` raises, for names that no file can have.
        missing = [p for p in (image, label) if not os.path.exists(split_part(p)[0])]
        if missing:
            names_text = ", ".join(map(_shortened, missing))
            problems.append(f"{path}, line {number}: no such file: {names_text}")
        if not missing:
            pairs.append((image, label))
    duplicates = [p for p, n in Counter(image for image, _ in pairs).items() if n > 1]
    problems += [f"ambiguous: {p} occurs more than once in {path}" for p in duplicates]
    return Matches(tuple(pairs), tuple(problems))


def _resolve(table: Path, name: str) -> Path:
    """Return the path of a file that a table names."""
    try:
        return table.parent / Path(name).expanduser()
    except RuntimeError:  # of a user who does not exist
        return table.parent / name


def _shortened(path: Path) -> str:
    text = str(path)
    return text if len(text) <= _LONGEST_NAME else f"{text[:_LONGEST_NAME]}..."


def _read(path: Path) -> list[Row]:
    """Read the rows that are not empty; remove blanks around the cells."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ImageError(
            f"{path}: cannot be read as a table of text ({error}); save it as CSV."
        ) from None
    separator = max(",;\t", key=lines[0].count) if lines else ","
    try:
        rows = [
            (number, [cell.strip() for cell in row])
            for number, row in enumerate(csv.reader(lines, delimiter=separator), 1)
        ]
    except csv.Error as error:
        raise ImageError(
            f"{path}: is not a table of file names ({error}); needed are two columns,"
            " image files and label files."
        ) from None
    return [(number, row) for number, row in rows if any(row)]


def _columns(row: Sequence[str], folder: Path) -> tuple[int, int] | None:
    """Return the columns of images and labels if the row is a header.

    A row that contains a file name is not a header.
    """
    if any(
        has_suffix(cell, IMAGE_SUFFIXES) or os.path.isfile(folder / cell)
        for cell in row
        if cell
    ):
        return None
    image, label = (_find_column(row, names) for names in (IMAGE_NAMES, LABEL_NAMES))
    return (0, 1) if image is None or label is None else (image, label)


def _find_column(row: Sequence[str], names: tuple[str, ...]) -> int | None:
    return next(
        (i for i, cell in enumerate(row) if cell.lower().startswith(names)), None
    )
