"""Checks of paths, and outputs that get their name only when they are complete."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path

from napari_strata.core.errors import ImageError, RunError
from napari_strata.core.files import beside, explain, is_leftover, remove, replace

TIFF_SUFFIXES = (
    ".tif",
    ".tiff",
    ".btf",
    ".tf8",
    ".lsm",
    ".stk",
    ".svs",
    ".ndpi",
    ".scn",
    ".qptiff",
)
RASTER_SUFFIXES = (".png", ".jpg", ".jpeg")
HDF5_SUFFIXES = (".h5", ".hdf5", ".hdf", ".nxs")
NRRD_SUFFIXES = (".nrrd", ".nhdr")
NIFTI_SUFFIXES = (".nii", ".nii.gz")
MRC_SUFFIXES = (".mrc", ".rec", ".map")
MICROSCOPE_SUFFIXES = (".czi", ".lif", ".nd2")
RAW_SUFFIXES = (".raw", ".vol", ".vgi")
"""Suffixes of volumes without a header, and of the file that describes one."""

IMAGE_SUFFIXES = (
    *TIFF_SUFFIXES,
    *RASTER_SUFFIXES,
    ".zarr",
    *HDF5_SUFFIXES,
    *NRRD_SUFFIXES,
    *NIFTI_SUFFIXES,
    *MRC_SUFFIXES,
    *MICROSCOPE_SUFFIXES,
)
"""Suffixes of the images that are looked for in folders."""

ZARR_FILES = ("zarr.json", ".zgroup", ".zarray", ".zattrs")

PathLike = str | os.PathLike[str]

_DATASET = re.compile(
    rf"(.+(?:{'|'.join(map(re.escape, HDF5_SUFFIXES))})):[\\/]*(.+)", re.IGNORECASE
)
_LAYOUT = re.compile(r"(.+?):(\d+(?:x\d+)+:.+)", re.IGNORECASE)


def split_part(path: PathLike) -> tuple[Path, str]:
    """Split a path into a file and what it names in the file.

    ``a.h5:/raw`` names a dataset, ``a.raw:64x64x32:uint8`` the layout of a raw volume.
    The second value is "" for other paths.
    """
    text = os.fspath(path)
    for pattern in (_DATASET, _LAYOUT):
        match = pattern.fullmatch(text)
        if match and not os.path.exists(os.path.expanduser(text)):
            return Path(match[1]), match[2].replace("\\", "/")
    return Path(text), ""


def has_image_name(path: PathLike) -> bool:
    """Return True for a name of an image that is not hidden."""
    return not Path(path).name.startswith(".") and has_suffix(path, IMAGE_SUFFIXES)


def has_suffix(path: PathLike, suffixes: tuple[str, ...]) -> bool:
    """Return True if the name of a file ends with one of some lower-case suffixes."""
    return split_part(path)[0].name.lower().endswith(suffixes)


def existing(path: PathLike) -> Path:
    """Return a file or folder with ``~`` expanded, after checking that it exists.

    What `path` names in the file, as in ``a.h5:/raw``, is left out.

    Raises
    ------
    ImageError
        When it does not exist. The message has the nearest name in its folder.
    """
    target = split_part(path)[0].expanduser()
    # os.path answers False, where `Path` raises, for names that no file can have.
    if os.path.isfile(target) or os.path.isdir(target):
        return target
    if os.path.exists(target):
        raise ImageError(
            f"{target}: is a pipe or a device, not a file; give the path of a file."
        )
    parent = target.parent
    if not os.path.isdir(parent):
        raise ImageError(
            f"{target}: no such file, and no folder {str(parent)!r}; check the path."
        )
    close = get_close_matches(
        target.name, [p.name for p in parent.iterdir()], n=1, cutoff=0.6
    )
    hint = (
        f"did you mean {close[0]!r}?"
        if close
        else f"check the name against the content of {str(parent)!r}."
    )
    raise ImageError(f"{target}: no such file; {hint}")


_CONTENTS = {
    b"version https://git-lfs": "a Git LFS pointer, not the file; run git lfs pull",
    b"\x89PNG": "a PNG; give it its own suffix",
    b"\xff\xd8\xff": "a JPEG; give it its own suffix",
    b"\x89HDF": "an HDF5 file; give it its own suffix",
    b"PK\3\4": "a ZIP file; unpack it",
    b"\x1f\x8b": "a gzip file; unpack it",
    b"II*\0": "a TIFF; give it its own suffix",
    b"MM\0*": "a TIFF; give it its own suffix",
}
_WEB_PAGE = (b"<!doctype html", b"<html")


def content_of(path: Path) -> str:
    """Describe the content of a file by its first bytes, for messages."""
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        return "empty"
    for magic, name in _CONTENTS.items():
        if head.startswith(magic):
            return name
    if head.lstrip().lower().startswith(_WEB_PAGE):
        return "a web page (html), perhaps of a sign-in; download the file again"
    return ""


def stem(path: Path) -> str:
    """Return a file name without suffix, and with the dataset if the path names one.

    ``.ome.tif`` and ``.nii.gz`` count as one suffix.
    """
    file, part = split_part(path)
    name = re.sub(r"(\.nii\.gz|(\.ome)?\.[^.]+)$", "", file.name) or file.name
    if part and has_suffix(file, HDF5_SUFFIXES):
        name += "_" + part.replace("/", "_")
    return name


def natural(path: Path) -> list[tuple[int, int | str]]:
    """Return a sort key with which slice2 comes before slice10."""
    return [
        (0, int(part)) if part.isdigit() else (1, part)
        for part in re.findall(r"\d+|\D+", path.name.lower())
    ]


def is_zarr(path: Path) -> bool:
    """Return True if a folder is the root of a zarr array or group."""
    return any((path / name).is_file() for name in ZARR_FILES)


@contextmanager
def replacing(path: PathLike, *, overwrite: bool) -> Iterator[Path]:
    """Provide a temporary path, which is renamed to `path` at the end of the block.

    If the block raises an error, the temporary file or folder is removed.

    Raises
    ------
    RunError
        When `path` exists and `overwrite` is False, `path` is a folder but not a zarr
        store, the disk is full, or the folder cannot be written to.
    """
    target = Path(path).expanduser()
    _recover(target)
    _check_free(target, overwrite=overwrite)
    temporary, old = (
        beside(target, before=f".{os.getpid()}.{kind}.") for kind in ("tmp", "old")
    )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if target.is_dir():  # a folder that is not empty cannot be replaced
            replace(target, old)
        replace(temporary, target)
    except OSError as error:
        raise explain(error, target) from error
    finally:
        if old.exists() and not target.exists():
            replace(old, target)
        remove(temporary)
        remove(old)


def _recover(target: Path) -> None:
    """Undo a replacement of `target` that a killed process left unfinished."""
    if not target.parent.is_dir():
        return
    for path in list(target.parent.glob(f".*.{glob.escape(target.name)}")):
        if re.sub(r"\.[\d-]+\.(tmp|old)\.", "", path.name, count=1) != target.name:
            continue  # of another target
        is_old = is_leftover(path, "old")
        if is_old and not target.exists():
            replace(path, target)
        elif is_old or is_leftover(path):
            remove(path)


def _check_free(target: Path, *, overwrite: bool) -> None:
    if not target.exists():
        return
    if not overwrite:
        raise RunError(
            f"{target}: exists already; choose another name, or allow it to be replaced"
            " (--overwrite)."
        )
    if target.is_dir() and not is_zarr(target):
        raise RunError(
            f"{target}: is a folder and not a zarr store, so it is not replaced; choose"
            " another name."
        )
