"""A plane of a volume is predicted by a 3D model as in the whole volume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import napari_strata as ns
from helpers import easy_pair
from napari_strata.core.events import PredictionStarted, RegionEnd
from napari_strata.core.image import AnnotatedImage, Image
from napari_strata.core.spec import ModelSpec, resolve
from napari_strata.inference.predict import iter_predict
from napari_strata.networks import build_network
from napari_strata.worker.sources import Window, planes_around
from worker.test_jobs import of, predict_request, run

VOLUMES = {"network": {"kind": "unet3d", "widths": [4, 8]}, "patches": {"size": 16}}


@pytest.fixture(scope="module")
def pair() -> AnnotatedImage:
    return easy_pair((45, 40, 48))


def make(pair: AnnotatedImage, folder: Path, *, tile: int, norm: str = "batch") -> Path:
    """A 3D model with random weights whose tiles are `tile` planes thick."""
    recipe = ns.Recipe.parse(VOLUMES).with_overrides({"network.norm": norm})
    spec = resolve(recipe, [pair])
    assert spec.depth is not None
    spec = spec.model_copy(
        update={"depth": spec.depth.model_copy(update={"tile": tile})}
    )
    torch.manual_seed(1)
    network = build_network(spec)
    return ns.Model(spec, recipe, dict(network.state_dict())).save(
        folder / f"{norm}.safetensors"
    )


def whole(model: Path, image: Image, **options: Any) -> np.ndarray[Any, Any]:
    return np.asarray(ns.predict(model, image, device="cpu", **options).data)


@pytest.mark.parametrize("plane", [0, 1, 17, 44])
@pytest.mark.parametrize("tile", [16, 512])
def test_a_plane_of_a_volume_equals_that_of_the_whole_volume(
    tmp_path: Path, pair: AnnotatedImage, plane: int, tile: int
) -> None:
    model = make(pair, tmp_path, tile=tile)
    expected = whole(model, pair.image)
    flat = whole(model, Image(np.asarray(pair.image.data)[plane : plane + 1], "ZYX"))
    assert (flat[0] != expected[plane]).any()  # else this test would show nothing
    events, result = run(
        predict_request(model, tmp_path, pair.image, region={"Z": plane})
    )
    found = np.load(tmp_path / "out.npy")
    np.testing.assert_array_equal(found[plane], expected[plane])
    assert not np.delete(found, plane, axis=0).any()
    assert [(e.region, e.done, e.regions) for e in of(events, RegionEnd)] == [
        ({"Z": plane}, 1, 1)
    ]
    assert [(e.done, e.regions) for e in of(events, PredictionStarted)] == [(0, 1)]
    assert sum(result["pixels"].values()) == 40 * 48


def test_planes_in_a_box_and_a_time_point(tmp_path: Path, pair: AnnotatedImage) -> None:
    model = make(pair, tmp_path, tile=16)
    array = np.stack([np.asarray(pair.image.data)[::-1], np.asarray(pair.image.data)])
    image = Image(array, "TZYX", name="two")
    reference = iter_predict(model, image, device="cpu", probabilities=True)
    list(reference)
    expected = np.asarray(reference.labels.data)
    region = {"T": 1, "Z": (10, 13), "X": (0, 40)}
    events, _ = run(
        predict_request(model, tmp_path, image, region=region, probabilities=True)
    )
    found, probabilities = (
        np.load(tmp_path / "out.npy"),
        np.load(tmp_path / "out_probabilities.npy"),
    )
    np.testing.assert_array_equal(
        found[1, 10:13, :, :20], expected[1, 10:13, :, :20]
    )  # X is cut, as in 2D
    assert reference.probabilities is not None
    wanted = np.asarray(reference.probabilities.data)
    np.testing.assert_allclose(
        probabilities[1, 10:13, :, :, :20], wanted[1, 10:13, :, :, :20], atol=2e-3
    )
    assert found[1, 10:13, :, :40].any()
    found[1, 10:13, :, :40] = 0
    assert not found.any()
    assert [e.region["Z"] for e in of(events, RegionEnd)] == [10, 11, 12]
    assert [e.done for e in of(events, RegionEnd)] == [1, 2, 3]


def test_pixels_around_a_plane_in_the_file_are_unchanged(
    tmp_path: Path, pair: AnnotatedImage
) -> None:
    model = make(pair, tmp_path, tile=16)
    expected = whole(model, pair.image)
    for plane in (20, 21):
        run(
            predict_request(
                model, tmp_path, pair.image, region={"Z": plane}, overwrite=True
            )
        )
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy")[20:22], expected[20:22])


def test_a_network_that_depends_on_the_whole_tile_gets_one(
    tmp_path: Path, pair: AnnotatedImage
) -> None:
    model = make(pair, tmp_path, tile=16, norm="instance")
    expected = whole(model, pair.image)
    for plane in (0, 22, 44):
        run(
            predict_request(
                model, tmp_path, pair.image, region={"Z": plane}, overwrite=True
            )
        )
        assert (np.load(tmp_path / "out.npy")[plane] == expected[plane]).mean() > 0.9


@given(st.data(), st.sampled_from([(2,), (1,)]), st.booleans())
def test_planes_that_are_read_include_the_output_and_a_halo(
    data: st.DataObject, strides: tuple[int, ...], blend: bool
) -> None:
    depth = data.draw(st.integers(1, 60))
    first = data.draw(st.integers(0, depth - 1))
    kept = slice(first, data.draw(st.integers(first + 1, depth)))
    spec = resolve(ns.Recipe.parse(VOLUMES), [SMALL])
    assert spec.depth is not None
    sizes = spec.depth.model_copy(update={"tile": 16, "halo": 6, "strides": strides})
    spec = ModelSpec.model_validate(
        spec.model_copy(update={"depth": sizes, "blend": blend}).model_dump()
    )
    seen = planes_around(kept, depth, [spec, spec])
    assert 0 <= seen.start <= max(0, kept.start - 6)
    assert min(depth, kept.stop + 6) <= seen.stop <= depth
    assert seen.start % spec.stride_shape[0] == 0
    if blend:
        assert seen.stop - seen.start >= min(depth, 16)
    else:
        assert seen.stop - seen.start <= kept.stop - kept.start + 2 * (
            6 + spec.stride_shape[0] - 1
        )


SMALL = easy_pair((4, 16, 16))


def test_2d_models_and_whole_volumes_need_no_context(
    pair: AnnotatedImage, tmp_path: Path
) -> None:
    flat = resolve(
        ns.Recipe.parse({"network": {"kind": "unet", "widths": [4, 8]}}), [pair]
    )
    deep = resolve(ns.Recipe.parse(VOLUMES), [pair])
    one, rows, every = (
        Window.of(pair.image, region) for region in ({"Z": 3}, {"Y": (0, 8)}, None)
    )
    assert one.with_context([flat]) is one
    assert one.with_context([deep]) is not one
    assert rows.with_context([deep]) is rows
    assert every.with_context([deep]) is every
