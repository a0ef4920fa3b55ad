"""Matching of label files with image files by name. No file is opened."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from napari_strata.core.errors import ImageError
from napari_strata.io.paths import (
    has_image_name,
    is_zarr,
    natural,
    split_part,
    stem,
)

IMAGE_NAMES = ("images", "image", "imgs", "img", "imagestr", "jpegimages")
"""Names of folders or stacks with the images of a dataset, in lower case."""

LABEL_NAMES = (
    "labels",
    "label",
    "masks",
    "mask",
    "annotations",
    "annotation",
    "labelstr",
    "segmentationclass",
)
"""Names of folders or stacks with the labels of a dataset, in lower case."""

NAMING_RULE = (
    "a label file has its image's name, or that name with _label, _labels, _mask,"
    " _masks, _seg, _labelled or _cp_masks; pairs with other names are listed in a CSV"
    " with the columns image and label"
)

_LABEL_SUFFIX = re.compile(
    r"[-_.](labels?|labell?ed|(cp_)?masks?|seg|segmentation|annotations?)$",
    re.IGNORECASE,
)
_CHANNEL_SUFFIX = re.compile("_0000$")
"""End of an image's name in nnU-Net, which its label does not have."""

Pair = tuple[Path, Path]


@dataclass(frozen=True)
class Matches:
    """Matched images and labels, and a description of each file without a partner."""

    pairs: tuple[tuple[Any, Any], ...]
    problems: tuple[str, ...] = ()


def is_data(path: Path) -> bool:
    """Return True if a path is an image: a file, or a folder with a zarr store."""
    return split_part(path)[0].expanduser().is_file() or (
        path.is_dir() and (path.suffix.lower() == ".zarr" or is_zarr(path))
    )


def data_files(folder: Path) -> list[Path]:
    """Return the image files of a folder, slice2 before slice10.

    Hidden files and files with other suffixes are skipped.
    """
    return sorted((p for p in folder.iterdir() if _is_image(p)), key=natural)


def descend(folder: Path) -> Path:
    """Return the innermost folder of nested folders such as ``images/images``."""
    subfolders = [
        p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")
    ]
    if len(subfolders) == 1 and not data_files(folder):
        return descend(subfolders[0])
    return folder


def dataset_parts(folder: Path) -> Pair | None:
    """Find the folders (or stacks) of images and of labels inside a dataset folder.

    Returns None if the folder does not have both.

    Raises
    ------
    ImageError
        When several names in it could be the images or the labels.
    """
    entries = [
        p
        for p in folder.iterdir()
        if not p.name.startswith(".") and (p.is_dir() or _is_image(p))
    ]
    images, labels = (
        _find_named(folder, entries, names) for names in (IMAGE_NAMES, LABEL_NAMES)
    )
    return (images, labels) if images and labels else None


def match(images: Sequence[Path], labels: Sequence[Path]) -> Matches:
    """Pair label files with image files.

    A label file has the name of its image, or this name with ``_label``, ``_mask`` or
    ``_seg``.
    """
    count = Counter(map(stem, images))
    labels_of: dict[str, list[Path]] = {name: [] for name in count}
    aliases = {_CHANNEL_SUFFIX.sub("", name): name for name in count}
    problems = [
        f"ambiguous name: {n} images are called {name!r}"
        for name, n in count.items()
        if n > 1
    ]
    for path in labels:
        name = stem(path)
        image_name = name if name in labels_of else _LABEL_SUFFIX.sub("", name)
        image_name = aliases.get(image_name, image_name)
        if image_name in labels_of:
            labels_of[image_name].append(path)
        else:
            problems.append(f"label without an image: {path}")
    pairs = []
    for path in images:
        label_paths = labels_of[stem(path)]
        if not label_paths:
            problems.append(f"image without a label: {path}")
        elif len(label_paths) > 1:
            problems.append(
                f"ambiguous: {path} has {len(label_paths)} labels"
                f" ({', '.join(p.name for p in label_paths)})"
            )
        elif count[stem(path)] == 1:
            pairs.append((path, label_paths[0]))
    return Matches(tuple(pairs), tuple(problems))


def match_folder(folder: Path) -> Matches:
    """Pair images and labels in one folder, such as ``a.tif`` and ``a_label.tif``."""
    files = data_files(folder)
    bases = {
        _LABEL_SUFFIX.sub("", stem(p)) for p in files if _LABEL_SUFFIX.search(stem(p))
    }
    labels = [
        p for p in files if _LABEL_SUFFIX.search(stem(p)) and stem(p) not in bases
    ]
    return match([p for p in files if p not in labels], labels)


def _is_image(path: Path) -> bool:
    return has_image_name(path) and is_data(path)


def _find_named(
    folder: Path, entries: Iterable[Path], names: Sequence[str]
) -> Path | None:
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
