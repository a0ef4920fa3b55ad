"""Progress: the best epochs, early stopping and the table; and seeds."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from napari_strata.core.events import EpochEnd
from napari_strata.core.recipe import EarlyStopping
from napari_strata.training.learner import Progress, derived_seed, seeded


def progress_of(scores: list[tuple[float, float]], *, since: int = 0) -> Progress:
    """Epochs with these mean IoUs and validation losses."""
    progress = Progress(since=since)
    for epoch, (iou, loss) in enumerate(scores, start=1):
        best_iou, best_loss = progress.is_best(iou=iou, loss=loss)
        end = EpochEnd(
            epoch=epoch,
            epochs=9,
            train_loss=1.0,
            validation_loss=loss,
            mean_iou=iou,
            pixel_accuracy=iou,
            class_iou=(iou, math.nan),
            learning_rate=0.1,
            seconds=2.0,
            best_iou=best_iou,
            best_loss=best_loss,
            weights="raw",
            mean_iou_in_truth=iou,
        )
        progress.add(end, {"train_ce": 0.5}, names=("ground", "disc"))
    return progress


SCORES = [(0.5, 1.0), (0.7, 1.2), (0.6, 0.9), (0.7, 0.95)]


def test_the_best_epoch_is_the_first_of_the_highest() -> None:
    progress = progress_of(SCORES)
    assert [end.best_iou for end in progress.history] == [True, True, False, False]
    assert [end.best_loss for end in progress.history] == [True, False, True, False]
    assert progress.best is progress.history[1]
    assert progress.epoch == 4
    assert Progress().best is None
    assert Progress().epoch == 0


def test_a_stray_pixel_of_an_absent_class_does_not_decide() -> None:
    """The second epoch is better on the classes in the truth."""
    progress = progress_of([(0.6, 1.0)])
    stray = replace(progress.history[0], epoch=2, mean_iou=0.45, mean_iou_in_truth=0.9)
    stray = replace(stray, classes_in_truth=1)
    best_iou, _ = progress.is_best(iou=stray.comparable_iou, loss=1.0)
    assert best_iou
    progress.add(replace(stray, best_iou=True), {}, names=("ground", "disc"))
    assert progress.is_best(iou=0.8, loss=1.0) == (False, False)


def test_epochs_of_an_earlier_version_are_compared_by_their_own_mean() -> None:
    """Their mean over the classes in the truth is not known, and is never smaller."""
    progress = progress_of([(0.5, 1.0)])
    assert not progress.history[0].classes_in_truth
    assert not progress.is_best(iou=0.6, loss=2.0, earlier_iou=0.45)[0]
    assert progress.is_best(iou=0.7, loss=2.0, earlier_iou=0.55)[0]


def test_epochs_without_a_score_are_never_best() -> None:
    progress = progress_of([(math.nan, math.nan), (math.nan, math.nan)])
    assert not any(end.best_iou or end.best_loss for end in progress.history)
    assert progress.best is progress.history[-1]
    assert not progress.is_stuck(EarlyStopping(patience=1))


@pytest.mark.parametrize(
    ("monitor", "patience", "since", "stuck"),
    [
        ("iou", 2, 0, True),
        ("iou", 3, 0, False),
        ("loss", 1, 0, True),
        ("loss", 2, 0, False),
        ("iou", 2, 3, False),
        ("iou", 2, 2, True),
    ],
)
def test_early_stopping_counts_epochs_without_improvement(
    monitor: str, patience: int, since: int, stuck: bool
) -> None:
    section = EarlyStopping.model_validate({"monitor": monitor, "patience": patience})
    assert progress_of(SCORES, since=since).is_stuck(section) is stuck
    assert not progress_of(SCORES).is_stuck(None)


def test_table_has_a_row_for_each_epoch_and_empty_cells_for_nan() -> None:
    lines = progress_of([(0.5, math.nan)]).csv().splitlines()
    row = dict(zip(lines[0].split(","), lines[1].split(","), strict=True))
    assert row["epoch"] == "1"
    assert row["mean_iou"] == row["iou ground"] == "0.5"
    assert row["validation_loss"] == row["iou disc"] == ""
    assert row["train_ce"] == "0.5"


def test_state_is_plain_and_is_restored() -> None:
    progress = progress_of([*SCORES, (math.nan, 2.0)], since=2)
    again = Progress.from_state(progress.state_dict())
    assert again.csv() == progress.csv()
    assert again.history[:4] == progress.history[:4]
    assert math.isnan(again.history[4].mean_iou)
    assert again.since == 2


def test_seeds_differ_with_every_number_of_the_key() -> None:
    seeds = {
        derived_seed(*key)
        for key in ((0,), (1,), (0, 1), (0, 1, 1), (1, 0), (0, 2, 1), (0, 1, 2))
    }
    assert len(seeds) == 7
    with seeded(torch.device("cpu"), 3, 1):
        first = torch.rand(2)
    with seeded(torch.device("cpu"), 3, 1):
        assert torch.equal(torch.rand(2), first)
