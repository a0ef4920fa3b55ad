"""Reading and writing of HDF5: one dataset of a file, as in ``file.h5:/raw``.

Axes and pixel sizes come from ``axistags`` (ilastik), from ``element_size_um``, and
from the labels of the dimensions. Files that we write have the first two, for ilastik.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from napari_strata.core.errors import ImageError
from napari_strata.core.image import ArrayLike, Image
from napari_strata.io.blocks import planes, read_block, stacked
from napari_strata.io.budget import check_expansion, check_memory
from napari_strata.io.layout import dimension_letters, resolve
from napari_strata.io.lazy import LAZY_BYTES, FileArray, reading
from napari_strata.io.libraries import library
from napari_strata.io.metadata import Calibration, calibrated
from napari_strata.io.paths import PathLike, content_of, existing, split_part, stem
from napari_strata.io.record import KEY, Loaded, Record
from napari_strata.io.series import check_series
from napari_strata.io.units import PIXEL, size_of
from napari_strata.io.vendors import Size

_LISTED = 8
"""Number of datasets in a message."""

_MOST_IMAGES = 64
"""Largest number of images of a file that are opened without being named."""

_WRITTEN = "exported_data"
"""Name of the dataset in a file that we write; ilastik uses the same."""

_SIDE = 256
"""Largest side of the chunks that we write."""

_TYPE_FLAGS = {"C": 1, "Z": 2, "Y": 2, "X": 2, "T": 8}
"""Kinds of axes in ``axistags``, as vigra numbers them."""

_PLUGINS = "hdf5plugin"
"""Package with the filters that HDF5 itself does not have."""


@dataclass(frozen=True)
class DatasetOpener:
    """Picklable function that opens a dataset of a file."""

    path: str
    name: str

    def __call__(self) -> tuple[ArrayLike, Callable[[], None]]:
        h5 = _open(Path(self.path))
        return h5[self.name], h5.close


def count(path: PathLike) -> int:
    """Count the images of a file; 1 if the path names a dataset."""
    with _opened(path) as h5:
        return len(_images(h5, path))


def load(
    path: PathLike,
    *,
    series: int | None = None,
    axes: str | None = None,
    lazy_above: int = LAZY_BYTES,
    labels: bool = False,
) -> Loaded:
    """Read a dataset of an HDF5 file.

    Parameters
    ----------
    path
        The file, or the file and a dataset, as ``file.h5:/raw``.
    series
        Index among the images of the file, if the path does not name one.
    axes
        Axes from the user.
    lazy_above
        Datasets with more bytes are read on demand.
    labels
        Not used.

    Raises
    ------
    ImageError
        When the file is missing or damaged, it has several images and none is named, or
        the axes are unknown.
    """
    file = existing(path)
    with _opened(path) as h5:
        names = _images(h5, path)
        dataset = _pick(h5, path, names, series)
        _check(dataset, file)
        shape = tuple(map(int, dataset.shape))
        dtype = dataset.dtype.newbyteorder("=")
        letters, sizes = _axes_of(dataset)
        layout = resolve(letters, shape, axes=axes, source=str(path))
        data: ArrayLike = FileArray(
            DatasetOpener(str(file), dataset.name), shape, shape=shape, dtype=dtype
        )
        if dataset.nbytes <= lazy_above:
            data = np.asarray(dataset[...], dtype)
        name = stem(file)
        if len(names) > 1:
            name += dataset.name.replace("/", " ")
        calibration = Calibration(sizes)
        image = calibrated(data, layout, calibration, name=name, source=path)
        record = Record.read(dataset.attrs.get(KEY))
    if record is None or sorted(record.axes) != sorted(image.axes):
        return image, None
    order = [record.axes.index(axis) for axis in image.axes]
    image = replace(
        image,
        scale=tuple(size_of(record.scale[i]) or 1.0 for i in order),
        units=tuple(record.units[i] for i in order),
        channel_names=record.channel_names,
    )
    return image, record.classes


def write(path: Path, image: Image, record: Record, *, dtype: np.dtype[Any]) -> None:
    """Write labels or probabilities as one dataset, plane by plane.

    The axes are T, Z, Y, X and C, as ilastik exports them. float16, which ilastik does
    not read, becomes float32. The record is stored in an attribute.
    """
    h5py = library("h5py", path)
    if dtype == np.float16:
        dtype = np.dtype(np.float32)
    letters = "".join(axis for axis in "TZYXC" if axis in image.axes)
    shape = tuple(image.size(axis) for axis in letters)
    chunks = tuple(
        min(_SIDE, image.size(axis)) if axis in "YX" else 1 for axis in letters
    )
    with h5py.File(path, "w") as h5:
        dataset = h5.create_dataset(
            _WRITTEN, shape, dtype, chunks=chunks, compression="gzip"
        )
        for plane in planes(image):
            index = dict(zip(stacked(image), plane, strict=True))
            place = tuple(index.get(axis, slice(None)) for axis in letters)
            block = read_block(image, plane, slice(None), slice(None))
            dataset[place] = block.astype(dtype)
        pixel = image.pixel_size
        tags = [
            {
                "key": axis.lower(),
                "typeFlags": _TYPE_FLAGS[axis],
                "resolution": pixel.get(axis, 0),
                "description": "",
            }
            for axis in letters
        ]
        dataset.attrs["axistags"] = json.dumps({"axes": tags})
        if image.pixel_unit == "micrometer":
            sizes = [pixel[axis] for axis in "ZYX" if axis in pixel]
            dataset.attrs["element_size_um"] = sizes
        dataset.attrs[KEY] = record.text()


def storage(path: PathLike, *, series: int | None = None) -> str:
    """Describe the storage, such as ``HDF5, /raw, gzip, chunks 1 x 64 x 64``."""
    with _opened(path) as h5:
        dataset = _pick(h5, path, _images(h5, path), series)
        chunks = " x ".join(map(str, dataset.chunks or ()))
        return (
            f"HDF5, {dataset.name}, {dataset.compression or 'not compressed'},"
            f" {f'chunks {chunks}' if chunks else 'contiguous'}"
        )


def _open(file: Path) -> Any:
    h5py = library("h5py", file)
    with suppress(ImportError):  # it registers more filters
        __import__(_PLUGINS)
    return h5py.File(file, "r")


@contextmanager
def _opened(path: PathLike) -> Iterator[Any]:
    file = existing(path)
    try:
        h5 = _open(file)
    except OSError as error:
        found = content_of(file)
        reason = f"found {found}" if found and "HDF5" not in found else str(error)
        raise ImageError(
            f"{file}: is not an HDF5 file that can be read ({reason}); if it was"
            " copied, copy it again."
        ) from None
    with h5, reading(file):
        yield h5


def _images(h5: Any, path: PathLike) -> list[str]:
    """Return the names of the datasets that are images, or of the one that is named."""
    file, part = split_part(path)
    inside: list[str] = []
    images: list[str] = []

    def visit(name: str, node: Any) -> bool | None:
        shape = getattr(node, "shape", None)
        if shape is not None:
            inside.append(f"/{name} {shape} {node.dtype}")
            if 2 <= len(shape) <= 5 and node.dtype.kind in "uifb":
                images.append(f"/{name}")
        return len(images) > _MOST_IMAGES or None

    if part:
        if getattr(h5.get(part), "shape", None):
            return [part]
        h5.visititems(visit)
        raise ImageError(
            f"{file}: has no dataset {part}; inside are {_listed(inside)}: choose one,"
            f" such as {file}:{(images or ['/raw'])[0]}."
        )
    h5.visititems(visit)
    if len(images) > _MOST_IMAGES or not images:
        count = f"more than {_MOST_IMAGES}" if images else "no"
        raise ImageError(
            f"{file}: found {count} datasets of 2 to 5 dimensions; inside are"
            f" {_listed(inside)}: name one, such as {file}:{(images or ['/raw'])[0]}."
        )
    return images


def _listed(inside: list[str]) -> str:
    more = f" and {len(inside) - _LISTED} more" if len(inside) > _LISTED else ""
    return (", ".join(inside[:_LISTED]) or "no datasets") + more


def _pick(h5: Any, path: PathLike, names: list[str], series: int | None) -> Any:
    if series is None and len(names) > 1:
        datasets = [f"{name} {h5[name].shape} {h5[name].dtype}" for name in names]
        raise ImageError(
            f"{path}: found {len(names)} images ({_listed(datasets)}); choose one, as"
            f" {path}:{names[0]}."
        )
    check_series(path, series, count=len(names))
    return h5[names[series or 0]]


def _check(dataset: Any, file: Path) -> None:
    """Refuse datasets whose pixels are not in the file, or cannot be decoded."""
    if dataset.dtype.kind not in "uifb":
        raise ImageError(
            f"{file}: found {dataset.name} of dtype {dataset.dtype}; integers, floats"
            " and bool can be read."
        )
    if dataset.is_virtual:
        sources = {source.file_name for source in dataset.virtual_sources()}
        missing = sorted(s for s in sources if not (file.parent / s).exists())
        if missing:
            raise ImageError(
                f"{file}: the pixels of {dataset.name} are in {_listed(missing)}, which"
                " is not there; copy these files to the same folder."
            )
        return
    stored = dataset.id.get_storage_size()
    check_expansion(file, dataset.nbytes, stored)
    start = dataset.id.get_offset()
    if start is not None and start + stored > file.stat().st_size:
        raise ImageError(f"{file}: is truncated: copy it again.")
    if dataset.chunks:
        _check_filters(dataset, file)
        chunk = math.prod(dataset.chunks) * dataset.dtype.itemsize
        if chunk > 4 * dataset.nbytes:
            check_memory(file, chunk, "one chunk")


def _check_filters(dataset: Any, file: Path) -> None:
    h5z = library("h5py", file).h5z
    filters = dataset.id.get_create_plist()
    for number in range(filters.get_nfilters()):
        code, _, _, name = filters.get_filter(number)
        if not h5z.filter_avail(code):
            title = name.decode(errors="replace").split(";")[0] or f"filter {code}"
            raise ImageError(
                f"{file}: {dataset.name} is compressed by {title}, which needs the"
                f" package {_PLUGINS}; run pip install {_PLUGINS}."
            )


def _axes_of(dataset: Any) -> tuple[str, dict[str, Size]]:
    """Return letters and pixel sizes of a dataset; Q for axes without a name."""
    letters = ""
    sizes: dict[str, Size] = {}
    with suppress(Exception):  # attributes of other programs, which may be anything
        tags = json.loads(dataset.attrs["axistags"])["axes"]
        letters = dimension_letters([tag["key"] for tag in tags], dataset.ndim)
        for letter, tag in zip(letters, tags, strict=True):
            if step := size_of(tag.get("resolution")):
                sizes[letter] = (step, PIXEL)
    if not letters:
        names = [dimension.label for dimension in dataset.dims]
        letters = dimension_letters(names, dataset.ndim)
    if not letters:
        letters = _usual_letters(dataset.shape)
    with suppress(Exception):
        steps = np.ravel(dataset.attrs["element_size_um"])
        for axis, value in zip("ZYX"[-len(steps) :], steps, strict=True):
            if step := size_of(value):
                sizes[axis] = (step, "micrometer")
        # Nothing but the volume: its planes are along Z.
        letters = letters.replace("Q", "Z") if letters == "QYX" else letters
    return letters, sizes


def _usual_letters(shape: tuple[int, ...]) -> str:
    """Return letters for axes without names; all unknown if colours may be last."""
    if len(shape) == 2:
        return "YX"
    if len(shape) == 3 and shape[-1] > 4:
        return "QYX"
    return "Q" * len(shape)
