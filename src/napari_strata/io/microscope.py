"""Reading of CZI, LIF and ND2 through bioio, if it is installed.

Each scene of a file, such as a position, is a series.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from napari_strata.core.errors import ImageError
from napari_strata.core.image import ArrayLike
from napari_strata.io.layout import resolve
from napari_strata.io.lazy import LAZY_BYTES, FileArray
from napari_strata.io.libraries import library
from napari_strata.io.metadata import Calibration, calibrated
from napari_strata.io.paths import PathLike, existing, stem
from napari_strata.io.record import Loaded
from napari_strata.io.series import check_series
from napari_strata.io.units import size_of
from napari_strata.io.vendors import Size

_LISTED = 8
"""Number of scenes in a message."""


@dataclass(frozen=True)
class SceneOpener:
    """Picklable function that opens a scene as a lazy array.

    Only the dimensions `kept` are returned; the others have length 1.
    """

    path: str
    scene: int
    kept: tuple[int, ...]

    def __call__(self) -> tuple[ArrayLike, Callable[[], None]]:
        image = _opened(Path(self.path))
        image.set_scene(self.scene)
        data = image.dask_data
        index = [slice(None) if i in self.kept else 0 for i in range(data.ndim)]
        return data[tuple(index)], lambda: None


def count(path: PathLike) -> int:
    """Count the scenes of a file."""
    return len(_opened(existing(path)).scenes)


def load(
    path: PathLike,
    *,
    series: int | None = None,
    axes: str | None = None,
    lazy_above: int = LAZY_BYTES,
    labels: bool = False,
) -> Loaded:
    """Read a scene of a file.

    Parameters
    ----------
    path
        The file.
    series
        Index of the scene; needed if there are several.
    axes
        Axes from the user.
    lazy_above
        Images with more bytes of pixels are read on demand.
    labels
        Not used.

    Raises
    ------
    ImageError
        When bioio or its part for the format is not installed, the file cannot be read,
        or it has several scenes and none is chosen.
    """
    file = existing(path)
    image = _opened(file)
    scenes = [str(scene) for scene in image.scenes]
    scene = _pick(file, scenes, series)
    image.set_scene(scene)
    letters = str(image.dims.order)
    shape = tuple(map(int, image.dims.shape))
    # bioio adds axes of length 1.
    kept = [i for i, n in enumerate(shape) if n > 1 or letters[i] in "YX"]
    stored = tuple(shape[i] for i in kept)
    layout = resolve(
        "".join(letters[i] for i in kept),
        stored,
        full=list(zip(letters, shape, strict=True)),
        axes=axes,
        source=str(file),
    )
    dtype = np.dtype(image.dtype).newbyteorder("=")
    opener = SceneOpener(str(file), scene, tuple(kept))
    lazy = FileArray(opener, stored, shape=layout.shape, dtype=dtype)
    data: ArrayLike = lazy if lazy.nbytes > lazy_above else np.asarray(lazy)
    sizes: dict[str, Size] = {}
    for axis in "XYZ":
        if step := size_of(getattr(image.physical_pixel_sizes, axis, None)):
            sizes[axis] = (step, "micrometer")
    name = stem(file)
    if len(scenes) > 1:
        name += f" {scenes[scene]}"
    names = tuple(map(str, image.channel_names or ()))
    calibration = Calibration(sizes, names)
    return calibrated(data, layout, calibration, name=name, source=path), None


def storage(path: PathLike, *, series: int | None = None) -> str:
    """Describe the storage, such as ``CZI, read by bioio``."""
    return f"{existing(path).suffix[1:].upper()}, read by bioio"


def _opened(file: Path) -> Any:
    suffix = file.suffix[1:].lower()
    bioio = library("bioio", file, install=f"bioio bioio-{suffix}")
    try:
        return bioio.BioImage(file)
    except Exception as error:  # errors of bioio and its parts
        text = " ".join(str(error).split())[:160]
        raise ImageError(
            f"{file}: bioio cannot read it ({text}); if its part for the format is"
            f" missing, run pip install bioio-{suffix}."
        ) from None


def _pick(file: Path, scenes: list[str], series: int | None) -> int:
    if series is None and len(scenes) > 1:
        named = "; ".join(f"{i}: {s}" for i, s in enumerate(scenes[:_LISTED]))
        raise ImageError(
            f"{file}: found {len(scenes)} scenes, called series ({named}); choose one,"
            " as --series 0 (series=0)."
        )
    check_series(file, series, count=len(scenes))
    return series or 0
