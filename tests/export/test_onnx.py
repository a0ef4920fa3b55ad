"""The ONNX file computes what the network does, and says how to feed it."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

import napari_strata as ns
from helpers import easy_pair, tiny_model
from napari_strata.cli import app
from napari_strata.core.errors import ModelError, RunError
from napari_strata.core.network_sections import UNet, network_kinds, register_network
from napari_strata.core.recipe import Recipe
from napari_strata.core.spec import resolve
from napari_strata.export import onnx
from napari_strata.inference import build
from napari_strata.models.model import Calibration
from napari_strata.networks import build_network

pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

PAIR = easy_pair((2, 61, 75))
TEMPERATURE = 2.5
DOCS = Path(__file__).parents[2] / "docs" / "export.md"


@pytest.fixture(scope="module")
def model() -> ns.Model:
    """A model with a temperature; its logits are large enough that it counts."""
    tiny = tiny_model(PAIR)
    weights = dict(tiny.weights)
    head = [name for name in weights if "head" in name and name.endswith("weight")]
    weights[head[-1]] = 5 * weights[head[-1]]
    return replace(tiny, weights=weights, calibration=Calibration(TEMPERATURE))


@pytest.fixture(scope="module")
def exported(model: ns.Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`model`, saved and exported by the command line; and what was printed."""
    folder = tmp_path_factory.mktemp("exported")
    saved = model.save(folder / "model.safetensors")
    out = folder / "model.onnx"
    result = call("export", saved, "--to", "onnx", "--out", out)
    assert result.exit_code == 0, repr(result.exception)
    (folder / "printed.txt").write_text(result.stdout)
    return out


def call(*words: Any) -> Any:
    return CliRunner().invoke(app, [*map(str, words)])


def run_graph(path: Path, images: Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path))
    (probabilities,) = session.run(["probabilities"], {"images": images.numpy()})
    return probabilities


def properties(path: Path) -> dict[str, Any]:
    session = onnxruntime.InferenceSession(str(path))
    texts = session.get_modelmeta().custom_metadata_map
    return {name: json.loads(text) for name, text in texts.items()}


def expected(model: ns.Model, images: Tensor) -> np.ndarray:
    with torch.inference_mode():
        return torch.softmax(model.build()(images) / model.temperature, 1).numpy()


def random_images(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("shape", [(1, 1, 62, 34), (3, 1, 10, 106)])
def test_probabilities_are_those_of_the_network_with_its_temperature(
    model: ns.Model, exported: Path, shape: tuple[int, ...]
) -> None:
    images = random_images(*shape)
    probabilities = run_graph(exported, images)
    np.testing.assert_allclose(probabilities, expected(model, images), atol=1e-5)
    cold = expected(replace(model, calibration=None), images)
    assert np.abs(probabilities - cold).max() > 0.01


def test_the_command_line_prints_the_file_and_the_difference(exported: Path) -> None:
    path, note = (exported.parent / "printed.txt").read_text().splitlines()
    assert path == str(exported)
    found = re.fullmatch(
        r"  probabilities differ from our own by at most (\S+) on a random image "
        r"\(3 x 1 x 39 x 23\)",
        note,
    )
    assert found is not None
    assert float(found[1]) < 1e-5
    names = {path.name for path in exported.parent.iterdir()}
    assert names == {"model.safetensors", "model.onnx", "printed.txt"}


def test_the_command_line_refuses(exported: Path) -> None:
    saved = exported.with_name("model.safetensors")
    before = exported.stat().st_mtime_ns
    result = call("export", saved, "--to", "onnx", "--out", exported)
    assert isinstance(result.exception, RunError)
    assert "exists already" in str(result.exception)
    assert exported.stat().st_mtime_ns == before
    result = call("export", saved, "--to", "onyx", "--out", exported, "--overwrite")
    assert "There is no exporter 'onyx'; choose one of " in str(result.exception)


def test_metadata(model: ns.Model, exported: Path) -> None:
    spec = model.spec
    facts = properties(exported)
    assert facts["classes"] == spec.classes.table()
    assert facts["normalization"] == json.loads(spec.normalization.model_dump_json())
    assert facts["pixel_size"] == spec.pixel_size
    assert facts["napari_strata"] == version("napari-strata")
    del facts["classes"], facts["normalization"]
    del facts["pixel_size"], facts["napari_strata"]
    assert facts == {
        "axes": "YX",
        "channels": [],
        "neighbours": 0,
        "dtype": "uint8",
        "pixel_unit": "pixel",
        "resize": None,
        "size_multiple": [2, 2],
        "stride": [2, 2],
        "tile": [spec.tile] * 2,
        "halo": [spec.halo] * 2,
        "blend": False,
        "network": "unet",
    }
    documented = set(re.findall(r"`(\w+)`", DOCS.read_text(encoding="utf-8")))
    assert set(properties(exported)) <= documented


def test_the_documented_example_gives_our_labels(
    model: ns.Model, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.onnx").write_bytes(exported.read_bytes())
    np.save("plane.npy", PAIR.image.read({"Z": 1}))
    (code,) = re.findall(r"```python\n(.*?)```", DOCS.read_text("utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    ours = ns.predict(model, PAIR.image, device="cpu", precision="fp32")
    labels = np.asarray(ours.data[1])
    assert names["labels"].shape == labels.shape == (61, 75)
    assert len(np.unique(labels)) == 2
    assert np.mean(names["labels"] == labels) > 0.9999


def test_a_3d_network(tmp_path: Path) -> None:
    recipe = Recipe.parse({"network": {"kind": "unet3d", "widths": [4, 8, 8]}})
    recipe = recipe.with_overrides({"network.anisotropy": 2})
    spec = resolve(recipe, easy_pair((6, 32, 32)))
    assert spec.stride_shape == (2, 4, 4)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ns.Model(spec, recipe, dict(build_network(spec).state_dict()))
    out = ns.export_model(model, "onnx", tmp_path / "volume.onnx").path
    images = random_images(2, 1, 6, 20, 12)
    np.testing.assert_allclose(
        run_graph(out, images), expected(model, images), atol=1e-5
    )
    facts = properties(out)
    assert facts["axes"] == "ZYX"
    assert facts["size_multiple"] == facts["stride"] == [2, 4, 4]
    assert facts["tile"] == list(spec.tile_shape)


def test_a_wrong_graph_is_refused(
    model: ns.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_temperature(self: onnx.Probabilities, images: Tensor) -> Tensor:
        return torch.softmax(self.network(images), 1)

    monkeypatch.setattr(onnx.Probabilities, "forward", without_temperature)
    with pytest.raises(RunError, match=r"differs from the network by 0\.\d+ in the"):
        ns.export_model(model, "onnx", tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_ensembles_and_large_networks_are_refused(
    model: ns.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelError, match=r"found 2 models; ensembles cannot be .* yet"):
        ns.export_model([model, model], "onnx", tmp_path / "model.onnx")
    monkeypatch.setattr(onnx, "LARGEST", 1000)
    with pytest.raises(ModelError, match=r"found a network of 0\.0 GB; an ONNX file"):
        ns.export_model(model, "onnx", tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["onnxscript", "onnxruntime"])
def test_a_missing_package_is_named(
    model: ns.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(RunError) as caught:
        ns.export_model(model, "onnx", tmp_path / "model.onnx")
    assert str(caught.value) == (
        f"export to ONNX needs the package {name}; pip install 'napari-strata[onnx]'."
    )


class NoNetwork(UNet):
    kind: Literal["no_network"] = "no_network"  # type: ignore[assignment]
    builder: ClassVar[str] = ""


@pytest.fixture
def other_kind(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    kinds = network_kinds()
    assert isinstance(kinds, dict)
    monkeypatch.setattr(build, "_BUILDERS", {"no_network": lambda *_: object()})
    register_network(NoNetwork)
    yield
    del kinds["no_network"]


@pytest.mark.usefixtures("other_kind")
def test_other_predictors_are_refused(model: ns.Model, tmp_path: Path) -> None:
    spec = model.spec.model_copy(update={"network": NoNetwork()})
    with pytest.raises(ModelError, match="'no_network', which is not a network; only"):
        ns.export_model(replace(model, spec=spec), "onnx", tmp_path / "model.onnx")
