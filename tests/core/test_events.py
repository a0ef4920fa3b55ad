from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from napari_strata.core import events
from napari_strata.core.events import (
    BatchEnd,
    EpochEnd,
    Event,
    Message,
    RegionEnd,
    from_json,
    to_json,
)

REGION = st.dictionaries(
    st.sampled_from("TZYX"),
    st.integers(0, 9) | st.tuples(st.integers(0, 9), st.integers(10, 19)),
    max_size=4,
)
KINDS: dict[str, st.SearchStrategy[Any]] = {
    "str": st.text(),
    "int": st.integers(),
    "bool": st.booleans(),
    "float": st.floats(allow_nan=False, allow_infinity=False),
    "tuple[float, ...]": st.lists(st.floats(allow_nan=False, allow_infinity=False)).map(
        tuple
    ),
    "tuple[str, ...]": st.lists(st.text()).map(tuple),
    "dict[str, Any]": REGION,
}


def _events(kind: type[Event]) -> st.SearchStrategy[Event]:
    return st.builds(
        kind, **{f.name: KINDS[str(f.type)] for f in dataclasses.fields(kind)}
    )


@given(st.one_of([_events(kind) for kind in Event.__subclasses__()]))
def test_json_round_trip(event: Event) -> None:
    line = to_json(event)
    assert "\n" not in line
    assert from_json(line) == event
    assert json.loads(line)["event"] == type(event).__name__


def _epoch(**values: Any) -> EpochEnd:
    defaults = {f.name: 0 for f in dataclasses.fields(EpochEnd)} | {
        "class_iou": (),
        "weights": "raw",
    }
    return EpochEnd(**(defaults | values))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_json_cannot_hold_becomes_null_and_comes_back_as_nan(value: float) -> None:
    line = to_json(_epoch(validation_loss=value, class_iou=(0.5, value)))
    plain = json.loads(line, parse_constant=pytest.fail)
    assert plain["validation_loss"] is None
    assert plain["class_iou"] == [0.5, None]
    event = from_json(line)
    assert isinstance(event, EpochEnd)
    assert math.isnan(event.validation_loss)
    assert event.class_iou[0] == 0.5
    assert math.isnan(event.class_iou[1])


def test_types_come_back() -> None:
    batch = from_json(to_json(BatchEnd(1, 2, 3, loss=1, learning_rate=1, seconds=1)))
    assert isinstance(batch, BatchEnd)
    assert isinstance(batch.loss, float)
    assert isinstance(batch.epoch, int)
    region = from_json(to_json(RegionEnd({"Z": 3, "Y": (0, 64)}, 1, 2, 0.5)))
    assert region == RegionEnd({"Z": 3, "Y": (0, 64)}, 1, 2, 0.5)


def test_events_are_frozen_and_every_kind_is_known() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Message("hello").text = "bye"  # type: ignore[misc]
    assert set(events._KINDS) == {
        *("Message", "TrainingStarted", "BatchEnd", "EpochEnd", "TrainingEnd"),
        *("PredictionStarted", "RegionEnd", "PredictionEnd", "FileEnd"),
        *(
            "FoldStarted",
            "FoldEnd",
            "CrossvalEnd",
            "TrialStarted",
            "TrialEnd",
            "TuneEnd",
        ),
        *("LabelsUpdated", "TreesCompared"),
    }


@pytest.mark.parametrize(
    "line",
    [
        "5",
        "[]",
        "{}",
        '{"event": "Message", "text": 5, "level": "info"}',
        '{"event": "Message"}',
        '{"event": "EpochEnd", "epoch": "x"}',
        '{"event": []}',
    ],
)
def test_what_is_no_event_raises_a_known_error(line: str) -> None:
    with pytest.raises((ValueError, TypeError, KeyError)):
        from_json(line)


def test_the_score_of_an_epoch_says_over_which_classes_it_is() -> None:
    values = {
        "mean_iou": 0.509,
        "mean_iou_in_truth": 0.636,
        "class_iou": (0.5, 0.6, 0.7, 0.744, 0.0),
    }
    end = _epoch(**values, classes_in_truth=4)
    assert end.comparable_iou == end.reported_iou == 0.636
    assert end.score == (
        "mean IoU 0.636 over the 4 of 5 classes in the truth (0.509 with those only "
        "predicted)"
    )
    assert from_json(to_json(end)) == end


def test_an_epoch_of_an_earlier_version_has_one_mean() -> None:
    raw = json.loads(to_json(_epoch(mean_iou=0.509, class_iou=(0.5, 0.0))))
    for key in ("mean_iou_in_truth", "classes_in_truth", "pixels"):
        del raw[key]
    old = from_json(json.dumps(raw))
    assert isinstance(old, EpochEnd)
    assert old.comparable_iou == 0.509
    assert old.score == "mean IoU 0.509"
