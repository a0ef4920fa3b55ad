"""Pixels that a file marks as without data count like NaN, from training to report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch

from helpers import easy_pair, tiny_recipe
from napari_strata.core.events import Message
from napari_strata.core.image import AnnotatedImage
from napari_strata.core.options import PredictOptions
from napari_strata.evaluation.evaluate import iter_evaluate
from napari_strata.inference.predict import iter_predict
from napari_strata.io import read_image, read_labels, write_labels
from napari_strata.models.model import Model
from napari_strata.report.write import write_page
from napari_strata.training.loop import iter_train

GDAL_NODATA = 42113
OPTIONS = PredictOptions(device="cpu", precision="fp32")
EMPTY = np.s_[..., :20]
"""Columns without data."""


def of_file(path: Path, grey: np.ndarray[Any, Any], nodata: str) -> AnnotatedImage:
    tags = [(GDAL_NODATA, "s", 0, nodata, True)] if nodata else []
    options: dict[str, Any] = {"metadata": {"axes": "ZYX"}, "photometric": "minisblack"}
    tifffile.imwrite(path, grey, extratags=tags, **options)
    labels = path.with_name("labels.tif")
    write_labels(labels, easy_pair().labels, overwrite=True)
    return AnnotatedImage(read_image(path), read_labels(labels), name="tile")


def floats(folder: Path) -> tuple[AnnotatedImage, AnnotatedImage]:
    """The same tile: with a value for no data, and with NaN."""
    grey = np.asarray(easy_pair().image.data, np.float32)
    grey[EMPTY] = -9999
    with_value = of_file(folder / "value.tif", grey, "-9999")
    grey[EMPTY] = np.nan
    return with_value, of_file(folder / "nan.tif", grey, "")


def integers(folder: Path) -> tuple[AnnotatedImage, AnnotatedImage]:
    grey = np.array(easy_pair().image.data).clip(1, 255)
    grey[EMPTY] = 0
    with_value = of_file(folder / "value.tif", grey, "0")
    stored = grey.astype(np.float32)
    stored[EMPTY] = np.nan
    return with_value, of_file(folder / "nan.tif", stored, "")


@dataclass
class Outcome:
    model: Model
    labels: np.ndarray[Any, Any]
    counts: np.ndarray[Any, Any]
    warnings: list[str]
    page: str


def run(pair: AnnotatedImage, folder: Path) -> Outcome:
    events: list[Any] = list(
        iter_train(tiny_recipe(), pair, out=folder / "run", device="cpu")
    )
    model = Model.load(folder / "run")
    prediction = iter_predict(model, pair.image, options=OPTIONS)
    events += prediction
    scores = iter_evaluate(model, pair, out=folder / "scores", options=OPTIONS)
    events += scores
    pages = [write_page(folder / name) for name in ("run", "scores")]
    return Outcome(
        model,
        np.asarray(prediction.labels.data),
        scores.scores.confusion.counts,
        [e.text for e in events if isinstance(e, Message) and e.level == "warning"],
        " ".join(page.read_text(encoding="utf-8") for page in pages),
    )


@pytest.mark.parametrize("tiles", [floats, integers])
def test_no_data_counts_like_nan(
    tmp_path: Path,
    tiles: Callable[[Path], tuple[AnnotatedImage, AnnotatedImage]],
) -> None:
    value, nan = (
        run(pair, tmp_path / name)
        for name, pair in zip(("value", "nan"), tiles(tmp_path), strict=True)
    )
    assert value.model.spec.normalization == nan.model.spec.normalization
    for key, weights in value.model.weights.items():
        assert torch.equal(weights, nan.model.weights[key])
    np.testing.assert_array_equal(value.labels, nan.labels)
    np.testing.assert_array_equal(value.counts, nan.counts)
    assert value.counts.sum() == 2 * 64 * 44
    missing = f"found {2 * 64 * 20} pixels that are not finite"
    for outcome in (value, nan):
        assert sum(missing in text for text in outcome.warnings) >= 2
        assert "-9999" not in outcome.page
    assert len(value.warnings) == len(nan.warnings)


def test_the_dtype_of_a_model_is_that_of_the_file(tmp_path: Path) -> None:
    with_value, _ = integers(tmp_path)
    recipe = tiny_recipe(normalization__grey_values="dtype")
    list(iter_train(recipe, with_value, out=tmp_path / "run", device="cpu"))
    model = Model.load(tmp_path / "run")
    assert model.spec.dtype == "uint8"
    for image in (with_value.image, easy_pair().image):
        events = list(iter_predict(model, image, options=OPTIONS))
        texts = [event.text for event in events if isinstance(event, Message)]
        assert not any("trained on" in text for text in texts)
