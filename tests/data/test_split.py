"""No pixel is in both halves, classes are in both where that can be, and what happened is said in words."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given as hypothesis_given
from hypothesis import settings
from hypothesis import strategies as st

from napari_strata.core.classes import ClassMap
from napari_strata.core.errors import LabelError
from napari_strata.core.image import AnnotatedImage, Image, LabelImage
from napari_strata.data import leakage
from napari_strata.data.blocks import best_cut, gap_for
from napari_strata.data.regions import labelled_regions
from napari_strata.data.split import split_given, split_pairs

CLASSES = ClassMap(names=("pore", "clay", "quartz"), values=(1, 2, 3), unlabelled=(0,))


@pytest.fixture(autouse=True, scope="module")
def _small_is_enough():
    """Pictures here are tiny, so that they are many; test_split_leakage.py tests what is said of that."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(leakage, "PIXELS", 0)
        patch.setattr(leakage, "CLASS_PIXELS", 0)
        patch.setattr(leakage, "MANY_REGIONS", 1000)
        yield


def pair(labels, axes="ZYX", *, name="sand", source=None, image=None):
    image = np.zeros(labels.shape, np.uint8) if image is None else image
    return AnnotatedImage(
        Image(image, axes, name=name, source=source), LabelImage(labels, axes), name
    )


def random_labels(shape, seed=0, p=(0.25, 0.25, 0.25, 0.25)):
    return np.random.default_rng(seed).choice(4, shape, p=p).astype(np.uint8)


def photos(count, shape=(20, 20)):
    return [
        pair(random_labels(shape, i), "YX", name=f"photo {i}") for i in range(count)
    ]


def split(pairs, fraction=0.2, seed=0, classes=CLASSES):
    return split_pairs(pairs, fraction=fraction, seed=seed, classes=classes)


def pixels(parts):
    """The set of pixels that parts cover, each named by image, plane, row and column."""
    return {
        (id(p.pair), *sorted(p.index.items()), y, x)
        for p in parts
        for y in range(p.rows.start, p.rows.stop)
        for x in range(p.columns.start, p.columns.stop)
    }


def indices(parts, letter="Z"):
    return sorted(p.index[letter] for p in parts)


def test_images_are_held_back_whole():
    found = split(photos(10))
    assert len(found.validation) == 2
    assert len(found.training) == 8
    names = [p.pair.name for p in found.validation]
    assert found.text == f"2 of 10 images: {names[0]}, {names[1]}"
    assert not {id(p.pair) for p in found.training} & {
        id(p.pair) for p in found.validation
    }
    assert found.warnings == ()


def test_stacks_are_held_back_with_all_their_slices():
    found = split(
        [pair(random_labels((4, 8, 8), i), name=f"s{i}") for i in range(4)], 0.25
    )
    assert len({id(p.pair) for p in found.validation}) == 1
    assert len(found.validation) == 4
    assert found.text.startswith("1 of 4 images: s")


def test_a_small_share_of_few_stacks_takes_slices_instead_of_a_stack():
    found = split(
        [pair(random_labels((8, 8, 8), i), name=f"s{i}") for i in range(3)], 0.1
    )
    assert len(found.validation) == 2
    assert found.text.startswith("2 of 24 slices: s")


def test_three_single_images_are_split_by_image_however_small_the_share():
    assert split(photos(3), 0.05).text.startswith("1 of 3 images: photo ")


def test_the_same_seed_splits_alike_and_another_differs():
    pairs = photos(20)
    texts = [split(pairs, seed=seed).text for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_slices_of_one_stack():
    found = split(pair(random_labels((8, 12, 12))))
    held = indices(found.validation)
    assert found.text == f"2 of 8 slices: {held[0]}, {held[1]}"
    assert sorted(held + indices(found.training)) == list(range(8))


@pytest.mark.parametrize("number", [1, 2, 7])
def test_a_number_of_images_or_slices_is_held_back(number):
    found = split(photos(8), fraction=number)
    assert (len(found.training), len(found.validation)) == (8 - number, number)
    slices = split(pair(random_labels((8, 20, 20))), fraction=float(number))
    assert slices.text.startswith(f"{number} of 8 slices: ")


@pytest.mark.parametrize(
    ("planes", "number", "words"),
    [(8, 8, "only 8 are labelled"), (1, 2, "fewer than three")],
)
def test_more_than_there_are_cannot_be_held_back(planes, number, words):
    with pytest.raises(LabelError, match=words):
        split(pair(random_labels((planes, 20, 20))), fraction=number)


def test_only_labelled_slices_count():
    labels = np.zeros((40, 8, 8), np.uint8)
    labels[::10] = random_labels((4, 8, 8))
    found = split(pair(labels), 0.25)
    assert len(found.validation) == 1
    assert sorted(indices(found.validation) + indices(found.training)) == [
        0,
        10,
        20,
        30,
    ]
    assert " of 4 slices: " in found.text


@pytest.mark.parametrize("seed", range(6))
def test_a_long_labelled_stack_gives_a_run_with_its_neighbours_left_out(seed):
    found = split(pair(random_labels((20, 8, 8))), seed=seed)
    held, learnt = indices(found.validation), indices(found.training)
    assert held == list(range(held[0], held[0] + 4))
    lost = sorted({held[0] - 1, held[-1] + 1} & set(range(20)))
    assert sorted(held + learnt + lost) == list(range(20))
    assert found.text == (
        f"4 of 20 slices: {held[0]} to {held[-1]}; left out beside them: "
        f"{', '.join(map(str, lost))}"
    )


def test_a_run_of_one_slice_and_a_run_that_wants_nearly_all():
    one = split(pair(random_labels((10, 8, 8))), 0.1)
    assert one.text.startswith(
        f"1 of 10 slices: {one.validation[0].index['Z']}; left out beside it: "
    )
    most = split(pair(random_labels((9, 8, 8))), 0.95)
    assert len(most.validation) == 6
    assert most.training


def test_eight_slices_in_a_row_are_scattered():
    starts = {
        tuple(indices(split(pair(random_labels((8, 8, 8))), 0.3, seed).validation))
        for seed in range(12)
    }
    assert any(b - a > 1 for a, b in starts)


def test_a_run_is_taken_from_one_of_two_long_stacks():
    found = split([pair(random_labels((12, 8, 8), i), name=f"s{i}") for i in range(2)])
    assert len({id(p.pair) for p in found.validation}) == 1
    held = indices(found.validation)
    assert held == list(range(held[0], held[0] + 5))


def test_time_points_stay_together():
    found = split(pair(random_labels((5, 2, 8, 8)), "TZYX"))
    times = {p.index["T"] for p in found.validation}
    assert len(times) == 1
    assert len(found.validation) == 2
    assert found.text == f"1 of 5 time points: {times.pop()}"


def test_two_time_points_are_split_by_slice_at_both_times():
    found = split(pair(random_labels((2, 4, 8, 8)), "TZYX"), 0.25)
    (z,) = {p.index["Z"] for p in found.validation}
    assert {p.index["T"] for p in found.validation} == {0, 1}
    assert z not in {p.index["Z"] for p in found.training}
    assert found.text == f"1 of 4 slices: {z}"


def test_images_of_time_without_z():
    assert " of 6 time points: " in split(pair(random_labels((6, 8, 8)), "TYX")).text


def test_the_only_slice_gives_a_strip_with_a_gap():
    found = split(pair(random_labels((100, 100)), "YX"), seed=3)
    side = found.text.split()[1]
    assert found.text == f"the {side} 20 % of the only labelled slice, 16 pixels apart"
    (held,), (learnt,) = found.validation, found.training
    axis = {"left": 1, "right": 1, "top": 0, "bottom": 0}[side]
    first, second = sorted(
        [(held, learnt)[i].columns if axis else (held, learnt)[i].rows for i in (0, 1)],
        key=str,
    )
    low, high = sorted([first, second], key=lambda s: s.start)
    assert (low.start, high.stop, high.start - low.stop) == (0, 100, 16)
    assert held.shape[axis] == 20
    assert held.shape[1 - axis] == 100
    assert ("columns" if axis else "rows") in held.name


def test_two_slices_give_the_same_strip_of_both():
    found = split(pair(random_labels((2, 80, 80))))
    assert len(found.validation) == len(found.training) == 2
    assert (
        len({(p.rows.start, p.columns.start, p.shape) for p in found.validation}) == 1
    )
    assert "of every slice" in found.text


def test_a_strip_in_the_middle_leaves_a_block_on_either_side():
    labels = np.zeros((60, 200), np.uint8)
    for k, (a, b) in enumerate([(0, 60), (80, 120), (140, 200)]):
        labels[:, a:b] = k + 1
    labels[:, 85:95] = 1
    labels[:, 105:115] = 3
    labels[:, :10] = (
        2  # every class is in the middle and outside it, but the ends lack one or two
    )
    found = split(pair(labels, "YX"), 0.25)
    assert found.warnings == ()
    for parts in (found.training, found.validation):
        assert (sum(p.counts for p in parts) > 0).all()


def thin(width):
    """Class 1 everywhere, 2 at the left, 3 at the right, and all of them in the middle."""
    labels = np.zeros((4, width), np.uint8)
    for value, places in {
        1: [(0, 20), (90, 110), (180, 200)],
        2: [(5, 10), (95, 100)],
        3: [(185, 190), (100, 105)],
    }.items():
        for start, stop in places:
            labels[:, start * width // 200 : stop * width // 200] = value
    return labels


def test_a_strip_in_the_middle_says_which_columns():
    found = split(pair(thin(200), "YX"), 0.3)
    (held,) = found.validation
    assert found.warnings == ()
    columns = f"columns {held.columns.start} to {held.columns.stop - 1}"
    assert found.text == f"{columns} of the only labelled slice, 16 pixels apart"
    assert [p.columns for p in found.training] == [
        slice(0, held.columns.start - 16),
        slice(held.columns.stop + 16, 200),
    ]


def test_a_thin_picture_is_cut_across_so_that_the_gap_is_whole():
    for seed in range(8):
        found = split(pair(random_labels((20, 200)), "YX"), seed=seed)
        assert found.text.split()[1] in ("left", "right")
        assert "16 pixels apart" in found.text


def test_strips_of_images_of_different_size_are_told_by_share():
    found = split([pair(thin(400), "YX"), pair(thin(200), "YX")], 0.3)
    assert found.text == "30 % of the columns of every slice, 16 pixels apart"
    assert sorted(p.shape[1] for p in found.validation) == [60, 120]
    assert found.warnings == ()


def test_counts_of_blocks_are_those_of_their_pixels():
    found = split(pair(random_labels((50, 64)), "YX"))
    for part in found.training + found.validation:
        codes = part.read_class_indices(CLASSES)
        np.testing.assert_array_equal(
            part.counts, [(codes == k).sum() for k in range(3)]
        )


def test_where_too_little_is_labelled_nothing_is_held_back_and_it_is_said():
    labels = np.zeros((50, 50), np.uint8)
    labels[20, 20] = 1
    found = split(pair(labels, "YX"))
    assert found.validation == []
    assert len(found.training) == 1
    assert found.text == "none: too little is labelled"
    assert "nothing could be held back for validation" in found.warnings[0]


@pytest.mark.parametrize("fraction", [0, 0.0, None])
def test_no_validation_when_none_is_asked_for(fraction):
    found = split(photos(5), fraction)
    assert len(found.training) == 5
    assert found.validation == []
    assert found.text.startswith("none, as the recipe asks")
    assert found.warnings == ()


@settings(deadline=None, max_examples=60)
@hypothesis_given(
    shape=st.one_of(
        st.tuples(st.integers(1, 14), st.integers(2, 40), st.integers(2, 40)),
        st.tuples(st.just(1), st.integers(1, 90), st.integers(1, 90)),
    ),
    images=st.integers(1, 4),
    fraction=st.sampled_from([0.05, 0.2, 0.5, 0.9]),
    seed=st.integers(0, 1000),
)
def test_halves_never_share_a_pixel_and_keep_their_gap(shape, images, fraction, seed):
    labels = [
        random_labels(shape, seed + i, (0.9, 0.04, 0.03, 0.03)) for i in range(images)
    ]
    for one in labels:
        one[0, 0, 0] = 1
    found = split(
        [pair(one, name=str(i)) for i, one in enumerate(labels)], fraction, seed
    )
    assert found.training
    assert not pixels(found.training) & pixels(found.validation)
    for parts in (found.training, found.validation):
        assert all(p.counts.any() for p in parts)
    for held in found.validation:
        for part in found.training:
            if part.pair is held.pair and part.index == held.index:
                apart = [
                    max(a.start - b.stop, b.start - a.stop)
                    for a, b in ((held.rows, part.rows), (held.columns, part.columns))
                ]
                axis = int(np.argmax(apart))
                assert apart[axis] >= gap_for(shape[1:][axis])


@settings(deadline=None, max_examples=40)
@hypothesis_given(seed=st.integers(0, 1000), count=st.integers(4, 9))
def test_every_class_is_in_both_halves_when_that_can_be(seed, count):
    """Each rare class lies in two images only; a draw that parts them exists and is found."""
    rng = np.random.default_rng(seed)
    labels = [np.full((8, 8), 1, np.uint8) for _ in range(count)]
    first, second = rng.choice(count, 2, replace=False)
    for i in (first, second):
        labels[i][0], labels[i][1] = 2, 3
    found = split(
        [pair(one, "YX", name=str(i)) for i, one in enumerate(labels)], 1 / count, seed
    )
    assert found.warnings == ()
    for parts in (found.training, found.validation):
        assert (sum(p.counts for p in parts) > 0).all()


def test_a_class_of_one_image_goes_to_training_and_is_named():
    labels = [np.full((8, 8), 1, np.uint8) for _ in range(5)]
    labels[2][:4] = 2
    found = split([pair(one, "YX", name=str(i)) for i, one in enumerate(labels)])
    assert found.validation[0].pair.name != "2"
    assert found.warnings == (
        "class 'quartz' (value 3) has no labelled pixel anywhere, so it cannot be "
        "learnt.",
        "class 'clay' (value 2) has no labelled pixel in validation, so its score is "
        "not known.",
    )


def test_the_share_of_labelled_pixels_comes_close_to_the_one_asked_for():
    labels = [np.full((10, 10 * size), 1, np.uint8) for size in (1, 1, 1, 1, 20)]
    found = split([pair(one, "YX", name=str(i)) for i, one in enumerate(labels)], 0.2)
    held = sum(p.counts.sum() for p in found.validation)
    assert held == 100  # 1/24 lies closer to 1/5 than 20/24 does


def test_an_image_without_a_label_is_named():
    pairs = photos(4)
    pairs.append(pair(np.zeros((20, 20), np.uint8), "YX", name="blank"))
    found = split(pairs)
    assert found.warnings == ("no labelled pixel, so left out: blank.",)
    assert " of 4 images" in found.text


def test_validation_that_was_given():
    train, check = photos(3), pair(np.full((9, 9), 1, np.uint8), "YX", name="check")
    found = split_given(train, check, CLASSES)
    assert len(found.training) == 3
    assert [p.pair for p in found.validation] == [check]
    assert found.text == "1 image given: check"
    assert found.warnings == (
        "classes 'clay' (value 2) and 'quartz' (value 3) have no labelled pixel in "
        "validation, so their scores are not known.",
    )


def test_a_class_that_only_validation_has_is_named():
    found = split_given(pair(np.full((9, 9), 1, np.uint8), "YX"), photos(2), CLASSES)
    assert found.text == "2 images given: photo 0, photo 1"
    assert (
        found.warnings[0]
        == "classes 'clay' (value 2) and 'quartz' (value 3) have no labelled pixel in "
        "training, so they cannot be learnt."
    )


def test_an_image_in_both_halves_is_refused():
    stack = np.arange(6 * 8 * 8).reshape(6, 8, 8)
    labels = random_labels((6, 8, 8))
    one = pair(labels, image=stack, name="one")
    for other in (
        one,
        pair(labels, image=stack, name="two"),
        pair(labels[2:], image=stack[2:], name="three"),
    ):
        with pytest.raises(LabelError, match=f"^{other.name}: found it twice"):
            split_given(one, [*photos(1), other], CLASSES)
    split_given(
        pair(labels[:3], image=stack[:3]), pair(labels[3:], image=stack[3:]), CLASSES
    )


def test_a_file_in_both_halves_is_refused_but_not_another_series_or_part_of_it():
    labels, stack = random_labels((4, 8, 8)), np.arange(256).reshape(4, 8, 8)

    def read(name="sand", image=stack):
        return pair(labels, name=name, source="sand.tif", image=image.copy())

    with pytest.raises(LabelError, match="found it twice"):
        split_given(read(), read(), CLASSES)
    hole = np.where(stack == 7, np.nan, stack)
    with pytest.raises(LabelError, match="found it twice"):
        split_given(read(image=hole), read(image=hole), CLASSES)
    split_given(read(), read("series 2"), CLASSES)
    split_given(read(), read(image=stack + 500), CLASSES)


def test_an_image_listed_twice_under_two_names_is_refused_and_the_same_object_taken_once():
    pairs = photos(5)
    again = AnnotatedImage(pairs[0].image, pairs[0].labels, "again")
    with pytest.raises(LabelError, match=r"^again: found it twice"):
        split([*pairs, again])
    assert " of 5 images" in split([*pairs, pairs[0]]).text


def test_nothing_labelled_is_refused():
    with pytest.raises(LabelError, match="no labelled pixel"):
        split(pair(np.zeros((5, 5), np.uint8), "YX"))
    with pytest.raises(LabelError, match="no labelled pixel"):
        split_given(photos(2), pair(np.zeros((5, 5), np.uint8), "YX"), CLASSES)


def test_strips_are_read_strip_by_strip(monkeypatch):
    from napari_strata.data import regions as module

    parts = labelled_regions(pair(random_labels((64, 40)), "YX"), CLASSES)
    cuts = []
    for size in (module.STRIP_PIXELS, 100):
        monkeypatch.setattr(module, "STRIP_PIXELS", size)
        cuts.append(
            best_cut(parts, CLASSES, fraction=0.2, rng=np.random.default_rng(0))
        )
    assert cuts[0].text == cuts[1].text
    np.testing.assert_array_equal(
        cuts[0].training[0].counts, cuts[1].training[0].counts
    )
