"""The commands crossval and tune, called as a user calls them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from typer.testing import CliRunner, Result

from helpers import easy_pair, signal_in_epoch
from napari_strata.cli import app
from napari_strata.core.errors import StrataError
from napari_strata.studies.crossval_results import CrossvalResult
from napari_strata.studies.trials import TuneResult

SMALL = [
    f"--set={item}"
    for item in (
        "network={kind: unet, widths: [4, 8]}",
        "patches.size=32",
        "patches.per_epoch=8",
        "training.batch_size=4",
        "training.epochs=1",
        "training.precision=fp32",
        "training.learning_rate=1e-2",
    )
] + ["--device=cpu"]


def call(*words: Any) -> Result:
    return CliRunner().invoke(app, list(map(str, words)))


def works(*words: Any) -> str:
    result = call(*words)
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result.stdout


def refuses(*words: Any) -> str:
    """Run the command and return its error message."""
    result = call(*words)
    assert isinstance(result.exception, StrataError), result.output
    assert len(str(result.exception).splitlines()) <= 3
    return str(result.exception)


@pytest.fixture
def data(tmp_path: Path) -> tuple[Path, Path]:
    """Folders with four images of two specimens, and their labels."""
    folders = tmp_path / "images", tmp_path / "labels"
    for folder in folders:
        folder.mkdir()
    for number, name in enumerate(("a_1", "a_2", "b_1", "b_2")):
        pair = easy_pair((1, 48, 48), seed=number)
        for folder, array in zip(
            folders, (pair.image.data, pair.labels.data), strict=True
        ):
            tifffile.imwrite(folder / f"{name}.tif", np.asarray(array)[0])
    return folders


def test_crossval_trains_each_fold_and_ends_in_a_table(
    tmp_path: Path, data: tuple[Path, Path]
) -> None:
    out = works(
        "crossval",
        *data,
        "--out",
        tmp_path / "cv",
        "--folds",
        2,
        *SMALL,
        "--class",
        "255=grain",
    )
    result = CrossvalResult.load(tmp_path / "cv")
    assert result.classes.names == ("class 0", "grain")
    assert len(result.folds) == 2
    assert "fold 2/2  mean IoU" in out
    assert out.rstrip().endswith(result.table())


def test_crossval_by_specimen_as_json(tmp_path: Path, data: tuple[Path, Path]) -> None:
    arguments = (
        "crossval",
        *data,
        "--out",
        tmp_path / "cv",
        "--folds",
        2,
        *SMALL,
        "--group",
        "^([ab])_",
        "--json",
    )
    rows = [json.loads(line) for line in works(*arguments, "--foreground").splitlines()]
    assert sorted(row["text"] for row in rows if row["event"] == "FoldStarted") == [
        f"1 of 2 specimens: {name}" for name in "ab"
    ]
    assert rows[-1]["event"] == "CrossvalEnd"
    assert rows[-1]["class_names"] == ["background", "foreground"]


def test_tune_ends_in_a_table_and_a_model(
    tmp_path: Path, data: tuple[Path, Path]
) -> None:
    grid = (
        "--grid",
        "training.learning_rate=1e-2,1e-5",
        "--grid",
        "network.norm=batch,none",
    )
    arguments = (
        "tune",
        *data,
        "--out",
        tmp_path / "t",
        *grid,
        "--folds",
        1,
        "--halving",
        2,
        *SMALL,
    )
    out = works(*arguments)
    result = TuneResult.load(tmp_path / "t")
    assert len(result.trials) == 4
    assert out.rstrip().endswith(result.table())
    assert result.model is not None
    assert "successive halving, one split (" in out
    rows = [json.loads(line) for line in works(*arguments, "--json").splitlines()]
    assert (
        rows[-1]
        | {"event": "TuneEnd", "best": result.best.name, "model": str(result.model)}
        == rows[-1]
    )


def test_tune_without_the_last_training(
    tmp_path: Path, data: tuple[Path, Path]
) -> None:
    arguments = (
        "--grid",
        "recipe=unet-ct,unet-classic",
        "--folds",
        1,
        *SMALL,
        "--no-retrain",
    )
    works("tune", *data, "--out", tmp_path / "t", *arguments)
    assert sorted(trial.name for trial in TuneResult.load(tmp_path / "t").trials) == [
        "recipe=unet-classic",
        "recipe=unet-ct",
    ]
    assert not (tmp_path / "t" / "final").exists()


def test_bad_input_ends_in_a_message_and_writes_nothing(
    tmp_path: Path, data: tuple[Path, Path]
) -> None:
    out = ("--out", tmp_path / "out")
    text = refuses("crossval", *data, *out, *SMALL)
    assert text.startswith(
        "found 4 images with 4 slices labelled in all, fewer than the 5 folds asked for"
    )
    assert "finds no specimen" in refuses(
        "crossval", *data, *out, *SMALL, "--folds", 2, "--group", "rock"
    )
    assert "did you mean 'epochs'" in refuses(
        "crossval", *data, *out, "--folds", 2, "--set", "training.epoch=1"
    )
    assert "did you mean 'widths'" in refuses(
        "tune", *data, *out, *SMALL, "--grid", "network.width=[4],[8]"
    )
    assert "KEY=V1,V2" in refuses(
        "tune", *data, *out, *SMALL, "--grid", "training.epochs"
    )
    assert call("crossval", *data, *out, "--folds", 1).exit_code == 2
    assert call("tune", *data, *out).exit_code == 2
    assert not (tmp_path / "out").exists()


def test_ctrl_c_and_the_same_command_again(
    tmp_path: Path, data: tuple[Path, Path]
) -> None:
    arguments = [
        "crossval",
        *map(str, data),
        "--out",
        str(tmp_path / "cv"),
        "--folds",
        "2",
        *SMALL,
    ]
    arguments += ["--set=training.epochs=3"]
    code = "from napari_strata.cli import app; "
    code += signal_in_epoch(2, signal.SIGINT) + "app()"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, check=False
    )
    assert done.returncode != 0
    assert (tmp_path / "cv" / "fold_1" / "last.pt").is_file()
    assert len(CrossvalResult.load(tmp_path / "cv").folds) < 2
    works(*arguments)
    works(*arguments[:4], str(tmp_path / "whole"), *arguments[5:])
    results = [CrossvalResult.load(tmp_path / name) for name in ("cv", "whole")]
    for first, second in zip(*(result.folds for result in results), strict=True):
        np.testing.assert_array_equal(first.confusion.counts, second.confusion.counts)
