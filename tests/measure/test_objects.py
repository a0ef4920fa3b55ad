"""Connected pieces: numbered, filled, split and dropped, in physical units, whole or plane by plane."""

from __future__ import annotations

import errno
import tempfile
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy import ndimage

from napari_strata.core.classes import ClassMap
from napari_strata.core.errors import ImageError, LabelError, RunError
from napari_strata.core.image import LabelImage
from napari_strata.measure.objects import find_objects
from napari_strata.models import device

GRAINS = ClassMap(names=("pore", "grain"), values=(3, 7), unlabelled=(0,))


def make(
    mask: Any,
    *,
    axes: str = "",
    scale: tuple[float, ...] = (),
    classes: ClassMap | None = GRAINS,
) -> LabelImage:
    """Labels that are 7 (grain) where `mask` is, else 3 (pore)."""
    data = np.where(np.asarray(mask, bool), 7, 3).astype(np.uint8)
    letters = axes or "TZYX"[-data.ndim :]
    units = ("micrometer",) * data.ndim if scale else ()
    return LabelImage(
        data, letters, scale=scale, units=units, name="rock", classes=classes
    )


def balls(
    shape: tuple[int, ...],
    spacing: tuple[float, ...],
    *of: tuple[tuple[float, ...], float],
) -> Any:
    """Discs or balls of (centre, radius) in physical units."""
    grid = np.meshgrid(
        *(np.arange(n) * s for n, s in zip(shape, spacing, strict=True)), indexing="ij"
    )
    found = np.zeros(shape, bool)
    for center, radius in of:
        found |= (
            sum((g - c) ** 2 for g, c in zip(grid, center, strict=True)) <= radius**2
        )
    return found


def ids(objects: LabelImage) -> list[int]:
    return [int(i) for i in np.unique(np.asarray(objects.data)) if i]


@settings(max_examples=60)
@given(arrays(bool, array_shapes(min_dims=2, max_dims=3, max_side=7)))
def test_without_options_objects_are_the_class_as_scipy_numbers_it(mask: Any) -> None:
    found = np.asarray(find_objects(make(mask)).data)
    expected, count = ndimage.label(mask)
    np.testing.assert_array_equal(found > 0, mask)
    np.testing.assert_array_equal(found, expected)
    assert found.max() == count


@settings(max_examples=40)
@given(
    arrays(bool, array_shapes(min_dims=2, max_dims=3, min_side=2, max_side=9)),
    st.floats(0.5, 6),
)
def test_splitting_loses_no_pixel_and_joins_nothing(mask: Any, distance: float) -> None:
    found = np.asarray(find_objects(make(mask), split=distance).data)
    np.testing.assert_array_equal(found > 0, mask)
    assert sorted(np.unique(found[mask])) == list(range(1, int(found.max()) + 1))
    for number in range(1, int(found.max()) + 1):
        assert ndimage.label(found == number)[1] == 1


@settings(max_examples=40)
@given(arrays(bool, array_shapes(min_dims=3, max_dims=3, max_side=6)), st.booleans())
def test_by_plane_is_each_plane_by_itself(mask: Any, fill: bool) -> None:
    found = np.asarray(
        find_objects(make(mask), by_plane=True, fill_holes=fill, smallest=2).data
    )
    before = 0
    for plane, alone in zip(found, mask, strict=True):
        expected = np.asarray(
            find_objects(make(alone), fill_holes=fill, smallest=2).data
        ).astype(int)
        np.testing.assert_array_equal(plane, np.where(expected, expected + before, 0))
        before += int(expected.max())


def test_result_keeps_axes_scale_units_and_name() -> None:
    mask = np.zeros((5, 3, 4), bool)  # Y, Z, X
    mask[1:3, :, 1] = True
    mask[4, 0, 3] = True
    labels = make(mask, axes="YZX", scale=(0.5, 2.0, 0.5))
    found = find_objects(labels)
    assert (found.axes, found.scale, found.units, found.name) == (
        "YZX",
        labels.scale,
        labels.units,
        "rock",
    )
    assert found.classes is None
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(np.asarray(found.data) > 0, mask)
    assert ids(found) == [1, 2]
    assert (
        found.data[1, 0, 1] == found.data[2, 2, 1] == 1
    )  # one piece through all planes


def test_time_points_are_separate_and_ids_run_on() -> None:
    mask = np.ones((2, 2, 3, 3), bool)
    found = np.asarray(find_objects(make(mask)).data)
    assert [set(found[t].ravel()) for t in range(2)] == [{1}, {2}]
    assert ids(find_objects(make(mask), by_plane=True)) == [1, 2, 3, 4]


def test_corners_do_not_connect() -> None:
    assert ids(find_objects(make([[1, 0], [0, 1]]))) == [1, 2]


def test_a_channel_axis_of_one_is_dropped() -> None:
    labels = LabelImage(np.full((1, 2, 2), 7, np.uint8), "CYX", classes=GRAINS)
    assert find_objects(labels).axes == "YX"


def test_two_touching_discs_are_split_in_the_middle() -> None:
    mask = balls((41, 61), (1, 1), ((20, 20), 12), ((20, 40), 12))
    assert ids(find_objects(make(mask))) == [1]
    found = np.asarray(find_objects(make(mask), split=10).data)
    assert ids(find_objects(make(mask), split=10)) == [1, 2]
    assert found[20, 20] != found[20, 40]
    left, right = found == found[20, 20], found == found[20, 40]
    assert np.argwhere(left)[:, 1].max() <= 31
    assert np.argwhere(right)[:, 1].min() >= 29
    np.testing.assert_array_equal(left | right, mask)
    assert ids(find_objects(make(mask), split=25)) == [1]  # their centres are 20 apart


def test_split_takes_distances_in_the_unit_of_the_pixel_size() -> None:
    mask = balls((41, 61), (1, 1), ((20, 20), 12), ((20, 40), 12))
    assert ids(find_objects(make(mask, scale=(0.1, 0.1)), split=1)) == [1, 2]
    assert ids(find_objects(make(mask, scale=(0.1, 0.1)), split=10)) == [1]
    assert ids(find_objects(make(mask, scale=(10, 10)), split=100)) == [1, 2]


def test_a_ball_in_thin_slices_is_one_object() -> None:
    # 0.2 deep, 1 wide: in voxels an ellipsoid five times as long as wide.
    spacing = (0.2, 1.0, 1.0)
    ball = balls((121, 25, 25), spacing, ((12, 12, 12), 10))
    assert ids(find_objects(make(ball, scale=spacing), split=6)) == [1]
    # Two along Z whose centres are 11 apart, and so 55 voxels: asked for at 15, they are one; at 8, two.
    two = balls((121, 21, 21), spacing, ((6.4, 10, 10), 6), ((17.4, 10, 10), 6))
    assert ids(find_objects(make(two, scale=spacing), split=15)) == [1]
    assert ids(find_objects(make(two, scale=spacing), split=8)) == [1, 2]


def test_balls_in_thick_slices_are_told_apart() -> None:
    spacing = (3.0, 1.0, 1.0)
    two = balls(
        (14, 27, 27), spacing, ((12, 13, 13), 9), ((27, 13, 13), 9)
    )  # centres 15 apart: 5 voxels
    found = find_objects(make(two, scale=spacing), split=12)
    assert ids(found) == [1, 2]
    assert found.data[4, 13, 13] != found.data[9, 13, 13]


def test_a_bar_is_not_shattered() -> None:
    mask = np.zeros((21, 120), bool)
    mask[6:15, 5:115] = True
    assert ids(find_objects(make(mask), split=10)) == [1]


def test_an_objects_edge_is_its_edge_where_it_fills_its_box() -> None:
    mask = np.zeros((27, 34), bool)
    mask[2:17, 2:17] = mask[10:25, 17:32] = (
        True  # two squares; their middles are 17 apart, their far corners 36
    )
    assert ids(find_objects(make(mask), split=25)) == [1]
    found = np.asarray(find_objects(make(mask), split=16).data)
    assert sorted(set(found[mask])) == [1, 2]
    assert found[9, 9] != found[17, 24]


def test_splitting_beside_the_border_takes_the_border_for_no_edge() -> None:
    assert ids(find_objects(make(np.ones((30, 60), bool)), split=5)) == [1]
    mask = balls(
        (30, 61), (1, 1), ((0, 15), 16), ((0, 45), 16)
    )  # cut in half by the border
    found = np.asarray(find_objects(make(mask), split=20).data)
    assert sorted(set(found[mask])) == [1, 2]
    assert found[0, 15] != found[0, 45]


def test_smallest_is_in_physical_units() -> None:
    mask = np.zeros((3, 8, 8), bool)
    mask[0, 0, :3] = True  # 3 voxels, 1.5 micrometer^3
    mask[1, 4, :4] = True  # 4 voxels, 2
    scale = (2.0, 0.5, 0.5)
    assert ids(find_objects(make(mask, scale=scale), smallest=1.5)) == [1, 2]
    found = find_objects(make(mask, scale=scale), smallest=1.6)
    assert ids(found) == [1]
    assert np.asarray(found.data).astype(bool).sum() == 4
    assert ids(find_objects(make(mask, scale=scale), smallest=2.1)) == []
    # By plane it is an area: 0.75 and 1 micrometer^2.
    assert ids(find_objects(make(mask, scale=scale), smallest=1, by_plane=True)) == [1]
    assert ids(find_objects(make(mask, scale=scale), smallest=0.75, by_plane=True)) == [
        1,
        2,
    ]
    # A pixel of 0.7 x 0.1 is 0.06999... in binary, and is not to fall short of 0.07.
    assert ids(find_objects(make([[1, 0]], scale=(0.7, 0.1)), smallest=0.07)) == [1]


def test_smallest_holds_for_what_a_split_leaves() -> None:
    mask = balls((41, 70), (1, 1), ((20, 20), 15), ((20, 42), 8))
    assert len(ids(find_objects(make(mask), split=10))) == 2
    found = find_objects(make(mask), split=10, smallest=300)
    assert ids(found) == [1]
    assert found.data[20, 20] == 1
    assert found.data[20, 45] == 0


def test_holes_are_closed_in_planes_and_volumes() -> None:
    ring = np.ones((5, 5), bool)
    ring[2, 2] = False
    assert np.asarray(find_objects(make(ring)).data)[2, 2] == 0
    np.testing.assert_array_equal(
        find_objects(make(ring), fill_holes=True).data, np.ones((5, 5))
    )
    tube = np.stack([ring] * 3)  # open at both ends: no hole, but one in every plane
    assert np.asarray(find_objects(make(tube), fill_holes=True).data)[1, 2, 2] == 0
    assert (
        np.asarray(find_objects(make(tube), fill_holes=True, by_plane=True).data) > 0
    ).all()
    closed = tube.copy()
    closed[[0, 2], 2, 2] = True
    np.testing.assert_array_equal(
        find_objects(make(closed), fill_holes=True).data, np.ones((3, 5, 5))
    )
    np.testing.assert_array_equal(
        find_objects(make(ring[None]), fill_holes=True).data, np.ones((1, 5, 5))
    )


def test_a_gap_that_leads_out_between_two_objects_is_no_hole() -> None:
    mask = np.array([[0, 1, 1, 0], [1, 0, 0, 1], [1, 0, 0, 1], [0, 1, 1, 0]], bool)
    np.testing.assert_array_equal(
        np.asarray(find_objects(make(mask), fill_holes=True).data) > 0, mask
    )


def test_more_objects_than_16_bits_hold() -> None:
    plane = np.zeros((400, 400), bool)
    plane[::2, ::2] = True  # 40 000 objects
    found = find_objects(make(np.stack([plane, plane])), by_plane=True)
    assert found.dtype == np.uint32
    data = np.asarray(found.data)
    np.testing.assert_array_equal(data[0][plane], np.arange(1, 40001))
    np.testing.assert_array_equal(data[1][plane], np.arange(40001, 80001))
    assert (data[:, ~plane] == 0).all()
    assert find_objects(make(plane)).dtype == np.uint16


def test_which_class() -> None:
    rock = ClassMap(names=("pore", "clay", "quartz"), values=(1, 2, 3), unlabelled=(0,))
    labels = LabelImage(
        np.array([[1, 2, 0], [3, 2, 3]], np.uint8), "YX", name="rock", classes=rock
    )
    np.testing.assert_array_equal(
        find_objects(labels, of="clay").data, [[0, 1, 0], [0, 1, 0]]
    )
    np.testing.assert_array_equal(
        find_objects(labels, of="3").data, [[0, 0, 0], [1, 0, 2]]
    )
    with pytest.raises(
        LabelError, match=r"classes pore, clay, quartz; needed .*--of 'quartz'"
    ):
        find_objects(labels)
    with pytest.raises(LabelError, match="no class 'quarz'; did you mean 'quartz'"):
        find_objects(labels, of="quarz")


def test_labels_without_a_class_map() -> None:
    labels = LabelImage(np.array([[0, 255], [255, 0]], np.uint8))
    np.testing.assert_array_equal(find_objects(labels).data, [[0, 1], [2, 0]])
    np.testing.assert_array_equal(find_objects(labels, of="0").data, [[1, 0], [0, 2]])
    with pytest.raises(LabelError, match="found the classes class 4; needed"):
        find_objects(LabelImage(np.full((2, 2), 4, np.uint8)))
    with pytest.raises(LabelError, match="more than 64 label values and no class map"):
        find_objects(LabelImage(np.arange(100).reshape(10, 10)))


def test_the_rest_of_the_values_can_be_the_class() -> None:
    labels = LabelImage(
        np.array([[0, 9, 200]], np.uint16), "YX", classes=ClassMap.foreground()
    )
    np.testing.assert_array_equal(find_objects(labels).data, [[0, 1, 1]])


def test_what_cannot_be_used_is_said() -> None:
    mask = np.ones((2, 4, 4), bool)
    with pytest.raises(LabelError, match="3 channels"):
        find_objects(LabelImage(np.zeros((4, 4, 3), np.uint8), "YXC"))
    with pytest.raises(LabelError, match="must be integers"):
        find_objects(LabelImage(np.zeros((4, 4)), "YX"))
    with pytest.raises(ImageError, match="smallest=-1"):
        find_objects(make(mask), smallest=-1)
    for wrong in (0, -2, float("nan")):
        with pytest.raises(ImageError, match="split="):
            find_objects(make(mask), split=wrong)
    with pytest.raises(ImageError, match="above 0"):
        find_objects(make(mask, scale=(0.0, 1.0, 1.0)), smallest=1)


def test_a_depth_of_unknown_unit_gives_no_volumes() -> None:
    units = ("pixel", "micrometer", "micrometer")
    labels = LabelImage(
        np.full((2, 4, 4), 7, np.uint8),
        "ZYX",
        scale=(1, 0.5, 0.5),
        units=units,
        classes=GRAINS,
    )
    with pytest.raises(ImageError, match=r"Z 1 pixel, Y 0.5 micrometer.*--by-plane"):
        find_objects(labels, smallest=1)
    assert ids(find_objects(labels)) == [1]
    assert ids(find_objects(labels, smallest=1, by_plane=True)) == [1, 2]


def test_what_does_not_fit_is_refused_and_planes_still_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mask = balls((20, 40, 40), (1, 1, 1), ((10, 12, 20), 9), ((10, 27, 20), 9))
    need = mask.size * 8
    monkeypatch.setattr(device, "free_memory", lambda _: need // 2)
    with pytest.raises(
        RunError,
        match=r"rock: finding objects in 20 x 40 x 40 .* 307 kB .* 128 kB are free.*by-plane",
    ):
        find_objects(make(mask))
    assert ids(find_objects(make(mask), by_plane=True))
    monkeypatch.setattr(device, "free_memory", lambda _: 1000)
    with pytest.raises(RunError) as error:
        find_objects(make(mask), by_plane=True)
    assert "crop the labels" in str(error.value)
    assert "by-plane" not in str(error.value)
    monkeypatch.setattr(
        device, "free_memory", lambda _: None
    )  # not known: nothing to refuse by
    assert ids(find_objects(make(mask))) == [1]


def test_a_split_that_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = balls((20, 40, 40), (1, 1, 1), ((10, 12, 20), 9), ((10, 27, 20), 9))
    monkeypatch.setattr(device, "free_memory", lambda _: mask.size * 12)
    assert ids(find_objects(make(mask))) == [1]
    with pytest.raises(
        RunError, match=r"splitting the largest object.*leave out the split"
    ):
        find_objects(make(mask), split=10)
    monkeypatch.undo()
    assert ids(find_objects(make(mask), split=10)) == [1, 2]


def test_a_full_temporary_folder_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def write(self, _: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self) -> None:
            pass

    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: Full())
    with pytest.raises(RunError, match=r"disk is full.*TMPDIR"):
        find_objects(make([[1, 0]]))
