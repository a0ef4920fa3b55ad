"""Patches lie where labels are, balanced over the classes, and are the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_strata.core.classes import IGNORE
from napari_strata.data import sampling
from napari_strata.data.sampling import Sampler, sample_positions


def make(planes, *, classes=3, size=16, seed=0):
    counts = np.array(
        [[(p == k).sum() for k in range(classes)] for p in planes], np.int64
    )
    shapes = [p.shape for p in planes]
    return Sampler(
        [[p] for p in planes],
        shapes=shapes,
        counts=counts,
        size=(size, size),
        seed=seed,
    )


def sparse(shape, share, seed, classes=3):
    rng = np.random.default_rng(seed)
    plane = rng.integers(0, classes, shape).astype(np.uint8)
    plane[rng.random(shape) >= share] = IGNORE
    plane[rng.integers(shape[0]), rng.integers(shape[1])] = 0
    return plane


@settings(deadline=None, max_examples=60)
@given(
    shapes=st.lists(
        st.tuples(st.integers(1, 60), st.integers(1, 60)), min_size=1, max_size=3
    ),
    share=st.sampled_from([0.0, 0.01, 0.5, 1.0]),
    size=st.sampled_from([8, 16, 33]),
    balance=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_patch_lies_inside_its_plane_and_holds_the_labelled_pixel_it_was_drawn_for(
    shapes, share, size, balance, seed
):
    planes = [sparse(shape, share, seed + i) for i, shape in enumerate(shapes)]
    for place in make(planes, size=size, seed=seed).draw(
        20, np.random.default_rng(seed), balance=balance
    ):
        plane = planes[place.region]
        for part, length in zip(place.box, plane.shape, strict=True):
            assert 0 <= part.start < part.stop <= length
            assert part.stop - part.start == min(size, length)
        assert all(
            part.start <= at < part.stop
            for part, at in zip(place.box, place.pixel, strict=True)
        )
        assert plane[place.pixel] == place.class_index
        assert (plane[place.box] != IGNORE).any()


def test_a_rare_class_is_drawn_as_often_as_a_common_one():
    plane = np.zeros((200, 200), np.uint8)
    plane[50:54, 60:64] = 1  # 16 of 40,000 pixels
    plane[150:160, 100:120] = 2
    places = make([plane]).draw(3000, np.random.default_rng(0), balance=1.0)
    counts = np.bincount([p.class_index for p in places])
    assert counts.sum() == 3000
    np.testing.assert_allclose(counts / 3000, 1 / 3, atol=0.04)


def test_without_balance_classes_come_as_they_are():
    plane = np.zeros((100, 100), np.uint8)
    plane[:30] = 1
    places = make([plane], classes=2).draw(3000, np.random.default_rng(0), balance=0.0)
    assert np.mean([p.class_index for p in places]) == pytest.approx(0.3, abs=0.03)


def test_the_share_of_balanced_patches_is_the_one_asked_for():
    plane = np.zeros((100, 100), np.uint8)
    plane[0, 0] = 1
    places = make([plane], classes=2).draw(4000, np.random.default_rng(0), balance=0.4)
    assert np.mean([p.class_index for p in places]) == pytest.approx(0.4 / 2, abs=0.02)


def test_a_class_that_is_absent_is_never_drawn():
    plane = np.full((40, 40), 2, np.uint8)
    places = make([plane]).draw(50, np.random.default_rng(0), balance=1.0)
    assert {p.class_index for p in places} == {2}


def test_planes_are_drawn_by_how_much_of_a_class_they_hold():
    big, small, none = (
        np.zeros((60, 50), np.uint8),
        np.zeros((20, 50), np.uint8),
        np.full((60, 50), 1, np.uint8),
    )
    places = make([big, small, none]).draw(4000, np.random.default_rng(0), balance=1.0)
    zeros = [p.region for p in places if p.class_index == 0]
    assert set(zeros) == {0, 1}
    assert np.mean(zeros) == pytest.approx(0.25, abs=0.03)
    assert {p.region for p in places if p.class_index == 1} == {2}


def test_a_balanced_patch_has_its_pixel_in_the_middle_half():
    plane = np.full((100, 100), IGNORE, np.uint8)
    plane[50, 50] = 0
    places = make([plane]).draw(400, np.random.default_rng(0), balance=1.0)
    offsets = {50 - p.box[0].start for p in places}
    assert offsets == set(range(4, 12))
    anywhere = make([plane]).draw(800, np.random.default_rng(0), balance=0.0)
    assert {50 - p.box[1].start for p in anywhere} == set(range(16))


def test_the_same_seeds_give_the_same_places():
    planes = [sparse((50, 40), 0.3, 0), sparse((30, 60), 0.3, 1)]
    first, again = (
        make(planes, seed=7).draw(30, np.random.default_rng([7, 1]), balance=0.5)
        for _ in range(2)
    )
    assert first == again
    assert (
        make(planes, seed=7).draw(30, np.random.default_rng([7, 2]), balance=0.5)
        != first
    )


@settings(deadline=None, max_examples=40)
@given(
    height=st.integers(1, 40),
    cut=st.integers(1, 40),
    limit=st.integers(1, 400),
    seed=st.integers(0, 1000),
)
def test_remembered_pixels_are_right_and_do_not_depend_on_strips(
    height, cut, limit, seed
):
    plane = sparse((height, 12), 0.6, seed)
    counts = np.array([(plane == k).sum() for k in range(3)])
    strips = [plane[i : i + cut] for i in range(0, height, cut)]
    kept = sample_positions(
        strips, counts, limit=limit, rng=np.random.default_rng(seed)
    )
    whole = sample_positions(
        [plane], counts, limit=limit, rng=np.random.default_rng(seed)
    )
    for k in range(3):
        np.testing.assert_array_equal(kept[k], whole[k])
        assert len(kept[k]) == min(limit, counts[k])
        assert len(set(kept[k].tolist())) == len(kept[k])
        assert (plane.ravel()[kept[k]] == k).all()


def test_remembered_pixels_do_not_depend_on_pieces(monkeypatch):
    plane = sparse((50, 40), 0.6, 0)
    counts = np.array([(plane == k).sum() for k in range(3)])
    whole = sample_positions([plane], counts, limit=100, rng=np.random.default_rng(0))
    monkeypatch.setattr(sampling, "PIXELS_AT_ONCE", 77)
    pieces = sample_positions(
        [plane[:30], plane[30:]], counts, limit=100, rng=np.random.default_rng(0)
    )
    for some, others in zip(whole, pieces, strict=True):
        np.testing.assert_array_equal(some, others)


def test_remembered_pixels_are_spread_over_the_whole_plane():
    kept = sample_positions(
        [np.zeros((100, 100), np.uint8)],
        np.array([10_000]),
        limit=2000,
        rng=np.random.default_rng(0),
    )
    quarters = np.bincount(kept[0] // 2500, minlength=4)
    np.testing.assert_allclose(quarters, 500, atol=80)


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(sampling, "POSITIONS_PER_CLASS", 100)
    monkeypatch.setattr(sampling, "POSITIONS_IN_ALL", 4 * 3 * 80)
    planes = [sparse((60, 60), 1.0, i) for i in range(4)]
    assert all(len(kept) == 80 for part in make(planes).positions for kept in part)
    monkeypatch.setattr(sampling, "POSITIONS_IN_ALL", 10**9)
    assert all(len(kept) == 100 for part in make(planes).positions for kept in part)
