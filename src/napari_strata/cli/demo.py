"""The demo: train, segment and score a generated sandstone through the public API."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from napari_strata.core.events import Event, Message
from napari_strata.core.runs import check_free
from napari_strata.core.text import format_percent
from napari_strata.evaluation.evaluate import evaluate
from napari_strata.inference.predict import iter_predict
from napari_strata.io import read_image, read_pairs, write_image, write_labels
from napari_strata.io.samples import DEMO_OVERRIDES, DEMO_RECIPE, sandstone
from napari_strata.models.model import Model
from napari_strata.training.loop import iter_train


def iter_demo(out: str | Path, *, device: str = "auto") -> Iterator[Event]:
    """Train on one generated stack, then segment and score another.

    Parameters
    ----------
    out
        Folder for both stacks, the run, the prediction and the scores.

    Raises
    ------
    RunError
        If `out` is not empty.
    """
    folder = Path(out)
    check_free(folder)
    start = time.perf_counter()
    for name, seed in (("train", 0), ("new", 1)):
        pair = sandstone(seed=seed)
        write_image(folder / f"{name}_image.tif", pair.image)
        write_labels(folder / f"{name}_labels.tif", pair.labels)
    yield Message(
        f"made two sandstone stacks with exact truth: {pair.image.describe()}"
    )
    pairs = read_pairs(folder / "train_image.tif", folder / "train_labels.tif")
    yield from iter_train(
        DEMO_RECIPE,
        pairs,
        out=folder / "run",
        overrides=DEMO_OVERRIDES,
        device=device,
    )
    model = Model.load(folder / "run")
    image = read_image(folder / "new_image.tif")
    prediction = folder / "new_prediction.tif"
    yield from iter_predict(model, image, out=prediction, device=device)
    truth = read_pairs(folder / "new_image.tif", folder / "new_labels.tif")
    result = evaluate(model, truth, out=folder / "scores", device=device)
    scores = result.confusion
    class_scores = ", ".join(
        f"{name} {iou:.3f}"
        for name, iou in zip(scores.classes.names, scores.iou, strict=True)
    )
    yield Message(
        f"the new stack, never seen in training: {scores.describe_mean_iou()} "
        f"({class_scores}), pixel accuracy {scores.pixel_accuracy:.3f}"
    )
    text = f"its probabilities on the new stack: {result.reliability.describe()}"
    if model.calibration is not None:
        claimed = format_percent(model.calibration.ece_after)
        text += f"; on the validation data of the training, the error was {claimed}"
    yield Message(text)
    seconds = time.perf_counter() - start
    yield Message(
        f"all of it in {seconds:.0f} s: see {prediction} and {folder}/scores/overlays"
    )
