from __future__ import annotations

import pytest
import torch
from torch import nn

from napari_strata.models.device import Precision
from napari_strata.networks.blocks import BatchNorm
from napari_strata.training.recalibration import recalibrate

CPU = torch.device("cpu")


def _batches(count: int = 3, size: int = 8) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        3 + 2 * torch.randn(4, 2, size, size, generator=generator) for _ in range(count)
    ]


def test_statistics_are_the_means_over_the_batches() -> None:
    norm = nn.BatchNorm2d(2)
    norm.running_mean.fill_(99.0)  # type: ignore[union-attr]
    batches = _batches()
    recalibrate(
        nn.Sequential(norm, nn.Dropout(0.9)),
        batches,
        device=CPU,
        precision=Precision("fp32"),
    )
    torch.testing.assert_close(
        norm.running_mean, torch.stack([i.mean((0, 2, 3)) for i in batches]).mean(0)
    )
    torch.testing.assert_close(
        norm.running_var, torch.stack([i.var((0, 2, 3)) for i in batches]).mean(0)
    )
    assert norm.momentum == 0.1
    assert not norm.training


def test_nothing_else_changes_and_it_repeats() -> None:
    network = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Dropout(0.5), nn.Conv2d(3, 2, 1)
    )
    before = {name: value.clone() for name, value in network.named_parameters()}
    recalibrate(network, _batches(), device=CPU, precision=Precision("fp32"))
    once = [buffer.clone() for buffer in network.buffers()]
    recalibrate(network, _batches(), device=CPU, precision=Precision("fp32"))
    assert all(torch.equal(a, b) for a, b in zip(once, network.buffers(), strict=True))
    assert all(
        torch.equal(before[name], value) for name, value in network.named_parameters()
    )


def test_statistics_that_no_batch_gives_are_unchanged() -> None:
    norm = BatchNorm(2)
    norm.running_mean.fill_(7.0)  # type: ignore[union-attr]
    single = [torch.ones(1, 2, 1, 1)]
    recalibrate(norm, single, device=CPU, precision=Precision("fp32"))
    assert norm.running_mean is not None
    assert norm.running_mean.tolist() == [7.0, 7.0]


def test_a_network_without_batch_norm_is_not_run() -> None:
    recalibrate(nn.GroupNorm(1, 2), iter(()), device=CPU, precision=Precision("fp32"))


def test_statistics_of_a_frozen_part_are_unchanged() -> None:
    network = nn.Sequential(nn.BatchNorm2d(1), nn.BatchNorm2d(1))
    images = torch.randn(4, 1, 8, 8) + 5
    recalibrate(
        network,
        [images],
        device=CPU,
        precision=Precision("fp32"),
        frozen=network[0],
    )
    assert network[0].running_mean.item() == 0
    assert network[1].running_mean.item() == pytest.approx(
        images.mean().item(), rel=1e-4
    )
    assert not network[0].training
