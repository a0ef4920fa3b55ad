"""Images of a file that holds several; they are called series."""

from __future__ import annotations

from napari_strata.core.errors import ImageError
from napari_strata.io.paths import PathLike


def check_series(path: PathLike, series: int | None, *, count: int) -> None:
    """Refuse a number that none of the images of a file has.

    Parameters
    ----------
    series
        Number of the image, from 0, or None.
    count
        Number of images in the file.

    Raises
    ------
    ImageError
        When there is no such image.
    """
    if series is not None and not 0 <= series < count:
        raise ImageError(
            f"{path}: found {count} series, numbered from 0; there is no series"
            f" {series}."
        )
