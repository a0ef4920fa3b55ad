"""Images and labels of requests, opened lazily, and regions of them."""

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
from napari_strata.worker.protocol import Layer, Pairs, Range


def open_image(layer: Layer, *, axes: str | None = None) -> Image:
    """Open the image of a layer.

    Parameters
    ----------
    axes
        Axes of the image, if the layer has none.

    Raises
    ------
    ImageError
        When it cannot be read, or axes or scale do not fit it.
    """
    image_axes = layer.axes or axes
    if _is_npy(layer):
        image = Image(
            memory_map(layer.path),
            image_axes or "",
            name=layer.name or Path(layer.path).stem,
            source=layer.path,
        )
    else:
        image = read_image(layer.path, axes=image_axes, series=layer.series)
    metadata: dict[str, Any] = {}
    for key in ("scale", "units", "name", "channel_names"):
        if value := getattr(layer, key):
            metadata[key] = value
    return replace(image, **metadata)


def open_labels(layer: Layer) -> LabelImage:
    """Open the labels of a layer, with the classes in its file, if any.

    Raises
    ------
    ImageError, LabelError
        When they cannot be read, or axes or scale do not fit them.
    """
    if not _is_npy(layer):
        labels = read_labels(layer.path, axes=layer.axes)
        return replace(labels, name=layer.name or labels.name)
    return LabelImage(
        memory_map(layer.path),
        layer.axes or "",
        scale=layer.scale,
        units=layer.units,
        name=layer.name or Path(layer.path).stem,
        source=layer.path,
    )


def open_pairs(pairs: Pairs) -> list[AnnotatedImage]:
    """Open images with their labels.

    Raises
    ------
    ImageError, LabelError
        When they cannot be read, or do not belong together.
    """
    images, labels = pairs.images, pairs.labels or ()
    is_one_path = len(images) == 1 and len(labels) <= 1
    if is_one_path and all(layer.is_path for layer in (*images, *labels)):
        # The path may be a folder or a table with many pairs.
        label_path = labels[0].path if labels else None
        return read_pairs(images[0].path, label_path, axes=pairs.axes)
    return read_pairs(
        [open_image(layer, axes=pairs.axes) for layer in images],
        [_labels_or_file(layer) for layer in labels] or None,
        axes=pairs.axes,
    )


def open_changed(pair: AnnotatedImage, labels: Layer) -> LabelImage:
    """Open other labels of an image, and read them: their file may change again.

    Raises `ImageError` or `LabelError` as `open_pairs` does.
    """
    (changed,) = read_pairs([pair.image], [_labels_or_file(labels)])
    pixels = np.asarray(changed.labels.data[...])
    return replace(changed.labels, data=pixels, source=labels.path)


def _labels_or_file(layer: Layer) -> LabelImage | Array | str:
    """Open labels that have axes; the others get the image's axes in `read_pairs`."""
    if layer.axes is not None:
        return open_labels(layer)
    return memory_map(layer.path) if _is_npy(layer) else layer.path


def _is_npy(layer: Layer) -> bool:
    return layer.path.lower().endswith(".npy")


def memory_map(path: str) -> Array:
    """Map the array of a ``.npy`` file into memory.

    Raises
    ------
    ImageError
        When the file does not exist, or contains no array that can be mapped.
    """
    file = existing(path)
    try:
        return np.lib.format.open_memmap(file, mode="r")
    except Exception as error:  # whatever the bytes are
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ImageError(
            f"{file}: contains no array that can be mapped ({reason}); "
            "save it again with numpy.save."
        ) from None


class ArrayView:
    """Box of an array; pixels are read only when it is indexed. See `ArrayLike`."""

    def __init__(self, data: ArrayLike, box: tuple[slice, ...]) -> None:
        self._data, self._box = data, box
        self.shape = tuple(bounds.stop - bounds.start for bounds in box)
        self.dtype = data.dtype

    def __getitem__(self, key: Any) -> Any:
        keys = key if isinstance(key, tuple) else (key,)
        keys += (slice(None),) * (len(self._box) - len(keys))
        indices: list[int | slice] = []
        for bounds, axis_key in zip(self._box, keys, strict=True):
            selected = range(bounds.start, bounds.stop)[axis_key]
            if isinstance(selected, range):
                indices.append(slice(selected.start, selected.stop, selected.step))
            else:
                indices.append(selected)
        return self._data[tuple(indices)]


@dataclass(frozen=True, eq=False)
class ImageView(Image):
    """Box of the image `whole`.

    Samples are taken from the whole image, so that both are normalised in the same way.
    """

    whole: Image | None = None
    box: Mapping[str, slice] = field(default_factory=dict)

    @classmethod
    def cut(cls, whole: Image, box: Mapping[str, slice]) -> ImageView:
        """Cut a box out of `whole`.

        Parameters
        ----------
        box
            Slice (first index, last index + 1) for each axis that is cut.
        """
        bounds = tuple(
            box.get(axis, slice(0, size))
            for axis, size in zip(whole.axes, whole.shape, strict=True)
        )
        return cls(
            ArrayView(whole.data, bounds),
            axes=whole.axes,
            scale=whole.scale,
            units=whole.units,
            name=whole.name,
            channel_names=whole.channel_names,
            whole=whole,
            box=box,
        )

    def with_neighbours(self, count: int) -> ImageView:
        """Cut the same box out of the whole image with neighbouring planes.

        See `data.neighbours`.
        """
        assert self.whole is not None
        box = {axis: bounds for axis, bounds in self.box.items() if axis != "C"}
        return ImageView.cut(with_neighbours(self.whole, count), box)

    def samples(
        self, *, planes: int = 8, side: int = 256, blocks: int = 4
    ) -> list[Array]:
        """Return samples of the whole image."""
        assert self.whole is not None
        return self.whole.samples(planes=planes, side=side, blocks=blocks)


@dataclass(frozen=True, eq=False)
class Window:
    """Region of an image that a prediction covers.

    Attributes
    ----------
    whole
        The whole image.
    image
        The part that is read.
    start
        Index in `whole`, for each axis of TZYX, at which `image` begins.
    output
        Planes along Z of `whole` that are predicted; all if None. The other planes of
        `image` are context for 3D models.
    """

    whole: Image
    image: Image
    start: Mapping[str, int]
    output: slice | None = None

    @classmethod
    def of(cls, whole: Image, region: Mapping[Any, Range] | None) -> Window:
        """Return the window of a region of `whole`.

        Parameters
        ----------
        region
            An index, or first index and last index + 1, for each axis that is cut.
            None means the whole image.

        Raises
        ------
        ImageError
            When the image lacks an axis of the region, or the region is too large.
        """
        if region is None:
            return cls(whole, whole, dict.fromkeys(whole.label_axes, 0))
        box = {
            axis: slice(0, size)
            for axis, size in zip(whole.axes, whole.shape, strict=True)
        }
        for axis, bounds in region.items():
            first, stop = (bounds, bounds + 1) if isinstance(bounds, int) else bounds
            if axis not in box or not 0 <= first < stop <= box[axis].stop:
                sizes = ", ".join(f"{a} of {whole.size(a)}" for a in whole.label_axes)
                raise ImageError(
                    f"{whole.name}: found region {axis}={bounds}; "
                    f"the image has {sizes}."
                )
            box[axis] = slice(first, stop)
        image = ImageView.cut(whole, box)
        return cls(whole, image, {axis: box[axis].start for axis in whole.label_axes})

    def with_context(self, specs: Sequence[ModelSpec]) -> Window:
        """Add the planes above and below that 3D models need.

        The prediction is then the same as in the whole volume. 2D models get their
        neighbouring planes from `ImageView.with_neighbours`.
        """
        depth = self.whole.size("Z")
        if (
            not isinstance(self.image, ImageView)
            or specs[0].depth is None
            or self.image.size("Z") == depth
        ):
            return self
        first = self.start["Z"]
        output = slice(first, first + self.image.size("Z"))
        planes = planes_around(output, depth, specs)
        image = ImageView.cut(self.whole, {**self.image.box, "Z": planes})
        start = {**self.start, "Z": planes.start}
        return Window(self.whole, image, start, output)

    @property
    def context_planes(self) -> list[int]:
        """Numbers of the context planes, in the order of `Image.planes`."""
        if self.output is None:
            return []
        predicted = range(self.output.start, self.output.stop)
        return [
            number
            for number, plane in enumerate(self.image.planes())
            if self._in_whole(plane)["Z"] not in predicted
        ]

    def regions(self) -> list[dict[str, slice]]:
        """Return the region of `whole` for each plane of `image`."""
        regions = []
        for plane in self.image.planes():
            region = {
                axis: slice(first, first + self.image.size(axis))
                for axis, first in self.start.items()
            }
            for axis, index in self._in_whole(plane).items():
                region[axis] = slice(index, index + 1)
            regions.append(region)
        return regions

    def region_of(self, plane: Mapping[str, Any]) -> dict[str, Any]:
        """Return the region of `whole` for a plane of `image`, as events contain it.

        It has Y and X only if these are cut.
        """
        region: dict[str, Any] = dict(self._in_whole(plane))
        for axis in "YX":
            size = self.image.size(axis)
            if size < self.whole.size(axis):
                region[axis] = (self.start[axis], self.start[axis] + size)
        return region

    def _in_whole(self, plane: Mapping[str, Any]) -> dict[str, int]:
        return {axis: index + self.start[axis] for axis, index in plane.items()}


def planes_around(output: slice, depth: int, specs: Sequence[ModelSpec]) -> slice:
    """Return the planes of a volume that 3D models need to predict those of `output`.

    These are a halo on both sides, or about a whole tile for models whose output
    depends on the whole tile.
    """
    halo = max(spec.halo_shape[0] for spec in specs)
    minimum = 0
    if any(spec.blend for spec in specs):
        minimum = max(spec.tile_shape[0] for spec in specs)
    stride = shared_stride(specs)
    return read_range(output, depth, halo=halo, stride=stride, least=minimum)
