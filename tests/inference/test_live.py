"""The live segmentation gives what the same classifier gives as a model."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import napari_strata as ns
from napari_strata.core.classes import ClassMap
from napari_strata.core.errors import LabelError
from napari_strata.core.image import Image
from napari_strata.core.recipes import load_recipe
from napari_strata.inference.live import LiveSegmentation, MaskPart
from napari_strata.models.model import Model

CLASSES = ClassMap(names=("dark", "bright"), values=(1, 3), unlabelled=(0,))
CPU = torch.device("cpu")
QUICK = {"network.trees": 10, "network.depth": 4}


def striped_stack(shape: tuple[int, int, int] = (3, 700, 90)) -> Image:
    """Dark and bright stripes with noise; longer than a tile."""
    rng = np.random.default_rng(0)
    stripes = np.arange(shape[1])[:, None] // 20 % 2 * 80
    stack = stripes + rng.normal(60, 8, shape)
    return Image(stack.clip(0, 255).astype(np.uint8), "ZYX", name="stripes")


def strokes_of(image: Image) -> np.ndarray[Any, Any]:
    labels = np.zeros(image.shape[1:], np.uint8)
    labels[5:12, 10:60] = 1
    labels[26:32, 10:60] = 3
    return labels


def open_live(image: Image, **overrides: Any) -> LiveSegmentation:
    recipe = load_recipe("instant").with_overrides(QUICK | overrides)
    return LiveSegmentation(image, CLASSES, recipe, device=CPU)


def paste(parts: Iterable[MaskPart], shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Put the parts of the final mask together; every pixel comes once."""
    mask = np.zeros(shape, np.uint8)
    times = np.zeros(shape, np.uint8)
    for part in parts:
        if part.stage == "full":
            mask[part.box] = part.labels
            times[part.box] += 1
    assert (times == 1).all()
    return mask


@pytest.mark.parametrize("levels", [None, 3])
def test_the_mask_is_the_prediction_of_the_same_classifier(levels: int | None) -> None:
    image = striped_stack()
    live = open_live(image, **{"network.levels": levels})
    live.set_labels({"Z": 1}, strokes_of(image))
    classifier = live.fit()
    mask = paste(live.iter_mask({"Z": 2}, threads=2), image.shape[1:])
    recipe = load_recipe("instant").with_overrides(
        QUICK | {"network.levels": live.section.levels}
    )
    model = Model(live.spec, recipe, classifier.weights())
    plane = Image(image.data[2], "YX")
    np.testing.assert_array_equal(mask, np.asarray(ns.predict(model, plane).data))
    expected = np.arange(700) // 20 % 2 * 2 + 1
    assert (mask == expected[:, None]).mean() > 0.97


@pytest.mark.parametrize(("asked", "found"), [(None, 2), (3, 3)])
def test_painted_windows_make_the_filter_small(asked: int | None, found: int) -> None:
    image = striped_stack()
    live = open_live(image, **{"network.filter_radius": asked})
    labels = strokes_of(image)
    live.set_labels({"Z": 1}, labels)
    assert live.fit().filter_radius == (asked or 4)
    labels[75:86, 40:51] = 3
    labels[80:86, 40:51] = 1
    live.set_labels({"Z": 1}, labels)
    assert live.fit().filter_radius == found


def test_what_is_in_view_comes_first_and_coarse() -> None:
    image = striped_stack()
    live = open_live(image)
    live.set_labels({"Z": 0}, strokes_of(image))
    view = (slice(600, 690), slice(0, 90))
    parts = list(live.iter_mask({"Z": 0}, view))
    stages = [part.stage for part in parts]
    assert stages == ["coarse", "full", "full"]
    first, second, last = (part.box[0] for part in parts)
    assert first == second
    assert first.start <= 600
    assert last.stop == first.start
    coarse, full = parts[0].labels, parts[1].labels
    assert coarse.shape == full.shape
    assert (coarse == full).mean() > 0.9


def test_new_strokes_and_removed_ones_count() -> None:
    image = striped_stack()
    live = open_live(image)
    labels = strokes_of(image)
    live.set_labels({"Z": 0}, labels)
    before = live.fit()
    assert live.fit() is before, "nothing has changed"
    assert (live.stroke_count, live.pixel_count) == (2, 7 * 50 + 6 * 50)
    labels[45:50, 10:60] = 1
    live.set_labels({"Z": 0}, labels)
    assert live.fit() is not before
    assert live.stroke_count == 3
    fresh = open_live(image)
    fresh.set_labels({"Z": 0}, labels)
    for tensor, other in zip(
        live.fit().weights().values(), fresh.fit().weights().values(), strict=True
    ):
        np.testing.assert_array_equal(tensor.numpy(), other.numpy())
    labels[45:50] = 0
    live.set_labels({"Z": 0}, labels)
    assert live.pixel_count == 7 * 50 + 6 * 50
    live.set_labels({"Z": 0}, np.zeros_like(labels))
    assert live.pixel_count == 0


def test_a_stroke_that_changes_its_class_counts() -> None:
    image = striped_stack()
    live = open_live(image)
    labels = strokes_of(image)
    live.set_labels({"Z": 0}, labels)
    mask = paste(live.iter_mask({"Z": 0}), labels.shape)
    turned = np.where(labels == 0, 0, 4 - labels).astype(np.uint8)
    live.set_labels({"Z": 0}, turned)
    swapped = paste(live.iter_mask({"Z": 0}), labels.shape)
    assert (mask + swapped == 4).mean() > 0.95


@pytest.mark.parametrize("values", [(), (3,)])
def test_one_class_is_not_enough(values: tuple[int, ...]) -> None:
    image = striped_stack()
    live = open_live(image)
    labels = strokes_of(image)
    labels[~np.isin(labels, values)] = 0
    live.set_labels({"Z": 0}, labels)
    with pytest.raises(LabelError, match="two classes at least"):
        live.fit()


def look_at(live: LiveSegmentation, *planes: int) -> None:
    for z in planes:
        for _ in live.iter_mask({"Z": z}):
            pass


def test_the_next_window_is_where_the_shown_mask_is_least_certain() -> None:
    image = striped_stack()
    live = open_live(image)
    live.set_labels({"Z": 1}, strokes_of(image))
    planes = {z: list(live.iter_mask({"Z": z})) for z in (0, 1)}
    window = live.find_window({"Z": 0})
    assert live.find_window({"Z": 0}).box == window.box
    plane = planes[window.index["Z"]]
    margins = np.zeros(image.shape[1:], np.float16)
    for part in plane:
        if part.margins is not None:
            margins[part.box] = part.margins
    assert window.margin == margins[window.box].mean(dtype=np.float64)
    mask = paste(plane, image.shape[1:])
    np.testing.assert_array_equal(window.labels, mask[window.box])
    assert window.changed is None, "there is no window before"
    skipped = [({"Z": window.index["Z"]}, window.box)]
    other = live.find_window({"Z": 0}, skipped=skipped)
    assert (other.index, other.box) != (window.index, window.box)
    assert other.margin >= window.margin


def test_a_mask_that_is_older_than_the_strokes_is_renewed() -> None:
    image = striped_stack()
    live = open_live(image)
    labels = strokes_of(image)
    live.set_labels({"Z": 1}, labels)
    look_at(live, 0, 1, 2)
    first = live.find_window({"Z": 0})
    labels[45:50, 10:60] = 1
    live.set_labels({"Z": 1}, labels)
    window = live.find_window({"Z": 0})
    fresh = open_live(image)
    fresh.set_labels({"Z": 1}, labels)
    plane = window.index
    mask = paste(fresh.iter_mask(plane), image.shape[1:])
    np.testing.assert_array_equal(window.labels, mask[window.box])
    assert first.changed is None
    assert window.changed is not None


def test_the_change_is_that_of_the_planes_segmented_for_both_windows() -> None:
    image = striped_stack((1, 60, 90))
    live = open_live(image)
    labels = strokes_of(image)
    live.set_labels({"Z": 0}, labels)
    before = paste(live.iter_mask({"Z": 0}), labels.shape)
    live.find_window({"Z": 0})
    turned = np.where(labels == 0, 0, 4 - labels).astype(np.uint8)
    live.set_labels({"Z": 0}, turned)
    changed = live.find_window({"Z": 0}).changed
    after = paste(live.iter_mask({"Z": 0}), labels.shape)
    assert changed == (before != after).mean() > 0.9
    assert live.find_window({"Z": 0}).changed == changed


def test_a_plane_without_room_has_no_window() -> None:
    image = striped_stack((2, 60, 18))
    live = open_live(image)
    labels = np.zeros(image.shape[1:], np.uint8)
    labels[:, 9] = np.arange(60) // 20 % 2 * 2 + 1
    live.set_labels({"Z": 0}, labels)
    with pytest.raises(LabelError, match="turn to another plane"):
        live.find_window({"Z": 0})
    assert live.find_window({"Z": 1}).index == {"Z": 1}


@pytest.mark.parametrize("levels", [None, 3])
def test_levels_are_those_that_a_training_on_the_same_strokes_chooses(
    levels: int | None, tmp_path: Path
) -> None:
    """Coarse stripes in strong noise: what sees further tells strokes better."""
    rng = np.random.default_rng(1)
    rows = np.arange(400)
    is_bright = rows // 50 % 2 == 1
    grey = is_bright[:, None] * 30 + rng.normal(100, 60, (400, 200))
    image = Image(grey.clip(0, 255).astype(np.uint8), "YX", name="noise")
    labels = np.zeros(image.shape, np.uint8)
    for top in range(20, 400, 50):
        labels[top : top + 3, 20:80] = 3 if is_bright[top] else 1
        labels[top + 5 : top + 8, 100:160] = 3 if is_bright[top] else 1
    live = open_live(image, **{"network.levels": levels})
    live.set_labels({}, labels)
    assert live.stroke_count == 16
    best, reason = live.choose_levels()
    assert best > 2
    assert f"{best} octave levels" in reason
    assert live.section.levels == (levels or 2), "nothing has changed"
    pair = ns.AnnotatedImage(image, image.labels_like(labels, classes=CLASSES))
    model = ns.train("instant", pair, out=tmp_path / "run", overrides=QUICK)
    assert model.spec.network.levels == best


def test_levels_need_strokes() -> None:
    with pytest.raises(LabelError, match="found no strokes"):
        open_live(striped_stack()).choose_levels()
