"""Start of a training: random, pretrained or earlier weights, and frozen layers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from napari_strata.core.errors import ModelError
from napari_strata.core.events import Message
from napari_strata.core.recipe import Recipe
from napari_strata.core.recipes import load_recipe
from napari_strata.core.runs import RunFolder
from napari_strata.core.spec import ModelSpec
from napari_strata.models.model import Model
from napari_strata.networks.build import encoder_of, head_of
from napari_strata.networks.weights import for_channels, load_encoder_weights

IDENTITY = ("architecture", "encoder", "widths", "norm")
"""Keys of a network that must be the same, beside its kind, for one to start from
the other.
"""

STRIDES = "strides along Z"
"""What must be the same of 3D networks too.

The kernels have other shapes where it is not.
"""


def fine_tuning_recipe(
    start: str | os.PathLike[str], recipe: str | os.PathLike[str] | Recipe | None = None
) -> Recipe:
    """The recipe of a training that starts from the model or run `start`.

    The model's own where none is given.

    Raises
    ------
    ModelError
        when there is no model, or it is damaged.
    RecipeError
        when there is no such recipe.
    """
    chosen = load_model(start).recipe if recipe is None else load_recipe(recipe)
    return chosen.with_overrides({"training.start": os.fspath(start)})


def load_model(start: str | os.PathLike[str]) -> Model:
    """The model to start from.

    Raises `ModelError` when there is none, or it is damaged.
    """
    try:
        return Model.load(Path(start).expanduser())
    except ModelError as error:
        raise ModelError(f"training.start: {error}") from None


def initialise(network: nn.Module, recipe: Recipe, spec: ModelSpec) -> list[Message]:
    """Give a new network the weights that the recipe starts from, and say in words
    which.

    Raises
    ------
    ModelError
        when ``training.start`` is no model of ours, or one of another network; the
        network is then untouched.
    TrainingError
        when the recipe demands ImageNet weights and they cannot be had.
    """
    section = recipe.training
    if section.start is None:
        note = load_encoder_weights(network, spec)
    else:
        note = take_over(network, spec, load_model(section.start), source=section.start)
    if not section.freeze_encoder:
        return [Message(note)]
    epochs = (
        "1 epoch" if section.freeze_encoder == 1 else f"{section.freeze_encoder} epochs"
    )
    messages = [Message(note), Message(f"the encoder stays as it is for {epochs}")]
    if section.start is None and "random weights" in note:
        text = (
            "a frozen encoder of random numbers learns nothing: set training.start, or"
            " training.freeze_encoder=0"
        )
        messages.append(Message(text, "warning"))
    return messages


def take_over(network: nn.Module, spec: ModelSpec, start: Model, *, source: str) -> str:
    """Copy every tensor of `start` whose name and shape agree into `network`, and
    say in words what was taken.

    The head takes the rows of the classes that have the same name; the others stay as
    they are. Convolutions that see the image are adapted to another number of channels;
    see `for_channels`.

    Raises
    ------
    ModelError
        when the networks are not of one kind; `network` is then untouched.
    """
    own, head = network.state_dict(), f"{head_of(network)}."
    start_tensors = {
        name: tensor for name, tensor in start.weights.items() if name in own
    }
    taken = {
        n: t
        for n, t in start_tensors.items()
        if t.shape == own[n].shape and not n.startswith(head)
    }
    counted = [name for name in own if not name.endswith("num_batches_tracked")]
    count = sum(name in taken for name in counted)
    if _identity(spec) != _identity(start.spec) or 2 * count < len(counted):
        raise ModelError(
            _why_other(
                spec, start, source, f"{count} of its {len(counted)} tensors are there"
            )
        )
    channels = start.spec.in_channels, spec.in_channels
    adapted = (
        _adapted(own, start_tensors, channels) if channels[0] != channels[1] else {}
    )
    rows, kept_rows = _rows(
        own, start_tensors, (start.spec.classes.names, spec.classes.names), head=head
    )
    count += len(rows) if len(kept_rows) == len(spec.classes) else 0
    nn.Module.load_state_dict(network, taken | adapted | rows, strict=False)
    news = [name for name in spec.classes.names if name not in kept_rows]
    parts = [
        f"starts from {source}: {count} of {len(counted)} tensors",
        f"head: {_head_in_words(kept_rows, news)}",
    ]
    if adapted:
        parts.append(
            f"first layer adapted from {channels[0]} to {channels[1]} channels"
        )
    return "; ".join(parts)


class FreezableEncoder:
    """The encoder of `network`, which can be held as it is.

    No gradients, and normalisation by its own statistics.
    """

    def __init__(self, network: nn.Module) -> None:
        self.module = encoder_of(network)
        # Not those that never learn, such as a stage that the decoder does not look at.
        self.learning = [
            parameter
            for parameter in self.module.parameters()
            if parameter.requires_grad
        ]
        self.frozen = False

    def hold(self, frozen: bool) -> None:
        """Freeze the encoder, or let it learn.

        Call this after ``network.train()``, which would switch its normalisation on.
        """
        self.frozen = frozen
        for parameter in self.learning:
            parameter.requires_grad_(not frozen)
        if frozen:
            self.module.eval()


def _adapted(
    own: Mapping[str, Tensor], given: Mapping[str, Tensor], channels: tuple[int, int]
) -> dict[str, Tensor]:
    """Kernels of the convolutions that see the image.

    Of the first, and of those that see it beside features.
    """
    before, after = channels
    adapted = {}
    for name, kernel in given.items():
        features = kernel.shape[1] - before if kernel.ndim in (4, 5) else -1
        if features >= 0 and own[name].shape == (
            kernel.shape[0],
            features + after,
            *kernel.shape[2:],
        ):
            # The image stands behind the features in every concatenation of ours.
            parts = [kernel[:, :features], for_channels(kernel[:, features:], after)]
            adapted[name] = torch.cat(parts, dim=1)
    return adapted


def _rows(
    own: Mapping[str, Tensor],
    given: Mapping[str, Tensor],
    names: tuple[tuple[str, ...], tuple[str, ...]],
    *,
    head: str,
) -> tuple[dict[str, Tensor], list[str]]:
    """The head's tensors with the rows of the classes that both models have, and
    the names of these.
    """
    before, after = names
    common = [name for name in after if name in before]
    fitting = {
        n: t
        for n, t in given.items()
        if n.startswith(head) and t.shape[1:] == own[n].shape[1:]
    }
    rows = {}
    for name, tensor in fitting.items():
        rows[name] = own[name].detach().clone()
        rows[name][[after.index(c) for c in common]] = tensor[
            [before.index(c) for c in common]
        ].to(rows[name])
    return rows, common if fitting else []


def _head_in_words(kept: list[str], news: list[str]) -> str:
    return ", ".join(
        f"{', '.join(names)} {word}"
        for names, word in ((kept, "taken"), (news, "new"))
        if names
    )


def _identity(spec: ModelSpec) -> dict[str, object]:
    identity = {
        key: getattr(spec.network, key)
        for key in ("kind", *IDENTITY)
        if hasattr(spec.network, key)
    }
    return identity | ({STRIDES: spec.depth.strides} if spec.depth else {})


def _why_other(spec: ModelSpec, start: Model, source: str, found: str) -> str:
    own_text, start_text = (_network_in_words(each) for each in (spec, start.spec))
    strides = start.spec.depth.strides if start.spec.depth else ()
    if own_text == start_text:
        own_text += f", with other options: {found}"
    elif _identity(spec) | {STRIDES: strides} == _identity(start.spec):
        # Voxels of another shape: a power of two gives the strides of the model.
        cure = f"--set network.anisotropy={2 ** strides.count(1)}"
        return (
            f"training.start={source}: its network is {start_text}; for these voxels it"
            f" would be {own_text}. Add {cure}."
        )
    folder = Path(source) if Path(source).is_dir() else Path(source).parent
    run = RunFolder(folder)
    own = f"--recipe {run.recipe_path}" if run.exists else "--start without --recipe"
    return (
        f"training.start={source}: its network is {start_text}; the recipe's is"
        f" {own_text}. Only the same network can start from it: train with its own"
        f" recipe ({own})."
    )


def _network_in_words(spec: ModelSpec) -> str:
    """For example ``smp (architecture unet, encoder resnet34, norm batch)``."""
    kind, *keys = _identity(spec).items()
    options = (
        (key, ", ".join(map(str, value)) if isinstance(value, tuple) else value)
        for key, value in keys
    )
    return f"{kind[1]} ({', '.join(f'{key} {value}' for key, value in options)})"
