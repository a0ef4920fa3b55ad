"""Estimates of what a training needs, before it starts."""

from __future__ import annotations

import math
from typing import Any

import torch

from napari_strata.core.network_sections import Pixels
from napari_strata.core.recipe import Recipe
from napari_strata.core.spec import ModelSpec
from napari_strata.models.device import Precision
from napari_strata.models.pixels.features import count_features, tile_side
from napari_strata.networks import build_network
from napari_strata.training.plan import Plan


def step_memory(spec: ModelSpec, recipe: Recipe, precision: Precision) -> int:
    """Estimate the memory of a training step in bytes.

    It includes weights, gradients, optimiser, averaged weights, and the tensors that
    the forward pass keeps for the backward pass. It does not include images, the
    libraries, and the working memory of single operations. The network runs on torch's
    meta device, where nothing is computed or allocated.
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
    weight_storages = {p.untyped_storage()._cdata for p in network.parameters()}
    storages: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage._cdata not in weight_storages:
            # Kept alive, so that no other storage gets its address.
            storages[storage._cdata] = storage
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.enable_grad(),
    ):
        logits = network(pixels)
        torch.nn.functional.cross_entropy(
            logits, logits.new_empty(logits[:, 0].shape, dtype=torch.long)
        )
    divisor = 2 if precision.dtype is not None else 1
    return (
        copies * weights
        + sum(storage.nbytes() for storage in storages.values()) // divisor
    )


def training_memory(plan: Plan, precision: Precision) -> int:
    """Estimate the bytes that a training holds, in a step or in a fit."""
    section = plan.spec.network
    if not isinstance(section, Pixels):
        return step_memory(plan.spec, plan.recipe, precision)
    features = count_features(plan.spec.in_channels, section.resolved_levels)
    pixels = min(section.pixels, sum(plan.counts))
    # Features of all pixels, twice while some of them are chosen, and those of a tile.
    side = tile_side(section.resolved_levels) + 4 * plan.spec.halo
    tile = min(side * side, max(math.prod(part.shape) for part in plan.training))
    return 4 * features * (2 * pixels + torch.get_num_threads() * tile)


def count_parameters(spec: ModelSpec) -> int:
    """Count the numbers that a training finds."""
    section = spec.network
    if isinstance(section, Pixels):
        leaves = (1 << section.depth) * len(spec.classes)
        return section.trees * (2 * section.depth + leaves) + 2
    return sum(p.numel() for p in build_network(spec).parameters())
