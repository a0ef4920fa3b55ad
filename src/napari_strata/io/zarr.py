"""Reading of OME-Zarr up to 0.5, and writing of 0.5."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import ZstdCodec
from zarr.storage import LocalStore, WrapperStore

from napari_strata.core.classes import ClassMap
from napari_strata.core.errors import ImageError
from napari_strata.core.image import ArrayLike, Image
from napari_strata.io.blocks import planes, read_block
from napari_strata.io.budget import check_expansion, check_memory
from napari_strata.io.layout import dimension_letters, resolve
from napari_strata.io.lazy import LAZY_BYTES, FileArray, reading
from napari_strata.io.paths import ZARR_FILES, PathLike, existing, is_zarr, stem
from napari_strata.io.record import KEY, Loaded, Record, as_labels
from napari_strata.io.series import check_series
from napari_strata.io.units import PIXEL, size_of, unit_name

CHUNK = 512
"""Side of a chunk in pixels."""

SHARD = 4096
"""Side of a shard in pixels. Each shard is written once, as a block of one plane."""

SMALLEST_RESOLUTION = 1024
"""Lower resolutions are added until height and width are at most this many pixels.

They also end when a shard is no larger than a chunk.
"""

FAST_PIPELINE = "zarrs.ZarrsCodecPipeline"
"""Codecs in Rust from the package zarrs.

They are several times as fast as zarr's; see docs/performance.md.
"""

BLOSC_HEADER = 16
"""Bytes of the header of a chunk of blosc; the last four are the chunk's length."""

_LISTED = 8
"""Number of images in a message."""

_KINDS = {"T": "time", "C": "channel"}


class _BloscStore(WrapperStore[LocalStore]):
    """Store whose chunks of blosc are refused if they are not as long as they say.

    blosc trusts the length in the header of a chunk, and would crash.
    """

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        """Read a file of the store."""
        value = await super().get(key, prototype, byte_range)
        if value is None or Path(key).name in ZARR_FILES:
            return value
        header = value[:BLOSC_HEADER].to_bytes()
        stated = int.from_bytes(header[12:], "little")
        if len(header) < BLOSC_HEADER or stated != len(value):
            raise ValueError(f"the chunk {key} is damaged")
        return value


@dataclass(frozen=True)
class ZarrOpener:
    """Picklable function that opens an array of a store."""

    path: str
    inner: str

    def __call__(self) -> tuple[ArrayLike, Callable[[], None]]:
        array: Any = zarr.open_array(self.path, path=self.inner, mode="r")
        if array.metadata.zarr_format == 3:  # zarrs cannot read all arrays of format 2
            with zarr.config.set(_pipeline()):
                array = zarr.open_array(self.path, path=self.inner, mode="r")
        elif getattr(array.metadata.compressor, "codec_id", "") == "blosc":
            store = _BloscStore(LocalStore(self.path, read_only=True))
            array = zarr.open_array(store, path=self.inner, mode="r")
        return array, lambda: None


@dataclass(frozen=True)
class _Level:
    """Array of a store, with its axes, pixel sizes and names."""

    inner: str
    axes: str
    scale: tuple[float, ...]
    units: tuple[str, ...]
    names: tuple[str, ...] = ()
    title: str = ""
    record: Record | None = None
    is_labels: bool = False


def count(path: PathLike) -> int:
    """Count the multiscale images of a store."""
    return len(_images(existing(path)))


def load(
    path: PathLike,
    *,
    series: int | None = None,
    axes: str | None = None,
    lazy_above: int = LAZY_BYTES,
    labels: bool = False,
) -> Loaded:
    """Read the full resolution of an image of an OME-Zarr store, or a zarr array.

    Parameters
    ----------
    path
        Folder of the store, or of a group in it.
    series
        Index of the image.
    axes
        Axes from the user; needed for an array without dimension names.
    lazy_above
        Arrays with more bytes are read on demand.
    labels
        Not used.

    Raises
    ------
    ImageError
        When the folder is missing or is not a zarr store, or its axes are unknown.
    """
    store_path = existing(path)
    return _load(store_path, _pick(store_path, series)[0], axes, lazy_above)


def pyramid(
    path: PathLike,
    *,
    series: int | None = None,
    axes: str | None = None,
    lazy_above: int = LAZY_BYTES,
) -> list[Image]:
    """Read every resolution of an image, the full resolution first."""
    store_path = existing(path)
    return [
        _load(store_path, level, axes, lazy_above)[0]
        for level in _pick(store_path, series)
    ]


def storage(path: PathLike, *, series: int | None = None) -> str:
    """Describe the storage, such as ``OME-Zarr, format 3, chunks 1 x 256 x 256``."""
    levels = _pick(existing(path), series)
    array = _array(existing(path), levels[0].inner)
    more = f", {len(levels)} resolutions" if len(levels) > 1 else ""
    chunks = " x ".join(map(str, array.chunks))
    return (
        f"{'OME-Zarr' if levels[0].axes else 'zarr'}, format"
        f" {array.metadata.zarr_format}, chunks {chunks}{more}"
    )


def write(path: Path, image: Image, record: Record, *, dtype: np.dtype[Any]) -> None:
    """Write an image as OME-Zarr 0.5, shard by shard.

    Colours and names of labels are in ``image-label``. Large planes have several
    resolutions. Each contains every second pixel of the one before, because labels
    cannot be averaged.
    """
    group = zarr.open_group(path, mode="w", zarr_format=3)
    height, width = record.shape[-2:]
    levels = [
        _create_level(group, k, record, dtype=dtype)
        for k in range(_resolutions(height, width))
    ]
    sides = tuple(min(SHARD, n) for n in (height, width))
    for plane in planes(image):
        for top in range(0, height, sides[0]):
            for left in range(0, width, sides[1]):
                rows, columns = (
                    slice(top, min(top + sides[0], height)),
                    slice(left, min(left + sides[1], width)),
                )
                block = read_block(image, plane, rows, columns).astype(dtype)
                for k, level in enumerate(levels):
                    small = np.ascontiguousarray(block[:: 2**k, :: 2**k])
                    position = [
                        slice(n >> k, (n >> k) + size)
                        for n, size in zip((top, left), small.shape, strict=True)
                    ]
                    with _system_errors():
                        level[(*plane, *position)] = small
    group.attrs.update({"ome": _ome(record, len(levels)), KEY: record.text()})


def _resolutions(height: int, width: int) -> int:
    count = 1
    while (
        max(height, width) > SMALLEST_RESOLUTION * 2 ** (count - 1)
        and SHARD >> count >= CHUNK
    ):
        count += 1
    return count


def _create_level(group: Any, k: int, record: Record, *, dtype: np.dtype[Any]) -> Any:
    """Create the array of resolution `k`.

    Its shards cover the same area as those of the full resolution, so that a block
    belongs to a single shard of each level.
    """
    lead = (1,) * (len(record.shape) - 2)
    sides = [-(-n // 2**k) for n in record.shape[-2:]]
    shards = [min(SHARD >> k, -(-n // CHUNK) * CHUNK) for n in sides]
    with zarr.config.set(_pipeline()):
        return group.create_array(
            str(k),
            shape=(*record.shape[:-2], *sides),
            dtype=dtype,
            chunks=(*lead, CHUNK, CHUNK),
            shards=(*lead, *shards),
            compressors=ZstdCodec(level=1),
            dimension_names=list(record.axes.lower()),
        )


@contextmanager
def _system_errors() -> Iterator[None]:
    """Turn errors of zarrs about a full disk, for example, into `OSError`."""
    try:
        yield
    except RuntimeError as error:
        if (match := re.search(r"os error (\d+)", str(error))) is None:
            raise
        number = int(match[1])
        raise OSError(number, os.strerror(number)) from error


def _pipeline() -> dict[str, str]:
    """Return zarr's setting for the fast codecs if zarrs is installed.

    It takes effect when an array is opened.
    """
    try:
        import zarrs  # noqa: F401 - zarrs 0.2.0 registers its codecs when imported
    except ImportError:
        return {}
    return {"codec_pipeline.path": FAST_PIPELINE}


def _ome(record: Record, resolutions: int) -> dict[str, Any]:
    axes = []
    for axis_letter, unit in zip(record.axes, record.units, strict=True):
        axis = {"name": axis_letter.lower(), "type": _KINDS.get(axis_letter, "space")}
        axes.append(
            axis
            if axis_letter == "C" or unit_name(unit) == PIXEL
            else axis | {"unit": unit_name(unit)}
        )
    scale = [s if math.isfinite(s) and s > 0 else 1.0 for s in record.scale]
    datasets = []
    for k in range(resolutions):
        steps = [
            {"type": "scale", "scale": [*scale[:-2], *(s * 2**k for s in scale[-2:])]}
        ]
        datasets.append({"path": str(k), "coordinateTransformations": steps})
    ome: dict[str, Any] = {
        "version": "0.5",
        "multiscales": [{"name": record.name, "axes": axes, "datasets": datasets}],
    }
    if record.channel_names:
        ome["omero"] = {"channels": [{"label": name} for name in record.channel_names]}
    return ome | (
        {"image-label": _image_label(record.classes)} if record.classes else {}
    )


def _image_label(classes: ClassMap) -> dict[str, Any]:
    table = classes.table()
    rgba = [
        [int(row["color"][i : i + 2], 16) for i in (1, 3, 5)] + [255] for row in table
    ]
    return {
        "colors": [
            {"label-value": row["value"], "rgba": c}
            for row, c in zip(table, rgba, strict=True)
        ],
        "properties": [
            {"label-value": row["value"], "name": row["name"]} for row in table
        ],
    }


def _load(path: Path, level: _Level, axes: str | None, lazy_above: int) -> Loaded:
    array = _array(path, level.inner)
    dtype = np.dtype(array.dtype).newbyteorder("=")
    if dtype.kind not in "uifb":
        raise ImageError(
            f"{path}: found pixels of dtype {dtype}; integers, floats and bool can be"
            " read."
        )
    shape = tuple(array.shape)
    chunk = math.prod(array.chunks) * dtype.itemsize
    if chunk > 4 * array.size * dtype.itemsize:
        check_memory(path, chunk, "one chunk")
        check_expansion(path, chunk, max(array.size * dtype.itemsize, 1), limit=1000)
    data: ArrayLike = FileArray(
        ZarrOpener(str(path), level.inner), shape, shape=shape, dtype=dtype
    )
    if array.size * dtype.itemsize <= lazy_above:
        data = np.asarray(data)
    record = level.record
    if record and not axes and record.shape == shape:
        return record.image(data, source=str(path)), record.classes
    letters = level.axes or {2: "YX"}.get(len(shape), "Q" * len(shape))
    layout = resolve(letters, shape, axes=axes, source=str(path))
    image_axes = layout.axes.replace("S", "C")
    sizes = dict(
        zip(level.axes, zip(level.scale, level.units, strict=True), strict=True)
    )
    calibration = [sizes.get(a, (1.0, PIXEL)) for a in image_axes]
    channels = shape[image_axes.index("C")] if "C" in image_axes else 0
    image = Image(
        data,
        image_axes,
        scale=tuple(s for s, _ in calibration),
        units=tuple(u for _, u in calibration),
        name=level.title or stem(path),
        channel_names=level.names if len(level.names) == channels else (),
        source=str(path),
        notes=layout.notes,
    )
    if level.is_labels and dtype.kind in "uib":
        image = as_labels(image)
    return image, record.classes if record else None


def _pick(path: Path, index: int | None) -> list[_Level]:
    images = _images(path)
    if index is None:
        if len(images) > 1:
            names = [
                f"{i}: {levels[0].title or levels[0].inner}"
                for i, levels in enumerate(images)
            ]
            raise ImageError(
                f"{path}: found {len(images)} images, called series"
                f" ({'; '.join(names[:_LISTED])}); choose one, as --series 0"
                " (series=0)."
            )
        return images[0]
    check_series(path, index, count=len(images))
    return images[index]


def _array(path: Path, inner: str) -> Any:
    with reading(path):
        return zarr.open_array(path, path=inner, mode="r")


def label_groups(path: PathLike) -> list[str]:
    """Return the paths of the label images that belong to the image of a store."""
    store_path = existing(path)
    groups = []
    for folder in (store_path / "labels", store_path / "0" / "labels"):
        if not is_zarr(folder):
            continue
        with suppress(
            Exception
        ):  # what is there is listed; damage is met when it is read
            names = _ome_attributes(zarr.open_group(folder, mode="r")).get("labels", ())
            groups += [str(folder / str(name)) for name in names]
    return [group for group in groups if is_zarr(Path(group))]


def _images(path: Path) -> list[list[_Level]]:
    """Return the levels of every image of a store."""
    try:
        node: Any = zarr.open(path, mode="r")
    except Exception as error:  # errors of zarr, json or the operating system
        text = " ".join(str(error).split())[:120]
        raise ImageError(
            f"{path}: is not a zarr store that can be read ({text})."
        ) from error
    if isinstance(node, zarr.Array):
        return [[_array_level(node)]]
    images = _multiscales(node, "")
    if not images:
        numbers = sorted(int(key) for key, _ in node.groups() if key.isdigit())
        images = [
            image
            for number in numbers
            for image in _multiscales(node[str(number)], f"{number}/")
        ]
    if not images:
        raise _without_image(path, node)
    return images


def _array_level(array: Any) -> _Level:
    """Return the level of an array, whose dimensions may be named."""
    attributes: Any = array.attrs
    names = (
        getattr(array.metadata, "dimension_names", None)
        or attributes.get("_ARRAY_DIMENSIONS")
        or ()
    )
    letters = ""
    if isinstance(names, (list, tuple)):
        letters = dimension_letters(names, array.ndim)
    ones = (1.0,) * len(letters)
    record = Record.read(attributes.get(KEY))
    return _Level("", letters, ones, (PIXEL,) * len(letters), record=record)


def _without_image(path: Path, node: Any) -> ImageError:
    """Return the error for a group without an image; it lists what is inside."""
    ome = _ome_attributes(node)
    plate = ome.get("plate")
    if isinstance(plate, Mapping):
        fields = []
        for well in plate.get("wells", ())[:_LISTED]:
            fields += [
                f"{well['path']}/{key}" for key, _ in node[well["path"]].groups()
            ]
        return ImageError(
            f"{path}: is a plate; give the path of one field, such as"
            f" {path / fields[0] if fields else path} (fields: "
            f"{', '.join(fields[:_LISTED])})."
        )
    inside = [f"{key} {tuple(a.shape)} {a.dtype}" for key, a in node.arrays()]
    inside += [f"{key}/" for key, _ in node.groups()]
    if not inside:
        return ImageError(
            f"{path}: is a zarr group without OME-Zarr multiscales or arrays; give the"
            " path of an image."
        )
    first = inside[0].split(" ")[0]
    return ImageError(
        f"{path}: is a zarr group without OME-Zarr multiscales; inside are"
        f" {', '.join(inside[:_LISTED])}: give the path of one, such as {path / first}."
    )


def _ome_attributes(group: Any) -> Mapping[str, Any]:
    attributes = dict(group.attrs)
    ome = attributes.get("ome", attributes)
    return ome if isinstance(ome, Mapping) else {}


def _multiscales(group: Any, prefix: str) -> list[list[_Level]]:
    """Return the levels of the images in a group. Raises `ImageError` for damage."""
    try:
        return _parse_multiscales(group, prefix)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ImageError(
            f"{group.store.root}: its OME-Zarr metadata are damaged"
            f" ({type(error).__name__}: {error}); write it again, or give the path of"
            " an array in it."
        ) from None


def _parse_multiscales(group: Any, prefix: str) -> list[list[_Level]]:
    ome = _ome_attributes(group)
    names = _channel_names(ome)
    images = []
    for scales in ome.get("multiscales", ()):
        axes, units = _axes_of(scales.get("axes", ("t", "c", "z", "y", "x")))
        common_scale = _scale(scales, len(axes))
        levels = []
        for i, data in enumerate(scales["datasets"]):
            own_scale = _scale(data, len(axes))
            levels.append(
                _Level(
                    prefix + data["path"],
                    axes,
                    tuple(a * b for a, b in zip(own_scale, common_scale, strict=True)),
                    units,
                    names,
                    str(scales.get("name") or "").strip("/"),
                    Record.read(group.attrs.get(KEY)) if i == 0 else None,
                    "image-label" in ome,
                )
            )
        if levels:
            images.append(levels)
    return images


def _channel_names(ome: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names in the display settings, which may be damaged; then none."""
    with suppress(AttributeError, TypeError):
        channels = ome.get("omero", {}).get("channels", ())
        return tuple(
            str(channel.get("label") or f"channel {i}")
            for i, channel in enumerate(channels)
        )
    return ()


def _axes_of(axes: Any) -> tuple[str, tuple[str, ...]]:
    """Return letters and units of axes, which are dicts since 0.4 and names in 0.3."""
    axis_list = [axis if isinstance(axis, Mapping) else {"name": axis} for axis in axes]
    letters = "".join(str(axis["name"])[:1].upper() for axis in axis_list)
    units = tuple(
        unit_name(axis.get("unit")) if a != "C" else PIXEL
        for a, axis in zip(letters, axis_list, strict=True)
    )
    return letters, units


def _scale(entry: Mapping[str, Any], ndim: int) -> tuple[float, ...]:
    for step in entry.get("coordinateTransformations", ()):
        if step.get("type") == "scale" and len(step.get("scale", ())) == ndim:
            # A step of 0 or NaN is none; its sign is a direction.
            return tuple(size_of(value) or 1.0 for value in step["scale"])
    return (1.0,) * ndim
