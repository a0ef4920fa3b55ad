from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from napari_strata.core.classes import ClassMap
from napari_strata.core.errors import ImageError
from napari_strata.core.image import AnnotatedImage, Image, LabelImage, as_pairs

SIZES = dict(zip("TCZYX", (2, 3, 4, 5, 6), strict=True))
FULL = np.arange(2 * 3 * 4 * 5 * 6).reshape(2, 3, 4, 5, 6)
"""TCZYX, every number once."""


def _stored(letters: str) -> Image:
    """The part of FULL that `letters` can hold, stored in their order."""
    whole = FULL[tuple(slice(None) if a in letters else 0 for a in "TCZYX")]
    ordered = [a for a in "TCZYX" if a in letters]
    return Image(whole.transpose([ordered.index(a) for a in letters]), letters)


@given(st.sampled_from(["".join(p) for p in permutations("TCZYX")]), st.data())
def test_read_answers_the_same_however_the_array_is_stored(
    letters: str, data: st.DataObject
) -> None:
    image = _stored(letters)
    t, z = data.draw(st.integers(0, 1)), data.draw(st.integers(0, 3))
    y = slice(data.draw(st.integers(0, 2)), data.draw(st.integers(3, 5)))
    np.testing.assert_array_equal(
        image.read({"T": t, "Z": z, "Y": y}), FULL[t, :, z, y]
    )
    np.testing.assert_array_equal(image.read({"T": t}), FULL[t])


def test_read_always_has_channels_and_keeps_z_unless_it_is_an_index() -> None:
    assert _stored("YX").read().shape == (1, 5, 6)
    assert _stored("ZYX").read().shape == (1, 4, 5, 6)
    assert _stored("ZYX").read({"Z": 2}).shape == (1, 5, 6)
    assert _stored("ZYX").read({"Z": slice(1, 3)}).shape == (1, 2, 5, 6)
    assert _stored("YXC").read().shape == (3, 5, 6)


def test_read_takes_the_last_plane_by_minus_one() -> None:
    np.testing.assert_array_equal(_stored("ZYX").read({"Z": -1})[0], FULL[0, 0, 3])


def test_read_needs_a_time_point_when_there_are_several() -> None:
    with pytest.raises(ImageError, match="2 time points"):
        _stored("TYX").read()
    with pytest.raises(ImageError, match="T=index"):
        _stored("TYX").read({"T": slice(0, 1)})
    assert Image(np.zeros((1, 5, 6)), "TYX").read().shape == (1, 5, 6)


def test_read_keeps_the_dtype_and_reads_only_the_region() -> None:
    class Spy:
        shape, dtype = (100, 5, 6), np.dtype(np.uint16)

        def __getitem__(self, key: tuple[slice, ...]) -> np.ndarray:
            self.key = key
            return np.zeros(
                [
                    len(range(*k.indices(n)))
                    for k, n in zip(key, self.shape, strict=True)
                ],
                self.dtype,
            )

    spy = Spy()
    array = Image(spy, "ZYX").read({"Z": 7, "X": slice(2, 4)})
    assert array.dtype == np.uint16
    assert spy.key == (slice(7, 8), slice(None), slice(2, 4))


def test_planes_and_region_index() -> None:
    image = _stored("ZTYX")
    planes = list(image.planes())
    assert planes[:2] == [{"T": 0, "Z": 0}, {"T": 0, "Z": 1}]
    assert len(planes) == 8
    out = np.zeros(image.label_shape, int)
    for number, plane in enumerate(planes):
        out[image.region_index(plane)] += number
    assert out.shape == (4, 2, 5, 6)
    assert out[3, 1].tolist() == np.full((5, 6), 7).tolist()
    assert list(_stored("YXC").planes()) == [{}]


def test_axes_must_be_known() -> None:
    assert Image(np.zeros((5, 6))).axes == "YX"
    with pytest.raises(
        ImageError,
        match=r"stack: the axes of an array of shape \(3, 5, 6\) cannot be "
        r"known.*axes='ZYX'",
    ):
        Image(np.zeros((3, 5, 6)), name="stack")


@pytest.mark.parametrize("shape", [(0, 5), (5, 0)])
def test_an_image_has_pixels(shape: tuple[int, int]) -> None:
    with pytest.raises(ImageError, match="without pixels"):
        Image(np.zeros(shape))


def test_scale_and_units_are_filled_or_must_fit() -> None:
    image = Image(
        np.zeros((2, 5, 6)), "ZYX", scale=(2, 0.5, 0.25), units=("micrometer",) * 3
    )
    assert image.pixel_size == {"Z": 2.0, "Y": 0.5, "X": 0.25}
    assert image.pixel_unit == "micrometer"
    assert Image(np.zeros((5, 6))).scale == (1.0, 1.0)
    with pytest.raises(ImageError, match="found 1 scale for 2 dimensions"):
        Image(np.zeros((5, 6)), scale=(1.0,))
    with pytest.raises(ImageError, match="found 3 units for 2 dimensions"):
        Image(np.zeros((5, 6)), units=("pixel",) * 3)


def test_samples_cover_planes_evenly_and_repeat() -> None:
    image = Image(np.arange(20)[:, None, None] * np.ones((20, 3, 4)), "ZYX")
    samples = image.samples(planes=3)
    assert [s.shape for s in samples] == [(1, 12)] * 3
    assert [float(s[0, 0]) for s in samples] == [0.0, 10.0, 19.0]
    assert [s.tolist() for s in image.samples(planes=3)] == [
        s.tolist() for s in samples
    ]
    assert len(_stored("YX").samples()) == 1


def test_samples_of_a_large_plane_are_blocks_from_all_over() -> None:
    rows, columns = np.indices((100, 60))
    (sample,) = Image(np.stack([rows, columns]), "CYX").samples(side=5, blocks=4)
    assert sample.shape == (2, 4 * 4 * 25)
    assert set(sample[0]) == {
        0,
        1,
        2,
        3,
        4,
        31,
        32,
        33,
        34,
        35,
        63,
        64,
        65,
        66,
        67,
        95,
        96,
        97,
        98,
        99,
    }
    assert (sample[1].min(), sample[1].max()) == (0, 59)


def test_describe() -> None:
    sand = Image(
        np.zeros((8, 4, 5), np.uint16),
        "ZYX",
        scale=(2.1,) * 3,
        units=("micrometer",) * 3,
        name="sand",
    )
    assert sand.describe() == "sand, 8 x 4 x 5 (ZYX), uint16, 2.1 micrometer"
    flat = Image(np.zeros((4, 5, 3), np.uint8), "YXS", name="photo")
    assert flat.describe() == "photo, 4 x 5 x 3 (YXC), uint8"
    uneven = Image(np.zeros((2, 4, 5)), "ZYX", scale=(2, 1, 1))
    assert uneven.describe().endswith("float64, 2 x 1 x 1 pixel")


def test_labels_like_and_with_axes() -> None:
    image = Image(
        np.zeros((4, 3, 5, 6)),
        "ZCYX",
        scale=(3, 1, 2, 2),
        units=("um", "pixel", "um", "um"),
        name="a",
    )
    classes = ClassMap(names=("a", "b"), values=(0, 1))
    labels = image.labels_like(np.zeros((4, 5, 6), np.uint8), classes=classes)
    assert isinstance(labels, LabelImage)
    assert (labels.axes, labels.scale, labels.units, labels.name) == (
        "ZYX",
        (3, 2, 2),
        ("um",) * 3,
        "a",
    )
    assert labels.classes == classes
    assert image.label_shape == (4, 5, 6)
    assert (
        Image(np.zeros((4, 5, 6)), "ZYX", notes=("page axis taken as Z",))
        .with_axes("tyx")
        .axes
        == "TYX"
    )
    with pytest.raises(ImageError):
        image.with_axes("ZYX")


def test_annotated_image_compares_sizes_by_axis() -> None:
    image = Image(np.zeros((4, 5, 6, 3)), "ZYXC", name="rock")
    assert (
        AnnotatedImage(image, LabelImage(np.zeros((5, 6, 4), int), "YXZ")).name
        == "rock"
    )
    assert (
        AnnotatedImage(
            Image(np.zeros((1, 5, 6)), "ZYX"), LabelImage(np.zeros((5, 6), int))
        ).name
        == "image"
    )
    with pytest.raises(
        ImageError, match=r"rock: .*differ along Z: 4 against 1; X: 6 against 7"
    ):
        AnnotatedImage(image, LabelImage(np.zeros((5, 7), int)))


def test_as_pairs() -> None:
    pair = AnnotatedImage(Image(np.zeros((5, 6))), LabelImage(np.zeros((5, 6), int)))
    assert as_pairs(pair) == [pair]
    assert as_pairs((pair, pair)) == [pair, pair]


def test_describe_names_each_unit_where_they_differ() -> None:
    image = Image(
        np.zeros((2, 3, 4), np.uint8),
        "ZYX",
        scale=(1, 0.5, 0.5),
        units=("pixel", "nanometer", "nanometer"),
    )
    assert (
        image.describe()
        == "image, 2 x 3 x 4 (ZYX), uint8, 1 pixel x 0.5 nanometer x 0.5 nanometer"
    )


@pytest.mark.parametrize("step", [0, -1, float("nan"), float("inf")])
def test_steps_that_are_no_sizes_are_refused(step: float) -> None:
    with pytest.raises(ImageError, match="finite number above 0"):
        Image(np.zeros((4, 4)), scale=(1, step))
