"""Pairs of images and labels, from whatever form a dataset has."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import fields, replace
from glob import glob, has_magic
from pathlib import Path
from typing import TypeAlias, cast

import numpy as np

from napari_strata.core.classes import check_integers
from napari_strata.core.errors import ImageError, LabelError, StrataError
from napari_strata.core.image import AnnotatedImage, ArrayLike, Image, LabelImage
from napari_strata.io import _matching
from napari_strata.io._matching import Matches
from napari_strata.io._table import match_table
from napari_strata.io.layout import AxesError
from napari_strata.io.open import read_image, read_labels
from napari_strata.io.paths import PathLike, existing, natural

SHOWN = 20
"""Problems listed before "and N more"."""

One: TypeAlias = str | os.PathLike[str] | ArrayLike | Image
Source: TypeAlias = One | Sequence[One]


def read_pairs(
    images: Source | AnnotatedImage | Sequence[AnnotatedImage],
    labels: Source | None = None,
    *,
    axes: str | None = None,
) -> list[AnnotatedImage]:
    """Pair images with their labels and open them.

    Parameters
    ----------
    images, labels
        one of these forms:

        - two files (stacks or single pictures; a ``.zarr`` folder counts as a file), or
        a stack and a folder of slices;
        - two folders or patterns such as ``"scan/*.tif"``, whose files pair by name:
        ``a.tif`` with ``a.tif``,
          ``a_label``, ``a_labels``, ``a_mask``, ``a_masks`` or ``a_seg``, of any image
          suffix;
        - one dataset folder that holds ``images`` beside ``labels``, ``label``,
        ``masks``, ``mask`` or ``annotations``
          (folders, also nested once more, or stacks), or images and labels side by
          side, told apart by their endings;
        - a CSV file with two columns, paths relative to it;
        - arrays or `Image` objects, or sequences of arrays, `Image` objects and paths,
        paired in order. Label arrays
          have the shape of the image less its channels;
        - `AnnotatedImage` objects, which come back as they are.
    axes
        one letter of T, C, Z, Y, X per dimension of the images, where files do not say
        and for arrays of more than two dimensions; labels have the same, less C.

    Returns
    -------
    list of AnnotatedImage
        in the order of the files' names, slice2 before slice10; large files are read
        lazily.

    Raises
    ------
    ImageError
        naming everything that is wrong at once: an image without a label, a label
        without an image, an ambiguous name, shapes that differ, a file that cannot be
        read.
    """
    sources = [images] if isinstance(images, AnnotatedImage) else images
    if (
        isinstance(sources, (list, tuple))
        and sources
        and all(isinstance(g, AnnotatedImage) for g in sources)
    ):
        return cast("list[AnnotatedImage]", list(sources))
    dataset = _find(cast(Source, sources), labels)
    pairs, errors = [], []
    for number, (image, label) in enumerate(dataset.pairs, 1):
        try:
            opened = _as_image(
                image,
                axes=axes,
                name=f"image {number}" if len(dataset.pairs) > 1 else "image",
            )
            pairs.append(AnnotatedImage(opened, _as_labels(label, opened, axes=axes)))
        except StrataError as error:
            errors.append(error)
    if errors and len(dataset.pairs) == 1 and not dataset.problems:
        raise errors[0]
    if problems := [*dataset.problems, *map(str, errors)]:
        raise ImageError(_report(problems))
    return pairs


def _find(images: Source, labels: Source | None) -> Matches:
    """Pairs of paths, not opened yet."""
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
    ones, others = (
        list(s) if isinstance(s, (list, tuple)) else [s] for s in (images, labels)
    )
    if len(ones) != len(others) or not ones:
        raise ImageError(
            f"found {len(ones)} images and {len(others)} labels; give one label image"
            " for each image."
        )
    return Matches(tuple(zip(ones, others, strict=True)))


def _find_inside(path: Path) -> Matches:
    """Pairs of a dataset folder or a table."""
    if path.suffix.lower() in (".csv", ".tsv", ".txt"):
        return match_table(path)
    if _matching.is_data(path):
        raise ImageError(
            f"{path}: found one file and no labels; give the labels as well, or a"
            " dataset folder or a CSV."
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
    """Pairs of two files, of two folders (or patterns), or of a file and a folder."""
    (image, ones), (label, others) = _expand(images), _expand(labels)
    if ones and others:
        return _matching.match(ones, others)
    # A stack and a folder: its partner in there when one has the name, else the folder
    # is a stack of slices itself.
    partner = _matching.match(ones or [Path(image)], others or [Path(label)]).pairs
    return Matches(partner if len(partner) == 1 else ((image, label),))


def _expand(path: PathLike) -> tuple[PathLike, list[Path]]:
    """Return the path to open, and the files of a folder or a pattern.

    Raises
    ------
    ImageError
        when there is nothing.
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
        return folder_path, []
    folder = _matching.descend(folder_path)
    if files := _matching.data_files(folder):
        return folder, files
    raise ImageError(
        f"{folder}: no images in this folder; TIFF, PNG, JPEG and OME-Zarr files can be"
        " read."
    )


def _as_image(image: One, *, axes: str | None, name: str) -> Image:
    if isinstance(image, (str, os.PathLike)):
        return read_image(image, axes=axes)
    if isinstance(image, Image):
        return image
    return Image(_as_array(image, name), axes or "", name=name)


def _as_labels(labels: One, image: Image, *, axes: str | None) -> LabelImage:
    if isinstance(labels, (str, os.PathLike)):
        return _read_labels(labels, image, axes=axes)
    if isinstance(labels, LabelImage):
        return labels
    if isinstance(labels, Image):
        values = {f.name: getattr(labels, f.name) for f in fields(Image)}
        return LabelImage(**values)
    array = _as_array(labels, f"labels of {image.name}")
    if isinstance(array, np.ndarray):
        try:
            array = (
                check_integers(array).astype(np.uint8)
                if array.dtype == bool
                else check_integers(array)
            )
        except LabelError as error:
            raise LabelError(f"{image.name}: {error}") from None
    if len(array.shape) == len(image.label_axes):
        return image.labels_like(array)
    # As many dimensions as the image with its channels: colours that code for classes.
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


def _read_labels(path: PathLike, image: Image, *, axes: str | None) -> LabelImage:
    """Labels from a file, under the image's axes where the file leaves its own open."""
    first, *more = (
        (image.label_axes, image.axes, None) if axes else (None, image.label_axes)
    )
    try:
        labels = read_labels(path, axes=first)
    except AxesError as error:
        labels = _retry(path, more, error)
    concluded = (
        labels.notes
        and labels.shape == image.label_shape
        and labels.axes != image.label_axes
    )
    return replace(labels, axes=image.label_axes, notes=()) if concluded else labels


def _retry(
    path: PathLike, choices: Sequence[str | None], error: AxesError
) -> LabelImage:
    for axes in choices:
        with suppress(AxesError):
            return read_labels(path, axes=axes)
    raise error


def _report(problems: Sequence[str]) -> str:
    lines = [f"  {p}" for p in problems[:SHOWN]]
    more = [f"  and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
    hint = (
        [f"Needed: {_matching.NEEDED}."]
        if any("without a" in p or "ambiguous" in p for p in problems)
        else []
    )
    count = f"{len(problems)} problems" if len(problems) > 1 else "1 problem"
    return "\n".join(
        [
            f"found {count} with the pairs of images and labels; nothing was started:",
            *lines,
            *more,
            *hint,
        ]
    )
