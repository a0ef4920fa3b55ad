"""What a worker may be told, and what it answers to anything else."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from napari_strata.core.classes import ClassMap
from napari_strata.core.events import BatchEnd, EpochEnd, Message, RegionEnd
from napari_strata.worker.orders import (
    Changed,
    Keep,
    Layer,
    OrderError,
    PredictJob,
    Stop,
    TrainJob,
    parse_order,
)
from napari_strata.worker.replies import (
    JobEnded,
    JobFailed,
    JobQueued,
    JobStarted,
    Ready,
    Refused,
    TargetOpened,
    decode,
    encode,
)

TRAIN = {
    "job": "a",
    "kind": "train",
    "images": "stack.tif",
    "labels": "labels.tif",
    "out": "run",
}


def refused(order: Any) -> OrderError:
    with pytest.raises(OrderError) as caught:
        parse_order(order if isinstance(order, (str, bytes)) else json.dumps(order))
    return caught.value


def test_a_job_has_the_words_and_defaults_of_the_api() -> None:
    job = parse_order(json.dumps(TRAIN))
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


def test_a_job_that_a_client_makes_arrives_as_it_was() -> None:
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
    assert parse_order(job.model_dump_json()) == job


def test_messages() -> None:
    assert parse_order('{"stop": "a"}') == Stop(stop="a")
    assert parse_order('{"keep": "a"}') == Keep(keep="a", on=True)
    view = Changed(changed="view", job="a", value={"Z": 3, "Y": [0, 200]})
    assert parse_order(view.model_dump_json()) == view


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
    ],
)
def test_a_line_about_no_job_is_refused_with_what_would_do(
    line: str | bytes, said: str
) -> None:
    error = refused(line)
    assert said in str(error)
    assert error.job is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
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
def test_a_wrong_job_is_refused_by_its_id_with_what_is_wrong(
    change: dict[str, Any], said: str
) -> None:
    error = refused(TRAIN | change)
    assert said in str(error)
    assert error.job == "a"
    assert len(str(error)) < 400


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
    job = parse_order(json.dumps(PREDICT | {"region": {"Z": 3, "Y": [0, 10]}}))
    assert isinstance(job, PredictJob)
    assert job.region == {"Z": 3, "Y": (0, 10)}
    assert "into a .npy file only" in str(
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


REPLIES = [
    Ready(1, 42, "here", {"torch": "2"}, {"cpu": "CPU, 2 cores"}, 1.5),
    Refused("no"),
    JobQueued(),
    JobStarted("train"),
    TargetOpened(
        "a.npy", "ZYX", (2, 3, 4), "uint8", ({"index": 0, "name": "pore"},), ""
    ),
    JobEnded("finished", {"mean_iou": 0.5, "pixels": {"pore": 3}}),
    JobFailed("a\nb", "StrataError"),
    Message("µm", "warning"),
    BatchEnd(1, 2, 3, 0.5, 1e-4, 0.1),
    RegionEnd({"Z": 3, "Y": (0, 10)}, 1, 2, 0.5),
]


@pytest.mark.parametrize("event", REPLIES, ids=lambda e: type(e).__name__)
def test_replies_go_out_and_come_in_as_they_were(event: Any) -> None:
    line = encode(event, "a")
    assert "\n" not in line
    assert json.loads(line) == json.loads(line, parse_constant=pytest.fail)
    assert json.loads(line)["job"] == "a"
    assert decode(line) == ("a", event)


def test_scores_that_are_no_numbers_are_null_in_the_line() -> None:
    nan = float("nan")
    end = EpochEnd(1, 2, 0.5, nan, nan, 0.5, (0.5, nan), 1e-3, 1.0, True, False, "raw")
    raw = json.loads(encode(end, "a"))
    assert (raw["validation_loss"], raw["class_iou"]) == (None, [0.5, None])
    assert json.loads(encode(JobEnded("finished", {"mean_iou": nan}), "a"))[
        "result"
    ] == {"mean_iou": None}


@pytest.mark.parametrize(
    "line",
    ["Last login", "[]", "3", "{}", '{"event": "Ready"}', '{"event": "No", "job": 1}'],
)
def test_other_lines_are_no_replies(line: str) -> None:
    with pytest.raises(ValueError):
        decode(line)


def test_a_client_needs_no_torch() -> None:
    code = "import sys, napari_strata.worker.orders, napari_strata.worker.replies; print('torch' in sys.modules)"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        == "False\n"
    )


def test_models_are_one_or_several_and_old_orders_mean_what_they_meant() -> None:
    predict = {"job": "a", "kind": "predict", "image": "i.tif", "out": "o.tif"}
    job = parse_order(json.dumps(predict | {"model": "runs/one"}))
    assert isinstance(job, PredictJob)
    assert (job.model, job.tta) == ("runs/one", False)
    job = parse_order(json.dumps(predict | {"model": ["a", "b"], "tta": True}))
    assert isinstance(job, PredictJob)
    assert (job.model, job.tta) == (("a", "b"), True)
    assert parse_order(job.model_dump_json()) == job
    evaluate = {
        "job": "a",
        "kind": "evaluate",
        "images": "i.tif",
        "labels": "l.tif",
        "model": ["a", "b"],
        "tta": True,
    }
    job = parse_order(json.dumps(evaluate))
    assert parse_order(job.model_dump_json()) == job
    for model in ([], [3], 3, {}):
        assert "model" in str(refused(predict | {"model": model}))
    assert "tta" in str(refused(predict | {"model": "a", "tta": "twice"}))
