"""Requests and events are unchanged by the transport; invalid lines are refused."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from napari_strata.core.classes import ClassMap
from napari_strata.core.events import BatchEnd, EpochEnd, Message, RegionEnd
from napari_strata.worker.protocol import (
    Case,
    EvaluateResult,
    ImageFacts,
    ImageInfo,
    JobEnded,
    JobFailed,
    JobQueued,
    JobResult,
    JobStarted,
    Keep,
    LabelsChanged,
    Layer,
    ModelInfo,
    PlanJob,
    PlanResult,
    PredictJob,
    PredictResult,
    Ready,
    Refused,
    RequestError,
    Stop,
    TargetOpened,
    TrainJob,
    TrainResult,
    decode_event,
    decode_request,
    encode_event,
    encode_request,
)

TRAIN = {
    "job": "a",
    "kind": "train",
    "images": "stack.tif",
    "labels": "labels.tif",
    "out": "run",
}


def refused(request: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        decode_request(
            request if isinstance(request, (str, bytes)) else json.dumps(request)
        )
    return caught.value


def test_a_job_has_the_names_and_defaults_of_the_api() -> None:
    job = decode_request(json.dumps(TRAIN))
    assert isinstance(job, TrainJob)
    assert job.images == (Layer(path="stack.tif"),)
    assert job.labels == (Layer(path="labels.tif"),)
    assert (
        job.recipe,
        job.device,
        job.unlabelled,
        job.resume,
        job.extend,
        job.keep,
    ) == (
        "default",
        "auto",
        (),
        False,
        0,
        False,
    )


def test_requests_are_unchanged_by_the_transport() -> None:
    job = TrainJob(
        job="a",
        recipe={"training": {"epochs": 3}},
        images=(
            Layer(
                path="a.npy",
                axes="ZYX",
                scale=(2.0, 1.0, 1.0),
                units=("um",) * 3,
                name="sand",
            ),
            "b.tif",
        ),
        labels=("c.npy", Layer(path="d.tif")),
        classes=ClassMap(names=("pore", "grain"), values=(1, 2), unlabelled=(0,)),
        overrides={"training.learning_rate": 1e-4},
        out="run",
        keep=True,
    )
    assert decode_request(encode_request(job)) == job


def test_messages() -> None:
    assert decode_request('{"stop": "a"}') == Stop(stop="a")
    assert decode_request('{"keep": "a"}') == Keep(keep="a", on=True)
    labels = LabelsChanged(job="a", value=Layer(path="labels.npy"))
    assert decode_request(encode_request(labels)) == labels
    line = '{"changed": "labels", "job": "a", "value": {"path": "labels.npy"}}'
    assert decode_request(line) == labels


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("garbage", "not JSON (garbage)"),
        (b"\xff\xfe\x00", "not JSON"),
        ("[1, 2]", "not a JSON object"),
        (
            '{"halt": "a"}',
            "found a message with ['halt']; known: a job (job, kind), stop, keep, changed",
        ),
        ('{"stop": 3}', "message 'stop': stop is 3"),
        ('{"stop": "a", "now": true}', "unknown key 'now'"),
        ('{"kind": "train", "images": "a"}', "a train job without an id"),
        ('{"kind": "train", "job": 7}', "a train job without an id"),
        ('{"kind": ["train"]}', "a ['train'] job without an id"),
        ('{"stop": {"stop": "a"}}', "stop is {'stop': 'a'}"),
        ('{"changed": "labels", "job": "a"}', "value is missing"),
        ('{"changed": ["labels"], "job": "a"}', "changed (labels)"),
        ("[" * 100_000, "nested too deeply"),
        ('{"stop": ' + "[" * 100_000, "nested too deeply"),
    ],
)
def test_an_invalid_line_without_a_job_is_refused_with_what_is_needed(
    line: str | bytes, said: str
) -> None:
    error = refused(line)
    assert said in str(error)
    assert error.job is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": []}, "there is no kind '[]'; known: "),
        ({"kind": {"kind": "train"}}, "there is no kind "),
        ({"kind": None}, "there is no kind 'None'"),
        ({"kind": "trian"}, "there is no kind 'trian'; did you mean 'train'?"),
        ({"out": None}, "train job: out is None: input should be a valid string"),
        ({"epochs": 5}, "train job: unknown key 'epochs', "),
        ({"recepi": "default"}, "unknown key 'recepi', did you mean 'recipe'?"),
        ({"extend": -1}, "extend is -1: input should be greater than or equal to 0"),
        (
            {"images": {"path": "a.npy", "axis": "ZYX"}},
            "unknown key 'images.0.axis', did you mean 'axes'?",
        ),
        ({"images": []}, "images is []"),
        ({"recipe": 3}, "recipe is 3"),
        ({"kind": "predict"}, "unknown key 'labels'"),
        (
            {"classes": {"names": ["a"], "values": [1, 2]}},
            "every class needs one name, one value and one colour",
        ),
    ],
)
def test_an_invalid_job_is_refused_with_its_id_and_errors(
    change: dict[str, Any], said: str
) -> None:
    error = refused(TRAIN | change)
    assert said in str(error)
    assert error.job == "a"
    assert len(str(error)) < 400


def test_paths_that_are_not_utf8_are_unchanged_by_the_transport() -> None:
    job = PlanJob(job="a", images=(Layer(path="odd/\udcff.tif"),))
    assert decode_request(encode_request(job)) == job
    failed = JobFailed(text="odd/\udcff.tif: no such file", kind="StrataError")
    assert decode_event(encode_event(failed, "a")) == ("a", failed)


def test_a_job_that_is_nested_too_deeply_is_refused_with_its_id() -> None:
    deep = '{"a":' * 900 + "1" + "}" * 900
    error = refused(f'{{"job": "a", "kind": "info", "path": {deep}}}')
    assert error.job == "a"


def test_a_missing_key_is_named_once() -> None:
    assert (
        str(refused({"job": "a", "kind": "train", "out": "run"}))
        == "train job: images is missing."
    )
    assert str(refused({"job": "a", "images": "x"})).startswith(
        "job 'a': kind is missing; needed is one of train"
    )


PREDICT = {
    "job": "p",
    "kind": "predict",
    "model": "run",
    "image": "a.tif",
    "out": "b.npy",
}


def test_region_and_inputs_of_a_prediction() -> None:
    job = decode_request(json.dumps(PREDICT | {"region": {"Z": 3, "Y": [0, 10]}}))
    assert isinstance(job, PredictJob)
    assert job.region == {"Z": 3, "Y": (0, 10)}
    assert "only for one image and a .npy file" in str(
        refused(PREDICT | {"region": {"Z": 3}, "out": "b.tif"})
    )
    assert "region.C" in str(refused(PREDICT | {"region": {"C": 0}}))
    assert "either image, or inputs" in str(refused(PREDICT | {"inputs": ["c.tif"]}))
    assert "either image, or inputs" in str(
        refused({k: v for k, v in PREDICT.items() if k != "image"})
    )


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"model": "run"},
        {"prediction": "a.tif"},
        {"model": "run", "images": "a.tif", "prediction": "b.tif", "labels": "c.tif"},
        {"prediction": "b.tif", "labels": ["c.tif", "d.tif"]},
    ],
)
def test_an_evaluation_is_of_a_model_or_of_labels(given: dict[str, Any]) -> None:
    assert "model and images, or prediction and labels" in str(
        refused({"job": "e", "kind": "evaluate"} | given)
    )


EVENTS = [
    Ready(
        protocol=1,
        pid=42,
        host="here",
        versions={"torch": "2"},
        devices={"cpu": "CPU, 2 cores"},
        seconds=1.5,
    ),
    Refused(text="no"),
    JobQueued(),
    JobStarted(kind="train"),
    TargetOpened(
        path="a.npy",
        axes="ZYX",
        shape=(2, 3, 4),
        dtype="uint8",
        classes=({"index": 0, "name": "pore"},),
    ),
    JobEnded(reason="stopped"),
    JobFailed(text="a\nb", kind="StrataError"),
    Message("µm", "warning"),
    BatchEnd(1, 2, 3, 0.5, 1e-4, 0.1),
    RegionEnd({"Z": 3, "Y": (0, 10)}, 1, 2, 0.5),
]


@pytest.mark.parametrize("event", EVENTS, ids=lambda e: type(e).__name__)
def test_events_are_unchanged_by_the_transport(event: Any) -> None:
    line = encode_event(event, "a")
    assert "\n" not in line
    assert json.loads(line) == json.loads(line, parse_constant=pytest.fail)
    assert json.loads(line)["job"] == "a"
    assert decode_event(line) == ("a", event)


def test_scores_that_are_nan_are_null_in_the_line() -> None:
    nan = float("nan")
    end = EpochEnd(1, 2, 0.5, nan, nan, 0.5, (0.5, nan), 1e-3, 1.0, True, False, "raw")
    raw = json.loads(encode_event(end, "a"))
    assert (raw["validation_loss"], raw["class_iou"]) == (None, [0.5, None])
    scores = SCORES.model_copy(update={"per_class": {"pore": {"iou": nan}}})
    raw = json.loads(encode_event(JobEnded(reason="finished", result=scores), "a"))
    assert raw["result"]["per_class"] == {"pore": {"iou": None}}


SCORES = EvaluateResult(
    mean_iou=0.5,
    mean_dice=None,
    pixel_accuracy=0.75,
    per_class={"pore": {"value": 1, "iou": 0.5}},
    confusion=((1, 0), (2, 3)),
    per_image={"sand": {"mean_iou": 0.5}},
    out=None,
    most=((None, {"Z": 1}), ({}, None)),
    cases=(Case(index={"Z": 1}, mean_iou=0.5),),
)
RESULTS: list[JobResult] = [
    TrainResult(run="run", model="run/model", ended="finished", epoch=2),
    PlanResult(
        recipe={"name": "default"},
        spec={"patch": 64},
        split="by halves",
        training=("left",),
        validation=("right",),
        classes=({"index": 0, "name": "pore"},),
        labelled_pixels=(3, 4),
        device="CPU",
        precision="fp32",
        memory=10,
        free_memory=None,
        parameters=5,
    ),
    PredictResult(out="a.npy", pixels={"pore": 3}),
    PredictResult(out="folder"),
    SCORES,
    ImageInfo(
        what="image",
        lines=("sand.tif",),
        images=(
            ImageFacts(
                name="sand",
                axes="YX",
                shape=(2, 3),
                scale=(1.0, 1.0),
                units=("pixel", "pixel"),
                channel_names=(),
                notes=(),
                dtype="uint8",
            ),
        ),
    ),
    ModelInfo(
        what="model",
        model="run",
        models="1 model",
        created="2026-11-30",
        versions={"torch": "2"},
        recipe={},
        spec={},
        classes=(),
        epochs=2,
        mean_iou=None,
        class_iou=(),
        fits=False,
        fit=("no",),
    ),
]


@pytest.mark.parametrize("result", RESULTS, ids=lambda r: type(r).__name__)
def test_results_keep_their_type(result: JobResult) -> None:
    ended = JobEnded(reason="finished", result=result)
    line = encode_event(ended, "a")
    assert decode_event(line) == ("a", ended)
    newer = json.loads(line)
    newer["result"]["some_new_fact"] = 1
    assert decode_event(json.dumps(newer)) == ("a", ended)


def test_unset_facts_of_a_result_are_absent_in_the_line() -> None:
    ended = JobEnded(reason="finished", result=PredictResult(out="folder"))
    assert json.loads(encode_event(ended, "a"))["result"] == {"out": "folder"}
    stopped = JobEnded(reason="stopped")
    assert json.loads(encode_event(stopped, "a"))["result"] == {}


def test_a_preview_is_called_aside_in_the_line() -> None:
    request = PREDICT | {"aside": True}
    job = decode_request(json.dumps(request))
    assert isinstance(job, PredictJob)
    assert job.preview
    assert json.loads(encode_request(job))["aside"] is True
    assert decode_request(encode_request(job)) == job


@pytest.mark.parametrize(
    "line",
    ["Last login", "[]", "3", "{}", '{"event": "Ready"}', '{"event": "No", "job": 1}'],
)
def test_other_lines_are_not_events(line: str) -> None:
    with pytest.raises(ValueError):
        decode_event(line)


def test_a_client_needs_no_torch() -> None:
    code = "import sys, napari_strata.worker.protocol; print('torch' in sys.modules)"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        == "False\n"
    )


def test_models_are_one_or_several_and_old_requests_keep_their_meaning() -> None:
    predict = {"job": "a", "kind": "predict", "image": "i.tif", "out": "o.tif"}
    job = decode_request(json.dumps(predict | {"model": "runs/one"}))
    assert isinstance(job, PredictJob)
    assert (job.model, job.tta) == ("runs/one", False)
    job = decode_request(json.dumps(predict | {"model": ["a", "b"], "tta": True}))
    assert isinstance(job, PredictJob)
    assert (job.model, job.tta) == (("a", "b"), True)
    assert decode_request(encode_request(job)) == job
    evaluate = {
        "job": "a",
        "kind": "evaluate",
        "images": "i.tif",
        "labels": "l.tif",
        "model": ["a", "b"],
        "tta": True,
    }
    job = decode_request(json.dumps(evaluate))
    assert decode_request(encode_request(job)) == job
    for model in ([], [3], 3, {}):
        assert "model" in str(refused(predict | {"model": model}))
    assert "tta" in str(refused(predict | {"model": "a", "tta": "twice"}))
