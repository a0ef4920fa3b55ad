"""What `resolve` decides about the third dimension: strides, planes, tiles and halos from the pixel size."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import easy_pair, tiny_spec
from napari_strata.core.errors import ImageError
from napari_strata.core.geometry import depth_kernels, depth_strides
from napari_strata.core.image import AnnotatedImage, Image
from napari_strata.core.network_sections import UNet3d
from napari_strata.core.recipe import Recipe
from napari_strata.core.spec import TILE_VOXELS, ModelSpec, resolve


def volume(
    ratio: float = 1.0,
    *,
    planes: int = 40,
    unit: str = "micrometer",
    depth_unit: str = "",
    name: str = "a",
) -> AnnotatedImage:
    """A stack whose voxels are `ratio` times longer along Z."""
    data = np.random.default_rng(0).integers(0, 255, (planes, 8, 9), dtype=np.uint8)
    units = (depth_unit or unit, unit, unit)
    image = Image(data, "ZYX", scale=(0.2 * ratio, 0.2, 0.2), units=units, name=name)
    return AnnotatedImage(image, image.labels_like((data > 100).astype(np.uint8)))


def recipe(**overrides: Any) -> Recipe:
    """Keywords replace dotted keys with __ for the dot."""
    dotted = {key.replace("__", "."): value for key, value in overrides.items()}
    return Recipe(network=UNet3d()).with_overrides({"patches.size": 96, **dotted})


def depth_of(
    pairs: AnnotatedImage | list[AnnotatedImage], **overrides: Any
) -> tuple[int, ...]:
    """The strides along Z."""
    depth = resolve(recipe(**overrides), pairs).depth
    assert depth is not None
    return depth.strides


@pytest.mark.parametrize(
    ("ratio", "strides"),
    [
        (0.5, (2, 2, 2)),
        (1, (2, 2, 2)),
        (1.9, (2, 2, 2)),
        (2, (1, 2, 2)),
        (3, (1, 2, 2)),
        (5, (1, 1, 2)),
        (10, (1, 1, 1)),
    ],
)
def test_strides_follow_the_pixel_size(ratio: float, strides: tuple[int, ...]) -> None:
    assert depth_of(volume(ratio)) == strides
    assert depth_of(volume(), network__anisotropy=ratio) == strides, (
        "the recipe's goes before the data's"
    )


@given(st.integers(2, 7), st.floats(0.1, 100))
def test_z_is_halved_once_voxels_are_less_than_twice_as_long(
    levels: int, ratio: float
) -> None:
    strides, length = depth_strides(levels, ratio), ratio
    for stride in strides:
        assert stride == (2 if length < 2 else 1)
        length *= stride / 2
    assert list(strides) == sorted(strides), "once it is halved it goes on being halved"
    kernels = depth_kernels(strides)
    assert len(kernels) == levels
    assert kernels[:-1] == tuple(3 if stride == 2 else 1 for stride in strides)
    assert kernels[-1] == 3


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        (
            volume(3, planes=90),
            "voxels are 3 times longer along Z, so Z is halved at 2 of 3 levels and "
            "patches hold 32",
        ),
        (
            volume(0.5),
            "voxels are 2 times shorter along Z, so Z is halved at 3 of 3 levels and "
            "patches hold 40",
        ),
        (
            volume(1, planes=300),
            "voxels are as long along Z as along Y and X, so Z is halved at 3 of 3 "
            "levels and pat",
        ),
        (
            easy_pair((24, 16, 16)),
            "voxels are taken as cubes (the images do not say how long they are along "
            "Z: network",
        ),
    ],
)
def test_what_was_decided_is_said(pair: AnnotatedImage, words: str) -> None:
    spec = resolve(recipe(), pair)
    assert spec.notes[1].startswith(words)
    assert spec.notes[1].endswith(
        f"patches hold {spec.patch_shape[0]} planes of 96 x 96"
    )


def test_a_length_along_z_that_is_not_known_is_not_used() -> None:
    assert depth_of(volume(6, depth_unit="pixel")) == (2, 2, 2)
    assert depth_of([volume(6, depth_unit="pixel"), volume(3)]) == (1, 2, 2)
    # A scale without a unit, as one gives it to a layer of napari, is a shape all the same.
    assert depth_of(volume(6, unit="pixel")) == (1, 1, 2)


def test_voxels_of_different_shapes_are_warned_of() -> None:
    pairs = [volume(3, name="a"), volume(3.1, name="b"), volume(6, name="c")]
    notes = resolve(recipe(), pairs).notes
    assert (
        "different shapes (length along Z over that along Y and X: a: 3, b: 3.1, c: 6)"
        in notes[2]
    )
    assert len(resolve(recipe(), pairs[:2]).notes) == 2
    assert depth_of(pairs) == depth_of(pairs[::-1]) == (1, 2, 2)


@given(
    size=st.integers(16, 200),
    planes=st.none() | st.integers(1, 200),
    ratio=st.floats(0.01, 100),
    widths=st.lists(st.just(4), min_size=2, max_size=5).map(tuple),
    norm=st.sampled_from(["batch", "instance"]),
)
def test_sizes_are_multiples_of_the_strides(
    size: int, planes: int | None, ratio: float, widths: tuple[int, ...], norm: str
) -> None:
    network = {"widths": widths, "norm": norm, "anisotropy": ratio}
    wanted = Recipe.parse(
        {
            "network": {"kind": "unet3d", **network},
            "patches": {"size": size, "depth": planes},
        }
    )
    spec = resolve(wanted, volume(planes=30))
    assert spec.depth is not None
    assert spec.axes == "ZYX"
    shapes = (spec.patch_shape, spec.tile_shape, spec.halo_shape)
    for shape in shapes:
        assert len(shape) == 3
        assert all(
            n % stride == 0 for n, stride in zip(shape, spec.stride_shape, strict=True)
        )
    assert spec.stride_shape == (np.prod(spec.depth.strides), spec.stride, spec.stride)
    assert size <= spec.patch < size + spec.stride
    assert (planes or 1) <= spec.depth.patch
    assert (
        spec.depth.patch
        < (planes or min(30, spec.patch / max(ratio, 1) + 1)) + spec.depth.stride
    )
    shape = spec.network.geometry(spec.depth.strides)
    reaches = (shape.depth_reach, shape.reach, shape.reach)
    for halo, reach, stride in zip(
        spec.halo_shape, reaches, spec.stride_shape, strict=True
    ):
        assert 0 < halo < reach + stride
    assert spec.halo < UNet3d.widest_halo + spec.stride
    assert spec.blend == (norm == "instance")
    if spec.blend:
        assert spec.tile_shape == spec.patch_shape
    else:
        assert TILE_VOXELS / 2 < np.prod(spec.tile_shape) < 2 * TILE_VOXELS


def test_a_patch_holds_no_more_planes_than_the_stacks() -> None:
    assert resolve(recipe(), volume(planes=20)).patch_shape == (24, 96, 96)
    assert resolve(recipe(), [volume(planes=20), volume(planes=50)]).patch_shape == (
        56,
        96,
        96,
    )
    assert resolve(recipe(patches__depth=33), volume(planes=20)).patch_shape == (
        40,
        96,
        96,
    )


def test_a_2d_model_has_two_axes_and_no_depth() -> None:
    spec = tiny_spec()
    assert (spec.axes, spec.depth) == ("YX", None)
    assert spec.patch_shape == (spec.patch, spec.patch)
    assert spec.stride_shape == (spec.stride, spec.stride)
    assert spec.tile_shape == (spec.tile, spec.tile)
    assert spec.halo_shape == (spec.halo, spec.halo)


def test_json_round_trip_and_models_saved_before() -> None:
    spec = resolve(recipe(), volume(3))
    assert ModelSpec.model_validate_json(spec.model_dump_json()) == spec
    flat = tiny_spec()
    before = {
        key: value
        for key, value in json.loads(flat.model_dump_json()).items()
        if key != "depth"
    }
    assert ModelSpec.model_validate_json(json.dumps(before)) == flat


@pytest.mark.parametrize(
    ("axes", "shape"), [("YX", (16, 16)), ("ZYX", (1, 16, 16)), ("TYX", (3, 16, 16))]
)
def test_a_single_plane_is_refused_with_a_remedy(
    axes: str, shape: tuple[int, ...]
) -> None:
    image = Image(np.zeros(shape, np.uint8), axes, name="flat")
    pair = AnnotatedImage(image, image.labels_like(np.ones(shape, np.uint8)))
    with pytest.raises(ImageError) as error:
        resolve(recipe(), [volume(), pair])
    assert "\n" not in str(error.value)
    for words in ("flat: found a single plane", "axis Z", "--axes", "2D recipe"):
        assert words in str(error.value)


def test_a_depth_that_may_be_a_default_is_doubted_in_words() -> None:
    doubts = [
        [
            note
            for note in resolve(recipe(), volume(ratio)).notes
            if "exactly 1 along Z" in note
        ]
        for ratio in (5, 3)
    ]
    assert [len(found) for found in doubts] == [1, 0]  # five times .2 is 1
