"""Runs with a given split."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from napari_strata.core.image import AnnotatedImage, Image
from napari_strata.core.spec import find_classes
from napari_strata.data.folds import fold_pairs
from napari_strata.training.plan import TrainingTask, plan_new

Scene = Callable[..., AnnotatedImage]


def test_a_given_split_is_used(scene: Scene, small: dict[str, Any]) -> None:
    pairs = [scene(i) for i in range(4)]
    splits = fold_pairs(pairs, 4, seed=0, classes=find_classes(pairs))
    plans = [
        plan_new(
            TrainingTask("default", pairs, Path("run"), overrides=small, split=split)
        )
        for split in splits
    ]
    for plan, split in zip(plans, splits, strict=True):
        assert plan.training == split.training
        assert plan.validation == split.validation
        assert plan.text == split.text
        record = plan.record()
        assert [row["name"] for row in record["validation"]] == [
            part.name for part in split.validation
        ]
        assert len(record["pairs"]) == 4
    assert len({plan.fingerprint for plan in plans}) == 4
    assert len({plan.spec.model_dump_json() for plan in plans}) == 1


def test_warnings_of_the_split_become_messages(
    scene: Scene, small: dict[str, Any]
) -> None:
    known, labels = scene(0).image, scene(0).labels
    first = Image(np.asarray(known.data)[:1].copy(), "ZYX", name="copy")
    copy = AnnotatedImage(first, first.labels_like(np.asarray(labels.data)[:1]))
    plan = plan_new(
        TrainingTask(
            "default",
            [scene(0), scene(1)],
            Path("run"),
            validation=copy,
            overrides=small,
        )
    )
    texts = [message.text for message in plan.messages if message.level == "warning"]
    assert any(
        "1 of 1 validation planes hold pixels that train as well" in text
        for text in texts
    )
    assert any("2304 labelled pixels in all, too few" in text for text in texts)


def test_by_default_there_are_no_messages_about_the_split(
    scene: Scene, small: dict[str, Any]
) -> None:
    plan = plan_new(
        TrainingTask(
            "default", [scene(i) for i in range(5)], Path("run"), overrides=small
        )
    )
    assert [
        message.text for message in plan.messages if message.level == "warning"
    ] == []


@pytest.mark.parametrize("seed", [0, 1])
def test_the_seed_of_the_recipe_draws_the_split(
    seed: int, scene: Scene, small: dict[str, Any]
) -> None:
    small |= {"training.seed": seed}
    texts = {
        plan_new(TrainingTask("default", scene(0), Path("run"), overrides=small)).text
        for _ in range(2)
    }
    assert len(texts) == 1
