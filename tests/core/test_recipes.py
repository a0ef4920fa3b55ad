from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import easy_pair
from napari_strata.core.errors import RecipeError
from napari_strata.core.network_sections import AtrousUNet, Smp, UNet, UNet3d
from napari_strata.core.recipe import Augmentation, EarlyStopping, Plateau, Recipe
from napari_strata.core.recipes import (
    dump_recipe,
    list_recipes,
    load_recipe,
    parse_value,
)
from napari_strata.core.spec import find_classes
from napari_strata.data.split import split_pairs

NAMES = [r.name for r in list_recipes()]
SEEDS = [
    "atrous-resnet50",
    "unet-classic",
    "unet-resnet34",
    "deeplabv3plus-resnet50",
    "unet-aerial",
]
STILL = Augmentation(
    flip_horizontal=False,
    flip_vertical=False,
    quarter_turns=False,
    brightness=0,
    contrast=0,
)
"""No augmentation at all."""


def test_list_recipes_begins_with_the_default() -> None:
    assert NAMES[0] == "default"
    assert {*SEEDS, "unet-ct"} <= set(NAMES)
    assert NAMES[1:] == sorted(NAMES[1:])


@pytest.mark.parametrize("name", NAMES)
def test_each_recipe_loads_by_its_name_and_says_what_it_is_for(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert len(recipe.description) > 150
    assert "\n" not in recipe.description


@pytest.mark.parametrize("name", NAMES)
def test_each_recipe_round_trips(name: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(load_recipe(name)), encoding="utf-8")
    assert load_recipe(path) == load_recipe(name)
    assert load_recipe(str(path)) == load_recipe(name)
    assert load_recipe(tmp_path) == load_recipe(name)  # a run folder


def test_default_is_the_defaults() -> None:
    default = load_recipe("default")
    assert default == Recipe(name="default", description=default.description)
    assert isinstance(default.network, Smp)
    assert (
        default.network.architecture,
        default.network.encoder,
        default.patches.size,
    ) == ("unet", "resnet34", 256)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        (
            "atrous-resnet50",
            {
                "epochs": 25,
                "batch_size": 8,
                "learning_rate": 1e-4,
                "loss": {"bce": 0.5, "dice": 0.5},
            },
        ),
        (
            "unet-classic",
            {"epochs": 18, "batch_size": 32, "learning_rate": 1e-3, "loss": {"bce": 1}},
        ),
        (
            "unet-resnet34",
            {"epochs": 50, "batch_size": 16, "learning_rate": 1e-4, "loss": {"ce": 1}},
        ),
        (
            "deeplabv3plus-resnet50",
            {
                "epochs": 50,
                "batch_size": 32,
                "learning_rate": 1e-3,
                "loss": {"ce": 0.6, "dice": 0.4},
            },
        ),
        ("unet-aerial", {"loss": {"ce": 1}}),
    ],
)
def test_the_seeds_train_as_their_authors_say(
    name: str, settings: dict[str, Any]
) -> None:
    training = load_recipe(name).training
    assert {key: getattr(training, key) for key in settings} == settings
    assert training.averaging is None
    if name == "deeplabv3plus-resnet50":
        assert (training.optimizer, training.weight_decay, training.clip_norm) == (
            "adamw",
            1e-4,
            1.0,
        )
    else:
        assert (training.optimizer, training.weight_decay, training.clip_norm) == (
            "adam",
            0,
            None,
        )


def test_the_seeds_networks() -> None:
    atrous, classic, resnet, deeplab, aerial = (
        load_recipe(name).network for name in SEEDS
    )
    assert atrous == AtrousUNet(
        encoder="resnet50",
        atrous_at="skip",
        dilations=(1, 6, 12, 18),
        kernels=(1, 3, 3, 3),
    )
    assert classic == UNet(
        widths=(32, 64, 128, 256, 512), norm="none", transpose_kernel=3, head_width=32
    )
    assert resnet == Smp(
        architecture="unet", encoder="resnet34", decoder_widths=(256, 128, 64, 32, 16)
    )
    assert deeplab == Smp(architecture="deeplabv3plus", encoder="resnet50")
    assert isinstance(aerial, UNet)
    assert aerial.upsampling == "transpose"


def test_the_seeds_input_and_schedule() -> None:
    atrous, classic, resnet, deeplab, aerial = map(load_recipe, SEEDS)
    assert (atrous.patches.size, atrous.patches.resize) == (512, 512)
    assert [r.patches.size for r in (classic, resnet, deeplab, aerial)] == [
        128,
        128,
        256,
        256,
    ]
    assert all(r.augmentation == STILL for r in (classic, resnet, deeplab, aerial))
    assert atrous.augmentation == Augmentation(
        flip_vertical=False, quarter_turns=False, brightness=0.88
    )
    assert [r.normalization.grey_values for r in (classic, resnet, aerial)] == [
        "dtype",
        "physical",
        "dtype",
    ]
    schedules = ["constant", "plateau", "constant", "plateau", "constant"]
    assert [load_recipe(name).training.schedule for name in SEEDS] == schedules
    assert (classic.training.plateau.factor, classic.training.plateau.patience) == (
        0.3,
        3,
    )
    assert deeplab.training.plateau == Plateau(factor=0.5, patience=5, min_rate=1e-6)
    assert classic.training.early_stopping == EarlyStopping(monitor="loss", patience=5)
    assert resnet.training.early_stopping == EarlyStopping(monitor="loss", patience=5)
    assert deeplab.training.early_stopping == EarlyStopping(monitor="iou", patience=10)
    assert [r.training.validation for r in (classic, resnet, deeplab)] == [
        0.1,
        0.1,
        0.05,
    ]


@pytest.mark.parametrize(
    ("name", "images", "held"),
    [("deeplabv3plus-resnet50", 40, 2), ("unet-resnet34", 40, 4)],
)
def test_the_seeds_splits_hold_back_what_their_authors_did(
    name: str, images: int, held: int
) -> None:
    """90/5/5 and 90/10, by image; the pictures to test on are the user's to set aside."""
    pairs = [easy_pair((1, 16, 16), seed=seed) for seed in range(images)]
    classes = find_classes(pairs)
    split = split_pairs(
        pairs, fraction=load_recipe(name).training.validation, seed=0, classes=classes
    )
    assert (len(split.training), len(split.validation)) == (images - held, held)


def test_the_number_of_chips_that_seed_1_validated_on_can_be_said() -> None:
    """2291/250/300: training.validation=250 of 2541; here a tenth as many."""
    pairs = [easy_pair((1, 16, 16), seed=seed) for seed in range(254)]
    fraction = (
        load_recipe("unet-classic")
        .with_overrides({"training.validation": 25})
        .training.validation
    )
    split = split_pairs(pairs, fraction=fraction, seed=0, classes=find_classes(pairs))
    assert (len(split.training), len(split.validation)) == (229, 25)


def test_every_option_of_the_seeds_can_be_said() -> None:
    """Settings of five other programs and the recipe keys for them; `test_options` builds the networks."""
    recipe = load_recipe(
        "atrous-resnet50"
    ).with_overrides(
        {
            "training.loss": {"bce": 0.3, "dice": 0.7},  # bce_weight=0.3
            "network.atrous_at": "decoder",
            "network.kernels": [1, 3, 3],
            "network.dilations": [1, 6, 12],
            "patches.resize": 512,
            "training.schedule": "plateau",
            "training.plateau": {"factor": 0.3, "patience": 3, "min_rate": 1e-6},
            "training.clip_norm": 1.0,
            "training.precision": "fp16",
            "training.early_stopping": {"monitor": "iou", "patience": 10},
            "augmentation.flip_horizontal": True,
            "augmentation.brightness": 0.88,  # RandomBrightnessContrast(brightness_limit=0.2)
            "augmentation.contrast": 0.2,
        }
    )
    for encoder in (
        "vgg11",
        "efficientnet-b0",
        "resnet101",
        "mit_b0",
        "tu-vit_base_patch16_224",
    ):
        other = recipe.with_overrides(
            {
                "network.kind": "smp",
                "network.encoder": encoder,
                "network.attention": "scse",
            }
        )
        assert other.network == Smp(encoder=encoder, attention="scse")
    patches = recipe.with_overrides({"patches.resize": None, "patches.size": 256})
    assert (patches.patches.resize, patches.patches.size) == (None, 256)


def test_ct_never_touches_grey_values() -> None:
    ct = load_recipe("unet-ct")
    assert ct.normalization.grey_values == "physical"
    assert (
        ct.augmentation.brightness,
        ct.augmentation.contrast,
        ct.augmentation.gamma,
    ) == (0, 0, 0)
    assert isinstance(ct.network, UNet)
    assert ct.network.norm == "batch"
    assert ct.training.averaging == 0.99


def test_the_recipe_for_volumes_can_be_turned_to_planes() -> None:
    volumes = load_recipe("unet3d")
    assert isinstance(volumes.network, UNet3d)
    assert (volumes.patches.depth, volumes.network.anisotropy) == (None, None)
    planes = volumes.with_overrides({"network.kind": "unet", "patches.neighbours": 1})
    assert isinstance(planes.network, UNet)


TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]))


@given(
    name=TEXT
    | st.sampled_from(
        [
            "1e-3",
            "-1E5",
            ".5e+3",
            "1.5",
            "null",
            "yes",
            "0x1f",
            "12:30",
            "~",
            "- a",
            "a: b",
            " x ",
            "\x85",
            "a\u2028b",
            "\r\n",
        ]
    ),
    rate=st.floats(1e-30, 10),
    clip=st.none() | st.floats(1e-30, 1e30),
    weights=st.lists(st.floats(1e-9, 1e9), min_size=1).map(tuple),
)
def test_any_recipe_round_trips(
    name: str,
    rate: float,
    clip: float | None,
    weights: tuple[float, ...],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    recipe = Recipe(name=name, description=name * 40).with_overrides(
        {
            "training.learning_rate": rate,
            "training.clip_norm": clip,
            "training.class_weights": weights,
        }
    )
    path = tmp_path_factory.mktemp("recipe") / "a.yaml"
    path.write_text(dump_recipe(recipe), encoding="utf-8", newline="")
    assert load_recipe(path) == recipe


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "1.0e-3", "0.001", ".1e-2", "+1e-03"])
def test_numbers_with_an_exponent_are_numbers(text: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"training:\n  learning_rate: {text}\n")
    recipe = load_recipe(path)
    assert recipe.training.learning_rate == 0.001
    assert recipe.name == "mine"


def test_json_is_read_as_well(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(
        '{"name": "other", "training": {"learning_rate": 1e-3, "clip_norm": null}}'
    )
    assert load_recipe(path).training.clip_norm is None
    assert load_recipe(path).name == "other"


def test_a_recipe_comes_back_as_it_is() -> None:
    recipe = Recipe(name="mine")
    assert load_recipe(recipe) is recipe


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(
        RecipeError, match="no recipe 'unet-clasic'; did you mean 'unet-classic'"
    ):
        load_recipe("unet-clasic")


@pytest.mark.parametrize("name", ["mine.yaml", "folder/mine"])
def test_a_missing_file_is_said_to_be_missing(name: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"no such recipe file; .*default"):
        load_recipe(tmp_path / name)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("training:\n  epochs: [1\nname: x\n", r"bad\.yaml, line 3: not valid YAML \("),
        ("a: b: c\n", r"bad\.yaml, line 1: not valid YAML"),
        (
            "training:\n  epochs: 1\n  epochs: 2\n",
            r"line 3: not valid YAML \('epochs' is duplicated\)",
        ),
        ("a: !!python/object:os.system x\n", r"line 1: not valid YAML"),
        ("a: \x00\n", r"bad\.yaml: not valid YAML"),
        ("", "the file is empty"),
        ("# nothing\n", "the file is empty"),
        ("- 1\n", "found list; a recipe is a mapping"),
        (
            "training:\n  epoch: 1\n",
            r"bad\.yaml: unknown key 'training\.epoch'; did you mean 'epochs'",
        ),
    ],
)
def test_bad_files(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=words) as error:
        load_recipe(path)
    assert len(str(error.value).splitlines()) == 1


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(RecipeError, match="cannot be read as text"):
        load_recipe(path)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", 10),
        ("-3", -3),
        ("1:30", "1:30"),
        ("2020-13-45", "2020-13-45"),
        ("0x1f", "0x1f"),
        ("7.5", 7.5),
    ],
)
def test_numbers_are_read_as_people_write_them(text: str, value: object) -> None:
    assert parse_value(text) == value


def test_a_number_of_thousands_of_digits_is_refused_in_words() -> None:
    with pytest.raises(RecipeError):
        parse_value("1" * 5000)


BOMB = "[&a [1, 2], *a, *a]"


@pytest.mark.parametrize("text", ["!!bool abc", "!!timestamp 99999-99-99", BOMB])
def test_values_that_yaml_cannot_read_are_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="not valid YAML"):
        parse_value(text)


@pytest.mark.parametrize(
    "text", ["x: !!bool abc", "x: !!timestamp 99999-99-99", "[" * 5000]
)
def test_files_that_yaml_cannot_read_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert len(str(caught.value).splitlines()) <= 2
