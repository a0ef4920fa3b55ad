"""Several image layers as the channels of one image."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
from napari.layers import Image as ImageLayer

from napari_strata.core.errors import ImageError
from napari_strata.core.image import Image
from napari_strata.io.lazy import LazyArray
from napari_strata.widgets.layers import convert


@dataclass(frozen=True)
class Channels:
    """Image layers that are the channels of one image, in their order."""

    layers: tuple[ImageLayer, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the channels: those of the layers without what all begin with."""
        return split_names([layer.name for layer in self.layers])[1]

    def __str__(self) -> str:
        return f"{len(self.layers)} layers as channels: {', '.join(self.names)}"

    def image(self) -> Image:
        """Build the image, with the channels last, as in a colour picture.

        Raises
        ------
        ImageError
            When the layers cannot be channels of one image.
        """
        if why := why_no_channels(self.layers):
            raise ImageError(why)
        first = convert.image_of(self.layers[0])
        common, names = split_names([layer.name for layer in self.layers])
        return Image(
            _stacked(self.layers),
            f"{first.axes}C",
            scale=(*first.scale, 1.0),
            units=(*first.units, "pixel"),
            name=common or " and ".join(names),
            channel_names=names,
        )


class ChannelArray(LazyArray):
    """Arrays of one shape along a new last axis; they are read when it is indexed."""

    def __init__(self, arrays: Sequence[Any]) -> None:
        dtype = np.result_type(*(np.dtype(array.dtype) for array in arrays))
        super().__init__((*arrays[0].shape, len(arrays)), dtype)
        self._arrays = tuple(arrays)

    def _fetch(self, region: tuple[slice, ...]) -> Any:
        *inner, channels = region
        return np.stack(
            [np.asarray(array[tuple(inner)]) for array in self._arrays[channels]],
            axis=-1,
        )


_STACKS: WeakValueDictionary[tuple[int, ...], ChannelArray] = WeakValueDictionary()
"""Arrays in use, so that the same layers give the same array."""


def _stacked(layers: Sequence[ImageLayer]) -> ChannelArray:
    arrays = [convert.array_of(layer) for layer in layers]
    key = tuple(map(id, arrays))
    stack = _STACKS.get(key)
    if stack is None:
        stack = _STACKS[key] = ChannelArray(arrays)
    return stack


def why_no_channels(layers: Sequence[ImageLayer]) -> str:
    """Explain why layers cannot be channels of one image; empty if they can."""
    first, *others = layers
    for layer in layers:
        if layer.rgb:
            return f"{layer.name} is a colour picture, which has channels of its own."
    for layer in others:
        shapes = [convert.array_of(each).shape for each in (first, layer)]
        if shapes[0] != shapes[1]:
            sizes = [" x ".join(map(str, shape)) for shape in shapes]
            return (
                f"{first.name} has {sizes[0]} pixels and {layer.name} {sizes[1]}:"
                " channels have the same size."
            )
        if not np.allclose(first.scale, layer.scale) or first.units != layer.units:
            return (
                f"{first.name} and {layer.name} differ in scale: channels have the same"
                " pixel size."
            )
        if convert.proposed_axes(first) != convert.proposed_axes(layer):
            return f"{first.name} and {layer.name} differ in their axes."
    return ""


def split_names(names: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """Split names into the words that all begin with, and the rest of each.

    ``cells DAPI`` and ``cells GFP`` are ``cells``, and ``DAPI`` and ``GFP``.
    """
    words = [re.findall(r"[^\s_.-]*[\s_.-]*", name) for name in names]
    equal = takewhile(lambda same: len(set(same)) == 1, zip(*words, strict=False))
    shared = [same[0] for same in equal]
    if shared and all("".join(word[len(shared) :]).isdigit() for word in words):
        del shared[-1]  # a number alone is no name: channel 1
    common = "".join(shared)
    rest = tuple(name[len(common) :] for name in names)
    if not all(rest):
        return "", tuple(names)
    return common.rstrip(" _.-"), rest


def find_channels(
    names: Sequence[str],
    layers: Sequence[ImageLayer],
    near: ImageLayer | None = None,
) -> Channels | None:
    """Find the layers that are called like the channels of a model, in its order.

    Parameters
    ----------
    near
        Layer of the image that is wanted, if several have such channels.
    """
    starts: dict[str, dict[str, ImageLayer]] = {}
    for layer in layers:
        for name in names:
            start = _start(layer.name, name)
            if start is not None and not layer.rgb:
                starts.setdefault(start, {})[name] = layer
    complete = []
    for members in starts.values():
        if len(members) == len(names):
            group = Channels(tuple(members[name] for name in names))
            if not why_no_channels(group.layers):
                complete.append(group)
    with_near = [group for group in complete if near in group.layers]
    chosen = with_near or complete
    return chosen[0] if len(chosen) == 1 else None


def in_order(channels: Channels, names: Sequence[str]) -> Channels:
    """Put channels into the order of names, if their layers are called so."""
    if len(channels.layers) != len(names):
        return channels
    return find_channels(names, channels.layers) or channels


def describe_channels(channels: Channels, names: Sequence[str]) -> str:
    """Describe which layer is which channel of a model."""
    pairs = zip(names, channels.layers, strict=True)
    parts = ", ".join(f"{name} is {layer.name}" for name, layer in pairs)
    return f"Channels of the model: {parts}."


def _start(layer: str, channel: str) -> str | None:
    """Return what precedes the channel in a layer's name; None if it is not its."""
    if layer == channel:
        return ""
    head = layer[: -len(channel)]
    ends = layer.endswith(channel) and head[-1:] in (" ", "_", "-", ".")
    return head if ends else None
