"""Where predicted planes go: arrays in memory, or a folder on disk (`partial`); and the room that they take there."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from napari_strata.core.errors import RunError

Array = np.ndarray[Any, Any]
Identity = Mapping[str, Any]
"""What a prediction was made of, as plain data; compared entry by entry."""

LABELS, PROBABILITIES = "labels.npy", "probabilities.npy"


@dataclass(frozen=True)
class Form:
    """What is to be written: `planes` label planes of `shape` (H, W) and `dtype`, and if `classes` is not 0 as many
    times (classes, H, W) float16 of probabilities."""

    planes: int
    shape: tuple[int, int]
    dtype: np.dtype[Any]
    classes: int = 0

    def arrays(self) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        """File name -> shape and dtype, planes first."""
        wanted: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {
            LABELS: ((self.planes, *self.shape), self.dtype)
        }
        if self.classes:
            wanted[PROBABILITIES] = (
                (self.planes, self.classes, *self.shape),
                np.dtype(np.float16),
            )
        return wanted

    @property
    def nbytes(self) -> int:
        return sum(
            int(np.prod(shape)) * dtype.itemsize
            for shape, dtype in self.arrays().values()
        )


class Output(Protocol):
    """What prediction needs of a place to write to."""

    form: Form
    place: str
    """The folder, or "memory"."""
    pixels: dict[int, tuple[int, ...]]
    """Finished planes, and the pixels of each class in them."""
    discarded: tuple[str, ...]
    """In what the planes found there differed from those now wanted, and so were thrown away; usually empty."""

    def write(self, plane: int, arrays: Sequence[Array], pixels: Sequence[int]) -> None:
        """Keep one plane: its labels (H, W) and, if wanted, its probabilities (K, H, W)."""

    def arrays(self) -> list[Array]:
        """Labels (planes, H, W) and, if wanted, probabilities (planes, K, H, W)."""

    def close(self) -> None:
        """Let go of files; what is written stays."""

    def remove(self) -> None:
        """Delete what was written, when it has become a file elsewhere."""


class MemoryOutput:
    """Planes in arrays; see `Output`."""

    def __init__(self, form: Form) -> None:
        self.form = form
        self.place = "memory"
        self.pixels: dict[int, tuple[int, ...]] = {}
        self.discarded: tuple[str, ...] = ()
        self._arrays = [
            np.zeros(shape, dtype) for shape, dtype in form.arrays().values()
        ]

    def write(self, plane: int, arrays: Sequence[Array], pixels: Sequence[int]) -> None:
        for target, array in zip(self._arrays, arrays, strict=True):
            target[plane] = array
        self.pixels[plane] = tuple(pixels)

    def arrays(self) -> list[Array]:
        return self._arrays

    def close(self) -> None:
        pass

    def remove(self) -> None:
        self._arrays = []


def check_space(folder: Path, form: Form) -> None:
    """Raise `RunError` unless `folder`, or the nearest one above that exists, has room for the planes and the file."""
    place = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    needed, free = disk_needed(form), shutil.disk_usage(place).free
    if needed > free:
        raise RunError(
            f"{folder}: the prediction needs up to {size(needed)} on this disk and {size(free)} are free; free some "
            "space or choose another folder."
        )


def disk_needed(form: Form) -> int:
    """Bytes on disk at most: the planes and, before they go, the file. It is compressed; probabilities hardly are."""
    return int(form.nbytes * (2 if form.classes else 1.5))


def size(count: int) -> str:
    """Bytes for people: ``12 MB``."""
    value = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"
