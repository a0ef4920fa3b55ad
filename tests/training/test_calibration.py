"""Measurement and calibration of the best model at the end of a training."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage

from helpers import tiled
from napari_strata.core.events import (
    BatchEnd,
    EpochEnd,
    Message,
    RegionEnd,
    TrainingEnd,
)
from napari_strata.core.image import AnnotatedImage
from napari_strata.core.runs import RunFolder
from napari_strata.data.regions import labelled_regions
from napari_strata.evaluation.calibration import (
    NOT_INDEPENDENT,
    fit_temperature,
    negative_log_likelihood,
    reliability,
)
from napari_strata.inference.predict import predict
from napari_strata.models.device import Precision
from napari_strata.models.model import Model
from napari_strata.training import calibration as final
from napari_strata.training.loop import iter_train
from napari_strata.training.validation import iter_predicted, load_truths

Scene = Callable[..., AnnotatedImage]


@pytest.fixture
def started(tmp_path: Path, scene: Scene, small: dict[str, Any]) -> Callable[..., Any]:
    """Iterate over a training of two epochs on one scene, validated on another."""

    def build(name: str = "run", **options: Any) -> Any:
        overrides = small | {"training.epochs": 2} | options.pop("overrides", {})
        options = {"validation": scene(9, planes=5), "device": "cpu"} | options
        pairs = options.pop("pairs", None) or scene(0)
        return iter_train(
            "default", pairs, out=tmp_path / name, overrides=overrides, **options
        )

    return build


def metrics(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        (run / "validation" / "metrics.json").read_text(encoding="utf-8")
    )
    return found


def part_rows(run: Path) -> list[dict[str, str]]:
    return list(
        csv.DictReader(
            (run / "validation" / "metrics.csv")
            .read_text(encoding="utf-8")
            .splitlines()
        )
    )


def logits_and_labels(
    model: Model, pair: AnnotatedImage
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return the logits and labels of every pixel."""
    predictor = tiled(
        model.build(),
        model.spec,
        device=torch.device("cpu"),
        precision=Precision("fp32"),
    )
    found = list(
        iter_predicted(
            predictor,
            load_truths(labelled_regions(pair, model.spec.classes), model.spec),
        )
    )
    logits = np.concatenate(
        [one.logits.reshape(len(model.spec.classes), -1).T for one in found]
    )
    return logits, np.concatenate([one.truth.labels.ravel() for one in found])


def test_the_best_model_is_measured_and_its_temperature_fits_its_own_logits(
    tmp_path: Path, scene: Scene, started: Callable[..., Any]
) -> None:
    events = list(started())
    run = tmp_path / "run"
    model, facts = Model.load(run), metrics(run)
    assert model.calibration is not None
    assert model.best is not None
    logits, labels = logits_and_labels(model, scene(9, planes=5))
    # Two planes fit, the three others measure.
    fits, checks = slice(2 * 48 * 48), slice(2 * 48 * 48, None)
    assert (
        model.temperature
        == fit_temperature(logits[fits], labels[fits])
        == facts["calibration"]["temperature"]
    )
    best = negative_log_likelihood(logits[fits], labels[fits], model.temperature)
    assert all(
        best
        <= negative_log_likelihood(logits[fits], labels[fits], model.temperature * f)
        for f in (0.98, 1.02)
    )
    assert model.calibration.pixels == 2 * 48 * 48
    assert facts["calibration"]["independent"] is True
    assert facts["calibration"]["fitted_pixels"] == 2 * 48 * 48
    assert facts["calibration"]["pixels"] == 3 * 48 * 48
    measured = reliability(logits[checks] / model.temperature, labels[checks])
    assert facts["calibration"]["ece_after"] == pytest.approx(measured.ece)
    assert facts["calibration"]["classwise_ece_after"] == pytest.approx(
        measured.classwise_ece
    )
    said = [e.text for e in events if isinstance(e, Message)]
    assert said[-1].endswith(
        "on one half of the validation data, measured on the other"
    )
    assert model.calibration.ece_before == facts["calibration"]["ece_before"]
    assert model.calibration.ece_after == facts["calibration"]["ece_after"]
    assert facts["epoch"] == model.best.epoch
    assert facts["mean_iou"] == pytest.approx(model.best.mean_iou)
    counts = np.zeros((2, 2), int)
    np.add.at(counts, (labels, logits.argmax(axis=1)), 1)
    assert facts["confusion"] == counts.tolist()
    assert [row["image"] for row in part_rows(run)] == [
        f"scene 9 Z={z}" for z in range(5)
    ]
    regions = [e for e in events if isinstance(e, RegionEnd)]
    assert [(e.region["Z"], e.done, e.regions) for e in regions] == [
        (z, z + 1, 5) for z in range(5)
    ]
    assert any(
        e.text == "measuring the best model on 5 validation planes"
        for e in events
        if isinstance(e, Message)
    )
    assert isinstance(events[-1], TrainingEnd)
    assert RunFolder.open(run).events() == events


def test_pictures_show_the_best_and_the_worst_regions(
    tmp_path: Path, started: Callable[..., Any]
) -> None:
    list(started())
    out = tmp_path / "run" / "validation"
    order = sorted(part_rows(out.parent), key=lambda row: -float(row["mean_iou"]))
    pictures = metrics(tmp_path / "run")["pictures"]
    kinds = [(p["file"].split("_")[0], p["name"]) for p in pictures]
    expected = {"best": order[:2], "worst": order[:-3:-1]}
    assert kinds == [
        (kind, row["image"]) for kind, rows in expected.items() for row in rows
    ]
    assert sorted(p["file"] for p in pictures) == sorted(
        p.name for p in (out / "overlays").iterdir()
    )
    assert (out / "confusion.png").is_file()


def test_the_temperature_changes_no_label(
    tmp_path: Path, scene: Scene, started: Callable[..., Any]
) -> None:
    list(started())
    model = Model.load(tmp_path / "run")
    assert model.temperature != 1
    plain = replace(model, calibration=None)
    image = scene(4).image
    both = [
        np.asarray(predict(one, image, device="cpu", precision="fp32").data)
        for one in (model, plain)
    ]
    assert np.array_equal(*both)


def test_the_same_training_gives_the_same_calibration(
    tmp_path: Path, started: Callable[..., Any]
) -> None:
    for name in ("monday", "friday"):
        list(started(name))
    one, other = (metrics(tmp_path / name) for name in ("monday", "friday"))
    assert one == other
    assert (
        Model.load(tmp_path / "monday").digest == Model.load(tmp_path / "friday").digest
    )


def test_a_stop_while_measuring_changes_nothing_and_resuming_measures(
    tmp_path: Path, scene: Scene, started: Callable[..., Any]
) -> None:
    list(started("whole"))
    events = started()
    for event in events:
        if isinstance(event, RegionEnd) and event.done == 2:
            break
    events.close()
    run = tmp_path / "run"
    assert Model.load(run).calibration is None
    assert not (run / "validation").exists()
    again = list(
        iter_train(
            "default",
            scene(0),
            out=run,
            validation=scene(9, planes=5),
            device="cpu",
            resume=True,
        )
    )
    assert not any(isinstance(e, BatchEnd) for e in again)
    assert metrics(run) == metrics(tmp_path / "whole")
    assert Model.load(run).digest == Model.load(tmp_path / "whole").digest


def test_only_a_changed_model_is_measured_again(
    tmp_path: Path, scene: Scene, started: Callable[..., Any]
) -> None:
    list(started())
    run = tmp_path / "run"
    before = (run / "validation" / "metrics.json").stat().st_mtime_ns

    def resume(**options: Any) -> list[Any]:
        options = {
            "validation": scene(9, planes=5),
            "device": "cpu",
            "resume": True,
        } | options
        return list(iter_train("default", scene(0), out=run, **options))

    assert not any(isinstance(e, RegionEnd) for e in resume())
    assert (run / "validation" / "metrics.json").stat().st_mtime_ns == before
    (run / "validation" / "metrics.json").write_text("{", encoding="utf-8")
    assert len([e for e in resume() if isinstance(e, RegionEnd)]) == 5
    extended = resume(extend=4)
    best = [e for e in extended if isinstance(e, EpochEnd) and e.best_iou]
    assert best, "the scene is easy and more epochs improve it"
    model = Model.load(run)
    assert metrics(run)["epoch"] == best[-1].epoch
    assert metrics(run)["model"] == model.digest
    assert model.calibration is not None
    assert len(model.history) == 6


def test_nothing_is_measured_without_validation_data_or_after_a_stop(
    tmp_path: Path, started: Callable[..., Any]
) -> None:
    list(started("bare", validation=None, overrides={"training.validation": 0.0}))
    events = started("stopped")
    for event in events:
        if isinstance(event, EpochEnd):
            break
    events.close()
    for name in ("bare", "stopped"):
        assert Model.load(tmp_path / name).calibration is None
        assert not (tmp_path / name / "validation").exists()


def test_too_few_pixels_give_the_temperature_one_and_a_reason(
    tmp_path: Path, scene: Scene, started: Callable[..., Any]
) -> None:
    held = scene(9, planes=1)
    labels = np.full(held.labels.shape, 9, np.uint8)
    labels[:, :10, :10] = np.asarray(held.labels.data)[:, :10, :10]
    few = AnnotatedImage(held.image, held.image.labels_like(labels))
    events = list(started(validation=few, unlabelled=(9,)))
    texts = [e.text for e in events if isinstance(e, Message)]
    assert (
        "no temperature fitted: found 100 labelled validation pixels, needed are 200"
        in texts
    )
    model = Model.load(tmp_path / "run")
    assert model.calibration is not None
    assert (model.temperature, model.calibration.pixels) == (1.0, 0)
    names = [p.name for p in (tmp_path / "run" / "validation" / "overlays").iterdir()]
    assert names == ["best_01_scene_9.png"]


def test_a_single_plane_is_cut_in_two(
    tmp_path: Path, scene: Scene, started: Callable[..., Any]
) -> None:
    list(started(validation=scene(9, planes=1)))
    model, facts = Model.load(tmp_path / "run"), metrics(tmp_path / "run")
    logits, labels = logits_and_labels(model, scene(9, planes=1))
    half = 24 * 48
    assert model.temperature == fit_temperature(logits[:half], labels[:half])
    assert facts["calibration"]["independent"] is True
    assert facts["calibration"]["pixels"] == half


def test_too_little_validation_data_is_said(
    tmp_path: Path, scene: Scene, started: Callable[..., Any]
) -> None:
    held = scene(9, planes=1)
    labels = np.full(held.labels.shape, 9, np.uint8)
    labels[:, :18, :18] = np.asarray(held.labels.data)[:, :18, :18]
    few = AnnotatedImage(held.image, held.image.labels_like(labels))
    events = list(started(validation=few, unlabelled=(9,)))
    texts = [e.text for e in events if isinstance(e, Message)]
    assert any(text.endswith(NOT_INDEPENDENT) for text in texts)
    facts = metrics(tmp_path / "run")["calibration"]
    assert facts["independent"] is False
    assert facts["pixels"] == facts["fitted_pixels"] == 18 * 18


def test_a_sample_of_pixels_covers_every_region(
    tmp_path: Path, started: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(final, "MAX_PIXELS", 1000)
    tallies: list[final.Tally] = []
    fit = final.Tally.fit
    monkeypatch.setattr(
        final.Tally, "fit", lambda self: (tallies.append(self), fit(self))[1]
    )
    list(started())
    assert [len(labels) for labels in tallies[0].labels] == [200] * 5
    model = Model.load(tmp_path / "run")
    assert model.calibration is not None
    assert model.calibration.pixels == 400
    assert metrics(tmp_path / "run")["calibration"]["pixels"] == 600


def test_errors_of_blocks_are_stored_in_the_model(
    started: Callable[..., Any], scene: Scene, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    list(started())
    model = Model.load(run)
    assert model.residuals is not None
    names = [plane.name for plane in model.residuals.planes]
    assert names == [f"scene 9 Z={z}" for z in range(5)]
    assert [plane.position for plane in model.residuals.planes] == [0, 1, 2, 3, 4]
    assert set(model.residuals.regions) == {"all", "specimen"}
    blocks = model.residuals.regions["all"]
    truth = scene(9, planes=5).labels.read()[0]
    # 48 pixels in 5 blocks: the first has 10, the last 9.
    assert blocks.pixels[0, 0] == 100
    assert blocks.pixels[0, -1] == 81
    assert blocks.pixels.sum() == blocks.area.sum() == truth.size
    corners = [(truth[:, :10, :10] == k).sum(axis=(1, 2)) for k in (0, 1)]
    np.testing.assert_array_equal(blocks.true[:, 0].T, corners)
    confusion = np.array(metrics(run)["confusion"])
    np.testing.assert_array_equal(blocks.true.sum(axis=(0, 1)), confusion.sum(axis=1))
    np.testing.assert_array_equal(
        blocks.predicted.sum(axis=(0, 1)), confusion.sum(axis=0)
    )
    sums = blocks.probabilities.sum(axis=2)
    np.testing.assert_allclose(sums, blocks.pixels, rtol=1e-5)
    pieces = [ndimage.label(plane == 1)[1] for plane in truth]
    assert blocks.pieces[:, 1].tolist() == pieces


def test_an_earlier_version_s_model_is_measured_when_its_run_is_resumed(
    started: Callable[..., Any], tmp_path: Path
) -> None:
    list(started())
    path = RunFolder(tmp_path / "run").model_path
    old = replace(Model.load(path), residuals=None)
    old.save(path)
    assert Model.load(path).residuals is None
    assert Model.load(path).digest == old.digest
    list(started(resume=True))
    model = Model.load(path)
    assert model.residuals is not None
    assert model.digest == old.digest
