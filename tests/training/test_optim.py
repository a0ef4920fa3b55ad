"""Schedules compared with those of torch, and their state."""

from __future__ import annotations

import io
import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from napari_strata.core.recipe import Plateau, Training
from napari_strata.training.optim import (
    Schedule,
    build_optimizer,
    restore_optimizer,
)

EPOCHS, STEPS = 4, 7


def setup(**training: Any) -> tuple[torch.optim.Optimizer, Schedule]:
    section = Training(epochs=EPOCHS, learning_rate=0.01, **training)
    optimizer = build_optimizer(section, [nn.Parameter(torch.ones(3))], "cpu")
    return optimizer, Schedule(section, optimizer, STEPS)


def rates(schedule: Schedule, steps: int) -> list[float]:
    found = []
    for _ in range(steps):
        found.append(schedule.learning_rate)
        schedule.step_batch()
    return found


def torch_rates(
    optimizer: torch.optim.Optimizer, scheduler: Any, steps: int
) -> list[tuple[float, float]]:
    found = []
    for _ in range(steps):
        group = optimizer.param_groups[0]
        found.append((group["lr"], group["betas"][0]))
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("epochs", [1, 4, 30])
def test_one_cycle_equals_torch_in_rate_and_momentum(epochs: int) -> None:
    optimizer, schedule = setup(schedule="one_cycle")
    schedule.restart(epochs)
    total = epochs * STEPS
    oracle = build_optimizer(Training(), [nn.Parameter(torch.ones(3))], "cpu")
    expected = torch_rates(
        oracle, lr_scheduler.OneCycleLR(oracle, 0.01, total_steps=total + 1), 0
    )
    cycle = lr_scheduler.OneCycleLR(oracle, 0.01, total_steps=total)
    for _ in range(total):
        group = oracle.param_groups[0]
        expected.append((group["lr"], group["betas"][0]))
        oracle.step()
        if cycle.last_epoch < total - 1:
            cycle.step()
    found = []
    for _ in range(total):
        found.append((schedule.learning_rate, optimizer.param_groups[0]["betas"][0]))
        schedule.step_batch()
    assert found == [pytest.approx(pair, rel=1e-9) for pair in expected]
    assert max(rate for rate, _ in found) <= 0.01


def test_cosine_equals_torch() -> None:
    _, schedule = setup(schedule="cosine")
    oracle = build_optimizer(
        Training(learning_rate=0.01), [nn.Parameter(torch.ones(3))], "cpu"
    )
    expected = torch_rates(
        oracle, lr_scheduler.CosineAnnealingLR(oracle, EPOCHS * STEPS), EPOCHS * STEPS
    )
    assert rates(schedule, EPOCHS * STEPS) == pytest.approx(
        [rate for rate, _ in expected], rel=1e-9
    )


def test_constant_schedule() -> None:
    _, schedule = setup(schedule="constant")
    schedule.step_epoch(math.nan)
    assert set(rates(schedule, 2 * EPOCHS * STEPS)) == {0.01}


def test_plateau_equals_torch() -> None:
    _, schedule = setup(
        schedule="plateau", plateau=Plateau(factor=0.3, patience=1, min_rate=2e-4)
    )
    oracle = build_optimizer(
        Training(learning_rate=0.01), [nn.Parameter(torch.ones(3))], "cpu"
    )
    scheduler = lr_scheduler.ReduceLROnPlateau(
        oracle, factor=0.3, patience=1, min_lr=2e-4
    )
    for loss in (
        1.0,
        0.9,
        0.95,
        0.91,
        0.9,
        0.5,
        0.49999,
        0.6,
        0.6,
        0.6,
        math.nan,
        0.6,
        0.6,
        0.6,
        0.6,
        0.6,
    ):
        rates(schedule, STEPS)
        schedule.step_epoch(loss)
        scheduler.step(loss)
        assert schedule.learning_rate == pytest.approx(oracle.param_groups[0]["lr"])
    assert schedule.learning_rate == pytest.approx(2e-4)


@pytest.mark.parametrize("kind", ["constant", "plateau", "cosine", "one_cycle"])
def test_state_continues_the_curve(kind: Any) -> None:
    def curve(schedule: Schedule, epochs: range) -> list[float]:
        found = []
        for epoch in epochs:
            found += rates(schedule, STEPS)
            schedule.step_epoch(1.0 + epoch)
        return found

    section: dict[str, Any] = {"schedule": kind, "plateau": Plateau(patience=0)}
    whole = curve(setup(**section)[1], range(4))
    _, first = setup(**section)
    begun = curve(first, range(2))
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    _, second = setup(**section)
    second.load_state_dict(torch.load(file, weights_only=True))
    assert begun + curve(second, range(2, 4)) == whole


def test_restart_starts_the_curve_again() -> None:
    _, schedule = setup(schedule="one_cycle")
    first = rates(schedule, EPOCHS * STEPS)
    assert schedule.learning_rate == pytest.approx(0.01 / 25 * 1e-4)
    schedule.restart(EPOCHS)
    assert rates(schedule, EPOCHS * STEPS) == first


@pytest.mark.parametrize(
    ("name", "kind"), [("adam", "Adam"), ("adamw", "AdamW"), ("sgd", "SGD")]
)
def test_optimizers_take_the_recipes_numbers(name: Any, kind: str) -> None:
    optimizer, _ = setup(
        optimizer=name, weight_decay=0.02, momentum=0.7, schedule="one_cycle"
    )
    group = optimizer.param_groups[0]
    assert type(optimizer).__name__ == kind
    assert group["weight_decay"] == 0.02
    assert group["fused"] is True
    assert group["lr"] == pytest.approx(0.01 / 25)
    assert (
        group["momentum"] == 0.7 if name == "sgd" else group["betas"] == (0.95, 0.999)
    )


def test_optimizer_on_apple_has_no_fused_kernel_and_takes_a_fused_state() -> None:
    optimizer, _ = setup()
    parameter = optimizer.param_groups[0]["params"][0]
    parameter.grad = torch.ones(3)
    optimizer.step()
    other = build_optimizer(Training(), [nn.Parameter(torch.ones(3))], "mps")
    restore_optimizer(other, optimizer.state_dict())
    assert not other.param_groups[0]["fused"]
    assert torch.equal(
        next(iter(other.state.values()))["exp_avg"],
        next(iter(optimizer.state.values()))["exp_avg"],
    )
