from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from helpers import easy_pair, tiny_model
from napari_strata.core.classes import ClassMap
from napari_strata.core.errors import ImageError, LabelError, RunError
from napari_strata.core.events import (
    Message,
    PredictionEnd,
    PredictionStarted,
    RegionEnd,
)
from napari_strata.core.image import AnnotatedImage, Image
from napari_strata.core.metrics import ConfusionMatrix
from napari_strata.core.options import PredictOptions
from napari_strata.evaluation.evaluate import evaluate, iter_evaluate, score_labels
from napari_strata.inference.build import build_ensemble_predictor
from napari_strata.inference.predict import predict
from napari_strata.models.ensemble import load_models
from napari_strata.models.model import Model

OPTIONS = PredictOptions(device="cpu", precision="fp32")
ONE, TWO = (replace(easy_pair((n, 40, 48), seed=n), name=f"rock {n}") for n in (3, 2))


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model(ONE)


def pair_scales(model: Model, pair: AnnotatedImage) -> list:
    return load_models(model).scales(pair.image.samples(), pair.image.dtype)


def relabelled(pair: AnnotatedImage, data: np.ndarray, **facts) -> AnnotatedImage:
    return replace(pair, labels=replace(pair.labels, data=data, **facts))


def counts(model: Model, *pairs: AnnotatedImage) -> np.ndarray:
    """The confusion matrix, counted another way."""
    table = np.zeros((2, 2), int)
    for pair in pairs:
        predicted, truth = (
            np.asarray(predict(model, pair.image, options=OPTIONS).data),
            np.asarray(pair.labels.data),
        )
        for i, first in enumerate((0, 255)):
            for j, second in enumerate((0, 255)):
                table[i, j] += ((truth == first) & (predicted == second)).sum()
    return table


def test_scores_are_global_and_per_image(model):
    scores = evaluate(model, [ONE, TWO], options=OPTIONS)
    assert np.array_equal(scores.confusion.counts, counts(model, ONE, TWO))
    assert [name for name, _ in scores.per_image] == ["rock 3", "rock 2"]
    for (_, confusion), pair in zip(scores.per_image, (ONE, TWO), strict=True):
        assert np.array_equal(confusion.counts, counts(model, pair))
    assert scores.as_dict()["confusion"] == counts(model, ONE, TWO).tolist()


def test_a_single_pair_and_keywords_will_do(model):
    assert np.array_equal(
        evaluate(model, TWO, device="cpu", precision="fp32").confusion.counts,
        counts(model, TWO),
    )


def test_the_truth_against_itself_is_perfect(model):
    predicted = predict(model, ONE.image, options=OPTIONS)
    scores = evaluate(model, AnnotatedImage(ONE.image, predicted), options=OPTIONS)
    assert scores.confusion.pixel_accuracy == 1


def test_unlabelled_pixels_planes_and_pixels_that_are_not_finite_are_not_counted(model):
    classes = model.spec.classes.model_copy(update={"unlabelled": (9,)})
    partial = replace(model, spec=model.spec.model_copy(update={"classes": classes}))
    truth = np.array(ONE.labels.data)
    truth[0], truth[1, :20] = 9, 9
    data = np.array(ONE.image.data, np.float32)
    data[2, 3, 4], data[0, 0, 0] = np.nan, np.inf
    pair = relabelled(replace(ONE, image=replace(ONE.image, data=data)), truth)
    job = iter_evaluate(partial, pair, options=OPTIONS)
    events = list(job)
    assert job.scores.confusion.counts.sum() == 20 * 48 + 40 * 48 - 1
    assert [e.region for e in events if isinstance(e, RegionEnd)] == [
        {"Z": 1},
        {"Z": 2},
    ]
    texts = [e.text for e in events if isinstance(e, Message)]
    assert any("found 2 pixels that are not finite" in text for text in texts)


def test_images_of_one_name_are_told_apart_by_their_files(model):
    pairs = [
        replace(p, image=replace(p.image, source=f"/data/{n}.tif"), name="scan")
        for n, p in (("a", ONE), ("b", TWO))
    ]
    scores = evaluate(model, pairs, options=OPTIONS)
    assert [name for name, _ in scores.per_image] == ["a.tif", "b.tif"]


def test_events_tell_the_story(model, tmp_path):
    job = iter_evaluate(model, [ONE, TWO], out=tmp_path / "scores", options=OPTIONS)
    with pytest.raises(RunError, match="not finished"):
        _ = job.scores
    started, *regions, told, end = list(job)
    assert isinstance(told, Message)
    assert "not known whether these labels were trained on" in told.text
    assert started == PredictionStarted("2 images", started.device, 5, 0)
    assert [(e.region, e.done) for e in regions] == [
        ({"Z": z}, n + 1) for n, z in enumerate([0, 1, 2, 0, 1])
    ]
    assert isinstance(end, PredictionEnd)
    assert end.path == str(tmp_path / "scores")


def test_a_label_value_the_model_does_not_know_stops_before_anything_is_predicted(
    model, tmp_path
):
    truth = np.array(ONE.labels.data)
    truth[2, 0, 0] = 7
    events = iter_evaluate(
        model, relabelled(ONE, truth), out=tmp_path / "scores", options=OPTIONS
    )
    with pytest.raises(
        LabelError, match=r"rock 3 Z=2.*label value 7 is not in the class map"
    ):
        next(events)
    assert not (tmp_path / "scores").exists()


def test_an_image_the_model_cannot_take_stops_before_anything_is_predicted(model):
    rgb = Image(np.zeros((3, 40, 48, 3), np.uint8), "ZYXC", name="photo")
    with pytest.raises(ImageError, match="photo: found 3 channels"):
        next(iter_evaluate(model, [TWO, replace(ONE, image=rgb)], options=OPTIONS))


def test_other_names_for_the_same_values_are_said(model):
    renamed = ClassMap(names=("class 0", "gold", "lead"), values=(0, 255, 4))
    job = iter_evaluate(
        model,
        relabelled(ONE, np.asarray(ONE.labels.data), classes=renamed),
        options=OPTIONS,
    )
    text, _ = [e.text for e in job if isinstance(e, Message)]
    assert (
        "name values differently: 255 ('gold' against 'class 255'); the value counts"
        in text
    )
    same = relabelled(ONE, np.asarray(ONE.labels.data), classes=model.spec.classes)
    events = iter_evaluate(model, same, options=OPTIONS)
    assert not any(isinstance(e, Message) and "differently" in e.text for e in events)


def test_the_report_is_complete(model, tmp_path):
    out = tmp_path / "deep" / "scores"
    scores = evaluate(model, [ONE, TWO], out=out, options=OPTIONS)
    confusion = json.loads((out / "metrics.json").read_text())
    assert set(confusion) == {
        "mean_iou",
        "mean_iou_in_truth",
        "trained_on",
        "calibration",
        "pixel_accuracy",
        "mean_dice",
        "per_class",
        "confusion",
    }
    assert set(confusion["per_class"]) == {"class 0", "class 255"}
    assert set(confusion["per_class"]["class 0"]) == {
        "value",
        "iou",
        "dice",
        "precision",
        "recall",
        "f1",
        "support",
    }
    assert confusion["confusion"] == counts(model, ONE, TWO).tolist()
    assert confusion["mean_iou"] == pytest.approx(scores.confusion.mean_iou)
    with open(out / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == ["rock 3", "rock 2"]
    assert float(rows[1]["iou class 255"]) == pytest.approx(
        scores.per_image[1][1].iou[1], abs=1e-6
    )
    assert int(rows[0]["labelled_pixels"]) == 3 * 40 * 48
    names = sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file())
    overlays = [
        f"overlays/{n}.png" for n in ("01_rock_3_Z=0", "02_rock_3_Z=1", "03_rock_3_Z=2")
    ]
    overlays += [f"overlays/{n}.png" for n in ("04_rock_2_Z=0", "05_rock_2_Z=1")]
    assert names == ["confusion.png", "metrics.csv", "metrics.json", *overlays]
    for name in names:
        if name.endswith(".png"):
            PIL.Image.open(out / name).load()


def test_the_calibration_error_is_that_of_the_probabilities(model):
    truth = np.array(ONE.labels.data)
    truth[1, :20] = 9
    classes = model.spec.classes.model_copy(update={"unlabelled": (9,)})
    partial = replace(model, spec=model.spec.model_copy(update={"classes": classes}))
    scores = evaluate(partial, [relabelled(ONE, truth), TWO], options=OPTIONS)
    probabilities, labels = [], []
    predictor = build_ensemble_predictor(load_models(partial), OPTIONS)
    for pair, values in ((ONE, truth), (TWO, np.asarray(TWO.labels.data))):
        scale = pair_scales(partial, pair)
        for plane, plane_truth in zip(pair.image.data, values, strict=True):
            _, found = predictor.predict(plane[None], scale, probabilities=True)
            labelled = plane_truth != 9
            probabilities.append(found[1][labelled].astype(float))
            labels.append(plane_truth[labelled] == 255)
    second, is_second = np.concatenate(probabilities), np.concatenate(labels)
    first = np.maximum(second, 1 - second)
    bins = np.ceil(first * 15)
    right = (second > 0.5) == is_second
    error = sum(
        abs(first[bins == n].sum() - right[bins == n].sum()) for n in np.unique(bins)
    )
    calibration = scores.as_dict()["calibration"]
    assert calibration["pixels"] == len(second) == 5 * 40 * 48 - 20 * 48
    # float16: the probabilities of both classes may not add up to 1 exactly.
    assert calibration["ece"] == pytest.approx(error / len(second), abs=1e-3)
    assert set(calibration["class_ece"]) == {"class 0", "class 255"}


def test_of_many_planes_a_few_are_drawn(model, tmp_path):
    many = easy_pair((30, 16, 16))
    scores = evaluate(model, many, out=tmp_path / "scores", options=OPTIONS)
    names = [example.name for example in scores.examples]
    assert len(names) == 8
    assert (names[0], names[-1]) == ("easy Z=0", "easy Z=29")
    assert len(list((tmp_path / "scores" / "overlays").iterdir())) == 8


def test_a_report_is_not_replaced_unasked_and_leaves_other_files_alone(model, tmp_path):
    out = tmp_path / "scores"
    evaluate(model, ONE, out=out, options=OPTIONS)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="holds something already"):
        evaluate(model, TWO, out=out, options=OPTIONS)
    evaluate(model, TWO, out=out, options=OPTIONS, overwrite=True)
    assert (out / "notes.txt").read_text() == "mine"
    assert (
        json.loads((out / "metrics.json").read_text())["confusion"]
        == counts(model, TWO).tolist()
    )
    assert sorted(p.name for p in (out / "overlays").iterdir()) == [
        "01_rock_2_Z=0.png",
        "02_rock_2_Z=1.png",
    ]
    with pytest.raises(RunError, match="found a file where a folder"):
        evaluate(model, TWO, out=out / "notes.txt", options=OPTIONS)


def test_a_place_that_cannot_be_written_is_said_in_words(model, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        evaluate(model, TWO, out=tmp_path / "file" / "scores", options=OPTIONS)


def test_labels_of_anybody_can_be_scored(model):
    found = predict(model, ONE.image, options=OPTIONS)
    confusion = score_labels(found, ONE.labels, model.spec.classes)
    assert np.array_equal(confusion.counts, counts(model, ONE))


def test_labels_that_do_not_fit_the_truth_are_refused(model):
    classes = model.spec.classes.model_copy(update={"unlabelled": (9,)})
    gap = np.array(ONE.labels.data)
    gap[1, 2, 3:5] = 9
    with pytest.raises(
        LabelError, match=r"Z=1: found 2 pixels that the prediction leaves unlabelled"
    ):
        score_labels(replace(ONE.labels, data=gap), ONE.labels, classes)
    assert (
        score_labels(ONE.labels, replace(ONE.labels, data=gap), classes).counts.sum()
        == gap.size - 2
    )
    with pytest.raises(ImageError, match="must cover the same pixels"):
        score_labels(TWO.labels, ONE.labels, classes)


def test_paths_will_do(model, tmp_path):
    path = model.save(tmp_path / "model.safetensors")
    out = str(tmp_path / "scores")
    assert np.array_equal(
        evaluate(path, TWO, out=out, options=OPTIONS).confusion.counts,
        counts(model, TWO),
    )
    assert Path(out, "metrics.json").is_file()


def test_several_models_are_scored_as_they_predict(model, tmp_path):
    names = [name for name in model.weights if name.endswith(("weight", "bias"))][-2:]
    weights = {
        name: value.flip(0) if name in names else value
        for name, value in model.weights.items()
    }
    group = [model.save(tmp_path / "a.safetensors"), replace(model, weights=weights)]
    job = iter_evaluate(group, [ONE, TWO], options=OPTIONS, tta=True)
    text, _ = [e.text for e in job if isinstance(e, Message)]
    assert (
        text
        == "probabilities are averaged over 2 models and over flips and turns (8 times the work)"
    )
    expected = np.zeros((2, 2), int)
    for pair in (ONE, TWO):
        predicted = (
            np.asarray(predict(group, pair.image, options=OPTIONS, tta=True).data)
            == 255
        )
        truth = np.asarray(pair.labels.data) == 255
        expected += [
            [(~truth & ~predicted).sum(), (~truth & predicted).sum()],
            [(truth & ~predicted).sum(), (truth & predicted).sum()],
        ]
    assert np.array_equal(job.scores.confusion.counts, expected)
    assert not np.array_equal(expected, counts(model, ONE, TWO))


def test_three_views_are_scored_as_they_are_predicted() -> None:
    """Chunk by chunk, on the slices that are annotated alone."""
    model, pair = tiny_model(), easy_pair((5, 40, 44), seed=3)
    truth = np.asarray(pair.labels.data).copy()
    truth[::2] = 7
    classes = model.spec.classes.model_copy(update={"unlabelled": (7,)})
    model = replace(model, spec=model.spec.model_copy(update={"classes": classes}))
    sparse = AnnotatedImage(pair.image, pair.image.labels_like(truth))
    predicted = evaluate(model, sparse, device="cpu", ortho=True).confusion
    labels = np.asarray(predict(model, pair.image, device="cpu", ortho=True).data)
    expected = ConfusionMatrix(classes)
    expected.update(classes.encode(truth), classes.encode(labels))
    np.testing.assert_array_equal(predicted.counts, expected.counts)
    assert predicted.counts.sum() == 2 * 40 * 44
