"""Other programs that compute the network: the same labels, or one line that says why not."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import napari_strata as ns
from helpers import easy_pair, tiny_model
from napari_strata.core.errors import RunError
from napari_strata.core.events import Message, PredictionStarted
from napari_strata.core.options import PredictOptions
from napari_strata.inference import build
from napari_strata.inference.backends import BACKENDS, check_backend
from napari_strata.inference.build import build_predictor

PAIR = easy_pair((2, 70, 93))
OPTIONS = PredictOptions(device="cpu", precision="fp32", tile=32)
CPU = torch.device("cpu")


def installed(name: str) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip({"onnx": "onnxruntime"}.get(name, name))


@pytest.fixture(scope="module")
def model() -> ns.Model:
    return tiny_model(PAIR)


@pytest.mark.parametrize("name", BACKENDS[1:])
def test_the_answers_are_torchs(model: ns.Model, name: str) -> None:
    installed(name)
    scale = model.spec.normalization.scale
    plane = PAIR.image.read({"Z": 0})
    wanted = build_predictor(model, OPTIONS).predict_logits(plane, scale)
    member = build_predictor(model, OPTIONS.updated(backend=name))
    np.testing.assert_allclose(
        member.predict_logits(plane, scale), wanted, rtol=1e-3, atol=1e-4
    )
    torchs = build_predictor(model, OPTIONS)
    assert member.predictor.memory((64, 64)) == torchs.predictor.memory((64, 64))


@pytest.mark.parametrize("name", BACKENDS[1:])
def test_labels_and_estimates_come_by_the_same_call(model: ns.Model, name: str) -> None:
    installed(name)
    wanted = ns.predict(model, PAIR.image, options=OPTIONS)
    found = ns.predict(model, PAIR.image, options=OPTIONS, backend=name)
    assert np.mean(np.asarray(found.data) == np.asarray(wanted.data)) > 0.999
    assert ns.estimate_prediction(
        model, PAIR.image, options=OPTIONS, backend=name
    ).seconds


def test_an_interrupted_prediction_does_not_go_on_with_another(
    model: ns.Model, tmp_path: Path
) -> None:
    installed("onnx")
    out = tmp_path / "a.tif"
    job = ns.iter_predict(model, PAIR.image, out=out, options=OPTIONS)
    while type(next(job)).__name__ != "RegionEnd":
        pass
    job.close()
    texts = [
        getattr(e, "text", "")
        for e in ns.iter_predict(
            model, PAIR.image, out=out, options=OPTIONS, backend="onnx"
        )
    ]
    assert any("made with another backend" in text for text in texts)


def test_what_cannot_be_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RunError, match="choose one of torch, onnx, openvino"):
        check_backend("tensorrt", CPU, "auto")
    with pytest.raises(RunError, match="this backend runs only on the CPU"):
        check_backend("onnx", torch.device("cuda"), "auto")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(RunError, match=r"pip install 'napari-strata\[openvino\]'"):
        check_backend("openvino", CPU, "auto")


def test_precisions(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("onnxscript", "onnxruntime", "openvino"):
        monkeypatch.setitem(sys.modules, name, sys)
    assert check_backend("torch", CPU, "bf16") == "bf16"
    assert check_backend("onnx", CPU, "auto") == "fp32"
    assert check_backend("openvino", CPU, "auto") == "auto"
    with pytest.raises(RunError, match="choose one of auto, fp32"):
        check_backend("onnx", CPU, "bf16")


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("g++") is None, reason="torch.compile needs a compiler"
)
def test_a_compiled_network_gives_the_same_labels_and_says_what_it_cost(
    model: ns.Model,
) -> None:
    job = ns.iter_predict(model, PAIR.image, options=OPTIONS, compile=True)
    texts = [event.text for event in job if isinstance(event, Message)]
    assert any(
        re.fullmatch(r"torch.compile took \d+ s before the first tile", text)
        for text in texts
    )
    wanted = ns.predict(model, PAIR.image, options=OPTIONS)
    assert np.mean(np.asarray(job.labels.data) == np.asarray(wanted.data)) > 0.999


def test_a_compiler_that_fails_is_one_line(
    model: ns.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(nn.Module):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self._orig_mod = network

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            raise ValueError("no compiler found")

    monkeypatch.setattr(torch, "compile", Broken)
    with pytest.raises(
        RunError,
        match=r"torch.compile failed here \(no compiler found\); leave compile out",
    ):
        ns.predict(model, PAIR.image, options=OPTIONS, compile=True)


def test_compile_and_another_backend_do_not_go_together() -> None:
    with pytest.raises(RunError, match=r"torch\.compile is for backend torch only"):
        PredictOptions(compile=True, backend="onnx")


def test_every_batch_that_comes_is_compiled_before_the_first(
    model: ns.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: list[tuple[int, ...]] = []

    class Recording(nn.Module):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self._orig_mod = network

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            shapes.append(tuple(images.shape))
            return self._orig_mod(images)

    monkeypatch.setattr(torch, "compile", Recording)
    job = ns.iter_predict(
        model, PAIR.image, options=OPTIONS, compile=True, tile=32, batch=3
    )
    for event in job:
        if isinstance(event, PredictionStarted):
            warmed = set(shapes)
            shapes.clear()
    assert warmed == set(shapes)
    assert len(warmed) > 1


def test_batch_normalisation_is_folded_before_the_network_moves(
    model: ns.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU the check would compare numbers that TF32 has rounded."""
    monkeypatch.setattr(build, "choose_device", lambda _: torch.device("meta"))
    predictor = build.build_predictor(model, PredictOptions(precision="fp32")).predictor
    kinds = {type(layer) for layer in predictor.network.modules()}
    assert not any(issubclass(kind, nn.BatchNorm2d) for kind in kinds)
    assert next(predictor.network.parameters()).device.type == "meta"
