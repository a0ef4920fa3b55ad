from __future__ import annotations

from pathlib import Path

import pytest
import torch

from helpers import tiny_recipe
from napari_strata.core.errors import RunError
from napari_strata.core.events import (
    BatchEnd,
    EpochEnd,
    Message,
    TrainingEnd,
    TrainingStarted,
)
from napari_strata.core.runs import (
    CrossvalFolder,
    EvaluationFolder,
    RunFolder,
    RunHistory,
    SearchFolder,
)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run", tiny_recipe(), {})


def test_recipe_round_trips(run: RunFolder) -> None:
    assert RunFolder.open(run.path).recipe == tiny_recipe()


def test_an_existing_run_is_never_touched(run: RunFolder) -> None:
    with pytest.raises(RunError, match="exists already; choose another"):
        RunFolder.create(run.path, tiny_recipe(training__epochs=9), {})
    assert run.recipe.training.epochs == 2


def test_a_file_or_a_missing_run_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="found a file"):
        RunFolder.create(tmp_path / "file", tiny_recipe(), {})
    with pytest.raises(RunError, match="found no run here"):
        RunFolder.open(tmp_path / "none")


def test_events_survive_a_torn_line(run: RunFolder) -> None:
    events = [Message("a"), BatchEnd(1, 1, 2, 0.5, 1e-3, 0.1)]
    for event in events:
        run.append_event(event)
    with open(run.path / "events.jsonl", "a") as file:
        file.write('{"event": "Batch')
    assert run.events() == events


def test_no_events_yet(run: RunFolder) -> None:
    assert run.events() == []


def test_checkpoints_round_trip_and_damage_is_named(run: RunFolder) -> None:
    run.save_checkpoint("last.pt", {"epoch": 3, "weights": {"a": torch.arange(3)}})
    state = run.load_checkpoint("last.pt")
    assert state["epoch"] == 3
    assert torch.equal(state["weights"]["a"], torch.arange(3))
    (run.path / "last.pt").write_bytes((run.path / "last.pt").read_bytes()[:100])
    with pytest.raises(RunError, match="damaged"):
        run.load_checkpoint("last.pt")
    with pytest.raises(RunError, match=r"found no best\.pt"):
        run.load_checkpoint("best.pt")


def test_json_round_trips_and_damage_is_named(run: RunFolder) -> None:
    run.write_json("data.json", {"a": [1, 2]})
    assert run.read_json("data.json") == {"a": [1, 2]}
    (run.path / "data.json").write_text("{")
    with pytest.raises(RunError, match="damaged"):
        run.read_json("data.json")


STARTED = TrainingStarted("run", "CPU", "fp32", 9, 1, 3, 2, ("a",), ("a",), "1 of 4")
ENDED = TrainingEnd("stopped", 2, 1, 0.5, "model", 3.0)


def epoch(number: int, mean_iou: float = 0.5, *, best: bool = False) -> EpochEnd:
    return EpochEnd(
        number,
        3,
        0.4,
        0.5,
        mean_iou,
        0.9,
        (mean_iou,),
        1e-3,
        2.0,
        best,
        best,
        "raw",
        mean_iou_in_truth=mean_iou,
    )


def test_a_repeated_epoch_counts_once_and_the_newer_one() -> None:
    history = RunHistory((STARTED, epoch(1), epoch(2, 0.6), STARTED, epoch(2, 0.7)))
    assert history.epochs == [epoch(1), epoch(2, 0.7)]


def test_the_best_epoch_is_the_last_one_marked_best() -> None:
    ends = epoch(1, best=True), epoch(2, 0.7, best=True), epoch(3, 0.6)
    assert RunHistory((STARTED, *ends)).best == ends[1]
    assert RunHistory((STARTED, epoch(1), epoch(2))).best == epoch(2)
    assert RunHistory().best is None


def test_a_training_that_started_again_has_no_end() -> None:
    assert RunHistory((STARTED, ENDED)).ended == ENDED
    assert RunHistory((STARTED, ENDED, STARTED)).ended is None
    assert RunHistory((STARTED,)).ended is None


def test_the_history_has_no_batches_and_each_warning_once(run: RunFolder) -> None:
    warning = Message("odd", "warning")
    for event in (warning, BatchEnd(1, 1, 2, 0.5, 1e-3, 0.1), warning, epoch(1)):
        run.append_event(event)
    assert run.history().events == (warning, warning, epoch(1))
    assert run.history().warnings == ["odd"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe"])
def test_a_damaged_file_reads_as_empty(run: RunFolder, content: bytes) -> None:
    for path in (
        run.recipe_path,
        run.data_path,
        run.events_path,
        run.table_path,
        run.model_path,
    ):
        path.write_bytes(content)
    assert run.raw_recipe() == run.data() == run.classes() == {}
    assert run.history() == RunHistory()
    assert run.epoch_rows() == []
    assert run.exists
    assert EvaluationFolder(run.path).scores() == {}


def test_a_folder_without_files_reads_as_empty(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert not run.exists
    assert not run.has_begun
    assert not run.has_model
    assert run.recipe_text() == ""
    assert run.newest_preview() is None
    assert not run.validation.exists


@pytest.mark.parametrize("folder_type", [CrossvalFolder, SearchFolder])
def test_a_study_round_trips_and_another_format_is_refused(
    tmp_path: Path, folder_type: type[CrossvalFolder] | type[SearchFolder]
) -> None:
    study = folder_type(tmp_path)
    assert not study.exists
    with pytest.raises(RunError, match="found no"):
        study.read()
    study.write({"folds": ["fold_1"]})
    assert study.exists
    assert study.read()["folds"] == ["fold_1"]
    study.file.write_text('{"format": "other"}')
    with pytest.raises(RunError, match="something else"):
        study.read()
    study.file.write_text("{")
    with pytest.raises(RunError, match="cannot be read"):
        study.read()


def test_a_cross_validation_is_found_by_its_file_too(tmp_path: Path) -> None:
    study = CrossvalFolder(tmp_path)
    study.write({"folds": []})
    assert CrossvalFolder(study.file).path == tmp_path
