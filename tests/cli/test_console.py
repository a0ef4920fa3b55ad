from __future__ import annotations

import json

import pytest

from napari_strata.cli import console
from napari_strata.core.events import (
    BatchEnd,
    CrossvalEnd,
    EpochEnd,
    Event,
    FileEnd,
    FoldEnd,
    FoldStarted,
    Message,
    PredictionEnd,
    PredictionStarted,
    RegionEnd,
    TrainingEnd,
    TrainingStarted,
    TrialEnd,
    TrialStarted,
    TuneEnd,
)

NAN = float("nan")
EVENTS: list[Event] = [
    Message("grey values: physical"),
    Message("class clay is missing", "warning"),
    TrainingStarted(
        "run",
        "CPU, 2 cores",
        "bf16",
        7_760_000,
        1,
        2,
        9,
        ("a",),
        ("b",),
        "1 of 2 images: b",
        ("pore", "clay"),
    ),
    BatchEnd(1, 9, 9, 0.5, 1e-3, 0.1),
    EpochEnd(1, 2, 0.5, 0.25, 0.75, 0.9, (0.5, NAN), 1e-3, 83.0, True, True, "raw"),
    EpochEnd(2, 2, 0.4, NAN, NAN, NAN, (), 1e-3, 2.0, False, False, "raw"),
    TrainingEnd("finished", 2, 1, 0.75, "run/model.safetensors", 3700.0),
    PredictionStarted("stack", "CPU, 2 cores", 8, 3),
    RegionEnd({"Z": 3}, 4, 8, 0.1),
    PredictionEnd("stack", "labels.tif", 12.0),
    FileEnd("a.tif", "a_labels.tif", "failed", "not a TIFF", 0.1),
]


def test_plain_lines_say_what_matters(capsys: pytest.CaptureFixture[str]) -> None:
    results = console.show(EVENTS)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "grey values: physical",
        "warning: class clay is missing",
        "training on CPU, 2 cores in bf16: 7.76 M parameters, epochs 1 to 2 of 9 steps",
        "validation: 1 of 2 images: b",
        "epoch 1/2  loss 0.500  validation loss 0.250  mean IoU 0.750 (pore 0.500, clay -)  1 min 23 s  best",
        "epoch 2/2  loss 0.400  2.0 s",
        "finished after epoch 2, 1 h 1 min; best epoch 1 (mean IoU 0.750)",
        "model: run/model.safetensors",
        "stack: 8 planes on CPU, 2 cores, 3 of them already done",
        "stack done in 12 s: labels.tif",
        "failed  a.tif: not a TIFF",
    ]
    assert [e for e in results if isinstance(e, (BatchEnd, RegionEnd))] == []
    assert len(results) == len(EVENTS) - 2


def test_json_gives_one_parseable_line_an_event(
    capsys: pytest.CaptureFixture[str],
) -> None:
    console.show(EVENTS, as_json=True)
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["event"] for row in rows] == [type(e).__name__ for e in EVENTS]
    assert rows[4]["class_iou"] == [0.5, None]


NAMES = ("pore", "clay")
FOLD: list[Event] = [
    FoldStarted(1, 3, "cv/fold_1", "2 of 6 images: a, b"),
    EpochEnd(1, 2, 0.5, 0.25, 0.75, 0.9, (0.5, NAN), 1e-3, 83.0, True, True, "raw"),
    TrainingEnd("finished", 2, 1, 0.75, "run/model.safetensors", 3700.0),
    FoldEnd(1, 3, "cv/fold_1", 0.75, 0.9, (0.8, NAN), NAMES, 12.0),
    CrossvalEnd("cv", 3, 0.7, 0.05, (0.8, 0.6), (0.1, NAN), NAMES),
]


def test_a_cross_validation_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    console.show(FOLD)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "fold 1 of 3 validates on 2 of 6 images: a, b"
    assert lines[1].startswith("epoch 1/2")
    assert lines[-2] == "fold 1/3  mean IoU 0.750 (pore 0.800, clay -)  12 s"
    assert lines[-1] == "3 folds: mean IoU 0.700 +- 0.050; all of it is in cv"


def test_a_search_is_brief_but_for_warnings_and_the_last_training(
    capsys: pytest.CaptureFixture[str],
) -> None:
    console.show(
        [
            Message("4 trials, 3 folds each"),
            TrialStarted(1, 4, "norm=batch", 1, 3),
            Message("sand, 8 x 64 x 64"),
            Message("class clay is missing", "warning"),
            *FOLD,
            TrialEnd(1, 4, "norm=batch", 0.7, 0.05, 30.0, ""),
            TrialStarted(2, 4, "norm=none", 5, 1),
            TrialEnd(2, 4, "norm=none", NAN, NAN, 1.0, "the loss is not finite"),
            *FOLD[1:3],
            TuneEnd(
                "out",
                "norm=batch",
                0.7,
                NAN,
                "out/best.yaml",
                "out/final/model.safetensors",
            ),
        ]
    )
    assert capsys.readouterr().out.splitlines() == [
        "4 trials, 3 folds each",
        "trial 1 of 4: norm=batch, 1 epoch in each of 3 folds",
        "warning: class clay is missing",
        "fold 1/3  mean IoU 0.750 (pore 0.800, clay -)  12 s",
        "trial 1/4  mean IoU 0.700 +- 0.050  30 s",
        "trial 2 of 4: norm=none, 5 epochs",
        "trial 2/4  failed: the loss is not finite  1.0 s",
        "epoch 1/2  loss 0.500  validation loss 0.250  mean IoU 0.750 (0 0.500, 1 -)  1 min 23 s  best",
        "finished after epoch 2, 1 h 1 min; best epoch 1 (mean IoU 0.750)",
        "model: run/model.safetensors",
        "best: norm=batch, mean IoU 0.700",
        "recipe: out/best.yaml",
        "model, trained on all data: out/final/model.safetensors",
    ]


def test_a_single_plane_and_a_text_that_names_its_file(
    capsys: pytest.CaptureFixture[str],
) -> None:
    console.show(
        [
            PredictionStarted("cell", "CPU", 1, 0),
            FileEnd("a.tif", "b.tif", "failed", "a.tif: not a TIFF", 0),
        ]
    )
    assert capsys.readouterr().out.splitlines() == [
        "cell: 1 plane on CPU",
        "failed  a.tif: not a TIFF",
    ]


def test_square_brackets_are_not_markup(capsys: pytest.CaptureFixture[str]) -> None:
    console.show([Message("values [1, 2] and [bold]x[/bold]")])
    assert capsys.readouterr().out.strip() == "values [1, 2] and [bold]x[/bold]"
