"""Warnings about values that are no classes, and silence about those that are."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import PIL.Image
import pytest
from scipy.ndimage import label

from napari_strata.core.classes import ClassMap
from napari_strata.core.errors import LabelError
from napari_strata.core.image import AnnotatedImage, Image
from napari_strata.core.spec import find_classes
from napari_strata.data.label_meaning import warn_of_meaning
from napari_strata.io.dataset import read_pairs


def grains(count: int = 3, seed: int = 0) -> np.ndarray:
    """Round grains of value 1, in planes of 96 x 96 pixels."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:96, :96]
    planes = np.zeros((count, 96, 96), "uint8")
    for plane in planes:
        for _ in range(8):
            y, x, radius = rng.integers(0, 96), rng.integers(0, 96), rng.integers(6, 14)
            plane[(rows - y) ** 2 + (columns - x) ** 2 < radius**2] = 1
    return planes


def warnings(labels: np.ndarray, *, unlabelled: tuple[int, ...] = ()) -> list[str]:
    image = Image(np.zeros(labels.shape, "uint8"), "ZYX")
    pairs = [AnnotatedImage(image, image.labels_like(labels))]
    return warn_of_meaning(pairs, find_classes(pairs, unlabelled))


def test_object_ids_name_foreground() -> None:
    (warning,) = warnings(label(grains())[0].astype("uint16"))
    assert "--foreground" in warning
    each = np.stack([label(plane)[0] for plane in grains()]).astype("uint8")
    (warning,) = warnings(each)
    assert "--foreground" in warning


def test_void_names_its_value() -> None:
    labels = grains() + grains(seed=1)
    labels[:, :20] = 255
    (warning,) = warnings(labels)
    assert "--unlabelled 255" in warning
    assert warnings(labels, unlabelled=(255,)) == []


def test_resized_masks() -> None:
    binary = grains() * 255
    resized = []
    for plane in binary:
        picture = PIL.Image.fromarray(plane).resize((144, 144), PIL.Image.BILINEAR)
        resized.append(np.asarray(picture) // 86 * 85)
    (warning,) = warnings(np.stack(resized))
    assert "--foreground" in warning


def test_masks_that_were_saved_as_jpeg() -> None:
    planes = []
    for plane in grains() * 255:
        file = BytesIO()
        PIL.Image.fromarray(plane).save(file, "JPEG", quality=95)
        planes.append(np.asarray(PIL.Image.open(file)))
    labels = np.stack(planes)
    labels = np.where(labels > 200, np.maximum(labels, 250), np.minimum(labels, 5))
    (warning,) = warnings(labels)
    assert "loss" in warning


def test_a_crack_between_grains_is_a_class() -> None:
    labels = np.full((1, 96, 96), 200, "uint8")
    labels[:, :30] = 0
    labels[:, 60, :] = 100
    assert warnings(labels) == []


@pytest.mark.parametrize("values", [(0, 1, 2, 3, 4, 5), (0, 50, 100, 150, 200, 250)])
def test_classes_are_left_alone(values: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 6, (3, 12, 12)).repeat(8, 1).repeat(8, 2)
    assert warnings(np.asarray(values, "uint8")[blocks]) == []


def test_named_classes_are_left_alone() -> None:
    labels = label(grains())[0].astype("uint8")
    image = Image(np.zeros(labels.shape, "uint8"), "ZYX")
    pairs = [AnnotatedImage(image, image.labels_like(labels))]
    assert warn_of_meaning(pairs, ClassMap.foreground()) == []


def test_whole_floats_are_labels() -> None:
    grey = np.zeros((8, 8))
    labels = np.eye(8, dtype="float32")
    (pair,) = read_pairs(grey, labels)
    assert pair.labels.dtype == np.uint8
    for wrong in (0.5, np.nan, np.inf, 1e12):
        labels[0, 0] = wrong
        with pytest.raises(LabelError, match="integers"):
            read_pairs(grey, labels)
