"""Strokes keep away from edges: their IoU misleads, and is shown nowhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import napari_strata as ns
from napari_strata.cli import console
from napari_strata.core.events import (
    STROKES_ARE_EASY,
    EpochEnd,
    Event,
    describe_agreement,
)
from napari_strata.core.image import AnnotatedImage, Image
from napari_strata.core.recipes import load_recipe
from napari_strata.report.write import write_page
from napari_strata.studies.crossval_results import CrossvalResult
from napari_strata.training.plan import TrainingTask, plan_new

Build = Callable[..., AnnotatedImage]


@pytest.fixture
def options(small: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    overrides = small | {"training.epochs": 1}
    return {"out": tmp_path / "run", "overrides": overrides, "device": "cpu"}


def _train_on_strokes(strokes: Build, options: dict[str, Any]) -> list[Event]:
    return list(
        ns.iter_train(
            "default",
            [strokes(0)],
            validation=[strokes(1)],
            unlabelled=[0],
            **options,
        )
    )


def test_a_network_that_was_validated_on_strokes_has_no_iou(
    strokes: Build,
    options: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    events = _train_on_strokes(strokes, options)
    (end,) = [event for event in events if isinstance(event, EpochEnd)]
    painted = int((strokes(1).labels.read() > 0).sum())
    assert end.agreement == describe_agreement(end.pixel_accuracy, painted)
    console.show(events)
    printed = capsys.readouterr().out
    assert printed.count(end.agreement) == 2  # after the epoch, and at the end
    assert printed.count(STROKES_ARE_EASY) == 1
    assert "IoU" not in printed
    page = write_page(options["out"]).read_text(encoding="utf-8")
    assert f"It {end.agreement}." in page
    assert "IoU</th>" not in page
    assert "mean IoU" not in page


def test_a_network_that_was_validated_on_areas_has_an_iou(
    scene: Build, options: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    events = list(ns.iter_train("default", scene(), **options))
    (end,) = [event for event in events if isinstance(event, EpochEnd)]
    assert end.agreement == ""
    assert end.reported_iou == end.mean_iou
    console.show(events)
    assert "mean IoU" in capsys.readouterr().out


def test_a_cross_validation_over_strokes_reports_agreement(
    strokes: Build, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "folds"
    small = {"network.trees": 10, "network.depth": 4, "network.levels": 2}
    events = list(
        ns.iter_crossval(
            "instant",
            [strokes(0), strokes(1)],
            folds=2,
            unlabelled=[0],
            out=out,
            overrides=small,
            device="cpu",
        )
    )
    console.show(events)
    result = CrossvalResult.load(out)
    painted = sum(int((strokes(seed).labels.read() > 0).sum()) for seed in (0, 1))
    assert f"of {painted:,} held-out stroke pixels" in result.agreement
    for text in (capsys.readouterr().out, result.table()):
        assert result.agreement in text
        assert "IoU" not in text
    page = write_page(out).read_text(encoding="utf-8")
    assert f"Together it {result.agreement}." in page
    assert "mean IoU" not in page


def _plan(recipe: str, pair: AnnotatedImage, *, unlabelled: tuple[int, ...] = ()):
    job = TrainingTask(load_recipe(recipe), [pair], Path(), unlabelled=unlabelled)
    return plan_new(job)


def test_all_pixels_is_less_than_100_percent_where_one_is_wrong() -> None:
    assert describe_agreement(0.999, 1000) == (
        "agrees with 99 % of 1,000 held-out stroke pixels"
    )
    assert describe_agreement(1.0, 0) == ""


def test_strokes_suggest_trees(strokes: Build, scene: Build) -> None:
    plan = _plan("default", strokes(), unlabelled=(0,))
    assert plan.suggestion is not None
    assert plan.suggestion.recipe == "instant"
    assert plan.suggestion.text in [message.text for message in plan.messages]
    assert _plan("instant", strokes(), unlabelled=(0,)).suggestion is None
    assert _plan("default", scene(planes=3)).suggestion is None


@pytest.mark.parametrize(
    ("scale", "unit", "step", "suggested"),
    [
        ((2.5, 2.5, 2.5), "um", 1, "unet-ct"),
        ((2.5, 2.5, 2.5), "um", 4, "unet-ct"),
        ((1.0, 0.2, 0.2), "um", 1, "unet3d"),  # a confocal stack
        ((1.0, 1.0, 1.0), "pixel", 1, "unet3d"),  # the size of a voxel is not known
        ((1.0, 0.2, 0.2), "um", 4, None),  # every fourth plane is labelled
    ],
)
def test_a_volume_suggests_a_recipe_for_volumes(
    scene: Build,
    scale: tuple[float, ...],
    unit: str,
    step: int,
    suggested: str | None,
) -> None:
    dense = scene(planes=9)
    image = Image(dense.image.read()[0], "ZYX", scale=scale, units=(unit,) * 3)
    labels = np.zeros_like(dense.labels.read()[0])
    labels[::step] = 1 + dense.labels.read()[0][::step]
    pair = AnnotatedImage(image, image.labels_like(labels))
    found = _plan("default", pair, unlabelled=(0,)).suggestion
    assert (found.recipe if found else None) == suggested
