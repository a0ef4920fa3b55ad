"""Training of 3D networks: blocks, sparse slices, strips, resuming, scores."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers import tiled
from napari_strata.core.classes import IGNORE, ClassMap
from napari_strata.core.errors import ImageError
from napari_strata.core.events import EpochEnd, Message, RegionEnd
from napari_strata.core.image import AnnotatedImage, Image
from napari_strata.core.metrics import ConfusionMatrix
from napari_strata.core.recipe import Recipe
from napari_strata.core.spec import resolve
from napari_strata.data.regions import labelled_regions
from napari_strata.evaluation.evaluate import evaluate, iter_evaluate
from napari_strata.inference.predict import predict
from napari_strata.models.device import Precision
from napari_strata.models.model import Model
from napari_strata.models.tiled import TiledPredictor
from napari_strata.report.write import write_page
from napari_strata.studies.crossval import crossval
from napari_strata.training import validation
from napari_strata.training.estimate import step_memory
from napari_strata.training.loop import iter_train, train
from napari_strata.training.validation import iter_predicted, load_truths

SMALL: dict[str, Any] = {
    "network.kind": "unet3d",
    "network.widths": (4, 8),
    "patches.size": 16,
    "patches.per_epoch": 24,
    "training.epochs": 2,
    "training.batch_size": 4,
    "training.learning_rate": 0.02,
    "training.precision": "fp32",
    "training.recalibration": 8,
}
CPU = torch.device("cpu")


def balls(
    seed: int = 0,
    size: tuple[int, ...] = (24, 24, 24),
    *,
    every: int = 1,
    name: str = "",
) -> AnnotatedImage:
    """Bright balls (2) on dark ground (1) with noise; of the slices each `every`-th is annotated, the others are 0."""
    rng = np.random.default_rng(seed)
    grid = np.indices(size)
    truth = np.ones(size, np.uint8)
    for _ in range(6):
        center = [rng.integers(2, n - 2) for n in size]
        squares = sum((axis - at) ** 2 for axis, at in zip(grid, center, strict=True))
        truth[squares < rng.integers(4, 7) ** 2] = 2
    grey = 60 * truth + rng.normal(0, 8, size)
    image = Image(
        grey.clip(0, 255).astype(np.uint8),
        "ZYX"[-len(size) :],
        name=name or f"balls {seed}",
    )
    truth[np.arange(size[0]) % every > 0] = 0
    classes = ClassMap(names=("ground", "ball"), values=(1, 2), unlabelled=(0,))
    return AnnotatedImage(image, image.labels_like(truth, classes=classes))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs on one volume, every fourth slice of which is annotated."""
    out = tmp_path_factory.mktemp("volumes") / "run"
    train(
        "default",
        balls(every=4),
        out=out,
        overrides=SMALL | {"training.epochs": 4},
        device="cpu",
    )
    return out


def predictor(model: Model) -> TiledPredictor:
    return tiled(model.build(), model.spec, device=CPU, precision=Precision("fp32"))


def test_a_sparsely_labelled_volume_is_learned(trained: Path) -> None:
    model = Model.load(trained)
    assert (model.spec.axes, model.spec.patch_shape) == ("ZYX", (16, 16, 16))
    other = balls(1)
    scores = evaluate(model, other, device="cpu")
    assert scores.confusion.mean_iou > 0.85
    labels = np.asarray(predict(model, other.image, device="cpu").data)
    expected = ConfusionMatrix(model.spec.classes)
    encode = model.spec.classes.encode
    expected.update(encode(np.asarray(other.labels.data)), encode(labels))
    np.testing.assert_array_equal(scores.confusion.counts, expected.counts)
    assert scores.examples[0].truth.shape == (24, 24)


def test_unlabelled_slices_never_count(trained: Path) -> None:
    data = json.loads((trained / "data.json").read_text())
    rows, sides = data["training"] + data["validation"], ("planes", "rows", "columns")
    assert "of the only labelled volume" in data["split"]
    truth = np.asarray(balls(every=4).labels.data)
    (held,) = data["validation"]
    block = truth[tuple(slice(*held[side]) for side in sides)]
    measured = json.loads((trained / "validation" / "metrics.json").read_text())
    assert np.sum(measured["confusion"]) == (block > 0).sum()
    covered = np.zeros(truth.shape, int)
    for row in rows:
        covered[tuple(slice(*row[side]) for side in sides)] += 1
    assert covered.max() == 1
    pictures = [row["name"] for row in measured["pictures"]]
    assert all(int(name.rsplit("Z=", 1)[1]) % 4 == 0 for name in pictures), (
        "the plane shown is an annotated one"
    )


def test_scores_of_a_sparsely_labelled_volume_are_those_of_its_labelled_slices(
    trained: Path,
) -> None:
    model, full, sparse = Model.load(trained), balls(1), balls(1, every=5)
    events = list(job := iter_evaluate(model, sparse, device="cpu"))
    assert [event.region["Z"] for event in events if isinstance(event, RegionEnd)] == [
        0,
        5,
        10,
        15,
        20,
    ]
    labels = np.asarray(predict(model, full.image, device="cpu").data)[::5]
    expected = ConfusionMatrix(model.spec.classes)
    encode = model.spec.classes.encode
    expected.update(encode(np.asarray(full.labels.data)[::5]), encode(labels))
    np.testing.assert_array_equal(job.scores.confusion.counts, expected.counts)


def test_a_stopped_run_resumes_to_the_weights_of_an_uninterrupted_one(
    tmp_path: Path,
) -> None:
    pairs = [balls(0, every=3), balls(2, (9, 24, 20))]
    whole_run = train(
        "default", pairs, out=tmp_path / "a", overrides=SMALL, device="cpu"
    )
    with closing(
        iter_train("default", pairs, out=tmp_path / "b", overrides=SMALL, device="cpu")
    ) as events:
        for event in events:
            if isinstance(event, EpochEnd):
                break
    resumed = list(
        iter_train("default", pairs, out=tmp_path / "b", device="cpu", resume=True)
    )
    assert not [
        event.text
        for event in resumed
        if isinstance(event, Message) and "changed" in event.text
    ]
    for name, tensor in Model.load(tmp_path / "b").weights.items():
        assert torch.equal(tensor, whole_run.weights[name]), name
    assert any(
        "balls 2" in row["name"]
        for row in json.loads((tmp_path / "b" / "data.json").read_text())["training"]
    )


def test_the_report_of_a_run_describes_volumes(trained: Path) -> None:
    text = write_page(trained).read_text(encoding="utf-8")
    for words in (
        "A 3D U-Net of widths 4, 8 was trained for 4 epochs on",
        "on 1 validation block",
        "voxels are",
    ):
        assert words in text, words
    assert text.count("voxels are") == 1


def test_strips_of_a_large_volume_equal_the_whole(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, one = Model.load(trained), balls(3, (61, 20, 20), every=2)
    parts = labelled_regions(one, model.spec.classes, "ZYX")
    (at_once,) = iter_predicted(predictor(model), load_truths(parts, model.spec))
    monkeypatch.setattr(validation, "STRIP_VOXELS", 20 * 20 * 8)
    truths = load_truths(parts, model.spec)
    strips = list(iter_predicted(predictor(model), truths))
    assert len(strips) > 1
    most = 8 + 2 * model.spec.depth.halo + model.spec.depth.stride
    assert max(truth.network_input.shape[0] for truth in truths) <= most
    np.testing.assert_array_equal(
        np.concatenate([t.labels for t in truths]), at_once.truth.labels
    )
    np.testing.assert_allclose(
        np.concatenate([s.logits for s in strips], axis=1), at_once.logits, atol=1e-4
    )
    np.testing.assert_array_equal(
        np.concatenate([s.image for s in strips], axis=1), at_once.image
    )
    assert (
        sum(
            (s.confusion for s in strips), ConfusionMatrix(model.spec.classes)
        ).counts.sum()
        == (at_once.truth.labels != IGNORE).sum()
    )
    first = truths[1].region.box[0].start
    assert truths[1].region.name.startswith(f"balls 3 planes {first} to ")
    assert int(strips[1].example().name.rsplit("Z=", 1)[1]) in range(
        first, truths[1].region.box[0].stop
    )


def test_folds_of_a_single_volume_are_blocks(tmp_path: Path) -> None:
    overrides = SMALL | {"training.epochs": 1, "patches.per_epoch": 4}
    found = crossval(
        "default", balls(0), out=tmp_path, folds=2, overrides=overrides, device="cpu"
    )
    assert sum(fold.confusion.counts.sum() for fold in found.folds) == 24**3


def test_a_single_plane_is_refused_with_a_remedy(trained: Path, tmp_path: Path) -> None:
    flat = balls(0, (24, 24))
    for volumes, held in ((flat, None), (balls(0), flat)):
        with pytest.raises(
            ImageError,
            match=r"balls 0: found a single plane \(YX\).*axis Z \(check --axes\)",
        ):
            train(
                "default",
                volumes,
                validation=held,
                out=tmp_path / "run",
                overrides=SMALL,
                device="cpu",
            )
    assert not (tmp_path / "run").exists()
    with pytest.raises(
        ImageError, match=r"found a single plane \(YX\).*axis Z \(check --axes\)"
    ):
        evaluate(Model.load(trained), flat, device="cpu")


def test_a_deeper_patch_takes_more_memory() -> None:
    def needed(**overrides: Any) -> int:
        recipe = Recipe().with_overrides(SMALL | overrides)
        return step_memory(resolve(recipe, balls()), recipe, Precision("fp32"))

    shallow, deep = needed(**{"patches.depth": 8}), needed(**{"patches.depth": 16})
    assert 1.8 < deep / shallow < 2.1


def test_errors_of_blocks_are_counted_plane_by_plane(tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = {"validation": balls(1), "overrides": SMALL, "device": "cpu"}
    list(iter_train("unet3d", balls(), out=run, **options))
    model = Model.load(run)
    assert model.residuals is not None
    assert [plane.position for plane in model.residuals.planes] == list(range(24))
    blocks = model.residuals.regions["all"]
    truth = balls(1).labels.read()[0]
    assert blocks.pixels.sum(axis=1).tolist() == 24 * [24 * 24]
    expected = [(truth == value).sum(axis=(1, 2)) for value in (1, 2)]
    np.testing.assert_array_equal(blocks.true.sum(axis=1).T, expected)
    # Planes that are nearer than the side of a block are one.
    assert len(model.residuals.independent("all").pixels) == 5
