"""The averaged weights, step by step."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from napari_strata.training.averaging import (
    average_state,
    build_average,
    load_average,
)


def small_network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))


def test_average_follows_the_formula_for_weights_and_statistics() -> None:
    network = small_network()
    averaged = build_average(network, 0.3)
    expected = {
        name: value.clone().double() for name, value in network.state_dict().items()
    }
    for step in range(8):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn_like(parameter))
        network(torch.randn(2, 1, 4, 4))
        averaged.update_parameters(network)
        keep = min(0.3, (1 + step) / (10 + step))
        for name, value in network.state_dict().items():
            expected[name] = keep * expected[name] + (1 - keep) * value.double()
    found = averaged.module.state_dict()
    assert found.pop("1.num_batches_tracked").item() == 8
    for name, value in found.items():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6)


def test_average_is_a_frozen_copy_in_evaluation_mode() -> None:
    network = small_network().train()
    averaged = build_average(network, 0.9)
    assert network.training
    assert not averaged.module.training
    assert not any(p.requires_grad for p in averaged.module.parameters())
    with torch.no_grad():
        next(network.parameters()).fill_(7.0)
    assert not (next(averaged.module.parameters()) == 7.0).any()


def test_state_restores_weights_and_the_count_of_updates() -> None:
    network = small_network()
    first, second = (
        build_average(network, 0.99),
        build_average(small_network(), 0.99),
    )
    for _ in range(5):
        first.update_parameters(network)
    load_average(second, average_state(first))
    assert average_state(second)["updates"] == 5
    for name, value in first.module.state_dict().items():
        assert torch.equal(value, second.module.state_dict()[name])


def test_a_decay_of_zero_would_be_the_raw_weights() -> None:
    network = small_network()
    averaged = build_average(network, 1e-12)
    with torch.no_grad():
        next(network.parameters()).fill_(3.0)
    averaged.update_parameters(network)
    assert next(averaged.module.parameters()).flatten().tolist() == pytest.approx(
        [3.0, 3.0]
    )
