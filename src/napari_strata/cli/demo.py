"""The demo: a generated sandstone from truth to scores, through the same calls that a user makes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from napari_strata.core.events import Event, Message
from napari_strata.core.runs import check_free
from napari_strata.evaluation.evaluate import evaluate
from napari_strata.inference.predict import iter_predict
from napari_strata.io import read_image, read_pairs, write_image, write_labels
from napari_strata.io.samples import DEMO_OVERRIDES, DEMO_RECIPE, sandstone
from napari_strata.models.model import Model
from napari_strata.training.loop import iter_train

RECIPE = DEMO_RECIPE
OVERRIDES = dict(DEMO_OVERRIDES)


def iter_demo(out: str | Path, *, device: str = "auto") -> Iterator[Event]:
    """Make a training stack and a new stack, train on the first, segment and score the second, all under `out`.

    Raises
    ------
    RunError
        when `out` holds anything already.
    """
    place = Path(out)
    check_free(place)
    start = time.perf_counter()
    for name, seed in (("train", 0), ("new", 1)):
        pair = sandstone(seed=seed)
        write_image(place / f"{name}_image.tif", pair.image)
        write_labels(place / f"{name}_labels.tif", pair.labels)
    yield Message(
        f"made two sandstone stacks with exact truth: {pair.image.describe()}"
    )
    pairs = read_pairs(place / "train_image.tif", place / "train_labels.tif")
    yield from iter_train(
        RECIPE, pairs, out=place / "run", overrides=OVERRIDES, device=device
    )
    model = Model.load(place / "run")
    yield from iter_predict(
        model,
        read_image(place / "new_image.tif"),
        out=place / "new_prediction.tif",
        device=device,
    )
    truth = read_pairs(place / "new_image.tif", place / "new_labels.tif")
    scores = evaluate(model, truth, out=place / "scores", device=device).confusion
    each = ", ".join(
        f"{n} {v:.3f}" for n, v in zip(scores.classes.names, scores.iou, strict=True)
    )
    yield Message(
        f"the new stack, never seen in training: mean IoU {scores.mean_iou:.3f} ({each}), pixel accuracy "
        f"{scores.pixel_accuracy:.3f}"
    )
    yield Message(
        f"all of it in {time.perf_counter() - start:.0f} s: see {place}/new_prediction.tif and {place}/scores/overlays"
    )
