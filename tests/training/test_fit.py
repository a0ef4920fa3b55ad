"""A pixel classifier trains at once, and leaves a run like any other."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import napari_strata as ns
from napari_strata.core.errors import RecipeError
from napari_strata.core.events import (
    BatchEnd,
    EpochEnd,
    Event,
    Message,
    TrainingEnd,
    TrainingStarted,
    to_json,
)
from napari_strata.core.geometry import octave_reach
from napari_strata.core.image import AnnotatedImage
from napari_strata.core.network_sections import LEVELS, Pixels
from napari_strata.core.runs import RunFolder

QUICK: dict[str, Any] = {"network.trees": 20, "network.depth": 6}

Scene = Callable[..., AnnotatedImage]


def texts(events: list[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, Message)]


def of(kind: type, events: list[Event]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


def test_strokes_train_and_are_measured_in_turn(
    strokes: Scene, scene: Scene, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    events = list(
        ns.iter_train("instant", strokes(), unlabelled=[0], out=run, device="cpu")
    )
    (started,) = of(TrainingStarted, events)
    (end,) = of(EpochEnd, events)
    steps = of(BatchEnd, events)
    assert len(steps) == started.batches
    assert started.validation_images == ()
    assert "whole strokes" in started.validation_text
    painted = int((strokes().labels.read() > 0).sum())
    assert end.stroke_pixels == painted
    assert f"of {painted:,} held-out stroke pixels" in end.agreement
    assert 0.8 < end.pixel_accuracy <= 1
    assert math.isnan(end.mean_iou)  # strokes keep away from edges

    model = ns.Model.load(run)
    assert started.parameters == sum(w.numel() for w in model.weights.values())
    labels = ns.predict(model, strokes().image, device="cpu").read()[0]
    truth = scene(0, planes=3, size=96).labels.read()[0]
    assert (labels == truth + 1).mean() > 0.9


def test_its_run_is_that_of_any_training(strokes: Scene, tmp_path: Path) -> None:
    run = tmp_path / "run"
    events = list(
        ns.iter_train(
            "instant", strokes(), unlabelled=[0], out=run, overrides=QUICK, device="cpu"
        )
    )
    folder = RunFolder(run)
    assert list(map(to_json, folder.events())) == list(map(to_json, events))
    assert len(folder.epoch_rows()) == 1
    record = folder.data()
    model = ns.Model.load(run)
    assert record["spec"] == json.loads(model.spec.model_dump_json())
    assert record["fingerprint"] == model.fingerprint
    assert [row["name"] for row in record["training"]] == ["scene 0 Z=0", "scene 0 Z=1"]
    assert record["validation"] == []
    assert list(map(to_json, model.history)) == list(map(to_json, of(EpochEnd, events)))


def test_dense_labels_are_validated_like_those_of_a_network(
    scene: Scene, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    events = list(
        ns.iter_train(
            "instant", scene(size=64, planes=5), out=run, overrides=QUICK, device="cpu"
        )
    )
    (end,) = of(EpochEnd, events)
    assert end.mean_iou > 0.8
    assert end.best_iou
    assert RunFolder(run).preview_path(1).is_file()
    scores = RunFolder(run).validation.scores()
    assert scores["mean_iou"] == pytest.approx(end.mean_iou)
    model = ns.Model.load(run)
    assert model.calibration is not None
    assert scores["model"] == model.digest
    assert of(TrainingEnd, events)[0].mean_iou == end.mean_iou


def test_the_reach_is_chosen_and_the_halo_follows(
    strokes: Scene, tmp_path: Path
) -> None:
    model = ns.train("instant", strokes(), unlabelled=[0], out=tmp_path / "a")
    assert isinstance(model.spec.network, Pixels)
    levels = model.spec.network.levels
    assert levels in LEVELS
    reach = octave_reach(levels) + 2 * model.spec.network.filter_radius
    assert reach <= model.spec.halo < reach + model.spec.stride
    # The recipe says what was asked for, the spec what was found.
    assert model.recipe.network.levels is None
    fixed = ns.train(
        "instant",
        strokes(),
        unlabelled=[0],
        out=tmp_path / "b",
        overrides=QUICK | {"network.levels": 4},
    )
    assert fixed.spec.network.levels == 4


@pytest.mark.parametrize(("asked", "found"), [(None, 2), (3, 3)])
def test_windows_up_to_the_edges_make_the_filter_small(
    strokes: Scene, scene: Scene, tmp_path: Path, asked: int | None, found: int
) -> None:
    pair = strokes()
    labels = pair.labels.read()[0].copy()
    truth = scene(0, planes=3, size=96).labels.read()[0]
    is_edge = truth[2, 1:] != truth[2, :-1]
    row, column = np.argwhere(is_edge[5:-5, 5:-5])[0]  # window from there
    window = np.s_[2, row : row + 11, column : column + 11]
    labels[window] = truth[window] + 1
    painted = AnnotatedImage(pair.image, pair.image.labels_like(labels))
    events = list(
        ns.iter_train(
            "instant",
            painted,
            unlabelled=[0],
            out=tmp_path / "run",
            overrides=QUICK | {"network.levels": 2, "network.filter_radius": asked},
            device="cpu",
        )
    )
    model = ns.Model.load(tmp_path / "run")
    assert model.spec.network.filter_radius == found
    assert model.recipe.network.filter_radius == asked
    said = [text for text in texts(events) if "1 window is painted" in text]
    assert bool(said) == (asked is None)


def test_resume_leaves_a_complete_run_alone_and_refits_on_new_labels(
    strokes: Scene, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    options: dict[str, Any] = {"unlabelled": [0], "out": run, "device": "cpu"}
    first = ns.train("instant", strokes(), overrides=QUICK, **options)
    events = list(ns.iter_train("instant", strokes(), resume=True, **options))
    assert any("the run is complete" in text for text in texts(events))
    assert not of(BatchEnd, events)
    assert ns.Model.load(run).digest == first.digest

    pair = strokes()
    more = pair.labels.read()[0].copy()
    more[0, 60:63] = 1
    changed = AnnotatedImage(pair.image, pair.image.labels_like(more))
    events = list(ns.iter_train("instant", changed, resume=True, **options))
    assert any("the training data changed" in text for text in texts(events))
    second = ns.Model.load(run)
    assert second.digest != first.digest
    assert second.fingerprint != first.fingerprint
    assert len(second.history) == 1


def test_a_fit_that_was_stopped_begins_anew(strokes: Scene, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options: dict[str, Any] = {"unlabelled": [0], "out": run, "device": "cpu"}
    with closing(
        ns.iter_train("instant", strokes(), overrides=QUICK, **options)
    ) as events:
        for event in events:
            if isinstance(event, BatchEnd):
                break
    assert RunFolder(run).history().ended.reason == "stopped"
    assert not RunFolder(run).has_model
    resumed = ns.train("instant", strokes(), resume=True, **options)
    unbroken = ns.train(
        "instant",
        strokes(),
        overrides=QUICK,
        unlabelled=[0],
        out=tmp_path / "b",
        device="cpu",
    )
    assert resumed.digest == unbroken.digest


def test_one_stroke_of_each_class_cannot_be_measured(
    scene: Scene, tmp_path: Path
) -> None:
    pair = scene(0, planes=1, size=96)
    truth = pair.labels.read()[0]
    painted = np.zeros_like(truth)
    for k in (0, 1):
        y, x = np.argwhere(truth[0] == k)[40]
        painted[0, y, x : x + 3] = k + 1
    few = AnnotatedImage(pair.image, pair.image.labels_like(painted))
    events = list(
        ns.iter_train(
            "instant", few, unlabelled=[0], out=tmp_path / "run", overrides=QUICK
        )
    )
    assert any("paint a second one" in text for text in texts(events))
    (end,) = of(EpochEnd, events)
    assert math.isnan(end.pixel_accuracy)
    assert ns.Model.load(tmp_path / "run").spec.network.levels == LEVELS[0]


def test_at_most_so_many_pixels_train(strokes: Scene, tmp_path: Path) -> None:
    few = ns.train(
        "instant",
        strokes(),
        unlabelled=[0],
        out=tmp_path / "a",
        overrides=QUICK | {"network.pixels": 50},
    )
    assert few.history[0].train_loss >= 0


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        ({"patches.resize": 64}, "takes images as they are"),
        ({"training.start": "/model"}, "fitted anew in seconds"),
        ({"patches.depth": 4}, "sees single planes"),
    ],
)
def test_keys_without_a_meaning_are_refused(
    overrides: dict[str, Any], text: str, strokes: Scene, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=text):
        ns.train("instant", strokes(), out=tmp_path / "run", overrides=overrides)
    assert not (tmp_path / "run").exists()


def test_neighbouring_slices_are_features_too(strokes: Scene, tmp_path: Path) -> None:
    model = ns.train(
        "instant",
        strokes(),
        unlabelled=[0],
        out=tmp_path / "run",
        overrides=QUICK | {"patches.neighbours": 1, "network.levels": 2},
    )
    assert model.spec.in_channels == 3
    labels = ns.predict(model, strokes().image, device="cpu").read()
    assert set(np.unique(labels)) <= {1, 2}


def test_errors_of_blocks_are_stored(scene: Scene, tmp_path: Path) -> None:
    list(
        ns.iter_train(
            "trees",
            scene(0),
            validation=scene(1, planes=2),
            out=tmp_path / "run",
            overrides=QUICK,
            device="cpu",
        )
    )
    model = ns.Model.load(tmp_path / "run")
    assert model.residuals is not None
    blocks = model.residuals.regions["all"]
    truth = scene(1, planes=2).labels.read()[0]
    assert blocks.true[..., 1].sum() == (truth == 1).sum()
    labels = ns.predict(model, scene(1, planes=2).image, device="cpu").read()[0]
    assert (
        blocks.predicted[..., 1].sum(axis=1).tolist()
        == labels.sum(axis=(1, 2), dtype=int).tolist()
    )
