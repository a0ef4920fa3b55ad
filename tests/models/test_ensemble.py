from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers import easy_pair, tiny_model
from napari_strata.core.classes import ClassMap
from napari_strata.core.errors import ModelError
from napari_strata.core.normalization import ResolvedNormalization
from napari_strata.core.runs import CrossvalFolder
from napari_strata.models.ensemble import (
    Ensemble,
    fold_folders,
    is_crossval,
    load_models,
)
from napari_strata.models.model import Calibration, Model


def changed(model: Model, by: float = 0.0, **facts: Any) -> Model:
    """The model with other weights and facts."""
    weights = {
        k: v + by if v.is_floating_point() else v for k, v in model.weights.items()
    }
    return replace(model, weights=weights, spec=model.spec.model_copy(update=facts))


MODEL = tiny_model()
A, B, C = (changed(MODEL, by) for by in (0.0, 0.1, 0.2))


def crossval(folder: Path, models: Sequence[Model | None]) -> Path:
    """A cross-validation's folder; folds of None have no model yet."""
    folds = [f"fold_{n}" for n in range(1, len(models) + 1)]
    for fold, model in zip(folds, models, strict=True):
        if model is not None:
            model.save(folder / fold / "model.safetensors")
    folder.mkdir(exist_ok=True)
    (folder / "crossval.json").write_text(
        json.dumps(
            {"format": CrossvalFolder.FORMAT, "folds": folds, "split": "by slice"}
        )
    )
    return folder


def test_whatever_stands_for_a_model_is_loaded(tmp_path: Path) -> None:
    file = A.save(tmp_path / "a.safetensors")
    run = B.save(tmp_path / "run" / "model.safetensors").parent
    for given in (A, file, str(file), [file], Ensemble((A,))):
        found = load_models(given)
        assert (len(found), found.digest, found.describe()) == (1, A.digest, "1 model")
    group = load_models([file, run, C])
    assert [model.digest for model in group.models] == [A.digest, B.digest, C.digest]
    assert group.names == ("a.safetensors", "run", "model 3")
    assert group.describe() == "3 models"
    assert load_models(group) is group
    with pytest.raises(ModelError, match="no such model file"):
        load_models([file, tmp_path / "none"])
    with pytest.raises(ModelError, match="found no model; give at least one"):
        load_models([])


def test_a_cross_validation_stands_for_the_models_of_its_folds(tmp_path: Path) -> None:
    folder = crossval(tmp_path / "cv", [A, B, C])
    for given in (folder, str(folder), [folder], folder / "crossval.json"):
        group = load_models(given)
        assert group.describe() == "3 models (cross-validation)"
        assert group.names == ("fold_1", "fold_2", "fold_3")
        assert group.digest == Ensemble((A, B, C)).digest
    assert is_crossval(folder)
    assert not is_crossval(folder / "fold_1")
    assert load_models([folder, A]).describe() == "4 models"


def test_folds_without_a_model_are_named(tmp_path: Path) -> None:
    folder = crossval(tmp_path / "cv", [A, None, C, None])
    with pytest.raises(
        ModelError,
        match=r"cv: found no model in fold_2, fold_4 \(of 4 folds\).*finished folds one by",
    ):
        load_models(folder)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"folds": ["fold_1"]}', '{"format": "other", "folds": ["a"]}'],
)
def test_a_damaged_cross_validation_is_said(tmp_path: Path, text: str) -> None:
    (tmp_path / "crossval.json").write_text(text)
    with pytest.raises(
        ModelError, match=r"crossval\.json: (cannot be read|found no fold)"
    ):
        fold_folders(tmp_path)


def test_the_digest_follows_the_members_and_not_their_order() -> None:
    groups = [
        Ensemble(models)
        for models in ((A, B), (A, C), (A, A), (A, B, C), (A,), (A, A, B), (A, B, B))
    ]
    assert len({group.digest for group in groups}) == len(groups)
    assert Ensemble((A, B, C)).digest == Ensemble((C, A, B)).digest
    warm = replace(B, calibration=Calibration(temperature=2.0))
    assert Ensemble((A, warm)).digest != Ensemble((A, B)).digest


def test_what_members_differ_in_is_named_all_of_it(tmp_path: Path) -> None:
    for name, classes in (
        ("a", ClassMap(names=("pore", "clay"), values=(0, 1))),
        ("b", ClassMap(names=("pore", "quartz"), values=(0, 1))),
        ("c", ClassMap(names=("pore", "clay"), values=(0, 255))),
    ):
        changed(MODEL, classes=classes).save(tmp_path / f"{name}.safetensors")
    with pytest.raises(ModelError) as caught:
        load_models([tmp_path / f"{name}.safetensors" for name in "abc"])
    assert (
        "classes: 'a.safetensors' and 'c.safetensors' have pore, clay; 'b.safetensors' has pore, quartz"
        in str(caught.value)
    )
    assert (
        "label values: 'a.safetensors' and 'b.safetensors' have 0, 1; 'c.safetensors' has 0, 255"
        in str(caught.value)
    )
    assert "channels" not in str(caught.value).partition(". Give")[0]


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        (
            {"in_channels": 1},
            {"in_channels": 3},
            "channels: 'model 1' has 1; 'model 2' has 3",
        ),
        (
            {"channel_names": ("red", "green")},
            {"channel_names": ("green", "red")},
            "order of channels: 'model 1' has red, green; 'model 2' has green, red",
        ),
        ({"axes": "YX"}, {"axes": "ZYX"}, "axes: 'model 1' has YX; 'model 2' has ZYX"),
        (
            {"classes": ClassMap(names=("a", "b"), values=(1, 2))},
            {"classes": ClassMap(names=("b", "a"), values=(2, 1))},
            "classes: 'model 1' has a, b; 'model 2' has b, a",
        ),
    ],
)
def test_other_differences_that_matter(
    one: dict[str, Any], other: dict[str, Any], said: str
) -> None:
    with pytest.raises(ModelError) as caught:
        Ensemble((changed(MODEL, **one), changed(MODEL, **other)))
    assert said in str(caught.value)


def test_networks_normalisation_tiles_colours_and_names_of_channels_may_differ() -> (
    None
):
    network = MODEL.spec.network.model_copy(update={"widths": (2, 4)})
    relative = MODEL.spec.normalization.model_copy(update={"kind": "relative"})
    painted = MODEL.spec.classes.model_copy(update={"colors": ("#000000", "#ffffff")})
    facts = {
        "network": network,
        "normalization": relative,
        "classes": painted,
        "tile": 64,
        "halo": 2,
    }
    group = Ensemble(
        (
            changed(MODEL, channel_names=("grey",)),
            changed(MODEL, channel_names=("CT",), **facts),
        )
    )
    assert group.spec.channel_names == ("grey",)


def test_each_member_has_its_own_scale_in_the_order_that_networks_are_built_in() -> (
    None
):
    relative = ResolvedNormalization(
        kind="relative", scale=MODEL.spec.normalization.scale
    )
    image = easy_pair((1, 32, 32)).image
    for models in (
        (A, changed(B, normalization=relative)),
        (changed(B, normalization=relative), A),
    ):
        group = Ensemble(models)
        scales = group.scales(image.samples(), image.dtype)
        for model, scale in zip(group.ordered, scales, strict=True):
            samples = np.concatenate(image.samples(), axis=1)
            assert scale == model.spec.normalization.scale_for(samples, image.dtype)
        assert scales[0] != scales[1]


def test_what_is_averaged_is_said_in_one_sentence() -> None:
    assert Ensemble((A,)).averaging(False) == []
    assert Ensemble((A, B)).averaging(False) == [
        "probabilities are averaged over 2 models"
    ]
    assert Ensemble((A, B), folds=True).averaging(True) == [
        "probabilities are averaged over 2 models (cross-validation) and over flips and turns (8 times the work)"
    ]
