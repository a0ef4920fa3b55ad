"""Image: an array with its axes, pixel size, units and names, read region by region.

Whatever the array is (numpy, memmap, dask, zarr) and however its dimensions are
ordered, `Image.read` returns C(Z)YX, so no other module transposes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from napari_strata.core import axes as _axes
from napari_strata.core.classes import ClassMap
from napari_strata.core.errors import ImageError

Array = np.ndarray[Any, Any]
Region = Mapping[str, int | slice]
"""Part of an image: index or slice by axis. Axes that are not named are taken whole."""


class ArrayLike(Protocol):
    """Array of any kind: numpy, memmap, dask and zarr arrays all are."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> Any: ...
    def __getitem__(self, key: Any, /) -> Any: ...


@dataclass(frozen=True, eq=False)
class Image:
    """An array of grey values and its metadata.

    Parameters
    ----------
    data
        Array of any kind; never copied, never transposed.
    axes
        One letter of T, C, Z, Y, X per dimension of `data` (S is taken as C). May be
        left out for 2D data only.
    scale
        Pixel size per dimension, in `units`; 1 where unknown (and for C).
    units
        Unit name per dimension, such as "micrometer"; "pixel" where unknown.
    name, channel_names, source
        For messages and reports; `source` is the path it was read from, or None.
    notes
        Decisions of a reader that the user should see ("page axis taken as Z").

    Raises
    ------
    ImageError
        When axes, scale or units do not fit the shape.
    """

    data: ArrayLike
    axes: str = ""
    scale: tuple[float, ...] = ()
    units: tuple[str, ...] = ()
    name: str = "image"
    channel_names: tuple[str, ...] = ()
    source: str | None = None
    notes: tuple[str, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        shape = tuple(self.data.shape)
        axes = self.axes
        if not axes and len(shape) == 2:
            axes = "YX"
        if not axes:
            raise ImageError(
                f"{self.name}: the axes of an array of shape {shape} cannot be known; "
                f"name them, for example axes={_axes.default(shape)!r}."
            )
        letters = _axes.parse(axes, shape)
        if 0 in shape:
            raise ImageError(
                f"{self.name}: found shape {shape}, an image without pixels; choose "
                "another file or region."
            )
        object.__setattr__(self, "axes", letters)
        for name, default in (("scale", 1.0), ("units", "pixel")):
            value = tuple(getattr(self, name)) or len(shape) * (default,)
            if len(value) != len(shape):
                raise ImageError(
                    f"{self.name}: found {len(value)} {name} for {len(shape)} "
                    f"dimensions ({letters})."
                )
            object.__setattr__(self, name, value)
        if not all(0 < float(step) < math.inf for step in self.scale):
            raise ImageError(
                f"{self.name}: found the scale {self.scale}; each step is a finite"
                " number above 0 (1 where it is unknown)."
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of `data`, in the order of `axes`."""
        return tuple(self.data.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        dtype: np.dtype[Any] = np.dtype(self.data.dtype)
        return dtype

    def size(self, letter: str) -> int:
        """Length along one axis; 1 when the image has no such axis."""
        return self.shape[self.axes.index(letter)] if letter in self.axes else 1

    @property
    def channels(self) -> int:
        return self.size("C")

    @property
    def pixel_size(self) -> dict[str, float]:
        """Pixel size along Z, Y and X (those the image has)."""
        return {
            a: float(s)
            for a, s in zip(self.axes, self.scale, strict=True)
            if a in "ZYX"
        }

    @property
    def pixel_unit(self) -> str:
        """Unit of the pixel size along X."""
        return self.units[self.axes.index("X")]

    @property
    def label_axes(self) -> str:
        """The axes that labels of this image have: its own, less C."""
        return _axes.without(self.axes, "C")

    @property
    def label_shape(self) -> tuple[int, ...]:
        return tuple(self.size(a) for a in self.label_axes)

    def planes(self) -> Iterator[dict[str, int | slice]]:
        """Iterate over the regions of single YX planes, T slowest, then Z."""
        return self.regions("YX")

    def regions(self, axes: str) -> Iterator[dict[str, int | slice]]:
        """Iterate over the regions of planes (``axes="YX"``) or volumes (``"ZYX"``).

        T is slowest, then Z.
        """
        leading = [a for a in "TZ" if a in self.axes and a not in axes]
        for index in np.ndindex(*(self.size(a) for a in leading)):
            yield dict(zip(leading, map(int, index), strict=True))

    def read(self, region: Region | None = None) -> Array:
        """Read a region as an array in memory, C(Z)YX, in the image's own dtype.

        T must be an index (or the image must have one time point at most). Z stays a
        dimension unless it is an index or the image has none. C is always there, of
        length 1 when the image has no channel axis.
        """
        region = dict(region or {})
        if self.size("T") == 1:
            region.setdefault("T", 0)
        elif not isinstance(region.get("T"), int):
            raise ImageError(
                f"{self.name} has {self.size('T')} time points: read one at a time, "
                "T=index."
            )
        array = np.asarray(
            self.data[tuple(_as_slice(region.get(a)) for a in self.axes)]
        )
        array = _axes.to_canonical(array, self.axes)
        ordered = _axes.canonical(self.axes)
        dropped = {"T"}
        if isinstance(region.get("Z"), int):
            dropped.add("Z")
        array = array.squeeze(
            axis=tuple(i for i, axis in enumerate(ordered) if axis in dropped)
        )
        return array if "C" in ordered else array[None]

    def samples(
        self, *, planes: int = 8, side: int = 256, blocks: int = 4
    ) -> list[Array]:
        """Read grey values of a few planes spread evenly over the image.

        They are the same at every call. Of a plane larger than `blocks` x `blocks`
        blocks of `side` pixels only such blocks are read, so that a huge lazy image
        costs no more than a small one.

        Returns
        -------
        list of array
            Channels x pixels of each plane.
        """
        regions = list(self.planes())
        positions = np.linspace(0, len(regions) - 1, min(planes, len(regions)))
        rows = spread_slices(self.size("Y"), side, blocks)
        columns = spread_slices(self.size("X"), side, blocks)
        samples = []
        for number in sorted({round(position) for position in positions}):
            pixels = []
            for y in rows:
                for x in columns:
                    block = self.read({**regions[number], "Y": y, "X": x})
                    pixels.append(block.reshape(len(block), -1))
            samples.append(np.concatenate(pixels, axis=1))
        return samples

    def region_index(self, region: Region) -> tuple[slice, ...]:
        """Return the index of `region` into an array of this image's `label_axes`."""
        return tuple(_as_slice(region.get(a)) for a in self.label_axes)

    def describe(self) -> str:
        """Describe it: ``sand, 8 x 1024 x 996 (ZYX), uint16, 2.1 micrometer``."""
        sizes = " x ".join(map(str, self.shape))
        pixel = self.pixel_size
        units = [
            unit
            for axis, unit in zip(self.axes, self.units, strict=True)
            if axis in pixel
        ]
        same = len({round(v, 9) for v in pixel.values()}) == 1
        size = (
            f"{pixel['X']:g}" if same else " x ".join(f"{v:g}" for v in pixel.values())
        )
        pixel_text = (
            ""
            if self.pixel_unit == "pixel" and same and pixel["X"] == 1
            else f", {size} {self.pixel_unit}"
        )
        if (
            len(set(units)) > 1
        ):  # a depth that the file does not state, beside a width that it does
            pixel_text = ", " + " x ".join(
                f"{v:g} {unit}" for v, unit in zip(pixel.values(), units, strict=True)
            )
        return f"{self.name}, {sizes} ({self.axes}), {self.dtype}{pixel_text}"

    def labels_like(
        self, data: ArrayLike, *, classes: ClassMap | None = None, name: str = ""
    ) -> LabelImage:
        """Make labels of `data` with axes (less C), scale and name of this image."""
        keep = [i for i, a in enumerate(self.axes) if a != "C"]
        return LabelImage(
            data,
            self.label_axes,
            scale=tuple(self.scale[i] for i in keep),
            units=tuple(self.units[i] for i in keep),
            name=name or self.name,
            classes=classes,
        )

    def with_axes(self, letters: str) -> Image:
        """Return the same data under axes that the user named."""
        return replace(self, axes=_axes.parse(letters, self.shape), notes=())


@dataclass(frozen=True, eq=False)
class LabelImage(Image):
    """Image of label values, with its class map if it is known."""

    classes: ClassMap | None = None


@dataclass(frozen=True, eq=False)
class AnnotatedImage:
    """An image and its labels.

    Raises
    ------
    ImageError
        When the labels' sizes along T, Z, Y or X differ from the image's.
    """

    image: Image
    labels: LabelImage
    name: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name or self.image.name)
        wrong = []
        for axis in "TZYX":
            size, label_size = self.image.size(axis), self.labels.size(axis)
            if size != label_size:
                wrong.append(f"{axis}: {size} against {label_size}")
        if wrong:
            raise ImageError(
                f"{self.name}: image {self.image.shape} ({self.image.axes}) and labels "
                f"{self.labels.shape} "
                f"({self.labels.axes}) differ along {'; '.join(wrong)}; they must "
                "cover the same pixels."
            )


def require_volume(image: Image) -> None:
    """Refuse an image that a 3D network cannot take.

    Raises
    ------
    ImageError
        When the image has no second plane.
    """
    if image.size("Z") < 2:
        raise ImageError(
            f"{image.name}: found a single plane ({image.axes}), and the network is "
            "3D; give a stack with an axis Z "
            "(check --axes), or take a 2D recipe."
        )


def as_pairs(pairs: AnnotatedImage | Sequence[AnnotatedImage]) -> list[AnnotatedImage]:
    """Return one or several pairs as a list."""
    return [pairs] if isinstance(pairs, AnnotatedImage) else list(pairs)


def spread_slices(length: int, side: int = 256, count: int = 4) -> list[slice]:
    """Return `count` slices of `side`, spread evenly; one slice if they cover all."""
    if length <= side * count:
        return [slice(0, length)]
    return [
        slice(int(start), int(start) + side)
        for start in np.linspace(0, length - side, count)
    ]


def _as_slice(part: int | slice | None) -> slice:
    if part is None:
        return slice(None)
    return part if isinstance(part, slice) else slice(part, part + 1 or None)
