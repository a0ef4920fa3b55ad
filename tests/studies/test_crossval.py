"""Cross-validation: runs of folds, scores and tables, continuing after a stop, refused input."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from napari_strata.core.classes import ClassMap
from napari_strata.core.errors import (
    ImageError,
    LabelError,
    RecipeError,
    RunError,
    StrataError,
)
from napari_strata.core.events import (
    BatchEnd,
    CrossvalEnd,
    EpochEnd,
    Event,
    FoldEnd,
    FoldStarted,
    Message,
    TrainingEnd,
    TrainingStarted,
)
from napari_strata.core.image import AnnotatedImage
from napari_strata.core.metrics import ConfusionMatrix
from napari_strata.core.runs import RunFolder
from napari_strata.evaluation.evaluate import evaluate
from napari_strata.models.ensemble import load_models
from napari_strata.models.model import Model
from napari_strata.studies.crossval import crossval, iter_crossval
from napari_strata.studies.crossval_results import CrossvalResult, FoldScore

Scene = Callable[..., AnnotatedImage]


@pytest.fixture
def options(small: dict[str, Any]) -> dict[str, Any]:
    """Options that all cross-validations of these tests share."""
    small |= {"training.epochs": 2, "patches.per_epoch": 8, "training.recalibration": 0}
    return {"folds": 3, "overrides": small, "device": "cpu"}


@pytest.fixture
def pairs(scene: Scene) -> list[AnnotatedImage]:
    return [scene(i, planes=1, size=64) for i in range(4)]


def stop_after(events: Iterator[Event], kind: type[Event], count: int) -> list[Event]:
    """Iterate to the `count`-th event of a type, then stop as Ctrl-C does."""
    seen: list[Event] = []
    for event in events:
        seen.append(event)
        if len([one for one in seen if isinstance(one, kind)]) == count:
            break
    events.close()  # type: ignore[attr-defined]
    return seen


def files(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.stat().st_size)
        for p in sorted(folder.rglob("*"))
    }


_MADE: list[Path] = []


@pytest.fixture
def done(
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    pairs: list[AnnotatedImage],
    options: dict[str, Any],
) -> CrossvalResult:
    """A finished cross-validation in ``cv``, copied from one that is trained once."""
    if not _MADE:
        made = tmp_path_factory.mktemp("crossval") / "cv"
        crossval("default", pairs, out=made, **options)
        _MADE.append(made)
    return CrossvalResult.load(shutil.copytree(_MADE[0], tmp_path / "cv"))


def test_each_fold_is_a_run_and_its_score_is_that_of_its_model(
    done: CrossvalResult, pairs: list[AnnotatedImage]
) -> None:
    assert [fold.run for fold in done.folds] == ["fold_1", "fold_2", "fold_3"]
    held = []
    for fold in done.folds:
        record = RunFolder.open(done.out / fold.run).read_json("data.json")
        assert record["split"] == fold.held_out
        names = [record["pairs"][row["pair"]]["name"] for row in record["validation"]]
        held += names
        again = evaluate(
            done.out / fold.run,
            [p for p in pairs if p.name in names],
            device="cpu",
            precision="fp32",
        )
        np.testing.assert_array_equal(again.confusion.counts, fold.confusion.counts)
        best = Model.load(done.out / fold.run).best
        assert best is not None
        assert best.epoch == fold.best_epoch
        assert best.mean_iou == pytest.approx(fold.confusion.mean_iou)
    assert sorted(held) == [pair.name for pair in pairs]


def test_means_and_deviations_are_over_folds_and_pooled_counts_every_pixel_once(
    done: CrossvalResult,
) -> None:
    each = np.array([fold.confusion.mean_iou for fold in done.folds])
    assert done.mean_iou == pytest.approx(each.mean())
    assert done.mean_iou_std == pytest.approx(each.std(ddof=1))
    iou = np.array([fold.confusion.iou for fold in done.folds])
    np.testing.assert_allclose(
        done.spread("iou"), [iou.mean(axis=0), iou.std(axis=0, ddof=1)]
    )
    assert done.pooled.counts.sum() == 4 * 64 * 64


def test_the_files_have_the_same_scores(done: CrossvalResult) -> None:
    raw = json.loads((done.out / "crossval.json").read_text())
    assert raw["format"] == "napari-strata crossval 1"
    assert raw["folds"] == ["fold_1", "fold_2", "fold_3"]
    assert raw["splits"] == [fold.held_out for fold in done.folds]
    assert raw["mean"]["mean_iou"] == done.mean_iou
    assert raw["std"]["per_class"]["class 1"]["recall"] == done.spread("recall")[1][1]
    assert raw["pooled"]["confusion"] == done.pooled.counts.tolist()
    assert "a little too good" in raw["note"]
    rows = list(csv.DictReader((done.out / "crossval.csv").read_text().splitlines()))
    assert [row["fold"] for row in rows] == [
        "fold_1",
        "fold_2",
        "fold_3",
        "mean",
        "std",
        "pooled",
    ]
    assert float(rows[0]["f1 class 1"]) == pytest.approx(
        done.folds[0].confusion.f1[1], abs=1e-6
    )
    assert float(rows[3]["mean_iou"]) == pytest.approx(done.mean_iou, abs=1e-6)
    assert float(rows[5]["pixel_accuracy"]) == pytest.approx(
        done.pooled.pixel_accuracy, abs=1e-6
    )
    assert set(rows[0]) >= {
        f"{s} class 0" for s in ("iou", "dice", "precision", "recall", "f1")
    } | {"seconds"}


def test_the_text_table(done: CrossvalResult) -> None:
    lines = done.table().splitlines()
    assert lines[0].split() == ["class", "IoU", "Dice", "precision", "recall"]
    assert lines[1].startswith("class 0")
    assert f"{done.mean_iou:.3f} +- {done.mean_iou_std:.3f}" in lines[3]
    assert f"together {done.pooled.mean_iou:.3f}" in lines[4]
    assert "a little too good" in lines[5]


def test_the_folder_is_an_ensemble_of_its_folds(done: CrossvalResult) -> None:
    assert load_models(done.out).describe() == "3 models (cross-validation)"


def test_events_name_fold_and_scores(
    tmp_path: Path, pairs: list[AnnotatedImage], options: dict[str, Any]
) -> None:
    events = list(iter_crossval("default", pairs, out=tmp_path / "cv", **options))
    result = CrossvalResult.load(tmp_path / "cv")
    assert [e.text for e in events if isinstance(e, FoldStarted)] == [
        fold.held_out for fold in result.folds
    ]
    ends = [e for e in events if isinstance(e, FoldEnd)]
    assert [(e.fold, e.folds, e.run) for e in ends] == [
        (n, 3, str(tmp_path / "cv" / f"fold_{n}")) for n in (1, 2, 3)
    ]
    assert [e.mean_iou for e in ends] == [
        fold.confusion.mean_iou for fold in result.folds
    ]
    (last,) = [e for e in events if isinstance(e, CrossvalEnd)]
    assert events[-1] is last
    assert (last.mean_iou, last.mean_iou_std) == (result.mean_iou, result.mean_iou_std)
    texts = [e.text for e in events if isinstance(e, Message)]
    assert len(texts) == len(set(texts)), "what is the same in all folds is said once"


def test_the_folder_contains_the_plan_before_the_first_step(
    tmp_path: Path, pairs: list[AnnotatedImage], options: dict[str, Any]
) -> None:
    stop_after(
        iter_crossval("default", pairs, out=tmp_path / "cv", **options),
        TrainingStarted,
        1,
    )
    raw = json.loads((tmp_path / "cv" / "crossval.json").read_text())
    assert raw["folds"] == ["fold_1", "fold_2", "fold_3"]
    assert raw["scores"] == []
    assert raw["mean"]["mean_iou"] is None
    assert (
        CrossvalResult.load(tmp_path / "cv")
        .table()
        .splitlines()[-2]
        .startswith("0 of 3 folds")
    )


@pytest.mark.parametrize(
    ("kind", "count"),
    [(FoldStarted, 1), (BatchEnd, 1), (EpochEnd, 3), (TrainingEnd, 2), (FoldEnd, 2)],
)
def test_after_a_stop_the_same_call_gives_the_same_result_as_an_uninterrupted_one(
    tmp_path: Path,
    pairs: list[AnnotatedImage],
    options: dict[str, Any],
    done: CrossvalResult,
    kind: type[Event],
    count: int,
) -> None:
    again = tmp_path / "again"
    stop_after(iter_crossval("default", pairs, out=again, **options), kind, count)
    resumed = crossval("default", pairs, out=again, **options)
    for one, other in zip(done.folds, resumed.folds, strict=True):
        np.testing.assert_array_equal(one.confusion.counts, other.confusion.counts)
        assert one.best_epoch == other.best_epoch
        weights = [Model.load(out / one.run).digest for out in (done.out, again)]
        assert weights[0] == weights[1]


def test_a_finished_cross_validation_is_unchanged(
    tmp_path: Path,
    pairs: list[AnnotatedImage],
    options: dict[str, Any],
    done: CrossvalResult,
) -> None:
    before = {
        name: time
        for name, time in files(done.out).items()
        if not name.startswith("crossval")
    }
    events = list(iter_crossval("default", pairs, out=done.out, **options))
    after = {
        name: time
        for name, time in files(done.out).items()
        if not name.startswith("crossval")
    }
    assert before == after
    assert not any(isinstance(event, (TrainingStarted, EpochEnd)) for event in events)
    assert len([event for event in events if isinstance(event, FoldEnd)]) == 3
    assert CrossvalResult.load(done.out).as_dict() == done.as_dict()


def test_files_of_a_fold_that_was_killed_before_it_began_are_removed(
    pairs: list[AnnotatedImage], options: dict[str, Any], done: CrossvalResult
) -> None:
    fold = done.out / "fold_2"
    recipe = (fold / "recipe.yaml").read_text()
    shutil.rmtree(fold)
    (fold / "previews").mkdir(parents=True)
    (fold / "recipe.yaml").write_text(recipe)
    resumed = crossval("default", pairs, out=done.out, **options)
    np.testing.assert_array_equal(
        resumed.folds[1].confusion.counts, done.folds[1].confusion.counts
    )


def test_a_folder_with_other_files_is_not_removed(
    pairs: list[AnnotatedImage], options: dict[str, Any], done: CrossvalResult
) -> None:
    shutil.rmtree(done.out / "fold_2")
    (done.out / "fold_2").mkdir()
    (done.out / "fold_2" / "thesis.txt").write_text("mine")
    with pytest.raises(RunError, match="exists already"):
        crossval("default", pairs, out=done.out, **options)
    assert (done.out / "fold_2" / "thesis.txt").read_text() == "mine"


def test_more_epochs_are_added_to_each_fold(
    pairs: list[AnnotatedImage], options: dict[str, Any], done: CrossvalResult
) -> None:
    options["overrides"] |= {"training.epochs": 4}
    stop_after(iter_crossval("default", pairs, out=done.out, **options), EpochEnd, 3)
    more = crossval("default", pairs, out=done.out, **options)
    for fold in more.folds:
        ends = [
            e.epoch
            for e in RunFolder.open(done.out / fold.run).events()
            if isinstance(e, EpochEnd)
        ]
        assert ends == [1, 2, 3, 4]
        assert fold.epochs == 4
    assert all(
        b.seconds > a.seconds for a, b in zip(done.folds, more.folds, strict=True)
    )


def test_a_kill_before_the_first_additional_step_loses_no_epochs(
    pairs: list[AnnotatedImage], options: dict[str, Any], done: CrossvalResult
) -> None:
    run = RunFolder.open(done.out / "fold_1")
    run.save_recipe(run.recipe.with_overrides({"training.epochs": 3}))
    options["overrides"] |= {"training.epochs": 3}
    crossval("default", pairs, out=done.out, **options)
    assert len(Model.load(run.path).history) == 3


def test_a_fold_that_early_stopping_ended_gets_no_more_epochs(
    tmp_path: Path, pairs: list[AnnotatedImage], options: dict[str, Any]
) -> None:
    # A loss that can only rise: the first epoch is the best one.
    options["overrides"] |= {
        "training.early_stopping": {"monitor": "loss", "patience": 1},
        "training.learning_rate": 0.3,
        "training.epochs": 9,
    }
    before = crossval("default", pairs, out=tmp_path / "cv", **options)
    reasons = {
        fold.run: [
            e.reason
            for e in RunFolder(tmp_path / "cv" / fold.run).events()
            if isinstance(e, TrainingEnd)
        ][-1]
        for fold in before.folds
    }
    stopped = {run for run, reason in reasons.items() if reason == "early stopping"}
    assert stopped
    history = {run: len(RunFolder(tmp_path / "cv" / run).events()) for run in stopped}
    options["overrides"] |= {"training.epochs": 12}
    crossval("default", pairs, out=tmp_path / "cv", **options)
    assert {
        run: len(RunFolder(tmp_path / "cv" / run).events()) for run in stopped
    } == history


def test_differences_from_the_first_call_are_named_and_nothing_changes(
    pairs: list[AnnotatedImage],
    options: dict[str, Any],
    done: CrossvalResult,
    scene: Scene,
) -> None:
    before = files(done.out)
    other = [*pairs[:3], scene(9, planes=1, size=64)]
    cases: list[tuple[list[AnnotatedImage], dict[str, Any], str]] = [
        (pairs, {"folds": 2}, "begun with 3 folds"),
        (other, {}, "begun with other images, labels or groups"),
        (
            pairs,
            {"overrides": options["overrides"] | {"training.learning_rate": 0.5}},
            r"training\.learning_rate",
        ),
        (
            pairs,
            {"overrides": options["overrides"] | {"training.epochs": 1}},
            "trained for 2 epochs already",
        ),
        (
            pairs,
            {"overrides": options["overrides"] | {"training.seed": 5}},
            "begun with other",
        ),
    ]
    for images, changed, words in cases:
        with pytest.raises(RunError, match=words):
            list(iter_crossval("default", images, out=done.out, **(options | changed)))
    assert files(done.out) == before


def test_bad_input_is_refused_before_anything_is_written(
    tmp_path: Path, pairs: list[AnnotatedImage], options: dict[str, Any]
) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("x")
    cases: list[tuple[type[StrataError], dict[str, Any], str]] = [
        (LabelError, {"folds": 5}, "found 4 images with 4 slices"),
        (LabelError, {"folds": 0}, "at least 2"),
        (LabelError, {"group": "rock"}, "finds no specimen"),
        (
            LabelError,
            {"classes": ClassMap(names=("a", "b"), values=(1, 2))},
            "label value 0",
        ),
        (LabelError, {"unlabelled": (0,)}, "one class only"),
        (RecipeError, {"overrides": {"training.epoch": 3}}, "did you mean 'epochs'"),
        (RunError, {"out": tmp_path / "file"}, "not a cross-validation"),
        (RunError, {"out": tmp_path / "full"}, "not a cross-validation"),
    ]
    for kind, changed, words in cases:
        with pytest.raises(kind, match=words):
            list(
                iter_crossval(
                    "default", pairs, **({"out": tmp_path / "cv"} | options | changed)
                )
            )
    with pytest.raises((ImageError, LabelError)):
        list(iter_crossval("default", [], out=tmp_path / "cv", **options))
    assert not (tmp_path / "cv").exists()


def test_a_damaged_record_is_named(done: CrossvalResult) -> None:
    file = done.out / "crossval.json"
    for text, words in (
        ("{", "cannot be read"),
        ('{"format": "x"}', "something else"),
        ("[]", "something else"),
    ):
        file.write_text(text)
        with pytest.raises(RunError, match=words):
            CrossvalResult.load(done.out)
    file.unlink()
    with pytest.raises(RunError, match=r"found no crossval\.json"):
        CrossvalResult.load(done.out)


def test_a_class_missing_in_a_fold_is_left_out_of_its_mean() -> None:
    classes = ClassMap(names=("a", "b"), values=(0, 1))
    with_b, without_b = np.array([[6, 2], [0, 8]]), np.array([[9, 0], [0, 0]])

    def fold(counts: Any) -> FoldScore:
        return FoldScore("fold_1", "", ConfusionMatrix(classes, counts), 1, 1, 1.0)

    found = CrossvalResult(Path("x"), classes, (fold(with_b), fold(without_b)), 2)
    mean, deviation = found.spread("iou")
    np.testing.assert_allclose(mean, [(6 / 8 + 1) / 2, 0.8])
    assert deviation[0] == pytest.approx(np.std([0.75, 1.0], ddof=1))
    assert np.isnan(deviation[1])
    assert np.isnan(CrossvalResult(Path("x"), classes, (), 2).mean_iou)
    assert "\nstd," in found.csv()
    assert "nan" not in found.csv() + found.table()
