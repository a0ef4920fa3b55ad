"""Parts read the right pixels; what is not finite or not labelled never counts."""

from __future__ import annotations

import numpy as np
import pytest

from napari_strata.core.classes import IGNORE, ClassMap
from napari_strata.core.errors import LabelError
from napari_strata.core.image import AnnotatedImage, Image, LabelImage
from napari_strata.data import regions as module
from napari_strata.data.regions import (
    LabelledRegion,
    count_labels,
    find_nonfinite,
    join_names,
    label_counts,
    labelled_regions,
)

CLASSES = ClassMap.from_values([0, 1, 3, 7], unlabelled=[0])


def pair(image, labels, axes="ZYX", *, label_axes="", name="sand", source=None):
    return AnnotatedImage(
        Image(image, axes, name=name),
        LabelImage(labels, label_axes or axes, source=source),
        name,
    )


def stack(shape=(3, 8, 10), seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 1000, shape).astype(np.uint16), rng.choice(
        [0, 1, 3, 7], shape
    ).astype(np.uint8)


def test_a_part_reads_its_plane_and_block():
    image, labels = stack()
    part = LabelledRegion(
        pair(image, labels), {"Z": 2}, (slice(2, 7), slice(None)), "sand Z=2"
    )
    assert part.shape == (5, 10)
    assert part.columns == slice(0, 10)
    assert part.read_image().dtype == np.uint16
    np.testing.assert_array_equal(part.read_image(), image[None, 2, 2:7])
    codes = np.array([IGNORE, 0, 0, 1, 0, 0, 0, 2], np.uint8)[labels[2, 2:7]]
    np.testing.assert_array_equal(part.read_class_indices(CLASSES), codes)


def test_a_block_counts_from_its_parts_corner():
    image, labels = stack()
    part = LabelledRegion(
        pair(image, labels), {"Z": 1}, (slice(2, 8), slice(3, 10)), "sand"
    )
    block = part.block((slice(1, 4), slice(0, 2)), name="corner")
    np.testing.assert_array_equal(block.read_image()[0], image[1, 3:6, 3:5])
    assert block.name == "corner"
    assert block.counts is None


def test_axes_in_any_order():
    image, labels = stack((4, 6, 5))
    (_, part, *_) = labelled_regions(
        pair(
            image.transpose(2, 0, 1), labels.transpose(1, 0, 2), "XTY", label_axes="YTX"
        ),
        CLASSES,
    )
    assert part.index == {"T": 1}
    np.testing.assert_array_equal(part.read_image()[0], image[1])
    np.testing.assert_array_equal(part.read_class_indices(CLASSES) == 2, labels[1] == 7)


def test_labels_with_channels_and_a_class_map_of_values_are_refused():
    image, labels = stack((2, 6, 5))
    with pytest.raises(
        LabelError,
        match=r"sand: found labels with 2 channels and classes \[1, 3, 7\] given as "
        r"values",
    ):
        labelled_regions(pair(image, labels, "CYX"), CLASSES)


def test_channels_come_first_and_labels_may_have_a_z_of_one():
    image, labels = stack((2, 6, 5))
    given = pair(image.transpose(1, 2, 0), labels[:1], "YXC", label_axes="ZYX")
    (part,) = labelled_regions(given, CLASSES)
    np.testing.assert_array_equal(part.read_image(), image)
    assert part.read_class_indices(CLASSES).shape == (6, 5)
    assert part.name == "sand"


def test_labels_of_rgb_masks():
    classes = ClassMap.from_rgb([(255, 0, 0), (0, 0, 255)])
    mask = np.zeros((4, 5, 3), np.uint8)
    mask[..., 0] = 255
    mask[1:3] = (0, 0, 255)
    (part,) = labelled_regions(
        pair(np.ones((4, 5)), mask, "YX", label_axes="YXC"), classes
    )
    expected = np.zeros((4, 5))
    expected[1:3] = 1
    np.testing.assert_array_equal(part.read_class_indices(classes), expected)


def test_a_colour_map_takes_values_too_but_no_other_number_of_channels():
    classes = ClassMap.from_rgb([(255, 0, 0), (0, 0, 255)])
    (part,) = labelled_regions(
        pair(np.ones((4, 5)), np.eye(4, 5, dtype=np.uint8), "YX"), classes
    )
    np.testing.assert_array_equal(part.read_class_indices(classes), np.eye(4, 5))
    with pytest.raises(LabelError, match="found labels with 2 channels"):
        labelled_regions(
            pair(
                np.ones((4, 5)), np.zeros((4, 5, 2), np.uint8), "YX", label_axes="YXC"
            ),
            classes,
        )


def test_whole_keeps_labelled_planes_and_counts_their_pixels():
    image, labels = stack()
    labels[1] = 0
    found = labelled_regions(pair(image, labels), CLASSES)
    assert [p.name for p in found] == ["sand Z=0", "sand Z=2"]
    assert [p.index for p in found] == [{"Z": 0}, {"Z": 2}]
    for part, plane in zip(found, labels[[0, 2]], strict=True):
        np.testing.assert_array_equal(
            part.counts, [(plane == v).sum() for v in (1, 3, 7)]
        )
        assert part.counts.dtype == np.int64


def test_time_and_z_are_named():
    image, labels = stack((2, 3, 8, 10))
    found = labelled_regions(pair(image, labels, "TZYX"), CLASSES)
    assert [p.name for p in found][:4] == [
        "sand T=0 Z=0",
        "sand T=0 Z=1",
        "sand T=0 Z=2",
        "sand T=1 Z=0",
    ]
    np.testing.assert_array_equal(found[4].read_image()[0], image[1, 1])


def test_counting_by_strips_equals_counting_at_once(monkeypatch):
    image, labels = stack((1, 37, 10))
    part = LabelledRegion(
        pair(image.astype(float), labels), {"Z": 0}, (slice(1, None), slice(2, 9)), "x"
    )
    at_once = count_labels(part, CLASSES).counts
    monkeypatch.setattr(module, "STRIP_PIXELS", 25)
    strips = list(part.strips())
    assert [s.rows for s in strips][:2] == [slice(1, 4), slice(4, 7)]
    assert sum(s.shape[0] for s in strips) == 36
    np.testing.assert_array_equal(count_labels(part, CLASSES).counts, at_once)
    assert at_once.sum() == (labels[0, 1:, 2:9] > 0).sum()


def test_counts_of_takes_what_is_counted_and_counts_the_rest():
    image, labels = stack()
    parts = labelled_regions(pair(image, labels), CLASSES)
    fresh = [LabelledRegion(p.pair, p.index, p.box, p.name) for p in parts]
    np.testing.assert_array_equal(
        label_counts(fresh, CLASSES), [p.counts for p in parts]
    )
    assert label_counts([], CLASSES).shape == (0, 3)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_pixels_that_are_not_finite_are_not_labelled(wrong):
    image = np.ones((2, 4, 5), np.float32)
    image[1, 2, 3] = wrong
    (part,) = labelled_regions(
        pair(image, np.full((4, 5), 3), "CYX", label_axes="YX"), CLASSES
    )
    labels = part.read_class_indices(CLASSES)
    assert labels[2, 3] == IGNORE
    assert (labels == 1).sum() == 19
    np.testing.assert_array_equal(part.counts, [0, 19, 0])
    np.testing.assert_array_equal(part.read(CLASSES)[1], labels)
    assert np.array_equal(part.read_image(), image, equal_nan=True)


def test_what_is_not_finite_is_counted_and_located():
    image = np.ones((3, 4, 5))
    image[1, 2, 3] = np.nan
    image[2, 0, 0] = np.inf
    labels = np.ones((3, 4, 5), np.uint8)
    several = pair(image, labels, name="broken")
    single = pair(
        np.where(np.eye(4) * [0, 1, 0, 0], np.nan, 1.0),
        np.ones((4, 4), np.uint8),
        "YX",
        name="one",
    )
    fine, whole_numbers = pair(np.ones((3, 4, 5)), labels), pair(labels, labels)
    assert find_nonfinite([several, fine, whole_numbers, single]) == [
        "broken: found 2 pixels that are not finite (NaN or infinite), the first at "
        "Z=1, Y=2, X=3; taken as "
        "unlabelled.",
        "one: found 1 pixel that is not finite (NaN or infinite), the first at Y=1, "
        "X=1; taken as unlabelled.",
    ]


def test_the_first_pixel_that_is_not_finite_is_located_across_strips(monkeypatch):
    monkeypatch.setattr(module, "STRIP_PIXELS", 10)
    image = np.ones((9, 5))
    image[7:, 4] = np.nan
    assert (
        "found 2 pixels that are not finite (NaN or infinite), the first at Y=7, X=4;"
        in find_nonfinite(pair(image, np.ones((9, 5), int), "YX"))[0]
    )


def test_a_pixel_that_is_not_finite_in_two_channels_counts_once():
    image = np.full((2, 3, 3), np.nan)
    assert (
        "found 9 pixels"
        in find_nonfinite(pair(image, np.ones((3, 3), int), "CYX", label_axes="YX"))[0]
    )


def test_a_value_outside_the_class_map_names_file_and_plane():
    image, labels = stack()
    labels[2, 0, 0] = 9
    with pytest.raises(
        LabelError,
        match=r"^masks/sand.tif \(sand Z=2\): label value 9 is not in the class map",
    ):
        labelled_regions(pair(image, labels, source="masks/sand.tif"), CLASSES)


def test_float_labels_are_refused():
    with pytest.raises(LabelError, match=r"sand.*float64.*integers"):
        labelled_regions(pair(np.ones((4, 4)), np.full((4, 4), 0.33), "YX"), CLASSES)


def test_nothing_labelled_is_an_error_that_names_the_images():
    image, labels = stack()
    with pytest.raises(
        LabelError,
        match=r"no labelled pixel in a, b: every value is unlabelled \(\[0\]\)",
    ):
        labelled_regions(
            [pair(image, labels * 0, name="a"), pair(image, labels * 0, name="b")],
            CLASSES,
        )


def test_long_lists_are_cut():
    assert join_names(["a", "b", "c"], most=2) == "a, b and 1 more"
    assert join_names(["a", "b"], most=2) == "a, b"
