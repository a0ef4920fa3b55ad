"""Train continues from the newest model of the same image and the same network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from napari_strata.core.image import Image
from napari_strata.core.recipe import Recipe
from napari_strata.core.recipes import load_recipe
from napari_strata.core.runs import RunFolder
from napari_strata.widgets.train.stored import StoredModel, choose_start, find_models

IMAGE = Image(np.zeros((3, 8, 9), np.uint16), "ZYX", name="sand")


def write_run(path: Path, image: Image = IMAGE, *, has_model: bool = True) -> None:
    """Write those files of a run that are read to find its model."""
    folder = RunFolder.create(path, load_recipe("unet-ct"), {})
    pair = {
        "name": image.name,
        "axes": image.axes,
        "shape": list(image.shape),
        "dtype": str(image.dtype),
    }
    rows = [{"name": name} for name in ("pore", "grain")]
    folder.write_json("data.json", {"pairs": [pair], "classes": rows})
    if has_model:
        folder.model_path.write_bytes(b"model")


def test_models_of_the_image_are_found(tmp_path: Path) -> None:
    write_run(tmp_path / "a")
    write_run(tmp_path / "none", has_model=False)
    write_run(tmp_path / "other", replace(IMAGE, name="clay"))
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "recipe.yaml").write_text("[")
    (model,) = find_models(tmp_path, IMAGE)
    assert model.run == tmp_path / "a"
    assert model.classes == ("pore", "grain")
    assert model.describe() == "a"  # stopped in its first epoch
    assert replace(model, epoch=12).describe() == "a, epoch 12"


MODEL = StoredModel(Path("a"), 3, load_recipe("unet-ct"), ("pore", "grain"))


@pytest.mark.parametrize(
    ("recipe", "classes", "continues"),
    [
        (MODEL.recipe, ("pore", "grain"), True),
        (MODEL.recipe, ("pore", "grain", "clay"), True),
        (MODEL.recipe, ("pore", "clay"), False),
        (MODEL.recipe.with_overrides({"training.epochs": 3}), MODEL.classes, True),
        (load_recipe("default"), MODEL.classes, False),
        (load_recipe("instant"), MODEL.classes, False),
        (MODEL.recipe.with_overrides({"training.start": "b"}), MODEL.classes, False),
        (MODEL.recipe.with_overrides({"patches.neighbours": 1}), MODEL.classes, False),
    ],
)
def test_a_model_must_have_the_same_network_and_classes(
    recipe: Recipe, classes: tuple[str, ...], continues: bool
) -> None:
    older = replace(MODEL, run=Path("older"))
    expected = MODEL if continues else None
    assert choose_start([MODEL, older], recipe, classes) is expected
