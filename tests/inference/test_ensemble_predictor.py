"""Laws of averaging: over the flips and turns of a plane, and over models."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from helpers import tiled, tiny_recipe
from napari_strata.core.classes import ClassMap
from napari_strata.core.normalization import ResolvedNormalization, Scale
from napari_strata.core.spec import ModelSpec
from napari_strata.inference.ensemble_predictor import (
    TTA_TRANSFORMS,
    EnsemblePredictor,
    TTATransform,
)
from napari_strata.models.device import Precision
from napari_strata.networks import build_network

SCALE = Scale(center=(100.0,), spread=(20.0,), low=(0.0,), high=(255.0,))
CPU = torch.device("cpu")


def make_spec(**changes) -> ModelSpec:
    facts = {
        "network": tiny_recipe().network,
        "in_channels": 1,
        "classes": ClassMap(names=("a", "b", "c"), values=(0, 3, 7)),
        "dtype": "uint8",
        "normalization": ResolvedNormalization(kind="physical", scale=SCALE),
        "patch": 16,
        "stride": 2,
        "tile": 16,
        "halo": 4,
        "blend": False,
    }
    return ModelSpec.model_validate(facts | changes)


WAYS = {"cropped": {}, "blended": {"blend": True}, "resized": {"resize": 24}}


def unet(seed: int) -> nn.Module:
    """A network whose answer depends on which way up its picture is, as after training."""
    torch.manual_seed(seed)
    network = build_network(make_spec())
    for name, value in network.named_buffers():
        if name.endswith("running_var"):
            value.fill_(0.3)
    for name, weight in network.named_parameters():
        if name.endswith(
            "bias"
        ):  # zeros would leave classes exactly alike where no feature answers
            nn.init.normal_(weight, std=0.3)
    return network


def make(
    *seeds: int, tta: bool = False, temperature: float = 1.0, **changes
) -> EnsemblePredictor:
    precision = Precision("fp32")
    members = [
        tiled(
            unet(seed),
            make_spec(**changes),
            device=CPU,
            precision=precision,
            temperature=temperature,
        )
        for seed in seeds
    ]
    return EnsemblePredictor(members, tta=tta)


def predict(
    group: EnsemblePredictor, image: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    indices, probabilities = group.predict(
        image, [SCALE] * len(group.members), probabilities=True
    )
    assert probabilities is not None
    return indices, probabilities.astype(np.float32)


def grey(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(60, 140, (1, *shape)).astype(np.uint8)


def clear(probabilities: np.ndarray) -> np.ndarray:
    """Where the two likeliest classes are not alike, so that rounding does not decide."""
    ordered = np.sort(probabilities, axis=0)
    wide: np.ndarray = ordered[-1] - ordered[-2] > 2e-3
    assert wide.mean() > 0.9 or wide.size < 20
    return wide


def turned(array: np.ndarray, turns: int, mirror: bool) -> np.ndarray:
    """The last two axes, turned by numpy and not by what is tested."""
    straight = np.rot90(array, turns, (-2, -1))
    return straight[..., ::-1] if mirror else straight


def test_the_eight_turns_are_all_there_are():
    image = np.arange(6).reshape(1, 2, 3)
    ours = {
        turn.apply(image).tobytes() + str(turn.apply(image).shape).encode()
        for turn in TTA_TRANSFORMS
    }
    theirs = [
        np.ascontiguousarray(turned(image, k, m))
        for k in range(4)
        for m in (False, True)
    ]
    assert ours == {array.tobytes() + str(array.shape).encode() for array in theirs}
    assert len(ours) == 8
    assert TTA_TRANSFORMS[0] == TTATransform()


@given(
    turn=st.sampled_from(TTA_TRANSFORMS),
    box=st.tuples(*[st.tuples(st.integers(0, 6), st.integers(1, 6))] * 2),
)
def test_part_of_a_turned_plane_goes_back_to_where_it_came_from(turn, box):
    plane = np.arange(7 * 11).reshape(1, 7, 11)
    whole = turn.apply(plane)
    rows, columns = (slice(first, first + count) for first, count in box)
    rows, columns = (
        slice(s.start, min(s.stop, n))
        for s, n in zip((rows, columns), whole.shape[1:], strict=True)
    )
    part = turn.invert(torch.from_numpy(whole[:, rows, columns].copy()))
    place = turn.invert_box((rows, columns), whole.shape[1:])
    assert np.array_equal(part.numpy(), plane[:, *place])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", [(37, 22), (16, 16), (5, 41), (1, 1)])
def test_a_turned_picture_gives_the_turned_prediction(way, shape):
    group, image = make(1, 2, tta=True, **WAYS[way]), grey(*shape)
    indices, probabilities = predict(group, image)
    np.testing.assert_allclose(probabilities.sum(0), 1, atol=2e-3)
    for turns in range(4):
        for mirror in (False, True):
            there, probable = predict(
                group, np.ascontiguousarray(turned(image, turns, mirror))
            )
            np.testing.assert_allclose(
                probable, turned(probabilities, turns, mirror), atol=1e-3
            )
            sure = turned(clear(probabilities), turns, mirror)
            assert np.array_equal(there[sure], turned(indices, turns, mirror)[sure])


def test_without_tta_it_does_not_so_the_test_above_can_fail():
    group, image = make(1), grey(37, 22)
    there = predict(group, np.ascontiguousarray(turned(image, 1, False)))[1]
    assert np.abs(there - turned(predict(group, image)[1], 1, False)).max() > 0.01


@pytest.mark.parametrize("way", WAYS)
def test_the_mean_over_turns_is_the_mean_of_turned_predictions(way):
    image = grey(37, 22)
    alone = make(1, **WAYS[way])
    parts = []
    for turns in range(4):
        for mirror in (False, True):
            probabilities = predict(
                alone, np.ascontiguousarray(turned(image, turns, mirror))
            )[1]
            parts.append(
                np.rot90(
                    probabilities[..., ::-1] if mirror else probabilities,
                    -turns,
                    (-2, -1),
                )
            )
    np.testing.assert_allclose(
        predict(make(1, tta=True, **WAYS[way]), image)[1], np.mean(parts, 0), atol=1e-3
    )


class Threshold(nn.Module):
    """Sees each pixel by itself: the same whichever way up."""

    def forward(self, images: Tensor) -> Tensor:
        value = images[:, :1]
        return torch.cat([-value - 0.52, torch.zeros_like(value), value - 0.52], 1)


class Constant(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return (
            torch.tensor([0.1, 0.9, 0.3])[None, :, None, None]
            .expand(len(images), 3, *images.shape[2:])
            .clone()
        )


@pytest.mark.parametrize("network", [Threshold, Constant])
@pytest.mark.parametrize("way", ["cropped", "blended"])
def test_what_is_the_same_whichever_way_up_stays_as_it_is(network, way):
    predictor = tiled(
        network(), make_spec(**WAYS[way]), device=CPU, precision=Precision("fp32")
    )
    image = grey(37, 22)
    indices, probabilities = predict(EnsemblePredictor([predictor]), image)
    again, mean = predict(EnsemblePredictor([predictor], tta=True), image)
    assert np.array_equal(indices, again)
    np.testing.assert_allclose(probabilities, mean, atol=1e-3)


def test_one_model_alone_is_the_predictor_to_the_bit():
    group, image = make(1), grey(37, 22)
    indices, probabilities = group.members[0].predict(image, SCALE, probabilities=True)
    found = group.predict(image, [SCALE], probabilities=True)
    assert np.array_equal(found[0], indices)
    assert np.array_equal(found[1], probabilities)
    assert group.predict(image, [SCALE])[1] is None


@pytest.mark.parametrize("tta", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_a_model_twice_is_the_model(way, tta):
    image = grey(37, 22)
    indices, probabilities = predict(make(1, tta=tta, **WAYS[way]), image)
    twice = predict(make(1, 1, tta=tta, **WAYS[way]), image)
    np.testing.assert_allclose(twice[1], probabilities, atol=1e-3)
    assert np.array_equal(twice[0][clear(probabilities)], indices[clear(probabilities)])


def test_the_probabilities_of_members_are_averaged_and_the_order_matters_to_rounding_only():
    image = grey(37, 22)
    alone = [predict(make(seed), image)[1] for seed in (1, 2, 3)]
    for order in permutations((1, 2, 3)):
        np.testing.assert_allclose(
            predict(make(*order), image)[1], np.mean(alone, 0), atol=1e-3
        )
    assert np.abs(alone[0] - alone[1]).max() > 0.05  # else this would show nothing


@pytest.mark.parametrize("way", WAYS)
def test_temperature_softens_probabilities_and_changes_no_class(way):
    image = grey(37, 22)
    sharp, soft = make(1, **WAYS[way]), make(1, temperature=2.5, **WAYS[way])
    indices, probabilities = predict(sharp, image)
    found, softened = predict(soft, image)
    assert np.array_equal(found, indices)
    logits = torch.from_numpy(soft.members[0].predict_logits(image, SCALE))
    assert np.array_equal(logits, sharp.members[0].predict_logits(image, SCALE))
    np.testing.assert_allclose(
        softened, torch.softmax(logits / 2.5, 0).numpy(), atol=1e-3
    )
    assert softened.max(0).mean() < probabilities.max(0).mean()
    twice = predict(EnsemblePredictor([*soft.members, *soft.members]), image)[
        1
    ]  # each by its own
    np.testing.assert_allclose(twice, softened, atol=1e-3)
