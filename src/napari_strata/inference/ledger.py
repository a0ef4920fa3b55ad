"""Resumable output: planes of an unfinished prediction in a folder on disk.

Planes are written straight into ``<output>.partial/labels.npy`` (and
``probabilities.npy``), and after each one a line into ``ledger.jsonl``: its number, the
pixels of each class, and a checksum. The ledger's first line says of which model, image
and options the planes were made. Only planes whose checksum is right count later, so a
kill, a power cut or a full disk leave no damaged plane that is taken for a good one.

Several processes may fill one folder, on one machine or many. Each has its own ledger
(``ledger.2of3.jsonl``) and claims the planes that it writes; planes of all ledgers
count for all.
"""

from __future__ import annotations

import errno
import glob
import json
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

from napari_strata.core import files
from napari_strata.core.errors import RunError
from napari_strata.core.locks import exclusive
from napari_strata.inference.outputs import Array, OutputSpec, check_space
from napari_strata.inference.shards import (
    ANCHOR,
    Shard,
    claim_planes,
)

FORMAT = "napari-strata ledger 1"
LEDGER, ASSEMBLY = "ledger.jsonl", "assembly.lock"


@dataclass(frozen=True)
class WriterRole:
    """Share of a process in filling a folder; by default it fills it alone.

    Parameters
    ----------
    shard
        Shard that the process predicts, if there are several; the ledger is named for
        it.
    planes
        Planes that the process writes, and nobody else at the same time; all when
        None.
    shared
        True when others fill the folder too: then nothing there is ever deleted.
    wait
        Seconds to wait for planes that another process is writing.
    trust_ledgers
        True when the process that started this one has read all ledgers, so that this
        one reads only its own and the common one.
    """

    shard: Shard | None = None
    planes: range | None = None
    shared: bool = False
    wait: float = 0.0
    trust_ledgers: bool = False

    @property
    def ledger(self) -> str:
        """File name of the ledger."""
        if self.shard is None:
            return LEDGER
        return f"ledger.{self.shard.number}of{self.shard.count}.jsonl"


class ResumableOutput:
    """Planes in the folder ``<path>.partial``; see `Output`.

    `close` it, or `remove` it when the prediction has become a file.

    Parameters
    ----------
    path
        The file that the prediction will become.
    spec
        Sizes and types of what is written.
    identity
        Facts of model, image and options, as plain data. Planes of another identity are
        deleted, unless several processes fill the folder.
    role
        See `WriterRole`.

    Raises
    ------
    RunError
        when the disk has too little room or cannot be written, the folder holds
        something else, another process is writing the same planes, or several fill it
        with planes of another identity.
    """

    def __init__(
        self,
        path: Path,
        spec: OutputSpec,
        identity: Any,
        role: WriterRole | None = None,
    ) -> None:
        self.path = path
        self.folder = files.partial_folder(path)
        self.spec = spec
        self.location = str(self.folder)
        self._role = role or WriterRole()
        self._identity = json.loads(json.dumps(dict(identity)))
        self.discarded: tuple[str, ...] = ()
        self.pixels: dict[int, tuple[int, ...]] = {}
        self._files: list[FileIO] = []
        self._resources = ExitStack()
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
        self._check_ours()
        self._check_room()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._claim()
        self._check_identity()
        # The ledger comes first: a folder without one is never touched.
        head = json.dumps({"format": FORMAT, "identity": self._identity})
        ledger = self.folder / self._role.ledger
        _create_once(
            ledger, lambda path: path.write_text(f"{head}\n", encoding="utf-8")
        )
        for name, (shape, dtype) in self.spec.arrays().items():
            create = partial(
                np.lib.format.open_memmap, mode="w+", dtype=dtype, shape=shape
            )
            _create_once(self.folder / name, create)
            file = FileIO(self.folder / name, "r+b")
            self._files.append(self._resources.enter_context(file))
        self._ledger = self._resources.enter_context(FileIO(ledger, "ab+"))
        self._ledger.seek(-1, os.SEEK_END)
        if self._ledger.read(1) != b"\n":
            # A kill has cut the last line off.
            _write_all(self._ledger, b"\n")
        own_planes = self._role.planes
        self.load_finished(own_planes or range(self.spec.planes))

    def _claim(self) -> None:
        """Claim the planes of this process; raise `RunError` when others hold one."""
        role = self._role
        planes = role.planes
        if planes is None or (role.shard is None and not role.shared):
            # A process that does everything puts the file together too; see
            # `claim_assembly`.
            planes = range(self.spec.planes + 1)
        if not planes:
            return
        lock = claim_planes(self.folder, planes, wait=role.wait)
        if lock is None:
            raise RunError(
                f"{self.folder}: another process is predicting the same planes just "
                "now; wait until it has finished, or stop it."
            )
        self._resources.callback(lock.release)

    def _ledger_paths(self) -> list[Path]:
        if not self._role.trust_ledgers:
            return sorted(self.folder.glob("ledger*.jsonl"))
        paths = {self.folder / LEDGER, self.folder / self._role.ledger}
        return [path for path in paths if path.exists()]

    def _check_ours(self) -> None:
        """Raise `RunError` when the folder holds anything else than a prediction."""
        if not self.folder.exists():
            return
        formats = [_read_head(path).get("format") for path in self._ledger_paths()]
        if FORMAT in formats:
            return
        if any(not path.name.startswith(".") for path in self.folder.iterdir()):
            raise RunError(
                f"{self.folder}: found a folder that is not an unfinished prediction; "
                "move it elsewhere."
            )

    def _check_room(self) -> None:
        if not all((self.folder / name).exists() for name in self.spec.arrays()):
            check_space(self.folder.parent, self.spec)

    def _check_identity(self) -> None:
        """Empty the folder when its planes are of another identity or size.

        Raises
        ------
        RunError
            where other processes work on them too.
        """
        ledgers = self._ledger_paths()
        # A dictionary keeps the order in which differences are named.
        differences: dict[str, None] = {}
        for path in ledgers:
            identity = _read_head(path).get("identity", self._identity)
            for key in [*self._identity, *identity]:
                if identity.get(key) != self._identity.get(key):
                    differences[key] = None
        shared = self._role.shared or self._role.shard is not None
        shared = shared or any(path.name != LEDGER for path in ledgers)
        if not differences and self._arrays_fit(may_lack=shared):
            return
        if shared:
            raise RunError(
                f"{self.folder}: found parts of a prediction with another "
                f"{' and '.join(differences) or 'shape'}; planes of other processes "
                "are not deleted: choose another output, or remove that folder to "
                "start again."
            )
        self.discarded = tuple(differences)
        for path in self.folder.iterdir():
            if path.name != ANCHOR and not path.match(".*.lock"):
                path.unlink()
        self._check_room()

    def _arrays_fit(self, *, may_lack: bool) -> bool:
        """True when the arrays have the right shapes and are whole.

        Parameters
        ----------
        may_lack
            True when another process may be about to make them.
        """
        for name, (shape, dtype) in self.spec.arrays().items():
            try:
                array = np.load(self.folder / name, mmap_mode="r")
            except FileNotFoundError:
                if may_lack:
                    continue
                return False
            except (OSError, ValueError):
                # The file is cut short.
                return False
            if (array.shape, array.dtype) != (shape, dtype):
                return False
        return True

    def _read_records(self) -> dict[int, list[dict[str, Any]]]:
        """Ledger lines by plane."""
        records: dict[int, list[dict[str, Any]]] = {}
        for path in self._ledger_paths():
            text = path.read_text(encoding="utf-8", errors="replace")
            for line in text.splitlines()[1:]:
                record = _parse_line(line)
                plane = record.get("plane")
                if isinstance(plane, int) and 0 <= plane < self.spec.planes:
                    records.setdefault(plane, []).append(record)
        return records

    def recorded_planes(self) -> set[int]:
        """Planes that are finished according to any ledger; checksums are not read."""
        return set(self._read_records())

    def load_finished(self, planes: Sequence[int]) -> None:
        """Count planes as finished that a ledger has with the right checksum."""
        if not planes:
            return
        records = self._read_records()
        if not records:
            return
        arrays = self.arrays()
        for plane in planes:
            if plane in self.pixels or plane not in records:
                continue
            checksum = _checksum([array[plane] for array in arrays])
            for record in records[plane]:
                if record.get("crc32") == checksum:
                    self.pixels[plane] = tuple(record["pixels"])

    def write(self, plane: int, arrays: Sequence[Array], pixels: Sequence[int]) -> None:
        """Keep one plane and its ledger line; see `Output.write`."""
        contents = []
        for array, (_, dtype) in zip(arrays, self.spec.arrays().values(), strict=True):
            contents.append(np.ascontiguousarray(array, dtype))
        record = {
            "plane": plane,
            "pixels": [int(count) for count in pixels],
            "crc32": _checksum(contents),
        }
        try:
            # Not through a memory map: writing to a mapped page kills the process when
            # the disk is full.
            for file, content in zip(self._files, contents, strict=True):
                file.seek((plane - self.spec.planes) * content.nbytes, os.SEEK_END)
                _write_all(file, content.data.cast("B"))
            _write_all(self._ledger, f"{json.dumps(record)}\n".encode())
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise files.explain(error, self.folder) from error
            raise RunError(
                f"{self.folder}: the disk is full. Free some space and run the "
                f"same command again: {len(self.pixels)} of {self.spec.planes} planes "
                "are kept."
            ) from error
        self.pixels[plane] = tuple(pixels)

    def sync(self) -> None:
        """Bring what is written to the disk, so that other machines see it."""
        # Planes come first, because a ledger line says that its plane is there.
        for file in (*self._files, self._ledger):
            os.fsync(file.fileno())

    def claim_assembly(self) -> str:
        """Claim to put the file together, until `close`.

        Returns
        -------
        an empty text for the one process that may; for others who that is, see
        `exclusive`.
        """
        number = self.spec.planes
        lock = claim_planes(self.folder, range(number, number + 1))
        if lock is None:
            return "another process"
        self._resources.callback(lock.release)
        return self._resources.enter_context(exclusive(self.folder / ASSEMBLY))

    def describe_assembly(self, holder: str) -> str:
        """Say that another process writes the file, and what to do if it died."""
        if not self.folder.exists():
            return f"{self.path} has been written."
        return (
            f"{holder[0].upper()}{holder[1:]} is writing {self.path}. If that process "
            f"was killed, remove {self.folder / ASSEMBLY} and run the command again."
        )

    def arrays(self) -> list[Array]:
        """Read-only memory maps of what is written; see `Output.arrays`."""
        names = self.spec.arrays()
        return [np.load(self.folder / name, mmap_mode="r") for name in names]

    def remove(self) -> None:
        """Delete the folder."""
        trash = files.beside(self.folder, before=f".{os.getpid()}.tmp.")
        try:
            # Moved at once, so that no process that starts now finds half of it.
            files.replace(self.folder, trash)
        except OSError:
            # Windows does not move what is open.
            trash = self.folder
        self.close()
        _delete(trash)

    def close(self) -> None:
        """Close the files and release the claim."""
        self._resources.close()


def restore_removed(out: Path) -> None:
    """Undo the removal of the folder of an output that a killed process began."""
    folder = files.partial_folder(out)
    for path in folder.parent.glob(f".*.tmp.{glob.escape(folder.name)}"):
        if not files.is_leftover(path):
            continue
        if folder.exists() or not (path / LEDGER).is_file():
            files.remove(path)
        else:
            files.replace(path, folder)


def remove_written(
    out: Path, spec: OutputSpec, identity: Mapping[str, Any]
) -> list[tuple[int, ...]] | None:
    """Delete the folder of an output if a killed process had written the output whole.

    The ledger then has every plane, and is older than the output.

    Returns
    -------
    the pixels of each class in each plane; None if the output is something else.
    """
    folder = files.partial_folder(out)
    ledger = folder / LEDGER
    if not (out.exists() and ledger.is_file()):
        return None
    if out.stat().st_mtime_ns < ledger.stat().st_mtime_ns:
        return None
    if _read_head(ledger).get("identity") != json.loads(json.dumps(dict(identity))):
        return None
    lines = ledger.read_text(encoding="utf-8", errors="replace").splitlines()[1:]
    records = {record.get("plane"): record for record in map(_parse_line, lines)}
    if not records.keys() >= set(range(spec.planes)):
        return None
    _delete(folder)
    return [tuple(records[plane]["pixels"]) for plane in range(spec.planes)]


def _delete(folder: Path) -> None:
    """Delete the folder of an output, its ledger last; see `restore_removed`."""
    with suppress(OSError):  # another process deletes it too
        for path in list(folder.iterdir()):
            if path.name != LEDGER:
                files.remove(path)
    files.remove(folder)


def _create_once(path: Path, create: Callable[[Path], object]) -> None:
    """Create a file unless it exists.

    If several processes try at the same time, one creates it and none replaces it.
    """
    if path.exists():
        return
    temporary = path.with_name(f".{uuid4().hex}.{path.name}")
    try:
        create(temporary)
        try:
            os.link(temporary, path)
        except FileExistsError:
            pass
        except OSError:
            # This file system has no hard links.
            if not path.exists():
                files.replace(temporary, path)
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


def _read_head(ledger: Path) -> dict[str, Any]:
    """First line of a ledger; empty when it is no ledger."""
    with open(ledger, encoding="utf-8", errors="replace") as file:
        return _parse_line(file.readline())


def _parse_line(line: str) -> dict[str, Any]:
    """One line of a ledger; empty when it was cut off."""
    try:
        record = json.loads(line)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}
