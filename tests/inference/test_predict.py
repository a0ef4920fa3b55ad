from __future__ import annotations

import re
import signal
import subprocess
import sys
import textwrap
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from helpers import easy_pair, tiled, tiny_model
from napari_strata.core.classes import ClassMap
from napari_strata.core.errors import ImageError, ModelError, RunError
from napari_strata.core.events import (
    Message,
    PredictionEnd,
    PredictionStarted,
    RegionEnd,
)
from napari_strata.core.files import partial_folder
from napari_strata.core.image import Image, LabelImage
from napari_strata.core.options import PredictOptions
from napari_strata.inference import ensemble_predictor, task
from napari_strata.inference import predict as predict_module
from napari_strata.inference.build import build_predictor
from napari_strata.inference.ensemble_predictor import EnsemblePredictor
from napari_strata.inference.ledger import ResumableOutput
from napari_strata.inference.outputs import (
    MemoryOutput,
    check_out,
    probabilities_path,
)
from napari_strata.inference.predict import Prediction, iter_predict, predict
from napari_strata.io import read_image, read_labels, write_labels
from napari_strata.models import tiled as tiled_module
from napari_strata.models.model import Calibration, Model

PAIR = easy_pair((4, 64, 72))
OPTIONS = PredictOptions(device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def model() -> Model:
    """A network that has seen nothing but whose answer depends on what it sees: both classes occur."""
    model = tiny_model(PAIR)
    logits = build_predictor(model, OPTIONS).predict_logits(
        PAIR.image.read({"Z": 0}), model.spec.normalization.scale
    )
    last = [name for name in model.weights if name.endswith("bias")][-1]
    weights = dict(model.weights)
    weights[last] = weights[last] - torch.tensor(
        [0.0, float(np.median(logits[1] - logits[0]))]
    )
    return replace(model, weights=weights)


def expected(model: Model, image: Image) -> np.ndarray:
    predictor = build_predictor(model, OPTIONS)
    samples = np.concatenate(image.samples(), axis=1)
    scale = model.spec.normalization.scale_for(samples, image.dtype)
    planes = [
        predictor.predict(image.read(plane), scale)[0] for plane in image.planes()
    ]
    return model.spec.classes.decode(np.stack(planes))


def test_labels_in_memory_have_the_values_axes_scale_and_classes_they_should(model):
    image = replace(
        PAIR.image, scale=(3.0, 2.0, 2.0), units=("micrometer",) * 3, name="rock"
    )
    labels = predict(model, image, options=OPTIONS)
    assert isinstance(labels, LabelImage)
    assert (labels.axes, labels.scale, labels.units) == (
        "ZYX",
        (3.0, 2.0, 2.0),
        ("micrometer",) * 3,
    )
    assert (labels.name, labels.dtype, labels.classes) == (
        "rock",
        np.uint8,
        model.spec.classes,
    )
    assert np.array_equal(np.asarray(labels.data), expected(model, image))
    assert set(np.unique(labels.data)) == {0, 255}


def test_events_tell_the_story(model):
    job = iter_predict(model, PAIR.image, options=OPTIONS)
    with pytest.raises(RunError, match="not finished"):
        _ = job.labels
    info, started, *regions, end = list(job)
    assert isinstance(info, Message)
    assert "4 x 64 x 72 (ZYX)" in info.text
    assert started == PredictionStarted("easy", started.device, 4, 0)
    assert [(r.region, r.done, r.regions) for r in regions] == [
        ({"Z": i}, i + 1, 4) for i in range(4)
    ]
    assert isinstance(end, PredictionEnd)
    assert (end.name, end.path) == ("easy", "")
    assert np.array_equal(
        job.pixels, [(job.labels.data == 0).sum(), (job.labels.data == 255).sum()]
    )
    assert job.probabilities is None


@pytest.mark.parametrize("axes", ["YXZ", "TYX", "YX", "ZTYX", "CZYX", "YXC"])
def test_any_axes_give_labels_of_the_same_axes(model, axes):
    planes = np.asarray(PAIR.image.data)
    array = {
        "YXZ": planes.transpose(1, 2, 0),
        "TYX": planes,
        "YX": planes[0],
        "ZTYX": planes.reshape(2, 2, 64, 72),
        "CZYX": planes[None],
        "YXC": planes[0][..., None],
    }[axes]
    image = Image(array, axes)
    labels = predict(model, image, options=OPTIONS)
    assert labels.axes == axes.replace("C", "")
    assert labels.shape == image.label_shape
    for plane in image.planes():
        assert np.array_equal(
            labels.read(plane)[0], expected(model, Image(image.read(plane)[0]))[0]
        )


def test_probabilities_lie_beside_the_labels_and_agree_with_them(model):
    job = iter_predict(model, PAIR.image, options=OPTIONS, probabilities=True)
    list(job)
    probabilities = job.probabilities
    assert probabilities is not None
    assert (probabilities.axes, probabilities.dtype, probabilities.channel_names) == (
        "ZCYX",
        np.float16,
        ("class 0", "class 255"),
    )
    values = np.asarray(probabilities.data).astype(np.float32)
    np.testing.assert_allclose(values.sum(1), 1, atol=2e-3)
    clear = np.abs(values[:, 1] - 0.5) > 0.01
    assert clear.mean() > 0.5
    assert np.array_equal(
        (values[:, 1] > 0.5)[clear], (np.asarray(job.labels.data) == 255)[clear]
    )


@pytest.mark.parametrize("name", ["labels.tif", "labels.ome.tif", "labels.zarr"])
def test_files_hold_what_memory_holds_and_nothing_else_stays(model, tmp_path, name):
    image = replace(PAIR.image, scale=(3.0, 2.0, 2.0), units=("micrometer",) * 3)
    kept = iter_predict(model, image, options=OPTIONS, probabilities=True)
    list(kept)
    job = iter_predict(
        model, image, out=tmp_path / "new" / name, options=OPTIONS, probabilities=True
    )
    assert list(job)[-1].path == str(tmp_path / "new" / name)
    read = read_labels(tmp_path / "new" / name)
    for labels in (read, job.labels):
        assert np.array_equal(np.asarray(labels.read()[0]), kept.labels.data)
        assert (labels.dtype, labels.axes, labels.scale) == (
            kept.labels.dtype,
            "ZYX",
            image.scale,
        )
        assert labels.classes == model.spec.classes
    assert job.probabilities is not None
    assert kept.probabilities is not None
    for plane in image.planes():
        assert np.array_equal(
            job.probabilities.read(plane), kept.probabilities.read(plane)
        )
    assert np.array_equal(job.pixels, kept.pixels)
    beside = name.replace("labels", "labels_probabilities")
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == sorted(
        [name, beside]
    )


def test_one_plane_can_be_written_as_png(model, tmp_path):
    image = Image(PAIR.image.data[0])
    labels = predict(
        model, image, out=tmp_path / "a.png", options=OPTIONS, probabilities=True
    )
    assert np.array_equal(np.asarray(labels.data), expected(model, image)[0])
    assert labels.classes == model.spec.classes
    assert (tmp_path / "a_probabilities.tif").is_file()
    with pytest.raises(RunError, match="PNG holds one plane and easy has 4"):
        predict(model, PAIR.image, out=tmp_path / "b.png", options=OPTIONS)


def test_models_and_images_may_be_paths_and_images_plain_arrays(model, tmp_path):
    path = write_labels(tmp_path / "image.tif", PAIR.image.labels_like(PAIR.image.data))
    saved = model.save(tmp_path / "model.safetensors")
    want = expected(model, PAIR.image)
    assert np.array_equal(predict(saved, path, options=OPTIONS).data, want)
    assert np.array_equal(
        predict(str(saved), PAIR.image.data[1], options=OPTIONS).data, want[1]
    )
    with pytest.raises(ImageError, match="axes"):
        predict(saved, PAIR.image.data, options=OPTIONS)
    with pytest.raises(ModelError, match="no such model"):
        predict(tmp_path / "none", PAIR.image, options=OPTIONS)


def stop_after(
    model: Model, out: Path, regions: int, image: Image = PAIR.image
) -> None:
    job = iter_predict(model, image, out=out, options=OPTIONS, probabilities=True)
    for event in job:
        if isinstance(event, RegionEnd) and event.done == regions:
            job.close()
            return


def contents(folder: Path) -> dict[str, bytes]:
    """Files and what is in them, less the random UUID that every OME file gets."""
    files = (p for p in sorted(folder.rglob("*")) if p.is_file())
    return {
        str(p.relative_to(folder)): re.sub(
            rb"urn:uuid:[0-9a-f-]{36}", b"", p.read_bytes()
        )
        for p in files
    }


def test_a_stopped_prediction_goes_on_and_gives_the_same_bytes(model, tmp_path):
    predict(
        model,
        PAIR.image,
        out=tmp_path / "whole" / "x.tif",
        options=OPTIONS,
        probabilities=True,
    )
    out = tmp_path / "cut" / "x.tif"
    stop_after(model, out, 2)
    assert [p.name for p in out.parent.iterdir()] == ["x.tif.partial"]
    events = list(
        iter_predict(model, PAIR.image, out=out, options=OPTIONS, probabilities=True)
    )
    assert next(e for e in events if isinstance(e, PredictionStarted)).done == 2
    assert [e.region for e in events if isinstance(e, RegionEnd)] == [
        {"Z": 2},
        {"Z": 3},
    ]
    assert contents(out.parent) == contents(tmp_path / "whole")


def test_a_run_killed_between_its_two_files_is_completed(model, tmp_path, monkeypatch):
    out = tmp_path / "x.tif"

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("napari_strata.inference.outputs.write_labels", killed)
        with pytest.raises(KeyboardInterrupt):
            predict(model, PAIR.image, out=out, options=OPTIONS, probabilities=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "x.tif.partial",
        "x_probabilities.tif",
    ]
    labels = predict(model, PAIR.image, out=out, options=OPTIONS, probabilities=True)
    assert np.array_equal(labels.read()[0], expected(model, PAIR.image))


def test_a_run_killed_before_its_planes_were_deleted_is_complete(
    model, tmp_path, monkeypatch
):
    out = tmp_path / "x.tif"
    with monkeypatch.context() as patch:
        patch.setattr(ResumableOutput, "remove", lambda output: output.close())
        predict(model, PAIR.image, out=out, options=OPTIONS)
    written = contents(tmp_path)[out.name]
    other_image = replace(PAIR.image, data=np.flip(PAIR.image.data).copy())
    with pytest.raises(RunError, match="exists already"):
        predict(model, other_image, out=out, options=OPTIONS)
    assert (tmp_path / "x.tif.partial").exists(), "of another image, and so kept"
    job = iter_predict(model, PAIR.image, out=out, options=OPTIONS)
    texts = [event.text for event in job if isinstance(event, Message)]
    assert f"{out} is complete: an earlier process has written it" in texts
    assert contents(tmp_path) == {out.name: written}
    assert np.array_equal(job.labels.read()[0], expected(model, PAIR.image))


def test_a_removal_of_planes_that_was_killed_is_completed(model, tmp_path, monkeypatch):
    out = tmp_path / "x.tif"
    with monkeypatch.context() as patch:
        patch.setattr(ResumableOutput, "remove", lambda output: output.close())
        predict(model, PAIR.image, out=out, options=OPTIONS)
    written = contents(tmp_path)[out.name]
    dead = 2**22 + 1  # larger than any process number
    trash = (tmp_path / "x.tif.partial").rename(tmp_path / f".{dead}.tmp.x.tif.partial")
    (trash / "labels.npy").unlink()
    job = iter_predict(model, PAIR.image, out=out, options=OPTIONS)
    texts = [event.text for event in job if isinstance(event, Message)]
    assert f"{out} is complete: an earlier process has written it" in texts
    assert contents(tmp_path) == {out.name: written}
    assert np.array_equal(job.labels.read()[0], expected(model, PAIR.image))
    assert job.pixels.sum() == np.prod(PAIR.image.label_shape)


@pytest.mark.parametrize(
    "what",
    [
        "model",
        "image",
        "request for probabilities",
        "tile size",
        "choice of flips and turns",
    ],
)
def test_planes_of_another_origin_are_discarded_with_a_word(model, tmp_path, what):
    out = tmp_path / "x.tif"
    stop_after(model, out, 2)
    image, probabilities, other, tile, tta = PAIR.image, True, model, None, False
    if what == "image":
        data = np.array(image.data)
        data[3, 5, 5] ^= 1
        image = replace(image, data=data)
    elif what == "model":
        other = replace(
            model,
            weights={
                k: v + 1 if v.is_floating_point() else v
                for k, v in model.weights.items()
            },
        )
    elif what == "tile size":
        tile = 16
    elif what == "request for probabilities":
        probabilities = False
    else:
        tta = True
    job = iter_predict(
        other,
        image,
        out=out,
        options=OPTIONS,
        probabilities=probabilities,
        tile=tile,
        tta=tta,
    )
    events = list(job)
    (warning,) = [
        e.text for e in events if isinstance(e, Message) and e.level == "warning"
    ]
    assert f"made with another {what}; it is discarded" in warning
    assert len([e for e in events if isinstance(e, RegionEnd)]) == 4
    if tile is None and not tta:
        assert np.array_equal(job.labels.read()[0], expected(other, image))


@pytest.fixture(scope="module")
def second(model) -> Model:
    """Another opinion: its last weights the other way round."""
    last = [
        name
        for name in model.weights
        if "head" in name or name.endswith(("weight", "bias"))
    ][-2:]
    weights = {
        name: value.flip(0) if name in last else value
        for name, value in model.weights.items()
    }
    return replace(model, weights=weights)


def drain(model, out: Path | None = None, **options) -> Prediction:
    job = iter_predict(
        model, PAIR.image, out=out, options=OPTIONS, probabilities=True, **options
    )
    list(job)
    return job


def test_several_models_give_the_mean_of_their_probabilities_in_any_order(
    model, second
):
    alone = [
        np.asarray(drain(one).probabilities.data, np.float32) for one in (model, second)
    ]
    assert np.abs(alone[0] - alone[1]).max() > 0.1
    jobs = [drain(group) for group in ([model, second], [second, model])]
    for job in jobs:
        np.testing.assert_allclose(
            np.asarray(job.probabilities.data, np.float32), np.mean(alone, 0), atol=1e-3
        )
    assert np.array_equal(
        jobs[0].probabilities.data, jobs[1].probabilities.data
    )  # to the bit
    assert np.array_equal(jobs[0].labels.data, jobs[1].labels.data)
    assert not np.array_equal(jobs[0].labels.data, drain(model).labels.data)
    assert np.array_equal(drain([model, model]).labels.data, drain(model).labels.data)


def test_members_see_the_image_as_each_was_trained_to(model, second):
    normalization = second.spec.normalization.model_copy(update={"kind": "relative"})
    relative = replace(
        second,
        spec=second.spec.model_copy(
            update={"normalization": normalization, "tile": 32}
        ),
    )
    alone = [
        np.asarray(drain(one).probabilities.data, np.float32)
        for one in (model, relative)
    ]
    found = np.asarray(drain([relative, model]).probabilities.data, np.float32)
    np.testing.assert_allclose(found, np.mean(alone, 0), atol=1e-3)


def test_a_turned_stack_gives_turned_labels(model):
    def labels(image: Image, **options) -> np.ndarray:
        return np.asarray(predict(model, image, options=OPTIONS, **options).data)

    turned = replace(PAIR.image, data=np.rot90(np.asarray(PAIR.image.data), 1, (1, 2)))
    assert (
        labels(turned, tta=True) == np.rot90(labels(PAIR.image, tta=True), 1, (1, 2))
    ).mean() > 0.9999
    assert (labels(turned) == np.rot90(labels(PAIR.image), 1, (1, 2))).mean() < 0.999


def test_it_is_said_over_what_is_averaged(model, second):
    said = [
        e.text
        for e in iter_predict([model, second], PAIR.image, options=OPTIONS)
        if isinstance(e, Message)
    ]
    assert said[-1] == "probabilities are averaged over 2 models"
    said = [
        e.text
        for e in iter_predict(model, PAIR.image, options=OPTIONS, tta=True)
        if isinstance(e, Message)
    ]
    assert (
        said[-1] == "probabilities are averaged over flips and turns (8 times the work)"
    )


def test_the_probabilities_of_a_calibrated_model_are_tempered_and_its_labels_are_not(
    model,
):
    warm = drain(replace(model, calibration=Calibration(temperature=3.0)))
    cold = drain(model)
    assert np.array_equal(warm.labels.data, cold.labels.data)
    odds = np.asarray(cold.probabilities.data, np.float64) ** (1 / 3)
    expected = odds / odds.sum(1, keepdims=True)
    np.testing.assert_allclose(
        np.asarray(warm.probabilities.data, np.float64), expected, atol=5e-3
    )


def test_an_ensemble_goes_on_in_any_order_and_not_with_other_members(
    model, second, tmp_path
):
    out = tmp_path / "x.tif"
    whole = np.asarray(drain([model, second], tta=True).labels.data)
    for event in (
        job := iter_predict(
            [model, second], PAIR.image, out=out, options=OPTIONS, tta=True
        )
    ):
        if isinstance(event, RegionEnd) and event.done == 2:
            job.close()
            break
    events = list(
        iter_predict([second, model], PAIR.image, out=out, options=OPTIONS, tta=True)
    )
    assert [e.region for e in events if isinstance(e, RegionEnd)] == [
        {"Z": 2},
        {"Z": 3},
    ]
    assert np.array_equal(read_labels(out).read()[0], whole)
    out.unlink()
    stop_after([model, second], out, 2)
    events = list(
        iter_predict(model, PAIR.image, out=out, options=OPTIONS, probabilities=True)
    )
    (warning,) = [
        e.text for e in events if isinstance(e, Message) and e.level == "warning"
    ]
    assert "made with another model; it is discarded" in warning
    assert np.array_equal(read_labels(out).read()[0], expected(model, PAIR.image))


def test_models_that_do_not_go_together_are_refused_before_anything_is_written(
    model, tmp_path
):
    classes = ClassMap(names=("pore", "grain"), values=(0, 255))
    other = replace(model, spec=model.spec.model_copy(update={"classes": classes}))
    with pytest.raises(
        ModelError,
        match="classes: 'model 1' has class 0, class 255; 'model 2' has pore, grain",
    ):
        predict([model, other], PAIR.image, out=tmp_path / "x.tif", options=OPTIONS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_prediction_killed_for_real_goes_on_to_the_same_bytes(model, tmp_path):
    saved = model.save(tmp_path / "model.safetensors")
    image = write_labels(
        tmp_path / "image.tif", PAIR.image.labels_like(PAIR.image.data)
    )
    out = tmp_path / "cut" / "x.tif"
    script = f"""
        import os, signal
        from napari_strata.core.events import RegionEnd
        from napari_strata.inference.predict import iter_predict
        from napari_strata.core.options import PredictOptions
        options = PredictOptions(device="cpu", precision="fp32")
        for event in iter_predict({str(saved)!r}, {str(image)!r}, out={str(out)!r}, options=options):
            if isinstance(event, RegionEnd) and event.done == 3:
                os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not out.exists()
    events = list(iter_predict(saved, image, out=out, options=OPTIONS))
    assert len([e for e in events if isinstance(e, RegionEnd)]) == 1
    predict(saved, image, out=tmp_path / "whole" / "x.tif", options=OPTIONS)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_nothing_is_replaced_unasked(model, tmp_path):
    out = tmp_path / "x.tif"
    out.write_text("mine")
    with pytest.raises(RunError, match=r"exists already.*--overwrite"):
        predict(model, PAIR.image, out=out, options=OPTIONS)
    assert out.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [out]
    predict(model, PAIR.image, out=out, options=OPTIONS, overwrite=True)
    assert read_labels(out).shape == (4, 64, 72)
    beside = tmp_path / "y_probabilities.tif"
    beside.write_text("mine")
    with pytest.raises(RunError, match=r"y_probabilities\.tif: exists already"):
        predict(
            model,
            PAIR.image,
            out=tmp_path / "y.tif",
            options=OPTIONS,
            probabilities=True,
        )
    assert beside.read_text() == "mine"
    predict(
        model,
        PAIR.image,
        out=tmp_path / "y.tif",
        options=OPTIONS,
        probabilities=True,
        overwrite=True,
    )
    assert read_image(beside).dtype == np.float16


def test_the_image_itself_is_never_replaced(model, tmp_path):
    path = write_labels(tmp_path / "image.tif", PAIR.image.labels_like(PAIR.image.data))
    with pytest.raises(RunError, match="would replace the image itself"):
        predict(model, path, out=path, options=OPTIONS, overwrite=True)


def test_outputs_that_cannot_be_are_refused_at_once(model, tmp_path):
    with pytest.raises(RunError, match=r"suffix '\.jpg'; use one of \.tif"):
        predict(model, PAIR.image, out=tmp_path / "x.jpg")
    (tmp_path / "folder.tif").mkdir()
    with pytest.raises(RunError, match="is a folder"):
        check_out(tmp_path / "folder.tif", overwrite=True)


def test_warnings_come_before_the_first_plane(model):
    image = replace(PAIR.image, data=PAIR.image.data.astype(np.uint16) * 50)
    events = list(iter_predict(model, image, options=OPTIONS))
    kinds = [(type(e).__name__, getattr(e, "level", "")) for e in events]
    assert kinds[:4] == [
        ("Message", "info"),
        ("Message", "warning"),
        ("Message", "warning"),
        ("PredictionStarted", ""),
    ]


def messages(model: Model, image: Image) -> list[str]:
    return [
        e.text
        for e in iter_predict(model, image, options=OPTIONS)
        if isinstance(e, Message)
    ]


def test_pixels_that_are_not_finite_are_counted_and_located(model):
    data = PAIR.image.data.astype(np.float32)
    data[1, 5, 7], data[2, 0, :3] = np.nan, np.inf
    texts = messages(model, replace(PAIR.image, data=data))
    assert (
        "found 4 pixels that are not finite (NaN or infinite), the first at Z=1, Y=5, X=7"
        in texts[-1]
    )
    data[2] = 0
    texts = messages(model, replace(PAIR.image, data=data))
    assert "found 1 pixel that is not finite" in texts[-1]


def test_any_label_values_come_out_in_their_own_dtype(model):
    classes = ClassMap(names=("a", "b"), values=(3, 70000))
    other = replace(model, spec=model.spec.model_copy(update={"classes": classes}))
    labels = predict(other, PAIR.image, options=OPTIONS)
    assert labels.dtype == np.uint32
    assert set(np.unique(labels.data)) == {3, 70000}


def test_options_are_checked():
    with pytest.raises(RunError, match="found batch=0"):
        PredictOptions(batch=0)
    with pytest.raises(RunError, match="found tile=-1"):
        PredictOptions(tile=-1)


def test_a_tile_size_is_rounded_up_to_the_stride(model):
    assert model.spec.stride == 2
    assert build_predictor(model, OPTIONS.updated(tile=15)).spec.tile == 16


class Cheap(nn.Module):
    """Stands for a network that costs nothing."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.cat([images, -images], 1)


def test_memory_does_not_grow_with_the_number_of_planes(model, tmp_path):
    import tracemalloc

    class Stack:
        """Planes made when asked for."""

        dtype = np.dtype(np.uint8)

        def __init__(self, planes: int) -> None:
            self.shape = (planes, 256, 256)

        def __getitem__(self, key):
            return np.zeros(
                [
                    len(range(*k.indices(n)))
                    for k, n in zip(key, self.shape, strict=True)
                ],
                np.uint8,
            )

    precision = build_predictor(model, OPTIONS).predictor.precision
    ensemble = EnsemblePredictor(
        [tiled(Cheap(), model.spec, device=torch.device("cpu"), precision=precision)]
    )
    peaks = []
    for planes in (8, 64):
        image = Image(Stack(planes), "ZYX")
        tracemalloc.start()
        for _ in Prediction(
            model,
            image,
            out=tmp_path / f"{planes}.tif",
            options=OPTIONS,
            predictor=ensemble,
        ):
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 20 * 256 * 256  # of 56 more planes


def test_names_of_probability_files(tmp_path):
    assert probabilities_path(tmp_path / "a.ome.tif").name == "a_probabilities.ome.tif"
    assert probabilities_path(tmp_path / "a.png").name == "a_probabilities.tif"
    assert probabilities_path(tmp_path / "a.zarr").name == "a_probabilities.zarr"


def test_pages_are_kept_and_norms_folded_while_it_predicts(model, monkeypatch):
    inside, seen = [0], []

    @contextmanager
    def watched(device):
        assert device == "cpu"
        inside[0] += 1
        yield True
        inside[0] -= 1

    monkeypatch.setattr(predict_module, "kept_pages", watched)
    real = EnsemblePredictor.predict

    def predicted(self, *arguments, **keywords):
        seen.append(inside[0])
        norms = [
            m
            for m in self.members[0].predictor.network.modules()
            if isinstance(m, nn.BatchNorm2d)
        ]
        assert not norms
        return real(self, *arguments, **keywords)

    monkeypatch.setattr(EnsemblePredictor, "predict", predicted)
    assert any(
        isinstance(m, nn.BatchNorm2d)
        for m in model.build(torch.device("cpu")).modules()
    )
    predict(model, PAIR.image, options=OPTIONS)
    assert seen == [1] * 4
    assert inside == [0]


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three planes go through the network together, and a thread writes."""
    for module in (tiled_module, ensemble_predictor, task):
        monkeypatch.setattr(module, "ASYNCHRONOUS", ("cpu",))
    monkeypatch.setitem(tiled_module.BATCH_PIXELS, "cpu", 3 * 64 * 72)


STACK = easy_pair((8, 64, 72))


@pytest.mark.parametrize("options", [{}, {"tta": True}, {"probabilities": True}])
def test_planes_that_are_predicted_together_have_the_same_labels(
    model, request, tmp_path, options
):
    alone = iter_predict(model, STACK.image, options=OPTIONS, **options)
    list(alone)
    request.getfixturevalue("as_on_a_gpu")
    for out in (None, tmp_path / "labels.tif"):
        job = iter_predict(model, STACK.image, out=out, options=OPTIONS, **options)
        events = [event for event in job if isinstance(event, RegionEnd)]
        assert [event.region for event in events] == [{"Z": i} for i in range(8)]
        assert [event.done for event in events] == list(range(1, 9))
        assert np.array_equal(job.labels.data, alone.labels.data)
        assert np.array_equal(job.pixels, alone.pixels)
        if alone.probabilities is not None and job.probabilities is not None:
            for plane in STACK.image.planes():
                np.testing.assert_allclose(
                    job.probabilities.read(plane),
                    alone.probabilities.read(plane),
                    atol=1e-3,
                )


def test_shapes_that_go_through_together(model, as_on_a_gpu):
    shapes = []

    class Watched(nn.Module):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            if images.device.type != "meta":  # the estimate of the memory
                shapes.append(tuple(images.shape))
            return self.network(images)

    member = build_predictor(model, OPTIONS)
    member.predictor.network = Watched(member.predictor.network)
    job = Prediction(
        model, STACK.image, options=OPTIONS, predictor=EnsemblePredictor([member])
    )
    list(job)
    assert shapes == [(3, 1, 64, 72), (3, 1, 64, 72), (2, 1, 64, 72)]


def test_a_stopped_prediction_keeps_what_the_thread_was_writing(
    model, as_on_a_gpu, tmp_path
):
    out = tmp_path / "labels.tif"
    job = iter_predict(model, STACK.image, out=out, options=OPTIONS)
    while not isinstance(next(job), RegionEnd):
        pass
    job.close()
    again = iter_predict(model, STACK.image, out=out, options=OPTIONS)
    events = list(again)
    (started,) = [event for event in events if isinstance(event, PredictionStarted)]
    # The first chunk was on the disk, the second one with the thread.
    assert started.done == 6
    assert sum(isinstance(event, RegionEnd) for event in events) == 2
    assert np.array_equal(again.labels.data, expected(model, STACK.image))


def test_planes_of_a_chunk_that_are_there_are_not_written_again(
    model, as_on_a_gpu, tmp_path
):
    """As after a process was killed between two planes."""
    out = tmp_path / "labels.tif"
    list(iter_predict(model, STACK.image, out=out, options=OPTIONS, part="1/3"))
    (ledger,) = partial_folder(out).glob("ledger*")
    lines = ledger.read_text().splitlines(keepends=True)
    ledger.write_text("".join(lines[:-1]))
    job = iter_predict(model, STACK.image, out=out, options=OPTIONS)
    regions = [event.region["Z"] for event in job if isinstance(event, RegionEnd)]
    assert regions == [2, 3, 4, 5, 6, 7]
    assert np.array_equal(job.labels.data, expected(model, STACK.image))


def test_a_full_disk_stops_a_prediction_whose_planes_a_thread_writes(
    model, as_on_a_gpu, monkeypatch
):
    class Full(MemoryOutput):
        def write(self, plane, arrays, pixels):
            if plane == 4:
                raise RunError("the disk is full")
            super().write(plane, arrays, pixels)

    job = Prediction(model, STACK.image, options=OPTIONS, make_output=Full)
    done = []
    with pytest.raises(RunError, match="disk is full"):
        done.extend(event for event in job if isinstance(event, RegionEnd))
    assert len(done) == 3
