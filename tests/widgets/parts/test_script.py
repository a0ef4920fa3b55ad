from __future__ import annotations

import ast
import shlex
from pathlib import Path
from typing import Any

import pytest

from napari_strata.core.classes import ClassMap
from napari_strata.core.recipes import load_recipe
from napari_strata.studies.grid import build_trials, parse_grid
from napari_strata.widgets.parts.script import (
    as_command,
    as_crossval,
    as_python,
    as_search,
)
from napari_strata.worker.protocol import (
    EvaluateJob,
    Layer,
    Pairs,
    PredictJob,
    TrainJob,
)

TRAIN = TrainJob(
    job="1",
    images="a b/sand.tif",
    labels="labels.tif",
    out="runs/one",
    recipe="unet-ct",
    overrides={
        "training.epochs": 5,
        "training.learning_rate": 1e-4,
        "training.early_stopping": None,
        "network.widths": [4, 8],
    },
    device="cpu",
)


def _calls(script: str) -> dict[str, dict[str, Any]]:
    """Return the literal keyword arguments of the calls ns.x(...) in a script."""
    found = {}
    for node in ast.walk(ast.parse(script)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            words = {}
            for word in node.keywords:
                try:
                    words[word.arg] = ast.literal_eval(word.value)
                except ValueError:
                    words[word.arg] = ast.unparse(word.value)
            found[node.func.attr] = words
    return found


def test_a_training_as_python() -> None:
    script = as_python(TRAIN)
    assert _calls(script)["train"] == {
        "out": "runs/one",
        "overrides": TRAIN.overrides,
        "device": "cpu",
    }
    assert "ns.read_pairs('a b/sand.tif', 'labels.tif')" in script
    assert "ns.train('unet-ct', pairs" in script


def test_a_training_as_command_is_parsed_by_the_command_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = shlex.split(as_command(TRAIN))
    assert words[:2] == ["napari-strata", "train"]
    assert words[2:6] == ["a b/sand.tif", "labels.tif", "--out", "runs/one"]
    from napari_strata.core.recipes import parse_value

    sets = [
        words[i + 1].split("=", 1) for i, word in enumerate(words) if word == "--set"
    ]
    assert {key: parse_value(value) for key, value in sets} == TRAIN.overrides
    assert words[-2:] == ["--device", "cpu"]


def test_options_that_only_python_has_are_in_the_script() -> None:
    layer = Layer(
        path="big.tif",
        axes="TYX",
        scale=(1.0, 2.0, 2.0),
        units=("second", "um", "um"),
        series=1,
    )
    script = as_python(
        PredictJob(
            job="1", model="runs/one", image=layer, out="x.tif", probabilities=True
        )
    )
    assert "import dataclasses" in script
    assert (
        "ns.read_image('big.tif', axes='TYX', series=1), scale=(1.0, 2.0, 2.0)"
        in script
    )
    assert _calls(script)["predict"] == {"out": "x.tif", "probabilities": True}


def test_validation_resume_and_classes() -> None:
    request = TRAIN.model_copy(
        update={
            "validation": Pairs(images="v.tif", labels="vl.tif"),
            "extend": 3,
            "resume": True,
            "classes": ClassMap(names=("a", "b"), values=(1, 2), unlabelled=(0,)),
        }
    )
    script, words = as_python(request), shlex.split(as_command(request))
    assert _calls(script)["ClassMap"] == {
        "names": ("a", "b"),
        "values": (1, 2),
        "unlabelled": (0,),
        "colors": request.classes.colors,
    }
    assert _calls(script)["train"]["extend"] == 3
    assert words[words.index("--val") + 1 :][:2] == ["v.tif", "vl.tif"]
    assert "--resume" in words


def test_evaluation_of_labels_and_of_a_model() -> None:
    labels = EvaluateJob(job="1", prediction="p.tif", labels="t.tif", out="scores")
    assert shlex.split(as_command(labels)) == [
        "napari-strata",
        "evaluate",
        "p.tif",
        "t.tif",
        "--out",
        "scores",
    ]
    assert "ns.score_labels(prediction, truth, out='scores')" in as_python(labels)
    model = EvaluateJob(
        job="1", model="runs/one", images="i.tif", labels="t.tif", out="scores"
    )
    words = shlex.split(as_command(model))
    assert words == [
        "napari-strata",
        "evaluate",
        "runs/one",
        "i.tif",
        "t.tif",
        "--out",
        "scores",
    ]
    assert (
        "ns.evaluate('runs/one', ns.read_pairs('i.tif', 't.tif'), out='scores')"
        in as_python(model)
    )


def test_several_models_flips_and_turns() -> None:
    request = PredictJob(
        job="1", model=("runs/a", "runs/b", "c d"), image="i.tif", out="x.tif", tta=True
    )
    assert (
        "ns.predict(['runs/a', 'runs/b', 'c d'], image, out='x.tif', tta=True)"
        in as_python(request)
    )
    words = shlex.split(as_command(request))
    assert words == [
        *("napari-strata", "predict", "runs/a", "i.tif", "--out", "x.tif"),
        *("--with", "runs/b", "--with", "c d", "--tta"),
    ]
    scored = EvaluateJob(
        job="1", model=("a", "b"), images="i.tif", labels="t.tif", out="s", tta=True
    )
    script = as_python(scored)
    assert (
        "ns.evaluate(['a', 'b'], ns.read_pairs('i.tif', 't.tif'), out='s', tta=True)"
        in script
    )
    words = shlex.split(as_command(scored))
    assert words[1:] == [
        "evaluate",
        "a",
        "i.tif",
        "t.tif",
        "--out",
        "s",
        "--with",
        "b",
        "--tta",
    ]
    alone = PredictJob(job="1", model="runs/a", image="i.tif", out="x.tif")
    assert "tta" not in as_python(alone) + as_command(alone)
    assert "ns.predict('runs/a', image, out='x.tif')" in as_python(alone)


def test_three_directions() -> None:
    request = PredictJob(
        job="1", model="runs/a", image="i.tif", out="x.tif", ortho=True
    )
    assert _calls(as_python(request))["predict"] == {"out": "x.tif", "ortho": True}
    assert shlex.split(as_command(request))[-1] == "--ortho"
    plain = request.model_copy(update={"ortho": False})
    assert "ortho" not in as_python(plain) + as_command(plain)


def test_a_folder_of_slices_is_one_image(tmp_path: Path) -> None:
    (tmp_path / "scan").mkdir()
    request = PredictJob(
        job="1", model="runs/a", image=str(tmp_path / "scan"), out="x.tif"
    )
    assert shlex.split(as_command(request))[-1] == "--stack"


def test_several_files() -> None:
    request = PredictJob(
        job="1",
        model="runs/a",
        inputs=("scans", "more/*.tif"),
        out="labels",
        stack=True,
        overwrite=True,
        axes="ZYX",
    )
    assert shlex.split(as_command(request))[1:] == [
        *("predict", "runs/a", "scans", "more/*.tif", "--out", "labels"),
        *("--stack", "--axes", "ZYX", "--overwrite"),
    ]
    script = as_python(request)
    assert "inputs = ['scans', 'more/*.tif']" in script
    assert "PredictOptions(overwrite=True)" in script
    assert (
        "predict_files('runs/a', inputs, 'labels', options=options, axes='ZYX',"
        " stack=True)" in script
    )


def test_a_cross_validation_as_command() -> None:
    words = shlex.split(as_crossval(TRAIN))
    assert words[1:6] == [
        *("crossval", "a b/sand.tif", "labels.tif"),
        *("--out", "runs/one-crossval"),
    ]
    assert words[words.index("--recipe") + 1] == "unet-ct"
    assert "training.epochs=5" in words
    assert "--resume" not in words


def test_a_search_as_command() -> None:
    recipe = load_recipe("unet-ct").with_overrides(TRAIN.overrides)
    words = shlex.split(as_search(TRAIN, recipe))
    assert words[1:6] == [
        *("tune", "a b/sand.tif", "labels.tif"),
        *("--out", "runs/one-search"),
    ]
    grid = parse_grid([words[words.index("--grid") + 1]])
    assert grid == {"training.learning_rate": [3e-5, 1e-4, 3e-4]}
    assert len(build_trials("unet-ct", grid, overrides=TRAIN.overrides)) == 3


def test_a_search_for_a_pixel_classifier_as_command() -> None:
    words = shlex.split(as_search(TRAIN, load_recipe("instant")))
    grid = parse_grid([words[words.index("--grid") + 1]])
    assert len(build_trials("instant", grid)) == 3
