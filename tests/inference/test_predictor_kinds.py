"""A predictor from outside the package, which is not a network, predicts as networks do."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers import TINY, easy_pair, tiny_model
from napari_strata import Model, ModelSpec, Recipe, cli, estimate_prediction, predict
from napari_strata.core.classes import IGNORE
from napari_strata.core.events import Message, RegionEnd
from napari_strata.core.geometry import Geometry
from napari_strata.core.network_sections import (
    NetworkSection,
    network_kinds,
    register_network,
)
from napari_strata.core.options import PredictOptions
from napari_strata.core.spec import resolve
from napari_strata.data.regions import labelled_regions
from napari_strata.inference import build
from napari_strata.inference.build import build_predictor, register_predictor
from napari_strata.inference.predict import iter_predict
from napari_strata.io import read_labels, write_image
from napari_strata.models.device import Precision
from napari_strata.training.losses import build_loss
from napari_strata.training.validation import load_truths, validate

PAIR = easy_pair((4, 40, 52))
OPTIONS = PredictOptions(device="cpu", precision="fp32", tile=16)


class ThresholdSection(NetworkSection):
    """Class 1 where grey values are above a threshold."""

    builder: ClassVar[str] = ""
    widest_halo: ClassVar[int] = 0

    kind: Literal["threshold"] = "threshold"

    def geometry(self, strides: Sequence[int] = ()) -> Geometry:
        return Geometry(stride=1, reach=0, whole_tile=False)

    def describe(self) -> str:
        return "a threshold"


class ThresholdPredictor:
    """See `models.predictor.Predictor`. It counts the tiles that it predicts."""

    def __init__(self, spec: ModelSpec, threshold: float) -> None:
        self.spec = spec
        self.device = torch.device("cpu")
        self.precision = Precision("fp32")
        self.threshold = threshold
        self.tiles: list[tuple[int, ...]] = []

    def logits(self, batch: np.ndarray[Any, Any]) -> Tensor:
        self.tiles += [batch.shape[2:]] * len(batch)
        grey = torch.from_numpy(batch[:, :1]) - self.threshold
        return torch.cat([-grey, grey], 1)

    def memory(self, shape: Sequence[int]) -> int:
        return 12 * math.prod(shape)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Iterator[Model]:
    """A model of the kind; its threshold is the centre of the scale."""
    kinds = network_kinds()
    assert isinstance(kinds, dict)
    monkeypatch.setattr(build, "_BUILDERS", {})
    register_network(ThresholdSection)
    register_predictor(
        "threshold",
        lambda model, options: ThresholdPredictor(
            model.spec, float(model.weights["threshold"])
        ),
    )
    recipe = Recipe.parse(TINY | {"network": {"kind": "threshold"}})
    spec = resolve(recipe, PAIR)
    yield Model(spec, recipe, {"threshold": torch.tensor(0.0)})
    del kinds["threshold"]


def expected(spec: ModelSpec, shift: float = 0.0) -> np.ndarray:
    scale = spec.normalization.scale
    scaled = scale.apply(np.asarray(PAIR.image.data)[None])[0]
    return np.where(scaled > shift, 255, 0)


def test_it_is_saved_and_loaded_and_predicts_in_tiles(model: Model, tmp_path: Path):
    saved = model.save(tmp_path / "model.safetensors")
    assert np.array_equal(
        predict(saved, PAIR.image, options=OPTIONS).data, expected(model.spec)
    )
    tiled = build_predictor(Model.load(saved), OPTIONS)
    indices, _ = tiled.predict(
        PAIR.image.read({"Z": 0}), model.spec.normalization.scale
    )
    assert np.array_equal(indices * 255, expected(model.spec)[0])
    predictor = tiled.predictor
    assert isinstance(predictor, ThresholdPredictor)
    assert len(predictor.tiles) == 3 * 4
    assert max(max(tile) for tile in predictor.tiles) <= 16


@pytest.mark.parametrize("averaging", [{"tta": True}, {"ortho": True}])
def test_flips_turns_and_views_change_nothing(model: Model, averaging: dict[str, bool]):
    labels = predict(model, PAIR.image, options=OPTIONS, **averaging)
    assert np.array_equal(labels.data, expected(model.spec))


def test_it_predicts_together_with_a_network(model: Model):
    network = tiny_model(PAIR)
    probabilities = []
    for models in (model, network, [model, network]):
        job = iter_predict(models, PAIR.image, options=OPTIONS, probabilities=True)
        assert not [e for e in job if isinstance(e, Message) and e.level == "warning"]
        assert job.probabilities is not None
        probabilities.append(np.asarray(job.probabilities.data, np.float32))
    assert np.abs(probabilities[0] - probabilities[1]).max() > 0.1
    np.testing.assert_allclose(
        probabilities[2], (probabilities[0] + probabilities[1]) / 2, atol=1e-3
    )


def test_shards_fill_one_file_and_an_interrupted_prediction_goes_on(
    model: Model, tmp_path: Path
):
    out = tmp_path / "labels.tif"
    job = iter_predict(model, PAIR.image, out=out, options=OPTIONS, part="1/2")
    for event in job:
        if isinstance(event, RegionEnd):
            job.close()
    for part in ("2/2", "1/2"):
        job = iter_predict(model, PAIR.image, out=out, options=OPTIONS, part=part)
        regions = [event.region for event in job if isinstance(event, RegionEnd)]
    assert regions == [{"Z": 1}]
    assert np.array_equal(read_labels(out).data, expected(model.spec))


def test_it_is_estimated(model: Model):
    estimated = estimate_prediction(model, PAIR.image, options=OPTIONS)
    assert estimated.seconds is not None
    assert estimated.forwarded == 1
    assert estimated.memory < 100_000


def test_the_command_line_estimates_and_predicts(
    model: Model,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    saved = model.save(tmp_path / "model.safetensors")
    image = write_image(tmp_path / "image.tif", PAIR.image)
    out = tmp_path / "labels.tif"
    command = ["predict", str(saved), str(image), "--out", str(out), "--device", "cpu"]
    for extra in (["--estimate", "--json"], []):
        monkeypatch.setattr(sys, "argv", ["napari-strata", *command, *extra])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert end.value.code == 0
        output = capsys.readouterr().out
        if extra:
            assert json.loads(output)["planes"] == 4
            assert not out.exists()
    assert np.array_equal(read_labels(out).data, expected(model.spec))


def test_it_is_validated(model: Model):
    truths = load_truths(labelled_regions([PAIR], model.spec.classes), model.spec)
    loss = build_loss(model.recipe.training, classes=2)
    predictor = build_predictor(model, OPTIONS)
    scores = validate(predictor, truths, loss)
    labelled = sum(int((truth.labels != IGNORE).sum()) for truth in truths)
    assert scores.confusion.counts.sum() == labelled == PAIR.image.data.size
    assert scores.confusion.mean_iou > 0.9
