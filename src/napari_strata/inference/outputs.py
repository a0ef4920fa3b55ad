"""Outputs of a prediction: names, disk space, planes in memory, and final files.

Planes in a folder on disk are in `ledger`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from napari_strata.core import axes
from napari_strata.core.classes import ClassMap
from napari_strata.core.errors import RunError
from napari_strata.core.files import partial_folder
from napari_strata.core.image import Image, LabelImage
from napari_strata.core.text import format_bytes
from napari_strata.io import read_image, read_labels, write_labels, write_probabilities
from napari_strata.io.paths import is_zarr, split_part, stem

Array = np.ndarray[Any, Any]

SUFFIXES = (".tif", ".tiff", ".zarr", ".h5", ".png")
"""Suffixes of the files that labels are written to."""

LABELS, PROBABILITIES = "labels.npy", "probabilities.npy"


@dataclass(frozen=True)
class OutputSpec:
    """Sizes and types of what is written.

    Parameters
    ----------
    planes, shape, dtype
        Number of label planes, their size (H, W) and type.
    classes
        Number of classes if probabilities are written too, float16 (classes, H, W) for
        each plane; else 0.
    """

    planes: int
    shape: tuple[int, int]
    dtype: np.dtype[Any]
    classes: int = 0

    def arrays(self) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        """Shape and dtype of each array by file name, planes first."""
        arrays: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {
            LABELS: ((self.planes, *self.shape), self.dtype)
        }
        if self.classes:
            shape = (self.planes, self.classes, *self.shape)
            arrays[PROBABILITIES] = (shape, np.dtype(np.float16))
        return arrays

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        total = 0
        for shape, dtype in self.arrays().values():
            total += int(np.prod(shape)) * dtype.itemsize
        return total

    @property
    def disk_space(self) -> int:
        """Bytes on disk at most: the planes and, before they are deleted, the file.

        The file is compressed, but probabilities hardly shrink.
        """
        return int(self.nbytes * (2 if self.classes else 1.5))


class Output(Protocol):
    """Planes that are being predicted, wherever they are kept."""

    spec: OutputSpec
    location: str
    """The folder or file, or "memory"."""
    pixels: dict[int, tuple[int, ...]]
    """Pixels of each class in each finished plane."""
    discarded: tuple[str, ...]
    """Settings that differed from an earlier prediction, whose planes were therefore
    deleted; usually empty."""

    def write(self, plane: int, arrays: Sequence[Array], pixels: Sequence[int]) -> None:
        """Keep one plane: labels (H, W) and, if requested, probabilities (K, H, W)."""

    def arrays(self) -> list[Array]:
        """Labels (planes, H, W) and, if requested, probabilities (planes, K, H, W)."""

    def close(self) -> None:
        """Close files; what is written stays."""

    def remove(self) -> None:
        """Delete the planes after they have become a file."""


class MemoryOutput:
    """Planes in arrays; see `Output`."""

    def __init__(self, spec: OutputSpec) -> None:
        self.spec = spec
        self.location = "memory"
        self.pixels: dict[int, tuple[int, ...]] = {}
        self.discarded: tuple[str, ...] = ()
        self._arrays = [
            np.zeros(shape, dtype) for shape, dtype in spec.arrays().values()
        ]

    def write(self, plane: int, arrays: Sequence[Array], pixels: Sequence[int]) -> None:
        """Keep one plane; see `Output.write`."""
        for target, array in zip(self._arrays, arrays, strict=True):
            target[plane] = array
        self.pixels[plane] = tuple(pixels)

    def arrays(self) -> list[Array]:
        """All planes; see `Output.arrays`."""
        return self._arrays

    def close(self) -> None:
        """Do nothing: there are no files."""

    def remove(self) -> None:
        """Let go of the arrays."""
        self._arrays = []


def probabilities_path(out: Path) -> Path:
    """Path of the probabilities that belong to the labels `out`."""
    name = stem(out)
    suffix = out.name[len(name) :]
    if out.suffix.lower() == ".png":
        suffix = ".tif"
    return out.with_name(f"{name}_probabilities{suffix}")


def check_out(out: Path, *, overwrite: bool) -> None:
    """Raise `RunError` when labels cannot be written to `out`, before there are any."""
    if out.suffix.lower() not in SUFFIXES:
        raise RunError(
            f"{out}: found the suffix {out.suffix!r}; use one of {', '.join(SUFFIXES)} "
            "(.png for a single plane)."
        )
    if out.suffix.lower() == ".h5" and find_spec("h5py") is None:
        raise RunError(
            f"{out}: cannot be written without the package h5py; run pip install "
            '"napari-strata[formats]", or choose .tif or .zarr.'
        )
    if out.exists() and not overwrite:
        raise RunError(
            f"{out}: exists already; choose another name, or allow it to be replaced "
            "(--overwrite)."
        )
    if out.is_dir() and not is_zarr(out):
        raise RunError(
            f"{out}: is a folder and not a zarr store, so it is not replaced; choose "
            "another name."
        )


def is_assembled(out: Path, *, overwrite: bool) -> bool:
    """True when the shards of a prediction have become `out` already.

    The file exists then, and no unfinished prediction lies beside it.
    """
    if overwrite or not out.exists():
        return False
    return not partial_folder(out).exists()


def check_image_against_out(image: Image, out: Path) -> None:
    """Raise `RunError` when `out` is the image itself, or a PNG for several planes."""
    # Of a dataset in a file, the file.
    source = None if image.source is None else split_part(image.source)[0]
    if source is not None and os.path.exists(source):
        if out.exists() and out.samefile(source):
            raise RunError(
                f"{out}: the output would replace the image itself; choose another "
                "name."
            )
    planes = len(list(image.planes()))
    if out.suffix.lower() == ".png" and planes > 1:
        raise RunError(
            f"{out}: PNG holds one plane and {image.name} has {planes}; use .tif or "
            ".zarr."
        )


def check_space(folder: Path, spec: OutputSpec) -> None:
    """Raise `RunError` unless the disk of `folder` has room for planes and file."""
    free = shutil.disk_usage(existing_parent(folder)).free
    if spec.disk_space > free:
        raise RunError(
            f"{folder}: the prediction needs up to {format_bytes(spec.disk_space)} on "
            f"this disk and {format_bytes(free)} are free; free some space or choose "
            "another folder."
        )


def existing_parent(path: Path) -> Path:
    """The path itself, or the nearest folder above it that exists."""
    return next(p for p in (path, *path.absolute().parents) if p.exists())


@dataclass(frozen=True, eq=False)
class Results:
    """A finished prediction.

    Parameters
    ----------
    labels
        Label values of every plane.
    probabilities
        Probabilities of every plane, or None when they were not requested.
    pixels
        Predicted pixels of each class, int64 (K,).
    """

    labels: LabelImage
    probabilities: Image | None
    pixels: Array


def finish(
    output: Output,
    image: Image,
    classes: ClassMap,
    out: Path | None,
    *,
    overwrite: bool,
) -> Results:
    """Give the results of an output that has all planes.

    With `out`, the planes become files and are deleted. Existing probabilities are
    replaced: the caller has checked before the first plane whether they may be.
    """
    planes, *others = output.arrays()
    labels = label_stack(planes, image, classes=classes)
    probabilities = None
    if others:
        probabilities = probability_stack(others[0], image, classes.names)
    pixels = [output.pixels[i] for i in range(len(planes))]
    if out is None:
        return Results(labels, probabilities, np.sum(pixels, axis=0))
    if probabilities is not None:
        path = probabilities_path(out)
        write_probabilities(path, probabilities, overwrite=True)
    write_labels(out, labels, overwrite=overwrite)
    output.remove()
    return read_results(out, classes, pixels, probabilities=bool(others))


def read_results(
    out: Path,
    classes: ClassMap,
    pixels: Sequence[Sequence[int]],
    *,
    probabilities: bool,
) -> Results:
    """Read the files of a finished prediction.

    Parameters
    ----------
    pixels
        Pixels of each class in each plane.
    probabilities
        True if there is a file of probabilities.
    """
    labels = read_labels(out)
    if labels.classes is None:
        labels = replace(labels, classes=classes)
    image = read_image(probabilities_path(out)) if probabilities else None
    return Results(labels, image, np.sum(pixels, axis=0))


def label_stack(planes: Array, image: Image, *, classes: ClassMap) -> LabelImage:
    """Planes (n, H, W) of label values as labels with the image's own order of axes.

    A view, also of a memory map.
    """
    letters = axes.canonical(image.label_axes)
    shape = [image.size(axis) for axis in letters]
    array = axes.from_canonical(planes.reshape(shape), image.label_axes)
    return image.labels_like(array, classes=classes)


def probability_stack(planes: Array, image: Image, names: tuple[str, ...]) -> Image:
    """Planes (n, K, H, W) of probabilities as an image with axes T and Z, C, Y, X.

    T and Z only as the image has them. A view.
    """
    leading = [axis for axis in "TZ" if axis in image.axes]
    letters = "".join([*leading, "CYX"])
    scale = dict(zip(image.axes, image.scale, strict=True)) | {"C": 1.0}
    units = dict(zip(image.axes, image.units, strict=True)) | {"C": "pixel"}
    shape = [image.size(axis) for axis in leading] + list(planes.shape[1:])
    return Image(
        planes.reshape(shape),
        letters,
        scale=tuple(scale[axis] for axis in letters),
        units=tuple(units[axis] for axis in letters),
        name=image.name,
        channel_names=names,
    )
