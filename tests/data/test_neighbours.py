"""2.5D: slices above and below as channels, the same in training, prediction and evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import napari_strata as ns
from helpers import tiny_recipe
from napari_strata.core.errors import ImageError, ModelError, RecipeError
from napari_strata.core.image import AnnotatedImage, Image, LabelImage
from napari_strata.core.options import PredictOptions
from napari_strata.data.neighbours import (
    own_channels,
    pairs_with_neighbours,
    with_neighbours,
)

OPTIONS = PredictOptions(device="cpu", precision="fp32")


@given(
    letters=st.sampled_from(
        ["ZYX", "YXZ", "CZYX", "ZYXC", "TZYX", "ZCYX", "TCZYX", "XTYZC"]
    ),
    count=st.integers(1, 4),
    slices=st.integers(2, 5),
    data=st.data(),
)
def test_the_channels_are_those_of_a_mirrored_stack(
    letters: str, count: int, slices: int, data: Any
) -> None:
    sizes = {"T": 2, "C": 3, "Z": slices, "Y": 4, "X": 5}
    array = (
        np.random.default_rng(0)
        .integers(0, 255, [sizes[a] for a in letters])
        .astype(np.uint8)
    )
    image = Image(array, letters)
    dressed = with_neighbours(image, count)
    assert (
        dressed.channels
        == image.channels * (2 * count + 1)
        == len(dressed.channel_names or "x" * dressed.channels)
    )
    assert dressed.label_axes == "".join(
        a for a in "TCZYX" if a in letters and a != "C"
    )
    t = data.draw(st.integers(0, image.size("T") - 1))
    z = data.draw(st.integers(0, slices - 1))
    rows = slice(data.draw(st.integers(0, 3)), 4)
    stack = np.stack([image.read({"T": t, "Z": i}) for i in range(slices)])
    padded = np.pad(stack, [(count, count), *[(0, 0)] * 3], mode="reflect")
    wanted = np.concatenate(list(padded[z : z + 2 * count + 1]))[:, rows]
    found = dressed.read({"T": t, "Z": z, "Y": rows})
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(
        own_channels(found, count), image.read({"T": t, "Z": z, "Y": rows})
    )


def test_without_neighbours_it_is_the_image() -> None:
    image = Image(np.zeros((2, 3, 4)), "ZYX")
    assert with_neighbours(image, 0) is image


@pytest.mark.parametrize("axes", ["YX", "TYX", "CYX"])
def test_a_single_slice_is_one_line_with_the_cure(axes: str) -> None:
    with pytest.raises(
        ImageError, match=r"found a single slice .*give a stack with an axis Z"
    ):
        with_neighbours(Image(np.zeros((3, 4, 5)[-len(axes) :]), axes, name="flat"), 1)


def above(shape: tuple[int, int, int] = (8, 64, 64)) -> AnnotatedImage:
    """Each slice's labels show what is bright in the slice above: its own grey values say nothing."""
    rng = np.random.default_rng(0)
    coarse = rng.random((shape[0], shape[1] // 8, shape[2] // 8)) > 0.5
    bright = np.repeat(np.repeat(coarse, 8, 1), 8, 2)
    image = (bright * 150 + 50).astype(np.uint8)
    labels = np.concatenate([bright[1:], bright[-2:-1]]).astype(np.uint8) + 1
    return AnnotatedImage(
        Image(image, "ZYX", name="stack"), LabelImage(labels, "ZYX"), "stack"
    )


SETTINGS = {
    "patches.neighbours": 1,
    "augmentation.quarter_turns": True,
    "training.epochs": 6,
    "patches.per_epoch": 48,
    "training.learning_rate": 1e-2,
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("neighbours") / "run"
    ns.train(tiny_recipe(), above(), out=folder, overrides=SETTINGS, device="cpu")
    return folder


def test_a_network_uses_what_it_sees_above(trained: Path) -> None:
    model = ns.Model.load(trained)
    assert (model.spec.neighbours, model.spec.in_channels) == (1, 3)
    assert model.spec.channel_names == (
        "grey values z-1",
        "grey values",
        "grey values z+1",
    )
    pair = above()
    labels = ns.predict(model, pair.image, options=OPTIONS)
    assert (labels.axes, labels.data.shape) == ("ZYX", (8, 64, 64))
    scores = ns.evaluate(model, pair, options=OPTIONS).confusion
    assert scores.mean_iou > 0.9
    assert np.mean(
        np.asarray(labels.data) == np.asarray(pair.labels.data)
    ) == pytest.approx(scores.pixel_accuracy)
    shown = ns.evaluate(model, pair, options=OPTIONS).examples[0].picture
    assert (shown == shown[..., :1]).all(), (
        "the picture is grey, not three slices as colours"
    )


def test_without_them_it_cannot(tmp_path: Path) -> None:
    model = ns.train(
        tiny_recipe(),
        above(),
        out=tmp_path / "run",
        overrides=SETTINGS | {"patches.neighbours": 0},
        device="cpu",
    )
    assert ns.evaluate(model, above(), options=OPTIONS).confusion.mean_iou < 0.6


def test_a_run_is_extended_with_the_slices_it_had(
    trained: Path, tmp_path: Path
) -> None:
    overrides = SETTINGS | {"training.epochs": 1}
    whole = ns.train(
        tiny_recipe(),
        above(),
        out=tmp_path / "a",
        overrides=SETTINGS | {"training.epochs": 2},
        device="cpu",
    )
    ns.train(
        tiny_recipe(), above(), out=tmp_path / "b", overrides=overrides, device="cpu"
    )
    model = ns.train(
        tiny_recipe(), above(), out=tmp_path / "b", resume=True, extend=1, device="cpu"
    )
    assert len(model.history) == 2
    assert model.spec == whole.spec
    with pytest.raises(RecipeError, match=r"patches\.neighbours cannot change"):
        ns.train(
            tiny_recipe(),
            above(),
            out=trained,
            resume=True,
            extend=1,
            overrides={"patches.neighbours": 2},
            device="cpu",
        )


def test_flat_images_are_refused_before_anything_is_written(
    trained: Path, tmp_path: Path
) -> None:
    flat = Image(np.zeros((64, 64), np.uint8), "YX", name="flat")
    with pytest.raises(ImageError, match="found a single slice"):
        ns.predict(trained, flat, out=tmp_path / "a.tif", options=OPTIONS)
    pair = AnnotatedImage(flat, LabelImage(np.ones((64, 64), np.uint8), "YX"), "flat")
    with pytest.raises(ImageError, match="found a single slice"):
        ns.train(
            tiny_recipe(), pair, out=tmp_path / "run", overrides=SETTINGS, device="cpu"
        )
    assert not list(tmp_path.iterdir())


def test_folds_and_ensembles(trained: Path, tmp_path: Path) -> None:
    overrides = SETTINGS | {"training.epochs": 1}
    result = ns.crossval(
        tiny_recipe(),
        above(),
        out=tmp_path / "folds",
        folds=2,
        overrides=overrides,
        device="cpu",
    )
    assert len(result.folds) == 2
    assert ns.predict(
        tmp_path / "folds", above().image, options=OPTIONS
    ).data.shape == (8, 64, 64)
    plain = ns.train(
        tiny_recipe(),
        above(),
        out=tmp_path / "plain",
        overrides=overrides | {"patches.neighbours": 0},
        device="cpu",
    )
    with pytest.raises(ModelError, match="neighbours"):
        ns.predict([trained, plain], above().image, options=OPTIONS)


def test_pairs_keep_their_labels() -> None:
    pair = above()
    dressed = pairs_with_neighbours([pair], 2)[0]
    assert dressed.labels is pair.labels
    assert dressed.image.channels == 5
