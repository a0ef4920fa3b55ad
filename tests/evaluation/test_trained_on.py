"""An evaluation knows what the model was trained on."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from napari_strata.core.events import Message
from napari_strata.core.image import AnnotatedImage, Image
from napari_strata.data.regions import LabelledRegion, labelled_regions
from napari_strata.data.trained_on import Digests, Seen, TrainedOn, values_of
from napari_strata.evaluation.evaluate import evaluate, iter_evaluate
from napari_strata.io import read_image, read_labels, write_image, write_labels
from napari_strata.training.loop import train
from napari_strata.training.plan import ChangedLabels, TrainingTask, plan_new

UNLABELLED = 9
SMALL: dict[str, Any] = {
    "network.kind": "unet",
    "network.widths": (4, 8),
    "patches.size": 32,
    "patches.per_epoch": 8,
    "training.epochs": 1,
    "training.batch_size": 8,
    "training.precision": "fp32",
    "training.averaging": None,
    "training.recalibration": 0,
    "training.validation": 0,
}
REMEMBERS = (
    "These labels were trained on: the score says how well the network remembers, not "
    "how well it segments new images."
)


def scene(planes: int = 10, *, seed: int = 0) -> AnnotatedImage:
    """Dark ground (0) and bright squares (1), different in each plane."""
    rng = np.random.default_rng(seed)
    truth = np.zeros((planes, 48, 48), np.uint8)
    for plane in truth:
        y, x = rng.integers(0, 24, 2)
        plane[y : y + 20, x : x + 20] = 1
    grey = 60 + 120 * truth + rng.normal(0, 15, truth.shape)
    image = Image(grey.clip(0, 255).astype(np.uint8), "ZYX", name=f"scene {seed}")
    return AnnotatedImage(image, image.labels_like(truth))


def only(pair: AnnotatedImage, planes: slice) -> AnnotatedImage:
    """Return a pair with labels in some planes."""
    labels = np.full_like(pair.labels.data, UNLABELLED)
    labels[planes] = pair.labels.data[planes]
    return replace(pair, labels=replace(pair.labels, data=labels))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was trained on the planes 0 to 3 of a scene of 10."""
    out = tmp_path_factory.mktemp("runs") / "run"
    train(
        "default",
        only(scene(), slice(4)),
        out=out,
        unlabelled=[UNLABELLED],
        overrides=SMALL,
        device="cpu",
    )
    return out


def seen(model: Any, pair: AnnotatedImage) -> Any:
    return evaluate(model, pair, device="cpu").seen


def test_planes_that_were_trained_on_are_told_from_the_others(run: Path) -> None:
    scores = evaluate(run, scene(), device="cpu")
    assert scores.seen.planes == {"trained": 4, "new": 6}
    assert scores.seen.level == "warning"
    trained, other = scores.seen.matrices["trained"], scores.seen.other
    assert trained.counts.sum() == 4 * 48 * 48
    assert np.array_equal((trained + other).counts, scores.confusion.counts)
    text = scores.seen.text
    assert text.startswith("4 of 10 planes were trained on: there, the score says how")
    assert f"({trained.describe_mean_iou()}, " in text
    assert f"On the 6 others: {other.describe_mean_iou()}, " in text


def test_the_labels_of_the_training_measure_its_memory(
    run: Path, tmp_path: Path
) -> None:
    job = iter_evaluate(run, only(scene(), slice(4)), out=tmp_path / "e", device="cpu")
    assert Message(REMEMBERS, "warning") in list(job)
    facts = json.loads((tmp_path / "e" / "metrics.json").read_text())["trained_on"]
    assert facts["text"] == REMEMBERS
    assert facts["planes"] == {"trained": 4}
    assert facts["pixels"] == 4 * 48 * 48


def test_other_planes_of_the_same_stack_are_new(run: Path) -> None:
    found = seen(run, only(scene(), slice(4, 10)))
    assert (found.planes, found.level) == ({"new": 6}, "info")
    assert found.text == "None of these planes was trained on."


def test_a_copy_under_another_name_is_recognised(run: Path, tmp_path: Path) -> None:
    pair = scene()
    grey = pair.image.data[2:4].astype(np.float32)
    image = Image(grey, "ZYX", name="another")
    write_image(tmp_path / "b.tif", image)
    write_labels(tmp_path / "c.tif", image.labels_like(pair.labels.data[2:4]))
    copy = AnnotatedImage(
        read_image(tmp_path / "b.tif"), read_labels(tmp_path / "c.tif")
    )
    assert seen(run, copy).planes == {"trained": 2}


def test_the_same_name_with_other_content_is_new(run: Path) -> None:
    other = scene(seed=1)
    renamed = replace(other, image=replace(other.image, name="scene 0"))
    assert seen(run, renamed).planes == {"new": 10}


def test_labels_alone_are_recognised(run: Path) -> None:
    trained_on = TrainedOn.of([run])
    for z, region in enumerate(labelled_regions(scene(), classes_of(run))):
        labels = values_of(region.read_class_indices(classes_of(run)), classes_of(run))
        kind = "trained" if z < 4 else "new"
        assert trained_on.find(None, labels).kind == kind


def test_labels_of_one_value_alone_recognise_nothing(tmp_path: Path) -> None:
    """A plane of one class looks like every other such plane."""
    pair = scene(3)
    pair.labels.data[:] = 1
    (region, *_) = labelled_regions(pair, pair.labels.classes or classes_01())
    row = record_of(region)
    write_record(tmp_path, row)
    trained_on = TrainedOn.of([tmp_path])
    labels = np.ones((48, 48), np.int32)
    assert trained_on.find(None, labels).kind == "new"
    assert trained_on.find(scene(3).image.data[:1], labels).kind == "trained"
    assert trained_on.find(scene(3, seed=2).image.data[:1], labels).kind == "new"


def test_few_trained_pixels_are_counted(run: Path, tmp_path: Path) -> None:
    pair = only(scene(), slice(2))
    strokes = np.full_like(pair.labels.data, UNLABELLED)
    row = int(pair.labels.data[0].any(axis=1).argmax())
    strokes[0, row : row + 2] = pair.labels.data[0, row : row + 2]
    painted = replace(pair, labels=replace(pair.labels, data=strokes))
    out = tmp_path / "strokes"
    train(
        "default",
        painted,
        out=out,
        unlabelled=[UNLABELLED],
        overrides=SMALL,
        device="cpu",
    )
    found = seen(out, only(scene(), slice(1)))
    assert found.text == (
        "These planes were trained on, at 96 of their 2,304 labelled pixels: new images"
        " may well be segmented less well."
    )
    text = seen(out, scene()).text
    assert text.startswith(
        "1 of 10 planes was trained on, at 96 of their 2,304 labelled pixels (mean IoU "
    )


def test_a_strip_that_was_held_back_is_no_training(tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(
        "default",
        only(scene(), slice(6)),
        out=out,
        unlabelled=[UNLABELLED],
        overrides=SMALL | {"training.validation": 2},
        device="cpu",
    )
    record = json.loads((out / "data.json").read_text())
    held_back = [row["index"]["Z"] for row in record["validation"]]
    assert len(held_back) == 2
    truth = only(scene(), slice(6, 10))
    for z in held_back:
        truth.labels.data[z] = scene().labels.data[z]
    found = seen(out, truth)
    assert found.planes == {"held back": 2, "new": 4}
    assert found.text == (
        "No plane was trained on. Held back in training, to choose the best epoch: 2 of"
        " 6 planes."
    )
    for z in set(range(6)) - set(held_back):
        truth.labels.data[z] = scene().labels.data[z]
    truth.labels.data[6:] = UNLABELLED
    assert "On the 2 others, held back in training: mean IoU" in seen(out, truth).text


def test_what_is_not_known_is_said(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copy(run / "model.safetensors", tmp_path / "model.safetensors"))
    assert seen(copy, scene(2)).text == (
        "It is not known whether these labels were trained on: the model is not in its"
        " run folder."
    )
    old = tmp_path / "old"
    shutil.copytree(run, old)
    record = json.loads((old / "data.json").read_text())
    del record["earlier"]
    for row in record["training"]:
        del row["content"]
    (old / "data.json").write_text(json.dumps(record))
    assert seen(old, scene(2)).text == (
        "It is not known whether these labels were trained on: its run was made by an"
        " earlier version."
    )


def test_a_fine_tuned_model_remembers_the_images_of_its_start(
    run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "tuned"
    train(
        "default",
        only(scene(), slice(6, 7)),
        out=out,
        unlabelled=[UNLABELLED],
        overrides=SMALL | {"training.start": str(run)},
        device="cpu",
    )
    assert seen(out, scene()).planes == {"trained": 5, "new": 5}
    train(
        "default",
        only(scene(), slice(6, 8)),
        out=out,
        unlabelled=[UNLABELLED],
        resume=True,
        device="cpu",
    )
    assert seen(out, scene()).planes == {"trained": 6, "new": 4}


def test_labels_that_were_erased_were_trained_on(tmp_path: Path) -> None:
    pair = only(scene(), slice(3))
    task = TrainingTask(
        "default", pair, tmp_path, unlabelled=[UNLABELLED], overrides=SMALL
    )
    plan = plan_new(task)
    erased = np.array(pair.labels.data)
    erased[1] = UNLABELLED
    labels = replace(pair.labels, data=erased)
    changed = plan.with_labels(ChangedLabels(plan.pairs[0].labels, labels))
    write_record(tmp_path, *changed.record()["training"], earlier=plan_rows(changed))
    image = scene().image.data
    truth = scene().labels.data.astype(np.int32)
    for z in range(4):
        found = TrainedOn.of([tmp_path]).find(image[z : z + 1], truth[z])
        assert found == (Seen("trained", 48 * 48) if z < 3 else Seen())


def test_planes_of_a_volume_are_recognised(tmp_path: Path) -> None:
    pair = only(scene(4), slice(2))
    classes = classes_01().model_copy(update={"unlabelled": (UNLABELLED,)})
    (volume,) = labelled_regions(pair, classes, "ZYX")
    write_record(
        tmp_path, record_of(volume.block([slice(0, 4), slice(0, 40), slice(0, 48)]))
    )
    trained_on = TrainedOn.of([tmp_path])
    image, truth = scene(4).image.data, scene(4).labels.data.astype(np.int32)
    kinds = [trained_on.find(image[z : z + 1], truth[z]).kind for z in range(4)]
    assert kinds == ["trained", "trained", "new", "new"]


def classes_of(run: Path) -> Any:
    from napari_strata.models.model import Model

    return Model.load(run).spec.classes


def classes_01() -> Any:
    from napari_strata.core.classes import ClassMap

    return ClassMap(names=("ground", "square"), values=(0, 1))


def record_of(region: LabelledRegion) -> dict[str, Any]:
    classes = classes_01().model_copy(update={"unlabelled": (UNLABELLED,)})
    box = {"rows": region.rows, "columns": region.columns}
    return {key: [part.start, part.stop] for key, part in box.items()} | {
        "content": Digests().of(region, classes)
    }


def plan_rows(plan: Any) -> list[Any]:
    return list(plan.record()["earlier"])


def write_record(folder: Path, *rows: Any, earlier: Any = ()) -> None:
    record = {"training": list(rows), "validation": [], "earlier": list(earlier)}
    (folder / "data.json").write_text(json.dumps(record))
    (folder / "recipe.yaml").write_text("name: x\n")
