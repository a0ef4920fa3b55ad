"""Trainings that start from a model, and frozen encoders."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from napari_strata.core.classes import ClassMap
from napari_strata.core.errors import ModelError, RecipeError, StrataError
from napari_strata.core.events import EpochEnd, Message
from napari_strata.core.image import AnnotatedImage, Image
from napari_strata.core.network_sections import AtrousUNet, Smp, UNet, UNet3d
from napari_strata.core.recipe import Recipe
from napari_strata.core.recipes import load_recipe
from napari_strata.core.runs import RunFolder
from napari_strata.models.model import Model
from napari_strata.networks import build_network
from napari_strata.networks.build import head_of
from napari_strata.training.loop import iter_train, train
from napari_strata.training.transfer import (
    FreezableEncoder,
    copy_weights,
    fine_tuning_recipe,
)
from networks.network_checks import build, make_spec, noise
from training.test_resume import assert_same_run, stop_after

Scene = Callable[..., AnnotatedImage]
Section = UNet | AtrousUNet | Smp | UNet3d

NARROW = (24, 20, 16, 16, 16)
CLASSIC = UNet(widths=(4, 8, 8), head_width=4)
ATROUS = AtrousUNet(encoder="resnet18", decoder_widths=NARROW)
SMP = Smp(encoder="resnet18", decoder_widths=NARROW)
NETWORKS: list[Section] = [
    CLASSIC,
    ATROUS,
    SMP,
    Smp(architecture="dpt", encoder="tu-vit_tiny_patch16_224", decoder_widths=NARROW),
    Smp(architecture="fpn", encoder="mobileone_s0", decoder_widths=(16, 32)),
]
IDS = ["classic", "atrous", "unet", "vision transformer", "mobileone"]


def names(*classes: str) -> ClassMap:
    return ClassMap(names=classes, values=tuple(range(1, len(classes) + 1)))


def model_of(
    section: Section, *classes: str, channels: int = 1, seed: int = 7
) -> Model:
    """Build a model with random weights and normalisation statistics."""
    network = build(section, channels=channels, seed=seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for norm in network.modules():
            if isinstance(norm, nn.BatchNorm2d | nn.BatchNorm3d):
                nn.init.uniform_(norm.running_mean, -0.1, 0.1)  # type: ignore[arg-type]
                nn.init.uniform_(norm.running_var, 0.8, 1.2)  # type: ignore[arg-type]
    spec = make_spec(section, channels=channels).model_copy(
        update={"classes": names(*classes)}
    )
    return Model(spec, Recipe(network=section), dict(network.state_dict()))


def start_from(
    model: Model, section: Section, *classes: str, channels: int = 1
) -> tuple[nn.Module, str]:
    """Build a network that starts from `model`; return it and the message."""
    spec = make_spec(section, channels=channels, classes=len(classes)).model_copy(
        update={"classes": names(*classes)}
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = build_network(spec)
    return network, copy_weights(network, spec, model, source="START")


# What is taken


@pytest.mark.parametrize("section", NETWORKS, ids=IDS)
def test_the_same_task_starts_with_the_same_network(section: Section) -> None:
    model = model_of(section, "pore", "clay", "quartz")
    network, said = start_from(model, section, "pore", "clay", "quartz")
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, model.weights[name]), name
    count = sum(not name.endswith("num_batches_tracked") for name in model.weights)
    assert (
        said
        == f"starts from START: {count} of {count} tensors; head: pore, clay, quartz copied"
    )


@pytest.mark.parametrize("section", NETWORKS, ids=IDS)
def test_classes_are_found_by_their_names(section: Section) -> None:
    """Each class with the same name has the same logits at any index."""
    model = model_of(section, "pore", "clay", "quartz")
    network, said = start_from(model, section, "rutile", "quartz", "pore", "air")
    assert said.endswith("; head: quartz, pore copied, rutile, air new")
    image = noise(1, 1, 64, 64)
    with torch.no_grad():
        old, new = model.build()(image), network.eval()(image)
    # The order in which a convolution sums may differ with the number of its outputs.
    close = {"rtol": 1e-4, "atol": 1e-4 * float(old.std())}
    torch.testing.assert_close(new[:, 1], old[:, 2], **close)
    torch.testing.assert_close(new[:, 2], old[:, 0], **close)
    for fresh in (0, 3):
        assert all(
            (new[:, fresh] - old[:, k]).abs().max() > 0.01 * old.std() for k in range(3)
        )


def test_without_common_classes_the_head_is_new() -> None:
    model = model_of(CLASSIC, "pore", "clay", "quartz")
    network, said = start_from(model, CLASSIC, "cell", "ground", "rim")
    head = f"{head_of(network)}.weight"
    assert not torch.equal(network.state_dict()[head], model.weights[head])
    assert said.endswith("; head: cell, ground, rim new")


@pytest.mark.parametrize("section", NETWORKS, ids=IDS)
def test_a_grey_network_adapted_to_colour_gives_the_same_logits_for_grey_images(
    section: Section,
) -> None:
    model = model_of(section, "a", "b", "c")
    network, said = start_from(model, section, "a", "b", "c", channels=3)
    assert said.endswith("; first layer adapted from 1 to 3 channels")
    image = noise(1, 1, 64, 64)
    with torch.no_grad():
        old, new = model.build()(image), network.eval()(image.expand(1, 3, 64, 64))
    torch.testing.assert_close(new, old, rtol=1e-3, atol=1e-3 * float(old.std()))


@pytest.mark.parametrize("section", NETWORKS, ids=IDS)
def test_a_colour_network_adapted_to_grey_gives_the_same_logits_for_grey_images(
    section: Section,
) -> None:
    model = model_of(section, "a", "b", "c", channels=3)
    network, said = start_from(model, section, "a", "b", "c", channels=1)
    assert said.endswith("; first layer adapted from 3 to 1 channels")
    image = noise(1, 1, 64, 64)
    with torch.no_grad():
        old, new = model.build()(image.expand(1, 3, 64, 64)), network.eval()(image)
    torch.testing.assert_close(new, old, rtol=1e-3, atol=1e-3 * float(old.std()))


def test_copied_tensors_are_counted() -> None:
    """An adapted first layer and a partly new head do not count as copied tensors."""
    model = model_of(CLASSIC, "a", "b")
    count = sum(not name.endswith("num_batches_tracked") for name in model.weights)
    assert (
        f" {count - 3} of {count} tensors"
        in start_from(model, CLASSIC, "a", "x", channels=2)[1]
    )
    assert f" {count} of {count} tensors" in start_from(model, CLASSIC, "b", "a")[1]


def test_options_that_do_not_change_the_weights_may_differ() -> None:
    model = model_of(SMP, "a", "b")
    _, said = start_from(
        model,
        SMP.model_copy(update={"attention": "scse", "encoder_weights": "none"}),
        "a",
        "b",
    )
    count, whole = (
        int(word) for word in said.split(": ")[1].split(" tensors")[0].split(" of ")
    )
    assert (
        count
        == sum(not name.endswith("num_batches_tracked") for name in model.weights)
        < whole
    )
    start_from(
        model, SMP.model_copy(update={"decoder_widths": (32, 24, 16, 16, 16)}), "a", "b"
    )


VOLUME = UNet3d(widths=(4, 8, 8), anisotropy=3)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_3d_network_starts_with_the_same_weights(channels: int) -> None:
    model = model_of(VOLUME, "pore", "clay", "quartz")
    network, said = start_from(
        model, VOLUME, "quartz", "clay", "pore", channels=channels
    )
    assert "head: quartz, clay, pore copied" in said
    assert ("first layer adapted from 1 to 3 channels" in said) == (channels == 3)
    volume = noise(1, 1, 5, 16, 16)
    with torch.no_grad():
        old, new = (
            model.build()(volume),
            network.eval()(volume.expand(1, channels, 5, 16, 16)),
        )
    torch.testing.assert_close(
        new, old.flip(1), rtol=1e-3, atol=1e-3 * float(old.std())
    )


@pytest.mark.parametrize(("ratio", "cure"), [(1.0, 1), (3.0, 2), (7.0, 4)])
def test_a_3d_network_for_other_voxels_is_refused_with_a_remedy(
    ratio: float, cure: int
) -> None:
    model = model_of(VOLUME.model_copy(update={"anisotropy": ratio}), "a", "b", "c")
    with pytest.raises(ModelError) as error:
        start_from(
            model,
            VOLUME.model_copy(update={"anisotropy": 3.5 if ratio != 3 else None}),
            "a",
            "b",
            "c",
        )
    assert "strides along Z" in str(error.value)
    assert f"--set network.anisotropy={cure}." in str(error.value)
    start_from(
        model, VOLUME.model_copy(update={"anisotropy": float(cure)}), "a", "b", "c"
    )


def test_the_encoder_of_a_3d_network_is_frozen() -> None:
    network = build(VOLUME).train()
    FreezableEncoder(network).hold(True)
    network(noise(2, 2, 4, 16, 16)).square().mean().backward()
    with_gradient = {
        name.split(".")[1]
        for name, p in network.named_parameters()
        if p.grad is not None
    }
    assert with_gradient == {"narrow", "merge", "head"}


# What is refused


@pytest.mark.parametrize(
    ("section", "shown"),
    [
        (SMP, "smp (architecture unet, encoder resnet18, norm batch)"),
        (UNet(widths=(4, 8), head_width=4), "unet (widths 4, 8, norm batch)"),
        (UNet(widths=(4, 8, 8), norm="none"), "unet (widths 4, 8, 8, norm none)"),
    ],
)
def test_another_network_is_refused_with_both_names_and_unchanged(
    section: Section, shown: str
) -> None:
    model = model_of(CLASSIC, "a", "b")
    spec = make_spec(section, channels=1, classes=2)
    network = build_network(spec)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(ModelError) as caught:
        copy_weights(network, spec, model, source="START")
    message = str(caught.value)
    assert (
        f"training.start=START: its network is unet (widths 4, 8, 8, norm batch); the recipe's is {shown}"
        in message
    )
    assert "train with its own recipe (--start without --recipe)" in message
    assert all(
        torch.equal(before[name], tensor)
        for name, tensor in network.state_dict().items()
    )


def test_encoders_of_one_family_are_distinguished() -> None:
    """A ResNet34 has all names and shapes of a ResNet18."""
    model = model_of(Smp(encoder="resnet34", decoder_widths=NARROW), "a", "b")
    with pytest.raises(
        ModelError,
        match=r"encoder resnet34, norm batch\); the recipe's is .* encoder resnet18",
    ):
        start_from(model, SMP, "a", "b")


def test_the_same_network_with_weights_of_another_is_refused() -> None:
    model = model_of(CLASSIC, "a", "b")
    lost = replace(
        model,
        weights={name: t for name, t in model.weights.items() if ".down." not in name},
    )
    with pytest.raises(
        ModelError, match=r"with other options: \d+ of its \d+ tensors agree"
    ):
        start_from(lost, CLASSIC, "a", "b")


@pytest.mark.parametrize(
    "fault", ["missing", "empty folder", "damaged", "pickle", "another network"]
)
def test_nothing_is_written_if_the_start_is_wrong(
    tmp_path: Path, scene: Scene, small: dict[str, Any], fault: str
) -> None:
    place = tmp_path / "start"
    if fault == "empty folder":
        place.mkdir()
    elif fault == "damaged":
        file = model_of(UNet(widths=(4, 8)), "a", "b").save(
            tmp_path / "whole.safetensors"
        )
        place.write_bytes(file.read_bytes()[:900])
    elif fault == "pickle":
        torch.save({"a": torch.zeros(2)}, place)
    elif fault == "another network":
        model_of(SMP, "a", "b").save(place)
    with pytest.raises(StrataError, match=r"training\.start") as caught:
        train(
            "default",
            scene(),
            out=tmp_path / "run",
            overrides=small | {"training.start": str(place)},
            device="cpu",
        )
    assert isinstance(caught.value, ModelError)
    assert len(str(caught.value).splitlines()) == 1
    assert str(place) in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_the_message_recommends_the_recipe_of_the_run(
    tmp_path: Path, scene: Scene, small: dict[str, Any]
) -> None:
    small |= {"training.epochs": 1}
    train("default", scene(), out=tmp_path / "first", overrides=small, device="cpu")
    other = small | {
        "network.widths": (4, 6),
        "training.start": str(tmp_path / "first"),
    }
    with pytest.raises(ModelError) as caught:
        train("default", scene(), out=tmp_path / "run", overrides=other, device="cpu")
    recipe = tmp_path / "first" / "recipe.yaml"
    assert f"train with its own recipe (--recipe {recipe})" in str(caught.value)
    overrides = {"training.start": str(tmp_path / "first")}
    train(recipe, scene(), out=tmp_path / "run", overrides=overrides, device="cpu")


# The recipe to train with


def test_the_recipe_of_the_start_is_the_default(tmp_path: Path) -> None:
    model = model_of(CLASSIC, "a", "b")
    model = replace(
        model,
        recipe=model.recipe.with_overrides({"training.epochs": 3, "name": "mine"}),
    )
    file = model.save(tmp_path / "m.safetensors")
    own = fine_tuning_recipe(file)
    assert own == model.recipe.with_overrides({"training.start": str(file)})
    assert (own.name, own.training.epochs, own.network) == ("mine", 3, CLASSIC)
    named = fine_tuning_recipe(file, "unet-ct")
    assert named == load_recipe("unet-ct").with_overrides({"training.start": str(file)})
    with pytest.raises(ModelError, match=r"training\.start: .*no such model"):
        fine_tuning_recipe(tmp_path / "nothing")
    with pytest.raises(RecipeError, match="no recipe 'unet-cr'"):
        fine_tuning_recipe(file, "unet-cr")


def test_a_relative_path_is_kept_as_an_absolute_one(
    tmp_path: Path, scene: Scene, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model_of(UNet(widths=(4, 8)), "class 0", "class 1").save(tmp_path / "m.safetensors")
    overrides = small | {"training.start": "m.safetensors", "training.epochs": 1}
    train("default", scene(), out="run", overrides=overrides, device="cpu")
    assert RunFolder.open("run").recipe.training.start == str(
        tmp_path / "m.safetensors"
    )
    assert Model.load("run").recipe.training.start == str(tmp_path / "m.safetensors")
    # The same words again are the same recipe, so that the line that was typed goes on.
    train(
        "default",
        scene(),
        out="run",
        overrides={"training.start": "m.safetensors"},
        device="cpu",
        resume=True,
    )
    with pytest.raises(RecipeError, match=r"training\.start cannot change"):
        train(
            "default",
            scene(),
            out="run",
            overrides={"training.start": "x"},
            device="cpu",
            resume=True,
        )


# Training


def test_the_training_begins_with_the_weights_of_the_start(
    tmp_path: Path, scene: Scene, small: dict[str, Any]
) -> None:
    first = train(
        "default",
        scene(),
        out=tmp_path / "first",
        overrides=small | {"training.epochs": 6},
        device="cpu",
    )
    assert first.best is not None
    assert first.best.mean_iou > 0.85
    still = small | {
        "training.learning_rate": 1e-9,
        "training.epochs": 1,
        "training.start": str(tmp_path / "first"),
    }
    events = list(
        iter_train(
            "default", scene(), out=tmp_path / "run", overrides=still, device="cpu"
        )
    )
    (said,) = [
        e.text for e in events if isinstance(e, Message) and "starts from" in e.text
    ]
    assert said.endswith("head: class 0, class 1 copied")
    learner = RunFolder.open(tmp_path / "run").load_checkpoint("last.pt")["learner"]
    for name, tensor in first.weights.items():
        for weights in (learner["network"], learner["averaged"]["weights"]):
            if "running" not in name and not name.endswith("tracked"):
                torch.testing.assert_close(weights[name], tensor, rtol=0, atol=1e-6)
    (end,) = [e for e in events if isinstance(e, EpochEnd)]
    assert end.mean_iou > first.best.mean_iou - 0.03


def test_a_start_in_grey_helps_a_task_in_colour_with_another_class(
    tmp_path: Path, scene: Scene, small: dict[str, Any]
) -> None:
    train(
        "default",
        scene(),
        out=tmp_path / "first",
        overrides=small | {"training.epochs": 6},
        device="cpu",
    )
    pair = scene(3)
    grey, truth = np.asarray(pair.image.data), np.asarray(pair.labels.data).copy()
    truth[:, :4] = 2
    colour = Image(np.stack([grey, grey, 255 - grey], -1), "ZYXC", name="colour")
    task = AnnotatedImage(colour, colour.labels_like(truth))
    overrides = small | {
        "training.epochs": 1,
        "training.start": str(tmp_path / "first"),
    }
    events = list(
        iter_train(
            "default", task, out=tmp_path / "run", overrides=overrides, device="cpu"
        )
    )
    (said,) = [
        e.text for e in events if isinstance(e, Message) and "starts from" in e.text
    ]
    assert said.endswith(
        "; head: class 0, class 1 copied, class 2 new; first layer adapted from 1 to 3 channels"
    )
    assert Model.load(tmp_path / "run").spec.in_channels == 3


FROZEN: dict[str, Any] = {
    "training.freeze_encoder": 2,
    "training.weight_decay": 0.3,
    "network.dropout": 0.3,
    "augmentation.noise": 0.3,
}


@pytest.mark.parametrize("kind", ["raw", "averaged"])
def test_a_frozen_encoder_is_unchanged_and_trained_afterwards(
    tmp_path: Path, scene: Scene, small: dict[str, Any], kind: str
) -> None:
    """Weight decay and the statistics measured at each epoch do not change it either."""
    section = UNet(widths=(4, 8), dropout=0.3)
    start = model_of(section, "class 0", "class 1")
    start.save(tmp_path / "start.safetensors")
    small |= FROZEN | {"training.start": str(tmp_path / "start.safetensors")}
    for end in iter_train(
        "default", scene(), out=tmp_path / "run", overrides=small, device="cpu"
    ):
        if not isinstance(end, EpochEnd):
            continue
        learner = RunFolder.open(tmp_path / "run").load_checkpoint("last.pt")["learner"]
        weights = (
            learner["network"] if kind == "raw" else learner["averaged"]["weights"]
        )
        encoder = [name for name in weights if name.startswith("network.down.")]
        others = [
            name
            for name in weights
            if name not in encoder and weights[name].is_floating_point()
        ]
        assert len(encoder) == 2 * 2 * (
            1 + 5
        )  # levels x convolutions x (kernel + batch normalisation)
        same = {
            name for name in encoder if torch.equal(weights[name], start.weights[name])
        }
        assert not any(
            torch.equal(weights[name], start.weights[name]) for name in others
        )
        assert same == (set(encoder) if end.epoch <= 2 else set())


@pytest.mark.parametrize("section", NETWORKS, ids=IDS)
def test_freezing_reaches_the_whole_encoder_and_nothing_else(section: Section) -> None:
    network = build(section, channels=1)
    never = {name for name, p in network.named_parameters() if not p.requires_grad}
    encoder = FreezableEncoder(network)
    inside = {id(p) for p in encoder.module.parameters()}
    network.train()
    encoder.hold(True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1, weight_decay=0.5)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network(noise(2, 1, 64, 64)).square().mean().backward()
    optimizer.step()
    for name, parameter in network.named_parameters():
        moved = not torch.equal(parameter, before[name])
        assert moved == (id(parameter) not in inside and name not in never), name
    statistics = {id(buffer) for buffer in encoder.module.buffers()}
    assert [
        n
        for n, b in network.named_buffers()
        if id(b) in statistics and not torch.equal(b, before[n])
    ] == []
    network.train()
    encoder.hold(False)
    assert all(module.training for module in encoder.module.modules())
    assert {
        name for name, p in network.named_parameters() if not p.requires_grad
    } == never


@pytest.mark.parametrize("batches", [1, 3, 5])
def test_a_stop_and_an_extension_with_a_frozen_encoder_equal_an_uninterrupted_run(
    tmp_path: Path, scene: Scene, small: dict[str, Any], batches: int
) -> None:
    """Stop in the first, the second and the third epoch, which is the first that trains; two batches each."""
    small |= FROZEN | {
        "training.schedule": "constant",
        "training.start": str(tmp_path / "start.safetensors"),
    }
    model_of(UNet(widths=(4, 8)), "class 0", "class 1").save(
        tmp_path / "start.safetensors"
    )
    train("default", scene(), out=tmp_path / "whole", overrides=small, device="cpu")
    stop_after(
        iter_train(
            "default", scene(), out=tmp_path / "run", overrides=small, device="cpu"
        ),
        batches=batches,
    )
    if batches > 2:
        (
            tmp_path / "start.safetensors"
        ).unlink()  # once an epoch is complete, the checkpoint has it all
    train("default", scene(), out=tmp_path / "run", device="cpu", resume=True)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_an_extension_continues_to_count_frozen_epochs(
    tmp_path: Path, scene: Scene, small: dict[str, Any]
) -> None:
    """One epoch of three frozen ones, extended by three, equals four epochs, of which the fourth is trained."""
    small |= FROZEN | {"training.freeze_encoder": 3, "training.schedule": "constant"}
    train(
        "default",
        scene(),
        out=tmp_path / "whole",
        overrides=small | {"training.epochs": 4},
        device="cpu",
    )
    train(
        "default",
        scene(),
        out=tmp_path / "run",
        overrides=small | {"training.epochs": 1},
        device="cpu",
    )
    train("default", scene(), out=tmp_path / "run", device="cpu", extend=3)
    first, second = (
        RunFolder.open(tmp_path / n).load_checkpoint("last.pt")["learner"]
        for n in ("whole", "run")
    )
    for name, tensor in first["network"].items():
        assert torch.equal(tensor, second["network"][name]), name


def test_a_frozen_random_encoder_gives_a_warning(
    tmp_path: Path, scene: Scene, small: dict[str, Any]
) -> None:
    def said(name: str, **overrides: Any) -> list[tuple[str, str]]:
        changes = (
            small | {"training.epochs": 1, "training.freeze_encoder": 1} | overrides
        )
        events = iter_train(
            "default", scene(), out=tmp_path / name, overrides=changes, device="cpu"
        )
        return [
            (e.level, e.text)
            for e in events
            if isinstance(e, Message) and "encoder" in e.text
        ]

    assert ("info", "the encoder is frozen for 1 epoch") in said("a")
    assert any(
        level == "warning" and "random numbers learns nothing" in text
        for level, text in said("b")
    )
    assert not any(
        level == "warning"
        for level, _ in said("c", **{"training.start": str(tmp_path / "a")})
    )


def test_a_missing_start_matters_only_before_the_first_epoch(
    tmp_path: Path, scene: Scene, small: dict[str, Any]
) -> None:
    train(
        "default",
        scene(),
        out=tmp_path / "start",
        overrides=small | {"training.epochs": 1},
        device="cpu",
    )
    small |= {"training.start": str(tmp_path / "start")}
    stop_after(
        iter_train(
            "default", scene(), out=tmp_path / "run", overrides=small, device="cpu"
        ),
        batches=1,
    )
    shutil.rmtree(tmp_path / "start")
    before = sorted(
        (p.name, p.stat().st_mtime_ns) for p in (tmp_path / "run").iterdir()
    )
    with pytest.raises(ModelError, match="no such model file or run folder"):
        train("default", scene(), out=tmp_path / "run", device="cpu", resume=True)
    assert (
        sorted((p.name, p.stat().st_mtime_ns) for p in (tmp_path / "run").iterdir())
        == before
    )
