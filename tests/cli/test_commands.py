"""The command line as a user meets it.

Through the installed program's own entry point.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tifffile
import torch

import napari_strata as ns
from helpers import easy_pair, signal_in_epoch, tiny_model
from napari_strata import cli
from napari_strata.doctor import Check
from napari_strata.io import write_image

SMALL = [
    f"--set={item}"
    for item in (
        "network={kind: unet, widths: [4, 8]}",
        "patches.size=32",
        "patches.per_epoch=8",
        "training.batch_size=4",
        "training.epochs=2",
        "training.precision=fp32",
        "training.learning_rate=1e-2",
    )
]


class Console:
    """Runs the program and keeps what it said."""

    def __init__(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self._capsys, self._monkeypatch = capsys, monkeypatch
        self.out = self.err = ""

    def __call__(self, *words: Any) -> int:
        self._monkeypatch.setattr(sys, "argv", ["napari-strata", *map(str, words)])
        status: Any = 0
        try:
            cli.main()
        except SystemExit as ended:
            status = ended.code or 0
        self.out, self.err = self._capsys.readouterr()
        return int(status)

    def refuses(self, *words: Any) -> str:
        """Return the message of a command that must fail with status 2."""
        assert self(*words) == 2, self.out + self.err
        assert "Traceback" not in self.err
        assert 1 <= len(self.err.strip().splitlines()) <= 3, self.err
        return self.err


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Console:
    return Console(capsys, monkeypatch)


@pytest.fixture
def stack(tmp_path: Path) -> Path:
    """Folder with images.tif and labels.tif: four planes, values 0 and 255."""
    pair = easy_pair((4, 64, 64))
    write_image(tmp_path / "images.tif", pair.image)
    ns.write_labels(tmp_path / "labels.tif", pair.labels)
    return tmp_path


def test_strokes_train_in_seconds_and_are_not_given_an_iou(
    run: Console, stack: Path
) -> None:
    images, strokes, model = stack / "images.tif", stack / "strokes.tif", stack / "run"
    truth = ns.read_labels(stack / "labels.tif").read()[0]
    painted = np.where(truth > 0, 2, 1).astype(np.uint8)
    painted[:, :, 6:] = 0  # a band of both classes in each plane
    tifffile.imwrite(strokes, painted, photometric="minisblack")
    train = ("train", images, strokes, "--recipe", "instant", "--unlabelled", "0")
    assert run(*train, "--out", model) == 0
    assert f"of {4 * 64 * 6:,} held-out stroke pixels" in run.out
    assert "IoU" not in run.out
    assert run("predict", model, images, "--out", stack / "p.tif") == 0
    predicted = ns.read_labels(stack / "p.tif").read()[0]
    assert (predicted == np.where(truth > 0, 2, 1)).mean() > 0.95
    assert run("info", model) == 0
    assert "pixels" in run.out
    assert "fitted anew" in run.refuses(*train, "--out", stack / "b", "--start", model)


def test_train_predict_evaluate_info(run: Console, stack: Path) -> None:
    images, labels, model = stack / "images.tif", stack / "labels.tif", stack / "run"
    assert (
        run(
            "train",
            images,
            labels,
            "--out",
            model,
            *SMALL,
            "--class",
            "255=pore",
            "--class",
            "0=rock",
        )
        == 0
    )
    assert "mean IoU" in run.out
    assert "validation: 1 of 4 slices" in run.out

    assert (
        run("predict", model, images, "--out", stack / "p.tif", "--probabilities") == 0
    )
    predicted = ns.read_labels(stack / "p.tif")
    assert predicted.shape == (4, 64, 64)
    assert predicted.classes is not None
    assert predicted.classes.names == ("rock", "pore")
    assert set(np.unique(predicted.data)) <= {0, 255}
    assert ns.read_image(stack / "p_probabilities.tif").channels == 2

    assert run("evaluate", model, images, labels, "--out", stack / "scores") == 0
    assert (
        run("evaluate", stack / "p.tif", labels, "--out", stack / "label_scores") == 0
    )
    by_model, by_labels = (
        json.loads((stack / n / "metrics.json").read_text())
        for n in ("scores", "label_scores")
    )
    assert by_labels["mean_iou"] == by_model["mean_iou"]
    assert "mean IoU" in run.out
    scores = json.loads((stack / "scores" / "metrics.json").read_text())
    truth, predicted_labels = ns.read_labels(labels).read(), predicted.read()
    assert scores["pixel_accuracy"] == pytest.approx(
        float((truth == predicted_labels).mean())
    )

    assert run("info", model) == 0
    assert "class 1: pore, value 255" in run.out
    assert run("info", stack / "p.tif") == 0
    assert "ZYX" in run.out
    assert "pore" in run.out


def test_resume_and_extend(run: Console, stack: Path) -> None:
    arguments = (
        "train",
        stack / "images.tif",
        stack / "labels.tif",
        "--out",
        stack / "run",
    )
    assert run(*arguments, *SMALL) == 0
    assert "exists already" in run.refuses(*arguments, *SMALL)
    assert run(*arguments, "--extend", "1") == 0
    assert "epoch 3/3" in run.out
    assert run(*arguments, "--resume") == 0
    assert "complete after 3 epochs" in run.out
    assert len(ns.Model.load(stack / "run").history) == 3


def test_json_lines(run: Console, stack: Path) -> None:
    assert (
        run(
            "train",
            stack / "images.tif",
            stack / "labels.tif",
            "--out",
            stack / "run",
            *SMALL,
            "--json",
        )
        == 0
    )
    kinds = [json.loads(line)["event"] for line in run.out.splitlines()]
    assert kinds.count("EpochEnd") == 2
    assert kinds[-1] == "TrainingEnd"
    assert (
        run(
            "evaluate",
            stack / "run",
            stack / "images.tif",
            stack / "labels.tif",
            "--out",
            stack / "s",
            "--json",
        )
        == 0
    )
    *events, scores = map(json.loads, run.out.splitlines())
    assert [e["event"] for e in events] == [
        "PredictionStarted",
        *["RegionEnd"] * 4,
        "Message",
        "PredictionEnd",
    ]
    assert "planes were trained on" in events[-2]["text"]
    assert events[-2]["level"] == "warning"
    assert scores["event"] == "Scores"
    assert scores == {"event": "Scores"} | json.loads(
        (stack / "s" / "metrics.json").read_text()
    )


def test_validation_files(run: Console, stack: Path) -> None:
    pair = easy_pair((1, 64, 64), seed=9)
    write_image(stack / "val.tif", pair.image)
    ns.write_labels(stack / "val_labels.tif", pair.labels)
    val = ("--val", stack / "val.tif", stack / "val_labels.tif")
    assert (
        run(
            "train",
            stack / "images.tif",
            stack / "labels.tif",
            "--out",
            stack / "run",
            *val,
            *SMALL,
        )
        == 0
    )
    assert "1 image given" in run.out


def test_recipes(run: Console) -> None:
    assert run("recipes") == 0
    names = [line.split()[0] for line in run.out.splitlines()]
    assert names[0] == "default"
    assert {
        "atrous-resnet50",
        "unet-classic",
        "unet-resnet34",
        "deeplabv3plus-resnet50",
        "unet-aerial",
    } <= set(names)
    assert run("recipes", "unet-classic") == 0
    assert "head_width: 32" in run.out


def test_recipe_output_is_a_recipe_file(run: Console, tmp_path: Path) -> None:
    run("recipes", "unet-ct")
    (tmp_path / "mine.yaml").write_text(run.out)
    assert ns.load_recipe(tmp_path / "mine.yaml") == ns.load_recipe("unet-ct")


def test_class_options(run: Console, stack: Path) -> None:
    ids = np.zeros((4, 64, 64), np.uint16)
    ids[:, 8:40, 8:40] = np.arange(1, 5)[:, None, None] * 100
    tifffile.imwrite(
        stack / "ids.tif", ids, metadata={"axes": "ZYX"}, photometric="minisblack"
    )
    arguments = ("train", stack / "images.tif", stack / "ids.tif", *SMALL)
    assert run(*arguments, "--out", stack / "a", "--foreground") == 0
    assert ns.Model.load(stack / "a").spec.classes.names == ("background", "foreground")
    assert (
        run(
            *arguments, "--out", stack / "b", "--unlabelled", "0", "--unlabelled", "100"
        )
        == 0
    )
    classes = ns.Model.load(stack / "b").spec.classes
    assert (classes.values, classes.unlabelled) == ((200, 300, 400), (0, 100))


def test_class_options_together(run: Console, stack: Path) -> None:
    ids = np.ones((4, 64, 64), np.uint8) * 9
    ids[:, 8:40, 8:40] = np.array([0, 3, 0, 5])[:, None, None]
    tifffile.imwrite(
        stack / "ids.tif", ids, metadata={"axes": "ZYX"}, photometric="minisblack"
    )
    arguments = ("train", stack / "images.tif", stack / "ids.tif", *SMALL)
    both = ("--foreground", "--unlabelled", "9", "--class", "1=nucleus")
    assert run(*arguments, "--out", stack / "a", *both) == 0
    classes = ns.Model.load(stack / "a").spec.classes
    assert (classes.names, classes.unlabelled, classes.rest) == (
        ("background", "nucleus"),
        (9,),
        "nucleus",
    )
    record = json.loads((stack / "a" / "data.json").read_text())
    assert record["unlabelled"] == [9]
    assert "is duplicated" in run.refuses(
        *arguments, "--out", stack / "b", "--class", "3=x", "--class", "5=x"
    )
    assert "leave out" in run.refuses(
        *arguments, "--out", stack / "b", "--foreground", "--rgb", "ff0000=roof"
    )
    assert not (stack / "b").exists()


def test_a_class_of_validation_alone_is_named(run: Console, stack: Path) -> None:
    labels = ns.read_labels(stack / "labels.tif").read()[0]
    labels[0, :4] = 7
    pair = easy_pair((4, 64, 64), seed=3)
    write_image(stack / "val.tif", pair.image)
    tifffile.imwrite(
        stack / "seven.tif", labels, metadata={"axes": "ZYX"}, photometric="minisblack"
    )
    plain = ns.read_labels(stack / "labels.tif").read()[
        0
    ]  # without a class table of its own
    tifffile.imwrite(
        stack / "plain.tif", plain, metadata={"axes": "ZYX"}, photometric="minisblack"
    )
    arguments = (
        "train",
        stack / "images.tif",
        stack / "plain.tif",
        *SMALL,
        "--val",
        stack / "val.tif",
        stack / "seven.tif",
    )
    assert run(*arguments, "--out", stack / "a", "--class", "7=clay") == 0
    assert (
        "class 'clay' (value 7) has no labelled pixel in training, so it cannot be learnt"
        in run.out
    )
    assert run(*arguments, "--out", stack / "b") == 0
    assert "class 'class 7' (value 7) has no labelled pixel in training" in run.out


def test_training_shows_what_was_read(run: Console, stack: Path) -> None:
    labels = stack / "labels.tif"
    flat = np.full((4, 64, 64), 7, np.uint8)
    tifffile.imwrite(stack / "flat.tif", flat, photometric="minisblack")
    assert run("train", stack / "flat.tif", labels, "--out", stack / "run", *SMALL) == 0
    assert run.out.startswith(
        "flat, 4 x 64 x 64 (ZYX), uint8\nthe file does not name its axis of 4 pages"
    )
    assert (
        "warning: found one grey value only, from which nothing can be learnt, in: flat"
        in run.out
    )
    assert "relative (no contrast)" in run.out


def test_evaluation_warns_as_prediction_does(run: Console, stack: Path) -> None:
    model = tiny_model().save(stack / "model.safetensors")
    grey = ns.read_image(stack / "images.tif").read()[0].astype(np.float32)
    grey[1, 2, 3] = np.nan
    tifffile.imwrite(
        stack / "nan.tif", grey, metadata={"axes": "ZYX"}, photometric="minisblack"
    )
    assert (
        run(
            "evaluate",
            model,
            stack / "nan.tif",
            stack / "labels.tif",
            "--out",
            stack / "s",
        )
        == 0
    )
    assert (
        "warning: nan: found 1 pixel that is not finite (NaN or infinite), the first at Z=1, Y=2, X=3"
        in run.out
    )


def test_check_and_strict(run: Console, stack: Path) -> None:
    grey = stack / "images.tif"
    out = stack / "run"
    assert run("train", grey, stack / "labels.tif", "--out", out, *SMALL) == 0
    assert run("check", out, grey) == 0
    assert "looks like the training images" in run.out
    noise = stack / "noise.tif"
    values = np.random.default_rng(0).integers(0, 256, (4, 64, 64), np.uint8)
    write_image(noise, ns.Image(values, "ZYX"))
    assert run("check", out, grey, noise) == 3
    assert "of the grey values" in run.out
    assert "in the same way?" in run.out
    assert run("check", out, noise, "--json") == 3
    facts = json.loads(run.out)
    assert (facts["event"], facts["level"]) == ("Drift", "ask")
    assert len(facts["planes"]) == 4
    labels = stack / "noise-labels.tif"
    assert run("predict", out, noise, "--out", labels, "--strict") == 2
    assert "do not occur in the training images" in run.err
    assert "predict without --strict" in run.err
    assert not labels.exists()
    assert run("predict", out, noise, "--out", labels) == 0
    assert "do not occur in the training images" in run.out
    assert "--strict" in run.out
    assert labels.exists()


def test_colour_coded_labels(run: Console, tmp_path: Path) -> None:
    pair = easy_pair((1, 64, 64))
    mask = np.where(
        pair.labels.read()[0, 0][..., None] > 0, [255, 0, 0], [0, 0, 255]
    ).astype(np.uint8)
    tifffile.imwrite(tmp_path / "rgb.tif", mask, photometric="rgb")
    tifffile.imwrite(tmp_path / "image.tif", pair.image.read()[0, 0])
    arguments = (
        "train",
        tmp_path / "image.tif",
        tmp_path / "rgb.tif",
        "--out",
        tmp_path / "run",
        *SMALL,
    )
    assert "name the colours (--rgb" in run.refuses(*arguments)
    assert run(*arguments, "--rgb", "ff0000=roof", "--rgb", "0000ff=ground") == 0
    assert ns.Model.load(tmp_path / "run").spec.classes.names == ("roof", "ground")


def test_folder_prediction_goes_on_past_a_bad_file(
    run: Console, tmp_path: Path
) -> None:
    tiny_model().save(tmp_path / "model.safetensors")
    folder = tmp_path / "in"
    folder.mkdir()
    for name in "ab":
        tifffile.imwrite(
            folder / f"{name}.tif",
            np.zeros((40, 40), np.uint8) + np.arange(40, dtype=np.uint8),
        )
    (folder / "bad.tif").write_bytes(b"II*\0nothing")
    arguments = (
        "predict",
        tmp_path / "model.safetensors",
        folder,
        "--out",
        tmp_path / "out",
    )
    assert run(*arguments) == 2
    assert "1 of 3 files failed" in run.err
    assert run.out.count("bad.tif") == 1
    assert len(list((tmp_path / "out").glob("*.tif"))) == 2
    assert (tmp_path / "out" / "report.csv").is_file()
    assert run(*arguments) == 2
    assert run.out.count("skipped") == 2


def _bad_labels(stack: Path, name: str) -> Path:
    labels = ns.read_labels(stack / "labels.tif").read()[0]
    wrong = {
        "float": labels.astype(np.float32) / 2,
        "shape": labels[:, :-1],
        "planes": labels[:-1],
        "unlabelled": np.zeros_like(labels),
        "many": np.arange(labels.size).reshape(labels.shape).astype(np.uint16),
    }[name]
    tifffile.imwrite(
        stack / f"{name}.tif", wrong, metadata={"axes": "ZYX"}, photometric="minisblack"
    )
    return stack / f"{name}.tif"


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("float", (), "labels must be integers"),
        ("shape", (), "differ along Y: 64 against 63"),
        ("planes", (), "differ along Z: 4 against 3"),
        ("unlabelled", ("--unlabelled", "0"), "nothing to learn"),
        ("many", (), "too many for classes"),
    ],
)
def test_labels_that_cannot_be_used(
    run: Console, stack: Path, name: str, options: tuple[str, ...], words: str
) -> None:
    labels = _bad_labels(stack, name)
    output = run.refuses(
        "train", stack / "images.tif", labels, "--out", stack / "run", *SMALL, *options
    )
    assert words in output
    assert not (stack / "run").exists()


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--set=training.epoch=5", "did you mean 'epochs'"),
        ("--set=training.epochs=many", "training.epochs"),
        ("--set=training.epochs", "needed is KEY=VALUE"),
        ("--set=network={kind: unet", "not valid YAML"),
        ("--recipe=unet-clasic", "did you mean 'unet-classic'"),
        ("--recipe=missing.yaml", "no such recipe file"),
        ("--device=cuda:77", "choose one of"),
        ("--class=7=clay", "no such value"),
        ("--class=clay", "needed is VALUE=NAME"),
        ("--rgb=zz=clay", "six hexadecimal digits"),
        ("--axes=ZZZ", "is duplicated"),
    ],
)
def test_options_that_cannot_be_used(
    run: Console, stack: Path, option: str, words: str
) -> None:
    output = run.refuses(
        "train",
        stack / "images.tif",
        stack / "labels.tif",
        "--out",
        stack / "run",
        *SMALL,
        option,
    )
    assert words in output
    assert not (stack / "run").exists()


def test_files_that_cannot_be_used(run: Console, stack: Path) -> None:
    labels, out = stack / "labels.tif", ("--out", stack / "run")
    assert "image.tif" in run.refuses("train", stack / "image.tif", labels, *out)
    (stack / "text.tif").write_text("hello")
    assert "text.tif" in run.refuses("train", stack / "text.tif", labels, *out)
    whole = (stack / "images.tif").read_bytes()
    (stack / "cut.tif").write_bytes(whole[: len(whole) // 2])
    assert "cut.tif" in run.refuses("train", stack / "cut.tif", labels, *out)
    (stack / "empty").mkdir()
    assert "empty" in run.refuses("train", stack / "empty", stack / "empty", *out)
    assert "text.tif" in run.refuses("info", stack / "text.tif")
    tifffile.imwrite(
        stack / "four.tif",
        np.zeros((2, 5, 64, 64), np.uint8),
        photometric="minisblack",
    )
    assert "--axes" in run.refuses("train", stack / "four.tif", labels, *out)
    assert run("info", stack / "four.tif") == 0
    assert "unknown" in run.out
    assert not (stack / "run").exists()


def test_models_that_cannot_be_used(run: Console, stack: Path) -> None:
    images, out = stack / "images.tif", ("--out", stack / "p.tif")
    torch.save({"a": torch.ones(1)}, stack / "model.pt")
    assert "pickle" in run.refuses("predict", stack / "model.pt", images, *out)
    assert "no such model" in run.refuses("predict", stack / "none", images, *out)
    model = tiny_model().save(stack / "model.safetensors")
    (stack / "cut.safetensors").write_bytes(model.read_bytes()[:-100])
    assert "cut short" in run.refuses(
        "predict", stack / "cut.safetensors", images, *out
    )
    assert run("predict", model, images, *out) == 0
    assert "exists already" in run.refuses("predict", model, images, *out)
    assert run("predict", model, images, *out, "--overwrite") == 0
    tifffile.imwrite(
        stack / "rgb.tif", np.zeros((64, 64, 3), np.uint8), photometric="rgb"
    )
    assert "trained on 1" in run.refuses(
        "predict", model, stack / "rgb.tif", "--out", stack / "q.tif"
    )
    assert not (stack / "q.tif").exists()


def test_ctrl_c_is_said_in_words(
    run: Console, stack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("napari_strata.io.read_pairs", interrupted)
    assert (
        run("train", stack / "images.tif", stack / "labels.tif", "--out", stack / "run")
        == 130
    )
    assert run.err.startswith("error: stopped; what was finished is kept")
    assert len(run.err.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_a_stopped_program_leaves_a_model_and_goes_on(
    run: Console, stack: Path, number: signal.Signals, status: int
) -> None:
    """A real process and a real signal in its second epoch.

    Resumed, it ends as one that was never stopped.
    """
    arguments = ["train", str(stack / "images.tif"), str(stack / "labels.tif"), *SMALL]
    more = ["--set=training.epochs=4"]
    code = f"{signal_in_epoch(2, number)}from napari_strata.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments, *more, "--out", str(stack / "run")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status
    assert "epoch 1/4" in done.stdout
    assert "epoch 2/4" not in done.stdout
    output = done.stderr
    assert output.splitlines() == ([] if number == signal.SIGKILL else [output.strip()])
    assert ("stopped; what was finished is kept" in output) == (number == signal.SIGINT)
    assert len(ns.Model.load(stack / "run").history) >= 1
    assert (
        run(*arguments[:3], "--out", stack / "run", "--resume", "--device", "cpu") == 0
    )
    assert run(*arguments, *more, "--out", stack / "whole", "--device", "cpu") == 0
    assert ns.Model.load(stack / "run").digest == ns.Model.load(stack / "whole").digest


def test_help_names_every_command(run: Console) -> None:
    assert run("--help") == 0
    for name in ("demo", "doctor", "train", "predict", "evaluate", "recipes", "info"):
        assert name in run.out


def test_doctor_prints_a_check_a_line_and_ends_with_1_on_a_problem(
    run: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hello = '{"event": "Ready", "job": null, "protocol": 1, "pid": 1, "host": "here", "versions": {}, '
    hello += '"devices": {"cpu": "CPU"}, "seconds": 1}'
    (tmp_path / "worker.py").write_text(f"print({hello!r}, flush=True)")
    # What is wrong with the computer that runs the tests is not the question.
    for name in ("compute.gpu", "compute.weights", "processes.opengl"):
        monkeypatch.setattr(
            f"napari_strata.doctor.{name}",
            lambda: Check("Other", "note", "not looked at", "look"),
        )
    arguments = [
        "doctor",
        "--folder",
        tmp_path,
        "--worker",
        shlex.join([sys.executable, str(tmp_path / "worker.py")]),
    ]
    assert run(*arguments) == 0, run.out
    assert f"ok      Folder for runs: {tmp_path}" in run.out
    assert "ok      Worker: " in run.out
    assert "          what to do: look" in run.out
    assert run(*arguments[:-1], f"{sys.executable} -c 0", "--json") == 1
    checks = [json.loads(line) for line in run.out.splitlines()]
    assert [check["status"] for check in checks].count("problem") == 1
    assert checks[-1] | {"text": ""} == {
        "name": "Worker",
        "status": "problem",
        "text": "",
        "cure": checks[-1]["cure"],
    }


def test_demo_in_the_viewer_names_what_to_install(
    run: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "napari_strata.widgets.demo", None)
    output = run.refuses("demo", "--viewer")
    assert 'pip install "napari-strata[all]"' in output
    columns: list[str] = []
    viewer = SimpleNamespace(show_demo=lambda: columns.append("demo"))
    monkeypatch.setitem(sys.modules, "napari_strata.widgets.demo", viewer)
    assert run("demo", "--viewer") == 0
    assert columns == ["demo"]


def test_an_estimate_writes_nothing(run: Console, stack: Path, tmp_path: Path) -> None:
    images, out = stack / "images.tif", tmp_path / "new" / "a.tif"
    trained = tmp_path / "model.safetensors"
    tiny_model().save(trained)
    assert (
        run("predict", trained, images, "--out", out, "--estimate", "--device", "cpu")
        == 0
    )
    first, second = run.out.splitlines()
    assert "4 x 64 x 64 (ZYX)" in first
    assert second.startswith("  CPU, ")
    assert "of memory" in second
    assert run("predict", trained, images, "--out", out, "--estimate", "--json") == 0
    facts = [json.loads(line) for line in run.out.splitlines()]
    assert facts[0]["event"] == "Estimate"
    assert facts[0]["planes"] == 4
    assert not out.parent.exists()


def test_several_processes_share_a_training_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("sys.argv", ["napari-strata", "recipes"])
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    assert capsys.readouterr().err == (
        "error: found several processes (torchrun), which share the command train only; start this one without "
        "torchrun.\n"
    )
    monkeypatch.setenv(
        "LOCAL_RANK", "1"
    )  # the same of another process is not said twice
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    assert capsys.readouterr().err == ""


def test_names_from_files_cannot_control_a_terminal(tmp_path, capsys, monkeypatch):
    path = tmp_path / "a.ome.tif"
    metadata = {"axes": "YX", "Channel": {"Name": "GFP"}}
    tifffile.imwrite(path, np.zeros((8, 8), np.uint8), metadata=metadata)
    xml = tifffile.tiffcomment(path)
    tifffile.tiffcomment(path, xml.replace("GFP", "G\u009bFP\u202e").encode())
    monkeypatch.setattr(sys, "argv", ["napari-strata", "info", str(path)])
    with pytest.raises(SystemExit):
        cli.main()
    text = capsys.readouterr().out
    assert "a.ome.tif" in text
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in text if c != "\n")


def test_a_terminal_without_letters_gets_escapes(tmp_path):
    path = tmp_path / "gr\u00f6\u00dfe.tif"
    tifffile.imwrite(path, np.zeros((8, 8), np.uint8))
    done = subprocess.run(
        [sys.executable, "-m", "napari_strata", "info", path],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
        check=False,
    )
    assert done.returncode == 0
    assert b"gr\\xf6" in done.stdout
