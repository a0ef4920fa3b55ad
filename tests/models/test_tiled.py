from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from helpers import tiled, tiny_recipe
from napari_strata.core.classes import ClassMap
from napari_strata.core.errors import RunError
from napari_strata.core.normalization import ResolvedNormalization, Scale
from napari_strata.core.spec import ModelSpec
from napari_strata.models import tiled as module
from napari_strata.models.device import Precision
from napari_strata.models.memory import is_out_of_memory
from napari_strata.models.tiled import TiledPredictor, class_indices
from napari_strata.networks import build_network

SCALE = Scale(center=(100.0,), spread=(20.0,), low=(0.0,), high=(255.0,))


def make_spec(**changes) -> ModelSpec:
    facts = {
        "network": tiny_recipe().network,
        "in_channels": 1,
        "classes": ClassMap(names=("a", "b", "c"), values=(0, 3, 7)),
        "dtype": "uint8",
        "normalization": ResolvedNormalization(kind="physical", scale=SCALE),
        "patch": 32,
        "stride": 2,
        "tile": 32,
        "halo": 16,
        "blend": False,
    }
    return ModelSpec.model_validate(facts | changes)


def make(
    network: nn.Module, spec: ModelSpec | None = None, *, batch: int | None = None
) -> TiledPredictor:
    return tiled(network, spec or make_spec(), batch=batch)


def grey(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(60, 140, (1, *shape)).astype(np.uint8)


class Threshold(nn.Module):
    """Logits that say which of three equal ranges the normalised grey value is in; counts its calls."""

    def __init__(self, most: int = 10**9, largest: int = 10**9) -> None:
        super().__init__()
        self.most, self.largest = most, largest
        self.batches: list[tuple[int, ...]] = []

    def forward(self, images: Tensor) -> Tensor:
        if len(images) > self.most or images.shape[2] * images.shape[3] > self.largest:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.batches.append(tuple(images.shape))
        value = images[:, :1]
        return torch.cat([-value - 0.52, torch.zeros_like(value), value - 0.52], 1)


def expected(image: np.ndarray) -> np.ndarray:
    value = (image[0].astype(np.float32) - 100) / 20
    return np.where(value < -0.52, 0, np.where(value > 0.52, 2, 1))


class Double(nn.Module):
    """A network in float64, so that what rounding does is no excuse."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.double()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images.double())
        return logits


@pytest.fixture(scope="module")
def unet() -> nn.Module:
    torch.manual_seed(1)
    network = build_network(make_spec())
    for (
        name,
        value,
    ) in (
        network.named_buffers()
    ):  # statistics as after training, so that grey values decide
        if name.endswith("running_var"):
            value.fill_(0.3)
    return Double(network).eval()


@pytest.mark.parametrize("shape", [(64, 64), (75, 141), (33, 200), (7, 5), (1, 1)])
def test_tiled_equals_whole_when_the_halo_covers_the_reach(unet, shape):
    reach = tiny_recipe().network.geometry().reach
    spec = make_spec(halo=reach, tile=16)
    image = grey(*shape)
    with torch.inference_mode():
        whole = unet(torch.from_numpy(SCALE.apply(image))[None])[0].numpy()
    np.testing.assert_allclose(
        make(unet, spec).predict_logits(image, SCALE), whole, rtol=1e-6, atol=1e-9
    )
    indices, probabilities = make(unet, spec).predict(image, SCALE)
    assert indices.dtype == np.uint8
    assert np.array_equal(indices, whole.argmax(0))
    assert probabilities is None


def test_without_halo_the_seams_show_so_the_test_above_can_fail(unet):
    image = grey(75, 141)
    with torch.inference_mode():
        whole = unet(torch.from_numpy(SCALE.apply(image))[None])[0].numpy()
    cut = make(unet, make_spec(halo=0, tile=16)).predict_logits(image, SCALE)
    assert np.abs(cut - whole).max() > 1e-3


@pytest.mark.parametrize("changes", [{}, {"blend": True}, {"halo": 0, "tile": 8}])
@pytest.mark.parametrize("shape", [(50, 71), (32, 32), (9, 3)])
def test_every_way_of_tiling_finds_each_pixel_its_class(changes, shape):
    image = grey(*shape)
    indices, probabilities = make(Threshold(), make_spec(**changes)).predict(
        image, SCALE, probabilities=True
    )
    assert np.array_equal(indices, expected(image))
    assert probabilities is not None
    assert probabilities.dtype == np.float16
    assert probabilities.shape == (3, *shape)
    np.testing.assert_allclose(probabilities.astype(float).sum(0), 1, atol=2e-3)
    value = (image[0] - np.float32(100)) / 20
    logits = torch.tensor(np.stack([-value - 0.52, 0 * value, value - 0.52]))
    np.testing.assert_allclose(
        probabilities, torch.softmax(logits, 0).numpy(), atol=2e-3
    )


def test_blended_tiles_are_all_of_the_patch_size():
    network = Threshold()
    make(network, make_spec(blend=True)).predict(grey(50, 71), SCALE)
    assert {shape[2:] for shape in network.batches} == {(32, 32)}


class Position(nn.Module):
    """Class 1 where its tile is far from its own border, class 0 near it: blending must prefer the middle."""

    def forward(self, images: Tensor) -> Tensor:
        rows, columns = (torch.linspace(-1, 1, n).abs() for n in images.shape[2:])
        border = torch.maximum(rows[:, None], columns).expand(
            len(images), 1, *images.shape[2:]
        )
        return torch.cat(
            [
                4 * (border - 0.9),
                torch.zeros_like(border),
                torch.full_like(border, -9.0),
            ],
            1,
        )


def test_blending_prefers_the_middle_of_tiles():
    indices, _ = make(Position(), make_spec(blend=True, tile=32, stride=8)).predict(
        grey(80, 80), SCALE
    )
    assert (indices[4:-4, 4:-4] == 1).all()
    assert (indices[0] == 0).all()  # only the picture's own border is nobody's middle


def test_resized_planes_are_predicted_in_one_go_and_come_back_in_their_size():
    network = Threshold()
    image = np.repeat(np.repeat(grey(8, 8), 12, axis=1), 9, axis=2)
    indices, probabilities = make(network, make_spec(resize=48)).predict(
        image, SCALE, probabilities=True
    )
    assert network.batches == [(1, 1, 48, 48)]
    assert indices.shape == (96, 72)
    assert probabilities is not None
    assert probabilities.shape == (3, 96, 72)
    middles = (slice(6, None, 12), slice(4, None, 9))
    assert (indices[middles] == expected(image)[middles]).mean() > 0.95


def test_values_that_are_not_finite_count_as_the_centre():
    image = grey(20, 20).astype(np.float32)
    image[0, 3, 4], image[0, 5, 6] = np.nan, np.inf
    indices, _ = make(Threshold()).predict(image, SCALE)
    assert indices[3, 4] == indices[5, 6] == 1


def test_half_precision_gives_nearly_the_same(unet):
    spec, image = make_spec(), grey(60, 60)
    network = unet.network.float()
    half = tiled(network, spec, precision=Precision("bf16", torch.bfloat16)).predict(
        image, SCALE
    )[0]
    full = make(network, spec).predict(image, SCALE)[0]
    network.double()
    assert 0.97 < (half == full).mean() < 1  # the same, but not by the same arithmetic


def test_batches_hold_tiles_of_one_shape_up_to_the_number_asked_for():
    network = Threshold()
    make(network, make_spec(halo=0, tile=16), batch=3).predict(grey(64, 66), SCALE)
    assert max(shape[0] for shape in network.batches) == 3
    assert sum(n * h * w for n, _, h, w in network.batches) == 64 * 66


@pytest.mark.parametrize(
    "changes", [{}, {"halo": 0, "tile": 16}, {"blend": True}, {"resize": 24}]
)
def test_images_of_a_stack_get_the_labels_that_each_gets_alone(unet, changes):
    images = [grey(40, 53, seed=seed) for seed in range(3)]
    predictor = make(unet, make_spec(**changes), batch=4)
    indices, probabilities = predictor.predict_stack(images, SCALE, probabilities=True)
    assert probabilities is not None
    for number, image in enumerate(images):
        alone = make(unet, make_spec(**changes)).predict(
            image, SCALE, probabilities=True
        )
        assert np.array_equal(indices[number], alone[0])
        np.testing.assert_allclose(probabilities[number], alone[1], atol=1e-3)


def test_tiles_of_several_images_share_batches():
    network = Threshold()
    predictor = make(network, make_spec(), batch=4)
    images = [grey(32, 32, seed=seed) for seed in range(6)]
    indices, _ = predictor.predict_stack(images, SCALE)
    assert network.batches == [(4, 1, 32, 32), (2, 1, 32, 32)]
    assert {shape[:1] + shape[2:] for shape in network.batches} == (
        predictor.batch_shapes({(32, 32): 6})
    )
    for found, image in zip(indices, images, strict=True):
        assert np.array_equal(found, expected(image))


def test_out_of_memory_halves_the_batch_and_goes_on():
    network = Threshold(most=3)
    predictor = make(network, make_spec(halo=0, tile=16), batch=12)
    image = grey(64, 64)
    indices, _ = predictor.predict(image, SCALE)
    assert np.array_equal(indices, expected(image))
    assert predictor.batch == 3
    assert [shape[0] for shape in network.batches] == [3, 3, 3, 3, 3, 1]


@pytest.mark.parametrize("most", [10**9, 3, 1])
def test_batches_made_ahead_are_those_that_follow(monkeypatch, most):
    """As beside a GPU, also where memory runs out and the batch that was made is too large."""
    threads = set()
    load = Scale.apply

    def watched(self, array):
        threads.add(threading.current_thread().name)
        return load(self, array)

    monkeypatch.setattr(module, "ASYNCHRONOUS", ("cpu",))
    monkeypatch.setattr(Scale, "apply", watched)
    network, image = Threshold(most), grey(300, 200)
    found, _ = make(network, make_spec(halo=0), batch=8).predict(image, SCALE)
    assert np.array_equal(found, expected(image))
    assert any(name.startswith("next-batch") for name in threads)
    if most < 8:
        assert max(shape[0] for shape in network.batches) <= most


def test_when_one_tile_is_too_much_the_message_says_what_would_fit():
    predictor = make(Threshold(largest=70), make_spec(halo=0, tile=32))
    with pytest.raises(
        RunError,
        match=r"one tile of 32 x 32 pixels is too much; 8 x 8 would fit: set tile=8",
    ):
        predictor.predict(grey(64, 64), SCALE)
    with pytest.raises(RunError, match=r"smaller patches\.resize"):
        make(Threshold(largest=70), make_spec(resize=32)).predict(grey(64, 64), SCALE)
    with pytest.raises(RunError, match="no smaller tile fits either"):
        make(Threshold(largest=0)).predict(grey(64, 64), SCALE)


def test_other_errors_are_not_taken_for_want_of_memory():
    class Broken(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="multiplied"):
        make(Broken()).predict(grey(8, 8), SCALE)


@pytest.mark.parametrize(
    "text",
    [
        "CUDA out of memory. Tried",
        "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried",
        "GET was unable to find an engine to execute this computation",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate",
    ],
)
def test_memory_errors_are_known_by_their_words_too(text):
    assert is_out_of_memory(RuntimeError(text))
    assert not is_out_of_memory(RuntimeError("something else"))


def test_logits_beyond_fp16_are_refused():
    """Without a word the image would be class 0 where they are not finite."""
    network = nn.Conv2d(1, 3, 1)
    nn.init.constant_(network.weight, 6e4)
    image = np.full((1, 16, 16), 200, np.uint8)
    for name, dtype in (("fp32", None), ("bf16", torch.bfloat16)):
        precision = Precision(name, dtype)
        tiled(network, make_spec(), precision=precision).predict(image, SCALE)
    precision = Precision("fp16", torch.float16)
    with pytest.raises(RunError, match="set precision to bf16 or fp32"):
        tiled(network, make_spec(), precision=precision).predict(image, SCALE)


def test_layers_keep_the_mode_they_were_in(unet):
    network = nn.Sequential(nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3), nn.Dropout(0.9))
    network.train()
    network[1].eval()
    before = network[1].running_mean.clone()
    first, _ = make(network).predict(grey(40, 40), SCALE)
    second, _ = make(network).predict(grey(40, 40), SCALE)
    assert np.array_equal(first, second)
    assert [layer.training for layer in network] == [True, False, True]
    assert torch.equal(network[1].running_mean, before)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_class_indices_are_those_of_argmax(layout):
    logits = torch.randn(2, 6, 31, 17).contiguous(memory_format=layout)
    found = class_indices(logits)
    assert found.dtype == torch.uint8
    assert torch.equal(found.long(), logits.argmax(1))
    assert (class_indices(torch.zeros(1, 4, 3, 3)) == 0).all()  # of equals, the first
