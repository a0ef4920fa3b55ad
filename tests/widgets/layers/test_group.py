"""Several image layers as the channels of one image."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from napari.components import ViewerModel
from napari.layers import Image as ImageLayer

from napari_strata.core.errors import ImageError
from napari_strata.widgets.layers.choice import ImageChoice
from napari_strata.widgets.layers.group import (
    Channels,
    describe_channels,
    find_channels,
    in_order,
    split_names,
    why_no_channels,
)


def layer(name: str, shape: tuple[int, ...] = (3, 8, 9), **options: Any) -> ImageLayer:
    data = np.random.default_rng(len(name)).integers(0, 99, shape).astype(np.uint8)
    return ImageLayer(data, name=name, **options)


def test_channels_are_one_image_in_the_order_of_the_layers() -> None:
    scale = {"scale": (2, 0.5, 0.5), "units": ("um",) * 3}
    layers = layer("cells DAPI", **scale), layer("cells GFP", **scale)
    image = Channels(layers).image()
    assert (image.axes, image.shape) == ("ZYXC", (3, 8, 9, 2))
    assert image.channel_names == ("DAPI", "GFP")
    assert image.name == "cells"
    assert image.scale == (2, 0.5, 0.5, 1)
    expected = np.stack([each.data[1] for each in layers])
    np.testing.assert_array_equal(image.read({"Z": 1}), expected)
    np.testing.assert_array_equal(
        np.asarray(image.data), np.stack([each.data for each in layers], axis=-1)
    )
    # The same layers are the same data, so that nothing is computed again.
    assert Channels(layers).image().data is image.data


def test_the_dtype_holds_the_values_of_all_channels() -> None:
    bright = ImageLayer(np.full((3, 8, 9), 60_000, np.uint16), name="b")
    image = Channels((layer("a"), bright)).image()
    assert image.dtype == np.uint16
    assert np.asarray(image.data).max() == 60_000


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (layer("b", (3, 8, 8)), "a has 3 x 8 x 9 pixels and b 3 x 8 x 8"),
        (layer("b", scale=(1, 2, 2)), "differ in scale"),
        (layer("b", axis_labels=("t", "y", "x")), "differ in their axes"),
        (
            ImageLayer(np.zeros((3, 8, 9, 3), np.uint8), rgb=True, name="b"),
            "b is a colour picture",
        ),
    ],
)
def test_other_layers_are_refused_in_words(other: ImageLayer, reason: str) -> None:
    layers = layer("a", axis_labels=("z", "y", "x")), other
    assert reason in why_no_channels(layers)
    with pytest.raises(ImageError, match=reason):
        Channels(layers).image()


def test_names_without_what_they_begin_with() -> None:
    assert split_names(["cells DAPI", "cells GFP"]) == ("cells", ("DAPI", "GFP"))
    assert split_names(["DAPI", "GFP"]) == ("", ("DAPI", "GFP"))
    assert split_names(["a_c1", "a_c2"]) == ("a", ("c1", "c2"))
    assert split_names(["a channel 1", "a channel 2"]) == (
        "a",
        ("channel 1", "channel 2"),
    )
    assert split_names(["Image", "Image [1]"]) == ("", ("Image", "Image [1]"))


def test_layers_are_found_by_the_names_of_the_channels() -> None:
    names = ("DAPI", "GFP")
    first = layer("x GFP"), layer("x DAPI")
    assert find_channels(names, first) == Channels((first[1], first[0]))
    second = layer("y DAPI"), layer("y GFP")
    everything = (*first, layer("DAPI stain"), *second)
    assert find_channels(names, everything) is None, "either could be meant"
    assert find_channels(names, everything, second[1]) == Channels(second)
    assert find_channels(names, [layer("x DAPI"), layer("y GFP")]) is None
    assert find_channels(names, [layer("DAPI"), layer("GFP")]) is not None
    assert find_channels(names, [layer("DAPI"), layer("GFP", (3, 8, 8))]) is None


def test_channels_are_put_into_the_order_of_the_model() -> None:
    gfp, dapi = layer("x GFP"), layer("x DAPI")
    channels = Channels((gfp, dapi))
    assert in_order(channels, ("DAPI", "GFP")) == Channels((dapi, gfp))
    assert in_order(channels, ("red", "green")) is channels
    text = describe_channels(channels, ("red", "green"))
    assert text == "Channels of the model: red is x GFP, green is x DAPI."


def test_selected_layers_are_offered_as_channels(qtbot: Any) -> None:
    viewer = ViewerModel()
    dapi, gfp, other = layer("DAPI"), layer("GFP"), layer("other", (2, 5, 5))
    viewer.layers.extend([dapi, gfp, other])
    choice = ImageChoice(viewer)
    qtbot.addWidget(choice)

    def select(*layers: ImageLayer) -> list[str]:
        viewer.layers.selection = set(layers)
        qtbot.wait(20)
        return [str(value) for value in choice.combo.choices if value is not None]

    offer = "2 layers as channels: DAPI, GFP"
    assert offer not in select(dapi)
    assert choice.layer is dapi
    assert offer in select(dapi, gfp)
    assert choice.image is None
    assert "choose one here, or all as channels" in choice.text.text()
    choice.combo.value = Channels((dapi, gfp))
    assert choice.image is not None
    assert choice.image.channel_names == ("DAPI", "GFP")
    assert choice.layer is dapi
    assert "Channels: DAPI, GFP" in choice.text.text()
    # A look at one of the channels changes nothing.
    select(gfp)
    assert choice.channels is not None
    assert not any("as channels" in text for text in select(dapi, other))
    select(other)
    assert choice.channels is None
    assert choice.layer is other
    select(dapi, gfp)
    choice.combo.value = Channels((dapi, gfp))
    viewer.layers.remove(gfp)
    qtbot.wait(20)
    assert choice.channels is None
    choice.disconnect_viewer()
