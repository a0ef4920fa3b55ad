"""Predictions into ``.npy`` files that the viewer maps while they fill: the labels layer shows what is done."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np

from napari_strata.core import axes, files
from napari_strata.core.classes import ClassMap
from napari_strata.core.errors import RunError
from napari_strata.core.image import Array
from napari_strata.inference.outputs import OutputSpec, check_space
from napari_strata.worker.replies import TargetOpened
from napari_strata.worker.sources import Window

FLUSH = 1.0
"""Seconds after which what is written is pushed to the disk, for a viewer on another machine."""


def probabilities_beside(out: Path) -> Path:
    """Where the probabilities that belong to the labels `out` go."""
    return out.with_name(f"{out.stem}_probabilities.npy")


class NpyOutput:
    """Planes in arrays on disk; see `inference.outputs.Output`.

    Labels have the axes of the whole image, less C, and its size also when a window of it is predicted. What is not
    written yet is 0; outside of a window an existing file keeps its values. Probabilities have the axes T and Z (as the
    image has them), C, Y, X.

    Parameters
    ----------
    out
        the file. One of the same shape and dtype is written into in place, so that who has mapped it sees the new
        labels; any other is replaced. Whether that is allowed is for `check_array` to say, before.
    window
        what is predicted. Its planes that only inform others count as done, of no pixels, and are not written.

    Raises
    ------
    RunError
        when the disk is full or cannot be written.
    """

    def __init__(
        self, out: Path, spec: OutputSpec, *, window: Window, classes: ClassMap
    ) -> None:
        self.spec = spec
        self.location = str(out)
        self.pixels: dict[int, tuple[int, ...]] = dict.fromkeys(
            window.informing, (0,) * len(classes)
        )
        self.discarded: tuple[str, ...] = ()
        self._window, self._classes, whole = window, classes, window.whole
        self._regions = window.regions()
        self._letters = whole.label_axes
        self._probability_letters = "".join(a for a in "TZ" if a in whole.axes) + "CYX"
        check_space(out.parent, spec)
        self.labels = _open(out, whole.label_shape, spec.dtype)
        sizes = tuple(
            spec.classes if a == "C" else whole.size(a)
            for a in self._probability_letters
        )
        self.probabilities = (
            _open(probabilities_beside(out), sizes, np.dtype(np.float16))
            if spec.classes
            else None
        )
        if window.image is whole:
            for array in self._written():
                array[...] = 0
        self._flushed = monotonic()

    def announce(self) -> TargetOpened:
        """What the viewer needs to show the files."""
        chances = (
            str(probabilities_beside(Path(self.location))) if self.spec.classes else ""
        )
        rows = tuple(self._classes.table())
        return TargetOpened(
            self.location,
            self._letters,
            self.labels.shape,
            str(self.labels.dtype),
            rows,
            chances,
        )

    def write(self, plane: int, arrays: Sequence[Array], pixels: Sequence[int]) -> None:
        """Keep one plane: its labels (H, W) and, if wanted, its probabilities (K, H, W)."""
        region = self._regions[plane]
        labels, *chances = arrays
        ones = (1,) * (len(self._letters) - 2)
        shaped = axes.from_canonical(labels.reshape(ones + labels.shape), self._letters)
        self.labels[tuple(region[a] for a in self._letters)] = shaped
        if self.probabilities is not None:
            self.probabilities[
                tuple(region.get(a, slice(None)) for a in self._probability_letters)
            ] = chances[0]
        if monotonic() - self._flushed > FLUSH:
            self.close()
        self.pixels[plane] = tuple(pixels)

    def arrays(self) -> list[Array]:
        """The planes of the window: labels (planes, H, W) and, if wanted, probabilities (planes, K, H, W)."""
        size = {
            a: slice(i, i + self._window.image.size(a))
            for a, i in self._window.start.items()
        }
        labels = axes.to_canonical(
            self.labels[tuple(size[a] for a in self._letters)], self._letters
        )
        found: list[Array] = [labels.reshape(self.spec.planes, *self.spec.shape)]
        if self.probabilities is not None:
            part = self.probabilities[
                tuple(size.get(a, slice(None)) for a in self._probability_letters)
            ]
            found.append(
                part.reshape(self.spec.planes, self.spec.classes, *self.spec.shape)
            )
        return found

    def close(self) -> None:
        """Push to the disk what is written; it stays."""
        for array in self._written():
            array.flush()
        self._flushed = monotonic()

    def remove(self) -> None:
        """Nothing to remove: the file is the result."""

    def _written(self) -> list[np.memmap[Any, Any]]:
        return (
            [self.labels]
            if self.probabilities is None
            else [self.labels, self.probabilities]
        )


def check_array(out: Path, *, probabilities: bool, overwrite: bool) -> None:
    """Raise `RunError` when a file is in the way at `out`, or where the probabilities are to go."""
    for path in (out, probabilities_beside(out))[: 1 + probabilities]:
        if path.exists() and (not overwrite or path.is_dir()):
            raise RunError(
                f"{path}: exists already; choose another name, or allow it to be replaced (overwrite)."
            )


def _open(
    path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> np.memmap[Any, Any]:
    try:
        found = np.lib.format.open_memmap(path, mode="r+")
        if (found.shape, found.dtype, found.flags.c_contiguous) == (shape, dtype, True):
            return found
        del found
    except (OSError, ValueError, EOFError):  # not there, or not an array
        pass
    with files.atomic(path) as temporary:
        _make(temporary, shape, dtype)
    return np.lib.format.open_memmap(path, mode="r+")


def _make(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    if hasattr(
        os, "posix_fallocate"
    ):  # writing to a mapped page for which the disk has no room kills the process
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
