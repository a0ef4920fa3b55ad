from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from napari_strata.core.errors import RecipeError, StrataError, nearest
from napari_strata.core.network_sections import AtrousUNet, Smp, UNet, UNet3d
from napari_strata.core.recipe import Recipe
from napari_strata.core.sections import Section


def _leaves(section: Section, prefix: str = "") -> list[str]:
    """Dotted keys of everything that can be set."""
    found: list[str] = []
    for name in type(section).model_fields:
        value = getattr(section, name)
        found += (
            _leaves(value, f"{prefix}{name}.")
            if isinstance(value, Section)
            else [f"{prefix}{name}"]
        )
    return found


def _get(recipe: Any, dotted: str) -> Any:
    for part in dotted.split("."):
        recipe = recipe[part] if isinstance(recipe, dict) else getattr(recipe, part)
    return recipe


def test_every_key_has_a_description_for_the_form_and_the_help() -> None:
    skipped = {
        "version",
        "name",
        "description",
        "kind",
        "network",
        "patches",
        "augmentation",
        "normalization",
    }
    skipped |= {"training", "plateau"}
    for section in (
        UNet,
        AtrousUNet,
        Smp,
        UNet3d,
        *(type(_get(Recipe(), s)) for s in ("patches", "training")),
    ):
        for name, field in section.model_fields.items():
            assert name in skipped or field.description or field.metadata, (
                f"{section.__name__}.{name}"
            )


@pytest.mark.parametrize(
    "network", [UNet(), AtrousUNet(), Smp(), UNet3d(anisotropy=2.5)]
)
def test_json_round_trip(network: Any) -> None:
    recipe = Recipe(network=network)
    assert Recipe.parse(json.loads(recipe.model_dump_json())) == recipe
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


OVERRIDES = st.fixed_dictionaries(
    {},
    optional={
        "training.epochs": st.integers(1, 10**6),
        "training.learning_rate": st.floats(1e-12, 10),
        "training.clip_norm": st.none() | st.floats(1e-6, 1e6),
        "training.averaging": st.none() | st.floats(0.1, 0.9999),
        "training.validation": st.floats(0, 0.99) | st.integers(1, 10**6),
        "training.seed": st.integers(0, 2**32 - 1),
        "training.freeze_encoder": st.integers(0, 10**6),
        "training.start": st.none()
        | st.sampled_from(["/runs/a", "/runs/a/model.safetensors", "C:\\runs\\a"]),
        "training.optimizer": st.sampled_from(["adam", "adamw", "sgd"]),
        "training.plateau.factor": st.floats(0.01, 0.99),
        "training.early_stopping.patience": st.integers(1, 99),
        "training.class_weights": st.sampled_from(["none", "balanced"])
        | st.lists(st.floats(0.01, 100), min_size=1, max_size=5).map(tuple),
        "training.loss": st.dictionaries(
            st.sampled_from(["ce", "dice", "focal"]), st.floats(0.1, 5), min_size=1
        ),
        "patches.resize": st.none() | st.integers(16, 4096),
        "patches.size": st.integers(16, 4096),
        "augmentation.flip_vertical": st.booleans(),
        "normalization.grey_values": st.sampled_from(
            ["auto", "physical", "relative", "dtype", "imagenet"]
        ),
        "name": st.text(),
    },
)


@given(OVERRIDES)
def test_overrides_arrive_and_touch_nothing_else(overrides: dict[str, Any]) -> None:
    before = Recipe()
    after = before.with_overrides(overrides)
    for key, value in overrides.items():
        assert _get(after, key) == value
    touched = {
        *overrides,
        *(
            ["training.early_stopping"]
            if "training.early_stopping.patience" in overrides
            else []
        ),
    }
    for key in _leaves(before):
        assert key in touched or _get(after, key) == _get(before, key)
    assert Recipe.parse(after.model_dump(mode="json")) == after


def test_no_overrides_give_an_equal_recipe() -> None:
    assert Recipe().with_overrides(None) == Recipe()
    assert Recipe().with_overrides({}) == Recipe()


@pytest.mark.parametrize("given", ["a", "b/../a", "./a/", "~/a"])
def test_a_relative_start_is_relative_to_the_current_folder(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    recipe = Recipe().with_overrides({"training.start": given})
    assert recipe.training.start == str(tmp_path / "a")
    monkeypatch.chdir("/")
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


def test_an_empty_start_is_no_start() -> None:
    with pytest.raises(RecipeError, match=r"training\.start is ''"):
        Recipe().with_overrides({"training.start": ""})
    assert Recipe().with_overrides({"training.start": None}).training.start is None


def test_a_loss_can_be_added_by_its_key() -> None:
    assert Recipe().with_overrides({"training.loss.focal": 0.5}).training.loss == {
        "ce": 1,
        "dice": 1,
        "focal": 0.5,
    }


def test_another_network_starts_from_its_defaults_in_any_order() -> None:
    overrides = {"network.widths": [8, 16], "network.kind": "unet"}
    assert Recipe().with_overrides(overrides).network == UNet(widths=(8, 16))
    assert Recipe(network=UNet(widths=(8, 16))).with_overrides(
        {"network.kind": "unet"}
    ).network.widths == (8, 16)
    assert (
        Recipe(network=UNet(dropout=0.5))
        .with_overrides({"network.kind": "smp"})
        .network
        == Smp()
    )


def test_a_network_without_a_kind_is_of_the_default_one() -> None:
    assert Recipe.parse({"network": {"encoder": "vgg11"}}).network == Smp(
        encoder="vgg11"
    )
    assert Recipe.parse({"network": None}).network == Smp()


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({"trainin": {}}, "unknown key 'trainin'; did you mean 'training'?"),
        (
            {"training": {"epoch": 5}},
            "unknown key 'training.epoch'; did you mean 'epochs'?",
        ),
        (
            {"training": {"plateau": {"patient": 5}}},
            "unknown key 'training.plateau.patient'; did you mean 'patience'?",
        ),
        (
            {"network": {"kind": "unet", "width": [8, 9]}},
            "unknown key 'network.width'; did you mean 'widths'?",
        ),
        (
            {"network": {"encodr": "x"}},
            "unknown key 'network.encodr'; did you mean 'encoder'?",
        ),
        (
            {"network": {"kind": "atrous_unet", "dilation": [1]}},
            "unknown key 'network.dilation'; did you mean 'dilat",
        ),
        (
            {"network": {"widths": [8, 9]}},
            "unknown key 'network.widths'; it belongs to network.kind unet",
        ),
        (
            {"training": {"class_weights": [1, -1]}},
            "training.class_weights.1 is -1: input should be greater than 0.",
        ),
        (
            {"augmentation": {"zzz": 1}},
            "unknown key 'augmentation.zzz'; known: blur, brightness",
        ),
        (
            {"training": {"epochs": 0}},
            "training.epochs is 0: input should be greater than or equal to 1.",
        ),
        (
            {"training": {"validation": 1.5}},
            "training.validation is 1.5; needed is a share below 1, or a whole number",
        ),
        (
            {"training": {"learning_rate": "fast"}},
            "training.learning_rate is 'fast': input should be a valid number",
        ),
        (
            {"training": {"learning_rate": float("nan")}},
            "training.learning_rate is nan: input should be a finite",
        ),
        (
            {"training": {"optimizer": "adm"}},
            "training.optimizer is 'adm': input should be 'adam', 'adamw' or 'sgd'.",
        ),
        ({"network": {"kind": "unett"}}, "'unet', 'atrous_unet', 'smp'"),
        ({"network": "unet"}, "network is 'unet'"),
        ({"training": {"loss": {}}}, "training.loss is {}: "),
        ({"training": {"loss": {"dicee": 1}}}, "training.loss.dicee"),
        ({"version": 2}, "version is 2: input should be 1."),
        (
            {"normalization": {"percentiles": [99, 1]}},
            r"percentiles is (99, 1); needed are two rising numbers",
        ),
        (
            {"network": {"kind": "atrous_unet", "kernels": [1, 3]}},
            "kernels has 2 entries and network.dilations 4",
        ),
        ([1, 2], "found list; a recipe is a mapping"),
        ("training", "found str; a recipe is a mapping"),
    ],
)
def test_what_is_wrong_is_named_with_what_is_needed(raw: Any, words: str) -> None:
    with pytest.raises(RecipeError) as error:
        Recipe.parse(raw, source="my.yaml")
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            {"network.kind": "unet3d", "patches.neighbours": 2},
            "patches.neighbours is 2, but network.kind unet3d",
        ),
        (
            {"network.kind": "unet3d", "patches.neighbours": 2},
            "set patches.neighbours=0, or take a 2D network",
        ),
        (
            {"network.kind": "unet3d", "patches.resize": 64},
            "patches.resize is 64, but network.kind unet3d",
        ),
        (
            {"network.kind": "unet3d", "patches.resize": 64},
            "(patches.resize=null), or take a 2D network",
        ),
        (
            {"network.kind": "unet", "patches.depth": 16},
            "patches.depth is 16, but network.kind unet",
        ),
        ({"patches.depth": 16}, "(patches.depth=null), or set network.kind=unet3d"),
        (
            {"network.kind": "unet3d", "network.anisotropy": 0},
            "network.anisotropy is 0: input should be greater than",
        ),
        (
            {"network.kind": "unet", "network.anisotropy": 2},
            "it belongs to network.kind unet3d",
        ),
    ],
)
def test_what_goes_with_volumes_only_or_not_at_all_is_refused(
    overrides: dict[str, Any], words: str
) -> None:
    with pytest.raises(RecipeError) as error:
        Recipe().with_overrides(overrides)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_recipe_for_volumes_has_a_depth() -> None:
    recipe = Recipe().with_overrides(
        {
            "network.kind": "unet3d",
            "patches.depth": 24,
            "augmentation.flip_depth": False,
        }
    )
    assert (recipe.patches.depth, recipe.augmentation.flip_depth) == (24, False)
    assert recipe.network == UNet3d()
    assert Recipe.parse(recipe.model_dump(mode="json")) == recipe


def test_every_mistake_is_reported_and_the_source_is_named() -> None:
    with pytest.raises(RecipeError) as error:
        Recipe.parse(
            {"training": {"epochs": -1, "lr": 1}, "patches": {"size": 1}},
            source="my.yaml",
        )
    lines = str(error.value).splitlines()
    assert len(lines) == 3
    assert all(line.startswith("my.yaml: ") for line in lines)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            {"trainin.epochs": 5},
            "trainin.epochs: there is no section 'trainin' in the recipe; did you mean "
            "'training'?",
        ),
        ({"training.epochs.x": 5}, "there is no section 'epochs'"),
        ({"training.epoch": 5}, "unknown key 'training.epoch'; did you mean 'epochs'?"),
        ({"epochs": 5}, "unknown key 'epochs'"),
        ({"training.epochs": "many"}, "training.epochs is 'many'"),
    ],
)
def test_wrong_overrides(overrides: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError) as error:
        Recipe().with_overrides(overrides)
    assert words in str(error.value)


def test_recipes_are_frozen_and_defaults_are_not_shared() -> None:
    recipe = Recipe()
    with pytest.raises(ValidationError):
        recipe.training.epochs = 5  # type: ignore[misc]
    assert (
        recipe.with_overrides({"training.loss.focal": 1}).training.loss
        != Recipe().training.loss
    )


def test_nearest() -> None:
    assert nearest("epoch", ["epochs", "seed"]) == "did you mean 'epochs'?"
    assert nearest("qqq", ["b", "a"]) == "known: a, b"
    assert issubclass(RecipeError, StrataError)
    assert not issubclass(StrataError, ValueError)  # pydantic would swallow it
