"""Splits of volumes: whole ones, else blocks across the best axis with a gap; never single slices."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_strata.core.classes import ClassMap
from napari_strata.core.errors import ImageError, LabelError
from napari_strata.core.image import AnnotatedImage, Image, LabelImage
from napari_strata.data import leakage
from napari_strata.data.blocks import best_cut, gap_for
from napari_strata.data.folds import fold_pairs
from napari_strata.data.leakage import find_leaks
from napari_strata.data.regions import labelled_regions
from napari_strata.data.split import split_given, split_pairs

CLASSES = ClassMap.from_values([0, 1, 2], unlabelled=[0])
SHAPES = st.tuples(
    st.sampled_from([2, 3, 7, 20]), st.integers(2, 40), st.integers(2, 40)
)


@pytest.fixture(autouse=True, scope="module")
def _small_is_enough():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(leakage, "PIXELS", 0)
        patch.setattr(leakage, "CLASS_PIXELS", 0)
        yield


def pair(labels, axes="ZYX", name="sand", image=None):
    image = np.zeros(labels.shape, np.uint8) if image is None else image
    return AnnotatedImage(Image(image, axes, name=name), LabelImage(labels, axes), name)


def random_labels(shape, seed=0, p=(0.4, 0.3, 0.3)):
    return np.random.default_rng(seed).choice(3, shape, p=p).astype(np.uint8)


def many(count, shape=(4, 12, 12)):
    return [pair(random_labels(shape, i), name=f"rock {i}") for i in range(count)]


def split(pairs, fraction=0.2, seed=0):
    return split_pairs(pairs, fraction=fraction, seed=seed, classes=CLASSES, axes="ZYX")


def mask(parts, one):
    """How often each voxel of an image is covered by parts."""
    covered = np.zeros(one.labels.shape, int)
    for part in parts:
        if part.pair is one:
            covered[part.box] += 1
    return covered


def apart(some, other):
    """Pixels between two blocks of one volume, along the axis where they lie furthest apart, and its length."""
    gaps = [
        max(a.start - b.stop, b.start - a.stop)
        for a, b in zip(some.box, other.box, strict=True)
    ]
    axis = int(np.argmax(gaps))
    return gaps[axis], some.pair.image.shape[axis]


def test_volumes_are_held_back_whole():
    found = split(many(5))
    assert found.text.startswith("1 of 5 images: rock ")
    assert {part.shape for part in (*found.training, *found.validation)} == {
        (4, 12, 12)
    }
    assert len(found.training) == 4


def test_time_points_are_held_back_of_a_series_of_volumes():
    found = split(pair(random_labels((6, 3, 10, 10)), "TZYX"), 0.3)
    assert "2 of 6 time points:" in found.text
    assert all(part.shape == (3, 10, 10) for part in found.validation)


@pytest.mark.parametrize(
    ("shape", "text", "gap"),
    [
        (
            (8, 30, 120),
            r"(left|right) 20 % of the only labelled volume, 16 pixels apart",
            16,
        ),
        (
            (80, 20, 20),
            r"(front|back) 20 % of the only labelled volume, 16 planes apart",
            16,
        ),
        (
            (8, 80, 20),
            r"(top|bottom) 20 % of the only labelled volume, 16 pixels apart",
            16,
        ),
    ],
)
def test_a_single_volume_is_cut_across_its_best_axis(shape, text, gap):
    import re

    found = split(pair(np.maximum(random_labels(shape), 1)))
    assert re.search(text, found.text)
    (learn,), (check,) = found.training, found.validation
    assert apart(learn, check)[0] == gap
    assert found.warnings == ()


def test_slices_are_never_the_unit():
    """Fifty labelled slices are held back as one block, where a 2D network would have slices held back."""
    one = pair(random_labels((50, 24, 24)))
    found = split(one)
    assert len(found.validation) == 1
    assert "slices" not in found.text
    assert "slices" in split_pairs(one, fraction=0.2, seed=0, classes=CLASSES).text
    with pytest.raises(
        LabelError, match="asks for a number of images, but fewer than three are"
    ):
        split(one, 2)


@settings(deadline=None, max_examples=50)
@given(
    shape=SHAPES,
    images=st.integers(1, 4),
    fraction=st.sampled_from([0.05, 0.2, 0.5]),
    seed=st.integers(0, 999),
)
def test_halves_never_share_a_voxel_and_keep_their_gap(shape, images, fraction, seed):
    labels = [random_labels(shape, seed + i, (0.9, 0.05, 0.05)) for i in range(images)]
    for one in labels:
        one[0, 0, 0] = 1
    pairs = [pair(one, name=str(i)) for i, one in enumerate(labels)]
    found = split(pairs, fraction, seed)
    assert found.training
    for one in pairs:
        assert mask([*found.training, *found.validation], one).max() <= 1
    for held in found.validation:
        for part in found.training:
            if part.pair is held.pair:
                distance, length = apart(held, part)
                assert distance >= gap_for(length)


@settings(deadline=None, max_examples=30)
@given(shape=SHAPES, seed=st.integers(0, 999))
def test_a_stack_of_one_plane_is_cut_where_the_plane_is(shape, seed):
    """Z of length 1 cannot be cut, so the volume's strip is that of its plane."""
    labels = random_labels(shape[1:], seed)
    labels[0, 0] = 1
    (plane,) = labelled_regions(pair(labels, "YX"), CLASSES)
    volume = type(plane)(pair(labels[None]), {}, (slice(None),) * 3, "sand")
    cuts = [
        best_cut([part], CLASSES, fraction=0.2, rng=np.random.default_rng(0))
        for part in (plane, volume)
    ]
    if cuts[0] is None:
        assert cuts[1] is None
        return
    for side in ("training", "validation"):
        # Among equals chance decides, so both classes and the share are compared, and not the place.
        flat, deep = (
            sum(part.counts.sum() for part in getattr(cut, side)) for cut in cuts
        )
        assert deep > 0
        assert flat > 0
    assert (cuts[0].validation[0].counts > 0).sum() == (
        cuts[1].validation[0].counts > 0
    ).sum()
    assert all(
        part.box[0] == slice(0, 1) for part in (*cuts[1].training, *cuts[1].validation)
    )


@pytest.mark.parametrize("step", [1, 6])
@pytest.mark.parametrize("folds", [2, 4])
def test_blocks_of_a_single_volume_validate_once_each(folds, step):
    labels = np.maximum(random_labels((60, 30, 22)), 1)
    labels[np.arange(60) % step > 0] = 0
    one = pair(labels)
    splits = fold_pairs(one, folds, seed=0, classes=CLASSES, axes="ZYX")
    total = sum(mask(found.validation, one) for found in splits)
    assert (total[labels > 0] == 1).all()
    for found in splits:
        assert not (mask(found.training, one) * mask(found.validation, one)).any()
        assert "of the only labelled volume" in found.text
        for held in found.validation:
            for part in found.training:
                distance, length = apart(held, part)
                assert distance >= gap_for(length)
    assert len({found.text for found in splits}) == folds


def test_volumes_validate_whole_where_there_are_as_many_as_folds():
    splits = fold_pairs(many(4), 4, seed=0, classes=CLASSES, axes="ZYX")
    assert sorted(found.validation[0].pair.name for found in splits) == [
        f"rock {i}" for i in range(4)
    ]
    assert all(len(found.training) == 3 for found in splits)
    (first, *_) = fold_pairs(many(2), 3, seed=0, classes=CLASSES, axes="ZYX")
    assert "of every volume" in first.text


def test_too_few_labels_for_folds_are_refused_with_the_cure():
    labels = np.zeros((6, 12, 12), np.uint8)
    labels[2, 3, 4:6] = 1
    with pytest.raises(
        LabelError,
        match=r"found one labelled volume and no axis along which 3 blocks .* fewer "
        r"--folds",
    ):
        fold_pairs(pair(labels), 3, seed=0, classes=CLASSES, axes="ZYX")


def test_a_volume_given_for_validation_must_be_one():
    flat = pair(random_labels((12, 12)), "YX", name="flat")
    with pytest.raises(ImageError, match="flat: found a single plane"):
        split_given(many(2), flat, CLASSES, "ZYX")


def test_a_copy_of_a_volume_is_found_and_another_one_is_not():
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (3, 6, 80, 80)).astype(np.uint8)
    labels = random_labels((6, 80, 80))
    first, other, copy = (
        pair(labels, name=name, image=image)
        for name, image in zip("abc", (grey[0], grey[1], grey[0].copy()), strict=True)
    )
    learn, others, copies = (
        labelled_regions(one, CLASSES, "ZYX") for one in (first, other, copy)
    )
    assert find_leaks(learn, others) == []
    (text,) = find_leaks(learn, copies)
    assert text.startswith(
        "3 of 3 validation planes hold pixels that train as well, such as c Z=1 (also "
        "in a Z=1)"
    )
