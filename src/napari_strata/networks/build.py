"""Build the network of a model; find its encoder and its head."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import nn

from napari_strata.core.errors import ModelError
from napari_strata.core.spec import ModelSpec


def build_network(spec: ModelSpec) -> nn.Module:
    """Build the network that `spec` describes, with random weights.

    Nothing is downloaded; see `weights.load_encoder_weights`.

    Returns
    -------
    nn.Module
        A network on torch's current default device. A 2D network maps float images
        (N, C, H, W) of any height and width to logits (N, K, H, W), where C is
        ``spec.in_channels`` and K is ``len(spec.classes)``. A 3D network maps volumes
        (N, C, D, H, W) to (N, K, D, H, W).

    Raises
    ------
    RecipeError
        When architecture, encoder and options cannot be combined. The message names
        values that can.
    ModelError
        When the model is not a torch network.
    """
    if spec.network.is_fitted:
        raise ModelError(
            f"found network.kind {spec.network.kind}, which is not a torch network; "
            "predict() and evaluate() take such a model."
        )
    # Imported only here: segmentation-models-pytorch takes seconds to import.
    module, function = spec.network.builder.split(":")
    build = getattr(import_module(module), function)
    # Gradients are switched on even if the caller predicts: weights that are made in
    # inference mode could never be trained.
    with torch.inference_mode(False), torch.enable_grad():
        network: nn.Module = build(spec, spec.network)
    return network


def encoder_of(network: nn.Module) -> nn.Module:
    """Return the encoder of a network that `build_network` made."""
    inner: Any = getattr(network, "network", network)
    encoder: nn.Module = inner.encoder
    return encoder


def head_of(network: nn.Module) -> str:
    """Return the name of the convolution whose outputs are the logits."""
    heads = {"head", "segmentation_head"}
    convolution_names: list[str] = []
    for name, layer in network.named_modules():
        in_head = not heads.isdisjoint(name.split("."))
        if in_head and isinstance(layer, nn.Conv2d | nn.Conv3d):
            convolution_names.append(name)
    return convolution_names[-1]
