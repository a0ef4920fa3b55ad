"""Registry of file formats, which maps a file to the module that handles it.

A format is a module with these functions; all but `load` and `storage` may be missing:

- ``count(path)``: number of images in a file; without it, each file has one image
- ``load(path, *, series, axes, lazy_above, labels)``: an image and its class map
- ``storage(path, *, series)``: description of how the pixels are stored, one line
- ``pyramid(path, *, series, axes)``: all resolutions of an image
- ``write(path, image, record, *, dtype)``: write an image with its record

A new format calls `register_format` in its own module.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from glob import has_magic
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

from napari_strata.core.errors import ImageError, RunError
from napari_strata.io.lazy import reading
from napari_strata.io.paths import (
    HDF5_SUFFIXES,
    MICROSCOPE_SUFFIXES,
    MRC_SUFFIXES,
    NIFTI_SUFFIXES,
    NRRD_SUFFIXES,
    RAW_SUFFIXES,
    TIFF_SUFFIXES,
    PathLike,
    existing,
    has_suffix,
    is_zarr,
    split_part,
)
from napari_strata.io.record import Loaded
from napari_strata.io.series import check_series

_STACK_MODULE = "napari_strata.io.stack"
_RAW_MODULE = "napari_strata.io.raw"


class Reader(Protocol):
    """Functions of a format to read files."""

    def count(self, path: PathLike) -> int: ...
    def load(
        self,
        path: PathLike,
        *,
        series: int | None = ...,
        axes: str | None = ...,
        lazy_above: int = ...,
        labels: bool = ...,
    ) -> Loaded: ...
    def storage(self, path: PathLike, *, series: int | None = ...) -> str: ...


@dataclass(frozen=True)
class FileFormat:
    """A file format and the module that implements it.

    Parameters
    ----------
    name
        Name for messages.
    suffixes
        Suffixes of files that are read, in lower case.
    module
        Module with the functions of the format; imported on first use.
    written_suffixes
        Suffixes of files that are written.
    is_folder
        Function that returns True for folders of this format; None if it has files.
    """

    name: str
    suffixes: tuple[str, ...]
    module: str
    written_suffixes: tuple[str, ...] = ()
    is_folder: Callable[[Path], bool] | None = None


FORMATS: list[FileFormat] = []
"""All formats; the last registered comes first."""


def register_format(file_format: FileFormat) -> None:
    """Add a format; it takes precedence over earlier ones with the same suffixes."""
    FORMATS.insert(0, file_format)


for _suffix in reversed(MICROSCOPE_SUFFIXES):
    register_format(
        FileFormat(_suffix[1:].upper(), (_suffix,), "napari_strata.io.microscope")
    )
register_format(FileFormat("raw volumes", RAW_SUFFIXES, _RAW_MODULE))
register_format(FileFormat("MRC", MRC_SUFFIXES, "napari_strata.io.mrc"))
register_format(FileFormat("NIfTI", NIFTI_SUFFIXES, "napari_strata.io.nifti"))
register_format(FileFormat("NRRD", NRRD_SUFFIXES, "napari_strata.io.nrrd"))
register_format(FileFormat("HDF5", HDF5_SUFFIXES, "napari_strata.io.hdf5", (".h5",)))
register_format(
    FileFormat(
        "OME-Zarr", (".zarr",), "napari_strata.io.zarr", (".zarr",), is_folder=is_zarr
    )
)
register_format(FileFormat("JPEG", (".jpg", ".jpeg"), "napari_strata.io.raster"))
register_format(FileFormat("PNG", (".png",), "napari_strata.io.raster", (".png",)))
register_format(
    FileFormat("TIFF", TIFF_SUFFIXES, "napari_strata.io.tiff", (".tif", ".tiff"))
)


class _Guarded:
    """Functions of a module, whose errors all become an `ImageError`."""

    def __init__(self, module: str) -> None:
        self._module = import_module(module)
        self._has_one_image = not hasattr(self._module, "count")

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name == "count" and self._has_one_image:
            return _count_one
        function = getattr(self._module, name)

        def guarded(path: PathLike, **options: Any) -> Any:
            if self._has_one_image:
                check_series(path, options.get("series"), count=1)
            with reading(path):
                return function(path, **options)

        return guarded


def _count_one(path: PathLike) -> int:
    existing(path)
    return 1


def find_reader(path: PathLike) -> Reader:
    """Find the module that reads a file, a folder or a pattern.

    Its functions raise nothing but a `StrataError`, whatever the file contains.

    Raises
    ------
    ImageError
        When the path does not exist, or its format is unknown.
    """
    if has_magic(str(path)) and not os.path.exists(Path(path).expanduser()):
        return cast(Reader, _Guarded(_STACK_MODULE))
    file = existing(path)
    if split_part(path)[1] and not has_suffix(file, HDF5_SUFFIXES):
        return cast(Reader, _Guarded(_RAW_MODULE))
    suffix = file.suffix.lower()
    for file_format in FORMATS:
        if file.is_dir():
            is_folder = file_format.is_folder
            if is_folder and (suffix in file_format.suffixes or is_folder(file)):
                return cast(Reader, _Guarded(file_format.module))
        elif has_suffix(file, file_format.suffixes) and not file_format.is_folder:
            return cast(Reader, _Guarded(file_format.module))
    if file.is_dir():
        return cast(Reader, _Guarded(_STACK_MODULE))
    *names, last = [file_format.name for file_format in FORMATS]
    raise ImageError(
        f"{file}: found the suffix {suffix!r}; {', '.join(names)} and {last} can be"
        " read, and folders of slices."
    )


def find_writer(path: Path) -> Callable[..., None]:
    """Find the function that writes files with the suffix of a path.

    Raises
    ------
    RunError
        When no format writes files with this suffix.
    """
    suffix = path.suffix.lower()
    for file_format in FORMATS:
        if suffix in file_format.written_suffixes:
            write: Callable[..., None] = import_module(file_format.module).write
            return write
    raise RunError(
        f"{path}: found the suffix {suffix!r}; use .tif, .zarr, .h5, or .png for one"
        " plane of labels."
    )
