"""Sources: the layers and files that jobs name, opened; and parts of them, still lazy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from napari_strata.core.errors import ImageError
from napari_strata.core.image import AnnotatedImage, Array, ArrayLike, Image, LabelImage
from napari_strata.core.spec import ModelSpec
from napari_strata.core.tiling import read_range, shared_stride
from napari_strata.data.neighbours import with_neighbours
from napari_strata.io import read_image, read_labels, read_pairs
from napari_strata.io.paths import existing
from napari_strata.worker.orders import Layer, Pairs, Range


def open_image(layer: Layer, *, axes: str | None = None) -> Image:
    """The image of a layer; `axes` count where the layer names none.

    Raises
    ------
    ImageError
        when it cannot be read, or axes or scale do not fit it.
    """
    letters = layer.axes or axes
    if layer.path.lower().endswith(".npy"):
        array = memory_map(layer.path)
        image = Image(
            array,
            letters or "",
            name=layer.name or Path(layer.path).stem,
            source=layer.path,
        )
    else:
        image = read_image(layer.path, axes=letters, series=layer.series)
    known = {
        k: getattr(layer, k)
        for k in ("scale", "units", "name", "channel_names")
        if getattr(layer, k)
    }
    return replace(image, **known)


def open_labels(layer: Layer) -> LabelImage:
    """The labels of a layer, with the classes that its file names, if any. Raises `ImageError` and `LabelError`."""
    if not layer.path.lower().endswith(".npy"):
        labels = read_labels(layer.path, axes=layer.axes)
        return replace(labels, name=layer.name or labels.name)
    array, name = memory_map(layer.path), layer.name or Path(layer.path).stem
    return LabelImage(
        array,
        layer.axes or "",
        scale=layer.scale,
        units=layer.units,
        name=name,
        source=layer.path,
    )


def open_pairs(data: Pairs) -> list[AnnotatedImage]:
    """Images with their labels. Raises `ImageError` and `LabelError`."""
    layers, labels = data.images, data.labels
    if (
        len(layers) == 1
        and all(layer.is_path for layer in (*layers, *(labels or ())))
        and len(labels or ".") == 1
    ):
        return read_pairs(
            layers[0].path, labels[0].path if labels else None, axes=data.axes
        )
    images = [open_image(layer, axes=data.axes) for layer in layers]
    return read_pairs(
        images,
        [_labels_or_file(layer) for layer in labels] if labels else None,
        axes=data.axes,
    )


def _labels_or_file(layer: Layer) -> LabelImage | Array | str:
    """Labels whose axes are given; else what `read_pairs` can give those of the image."""
    if layer.axes is not None:
        return open_labels(layer)
    return memory_map(layer.path) if layer.path.lower().endswith(".npy") else layer.path


def memory_map(path: str) -> Array:
    """The array of a ``.npy`` file, read from disk as it is needed. Raises `ImageError`."""
    found = existing(path)
    try:
        return np.lib.format.open_memmap(found, mode="r")
    except (OSError, ValueError, EOFError) as error:
        reason = str(error).splitlines()[0]
        raise ImageError(
            f"{found}: no array that can be mapped ({reason}); save it again with numpy.save."
        ) from None


class Part:
    """A rectangular part of an array of any kind, read only when it is asked for; see `ArrayLike`."""

    def __init__(self, data: ArrayLike, box: tuple[slice, ...]) -> None:
        self._data, self._box = data, box
        self.shape = tuple(part.stop - part.start for part in box)
        self.dtype = data.dtype

    def __getitem__(self, key: Any) -> Any:
        keys = key if isinstance(key, tuple) else (key,)
        keys += (slice(None),) * (len(self._box) - len(keys))
        ranges = [
            range(part.start, part.stop)[k]
            for part, k in zip(self._box, keys, strict=True)
        ]
        return self._data[
            tuple(
                r if isinstance(r, int) else slice(r.start, r.stop, r.step)
                for r in ranges
            )
        ]


@dataclass(frozen=True, eq=False)
class PartImage(Image):
    """Part of `whole`. Its samples are those of the whole, so that it is normalised as the whole would be."""

    whole: Image | None = None
    box: Mapping[str, slice] = field(default_factory=dict)

    @classmethod
    def cut(cls, whole: Image, box: Mapping[str, slice]) -> PartImage:
        """The part of `whole` inside `box` (axis -> first and last index + 1); axes it does not name are kept whole."""
        bounds = tuple(
            box.get(a, slice(0, n))
            for a, n in zip(whole.axes, whole.shape, strict=True)
        )
        known = {
            k: getattr(whole, k)
            for k in ("axes", "scale", "units", "name", "channel_names")
        }
        return cls(Part(whole.data, bounds), **known, whole=whole, box=box)

    def with_neighbours(self, count: int) -> PartImage:
        """The same part of the whole with neighbours: slices beside the part are seen; see `data.neighbours`."""
        assert self.whole is not None
        box = {a: bounds for a, bounds in self.box.items() if a != "C"}
        return PartImage.cut(with_neighbours(self.whole, count), box)

    def samples(
        self, *, planes: int = 8, side: int = 256, blocks: int = 4
    ) -> list[Array]:
        assert self.whole is not None
        return self.whole.samples(planes=planes, side=side, blocks=blocks)


@dataclass(frozen=True, eq=False)
class Window:
    """What a prediction covers: `image`, at `start` (an index an axis of T, Z, Y, X) of `whole`.

    Of its planes those in `kept` (first and last Z of `whole` + 1) are wanted, all when None; the others inform them.
    """

    whole: Image
    image: Image
    start: Mapping[str, int]
    kept: slice | None = None

    @classmethod
    def of(cls, whole: Image, region: Mapping[Any, Range] | None) -> Window:
        """The part of an image that `region` (axis -> index or (first, last + 1)) names; all of it when None.

        Raises
        ------
        ImageError
            when the region has an axis that the image has not, or reaches beyond it.
        """
        if region is None:
            return cls(whole, whole, dict.fromkeys(whole.label_axes, 0))
        box = {a: slice(0, n) for a, n in zip(whole.axes, whole.shape, strict=True)}
        for letter, given in region.items():
            first, stop = (given, given + 1) if isinstance(given, int) else given
            if letter not in box or not 0 <= first < stop <= box[letter].stop:
                sizes = ", ".join(f"{a} of {whole.size(a)}" for a in whole.label_axes)
                raise ImageError(
                    f"{whole.name}: found region {letter}={given}; the image has {sizes}."
                )
            box[letter] = slice(first, stop)
        image = PartImage.cut(whole, box)
        return cls(whole, image, {a: box[a].start for a in whole.label_axes})

    def widened(self, specs: Sequence[ModelSpec]) -> Window:
        """The same with the planes above and below that 3D models see, so that they say what they say of the whole
        volume; itself for 2D models, whose neighbours come by `PartImage.with_neighbours`."""
        depth = self.whole.size("Z")
        if (
            not isinstance(self.image, PartImage)
            or specs[0].depth is None
            or self.image.size("Z") == depth
        ):
            return self
        kept = slice(self.start["Z"], self.start["Z"] + self.image.size("Z"))
        around = planes_around(kept, depth, specs)
        box = {**self.image.box, "Z": around}
        return Window(
            self.whole,
            PartImage.cut(self.whole, box),
            {**self.start, "Z": around.start},
            kept,
        )

    @property
    def informing(self) -> list[int]:
        """Numbers of the planes of `image`, as `Image.planes` counts them, that are not wanted themselves."""
        if self.kept is None:
            return []
        wanted = range(self.kept.start, self.kept.stop)
        return [
            i
            for i, plane in enumerate(self.image.planes())
            if self._moved(plane)["Z"] not in wanted
        ]

    def regions(self) -> list[dict[str, slice]]:
        """Where in `whole` each plane of `image` lies."""
        whole = {
            a: slice(first, first + self.image.size(a))
            for a, first in self.start.items()
        }
        places = [self._moved(plane) for plane in self.image.planes()]
        return [
            whole | {a: slice(index, index + 1) for a, index in place.items()}
            for place in places
        ]

    def told(self, plane: Mapping[str, Any]) -> dict[str, Any]:
        """A plane of `image` as a region of `whole`, for an event; Y and X are named where they are cut."""
        cut = [a for a in "YX" if self.image.size(a) < self.whole.size(a)]
        return self._moved(plane) | {
            a: (self.start[a], self.start[a] + self.image.size(a)) for a in cut
        }

    def _moved(self, plane: Mapping[str, Any]) -> dict[str, int]:
        return {a: index + self.start[a] for a, index in plane.items()}


def planes_around(kept: slice, depth: int, specs: Sequence[ModelSpec]) -> slice:
    """Planes that 3D models must see of a volume for those in `kept`.

    A halo on both sides; about a whole tile where models look at all of it.
    """
    halo = max(spec.halo_shape[0] for spec in specs)
    least = 0
    if any(spec.blend for spec in specs):
        least = max(spec.tile_shape[0] for spec in specs)
    stride = shared_stride(specs)
    return read_range(kept, depth, halo=halo, stride=stride, least=least)
