"""Images that a batch predicts, and the names of its outputs; no torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from glob import glob, has_magic
from pathlib import Path

from napari_strata.core.errors import ImageError, RunError
from napari_strata.inference.outputs import SUFFIXES, probabilities_path
from napari_strata.io.paths import (
    IMAGE_SUFFIXES,
    has_image_name,
    has_suffix,
    is_zarr,
    natural,
    stem,
)

PathLike = str | os.PathLike[str]
READ_ONLY_SUFFIXES = (
    *(set(IMAGE_SUFFIXES) - set(SUFFIXES)),
    ".gif",
    ".bmp",
    ".npy",
    ".raw",
)
"""Suffixes of files that labels are not written to. A folder with such a
suffix is probably a mistake, so it is refused."""


def find_images(
    inputs: Sequence[PathLike], *, labels_in: Path | None = None, stack: bool = False
) -> list[Path]:
    """Find the image files of `inputs`, each once.

    They are in natural order within each folder or pattern. A file that is named but
    missing is in the list, so that it can be reported.

    Parameters
    ----------
    labels_in
        Folder of an earlier run; what that wrote is left out, unless it is named.
    stack
        Take each folder and pattern as one image, a stack of slices.

    Raises
    ------
    ImageError
        when a folder or pattern holds no image and nothing else is named.
    """
    named: dict[Path, Path] = {}
    listed: dict[Path, Path] = {}
    for item in inputs:
        path = Path(item).expanduser()
        if stack or not is_stack(path):
            named[path.absolute()] = path
            continue
        if path.is_dir():
            candidates = list(path.iterdir())
        else:
            candidates = [Path(match) for match in glob(str(path))]
        for image in sorted(filter(has_image_name, candidates), key=natural):
            listed[image.absolute()] = image
    if labels_in is not None:
        written = set()
        for path in listed | named:
            labels = labels_in.absolute() / output_name(path)
            written |= {labels, probabilities_path(labels)}
        listed = {key: path for key, path in listed.items() if key not in written}
    if not listed and not named:
        inputs_text = ", ".join(map(str, inputs)) or "nothing"
        raise ImageError(
            f"found no image in {inputs_text}; give files "
            f"({', '.join(IMAGE_SUFFIXES)}), folders of them or patterns."
        )
    return list((named | listed).values())


def names_file(path: Path) -> bool:
    """Return True if a path is to be one file of labels, not a folder."""
    if not has_suffix(path, (*SUFFIXES, *READ_ONLY_SUFFIXES)):
        return False
    return is_zarr(path) or not path.is_dir()


def plan_targets(sources: Sequence[Path], folder: Path) -> dict[Path, Path]:
    """Return the output in a folder for each source.

    Raises
    ------
    RunError
        When `folder` is a file, or two sources have outputs of the same name.
    """
    if folder.exists() and not folder.is_dir():
        raise RunError(
            f"{folder}: is a file, and {len(sources)} inputs need a folder; choose "
            "another name for it."
        )
    if names_file(folder):
        raise RunError(
            f"{folder}: names one file, and there are {len(sources)} inputs; give a "
            "folder."
        )
    targets = {source: folder / output_name(source) for source in sources}
    sources_of: dict[Path, list[str]] = {}
    for source, target in targets.items():
        sources_of.setdefault(target, []).append(str(source))
    conflicts = []
    for target, names in sources_of.items():
        if len(names) > 1:
            conflicts.append(f"{' and '.join(names)} to {target.name}")
    if conflicts:
        raise RunError(
            "several inputs would be written to one file "
            f"({'; '.join(conflicts[:4])}); predict them into separate folders."
        )
    return targets


def is_stack(path: Path) -> bool:
    """Return True for a folder of slices or a pattern, which may be one stack."""
    if path.is_dir():
        return not is_zarr(path)
    return has_magic(str(path)) and not path.exists()


def output_name(source: Path) -> str:
    """Return the file name of the labels of an image."""
    if not is_stack(source):
        name = stem(source)
    elif source.is_dir():
        name = source.resolve().name
    else:
        name = source.absolute().parent.name
    return f"{name}_labels.tif"
