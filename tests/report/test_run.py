"""The page of a run.

It opens alone, says what it knows, escapes what a person typed, and names what is
missing.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from helpers import easy_pair, tiny_model, tiny_recipe
from napari_strata.core.classes import ClassMap
from napari_strata.core.errors import RunError
from napari_strata.core.events import EpochEnd, Message, TrainingEnd
from napari_strata.core.image import AnnotatedImage
from napari_strata.core.runs import RunFolder, read_model_header
from napari_strata.evaluation.evaluate import evaluate
from napari_strata.io import read_pairs, write_image, write_labels
from napari_strata.models.model import Model
from napari_strata.report.charts import Line, draw_lines, nice_ticks
from napari_strata.report.record import read_record
from napari_strata.report.sections import MAX_PICTURES, PICTURE_BYTES, safe_color
from napari_strata.report.write import write_page
from napari_strata.training.loop import iter_train, train
from report.reader import EVIL, Reader

CLASSES = ClassMap(names=(EVIL, 'ink & "pen"'), values=(0, 255))


def named(pair: AnnotatedImage) -> AnnotatedImage:
    return replace(pair, labels=replace(pair.labels, classes=CLASSES))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run on files, whose classes and paths hold what would break a page."""
    folder = tmp_path_factory.mktemp("it's <b>")
    for name, seed in (("train", 0), ("test", 1)):
        pair = named(easy_pair((4, 48, 40), seed=seed))
        write_image(folder / f"{name}.tif", pair.image)
        write_labels(folder / f"{name}_labels.tif", pair.labels)
    pairs = read_pairs(folder / "train.tif", folder / "train_labels.tif")
    held = read_pairs(folder / "test.tif", folder / "test_labels.tif")
    train(
        tiny_recipe(training__epochs=3),
        pairs,
        validation=held,
        out=folder / "run",
        device="cpu",
    )
    RunFolder.open(folder / "run").append_event(Message(f"odd: {EVIL}", "warning"))
    return folder / "run"


def page(path: Path, **options: Any) -> tuple[str, Reader]:
    text = write_page(path, **options).read_text(encoding="utf-8")
    return text, Reader(text)


def test_the_page_stands_alone_and_is_whole(run: Path) -> None:
    text, read = page(run)
    assert read.open == []
    assert read.ids() == {
        "curves",
        "classes",
        "confusion",
        "calibration",
        "cases",
        "data",
        "made",
        "warnings",
    }
    for attribute in ("src", "href", "srcset", "data", "action", "xlink:href"):
        for _, attributes in read.tags:
            value = attributes.get(attribute) or ""
            assert value.startswith("data:image/png;base64,") or not value
    assert not re.search(r"@import|url\(|<link|<script|https?://", text)
    assert len(text) < 3_000_000
    assert (run / "report.html").is_file()


def test_what_a_person_typed_is_escaped(run: Path) -> None:
    text, read = page(run)
    assert EVIL not in text
    assert EVIL in read.text
    assert f"odd: {EVIL}" in read.text
    assert 'ink & "pen"' in read.text
    assert str(run.parent / "train.tif") in read.text


@pytest.mark.parametrize(
    ("color", "safe"),
    [("#4477aa", "#4477aa"), ("red;}</style>", "#888888"), ("", "#888888")],
)
def test_only_colours_may_stand_in_a_style(color: str, safe: str) -> None:
    assert safe_color(color) == safe


def test_the_figures_are_those_of_the_run(run: Path) -> None:
    _, read = page(run)
    model, facts = (
        Model.load(run),
        json.loads((run / "validation" / "metrics.json").read_text()),
    )
    assert model.calibration is not None
    text = " ".join(read.text.split())
    assert f"mean IoU) is {facts['mean_iou']:.3f}" in text
    counts = np.array(facts["confusion"])
    assert "Of 7,680 labelled pixels held back" in text
    for i, row in enumerate(facts["per_class"].values()):
        accuracy = (
            1 - (counts[i].sum() + counts[:, i].sum() - 2 * counts[i, i]) / counts.sum()
        )
        cells = [row[key] for key in ("iou", "dice", "precision", "recall", "f1")]
        expected = [
            *(f"{value:.3f}" for value in cells),
            f"{accuracy:.3f}",
            f"{row['support']:,}",
        ]
        assert " ".join(expected) in re.sub(r"\s+", " ", _cells(read, i))
    assert f"{100 * model.calibration.ece_before:.1f} %" in text
    assert f"{model.temperature:.3f}" in text
    assert model.fingerprint in text
    assert f"torch {model.versions['torch']}" in text
    assert "1 image given: " in text
    assert "batch_size: 4" in read.text


def _cells(read: Reader, row: int) -> str:
    """The numbers of a row of the table of classes, as text."""
    table = (
        read.html[read.html.index('<section id="classes">') :]
        .split("<tbody>")[1]
        .split("</tbody>")[0]
    )
    return " ".join(re.findall(r"<td>([^<]*)</td>", table.split("<tr>")[row + 1]))


def test_curves_have_a_point_an_epoch_and_a_legend(run: Path) -> None:
    text, read = page(run)
    drawings = re.findall(
        r"<figure><h3>([^<]*)</h3>(<svg.*?</svg>)\s*<ul class=\"legend\">(.*?)</ul>",
        text,
        re.DOTALL,
    )
    titles = [title for title, _, _ in drawings]
    assert titles[0] == "Loss"
    assert {
        "Binary cross-entropy (BCE) alone",
        "Dice loss alone",
        "Learning rate",
    } < set(titles)
    assert "IoU on the validation images" in titles
    for _title, drawing, legend in drawings:
        assert drawing.count("<circle") == 3 * legend.count("<li>")
    ends = [e for e in RunFolder.open(run).events() if isinstance(e, EpochEnd)]
    assert f"mean of the classes, epoch 2: {ends[1].mean_iou:.4g}" in read.text


def test_pictures_are_the_panels_of_the_best_and_the_worst(run: Path) -> None:
    _, read = page(run)
    images = read.values("img", "src")
    facts = json.loads((run / "validation" / "metrics.json").read_text())
    assert len(images) == 3 * len(facts["pictures"]) == 12
    for uri in images:
        picture = PIL.Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))
        assert picture.height / picture.width == pytest.approx(48 / 40, rel=0.02)
    assert "Best: " in read.text
    assert "Worst: " in read.text


def test_the_command_trains_the_same_again(run: Path, tmp_path: Path) -> None:
    _, read = page(run)
    (line,) = map(unescape, re.findall(r'<pre class="wrap">(.*?)</pre>', read.html))
    arguments = shlex.split(line)
    assert arguments[2:4] == [
        str(run.parent / "train.tif"),
        str(run.parent / "train_labels.tif"),
    ]
    assert arguments[arguments.index("--recipe") + 1] == str(run / "recipe.yaml")
    at = arguments.index("--val")
    assert arguments[at + 1 : at + 3] == [
        str(run.parent / "test.tif"),
        str(run.parent / "test_labels.tif"),
    ]
    assert arguments[arguments.index("--class") + 1] == f"0={EVIL}"
    arguments[arguments.index("--out") + 1] = str(tmp_path / "again")
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from napari_strata.cli import main; main()",
            *arguments[1:],
            "--device",
            "cpu",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, second = Model.load(run), Model.load(tmp_path / "again")
    assert first.digest == second.digest


def test_several_images_are_listed_in_a_table(tmp_path: Path) -> None:
    for number in range(3):
        pair = easy_pair((1, 40, 40), seed=number)
        for kind, data in (("images", pair.image), ("labels", pair.labels)):
            (write_image if kind == "images" else write_labels)(
                tmp_path / kind / f"{number}.tif", data
            )  # type: ignore[operator]
    pairs = read_pairs(tmp_path / "images", tmp_path / "labels")
    events = iter_train(
        tiny_recipe(training__validation=0.34),
        pairs,
        out=tmp_path / "run",
        device="cpu",
    )
    next(events)
    events.close()
    _, read = page(tmp_path / "run")
    assert "napari-strata train pairs.csv" in read.text
    table = read.text[read.text.index("image,label") :].split("\n\n")[0]
    rows = list(csv.reader(table.splitlines()))[1:4]
    assert rows == [
        [str(tmp_path / k / f"{n}.tif") for k in ("images", "labels")] for n in range(3)
    ]


def test_a_stopped_run_says_what_is_missing_and_why(tmp_path: Path) -> None:
    events = iter_train(
        tiny_recipe(), easy_pair((4, 48, 48)), out=tmp_path / "run", device="cpu"
    )
    for event in events:
        if isinstance(event, EpochEnd):
            break
    events.close()
    _, read = page(tmp_path / "run")
    assert "stopped before its end" in read.text
    assert "has not been measured on the validation images" in read.text
    assert "Its images came from memory" in read.text
    assert {"missing", "curves", "classes"} <= read.ids()
    assert not {"confusion", "calibration", "cases"} & read.ids()


def test_a_run_that_has_hardly_begun_and_one_without_validation(tmp_path: Path) -> None:
    RunFolder.create(tmp_path / "begun", tiny_recipe(), {})
    _, read = page(tmp_path / "begun")
    assert "it is still training, or was cut off" in read.text
    assert "No epoch is complete" in read.text
    train(
        tiny_recipe(training__validation=0.0),
        easy_pair(),
        out=tmp_path / "bare",
        device="cpu",
    )
    _, read = page(tmp_path / "bare")
    assert "Nothing was held back for validation" in read.text
    assert "nan" not in read.text.lower().split()
    assert "curves" in read.ids()


def test_scores_of_an_earlier_best_are_named_as_such(run: Path, tmp_path: Path) -> None:
    text = (run / "events.jsonl").read_text(encoding="utf-8")
    for name in ("recipe.yaml", "data.json", "validation/metrics.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(
            (run / name).read_text(encoding="utf-8"), encoding="utf-8"
        )
    (tmp_path / "events.jsonl").write_text(text, encoding="utf-8")
    ends = [e for e in RunFolder.open(run).events() if isinstance(e, EpochEnd)]
    RunFolder.open(tmp_path).append_event(replace(ends[-1], epoch=9, best_iou=True))
    _, read = page(tmp_path)
    best = Model.load(run).best
    assert best is not None
    assert (
        f"The scores are those of epoch {best.epoch}; since then epoch 9 was better"
        in read.text
    )
    assert "cases" not in read.ids()


@pytest.mark.parametrize("damage", ["{", "[]", "null", '{"per_class": null}'])
def test_damaged_files_are_left_out(run: Path, tmp_path: Path, damage: str) -> None:
    (tmp_path / "validation").mkdir()
    (tmp_path / "recipe.yaml").write_text("{", encoding="utf-8")
    for name in (
        "data.json",
        "metrics.csv",
        "events.jsonl",
        "validation/metrics.json",
        "model.safetensors",
    ):
        (tmp_path / name).write_text(damage, encoding="utf-8")
    _, read = page(tmp_path)
    assert "made" in read.ids()


def test_an_evaluation_has_a_page_too(tmp_path: Path) -> None:
    pair = easy_pair((8, 40, 48))
    scores = evaluate(
        tiny_model(pair), pair, out=tmp_path / "scores", device="cpu", precision="fp32"
    )
    _, read = page(tmp_path / "scores")
    sections = {"trained-on", "classes", "confusion", "calibration", "cases", "made"}
    assert read.ids() == sections
    assert scores.seen.text in read.text
    assert f"{100 * scores.reliability.ece:.1f} %" in read.text
    assert "Class-wise calibration error" in read.text
    assert f"{scores.confusion.mean_iou:.3f}" in read.text
    assert len(read.values("img", "src")) == MAX_PICTURES


def test_many_large_pictures_fit(tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    (tmp_path / "overlays").mkdir()
    for number in range(MAX_PICTURES):
        picture = noise.integers(0, 255, (350, 1000, 3), np.uint8)
        PIL.Image.fromarray(picture).save(
            tmp_path / "overlays" / f"{number}.png", compress_level=1
        )
    (tmp_path / "metrics.json").write_text('{"per_class": {}, "confusion": []}')
    _, read = page(tmp_path)
    images = read.values("img", "src")
    assert len(images) == MAX_PICTURES
    assert sum(map(len, images)) < 1.4 * PICTURE_BYTES


def test_a_page_is_renewed_and_other_files_are_not_lost(
    run: Path, tmp_path: Path
) -> None:
    out = write_page(run, tmp_path / "deep" / "page.html")
    assert out == tmp_path / "deep" / "page.html"
    assert write_page(str(run), str(out)) == out
    out.write_text("my notes")
    with pytest.raises(
        RunError, match="found another file here, which is not replaced"
    ):
        write_page(run, out)
    assert out.read_text() == "my notes"
    with pytest.raises(RunError, match="found a folder where the page"):
        write_page(run, tmp_path)
    with pytest.raises(RunError, match="found neither a run"):
        write_page(tmp_path)


def test_no_torch_is_needed(run: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from napari_strata.report.write import write_page; "
        f"write_page({str(run)!r}, {str(tmp_path / 'x.html')!r}); print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


def test_a_record_reads_the_header_and_each_epoch_once(
    run: Path, tmp_path: Path
) -> None:
    model, record = Model.load(run), read_record(run)
    assert read_model_header(run / "model.safetensors").numbers == sum(
        w.numel() for w in model.weights.values()
    )
    assert record.header.table("versions") == model.versions
    assert [end.epoch for end in record.history.epochs] == [1, 2, 3]
    assert record.history.ended is not None
    assert isinstance(record.history.ended, TrainingEnd)
    assert read_model_header(tmp_path / "none").numbers == 0


@pytest.mark.parametrize(
    ("low", "high", "first", "last"),
    [(0.13, 0.94, 0, 1), (1.01, 2.35, 1, 2.5), (0.5, 0.5, 0.2, 0.8), (0, 0, 0, 1)],
)
def test_ticks_are_round_and_enclose(
    low: float, high: float, first: float, last: float
) -> None:
    ticks = nice_ticks(low, high)
    assert ticks[0] == pytest.approx(first)
    assert ticks[-1] == pytest.approx(last)
    assert ticks[0] <= low <= high <= ticks[-1]
    assert np.allclose(np.diff(ticks), ticks[1] - ticks[0])


def test_lines_break_where_there_is_no_value_and_names_are_escaped() -> None:
    line = Line("<a&b>", [(1, 0.5), (2, float("nan")), (3, 0.7), (4, 0.2)], "#123456")
    drawn = draw_lines([line], label='say "it"')
    (path,) = re.findall(r'class="line" d="([^"]*)"', drawn)
    assert path.count("M") == 2
    assert path.count("L") == 1
    assert drawn.count("<circle") == 3
    assert "&lt;a&amp;b&gt;, epoch 3: 0.7" in drawn
    assert 'aria-label="say &#34;it&#34;"' in drawn
    places = [float(n) for n in re.findall(r"c[xy]=\"([\d.]+)\"", drawn)]
    assert all(0 <= n <= 460 for n in places)
