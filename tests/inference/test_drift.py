"""Images that are not like those of the training, before every prediction."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from skimage.filters import gaussian
from skimage.transform import resize

import napari_strata as ns
from helpers import easy_pair, tiny_model, tiny_recipe, with_reference
from napari_strata.core.events import FileEnd, Message, PredictionEnd
from napari_strata.core.image import AnnotatedImage, Image
from napari_strata.core.options import PredictOptions
from napari_strata.core.spec import resolve
from napari_strata.evaluation.evaluate import iter_evaluate
from napari_strata.inference.batch import predict_files
from napari_strata.io import write_image
from napari_strata.models.model import Model


def model_of(pair: AnnotatedImage, **overrides: object) -> Model:
    """A model with random weights, and the reference of this image."""
    spec = resolve(tiny_recipe(**overrides), pair)
    return with_reference(replace(tiny_model(pair), spec=spec), pair)


@pytest.fixture(scope="module")
def model() -> Model:
    pair = easy_pair((4, 192, 192))
    return model_of(pair, normalization__grey_values="physical")


PLANE = easy_pair((1, 256, 256), seed=9).image.read()[0, 0]


def image(values: np.ndarray, name: str = "scan") -> Image:
    return Image(values.clip(0, 255).astype(np.uint8), "YX", name=name)


@pytest.mark.parametrize(
    "change",
    [
        lambda plane: plane,
        lambda plane: plane[:128, :128],
        lambda plane: plane[100:164, 100:164],
        lambda plane: plane[::-1],
        lambda plane: np.rot90(plane),
    ],
    ids=["same", "crop", "tile", "flipped", "turned"],
)
def test_images_like_those_of_the_training_pass(
    model: Model, change: Callable[[np.ndarray], np.ndarray]
) -> None:
    drift = ns.check_drift(model, image(change(PLANE)))
    assert (drift.level, drift.sentences) == ("", ())
    assert "looks like the training images" in drift.describe()


@pytest.mark.parametrize(
    ("change", "level"),
    [
        (lambda plane: plane * 1.3, "ask"),
        (lambda plane: plane + 20.0, "ask"),
        (lambda plane: 255 - plane, "ask"),
        (lambda plane: 255 * (plane / 255) ** 1.5, "ask"),
        (lambda plane: gaussian(plane, 2, preserve_range=True), "notice"),
        (lambda plane: plane + np.random.default_rng(0).normal(0, 8, plane.shape), "notice"),
        (lambda plane: resize(plane.astype(float), (512, 512)), "notice"),
    ],
    ids=["contrast", "offset", "inverted", "gamma", "blur", "noise", "enlarged"],
)  # fmt: skip
def test_changed_images_are_flagged(
    model: Model, change: Callable[[np.ndarray], np.ndarray], level: str
) -> None:
    drift = ns.check_drift(model, image(change(PLANE)))
    assert drift.level in {level, "ask"}
    assert drift.sentences


def test_planes_are_judged_one_by_one(model: Model) -> None:
    volume = np.stack([PLANE] * 5)
    volume[2] = 255 - volume[2]
    drift = ns.check_drift(model, Image(volume, "ZYX", name="stack"))
    assert drift.level == "ask"
    assert [plane.level for plane in drift.planes] == ["", "", "ask", "", ""]
    assert "of Z=2 do not occur" in drift.questions[0]
    assert "calibrated in the same way?" in drift.questions[0]


def test_a_relative_model_minds_no_contrast_but_another_kind_of_image() -> None:
    pair = easy_pair((4, 192, 192))
    relative = model_of(pair, normalization__grey_values="relative")
    volume = Image(pair.image.data // 2 + 30, "ZYX")  # type: ignore[operator]
    assert ns.check_drift(relative, volume).level == ""
    ramp = np.tile(np.arange(256), (256, 1))
    (question, *_) = ns.check_drift(relative, image(ramp)).questions
    assert "each scaled to its own range" in question


def test_of_several_models_the_one_that_knows_the_image_least_counts(
    model: Model,
) -> None:
    bright = easy_pair((4, 192, 192))
    bright.image.data[:] = 255 - bright.image.data[:]  # type: ignore[index]
    other = model_of(bright, normalization__grey_values="physical")
    assert ns.check_drift(other, image(255 - PLANE.astype(int))).level == ""
    assert ns.check_drift([model, other], image(PLANE)).level == "ask"


def test_only_some_blocks_of_a_large_plane_are_read(model: Model) -> None:
    class Counted:
        shape, dtype = (300, 9000, 9000), np.dtype(np.uint8)
        pixels = 0

        def __getitem__(self, key: tuple[slice, ...]) -> np.ndarray:
            sizes = [
                len(range(*s.indices(n))) for s, n in zip(key, self.shape, strict=True)
            ]
            self.pixels += int(np.prod(sizes))
            return np.resize(PLANE, sizes)

    counted = Counted()
    drift = ns.check_drift(model, Image(counted, "ZYX"))
    assert len(drift.planes) == 8
    assert counted.pixels == 2 * 8 * 16 * 256**2  # samples, and the comparison


def test_a_model_without_a_reference_says_so(model: Model) -> None:
    old = replace(model, drift=None)
    drift = ns.check_drift(old, image(PLANE))
    assert (drift.level, drift.is_known) == ("", False)
    assert "earlier version" in drift.describe()
    assert ns.check_drift(old, Image(PLANE * 100.0, "YX")).level == "ask"


def messages(events: list[object]) -> list[Message]:
    return [event for event in events if isinstance(event, Message)]


def test_a_prediction_warns_and_goes_on_or_refuses(model: Model) -> None:
    inverted = image(255 - PLANE, name="inverted")
    job = ns.iter_predict(model, inverted, device="cpu")
    events = list(job)
    (warning,) = [m for m in messages(events) if m.level == "warning"]
    assert "of the grey values do not occur" in warning.text
    assert "--strict" in warning.text
    assert isinstance(events[-1], PredictionEnd)
    assert job.drift is not None
    assert job.drift.level == "ask"
    with pytest.raises(ns.StrataError, match=r"do not occur.*--strict"):
        ns.predict(model, inverted, strict=True, device="cpu")
    enlarged = image(PLANE.repeat(2, 0).repeat(2, 1))
    events = list(ns.iter_predict(model, enlarged, strict=True, device="cpu"))
    (notice,) = [m for m in messages(events) if "smoother" in m.text]
    assert notice.level == "info"
    usual = list(ns.iter_predict(model, image(PLANE), strict=True, device="cpu"))
    assert not any("grey values" in message.text for message in messages(usual))


@pytest.mark.parametrize("strict", [False, True])
def test_a_batch_reports_and_goes_on(
    model: Model, tmp_path: Path, strict: bool
) -> None:
    for name, values in {"a": 255 - PLANE, "b": PLANE}.items():
        write_image(tmp_path / f"{name}.tif", image(values, name))
    events = list(
        predict_files(
            model,
            [tmp_path / "a.tif", tmp_path / "b.tif"],
            tmp_path / "labels",
            options=PredictOptions(strict=strict, device="cpu"),
        )
    )
    ends = [event for event in events if isinstance(event, FileEnd)]
    assert [end.status for end in ends] == ["failed" if strict else "done", "done"]
    assert "of the grey values do not occur" in ends[0].text
    assert ends[1].text == ""
    with open(tmp_path / "labels" / "report.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert "do not occur" in rows[0]["message"]
    assert rows[1]["message"] == ""


def test_an_evaluation_says_it_too(model: Model) -> None:
    pair = easy_pair((2, 128, 128), seed=3)
    pair.image.data[:] = 255 - pair.image.data[:]  # type: ignore[index]
    events = list(iter_evaluate(model, pair, device="cpu"))
    assert any("do not occur" in message.text for message in messages(events))
