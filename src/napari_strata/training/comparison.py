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
from typing import Any

import numpy as np
import torch

from napari_strata.core.classes import IGNORE
from napari_strata.core.errors import StrataError
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
from napari_strata.training.plan import Plan, TrainingJob
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
) -> Generator[Event, None, None]:
    """Fit trees on the training strokes of a network, and compare both.

    Parameters
    ----------
    folder
        Finished run of the network. The trees become the run ``trees`` in it.
    plan
        Plan of the network.
    build
        Function that builds the predictor of the network's model.

    Yields
    ------
    A `Message`, and `TreesCompared`. Nothing where areas validate, or volumes.
    """
    if not plan.validates_strokes or plan.spec.depth is not None:
        return
    yield Message("fitting trees on the same strokes, for comparison")
    try:
        trees_plan = _plan_trees(plan)
    except StrataError as error:
        # The network is trained, whatever trees cannot do.
        yield Message(f"no comparison with trees: {error}", "warning")
        return
    trees_folder = folder.path / "trees"
    shutil.rmtree(trees_folder, ignore_errors=True)  # of an earlier end of this run
    job = TrainingJob(trees_plan.recipe, plan.pairs, trees_folder, device=str(device))
    with closing(iter_fit(job, trees_plan, group)) as events:
        for _ in events:
            pass
    trees = Model.load(trees_folder)
    network_probabilities, labels, strokes = _predict_strokes(
        TiledPredictor(build(Model.load(folder.model_path))), plan
    )
    tree_probabilities, _, _ = _predict_strokes(
        TiledPredictor(PixelPredictor.of(trees, device)), trees_plan
    )
    seed = plan.recipe.training.seed
    scores = compare(
        network_probabilities, tree_probabilities, labels, strokes, seed=seed
    )
    yield replace(scores, trees_run=str(trees_folder))


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
    gain = by_stroke["network"] - by_stroke["trees"]
    low, high = _bootstrap(gain, sizes, seed=seed)
    better = ""
    if len(sizes) >= MIN_STROKES and (low > 0 or high < 0):
        better = "network" if low > 0 else "trees"
    return TreesCompared(
        strokes=len(sizes),
        pixels=len(labels),
        network=float(right["network"].mean()),
        trees=float(right["trees"].mean()),
        both=float(right["both"].mean()),
        low=low,
        high=high,
        better=better,
    )


def _bootstrap(gain: Array, sizes: Array, *, seed: int) -> tuple[float, float]:
    """95 % interval of the gain per pixel, over resampled strokes."""
    rng = np.random.default_rng([seed, 7])
    drawn = rng.integers(0, len(sizes), (RESAMPLES, len(sizes)))
    gains = gain[drawn].sum(1) / sizes[drawn].sum(1)
    low, high = np.percentile(gains, (2.5, 97.5))
    return float(low), float(high)
