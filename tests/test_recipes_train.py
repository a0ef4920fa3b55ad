"""Each recipe trains a step with its own kind of network, and its model predicts the same after saving and loading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import napari_strata as ns
from helpers import easy_pair
from napari_strata.core.events import BatchEnd, EpochEnd, Event, TrainingStarted
from napari_strata.core.image import AnnotatedImage, Image
from napari_strata.core.network_sections import AtrousUNet, Pixels, Smp
from napari_strata.core.recipe import Recipe
from napari_strata.core.recipes import list_recipes, load_recipe

NAMES = [recipe.name for recipe in list_recipes()]
COLOUR = ("atrous-resnet50", "deeplabv3plus-resnet50", "unet-aerial", "unet-classic")
"""Recipes for RGB pictures."""

SHORT: dict[str, Any] = {
    "training.epochs": 1,
    "training.precision": "fp32",
    "training.recalibration": 8,
}
LIGHT = dict.fromkeys(
    ("default", "unet-resnet34", "atrous-resnet50", "deeplabv3plus-resnet50"),
    "resnet18",
)
"""A lighter encoder of the same kind, where the recipe's own takes seconds a step."""

MILLIONS = {
    "default": 24.4,
    "atrous-resnet50": 171.0,
    "deeplabv3plus-resnet50": 26.7,
    "instant": 0.207,
    "trees": 0.158,
    "unet-aerial": 1.93,
    "unet-classic": 8.64,
    "unet-ct": 7.76,
    "unet3d": 1.19,
    "unet-resnet34": 24.4,
}
"""Parameters of each recipe's network as it stands."""


def _pictures(name: str, *, side: int = 64) -> list[AnnotatedImage]:
    """Three small planes of two classes, in colour where the recipe is for colour; volumes where it is for those."""
    if name == "unet3d":
        return [easy_pair((16, side, side), seed=seed) for seed in range(3)]
    stack = easy_pair((3, side, side), seed=4)
    labels = stack.labels.read()[0]
    pairs = []
    for i, plane in enumerate(stack.image.read()[0]):
        colour = np.stack([plane, 255 - plane, plane], -1)
        image = (
            Image(colour, "YXC", name=f"p{i}")
            if name in COLOUR
            else Image(plane, "YX", name=f"p{i}")
        )
        pairs.append(AnnotatedImage(image, image.labels_like(labels[i])))
    return pairs


def _one_step(recipe: Recipe, overrides: dict[str, Any]) -> dict[str, Any]:
    """Overrides that leave the recipe one step an epoch: of four patches, or of the two pictures it resizes."""
    if recipe.patches.resize:
        return overrides | {
            "patches.resize": 64,
            "patches.size": 64,
            "training.batch_size": 2,
        }
    return overrides | {
        "patches.size": 64,
        "patches.per_epoch": 4,
        "training.batch_size": 4,
    }


def _check_training(
    name: str, folder: Path, overrides: dict[str, Any], *, side: int = 64
) -> list[Event]:
    """Train a step, and see that the weights moved, are kept, and predict alike once they are read back."""
    pairs = _pictures(name, side=side)
    run = folder / "run"
    events = list(
        ns.iter_train(name, pairs, out=run, overrides=overrides, device="cpu")
    )
    steps = [event for event in events if isinstance(event, BatchEnd)]
    (end,) = [event for event in events if isinstance(event, EpochEnd)]
    if not load_recipe(name).network.is_fitted:
        assert len(steps) == 1
    assert np.isfinite([step.loss for step in steps]).all()
    assert np.isfinite([end.validation_loss, end.mean_iou]).all()

    model = ns.Model.load(run)
    wanted = load_recipe(name).with_overrides(overrides)
    assert model.recipe == wanted == load_recipe(run)
    if isinstance(wanted.network, Pixels):
        # Training chooses the levels.
        chosen = {"levels", "filter_radius"}
        assert model.spec.network == wanted.network.model_copy(
            update=model.spec.network.model_dump(include=chosen)
        )
    else:
        assert model.spec.network == wanted.network
    copy = ns.Model.load(model.save(folder / "copy.safetensors"))
    assert (copy.recipe, copy.spec, copy.digest) == (
        model.recipe,
        model.spec,
        model.digest,
    )
    first, second = (
        ns.predict(m, pairs[0].image, device="cpu").read() for m in (model, copy)
    )
    assert np.array_equal(first, second)
    assert set(np.unique(first)) <= {0, 255}
    return events


@pytest.mark.parametrize("name", NAMES)
def test_each_recipe_trains_a_step_and_round_trips(name: str, tmp_path: Path) -> None:
    overrides = _one_step(load_recipe(name), SHORT)
    if name in LIGHT:
        overrides |= {"network.encoder": LIGHT[name], "network.encoder_weights": "none"}
    if load_recipe(name).network.is_fitted:
        overrides |= {"network.trees": 20}
    _check_training(name, tmp_path, overrides)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_each_recipe_trains_a_step_as_it_stands(name: str, tmp_path: Path) -> None:
    """The recipe's own network, patches and losses; only the number of patches and epochs is small."""
    recipe = load_recipe(name)
    overrides = SHORT | {"training.batch_size": 2}
    if not recipe.patches.resize:
        overrides |= {"patches.per_epoch": 2}
    if isinstance(recipe.network, (AtrousUNet, Smp)):
        overrides |= {"network.encoder_weights": "none"}
    events = _check_training(name, tmp_path, overrides, side=recipe.patches.size)
    (started,) = [event for event in events if isinstance(event, TrainingStarted)]
    assert started.parameters / 1e6 == pytest.approx(MILLIONS[name], rel=0.01)
