"""Where predicted planes go: arrays in memory, or a folder on disk from which an interrupted prediction goes on.

On disk, planes are written straight into ``<output>.partial/labels.npy`` (and ``probabilities.npy``), and after each
one a line into ``ledger.jsonl``: its number, the pixels of each class, and a checksum. The ledger's first line says of
which model, image and options the planes were made. Only planes whose checksum holds are taken up again, so neither a
kill nor a power cut nor a full disk leaves anything half-right behind.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import zlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from napari_strata import files
from napari_strata.errors import RunError

Array = np.ndarray[Any, Any]
Identity = Mapping[str, Any]
"""What a prediction was made of, as plain data; compared entry by entry."""

FORMAT = "napari-strata ledger 1"
LEDGER, LABELS, PROBABILITIES = "ledger.jsonl", "labels.npy", "probabilities.npy"


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
        wanted: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {LABELS: ((self.planes, *self.shape), self.dtype)}
        if self.classes:
            wanted[PROBABILITIES] = (self.planes, self.classes, *self.shape), np.dtype(np.float16)
        return wanted

    @property
    def nbytes(self) -> int:
        return sum(int(np.prod(shape)) * dtype.itemsize for shape, dtype in self.arrays().values())


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
        self._arrays = [np.zeros(shape, dtype) for shape, dtype in form.arrays().values()]

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


class PartialOutput:
    """Planes in the folder ``<path>.partial``; see `Output`. `close` it, or `remove` it when done.

    Parameters
    ----------
    path
        the file the prediction will become.
    identity
        what it is made of. Planes of another identity are thrown away.

    Raises
    ------
    RunError
        when the disk has too little room or cannot be written, or the folder holds anything that is not ours.
    """

    def __init__(self, path: Path, form: Form, identity: Identity) -> None:
        self.folder = path.with_name(path.name + ".partial")
        self.form = form
        self.place = str(self.folder)
        self._identity = json.loads(json.dumps(dict(identity)))
        self.discarded: tuple[str, ...] = ()
        self.pixels: dict[int, tuple[int, ...]] = {}
        self._files: list[FileIO] = []
        self._opened = ExitStack()
        try:
            self._open()
        except OSError as error:
            self.close()
            raise files.explain(error, self.folder) from error

    def _open(self) -> None:
        lines = self._take_up()
        if not lines:
            check_space(self.folder.parent, self.form)
            self.folder.mkdir(parents=True, exist_ok=True)
        # The ledger comes first: a folder without one is never touched.
        head = json.dumps({"format": FORMAT, "identity": self._identity})
        files.write_text(self.folder / LEDGER, "".join(f"{line}\n" for line in [head, *lines]))
        for name, (shape, dtype) in self.form.arrays().items():
            if not lines:
                np.lib.format.open_memmap(self.folder / name, mode="w+", dtype=dtype, shape=shape)
            self._files.append(self._opened.enter_context(FileIO(self.folder / name, "r+b")))
        self._ledger = self._opened.enter_context(FileIO(self.folder / LEDGER, "ab"))

    def _take_up(self) -> list[str]:
        """Ledger lines of the planes that can be kept; fills `pixels`, and clears the folder when there is none."""
        if not self.folder.exists():
            return []
        ledger = self.folder / LEDGER
        lines = ledger.read_text(encoding="utf-8").splitlines() if ledger.is_file() else []
        head = _parse(lines[0]) if lines else {}
        if head.get("format") != FORMAT and any(not p.name.startswith(".") for p in self.folder.iterdir()):
            raise RunError(f"{self.folder}: found a folder that is not an unfinished prediction; move it elsewhere.")
        found = head.get("identity", self._identity)
        self.discarded = tuple(k for k in self._identity if found.get(k) != self._identity[k])
        kept = [] if self.discarded else [line for line in lines[1:] if self._holds(_parse(line))]
        if not kept:
            shutil.rmtree(self.folder)
        return kept

    def _holds(self, record: Mapping[str, Any]) -> bool:
        """Whether the plane that a ledger line names is there as it was written; if so, it counts as finished."""
        plane = record.get("plane")
        if not isinstance(plane, int) or not 0 <= plane < self.form.planes:
            return False
        try:
            arrays = [np.load(self.folder / name, mmap_mode="r") for name in self.form.arrays()]
        except (OSError, ValueError):  # missing, or cut short
            return False
        if [(a.shape, a.dtype) for a in arrays] != list(self.form.arrays().values()):
            return False
        if _checksum([a[plane] for a in arrays]) != record.get("crc32"):
            return False
        self.pixels[plane] = tuple(record["pixels"])
        return True

    def write(self, plane: int, arrays: Sequence[Array], pixels: Sequence[int]) -> None:
        wanted = self.form.arrays().values()
        parts = [np.ascontiguousarray(array, dtype) for array, (_, dtype) in zip(arrays, wanted, strict=True)]
        record = {"plane": plane, "pixels": [int(n) for n in pixels], "crc32": _checksum(parts)}
        try:
            # Through the file, not a memory map: writing to a mapped page on a full disk kills the process.
            for file, part in zip(self._files, parts, strict=True):
                file.seek((plane - self.form.planes) * part.nbytes, os.SEEK_END)
                _write_all(file, part.data.cast("B"))
            _write_all(self._ledger, f"{json.dumps(record)}\n".encode())
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise files.explain(error, self.folder) from error
            raise RunError(
                f"{self.folder}: the disk is full. Free some space and run the same again: {len(self.pixels)} of "
                f"{self.form.planes} planes are kept."
            ) from error
        self.pixels[plane] = tuple(pixels)

    def arrays(self) -> list[Array]:
        """Read-only memory maps of what is written."""
        return [np.load(self.folder / name, mmap_mode="r") for name in self.form.arrays()]

    def remove(self) -> None:
        """Delete the folder: the prediction has become a file."""
        self.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def close(self) -> None:
        self._opened.close()


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


def _checksum(arrays: Sequence[Array]) -> int:
    value = 0
    for array in arrays:
        value = zlib.crc32(np.ascontiguousarray(array).data, value)
    return value


def _write_all(file: FileIO, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def _parse(line: str) -> dict[str, Any]:
    """One ledger line; empty when it was cut off."""
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
