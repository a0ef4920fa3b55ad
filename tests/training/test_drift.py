"""The reference of the training images, for every kind of training."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import napari_strata as ns
from helpers import tiny_recipe
from napari_strata.core.drift import BINS, TILES, measure_appearance
from napari_strata.core.image import AnnotatedImage, Image
from napari_strata.core.spec import resolve
from napari_strata.data.neighbours import pairs_with_neighbours
from napari_strata.data.regions import labelled_regions
from napari_strata.models.model import Model
from napari_strata.training.drift import measure_reference

Scene = Callable[..., AnnotatedImage]


def pair_of(data: np.ndarray, axes: str, **facts: Any) -> AnnotatedImage:
    image = Image(data, axes, **facts)
    labels = np.zeros(image.label_shape, np.uint8)
    labels[..., ::2] = 1
    return AnnotatedImage(image, image.labels_like(labels))


def measured(pairs: list[AnnotatedImage], *, seed: int = 0, **overrides: Any) -> Any:
    recipe = tiny_recipe(**overrides)
    pairs = pairs_with_neighbours(pairs, recipe.patches.neighbours)
    spec = resolve(recipe, pairs)
    regions = labelled_regions(pairs, spec.classes, spec.axes)
    return measure_reference(regions, spec, seed=seed)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(100, 20, shape).clip(0, 255).astype("u1")


def test_tiles_are_spread_over_the_images_and_the_seed_moves_them(scene: Scene) -> None:
    pairs = [scene(number, size=96, planes=2) for number in range(3)]
    first, again, other = (
        measured(pairs), measured(pairs), measured(pairs, seed=1)
    )  # fmt: skip
    assert first.histograms.shape == (1, TILES + 2, BINS)
    assert first.histograms.dtype == np.float16
    assert first.histograms.sum(-1) == pytest.approx(1, abs=0.01)
    assert first.to_text() == again.to_text()
    assert first.histograms.tobytes() != other.histograms.tobytes()
    assert 0 < first.share < 0.1
    assert 0 < first.tile_share < 0.1


def test_images_smaller_than_a_tile_are_tiles() -> None:
    reference = measured([pair_of(noise(20, 30, seed=i), "YX") for i in range(3)])
    assert reference.histograms.shape == (1, 3, BINS)
    assert np.isfinite(reference.energies).any()


def test_a_single_plane_is_compared_by_its_tiles_only() -> None:
    reference = measured([pair_of(noise(80, 80), "YX")])
    assert np.isnan(reference.share)
    assert reference.tile_share > 0


def test_more_of_a_known_material_than_any_tile_has_is_explained(scene: Scene) -> None:
    pair = scene(size=192)
    reference = measured([pair], normalization__grey_values="physical")
    scale = resolve(
        tiny_recipe(normalization__grey_values="physical"), pair
    ).normalization.scale
    bright = np.random.default_rng(0).normal(180, 15, (1, 128, 128)).clip(0, 255)
    pure = measure_appearance([bright.astype("u1")], scale, (0.0,), (1.0,))
    foreign = measure_appearance([bright.astype("u1") - 40], scale, (0.0,), (1.0,))
    assert pure is not None
    assert foreign is not None
    assert reference.compare(pure)[0] < 0.02
    assert reference.compare(foreign)[0] > 0.1


def test_each_channel_has_its_histograms() -> None:
    rgb = noise(80, 80, 3)
    rgb[..., 2] = 30
    reference = measured([pair_of(rgb, "YXC")])
    assert reference.histograms.shape[0] == 3
    assert reference.energies.shape[0] == 3


def test_nodata_does_not_count_and_unlabelled_pixels_do() -> None:
    values = noise(128, 128).astype(np.float32)
    pair = pair_of(values.copy(), "YX")
    pair.image.data[:, 64:] = np.nan  # type: ignore[index]
    reference = measured([pair])
    assert reference.histograms.sum(-1) == pytest.approx(1, abs=0.01)
    pair.labels.data[:, 32:] = 2
    classes = ns.ClassMap.from_values([0, 1], unlabelled=[2])
    spec = resolve(tiny_recipe(), pair, classes=classes)
    regions = labelled_regions([pair], classes)
    painted = measure_reference(regions, spec, seed=0)
    assert painted is not None
    of_tiles = np.s_[:, :-2]  # the last two are those of the classes
    assert (
        painted.histograms[of_tiles].tobytes()
        == reference.histograms[of_tiles].tobytes()
    )


@pytest.mark.parametrize("kind", ["physical", "relative", "dtype", "imagenet"])
def test_bins_cover_the_grey_values_of_every_normalisation(kind: Any) -> None:
    pairs = [pair_of(noise(96, 96, seed=i), "YX") for i in range(2)]
    reference = measured(pairs, normalization__grey_values=kind)
    mean = reference.histograms[0].astype(float).mean(0)
    assert (mean > 0.005).sum() > 20
    assert mean[0] < 0.01
    assert mean[-1] < 0.01


def test_a_slice_counts_without_its_neighbours() -> None:
    pair = pair_of(noise(5, 70, 70), "ZYX")
    plain = measured([pair])
    thick = measured([pair], patches__neighbours=1)
    assert thick.histograms.shape == plain.histograms.shape
    assert thick.histograms.tobytes() == plain.histograms.tobytes()


def check_stored(run: Path, channels: int = 1) -> None:
    model = Model.load(run)
    assert model.drift is not None
    assert model.drift.histograms.shape[0] == channels


def test_a_network_keeps_the_reference(
    scene: Scene, small: dict[str, Any], tmp_path: Path
) -> None:
    small["training.epochs"] = 1
    model = ns.train("default", scene(), out=tmp_path / "run", overrides=small)
    check_stored(tmp_path / "run")
    saved = Model.load(model.save(tmp_path / "copy.safetensors"))
    assert model.drift is not None
    assert saved.drift is not None
    assert saved.drift.to_text() == model.drift.to_text()
    assert saved.digest == model.digest


def test_a_pixel_classifier_keeps_the_reference(strokes: Scene, tmp_path: Path) -> None:
    overrides = {"network.trees": 10, "network.depth": 4}
    ns.train(
        "instant",
        strokes(),
        unlabelled=[0],
        out=tmp_path / "run",
        overrides=overrides,
    )
    check_stored(tmp_path / "run")


def test_a_3d_network_keeps_the_reference(scene: Scene, tmp_path: Path) -> None:
    overrides = {
        "network.widths": (4, 8),
        "patches.size": 16,
        "patches.per_epoch": 2,
        "training.epochs": 1,
        "training.batch_size": 2,
        "training.precision": "fp32",
    }
    ns.train("unet3d", scene(planes=8), out=tmp_path / "run", overrides=overrides)
    check_stored(tmp_path / "run")


def test_a_model_of_an_earlier_version_has_none(
    scene: Scene, small: dict[str, Any], tmp_path: Path
) -> None:
    small["training.epochs"] = 1
    path = tmp_path / "run" / "model.safetensors"
    ns.train("default", scene(), out=tmp_path / "run", overrides=small)
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    del header["__metadata__"]["drift"]
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    assert Model.load(path).drift is None
