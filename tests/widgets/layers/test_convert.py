from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from napari.components import ViewerModel
from napari.layers import Image as ImageLayer
from napari.layers import Labels as LabelsLayer

from napari_strata.core.classes import ClassMap
from napari_strata.core.errors import ImageError
from napari_strata.core.image import Image
from napari_strata.io import read_image, read_labels, write_image
from napari_strata.plugin import METADATA
from napari_strata.widgets.layers import convert

GREY = np.arange(4 * 32 * 48, dtype=np.uint16).reshape(4, 32, 48)


def _layer(**given: object) -> ImageLayer:
    words = {
        "name": "sand",
        "scale": (2.0, 0.5, 0.5),
        "units": ("um",) * 3,
        "axis_labels": ("z", "y", "x"),
    }
    return ImageLayer(GREY, **words | given)


def test_an_image_has_the_metadata_of_its_layer() -> None:
    image = convert.image_of(_layer())
    assert (image.axes, image.scale, image.name) == ("ZYX", (2.0, 0.5, 0.5), "sand")
    assert convert.describe(image) == "4 x 32 x 48 (ZYX), uint16, 2 x 0.5 x 0.5 µm"


def test_unnamed_axes_are_proposed_and_can_be_set() -> None:
    layer = ImageLayer(GREY)
    assert convert.known_axes(layer) == ""
    assert convert.proposed_axes(layer) == "ZYX"
    convert.set_axes(layer, "tyx")
    assert layer.axis_labels == ("t", "y", "x")
    assert convert.image_of(layer).axes == "TYX"
    with pytest.raises(ImageError, match="3 dimensions need 3 letters"):
        convert.set_axes(layer, "YX")


def test_rgb_has_its_channels_last() -> None:
    layer = ImageLayer(np.zeros((8, 9, 3), np.uint8), rgb=True)
    image = convert.image_of(layer)
    assert (image.axes, image.shape, len(image.scale)) == ("YXC", (8, 9, 3), 3)
    convert.set_axes(layer, "YXC")
    assert layer.axis_labels == ("y", "x")


def test_a_pyramid_gives_its_first_level() -> None:
    layer = ImageLayer([GREY[0], GREY[0, ::2, ::2]], multiscale=True)
    assert convert.image_of(layer).shape == (32, 48)


def test_labels_get_the_axes_of_the_image_and_their_own_classes() -> None:
    classes = ClassMap(names=("pore", "grain"), values=(1, 2), unlabelled=(0,))
    layer = LabelsLayer(
        GREY.astype(np.uint8), metadata={METADATA: classes.model_dump(mode="json")}
    )
    labels = convert.labels_of(layer, Image(GREY, "TYX"))
    assert labels.axes == "TYX"
    assert labels.classes == classes


def test_a_mismatch_is_explained() -> None:
    image = convert.image_of(_layer())
    assert convert.mismatch(image, LabelsLayer(np.zeros((4, 32, 48), np.uint8))) == ""
    assert "4 x 32 x 40" in convert.mismatch(
        image, LabelsLayer(np.zeros((4, 32, 40), np.uint8))
    )


def test_a_layer_without_a_file_is_copied_once(tmp_path: Path) -> None:
    layer = _layer()
    source = convert.source_of_image(layer, convert.image_of(layer), tmp_path)
    stored = read_image(source.path)
    assert (stored.axes, stored.scale, stored.units) == (
        "ZYX",
        (2.0, 0.5, 0.5),
        ("micrometer",) * 3,
    )
    np.testing.assert_array_equal(np.asarray(stored.data), GREY)
    before = Path(source.path).stat().st_mtime_ns
    convert.source_of_image(layer, convert.image_of(layer), tmp_path)
    assert Path(source.path).stat().st_mtime_ns == before
    layer.data[0, 0, 0] += 1
    convert.source_of_image(layer, convert.image_of(layer), tmp_path)
    assert read_image(source.path).data[0, 0, 0] == layer.data[0, 0, 0]


def test_a_layer_of_a_file_uses_that_file(tmp_path: Path) -> None:
    file = tmp_path / "sand.tif"
    write_image(file, convert.image_of(_layer()))
    viewer = ViewerModel()
    from napari.plugins import _initialize_plugins

    _initialize_plugins()
    (layer,) = viewer.open(file, plugin="napari-strata")
    source = convert.source_of_image(
        layer, convert.image_of(layer), tmp_path / "copies"
    )
    assert source.path == str(file)
    assert source.is_path
    assert not (tmp_path / "copies").exists()


def test_a_layer_that_was_changed_or_rescaled_is_copied(
    tmp_path: Path,
) -> None:
    file = tmp_path / "sand.tif"
    write_image(file, convert.image_of(_layer()))
    for change in ("scale", "data"):
        layer = _layer(
            metadata={METADATA: {"path": str(file), "series": 0, "channel": None}}
        )
        assert convert.source_of_image(
            layer, convert.image_of(layer), tmp_path
        ).path == str(file)
        if change == "scale":
            layer.scale = (3.0, 0.5, 0.5)
        else:
            layer.data = layer.data + 1
        image = convert.image_of(layer)
        copy = convert.source_of_image(layer, image, tmp_path / change)
        assert copy.path != str(file)
        assert read_image(copy.path).scale == image.scale
        np.testing.assert_array_equal(
            np.asarray(read_image(copy.path).data), layer.data
        )


def test_labels_are_written_with_their_classes(tmp_path: Path) -> None:
    classes = ClassMap(names=("pore", "grain"), values=(1, 2), unlabelled=(0,))
    data = (GREY % 3).astype(np.uint8)
    layer = LabelsLayer(
        data, name="mine", metadata={METADATA: classes.model_dump(mode="json")}
    )
    image = convert.image_of(_layer())
    source = convert.source_of_labels(
        convert.labels_of(layer, image), tmp_path / "labels.tif"
    )
    stored = read_labels(source.path)
    assert stored.classes == classes
    np.testing.assert_array_equal(np.asarray(stored.data), data)


def test_slug() -> None:
    assert convert.slug("Sand 0300 (raw).tif") == "sand-0300-raw-tif"
    assert convert.slug("???") == "image"
