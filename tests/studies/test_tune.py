"""Search: grids, ranking, training on all data, continuing after a stop, refused input."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from napari_strata.core.errors import (
    LabelError,
    RecipeError,
    RunError,
    StrataError,
    TrainingError,
)
from napari_strata.core.events import (
    EpochEnd,
    Event,
    FoldEnd,
    Message,
    TrainingStarted,
    TrialEnd,
    TrialStarted,
    TuneEnd,
)
from napari_strata.core.image import AnnotatedImage
from napari_strata.core.recipe import Recipe
from napari_strata.core.recipes import load_recipe
from napari_strata.core.runs import RunFolder
from napari_strata.models.model import Model
from napari_strata.studies.crossval import crossval
from napari_strata.studies.grid import build_trials, parse_grid
from napari_strata.studies.trials import Score, Trial, TuneResult, rank_trials
from napari_strata.studies.tune import iter_tune, tune
from napari_strata.training.learner import Learner

Scene = Callable[..., AnnotatedImage]
GRID = {"training.learning_rate": [1e-5, 1e-2], "network.widths": [[4, 8], [4, 4]]}
NAMES = [
    f"learning_rate={rate},widths={widths}"
    for rate in ("1e-05", "0.01")
    for widths in ("4-8", "4-4")
]


@pytest.fixture
def options(small: dict[str, Any]) -> dict[str, Any]:
    """Options that all searches of these tests share."""
    small |= {"training.epochs": 2, "patches.per_epoch": 8, "training.recalibration": 0}
    return {"folds": 2, "overrides": small, "device": "cpu"}


@pytest.fixture
def pairs(scene: Scene) -> list[AnnotatedImage]:
    return [scene(i, planes=1) for i in range(3)]


def stop_after(events: Iterator[Event], kind: type[Event], count: int) -> None:
    seen = 0
    for event in events:
        seen += isinstance(event, kind)
        if seen == count:
            break
    events.close()  # type: ignore[attr-defined]


def scores(result: TuneResult) -> dict[str, list[float]]:
    return {
        trial.name: [
            one.mean_iou for _, one in sorted(result.scores[trial.name].items())
        ]
        for trial in result.trials
    }


@pytest.mark.parametrize(
    ("items", "grid"),
    [
        (
            ["training.learning_rate=1e-2,1e-3"],
            {"training.learning_rate": [0.01, 0.001]},
        ),
        (["network.widths=[16,32],[32,64]"], {"network.widths": [[16, 32], [32, 64]]}),
        (["recipe=unet-ct,unet-classic"], {"recipe": ["unet-ct", "unet-classic"]}),
        (
            ["training.loss={ce: 1},{ce: 1, dice: 1}"],
            {"training.loss": [{"ce": 1}, {"ce": 1, "dice": 1}]},
        ),
        (
            ["training.clip_norm=null, 1", "a.b=true"],
            {"training.clip_norm": [None, 1], "a.b": [True]},
        ),
    ],
)
def test_grids_are_parsed(items: list[str], grid: dict[str, Any]) -> None:
    assert parse_grid(items) == grid


@pytest.mark.parametrize(
    ("items", "words"),
    [
        (["training.epochs"], "KEY=V1,V2"),
        (["=1,2"], "KEY=V1,V2"),
        (["training.epochs="], "KEY=V1,V2"),
        (["training.epochs=1", "training.epochs=2"], "occurs twice"),
        (["training.epochs=1,1"], "occurs twice"),
        (["training.epochs=[1"], "not valid YAML"),
    ],
)
def test_invalid_grids_are_refused(items: list[str], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        parse_grid(items)


def test_trials_are_all_combinations_with_readable_names() -> None:
    trials = build_trials("unet-ct", GRID)
    assert [trial.name for trial in trials] == NAMES
    assert [trial.recipe.training.learning_rate for trial in trials] == [
        1e-5,
        1e-5,
        1e-2,
        1e-2,
    ]
    assert trials[1].recipe.network.widths == (4, 4)  # type: ignore[union-attr]
    assert trials[1].recipe.patches == load_recipe("unet-ct").patches


def test_recipes_and_networks_are_keys_like_any_other() -> None:
    trials = build_trials(
        "default", {"recipe": ["unet-ct", "default"], "training.seed": [1, 2]}
    )
    assert trials[0].name == "recipe=unet-ct,seed=1"
    assert [trial.recipe.network.kind for trial in trials] == [
        "unet",
        "unet",
        "smp",
        "smp",
    ]
    trials = build_trials(
        "default",
        {"network.encoder": ["resnet18", "vgg11"]},
        overrides={"training.epochs": 3},
    )
    assert [trial.recipe.network.encoder for trial in trials] == ["resnet18", "vgg11"]  # type: ignore[union-attr]
    assert {trial.recipe.training.epochs for trial in trials} == {3}


def test_names_differ_where_short_names_are_equal() -> None:
    names = [
        t.name
        for t in build_trials(
            "default", {"training.loss": [{"ce": 1}, {"ce": 1, "dice": 1}]}
        )
    ]
    assert names == ["loss=ce-1", "loss=ce-1+dice-1"]
    keys = {"training.plateau.patience": [1], "training.early_stopping.patience": [2]}
    assert (
        build_trials("default", keys)[0].name
        == "training.plateau.patience=1,training.early_stopping.patience=2"
    )
    long = build_trials(
        "default",
        {"description": ["a" * 300 + "/b c", "a" * 300 + "/b_d", "x" * 200, "x" * 201]},
    )
    assert len({trial.name for trial in long}) == 4
    assert max(len(trial.name) for trial in long) <= 100


def test_the_best_comes_first_is_written_and_trained_on_all_data(
    tmp_path: Path, pairs: list[AnnotatedImage], options: dict[str, Any]
) -> None:
    events = list(iter_tune("default", pairs, GRID, out=tmp_path / "out", **options))
    result = TuneResult.load(tmp_path / "out")
    assert {trial.name for trial in result.trials} == set(NAMES)
    means = [values[0] for values in scores(result).values()]
    assert means == sorted(means, reverse=True)
    assert result.best.name.startswith("learning_rate=0.01")
    alone = crossval(
        "default",
        pairs,
        out=tmp_path / "alone",
        folds=2,
        overrides=options["overrides"] | dict(result.best.values),
        device="cpu",
    )
    assert (alone.mean_iou, alone.mean_iou_std) == (
        result.scores[result.best.name][2].mean_iou,
        result.scores[result.best.name][2].mean_iou_std,
    )
    assert load_recipe(tmp_path / "out" / "best.yaml") == result.recipe
    final = Model.load(tmp_path / "out" / "final")
    assert result.model == tmp_path / "out" / "final" / "model.safetensors"
    assert final.recipe == result.recipe.with_overrides({"training.validation": 0.0})
    record = RunFolder.open(tmp_path / "out" / "final").read_json("data.json")
    assert len(record["training"]) == 3
    assert record["validation"] == []
    (end,) = [event for event in events if isinstance(event, TuneEnd)]
    assert (end.best, end.mean_iou, end.model) == (
        result.best.name,
        means[0],
        str(result.model),
    )
    assert [e.name for e in events if isinstance(e, TrialEnd)] == NAMES


def test_the_tables(
    tmp_path: Path, pairs: list[AnnotatedImage], options: dict[str, Any]
) -> None:
    options |= {"retrain": False, "folds": 1}
    result = tune(
        "default", pairs, {"training.seed": [0, 1]}, out=tmp_path / "out", **options
    )
    assert not (tmp_path / "out" / "final").exists()
    assert result.model is None
    rows = list(
        csv.DictReader((tmp_path / "out" / "trials.csv").read_text().splitlines())
    )
    assert [row["rank"] for row in rows] == ["1", "2"]
    assert [row["trial"] for row in rows] == [trial.name for trial in result.trials]
    assert {row["training.seed"] for row in rows} == {"0", "1"}
    assert all(
        row["state"] == "finished"
        and row["epochs"] == "2"
        and row["mean_iou_std"] == ""
        for row in rows
    )
    best = result.scores[result.best.name][2]
    assert float(rows[0]["iou class 1"]) == pytest.approx(best.class_iou[1], abs=1e-6)
    assert float(rows[0]["seconds"]) == pytest.approx(best.seconds, abs=0.06)
    lines = result.table().splitlines()
    assert lines[0].split() == [
        "trial",
        "rank",
        "mean",
        "IoU",
        "class",
        "0",
        "class",
        "1",
        "seconds",
        "state",
    ]
    assert lines[1].split()[:3] == [result.best.name, "1", f"{best.mean_iou:.3f}"]
    raw = json.loads((tmp_path / "out" / "trials.json").read_text())
    assert [row["rank"] for row in raw["trials"]] == [1, 2]
    assert raw["trials"][0]["epochs"]["2"]["mean_iou"] == best.mean_iou


@pytest.mark.parametrize(
    ("kind", "count"),
    [(TrialStarted, 1), (EpochEnd, 3), (FoldEnd, 3), (TrialEnd, 2), (EpochEnd, 9)],
)
def test_after_a_stop_the_same_call_continues(
    tmp_path: Path,
    pairs: list[AnnotatedImage],
    options: dict[str, Any],
    kind: type[Event],
    count: int,
) -> None:
    grid = {"training.seed": [0, 1]}
    stop_after(
        iter_tune("default", pairs, grid, out=tmp_path / "cut", **options), kind, count
    )
    TuneResult.load(tmp_path / "cut")  # valid at any moment
    events = list(iter_tune("default", pairs, grid, out=tmp_path / "cut", **options))
    epochs = len([event for event in events if isinstance(event, EpochEnd)])
    whole = tune("default", pairs, grid, out=tmp_path / "whole", **options)
    cut = TuneResult.load(tmp_path / "cut")
    assert scores(cut) == scores(whole)
    assert (
        Model.load(tmp_path / "cut" / "final").digest
        == Model.load(tmp_path / "whole" / "final").digest
    )
    assert epochs <= 10 - (count if kind is EpochEnd else 0)
    again = list(iter_tune("default", pairs, grid, out=tmp_path / "cut", **options))
    assert not [
        event for event in again if isinstance(event, (TrainingStarted, EpochEnd))
    ]


def test_a_larger_grid_trains_only_what_is_new(
    tmp_path: Path, pairs: list[AnnotatedImage], options: dict[str, Any]
) -> None:
    options |= {"retrain": False, "folds": 1}
    tune("default", pairs, {"training.seed": [0, 1]}, out=tmp_path / "out", **options)
    events = list(
        iter_tune(
            "default",
            pairs,
            {"training.seed": [1, 0, 2]},
            out=tmp_path / "out",
            **options,
        )
    )
    started = [
        Path(event.run).parent.name
        for event in events
        if isinstance(event, TrainingStarted)
    ]
    assert started == ["seed=2"]
    assert len(TuneResult.load(tmp_path / "out").trials) == 3


def test_successive_halving_continues_with_the_best(
    tmp_path: Path, pairs: list[AnnotatedImage], options: dict[str, Any]
) -> None:
    options["overrides"] |= {"training.epochs": 4}
    options |= {"halving": 2, "retrain": False, "folds": 1}
    events = list(iter_tune("default", pairs, GRID, out=tmp_path / "out", **options))
    (plan,) = [e.text for e in events if isinstance(e, Message) and "halving" in e.text]
    assert plan.endswith(
        ": train all 4 to epoch 1, the best 2 to epoch 2, the best to epoch 4"
    )
    started = [
        (event.name, event.epochs)
        for event in events
        if isinstance(event, TrialStarted)
    ]
    ends = [
        (event.name, event.mean_iou) for event in events if isinstance(event, TrialEnd)
    ]
    assert started[:4] == [(name, 1) for name in NAMES]
    first = sorted(ends[:4], key=lambda end: -end[1])
    assert started[4:6] == [(name, 2) for name, _ in first[:2]]
    second = sorted(ends[4:6], key=lambda end: -end[1])
    assert started[6:] == [(second[0][0], 4)]
    result = TuneResult.load(tmp_path / "out")
    assert result.best.name == second[0][0]
    assert [result.state(trial) for trial in result.trials] == [
        "finished",
        "given up after epoch 2",
        "given up after epoch 1",
        "given up after epoch 1",
    ]
    for trial in result.trials:
        folder = RunFolder.open(tmp_path / "out" / "trials" / trial.name / "fold_1")
        trained = [
            event.epoch for event in folder.events() if isinstance(event, EpochEnd)
        ]
        assert trained == list(range(1, max(result.scores[trial.name]) + 1))
    again = list(iter_tune("default", pairs, GRID, out=tmp_path / "out", **options))
    assert not [
        event for event in again if isinstance(event, (TrainingStarted, EpochEnd))
    ]
    assert [(e.name, e.epochs) for e in again if isinstance(e, TrialStarted)] == started
    with pytest.raises(RunError, match="another --halving"):
        list(
            iter_tune(
                "default",
                pairs,
                GRID,
                out=tmp_path / "out",
                **(options | {"halving": None}),
            )
        )


def test_halving_stopped_in_its_second_round_continues_to_the_same_result(
    tmp_path: Path, pairs: list[AnnotatedImage], options: dict[str, Any]
) -> None:
    options["overrides"] |= {"training.epochs": 4}
    options |= {"halving": 2, "retrain": False, "folds": 1}
    whole = tune("default", pairs, GRID, out=tmp_path / "whole", **options)
    stop_after(
        iter_tune("default", pairs, GRID, out=tmp_path / "cut", **options), EpochEnd, 5
    )
    assert scores(
        tune("default", pairs, GRID, out=tmp_path / "cut", **options)
    ) == scores(whole)


def test_a_failed_trial_is_reported_and_the_search_continues(
    tmp_path: Path,
    pairs: list[AnnotatedImage],
    options: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    step = Learner.step

    def diverge(self: Learner, batch: Any, **where: Any) -> Any:
        if self.section.seed != 1:
            raise TrainingError("the loss is not a finite number")
        return step(self, batch, **where)

    options |= {"retrain": False}
    with monkeypatch.context() as patch:
        patch.setattr(Learner, "step", diverge)
        result = tune(
            "default", pairs, {"training.seed": [0, 1]}, out=tmp_path / "out", **options
        )
        assert [trial.name for trial in result.trials] == ["seed=1", "seed=0"]
        assert (
            result.state(result.trials[1]) == "failed: the loss is not a finite number"
        )
        assert "failed: the loss" in result.csv()
        with pytest.raises(
            TrainingError,
            match="none of 1 trials has a score; reason of the first: the loss is not",
        ):
            tune(
                "default",
                pairs,
                {"training.seed": [3]},
                out=tmp_path / "other",
                **options,
            )
    mended = tune(
        "default", pairs, {"training.seed": [0, 1]}, out=tmp_path / "out", **options
    )
    assert {mended.state(trial) for trial in mended.trials} == {"finished"}


def test_early_stopping_gives_the_epochs_of_the_last_training(
    tmp_path: Path, pairs: list[AnnotatedImage], options: dict[str, Any]
) -> None:
    options["overrides"] |= {
        "training.early_stopping": {"patience": 1, "monitor": "loss"},
        "training.epochs": 3,
    }
    events = list(
        iter_tune(
            "default",
            pairs,
            {"training.learning_rate": [0.3]},
            out=tmp_path / "out",
            **options,
        )
    )
    folds = json.loads(
        next((tmp_path / "out" / "trials").glob("*/crossval.json")).read_text()
    )["scores"]
    epochs = max(1, round(sum(fold["best_epoch"] for fold in folds) / len(folds)))
    assert len(Model.load(tmp_path / "out" / "final").history) == epochs
    assert any(
        f"{epochs} epochs, the mean of the folds' best" in e.text
        for e in events
        if isinstance(e, Message)
    )


def test_bad_input_is_refused_before_anything_is_written(
    tmp_path: Path, pairs: list[AnnotatedImage], options: dict[str, Any]
) -> None:
    (tmp_path / "file").write_text("x")
    cases: list[tuple[type[StrataError], dict[str, Any], str]] = [
        (
            RecipeError,
            {"grid": {"training.learning_rat": [1]}},
            "did you mean 'learning_rate'",
        ),
        (
            RecipeError,
            {"grid": {"training.learning_rate": [0.1, -1]}},
            "learning_rate=-1: .*greater than 0",
        ),
        (
            RecipeError,
            {"grid": {"recipe": ["unet-ct", "unet-cd"]}},
            "did you mean 'unet-ct'",
        ),
        (
            RecipeError,
            {"grid": {"network.encoder": ["resnet18"]}},
            "network.kind atrous_unet and smp",
        ),
        (
            RecipeError,
            {
                "grid": {"network.encoder": ["resnet18", "resnet81"]},
                "overrides": {"network.kind": "smp"},
            },
            "network.encoder=resnet81: .*did you mean 'resnet",
        ),
        (
            RecipeError,
            {"grid": {"recipe": ["unet-ct", "unet3d"]}, "overrides": {}},
            "2D and 3D networks in one search",
        ),
        (RecipeError, {"grid": {}}, "the grid is empty"),
        (RecipeError, {"grid": {"training.seed": []}}, "the grid is empty"),
        (RecipeError, {"halving": 1}, "2 or more"),
        (
            RecipeError,
            {"halving": 2, "grid": {"training.epochs": [1, 2]}},
            "cannot be in a grid with halving",
        ),
        (LabelError, {"folds": 4}, "found 3 images"),
        (RunError, {"out": tmp_path / "file"}, "is not a search"),
        (RunError, {"out": tmp_path}, "is not a search"),
    ]
    for kind, changed, words in cases:
        given = {"grid": GRID, "out": tmp_path / "out"} | options | changed
        with pytest.raises(kind, match=words):
            list(iter_tune("default", pairs, **given))
    assert not (tmp_path / "out").exists()


def test_other_data_or_another_base_is_refused(
    tmp_path: Path, pairs: list[AnnotatedImage], options: dict[str, Any]
) -> None:
    options |= {"retrain": False, "folds": 1}
    grid = {"training.seed": [0]}
    tune("default", pairs, grid, out=tmp_path / "out", **options)
    with pytest.raises(RunError, match="other images, labels or folds"):
        tune("default", pairs[:2], grid, out=tmp_path / "out", **options)
    options["overrides"] |= {"network.norm": "none"}
    with pytest.raises(
        RunError, match=r"seed=0 was begun with other values of network\.norm"
    ):
        tune("default", pairs, grid, out=tmp_path / "out", **options)


def test_a_final_run_of_another_recipe_is_not_used_as_the_best(
    tmp_path: Path, pairs: list[AnnotatedImage], options: dict[str, Any]
) -> None:
    tune(
        "default",
        pairs,
        {"training.learning_rate": [1e-5]},
        out=tmp_path / "out",
        **options,
    )
    with pytest.raises(
        RunError, match=r"final: was begun with other values of training\.learning_rate"
    ):
        tune(
            "default",
            pairs,
            {"training.learning_rate": [1e-5, 1e-2]},
            out=tmp_path / "out",
            **options,
        )
    assert load_recipe(tmp_path / "out" / "best.yaml").training.learning_rate == 1e-2


def test_trials_are_ranked_by_epochs_then_score_and_last_without_a_score() -> None:
    trials = [
        Trial(name, {}, Recipe.parse({"training": {"epochs": 4}})) for name in "abcde"
    ]
    found = {
        "a": {1: Score(0.9)},
        "b": {1: Score(0.5), 4: Score(0.6)},
        "c": {4: Score(math.nan, text="failed")},
        "e": {1: Score(0.7), 4: Score(0.8)},
    }
    assert [trial.name for trial in rank_trials(trials, found)] == [
        "e",
        "b",
        "a",
        "c",
        "d",
    ]
