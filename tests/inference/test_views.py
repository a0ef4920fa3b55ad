"""Laws of three views: the mean of what a 2D network says of the XY, XZ and YZ planes of a volume."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from helpers import easy_pair, tiny_model, tiny_recipe
from napari_strata.core.errors import ImageError, RunError
from napari_strata.core.image import Image
from napari_strata.core.options import PredictOptions
from napari_strata.core.spec import resolve
from napari_strata.inference import chunks
from napari_strata.inference.chunks import pixel_stretch, plan_chunks
from napari_strata.inference.ensemble_predictor import mean_of_views, view_shapes
from napari_strata.inference.predict import iter_predict, predict
from napari_strata.models.model import Model
from napari_strata.networks import build_network


def smooth(planes: np.ndarray) -> Tensor:
    """A network that looks the same along both axes: class 1 where its surroundings are bright."""
    grey = torch.from_numpy(np.ascontiguousarray(planes, dtype=np.float32))
    kernel = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]])[None, None] / 16
    logit = F.conv2d(F.pad(grey, (1, 1, 1, 1), mode="replicate"), kernel) / 50 - 2
    return torch.cat([torch.zeros_like(logit), logit], 1).softmax(1)


def grey(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8)


SMALL = st.tuples(*[st.sampled_from([1, 2, 3, 7, 10])] * 3)


@given(SMALL)
def test_an_isotropic_network_does_not_know_which_axis_is_which(shape):
    volume = grey(1, *shape)
    wanted = mean_of_views(volume, (1, 1), smooth)
    for order in permutations(range(3)):
        axes = [0, *(1 + axis for axis in order)]
        found = mean_of_views(volume.transpose(axes), (1, 1), smooth)
        assert torch.allclose(found, wanted.permute(axes), atol=1e-6)


@given(SMALL, st.sampled_from([0.4, 1.0, 2.5, 3.0]), st.sampled_from([1.0, 2.0]))
def test_upright_planes_are_stretched_and_brought_back(shape, along_y, along_x):
    seen: list[tuple[int, ...]] = []

    def mean(planes: np.ndarray) -> Tensor:
        seen.extend([planes.shape[2:]] * len(planes))
        return smooth(planes)

    found = mean_of_views(grey(1, *shape), (along_y, along_x), mean)
    assert found.shape == (2, *shape)
    assert torch.allclose(found.sum(0), torch.ones(shape), atol=1e-5)
    wanted = [
        size
        for size, count in view_shapes(shape, (along_y, along_x))
        for _ in range(count)
    ]
    assert seen == wanted


@given(SMALL, st.sampled_from([1, 12, 45, 1000]))
def test_planes_of_a_view_are_predicted_together(shape, batch_pixels):
    sizes: list[int] = []

    def mean(planes: np.ndarray) -> Tensor:
        sizes.append(planes[:, 0].size if len(planes) > 1 else 0)
        return smooth(planes)

    volume = grey(1, *shape)
    one_by_one = mean_of_views(volume, (2.5, 1), smooth)
    found = mean_of_views(volume, (2.5, 1), mean, batch_pixels=batch_pixels)
    assert max(sizes) <= batch_pixels
    assert torch.allclose(found, one_by_one, atol=1e-6)


def test_an_image_of_long_voxels_is_seen_as_if_they_were_not():
    ball = np.add.outer(
        np.add.outer((np.arange(8) * 4 - 14.0) ** 2, np.arange(-16.0, 16) ** 2),
        np.arange(-16.0, 16) ** 2,
    )
    grey_values = np.where(ball < 120, 220, 40).astype(np.uint8)
    fine = (
        np.add.outer(
            np.add.outer(np.arange(-16.0, 16) ** 2, np.arange(-16.0, 16) ** 2),
            np.arange(-16.0, 16) ** 2,
        )
        < 120
    )
    truth = ball < 120
    stretched = mean_of_views(grey_values[None], (4, 4), smooth)[1].numpy() > 0.5
    flat = mean_of_views(grey_values[None], (1, 1), smooth)[1].numpy() > 0.5
    assert fine.sum() > 0
    assert (stretched != truth).sum() < (flat != truth).sum()


def test_stretches_come_from_the_pixel_size():
    data = grey(4, 8, 8)
    assert pixel_stretch(Image(data, "ZYX")) == (1, 1)
    assert pixel_stretch(Image(data, "ZYX", scale=(6, 2, 3), units=("um",) * 3)) == (
        3,
        2,
    )
    # A depth in pixels beside a width in micrometers says nothing.
    assert pixel_stretch(
        Image(data, "ZYX", scale=(1, 0.2, 0.2), units=("pixel", "um", "um"))
    ) == (1, 1)


@pytest.mark.parametrize("depth", [2, 3, 7, 40])
def test_slabs_give_what_the_whole_volume_gives(depth, monkeypatch):
    image = Image(grey(depth, 24, 20), "ZYX")
    whole = predict(tiny_model(), image, ortho=True, probabilities=False)
    monkeypatch.setattr(chunks, "VIEW_VALUES", 1)
    spec = tiny_model().spec
    pieces = plan_chunks(image, [spec], ortho=True)
    assert [n for piece in pieces for n in piece.planes] == list(range(depth))
    assert len(pieces) > 1 or depth <= spec.halo
    again = predict(tiny_model(), image, ortho=True)
    assert np.array_equal(np.asarray(again.data), np.asarray(whole.data))


@pytest.mark.parametrize("scale", [(0.25, 1, 1), (0.5, 1, 1), (2, 1, 1), (1, 4, 1)])
def test_slabs_have_no_seams_where_voxels_are_no_cubes(scale, monkeypatch):
    image = Image(grey(48, 24, 20), "ZYX", scale=scale, units=("um",) * 3)
    options = PredictOptions(ortho=True, probabilities=True, precision="fp32")
    whole, pieces = (
        iter_predict(tiny_model(), image, options=options) for _ in range(2)
    )
    list(whole)
    monkeypatch.setattr(chunks, "VIEW_VALUES", 1)
    assert len(plan_chunks(image, [tiny_model().spec], ortho=True)) > 1
    list(pieces)
    assert np.array_equal(np.asarray(pieces.labels.data), np.asarray(whole.labels.data))


def test_three_views_differ_from_one_and_serve_every_time_point():
    image = Image(grey(2, 6, 24, 20), "TZYX")
    one, three = (predict(tiny_model(), image, ortho=ortho) for ortho in (False, True))
    assert one.shape == three.shape == (2, 6, 24, 20)
    assert (np.asarray(one.data) != np.asarray(three.data)).any()
    alone = predict(tiny_model(), Image(np.asarray(image.data)[1], "ZYX"), ortho=True)
    assert np.array_equal(np.asarray(three.data)[1], np.asarray(alone.data))


def test_probabilities_of_three_views_belong_to_their_labels():
    job = iter_predict(
        tiny_model(), Image(grey(5, 24, 20), "ZYX"), ortho=True, probabilities=True
    )
    texts = [event.text for event in job if hasattr(event, "text")]
    assert any("XY, XZ and YZ" in text for text in texts)
    assert job.probabilities is not None
    probabilities = np.asarray(job.probabilities.data)
    assert probabilities.shape == (5, 2, 24, 20)
    values = np.asarray(tiny_model().spec.classes.values)
    assert np.array_equal(values[probabilities.argmax(1)], np.asarray(job.labels.data))


def test_what_has_no_three_views_is_refused():
    with pytest.raises(ImageError, match=r"single plane.*leave --ortho out"):
        predict(tiny_model(), Image(grey(24, 20), "YX"), ortho=True)
    deep = tiny_recipe(patches__neighbours=1)
    pair = easy_pair((3, 40, 40))
    from napari_strata.data.neighbours import pairs_with_neighbours

    spec = resolve(deep, pairs_with_neighbours([pair], 1))
    dressed = Model(spec, deep, dict(build_network(spec).state_dict()))
    with pytest.raises(RunError, match=r"neighbours.*plain 2D model"):
        predict(dressed, pair.image, ortho=True)
    square = tiny_recipe(patches__resize=32)
    spec = resolve(square, pair)
    with pytest.raises(RunError, match=r"resizes.*plain 2D model"):
        predict(
            Model(spec, square, dict(build_network(spec).state_dict())),
            pair.image,
            ortho=True,
        )


def test_a_prediction_of_one_view_is_not_taken_up_by_three(tmp_path):
    out, image = tmp_path / "labels.tif", Image(grey(5, 24, 20), "ZYX")
    job = iter_predict(tiny_model(), image, out=out)
    for event in job:
        if type(event).__name__ == "RegionEnd":
            break
    job.close()
    events = list(
        iter_predict(tiny_model(), image, out=out, options=PredictOptions(ortho=True))
    )
    assert any(
        "another choice of three views" in getattr(event, "text", "")
        for event in events
    )
