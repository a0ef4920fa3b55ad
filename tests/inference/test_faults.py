"""Files that go away or change, and a second prediction, while one is under way."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers import easy_pair, tiny_model
from napari_strata.core.errors import ImageError, RunError
from napari_strata.core.events import Message, RegionEnd
from napari_strata.core.image import Image
from napari_strata.core.options import PredictOptions
from napari_strata.inference.predict import iter_predict, predict
from napari_strata.io import read_image, read_images, read_labels, write_image

OPTIONS = PredictOptions(device="cpu", precision="fp32")
PLANES = 6


@pytest.fixture
def stack(tmp_path: Path) -> Path:
    """A Zarr stack, whose planes are read one after the other."""
    image = easy_pair((PLANES, 64, 64)).image
    return write_image(tmp_path / "image.zarr", image)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_model().save(tmp_path / "model.safetensors")


def after_one_plane(
    model: Path, image: Any, out: Path, change: Callable[[], object]
) -> Generator[Any, None, None]:
    """Predict a plane, change something, and predict the others."""
    with closing(iter_predict(model, image, out=out, options=OPTIONS)) as job:
        for event in job:
            yield event
            if isinstance(event, RegionEnd) and event.done == 1:
                change()


def labels_of(model: Path, image: Path) -> Any:
    return predict(model, read_image(image), options=OPTIONS).data


def test_an_image_that_is_replaced_is_not_mixed_with_the_new_one(
    tmp_path: Path, model: Path
) -> None:
    path, out = tmp_path / "image.tif", tmp_path / "labels.tif"
    write_image(path, easy_pair((PLANES, 64, 64)).image)

    def replace() -> None:
        other = easy_pair((PLANES, 64, 64), seed=5).image
        os.utime(write_image(path, other, overwrite=True), (1, 1))

    with pytest.raises(ImageError, match="has changed since the prediction began"):
        list(after_one_plane(model, path, out, replace))
    assert not out.exists()
    events = list(iter_predict(model, path, out=out, options=OPTIONS))
    texts = [event.text for event in events if isinstance(event, Message)]
    assert any("was made with another image" in text for text in texts), texts
    np.testing.assert_array_equal(read_labels(out).data, labels_of(model, path))
    assert not list(tmp_path.glob("*.partial"))


def test_a_slice_of_a_folder_that_is_replaced(tmp_path: Path, model: Path) -> None:
    folder, out = tmp_path / "slices", tmp_path / "labels.tif"
    planes = easy_pair((PLANES, 64, 64)).image.data
    folder.mkdir()
    for number, plane in enumerate(planes):
        write_image(folder / f"{number}.tif", Image(plane, "YX"))

    def replace() -> None:
        last = folder / f"{PLANES - 1}.tif"
        write_image(last, Image(planes[0], "YX"), overwrite=True)

    with pytest.raises(ImageError, match="has changed since the prediction began"):
        list(after_one_plane(model, folder, out, replace))
    predict(model, folder, out=out, options=OPTIONS)
    np.testing.assert_array_equal(read_labels(out).data, labels_of(model, folder))


def test_other_files_may_come_into_a_folder_of_slices(
    tmp_path: Path, model: Path
) -> None:
    folder, out = tmp_path / "slices", tmp_path / "labels.tif"
    folder.mkdir()
    for number, plane in enumerate(easy_pair((PLANES, 64, 64)).image.data):
        write_image(folder / f"{number}.tif", Image(plane, "YX"))

    def add_files() -> None:
        for name in (".DS_Store", "Thumbs.db", "scanner.log", "._0.tif"):
            (folder / name).write_bytes(b"x")

    events = list(after_one_plane(model, folder, out, add_files))
    assert sum(isinstance(event, RegionEnd) for event in events) == PLANES
    np.testing.assert_array_equal(read_labels(out).data, labels_of(model, folder))


def test_a_deleted_image_costs_nothing_when_it_is_back(
    tmp_path: Path, model: Path, stack: Path
) -> None:
    out, away = tmp_path / "labels.tif", tmp_path / "away.zarr"
    # Large images are read piece by piece; a Zarr array without files is zero.
    (image,) = read_images(stack, lazy_above=0)
    with pytest.raises(ImageError, match="has been deleted since the prediction"):
        list(after_one_plane(model, image, out, lambda: stack.rename(away)))
    assert not out.exists()
    with pytest.raises(ImageError, match=r"image\.zarr"):
        predict(model, stack, out=out, options=OPTIONS)
    away.rename(stack)
    (image,) = read_images(stack, lazy_above=0)
    events = list(iter_predict(model, image, out=out, options=OPTIONS))
    done = [event.done for event in events if isinstance(event, RegionEnd)]
    assert len(done) < PLANES  # the first plane was kept
    np.testing.assert_array_equal(read_labels(out).data, labels_of(model, stack))


@pytest.mark.parametrize("fate", ["replaced", "deleted"])
def test_a_model_that_goes_during_a_prediction(
    tmp_path: Path, model: Path, stack: Path, fate: str
) -> None:
    out, copy = tmp_path / "labels.tif", tmp_path / "copy.safetensors"
    shutil.copyfile(model, copy)

    def change() -> None:
        if fate == "deleted":
            model.unlink()
        else:
            model.write_bytes(b"another model")

    list(after_one_plane(model, stack, out, change))
    np.testing.assert_array_equal(read_labels(out).data, labels_of(copy, stack))


def test_a_second_prediction_to_the_same_file_is_refused(
    tmp_path: Path, model: Path, stack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "labels.tif"
    monkeypatch.setattr("napari_strata.inference.predict.PATIENCE", 0.1)

    def predict_too() -> None:
        with pytest.raises(RunError, match="another process is predicting the same"):
            predict(model, stack, out=out, options=OPTIONS)

    list(after_one_plane(model, stack, out, predict_too))
    np.testing.assert_array_equal(read_labels(out).data, labels_of(model, stack))
    assert not list(tmp_path.glob("*.partial"))
