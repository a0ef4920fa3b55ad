from __future__ import annotations

import torch

from helpers import easy_pair, tiny_recipe
from napari_strata.core.spec import resolve
from napari_strata.models.device import choose_precision, free_memory
from napari_strata.networks import build_network
from napari_strata.training.estimate import step_memory

CPU = torch.device("cpu")


def _memory(**overrides: object) -> int:
    recipe = tiny_recipe(**overrides)
    return step_memory(
        resolve(recipe, easy_pair()), recipe, choose_precision("fp32", CPU)
    )


def test_memory_of_the_forward_pass_grows_with_batch_and_patch() -> None:
    one, two, large = (
        _memory(training__batch_size=b, patches__size=s)
        for b, s in ((2, 32), (4, 32), (2, 64))
    )
    recipe = tiny_recipe()
    weights = 4 * sum(
        p.numel() for p in build_network(resolve(recipe, easy_pair())).parameters()
    )
    fixed = 4 * weights  # weights, gradients and two moments
    assert 1.99 < (two - fixed) / (one - fixed) < 2.01
    assert 3.9 < (large - fixed) / (one - fixed) < 4.1


def test_averaged_weights_and_optimizer_are_included() -> None:
    assert (
        _memory(training__averaging=0.9)
        > _memory()
        > _memory(training__optimizer="sgd", training__batch_size=4)
    )


def test_the_estimate_equals_what_autograd_saves() -> None:
    recipe = tiny_recipe()
    spec = resolve(recipe, easy_pair())
    network, kept = build_network(spec).train(), {}
    own = {p.data_ptr() for p in network.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        logits = network(torch.rand(4, 1, 32, 32))
        torch.nn.functional.cross_entropy(
            logits, torch.zeros_like(logits[:, 0], dtype=torch.long)
        )
    weights = 4 * sum(p.numel() for p in network.parameters())
    real = 4 * weights + sum(s.nbytes() for s in kept.values())
    assert abs(_memory() - real) < 0.1 * real


def test_free_memory_is_plausible() -> None:
    free = free_memory(CPU)
    assert free is None or 2**20 < free < 2**50
