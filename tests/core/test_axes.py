from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from napari_strata.core import axes
from napari_strata.core.errors import ImageError

every_axes = st.sampled_from(
    [
        "".join(p)
        for n in range(4)
        for extra in permutations("TCZ", n)
        for p in set(permutations((*extra, "Y", "X")))
    ]
)


@given(every_axes)
def test_to_canonical_and_back(letters: str) -> None:
    sizes = dict(zip("TCZYX", (2, 3, 4, 5, 6), strict=True))
    shape = tuple(sizes[a] for a in letters)
    array = np.arange(np.prod(shape)).reshape(shape)
    ordered = axes.to_canonical(array, letters)
    assert ordered.shape == tuple(sizes[a] for a in "TCZYX" if a in letters)
    np.testing.assert_array_equal(axes.from_canonical(ordered, letters), array)


@given(every_axes, st.data())
def test_a_voxel_stays_where_its_letters_say(letters: str, data: st.DataObject) -> None:
    at = {a: data.draw(st.integers(0, 2)) for a in letters}
    array = np.zeros((3,) * len(letters))
    array[tuple(at[a] for a in letters)] = 1
    assert (
        axes.to_canonical(array, letters)[tuple(at[a] for a in axes.canonical(letters))]
        == 1
    )


def test_canonical_is_a_view() -> None:
    array = np.zeros((4, 5, 3))
    axes.to_canonical(array, "YXC")[0] = 7
    assert (array[..., 0] == 7).all()


@pytest.mark.parametrize(
    ("given_axes", "parsed"),
    [("yx", "YX"), (" zyx ", "ZYX"), ("YXS", "YXC"), ("TCZYX", "TCZYX")],
)
def test_parse(given_axes: str, parsed: str) -> None:
    assert axes.parse(given_axes, (2,) * len(parsed)) == parsed


@pytest.mark.parametrize(
    ("given_axes", "shape", "words"),
    [
        ("QYX", (1, 2, 3), "Q is not one of"),
        ("YYX", (1, 2, 3), "is duplicated"),
        ("SCYX", (1, 2, 3, 4), "is duplicated"),
        ("ZYX", (2, 3), r"2 dimensions need 2 letters, for example 'YX'"),
        ("YX", (2, 3, 4), r"for example 'ZYX'"),
        ("TZY", (2, 3, 4), "Y and X are both needed"),
    ],
)
def test_parse_refuses(given_axes: str, shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(ImageError, match=words) as error:
        axes.parse(given_axes, shape)
    assert given_axes in str(error.value)
    assert str(shape) in str(error.value)


@pytest.mark.parametrize(
    ("count", "letters"), [(2, "YX"), (3, "ZYX"), (4, "CZYX"), (5, "TCZYX")]
)
def test_default_names_every_dimension(count: int, letters: str) -> None:
    assert axes.default((1,) * count) == letters


def test_without() -> None:
    assert axes.without("TCZYX", "C") == "TZYX"
    assert axes.without("YX", "C") == "YX"
