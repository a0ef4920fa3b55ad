"""Decisions of a batch of files in the Predict dock, without Qt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from napari_strata.core.events import FileEnd
from napari_strata.core.text import format_count
from napari_strata.inference.inputs import find_images, plan_targets
from napari_strata.io.paths import is_zarr

WAITING, EXISTS, RUNNING = "waiting", "exists already", "..."
NOT_PREDICTED = "not predicted"


@dataclass(frozen=True)
class BatchRequest:
    """Files that a batch predicts, with the words of the command ``predict``.

    Parameters
    ----------
    inputs
        Files, folders and patterns.
    out
        Folder of the labels; empty for `default_folder`.
    stack
        Take each folder and pattern as one image, a stack of slices.
    overwrite
        Replace labels that exist; otherwise their images are skipped.
    axes
        Axes of the images if the files do not state them; empty otherwise.
    strict
        Refuse images whose grey values hardly occur in the training images.
    """

    inputs: tuple[str, ...] = ()
    out: str = ""
    stack: bool = False
    overwrite: bool = False
    axes: str = ""
    strict: bool = False

    @property
    def folder(self) -> Path:
        """Folder of the labels and of the report."""
        return Path(self.out).expanduser() if self.out else default_folder(self.inputs)

    @property
    def report(self) -> Path:
        """Table with a row for each file."""
        return self.folder / "report.csv"


@dataclass(frozen=True)
class BatchFile:
    """Image of a batch, the file of its labels, and what has become of it.

    `status` is waiting, exists already, ..., done, skipped, failed or not predicted.
    """

    source: str
    output: str
    status: str = WAITING
    text: str = ""

    @property
    def has_labels(self) -> bool:
        """True if the file of the labels exists and belongs to this image."""
        return self.status in ("done", "skipped", EXISTS)


def default_folder(inputs: Sequence[str]) -> Path:
    """Return the folder ``scans_labels`` beside the folder of the first input."""
    if not inputs:
        return Path()
    path = Path(inputs[0]).expanduser().absolute()
    folder = path if path.is_dir() and not is_zarr(path) else path.parent
    return folder.with_name(f"{folder.name or 'images'}_labels")


def plan_files(request: BatchRequest) -> tuple[BatchFile, ...]:
    """Find the images of a request, in the order in which they are predicted.

    Raises
    ------
    StrataError
        When there is no image, or two images would have the same file of labels.
    """
    sources = find_images(request.inputs, labels_in=request.folder, stack=request.stack)
    targets = plan_targets(sources, request.folder)
    return tuple(
        BatchFile(
            str(source),
            str(target),
            EXISTS if target.exists() and not request.overwrite else WAITING,
        )
        for source, target in targets.items()
    )


def start(files: Sequence[BatchFile]) -> tuple[BatchFile, ...]:
    """Return the files as they are when the batch starts."""
    return tuple(replace(file, status=WAITING, text="") for file in files)


def running(files: Sequence[BatchFile]) -> int | None:
    """Return the number of the file that is being predicted; None at the end."""
    waiting = (WAITING, RUNNING)
    return next((n for n, file in enumerate(files) if file.status in waiting), None)


def update(files: Sequence[BatchFile], end: FileEnd) -> tuple[BatchFile, ...]:
    """Set the status of the file that has ended."""
    return tuple(
        replace(file, status=end.status, text=end.text, output=end.path)
        if file.source == end.source
        else file
        for file in files
    )


def finish(files: Sequence[BatchFile], *, failed: str = "") -> tuple[BatchFile, ...]:
    """Set the status of the files that were not reached.

    `failed` is the reason why the batch ended early; the file at work has it.
    """
    number = running(files)
    rest = []
    for index, file in enumerate(files):
        if file.status not in (WAITING, RUNNING):
            rest.append(file)
        elif failed and index == number:
            rest.append(replace(file, status="failed", text=failed))
        else:
            rest.append(replace(file, status=NOT_PREDICTED))
    return tuple(rest)


def describe_plan(files: Sequence[BatchFile]) -> str:
    """Describe the images that were found."""
    existing = sum(file.status == EXISTS for file in files)
    text = format_count(len(files), "image")
    if existing:
        text += f"; {existing} with labels already, which will be skipped"
    return f"{text}."


def describe_end(files: Sequence[BatchFile]) -> str:
    """Describe the result: ``12 images: 10 done, 1 skipped, 1 failed``."""
    counts = Counter(file.status for file in files)
    parts = ", ".join(f"{count} {status}" for status, count in counts.items())
    return f"{format_count(len(files), 'image')}: {parts}."


def describe_failures(files: Sequence[BatchFile]) -> str:
    """Describe why images failed, in a line each; the first three of them."""
    failed = [file for file in files if file.status == "failed"]
    lines = [file.text for file in failed[:3]]
    if len(failed) > len(lines):
        lines.append(f"{len(failed) - len(lines)} more: see the report.")
    return "\n".join(lines)


def short_name(path: str) -> str:
    """Return a name for a table: the file, or folder and pattern."""
    file = Path(path)
    return f"{file.parent.name}/{file.name}" if "*" in file.name else file.name
