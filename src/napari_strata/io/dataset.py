"""Pairs of images and labels from datasets of many forms."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from glob import glob, has_magic
from pathlib import Path
from typing import TypeAlias, cast

import numpy as np

from napari_strata.core.classes import whole_numbers
from napari_strata.core.errors import ImageError, LabelError, StrataError
from napari_strata.core.image import AnnotatedImage, ArrayLike, Image, LabelImage
from napari_strata.io import _matching
from napari_strata.io._matching import Matches
from napari_strata.io._table import match_table
from napari_strata.io.formats import find_reader
from napari_strata.io.layout import GUESSED_Z, AxesError
from napari_strata.io.open import read_image, read_labels
from napari_strata.io.paths import IMAGE_SUFFIXES, PathLike, existing, natural
from napari_strata.io.record import as_labels

LISTED_PROBLEMS = 20
"""Number of problems that a message lists."""

Single: TypeAlias = str | os.PathLike[str] | ArrayLike | Image
Source: TypeAlias = Single | Sequence[Single]


def read_pairs(
    images: Source | AnnotatedImage | Sequence[AnnotatedImage],
    labels: Source | None = None,
    *,
    axes: str | None = None,
    series: int | None = None,
) -> list[AnnotatedImage]:
    """Pair images with their labels and open them.

    Parameters
    ----------
    images, labels
        One of these forms:

        - Two files (stacks or single planes; a ``.zarr`` folder counts as a file), or a
          stack and a folder of slices.
        - Two folders, or patterns such as ``"scan/*.tif"``, whose files are paired by
          name: ``a.tif`` with ``a.tif``, ``a_label``, ``a_labels``, ``a_mask``,
          ``a_masks`` or ``a_seg`` with any image suffix.
        - A dataset folder with ``images`` and one of ``labels``, ``label``, ``masks``,
          ``mask`` or ``annotations``, as folders (which may be nested) or stacks; or a
          folder with both images and labels, which differ by the endings of their
          names.
        - A CSV file with two columns of paths relative to it.
        - Arrays or `Image` objects, or sequences of arrays, `Image` objects and paths,
          paired in order. Label arrays have the shape of the image without its
          channels.
        - `AnnotatedImage` objects, which are returned unchanged.
    axes
        One letter of TCZYX for each dimension of the images, for files without axes and
        for arrays with more than two dimensions. Labels have the same axes without C.
    series
        Index of the image in files that have several; see `read_image`. A label file
        with several images is read at the same index.

    Returns
    -------
    list of AnnotatedImage
        The pairs in the order of the file names, slice2 before slice10. Large files are
        read lazily.

    Raises
    ------
    ImageError
        When an image has no label or a label has no image, a name is ambiguous, shapes
        differ, or a file cannot be read. The message lists all problems.
    """
    sources = [images] if isinstance(images, AnnotatedImage) else images
    if (
        isinstance(sources, (list, tuple))
        and sources
        and all(isinstance(source, AnnotatedImage) for source in sources)
    ):
        return cast("list[AnnotatedImage]", list(sources))
    dataset = _find(cast(Source, sources), labels)
    pairs, errors = [], []
    for number, (image_source, label_source) in enumerate(dataset.pairs, 1):
        name = f"image {number}" if len(dataset.pairs) > 1 else "image"
        try:
            image = _as_image(image_source, axes=axes, series=series, name=name)
            annotation = _as_labels(label_source, image, axes=axes, series=series)
            pairs.append(AnnotatedImage(image, annotation))
        except StrataError as error:
            errors.append(error)
    if errors and len(dataset.pairs) == 1 and not dataset.problems:
        raise errors[0]
    if problems := [*dataset.problems, *map(str, errors)]:
        raise ImageError(_report(problems))
    return pairs


def _find(images: Source, labels: Source | None) -> Matches:
    """Find pairs of sources, without opening them."""
    if labels is None and isinstance(images, (str, os.PathLike)):
        return _find_inside(existing(images))
    if labels is None:
        raise ImageError(
            "found images without labels; give the labels as the second argument."
        )
    if isinstance(images, (str, os.PathLike)) and isinstance(
        labels, (str, os.PathLike)
    ):
        return _find_files(images, labels)
    image_list, label_list = (
        list(source) if isinstance(source, (list, tuple)) else [source]
        for source in (images, labels)
    )
    if len(image_list) != len(label_list) or not image_list:
        raise ImageError(
            f"found {len(image_list)} images and {len(label_list)} labels; give one"
            " label image for each image."
        )
    return Matches(tuple(zip(image_list, label_list, strict=True)))


def _find_inside(path: Path) -> Matches:
    """Find the pairs in a dataset folder or a table."""
    if path.suffix.lower() in (".csv", ".tsv", ".txt"):
        return match_table(path)
    if _matching.is_data(path):
        raise ImageError(
            f"{path}: found one file and no labels; give the labels too, or a dataset"
            " folder or a CSV."
        )
    folder = _matching.descend(path)
    if parts := _matching.dataset_parts(folder):
        return _find_files(*parts)
    if not _matching.data_files(folder):
        raise ImageError(
            f"{folder}: found no images in this folder; needed are folders images and"
            " labels (or masks), or images and labels side by side."
        )
    return _matching.match_folder(folder)


def _find_files(images: PathLike, labels: PathLike) -> Matches:
    """Find pairs in two files, two folders (or patterns), or a file and a folder."""
    image_path, image_files = _expand(images)
    label_path, label_files = _expand(labels)
    if image_files and label_files:
        return _matching.match(image_files, label_files)
    # A file and a folder: if the folder has a file with a matching name, it is the
    # partner. Otherwise the folder is a stack of slices.
    pairs = _matching.match(
        image_files or [Path(image_path)], label_files or [Path(label_path)]
    ).pairs
    return Matches(pairs if len(pairs) == 1 else ((image_path, label_path),))


def _expand(path: PathLike) -> tuple[PathLike, list[Path]]:
    """Return the path to open, and the files of a folder or a pattern.

    Raises
    ------
    ImageError
        When no file is found.
    """
    if has_magic(str(path)) and not Path(path).exists():
        files = [
            p
            for p in map(Path, glob(str(Path(path).expanduser())))
            if _matching.is_data(p)
        ]
        if not files:
            raise ImageError(f"nothing matches {str(path)!r}; check the pattern.")
        return path, sorted(files, key=natural)
    folder_path = existing(path)
    if _matching.is_data(folder_path):
        return path, []
    folder = _matching.descend(folder_path)
    if files := _matching.data_files(folder):
        return folder, files
    raise ImageError(
        f"{folder}: no images in this folder; looked for {', '.join(IMAGE_SUFFIXES)}."
    )


def _as_image(
    image: Single, *, axes: str | None, series: int | None, name: str
) -> Image:
    if isinstance(image, (str, os.PathLike)):
        return read_image(image, axes=axes, series=series)
    if isinstance(image, Image):
        return image
    return Image(_as_array(image, name), axes or "", name=name)


def _as_labels(
    labels: Single, image: Image, *, axes: str | None, series: int | None
) -> LabelImage:
    if isinstance(labels, (str, os.PathLike)):
        if series is not None and find_reader(labels).count(labels) == 1:
            series = None
        return _read_labels(labels, image, axes=axes, series=series)
    if isinstance(labels, LabelImage):
        return labels
    if isinstance(labels, Image):
        return as_labels(labels)
    array = _as_array(labels, f"labels of {image.name}")
    if isinstance(array, np.ndarray):
        try:
            array = whole_numbers(array)
            if array.dtype == bool:
                array = array.astype(np.uint8)
        except LabelError as error:
            raise LabelError(f"{image.name}: {error}") from None
    if len(array.shape) == len(image.label_axes):
        return image.labels_like(array)
    # As many dimensions as the image with its channels: colours that stand for classes.
    return LabelImage(
        array,
        image.axes if len(array.shape) == len(image.axes) else "",
        name=image.name,
    )


def _as_array(value: object, name: str) -> ArrayLike:
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return cast(ArrayLike, value)
    raise ImageError(
        f"{name}: found {type(value).__name__}; needed is an array, an Image or the"
        " path of a file."
    )


def _read_labels(
    path: PathLike, image: Image, *, axes: str | None, series: int | None
) -> LabelImage:
    """Read labels from a file; use the axes of the image if the file has none."""
    first, *alternatives = (
        (image.label_axes, image.axes, None) if axes else (None, image.label_axes)
    )
    try:
        labels = read_labels(path, axes=first, series=series)
    except AxesError as error:
        labels = _retry(path, alternatives, error, series=series)
    if any(GUESSED_Z in note for note in labels.notes):
        # The axes are the image's, if its shape is: nothing was guessed.
        notes = tuple(note for note in labels.notes if GUESSED_Z not in note)
        if labels.shape == image.label_shape:
            labels = replace(labels, axes=image.label_axes, notes=notes)
    return labels


def _retry(
    path: PathLike,
    alternatives: Sequence[str | None],
    error: AxesError,
    *,
    series: int | None,
) -> LabelImage:
    """Read labels with other axes; raise `error` if none fit."""
    for axes in alternatives:
        with suppress(AxesError):
            return read_labels(path, axes=axes, series=series)
    raise error


def _report(problems: Sequence[str]) -> str:
    """Format all problems as one message."""
    count = f"{len(problems)} problems" if len(problems) > 1 else "1 problem"
    lines = [f"found {count} with the pairs of images and labels; nothing was started:"]
    lines += [f"  {problem}" for problem in problems[:LISTED_PROBLEMS]]
    if len(problems) > LISTED_PROBLEMS:
        lines.append(f"  and {len(problems) - LISTED_PROBLEMS} more")
    if any("without a" in problem or "ambiguous" in problem for problem in problems):
        lines.append(f"Needed: {_matching.NAMING_RULE}.")
    return "\n".join(lines)
