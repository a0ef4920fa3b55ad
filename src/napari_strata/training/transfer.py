"""Initial weights of a training (random, pretrained or trained), frozen encoders."""

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

IDENTITY_KEYS = ("architecture", "encoder", "widths", "norm")
"""Keys that must be equal, besides `kind`, to start from the weights of a network."""

STRIDES = "strides along Z"
"""Name of a property that must be equal for 3D networks too.

Networks with other strides have kernels of other shapes.
"""


def fine_tuning_recipe(
    start: str | os.PathLike[str], recipe: str | os.PathLike[str] | Recipe | None = None
) -> Recipe:
    """Return the recipe of a training that starts from the model or run `start`.

    By default it is the recipe of that model.

    Raises
    ------
    ModelError
        When the model is missing or damaged.
    RecipeError
        When the recipe does not exist.
    """
    base = load_model(start).recipe if recipe is None else load_recipe(recipe)
    return base.with_overrides({"training.start": os.fspath(start)})


def load_model(start: str | os.PathLike[str]) -> Model:
    """Load the model to start from.

    Raises `ModelError` if it is missing or damaged.
    """
    try:
        return Model.load(Path(start).expanduser())
    except ModelError as error:
        raise ModelError(f"training.start: {error}") from None


def initialise(network: nn.Module, recipe: Recipe, spec: ModelSpec) -> list[Message]:
    """Load the initial weights of a recipe into a new network; describe them.

    Raises
    ------
    ModelError
        When ``training.start`` is not a model of this project, or has another network.
        The network is then unchanged.
    TrainingError
        When the recipe demands ImageNet weights and they are not available.
    """
    section = recipe.training
    if section.start is None:
        origin = load_encoder_weights(network, spec)
    else:
        start = load_model(section.start)
        origin = Message(copy_weights(network, spec, start, source=section.start))
    if not section.freeze_encoder:
        return [origin]
    epochs = (
        "1 epoch" if section.freeze_encoder == 1 else f"{section.freeze_encoder} epochs"
    )
    messages = [origin, Message(f"the encoder is frozen for {epochs}")]
    if section.start is None and "random weights" in origin.text:
        text = (
            "a frozen encoder of random numbers learns nothing: set training.start, or"
            " training.freeze_encoder=0"
        )
        messages.append(Message(text, "warning"))
    return messages


def copy_weights(
    network: nn.Module, spec: ModelSpec, start: Model, *, source: str
) -> str:
    """Copy the tensors of `start` whose name and shape agree into `network`.

    The head gets the rows of classes with the same name; its other rows are unchanged.
    Convolutions whose input is the image are adapted to another number of channels; see
    `for_channels`.

    Returns
    -------
    str
        Description of the copied tensors.

    Raises
    ------
    ModelError
        When the networks differ; `network` is then unchanged.
    """
    own, head = network.state_dict(), f"{head_of(network)}."
    start_tensors = {
        name: tensor for name, tensor in start.weights.items() if name in own
    }
    matching = {
        name: tensor
        for name, tensor in start_tensors.items()
        if tensor.shape == own[name].shape and not name.startswith(head)
    }
    counted = [name for name in own if not name.endswith("num_batches_tracked")]
    count = sum(name in matching for name in counted)
    if _identity(spec) != _identity(start.spec) or 2 * count < len(counted):
        raise ModelError(
            _explain_difference(
                spec, start, source, f"{count} of its {len(counted)} tensors agree"
            )
        )
    channels = start.spec.in_channels, spec.in_channels
    adapted = (
        _adapt_kernels(own, start_tensors, channels)
        if channels[0] != channels[1]
        else {}
    )
    rows, copied_classes = _head_rows(
        own, start_tensors, (start.spec.classes.names, spec.classes.names), head=head
    )
    count += len(rows) if len(copied_classes) == len(spec.classes) else 0
    nn.Module.load_state_dict(network, matching | adapted | rows, strict=False)
    new_classes = [name for name in spec.classes.names if name not in copied_classes]
    notes = [
        f"starts from {source}: {count} of {len(counted)} tensors",
        f"head: {_describe_head(copied_classes, new_classes)}",
    ]
    if adapted:
        notes.append(
            f"first layer adapted from {channels[0]} to {channels[1]} channels"
        )
    return "; ".join(notes)


class FreezableEncoder:
    """Encoder of a network that can be frozen.

    A frozen encoder has no gradients, and its normalisation uses running statistics.
    """

    def __init__(self, network: nn.Module) -> None:
        self.module = encoder_of(network)
        # Without parameters that are never trained, such as those of unused stages.
        self.trained_parameters = [
            parameter
            for parameter in self.module.parameters()
            if parameter.requires_grad
        ]
        self.frozen = False

    def hold(self, frozen: bool) -> None:
        """Freeze the encoder, or train it.

        Call this after ``network.train()``, which affects its normalisation.
        """
        self.frozen = frozen
        for parameter in self.trained_parameters:
            parameter.requires_grad_(not frozen)
        if frozen:
            self.module.eval()


def _adapt_kernels(
    own: Mapping[str, Tensor], start: Mapping[str, Tensor], channels: tuple[int, int]
) -> dict[str, Tensor]:
    """Adapt the kernels of convolutions whose input contains the image.

    These are the first convolution and those that get the image and features.
    """
    before, after = channels
    adapted = {}
    for name, kernel in start.items():
        features = kernel.shape[1] - before if kernel.ndim in (4, 5) else -1
        if features >= 0 and own[name].shape == (
            kernel.shape[0],
            features + after,
            *kernel.shape[2:],
        ):
            # The networks concatenate features first, then the image.
            image_kernel = for_channels(kernel[:, features:], after)
            adapted[name] = torch.cat([kernel[:, :features], image_kernel], dim=1)
    return adapted


def _head_rows(
    own: Mapping[str, Tensor],
    start: Mapping[str, Tensor],
    names: tuple[tuple[str, ...], tuple[str, ...]],
    *,
    head: str,
) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors of the head with copied rows, and the names of their classes.

    Rows are copied for classes that both models have.
    """
    before, after = names
    common = [name for name in after if name in before]
    fitting = {
        name: tensor
        for name, tensor in start.items()
        if name.startswith(head) and tensor.shape[1:] == own[name].shape[1:]
    }
    rows = {}
    for name, tensor in fitting.items():
        rows[name] = own[name].detach().clone()
        rows[name][[after.index(c) for c in common]] = tensor[
            [before.index(c) for c in common]
        ].to(rows[name])
    return rows, common if fitting else []


def _describe_head(copied: list[str], new: list[str]) -> str:
    return ", ".join(
        f"{', '.join(names)} {state}"
        for names, state in ((copied, "copied"), (new, "new"))
        if names
    )


def _identity(spec: ModelSpec) -> dict[str, object]:
    """Return the properties that must be equal to start from a network."""
    identity = {
        key: getattr(spec.network, key)
        for key in ("kind", *IDENTITY_KEYS)
        if hasattr(spec.network, key)
    }
    return identity | ({STRIDES: spec.depth.strides} if spec.depth else {})


def _explain_difference(
    spec: ModelSpec, start: Model, source: str, agreement: str
) -> str:
    own_text, start_text = (_describe_network(s) for s in (spec, start.spec))
    strides = start.spec.depth.strides if start.spec.depth else ()
    if own_text == start_text:
        own_text += f", with other options: {agreement}"
    elif _identity(spec) | {STRIDES: strides} == _identity(start.spec):
        # Voxels of another shape; this anisotropy gives the strides of the model.
        remedy = f"--set network.anisotropy={2 ** strides.count(1)}"
        return (
            f"training.start={source}: its network is {start_text}; for these voxels it"
            f" would be {own_text}. Add {remedy}."
        )
    folder = Path(source) if Path(source).is_dir() else Path(source).parent
    run = RunFolder(folder)
    option = f"--recipe {run.recipe_path}" if run.exists else "--start without --recipe"
    return (
        f"training.start={source}: its network is {start_text}; the recipe's is"
        f" {own_text}. Only the same network can start from it: train with its own"
        f" recipe ({option})."
    )


def _describe_network(spec: ModelSpec) -> str:
    """Describe a network, for example ``smp (architecture unet, norm batch)``."""
    kind, *keys = _identity(spec).items()
    options = (
        (key, ", ".join(map(str, value)) if isinstance(value, tuple) else value)
        for key, value in keys
    )
    return f"{kind[1]} ({', '.join(f'{key} {value}' for key, value in options)})"
