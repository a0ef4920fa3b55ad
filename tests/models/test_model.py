from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from helpers import tiny_model
from napari_strata.core.errors import ModelError
from napari_strata.core.events import EpochEnd
from napari_strata.core.runs import check_model_header
from napari_strata.models.model import Model

EPOCH = EpochEnd(
    1,
    2,
    0.5,
    float("nan"),
    0.75,
    0.9,
    (0.5, float("nan")),
    1e-3,
    2.5,
    True,
    True,
    "raw",
)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    model = dataclasses.replace(tiny_model(), history=(EPOCH,), fingerprint="abc")
    loaded = Model.load(model.save(tmp_path / "model.safetensors"))
    assert (loaded.spec, loaded.recipe, loaded.fingerprint) == (
        model.spec,
        model.recipe,
        "abc",
    )
    assert (loaded.versions, loaded.created) == (model.versions, model.created)
    assert loaded.history[0].mean_iou == 0.75
    assert loaded.digest == model.digest
    x = torch.rand(1, 1, 37, 41)
    assert torch.equal(loaded.build()(x), model.build()(x))


def test_a_run_folder_stands_for_its_model(tmp_path: Path) -> None:
    tiny_model().save(tmp_path / "run" / "model.safetensors")
    assert (
        Model.load(tmp_path / "run").digest
        == Model.load(Model.load(tmp_path / "run")).digest
    )


def test_digest_follows_weights_and_spec() -> None:
    model = tiny_model()
    other = {k: v + 1 if v.is_floating_point() else v for k, v in model.weights.items()}
    assert dataclasses.replace(model, weights=other).digest != model.digest
    assert (
        dataclasses.replace(
            model, spec=model.spec.model_copy(update={"halo": 99})
        ).digest
        != model.digest
    )


def test_weights_are_not_shared_with_the_built_network() -> None:
    model = tiny_model()
    with torch.no_grad():
        next(model.build().parameters()).zero_()
    assert model.digest == tiny_model().digest


def _refused(path: Path, words: str) -> None:
    with pytest.raises(ModelError, match=words) as caught:
        Model.load(path)
    assert len(str(caught.value).splitlines()) <= 2


def test_bad_files_are_refused_in_words(tmp_path: Path) -> None:
    good = tiny_model().save(tmp_path / "good.safetensors")
    _refused(tmp_path / "missing.safetensors", "no such model file")
    _refused(tmp_path, "found no model.safetensors")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    _refused(cut, "damaged or cut short")
    (tmp_path / "text.safetensors").write_text("hello")
    _refused(tmp_path / "text.safetensors", "something else than a model")
    save_file({"a": torch.ones(1)}, tmp_path / "foreign.safetensors")
    _refused(
        tmp_path / "foreign.safetensors", "needed is a file written by napari-strata"
    )
    save_file(
        {"a": torch.ones(1)},
        tmp_path / "header.safetensors",
        metadata={"format": "napari-strata model 1"},
    )
    _refused(tmp_path / "header.safetensors", "header cannot be read")


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "zip.pt")
    _refused(tmp_path / "zip.pt", "pickle")
    (tmp_path / "raw.pkl").write_bytes(b"\x80\x04K\x01.")
    _refused(tmp_path / "raw.pkl", "pickle")


def test_weights_that_do_not_fit_are_named() -> None:
    model = tiny_model()
    weights = dict(list(model.weights.items())[1:])
    with pytest.raises(ModelError, match="do not fit its network"):
        dataclasses.replace(model, weights=weights).build()


@pytest.mark.parametrize(
    ("key", "old", "new"),
    [
        ("spec", '"in_channels":1', '"in_channels":-1'),
        ("spec", '"tile":', '"tile":-'),
        ("history", "", "5"),
        ("versions", "{", "["),
    ],
)
def test_a_header_with_impossible_facts_is_refused(tmp_path, key, old, new):
    from safetensors import safe_open

    path = tiny_model().save(tmp_path / "a.safetensors")
    with safe_open(path, framework="pt") as source:
        header = source.metadata()
        weights = {name: source.get_tensor(name) for name in source.keys()}  # noqa: SIM118
    header[key] = header[key].replace(old, new, 1) if old else new
    save_file(weights, path, metadata=header)
    with pytest.raises(ModelError, match="header cannot be read"):
        Model.load(path)
    if key != "versions":
        with pytest.raises(ModelError, match="header cannot be read"):
            check_model_header(path)
