"""The package of bioimage.io states what the network needs, and computes what it does."""

from __future__ import annotations

import json
import zipfile
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image as Pillow
from typer.testing import CliRunner

import napari_strata as ns
from helpers import easy_pair, tiny_model
from napari_strata.cli import app
from napari_strata.core.errors import ImageError, ModelError, RunError
from napari_strata.core.image import AnnotatedImage, Image
from napari_strata.core.recipe import Recipe
from napari_strata.core.spec import resolve
from napari_strata.export import bioimageio
from napari_strata.models.model import Calibration
from napari_strata.networks import build_network

pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

NETWORKS: dict[str, dict[str, Any]] = {
    "unet": {"kind": "unet", "widths": [4, 8]},
    "resnet34": {"kind": "smp", "architecture": "unet", "encoder": "resnet34"},
    "deeplabv3plus": {
        "kind": "smp",
        "architecture": "deeplabv3plus",
        "encoder": "resnet50",
    },
    "atrous": {"kind": "atrous_unet"},
    "unet3d": {"kind": "unet3d", "widths": [4, 8]},
}


def random_model(recipe: dict[str, Any], pair: AnnotatedImage) -> ns.Model:
    parsed = Recipe.parse(recipe)
    spec = resolve(parsed, pair)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build_network(spec).train()
        # Running statistics as after a training.
        with torch.no_grad():
            size = [4 * stride for stride in spec.stride_shape]
            network(torch.randn(2, spec.in_channels, *size))
    return ns.Model(spec, parsed, dict(network.state_dict()))


@pytest.fixture(scope="module")
def model() -> ns.Model:
    tiny = tiny_model(easy_pair())
    normalization = tiny.spec.normalization
    # So narrow that the graph must clip an image of uint8.
    scale = normalization.scale.model_copy(update={"low": (70.0,), "high": (170.0,)})
    facts = {
        "pixel_size": {"Y": 0.5, "X": 0.25},
        "pixel_unit": "micrometer",
        "normalization": normalization.model_copy(update={"scale": scale}),
    }
    spec = tiny.spec.model_copy(update=facts)
    return replace(tiny, spec=spec, calibration=Calibration(2.5))


@pytest.fixture(scope="module")
def package(model: ns.Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`model`, saved and exported by the command line."""
    folder = tmp_path_factory.mktemp("package")
    saved = model.save(folder / "model.safetensors")
    image = np.random.default_rng(0).integers(60, 180, (200, 190), np.uint8)
    Pillow.fromarray(image).save(folder / "input.png")
    out = folder / "package.zip"
    words = ["export", saved, "--to", "bioimageio", "--out", out]
    words += ["--input", folder / "input.png", "--licence", "CC-BY-4.0"]
    words += ["--cite", "A. Tester, 2026, doi 10.1000/182.", "--author", "A. Tester"]
    result = CliRunner().invoke(app, [*map(str, words)])
    assert result.exit_code == 0, repr(result.exception)
    path, note = result.stdout.splitlines()
    assert path == str(out)
    assert "probabilities differ from our own by at most" in note
    return out


def contents(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def description(path: Path) -> dict[str, Any]:
    result = yaml.safe_load(contents(path)["rdf.yaml"])
    assert isinstance(result, dict)
    return result


def array(path: Path, name: str) -> np.ndarray:
    return np.load(BytesIO(contents(path)[name]), allow_pickle=False)


def run_by_description(path: Path, images: np.ndarray) -> np.ndarray:
    """Scale images as the package states, and compute them with ONNX Runtime."""
    _, scaling, _ = description(path)["inputs"][0]["preprocessing"]
    values = images.astype(np.float64)
    if scaling["id"] == "scale_linear":
        shape = (1, -1) + (1,) * (images.ndim - 2)
        gain, offset = (
            np.array(scaling["kwargs"][name]).reshape(shape)
            for name in ("gain", "offset")
        )
        values = values * gain + offset
    else:
        axes = tuple(range(2, images.ndim))
        values -= values.mean(axes, keepdims=True)
        values /= values.std(axes, keepdims=True) + scaling["kwargs"]["eps"]
    session = onnxruntime.InferenceSession(contents(path)["weights.onnx"])
    (result,) = session.run(None, {"images": values.astype(np.float32)})
    return np.asarray(result)


def test_the_test_tensors_are_our_prediction(model: ns.Model, package: Path) -> None:
    images, expected = (
        array(package, "test_input.npy"),
        array(package, "test_output.npy"),
    )
    np.testing.assert_allclose(run_by_description(package, images), expected, atol=1e-5)
    scaled = model.spec.normalization.scale.apply(images[0])[None]
    assert images.max() > model.spec.normalization.scale.high[0]
    with torch.inference_mode():
        logits = model.build()(torch.from_numpy(scaled))
    ours = torch.softmax(logits / 2.5, 1).numpy()
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_values_without_meaning_become_the_centre_of_the_scale(
    model: ns.Model, package: Path
) -> None:
    center = model.spec.normalization.scale.center[0]
    clean = np.full((1, 1, 40, 40), center, np.float32)
    broken = clean.copy()
    broken[0, 0, 3, 3:6] = np.nan, np.inf, -np.inf
    np.testing.assert_allclose(
        run_by_description(package, broken),
        run_by_description(package, clean),
        atol=1e-6,
    )


def test_the_description(model: ns.Model, package: Path) -> None:
    facts, spec = description(package), model.spec
    assert b"&id" not in contents(package)["rdf.yaml"]
    assert facts["license"] == "CC-BY-4.0"
    assert facts["authors"] == [{"name": "A. Tester"}]
    (citation,) = facts["cite"]
    assert citation["doi"] == "10.1000/182"
    (images,), (probabilities,) = facts["inputs"], facts["outputs"]
    _, channel, y, x = images["axes"]
    assert channel["channel_names"] == ["channel0"]
    smallest = 2 * spec.halo + 2
    assert y["size"] == x["size"] == {"min": smallest, "step": 2}
    assert (y["scale"], x["scale"], x["unit"]) == (0.5, 0.25, "micrometer")
    assert images["data"] == {"type": "uint8"}
    _, channel, y, x = probabilities["axes"]
    assert len(channel["channel_names"]) == 2
    assert x["size"] == {"tensor_id": "images", "axis_id": "x"}
    assert y["halo"] == x["halo"] == spec.halo
    assert facts["config"]["napari_strata"]["classes"] == spec.classes.table()
    readme = contents(package)["README.md"].decode()
    assert f"| 1 | {spec.classes.names[1]} | 255 |" in readme
    assert "What the format cannot express" in readme
    with Pillow.open(BytesIO(contents(package)["cover.png"])) as cover:
        assert cover.size == (2 * smallest, smallest)


def test_each_image_has_its_own_scale_where_grey_values_are_relative(
    tmp_path: Path,
) -> None:
    recipe = {"network": NETWORKS["unet"], "normalization": {"grey_values": "relative"}}
    model = random_model(recipe, easy_pair())
    exported = ns.export_model(model, "bioimageio", tmp_path / "package.zip")
    assert "the format cannot state" in exported.notes[1]
    images = array(exported.path, "test_input.npy")
    expected = array(exported.path, "test_output.npy")
    for factor in (1, 2):
        found = run_by_description(exported.path, images.astype(np.float32) * factor)
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_channels_have_their_own_scales(tmp_path: Path) -> None:
    grey = easy_pair((2, 64, 64))
    data = np.stack([np.asarray(grey.image.data), np.asarray(grey.image.data) // 3], 1)
    image = Image(data, "ZCYX", channel_names=("DAPI", "class"))
    model = random_model(
        {"network": NETWORKS["unet"]}, AnnotatedImage(image, grey.labels)
    )
    path = ns.export_model(model, "bioimageio", tmp_path / "package.zip").path
    _, channel, *_ = description(path)["inputs"][0]["axes"]
    assert channel["channel_names"] == ["DAPI", "c_class"]
    images = array(path, "test_input.npy")
    assert images.shape[1] == 2
    np.testing.assert_allclose(
        run_by_description(path, images), array(path, "test_output.npy"), atol=1e-4
    )


def test_identifiers() -> None:
    names = ("pore space", "pore-space", "2nd", "class", "Ångström", "?")
    expected = ["pore_space", "pore_space_2", "c_2nd", "c_class", "Ångström", "unnamed"]
    assert bioimageio.identifiers(names) == expected


def refused(model: ns.Model, tmp_path: Path, **options: Any) -> str:
    out = tmp_path / options.pop("name", "package.zip")
    with pytest.raises((ImageError, ModelError, RunError)) as caught:
        ns.export_model(model, "bioimageio", out, **options)
    assert not list(tmp_path.iterdir())
    return str(caught.value)


def test_what_cannot_be_written_is_refused(model: ns.Model, tmp_path: Path) -> None:
    assert "a zip file" in refused(model, tmp_path, name="package.rdf")
    assert "without a DOI" in refused(model, tmp_path, cite="A paper")
    small = Image(np.zeros((20, 200), np.uint8), "YX")
    assert "found 20 pixels along Y" in refused(model, tmp_path, image=small)
    colour = Image(np.zeros((3, 200, 200), np.uint8), "CYX")
    assert "found 3 channels; the model takes 1" in refused(
        model, tmp_path, image=colour
    )
    assert "has no option colour; it has image, cite" in refused(
        model, tmp_path, colour="red"
    )
    resized = replace(model, spec=model.spec.model_copy(update={"resize": 64}))
    assert "resizes each image to 64 pixels" in refused(resized, tmp_path)


def test_a_wrong_package_is_refused(
    model: ns.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bioimageio, "TOLERANCE", -1.0)
    assert "the package differs from the model by" in refused(model, tmp_path)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIOIMAGEIO_CACHE_PATH", str(tmp_path / "cache"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(
    "name",
    [
        name if name == "unet" else pytest.param(name, marks=pytest.mark.slow)
        for name in NETWORKS
    ],
)
def test_bioimageio_core_accepts_the_package(name: str, tmp_path: Path) -> None:
    """Needs the extra bioimageio, which the environments of tox do not have."""
    core = pytest.importorskip("bioimageio.core")
    network = dict(NETWORKS[name])
    if network["kind"] in ("smp", "atrous_unet"):
        network["encoder_weights"] = "none"
    pair = easy_pair((32, 96, 96) if name == "unet3d" else (2, 96, 96))
    model = random_model({"network": network}, pair)
    path = ns.export_model(model, "bioimageio", tmp_path / "package.zip").path
    summary = core.test_model(path)
    assert summary.status == "passed", json.dumps(summary.model_dump(mode="json"))
