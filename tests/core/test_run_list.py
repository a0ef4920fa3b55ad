"""Lists of runs, cross-validations and searches, and their deletion."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from helpers import easy_pair, tiny_recipe
from napari_strata import cli, find_runs
from napari_strata.core.errors import RunError
from napari_strata.core.events import EpochEnd
from napari_strata.core.files import measure_size
from napari_strata.core.locks import LOCK, one_writer
from napari_strata.core.run_list import delete_run
from napari_strata.studies.crossval import iter_crossval
from napari_strata.studies.tune import iter_tune
from napari_strata.training.loop import iter_train, train

DEAD = 2**22 + 1
"""Larger than any process number."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of two epochs, and a stopped one."""
    folder = tmp_path_factory.mktemp("runs")
    train(tiny_recipe(), easy_pair((4, 64, 64)), out=folder / "whole")
    recipe = tiny_recipe(training__epochs=9)
    with closing(
        iter_train(recipe, easy_pair((4, 64, 64)), out=folder / "cut")
    ) as events:
        next(event for event in events if isinstance(event, EpochEnd))
    return folder


@pytest.fixture
def runs(trained: Path, tmp_path: Path) -> Path:
    """A copy of these runs, which a test may change."""
    for folder in trained.iterdir():
        for path in folder.rglob("*"):
            if path.is_file():
                copy = tmp_path / path.relative_to(trained)
                copy.parent.mkdir(parents=True, exist_ok=True)
                os.link(path, copy)
    return tmp_path


def states(folder: Path) -> dict[str, str]:
    return {run.name: run.state for run in find_runs(folder)}


def test_states(runs: Path) -> None:
    (runs / "notes").mkdir()
    (runs / "image.tif").write_bytes(b"")
    assert states(runs) == {"cut": "stopped", "whole": "finished"}
    (runs / "whole" / LOCK).write_text(f"{os.getppid()}\n{os.uname().nodename}\n")
    (runs / "cut" / LOCK).write_text(f"{DEAD}\n{os.uname().nodename}\n")
    assert states(runs) == {"cut": "stopped", "whole": "running"}
    assert [run.name for run in find_runs(runs / "cut")] == ["cut"]
    with pytest.raises(RunError, match="cannot be read"):
        find_runs(runs / "nowhere")


@pytest.mark.parametrize("name", ["recipe.yaml", "model.safetensors"])
def test_a_damaged_run_is_listed_and_can_be_deleted(runs: Path, name: str) -> None:
    (runs / "whole" / name).unlink()
    (runs / "whole" / name).write_bytes(b"damage")
    assert states(runs) == {"cut": "stopped", "whole": "damaged"}
    delete_run(runs / "whole")
    assert states(runs) == {"cut": "stopped"}


def test_hard_links_count_once(runs: Path) -> None:
    before = measure_size(runs / "whole")
    assert before > 10_000
    os.link(runs / "whole" / "last.pt", runs / "whole" / "log.txt")
    assert measure_size(runs / "whole") == before
    (run,) = find_runs(runs / "whole")
    assert run.measure_size() == before


def test_deletion_frees_what_was_counted(runs: Path) -> None:
    size = measure_size(runs / "cut")
    (runs / f".{DEAD}.deleted.old").mkdir()  # of a deletion that was killed
    assert delete_run(runs / "cut") == size
    assert [path.name for path in runs.iterdir()] == ["whole"]


def refusal(path: Path) -> str:
    """Return the reason why a folder is not deleted, which stays as it was."""
    before = {entry: entry.stat().st_mtime_ns for entry in path.rglob("*")}
    with pytest.raises(RunError) as refused:
        delete_run(path)
    assert {entry: entry.stat().st_mtime_ns for entry in path.rglob("*")} == before
    return str(refused.value)


def test_only_a_run_is_deleted(runs: Path) -> None:
    (runs / "other").mkdir()
    (runs / "other" / "image.tif").write_bytes(b"image")
    (runs / "link").symlink_to(runs / "whole")
    for path in (runs, runs / "other", runs / "link", runs / "nowhere"):
        assert "found no run" in refusal(path)
    (runs / "whole" / "my labels.tif").write_bytes(b"labels")
    assert "also holds my labels.tif" in refusal(runs / "whole")


def test_a_run_in_training_is_not_deleted(runs: Path) -> None:
    with one_writer(runs / "whole"):
        assert f"process {os.getpid()} on" in refusal(runs / "whole")
    note = {"job": "t", "pid": 1, "host": "elsewhere"}
    (runs / "cut" / "running.json").write_text(json.dumps(note))
    assert "another process is training" in refusal(runs / "cut")


def test_a_cross_validation_and_a_search(tmp_path: Path) -> None:
    pair, folder = easy_pair((4, 64, 64)), tmp_path / "folds"
    recipe = tiny_recipe(training__epochs=1)
    with closing(iter_crossval(recipe, pair, out=folder, folds=2)) as events:
        next(event for event in events if isinstance(event, EpochEnd))
        (run,) = find_runs(tmp_path)
        assert (run.state, run.folds, run.done) == ("running", 2, 0)
        assert "is training it" in refusal(folder)
    assert find_runs(tmp_path)[0].state == "stopped"
    list(iter_crossval(recipe, pair, out=folder, folds=2))
    (run,) = find_runs(tmp_path)
    assert (run.state, run.folds, run.done) == ("finished", 2, 2)
    assert run.mean_iou is not None
    assert f"is a part of {folder}" in refusal(folder / "fold_1")
    search = tmp_path / "search"
    grid = {"training.learning_rate": [1e-3, 1e-2]}
    list(iter_tune(recipe, pair, grid, out=search, folds=1))
    found = {run.name: run for run in find_runs(tmp_path)}["search"]
    assert (found.state, found.trials, found.done) == ("finished", 2, 2)
    assert found.has_model
    assert f"is a part of {search}" in refusal(search / "final")
    delete_run(folder)
    delete_run(search)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str]]:
    """Run ``napari-strata runs``; return its status and what it printed."""

    def run(*words: object) -> tuple[int, str]:
        line = ["napari-strata", "runs", *map(str, words)]
        monkeypatch.setattr("sys.argv", line)
        status: object = 0
        try:
            cli.main()
        except SystemExit as ended:
            status = ended.code or 0
        output = capsys.readouterr()
        return int(str(status)), output.out + output.err

    return run


def test_the_command_lists_runs(
    runs: Path, command: Callable[..., tuple[int, str]]
) -> None:
    status, text = command(runs)
    head, *lines, total = text.splitlines()
    assert status == 0
    assert head.split() == ["run", "state", "date", "recipe", "done", "IoU", "size"]
    assert [line.split()[1] for line in lines] == ["stopped", "finished"]
    assert "2/2 epochs" in lines[1]
    assert total.startswith("2 runs, ")
    status, text = command(runs, "--json")
    rows = [json.loads(line) for line in text.splitlines()]
    assert [row["state"] for row in rows] == ["stopped", "finished"]
    assert rows[1]["size"] == measure_size(runs / "whole")
    (runs / "empty").mkdir()
    assert command(runs / "empty") == (0, "found no runs here\n")


def test_the_command_deletes_what_it_asked_for(
    runs: Path, command: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("typer.confirm", lambda *_, **__: False)
    assert command("--delete", runs / "cut") == (0, "")
    assert len(states(runs)) == 2
    # Nothing is deleted if one of several cannot be.
    status, text = command("--delete", runs / "cut", runs / "nowhere", "--yes")
    assert status == 2
    assert "found no run" in text
    assert len(states(runs)) == 2
    status, text = command("--delete", runs / "cut", runs / "whole", "--yes")
    assert status == 0
    assert text.startswith(f"deleted {runs / 'cut'}, ")
    assert states(runs) == {}
    assert command("--delete")[0] == 2
