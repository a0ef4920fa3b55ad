"""Estimate of the memory that a training needs, before it starts."""

from __future__ import annotations

from typing import Any

import torch

from napari_strata.core.recipe import Recipe
from napari_strata.core.spec import ModelSpec
from napari_strata.models.device import Precision
from napari_strata.networks import build_network


def step_memory(spec: ModelSpec, recipe: Recipe, precision: Precision) -> int:
    """Estimate the bytes that one training step holds.

    Weights, gradients, optimiser, averaged weights, and the tensors that the forward
    pass keeps for the backward pass. It runs on torch's meta device: nothing is
    computed and nothing allocated. Images, the libraries themselves and the working
    memory of single operations come on top.
    """
    section = recipe.training
    size = recipe.patches.resize or recipe.patches.size
    shape = (size, size) if spec.depth is None else spec.patch_shape
    with torch.device("meta"):
        network = build_network(spec).train()
        pixels = torch.empty(section.batch_size, spec.in_channels, *shape)
    weights = sum(p.numel() * p.element_size() for p in network.parameters())
    copies = (
        2 + (1 if section.optimizer == "sgd" else 2) + (section.averaging is not None)
    )
    owned = {p.untyped_storage()._cdata for p in network.parameters()}
    storages: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage._cdata not in owned:
            storages[storage._cdata] = (
                storage  # held, so that no other storage takes its place
            )
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.enable_grad(),
    ):
        logits = network(pixels)
        torch.nn.functional.cross_entropy(
            logits, logits.new_empty(logits[:, 0].shape, dtype=torch.long)
        )
    half = 2 if precision.dtype is not None else 1
    return (
        copies * weights
        + sum(storage.nbytes() for storage in storages.values()) // half
    )
