"""What a prediction takes, said before it starts; and refused where it cannot fit."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from time import sleep

import numpy as np
import pytest
import torch
from torch import nn

import napari_strata as ns
from helpers import easy_pair, tiled, tiny_model
from napari_strata.core.errors import RunError
from napari_strata.core.options import PredictOptions
from napari_strata.inference import estimate as module
from napari_strata.inference.build import build_ensemble_predictor, build_predictor
from napari_strata.inference.ensemble_predictor import EnsemblePredictor
from napari_strata.inference.estimate import check_memory, estimate
from napari_strata.inference.outputs import OutputSpec
from napari_strata.models.ensemble import load_models

PAIR = easy_pair((4, 64, 72))
OUTPUT = OutputSpec(4, (64, 72), np.dtype(np.uint8))
OPTIONS = PredictOptions(device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def model() -> ns.Model:
    return tiny_model(PAIR)


class Counting(nn.Module):
    """Keeps the shapes of what goes through it."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, classes, 1)
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.shapes += [tuple(images.shape[-2:])] * len(images)
        return self.layer(images)


@pytest.mark.parametrize("change", [{}, {"blend": True}, {"resize": 32}, {"tile": 32}])
def test_the_tiles_are_those_that_go_through(
    model: ns.Model, change: dict[str, object]
) -> None:
    spec = model.spec.model_copy(update={"tile": 64, "halo": 16, **change})
    network = Counting(len(spec.classes))
    predictor = tiled(
        network,
        spec,
        device=torch.device("cpu"),
        precision=build_predictor(model, OPTIONS).predictor.precision,
    )
    image = np.zeros((1, 150, 333), np.uint8)
    predictor.predict(image, model.spec.normalization.scale)
    assert sorted(network.shapes) == sorted(predictor.tile_shapes((150, 333)))


def test_memory_of_a_tile_is_counted_not_guessed() -> None:
    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            wide = images.expand(-1, 8, -1, -1) + 1  # 8 floats a pixel
            more = wide * 2  # 8 more, while the first are alive
            del wide
            return more[:, :2] + 0  # 2, with 8 alive

    member = build_predictor(tiny_model(PAIR), OPTIONS)
    member.predictor.network = Chain()
    pixels = 100 * 50
    image = 4 * pixels
    answer = 2 * 4 * pixels
    assert (
        member.predictor.memory((100, 50))
        == (8 + 8) * 4 * pixels + image + image + answer
    )


def test_nothing_is_computed_for_the_memory(model: ns.Model) -> None:
    member = build_predictor(model, OPTIONS)
    assert member.predictor.memory((2**15, 2**15)) > 2**34, (
        "no such tile fits into this machine"
    )
    assert next(member.predictor.network.parameters()).device.type == "cpu"


def test_flips_and_models_multiply_the_work(model: ns.Model) -> None:
    output = OutputSpec(4, (64, 72), np.dtype(np.uint8))
    once = estimate(
        build_ensemble_predictor(load_models(model), OPTIONS),
        PAIR.image,
        output,
        out=None,
        in_memory=False,
    )
    turned = estimate(
        build_ensemble_predictor(load_models(model), OPTIONS.updated(tta=True)),
        PAIR.image,
        output,
        out=None,
        in_memory=False,
    )
    assert (once.forwarded, turned.forwarded) == (1.0, 8.0)
    assert once.seconds is None


def test_estimate_prediction_measures(model: ns.Model, tmp_path: Path) -> None:
    found = ns.estimate_prediction(
        model, PAIR.image, out=tmp_path / "a.tif", options=OPTIONS
    )
    assert found.planes == 4
    assert found.shape == (64, 72)
    assert found.seconds is not None
    assert 0 < found.seconds < 60
    assert found.disk == int(4 * 64 * 72 * 1.5)
    assert found.describe().startswith("CPU, ")
    assert "of memory (" in found.describe()
    assert "on disk (" in found.describe()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "1 s"), (89, "89 s"), (100, "2 min"), (3000, "50 min"), (36_000, "10.0 h")],
)
def test_durations_are_rounded(seconds: float, text: str) -> None:
    assert module._format_duration(seconds) == text


def test_what_cannot_fit_is_refused_before_it_starts(
    model: ns.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "free_memory", lambda _: 100_000)
    with pytest.raises(
        RunError,
        match=r"found 100 kB of memory free on CPU.*set tile=(\d+), close other",
    ):
        ns.predict(model, PAIR.image, out=tmp_path / "a.tif", options=OPTIONS)
    assert not (tmp_path / "a.tif").exists()


def test_the_tile_it_names_fits(
    model: ns.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    ensemble = build_ensemble_predictor(load_models(model), OPTIONS)
    need = ensemble.members[0].predictor.memory((96, 96))  # 1536, halved four times
    monkeypatch.setattr(module, "free_memory", lambda _: need)
    output, image = (
        OutputSpec(1, (5000, 5000), np.dtype(np.uint8)),
        ns.Image(np.zeros((5000, 5000), np.uint8)),
    )
    with pytest.raises(RunError, match="set tile=96,"):
        check_memory(
            estimate(ensemble, image, output, out=None, in_memory=False), ensemble
        )
    assert math.isfinite(need)


def on_a_gpu(predictor: EnsemblePredictor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a predictor say that its device is a GPU."""
    monkeypatch.setattr(module, "describe_device", lambda _: "GPU")
    predictor.members[0].predictor.device = torch.device("cuda")


def test_a_gpu_need_not_hold_the_mean(
    model: ns.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lies in main memory where the GPU has no room."""
    ensemble = build_ensemble_predictor(load_models(model), OPTIONS.updated(tta=True))
    on_a_gpu(ensemble, monkeypatch)
    tile = ensemble.members[0].predictor.memory((72, 64))
    found = {}
    for free in (tile, 10**12):
        monkeypatch.setattr(module, "free_memory", lambda _, free=free: free)
        found[free] = estimate(ensemble, PAIR.image, OUTPUT, out=None, in_memory=True)
        check_memory(found[free], ensemble)
    assert found[tile].memory == tile
    # Two classes, all four planes together.
    assert found[10**12].memory == tile + 4 * 64 * 72 * 2 * 4


def test_the_strip_of_blended_tiles_counts(model: ns.Model) -> None:
    spec = model.spec.model_copy(update={"blend": True})
    blended = build_ensemble_predictor(load_models(replace(model, spec=spec)), OPTIONS)
    found = estimate(blended, PAIR.image, OUTPUT, out=None, in_memory=False)
    plane = 64 * 72 * (2 + 2)
    tile = blended.members[0].predictor.memory(spec.tile_shape)
    rows, columns = spec.tile_shape[0], max(72, spec.tile_shape[1])
    assert found.memory == tile + plane + 2 * 4 * 2 * rows * columns


def test_the_clock_runs_until_the_gpu_has_finished(
    model: ns.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    pending = []

    def launch(batch: np.ndarray) -> torch.Tensor:
        pending.append(len(batch))
        return torch.zeros(len(batch), 2, *batch.shape[2:])

    def synchronize(device: torch.device) -> None:
        for count in pending:
            sleep(0.01 * count)
        pending.clear()

    monkeypatch.setattr(module, "free_memory", lambda _: None)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    ensemble = build_ensemble_predictor(load_models(model), OPTIONS)
    monkeypatch.setattr(ensemble.members[0].predictor, "logits", launch)
    on_a_gpu(ensemble, monkeypatch)
    found = estimate(
        ensemble, PAIR.image, OUTPUT, out=None, in_memory=True, measure=True
    )
    assert found.seconds is not None
    assert 0.04 <= found.seconds < 0.2


def test_unknown_free_memory_refuses_nothing(
    model: ns.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "free_memory", lambda _: None)
    assert ns.predict(model, PAIR.image, options=OPTIONS).data.shape == (4, 64, 72)


def test_a_network_that_looks_at_values_is_predicted_all_the_same() -> None:
    class Curious(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(1, 2, 1)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            answer: torch.Tensor = self.layer(images)
            return answer if float(images.sum()) > 0 else -answer

    member = build_predictor(tiny_model(PAIR), OPTIONS)
    member.predictor.network = Curious()
    assert member.predictor.memory((10, 10)) == (1 + 2) * 4 * 100


def test_planes_in_a_file_need_no_memory(model: ns.Model) -> None:
    ensemble = build_ensemble_predictor(load_models(model), OPTIONS)
    output = OutputSpec(4, (64, 72), np.dtype(np.uint8))
    kept, written = (
        estimate(ensemble, PAIR.image, output, out=None, in_memory=kind)
        for kind in (True, False)
    )
    assert kept.memory - written.memory == 4 * 64 * 72


def test_a_gpu_holds_tiles_only(
    model: ns.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("describe_device", "free_memory"):
        monkeypatch.setattr(module, name, lambda device: None)
    ensemble = build_ensemble_predictor(load_models(model), OPTIONS)
    output = OutputSpec(100_000, (64, 72), np.dtype(np.uint8))
    ensemble.members[0].predictor.device = torch.device("cuda")
    found = estimate(ensemble, PAIR.image, output, out=None, in_memory=True)
    assert found.memory == ensemble.members[0].predictor.memory((64, 72))
