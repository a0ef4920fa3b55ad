"""Build the network of a model, and find its encoder and its head."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import nn

from napari_strata.core.spec import ModelSpec


def build_network(spec: ModelSpec) -> nn.Module:
    """Build the network that `spec` describes, with random weights.

    It stands on the current default device. Its forward takes float images
    (N, C, H, W), C = ``spec.in_channels``, of any height and width from 1, and returns
    logits (N, K, H, W), K = ``len(spec.classes)``. That of a 3D model takes volumes
    (N, C, D, H, W) of any size, and returns (N, K, D, H, W). Nothing is downloaded; see
    `weights.load_encoder_weights`.

    Raises
    ------
    RecipeError
        When architecture, encoder and options do not go together; it names what does.
    """
    # Imported only here: segmentation-models-pytorch takes seconds to import.
    module, function = spec.network.builder.split(":")
    build = getattr(import_module(module), function)
    # Gradients are switched on even if the caller predicts: weights that are made in
    # inference mode could never be trained.
    with torch.inference_mode(False), torch.enable_grad():
        network: nn.Module = build(spec, spec.network)
    return network


def encoder_of(network: nn.Module) -> nn.Module:
    """Return the encoder of a network of `build_network`.

    A U-Net's contracting path.
    """
    inner: Any = getattr(network, "network", network)
    encoder: nn.Module = inner.encoder
    return encoder


def head_of(network: nn.Module) -> str:
    """Return the name of the convolution whose outputs are the logits."""
    heads = {"head", "segmentation_head"}
    names: list[str] = []
    for name, layer in network.named_modules():
        in_head = not heads.isdisjoint(name.split("."))
        if in_head and isinstance(layer, nn.Conv2d | nn.Conv3d):
            names.append(name)
    return names[-1]
