"""Laws of predicting volumes with 3D networks, by the code that predicts planes with 2D ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import napari_strata as ns
from helpers import easy_pair, tiled
from napari_strata.core.classes import ClassMap
from napari_strata.core.errors import ImageError, ModelError, RunError
from napari_strata.core.events import RegionEnd
from napari_strata.core.image import Image
from napari_strata.core.network_sections import UNet3d
from napari_strata.core.normalization import ResolvedNormalization, Scale
from napari_strata.core.options import PredictOptions
from napari_strata.core.recipe import Recipe
from napari_strata.core.spec import Depth, ModelSpec, resolve
from napari_strata.core.tiling import plan_tiles
from napari_strata.inference.build import build_ensemble_predictor
from napari_strata.inference.chunks import plan_chunks
from napari_strata.inference.ensemble_predictor import EnsemblePredictor
from napari_strata.inference.estimate import estimate
from napari_strata.inference.outputs import OutputSpec
from napari_strata.inference.predict import iter_predict, predict
from napari_strata.models.device import Precision
from napari_strata.models.model import Model
from napari_strata.models.tiled import TiledPredictor
from napari_strata.networks import build_network

SCALE = Scale(center=(100.0,), spread=(20.0,), low=(0.0,), high=(255.0,))
CPU, FP32 = torch.device("cpu"), Precision("fp32")
OPTIONS = PredictOptions(device="cpu", precision="fp32")
LENGTH = st.sampled_from([1, 2, 3, 7, 12, 33])


def grey(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8)


def make_spec(**changes) -> ModelSpec:
    facts = {
        "network": UNet3d(widths=(4, 8)),
        "in_channels": 1,
        "classes": ClassMap(names=("a", "b", "c"), values=(0, 3, 7)),
        "axes": "ZYX",
        "dtype": "uint8",
        "normalization": ResolvedNormalization(kind="physical", scale=SCALE),
        "patch": 16,
        "stride": 2,
        "tile": 16,
        "halo": 4,
        "blend": False,
        "depth": Depth(patch=8, tile=8, halo=2, strides=(2,)),
    }
    return ModelSpec.model_validate(facts | changes)


class Box(nn.Module):
    """Sees one voxel each way: three classes by the mean of what is around."""

    def __init__(self, axes: int = 3) -> None:
        super().__init__()
        self.axes = axes
        self.weight = nn.Parameter(torch.ones((1, 1, *(3,) * axes)) / 3**axes)

    def forward(self, images: Tensor) -> Tensor:
        padded = F.pad(images, (1, 1) * self.axes, mode="replicate")
        mean = (F.conv3d if self.axes == 3 else F.conv2d)(
            padded, self.weight.to(images.dtype)
        )
        return torch.cat([mean, -mean, mean * 0], 1)


def predictor(network: nn.Module | None = None, **changes) -> TiledPredictor:
    return tiled(network or Box(), make_spec(**changes), device=CPU, precision=FP32)


@given(
    st.tuples(LENGTH, LENGTH, LENGTH),
    st.tuples(*[st.integers(1, 9)] * 3),
    st.tuples(*[st.integers(0, 3)] * 3),
)
def test_tiles_of_a_volume_cover_each_voxel_once_with_its_halo(shape, tile, halo):
    stride = (1, 2, 2)
    seen = np.zeros(shape, int)
    for part in plan_tiles(shape, tile=tile, halo=halo, stride=stride):
        seen[part.write] += 1
        for read, crop, write, far, length, step in zip(
            part.read, part.crop, part.write, halo, shape, stride, strict=True
        ):
            assert (read.start + crop.start, read.start + crop.stop) == (
                write.start,
                write.stop,
            )
            assert read.start % step == 0
            assert read.start == 0 or write.start - read.start >= far
            assert read.stop == length or read.stop - write.stop >= far
    assert (seen == 1).all()


@given(st.tuples(LENGTH, LENGTH, LENGTH))
def test_tiles_give_what_the_whole_volume_gives(shape):
    volume = grey(1, *shape)
    whole = predictor(
        tile=64, depth=Depth(patch=8, tile=64, halo=2, strides=(2,))
    ).predict_logits(volume, SCALE)
    tiles = predictor(tile=4, depth=Depth(patch=4, tile=4, halo=2, strides=(2,)))
    assert np.allclose(tiles.predict_logits(volume, SCALE), whole, atol=1e-5)
    indices, probabilities = tiles.predict(volume, SCALE, probabilities=True)
    sure = (
        np.abs(whole[0]) > 1e-4
    )  # where the first two classes are not alike but for rounding
    assert np.array_equal(indices[sure], whole.argmax(0)[sure])
    assert probabilities is not None
    assert np.allclose(probabilities.astype(np.float32).sum(0), 1, atol=2e-3)


@given(st.tuples(LENGTH, LENGTH, LENGTH))
def test_blended_tiles_of_a_volume_agree_with_the_whole_inside(shape):
    # A network that sees one voxel only answers the same in every tile, and so does the blend of its answers.
    class Voxel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.none = nn.Parameter(torch.zeros(1))

        def forward(self, images: Tensor) -> Tensor:
            return torch.cat([images, -images, images * 0], 1)

    volume = grey(1, *shape)
    found = predictor(Voxel(), blend=True, tile=8).predict_logits(volume, SCALE)
    want = torch.log_softmax(
        torch.from_numpy(np.concatenate([s := SCALE.apply(volume), -s, s * 0])), 0
    ).numpy()
    assert np.allclose(found, want, atol=1e-4)


@given(st.tuples(LENGTH, LENGTH), st.booleans())
def test_a_plane_is_a_volume_of_one_plane(shape, tta):
    flat = make_spec(axes="YX", depth=None, network={"kind": "unet", "widths": [4, 8]})
    image = grey(1, *shape)
    two = EnsemblePredictor([tiled(Box(2), flat, device=CPU, precision=FP32)], tta=tta)
    three = EnsemblePredictor([predictor()], tta=tta)
    plane, volume = two.predict(image, [SCALE]), three.predict(image[:, None], [SCALE])
    # Around a single plane the volume's border repeats it, so both networks see the same means.
    assert np.array_equal(plane[0], volume[0][0])


def test_turns_of_a_volume_are_turned_back():
    class Left(nn.Module):
        """Class 1 left of the middle, whatever the picture."""

        def __init__(self) -> None:
            super().__init__()
            self.none = nn.Parameter(torch.zeros(1))

        def forward(self, images: Tensor) -> Tensor:
            left = (
                (torch.arange(images.shape[-1]) < images.shape[-1] // 2)
                .float()
                .expand(images.shape)
            )
            return torch.cat([1 - left, left, left * 0], 1) * 9

    _, probabilities = EnsemblePredictor(
        [predictor(Left(), tile=64)], tta=True
    ).predict(grey(1, 3, 8, 8), [SCALE], probabilities=True)
    assert probabilities is not None
    assert np.allclose(probabilities[1], probabilities[1][:, ::-1], atol=1e-3)
    assert np.allclose(probabilities[1], probabilities[1].transpose(0, 2, 1), atol=1e-3)


RECIPE = Recipe.parse(
    {
        "network": {"kind": "unet3d", "widths": [4, 8]},
        "patches": {"size": 16, "per_epoch": 4},
        "training": {
            "epochs": 1,
            "batch_size": 2,
            "averaging": None,
            "precision": "fp32",
        },
    }
)
PAIR = easy_pair((9, 32, 40))


def model(recipe: Recipe = RECIPE, **changes) -> Model:
    spec = resolve(recipe, PAIR).model_copy(update=changes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Model(spec, recipe, dict(build_network(spec).state_dict()))


THIN = {"tile": 16, "depth": Depth(patch=4, tile=4, halo=2, strides=(2,))}


@pytest.mark.parametrize("depth", [1, 2, 3, 7, 20])
def test_a_stack_is_predicted_slab_by_slab(depth):
    image = Image(grey(depth, 24, 20), "ZYX")
    one = model(**THIN, halo=8) if depth < 8 else model(**THIN)
    chunks = plan_chunks(image, [one.spec])
    assert [number for chunk in chunks for number in chunk.planes] == list(range(depth))
    assert max(chunk.shape(image)[0] for chunk in chunks) <= 4 + 4 * 2
    assert len(chunks) > 1 or depth < 20
    job = iter_predict(one, image, options=OPTIONS)
    regions = [event.region["Z"] for event in job if isinstance(event, RegionEnd)]
    assert regions == list(range(depth))
    whole, _ = build_ensemble_predictor(ns.load_models(one), OPTIONS).predict(
        np.asarray(image.data)[None],
        [
            one.spec.normalization.scale_for(
                np.concatenate(image.samples(), 1), image.dtype
            )
        ],
    )
    assert np.array_equal(np.asarray(job.labels.data), one.spec.classes.decode(whole))


def test_time_points_are_predicted_each_by_itself():
    film = Image(grey(2, 9, 24, 20), "TZYX")
    found = np.asarray(predict(model(**THIN), film, options=OPTIONS).data)
    for t in range(2):
        alone = predict(
            model(**THIN), Image(np.asarray(film.data)[t], "ZYX"), options=OPTIONS
        )
        # Normalised alike: the recipe's grey values are physical or relative, and these are drawn from one range.
        assert (found[t] == np.asarray(alone.data)).mean() > 0.95


def test_an_interrupted_volume_goes_on_in_the_middle_of_a_slab(tmp_path: Path):
    image, out = Image(grey(20, 24, 20), "ZYX"), tmp_path / "labels.tif"
    want = predict(model(**THIN), image, options=OPTIONS)
    job = iter_predict(model(**THIN), image, out=out, options=OPTIONS)
    for event in job:
        if isinstance(event, RegionEnd) and event.done == 6:
            break
    job.close()
    events = list(iter_predict(model(**THIN), image, out=out, options=OPTIONS))
    done = [event.done for event in events if isinstance(event, RegionEnd)]
    assert done[0] == 7
    assert np.array_equal(np.asarray(ns.read_labels(out).data), np.asarray(want.data))


def test_probabilities_of_a_volume_belong_to_their_labels():
    job = iter_predict(
        model(**THIN),
        Image(grey(20, 24, 20), "ZYX"),
        options=OPTIONS.updated(probabilities=True),
    )
    for _ in job:
        pass
    assert job.probabilities is not None
    probabilities = np.asarray(job.probabilities.data)
    assert probabilities.shape == (20, 2, 24, 20)
    assert np.array_equal(
        np.array([0, 255])[probabilities.argmax(1)], np.asarray(job.labels.data)
    )


def test_voxels_that_are_not_finite_are_counted_in_their_planes():
    data = grey(20, 24, 20).astype(np.float32)
    data[13, 5, 6] = np.nan
    texts = [
        getattr(event, "text", "")
        for event in iter_predict(model(**THIN), Image(data, "ZYX"), options=OPTIONS)
    ]
    assert [
        text
        for text in texts
        if "1 pixel that is not finite" in text and "Z=13, Y=5, X=6" in text
    ]


def test_a_3d_model_wants_a_stack_and_no_views():
    with pytest.raises(ImageError, match=r"single plane.*needs volumes.*axis Z"):
        predict(model(), Image(grey(24, 20), "YX"), options=OPTIONS)
    with pytest.raises(RunError, match=r"needs volumes.*plain 2D model"):
        predict(model(), PAIR.image, options=OPTIONS.updated(ortho=True))


def test_models_of_planes_and_of_volumes_do_not_go_together():
    flat = Recipe.parse({"network": {"kind": "unet", "widths": [4, 8]}})
    spec = resolve(flat, PAIR)
    other = Model(spec, flat, dict(build_network(spec).state_dict()))
    with pytest.raises(ModelError, match=r"axes: 'model 1' has ZYX; 'model 2' has YX"):
        predict([model(), other], PAIR.image, options=OPTIONS)


def test_the_estimate_counts_the_tiles_that_go_through():
    one, image = model(**THIN), Image(grey(20, 24, 20), "ZYX")
    ensemble = build_ensemble_predictor(ns.load_models(one), OPTIONS)
    seen: list[tuple[int, ...]] = []
    network = ensemble.members[0].predictor.network
    network.register_forward_pre_hook(
        lambda _, inputs: seen.extend([inputs[0].shape[2:]] * len(inputs[0]))
    )
    found = estimate(
        ensemble,
        image,
        OutputSpec(20, (24, 20), np.dtype(np.uint8)),
        out=None,
        in_memory=True,
    )
    seen.clear()
    predict(one, image, options=OPTIONS)
    list(iter_predict(one, image, options=OPTIONS))
    for chunk in ensemble.plan_chunks(image):
        ensemble.predict_chunk(chunk, image.read(chunk.region), [SCALE])
    assert found.forwarded == pytest.approx(sum(map(np.prod, seen)) / (20 * 24 * 20))
    assert found.memory > 0
