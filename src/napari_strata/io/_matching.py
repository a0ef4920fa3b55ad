"""Which label file belongs to which image file, by name. Nothing is opened here."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from napari_strata.core.errors import ImageError
from napari_strata.io.paths import (
    RASTER_SUFFIXES,
    TIFF_SUFFIXES,
    is_zarr,
    natural,
    stem,
)

IMAGE_NAMES = ("images", "image", "imgs", "img")
LABEL_NAMES = ("labels", "label", "masks", "mask", "annotations", "annotation")
"""Names of the folders (or stacks) of a dataset, in lower case."""

NEEDED = (
    "a label file has its image's name, or that name with _label, _labels, _mask,"
    " _masks or _seg"
)

_ENDING = re.compile(r"_(labels?|masks?|seg)$", re.IGNORECASE)
SUFFIXES = (*TIFF_SUFFIXES, *RASTER_SUFFIXES, ".zarr")

Pair = tuple[Path, Path]


@dataclass(frozen=True)
class Matches:
    """Match images with labels, and describe each file without one partner."""

    pairs: tuple[tuple[Any, Any], ...]
    problems: tuple[str, ...] = ()


def is_data(path: Path) -> bool:
    """Return True for a path with one image: a file, or a folder with a zarr store."""
    return path.is_file() or (
        path.is_dir() and (path.suffix.lower() == ".zarr" or is_zarr(path))
    )


def data_files(folder: Path) -> list[Path]:
    """The image files of a folder, slice2 before slice10.

    Hidden files and other kinds are passed over.
    """
    return sorted((p for p in folder.iterdir() if _looks_like_data(p)), key=natural)


def descend(folder: Path) -> Path:
    """The folder that holds the files, where a folder holds nothing but one other
    folder (``images/images``).
    """
    inside = [p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")]
    return descend(inside[0]) if len(inside) == 1 and not data_files(folder) else folder


def dataset_parts(folder: Path) -> Pair | None:
    """The images and the labels (folders or stacks named so) inside a dataset
    folder; None when it has no such two.

    Raises
    ------
    ImageError
        when several things in it could be the images, or the labels.
    """
    entries = [
        p
        for p in folder.iterdir()
        if not p.name.startswith(".") and (p.is_dir() or _looks_like_data(p))
    ]
    images, labels = (
        _one_of(folder, entries, names) for names in (IMAGE_NAMES, LABEL_NAMES)
    )
    return (images, labels) if images and labels else None


def match(images: Sequence[Path], labels: Sequence[Path]) -> Matches:
    """Pair label files with image files of the same name, or of that name with
    ``_label``, ``_mask`` or ``_seg``.
    """
    count = Counter(map(stem, images))
    owners: dict[str, list[Path]] = {name: [] for name in count}
    problems = [
        f"ambiguous name: {n} images are called {name!r}"
        for name, n in count.items()
        if n > 1
    ]
    for path in labels:
        name = stem(path)
        owner = name if name in owners else _ENDING.sub("", name)
        if owner in owners:
            owners[owner].append(path)
        else:
            problems.append(f"label without an image: {path}")
    pairs = []
    for path in images:
        owned = owners[stem(path)]
        if not owned:
            problems.append(f"image without a label: {path}")
        elif len(owned) > 1:
            problems.append(
                f"ambiguous: {path} has {len(owned)} labels"
                f" ({', '.join(p.name for p in owned)})"
            )
        elif count[stem(path)] == 1:
            pairs.append((path, owned[0]))
    return Matches(tuple(pairs), tuple(problems))


def match_folder(folder: Path) -> Matches:
    """Pair the images and labels that lie in one folder.

    ``a.tif`` and ``a_label.tif``.
    """
    files = data_files(folder)
    bases = {_ENDING.sub("", stem(p)) for p in files if _ENDING.search(stem(p))}
    labels = [p for p in files if _ENDING.search(stem(p)) and stem(p) not in bases]
    return match([p for p in files if p not in labels], labels)


def _looks_like_data(path: Path) -> bool:
    return (
        path.suffix.lower() in SUFFIXES
        and not path.name.startswith(".")
        and is_data(path)
    )


def _one_of(folder: Path, entries: Iterable[Path], names: Sequence[str]) -> Path | None:
    candidates = sorted(_named(entries, names))
    if len(candidates) > 1:
        names_text = ", ".join(p.name for p in candidates)
        raise ImageError(
            f"{folder}: ambiguous, found {names_text}; name the images and the labels"
            " one by one."
        )
    return candidates[0] if candidates else None


def _named(entries: Iterable[Path], names: Sequence[str]) -> Iterator[Path]:
    return (
        p
        for p in entries
        if (p.name if p.is_dir() and not is_data(p) else stem(p)).lower() in names
    )
