"""A prediction that is not finished yet: a folder on disk from which it goes on, by one process or by several.

Planes are written straight into ``<output>.partial/labels.npy`` (and ``probabilities.npy``), and after each one a line
into ``ledger.jsonl``: its number, the pixels of each class, and a checksum. The ledger's first line says of which
model, image and options the planes were made. Only planes whose checksum holds are taken up again, so neither a kill
nor a power cut nor a full disk leaves anything half-right behind.

Several processes may fill one folder, on one machine or many: each has a ledger of its own (``ledger.2of3.jsonl``) and
claims the planes that it writes, and whatever stands in any ledger counts for all.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

from napari_strata.core import files
from napari_strata.core.errors import RunError
from napari_strata.inference.output import Array, Form, Identity, check_space
from napari_strata.inference.shards import Part, claim, sole

FORMAT = "napari-strata ledger 1"
LEDGER, CLAIMS, ASSEMBLY = "ledger.jsonl", ".claims", "assembly.lock"


@dataclass(frozen=True)
class Hand:
    """Who writes into a folder: everything, all alone, unless it is said otherwise.

    Parameters
    ----------
    part
        which of several; its ledger is called by it.
    planes
        those that it writes, which nobody else may at the same time; all when None, none when empty.
    shared
        whether others fill the folder too: then nothing there is ever thrown away.
    wait
        seconds to wait for planes that another process is writing.
    sent
        whether it was sent by one that has looked at every ledger, and needs not do so again.
    """

    part: Part | None = None
    planes: range | None = None
    shared: bool = False
    wait: float = 0.0
    sent: bool = False

    @property
    def ledger(self) -> str:
        return (
            LEDGER
            if self.part is None
            else f"ledger.{self.part.number}of{self.part.of}.jsonl"
        )


class PartialOutput:
    """Planes in the folder ``<path>.partial``; see `Output`. `close` it, or `remove` it when done.

    Parameters
    ----------
    path
        the file the prediction will become.
    identity
        what it is made of. Planes of another identity are thrown away, unless several fill the folder.
    hand
        who writes.

    Raises
    ------
    RunError
        when the disk has too little room or cannot be written, the folder holds anything that is not ours, another
        process is writing the same planes, or several fill it with something else.
    """

    def __init__(
        self, path: Path, form: Form, identity: Identity, hand: Hand | None = None
    ) -> None:
        self.path = path
        self.folder = path.with_name(path.name + ".partial")
        self.form = form
        self.place = str(self.folder)
        self._hand = hand or Hand()
        self._identity = json.loads(json.dumps(dict(identity)))
        self.discarded: tuple[str, ...] = ()
        self.pixels: dict[int, tuple[int, ...]] = {}
        self._files: list[FileIO] = []
        self._opened = ExitStack()
        try:
            self._open()
        except OSError as error:
            self.close()
            if isinstance(error, FileNotFoundError) and not self.folder.exists():
                raise RunError(
                    f"{self.folder}: another process has just put {path} together."
                ) from None
            raise files.explain(error, self.folder) from error
        except RunError:
            self.close()
            raise

    def _open(self) -> None:
        hand, every = self._hand, range(self.form.planes)
        self._check_ours()
        self._check_room()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._claims = self._opened.enter_context(FileIO(self.folder / CLAIMS, "ab+"))
        # Who does everything puts the file together too; see `assembling`.
        alone = hand.part is None and not hand.shared
        wanted = (
            range(self.form.planes + 1) if alone or hand.planes is None else hand.planes
        )
        if not claim(self._claims, wanted, wait=hand.wait):
            raise RunError(
                f"{self.folder}: another process is predicting the same planes just now; wait until it has finished, "
                "or stop it."
            )
        self._compare()
        # The ledger comes first: a folder without one is never touched.
        head = json.dumps({"format": FORMAT, "identity": self._identity})
        _once(
            self.folder / hand.ledger,
            lambda path: path.write_text(f"{head}\n", encoding="utf-8"),
        )
        for name, (shape, dtype) in self.form.arrays().items():
            make = partial(
                np.lib.format.open_memmap, mode="w+", dtype=dtype, shape=shape
            )
            _once(self.folder / name, make)
            self._files.append(
                self._opened.enter_context(FileIO(self.folder / name, "r+b"))
            )
        self._ledger = self._opened.enter_context(
            FileIO(self.folder / hand.ledger, "ab+")
        )
        self._ledger.seek(-1, os.SEEK_END)
        if self._ledger.read(1) != b"\n":  # a line cut off by a kill
            _write_all(self._ledger, b"\n")
        self.take_up(hand.planes or every)

    def _ledgers(self) -> list[Path]:
        if self._hand.sent:
            found = [self.folder / name for name in {LEDGER, self._hand.ledger}]
            return [path for path in found if path.exists()]
        return sorted(self.folder.glob("ledger*.jsonl"))

    def _check_ours(self) -> None:
        if not self.folder.exists():
            return
        heads = [_head(path).get("format") for path in self._ledgers()]
        if FORMAT not in heads and any(
            not p.name.startswith(".") for p in self.folder.iterdir()
        ):
            raise RunError(
                f"{self.folder}: found a folder that is not an unfinished prediction; move it elsewhere."
            )

    def _check_room(self) -> None:
        if not all((self.folder / name).exists() for name in self.form.arrays()):
            check_space(self.folder.parent, self.form)

    def _compare(self) -> None:
        """Clear the folder when its planes are of another origin or form; refuse to, where others work on it."""
        differences: dict[str, None] = {}
        ledgers = self._ledgers()
        for head in map(_head, ledgers):
            found = head.get("identity", self._identity)
            every = [*self._identity, *(k for k in found if k not in self._identity)]
            differences |= dict.fromkeys(
                k for k in every if found.get(k) != self._identity.get(k)
            )
        several = (
            self._hand.shared
            or self._hand.part
            or any(path.name != LEDGER for path in ledgers)
        )
        if not differences and self._fits(missing=bool(several)):
            return
        if several:
            raise RunError(
                f"{self.folder}: found parts of a prediction with another {' and '.join(differences) or 'shape'}; work "
                "of others is not discarded: choose another output, or remove that folder to start anew."
            )
        self.discarded = tuple(differences)
        for path in self.folder.iterdir():
            if path.name != CLAIMS:
                path.unlink()
        self._check_room()

    def _fits(self, *, missing: bool) -> bool:
        """Whether arrays have the shapes that are wanted and are whole; `missing` ones may be about to be made."""
        for name, wanted in self.form.arrays().items():
            try:
                found = np.load(self.folder / name, mmap_mode="r")
            except FileNotFoundError:
                if missing:
                    continue
                return False
            except (OSError, ValueError):  # cut short
                return False
            if (found.shape, found.dtype) != wanted:
                return False
        return True

    def _records(self) -> dict[int, list[dict[str, Any]]]:
        """What ledgers say of each plane that they name."""
        found: dict[int, list[dict[str, Any]]] = {}
        for path in self._ledgers():
            for record in map(
                _parse,
                path.read_text(encoding="utf-8", errors="replace").splitlines()[1:],
            ):
                plane = record.get("plane")
                if isinstance(plane, int) and 0 <= plane < self.form.planes:
                    found.setdefault(plane, []).append(record)
        return found

    def named(self) -> set[int]:
        """Planes that are finished as far as ledgers say, whoever wrote them; their checksums are not looked at."""
        return set(self._records())

    def take_up(self, planes: Sequence[int]) -> None:
        """Count as finished those of `planes` that some ledger names and whose checksum holds."""
        records = self._records() if planes else {}
        arrays = self.arrays() if records else []
        for plane in planes:
            if plane in self.pixels or plane not in records:
                continue
            found = _checksum([array[plane] for array in arrays])
            for record in records[plane]:
                if record.get("crc32") == found:
                    self.pixels[plane] = tuple(record["pixels"])

    def write(self, plane: int, arrays: Sequence[Array], pixels: Sequence[int]) -> None:
        wanted = self.form.arrays().values()
        parts = [
            np.ascontiguousarray(array, dtype)
            for array, (_, dtype) in zip(arrays, wanted, strict=True)
        ]
        record = {
            "plane": plane,
            "pixels": [int(n) for n in pixels],
            "crc32": _checksum(parts),
        }
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

    def settle(self) -> None:
        """Bring what is written to the disk, so that other machines see it: planes first, then the ledger."""
        for file in (*self._files, self._ledger):
            os.fsync(file.fileno())

    @contextmanager
    def assembling(self) -> Iterator[str]:
        """Nothing ("") for the one process that puts the file together, and for the others who that is; see `sole`."""
        if not claim(self._claims, range(self.form.planes, self.form.planes + 1)):
            yield "another process"
            return
        with sole(self.folder / ASSEMBLY) as other:
            yield other

    def busy(self, other: str) -> str:
        """That another process puts the file together, and what to do should it be dead."""
        if not self.folder.exists():
            return f"{self.path} is written"
        return f"{other}, writes {self.path} (should it have been killed: remove {self.folder / ASSEMBLY}, run this again)"

    def arrays(self) -> list[Array]:
        """Read-only memory maps of what is written."""
        return [
            np.load(self.folder / name, mmap_mode="r") for name in self.form.arrays()
        ]

    def remove(self) -> None:
        """Delete the folder: the prediction has become a file."""
        going = self.folder.with_name(f".{uuid4().hex}.{self.folder.name}")
        try:  # away at once, so that nobody who comes now finds half of it
            os.replace(self.folder, going)
        except OSError:  # Windows does not move what is open
            going = self.folder
        self.close()
        shutil.rmtree(going, ignore_errors=True)

    def close(self) -> None:
        self._opened.close()


def _once(path: Path, make: Callable[[Path], object]) -> None:
    """Make a file unless it is there. Of several processes that do so at the same time one wins; none replaces it."""
    if path.exists():
        return
    temporary = path.with_name(f".{uuid4().hex}.{path.name}")
    try:
        make(temporary)
        try:
            os.link(temporary, path)
        except FileExistsError:
            pass
        except OSError:  # no hard links on this file system
            if not path.exists():
                os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _checksum(arrays: Sequence[Array]) -> int:
    value = 0
    for array in arrays:
        value = zlib.crc32(np.ascontiguousarray(array).data, value)
    return value


def _write_all(file: FileIO, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def _head(ledger: Path) -> dict[str, Any]:
    """A ledger's first line; empty when it is none of ours."""
    with open(ledger, encoding="utf-8", errors="replace") as file:
        return _parse(file.readline())


def _parse(line: str) -> dict[str, Any]:
    """One ledger line; empty when it was cut off."""
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
