from __future__ import annotations

import numpy as np
import pytest

from helpers import tiny_recipe, tiny_spec
from napari_strata.core.errors import ImageError
from napari_strata.core.image import Image
from napari_strata.core.normalization import ResolvedNormalization, Scale
from napari_strata.core.spec import Depth
from napari_strata.inference.checks import check_image
from napari_strata.models.model import Model

SCALE = Scale(
    center=(120.0,), spread=(30.0,), low=(-100.0,), high=(350.0,)
)  # trained on about 50 to 200
SPEC = tiny_spec().model_copy(
    update={
        "normalization": ResolvedNormalization(kind="physical", scale=SCALE),
        "pixel_size": {"Y": 2.0, "X": 2.0},
        "pixel_unit": "micrometer",
    }
)


def models(*specs) -> list[Model]:
    """Models of an earlier version, without a reference of their training images."""
    return [Model(spec, tiny_recipe(), {}) for spec in specs]


def warnings(image: Image, **changes) -> list[str]:
    members = models(SPEC.model_copy(update=changes))
    return list(check_image(members, image, image.samples()).sentences)


def grey(low: float, high: float, dtype=np.uint8, **facts) -> Image:
    values = np.random.default_rng(0).uniform(low, high, (40, 40)).astype(dtype)
    return Image(values, "YX", name="rock", **facts)


def sized(size: float, unit: str = "micrometer") -> Image:
    return grey(50, 200, scale=(size, size), units=(unit, unit))


def test_an_image_like_those_of_training_passes_without_a_word():
    assert warnings(sized(2.0)) == []
    assert warnings(sized(2.3)) == []


def test_channels_that_differ_are_an_error_that_names_both():
    rgb = Image(
        np.zeros((8, 8, 3), np.uint8),
        "YXC",
        name="photo",
        channel_names=("red", "green", "blue"),
    )
    with pytest.raises(
        ImageError,
        match=r"photo: found 3 channels \(red, green, blue\); the model was trained on 1",
    ):
        warnings(rgb)
    with pytest.raises(
        ImageError,
        match=r"found 1 channel; the model was trained on 3 channels \(RGB\?\).*axes",
    ):
        warnings(grey(0, 255), in_channels=3)
    rgba = Image(np.zeros((8, 8, 4), np.uint8), "YXC", name="photo")
    with pytest.raises(ImageError, match="save the image without it"):
        warnings(rgba, in_channels=3)


def test_complex_numbers_are_refused():
    with pytest.raises(ImageError, match="complex64"):
        warnings(Image(np.zeros((8, 8), np.complex64), "YX"))


@pytest.mark.parametrize(
    ("size", "words"), [(1.0, "2 times larger"), (5.0, "2.5 times smaller")]
)
def test_another_pixel_size_is_said_with_what_it_does(size, words):
    (text,) = warnings(sized(size))
    assert words in text


def test_a_3d_model_minds_the_depth_of_voxels_and_a_2d_one_does_not():
    known = {"Z": 4.0, "Y": 2.0, "X": 2.0}
    volume = Image(np.random.default_rng(0).integers(50, 200, (4, 40, 40)).astype(np.uint8), "ZYX", name="rock",
                   scale=(2.0, 2.0, 2.0), units=("micrometer",) * 3)  # fmt: skip
    assert warnings(volume, pixel_size=known) == []
    (text,) = warnings(
        volume,
        pixel_size=known,
        depth=Depth(patch=8, tile=16, halo=4, strides=(2,)),
        axes="ZYX",
    )
    assert (
        "found pixel size 2 micrometer along Z; the model was trained at 4: structures appear 2 times larger than in training"
        in text
    )


def test_pixel_sizes_in_other_or_unknown_units_cannot_be_compared():
    assert warnings(sized(9.0, "nanometer")) == []
    assert warnings(grey(50, 200), pixel_unit="pixel") == []
    assert warnings(sized(9.0), pixel_size={}) == []


def test_another_dtype_is_said_where_grey_values_are_absolute():
    image = grey(50, 200, np.uint16)
    (text,) = warnings(image)
    assert "found uint16; the model was trained on uint8" in text
    assert (
        warnings(
            image, normalization=ResolvedNormalization(kind="relative", scale=SCALE)
        )
        == []
    )


@pytest.mark.parametrize(("low", "high"), [(3000, 40000), (0, 1)])
def test_grey_values_far_from_those_of_training_are_said(low, high):
    texts = warnings(grey(low, high, np.float32))
    assert "found grey values of" in texts[-1]
    assert "lay between about 50 and 200" in texts[-1]


def test_pixels_that_are_not_finite_do_not_count_as_grey_values():
    image = grey(50, 200, np.float32)
    image.data[:30] = np.nan
    assert warnings(image, dtype="float32") == []
    image.data[:] = np.nan
    assert warnings(image, dtype="float32") == []


def test_what_is_said_of_one_model_is_not_said_again_of_the_next():
    specs = [SPEC, SPEC.model_copy(update={"pixel_size": {"Y": 2.1, "X": 2.1}})]
    (said,) = check_image(models(*specs), sized(6.0), sized(6.0).samples()).sentences
    assert "trained at 2:" in said
    # Too far from one of them only.
    (said,) = check_image(
        models(*specs[::-1]), sized(2.5), sized(2.5).samples()
    ).sentences
    assert "trained at 2:" in said
    rgb = SPEC.model_copy(update={"in_channels": 3})
    with pytest.raises(ImageError, match="trained on 3 channels"):
        check_image(models(SPEC, rgb), sized(2.0), sized(2.0).samples())
