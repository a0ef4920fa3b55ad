from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_strata.core.tiling import (
    Tile,
    blend_weights,
    padded_length,
    plan_overlap,
    plan_tiles,
)

STRIDES = st.sampled_from([1, 2, 8, 16, 32])
PLANS = st.tuples(
    st.tuples(st.integers(1, 500), st.integers(1, 500)),
    st.integers(20, 150),
    st.integers(0, 40),
    STRIDES,
)
patient = settings(deadline=None)  # a busy machine is no failure


def forwarded(plan: list[Tile]) -> int:
    return sum(
        (y.stop - y.start) * (x.stop - x.start) for y, x in (t.read for t in plan)
    )


@patient
@given(PLANS)
def test_each_pixel_is_written_exactly_once_and_where_it_was_read(case):
    shape, tile, halo, stride = case
    rows, columns = np.indices(shape)
    count = np.zeros(shape, int)
    for part in plan_tiles(shape, tile=tile, halo=halo, stride=stride):
        count[part.write] += 1
        assert np.array_equal(rows[part.read][part.crop], rows[part.write])
        assert np.array_equal(columns[part.read][part.crop], columns[part.write])
    assert (count == 1).all()


@patient
@given(PLANS)
def test_reads_start_on_the_stride_reach_the_halo_and_are_no_larger_than_promised(case):
    shape, tile, halo, stride = case
    margin = -(-halo // stride) * stride
    for part in plan_tiles(shape, tile=tile, halo=halo, stride=stride):
        for length, read, write in zip(shape, part.read, part.write, strict=True):
            assert read.start % stride == 0
            assert read.start == 0 or write.start - read.start >= halo
            assert read.stop == length or (
                read.stop - write.stop >= halo and read.stop % stride == 0
            )
            assert read.stop - read.start <= max(tile, stride) + 4 * margin


@patient
@given(PLANS)
def test_few_shapes_so_that_tiles_can_be_batched(case):
    shape, tile, halo, stride = case
    plan = plan_tiles(shape, tile=tile, halo=halo, stride=stride)
    for axis in (0, 1):
        inner = {
            t.read[axis].stop - t.read[axis].start
            for t in plan
            if t.read[axis].stop < shape[axis]
        }
        assert len(inner) <= 2


@pytest.mark.parametrize(("halo", "most"), [(32, 1.20), (64, 1.27)])
def test_fitted_tiles_forward_few_pixels(halo, most):
    plan = plan_tiles((2048, 2048), tile=512, halo=halo, stride=32)
    assert forwarded(plan) / 2048**2 <= most


def test_no_plan_of_as_many_tiles_forwards_less():
    # Every seam costs two halos, and there is one seam less than tiles.
    plan = plan_tiles((2048, 64), tile=256, halo=32, stride=32)
    assert forwarded(plan) == (2048 + 2 * 32 * (len(plan) - 1)) * 64


def test_a_small_plane_is_read_in_one_piece_of_its_own_size():
    whole = (slice(0, 37), slice(0, 301))
    assert plan_tiles((37, 301), tile=256, halo=32, stride=32) == [
        Tile(whole, whole, whole)
    ]


@pytest.mark.parametrize("wrong", [{"tile": 0}, {"stride": 0}, {"halo": -1}])
def test_impossible_lengths_are_refused(wrong):
    with pytest.raises(ValueError, match="must be"):
        plan_tiles((8, 8), **({"tile": 8, "halo": 0, "stride": 1} | wrong))


@patient
@given(st.integers(1, 2000), st.integers(1, 12), STRIDES)
def test_overlapping_tiles_fit_align_and_leave_no_gap(length, units, stride):
    tile = units * stride
    padded = padded_length(length, tile=tile, stride=stride)
    starts = plan_overlap(padded, tile=tile, stride=stride)
    assert padded >= max(length, tile)
    assert padded < max(length + stride, tile + 1)
    assert starts[0] == 0
    assert starts[-1] + tile == padded
    assert all(s % stride == 0 for s in starts)
    share = max(1, round(units * 0.25)) * stride if units > 1 else 0
    assert all(b > a and a + tile - b >= share for a, b in pairwise(starts))


@patient
@given(st.integers(1, 900), st.integers(1, 8), STRIDES)
def test_blend_weights_sum_to_one_everywhere(length, units, stride):
    tile = units * stride
    padded = padded_length(length, tile=tile, stride=stride)
    starts = plan_overlap(padded, tile=tile, stride=stride)
    weights = blend_weights(starts, tile=tile, length=padded)
    total = np.zeros(padded)
    for start, weight in zip(starts, weights, strict=True):
        total[start : start + tile] += weight
    assert weights.min() > 0
    np.testing.assert_allclose(total, 1, atol=1e-6)


def test_a_tile_counts_most_in_its_middle():
    (weights,) = blend_weights([0, 48], tile=64, length=112)[:1]
    assert weights[10] == pytest.approx(1)
    assert weights[55:57].mean() == pytest.approx(0.5)  # half way between both middles
    assert weights[63] < 0.1
