"""Libraries for file formats, which are imported when such a file is read."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from napari_strata.core.errors import ImageError
from napari_strata.io.paths import PathLike


def library(name: str, path: PathLike, *, install: str = "") -> Any:
    """Import the library that reads a file.

    Parameters
    ----------
    name
        Name of the module.
    path
        The file, for the message.
    install
        What pip installs; by default the extra `formats`.

    Raises
    ------
    ImageError
        When the library is not installed; the message says how to install it.
    """
    try:
        return import_module(name)
    except ImportError as error:
        command = install or '"napari-strata[formats]"'
        raise ImageError(
            f"{path}: cannot be read without the package {name} ({error}); run pip"
            f" install {command}."
        ) from None
