"""The pages of a cross-validation and of a search.

Their figures, what is missing, what a person typed, and damage.
"""

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
from shutil import copytree, rmtree
from typing import Any

import numpy as np
import pytest

from helpers import easy_pair, tiny_recipe
from napari_strata.core.classes import ClassMap
from napari_strata.core.errors import RunError, StrataError
from napari_strata.core.events import FoldEnd
from napari_strata.io import read_pairs, write_image, write_labels
from napari_strata.report.charts import draw_strip
from napari_strata.report.write import write_page
from napari_strata.studies.crossval import crossval, iter_crossval
from napari_strata.studies.crossval_results import CrossvalResult
from napari_strata.studies.trials import Score, TuneResult
from napari_strata.studies.tune import SearchOptions, tune
from report.reader import EVIL, Reader

CLASSES = ClassMap(names=(EVIL, "ink"), values=(0, 255))
RECIPE = tiny_recipe(training__epochs=2)
FOUR = tiny_recipe(training__epochs=4)


def folds(out: Path) -> CrossvalResult:
    """A cross-validation of four images on the disk, two by two."""
    for number in range(4):
        pair = easy_pair((1, 48, 40), seed=number)
        write_image(
            out.parent / "images" / f"rock{number % 2}_{number}.tif", pair.image
        )
        labels = replace(pair.labels, classes=CLASSES)
        write_labels(out.parent / "labels" / f"rock{number % 2}_{number}.tif", labels)
    pairs = read_pairs(out.parent / "images", out.parent / "labels")
    return crossval(
        RECIPE,
        pairs,
        out=out,
        folds=2,
        group="(rock[0-9])",
        classes=CLASSES,
        device="cpu",
    )


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> CrossvalResult:
    return folds(tmp_path_factory.mktemp("it's <b>") / "folds")


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> TuneResult:
    pairs = [easy_pair((1, 48, 40), seed=number) for number in range(3)]
    grid = {"training.learning_rate": [0.001, 0.01], "patches.size": [16, 32]}
    options = SearchOptions(2, halving=2, device="cpu")
    return tune(
        FOUR,
        pairs,
        grid=grid,
        out=tmp_path_factory.mktemp("tune") / "search",
        options=options,
    )


def page(folder: Path) -> Reader:
    return Reader(write_page(folder).read_text(encoding="utf-8"))


def cells(read: Reader, section: str) -> list[list[str]]:
    """The words of each row of a section's first table, markup left out."""
    table = (
        read.html[read.html.index(f'<section id="{section}">') :]
        .split("<tbody>")[1]
        .split("</tbody>")[0]
    )
    rows = (
        re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in table.split("<tr>")[1:]
    )
    return [
        [unescape(re.sub(r"<title>.*?</title>|<[^>]*>", "", cell)) for cell in row]
        for row in rows
    ]


def test_a_cross_validation_on_one_page(result: CrossvalResult) -> None:
    read = page(result.out)
    assert read.open == []
    assert read.ids() == {
        "classes",
        "folds",
        "curves",
        "confusion",
        "cases",
        "together",
        "made",
    }
    assert not re.search(r"@import|url\(|<link|<script|https?://", read.html)
    assert EVIL in read.text
    assert len(read.values("img", "src")) == 2 * 3
    assert f"standard deviation of {result.mean_iou_std:.3f}" in " ".join(
        read.text.split()
    )


def test_its_figures_are_those_of_the_folds(result: CrossvalResult) -> None:
    read = page(result.out)
    first, second, overall = cells(read, "classes")
    means, spreads = zip(
        *(result.spread(score) for score in ("iou", "dice", "precision", "recall")),
        strict=True,
    )
    for k, row in enumerate((first, second)):
        assert row[1:5] == [
            f"{m[k]:.3f} ± {s[k]:.3f}" for m, s in zip(means, spreads, strict=True)
        ]
    assert overall[1] == f"{result.mean_iou:.3f} ± {result.mean_iou_std:.3f}"
    for fold, row in zip(result.folds, cells(read, "folds"), strict=True):
        values = [fold.confusion.mean_iou, *fold.confusion.iou]
        assert row[:-1] == [
            fold.run,
            *(f"{value:.3f}" for value in values),
            f"{fold.best_epoch} of 2",
        ]
    counts = result.pooled.counts
    assert f"{counts[0, 1] / counts[0].sum():.1%}".replace("%", " %") in read.text
    assert f"{counts[1, 1]:,}" in read.text
    strip = read.html[read.html.index('<svg class="strip"') :].split("</svg>")[0]
    for fold in result.folds:
        assert f"<title>{fold.run}: {fold.confusion.iou[0]:.3f}</title>" in strip


def test_its_command_repeats_it(result: CrossvalResult, tmp_path: Path) -> None:
    read = page(result.out)
    line = unescape(
        re.findall(r'<pre class="wrap">(napari-strata crossval .*?)</pre>', read.html)[
            0
        ]
    )
    table = unescape(
        re.findall(r"<pre>(image,label.*?)</pre>", read.html, re.DOTALL)[0]
    )
    arguments = shlex.split(line)
    (tmp_path / "pairs.csv").write_text(table, encoding="utf-8")
    arguments[arguments.index("pairs.csv")] = str(tmp_path / "pairs.csv")
    arguments[arguments.index("--out") + 1] = str(tmp_path / "again")
    code = "from napari_strata.cli import main; main()"
    command = [sys.executable, "-c", code, *arguments[1:], "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    again = CrossvalResult.load(tmp_path / "again")
    for first, second in zip(again.folds, result.folds, strict=True):
        np.testing.assert_array_equal(first.confusion.counts, second.confusion.counts)
    assert [fold.held_out for fold in again.folds] == [
        fold.held_out for fold in result.folds
    ]


def test_unfinished_cross_validations(tmp_path: Path) -> None:
    pairs = [easy_pair((1, 48, 40), seed=number) for number in range(3)]
    with closing(
        iter_crossval(RECIPE, pairs, out=tmp_path / "half", folds=3, device="cpu")
    ) as events:
        next(events)
        read = page(tmp_path / "half")
        assert "0 of 3 folds are done" in read.text
        assert "none is done yet" in read.text
        assert read.ids() == {"missing", "classes", "made"}
        next(event for event in events if isinstance(event, FoldEnd))
        read = page(tmp_path / "half")
    assert "1 of 3 folds are done" in read.text
    assert "was trained once, " in read.text
    assert "napari-strata predict" not in read.text
    texts = [
        cell
        for section in ("classes", "folds")
        for row in cells(read, section)
        for cell in row
    ]
    assert not any("nan" in cell for cell in texts)
    assert "Its images came from memory" in read.text


@pytest.fixture
def copied(result: CrossvalResult, tmp_path: Path) -> Path:
    """Copy of the cross-validation, in a folder whose name needs quotes in a shell."""
    return copytree(result.out, tmp_path / "my folds; x")


def change(file: Path, **values: Any) -> None:
    """Change what a JSON file says; None takes a key away."""
    raw = json.loads(file.read_text(encoding="utf-8")) | values
    file.write_text(
        json.dumps({k: v for k, v in raw.items() if v is not None}), encoding="utf-8"
    )


def test_the_short_commands_can_be_pasted(copied: Path) -> None:
    read = page(copied)
    lines = [
        shlex.split(unescape(line))
        for line in re.findall(r">(napari-strata .*?)</(?:pre|code)>", read.html)
    ]
    assert lines[0] == ["napari-strata", "report", str(copied / "fold_1")]
    assert lines[1] == [
        "napari-strata",
        "predict",
        str(copied),
        "IMAGE",
        "--out",
        "LABELS.tif",
    ]


def test_a_missing_fold_is_named(copied: Path) -> None:
    rmtree(copied / "fold_2")
    read = page(copied)
    assert "The folders fold_2 are not here" in read.text
    assert "together" not in read.ids()
    assert len(read.values("img", "src")) == 3
    rmtree(copied / "fold_1")
    read = page(copied)
    assert "A U-Net of widths" in read.text
    assert read.ids() == {"missing", "classes", "folds", "confusion", "made"}


@pytest.mark.parametrize(
    "damage", ["{", "[]", '{"spec": null, "pairs": [{}]}', '{"per_class": null}']
)
def test_a_damaged_fold_shows_less(copied: Path, damage: str) -> None:
    for name in ("data.json", "metrics.csv", "events.jsonl", "validation/metrics.json"):
        (copied / "fold_1" / name).write_text(damage, encoding="utf-8")
    read = page(copied)
    assert len(read.values("img", "src")) == 3
    assert len(cells(read, "folds")) == 2


def test_one_picture_a_fold_is_its_worst(copied: Path) -> None:
    for fold in ("fold_1", "fold_2"):
        file = copied / fold / "validation" / "metrics.json"
        (best, *_others) = json.loads(file.read_text(encoding="utf-8"))["pictures"]
        change(
            file,
            pictures=[
                best | {"mean_iou": None if fold == "fold_1" else 0.25},
                {"name": "no file"},
            ],
        )
    read = page(copied)
    assert len(read.values("img", "src")) == 2 * 3
    assert read.text.index("In fold_2: ") < read.text.index("In fold_1: ")


def test_a_class_missing_in_a_fold_is_reported(copied: Path) -> None:
    raw = json.loads((copied / "crossval.json").read_text(encoding="utf-8"))
    raw["scores"][0]["confusion"] = [[0, 0], [0, 9]]
    change(copied / "crossval.json", scores=raw["scores"])
    read = page(copied)
    rows = cells(read, "classes")
    assert rows[0][0] == f"{EVIL} in 1 of 2 folds"
    assert rows[1][0] == "ink"
    assert "A class that some folds do not have" in read.text
    assert cells(read, "folds")[0][2] == "\N{EN DASH}"


def test_scores_that_no_longer_count_have_no_pictures(copied: Path) -> None:
    raw = json.loads((copied / "crossval.json").read_text(encoding="utf-8"))
    raw["recipe"]["training"]["epochs"] = 9
    change(copied / "crossval.json", scores=[], recipe=raw["recipe"])
    read = page(copied)
    assert "0 of 2 folds are done" in read.text
    assert "cases" not in read.ids()
    assert "epochs: 9" in read.text
    assert "--recipe recipe.yaml" in read.text
    assert "Save the recipe below as recipe.yaml" in read.text


def test_the_epochs_are_those_that_were_trained(copied: Path) -> None:
    raw = json.loads((copied / "crossval.json").read_text(encoding="utf-8"))
    change(
        copied / "crossval.json",
        scores=[fold | {"epochs": 9} for fold in raw["scores"]],
    )  # it stopped early
    rows = cells(page(copied), "folds")
    assert [row[-2] for row in rows] == [
        f"{fold['best_epoch']} of 2" for fold in raw["scores"]
    ]


def test_commands_that_would_do_something_else_are_left_out(copied: Path) -> None:
    change(copied / "crossval.json", group=None)
    read = page(copied)
    assert "does not record how the specimens were identified" in read.text
    assert "napari-strata crossval" not in read.text
    raw = json.loads((copied / "crossval.json").read_text(encoding="utf-8"))
    change(
        copied / "crossval.json",
        folds=raw["folds"][:1],
        scores=raw["scores"][:1],
        group="x",
    )
    read = page(copied)
    assert "Report of a training scored on one part held back" in read.text
    assert "napari-strata crossval" not in read.text


def test_a_search_on_one_page(search: TuneResult) -> None:
    read = page(search.out)
    assert read.open == []
    assert read.ids() == {"trials", "best", "split", "made"}
    assert not re.search(r"@import|url\(|<link|<script src|https?://", read.html)
    rows = cells(read, "trials")
    assert [row[0] for row in rows] == ["1", "2", "3", "4"]
    for trial, row in zip(search.trials, rows, strict=True):
        epochs = max(search.scores[trial.name])
        score = search.scores[trial.name][epochs]
        assert row[1:3] == [
            str(trial.values[key]) for key in ("training.learning_rate", "patches.size")
        ]
        assert row[3] == f"{score.mean_iou:.3f} ± {score.mean_iou_std:.3f}"
        assert row[4:6] == [f"{value:.3f}" for value in score.class_iou]
        assert (row[6], row[8]) == (str(epochs), search.state(trial).split(" after")[0])
    assert "trained once more, on all the data" in read.text
    assert f"learning_rate: {search.best.values['training.learning_rate']}" in read.text


def test_an_unfinished_search(search: TuneResult, tmp_path: Path) -> None:
    raw = json.loads((search.out / "trials.json").read_text(encoding="utf-8"))
    for trial in raw["trials"][1:]:
        trial |= {"epochs": {}}
    failed = "failed: no room after 3 batches"
    scores = Score(text=failed.removeprefix("failed: "))
    raw["trials"][0] |= {"epochs": {"1": scores.as_dict()}}
    (tmp_path / "trials.json").write_text(json.dumps(raw), encoding="utf-8")
    read = page(tmp_path)
    assert "3 of 4 combinations have not been tried yet" in read.text
    assert read.ids() == {"missing", "trials", "split", "made"}
    assert [row[-1] for row in cells(read, "trials")] == [failed, *["waiting"] * 3]


def test_between_two_rounds_nothing_is_given_up_too_early(
    search: TuneResult, tmp_path: Path
) -> None:
    assert search.rounds == ((4, 4), (2, 2), (1, 1))
    raw = json.loads((search.out / "trials.json").read_text(encoding="utf-8"))
    for trial in raw["trials"]:
        trial["epochs"] = {"1": trial["epochs"]["1"]}
    (tmp_path / "trials.json").write_text(json.dumps(raw), encoding="utf-8")
    read = page(tmp_path)
    assert "2 may go on in the next round" in read.text
    assert "The best so far is" in read.text
    assert "best" not in read.ids()
    states = [row[-1] for row in cells(read, "trials")]
    assert sorted(states) == ["active", "active", "given up", "given up"]
    # The two that the second round trains, and no others.
    scores = [trial["epochs"]["1"]["mean_iou"] for trial in raw["trials"]]
    assert {
        s for s, state in zip(scores, states, strict=True) if state == "active"
    } == set(sorted(scores)[2:])


def test_a_model_of_another_recipe_is_not_shown_as_the_best(
    search: TuneResult, tmp_path: Path
) -> None:
    folder = copytree(search.out, tmp_path / "search")
    assert "napari-strata predict" in page(folder).text
    raw = json.loads((folder / "trials.json").read_text(encoding="utf-8"))
    first, *others = raw["trials"]
    change(
        folder / "trials.json",
        trials=[others[0] | {"epochs": first["epochs"]}, first, *others[1:]],
    )
    read = page(folder)
    assert "Its recipe is below." in read.text
    assert "best.yaml" not in read.text
    assert "napari-strata predict" not in read.text


@pytest.mark.parametrize("name", ["crossval.json", "trials.json"])
@pytest.mark.parametrize(
    ("cut", "message"), [("{", "cannot be read"), ("{}", "found something else than")]
)
def test_damage_is_reported(tmp_path: Path, name: str, cut: str, message: str) -> None:
    (tmp_path / name).write_text(cut, encoding="utf-8")
    with pytest.raises(RunError, match=message):
        write_page(tmp_path)
    assert not (tmp_path / "report.html").exists()


NEEDED = {
    "crossval.json": ("class_map", "folds", "recipe", "scores"),
    "trials.json": ("class_names", "trials", "rounds"),
}
NEEDED_IN_A_ROW = {
    "crossval.json": (
        "run",
        "held_out",
        "confusion",
        "epochs",
        "best_epoch",
        "seconds",
    ),
    "trials.json": ("name", "values", "recipe", "epochs"),
}


@pytest.mark.parametrize("name", list(NEEDED))
def test_incomplete_files_are_reported(
    result: CrossvalResult, search: TuneResult, tmp_path: Path, name: str
) -> None:
    folder, rows = (
        (result.out, "scores") if name == "crossval.json" else (search.out, "trials")
    )
    raw = json.loads((folder / name).read_text(encoding="utf-8"))
    less = [{k: v for k, v in raw.items() if k != key} for key in NEEDED[name]]
    for key in NEEDED_IN_A_ROW[name]:
        less.append(
            raw
            | {rows: [{k: v for k, v in row.items() if k != key} for row in raw[rows]]}
        )
    for one in less:
        (tmp_path / name).write_text(json.dumps(one), encoding="utf-8")
        with pytest.raises(StrataError, match=name):
            write_page(tmp_path)
        assert not (tmp_path / "report.html").exists()


def test_no_torch_is_needed(
    result: CrossvalResult, search: TuneResult, tmp_path: Path
) -> None:
    code = "import sys; from napari_strata.report.write import write_page\n"
    for folder in (result.out, search.out):
        code += (
            f"write_page({str(folder)!r}, {str(tmp_path / folder.name)!r} + '.html')\n"
        )
    code += "print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


def test_a_strip_has_a_dot_for_each_value_that_is_known() -> None:
    drawn = draw_strip(
        [("a", 0.5), ("b", float("nan")), (EVIL, 1.0)], span=(0.5, 1.0), label="x"
    )
    assert re.findall(r'cx="([0-9.]+)"', drawn) == ["6.0", "144.0"]
    assert 'x1="75.0" x2="75.0"' in drawn
    assert EVIL not in drawn
    assert "<circle" not in draw_strip([], span=(0.0, 1.0), label="x")
