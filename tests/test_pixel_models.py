"""A pixel classifier goes everywhere that a network goes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import napari_strata as ns
from helpers import easy_pair, tiny_model
from napari_strata.core.errors import ModelError
from napari_strata.core.events import Message
from napari_strata.core.image import AnnotatedImage
from napari_strata.core.options import PredictOptions
from napari_strata.inference.build import build_predictor
from napari_strata.inference.predict import iter_predict
from napari_strata.io import write_image
from napari_strata.models.ensemble import load_models
from napari_strata.models.model import Model
from napari_strata.models.pixels.predictor import PixelPredictor
from napari_strata.worker import jobs
from napari_strata.worker.protocol import decode_request

QUICK: dict[str, Any] = {
    "network.trees": 12,
    "network.depth": 5,
    "network.levels": 2,
    "network.pixels": 2000,
}


@pytest.fixture(scope="module")
def pair() -> AnnotatedImage:
    return easy_pair((4, 48, 52))


@pytest.fixture(scope="module")
def run(pair: AnnotatedImage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("pixels") / "run"
    ns.train("instant", pair, out=run, overrides=QUICK, device="cpu")
    return run


@pytest.fixture(scope="module")
def strokes_run(pair: AnnotatedImage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    truth = pair.labels.read()[0]
    painted = np.where(truth > 0, 2, 1).astype(np.uint8)
    painted[:, :, 5:] = 0
    strokes = AnnotatedImage(pair.image, pair.image.labels_like(painted))
    run = tmp_path_factory.mktemp("strokes") / "run"
    ns.train("instant", strokes, unlabelled=[0], out=run, overrides=QUICK, device="cpu")
    return run


def labels(model: Any, pair: AnnotatedImage, **options: Any) -> np.ndarray:
    return ns.predict(model, pair.image, device="cpu", **options).read()[0]


def test_labels_do_not_depend_on_tiles_batches_or_options_of_networks(
    run: Path, pair: AnnotatedImage
) -> None:
    whole = labels(run, pair)
    assert (whole == pair.labels.read()[0]).mean() > 0.95
    for options in (
        {"tile": 8, "batch": 3},
        {"precision": "bf16"},
        {"backend": "onnx"},
        {"compile": True},
    ):
        np.testing.assert_array_equal(labels(run, pair, **options), whole)


@pytest.mark.parametrize(
    ("options", "name"),
    [({"backend": "openvino"}, "backend 'openvino'"), ({"compile": True}, "compile")],
)
def test_options_of_networks_are_said_to_have_no_effect(
    run: Path, pair: AnnotatedImage, options: dict[str, Any], name: str
) -> None:
    def warnings(model: Any, **options: Any) -> list[str]:
        options = {"device": "cpu"} | options
        events = iter_predict(model, pair.image, options=PredictOptions(**options))
        found = [event for event in events if isinstance(event, Message)]
        return [event.text for event in found if event.level == "warning"]

    assert [text.partition(" has no")[0] for text in warnings(run, **options)] == [name]
    assert not warnings(run)


def test_flips_and_views_are_averaged(run: Path, pair: AnnotatedImage) -> None:
    truth = pair.labels.read()[0]
    assert (labels(run, pair, tta=True) == truth).mean() > 0.95
    assert (labels(run, pair, ortho=True) == truth).mean() > 0.8


def test_an_ensemble_mixes_it_with_a_network(run: Path, pair: AnnotatedImage) -> None:
    network = tiny_model(pair)
    forest = Model.load(run)
    _, pixels_chances = _probabilities([forest], pair)
    _, network_chances = _probabilities([network], pair)
    mixed_labels, probabilities = _probabilities([forest, network], pair)
    np.testing.assert_allclose(
        probabilities, (pixels_chances + network_chances) / 2, atol=2e-3
    )
    np.testing.assert_array_equal(
        mixed_labels, labels([network, forest], pair), "whatever the order"
    )
    scores = ns.evaluate([forest, network], pair, device="cpu").confusion
    assert 0 < scores.mean_iou <= 1


def _probabilities(
    models: list[Model], pair: AnnotatedImage
) -> tuple[np.ndarray, np.ndarray]:
    options = PredictOptions(device="cpu", probabilities=True)
    prediction = iter_predict(models, pair.image, options=options)
    for _ in prediction:
        pass
    assert prediction.probabilities is not None
    probabilities = np.asarray(prediction.probabilities.data, np.float32)
    return prediction.labels.read()[0], probabilities


def test_parts_of_a_prediction_are_the_whole(
    run: Path, pair: AnnotatedImage, tmp_path: Path
) -> None:
    out = tmp_path / "labels.tif"
    options = PredictOptions(device="cpu")
    for part in ("2/2", "1/2"):
        for _ in iter_predict(run, pair.image, out=out, options=options, part=part):
            pass
    np.testing.assert_array_equal(ns.read_labels(out).read()[0], labels(run, pair))


def test_time_and_memory_are_estimated(run: Path, pair: AnnotatedImage) -> None:
    models = load_models(run)
    found = ns.estimate_prediction(models, pair.image, out=None, device="cpu")
    assert found.seconds is not None
    assert 0 < found.memory < 100e6


def test_its_predictor_computes_in_float32(run: Path) -> None:
    options = PredictOptions(device="cpu", precision="bf16")
    predictor = build_predictor(Model.load(run), options).predictor
    assert isinstance(predictor, PixelPredictor)
    assert predictor.precision.name == "fp32"


def test_it_is_no_torch_network(run: Path) -> None:
    with pytest.raises(ModelError, match="not a torch network"):
        Model.load(run).build()


def test_crossvalidation_goes_on_where_it_was(
    pair: AnnotatedImage, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"folds": 2, "overrides": QUICK, "device": "cpu"}
    out = tmp_path / "cv"
    first = ns.crossval("instant", pair, out=out, **options)
    digests = [Model.load(out / f"fold_{i}").digest for i in (1, 2)]
    again = ns.crossval("instant", pair, out=out, **options)
    assert again.mean_iou == first.mean_iou > 0.9
    assert digests == [Model.load(out / f"fold_{i}").digest for i in (1, 2)]
    assert len(load_models(out)) == 2


@pytest.mark.parametrize("epochs", [1, 4])
def test_epochs_mean_nothing_to_it(
    pair: AnnotatedImage, tmp_path: Path, epochs: int
) -> None:
    overrides = QUICK | {"training.epochs": epochs}
    options: dict[str, Any] = {"folds": 2, "overrides": overrides, "device": "cpu"}
    for _ in range(2):
        ns.crossval("instant", pair, out=tmp_path / "cv", **options)
    model = Model.load(tmp_path / "cv" / "fold_1")
    assert len(model.history) == model.recipe.training.epochs == 1


def test_a_search_compares_it_with_a_network(
    pair: AnnotatedImage, tmp_path: Path
) -> None:
    recipes = [
        {"name": "small", "network": {"kind": "unet", "widths": [4, 8]}},
        {
            "name": "forest",
            "network": {"kind": "pixels", "trees": 12, "depth": 5, "levels": 2},
        },
    ]
    for recipe in recipes:
        (tmp_path / f"{recipe['name']}.yaml").write_text(json.dumps(recipe))
    names = [str(tmp_path / f"{recipe['name']}.yaml") for recipe in recipes]
    overrides = {
        "training.epochs": 1,
        "patches.size": 16,
        "patches.per_epoch": 4,
        "training.batch_size": 4,
    }
    found = ns.tune(
        names[0],
        pair,
        {"recipe": names},
        out=tmp_path / "search",
        folds=2,
        device="cpu",
        overrides=overrides,
    )
    assert Model.load(tmp_path / "search" / "final").spec.network.kind == "pixels"
    assert found.trials


def test_reports_say_what_is_known(run: Path, strokes_run: Path) -> None:
    page = ns.write_page(run).read_text(encoding="utf-8")
    assert "A pixel classifier of 12 trees of depth 5" in page
    assert "mean IoU" in page
    page = ns.write_page(strokes_run).read_text(encoding="utf-8")
    assert "held-out stroke pixels" in page
    assert "nothing is known" not in page


def _result(request: dict[str, Any]) -> Any:
    work = jobs.run(decode_request(json.dumps({"job": "j"} | request)))  # type: ignore[arg-type]
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


def test_the_docks_read_its_plan_and_its_model(
    strokes_run: Path, pair: AnnotatedImage, tmp_path: Path
) -> None:
    write_image(tmp_path / "image.tif", pair.image)
    ns.write_labels(tmp_path / "labels.tif", pair.labels)
    plan = _result(
        {
            "kind": "plan",
            "images": [str(tmp_path / "image.tif")],
            "labels": [str(tmp_path / "labels.tif")],
            "recipe": "instant",
        }
    )
    assert plan.parameters == 100 * (20 + 1024 * 2) + 2
    assert 0 < plan.memory < 200e6
    info = _result({"kind": "info", "path": str(strokes_run)})
    assert info.spec["network"]["kind"] == "pixels"
    assert info.epochs == 1
    assert info.mean_iou is None or np.isnan(info.mean_iou)
