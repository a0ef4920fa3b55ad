"""Paint simulated strokes, train `instant` on them, and score whole other images.

    python benchmarks/strokes.py FOLDER --train 0000 0100 0200 --test 0250 0300
        [--seeds 5] [--windows 12] [--foreground] [--recipe NAME] [--set KEY=VALUE]...

FOLDER holds `images/` and `labels/` with one image a file; images are named by a part
of their names. A stroke follows a random path within one class, at least 1.5 pixels off
its edges, because that is how people paint. With --windows, small windows are then
painted up to their edges, where the prediction is least certain (issue 14), and the
model is fitted again. Tune on images that are neither trained
nor tested on.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import distance_transform_edt

import napari_strata as ns
from napari_strata.core.classes import IGNORE, ClassMap
from napari_strata.core.events import EpochEnd
from napari_strata.core.image import AnnotatedImage
from napari_strata.core.options import PredictOptions
from napari_strata.core.recipes import parse_value
from napari_strata.core.spec import find_classes
from napari_strata.data.windows import choose_window
from napari_strata.inference.predict import iter_predict
from napari_strata.models.model import Model

Array = np.ndarray[Any, Any]

EDGE = 1.5
"""Distance of strokes from the edges of their class, in pixels."""

BRUSH = 1.5
"""Radius of the brush, in pixels."""

STEPS = 45
"""Length of a stroke, in pixels."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", nargs="+", required=True, metavar="NAME")
    parser.add_argument("--test", nargs="+", required=True, metavar="NAME")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--strokes", type=int, default=4, help="of a class, per image")
    parser.add_argument("--windows", type=int, nargs="*", default=[])
    parser.add_argument("--foreground", action="store_true")
    parser.add_argument("--recipe", default="instant")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    pairs = ns.read_pairs(options.folder)
    if options.foreground:
        pairs = [_foreground(pair) for pair in pairs]
    training = [_find(pairs, name) for name in options.train]
    test = [_find(pairs, name) for name in options.test]
    classes = find_classes([*training, *test])
    overrides = {
        key: parse_value(value)
        for key, _, value in (item.partition("=") for item in options.set)
    }
    scores: dict[str, list[Array]] = {}
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        rng = np.random.default_rng(seed)
        painted = [_paint(pair, classes, rng, options.strokes) for pair in training]
        stages = [("strokes", 0), *((f"+ {n} windows", n) for n in options.windows)]
        done = 0
        model = None
        for name, windows in stages:
            settings = dict(overrides)
            if windows:
                assert model is not None
                _paint_windows(model, training, painted, classes, windows - done)
                done = windows
            model, text = _train(options.recipe, training, painted, classes, settings)
            iou = np.array([_score(model, pair) for pair in test])
            scores.setdefault(name, []).append(iou)
            means = " ".join(f"{value:.3f}" for value in np.nanmean(iou, axis=1))
            print(f"seed {seed}, {name}: {means} ({text})", flush=True)
    print(f"\n{'':16}{'mean':>7}{'worst':>7}  per class ({', '.join(classes.names)})")
    for name, rows in scores.items():
        table = np.array(rows)
        means = np.nanmean(table, axis=2)
        per_class = " ".join(f"{v:.3f}" for v in np.nanmean(table, axis=(0, 1)))
        print(f"{name:16}{means.mean():7.3f}{means.min():7.3f}  {per_class}")


def _find(pairs: Sequence[AnnotatedImage], name: str) -> AnnotatedImage:
    found = [pair for pair in pairs if name in pair.name]
    if not found:
        raise SystemExit(f"found no image with {name!r} in its name")
    return found[0]


def _foreground(pair: AnnotatedImage) -> AnnotatedImage:
    """Turn instances into foreground (1) and background (0)."""
    values = (np.asarray(pair.labels.data) > 0).astype(np.uint8)
    return replace(pair, labels=replace(pair.labels, data=values))


def _truth(pair: AnnotatedImage, classes: ClassMap) -> Array:
    values = pair.labels.read().reshape(pair.labels.read().shape[-2:])
    return classes.encode(values)


def _paint(
    pair: AnnotatedImage, classes: ClassMap, rng: np.random.Generator, count: int
) -> Array:
    """Paint strokes of each class; class indices, or `IGNORE` elsewhere."""
    truth = _truth(pair, classes)
    painted = np.full(truth.shape, IGNORE, np.uint8)
    offsets = np.argwhere(np.hypot(*np.mgrid[-2:3, -2:3]) <= BRUSH) - 2
    for index in range(len(classes)):
        padded = np.pad(truth == index, 1)
        # From centre to centre: an edge lies half a pixel before the next one.
        free = distance_transform_edt(padded)[1:-1, 1:-1] > EDGE + 0.5
        places = np.argwhere(free)
        for _ in range(count if len(places) else 0):
            for place in _walk(free, places[rng.integers(len(places))], rng):
                brush = np.clip(place + offsets, 0, np.array(truth.shape) - 1)
                rows, columns = brush[free[tuple(brush.T)]].T
                painted[rows, columns] = index
    return painted


def _walk(free: Array, start: Array, rng: np.random.Generator) -> list[Array]:
    """Walk within an area, turning slowly, and more where it ends."""
    position = start.astype(float)
    angle = rng.uniform(0, 2 * np.pi)
    path = [start]
    for _ in range(STEPS):
        for attempt in range(12):
            turned = angle + rng.normal(0, 0.25 * (attempt + 1))
            ahead = position + np.array([np.sin(turned), np.cos(turned)])
            place = ahead.astype(int)
            inside = (ahead >= 0).all() and (place < free.shape).all()
            if inside and free[tuple(place)]:
                break
        else:
            break
        position, angle = ahead, turned
        path.append(place)
    return path


def _paint_windows(
    model: Model,
    training: Sequence[AnnotatedImage],
    painted: Sequence[Array],
    classes: ClassMap,
    count: int,
) -> None:
    """Paint windows in which the two likeliest classes are closest, the worst first."""
    margins = []
    for pair, labels in zip(training, painted, strict=True):
        options = PredictOptions(probabilities=True)
        prediction = iter_predict(model, pair.image, options=options)
        for _ in prediction:
            pass
        assert prediction.probabilities is not None
        probabilities = np.asarray(prediction.probabilities.data, np.float32)
        probabilities = np.sort(
            probabilities.reshape(len(classes), *labels.shape), axis=0
        )
        margins.append(probabilities[-1] - probabilities[-2])
    for _ in range(count):
        window = choose_window(margins, [labels != IGNORE for labels in painted])
        if window is None:
            break
        number, box = window.plane, window.box
        painted[number][box] = _truth(training[number], classes)[box]


def _train(
    recipe: str,
    training: Sequence[AnnotatedImage],
    painted: Sequence[Array],
    classes: ClassMap,
    overrides: dict[str, Any],
) -> tuple[Model, str]:
    """Train on strokes; the model, and what is known of it without the truth."""
    unlabelled = max(classes.values) + 1
    open_classes = classes.with_unlabelled([unlabelled])
    values = np.array([*classes.values, unlabelled], np.uint8)
    pairs = []
    for pair, labels in zip(training, painted, strict=True):
        index = np.where(labels == IGNORE, len(classes), labels)
        strokes = pair.image.labels_like(values[index])
        pairs.append(AnnotatedImage(pair.image, strokes, name=pair.name))
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        events = list(
            ns.iter_train(
                recipe, pairs, out=run, classes=open_classes, overrides=overrides
            )
        )
        model = Model.load(run)
    seconds = time.perf_counter() - start
    count = sum(int((labels != IGNORE).sum()) for labels in painted)
    ends = [event for event in events if isinstance(event, EpochEnd)]
    said = ends[-1].agreement or f"validated {ends[-1].mean_iou:.3f}"
    levels = getattr(model.spec.network, "levels", "-")
    return model, f"{count} pixels, {said}, {levels} levels, {seconds:.0f} s"


def _score(model: Model, pair: AnnotatedImage) -> Array:
    confusion = ns.evaluate(model, [pair]).confusion
    return np.array(confusion.iou)


if __name__ == "__main__":
    main()
