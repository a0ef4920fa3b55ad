"""Complete, unfinished and damaged runs on disk, and their list."""

from __future__ import annotations

import json
import math
import os
import socket
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QMessageBox

from napari_strata.core.events import (
    BatchEnd,
    EpochEnd,
    Event,
    Message,
    TrainingEnd,
    TrainingStarted,
    to_json,
)
from napari_strata.core.locks import one_writer
from napari_strata.core.run_list import BATCHES
from napari_strata.widgets.parts.recent import (
    FACTS,
    NO_RUNS_TEXT,
    RunList,
    describe_classes,
    describe_facts,
    format_date,
    last_events,
    list_runs,
    tooltip,
)
from widgets.models import make_run

NOW = datetime(2026, 11, 21, 14, 5)


def started(*, first: int = 1, epochs: int = 9) -> TrainingStarted:
    return TrainingStarted(
        "run",
        "CPU",
        "fp32",
        1000,
        first,
        epochs,
        10,
        ("a",),
        ("a",),
        "1 of 4",
        ("pore", "grain"),
    )


def epoch(number: int, mean: float, *, best: bool = False) -> EpochEnd:
    return EpochEnd(
        number,
        9,
        0.4,
        0.5,
        mean,
        0.95,
        (mean, mean),
        1e-3,
        12.0,
        best,
        best,
        "raw",
        mean_iou_in_truth=mean,
    )


def ended(reason: str = "finished") -> TrainingEnd:
    return TrainingEnd(reason, 2, 1, 0.8, "model", 20.0)


def write_run(
    path: Path, events: list[Event], *, model: bool = True, age: float = 0
) -> Path:
    """Write a run folder with the small files of a real one."""
    path.mkdir(parents=True)
    (path / "recipe.yaml").write_text("name: unet-ct\ntraining:\n  epochs: 9\n")
    classes = [
        {"index": i, "name": n, "value": i, "color": c}
        for i, (n, c) in enumerate([("pore", "#112233")])
    ]
    (path / "data.json").write_text(json.dumps({"classes": classes}))
    (path / "events.jsonl").write_text(
        "".join(to_json(event) + "\n" for event in events)
    )
    if model:
        (path / "model.safetensors").write_bytes(b"model")
    os.utime(path / "events.jsonl", (time.time() - age, time.time() - age))
    return path


def test_a_run_of_the_engine(tmp_path: Path) -> None:
    path = make_run(tmp_path / "runs")
    (run,) = list_runs(tmp_path / "runs")
    assert (run.path, run.name, run.recipe) == (path, path.name, "tiny")
    assert run.classes == (("grain", "#ddcc77"), ("pore", "#4477aa"))
    assert (run.epochs, run.planned, run.ended, run.running) == (3, 3, "finished", None)
    ends = [event for event in last_events(path) if isinstance(event, EpochEnd)]
    assert run.mean_iou == max(end.mean_iou for end in ends)
    assert run.thumbnail == path / "previews" / "epoch_0003.png"
    assert run.has_model
    assert run.created <= run.modified


def test_the_best_epoch_is_the_last_marked_one_and_no_score_is_none(
    tmp_path: Path,
) -> None:
    write_run(
        tmp_path / "a",
        [started(), epoch(1, 0.5, best=True), epoch(2, 0.8, best=True), epoch(3, 0.6)],
    )
    write_run(
        tmp_path / "b", [started(), epoch(1, math.nan, best=True), ended()], age=60
    )
    write_run(tmp_path / "c", [], age=120)
    a, b, c = list_runs(tmp_path)
    assert (a.mean_iou, a.epochs, a.planned, a.ended) == (0.8, 3, 9, None)
    assert (b.mean_iou, b.epochs, b.ended) == (None, 1, "finished")
    assert (c.mean_iou, c.epochs, c.planned, c.ended) == (None, 0, 0, None)


def test_an_end_before_a_new_start_is_ignored(tmp_path: Path) -> None:
    write_run(
        tmp_path / "a",
        [
            started(),
            epoch(1, 0.5, best=True),
            ended("stopped"),
            started(first=2, epochs=20),
        ],
    )
    (run,) = list_runs(tmp_path)
    assert (run.ended, run.epochs, run.planned, run.mean_iou) == (None, 1, 20, 0.5)


def test_the_newest_runs_come_first_up_to_the_limit(tmp_path: Path) -> None:
    for number in range(5):
        write_run(tmp_path / f"run-{number}", [], age=100 * number, model=number != 1)
    (tmp_path / ".session-12").mkdir()
    (tmp_path / "no run").mkdir()
    (tmp_path / "file").write_text("")
    assert [run.name for run in list_runs(tmp_path, 3)] == ["run-0", "run-1", "run-2"]
    assert [run.name for run in list_runs(tmp_path, 3, with_model=True)] == [
        "run-0",
        "run-2",
        "run-3",
    ]
    assert list_runs(tmp_path / "nowhere") == []


@pytest.mark.parametrize("name", ["data.json", "events.jsonl", "running.json"])
@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"\xff\xfe\x00", b"null", b'{"event": 3, "classes": [1]}'],
)
def test_a_damaged_file_leaves_its_facts_empty(
    tmp_path: Path, name: str, content: bytes
) -> None:
    path = write_run(tmp_path / "a", [started(), epoch(1, 0.5, best=True)])
    (path / name).write_bytes(content)
    (run,) = list_runs(tmp_path)
    assert run.name == "a"
    assert run.running is None
    assert (run.classes == ()) == (name == "data.json")
    assert (run.mean_iou is None) == (name == "events.jsonl")
    assert last_events(path) == [] or name != "events.jsonl"


@pytest.mark.parametrize("content", [b"", b"- a", b"a: [", b"\xff\xfe"])
def test_a_run_without_a_recipe_that_can_be_read_is_left_out(
    tmp_path: Path, content: bytes
) -> None:
    (write_run(tmp_path / "bad", []) / "recipe.yaml").write_bytes(content)
    write_run(tmp_path / "good", [])
    assert [run.name for run in list_runs(tmp_path)] == ["good"]


def test_an_incomplete_last_line_is_left_out(tmp_path: Path) -> None:
    events: list[Event] = [
        Message("hello"),
        started(),
        epoch(1, 0.5, best=True),
        epoch(2, math.nan),
    ]
    path = write_run(tmp_path / "a", events)
    with open(path / "events.jsonl", "a") as file:
        file.write(to_json(epoch(3, 0.9, best=True))[:50])
    assert str(last_events(path)) == str(events)
    assert last_events(tmp_path / "nowhere") == []
    (run,) = list_runs(tmp_path)
    assert (run.epochs, run.mean_iou) == (2, 0.5)


def test_a_sample_of_many_batches_and_all_other_events_are_read(tmp_path: Path) -> None:
    events: list[Event] = [started()]
    for n in range(1, 10):
        events += [BatchEnd(n, b, 500, 0.5, 1e-3, 0.1) for b in range(1, 501)] + [
            epoch(n, 0.5)
        ]
    events.append(BatchEnd(10, 1, 500, 0.25, 1e-3, 0.1))
    path = write_run(tmp_path / "a", events)
    begin = time.perf_counter()
    found = last_events(path)
    print(f"\n{1e3 * (time.perf_counter() - begin):.1f} ms for {len(events)} events")
    batches = [event for event in found if isinstance(event, BatchEnd)]
    assert BATCHES / 2 < len(batches) <= BATCHES + 1
    assert batches[-1] == events[-1]
    assert [event for event in found if not isinstance(event, BatchEnd)] == [
        event for event in events if not isinstance(event, BatchEnd)
    ]


def test_a_note_counts_while_its_process_lives(tmp_path: Path) -> None:
    path = write_run(tmp_path / "a", [started()])
    for pid, host, running in (
        (os.getpid(), socket.gethostname(), True),
        (2**22 + 1, socket.gethostname(), False),
    ):
        (path / "running.json").write_text(
            json.dumps({"job": "x", "pid": pid, "host": host})
        )
        assert (list_runs(tmp_path)[0].running is not None) == running
    (path / "running.json").write_text(
        json.dumps({"job": "x", "pid": 2**22 + 1, "host": "elsewhere"})
    )
    (run,) = list_runs(tmp_path)
    assert run.running == {"job": "x", "pid": 2**22 + 1, "host": "elsewhere"}
    assert describe_facts(run).startswith("in training")


@pytest.mark.parametrize(
    ("time", "words"),
    [
        (datetime(2026, 11, 21, 9, 5), "today 9:05"),
        (datetime(2026, 11, 20, 23, 59), "yesterday 23:59"),
        (datetime(2026, 11, 18, 14, 5), "18 Nov 14:05"),
        (datetime(2025, 11, 21, 14, 5), "21 Nov 2025"),
        (datetime(2026, 11, 22, 1, 0), "22 Nov 1:00"),
    ],
)
def test_dates_are_formatted_relative_to_now(time: datetime, words: str) -> None:
    assert format_date(time, NOW) == words


def test_the_description_of_a_run(tmp_path: Path) -> None:
    write_run(
        tmp_path / "a",
        [
            started(),
            epoch(1, 0.8234, best=True),
            epoch(2, 0.5),
            ended("early stopping"),
        ],
    )
    (run,) = list_runs(tmp_path)
    assert describe_classes(run) == "1 class: pore"
    assert (
        describe_facts(run)
        == f"{format_date(run.modified, datetime.now())}, mean IoU 0.82"
    )
    for part in (
        "Recipe unet-ct, 2 of 9 epochs, stopped early",
        "Best mean IoU 0.823",
        str(run.path),
    ):
        assert part in tooltip(run)


@pytest.fixture
def runs(qtbot: Any) -> RunList:
    widget = RunList()
    qtbot.addWidget(widget)
    widget.resize(300, 300)
    widget.show()
    qtbot.waitExposed(widget)
    return widget


def click(runs: RunList, row: int, qtbot: Any) -> None:
    place = runs.list.visualItemRect(runs.list.item(row)).center()
    qtbot.mouseClick(runs.list.viewport(), Qt.MouseButton.LeftButton, pos=place)


def test_a_click_chooses_a_run(runs: RunList, qtbot: Any, tmp_path: Path) -> None:
    for number in range(6):
        write_run(
            tmp_path / f"run-{number}", [started()], age=100 * number, model=number != 1
        )
    runs.set_folder(tmp_path)
    qtbot.waitUntil(lambda: runs.list.count() == 5)
    assert runs.selected() is None
    with qtbot.waitSignal(runs.chosen) as signal:
        click(runs, 1, qtbot)
    assert signal.args == [tmp_path / "run-2"]
    with qtbot.waitSignal(runs.chosen) as signal:
        qtbot.keyClick(runs.list, Qt.Key.Key_Down)
    assert signal.args == [tmp_path / "run-3"]
    row = runs.list.sizeHintForRow(0)
    assert 3 * row < runs.list.height() < 4 * row


def test_a_refresh_keeps_the_choice_and_adds_new_runs(
    runs: RunList, qtbot: Any, tmp_path: Path
) -> None:
    write_run(tmp_path / "old", [started()], age=100)
    runs.set_folder(tmp_path)
    runs.select(tmp_path / "new")
    qtbot.waitUntil(lambda: runs.list.count() == 1)
    assert runs.selected() is None
    write_run(tmp_path / "new", [started()])
    chosen: list[object] = []
    runs.chosen.connect(chosen.append)
    runs.refresh()
    runs.refresh()
    qtbot.waitUntil(lambda: runs.list.count() == 2)
    assert runs.selected() == tmp_path / "new"
    runs.select(tmp_path / "old")
    assert runs.selected() == tmp_path / "old"
    runs.select(tmp_path / "a model file.safetensors")
    assert runs.selected() is None
    assert chosen == []
    click(runs, 0, qtbot)
    assert chosen == [tmp_path / "new"]


def test_an_empty_folder_says_what_to_do(
    runs: RunList, qtbot: Any, tmp_path: Path
) -> None:
    runs.set_folder(tmp_path / "nowhere")
    qtbot.waitUntil(lambda: not runs._busy)
    assert runs.text.isVisible()
    assert runs.text.text() == NO_RUNS_TEXT
    assert not runs.list.isVisible()
    write_run(tmp_path / "a", [started()])
    runs.set_folder(tmp_path)
    qtbot.waitUntil(lambda: runs.list.isVisible())
    assert not runs.text.isVisible()


def test_the_thumbnail_shows_the_prediction(
    runs: RunList, qtbot: Any, tmp_path: Path
) -> None:
    make_run(tmp_path)
    bad = write_run(tmp_path / "bad", [started()], age=-60)
    (bad / "previews").mkdir()
    (bad / "previews" / "epoch_0001.png").write_bytes(b"no picture")
    runs.set_folder(tmp_path)
    qtbot.waitUntil(lambda: runs.list.count() == 2)
    place = runs.list.visualItemRect(runs.list.item(1))
    image = runs.list.viewport().grab().toImage()
    side = place.height() - 10
    square = [
        image.pixelColor(5 + x, place.top() + 5 + y)
        for x in range(4, side - 4)
        for y in range(4, side - 4)
    ]
    yellow = [c for c in square if c.red() - c.blue() > 30]
    blue = [c for c in square if c.blue() - c.red() > 30]
    assert min(len(yellow), len(blue)) > len(square) / 10


def write_folds(path: Path, scores: list[float | None], *, age: float = 0) -> Path:
    """Write a cross-validation as the engine does; folds with a score have a model."""
    names = [f"fold_{n}" for n in range(1, len(scores) + 1)]
    for name, score in zip(names, scores, strict=True):
        events: list[Event] = (
            [started()]
            if score is None
            else [started(), epoch(9, score, best=True), ended()]
        )
        write_run(path / name, events, model=score is not None, age=age)
    (path / "crossval.json").write_text(
        json.dumps({"format": "napari-strata crossval 1", "folds": names})
    )
    os.utime(path / "crossval.json", (time.time() - age, time.time() - age))
    return path


def test_a_cross_validation_is_listed_if_every_fold_has_a_model(
    tmp_path: Path,
) -> None:
    write_run(tmp_path / "old", [started(), epoch(1, 0.5, best=True)], age=200)
    folder = write_folds(tmp_path / "folds", [0.7, 0.8, 0.9], age=100)
    write_folds(tmp_path / "under way", [0.7, None])
    write_run(tmp_path / "new", [started(), epoch(1, 0.5, best=True)])
    assert [run.name for run in list_runs(tmp_path)] == [
        "new",
        "old",
    ]  # what can be gone on with
    new, run, _old = list_runs(tmp_path, with_model=True)
    assert [new.folds, run.folds] == [0, 3]
    assert (run.path, run.recipe, run.classes, run.has_model) == (
        folder,
        "unet-ct",
        (("pore", "#112233"),),
        True,
    )
    assert run.mean_iou == pytest.approx(0.8)
    assert describe_facts(run, run.modified).startswith(
        "3 models (cross-validation), today"
    )
    assert describe_facts(run).endswith("mean IoU 0.80")
    lines = tooltip(run).splitlines()
    assert lines[2:4] == [
        "Recipe unet-ct, 3 models (cross-validation)",
        "Mean IoU over the folds 0.800",
    ]
    assert "cross-validation" not in describe_facts(new)


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{", b'{"folds": 3}', b'{"folds": []}', b'{"folds": ["gone"]}'],
)
def test_a_damaged_cross_validation_is_left_out(tmp_path: Path, content: bytes) -> None:
    (write_folds(tmp_path / "a", [0.5]) / "crossval.json").write_bytes(content)
    write_run(tmp_path / "good", [])
    assert [run.name for run in list_runs(tmp_path, with_model=True)] == ["good"]


def boxes(runs: RunList) -> list[QMessageBox]:
    return [box for box in runs.findChildren(QMessageBox) if box.isVisible()]


def press(box: QMessageBox, text: str) -> None:
    (button,) = (b for b in box.buttons() if b.text().replace("&", "") == text)
    button.click()


def test_a_run_is_deleted_after_a_question_that_names_it_and_its_size(
    runs: RunList, qtbot: Any, tmp_path: Path
) -> None:
    path = write_run(tmp_path / "old", [started()])
    (path / "model.safetensors").write_bytes(bytes(2_300_000))
    write_run(tmp_path / "new", [started()], age=-60)
    runs.set_folder(tmp_path)
    qtbot.waitUntil(lambda: runs.list.count() == 2)
    assert runs.list.item(1).data(FACTS).endswith(", 2.3 MB")
    assert not runs.delete_action.isEnabled()
    click(runs, 1, qtbot)
    deleted: list[object] = []
    runs.deleted.connect(deleted.append)
    for answer in ("Cancel", "Delete"):
        assert path.exists()
        runs.delete_action.trigger()
        qtbot.waitUntil(lambda: len(boxes(runs)) == 1)
        (box,) = boxes(runs)
        assert box.text() == "Delete old (2.3 MB)?"
        assert str(path) in box.informativeText()
        press(box, answer)
        qtbot.waitUntil(lambda: not boxes(runs))
    qtbot.waitUntil(lambda: runs.list.count() == 1)
    assert not path.exists()
    assert deleted == [path]
    assert [run.name for run in runs.runs()] == ["new"]


def test_a_run_in_training_cannot_be_deleted(
    runs: RunList, qtbot: Any, tmp_path: Path
) -> None:
    path = write_run(tmp_path / "a", [started()])
    runs.set_folder(tmp_path)
    qtbot.waitUntil(lambda: runs.list.count() == 1)
    runs.select(path)
    assert runs.delete_action.isEnabled()
    with one_writer(path):
        # The training has begun since the list was read.
        runs.delete_action.trigger()
        qtbot.waitUntil(lambda: len(boxes(runs)) == 1)
        (box,) = boxes(runs)
        assert f"process {os.getpid()}" in box.text()
        press(box, "OK")
        runs.refresh()
        qtbot.waitUntil(lambda: not runs.delete_action.isEnabled())
        assert runs.list.item(0).data(FACTS).startswith("in training")
        assert "in training" in runs.delete_action.toolTip()
    runs.refresh()
    qtbot.waitUntil(runs.delete_action.isEnabled)
    assert path.exists()
