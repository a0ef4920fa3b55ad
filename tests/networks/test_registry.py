"""A network kind from outside the package trains, is saved and loaded, and predicts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
from torch import Tensor, nn

from helpers import TINY, easy_pair
from napari_strata import Model, ModelSpec, Recipe, predict, train
from napari_strata.core.errors import RecipeError
from napari_strata.core.geometry import Geometry
from napari_strata.core.network_sections import (
    NetworkSection,
    network_kinds,
    register_network,
)


class ToySection(NetworkSection):
    """One convolution and a head."""

    builder: ClassVar[str] = f"{__name__}:build_toy"
    widest_halo: ClassVar[int] = 4

    kind: Literal["toy"] = "toy"
    width: int = 4

    def geometry(self, strides: Sequence[int] = ()) -> Geometry:
        return Geometry(stride=1, reach=1, whole_tile=False)

    def describe(self) -> str:
        return f"a toy network of width {self.width}"


class ToyNetwork(nn.Module):
    def __init__(self, inputs: int, width: int, outputs: int) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(inputs, width, 3, padding=1)
        self.head = nn.Conv2d(width, outputs, 1)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.encoder(images).relu())
        return logits


def build_toy(spec: ModelSpec, section: ToySection) -> nn.Module:
    return ToyNetwork(spec.in_channels, section.width, len(spec.classes))


@pytest.fixture
def toy_kind(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    kinds = network_kinds()
    assert isinstance(kinds, dict)
    register_network(ToySection)
    yield
    del kinds["toy"]


def toy_recipe(**section: Any) -> Recipe:
    return Recipe.parse(TINY | {"network": {"kind": "toy", **section}})


def test_an_unregistered_kind_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"network\.kind is 'toy': input should be"):
        toy_recipe()


@pytest.mark.usefixtures("toy_kind")
def test_a_registered_kind_is_allowed_in_recipes() -> None:
    recipe = toy_recipe(width=6)
    assert recipe.network == ToySection(width=6)
    assert Recipe.parse(recipe.model_dump(mode="json")) == recipe
    assert Recipe().with_overrides({"network.kind": "toy"}).network == ToySection()
    with pytest.raises(RecipeError, match=r"'network\.with'; did you mean 'width'"):
        toy_recipe(**{"with": 3})


@pytest.mark.usefixtures("toy_kind")
def test_a_registered_kind_trains_is_saved_and_predicts(tmp_path: Path) -> None:
    pair = easy_pair()
    recipe = toy_recipe(width=6).with_overrides({"training.epochs": 1})
    trained = train(recipe, pair, out=tmp_path / "run", device="cpu")
    assert (trained.spec.stride, trained.spec.halo) == (1, 1)

    loaded = Model.load(tmp_path / "run")
    assert loaded.spec.network == ToySection(width=6)
    labels = np.asarray(predict(loaded, pair.image, device="cpu").data)
    assert labels.shape == pair.image.shape
    assert set(np.unique(labels)) <= set(loaded.spec.classes.values)
