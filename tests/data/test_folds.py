"""Every labelled part validates once, what belongs together stays together, and neighbours do not train."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_strata.core.classes import ClassMap
from napari_strata.core.errors import LabelError
from napari_strata.core.image import AnnotatedImage, Image, LabelImage
from napari_strata.data.folds import fold_pairs

CLASSES = ClassMap(names=("pore", "clay", "quartz"), values=(1, 2, 3), unlabelled=(0,))


def pair(labels, axes="ZYX", *, name="sand", source=None):
    image = Image(np.zeros(labels.shape, np.uint8), axes, name=name, source=source)
    return AnnotatedImage(image, LabelImage(labels, axes), name)


def random_labels(shape, seed=0):
    return np.random.default_rng(seed).integers(1, 4, shape).astype(np.uint8)


def photos(count, names=()):
    names = names or [f"photo {i}" for i in range(count)]
    return [
        pair(random_labels((60, 60), i), "YX", name=name)
        for i, name in enumerate(names)
    ]


def folds(pairs, k, seed=0, **options):
    return fold_pairs(pairs, k, seed=seed, classes=CLASSES, **options)


def places(parts):
    return [(p.pair.name, *sorted(p.index.items())) for p in parts]


@settings(deadline=None, max_examples=60)
@given(
    depths=st.lists(st.integers(1, 14), min_size=1, max_size=5),
    k=st.integers(2, 6),
    seed=st.integers(0, 99),
)
def test_each_part_validates_once_and_never_in_the_fold_that_it_trains(depths, k, seed):
    pairs = [
        pair(random_labels((depth, 8, 8), i), name=f"s{i}")
        for i, depth in enumerate(depths)
    ]
    if sum(depths) < k:
        with pytest.raises(LabelError, match="fewer than"):
            folds(pairs, k, seed)
        return
    found = folds(pairs, k, seed)
    assert len(found) == k
    held = Counter(place for split in found for place in places(split.validation))
    assert set(held.values()) == {1}
    assert len(held) == sum(depths)
    for split in found:
        assert split.training
        assert split.validation
        learn, check = set(places(split.training)), set(places(split.validation))
        assert not learn & check
        if len(depths) < k:
            # By slice: where there are long stretches, no neighbour of a held slice trains.
            for name, (letter, z) in check:
                if depths[int(name[1:])] > 8:
                    assert (
                        not {(name, (letter, z - 1)), (name, (letter, z + 1))} & learn
                    )
        else:
            assert not {name for name, *_ in learn} & {name for name, *_ in check}


def test_images_are_held_back_whole_and_evenly():
    found = folds(photos(11), 5)
    assert sorted(len(split.validation) for split in found) == [2, 2, 2, 2, 3]
    names = [part.pair.name for part in found[0].validation]
    assert found[0].text == f"{len(names)} of 11 images: {', '.join(names)}"
    assert all(split.warnings == () for split in found)


def test_the_same_seed_gives_the_same_folds_and_another_other_ones():
    texts = [[split.text for split in folds(photos(12), 3, seed)] for seed in (4, 4, 5)]
    assert texts[0] == texts[1] != texts[2]


def test_two_stacks_for_five_folds_are_split_by_slice():
    found = folds(
        [pair(random_labels((4, 8, 8), i), name=f"s{i}") for i in range(2)], 4
    )
    assert all(" of 8 slices: s" in split.text for split in found)
    assert all(len(split.validation) == 2 for split in found)
    assert all(len(split.training) == 6 for split in found)


def test_a_long_stack_is_held_back_in_runs_with_a_gap():
    found = folds(pair(random_labels((40, 8, 8))), 4)
    last = -1
    for split in found:
        held = [part.index["Z"] for part in split.validation]
        assert held == list(range(held[0], held[-1] + 1))
        assert 7 <= len(held) <= 15
        beside = sorted({held[0] - 1, held[-1] + 1} & set(range(40)))
        assert [part.index["Z"] for part in split.training] == sorted(
            set(range(40)) - {*held, *beside}
        )
        assert split.text == (
            f"{len(held)} of 40 slices: {held[0]} to {held[-1]}; left out beside them: "
            f"{', '.join(map(str, beside))}"
        )
        assert held[0] == last + 1
        last = held[-1]


def test_nine_slices_in_nine_folds():
    found = folds(pair(random_labels((9, 8, 8))), 9)
    assert [part.index["Z"] for split in found for part in split.validation] == list(
        range(9)
    )
    assert found[0].text == "1 of 9 slices: 0; left out beside it: 1"


def test_time_points_validate_with_all_their_slices():
    found = folds(pair(random_labels((4, 2, 8, 8)), "TZYX"), 2)
    for split in found:
        times = Counter(part.index["T"] for part in split.validation)
        assert set(times.values()) == {2}
        assert " of 4 time points: " in split.text


NAMES = ["rock1_a", "rock1_b", "rock2_a", "rock2_b", "rock2_c", "rock3_a"]


def test_images_of_one_specimen_stay_together():
    for seed in range(4):
        found = folds(photos(6, NAMES), 3, seed, group="^(rock[0-9]+)_")
        assert sorted(split.text for split in found) == [
            f"1 of 3 specimens: rock{i}" for i in (1, 2, 3)
        ]
        for split in found:
            sides = [
                {part.pair.name.split("_")[0] for part in side}
                for side in (split.training, split.validation)
            ]
            assert not sides[0] & sides[1]


def test_a_group_may_be_the_whole_match_or_stand_in_the_path():
    assert len(folds(photos(6, NAMES), 3, group="rock[0-9]")) == 3
    pairs = [
        pair(random_labels((60, 60), i), "YX", name=f"{i}", source=f"/data/{s}/{i}.tif")
        for i, s in enumerate("aab")
    ]
    assert {split.text for split in folds(pairs, 2, group="/data/(.)/")} == {
        f"1 of 2 specimens: {s}" for s in "ab"
    }


@pytest.mark.parametrize(
    ("pairs", "k", "group", "words"),
    [
        (
            photos(3),
            5,
            None,
            ("found 3 images with 3 slices", "fewer than the 5 folds", "use --folds 3"),
        ),
        (photos(1), 2, None, ("found 1 image with 1 slice", "train")),
        (
            pair(random_labels((4, 8, 8))),
            5,
            None,
            ("found 1 image with 4 slices", "use --folds 4"),
        ),
        (
            photos(6, NAMES),
            4,
            "^(rock[0-9])",
            ("3 specimens (rock1, rock2, rock3) in 6 images", "use --folds 3"),
        ),
        (photos(6, NAMES), 3, "^(stone)", ("finds no specimen", "rock1_a, rock1_b")),
        (photos(6, NAMES), 3, "(rock", ("is not a regular expression",)),
        (photos(6), 1, None, ("at least 2",)),
        (pair(random_labels((9, 8, 8)) * 0), 2, None, ("no labelled pixel",)),
    ],
)
def test_what_cannot_be_folded_is_refused_in_words(pairs, k, group, words):
    with pytest.raises(LabelError) as caught:
        folds(pairs, k, group=group)
    for word in words:
        assert word in str(caught.value)


def test_slices_without_a_label_do_not_count():
    labels = np.zeros((30, 60, 60), np.uint8)
    labels[::10] = random_labels((3, 60, 60))
    found = folds(pair(labels), 3)
    assert sorted(part.index["Z"] for split in found for part in split.validation) == [
        0,
        10,
        20,
    ]
    assert all(len(split.training) == 2 for split in found)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 500))
def test_a_class_of_two_images_is_in_both_halves_of_each_fold_that_can_have_it(seed):
    """Of 6 images in 2 folds two have clay: parted, each fold trains on one and validates on the other."""
    rng = np.random.default_rng(seed)
    labels = [
        np.where(np.arange(3600).reshape(60, 60) % 2, 1, 3).astype(np.uint8)
        for _ in range(6)
    ]
    for i in rng.choice(6, 2, replace=False):
        labels[i][:5] = 2
    found = folds(
        [pair(one, "YX", name=str(i)) for i, one in enumerate(labels)], 2, seed
    )
    assert all(split.warnings == () for split in found)


def test_folds_are_even_in_labelled_pixels():
    sizes = [100, 10, 10, 10, 10, 100, 10, 10, 10, 10]
    labels = [random_labels((20, 2 * size), i) for i, size in enumerate(sizes)]
    found = folds([pair(one, "YX", name=str(i)) for i, one in enumerate(labels)], 2)
    shares = [sum(part.counts.sum() for part in split.validation) for split in found]
    assert max(shares) <= 1.1 * min(shares)


def test_a_class_that_one_fold_alone_has_is_named():
    pairs = photos(4)
    labels = np.asarray(pairs[1].labels.data)
    for one in pairs:
        np.asarray(one.labels.data)[np.asarray(one.labels.data) == 2] = 1
    labels[:5] = 2
    warnings = [split.warnings for split in folds(pairs, 4)]
    assert (
        sum(
            "'clay' (value 2) has no labelled pixel in training" in " ".join(one)
            for one in warnings
        )
        == 1
    )
    assert (
        sum(
            "'clay' (value 2) has no labelled pixel in validation" in " ".join(one)
            for one in warnings
        )
        == 3
    )


def test_too_few_pixels_are_said_once_for_all_folds():
    pairs = [pair(random_labels((20, 20), i), "YX", name=str(i)) for i in range(4)]
    warnings = [text for split in folds(pairs, 4) for text in split.warnings]
    assert (
        len([text for text in warnings if "1600 labelled pixels in all" in text]) == 1
    )
    assert len(warnings) == 1
