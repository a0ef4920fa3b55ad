from __future__ import annotations

import json
import os
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Pillow
from PIL import ImageDraw
from qtpy.QtCore import Qt
from qtpy.QtGui import QColor, QImage

from napari_strata.core.events import (
    BatchEnd,
    EpochEnd,
    TrainingEnd,
    TrainingStarted,
    to_json,
)
from napari_strata.widgets.parts.recent import (
    THUMBNAIL,
    RunList,
    _thumbnail,
    describe_facts,
    format_date,
    last_events,
    list_runs,
)


def epoch(number: int, iou: float, *, epochs: int = 8, best: bool = True) -> EpochEnd:
    return EpochEnd(
        number,
        epochs,
        0.5,
        0.6,
        iou,
        0.9,
        (iou, iou),
        1e-3,
        4.0,
        best,
        True,
        "raw",
        mean_iou_in_truth=iou,
    )


def started(first: int = 1, epochs: int = 8) -> TrainingStarted:
    return TrainingStarted(
        "r",
        "CPU",
        "fp32",
        10,
        first,
        epochs,
        2,
        ("a",),
        ("a",),
        "1 of 4 slices",
        ("pore", "grain"),
    )


def write_run(folder: Path, name: str, *, hour: int = 12, model: bool = True) -> Path:
    """A run of two epochs as the engine writes it, with its last event on 20 November 2026."""
    run = folder / name
    (run / "previews").mkdir(parents=True)
    (run / "recipe.yaml").write_text(
        "version: 1\nname: unet-resnet34\nnetwork:\n  kind: unet\n"
    )
    classes = [
        {"name": "pore", "color": "#4477aa", "value": 1},
        {"name": "grain", "color": "#ddcc77", "value": 2},
    ]
    (run / "data.json").write_text(json.dumps({"classes": classes}))
    events = [
        started(),
        BatchEnd(1, 1, 2, 0.9, 1e-3, 0.1),
        epoch(1, 0.7),
        epoch(2, 0.65, best=False),
    ]
    (run / "events.jsonl").write_text("".join(to_json(e) + "\n" for e in events))
    if model:
        (run / "model.safetensors").write_bytes(b"x")
    for number, color in ((1, "red"), (2, "blue")):
        draw_picture(run / "previews" / f"epoch_{number:04d}.png", color)
    stamp = datetime(2026, 11, 20, hour).timestamp()
    os.utime(run / "events.jsonl", (stamp, stamp))
    return run


def draw_picture(path: Path, color: str) -> None:
    """A picture like the engine's: three panels of 60 x 60 below a text; the prediction has `color`."""
    canvas = Pillow.new("RGB", (268, 190), "white")
    draw = ImageDraw.Draw(canvas)
    draw.text((28, 10), "image", "black")
    for left, paint in ((28, "gray"), (104, "green"), (180, color)):
        draw.rectangle((left, 60, left + 59, 119), fill=paint)
    canvas.save(path)


def append(run: Path, *lines: str) -> None:
    with open(run / "events.jsonl", "a", encoding="utf-8") as file:
        file.writelines(lines)


def test_a_run_is_summarized(tmp_path: Path) -> None:
    run = write_run(tmp_path, "sandstone", hour=9)
    [found] = list_runs(tmp_path)
    assert (found.path, found.name, found.recipe) == (run, "sandstone", "unet-resnet34")
    assert found.classes == (("pore", "#4477aa"), ("grain", "#ddcc77"))
    assert (found.epochs, found.planned, found.mean_iou) == (2, 8, 0.7)
    assert found.modified == datetime(2026, 11, 20, 9)
    assert found.thumbnail == run / "previews" / "epoch_0002.png"
    assert (found.has_model, found.running, found.ended) == (True, None, None)


def test_the_newest_run_is_first_and_the_number_is_limited(tmp_path: Path) -> None:
    for name, hour in (("b", 10), ("c", 12), ("a", 11)):
        write_run(tmp_path, name, hour=hour)
    assert [run.name for run in list_runs(tmp_path)] == ["c", "a", "b"]
    assert [run.name for run in list_runs(tmp_path, 2)] == ["c", "a"]


def test_runs_without_a_model_do_not_count_for_the_limit(
    tmp_path: Path,
) -> None:
    write_run(tmp_path, "old", hour=8)
    write_run(tmp_path, "new", hour=9, model=False)
    assert [run.name for run in list_runs(tmp_path, 1, with_model=True)] == ["old"]
    assert [run.has_model for run in list_runs(tmp_path)] == [False, True]


def test_other_folders_are_ignored(tmp_path: Path) -> None:
    (tmp_path / "prepared" / "layers").mkdir(parents=True)
    (tmp_path / "notes.txt").write_text("recipe.yaml")
    assert list_runs(tmp_path) == []
    assert list_runs(tmp_path / "nowhere") == []


def test_an_end_a_resume_and_a_note(tmp_path: Path) -> None:
    run = write_run(tmp_path, "run")
    append(run, to_json(TrainingEnd("stopped", 2, 1, 0.7, "m", 9.0)) + "\n")
    assert list_runs(tmp_path)[0].ended == "stopped"
    append(
        run, to_json(started(2, 20)) + "\n", to_json(epoch(2, 0.8, epochs=20)) + "\n"
    )
    (run / "running.json").write_text('{"job": "j", "pid": 7, "host": "h"}')
    [found] = list_runs(tmp_path)
    assert (found.ended, found.planned, found.epochs, found.mean_iou) == (
        None,
        20,
        2,
        0.8,
    )
    assert found.running == {"job": "j", "pid": 7, "host": "h"}


@pytest.mark.parametrize(
    "rubbish",
    [b"", b"{", b"\xff\xfe\x00", b"[]", b'"name"', b"name: [1", b"null\n7\n{}"],
)
@pytest.mark.parametrize(
    "name", ["recipe.yaml", "data.json", "events.jsonl", "running.json"]
)
def test_damaged_files_are_ignored(tmp_path: Path, name: str, rubbish: bytes) -> None:
    run = write_run(tmp_path, "run")
    (run / name).write_bytes(rubbish)
    if name == "recipe.yaml":
        assert list_runs(tmp_path) == []
        return
    [found] = list_runs(tmp_path)
    assert found.has_model
    if name == "data.json":
        assert found.classes == ()
    if name == "events.jsonl":
        assert (found.mean_iou, found.epochs, found.planned) == (None, 0, 0)


def test_nothing_scored_is_no_score(tmp_path: Path) -> None:
    run = write_run(tmp_path, "run")
    (run / "events.jsonl").write_text(to_json(epoch(1, float("nan"))) + "\n")
    [found] = list_runs(tmp_path)
    assert found.mean_iou is None
    assert "IoU" not in describe_facts(found)


def test_all_events_except_an_incomplete_line(tmp_path: Path) -> None:
    run = write_run(tmp_path, "run")
    append(run, to_json(epoch(3, 0.9))[:40])
    events = last_events(run)
    assert [type(e).__name__ for e in events] == [
        "TrainingStarted",
        "BatchEnd",
        "EpochEnd",
        "EpochEnd",
    ]
    assert events[-1] == epoch(2, 0.65, best=False)
    assert last_events(tmp_path) == []


def test_date_formats() -> None:
    now = datetime(2026, 1, 1, 23)
    assert format_date(datetime(2026, 1, 1, 14, 5), now) == "today 14:05"
    assert format_date(datetime(2025, 12, 31, 9, 30), now) == "yesterday 9:30"
    assert format_date(datetime(2025, 12, 30, 9, 30), now) == "30 Dec 2025"
    assert (
        format_date(datetime(2026, 1, 1, 9, 30), datetime(2026, 3, 1)) == "1 Jan 9:30"
    )


def test_a_thumbnail_is_the_prediction(tmp_path: Path) -> None:
    draw_picture(tmp_path / "a.png", "blue")
    small = _thumbnail(tmp_path / "a.png")
    assert small is not None
    assert small.width() == small.height()
    assert {small.pixelColor(x, 20).name() for x in range(small.width())} == {"#0000ff"}


def test_the_thumbnail_of_another_or_of_no_picture(tmp_path: Path) -> None:
    Pillow.new("RGB", (50, 20), "red").save(tmp_path / "a.png")
    small = _thumbnail(tmp_path / "a.png")
    assert small is not None
    assert small.pixelColor(20, 20) == QColor("red")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    assert _thumbnail(tmp_path / "b.png") is None


@pytest.fixture
def runs(qtbot: Any, tmp_path: Path) -> RunList:
    """A list of the runs "c", "b" (with a broken picture) and "a"; "unfinished" has no model."""
    for hour, name in enumerate("abc", 9):
        write_run(tmp_path, name, hour=hour)
    write_run(tmp_path, "unfinished", hour=15, model=False)
    (tmp_path / "b" / "previews" / "epoch_0002.png").write_bytes(b"\x89PNG")
    widget = RunList()
    qtbot.addWidget(widget)
    widget.show()
    widget.set_folder(tmp_path)
    qtbot.waitUntil(lambda: len(widget.runs()) == 3)
    return widget


def test_the_list_shows_runs_that_have_a_model(qtbot: Any, runs: RunList) -> None:
    assert [run.name for run in runs.runs()] == ["c", "b", "a"]
    assert runs.list.count() == 3
    assert not runs.text.isVisible()
    tooltip = runs.list.item(0).toolTip()
    for words in (
        "2 classes: pore, grain",
        "mean IoU 0.700",
        "Recipe unet-resnet34, 2 of 8 epochs",
    ):
        assert words in tooltip
    assert isinstance(runs.list.item(0).data(THUMBNAIL), QImage)
    assert runs.list.item(1).data(THUMBNAIL) is None
    assert not runs.grab().isNull()


def test_a_click_chooses(qtbot: Any, runs: RunList) -> None:
    rect = runs.list.visualItemRect(runs.list.item(1))
    with qtbot.waitSignal(runs.chosen) as signal:
        qtbot.mouseClick(
            runs.list.viewport(), Qt.MouseButton.LeftButton, pos=rect.center()
        )
    assert signal.args[0].name == "b"
    with qtbot.waitSignal(runs.chosen) as signal:
        qtbot.keyClick(runs.list, Qt.Key.Key_Down)
    assert signal.args[0].name == "a"


def test_selecting_emits_no_signal_and_survives_a_refresh(
    qtbot: Any, runs: RunList, tmp_path: Path
) -> None:
    chosen: list[Path] = []
    runs.chosen.connect(chosen.append)
    runs.select(tmp_path / "a")
    assert runs.selected() == tmp_path / "a"
    write_run(tmp_path, "d", hour=20)
    runs.select(tmp_path / "d")  # not listed yet
    assert runs.selected() is None
    runs.refresh()
    qtbot.waitUntil(lambda: len(runs.runs()) == 4)
    assert runs.selected() == tmp_path / "d"
    runs.select(tmp_path / "elsewhere.safetensors")
    assert runs.selected() is None
    assert chosen == []


def test_a_selection_can_be_clicked_again_after_another_model_was_opened(
    qtbot: Any, runs: RunList, tmp_path: Path
) -> None:
    runs.select(tmp_path / "c")
    runs.select(None)
    rect = runs.list.visualItemRect(runs.list.item(0))
    with qtbot.waitSignal(runs.chosen) as signal:
        qtbot.mouseClick(
            runs.list.viewport(), Qt.MouseButton.LeftButton, pos=rect.center()
        )
    assert signal.args == [tmp_path / "c"]


def test_an_empty_folder_says_what_to_do(
    qtbot: Any, runs: RunList, tmp_path: Path
) -> None:
    runs.set_folder(tmp_path / "none")
    qtbot.waitUntil(lambda: runs.text.isVisible())
    assert not runs.list.isVisible()
    assert "No models yet" in runs.text.text()
