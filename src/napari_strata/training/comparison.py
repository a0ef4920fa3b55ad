"""Comparison of a network with trees on the same held-out strokes.

From strokes alone a network is often worse than a pixel classifier, which needs
seconds. So a network that was trained on strokes is compared with trees that were
fitted on the same strokes. Strokes are compared in pairs; the interval is a bootstrap
over whole strokes (Efron 1979, doi:10.1214/aos/1176344552), because the pixels of a
stroke are much alike.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from napari_strata.core.classes import IGNORE
from napari_strata.core.events import Event, Message, TreesCompared
from napari_strata.core.recipes import load_recipe
from napari_strata.core.runs import RunFolder
from napari_strata.core.spec import resolve
from napari_strata.data.strokes import number_strokes
from napari_strata.models.model import Model
from napari_strata.models.pixels.predictor import PixelPredictor
from napari_strata.models.predictor import Predictor
from napari_strata.models.tiled import TiledPredictor
from napari_strata.training.ddp import ProcessGroup
from napari_strata.training.fit import iter_fit
from napari_strata.training.plan import Plan, TrainingTask, plan_all_strokes
from napari_strata.training.validation import iter_predicted, load_truths

Array = np.ndarray[Any, Any]

RESAMPLES = 2000
"""Bootstrap samples of the strokes."""
MIN_STROKES = 6
"""With fewer held-out strokes, an interval means nothing."""


def compare_with_trees(
    folder: RunFolder,
    plan: Plan,
    group: ProcessGroup,
    *,
    build: Callable[[Model], Predictor],
    device: torch.device,
    may_learn_all: bool,
) -> Generator[Event, None, None]:
    """Fit trees on the training strokes of a network, and compare both.

    The trees become the run ``trees`` in the folder of the network. No error of theirs
    ends a training: the network is trained, and a warning says what failed.

    Parameters
    ----------
    folder
        Finished run of the network.
    plan
        Plan of the network.
    build
        Function that builds the predictor of the network's model.
    may_learn_all
        True to fit the trees on all strokes once they are compared. False where others
        measure on the held-out ones, too.

    Yields
    ------
    Messages, and `TreesCompared`. Nothing where areas validate, or volumes.
    """
    if not plan.validates_strokes or plan.spec.depth is not None:
        return
    yield Message("fitting trees on the same strokes, for comparison")
    trees_folder = folder.path / "trees"
    try:
        trees_plan = _plan_trees(plan)
        _fit_trees(trees_plan, trees_folder, group, device)
        network_probabilities, labels, strokes = _predict_strokes(
            TiledPredictor(build(Model.load(folder.model_path))), plan
        )
        trees = PixelPredictor.of(Model.load(trees_folder), device)
        tree_probabilities, _, _ = _predict_strokes(TiledPredictor(trees), trees_plan)
        scores = compare(
            network_probabilities,
            tree_probabilities,
            labels,
            strokes,
            seed=plan.recipe.training.seed,
        )
        whole_plan = plan_all_strokes(trees_plan) if may_learn_all else None
        if whole_plan is not None:
            _fit_trees(whole_plan, trees_folder, group, device)
    except Exception as error:  # of any kind: fits and predictions have many
        yield Message(f"no comparison with trees: {error}", "warning")
        return
    yield replace(scores, trees_run=str(trees_folder))
    if whole_plan is not None:
        yield Message("the trees were then fitted on all strokes, held-out ones too")


def _fit_trees(
    plan: Plan, folder: Path, group: ProcessGroup, device: torch.device
) -> None:
    """Fit trees, in place of those that an earlier end of the run has left."""
    shutil.rmtree(folder, ignore_errors=True)
    task = TrainingTask(plan.recipe, plan.pairs, folder, device=str(device))
    with closing(iter_fit(task, plan, group)) as events:
        for _ in events:
            pass


def _plan_trees(plan: Plan) -> Plan:
    """Plan trees with the split of a network."""
    overrides = {
        "patches.neighbours": plan.spec.neighbours,
        "training.seed": plan.recipe.training.seed,
    }
    recipe = load_recipe("instant").with_overrides(overrides)
    spec = resolve(recipe, plan.pairs, classes=plan.spec.classes)
    return replace(plan, recipe=recipe, spec=spec, messages=(), suggestion=None)


def _predict_strokes(
    predictor: TiledPredictor, plan: Plan
) -> tuple[Array, Array, Array]:
    """Predict the validation regions of a plan.

    Returns
    -------
    Probabilities (n, K), class index (n,) and number of the stroke (n,) of each
    labelled pixel.
    """
    probabilities, labels, strokes = [], [], []
    last_stroke = 0
    for predicted in iter_predicted(
        predictor, load_truths(plan.validation, predictor.spec)
    ):
        truth = predicted.truth.labels
        is_labelled = truth != IGNORE
        logits = torch.from_numpy(predicted.logits)[:, is_labelled]
        probabilities.append(torch.softmax(logits, 0).numpy().T)
        labels.append(truth[is_labelled])
        numbers = number_strokes(truth)[is_labelled]
        strokes.append(numbers + last_stroke)
        last_stroke += int(numbers.max())
    return (
        np.concatenate(probabilities),
        np.concatenate(labels),
        np.concatenate(strokes),
    )


def compare(
    network: Array, trees: Array, labels: Array, strokes: Array, *, seed: int
) -> TreesCompared:
    """Compare probabilities (n, K) of both on pixels with the classes `labels` (n,).

    Parameters
    ----------
    strokes
        Number of the stroke of each pixel (n,).
    seed
        Of the bootstrap.
    """
    _, of_pixel = np.unique(strokes, return_inverse=True)
    sizes = np.bincount(of_pixel)
    right = {
        "network": network.argmax(1) == labels,
        "trees": trees.argmax(1) == labels,
        "both": (network + trees).argmax(1) == labels,
    }
    by_stroke = {
        name: np.bincount(of_pixel, weights=each) for name, each in right.items()
    }
    network_right, trees_right = by_stroke["network"], by_stroke["trees"]
    single_right = max(network_right, trees_right, key=np.sum)
    low, high = _bootstrap(network_right - trees_right, sizes, seed=seed)
    mean_low, mean_high = _bootstrap(by_stroke["both"] - single_right, sizes, seed=seed)
    better = ""
    if len(sizes) >= MIN_STROKES:
        if mean_low > 0:
            better = "mean"
        elif low > 0:
            better = "network"
        elif high < 0:
            better = "trees"
    return TreesCompared(
        strokes=len(sizes),
        pixels=len(labels),
        network=float(right["network"].mean()),
        trees=float(right["trees"].mean()),
        both=float(right["both"].mean()),
        low=low,
        high=high,
        better=better,
        mean_low=mean_low,
        mean_high=mean_high,
    )


def _bootstrap(gain: Array, sizes: Array, *, seed: int) -> tuple[float, float]:
    """95 % interval of the gain per pixel, over resampled strokes."""
    rng = np.random.default_rng([seed, 7])
    drawn = rng.integers(0, len(sizes), (RESAMPLES, len(sizes)))
    gains = gain[drawn].sum(1) / sizes[drawn].sum(1)
    low, high = np.percentile(gains, (2.5, 97.5))
    return float(low), float(high)
