"""Predictions in ``.npy`` files, which the viewer maps while they are filled."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np

from napari_strata.core import axes, files
from napari_strata.core.classes import ClassMap
from napari_strata.core.errors import RunError
from napari_strata.core.image import Array
from napari_strata.inference.outputs import OutputSpec, check_space
from napari_strata.worker.protocol import TargetOpened
from napari_strata.worker.sources import Window

FLUSH_INTERVAL_S = 1.0
"""Seconds after which planes are flushed to the disk, for a viewer elsewhere."""


def probabilities_path(out: Path) -> Path:
    """Return the path of the probabilities for the labels `out`."""
    return out.with_name(f"{out.stem}_probabilities.npy")


class NpyOutput:
    """Output that writes planes to arrays on disk; see `inference.outputs.Output`.

    Labels have the axes (without C) and the size of the whole image, even if only a
    window of it is predicted. Planes that are not written yet are 0; outside the window
    an existing file keeps its values. Probabilities have the axes T and Z (if the image
    has them), C, Y and X.

    Parameters
    ----------
    out
        The file. A file with the same shape and dtype is changed in place, so that
        processes that have mapped it see the new labels. Any other file is replaced;
        `check_array` checks whether this is allowed.
    window
        The region of the image that is predicted. Its context planes count as done,
        without pixels, and are not written.

    Raises
    ------
    RunError
        When the disk is full or cannot be written to.
    """

    def __init__(
        self, out: Path, spec: OutputSpec, *, window: Window, classes: ClassMap
    ) -> None:
        self.spec = spec
        self.location = str(out)
        no_pixels = (0,) * len(classes)
        self.pixels = dict.fromkeys(window.context_planes, no_pixels)
        self.discarded: tuple[str, ...] = ()
        self._window, self._classes = window, classes
        self._regions = window.regions()
        whole = window.whole
        self._axes = whole.label_axes
        self._probability_axes = "".join(a for a in "TZ" if a in whole.axes) + "CYX"
        check_space(out.parent, spec)
        self.labels = open_array(out, whole.label_shape, spec.dtype)
        self.probabilities: np.memmap[Any, Any] | None = None
        if spec.classes:
            shape = tuple(
                spec.classes if axis == "C" else whole.size(axis)
                for axis in self._probability_axes
            )
            dtype = np.dtype(np.float16)
            self.probabilities = open_array(probabilities_path(out), shape, dtype)
        if window.image is whole:
            for array in self._arrays_on_disk():
                array[...] = 0
        self._flushed = monotonic()

    def target_opened(self) -> TargetOpened:
        """Return the event from which the viewer learns how to show the files."""
        probabilities = ""
        if self.probabilities is not None:
            probabilities = str(probabilities_path(Path(self.location)))
        return TargetOpened(
            path=self.location,
            axes=self._axes,
            shape=self.labels.shape,
            dtype=str(self.labels.dtype),
            classes=tuple(self._classes.table()),
            probabilities=probabilities,
        )

    def write(self, plane: int, arrays: Sequence[Array], pixels: Sequence[int]) -> None:
        """Write labels (H, W) and, if predicted, probabilities (K, H, W) of a plane."""
        region = self._regions[plane]
        labels, *probabilities = arrays
        ones = (1,) * (len(self._axes) - 2)
        shaped = axes.from_canonical(labels.reshape(ones + labels.shape), self._axes)
        self.labels[_index(region, self._axes)] = shaped
        if self.probabilities is not None:
            index = _index(region, self._probability_axes)
            self.probabilities[index] = probabilities[0]
        if monotonic() - self._flushed > FLUSH_INTERVAL_S:
            self.close()
        self.pixels[plane] = tuple(pixels)

    def arrays(self) -> list[Array]:
        """Return labels (planes, H, W) and any probabilities (planes, K, H, W)."""
        window, spec = self._window, self.spec
        region = {
            axis: slice(first, first + window.image.size(axis))
            for axis, first in window.start.items()
        }
        labels = self.labels[_index(region, self._axes)]
        labels = axes.to_canonical(labels, self._axes)
        arrays: list[Array] = [labels.reshape(spec.planes, *spec.shape)]
        if self.probabilities is not None:
            index = _index(region, self._probability_axes)
            shape = (spec.planes, spec.classes, *spec.shape)
            arrays.append(self.probabilities[index].reshape(shape))
        return arrays

    def close(self) -> None:
        """Flush the written planes to the disk."""
        for array in self._arrays_on_disk():
            array.flush()
        self._flushed = monotonic()

    def remove(self) -> None:
        """Do nothing: the file is the result."""

    def _arrays_on_disk(self) -> list[np.memmap[Any, Any]]:
        if self.probabilities is None:
            return [self.labels]
        return [self.labels, self.probabilities]


def _index(region: Mapping[str, slice], axes: str) -> tuple[slice, ...]:
    """Return the index of a region in an array; missing axes are not cut."""
    return tuple(region.get(axis, slice(None)) for axis in axes)


def check_array(out: Path, *, probabilities: bool, overwrite: bool) -> None:
    """Check that the arrays may be written.

    Raises
    ------
    RunError
        When a path is a folder, or a file that may not be replaced.
    """
    paths = [out, probabilities_path(out)] if probabilities else [out]
    for path in paths:
        if path.exists() and (not overwrite or path.is_dir()):
            raise RunError(
                f"{path}: exists already; choose another name, or allow it to be "
                "replaced (overwrite)."
            )


def open_array(
    path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> np.memmap[Any, Any]:
    """Map the array of a file for writing; make the file unless it fits already."""
    try:
        array = np.lib.format.open_memmap(path, mode="r+")
        is_same = array.shape == shape and array.dtype == dtype
        if is_same and array.flags.c_contiguous:
            return array
        del array
    except (OSError, ValueError, EOFError):  # the file is missing or not an array
        pass
    with files.atomic(path) as temporary:
        _create_array(temporary, shape, dtype)
    return np.lib.format.open_memmap(path, mode="r+")


def _create_array(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    # Without reserved space, writing to a mapped page on a full disk kills the process.
    if hasattr(os, "posix_fallocate"):
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
