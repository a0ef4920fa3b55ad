"""Image: an array of any kind with its axes, pixel size, units and names, read lazily region by region.

Whatever the array is (numpy, memmap, dask, zarr) and however its dimensions are ordered, `Image.read` answers with
C(Z)YX, so nothing above this module ever transposes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from napari_strata.core import axes as _axes
from napari_strata.core.classes import ClassMap
from napari_strata.core.errors import ImageError

Array = np.ndarray[Any, Any]
Region = Mapping[str, int | slice]
"""Part of an image: axis letter -> index or slice. An axis that is not named is taken whole."""


class ArrayLike(Protocol):
    """What an image needs of its data: numpy, memmap, dask and zarr arrays all have it."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> Any: ...
    def __getitem__(self, key: Any, /) -> Any: ...


@dataclass(frozen=True, eq=False)
class Image:
    """An image and what its numbers mean.

    Parameters
    ----------
    data
        array of any kind; never copied, never transposed.
    axes
        one letter of T, C, Z, Y, X per dimension of `data` (S is taken as C). May be left out for 2D data only.
    scale
        pixel size per dimension, in `units`; 1 where unknown (and for C).
    units
        unit name per dimension, such as "micrometer"; "pixel" where unknown.
    name, channel_names, source
        for people and reports; `source` is the path it was read from, or None.
    notes
        what a reader decided that the user should see ("page axis taken as Z").

    Raises
    ------
    ImageError
        when axes, scale or units do not fit the shape.
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
        given = self.axes or ("YX" if len(shape) == 2 else "")
        if not given:
            raise ImageError(
                f"{self.name}: the axes of an array of shape {shape} cannot be known; "
                f"name them, for example axes={_axes.default(shape)!r}."
            )
        letters = _axes.parse(given, shape)
        if 0 in shape:
            raise ImageError(
                f"{self.name}: found shape {shape}, an image without pixels; choose "
                "another file or region."
            )
        object.__setattr__(self, "axes", letters)
        for name, default in (("scale", 1.0), ("units", "pixel")):
            value = tuple(getattr(self, name)) or (default,) * len(shape)
            if len(value) != len(shape):
                raise ImageError(
                    f"{self.name}: found {len(value)} {name} for {len(shape)} "
                    f"dimensions ({letters})."
                )
            object.__setattr__(self, name, value)

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
        """Regions of the single YX planes, T slowest, then Z."""
        return self.regions("YX")

    def regions(self, axes: str) -> Iterator[dict[str, int | slice]]:
        """Regions of the single planes (``axes="YX"``) or volumes (``"ZYX"``), T slowest, then Z."""
        leading = [a for a in "TZ" if a in self.axes and a not in axes]
        for index in np.ndindex(*(self.size(a) for a in leading)):
            yield dict(zip(leading, map(int, index), strict=True))

    def read(self, region: Region | None = None) -> Array:
        """Read a region as an in-memory array of dimensions C, (Z,) Y, X, in the image's own dtype.

        T must be an index (or the image must have one time point at most). Z stays a dimension unless it is an index
        or the image has none. C is always there, of length 1 when the image has no channel axis.
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
        drop = tuple(
            i
            for i, a in enumerate(ordered)
            if a == "T" or (a == "Z" and isinstance(region.get("Z"), int))
        )
        array = array.squeeze(axis=drop)
        return array if "C" in ordered else array[None]

    def samples(
        self, *, planes: int = 8, side: int = 256, blocks: int = 4
    ) -> list[Array]:
        """Grey values of a few planes spread evenly over the image, each channels x pixels; the same at every call.

        Of a plane larger than `blocks` x `blocks` blocks of `side` pixels only such blocks are read, so that a huge
        lazy image costs no more than a small one.
        """
        every = list(self.planes())
        chosen = [
            every[i]
            for i in sorted(
                {
                    round(x)
                    for x in np.linspace(0, len(every) - 1, min(planes, len(every)))
                }
            )
        ]
        rows, columns = (_blocks(self.size(a), side, blocks) for a in "YX")
        parts = []
        for plane in chosen:
            found = [
                self.read({**plane, "Y": y, "X": x}) for y in rows for x in columns
            ]
            parts.append(np.concatenate([f.reshape(len(f), -1) for f in found], axis=1))
        return parts

    def region_index(self, region: Region) -> tuple[slice, ...]:
        """Index of `region` into an array of this image's `label_axes`."""
        return tuple(_as_slice(region.get(a)) for a in self.label_axes)

    def describe(self) -> str:
        """One line for people: ``sand, 8 x 1024 x 996 (ZYX), uint16, 2.1 micrometer``."""
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
        known = (
            ""
            if self.pixel_unit == "pixel" and same and pixel["X"] == 1
            else f", {size} {self.pixel_unit}"
        )
        if (
            len(set(units)) > 1
        ):  # a depth that the file does not state, beside a width that it does
            known = ", " + " x ".join(
                f"{v:g} {unit}" for v, unit in zip(pixel.values(), units, strict=True)
            )
        return f"{self.name}, {sizes} ({self.axes}), {self.dtype}{known}"

    def labels_like(
        self, data: ArrayLike, *, classes: ClassMap | None = None, name: str = ""
    ) -> LabelImage:
        """Labels with this image's axes (less C), scale, units and name around `data`."""
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
        """The same data under axes that the user named."""
        return replace(self, axes=_axes.parse(letters, self.shape), notes=())


@dataclass(frozen=True, eq=False)
class LabelImage(Image):
    """An image whose numbers are label values, with the class map they belong to when it is known."""

    classes: ClassMap | None = None


@dataclass(frozen=True, eq=False)
class AnnotatedImage:
    """An image and its labels, the unit that training and evaluation work on.

    Raises
    ------
    ImageError
        when the labels' sizes along T, Z, Y or X differ from the image's.
    """

    image: Image
    labels: LabelImage
    name: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name or self.image.name)
        sizes = {a: (self.image.size(a), self.labels.size(a)) for a in "TZYX"}
        if wrong := [f"{a}: {i} against {j}" for a, (i, j) in sizes.items() if i != j]:
            raise ImageError(
                f"{self.name}: image {self.image.shape} ({self.image.axes}) and labels "
                f"{self.labels.shape} "
                f"({self.labels.axes}) differ along {'; '.join(wrong)}; they must "
                "cover the same pixels."
            )


def require_volume(image: Image) -> None:
    """Refuse what a 3D network cannot take.

    Raises
    ------
    ImageError
        when the image has no second plane.
    """
    if image.size("Z") < 2:
        raise ImageError(
            f"{image.name}: found a single plane ({image.axes}), and the network is "
            "3D; give a stack with an axis Z "
            "(check --axes), or take a 2D recipe."
        )


def as_pairs(pairs: AnnotatedImage | Sequence[AnnotatedImage]) -> list[AnnotatedImage]:
    """One pair or several, as a list."""
    return [pairs] if isinstance(pairs, AnnotatedImage) else list(pairs)


def _blocks(length: int, side: int, count: int) -> list[slice]:
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
