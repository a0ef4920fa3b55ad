"""Jobs on layers that are given as files do the same as the Python API."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import napari_strata as ns
from helpers import TINY, easy_pair, tiny_model, tiny_recipe, with_reference
from napari_strata.core.classes import ClassMap
from napari_strata.core.errors import ImageError, LabelError, ModelError, RunError
from napari_strata.core.events import (
    EpochEnd,
    Event,
    Message,
    PredictionEnd,
    PredictionStarted,
    RegionEnd,
    TrainingStarted,
)
from napari_strata.core.image import AnnotatedImage, Image
from napari_strata.core.runs import CrossvalFolder
from napari_strata.core.spec import resolve
from napari_strata.data.neighbours import pairs_with_neighbours
from napari_strata.inference import estimate
from napari_strata.inference.predict import iter_predict
from napari_strata.io import write_labels
from napari_strata.networks import build_network
from napari_strata.worker import jobs
from napari_strata.worker.protocol import (
    MaskPart,
    RequestError,
    TargetOpened,
    decode_request,
)
from napari_strata.worker.sources import ArrayView, Window
from worker.client import layer, train_request


def run(request: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """Run a job; return its events and its result."""
    events, work = [], jobs.run(decode_request(json.dumps({"job": "j"} | request)))  # type: ignore[arg-type]
    while True:
        try:
            events.append(next(work))
        except StopIteration as end:
            result = end.value.model_dump(exclude_unset=True)
            return events, json.loads(json.dumps(result, allow_nan=False))


def of(events: list[Any], kind: type[Any]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


@pytest.fixture(scope="module")
def pair() -> AnnotatedImage:
    return easy_pair((3, 48, 64))


@pytest.fixture(scope="module")
def model(pair: AnnotatedImage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(pair).save(tmp_path_factory.mktemp("model") / "model.safetensors")


def predict_request(
    model: Path, folder: Path, image: Image, **changes: Any
) -> dict[str, Any]:
    request = {
        "kind": "predict",
        "model": str(model),
        "image": layer(folder / "image.npy", image),
        "device": "cpu",
    }
    return request | {"out": str(folder / "out.npy")} | changes


def test_training_on_layers_equals_training_on_arrays(
    tmp_path: Path, pair: AnnotatedImage
) -> None:
    known = {"scale": [3.0, 2.0, 2.0], "units": ["micrometer"] * 3}
    request = train_request(tmp_path, pair)
    request["images"] |= known
    events, result = run(request)
    image = replace(pair.image, scale=(3.0, 2.0, 2.0), units=("micrometer",) * 3)
    labels = image.labels_like(pair.labels.data)
    expected = ns.train(
        ns.Recipe.parse(TINY),
        AnnotatedImage(image, labels),
        out=tmp_path / "other",
        device="cpu",
    )
    found = ns.Model.load(result["model"])
    assert found.digest == expected.digest
    assert found.spec.pixel_size == {"Z": 3.0, "Y": 2.0, "X": 2.0}
    assert result == {
        "run": request["out"],
        "model": f"{request['out']}/model.safetensors",
        "ended": "finished",
        "epoch": 2,
    }
    assert ns.RunFolder.open(request["out"]).events() == of(events, Event)


def test_training_takes_classes_unlabelled_values_overrides_and_validation(
    tmp_path: Path,
) -> None:
    one, other = easy_pair((1, 64, 64)), easy_pair((1, 64, 64), seed=1)
    other = replace(other, image=replace(other.image, name="other"), name="")
    held = train_request(tmp_path / "held", other)
    events, result = run(
        train_request(
            tmp_path,
            one,
            classes={"names": ["pore", "grain"], "values": [0, 255], "unlabelled": [7]},
            overrides={"training.epochs": 1},
            validation={"images": held["images"], "labels": held["labels"]},
        )
    )
    started = of(events, TrainingStarted)[0]
    assert started.class_names == ("pore", "grain")
    assert started.epochs == 1
    assert started.training_images == ("easy",)
    assert started.validation_images == ("other",)
    assert ns.Model.load(result["model"]).spec.classes.unlabelled == (7,)


def test_a_plan_describes_the_training_and_writes_nothing(
    tmp_path: Path, pair: AnnotatedImage
) -> None:
    request = train_request(tmp_path, pair)
    plan_request = {k: v for k, v in request.items() if k != "out"} | {"kind": "plan"}
    events, plan = run(plan_request)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["image.npy", "labels.npy"]
    trained, _ = run(request)
    started = of(trained, TrainingStarted)[0]
    assert plan["split"] == started.validation_text
    assert plan["parameters"] == started.parameters
    assert plan["device"] == started.device
    assert [row["name"] for row in plan["classes"]] == list(started.class_names)
    assert plan["recipe"]["training"]["epochs"] == 2
    labels = np.asarray(pair.labels.data)
    training = sum(plan["labelled_pixels"])
    assert 0.5 * labels.size < training < labels.size
    assert any(e.text.startswith("grey values") for e in events)


@pytest.mark.parametrize("axes", ["ZYX", "YXZ", "ZTYX", "TCZYX", "YX"])
def test_predicting_into_an_array_equals_predict(tmp_path: Path, axes: str) -> None:
    letters = dict(zip("TCZYX", (2, 1, 3, 40, 56), strict=True))
    array = np.random.default_rng(0).integers(
        0, 255, [letters[a] for a in axes], np.uint8
    )
    image = Image(array, axes, name="noise")
    model = tiny_model().save(tmp_path / "model.safetensors")
    reference = iter_predict(model, image, device="cpu", probabilities=True)
    list(reference)
    request = predict_request(model, tmp_path, image, probabilities=True)
    events, result = run(request)
    found, probabilities = (
        np.load(tmp_path / "out.npy"),
        np.load(tmp_path / "out_probabilities.npy"),
    )
    assert reference.probabilities is not None
    np.testing.assert_array_equal(found, reference.labels.data)
    assert found.dtype == reference.labels.dtype
    assert 0.05 < (found == found.flat[0]).mean() < 1
    np.testing.assert_array_equal(probabilities, reference.probabilities.data)
    opened = of(events, TargetOpened)[0]
    assert (opened.axes, opened.shape, opened.dtype) == (
        axes.replace("C", ""),
        found.shape,
        str(found.dtype),
    )
    assert opened.probabilities == str(tmp_path / "out_probabilities.npy")
    assert sum(result["pixels"].values()) == found.size
    assert of(events, PredictionEnd)[0].path == result["out"] == request["out"]
    assert len(of(events, RegionEnd)) == found.size // (40 * 56)


def test_the_array_exists_from_the_start_and_is_filled_plane_by_plane(
    tmp_path: Path, pair: AnnotatedImage, model: Path
) -> None:
    expected = np.asarray(ns.predict(model, pair.image, device="cpu").data)
    assert expected.any(axis=(1, 2)).all()
    request = predict_request(model, tmp_path, pair.image)
    work = jobs.run(decode_request(json.dumps({"job": "j"} | request)))  # type: ignore[arg-type]
    opened = next(event for event in work if isinstance(event, TargetOpened))
    shown = np.load(opened.path, mmap_mode="r")  # as the viewer does
    assert shown.shape == pair.image.shape
    assert [row["value"] for row in opened.classes] == [0, 255]
    done = 0
    for event in work:
        if isinstance(event, RegionEnd):
            done += 1
            np.testing.assert_array_equal(shown[:done], expected[:done])
            assert event.region == {"Z": done - 1}
            assert not shown[done:].any()
        if done == 2:
            break
    work.close()
    np.testing.assert_array_equal(np.load(opened.path)[:2], expected[:2])


def test_a_region_is_predicted_as_in_the_whole_image_and_the_rest_is_unchanged(
    tmp_path: Path, model: Path
) -> None:
    # The middle plane is darker, so that its own percentiles would scale it otherwise than the stack's.
    pair = easy_pair((3, 48, 64))
    array = np.asarray(pair.image.data).astype(np.float32)
    array[1] *= 0.3
    image = replace(pair.image, data=array)
    relative = ns.Model.load(model)
    normalization = relative.spec.normalization.model_copy(update={"kind": "relative"})
    model = replace(
        relative, spec=relative.spec.model_copy(update={"normalization": normalization})
    ).save(tmp_path / "relative.safetensors")
    expected = np.asarray(ns.predict(model, image, device="cpu").data)
    alone = np.asarray(
        ns.predict(model, replace(image, data=array[1:2]), device="cpu").data
    )
    assert (alone[0] != expected[1]).mean() > 0.01  # else this test would show nothing
    events, result = run(predict_request(model, tmp_path, image, region={"Z": 1}))
    np.testing.assert_array_equal(
        np.load(tmp_path / "out.npy"), expected * (np.arange(3) == 1)[:, None, None]
    )
    assert [e.region for e in of(events, RegionEnd)] == [{"Z": 1}]
    assert sum(result["pixels"].values()) == 48 * 64

    mapped = np.load(tmp_path / "out.npy", mmap_mode="r")
    events, _ = run(
        predict_request(
            model, tmp_path, image, region={"Z": (2, 3), "X": (16, 48)}, overwrite=True
        )
    )
    np.testing.assert_array_equal(mapped[1], expected[1])
    assert not mapped[2, :, :16].any()
    assert not mapped[2, :, 48:].any()
    assert mapped[2, :, 16:48].any()
    assert [e.region for e in of(events, RegionEnd)] == [{"Z": 2, "X": (16, 48)}]


def test_a_single_plane_is_predicted_with_its_neighbouring_slices(
    tmp_path: Path,
) -> None:
    pair = easy_pair((3, 48, 64))
    recipe = tiny_recipe(patches__neighbours=1)
    spec = resolve(recipe, pairs_with_neighbours([pair], 1))
    torch.manual_seed(0)
    network = build_network(spec)
    model = ns.Model(spec, recipe, dict(network.state_dict())).save(
        tmp_path / "model.safetensors"
    )
    expected = np.asarray(ns.predict(model, pair.image, device="cpu").data)
    flat = np.asarray(
        ns.predict(
            model, replace(pair.image, data=pair.image.data[[1, 1]]), device="cpu"
        ).data
    )
    assert (flat[0] != expected[1]).any()  # else this test would show nothing
    events, _ = run(
        predict_request(model, tmp_path, pair.image, region={"Z": 1, "X": (16, 64)})
    )
    assert not [e for e in events if isinstance(e, Message) and e.level == "warning"]
    found = np.load(tmp_path / "out.npy")
    assert (
        found[1, :, 32:] == expected[1, :, 32:]
    ).mean() > 0.99  # the cut border is another one
    assert not found[[0, 2]].any()


def test_labels_in_a_mapped_file_may_be_larger_than_the_memory(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = Image(np.zeros((2000, 48, 64), np.uint8), "ZYX")
    monkeypatch.setattr(estimate, "free_memory", lambda _: 5_000_000)
    work = jobs.run(
        decode_request(
            json.dumps({"job": "j"} | predict_request(model, tmp_path, image))
        )
    )  # type: ignore[arg-type]
    assert any(isinstance(event, RegionEnd) for event in work)
    work.close()
    with pytest.raises(
        RunError, match="5 MB of memory free"
    ):  # in arrays they do not fit
        ns.predict(model, image, device="cpu")


def test_an_array_is_replaced_only_with_overwrite(
    tmp_path: Path, pair: AnnotatedImage, model: Path
) -> None:
    request = predict_request(model, tmp_path, pair.image)
    np.save(tmp_path / "out.npy", np.full(pair.image.shape, 9, np.uint8))
    with pytest.raises(RunError, match="exists already"):
        run(request)
    assert (np.load(tmp_path / "out.npy") == 9).all()
    mapped = np.load(tmp_path / "out.npy", mmap_mode="r")
    work = jobs.run(
        decode_request(json.dumps({"job": "j", "overwrite": True} | request))
    )  # type: ignore[arg-type]
    next(event for event in work if isinstance(event, TargetOpened))
    assert not mapped.any()
    work.close()
    np.save(tmp_path / "out.npy", np.zeros((2, 2)))  # of another shape
    run(request | {"overwrite": True})
    np.testing.assert_array_equal(
        np.load(tmp_path / "out.npy"), ns.predict(model, pair.image, device="cpu").data
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["image.npy", "out.npy"]


def test_predicting_into_a_tiff_and_files_into_a_folder(
    tmp_path: Path, pair: AnnotatedImage, model: Path
) -> None:
    expected = np.asarray(ns.predict(model, pair.image, device="cpu").data)
    out = tmp_path / "labels.tif"
    _, result = run(predict_request(model, tmp_path, pair.image, out=str(out)))
    np.testing.assert_array_equal(ns.read_labels(out).data, expected)
    assert result["out"] == str(out)
    assert sum(result["pixels"].values()) == expected.size
    write_labels(tmp_path / "in" / "grey.tif", pair.image.labels_like(pair.image.data))
    request = {
        "kind": "predict",
        "model": str(model),
        "inputs": [str(tmp_path / "in")],
        "out": str(tmp_path / "made"),
    }
    run(request | {"device": "cpu"})
    np.testing.assert_array_equal(
        ns.read_labels(tmp_path / "made" / "grey_labels.tif").data, expected
    )


def test_evaluating_a_model_and_labels(
    tmp_path: Path, pair: AnnotatedImage, model: Path
) -> None:
    expected = ns.evaluate(model, pair, device="cpu").as_dict()
    data = {
        k: v
        for k, v in train_request(tmp_path, pair).items()
        if k in ("images", "labels")
    }
    request = {
        "kind": "evaluate",
        "model": str(model),
        "device": "cpu",
        "out": str(tmp_path / "report"),
    }
    events, scores = run(request | data)
    assert scores["confusion"] == expected["confusion"]
    assert scores["per_class"] == expected["per_class"]
    assert scores["per_image"]["easy"]["confusion"] == expected["confusion"]
    assert len(of(events, RegionEnd)) == 3
    assert json.loads((tmp_path / "report" / "metrics.json").read_text()) == expected
    predicted = ns.predict(model, pair.image, device="cpu")
    np.save(tmp_path / "predicted.npy", np.asarray(predicted.data))
    layers = [
        {"path": str(tmp_path / name), "axes": "ZYX"}
        for name in ("predicted.npy", "labels.npy")
    ]
    request = {
        "kind": "evaluate",
        "prediction": layers[0],
        "labels": layers[1],
        "out": str(tmp_path / "second"),
    }
    events, again = run(request)
    assert again["confusion"] == expected["confusion"]
    assert [event.done for event in of(events, RegionEnd)] == [1, 2, 3]
    truth, found = np.asarray(pair.labels.data), np.asarray(predicted.data)
    values = [row["value"] for row in expected["per_class"].values()]
    for i, j in np.ndindex(len(values), len(values)):
        counts = ((truth == values[i]) & (found == values[j])).sum(axis=(1, 2))
        assert again["most"][i][j] == (
            {"Z": int(counts.argmax())} if counts.any() else None
        )
    assert (tmp_path / "second" / "confusion.png").is_file()
    with pytest.raises(RunError, match="holds something already"):
        run(request)


def test_info_of_images_and_models_and_if_they_fit(
    tmp_path: Path, pair: AnnotatedImage, model: Path
) -> None:
    named = ClassMap(names=("pore", "grain"), values=(0, 255))
    write_labels(
        tmp_path / "a.tif", pair.image.labels_like(pair.labels.data, classes=named)
    )
    _, facts = run({"kind": "info", "path": str(tmp_path / "a.tif")})
    assert facts["images"][0]["axes"] == "ZYX"
    assert facts["images"][0]["shape"] == [3, 48, 64]
    assert any("pore" in line for line in facts["lines"])
    grey = layer(tmp_path / "grey.npy", pair.image)
    _, facts = run({"kind": "info", "path": str(model), "image": grey})
    assert (facts["what"], facts["fits"], facts["fit"]) == ("model", True, [])
    assert [row["value"] for row in facts["classes"]] == [0, 255]
    assert ns.Recipe.parse(facts["recipe"]) == ns.Recipe.parse(TINY)
    colours = layer(
        tmp_path / "colours.npy", Image(np.zeros((8, 8, 3), np.uint8), "YXC")
    )
    _, facts = run({"kind": "info", "path": str(model), "image": colours})
    assert facts["fits"] is False
    assert "3 channels" in facts["fit"][0]


def test_foreign_images_are_told_and_refused_if_strict(
    tmp_path: Path, pair: AnnotatedImage
) -> None:
    model = with_reference(tiny_model(pair), pair)
    path = str(model.save(tmp_path / "model.safetensors"))
    noise = np.random.default_rng(0).integers(0, 256, (3, 48, 64), np.uint8)
    foreign = layer(tmp_path / "noise.npy", Image(noise, "ZYX"))
    _, facts = run({"kind": "info", "path": path, "image": foreign})
    assert facts["fits"] is True
    (question,) = facts["questions"]
    assert "do not occur in the training images" in question
    assert question in facts["fit"]
    request = {"kind": "predict", "model": path, "image": foreign}
    request["out"] = str(tmp_path / "noise-labels.npy")
    with pytest.raises(ImageError, match="do not occur in the training images"):
        run(request | {"strict": True})
    events, _ = run(request)
    assert any("do not occur" in event.text for event in of(events, Message))


def test_labels_beside_a_path_and_dataset_folders(
    tmp_path: Path, pair: AnnotatedImage
) -> None:
    """Paths are read as by `read_pairs`; a .npy file without axes gets the axes of its image."""
    request = train_request(tmp_path, pair)
    for name, image in (("images", pair.image), ("labels", pair.labels)):
        write_labels(
            tmp_path / "set" / name / "a.tif", pair.image.labels_like(image.data)
        )
    plans = []
    for source in (
        {"images": str(tmp_path / "set")},
        {
            "images": str(tmp_path / "set" / "images"),
            "labels": str(tmp_path / "set" / "labels"),
        },
        {"images": request["images"], "labels": request["labels"]},
        {
            "images": [request["images"]],
            "labels": [str(tmp_path / "set" / "labels" / "a.tif")],
        },
        {
            "images": str(tmp_path / "image.npy"),
            "labels": str(tmp_path / "labels.npy"),
            "axes": "ZYX",
        },
    ):
        plans.append(run({"kind": "plan", "recipe": TINY, "device": "cpu"} | source)[1])
    for one, other in pairwise(plans):
        assert one["labelled_pixels"] == other["labelled_pixels"]
        assert one["split"] == other["split"]


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"images": {"path": "nowhere.npy"}}, ImageError, "no such file"),
        ({"images": {"path": "IMAGE"}}, ImageError, "cannot be known"),
        (
            {"images": {"path": "IMAGE", "axes": "TZYX"}},
            ImageError,
            "3 dimensions need 3 letters",
        ),
        (
            {"images": {"path": "BROKEN", "axes": "ZYX"}},
            ImageError,
            "no array that can be mapped",
        ),
        (
            {"images": {"path": "IMAGE", "axes": "ZYX", "scale": [1.0]}},
            ImageError,
            "found 1 scale for 3",
        ),
        ({"labels": None}, ImageError, "without labels"),
        ({"labels": {"path": "FLOATS"}}, LabelError, "labels must be integers"),
    ],
)
def test_errors_of_a_layer_are_reported(
    tmp_path: Path,
    pair: AnnotatedImage,
    change: dict[str, Any],
    error: type[Exception],
    said: str,
) -> None:
    request = train_request(tmp_path, pair)
    (tmp_path / "BROKEN.npy").write_bytes((tmp_path / "image.npy").read_bytes()[:200])
    np.save(tmp_path / "FLOATS.npy", np.asarray(pair.labels.data) / 2)
    np.save(tmp_path / "IMAGE.npy", np.asarray(pair.image.data))
    for value in change.values():
        if value and value["path"].isupper():
            value["path"] = str(tmp_path / f"{value['path']}.npy")
    with pytest.raises(error, match=said):
        run(request | change)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "region", [{"T": 0}, {"Z": 3}, {"Z": -1}, {"Y": (4, 4)}, {"X": (0, 65)}]
)
def test_a_region_beyond_the_image_is_refused(
    pair: AnnotatedImage, region: dict[str, Any]
) -> None:
    with pytest.raises(ImageError, match="Z of 3, Y of 48, X of 64"):
        Window.of(pair.image, region)


spans = st.tuples(st.integers(0, 5), st.integers(1, 6)).map(
    lambda t: slice(t[0], min(t[0] + t[1], 6))
)
keys = st.one_of(st.slices(6), st.just(slice(None)))


@given(box=st.tuples(spans, spans, spans), key=st.lists(keys, max_size=3).map(tuple))
def test_an_array_view_is_indexed_like_an_array(
    box: tuple[slice, ...], key: tuple[slice, ...]
) -> None:
    array = np.arange(216).reshape(6, 6, 6)
    part = ArrayView(array, box)
    assert part.shape == array[box].shape
    if all(k.step is None or k.step > 0 for k in key):
        np.testing.assert_array_equal(part[key], array[box][key])


def test_a_prediction_in_a_region_starts_with_its_events(
    tmp_path: Path, pair: AnnotatedImage, model: Path
) -> None:
    events, _ = run(predict_request(model, tmp_path, pair.image, region={"Z": (1, 3)}))
    kinds = [type(event) for event in events if not isinstance(event, RegionEnd)]
    assert kinds[-3:] == [TargetOpened, PredictionStarted, PredictionEnd]
    assert [e.region for e in of(events, RegionEnd)] == [{"Z": 1}, {"Z": 2}]
    assert of(events, PredictionStarted)[0].regions == 2


@pytest.fixture(scope="module")
def folds(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cross-validation of two folds, each of one epoch."""
    folder, one = tmp_path_factory.mktemp("crossval"), ns.Model.load(model)
    other = {k: v.flip(0) if k.endswith("bias") else v for k, v in one.weights.items()}
    for number, weights in enumerate((one.weights, other), 1):
        end = EpochEnd(
            1,
            1,
            0.5,
            0.5,
            0.6 + 0.1 * number,
            0.9,
            (0.6, 0.8),
            1e-3,
            1.0,
            True,
            True,
            "raw",
        )
        replace(one, weights=weights, history=(end,)).save(
            folder / f"fold_{number}" / "model.safetensors"
        )
    (folder / "crossval.json").write_text(
        json.dumps({"format": CrossvalFolder.FORMAT, "folds": ["fold_1", "fold_2"]})
    )
    return folder


def test_folds_and_lists_of_models_predict_and_are_scored_as_by_the_api(
    tmp_path: Path, pair: AnnotatedImage, folds: Path
) -> None:
    expected = np.asarray(ns.predict(folds, pair.image, device="cpu", tta=True).data)
    each = [str(folds / "fold_2"), str(folds / "fold_1" / "model.safetensors")]
    for number, group in enumerate((str(folds), each)):
        for name in (f"{number}.npy", f"{number}.tif"):
            predicting = predict_request(
                folds, tmp_path, pair.image, out=str(tmp_path / name), tta=True
            )
            run(predicting | {"model": group})
        np.testing.assert_array_equal(np.load(tmp_path / f"{number}.npy"), expected)
        np.testing.assert_array_equal(
            ns.read_labels(tmp_path / f"{number}.tif").data, expected
        )
        data = {
            k: v
            for k, v in train_request(tmp_path, pair).items()
            if k in ("images", "labels")
        }
        request = {"kind": "evaluate", "model": group, "device": "cpu", "tta": True}
        scores = ns.evaluate(folds, pair, device="cpu", tta=True).as_dict()
        assert run(request | data)[1]["confusion"] == scores["confusion"]
    alone = np.asarray(ns.predict(folds / "fold_1", pair.image, device="cpu").data)
    assert not np.array_equal(alone, expected)


def test_info_of_a_cross_validation(
    tmp_path: Path, pair: AnnotatedImage, folds: Path
) -> None:
    grey = layer(tmp_path / "grey.npy", pair.image)
    _, facts = run({"kind": "info", "path": str(folds), "image": grey})
    assert (facts["what"], facts["models"], facts["fits"]) == (
        "model",
        "2 models (cross-validation)",
        True,
    )
    assert facts["model"] == str(folds)
    assert facts["mean_iou"] == pytest.approx(0.75)
    assert facts["class_iou"] == pytest.approx([0.6, 0.8])
    assert [row["value"] for row in facts["classes"]] == [0, 255]
    _, facts = run(
        {"kind": "info", "path": str(folds / "fold_1" / "model.safetensors")}
    )
    assert facts["models"] == "1 model"
    (tmp_path / "crossval.json").write_text(
        json.dumps({"format": CrossvalFolder.FORMAT, "folds": ["fold_1"]})
    )
    with pytest.raises(ModelError, match="found no model in fold_1"):
        run({"kind": "info", "path": str(tmp_path)})


def segment_request(folder: Path, version: int = 1, **changes: Any) -> dict[str, Any]:
    request = {
        "kind": "segment",
        "image": {"path": str(folder / "image.npy"), "axes": "ZYX"},
        "labels": str(folder / "labels.npy"),
        "planes": [{"index": {"Z": 1}, "version": version}],
        "classes": {"names": ["a", "b"], "values": [1, 2], "unlabelled": [0]},
        "overrides": {"network.trees": 5, "network.depth": 3},
        "plane": {"Z": 2},
        "out": str(folder / "mask.npy"),
        "device": "cpu",
    }
    return request | changes


def test_strokes_are_segmented_and_later_ones_count(tmp_path: Path) -> None:
    image = np.zeros((3, 40, 60), np.uint8)
    image[:, 20:] = 200
    labels = np.zeros_like(image)
    labels[1, 5, 5:20] = 1
    labels[1, 30, 5:20] = 2
    np.save(tmp_path / "image.npy", image)
    np.save(tmp_path / "labels.npy", labels)
    events, result = run(segment_request(tmp_path))
    assert of(events, TargetOpened)[0].shape == (3, 40, 60)
    assert [part.stage for part in of(events, MaskPart)] == ["coarse", "full"]
    assert (result["strokes"], result["labelled_pixels"]) == (2, 30)
    mask = np.load(tmp_path / "mask.npy")
    assert (mask[2, :18] == 1).all()
    assert (mask[2, 22:] == 2).all()
    assert not mask[0].any(), "another plane is not touched"
    swapped = np.lib.format.open_memmap(tmp_path / "labels.npy", mode="r+")
    swapped[1, 5, 5:20], swapped[1, 30, 5:20] = 2, 1
    swapped.flush()
    run(segment_request(tmp_path, version=2, plane={"Z": 0}))
    assert (np.load(tmp_path / "mask.npy")[0, :18] == 2).all()


def test_planes_that_are_no_longer_named_are_forgotten(tmp_path: Path) -> None:
    image = np.zeros((3, 40, 60), np.uint8)
    image[:, 20:] = 200
    labels = np.zeros_like(image)
    labels[0, 5, 5:20], labels[1, 30, 5:20] = 1, 2
    np.save(tmp_path / "image.npy", image)
    np.save(tmp_path / "labels.npy", labels)
    planes = [{"index": {"Z": z}, "version": 1} for z in (0, 1)]
    _, result = run(segment_request(tmp_path, planes=planes))
    assert result["strokes"] == 2
    with pytest.raises(LabelError, match="paint two classes"):
        run(segment_request(tmp_path, planes=planes[:1]))


def test_a_network_is_no_recipe_for_a_live_mask(tmp_path: Path) -> None:
    np.save(tmp_path / "image.npy", np.zeros((3, 40, 60), np.uint8))
    np.save(tmp_path / "labels.npy", np.ones((3, 40, 60), np.uint8))
    with pytest.raises(RequestError, match="needed is one of the kind 'pixels'"):
        run(segment_request(tmp_path, recipe="default", overrides={}))


def test_levels_are_chosen_by_the_strokes(tmp_path: Path) -> None:
    image = np.zeros((3, 40, 60), np.uint8)
    image[:, 20:] = 200
    labels = np.zeros_like(image)
    for row in range(3, 40, 9):
        labels[1, row, 3:12], labels[1, row, 35:45] = 1, 2
    np.save(tmp_path / "image.npy", image)
    np.save(tmp_path / "labels.npy", labels)
    request = segment_request(tmp_path)
    _, mask = run(request)
    choice = request | {"kind": "choose_levels"}
    del choice["out"]
    _, chosen = run(choice)
    assert chosen["best_levels"] == 2, "the fewest tell these strokes as well"
    assert "2 octave levels" in chosen["reason"]
    assert mask["levels"] == 2
    _, other = run(request | {"overrides": {"network.levels": 3}})
    assert other["levels"] == 3


def test_the_next_window_follows_a_mask(tmp_path: Path) -> None:
    image = np.zeros((3, 40, 60), np.uint8)
    image[:, 20:] = 200
    labels = np.zeros_like(image)
    labels[1, 5, 5:15], labels[1, 30, 35:45] = 1, 2
    np.save(tmp_path / "image.npy", image)
    np.save(tmp_path / "labels.npy", labels)
    request = segment_request(tmp_path)
    run(request)
    asking = request | {"kind": "next_window", "side": 13}
    del asking["out"]
    _, window = run(asking)
    (top, bottom), (left, right) = window["rows"], window["columns"]
    assert window["index"] == {"Z": 2}
    assert (bottom - top, right - left) == (13, 13)
    assert 0 <= window["margin"] <= 1
    mask = np.load(tmp_path / "mask.npy")
    np.testing.assert_array_equal(window["labels"], mask[2, top:bottom, left:right])
    assert run(asking)[1] == window
    place = {key: window[key] for key in ("index", "rows", "columns")}
    _, other = run(asking | {"skipped": [place]})
    assert (other["rows"], other["columns"]) != (window["rows"], window["columns"])
    with pytest.raises(RequestError, match="greater than or equal to 11"):
        run(asking | {"side": 3})
