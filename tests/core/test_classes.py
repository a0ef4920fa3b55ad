from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from napari_strata.core.classes import (
    IGNORE,
    ClassMap,
    check_integers,
    default_colors,
    pack_rgb,
    smallest_dtype,
)
from napari_strata.core.errors import LabelError

VALUES = st.lists(
    st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=40, unique=True
)


def _map(values: list[int], unlabelled: tuple[int, ...] = ()) -> ClassMap:
    return ClassMap.from_values(values, unlabelled=unlabelled)


@given(VALUES, st.data())
def test_encode_then_decode_is_identity_for_any_values(
    values: list[int], data: st.DataObject
) -> None:
    labels = np.array(
        data.draw(st.lists(st.sampled_from(values), min_size=6, max_size=6)), np.int64
    ).reshape(2, 3)
    classes = _map(values)
    indices = classes.encode(labels)
    assert indices.dtype == np.uint8
    assert indices.shape == (2, 3)
    assert int(indices.max()) < len(classes)
    np.testing.assert_array_equal(classes.decode(indices), labels)


@given(VALUES.filter(lambda v: len(v) > 1), st.integers(0, 39), st.data())
def test_unlabelled_values_become_ignore_and_nothing_else_does(
    values: list[int], which: int, data: st.DataObject
) -> None:
    out = values[which % len(values)]
    labels = np.array(
        data.draw(st.lists(st.sampled_from(values), min_size=1)), np.int64
    )
    indices = _map(values, (out,)).encode(labels)
    np.testing.assert_array_equal(indices == IGNORE, labels == out)


@given(
    hnp.arrays(
        st.sampled_from([np.uint8, np.uint16, np.int32, np.uint64]),
        (3, 4),
        elements=st.integers(0, 200),
    )
)
def test_foreground_is_everything_but_zero(labels: np.ndarray) -> None:
    np.testing.assert_array_equal(ClassMap.foreground().encode(labels), labels != 0)


@pytest.mark.parametrize("values", [(1, 2, 3, 4), (0, 255), (0, 3, 7)])
def test_the_usual_masks(values: tuple[int, ...]) -> None:
    labels = np.array([values, values[::-1]], np.uint8)
    classes = ClassMap.from_values(np.unique(labels))
    assert classes.values == values
    assert classes.names == tuple(f"class {v}" for v in values)
    assert classes.encode(labels)[0].tolist() == list(range(len(values)))
    assert classes.decode(classes.encode(labels)).dtype == np.uint8


def test_bool_masks_are_background_and_foreground() -> None:
    assert ClassMap.from_values((0, 1)).encode(np.array([False, True])).tolist() == [
        0,
        1,
    ]


def test_zero_is_a_class_unless_it_is_said_to_be_unlabelled() -> None:
    labels = np.array([0, 1, 2])
    assert ClassMap.from_values(labels).encode(labels).tolist() == [0, 1, 2]
    assert ClassMap.from_values(labels, unlabelled=(0,)).encode(labels).tolist() == [
        IGNORE,
        0,
        1,
    ]


def test_a_value_outside_the_map_is_named() -> None:
    with pytest.raises(
        LabelError, match=r"label value 5, 9 is not in the class map \(classes \[0, 1\]"
    ):
        ClassMap.from_values((0, 1)).encode(np.array([0, 5, 9, 1]))
    many = np.arange(2, 30)
    with pytest.raises(LabelError, match=r"2, 3, 4, 5, 6, 7, 8, 9, \.\.\. is not"):
        ClassMap.from_values((0, 1)).encode(many)


def test_floats_are_refused_never_cut() -> None:
    with pytest.raises(
        LabelError,
        match=r"float32 \(0, 0\.33, 0\.67, 1, \.\.\.\); labels must be integers",
    ):
        ClassMap.from_values((0, 1)).encode(np.array([0, 0.33, 0.67, 1], np.float32))
    with pytest.raises(LabelError, match="complex128; labels"):
        check_integers(np.zeros(2, complex))


def test_nothing_to_learn_and_too_much_to_be_classes() -> None:
    with pytest.raises(LabelError, match=r"only label values \[0\], all unlabelled"):
        ClassMap.from_values([0], unlabelled=(0,))
    with pytest.raises(
        LabelError, match=r"found 65 label values \(0 to 64\).*foreground"
    ):
        ClassMap.from_values(range(65))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"names": (), "values": ()}, "found 0 classes"),
        (
            {"names": tuple(map(str, range(256))), "values": tuple(range(256))},
            "found 256 classes",
        ),
        ({"names": ("a", "b"), "values": (1,)}, "one name, one value and one colour"),
        (
            {"names": ("a",), "values": (1,), "colors": ("#000000", "#ffffff")},
            "one name, one value and one colour",
        ),
        ({"names": ("a", "a"), "values": (1, 2)}, "is duplicated"),
        ({"names": ("a", "b"), "values": (1, 1)}, "is duplicated"),
        (
            {"names": ("a", "b"), "values": (0, 1), "unlabelled": (0,)},
            r"\[0\] cannot be a class and unlabelled",
        ),
        (
            {"names": ("a", "b"), "values": (0, 1), "rest": "c"},
            "rest='c' is not one of the names",
        ),
    ],
)
def test_a_class_map_must_hold_together(wrong: dict, words: str) -> None:
    with pytest.raises(LabelError, match=words):
        ClassMap(**wrong)


def test_json_round_trip() -> None:
    classes = ClassMap(names=("a", "b"), values=(3, 7), unlabelled=(0, 9), rest="b")
    assert ClassMap.model_validate_json(classes.model_dump_json()) == classes
    assert len({classes, ClassMap(**classes.model_dump())}) == 1


COLORS = st.lists(
    st.tuples(*[st.integers(0, 255)] * 3), min_size=1, max_size=12, unique=True
)


@given(COLORS, st.data())
def test_rgb_masks(colors: list[tuple[int, int, int]], data: st.DataObject) -> None:
    index = np.array(
        data.draw(st.lists(st.integers(0, len(colors) - 1), min_size=4, max_size=4))
    ).reshape(2, 2)
    mask = np.moveaxis(np.array(colors, np.uint8)[index], -1, 0)
    classes = ClassMap.from_rgb(colors)
    np.testing.assert_array_equal(classes.encode(mask), index)
    opaque = np.concatenate([mask, np.full((1, 2, 2), 255, np.uint8)])
    np.testing.assert_array_equal(classes.encode(opaque), index)
    np.testing.assert_array_equal(classes.decode(classes.encode(mask)), index)
    assert classes.colors == tuple("#{:02x}{:02x}{:02x}".format(*c) for c in colors)


def test_a_colour_outside_the_map_is_named_unless_it_is_unlabelled() -> None:
    mask = np.zeros((3, 1, 2), np.uint8)
    mask[:, 0, 1] = (255, 128, 0)
    with pytest.raises(LabelError, match="colour #ff8000 is not in the class map"):
        ClassMap.from_rgb([(0, 0, 0)]).encode(mask)
    partly = ClassMap(
        names=("black",), values=(0,), rgb=((0, 0, 0),), unlabelled=(0xFF8000,)
    )
    assert partly.encode(mask).tolist() == [[0, IGNORE]]
    assert pack_rgb(mask).tolist() == [[0, 0xFF8000]]


def test_an_rgb_map_also_reads_what_it_wrote() -> None:
    classes = ClassMap.from_rgb([(0, 0, 0), (255, 0, 0)], names=("ground", "roof"))
    written = classes.decode(np.array([[0, 1]], np.uint8))
    assert classes.encode(written).tolist() == [[0, 1]]


def test_with_unlabelled_drops_classes_and_keeps_the_others_as_they_are() -> None:
    classes = ClassMap(
        names=("a", "b", "c"),
        values=(0, 3, 7),
        colors=("#000001", "#000002", "#000003"),
        rest="b",
    )
    less = classes.with_unlabelled((0, 9))
    assert (less.names, less.values, less.colors) == (
        ("b", "c"),
        (3, 7),
        ("#000002", "#000003"),
    )
    assert (less.unlabelled, less.rest) == ((0, 9), "b")
    assert classes.with_unlabelled((3,)).rest is None
    assert classes.with_unlabelled(()) is classes
    with pytest.raises(LabelError, match="all unlabelled"):
        classes.with_unlabelled((0, 3, 7))


def test_with_unlabelled_takes_colours_of_an_rgb_map() -> None:
    less = ClassMap.from_rgb([(0, 0, 0), (0, 0, 9), (1, 0, 0)]).with_unlabelled((9,))
    mask = np.array([[[0, 0, 1]], [[0, 0, 0]], [[0, 9, 0]]], np.uint8)
    assert less.encode(mask).tolist() == [[0, IGNORE, 1]]


@pytest.mark.parametrize(
    ("low", "high", "dtype"),
    [
        (0, 255, "uint8"),
        (0, 256, "uint16"),
        (0, 65536, "uint32"),
        (-1, 4, "int32"),
        (0, 2**32 - 1, "uint32"),
    ],
)
def test_smallest_dtype(low: int, high: int, dtype: str) -> None:
    assert smallest_dtype(low, high) == dtype
    assert ClassMap(names=("a", "b"), values=(low, high)).dtype == dtype


@pytest.mark.parametrize(("low", "high"), [(0, 2**32), (-(2**31) - 1, 0), (-1, 2**31)])
def test_values_beyond_32_bits_are_refused(low: int, high: int) -> None:
    with pytest.raises(LabelError, match="do not fit 32-bit"):
        smallest_dtype(low, high)


@pytest.mark.parametrize("count", [1, 10, 11, 64, 255])
def test_default_colours_are_distinct(count: int) -> None:
    colors = default_colors(count)
    assert len(set(colors)) == count
    assert all(len(c) == 7 and int(c[1:], 16) >= 0 for c in colors)


def test_table() -> None:
    classes = ClassMap(
        names=("pore", "clay"), values=(1, 2), colors=("#000000", "#ffffff")
    )
    assert classes.table()[1] == {
        "index": 1,
        "name": "clay",
        "value": 2,
        "color": "#ffffff",
    }
