"""Labels and probabilities in HDF5, as ilastik exports them, come back unchanged."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import napari_strata as ns
from helpers import easy_pair, tiny_model
from napari_strata.core.classes import ClassMap
from napari_strata.core.errors import RunError
from napari_strata.core.image import Image
from napari_strata.inference import outputs
from napari_strata.io import write_labels, write_probabilities

h5py = pytest.importorskip("h5py")


def tags(path: Path) -> dict[str, tuple[int, float]]:
    """Kind and resolution of each axis, in the order of the file."""
    with h5py.File(path) as file:
        axes = json.loads(file["exported_data"].attrs["axistags"])["axes"]
    return {tag["key"]: (tag["typeFlags"], tag["resolution"]) for tag in axes}


def test_labels_come_back_with_classes_and_units(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 3, (2, 4, 300, 5), np.uint16)
    classes = ClassMap(names=("pore", "clay", "quartz"), values=(0, 1, 2))
    image = Image(
        values, "TZYX", scale=(1, 2, 0.5, 0.25), units=("second", *3 * ["micrometer"])
    )
    labels = image.labels_like(values, classes=classes)
    path = write_labels(tmp_path / "labels.h5", labels)
    assert tags(path) == {"t": (8, 0), "z": (2, 2), "y": (2, 0.5), "x": (2, 0.25)}
    with h5py.File(path) as file:
        dataset = file["exported_data"]
        np.testing.assert_array_equal(dataset[...], values)
        assert dataset.dtype == np.uint16
        np.testing.assert_array_equal(dataset.attrs["element_size_um"], [2, 0.5, 0.25])
    found = ns.read_labels(path)
    np.testing.assert_array_equal(found.data, values)
    assert (found.axes, found.scale, found.units) == (
        "TZYX",
        labels.scale,
        labels.units,
    )
    assert found.classes == classes
    # The user's axes count, not those of the record.
    assert ns.read_labels(path, axes="ZTYX").axes == "ZTYX"


def test_probabilities_have_their_channels_last_and_are_float32(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((3, 2, 6, 7)).astype(np.float16)
    units = ("nanometer", "pixel", "nanometer", "nanometer")
    image = Image(values, "ZCYX", (5, 1, 4, 4), units, channel_names=("pore", "clay"))
    path = write_probabilities(tmp_path / "probabilities.h5", image)
    assert list(tags(path)) == ["z", "y", "x", "c"]
    assert tags(path)["c"] == (1, 0)
    with h5py.File(path) as file:
        written = file["exported_data"][...]
        assert "element_size_um" not in file["exported_data"].attrs
    assert written.dtype == np.float32
    np.testing.assert_array_equal(written, np.moveaxis(values, 1, -1))
    found = ns.read_image(path)
    assert found.channel_names == ("pore", "clay")
    assert found.pixel_size == {"Z": 5, "Y": 4, "X": 4}
    assert found.pixel_unit == "nanometer"


def test_a_prediction_is_written(tmp_path: Path) -> None:
    pair = easy_pair((2, 40, 40))
    model = tiny_model(pair)
    out = tmp_path / "labels.h5"
    expected = ns.predict(model, pair.image, device="cpu", precision="fp32")
    ns.predict(
        model, pair.image, out=out, device="cpu", precision="fp32", probabilities=True
    )
    labels = ns.read_labels(out)
    np.testing.assert_array_equal(labels.data, expected.data)
    assert labels.classes == model.spec.classes
    assert ns.read_image(tmp_path / "labels_probabilities.h5").channels == 2


def test_a_missing_package_is_named_before_the_prediction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outputs, "find_spec", lambda _: None)
    with pytest.raises(RunError, match=r"without the package h5py; run pip install"):
        outputs.check_out(tmp_path / "labels.h5", overwrite=False)
    outputs.check_out(tmp_path / "labels.tif", overwrite=False)


def test_the_file_that_an_image_is_a_dataset_of_is_not_replaced(tmp_path: Path) -> None:
    pair = easy_pair((2, 40, 40))
    path = tmp_path / "scan.h5"
    with h5py.File(path, "w") as file:
        file["raw"] = pair.image.data
    before = path.read_bytes()
    for source in (path, f"{path}:/raw"):
        image = ns.read_image(source, axes="ZYX")
        with pytest.raises(RunError, match="would replace the image itself"):
            ns.predict(tiny_model(pair), image, out=path, overwrite=True, device="cpu")
    assert path.read_bytes() == before
