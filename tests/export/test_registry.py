"""An exporter from outside the package writes a model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import napari_strata as ns
from helpers import tiny_model
from napari_strata.core.errors import ModelError, RunError
from napari_strata.export import registry
from napari_strata.export.registry import Exported, register_exporter
from napari_strata.models.ensemble import Ensemble


@pytest.fixture(scope="module")
def model() -> ns.Model:
    return tiny_model()


@pytest.fixture
def toy_exporter() -> Iterator[None]:
    @register_exporter("toy")
    def export_toy(models: Ensemble, path: Path, *, indent: int = 0) -> list[str]:
        path.write_text(json.dumps(models.spec.classes.values, indent=indent or None))
        if indent < 0:
            raise RunError("found a negative indent.")
        return [f"{len(models)} model"]

    yield
    del registry._EXPORTERS["toy"]


def refuses(error: type[Exception], model: object, out: Path, to: str = "toy") -> str:
    with pytest.raises(error) as caught:
        ns.export_model(model, to, out)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.usefixtures("toy_exporter")
def test_a_registered_exporter_writes_a_model_and_takes_its_options(
    model: ns.Model, tmp_path: Path
) -> None:
    out = tmp_path / "new" / "classes.json"
    exported = ns.export_model(model, "toy", out)
    assert exported == Exported(out, ("1 model",))
    assert out.read_text() == "[0, 255]"
    ns.export_model([model, model], "toy", str(out), overwrite=True, indent=1)
    assert out.read_text() == "[\n 0,\n 255\n]"


def test_an_unregistered_exporter_is_refused_and_all_are_named(
    model: ns.Model, tmp_path: Path
) -> None:
    text = refuses(RunError, model, tmp_path / "a.json")
    names = text.removeprefix("There is no exporter 'toy'; choose one of ").rstrip(".")
    assert "onnx" in names.split(", ")


@pytest.mark.usefixtures("toy_exporter")
def test_an_existing_file_stays(model: ns.Model, tmp_path: Path) -> None:
    out = tmp_path / "a.json"
    out.write_text("mine")
    assert "exists already" in refuses(RunError, model, out)
    assert "is a folder; name a file" in refuses(RunError, model, tmp_path)
    with pytest.raises(RunError, match="negative"):
        ns.export_model(model, "toy", out, overwrite=True, indent=-1)
    assert out.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.usefixtures("toy_exporter")
def test_a_missing_model_is_refused(tmp_path: Path) -> None:
    text = refuses(ModelError, tmp_path / "run", tmp_path / "a.json")
    assert "there is no such model file or run folder" in text
