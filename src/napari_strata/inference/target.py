"""Where a prediction is written to: which names are possible, and what must not be replaced."""

from __future__ import annotations

import os
from pathlib import Path

from napari_strata.core.errors import RunError
from napari_strata.core.image import Image
from napari_strata.io.paths import is_zarr, stem

SUFFIXES = (".tif", ".tiff", ".zarr", ".png")
"""What labels are written as."""


def probabilities_path(out: Path) -> Path:
    """Where the probabilities that belong to the labels `out` are written."""
    name = stem(out)
    suffix = ".tif" if out.suffix.lower() == ".png" else out.name[len(name) :]
    return out.with_name(f"{name}_probabilities{suffix}")


def check_out(out: Path, *, overwrite: bool) -> None:
    """Raise `RunError` when labels cannot be written to `out`, as far as that is known before there are any."""
    if out.suffix.lower() not in SUFFIXES:
        known = ", ".join(SUFFIXES)
        raise RunError(
            f"{out}: found the suffix {out.suffix!r}; use one of {known} (.png for a single plane)."
        )
    if out.exists() and not overwrite:
        raise RunError(
            f"{out}: exists already; choose another name, or allow it to be replaced (--overwrite)."
        )
    if out.is_dir() and not is_zarr(out):
        raise RunError(
            f"{out}: is a folder and not a zarr store, so it is not replaced; choose another name."
        )


def is_put_together(out: Path, *, overwrite: bool) -> bool:
    """Whether parts of a prediction have become `out` already: it is there, and nothing unfinished beside it."""
    return (
        out.exists()
        and not overwrite
        and not out.with_name(f"{out.name}.partial").exists()
    )


def check_image_against_out(image: Image, out: Path) -> None:
    """Raise `RunError` when the labels of `image` would replace it, or do not go into one PNG."""
    planes = len(list(image.planes()))
    if (
        image.source is not None
        and out.exists()
        and os.path.exists(image.source)
        and out.samefile(image.source)
    ):
        raise RunError(
            f"{out}: the output would replace the image itself; choose another name."
        )
    if out.suffix.lower() == ".png" and planes > 1:
        raise RunError(
            f"{out}: PNG holds one plane and {image.name} has {planes}; use .tif or .zarr."
        )
