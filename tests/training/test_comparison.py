"""A network that was trained on strokes is compared with trees on held-out strokes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import napari_strata as ns
from napari_strata.core.events import Event, TrainingEnd, TreesCompared
from napari_strata.core.image import AnnotatedImage
from napari_strata.core.runs import RunFolder
from napari_strata.training.comparison import compare

Build = Callable[..., AnnotatedImage]


def _chances(is_right: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Probabilities of two classes, where class 0 is the truth of every pixel."""
    right = np.where(is_right, 0.9, 0.2)
    return np.stack([right, 1 - right], axis=1)


@pytest.mark.parametrize(
    ("wrong_network", "wrong_trees", "better"),
    [(2, 40, "network"), (40, 2, "trees"), (20, 20, "")],
)
def test_the_better_one_is_clearly_better(
    wrong_network: int, wrong_trees: int, better: str
) -> None:
    strokes = np.repeat(np.arange(20), 100)
    position = np.tile(np.arange(100), 20)
    network = _chances(position >= wrong_network)
    trees = _chances(position >= wrong_trees)
    found = compare(network, trees, np.zeros(2000, int), strokes, seed=0)
    assert (found.strokes, found.pixels, found.better) == (20, 2000, better)
    assert found.network == 1 - wrong_network / 100
    difference = (wrong_trees - wrong_network) / 100
    assert found.low <= difference <= found.high
    assert "better" in found.text if better else "No difference is clear" in found.text


@pytest.mark.parametrize("strokes_of_each", [10, 2])
def test_the_mean_is_better_than_each(strokes_of_each: int) -> None:
    """Each is wrong on strokes of its own, and there the other one is surer."""
    count = 2 * strokes_of_each
    strokes = np.repeat(np.arange(count), 100)
    is_odd = strokes % 2 == 1
    is_wrong = np.arange(len(strokes)) % 100 < 30
    network = _chances(~(is_wrong & is_odd))
    trees = _chances(~(is_wrong & ~is_odd))
    labels = np.zeros(len(strokes), int)
    found = compare(network, trees, labels, strokes, seed=0)
    assert (found.network, found.trees, found.both) == (0.85, 0.85, 1)
    if strokes_of_each == 10:
        assert found.better == "mean"
        assert 0 < found.mean_low <= 0.15 <= found.mean_high
        assert "The mean is better than each" in found.text
    else:
        assert found.better == "", "too few strokes"


@pytest.mark.parametrize(
    ("better", "expected"),
    [
        ("network", ["run"]),
        ("trees", ["run/trees"]),
        ("mean", ["run", "run/trees"]),
        ("", ["run"]),
    ],
)
def test_the_better_one_predicts(better: str, expected: list[str]) -> None:
    event = TreesCompared(9, 100, 0.9, 0.95, 0.95, -0.08, -0.02, better, "run/trees")
    assert event.better_runs(Path("run")) == tuple(map(Path, expected))


def test_one_stroke_decides_nothing() -> None:
    """A network that is better on one large stroke only is not called better."""
    strokes = np.repeat(np.arange(10), 100)
    network = _chances(np.ones(1000, bool))
    trees = _chances(strokes > 0)
    assert compare(network, trees, np.zeros(1000, int), strokes, seed=0).better == ""


def test_few_strokes_decide_nothing() -> None:
    strokes = np.repeat(np.arange(5), 100)
    network = _chances(np.ones(500, bool))
    trees = _chances(np.zeros(500, bool))
    assert compare(network, trees, np.zeros(500, int), strokes, seed=0).better == ""


def test_a_training_on_strokes_ends_with_the_comparison(
    strokes: Build, small: dict[str, Any], tmp_path: Path
) -> None:
    options: dict[str, Any] = {
        "validation": [strokes(1)],
        "unlabelled": [0],
        "out": tmp_path / "run",
        "device": "cpu",
    }
    overrides = small | {"training.epochs": 1}
    events = list(
        ns.iter_train("default", [strokes(0)], overrides=overrides, **options)
    )
    (found,) = [event for event in events if isinstance(event, TreesCompared)]
    assert found.pixels == int((strokes(1).labels.read() > 0).sum())
    assert found in RunFolder(tmp_path / "run").events()
    # The trees are a run of their own, and were scored on the same strokes.
    trees = ns.Model.load(found.trees_run)
    assert trees.recipe.name == "instant"
    assert found.trees == pytest.approx(trees.history[-1].pixel_accuracy)
    network = ns.Model.load(tmp_path / "run")
    assert found.network == pytest.approx(network.best.pixel_accuracy, abs=0.01)
    # A longer training compares again, with trees of the labels of then.
    again = list(ns.iter_train("default", [strokes(0)], extend=1, **options))
    assert [event for event in again if isinstance(event, TreesCompared)]


def test_all_strokes_train_the_trees_that_predict(
    strokes: Build, small: dict[str, Any], tmp_path: Path
) -> None:
    """Whole strokes are held back to compare on, and are learnt afterwards."""
    overrides = small | {"training.epochs": 1}
    events = ns.iter_train(
        "default",
        strokes(0),
        unlabelled=[0],
        out=tmp_path / "run",
        overrides=overrides,
        device="cpu",
    )
    (found,) = [event for event in events if isinstance(event, TreesCompared)]
    assert found.pixels > 0
    record = RunFolder(found.trees_run).data()
    assert record["validation"] == []
    # The network has never learnt what it was measured on.
    assert RunFolder(tmp_path / "run").data()["validation"]
    (end,) = RunFolder(found.trees_run).history().epochs
    assert end.stroke_pixels == int((strokes(0).labels.read() > 0).sum())


def test_trees_that_cannot_be_fitted_end_no_training(
    strokes: Build,
    small: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> Iterator[Event]:
        raise RuntimeError("trees do not grow here")
        yield

    monkeypatch.setattr("napari_strata.training.comparison.iter_fit", fail)
    overrides = small | {"training.epochs": 1}
    run = tmp_path / "run"
    events = list(
        ns.iter_train(
            "default",
            strokes(0),
            unlabelled=[0],
            out=run,
            overrides=overrides,
            device="cpu",
        )
    )
    ended = events[-1]
    assert isinstance(ended, TrainingEnd)
    assert ended.reason == "finished"
    assert ns.Model.load(run).history
    warning = "no comparison with trees: trees do not grow here"
    assert warning in RunFolder(run).history().warnings
    assert not [event for event in events if isinstance(event, TreesCompared)]


def test_a_training_on_areas_has_none(
    scene: Build, small: dict[str, Any], tmp_path: Path
) -> None:
    overrides = small | {"training.epochs": 1}
    events = ns.iter_train(
        "default", scene(), out=tmp_path / "run", overrides=overrides, device="cpu"
    )
    assert not [event for event in events if isinstance(event, TreesCompared)]
    assert not (tmp_path / "run" / "trees").exists()
