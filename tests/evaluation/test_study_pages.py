"""The pages of a cross-validation and of a search: their figures, what is missing, what a person typed, and damage."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from html import unescape
from pathlib import Path

import numpy as np
import pytest

from helpers import easy_pair, tiny_recipe
from napari_strata.classes import ClassMap
from napari_strata.errors import RunError
from napari_strata.evaluation.charts import draw_strip
from napari_strata.evaluation.page import write_page
from napari_strata.events import FoldEnd
from napari_strata.io import read_pairs, write_image, write_labels
from napari_strata.training.crossval import crossval, iter_crossval
from napari_strata.training.study import CrossvalResult
from napari_strata.training.trials import TuneResult
from napari_strata.training.tune import SearchOptions, tune
from pages import EVIL, Reader

CLASSES = ClassMap(names=(EVIL, "ink"), values=(0, 255))
RECIPE = tiny_recipe(training__epochs=2)


def folds(out: Path) -> CrossvalResult:
    """A cross-validation of four images on the disk, two by two."""
    for number in range(4):
        pair = easy_pair((1, 48, 40), seed=number)
        write_image(out.parent / "images" / f"rock{number % 2}_{number}.tif", pair.image)
        labels = replace(pair.labels, classes=CLASSES)
        write_labels(out.parent / "labels" / f"rock{number % 2}_{number}.tif", labels)
    pairs = read_pairs(out.parent / "images", out.parent / "labels")
    return crossval(RECIPE, pairs, out=out, folds=2, group="(rock[0-9])", classes=CLASSES, device="cpu")


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> CrossvalResult:
    return folds(tmp_path_factory.mktemp("it's <b>") / "folds")


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> TuneResult:
    pairs = [easy_pair((1, 48, 40), seed=number) for number in range(3)]
    grid = {"training.learning_rate": [0.001, 0.01], "patches.size": [16, 32]}
    options = SearchOptions(2, halving=2, device="cpu")
    return tune(RECIPE, pairs, grid=grid, out=tmp_path_factory.mktemp("tune") / "search", options=options)


def page(folder: Path) -> Reader:
    return Reader(write_page(folder).read_text(encoding="utf-8"))


def cells(read: Reader, section: str) -> list[list[str]]:
    """The words of each row of a section's first table, markup left out."""
    table = read.html[read.html.index(f'<section id="{section}">') :].split("<tbody>")[1].split("</tbody>")[0]
    rows = (re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in table.split("<tr>")[1:])
    return [[unescape(re.sub(r"<title>.*?</title>|<[^>]*>", "", cell)) for cell in row] for row in rows]


def test_a_cross_validation_on_one_page(result: CrossvalResult) -> None:
    read = page(result.out)
    assert read.open == []
    assert read.ids() == {"classes", "folds", "curves", "confusion", "cases", "together", "made"}
    assert not re.search(r"@import|url\(|<link|<script|https?://", read.html)
    assert EVIL in read.text
    assert len(read.values("img", "src")) == 2 * 3
    assert f"standard deviation of {result.mean_iou_std:.3f}" in " ".join(read.text.split())


def test_its_figures_are_those_of_the_folds(result: CrossvalResult) -> None:
    read = page(result.out)
    first, second, overall = cells(read, "classes")
    means, spreads = zip(*(result.spread(score) for score in ("iou", "dice", "precision", "recall")), strict=True)
    for k, row in enumerate((first, second)):
        assert row[1:5] == [f"{m[k]:.3f} ± {s[k]:.3f}" for m, s in zip(means, spreads, strict=True)]
    assert overall[1] == f"{result.mean_iou:.3f} ± {result.mean_iou_std:.3f}"
    for fold, row in zip(result.folds, cells(read, "folds"), strict=True):
        known = [fold.confusion.mean_iou, *fold.confusion.iou]
        assert row[:-1] == [fold.run, *(f"{value:.3f}" for value in known), f"{fold.best_epoch} of 2"]
    counts = result.pooled.counts
    assert f"{counts[0, 1] / counts[0].sum():.1%}".replace("%", " %") in read.text
    assert f"{counts[1, 1]:,}" in read.text
    strip = read.html[read.html.index('<svg class="strip"') :].split("</svg>")[0]
    for fold in result.folds:
        assert f"<title>{fold.run}: {fold.confusion.iou[0]:.3f}</title>" in strip


def test_its_command_does_it_again(result: CrossvalResult, tmp_path: Path) -> None:
    read = page(result.out)
    (line,) = map(unescape, re.findall(r'<pre class="wrap">(.*?)</pre>', read.html))
    table = unescape(re.findall(r"<pre>(image,label.*?)</pre>", read.html, re.DOTALL)[0])
    words = shlex.split(line)
    (tmp_path / "pairs.csv").write_text(table, encoding="utf-8")
    words[words.index("pairs.csv")] = str(tmp_path / "pairs.csv")
    words[words.index("--out") + 1] = str(tmp_path / "again")
    code = "from napari_strata.cli import main; main()"
    command = [sys.executable, "-c", code, *words[1:], "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    again = CrossvalResult.load(tmp_path / "again")
    for one, other in zip(again.folds, result.folds, strict=True):
        np.testing.assert_array_equal(one.confusion.counts, other.confusion.counts)
    assert [fold.held_out for fold in again.folds] == [fold.held_out for fold in result.folds]


def test_half_a_cross_validation_and_one_that_has_hardly_begun(tmp_path: Path) -> None:
    pairs = [easy_pair((1, 48, 40), seed=number) for number in range(3)]
    with closing(iter_crossval(RECIPE, pairs, out=tmp_path / "half", folds=3, device="cpu")) as events:
        next(events)
        read = page(tmp_path / "half")
        assert "0 of 3 folds are done" in read.text
        assert read.ids() == {"missing", "classes", "together", "made"}
        next(event for event in events if isinstance(event, FoldEnd))
        read = page(tmp_path / "half")
    assert "1 of 3 folds are done" in read.text
    assert "was trained 1 time, " in read.text
    assert "nan" not in read.text.lower().split()
    assert "Its images came from memory" in read.text


def test_a_search_on_one_page(search: TuneResult) -> None:
    read = page(search.out)
    assert read.open == []
    assert read.ids() == {"trials", "best", "made"}
    assert not re.search(r"@import|url\(|<link|<script src|https?://", read.html)
    rows = cells(read, "trials")
    assert [row[0] for row in rows] == ["1", "2", "3", "4"]
    for trial, row in zip(search.trials, rows, strict=True):
        epochs = max(search.scores[trial.name])
        score = search.scores[trial.name][epochs]
        assert row[1:3] == [str(trial.values[key]) for key in ("training.learning_rate", "patches.size")]
        assert row[3] == f"{score.mean_iou:.3f} ± {score.mean_iou_std:.3f}"
        assert row[4:6] == [f"{value:.3f}" for value in score.class_iou]
        assert (row[6], row[8]) == (str(epochs), search.state(trial).split(" after")[0])
    assert "trained once more, on all the data" in read.text
    assert f"learning_rate: {search.best.values['training.learning_rate']}" in read.text


def test_a_search_under_way(search: TuneResult, tmp_path: Path) -> None:
    raw = json.loads((search.out / "trials.json").read_text(encoding="utf-8"))
    for trial in raw["trials"][1:]:
        trial |= {"epochs": {}, "state": "waiting"}
    raw["trials"][0] |= {"state": "failed: no room", "epochs": {"1": {"text": "no room", "mean_iou": None}}}
    (tmp_path / "trials.json").write_text(json.dumps(raw), encoding="utf-8")
    read = page(tmp_path)
    assert "3 of 4 trials have not been tried yet" in read.text
    assert read.ids() == {"missing", "trials", "made"}
    assert [row[-1] for row in cells(read, "trials")] == ["failed: no room", *["waiting"] * 3]


@pytest.mark.parametrize("name", ["crossval.json", "trials.json"])
@pytest.mark.parametrize(("cut", "message"), [("{", "cannot be read"), ("{}", "found something else than")])
def test_damage_is_told(tmp_path: Path, name: str, cut: str, message: str) -> None:
    (tmp_path / name).write_text(cut, encoding="utf-8")
    with pytest.raises(RunError, match=message):
        write_page(tmp_path)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("name", ["crossval.json", "trials.json"])
def test_a_file_that_lacks_something_is_told(
    result: CrossvalResult, search: TuneResult, tmp_path: Path, name: str
) -> None:
    folder = result.out if name == "crossval.json" else search.out
    raw = json.loads((folder / name).read_text(encoding="utf-8"))
    for key in set(raw) - {"format", "warnings", "splits", "rounds", "finished", "group"}:
        (tmp_path / name).write_text(json.dumps({k: v for k, v in raw.items() if k != key}), encoding="utf-8")
        with pytest.raises(RunError, match="cannot be read"):
            write_page(tmp_path)


def test_no_torch_is_needed(result: CrossvalResult, search: TuneResult, tmp_path: Path) -> None:
    code = "import sys; from napari_strata.evaluation.page import write_page\n"
    for folder in (result.out, search.out):
        code += f"write_page({str(folder)!r}, {str(tmp_path / folder.name)!r} + '.html')\n"
    code += "print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_strip_has_a_dot_for_each_value_that_is_known() -> None:
    drawn = draw_strip([("a", 0.5), ("b", float("nan")), (EVIL, 1.0)], span=(0.5, 1.0), label="x")
    assert re.findall(r'cx="([0-9.]+)"', drawn) == ["6.0", "144.0"]
    assert 'x1="75.0" x2="75.0"' in drawn
    assert EVIL not in drawn
    assert "<circle" not in draw_strip([], span=(0.0, 1.0), label="x")
