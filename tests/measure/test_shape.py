"""Measures of shape against bodies of known size, scipy and direct counting."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy import ndimage

from napari_strata.core.classes import ClassMap
from napari_strata.core.errors import ImageError
from napari_strata.core.image import LabelImage
from napari_strata.measure.chords import measure_chords
from napari_strata.measure.connected import find_connections
from napari_strata.measure.correlation import Correlation, correlate
from napari_strata.measure.local_fraction import measure_local_fractions
from napari_strata.measure.rock import estimate_rock
from napari_strata.measure.sample import Sample
from napari_strata.measure.shape import measure_shape
from napari_strata.measure.surface import measure_surfaces

NAMES = ("solid", "pore")

VOLUMES = array_shapes(min_dims=3, max_dims=3, min_side=2, max_side=6)
CODES = arrays(np.uint8, VOLUMES, elements=st.integers(0, 2))


def sample(mask: Any, **options: Any) -> Sample:
    return Sample.from_array(np.asarray(mask, np.uint8), NAMES, **options)


def ball(side: int, radius: float) -> Any:
    z, y, x = np.indices((side,) * 3) - (side - 1) / 2
    return z**2 + y**2 + x**2 <= radius**2


def split(codes: Any) -> Sample:
    """Of codes 0 to 2, the value 2 is outside the region."""
    codes = np.asarray(codes)
    return Sample.from_array(
        np.minimum(codes, 1), NAMES, region=codes < 2, spacing=(2.0, 1.0, 0.5)
    )


def test_a_cylinder_percolates_along_its_axis_only() -> None:
    y, x = np.indices((21, 21)) - 10
    mask = np.repeat((np.hypot(y, x) <= 5)[None], 12, axis=0)
    mask[5, 2, 2] = True  # a closed pore of one pixel
    pore = find_connections(sample(mask))["pore"]
    total = mask.sum()
    assert pore.pieces == 2
    assert pore.closed == pytest.approx(1 / total)
    assert pore.open == pore.largest == pytest.approx(1 - 1 / total)
    assert pore.through == {"z": pytest.approx(1 - 1 / total), "y": 0, "x": 0}
    solid = find_connections(sample(mask))["solid"]
    assert solid.through == {"z": 1, "y": 1, "x": 1}


def test_a_ball_is_closed_and_a_bent_tunnel_joins_late() -> None:
    pore = find_connections(sample(ball(21, 6)))["pore"]
    assert (pore.pieces, pore.open, pore.closed) == (1, 0, 1)
    bent = np.zeros((4, 3, 7), bool)
    bent[:3, 1, 1] = bent[3, 1, 1:6] = bent[:3, 1, 5] = True  # two arms of one piece
    pore = find_connections(sample(bent))["pore"]
    assert (pore.pieces, pore.through["z"], pore.through["x"]) == (1, 1, 0)


@settings(max_examples=60, deadline=None)
@given(CODES)
def test_connection_agrees_with_scipy(codes: Any) -> None:
    found = find_connections(split(codes))
    inside = codes < 2
    border = inside & ~ndimage.binary_erosion(inside)
    for index, name in enumerate(NAMES):
        mask = codes == index
        numbers, count = ndimage.label(mask)
        sizes = np.bincount(numbers.ravel(), minlength=count + 1)[1:]
        is_open = np.isin(np.arange(1, count + 1), numbers[border])
        connection = found[name]
        assert connection.pieces == count
        total = max(sizes.sum(), 1)
        assert connection.largest == pytest.approx(max(sizes, default=0) / total)
        assert connection.open == pytest.approx(sizes[is_open].sum() / total)
        if inside.all():
            for number, axis in enumerate("zyx"):
                first = np.unique(numbers.take(0, number))
                last = np.unique(numbers.take(-1, number))
                both = np.intersect1d(first, last)
                share = sizes[both[both > 0] - 1].sum() / total
                assert connection.through[axis] == pytest.approx(share)


def test_percolation_needs_flat_ends() -> None:
    y, x = np.indices((41, 41)) - 20
    core = np.repeat((np.hypot(y, x) <= 20)[None], 10, axis=0)
    pore = find_connections(sample(np.ones(core.shape), region=core))["pore"]
    assert pore.through == {"z": 1, "y": None, "x": None}
    assert pore.why["x"] == (
        "the region has no flat ends along X: its end is 3 % of its mean section"
    )


def test_a_single_plane_has_no_connection_in_depth() -> None:
    with pytest.raises(ImageError, match=r"single plane.*Give a volume"):
        find_connections(sample(np.ones((4, 4))))


def test_surface_of_a_ball_of_plates_and_of_a_checkerboard() -> None:
    mask = ball(61, 25)
    pore = measure_surfaces(sample(mask, spacing=(0.5,) * 3, unit="mm"))["pore"]
    # In units of the volume between the middles of the outer pixels.
    between = (61 * 0.5) ** 2 * 60 * 0.5
    assert pore.specific * between == pytest.approx(4 * math.pi * 12.5**2, rel=0.01)
    volume = 4 / 3 * math.pi * 12.5**3
    assert pore.of_class == pytest.approx(4 * math.pi * 12.5**2 / volume, rel=0.03)
    assert pore.contact == {"solid": pore.specific}
    plates = np.zeros((20, 8, 8), bool)
    plates[::2] = True
    pore = measure_surfaces(sample(plates, spacing=(3.0, 1, 1)))["pore"]
    # One face every 3: the axis across sees twice that, the others nothing.
    assert pore.by_axis == {"z": pytest.approx(2 / 3), "y": 0, "x": 0}
    assert pore.specific == pytest.approx(2 / 3 / 3)
    board = np.indices((6, 6, 6)).sum(axis=0) % 2
    pore = measure_surfaces(sample(board))["pore"]
    faces = 3 * 6 * 6 * 5
    assert pore.specific == pytest.approx(2 / 3 * faces / (6 * 6 * 5))


def test_a_ball_in_thick_slices_has_the_same_surface() -> None:
    z, y, x = np.meshgrid(
        np.arange(-30, 31, 2.0), np.arange(-30, 31), np.arange(-30, 31), indexing="ij"
    )
    mask = z**2 + y**2 + x**2 <= 25**2
    pore = measure_surfaces(sample(mask, spacing=(2.0, 1, 1)))["pore"]
    found = [pore.by_axis[axis] for axis in "zyx"]
    between = [61 * 61 * 60, 62 * 61 * 60, 62 * 61 * 60]
    for value, volume in zip(found, between, strict=True):
        assert value * volume == pytest.approx(4 * math.pi * 25**2, rel=0.02)


def test_a_disc_in_a_plane_has_its_boundary() -> None:
    y, x = np.indices((201, 201)) - 100
    pore = measure_surfaces(sample(np.hypot(y, x) <= 80))["pore"]
    assert pore.specific * 201 * 200 == pytest.approx(2 * math.pi * 80, rel=0.01)


def test_surface_counts_nothing_at_the_border_of_the_region() -> None:
    mask = np.zeros((4, 4, 4), bool)
    mask[:2] = True
    pore = measure_surfaces(sample(mask, region=mask))["pore"]
    assert pore.specific == 0


def direct_chords(line: Any, code: int) -> tuple[list[int], int]:
    """Lengths of whole runs of a code, and the number of those cut."""
    runs: list[tuple[int, int]] = []
    for value in line:
        if runs and runs[-1][0] == value:
            runs[-1] = (value, runs[-1][1] + 1)
        else:
            runs.append((int(value), 1))
    values = [2, *(value for value, _ in runs), 2]
    whole, cut = [], 0
    for number, (value, length) in enumerate(runs, start=1):
        if value == code and 2 in (values[number - 1], values[number + 1]):
            cut += 1
        elif value == code:
            whole.append(length)
    return whole, cut


@settings(max_examples=60, deadline=None)
@given(CODES)
def test_chords_agree_with_direct_counting(codes: Any) -> None:
    found = measure_chords(split(codes))
    for index, name in enumerate(NAMES):
        for number, axis in enumerate("zyx"):
            lengths, cut = [], 0
            lines = np.moveaxis(codes, number, -1).reshape(-1, codes.shape[number])
            for line in lines:
                whole, cut_here = direct_chords(line, index)
                lengths += whole
                cut += cut_here
            chords = found[name][axis]
            expected = np.bincount(lengths or [0])
            expected[0] = 0
            np.testing.assert_array_equal(chords.counts, expected)
            assert chords.cut == cut


def test_chords_of_plates_and_of_a_ball() -> None:
    plates = np.zeros((22, 5, 5), bool)
    for first in range(2, 20, 6):
        plates[first : first + 2] = True
    chords = measure_chords(sample(plates, spacing=(0.5, 1, 1)))
    assert (chords["pore"]["z"].mean, chords["pore"]["z"].count) == (1.0, 75)
    assert (chords["solid"]["z"].mean, chords["solid"]["z"].cut) == (2.0, 50)
    assert (chords["pore"]["x"].count, chords["pore"]["x"].cut) == (0, 30)
    assert math.isnan(chords["pore"]["x"].mean)
    # The mean chord of a ball is 4 V / S = 4/3 r.
    chords = measure_chords(sample(ball(61, 25)))
    for axis in "zyx":
        assert chords["pore"][axis].mean == pytest.approx(4 / 3 * 25, rel=0.02)


@settings(max_examples=40, deadline=None)
@given(CODES)
def test_correlation_agrees_with_direct_counting(codes: Any) -> None:
    found = correlate(split(codes))
    inside = codes < 2
    for index, name in enumerate(NAMES):
        mask = codes == index
        for number, axis in enumerate("zyx"):
            for lag, value in enumerate(found[name].by_axis[axis]):
                length = codes.shape[number]
                first, second = range(length - lag), range(lag, length)
                pairs = mask.take(first, number) & mask.take(second, number)
                known = inside.take(first, number) & inside.take(second, number)
                if known.any():
                    assert value == pytest.approx(pairs.sum() / known.sum())
                else:
                    assert math.isnan(value)


def test_correlation_of_strips_is_that_of_the_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(0)
    mask = ndimage.gaussian_filter(rng.normal(size=(3, 60, 50)), 2) > 0
    whole = correlate(sample(mask), longest=9)["pore"]
    monkeypatch.setattr("napari_strata.measure.correlation.STRIP", 16)
    strips = correlate(sample(mask), longest=9)["pore"]
    np.testing.assert_allclose(strips.mean, whole.mean)
    assert whole.mean[0] == pytest.approx(mask.mean())


def test_correlation_of_a_checkerboard_alternates() -> None:
    board = np.indices((12, 12, 12)).sum(axis=0) % 2
    pore = correlate(sample(board, spacing=(2.0, 1, 1)))["pore"]
    np.testing.assert_allclose(
        pore.by_axis["z"], [0.5, 0, 0.5, 0][: len(pore.by_axis["z"])]
    )
    np.testing.assert_allclose(pore.by_axis["x"], [0.5, 0] * 3 + [0.5])
    np.testing.assert_allclose(
        pore.distances["z"], [0, 2, 4, 6][: len(pore.by_axis["z"])]
    )


def discs(side: int, radius: float, share: float, seed: int) -> Any:
    """Boolean model: discs at random positions, whose union has the share."""
    rng = np.random.default_rng(seed)
    density = -math.log(1 - share) / (math.pi * radius**2)
    room = side + 2 * radius
    count = rng.poisson(density * room**2)
    distance = np.ones((side, side), bool)
    y, x = np.indices((side, side))
    for cy, cx in rng.uniform(-radius, side + radius, (count, 2)):
        rows = slice(max(int(cy - radius) - 1, 0), max(int(cy + radius) + 2, 0))
        columns = slice(max(int(cx - radius) - 1, 0), max(int(cx + radius) + 2, 0))
        near = np.hypot(y[rows, columns] - cy, x[rows, columns] - cx) <= radius
        distance[rows, columns] &= ~near
    return ~distance


def range_of_discs(radius: float, share: float) -> float:
    """Integral range of the Boolean model of discs, by integration."""
    h = np.linspace(0, 2 * radius, 4000)
    half = h / (2 * radius)
    common = 2 * radius**2 * (np.arccos(half) - half * np.sqrt(1 - half**2))
    density = -math.log(1 - share) / (math.pi * radius**2)
    covariance = (1 - share) ** 2 * (np.exp(density * common) - 1)
    integral = np.trapezoid(2 * math.pi * h * covariance, h)
    return float(integral / (share * (1 - share)))


def test_the_integral_range_of_discs_is_the_known_one() -> None:
    found, errors, widths = [], [], []
    for seed in range(12):
        mask = discs(400, 8, 0.3, seed)
        rock = estimate_rock(correlate(sample(mask))["pore"], pixels=400**2, pixel=1)
        assert rock.integral_range is not None
        assert rock.half_width is not None
        found.append(rock.integral_range)
        errors.append(abs(rock.share - 0.3))
        widths.append(rock.half_width)
    assert np.mean(found) == pytest.approx(range_of_discs(8, 0.3), rel=0.2)
    assert np.mean(np.asarray(errors) <= widths) >= 0.8


def test_a_small_specimen_has_too_few_grains() -> None:
    mask = discs(60, 12, 0.3, 1)
    pore = correlate(sample(mask, unit="mm"))["pore"]
    rock = estimate_rock(pore, pixels=60**2, pixel=1)
    assert rock.half_width is None
    assert rock.why.startswith("too few grains: ")
    solid = np.zeros((20, 20))
    rock = estimate_rock(correlate(sample(solid))["pore"], pixels=400, pixel=1)
    assert rock.why == "the specimen has one class only"


def test_local_fractions_are_means_of_cubes() -> None:
    rng = np.random.default_rng(0)
    mask = rng.random((8, 16, 16)) < 0.3
    local = measure_local_fractions(sample(mask, spacing=(2.0, 1, 1)), side=4)
    assert (local.pixels, local.side) == ((2, 4, 4), (4, 4, 4))
    expected = mask.reshape(4, 2, 4, 4, 4, 4).mean(axis=(1, 3, 5))
    np.testing.assert_allclose(local.fractions["pore"], expected, rtol=1e-6)
    one, two = local.curves["pore"]
    assert (one.side, one.cubes, two.side, two.cubes) == (4, 64, 8, 8)
    assert one.mean == pytest.approx(mask.mean())
    assert one.std == pytest.approx(expected.std(ddof=1), rel=1e-5)
    assert two.std < one.std


def test_cubes_mostly_outside_have_no_fraction() -> None:
    mask = np.ones((8, 8), bool)
    region = np.zeros((8, 8), bool)
    region[:, :3] = True
    region[:, 5:] = True
    region[4:, 4:7] = False
    local = measure_local_fractions(sample(mask, region=region), side=4)
    np.testing.assert_array_equal(local.fractions["pore"], [[[1, 1], [1, np.nan]]])


def test_labels_are_read_by_plane_and_unlabelled_pixels_are_outside() -> None:
    classes = ClassMap(names=NAMES, values=(3, 7), unlabelled=(0,))
    data = np.full((2, 3, 4, 5), 3, np.uint8)  # Y, T, X, Z
    data[1, 2, :, 2] = 7
    data[0, 2, 0, :] = 0
    labels = LabelImage(data, "YTXZ", scale=(1, 1, 1, 2), units=("mm",) * 4)
    read = Sample.from_labels(labels, classes, time=2)
    assert (read.shape, read.spacing, read.unit) == ((5, 2, 4), (2, 1, 1), "mm")
    np.testing.assert_array_equal(read.read(2), [[255, 0, 0, 0], [1, 1, 1, 1]])
    inside = np.ones((2, 4), bool)
    inside[:, 3] = False
    cropped = Sample.from_labels(labels, classes, time=2, inside=lambda _: inside)
    np.testing.assert_array_equal(cropped.read(2)[:, 3], [255, 255])


def test_all_measures_from_one_pass_are_plain_values() -> None:
    rng = np.random.default_rng(0)
    mask = ndimage.gaussian_filter(rng.normal(size=(12, 24, 24)), 2) > 0
    volume = sample(mask, spacing=(2.0, 1, 1), unit="mm")
    shape = measure_shape(volume)
    facts = json.loads(json.dumps(shape.to_dict(rock=True)))
    assert facts["connected"]["pore"] == find_connections(volume)["pore"].to_dict()
    assert facts["surface"]["pore"] == measure_surfaces(volume)["pore"].to_dict()
    chords = measure_chords(volume)["pore"]["z"]
    assert facts["chords"]["pore"]["z"] == chords.to_dict()
    assert facts["correlation"]["pore"]["share"] == pytest.approx(mask.mean())
    assert facts["rock"]["pore"]["share"] == pytest.approx(mask.mean())
    assert "rock" not in shape.to_dict()
    plane = measure_shape(sample(mask[0])).to_dict()
    assert "single plane" in plane["connected"]["why"]


def test_a_thin_specimen_holds_more_pieces_than_its_volume_says() -> None:
    h = np.arange(200) * 0.5
    share = 0.2
    s2 = share**2 + share * (1 - share) * np.exp(-h / 4)
    correlation = Correlation(share, {"z": h}, {"z": s2}, h, s2, "mm")
    # The integral of exp(-h / 4) over a ball is 8 pi 4^3.
    long = estimate_rock(correlation, pixels=10**6, pixel=1, sides=(10**4,) * 3)
    assert long.integral_range == pytest.approx(8 * math.pi * 4**3, rel=0.2)
    assert long.pieces == pytest.approx(10**6 / long.integral_range, rel=0.01)
    thin = estimate_rock(correlation, pixels=10**6, pixel=1, sides=(2, 10**4, 10**4))
    # Like a plane: the integral over a disc is 2 pi 4^2, and the area 10^6 / 2.
    assert thin.pieces == pytest.approx(10**6 / 2 / (2 * math.pi * 4**2), rel=0.25)
