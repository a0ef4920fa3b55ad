from __future__ import annotations

from pathlib import Path

import pytest
import torch

from helpers import tiny_recipe
from napari_strata.core.errors import RunError
from napari_strata.core.events import BatchEnd, Message
from napari_strata.core.runs import RunFolder


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run", tiny_recipe())


def test_recipe_round_trips(run: RunFolder) -> None:
    assert RunFolder.open(run.path).recipe == tiny_recipe()


def test_an_existing_run_is_never_touched(run: RunFolder) -> None:
    with pytest.raises(RunError, match="exists already; choose another"):
        RunFolder.create(run.path, tiny_recipe(training__epochs=9))
    assert run.recipe.training.epochs == 2


def test_a_file_or_a_missing_run_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="found a file"):
        RunFolder.create(tmp_path / "file", tiny_recipe())
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
